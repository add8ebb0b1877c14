"""What the reflectors of a track's pairs say of themselves, and what of it makes an interval suspect.

A reflector tells when it was started and how many probes it has dropped so far (see `llama.wire.tlv`).
Behind one address there may be several: each has counters of its own, and none of them is new because
another one answered before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llama.collector.ledger import Ints, Ledger
from llama.collector.summary import suspect_bit
from llama.wire import tlv

#: Reflectors remembered of a pair, besides the one that answered last.
MOST_OTHERS = 8
#: By how much the time between two clocks' readings may differ, ns.
SLACK_NS = 1_000_000_000

RESTARTED = "a reflector was started anew"
OVERFLOWED = "a reflector's receive buffer overflowed"
LIMITED = "a reflector refused probes, or its host their replies (a limit, a firewall, no route)"
SEVERAL = "several reflectors answer at one address"

Counters = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]


class Reflectors:
    """What was last heard of the reflectors of ``pairs`` pairs.

    ``started``, ``drops`` and ``limited`` are of the one that answered last, (pairs,): Unix ns by its
    own clock, 0 where it does not tell, and counts modulo 2**32.
    """

    def __init__(self, pairs: int) -> None:
        self.started: npt.NDArray[np.uint64] = np.zeros(pairs, np.uint64)
        self.drops: Counters = np.zeros(pairs, np.uint32)
        self.limited: Counters = np.zeros(pairs, np.uint32)
        #: Of the others that answer for a pair, by their start: drops, and what a limit refused.
        self._others: dict[int, dict[int, tuple[int, int]]] = {}

    def follow(self, before: Reflectors, pairs: Ints, others: Ints) -> None:
        """Go on where ``before`` was: its pair ``others[i]`` is ``pairs[i]`` here."""
        for name in ("started", "drops", "limited"):
            getattr(self, name)[pairs] = getattr(before, name)[others]
        for new, old in zip(pairs.tolist(), others.tolist(), strict=True):
            if old in before._others:
                self._others[new] = before._others[old]

    def news(self, pairs: Ints, told: tlv.Answer) -> Mask:
        """Return which replies, to probes of ``pairs``, tell something else than the last did: (N,)."""
        same: Mask = told.started_ns == self.started[pairs]
        same &= told.receive_drops == self.drops[pairs]
        same &= told.guard_drops == self.limited[pairs]
        return ~same

    def hear(self, ledger: Ledger, pairs: Ints, told: tlv.Answer, t2_ns: Ints, t4_ns: Ints) -> None:
        """Take news in, and mark what they make suspect; columns of (N,), in the order of arrival.

        A reflector that was not heard of is new if it has been up, by its own clock, for no longer than
        the oldest open interval lasts; else it is another one that has been there all the time.
        """
        known = self.started[pairs]
        another = (known != 0) & (told.started_ns != 0) & (told.started_ns != known)
        usual = np.flatnonzero(~another)
        self._count(ledger, pairs[usual], told, usual, known[usual] != 0)
        ledger.counting[pairs] = told.started_ns != 0
        if not another.any():
            return
        begun_ns = ledger.open_intervals()[0].start_ns
        columns = (pairs, told.started_ns, told.receive_drops, told.guard_drops, t2_ns, t4_ns)
        for pair, started, drops, limited, t2, t4 in zip(
            *(column[another].tolist() for column in columns), strict=True
        ):
            new = t2 - started <= t4 - begun_ns + SLACK_NS
            self._turn_to(ledger, pair, started, (drops, limited), new=new)

    def _count(
        self, ledger: Ledger, pairs: Ints, told: tlv.Answer, rows: Ints, counted: Mask
    ) -> None:
        """Take in what the reflectors that answered last say now: ``rows`` of ``told``."""
        started, drops, limited = (
            column[rows] for column in (told.started_ns, told.receive_drops, told.guard_drops)
        )
        counted = counted & (started != 0)
        for bit, note, grown in (
            ("reflector_drops", OVERFLOWED, _grown(drops, self.drops[pairs])),
            ("reflector_limit", LIMITED, _grown(limited, self.limited[pairs])),
        ):
            if (grown & counted).any():
                ledger.mark(suspect_bit(bit), note, pairs=pairs[grown & counted])
        self.started[pairs], self.drops[pairs], self.limited[pairs] = started, drops, limited

    def _turn_to(
        self, ledger: Ledger, pair: int, started: int, counts: tuple[int, int], *, new: bool
    ) -> None:
        """Note that another reflector answers for a pair; ``new`` says that it has just been started."""
        last = int(self.started[pair])
        if last == started:  # an earlier one of these replies was its first
            before = int(self.drops[pair]), int(self.limited[pair])
        else:
            others = self._others.setdefault(pair, {})
            others[last] = int(self.drops[pair]), int(self.limited[pair])
            if started in others:
                before = others.pop(started)
                if ledger.current is not None and SEVERAL not in ledger.current.notes:
                    ledger.mark(0, SEVERAL)
            else:
                before = counts
                if new:
                    ledger.mark(suspect_bit("reflector_restart"), RESTARTED, pairs=[pair])
            if len(others) > MOST_OTHERS:
                del others[next(iter(others))]
        if counts != before:
            grown = _grown(np.array(counts, np.uint32), np.array(before, np.uint32)).tolist()
            for bit, note, more in zip(
                ("reflector_drops", "reflector_limit"), (OVERFLOWED, LIMITED), grown, strict=True
            ):
                if more:
                    ledger.mark(suspect_bit(bit), note, pairs=[pair])
        self.started[pair], (self.drops[pair], self.limited[pair]) = started, counts


def _grown(now: Counters, before: Counters) -> Mask:
    """Tell which counters, modulo 2**32, have grown; one that went back was begun anew."""
    grown: Mask = (now - before).view(np.int32) > 0
    return grown
