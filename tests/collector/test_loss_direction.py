"""Directions of loss, against a simulated network whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger_case import EPOCH, MS, SECOND, close, end_of, ledger, replies
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.ledger import Ledger

FATES = st.sampled_from(
    ["ok"] * 6 + ["forward", "reverse", "slow", "slow back", "slow reverse", "duplicate"]
)
EVENTS = st.sampled_from(["none"] * 30 + ["restart"])


class DirectionTests(SynchronousTestCase):
    """Forward and reverse loss are right or unknown, never wrong."""

    def play(
        self,
        fates: list[str],
        events: list[str],
        step: int,
        base: int | None,
        timeout: int = SECOND // 2,
    ) -> list[tuple[np.void, int, int]]:
        """Play a flow's fate, a probe every ``step`` ns, in intervals of two seconds.

        The reflector counts from ``base``, or returns our numbers as its own where that is None.
        Return each interval's figures with its true losses each way. Left out are those around which
        no received probe was as fast on its way there as they come: nothing tells then that all
        were slow, and overtaken. Also where one was slow, overtaken and then lost on its way back, and
        none that was as slow came back.
        """
        length = 2 * SECOND
        book = ledger(rate=SECOND / step, timeout=timeout / SECOND, interval=2)
        book.next_sequence[:] = 5
        book.current = None
        sent_at = [EPOCH + n * step for n in range(len(fates))]
        there: list[tuple[int, int]] = []
        for n, fate in enumerate(fates):
            if fate != "forward":
                slow = fate in ("slow", "slow reverse")
                there.append((sent_at[n] + (int(1.5 * step) if slow else MS), n))
            if fate == "duplicate":
                there.append((sent_at[n] + 2 * MS, n))
        restarts = [at - 1 for at, event in zip(sent_at, events, strict=False) if event != "none"]
        timeline: list[tuple[int, int, Any]] = [(at, 1, n) for n, at in enumerate(sent_at)]
        number, clock = base or 0, EPOCH
        for when, n in sorted(there):
            if any(clock < moment <= when for moment in restarts):
                number = 0
            clock = when
            if "reverse" not in fates[n]:
                back = int(1.5 * step) if fates[n] == "slow back" else MS
                said = 5 + n if base is None else number
                timeline.append((when + back, 2, (n, said, when)))
            number += 1
        too_slow = 1.5 * step + MS > timeout  # slower than the timeout is lost, that way
        windows = (sent_at[-1] - EPOCH) // length + 1
        for window in range(windows + 1):
            timeline.append((EPOCH + window * length, 0, None))
            timeline.append((EPOCH + (window + 1) * length + timeout, 3, window))
        results = []
        for when, kind, what in sorted(timeline, key=lambda event: event[:2]):
            if kind == 0:
                book.roll(when, when + length, (when - EPOCH) / SECOND)
            elif kind == 1:
                book.send(np.array([0]), when)
            elif kind == 2:
                n, said, there_at = what
                book.reply(
                    replies([0], [5 + n], [sent_at[n]], [said], [when],
                            t2_ns=[there_at], t3_ns=[there_at])
                )  # fmt: skip
            elif what < windows:
                figures = close(book).flow_stats[0].copy()
                truth = []
                for n, at in enumerate(sent_at):
                    if (at - EPOCH) // length == what:
                        late = {"slow": "forward", "slow back": "reverse"} if too_slow else {}
                        late["slow reverse"] = "reverse"
                        truth.append(late.get(fates[n], fates[n]))
                prompt = any(
                    fate in ("ok", "duplicate", "slow back")
                    and what - 1 <= (at - EPOCH) // length <= what
                    for fate, at in zip(fates, sent_at, strict=True)
                )
                seen = all(
                    "slow reverse" not in lot or ("slow" in lot and not too_slow)
                    for lot in (
                        [f for f, at in zip(fates, sent_at, strict=True)
                         if (at - EPOCH) // length == window]
                        for window in (what - 1, what)
                    )
                )  # fmt: skip
                if prompt and seen:
                    results.append((figures, truth.count("forward"), truth.count("reverse")))
        return results

    @settings(max_examples=300)
    @example(["reverse", "slow", "reverse", "slow", "ok"], ["none"] * 80, 30 * MS, 0)
    @given(
        fates=st.lists(FATES, min_size=4, max_size=80),
        events=st.lists(EVENTS, min_size=80, max_size=80),
        step=st.integers(30 * MS, 700 * MS),
        base=st.sampled_from([None, 0, 7, 1000]),
    )
    def test_right_or_unknown(
        self, fates: list[str], events: list[str], step: int, base: int | None
    ) -> None:
        """In no interval are more losses put down to a direction than truly were in it."""
        self.check(self.play(fates, events, step, base))

    @settings(max_examples=50)
    @example(["ok"] * 8 + ["slow", "ok"], ["forward", "ok", "ok"], 7)
    @example(["ok"] * 9 + ["duplicate"], ["forward", "ok", "ok"], 7)
    @example(["ok"] * 7 + ["slow", "slow reverse", "ok"], ["forward", "ok", "ok"], 7)
    @given(
        before=st.lists(FATES, min_size=10, max_size=10).filter(
            lambda fates: "ok" in fates and ("slow" in fates or "slow reverse" not in fates)
        ),
        after=st.lists(FATES, min_size=3, max_size=20),
        base=st.sampled_from([None, 7, 1000]),
    )
    def test_right_or_unknown_after_an_outage(
        self, before: list[str], after: list[str], base: int | None
    ) -> None:
        """So it is where nothing but the last reply is known of the time before."""
        fates = [*before, *["reverse"] * 60, *after]
        self.check(self.play(fates, [], 200 * MS, base))

    def check(self, played: list[tuple[np.void, int, int]]) -> None:
        """Check figures against their true losses each way."""
        for figures, forward, reverse in played:
            self.assertEqual(
                figures["lost"],
                figures["lost_forward"] + figures["lost_reverse"] + figures["lost_unknown"],
            )
            self.assertLessEqual(figures["lost_forward"], forward)
            self.assertLessEqual(figures["lost_reverse"], reverse)

    def test_jitter_greater_than_the_spacing(self) -> None:
        """Where probes overtake each other all the time, losses on the way back stay such, or unknown."""
        told = 0
        for seed in range(20):
            rng = np.random.default_rng(seed)
            book = ledger(rate=10, interval=30)
            sent_at = [EPOCH + n * 100 * MS for n in range(300)]
            there = [at + int(rng.uniform(1, 250)) * MS for at in sent_at]
            lost = rng.random(300) < 0.03
            for at in sent_at:
                book.send(np.array([0]), at)
            for number, n in enumerate(np.argsort(there, kind="stable").tolist()):
                if not lost[n]:
                    book.reply(
                        replies([0], [n], [sent_at[n]], [50 + number], [there[n] + MS],
                                t2_ns=[there[n]], t3_ns=[there[n]])
                    )  # fmt: skip
            end_of(book)
            figures = close(book).flow_stats[0]
            self.assertEqual((figures["lost"], figures["lost_forward"]), (lost.sum(), 0))
            told += int(figures["lost_reverse"])
        self.assertGreater(told, 60)  # of 180 or so

    def test_the_reflectors_clock_is_stepped(self) -> None:
        """Whatever the other clock does, a way there is no longer than the whole way: all is told."""
        for step in (-5 * SECOND, SECOND, 5 * SECOND):
            rng = np.random.default_rng(7)
            book = ledger(rate=10, interval=30)
            lost = rng.random(300) < 0.1
            lost[[0, 149, 150, 299]] = False
            number = 50
            for n in range(300):
                t1 = EPOCH + n * 100 * MS
                book.send(np.array([0]), t1)
                if not lost[n]:
                    t2 = t1 + 2 * MS + (step if n >= 150 else 0)
                    book.reply(
                        replies([0], [n], [t1], [number], [t1 + 4 * MS], t2_ns=[t2], t3_ns=[t2])
                    )
                    number += 1
            end_of(book)
            figures = close(book).flow_stats[0]
            self.assertEqual(figures["lost_forward"], lost.sum())

    def test_plain_losses_are_told(self) -> None:
        """Without reordering, duplicates and restarts every loss between two replies is told."""
        fates = [
            "ok",
            "ok",
            "forward",
            "ok",
            "reverse",
            "ok",
            "forward",
            "reverse",
            "reverse",
            "ok",
        ]
        ((figures, forward, reverse),) = self.play(fates, ["none"] * 10, 100 * MS, 1000)
        self.assertEqual((forward, reverse), (2, 3))
        self.assertEqual(figures["lost_forward"], 2)
        self.assertEqual(figures["lost_reverse"], 3)
        self.assertEqual(figures["lost_unknown"], 0)

    def test_stateless_reflectors_say_nothing(self) -> None:
        """Numbers that are ours sent back make no loss a reverse one."""
        fates = ["ok", "forward", "ok", "reverse", "ok"] * 4
        ((figures, forward, reverse),) = self.play(fates, ["none"] * 20, 50 * MS, None)
        self.assertEqual((forward, reverse), (4, 4))
        self.assertEqual(figures["lost_unknown"], 8)

    def test_first_losses_are_told(self) -> None:
        """A reflector that counts shows it with its first reply, as probe 0 was never sent."""
        book = Ledger(np.zeros(1, np.uint8), 1, 10, 1, 10)
        book.roll(EPOCH, EPOCH + 10 * SECOND, 0.0)
        times = [EPOCH + n * 100 * MS for n in range(3)]
        for t1 in times:
            book.send(np.array([0]), t1)
        for n, number in ((1, 0), (3, 2)):
            book.reply(replies([0], [n], [times[n - 1]], [number], [times[n - 1] + MS]))
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["lost_reverse"], 1)

    def lose_one_way(self, book: Ledger, sound: int) -> np.void:
        """Lose probe 2 of 4 on the way back; the rest has the reflector's numbers from ``sound``."""
        times = [EPOCH + n * 100 * MS for n in range(4)]
        for t1 in times:
            book.send(np.array([0]), t1)
        for n in (0, 1, 3):
            book.reply(replies([0], [n], [times[n]], [sound + n], [times[n] + MS]))
        end_of(book)
        row: np.void = close(book).flow_stats[0]
        return row

    def test_a_reflector_that_says_that_it_counts(self) -> None:
        """It is believed even where its numbers happen to be ours."""
        book = ledger()
        self.assertEqual(self.lose_one_way(book, 0)["lost_unknown"], 1)
        book = ledger()
        book.counting[:] = True
        self.assertEqual(self.lose_one_way(book, 0)["lost_reverse"], 1)

    def test_forged_probes(self) -> None:
        """What a reflector counts says nothing while it answers probes in our name, not before."""
        for says_that_it_counts in (False, True):
            book = ledger()
            book.counting[:] = says_that_it_counts
            self.assertEqual(self.lose_one_way(book, 50)["lost_reverse"], 1)
            forged = replies([0], [9], [EPOCH], [54], [EPOCH + SECOND])
            self.assertEqual(book.reply(forged), 0)
            later = EPOCH + 11 * SECOND
            for n in range(3):
                book.send(np.array([0]), later + n * 100 * MS)
            for n, number in ((4, 55), (6, 56)):
                t1 = later + (n - 4) * 100 * MS
                book.reply(replies([0], [n], [t1], [number], [t1 + MS]))
            assert book.current is not None
            self.assertIn("forged", " ".join(book.current.notes))
            end_of(book)
            row = close(book).flow_stats[0]
            self.assertEqual((row["lost"], row["lost_unknown"]), (1, 1))

    def test_answers_to_what_somebody_asks_from_0_on(self) -> None:
        """Numbers that no flow ever had are forged, whether they are smaller than its own or not."""
        book = ledger()
        book.current = None
        book.begin_by_chance()
        book.roll(EPOCH, EPOCH + 10 * SECOND, 0.0)
        for n in range(2 * book.depth):
            book.send(np.array([0]), EPOCH + n * MS)
        for n in (0, 1, 1000, 2**32 - 1):
            self.assertEqual(book.reply(replies([0], [n], [EPOCH], [n], [EPOCH + SECOND])), 0)
        assert book.current is not None
        self.assertIn("forged", " ".join(book.current.notes))
        self.assertNotIn("probes were forgotten", " ".join(book.current.notes))

    def test_answers_to_forgotten_probes(self) -> None:
        """A reply so late that its probe is not on record any more makes nobody a forger."""
        book = ledger()
        self.lose_one_way(book, 50)
        for n in range(book.depth):
            book.send(np.array([0]), EPOCH + 11 * SECOND + n * 100 * MS)
        self.assertEqual(book.reply(replies([0], [2], [EPOCH], [54], [EPOCH + 40 * SECOND])), 0)
        self.assertTrue(book.doubted.all())
        assert book.current is not None
        self.assertNotIn("forged", " ".join(book.current.notes))
        self.assertIn("probes were forgotten", " ".join(book.current.notes))

    def test_numbers_that_do_not_fit(self) -> None:
        """More than were asked for are others', or overtaken; fewer, and the counter began anew."""
        for numbers, says_that_it_counts, told in (
            ({0: 50, 2: 51, 3: 52}, True, (1, 0, 0)),
            ({0: 50, 1: 51, 3: 53}, True, (0, 1, 0)),
            ({0: 50, 1: 53, 3: 55}, True, (0, 1, 0)),
            ({0: 50, 1: 53, 3: 55}, False, (0, 0, 1)),  # it may have counted another's again
            ({0: 50, 2: 51, 3: 53}, True, (0, 0, 1)),  # probe 1 came after probe 2
            ({0: 50, 1: 50, 3: 51}, True, (0, 0, 1)),  # which of two was it that came?
            ({0: 50, 2: 51, 3: 51}, True, (0, 0, 1)),
            ({0: 50, 3: 51}, True, (2, 0, 0)),
            ({0: 1, 3: 2}, True, (0, 0, 2)),
        ):
            book = ledger()
            book.counting[:] = says_that_it_counts
            for n in range(4):
                t1 = EPOCH + n * 100 * MS
                book.send(np.array([0]), t1)
                if n in numbers:
                    book.reply(replies([0], [n], [t1], [numbers[n]], [t1 + MS]))
            end_of(book)
            row = close(book).flow_stats[0]
            lost = tuple(row[f"lost_{way}"].item() for way in ("forward", "reverse", "unknown"))
            self.assertEqual(lost, told, (numbers, says_that_it_counts))

    def test_doubts_pass(self) -> None:
        """A forged probe long ago, of which nothing is on record any more, is forgotten."""
        book = ledger()
        sent = 0
        for window in range(4):
            if window == 1:
                book.doubt(np.array([0]))
            self.assertEqual(book.doubted.any(), window > 0, window)
            for _ in range(book.depth // 2):
                t1 = EPOCH + sent * 50 * MS
                book.send(np.array([0]), t1)
                book.reply(replies([0], [sent], [t1], [sent + 7], [t1 + MS]))
                sent += 1
            end_of(book)
            close(book)
        self.assertFalse(book.doubted.any())

    def test_slow_flows_from_the_first_probe_on(self) -> None:
        """There is no record before the first probe, whatever a cell may hold."""
        for stateless, told in ((False, (0, 2, 0)), (True, (0, 0, 2))):
            book = Ledger(np.zeros(1, np.uint8), 1, 1, 1, 10)
            book.roll(EPOCH, EPOCH + 10 * SECOND, 0.0)
            for n in range(1, 9):
                t1 = EPOCH + n * SECOND
                book.send(np.array([0]), t1)
                if n not in (4, 6):
                    number = n if stateless else n + 40
                    book.reply(replies([0], [n], [t1], [number], [t1 + MS]))
            end_of(book)
            row = close(book).flow_stats[0]
            lost = tuple(row[f"lost_{way}"].item() for way in ("forward", "reverse", "unknown"))
            self.assertEqual(lost, told)

    def test_last_losses_of_an_interval_wait_for_the_next_reply(self) -> None:
        """Probes lost at the end of an interval get their direction from its neighbour's reply."""
        book = ledger()
        times = [EPOCH + n * 100 * MS for n in range(6)]
        for n in range(4):
            book.send(np.array([0]), times[n])
        for n, number in ((0, 10), (1, 11)):
            book.reply(replies([0], [n], [times[n]], [number], [times[n] + MS]))
        end_of(book)
        book.send(np.array([0]), times[4])
        book.reply(replies([0], [4], [times[4]], [12], [times[4] + MS]))
        self.assertEqual(close(book).flow_stats[0]["lost_forward"], 2)

    def test_losses_before_the_first_reply_use_the_last_interval(self) -> None:
        """Probes lost at the start of an interval get their direction from the reply before it."""
        book = ledger()
        for n in range(3):
            t1 = EPOCH + n * 100 * MS
            book.send(np.array([0]), t1)
            book.reply(replies([0], [n], [t1], [50 + n], [t1 + MS]))
        end_of(book)
        close(book)
        t1 = EPOCH + 11 * SECOND
        for n in range(3):
            book.send(np.array([0]), t1 + n * 100 * MS)
        book.reply(replies([0], [5], [t1 + 200 * MS], [55], [t1 + 201 * MS]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["lost_forward"], flow["lost_reverse"]), (0, 2))

    def test_losses_after_a_long_outage(self) -> None:
        """The last reply is what directions start from, though nothing else is on record of its time."""
        book = ledger()
        sent = 0
        for lost, number in ((0, 5000), (book.depth, None), (5, 5001)):
            for _ in range(lost):
                book.send(np.array([0]), EPOCH + sent * 50 * MS)
                sent += 1
            if number is not None:
                t1 = EPOCH + sent * 50 * MS
                book.send(np.array([0]), t1)
                book.reply(replies([0], [sent], [t1], [number], [t1 + MS]))
                sent += 1
            end_of(book)
            flow = close(book).flow_stats[0]
        self.assertEqual((flow["lost"], flow["lost_forward"]), (5, 5))

    def test_mixed_gap_over_two_intervals_is_unknown(self) -> None:
        """A gap with losses both ways that spans two intervals cannot be shared out."""
        book = ledger()
        times = [EPOCH + n * 100 * MS for n in range(4)]
        book.send(np.array([0]), times[0])
        book.reply(replies([0], [0], times[:1], [50], [times[0] + MS]))
        book.send(np.array([0]), times[1])
        end_of(book)
        book.send(np.array([0]), times[2])
        book.send(np.array([0]), times[3])
        book.reply(replies([0], [3], times[3:], [52], [times[3] + MS]))
        self.assertEqual(close(book).flow_stats[0]["lost_unknown"], 1)
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["lost_unknown"], 1)

    def test_numbers_shared_by_classes_say_nothing(self) -> None:
        """Where a peer numbers several classes together, the direction is unknown."""
        book = ledger()
        times = [EPOCH + n * 100 * MS for n in range(3)]
        for t1 in times:
            book.send(np.array([0]), t1)
        for n, number in ((0, 50), (2, 52)):
            book.reply(
                replies([0], [n], [times[n]], [number], [times[n] + MS],
                        numbered=np.zeros(1, np.bool_))
            )  # fmt: skip
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["lost_unknown"], 1)
