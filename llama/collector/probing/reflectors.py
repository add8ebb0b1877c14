"""What the reflectors that a prober asks say of themselves, and what of it makes intervals suspect.

A reflector tells when it was started and how many probes it has dropped so far (see `llama.wire.tlv`).
That is of all pairs that probe it from one address of ours: one that loses everything to a limit does not
hear so itself, and what another one has heard is no news when it is heard again. Behind one address
there may be several reflectors: each has counters of its own, and none of them is new because another
one answered before it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Ints
from llama.collector.intervals.summary import suspect_bit
from llama.wire import tlv

#: Reflectors remembered at an end, besides the one that answered last.
MOST_OTHERS = 8
#: By how much the time between two clocks' readings may differ, ns.
SLACK_NS = 1_000_000_000

RESTARTED = "a reflector was started anew"
OVERFLOWED = "a reflector's receive buffer overflowed"
LIMITED = "a reflector refused probes, or its host their replies (a limit, a firewall, no route)"
SEVERAL = "several reflectors answer at one address"

Counters = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]


class Doubt(NamedTuple):
    """What intervals are to be marked with: suspect ``bits`` and a note, for who probes ``rows``."""

    bits: int
    note: str
    rows: frozenset[int]


class Reflectors:
    """What was last heard of the reflectors at ``ends``, a row each, in ``rows``; see `news`, `hear`.

    An end is what their state is heard by: an address and port, and where it is asked from.
    ``started``, ``drops`` and ``limited`` are of the one that answered last, (N,): Unix ns by its
    own clock, 0 where none told, and counts modulo 2**32.
    """

    def __init__(self, ends: Iterable[Hashable] = ()) -> None:
        self.rows = {end: row for row, end in enumerate(dict.fromkeys(ends))}
        count = len(self.rows)
        self.started: npt.NDArray[np.uint64] = np.zeros(count, np.uint64)
        self.drops: Counters = np.zeros(count, np.uint32)
        self.limited: Counters = np.zeros(count, np.uint32)
        #: Of the others that answer at an end, by their start: drops, and what was refused.
        self._others: dict[int, dict[int, tuple[int, int]]] = {}
        self._doubts: dict[tuple[int, str], set[int]] = {}

    def follow(self, before: Reflectors) -> None:
        """Go on where ``before`` was, at the ends that both have."""
        both = [(row, before.rows[end]) for end, row in self.rows.items() if end in before.rows]
        now, then = np.array(both, np.intp).reshape(-1, 2).T
        for name in ("started", "drops", "limited"):
            getattr(self, name)[now] = getattr(before, name)[then]
        self._others = {new: before._others[old] for new, old in both if old in before._others}

    def news(self, rows: Ints, told: tlv.Answer) -> Mask:
        """Return which replies, from the ends ``rows``, tell something else than the last did: (N,)."""
        same: Mask = told.started_ns == self.started[rows]
        same &= told.receive_drops == self.drops[rows]
        same &= told.guard_drops == self.limited[rows]
        news: Mask = ~same & (told.started_ns != 0)
        return news

    def hear(
        self, ledger: Ledger, rows: Ints, told: tlv.Answer, t2_ns: Ints, t4_ns: Ints
    ) -> list[Doubt]:
        """Take news in and return what they make suspect; columns of (N,), in the order of arrival.

        They came to probes of ``ledger``. A reflector that was not heard of is new if it has been up,
        by its own clock, for no longer than the oldest open interval there lasts; else it is another
        one that has been there all the time.
        """
        known = self.started[rows]
        another = (known != 0) & (told.started_ns != known)
        usual = np.flatnonzero(~another)
        self._count(rows[usual], told, usual, known[usual] != 0)
        if another.any():
            begun_ns = ledger.open_intervals()[0].start_ns
            columns = (rows, told.started_ns, told.receive_drops, told.guard_drops, t2_ns, t4_ns)
            for row, started, drops, limited, t2, t4 in zip(
                *(column[another].tolist() for column in columns), strict=True
            ):
                new = t2 - started <= t4 - begun_ns + SLACK_NS
                self._turn_to(row, started, (drops, limited), new=new)
        doubts, self._doubts = self._doubts, {}
        return [Doubt(*why, frozenset(some)) for why, some in doubts.items()]

    def _doubt(self, reason: str, note: str, rows: Iterable[int]) -> None:
        bits = suspect_bit(reason) if reason else 0
        self._doubts.setdefault((bits, note), set()).update(rows)

    def _count(self, ends: Ints, told: tlv.Answer, rows: Ints, counted: Mask) -> None:
        """Take in what the reflectors that answered last say now: ``rows`` of ``told``."""
        started, drops, limited = (
            column[rows] for column in (told.started_ns, told.receive_drops, told.guard_drops)
        )
        for reason, note, grown in (
            ("reflector_drops", OVERFLOWED, _grown(drops, self.drops[ends])),
            ("reflector_limit", LIMITED, _grown(limited, self.limited[ends])),
        ):
            if (grown & counted).any():
                self._doubt(reason, note, ends[grown & counted].tolist())
        self.started[ends], self.drops[ends], self.limited[ends] = started, drops, limited

    def _turn_to(self, row: int, started: int, counts: tuple[int, int], *, new: bool) -> None:
        """Note that another reflector answers at an end; ``new`` says that it has just been started."""
        last = int(self.started[row])
        if last == started:  # an earlier one of these replies was its first
            before = int(self.drops[row]), int(self.limited[row])
        else:
            others = self._others.setdefault(row, {})
            others[last] = int(self.drops[row]), int(self.limited[row])
            if started in others:
                before = others.pop(started)
                self._doubt("", SEVERAL, [row])
            else:
                before = counts
                if new:
                    self._doubt("reflector_restart", RESTARTED, [row])
            if len(others) > MOST_OTHERS:
                del others[next(iter(others))]
        if counts != before:
            grown = _grown(np.array(counts, np.uint32), np.array(before, np.uint32)).tolist()
            for reason, note, more in zip(
                ("reflector_drops", "reflector_limit"), (OVERFLOWED, LIMITED), grown, strict=True
            ):
                if more:
                    self._doubt(reason, note, [row])
        self.started[row], (self.drops[row], self.limited[row]) = started, counts


def _grown(now: Counters, before: Counters) -> Mask:
    """Tell which counters, modulo 2**32, have grown; one that went back was begun anew."""
    grown: Mask = (now - before).view(np.int32) > 0
    return grown
