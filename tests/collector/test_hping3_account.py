"""What a run of hping3 means to the ledger, and how its probes are divided into runs."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals import closing
from llama.collector.intervals.ledger import Ledger
from llama.collector.probing.hping3.account import Account
from llama.collector.probing.hping3.cycle import KNOWN_AFTER_S, Turns, spacing_s, stretches
from llama.collector.probing.hping3.output import Answer, Summary
from llama.collector.slices import at_once

SECOND_NS = 1_000_000_000
NOW_NS = 1_700_000_000 * SECOND_NS
PORTS = 4
SPACING_S = 0.1
LAST_S = 100 + (PORTS - 1) * SPACING_S  # when the last probe is sent
ENDS_S = LAST_S + 1.0  # when a run ends that was not answered to its last


def answer(number: int, rtt_ms: float = 5.0, *, again: bool = False) -> Answer:
    """An answer to one probe."""
    return Answer(number=number, rtt_ms=rtt_ms, dscp=46, ttl=60, again=again)


class AccountCase(SynchronousTestCase):
    """One pair with four source ports, and a run that begins at 100 s."""

    def setUp(self) -> None:
        """Open a window, and begin."""
        self.ledger = Ledger(np.array([46], np.uint8), PORTS, 1.0, KNOWN_AFTER_S, 10)
        self.ledger.stamps_there = False
        self.ledger.timeout_ns = SECOND_NS // 2
        self.ledger.roll(NOW_NS, NOW_NS + 10 * SECOND_NS, 90.0)
        self.account = Account(self.ledger, np.arange(PORTS), SPACING_S, 0.5)
        self.account.begin(100.0, NOW_NS)

    def answers(self, *numbers: int, rtt_ms: float = 5.0) -> None:
        """Have probes answered, when they should be."""
        for number in numbers:
            now_s = 100 + number * SPACING_S + rtt_ms / 1000
            self.account.enter(now_s)
            self.assertTrue(self.account.answer(answer(number, rtt_ms), now_s))

    def closed(self) -> list[np.void]:
        """Close all windows; return the pair's figures in each."""
        self.ledger.roll(NOW_NS + 10 * SECOND_NS, NOW_NS + 20 * SECOND_NS, 200.0)
        rows = []
        while self.ledger.over:
            figures = at_once(closing.close(self.ledger, self.ledger.over[0]))
            figures.take_off()
            rows.append(figures.pair_stats[0])
        return rows


