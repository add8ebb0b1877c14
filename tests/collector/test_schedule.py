"""Schedules: what is due when."""

from __future__ import annotations

import itertools
import random

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.probing.schedule import LATEST_S, Schedule


class ScheduleTests(SynchronousTestCase):
    """What is due when."""

    def test_evenly_spaced(self) -> None:
        """Every flow is due once a period, and each target's probes are evenly spread over it."""
        schedule = Schedule(np.arange(10), 4, 1.0, 0.0, random.Random(1))
        times: dict[int, list[float]] = {}
        for tick in range(400):
            now = tick / 100
            for burst in schedule.bursts(now, 32, 0.01):
                for flow in burst.flows.tolist():
                    times.setdefault(flow, []).append(now)
        self.assertEqual(len(times), 40)
        for sent in times.values():
            self.assertTrue(3 <= len(sent) <= 4)
            for a, b in itertools.pairwise(sent):
                self.assertAlmostEqual(b - a, 1.0, delta=0.021)
        first = sorted(t for flow in range(4) for t in times[flow])
        for a, b in itertools.pairwise(first):
            self.assertAlmostEqual(b - a, 0.25, delta=0.03)

    def test_what_is_too_late_is_skipped(self) -> None:
        """After a pause nothing is caught up but what was due just now."""
        schedule = Schedule(np.arange(100), 1, 10.0, 0.0, random.Random(1))
        in_time = [len(burst.flows) for burst in schedule.bursts(0.01, 1000, 0.01)]
        late = list(iter(lambda: schedule.due(5.0, 1000), None))
        sent = [len(burst.flows) for burst in late]
        self.assertLessEqual(sum(sent), 1000 * LATEST_S + 1)
        self.assertEqual(
            [burst.left for burst in late], [sum(sent[n + 1 :]) for n in range(len(sent))]
        )
        self.assertAlmostEqual(sum(in_time) + sum(sent) + schedule.skipped, 5000, delta=1)

    def test_a_pause_is_made_up_for_bit_by_bit(self) -> None:
        """A tick sends no more than twice what fell due in its time, and nothing is left out."""
        schedule = Schedule(np.arange(100), 2, 10.0, 0.0, random.Random(1))  # 20 every 10 ms
        ticks = [0.04 + tick / 100 for tick in range(1, 20)]
        sent = [sum(len(burst.flows) for burst in schedule.bursts(now, 32, 0.01)) for now in ticks]
        self.assertLessEqual(max(sent), 41)
        self.assertEqual(sent[:3], [40] * 3)
        self.assertAlmostEqual(sum(sent), 2000 * ticks[-1], delta=40)
        self.assertEqual(schedule.skipped, 0)

    def due_times(self, schedule: Schedule, first: int, last: int) -> dict[int, list[float]]:
        """When each flow is due, between two ticks of a hundredth of a second."""
        times: dict[int, list[float]] = {}
        for tick in range(first, last):
            for burst in schedule.bursts(tick / 100, 32, 0.01):
                for flow in burst.flows.tolist():
                    times.setdefault(flow, []).append(tick / 100)
        return times

    def test_flows_that_stay_keep_their_turns(self) -> None:
        """Whoever leaves or comes, those that stay are due in the same order, at the same times."""
        chance = random.Random(1)
        before = Schedule(np.arange(40), 2, 0.5, 0.0, chance)
        seen = self.due_times(before, 0, 777)
        for gone, come, shift in ((1, 1, 0.0), (0, 4, 0.25), (4, 0, 0.25)):
            pairs = np.arange(gone, 40 + come)  # the first have left, pair n is n - gone now
            moved = {n: n - gone for n in range(gone, 40)}
            after = Schedule(pairs - gone, 2, 0.5, 7.77, chance)
            after.follow(before, moved, chance)
            self.assertEqual(sorted(after.order.tolist()), list(range(40 + come - gone)))
            times = self.due_times(after, 777, 1200)
            for old, new in moved.items():
                for port in range(2):
                    last, following = seen[2 * old + port][-1], times[2 * new + port][:2]
                    self.assertLess(abs(following[0] - last - 2.0), shift + 0.021)
                    self.assertLess(abs(following[1] - following[0] - 2.0), 0.021)
            stay = [moved[n] for n in before.order.tolist() if n in moved]
            self.assertEqual([n for n in after.order.tolist() if n in moved.values()], stay)

    def test_rate_changes_without_a_jump(self) -> None:
        """At another rate the next flow is due a period of that rate after the one before."""
        chance = random.Random(1)
        before = Schedule(np.arange(10), 1, 1.0, 0.0, chance)
        seen = self.due_times(before, 0, 500)
        after = Schedule(np.arange(10), 1, 0.5, 5.0, chance)
        after.follow(before, {n: n for n in range(10)}, chance)
        times = self.due_times(after, 500, 900)
        for flow, its in times.items():
            self.assertTrue(1.0 - 0.02 <= its[0] - seen[flow][-1] <= 2.0 + 0.02)
            self.assertLess(abs(its[1] - its[0] - 2.0), 0.021)

    def test_end_is_no_delay(self) -> None:
        """Once all is sent that was to be sent, nothing is due and nothing is skipped."""
        schedule = Schedule(np.arange(4), 2, 10.0, 0.0, random.Random(1))
        schedule.limit = 40
        sent = 0
        for tick in range(1000):
            sent += sum(len(burst.flows) for burst in schedule.bursts(tick / 100, 32, 0.01))
        self.assertEqual((sent, schedule.skipped), (40, 0))

    def test_all_are_sent_after_a_pause(self) -> None:
        """With a limit, probes that could not be sent in time are sent later, and it ends."""
        for pause in (3.0, 5.0, 60.0):
            schedule = Schedule(np.arange(4), 2, 10.0, 0.0, random.Random(1))
            schedule.limit = 400
            sent = 0
            for tick in range(1000):
                now = tick / 100 + (pause if tick >= 200 else 0)
                sent += sum(len(burst.flows) for burst in schedule.bursts(now, 32, 0.01))
            self.assertEqual(sent, 400)
            self.assertGreater(schedule.skipped, 0)

    def test_burst_is_bounded_and_from_one_socket(self) -> None:
        """No more than asked for, no flow twice, all from one source port, each to its pair."""
        pairs = np.array([5, 7, 8, 20, 21, 22, 30, 31])
        schedule = Schedule(pairs, 3, 1000.0, 0.0, random.Random(1))
        now, seen = 0.0, set()
        for _ in range(500):
            now += 0.003
            for burst in schedule.bursts(now, 32, 0.003):
                flows = burst.flows.tolist()
                self.assertTrue(1 <= len(flows) <= 32)
                self.assertEqual(len(set(flows)), len(flows))
                self.assertEqual({flow % 3 for flow in flows}, {burst.port})
                places = slice(burst.place, burst.place + len(flows))
                self.assertEqual(flows, schedule.flows[places].tolist())
                seen |= set(flows)
        self.assertEqual(seen, {pair * 3 + port for pair in pairs.tolist() for port in range(3)})

    def test_collectors_do_not_beat_in_time(self) -> None:
        """Two collectors of one configuration begin elsewhere in their period."""
        starts = set()
        for seed in range(20):
            schedule = Schedule(np.arange(50), 4, 1.0, 0.0, random.Random(seed))
            burst = schedule.due(0.1, 1)
            assert burst is not None
            starts.add(int(burst.flows[0]))
        self.assertGreater(len(starts), 10)
