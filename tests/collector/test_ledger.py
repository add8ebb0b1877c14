"""The ledger and the closing of intervals, against simulated networks whose truth is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger_case import EPOCH, MS, SECOND, close, end_of, ledger, replies
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals import closing, statistics
from llama.collector.intervals.cell import FOLLOWED, depth_needed
from llama.collector.intervals.histogram import bin_of
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.summary import STATS, reasons, suspect_bit
from llama.collector.rearranging import rearranged
from llama.collector.slices import at_once
from llama.wire import stamp


class LedgerTests(SynchronousTestCase):
    """Probes, replies and intervals of single flows."""

    def probe(
        self, book: Ledger, count: int, every: int = 100 * MS, start: int = EPOCH
    ) -> list[int]:
        """Send ``count`` probes of flow 0; return their times."""
        times = [start + n * every for n in range(count)]
        for t1 in times:
            book.send(np.array([0]), t1)
        return times

    def test_received_and_lost_are_what_was_sent(self) -> None:
        """Probes without a reply are lost, the others received, and the RTT is the network's."""
        book = ledger()
        times = self.probe(book, 5)
        for n in (0, 1, 3):
            book.reply(replies([0], [n], [times[n]], [n], [times[n] + 30_000]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["sent"], flow["received"], flow["lost"]), (5, 3, 2))
        self.assertEqual(flow["rtt_min_ns"], 25_000)  # 30 us less the 5 us at the reflector
        self.assertEqual(flow["rtt_p50_ns"], 25_000)
        self.assertEqual(flow["ttl_at_reflector"], 63)

    def test_nothing_received_has_no_rtt(self) -> None:
        """With everything lost there is no RTT at all, and no direction."""
        book = ledger()
        self.probe(book, 4)
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["lost"], flow["lost_unknown"], flow["samples"]), (4, 4, 0))
        for name in ("rtt_min_ns", "rtt_max_ns", "rtt_p50_ns", "jitter_ns", "ipdv_ns"):
            self.assertTrue(np.isnan(flow[name]), name)
        self.assertEqual((flow["dscp_at_reflector"], flow["dscp_at_collector"]), (255, 255))
        self.assertEqual((flow["ttl_at_reflector"], flow["ttl_at_collector"]), (0, 0))

    def test_circumstances_are_those_of_the_last_reply_that_tells(self) -> None:
        """A reply that does not say what class its probe came in leaves what is known."""
        book = ledger()
        for n, (dscp, ttl) in enumerate(((46, 60), (10, 59), (255, 0))):
            self.probe(book, 1, start=EPOCH + n * MS)
            t1 = EPOCH + n * MS
            told = {
                "dscp_there": np.array([dscp], np.uint8),
                "ttl_there": np.array([ttl], np.uint8),
            }
            book.reply(replies([0], [n], [t1], [n], [t1 + 20_000], **told))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["dscp_at_reflector"], flow["ttl_at_reflector"]), (10, 59))
        self.assertEqual((flow["dscp_at_collector"], flow["ttl_at_collector"]), (0, 62))

    def test_nothing_sent_is_nothing_lost(self) -> None:
        """An interval without probes has neither."""
        book = ledger()
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["sent"], flow["received"], flow["lost"]), (0, 0, 0))

    def test_stranger_changes_nothing(self) -> None:
        """A packet with the right number but another time stamp than we sent is no reply."""
        book = ledger()
        times = self.probe(book, 2)
        self.assertEqual(book.reply(replies([0], [0], [times[0] + 1], [0], [times[0] + 9])), 0)
        self.assertEqual(book.reply(replies([0], [7], [times[0]], [0], [times[0] + 9])), 0)
        self.assertEqual(book.reply(replies([0], [7], [0], [0], [9])), 0)  # nor was 7 sent at 0
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["received"], 0)
        self.assertEqual(book.strangers, 3)

    def test_late_read_is_not_late(self) -> None:
        """What arrived within the timeout was received, however late it was read."""
        book = ledger(timeout=1)
        (t1,) = self.probe(book, 1)
        end_of(book)
        book.reply(replies([0], [0], [t1], [0], [t1 + SECOND]))
        self.assertEqual(close(book).flow_stats[0]["received"], 1)

    def test_late_reply_is_lost_and_late(self) -> None:
        """A reply after the timeout is counted, and its probe is lost, of unknown direction."""
        book = ledger(timeout=1)
        times = self.probe(book, 3)
        for n in (0, 2):
            book.reply(replies([0], [n], [times[n]], [n], [times[n] + MS]))
        book.reply(replies([0], [1], [times[1]], [1], [times[1] + SECOND + 1]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["received"], flow["lost"], flow["late"]), (2, 1, 1))
        self.assertEqual(flow["lost_unknown"], 1)

    def test_held_by_the_reflector(self) -> None:
        """A reply is late by the reflector's doing if it was on the way for no longer than allowed."""
        for held_s, marked in (
            (0.5, False),
            (1.5, True),
            (3.0, True),
            (99.0, False),
            (-1.0, False),
        ):
            book = ledger(pairs=2, timeout=1)
            times = [EPOCH, EPOCH + 100 * MS]
            for t1 in times:
                book.send(np.arange(2), t1)
            back = times[0] + int(2.2 * SECOND if held_s < 3 else 3.2 * SECOND)
            book.reply(
                replies([0, 1], [0, 0], [times[0]] * 2, [0, 0], [back, times[0] + MS],
                        t2_ns=[times[0] + MS] * 2,
                        t3_ns=[times[0] + MS + int(held_s * SECOND), times[0] + MS])
            )  # fmt: skip
            end_of(book)
            stats = close(book).pair_stats
            self.assertEqual("reflector_late" in reasons(int(stats[0]["suspect"])), marked, held_s)
            self.assertEqual(int(stats[1]["suspect"]), 0)

    def test_hardly_late(self) -> None:
        """Who takes no time to speak of is not to blame if a reply is late by less than that."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        came = t1 + SECOND + 2_000
        book.reply(
            replies([0], [0], [t1], [0], [came], t2_ns=[came - MS], t3_ns=[came - MS + 5000])
        )
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["late"], reasons(int(flow["suspect"]))), (1, ()))

    def test_hardly_waited(self) -> None:
        """What a probe waits in this host in any case makes no note, though a reply is in time by it."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        book.transmitted(np.array([book.cell(0, 0)]), np.array([t1 + 5_000]))
        came = t1 + SECOND + 2_000
        book.reply(replies([0], [0], [t1], [0], [came], t2_ns=[came - MS], t3_ns=[came - MS]))
        end_of(book)
        interval = book.over[0]
        self.assertEqual(close(book).flow_stats[0]["received"], 1)
        self.assertEqual(interval.notes, set())

    def test_reply_after_closing_is_late(self) -> None:
        """A reply to an interval that has closed is late in the one it came in."""
        book = ledger(timeout=1)
        times = self.probe(book, 1)
        end_of(book)
        close(book)
        book.reply(replies([0], [0], times, [0], [times[0] + 2 * SECOND]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["sent"], flow["received"], flow["late"]), (0, 0, 1))
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["late"], 0)

    def test_duplicates_count_once(self) -> None:
        """A second reply is a duplicate, in one batch with the first or later."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        book.reply(replies([0, 0], [0, 0], [t1, t1], [0, 1], [t1 + 5 * MS, t1 + 6 * MS]))
        book.reply(replies([0], [0], [t1], [2], [t1 + 7 * MS]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["received"], flow["duplicate"]), (1, 2))

    def test_duplicates_count_where_they_were_sent(self) -> None:
        """One of the next interval's probes may come twice before this one has closed."""
        book = ledger(pairs=2)
        for start in (EPOCH, EPOCH + 10 * SECOND):
            _, sequence = book.send(np.arange(2), start)
            more = start != EPOCH
            flows = [0, 1, 1] if more else [0, 0, 1]
            book.reply(replies(flows, sequence[flows], [start] * 3, [5] * 3, [start + MS] * 3))
            end_of(book)
        for duplicates in ([1, 0], [0, 1]):
            self.assertEqual(close(book).flow_stats["duplicate"].tolist(), duplicates)

    def test_duplicates_take_no_memory(self) -> None:
        """However often a target answers one probe, nothing is kept of it but how often."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        same = np.zeros(1000, np.int64)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(1000):
            book.reply(replies(same, same, same + t1, same, same + t1 + MS))
        self.assertLess(tracemalloc.get_traced_memory()[0], 1_000_000)
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["received"], flow["duplicate"]), (1, 999_999))

    def test_closed_again(self) -> None:
        """Figures that were not taken off the ledger come again, with what has come meanwhile."""
        book = ledger()
        first, second = self.probe(book, 2)
        book.reply(replies([0, 0], [0, 0], [first] * 2, [0, 1], [first + MS, first + 2 * MS]))
        end_of(book)
        again = replies([0], [1], [second], [2], [second + MS])
        book.reply(again)
        for duplicates in (1, 2):
            flow = at_once(closing.close(book, book.over[0])).flow_stats[0]
            self.assertEqual((flow["received"], flow["duplicate"]), (2, duplicates))
            book.reply(again)
        self.assertEqual(close(book).flow_stats[0]["duplicate"], 3)
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["duplicate"], 0)

    def test_given_up(self) -> None:
        """What came twice, or late, for an interval that is given up does not count with the next."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        reply = replies([0], [0], [t1], [0], [t1 + MS])
        end_of(book)
        for _ in range(3):
            book.reply(reply)
        closing.give_up(book, book.over[0])
        self.assertEqual(book.over, [])
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["duplicate"], 0)

    def test_comes_while_closing(self) -> None:
        """What comes after figures were made and before they are taken off counts with the next."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        end_of(book)
        figures = at_once(closing.close(book, book.over[0]))
        reply = replies([0], [0], [t1], [0], [t1 + MS])
        book.reply(reply)
        book.reply(reply)
        figures.take_off()
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["duplicate"], 1)

    def test_comes_late_while_closing(self) -> None:
        """A late reply counts once, whether the figures of its flow were made by then or not."""
        self.patch(closing, "SLICE", 1)  # a flow at a time
        for slices in range(6):
            book = ledger(pairs=2)
            book.send(np.arange(2), EPOCH)
            end_of(book)
            job = closing.close(book, book.over[0])
            for _ in range(slices):
                next(job)
            late = EPOCH + 11 * SECOND
            book.reply(replies([0, 1], [0, 0], [EPOCH] * 2, [0, 0], [late] * 2))
            figures = at_once(job)
            figures.take_off()
            end_of(book)
            counts = figures.flow_stats["late"] + close(book).flow_stats["late"]
            self.assertEqual(counts.tolist(), [1, 1], slices)
            end_of(book)
            self.assertEqual(close(book).flow_stats["late"].tolist(), [0, 0])

    def test_comes_late_while_closing_fails(self) -> None:
        """Nor does it count twice if closing is given up half-way and begun again."""
        self.patch(closing, "SLICE", 1)  # a flow at a time
        for slices in range(6):
            book = ledger(pairs=2)
            book.send(np.arange(2), EPOCH)
            end_of(book)
            job = closing.close(book, book.over[0])
            for _ in range(slices):
                next(job)
            late = EPOCH + 11 * SECOND
            book.reply(replies([0, 1], [0, 0], [EPOCH] * 2, [0, 0], [late] * 2))
            job.close()
            end_of(book)
            counts = [close(book).flow_stats["late"].tolist() for _ in range(2)]
            self.assertEqual(counts, [[1, 1], [0, 0]], slices)

    def test_what_waited_here_is_not_late(self) -> None:
        """The time in this host's own queue is no part of what a reply may take."""
        book = ledger()
        times = self.probe(book, 2)
        cells = [book.cell(0, n) for n in range(2)]
        book.transmitted(np.array(cells), np.array([times[0] + 900 * MS, times[1] + 10_000]))
        came = [t + SECOND + 500 * MS for t in times]
        book.reply(replies([0, 0], [0, 1], times, [0, 1], came, t2_ns=[t - MS for t in came],
                           t3_ns=[t - MS for t in came]))  # fmt: skip
        end_of(book)
        interval = book.over[0]
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["sent"], flow["received"], flow["late"]), (2, 1, 1))
        self.assertEqual(flow["rtt_max_ns"], 600 * MS)
        self.assertIn(closing.WAITED, interval.notes)

    def test_what_waits_here_when_its_interval_ends(self) -> None:
        """An interval closes later by what its probes wait in this host's own queue."""
        book = ledger()
        times = self.probe(book, 3, every=SECOND)
        cells = np.array([book.cell(0, n) for n in range(3)])
        book.transmitted(cells[:1], np.array([times[0] + MS // 2]))
        end_of(book)
        (interval,) = book.over
        self.assertEqual(interval.due, 11.0)
        for n, wait in ((1, 700), (2, 200)):  # a shorter one puts nothing off
            book.transmitted(cells[n : n + 1], np.array([times[n] + wait * MS]))
            self.assertAlmostEqual(interval.due, 11.7)
        end_of(book)
        self.assertAlmostEqual(book.over[1].due, 11.7)
        moved = rearranged(book, np.zeros(1, np.uint8), np.array([0]), np.array([0]))
        self.assertEqual([i.due for i in moved.over], [i.due for i in book.over])

    def test_silent_refusals(self) -> None:
        """They mark pairs that lack an answer and a stamp, if any ever had one; late replies had left."""
        for silent, later, stamped, fate, mark in (
            (3, 0, True, "lost", ("send_failed",)), (0, 3, True, "lost", ("send_failed",)),
            (0, 0, True, "lost", ()), (3, 3, False, "lost", ()),
            (3, 3, True, "late", ()), (3, 3, True, "stamped", ()),
        ):  # fmt: skip
            book = ledger()
            times = self.probe(book, 2)
            if stamped:
                book.transmitted(np.array([book.cell(0, 0)]), np.array([times[0] + 9000]))
            book.reply(replies([0], [0], [times[0]], [0], [times[0] + MS]))
            if fate == "late":
                book.reply(replies([0], [1], [times[1]], [1], [times[1] + 2 * SECOND]))
            if fate == "stamped":
                book.transmitted(np.array([book.cell(0, 1)]), np.array([times[1] + 9000]))
            book.note_refused(silent, 1.0)
            book.note_dropped_later(later, 1.0)
            end_of(book)
            flow = close(book).flow_stats[0]
            self.assertEqual((flow["sent"], flow["lost"]), (2, 1))
            self.assertEqual(reasons(int(flow["suspect"])), mark, (silent, later, stamped, fate))

    def test_failed_sends_mark_the_current_window_only(self) -> None:
        """Windows that only wait for replies have nothing to do with it."""
        book = ledger()
        end_of(book)
        book.mark_current(suspect_bit("send_failed"), "why", pairs=np.array([0]))
        end_of(book)
        suspect = [reasons(int(close(book).pair_stats[0]["suspect"])) for _ in range(2)]
        self.assertEqual(suspect, [(), ("send_failed",)])

    def test_a_long_queue_at_the_reflector(self) -> None:
        """Its transmit stamps are told many probes later, and find their replies; some were lost."""
        book = ledger()
        times = self.probe(book, 40, every=10 * MS)
        reached = [n for n in range(40) if n not in (10, 11)]
        for number, n in enumerate(reached):
            told = number - 25
            left = times[reached[told]] + 300 * MS if told >= 0 else 0
            book.reply(
                replies(
                    [0], [n], [times[n]], [number], [times[n] + 301 * MS],
                    follow_number=[max(told, 0)], follow_ns=[left],
                )
            )  # fmt: skip
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["received"], flow["rtt_min_ns"]), (38, MS + 10_000))
        followed = (book.flags[[book.cell(0, n) for n in range(40)]] & FOLLOWED) != 0
        self.assertEqual(np.flatnonzero(followed).tolist(), reached[:13])

    def test_clocks_that_stand_still_tell_nothing_of_one_way(self) -> None:
        """T2 that is mostly the same, or zero, makes no variation; one that goes on does."""
        for t2, known in ((0, False), (EPOCH, False), (400 * MS, False), (None, True), (MS, True)):
            book = ledger()
            for n, t1 in enumerate(self.probe(book, 10)):
                at = t1 + 20_000 * (n + 1) if t2 is None else t2
                if t2 == 400 * MS:  # it ticks
                    at = t1 // t2 * t2
                if t2 == MS:  # it is the way there that takes so long
                    at = t1 + t2 + n % 2 * 90 * MS
                came = max(t1, at) + MS if known else t1 + MS
                book.reply(replies([0], [n], [t1], [n], [came], t2_ns=[at], t3_ns=[at]))
            end_of(book)
            flow = close(book).flow_stats[0]
            for name in ("ipdv_forward_ns", "ipdv_reverse_ns"):
                self.assertEqual(not np.isnan(flow[name]), known, (t2, name))
            self.assertEqual(flow["samples"], 10)

    def test_a_duplicated_reply_casts_no_doubt(self) -> None:
        """It has the same number: the reflector counted once. Another number, and it did not."""
        for batch in (True, False):
            for again, forward in ((1, 1), (7, 0)):
                book = ledger()
                book.counting[:] = True
                times = self.probe(book, 6)
                for n in (0, 1, 3, 4):  # 2 is lost on its way there
                    number = n if n < 2 else n - 1
                    twice = 2 if n == 1 and batch else 1
                    numbers = [number, again][:twice]
                    came = [times[n] + MS, times[n] + 2 * MS][:twice]
                    book.reply(replies([0] * twice, [n] * twice, times[n : n + 1] * twice,
                                       numbers, came))  # fmt: skip
                    if n == 1 and not batch:
                        book.reply(replies([0], [n], [times[n]], [again], [times[n] + 2 * MS]))
                end_of(book)
                flow = close(book).flow_stats[0]
                self.assertEqual((flow["duplicate"], flow["lost_forward"]), (1, forward))

    @settings(max_examples=50)
    @example([5, 1, 1])
    @given(st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=12))
    def test_reordered(self, delays: list[int | None]) -> None:
        """A reply that a later probe's reply has overtaken is reordered; None is a lost one."""
        book = ledger()
        came = [
            (n, t1, t1 + delay * MS)
            for n, (t1, delay) in enumerate(
                zip(self.probe(book, len(delays), MS), delays, strict=True)
            )
            if delay is not None
        ]
        for n, t1, back in came:
            book.reply(replies([0], [n], [t1], [n], [back]))
        end_of(book)
        expected = sum(any(other[2] < one[2] for other in came[at:]) for at, one in enumerate(came))
        self.assertEqual(close(book).flow_stats[0]["reordered"], expected)

    def test_unsent_probe_is_not_lost(self) -> None:
        """What the kernel would not send was not sent."""
        book = ledger()
        self.probe(book, 1)
        cells, _ = book.send(np.array([0]), EPOCH + SECOND)
        book.unsend(np.array([0]), cells)
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["sent"], 1)

    def test_what_was_sent_belongs_to_its_interval(self) -> None:
        """Bursts that are entered together later count where they were sent, whatever comes next."""
        book = ledger(pairs=3)
        probes = book.upcoming(np.arange(3))
        for flow in range(2):
            book.sent(probes, slice(flow, flow + 1), EPOCH + flow)
        book.sent(book.upcoming(np.array([2])), slice(0, 1), EPOCH + 2)
        end_of(book)
        flows = np.arange(3)
        probes = book.upcoming(flows)
        book.sent(probes, slice(0, 3), EPOCH + 10 * SECOND + flows)
        book.unsend(flows[2:], probes.cells[2:])
        book.reply(replies([1], [1], [EPOCH + 10 * SECOND + 1], [0], [EPOCH + 10 * SECOND + MS]))
        end_of(book)
        self.assertEqual(close(book).flow_stats["sent"].tolist(), [1, 1, 1])
        second = close(book).flow_stats
        self.assertEqual(second["sent"].tolist(), [1, 1, 0])
        self.assertEqual(second["received"].tolist(), [0, 1, 0])

    def test_bursts_that_do_not_touch(self) -> None:
        """Only what was sent is entered, whichever parts of what was made ready that is."""
        book = ledger(pairs=8)
        some, others = book.upcoming(np.arange(4)), book.upcoming(np.arange(4, 8))
        book.sent(some, slice(0, 1), EPOCH)
        book.sent(some, slice(2, 3), EPOCH + 2)
        book.sent(others, slice(3, 4), EPOCH + 7)
        book.sent(some, slice(3, 4), EPOCH + 3)
        book.settle()
        self.assertEqual(book.next_sequence.tolist(), [1, 0, 1, 1, 0, 0, 0, 1])
        cells = book.cells(np.array([0, 2, 3, 7]), np.zeros(4, np.uint32))
        self.assertEqual((book.t1[cells] - EPOCH).tolist(), [0, 2, 3, 7])

    def test_step_of_the_clock_reaches_what_was_just_sent(self) -> None:
        """A probe that is not entered yet when the clock is stepped has no RTT either."""
        book = ledger()
        book.sent(book.upcoming(np.array([0])), slice(0, 1), EPOCH)
        book.clock_stepped()
        book.reply(replies([0], [0], [EPOCH], [0], [EPOCH + MS]))
        end_of(book)
        stats = close(book).flow_stats
        self.assertEqual((stats["received"][0], stats["samples"][0]), (1, 0))

    def test_transmit_stamp(self) -> None:
        """T1 is the kernel's transmit stamp once it is known; an absurd one is ignored."""
        book = ledger()
        probes = book.upcoming(np.array([0]))
        book.sent(probes, slice(0, 1), EPOCH)
        cells = probes.cells
        book.transmitted(cells, np.array([EPOCH + 8_000]))
        book.transmitted(cells, np.array([EPOCH - 1]))
        book.reply(replies([0], [0], [EPOCH], [0], [EPOCH + 30_000]))
        end_of(book)
        self.assertEqual(close(book).flow_stats[0]["rtt_max_ns"], 30_000 - 8_000 - 5_000)

    def test_follow_up_corrects_the_previous_sample(self) -> None:
        """T3 is replaced by the reflector's own transmit stamp when the next reply tells it."""
        book = ledger()
        times = self.probe(book, 2)
        book.reply(replies([0], [0], times[:1], [5], [times[0] + 30_000]))
        book.reply(
            replies(
                [0], [1], times[1:], [6], [times[1] + 30_000],
                follow_number=np.array([5], np.uint32), follow_ns=[times[0] + 19_000],
            )
        )  # fmt: skip
        self.assertTrue(book.flags[0] & FOLLOWED)
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["rtt_min_ns"], flow["rtt_max_ns"]), (21_000, 25_000))

    def test_follow_up_of_a_probe_that_came_twice(self) -> None:
        """The second answer, a duplicate, tells when the first one left."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        left = t1 + 10_000 + 8_000
        book.reply(replies([0], [0], [t1], [0], [t1 + 40_000]))
        book.reply(replies([0], [0], [t1], [1], [t1 + MS], follow_number=[0], follow_ns=[left]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["duplicate"], flow["rtt_max_ns"]), (1, 32_000))

    def test_follow_up_of_a_session_that_began_anew(self) -> None:
        """It numbers its replies as the one before did; what it tells of a lost one is of no other."""
        for again, told_ms in ((False, 309), (True, 310)):
            book = ledger()
            times = self.probe(book, 4)
            took = 310 * MS
            # Of the third the answer is lost, or the probe itself, and the session goes on.
            book.reply(replies([0], [1], [times[1]], [0], [times[1] + took],
                               t3_ns=[times[1] + 10_000]))  # fmt: skip
            left = times[2] + 60_000 if again else times[1] + 10_000 + MS
            book.reply(
                replies([0], [3], [times[3]], [1], [times[3] + took], t3_ns=[times[3] + 10_000],
                        follow_number=[0], follow_ns=[left])
            )  # fmt: skip
            end_of(book)
            flow = close(book).flow_stats[0]
            self.assertEqual((flow["samples"], flow["rtt_min_ns"] / MS), (2, told_ms), again)

    def test_clock_step_takes_back_the_rtt_only(self) -> None:
        """A probe in flight while the clock was stepped is received, without an RTT."""
        book = ledger()
        (t1,) = self.probe(book, 1)
        book.clock_stepped()
        book.reply(replies([0], [0], [t1], [0], [t1 + 3600 * SECOND]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["received"], flow["samples"]), (1, 0))

    def test_a_clock_set_back_reorders_nothing(self) -> None:
        """What came before a step and after it is not compared; what came between two probes is."""
        for step in (90 * MS, 1500 * MS, 3 * SECOND):  # less than is between two probes, and more
            book = ledger(pairs=2)
            for n in range(40):
                t1 = EPOCH + n * 100 * MS - step * (n >= 20)
                book.send(np.array([0, 1]), t1)
                if n == 19:
                    book.clock_stepped()
                    book.mark(suspect_bit("clock_step"))
                # Overtaken by two, by one, and by none that can be told: the next is after the step.
                delay = {5: 250 * MS, 30: 150 * MS, 18: 80 * MS}.get(n, MS)
                now = t1 + delay - step * (n == 19)
                book.reply(replies([0, 1], [n] * 2, [t1] * 2, [n] * 2, [now] * 2))
            book = rearranged(book, np.zeros(1, np.uint8), np.array([0]), np.array([1]))
            end_of(book)
            flow = close(book).flow_stats[0]
            self.assertEqual((flow["received"], flow["reordered"]), (40, 2))

    def test_marks_reach_the_interval(self) -> None:
        """A mark is seen in every window open when it was made, for all pairs or for some."""
        book = ledger(pairs=2)
        book.send(np.array([0, 1]), EPOCH)
        book.mark(suspect_bit("clock_step"), "stepped")
        end_of(book)
        book.mark(suspect_bit("send_failed"), pairs=np.array([1]))
        figures = close(book)
        step, failed = suspect_bit("clock_step"), suspect_bit("send_failed")
        self.assertEqual(figures.pair_stats["suspect"].tolist(), [step, step | failed])

    def test_percentiles_and_histograms(self) -> None:
        """Percentiles are those of the samples, and the pair's histogram holds every sample."""
        book = ledger(ports=2, rate=100, interval=10)
        rng = np.random.default_rng(1)
        rtts = rng.lognormal(13, 1, (600, 2)).astype(np.int64)
        for n in range(600):
            t1 = EPOCH + n * 10 * MS
            book.send(np.array([0, 1]), t1)
            book.reply(replies([0, 1], [n, n], [t1, t1], [n, n], t1 + 5_000 + rtts[n]))
        end_of(book)
        figures = close(book)
        pair = figures.pair_stats[0]
        ordered = np.sort(rtts.reshape(-1))
        for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
            rank = int(np.ceil(q * len(ordered))) - 1
            self.assertAlmostEqual(pair[f"rtt_{name}_ns"] / ordered[rank], 1, places=5)
        self.assertTrue(np.isnan(figures.flow_stats[0]["rtt_p999_ns"]))  # 600 samples are too few
        self.assertEqual(figures.histogram_count.sum(), 1200)
        expected = np.bincount(bin_of(rtts.reshape(-1)))
        self.assertEqual(expected[figures.histogram_bin].tolist(), figures.histogram_count.tolist())
        self.assertEqual(pair["rtt_sum_ns"], rtts.sum())

    def test_variation_of_delay(self) -> None:
        """It is that of probes answered one after the other, each way, and only if the peer stamps."""
        there = np.array([10, 30, 20, 0, 50, 60]) * 1000
        back = np.array([7, 9, 30, 0, 20, 24]) * 1000
        known = np.array([True, True, False, False, True])  # probe 3 is lost
        for stamps_there in (True, False):
            book = ledger()
            book.stamps_there = stamps_there
            t1, n = np.array(self.probe(book, 6)), np.array([0, 1, 2, 4, 5])
            times = t1 + np.array([3, 1, 4, 1, 5, 9]) * 1000  # when they really left
            book.transmitted(book.cells(np.zeros(5, np.int64), n), times[n])
            t2 = times + there
            book.reply(replies([0] * 5, n, t1[n], n, (t2 + back)[n], t2_ns=t2[n], t3_ns=t2[n]))
            end_of(book)
            flow = close(book).flow_stats[0]
            for name, delay, told in (
                ("ipdv_ns", there + back, True),
                ("ipdv_forward_ns", there, stamps_there),
                ("ipdv_reverse_ns", back, stamps_there),
            ):
                mean = np.abs(np.diff(delay))[known].mean() if told else np.nan
                np.testing.assert_allclose(flow[name], mean, rtol=1e-6, err_msg=name)

    def test_impossible_round_trip_is_not_stated(self) -> None:
        """Who says that a probe was held for longer than it was away, or less than 0, is not believed."""
        for held in (2 * MS, -1):
            book = ledger()
            (t1,) = self.probe(book, 1)
            book.reply(replies([0], [0], [t1], [0], [t1 + MS], t2_ns=[t1], t3_ns=[t1 + held]))
            end_of(book)
            flow = close(book).flow_stats[0]
            self.assertEqual((flow["received"], flow["samples"]), (1, 0))

    def test_stamps_of_user_space_are_marked(self) -> None:
        """One reply that the kernel did not stamp has this host's own delay in it."""
        book = ledger(pairs=2)
        for n, by_kernel in enumerate(([True, False], [True, True])):
            t1 = EPOCH + n * MS
            book.send(np.arange(2), t1)
            book.reply(
                replies([0, 1], [n] * 2, [t1] * 2, [n] * 2, [t1 + MS] * 2, kernel_t4=by_kernel)
            )
        end_of(book)
        suspect = close(book).pair_stats["suspect"].tolist()
        self.assertEqual(suspect, [0, suspect_bit("user_timestamps")])

    def test_jitter_is_rfc_3550s(self) -> None:
        """The jitter is the running estimate of RFC 3550, over the probes received."""
        book = ledger(rate=10, interval=10)
        rtts = [None, 20_000, 50_000, None, None, 10_000, 70_000, 70_000]
        estimate, before = 0.0, None
        for n, (t1, rtt) in enumerate(zip(self.probe(book, len(rtts)), rtts, strict=True)):
            if rtt is None:
                continue
            book.reply(replies([0], [n], [t1], [n], [t1 + 5_000 + rtt]))
            if before is not None:
                estimate += (abs(rtt - before) - estimate) / 16
            before = rtt
        end_of(book)
        self.assertAlmostEqual(float(close(book).flow_stats[0]["jitter_ns"]), estimate, places=1)

    def test_remarked_classes(self) -> None:
        """A class changed on the way there, or on the way back, is counted with what it became."""
        book = ledger()
        book.dscp_sent[:] = 46
        for n, (there, asked, here) in enumerate([(46, 46, 46), (0, 0, 0), (46, 46, 8)]):
            t1 = EPOCH + n * 100 * MS
            book.send(np.array([0]), t1)
            book.reply(
                replies(
                    [0], [n], [t1], [n], [t1 + MS], dscp_there=np.array([there], np.uint8),
                    dscp_asked=np.array([asked], np.uint8), dscp_here=np.array([here], np.uint8),
                )
            )  # fmt: skip
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["remarked_forward"], flow["remarked_reverse"]), (1, 1))
        self.assertEqual(flow["dscp_at_collector"], 8)

    def test_one_way_delay_needs_two_clocks_in_sync(self) -> None:
        """One-way delays are stated with their error, or not at all."""
        for error, told in ((None, False), (50_000.0, True)):
            book = ledger()
            times = np.array(self.probe(book, 2))
            book.reply(
                replies([0, 0], [0, 1], times, [0, 1], times + np.array([30_000, 60_000]),
                        clock_error_ns=np.full(2, 20_000, np.float32))
            )  # fmt: skip
            end_of(book)
            flow = close(book, error).flow_stats[0]
            self.assertEqual(not np.isnan(flow["owd_forward_ns"]), told)
            if told:
                self.assertEqual(flow["owd_forward_ns"], 10_000)
                self.assertEqual(flow["owd_reverse_ns"], 30_000)
                self.assertEqual(flow["owd_error_ns"], 70_000)

    def test_impossible_one_way_delay_is_not_stated(self) -> None:
        """A delay more negative than the clocks admit, either way, shows that they are wrong."""
        for ahead in (-MS, MS):
            book = ledger()
            (t1,) = self.probe(book, 1)
            t2 = t1 + ahead
            book.reply(
                replies([0], [0], [t1], [0], [t1 + 30_000], t2_ns=[t2], t3_ns=[t2 + 5_000],
                        clock_error_ns=np.array([20_000], np.float32))
            )  # fmt: skip
            end_of(book)
            self.assertTrue(np.isnan(close(book, 50_000.0).flow_stats[0]["owd_forward_ns"]))

    def test_rearranged_ledger_goes_on(self) -> None:
        """Pairs that stay keep their probes, replies and open interval when others come and go."""
        book = ledger(pairs=3, ports=2)
        book.send(np.arange(6), EPOCH)
        book.reply(replies([4], [0], [EPOCH], [0], [EPOCH + MS]))
        other = rearranged(book, np.zeros(2, np.uint8), np.array([1]), np.array([2]))
        other.reply(replies([3], [0], [EPOCH], [0], [EPOCH + MS]))
        end_of(other)
        stats = close(other).pair_stats
        self.assertEqual(stats["sent"].tolist(), [0, 2])
        self.assertEqual(stats["received"].tolist(), [0, 2])

    def test_what_is_known_is_carried_over(self) -> None:
        """A pair that is put elsewhere keeps its anchors, doubts and marks, and what came twice."""
        book = ledger(pairs=3, ports=2)
        book.send(np.arange(6), EPOCH)
        end_of(book)
        book.sent(book.upcoming(np.arange(6)), slice(0, 6), EPOCH + 10 * SECOND)
        columns = (
            "next_sequence", "anchor_sequence", "anchor_number", "anchored", "clock_error_there",
            "doubt_sequence", "doubted", "counting", "stamping",
        )  # fmt: skip
        for name in columns[1:]:
            getattr(book, name)[:] = 7
        marks = [suspect_bit("send_failed"), suspect_bit("clock_step")]
        for pair, mark in enumerate(marks, 1):
            book.mark(mark, pairs=np.array([pair]))
        for interval in book.open_intervals():
            interval.duplicates[[1, 4, 5]] = 7, 8, 9
        book.late_after_close = [np.array([0, 5])]
        book.strangers = 3
        other = rearranged(book, np.zeros(2, np.uint8), np.array([1]), np.array([2]), 5.0)
        for name in columns:
            old, new = getattr(book, name), getattr(other, name)
            pairs = old.reshape(3, -1), new.reshape(2, -1)
            self.assertEqual(pairs[1][1].tolist(), pairs[0][2].tolist(), name)
        self.assertEqual(other.next_sequence[2:].tolist(), [2, 2])
        for interval in other.open_intervals():
            self.assertEqual(interval.pair_suspect.tolist(), [0, marks[1]])
            self.assertEqual(interval.duplicates.tolist(), [0, 0, 8, 9])
        self.assertEqual([late.tolist() for late in other.late_after_close], [[3]])
        self.assertEqual((other.strangers, other.rate_pps, other.fastest_pps), (3, 5.0, 10))

    def test_cells_follow_their_flows(self) -> None:
        """However pairs are put elsewhere, in stretches or one by one, each finds all of its cells."""
        for new, old in (
            ([0, 1, 2, 3], [0, 1, 3, 4]),
            ([1, 2, 3], [0, 1, 2]),
            ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]),
            ([5, 0, 3], [1, 2, 4]),
            ([], []),
        ):
            book = ledger(pairs=5, ports=3, rate=2)
            for turn in range(2 * book.depth):
                book.send(np.arange(15), EPOCH + turn * SECOND + turn)
            book.elapsed[:] = np.arange(len(book.elapsed))
            other = rearranged(
                book, np.zeros(6, np.uint8), np.array(new, np.int64), np.array(old, np.int64)
            )
            self.assertEqual(other.depth, book.depth)
            expected = np.zeros((book.depth, 6, 3), book._cells.dtype)
            cells = book._cells.reshape(book.depth, 5, 3)
            for to, start in zip(new, old, strict=True):
                expected[:, to] = cells[:, start]
            self.assertEqual(other._cells.tobytes(), expected.tobytes())

    def test_another_rate(self) -> None:
        """At a rate that needs more cells, or fewer, all that is on record goes on."""
        for rate in (8.0, 400.0):
            book = Ledger(np.zeros(2, np.uint8), 1, 20.0, 1.0, 10.0)
            book.roll(EPOCH, EPOCH + 10 * SECOND, 0.0)
            times = [EPOCH + n * 50 * MS for n in range(300)]
            for n, t1 in enumerate(times):
                if n == 200:
                    book.roll(EPOCH + 10 * SECOND, EPOCH + 20 * SECOND, 10.0)
                book.send(np.array([0, 1]), t1)
            self.assertEqual(book.take_rate(rate), rate < 20)
            other = rearranged(book, np.zeros(1, np.uint8), np.array([0]), np.array([1]), rate)
            self.assertNotEqual(other.depth, book.depth)
            for n, t1 in enumerate(times):
                other.reply(replies([0], [n + 1], [t1], [n], [t1 + MS]))
            self.assertEqual(other.strangers, 0)
            first = close(other).pair_stats[0]
            end_of(other)
            second = close(other).pair_stats[0]
            self.assertEqual([int(s["sent"]) for s in (first, second)], [200, 100])
            self.assertEqual([int(s["received"]) for s in (first, second)], [200, 100])

    def test_a_rate_that_falls_wastes_no_memory(self) -> None:
        """What a few flows have on record from a much higher rate makes not all flows as deep."""
        book = Ledger(np.zeros(1, np.uint8), 1, 1000.0, 1.0, 10.0)
        book.roll(EPOCH, EPOCH + 10 * SECOND, 0.0)
        for n in range(9000):
            book.send(np.array([0]), EPOCH + n * MS)
        other = rearranged(book, np.zeros(1000, np.uint8), np.array([7]), np.array([0]), 1.0)
        self.assertLessEqual(other.depth, 2 * depth_needed(1.0, 1.0, 10.0))
        end_of(other)
        row = close(other).pair_stats[7]
        self.assertEqual(row["lost"], row["sent"])
        self.assertIn("late_ticks", reasons(int(row["suspect"])))

    def test_closed_too_late(self) -> None:
        """Probes whose cells were used again are neither sent nor lost, and the interval says so."""
        book = ledger()
        times = np.array(self.probe(book, book.depth, every=MS))
        n = np.arange(book.depth)
        book.reply(replies(0 * n, n, times, n, times + MS))
        end_of(book)
        self.probe(book, 10, start=EPOCH + 10 * SECOND)
        flow = close(book).flow_stats[0]
        left = book.depth - 10
        self.assertEqual((flow["sent"], flow["received"], flow["lost"]), (left, left, 0))
        self.assertEqual(reasons(int(flow["suspect"])), ("late_ticks",))

    def test_closed_too_late_for_one(self) -> None:
        """A flow whose probes are all on record yet is not in doubt for another's."""
        book = ledger(pairs=2)
        for n in range(book.depth):
            book.send(np.arange(2 if n < 3 else 1), EPOCH + n * MS)
        end_of(book)
        for n in range(10):
            book.send(np.array([0]), EPOCH + 10 * SECOND + n * MS)
        marks = [reasons(int(flow["suspect"])) for flow in close(book).flow_stats]
        self.assertEqual(marks, [("late_ticks",), ()])

    def test_numbers_come_round(self) -> None:
        """A flow's sequence number may pass 2**32 within an interval."""
        book = ledger()
        book.next_sequence[:] = 2**32 - 3
        book.current = None
        book.roll(EPOCH, EPOCH + 10 * SECOND, 0.0)
        for n in range(6):
            t1 = EPOCH + n * 100 * MS
            book.send(np.array([0]), t1)
            book.reply(replies([0], [(2**32 - 3 + n) % 2**32], [t1], [n], [t1 + MS]))
        end_of(book)
        flow = close(book).flow_stats[0]
        self.assertEqual((flow["sent"], flow["received"]), (6, 6))

    def test_depth_covers_an_interval_and_its_timeouts(self) -> None:
        """No cell is used again before the interval of its probe can have closed."""
        self.assertGreaterEqual(depth_needed(4, 1, 30), 4 * 31)
        fast = depth_needed(100, 1, 30)
        self.assertEqual(fast & fast - 1, 0)


