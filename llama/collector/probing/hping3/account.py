"""What one run of hping3 means to the ledger. Pure; time is passed in.

The program does not tell when it sends. Its probes are entered when they are due by its own pace,
counted from when it says that it begins. At the end it is known how many were sent, and what has no
answer is lost only if nothing of ours can be the reason: the run must have ended by itself and in
time, told how many it sent, and said nothing that was not understood. Otherwise what has no answer
is taken back, as if it had not been sent, and the interval is marked.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen

from llama.collector.intervals.cell import NO_RTT
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Ints, Replies
from llama.collector.probing.hping3.cycle import AFTER_LAST_S, LONGEST_ANSWER_S
from llama.collector.probing.hping3.output import Answer, Summary

#: A run that ends so much later, s, than it should was kept from running.
LATE_S = 0.25
#: An answer read so much earlier or later, s, than its round trip says: one of two clocks is wrong.
#: hping3 takes seconds from a coarse clock and microseconds from a fine one, and may be off by 1 s.
ASTRAY_S = 0.5
#: So much later, s, than it arrived an answer may be seen by ourselves.
SEEN_WITHIN_S = 0.1


@frozen(kw_only=True)
class Settled:
    """What became of a run's probes."""

    unsent: int  # never sent, or taken back: their fate is not known
    late: bool  # the run ended later than it should
    missed: int  # answers that arrived in time, but not at hping3; they count, without times


class Account:
    """The probes of one run: one each from ``flows``, ``spacing_s`` apart, answered in ``limit_s``.

    ``ledger`` and ``flows`` are replaced where a reload moves them.
    """

    def __init__(self, ledger: Ledger, flows: Ints, spacing_s: float, limit_s: float) -> None:
        self.ledger, self.flows = ledger, flows
        self._spacing_s, self._limit_s = spacing_s, limit_s
        self._began_s = 0.0  # when the first probe was sent, on the monotonic clock
        self._began_ns = 0  # and in Unix time
        self.began = False
        self._sequence: list[int] = []  # of the probes entered, in order
        self._t1: list[int] = []
        self._answered: set[int] = set()
        self._slow: dict[int, Answer] = {}
        self._seen: dict[int, tuple[float, Answer]] = {}  # by ourselves, whatever hping3 says
        self.strangers = 0
        self.unreachable = 0
        self.again = 0

    @property
    def entered(self) -> int:
        """How many probes are entered."""
        return len(self._sequence)

    @property
    def received(self) -> int:
        """How many of them are answered in time."""
        return len(self._answered)

    def begin(self, now_s: float, wall_ns: int) -> None:
        """Note that the first probe is being sent."""
        self.began = True
        self._began_s, self._began_ns = now_s, wall_ns

    def _sent_s(self, number: int) -> float:
        return self._began_s + number * self._spacing_s

    def last_due_s(self) -> float:
        """Return when the last answer must have come, on the monotonic clock."""
        return self._sent_s(len(self.flows) - 1) + AFTER_LAST_S

    def enter(self, now_s: float) -> None:
        """Enter all probes that are due."""
        while self.began and self.entered < len(self.flows) and self._sent_s(self.entered) <= now_s:
            self._enter_next()

    def _enter_next(self) -> None:
        number = self.entered
        t1_ns = self._began_ns + round(number * self._spacing_s * 1e9)
        _, sequence = self.ledger.send(self.flows[number : number + 1], t1_ns)
        self._sequence.append(int(sequence[0]))
        self._t1.append(t1_ns)

    def answer(self, answer: Answer, now_s: float) -> bool:
        """Enter an answer read at ``now_s``; return False if it is to no probe of the run."""
        number = answer.number
        if not self.began or number >= len(self.flows):
            return False
        while self.entered <= number:
            self._enter_next()
        self.again += answer.again
        rtt_s = answer.rtt_ms / 1000
        if abs(now_s - self._sent_s(number) - rtt_s) > ASTRAY_S or not answer.rtt_ms:
            self._reply(answer, timed=False)
        elif rtt_s <= self._limit_s or number in self._answered:
            self._reply(answer, timed=True)
        else:
            self._slow.setdefault(number, answer)  # unless it was we who were slow
        return True

    def see(self, number: int, dscp: int, ttl: int, now_s: float) -> None:
        """Note that an answer to a probe arrived on this host, whether hping3 notices or not."""
        if self.began and number < len(self.flows):
            answer = Answer(number=number, rtt_ms=0.0, dscp=dscp, ttl=ttl, again=False)
            self._seen.setdefault(number, (now_s, answer))

    def _reply(self, answer: Answer, *, timed: bool) -> None:
        number = answer.number
        flow = self.flows[number : number + 1]
        sequence = np.array([self._sequence[number]], np.uint32)
        ledger = self.ledger
        if not timed and number not in self._answered:
            ledger.flags[ledger.cells(flow, sequence)] |= NO_RTT
        self._slow.pop(number, None)
        t1 = np.array([self._t1[number]])
        t4 = t1 + round(answer.rtt_ms * 1e6)
        dscp, ttl = np.array([answer.dscp], np.uint8), np.array([answer.ttl], np.uint8)
        new = ledger.reply(Replies.bare(flow, sequence, t1, t4, np.zeros(1, np.bool_), dscp, ttl))
        if new:
            self._answered.add(number)

    def settle(self, summary: Summary | None, now_s: float) -> Settled:
        """Decide what is lost. ``summary`` is None if the run did not end by itself, or puzzled us."""
        late = self.began and now_s > self.last_due_s() + LATE_S
        heard = len(self._answered | self._slow.keys()) + self.again
        heard += self.strangers + self.unreachable
        sent, known = 0, False
        if summary is not None and summary.received == heard and self.began and not late:
            known = summary.transmitted <= len(self.flows)
            sent = summary.transmitted if known else 0
        for answer in list(self._slow.values()):
            self._reply(answer, timed=known)
        while self.entered < sent:
            self._enter_next()
        missed = self._missed()
        silent = [n for n in range(self.entered) if n not in self._answered | self._slow.keys()]
        # Errors do not say whom they are about: if there is one for each, it is these.
        refused = known and self.unreachable >= len(silent)
        unsent = len(self.flows) - self.entered
        for number in reversed(silent):
            waited = now_s - self._sent_s(number) >= LONGEST_ANSWER_S
            if not (known and number < sent and (waited or refused)):
                unsent += self._take_back(number, now_s)
        return Settled(unsent=unsent, late=late, missed=missed)

    def _missed(self) -> int:
        """Enter the answers that came in time and that hping3 missed; return how many did."""
        missed = 0
        for number, (seen_s, answer) in sorted(self._seen.items()):
            took_s = seen_s - self._sent_s(number)
            if number not in self._answered and took_s <= self._limit_s + SEEN_WITHIN_S:
                while self.entered <= number:
                    self._enter_next()
                self._reply(answer, timed=False)
                missed += 1
        return missed

    def _take_back(self, number: int, now_s: float) -> int:
        """Take a probe back unless its interval is being closed; return how many were."""
        ledger = self.ledger
        flow = int(self.flows[number])
        sequence = self._sequence[number]
        after = np.uint32((sequence + 1) % 2**32)
        if ledger.next_sequence[flow] != after or any(i.due <= now_s for i in ledger.over):
            return 0
        for interval in ledger.open_intervals():
            for bound in (interval.first, interval.end):
                if bound is not None and bound[flow] == after:
                    bound[flow] = sequence
        ledger.next_sequence[flow] = sequence
        ledger.t1[ledger.cells(np.array([flow]), np.array([sequence], np.uint32))] = 0
        return 1
