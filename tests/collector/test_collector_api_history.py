"""What a collector holds, for how long, and what it says of what it had to let go."""

from __future__ import annotations

import weakref

import numpy as np
from collector_served import Served
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.answers.history import History
from llama.collector.answers.series import Series, label_text
from llama.collector.slices import at_once
from llama.testing import closed_interval, pair


class Holding(SynchronousTestCase):
    def numbers(self, history):
        """Return the close numbers of what is held."""
        return [held.closed.close_number for held in history.held]

    def test_last_so_many(self):
        """The last so many intervals are held."""
        history = History(3)
        for number in range(1, 6):
            history.append(closed_interval(1, close_number=number))
        self.assertEqual(self.numbers(history), [3, 4, 5])

    def test_windows_count(self):
        """Windows of time are counted, not the parts that they close in."""
        history = History(2)
        number = 0
        for window in range(4):
            for member in range(3):
                number += 1
                history.append(
                    closed_interval([pair(member)], close_number=number, start_s=30 * window)
                )
        self.assertEqual(self.numbers(history), list(range(7, 13)))

    def test_nothing_to_hold(self):
        """Holding nothing at all is refused: nobody could ever fetch anything."""
        self.assertRaises(ValueError, History, 0)

    def test_order(self):
        """Intervals come in the order of closing."""
        history = History(3)
        history.append(closed_interval(1, close_number=2))
        self.assertRaises(ValueError, history.append, closed_interval(1, close_number=2))

    def test_incarnations_differ(self):
        """Two starts are told apart."""
        self.assertNotEqual(History(1).incarnation, History(1).incarnation)

    def test_forgotten(self):
        """What nobody with a cursor fetched in time is counted, and said once, with what to do."""
        lines = []

        def observe(event):
            if event.get("log_namespace") == "llama.collector.answers.api":
                lines.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        served = Served(keep=2)
        for _ in range(4):
            served.close(1)
        self.assertEqual((served.history.forgotten, lines), (2, []))  # nobody uses cursors yet
        served.get("/influxdata?since=")
        for _ in range(2):
            served.close(1)
        self.assertEqual((served.history.forgotten, lines), (2, []))  # those had been fetched
        for _ in range(3):
            served.close(1)
        self.assertEqual(served.history.forgotten, 5)
        self.assertEqual(len(lines), 1)
        self.assertIn("(3 so far)", lines[0])

    def test_said_what_ends_unfetched(self):
        """What nobody has fetched when the collector ends is told, unless nobody ever does."""
        events = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)

        def told():
            found = [
                event["count"] for event in events if "end with this" in str(event["log_format"])
            ]
            events.clear()
            return found

        for asked, after, count in ((False, 2, []), (True, 0, []), (True, 2, [2])):
            served = Served()
            served.close()
            if asked:
                served.get("/influxdata?since=")
            for _ in range(after):
                served.close()
            served.api.stop()
            self.assertEqual(told(), count)

    def test_flows_of_the_last_two(self):
        """Flows are whole for the last two intervals, and lossy ones kept for the others."""
        served = Served(keep=10)
        loss = np.zeros(12)
        loss[5] = 1.0
        for _ in range(5):
            served.close(3, loss=loss)
        counts = [len(held.closed.flows) for held in served.history.held]
        self.assertEqual(counts, [1, 1, 1, 12, 12])
        older = served.history.held[0].closed
        self.assertFalse(older.all_flows)
        self.assertEqual(older.flows["source_port"].tolist(), [50001])
        self.assertEqual(older.flow_stats["lost"].tolist(), [10])

    def test_thinned_in_slices(self):
        """Thinning in slices keeps the flows that lost something, with their figures."""
        served = Served(keep=10)
        first = served.close(20, loss=0.02)
        for _ in range(2):
            served.close(20)
        lossy = np.flatnonzero(first.flow_stats["lost"])
        got = served.history.held[0].closed
        self.assertGreater(len(lossy), 0)
        self.assertEqual(got.flows.tolist(), first.flows[lossy].tolist())
        self.assertEqual(got.flow_stats.tobytes(), first.flow_stats[lossy].tobytes())

    def test_two_of_every_pair(self):
        """A test that closes later has its own last two intervals whole."""
        served = Served(keep=20)
        quick, slow = [pair(0)], [pair(1)]
        for window in range(6):
            served.close(quick, start_s=30 * window)
            if window >= 3:
                served.close(slow, start_s=30 * (window - 3))
        whole = [
            (held.closed.pairs[0].target[9:14], held.closed.start_ns // 30_000_000_000)
            for held in served.history.held
            if held.whole
        ]
        self.assertEqual(whole, [("00000", 4), ("00001", 1), ("00000", 5), ("00001", 2)])

    def test_everything_lossy(self):
        """When everything is lossy for long, flows of the past are let go, counted, not hoarded."""
        served = Served(keep=20)
        served.history.lossy_flows_most = 50
        for _ in range(10):
            served.close(5, loss=1.0)  # 20 flows each
        counts = [len(held.closed.flows) for held in served.history.held]
        self.assertEqual(counts, [0] * 6 + [20] * 4)
        self.assertEqual(served.history.forgotten_flows, 6 * 20)
        served.history.lossy_flows_most = 10
        served.close(5, loss=1.0)
        self.assertEqual(len(served.history.held[-3].closed.flows), 0)

    def test_as_quick_with_many_held(self):
        """However many intervals are held, one is encoded as soon: else it would come ever later."""
        served = Served(keep=300)

        def took_s():
            before = served.clock.seconds()
            served.close(2)
            return served.clock.seconds() - before

        few = [took_s() for _ in range(10)][-1]
        for _ in range(280):
            served.close(2)
        self.assertAlmostEqual(took_s(), few, delta=0.02)

    def test_older_points_stay(self):
        """Thinning takes nothing from /influxdata: an interval is answered the same as before."""
        served = Served(keep=10)
        served.close(3, loss=0.1)
        before = served.get("/influxdata?since=").body
        for _ in range(5):
            served.close(3)
        after = served.get("/influxdata?since=").body
        self.assertTrue(after.startswith(before[:-1]))


class Rows(SynchronousTestCase):
    def test_kept_through_reloads(self):
        """A series keeps its row when the same tag set comes again in other objects."""
        series = Series()
        first = at_once(series.rows_of([pair(0), pair(1)], 0.0))
        second = at_once(series.rows_of([pair(2), pair(1), pair(0)], 1.0))
        self.assertEqual(second[1:].tolist(), first[::-1].tolist())
        self.assertEqual(len(series), 3)

    def test_ended(self):
        """A series that is not measured any more gives its row to another."""
        series = Series()
        stays = pair(0)
        goes = at_once(series.rows_of([stays, pair(1)], 0.0))[1]
        at_once(series.rows_of([stays], 100.0))
        self.assertEqual(series.end(50.0).tolist(), [goes])
        self.assertEqual(series.live().tolist(), [True, False])
        self.assertEqual(series.end(50.0).tolist(), [])
        comes = at_once(series.rows_of([stays, pair(2)], 100.0))[1]
        self.assertEqual(comes, goes)
        self.assertEqual(series.live().tolist(), [True, True])

    def test_comes_back(self):
        """A series that ended and comes back, even as the same object, gets a row of its own."""
        series = Series()
        member = pair(0)
        at_once(series.rows_of([member, pair(1)], 0.0))
        self.assertEqual(series.end(1.0).tolist(), [0, 1])
        rows = at_once(series.rows_of([pair(2), member], 2.0))
        self.assertEqual(sorted(rows.tolist()), [0, 1])
        self.assertEqual(series.labels[rows[1]], label_text(member))

    def test_old_objects_go(self):
        """Pairs of before a reload are not kept in memory by their rows."""
        series = Series()
        member = pair(0)
        gone = weakref.ref(member)
        at_once(series.rows_of([member], 0.0))
        del member
        self.assertIsNone(gone())
        self.assertEqual(at_once(series.rows_of([pair(0)], 1.0)).tolist(), [0])

    def test_tags_change(self):
        """A changed tag is another series."""
        series = Series()
        rows = at_once(series.rows_of([pair(0), pair(0, tags={"rack": "other"})], 0.0))
        self.assertEqual(len(set(rows.tolist())), 2)