class SumTests(SynchronousTestCase):
    """Flows and pairs."""

    @settings(max_examples=60)
    @given(seed=st.integers(0, 2**32 - 1), cells=st.sampled_from([1, 300, closing.SLICE]))
    def test_flows_add_up_to_their_pair(self, seed: int, cells: int) -> None:
        """Every count of a pair is the exact sum over its flows, and sent is received and lost.

        That is so whatever number of ``cells`` is looked at in a step.
        """
        self.patch(closing, "SLICE", cells)
        rng = np.random.default_rng(seed)
        pairs, ports = int(rng.integers(1, 40)), int(rng.integers(1, 6))
        book = ledger(pairs, ports, rate=3, interval=3)
        book.current = None
        book.roll(EPOCH, EPOCH + 3 * SECOND, 0.0)
        truth = np.zeros((3, pairs * ports), int)
        for turn in range(9):
            t1 = EPOCH + turn * 300 * MS
            flows = np.flatnonzero(rng.random(pairs * ports) < 0.9)
            _, sequence = book.send(flows, t1)
            back = rng.random(len(flows)) < 0.8
            some = flows[back]
            rtt = rng.integers(6_000, MS, len(some))
            came = replies(some, sequence[back], np.full(len(some), t1), sequence[back], t1 + rtt)
            book.reply(came)
            twice = rng.random(len(some)) < 0.1
            book.reply(came.rows(twice))
            for row, which in enumerate((flows, some, some[twice])):
                truth[row, which] += 1
        end_of(book)
        figures = close(book)
        for row, name in zip(truth, ("sent", "received", "duplicate"), strict=True):
            np.testing.assert_array_equal(figures.flow_stats[name], row)
        flows_ = figures.flow_stats.reshape(pairs, ports)
        for name in STATS.names or ():
            if STATS[name] == np.uint32 and name != "suspect":
                np.testing.assert_array_equal(figures.pair_stats[name], flows_[name].sum(axis=1))
        stats = figures.pair_stats
        np.testing.assert_array_equal(stats["sent"], stats["received"] + stats["lost"])
        np.testing.assert_allclose(stats["rtt_sum_ns"], flows_["rtt_sum_ns"].sum(axis=1), rtol=0)
        starts = figures.histogram_start
        for first, end, samples in zip(starts[:-1], starts[1:], stats["samples"], strict=True):
            self.assertEqual(figures.histogram_count[first:end].sum(), samples)
            self.assertTrue((np.diff(figures.histogram_bin[first:end].astype(int)) > 0).all())

    def test_slices_make_no_difference(self) -> None:
        """A pair too large for one step is closed in parts, to the same figures.

        So it is with drops of this host that are only heard of while it is closed.
        """
        found = []
        for cells, wanted in ((5000, 8), (800, 22), (1, 28)):
            self.patch(closing, "SLICE", cells)
            rng = np.random.default_rng(5)
            book = ledger(3, 4, rate=100, interval=3)
            for turn in range(350):
                t1 = EPOCH + turn * 10 * MS
                flows = np.flatnonzero(rng.random(12) < 0.9)
                places, sequence = book.send(flows, t1)
                stamped = rng.random(len(flows)) < 0.7
                book.transmitted(places[stamped], np.full(np.count_nonzero(stamped), t1 + 9))
                back = rng.random(len(flows)) < 0.9
                some = flows[back]
                rtt = rng.integers(6_000, 900 * MS, len(some))
                book.reply(replies(some, sequence[back], np.full(len(some), t1), sequence[back],
                                   t1 + rtt))  # fmt: skip
            book.mark(suspect_bit("receive_drops"), pairs=np.array([1]))
            book.note_undelivered(1200, 3.0)
            end_of(book)
            interval = book.over[0]
            closed, steps = closing.close(book, interval), 0
            try:
                while True:
                    next(closed)
                    steps += 1
                    if steps == (1 if wanted == 8 else 2):
                        book.note_refused(1200, 3.0)
            except StopIteration as end:
                figures = end.value
            found.append((
                figures.flow_stats.tobytes(), figures.pair_stats.tobytes(),
                figures.histogram_start.tolist(), figures.histogram_bin.tolist(),
                figures.histogram_count.tolist(), sorted(interval.notes), book.stamping.tolist(),
            ))  # fmt: skip
            self.assertEqual(steps, wanted)
        self.assertEqual(found[1:], found[:1] * 2)
        self.assertEqual(len(found[0][5]), 2)
        self.assertFalse(np.isnan(figures.pair_stats["rtt_p999_ns"]).any())

    def test_every_figure_of_a_pair(self) -> None:
        """Counts are summed up, means weighed by samples, and what one flow doubts its pair does."""
        rng = np.random.default_rng(1)
        flows = np.zeros((50, 3), STATS)
        for name in STATS.names or ():
            flows[name] = rng.integers(0, 9, flows.shape)
            if name.endswith("_ns") and name != "rtt_sum_ns":
                flows[name][rng.random(flows.shape) < 0.2] = np.nan
        pairs = np.zeros(50, STATS)
        statistics.sum_pairs(pairs, flows.reshape(-1), 3)
        by_hand = {"suspect": np.bitwise_or.reduce(flows["suspect"], axis=1)}
        for name in ("ttl_at_reflector", "ttl_at_collector"):
            by_hand[name] = flows[name].max(axis=1)
        for name in STATS.names or ():
            if name.startswith(("jitter", "ipdv", "owd")):
                weight = np.where(np.isnan(flows[name]), 0, flows["samples"])
                total = (np.nan_to_num(flows[name]) * weight).sum(axis=1)
                with np.errstate(invalid="ignore"):
                    by_hand[name] = total / weight.sum(axis=1)
            elif not name.startswith(("dscp", "rtt_m", "rtt_p")):
                by_hand.setdefault(name, flows[name].sum(axis=1))
        self.assertGreater(len(by_hand), 20)
        for name, expected in by_hand.items():
            np.testing.assert_allclose(pairs[name], expected, rtol=1e-6, err_msg=name)

    def test_class_of_a_pair(self) -> None:
        """It is what a remarked flow was seen as, if there is one, and what any was, if none was."""
        for name, remarked in (
            ("dscp_at_reflector", "remarked_forward"),
            ("dscp_at_collector", "remarked_reverse"),
        ):
            flows, pairs = np.zeros(9, STATS), np.zeros(3, STATS)
            flows[name] = [255, 46, 46, 46, 46, 8, 255, 255, 255]
            flows[remarked][5] = 1
            statistics.sum_pairs(pairs, flows, 3)
            self.assertEqual(pairs[name].tolist(), [46, 8, 255])