class SettleTests(AccountCase):
    """How a run ends."""

    def end(
        self, answered: Sequence[int], summary: Summary | None, now_s: float = ENDS_S
    ) -> tuple[int, int, int, int]:
        """Return (sent, received, lost, unsent) of a run."""
        self.setUp()
        self.answers(*answered)
        self.account.enter(now_s)
        unsent = self.account.settle(summary, now_s).unsent
        (row,) = self.closed()
        return int(row["sent"]), int(row["received"]), int(row["lost"]), unsent

    def test_every_end(self) -> None:
        """Only a run that ended by itself, in time and with figures that fit, tells what is lost."""
        for answered, summary, now_s, expected in (
            ((0, 1, 2, 3), Summary(4, 4), LAST_S + 0.005, (4, 4, 0, 0)),
            ((0, 2), Summary(4, 2), ENDS_S, (4, 2, 2, 0)),
            ((), Summary(4, 0), ENDS_S, (4, 0, 4, 0)),
            # Fewer sent than wanted: what was not sent is not lost.
            ((0,), Summary(2, 1), ENDS_S, (2, 1, 1, 2)),
            # Killed, or ended by an error, or not understood.
            ((0, 2), None, ENDS_S, (2, 2, 0, 2)),
            ((), None, 100.0, (0, 0, 0, 4)),
            # Figures that do not fit what was read.
            ((0, 2), Summary(4, 3), ENDS_S, (2, 2, 0, 2)),
            ((0, 2), Summary(5, 2), ENDS_S, (2, 2, 0, 2)),
            # Ended too early to have waited, or too late to have listened.
            ((0, 2), Summary(4, 2), LAST_S + 0.1, (2, 2, 0, 2)),
            ((0, 2), Summary(4, 2), ENDS_S + 0.5, (2, 2, 0, 2)),
        ):
            self.assertEqual(self.end(answered, summary, now_s), expected, (summary, now_s))

    def test_never_began(self) -> None:
        """A run that never said that it begins has sent nothing."""
        account = Account(self.ledger, np.arange(PORTS), SPACING_S, 0.5)
        self.assertFalse(account.answer(answer(0), 100.0))
        account.enter(101.0)
        self.assertEqual(account.settle(Summary(4, 0), ENDS_S).unsent, PORTS)
        self.assertEqual(self.closed()[0]["sent"], 0)

    def test_icmp_errors(self) -> None:
        """An ICMP error ends the wait for an answer: then the run may end at once."""
        self.account.enter(LAST_S)
        self.account.unreachable = PORTS
        self.assertEqual(self.account.settle(Summary(4, 4), LAST_S + 0.01).unsent, 0)
        self.assertEqual(self.closed()[0]["lost"], PORTS)

    def test_strangers_end_it(self) -> None:
        """Strangers that make hping3 end before the answers have come lose nothing."""
        self.answers(0)
        self.account.enter(LAST_S)
        self.account.strangers = 3
        self.assertEqual(self.account.settle(Summary(4, 4), LAST_S + 0.01).unsent, 3)
        row = self.closed()[0]
        self.assertEqual((row["sent"], row["lost"]), (1, 0))

    def test_slow_answers(self) -> None:
        """A slow answer is late; in a run that was slow itself it counts, without a round trip."""
        self.answers(0, 1, 3)
        self.answers(2, rtt_ms=700)
        self.account.settle(Summary(4, 4), LAST_S + 0.6)
        row = self.closed()[0]
        self.assertEqual((row["received"], row["lost"], row["late"]), (3, 1, 1))
        self.setUp()
        self.answers(0, 1, 3)
        self.answers(2, rtt_ms=700)
        self.assertTrue(self.account.settle(Summary(4, 4), ENDS_S + 1).late)
        row = self.closed()[0]
        self.assertEqual((row["received"], row["samples"], row["late"]), (4, 3, 0))

    def test_missed_by_hping3(self) -> None:
        """What arrived here in time is received whatever hping3 says; what came later is lost."""
        for summary, lost in ((Summary(4, 1), 2), (None, 0)):
            self.setUp()
            self.answers(0)
            self.account.see(0, 46, 60, 100.0)  # as hping3 did
            self.account.see(2, 46, 60, 100.25)
            self.account.see(3, 46, 60, LAST_S + 0.8)
            self.account.see(9, 46, 60, 100.0)
            self.account.enter(LAST_S)
            self.assertEqual(self.account.settle(summary, ENDS_S).missed, 1)
            row = self.closed()[0]
            self.assertEqual((row["received"], row["samples"], row["lost"]), (2, 1, lost))

    def test_times(self) -> None:
        """An RTT of 0.0, or one that the time of reading contradicts, is no round trip."""
        self.account.enter(LAST_S)
        self.account.answer(answer(0, 0.0), 100.0)
        self.account.answer(answer(1, 1000.4), 100.1)  # its two clocks disagreed
        self.account.answer(answer(2, 0.4), 102.0)
        self.account.answer(answer(3, 0.4), LAST_S)
        self.account.settle(Summary(4, 4), LAST_S)
        row = self.closed()[0]
        self.assertEqual((row["received"], row["samples"]), (4, 1))
        self.assertEqual(row["rtt_sum_ns"], 400_000)
        self.assertEqual((row["ttl_at_collector"], row["dscp_at_collector"]), (60, 46))

    def test_repeated(self) -> None:
        """A repeated answer is a duplicate, and one to no probe of the run is nobody's."""
        self.answers(0, 1, 2, 3)
        self.account.answer(answer(1, 6.0, again=True), LAST_S)
        self.assertFalse(self.account.answer(answer(4), LAST_S))
        self.account.settle(Summary(4, 5), LAST_S)
        row = self.closed()[0]
        self.assertEqual((row["received"], row["duplicate"]), (4, 1))

    def test_across_windows(self) -> None:
        """What is taken back after an interval began is taken back from the one it was in."""
        self.account.enter(100.15)
        self.ledger.roll(NOW_NS + 10 * SECOND_NS, NOW_NS + 20 * SECOND_NS, 100.15)
        self.answers(1, 2)
        self.account.enter(LAST_S)
        self.assertEqual(self.account.settle(None, ENDS_S).unsent, 2)
        rows = self.closed()
        self.assertEqual([int(row["sent"]) for row in rows], [1, 1])
        self.assertEqual([int(row["received"]) for row in rows], [1, 1])

    def test_next_run_goes_on(self) -> None:
        """The numbers taken back are used by the next run, whose probes are all there."""
        self.account.enter(LAST_S)
        self.account.settle(None, ENDS_S)
        self.account = Account(self.ledger, np.arange(PORTS), SPACING_S, 0.5)
        self.account.begin(100.0, NOW_NS + SECOND_NS)
        self.answers(0, 1, 2, 3)
        self.account.settle(Summary(4, 4), LAST_S)
        row = self.closed()[0]
        self.assertEqual((row["sent"], row["received"]), (4, 4))

    def test_closing_already(self) -> None:
        """A probe whose interval may be closing stays where it is."""
        self.account.enter(LAST_S)
        self.ledger.roll(NOW_NS + 10 * SECOND_NS, NOW_NS + 20 * SECOND_NS, LAST_S)
        self.assertEqual(self.account.settle(None, LAST_S + KNOWN_AFTER_S + 1).unsent, 0)
        self.assertEqual(int(self.closed()[0]["sent"]), PORTS)

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000)), max_size=12),
        st.lists(st.tuples(st.integers(0, 5), st.floats(99, 105)), max_size=6),
        st.none() | st.tuples(st.integers(0, 6), st.integers(0, 12)),
        st.floats(100, 110),
    )
    def test_sums_hold(
        self, answers: list[tuple[int, int]], seen: list[tuple[int, float]],
        summary: tuple[int, int] | None, end_s: float,
    ) -> None:  # fmt: skip
        """Whatever is said, sent is received and lost, and nothing is both sent and not."""
        self.setUp()
        for number, tenths in answers:
            self.account.answer(answer(number, tenths / 10), 100.2)
        for number, now_s in seen:
            self.account.see(number, 0, 64, now_s)
        said = None if summary is None else Summary(*summary)
        unsent = self.account.settle(said, end_s).unsent
        (row,) = self.closed()
        self.assertEqual(row["sent"], row["received"] + row["lost"])
        self.assertEqual(row["sent"] + unsent, PORTS)
        if said is None:
            self.assertEqual(row["lost"] - row["late"], 0)