class LiarTests(SynchronousTestCase):
    """One pair whose target says anything, beside one whose target is honest."""

    def figures(self, seed: int, lying: bool) -> closing.Figures:
        """Close an interval; whether the other target lies changes nothing for the honest one."""
        honest, wild = np.random.default_rng(seed), np.random.default_rng(seed + 1)
        book = ledger(pairs=2)
        count = 0
        for n in range(90):
            t1 = EPOCH + n * 100 * MS
            _, sequence = book.send(np.arange(2), t1)
            if honest.random() < 0.9:
                count += 1
                if honest.random() < 0.9:
                    t4 = t1 + int(honest.integers(1, 40)) * MS
                    book.reply(replies([0], sequence[:1], [t1], [count], [t4]))
            if lying:
                self.lie(book, wild, int(sequence[1]), t1)
        end_of(book)
        return close(book, 1000.0)

    def lie(self, book: Ledger, wild: np.random.Generator, newest: int, t1: int) -> None:
        """Answer the last probes with times and numbers of any kind, of which half are likely ones."""
        some = int(wild.integers(1, 5))
        back = wild.integers(0, min(5, newest + 1), some)
        sent = t1 - back * 100 * MS
        likely = stamp.ntp_column(sent + wild.integers(-2 * SECOND, 2 * SECOND, (4, some)))
        words = wild.integers(0, 2**64, (4, some), dtype=np.uint64)
        words = np.where(wild.random((4, some)) < 0.5, likely, words)
        estimate = wild.integers(0, 2**16, some).astype(np.uint16)
        _, t2_ns, t3_ns, follow_ns = stamp.time_column(words, estimate, echoed=1)
        number = np.where(
            wild.random(some) < 0.5, newest - back, wild.integers(0, 2**32, some)
        ).astype(np.uint32)
        book.reply(
            replies(
                np.ones(some), newest - back, sent, number, sent + wild.integers(0, 3 * SECOND, some),
                t2_ns=t2_ns, t3_ns=t3_ns, follow_ns=follow_ns, follow_number=number - np.uint32(1),
                clock_error_ns=stamp.error_column(estimate), numbered=wild.random(some) < 0.9,
            )
        )  # fmt: skip

    @given(st.integers(0, 2**32))
    @settings(max_examples=10, deadline=None)
    def test_figures_of_others(self, seed: int) -> None:
        """It spoils no figure but its own, and even those are possible ones."""
        spoiled, unspoiled = (self.figures(seed, lying) for lying in (True, False))
        for name in ("flow_stats", "pair_stats"):
            rows, wanted = getattr(spoiled, name), getattr(unspoiled, name)
            self.assertEqual(rows[0].tobytes(), wanted[0].tobytes())
            row = rows[1]
            self.assertEqual(row["received"] + row["lost"], row["sent"])
            ways = [int(row[f"lost_{way}"]) for way in ("forward", "reverse", "unknown")]
            self.assertEqual(sum(ways), row["lost"])
            times = np.array(
                [row[f"rtt_{which}_ns"] for which in ("min", "p50", "max")], np.float64
            )
            within = (times >= 0) & (times <= 1.001 * SECOND)
            self.assertTrue((within | np.isnan(times)).all(), times)