class TurnsTests(SynchronousTestCase):
    """Which run is due when."""

    def turns(self, runs: int = 6) -> Turns:
        """Runs of two probes each, every one once a second."""
        chosen = [(n, 0) for n in range(runs)]
        return Turns(chosen, [2] * runs, 1.0, 0.0, random.Random(3))

    def test_every_run_once_a_cycle(self) -> None:
        """In every cycle each run has its turn, evenly spread."""
        turns = self.turns()
        turns.runs_due(0.0)
        seen = [run for n in range(1, 61) for run in turns.runs_due(n / 10)]
        self.assertEqual(len(seen), 36)
        self.assertEqual({seen.count(run) for run in seen}, {6})
        self.assertEqual(turns.probes_per_s, 12)

    def test_never_more_than_a_cycle(self) -> None:
        """After a long pause each run comes once, and what was missed is counted."""
        turns = self.turns()
        first = len(turns.runs_due(0.0))
        self.assertEqual(sorted(turns.runs_due(10.0)), [(n, 0) for n in range(6)])
        self.assertEqual(turns.skipped, 2 * (60 - 6))
        self.assertLessEqual(first, 1)

    def test_limit(self) -> None:
        """A limit ends it, in probes."""
        turns = self.turns()
        turns.limit = 8
        self.assertEqual(sum(len(turns.runs_due(n / 10)) for n in range(50)), 4)

    def test_runs_that_stay_keep_their_turns(self) -> None:
        """Where a pair goes the runs of the others come as they would have, each once a cycle."""
        turns = self.turns()
        turns.runs_due(2.5)
        stay = [run for run in turns.runs if run != (2, 0)]
        fewer = Turns(stay, [2] * 5, 1.0, 2.5, random.Random(4))
        now = {turns.runs.index(run): number for number, run in enumerate(stay)}
        fewer.follow(turns, now, random.Random(5))
        coming = [run for run in turns.runs_due(3.6) if run != (2, 0)]
        self.assertEqual(fewer.runs_due(3.5), coming)
        self.assertEqual((len(coming), fewer.skipped, fewer.probes_per_s), (5, 0, 10))

    def test_nothing_to_do(self) -> None:
        """No runs, no turns."""
        self.assertEqual(self.turns(0).runs_due(5.0), [])

    def test_stretches(self) -> None:
        """Ports that follow on one another, on one address, make a run, up to its length."""
        ports = [(None, n) for n in (40002, 40000, 40001, 50000)]
        self.assertEqual(stretches(ports, 200), ((1, 2, 0), (3,)))
        self.assertEqual(stretches(ports, 2), ((1, 2), (0,), (3,)))
        self.assertEqual(stretches([("10.0.0.1", 5), ("10.0.0.2", 6)], 9), ((0,), (1,)))

    def test_spacing(self) -> None:
        """Probes are as far apart as wanted, or as a cap on all runs at once demands."""
        self.assertEqual(spacing_s(0.01, 8, 1.0, 4, float("inf")), 0.01)
        self.assertEqual(spacing_s(0.01, 8, 1.0, 4, 100.0), 0.08)
        self.assertEqual(spacing_s(0.01, 8, 1.0, 4, 10.0), 0.25)  # a cycle is a second
