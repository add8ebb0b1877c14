"""Delivery to one writer: order, retries and bounds, on a clock of the test's own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llama.interfaces import NotPermittedError, NotWrittenError, Point, Refusal
from llama.scraper.backoff import LONGEST_S, wait_s
from llama.scraper.buffer import CHUNK_POINTS, Chunk, MemorySpool, Taken
from llama.scraper.counts import Counts
from llama.scraper.delivery import WRITE_TIMEOUT_S, Delivery


class Database:
    """A writer whose answers the test decides: ``answer`` gets the points of each write."""

    name = "db"

    def __init__(self) -> None:
        self.writes: list[list[str]] = []  # the chunks ("c1") of each write
        self.held: set[str] = set()
        self.opens = 0
        self.closed = False
        self.answer: Any = lambda points: succeed([])
        self.opening: Any = lambda: succeed(None)

    def open(self) -> Deferred[None]:
        """Count it."""
        self.opens += 1
        return self.opening()

    def write(self, points: Sequence[Point]) -> Deferred[Sequence[Refusal]]:
        """Note which chunks came, and answer."""
        chunks = list(dict.fromkeys(point.measurement for point in points))
        self.writes.append(chunks)

        def acknowledged(result: Any) -> Any:
            self.held.update(chunks)
            return result

        answer: Deferred[Any] = self.answer(points)
        return answer.addCallback(acknowledged)

    def close(self) -> Deferred[None]:
        """Note it."""
        self.closed = True
        return succeed(None)


class DeliveryTests(SynchronousTestCase):
    """One delivery over a spool in memory."""

    def setUp(self) -> None:
        """Begin with an empty spool and a database that takes everything."""
        self.clock = Clock()
        self.counts = Counts()
        self.spool = MemorySpool(max_octets=10**7, seconds=self.clock.seconds)
        self.spool.open(["db"])
        self.database = Database()
        self.delivery = Delivery(
            self.database, self.clock, self.spool, self.counts, random.Random(1)
        )
        self.spool.dropped = self.delivery.forget
        self.number = 0

    def take(self, count: int = 1, points: int = 2) -> list[Chunk]:
        """Put chunks into the spool, each a measurement of its own: c1, c2, ..."""
        chunks: list[Chunk] = []
        for _ in range(count):
            self.number += 1
            rows = [
                Point(f"c{self.number}", {"n": str(n)}, {"x": 1.0}, 10**18) for n in range(points)
            ]
            batches = self.successResultOf(self.spool.pack(rows))
            taken = self.spool.put("http://c", Taken("x"), batches, self.clock.seconds())
            chunks += self.successResultOf(taken)
        return chunks

    def offer(self, count: int = 1, points: int = 2) -> list[Chunk]:
        """Take chunks and let the gathering time pass."""
        chunks = self.take(count, points)
        self.delivery.offer(chunks)
        self.pass_time(1.1)
        return chunks

    def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps."""
        self.clock.pump([0.1] * round(seconds / 0.1))

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of one of our counters."""
        return self.counts.registry.get_sample_value(f"llama_scraper_{name}_total", labels) or 0.0

    def test_counters_begin_at_zero(self) -> None:
        """What an alert asks the increase of is there before there is any, else there is none."""
        self.delivery.start([])
        value = self.counts.registry.get_sample_value
        for reason in ("refused", "full", "too_old", "damaged", "writer_removed"):
            labels = {"writer": "db", "reason": reason}
            self.assertEqual(value("llama_scraper_points_dropped_total", labels), 0.0)

    def test_joined(self) -> None:
        """Chunks that come within the gathering time are one write, newest first."""
        self.delivery.start([])
        self.delivery.offer(self.take())
        self.pass_time(0.5)
        self.delivery.offer(self.take())
        self.assertEqual(self.database.writes, [])
        self.pass_time(0.6)
        self.assertEqual(self.database.writes, [["c2", "c1"]])
        self.assertEqual(len(self.spool.chunks), 0)
        self.assertEqual(self.sample("points_written", writer="db"), 4)

    def test_size(self) -> None:
        """A write has a largest size; what exceeds it follows at once."""
        self.delivery.start([])
        self.offer(3, points=CHUNK_POINTS)
        self.assertEqual(self.database.writes, [["c3", "c2"], ["c1"]])

    def test_many_at_once(self) -> None:
        """A writer that answers at once can be given a thousand chunks without nesting calls."""
        left = self.take(1000, points=1)
        self.database.answer = lambda points: succeed([])
        self.delivery.start(left)
        self.delivery.offer(self.take(1000, points=1))
        self.delivery.offer(self.take(20, points=CHUNK_POINTS))
        self.pass_time(60)
        self.assertEqual(len(self.database.held), 2020)

    def test_failure_is_kept(self) -> None:
        """What failed is written once the database is back; nothing is lost or dropped."""
        self.delivery.start([])
        self.database.answer = lambda points: fail(NotWrittenError("down"))
        self.offer(3)
        self.pass_time(120)
        self.assertEqual(self.delivery.trouble, "down")
        self.assertEqual(self.delivery.waiting, (3, 6))
        tries = len(self.database.writes)
        self.assertGreater(tries, 3)
        self.assertLess(tries, 60)
        self.database.answer = lambda points: succeed([])
        self.pass_time(2 * LONGEST_S)
        self.assertEqual(self.database.held, {"c1", "c2", "c3"})
        self.assertIsNone(self.delivery.trouble)
        self.assertEqual(self.sample("write_failures", writer="db"), tries)

    def test_newest_first_after_an_outage(self) -> None:
        """When the database is back, what is new goes before what is old."""
        self.delivery.start([])
        self.database.answer = lambda points: fail(NotWrittenError("down"))
        for _ in range(20):
            self.offer(1, points=CHUNK_POINTS)
        self.database.answer = lambda points: succeed([])
        before = len(self.database.writes)
        self.offer(1, points=CHUNK_POINTS)
        self.pass_time(LONGEST_S)
        self.assertEqual(self.database.writes[before][0], "c21")
        self.pass_time(3 * LONGEST_S)
        self.assertEqual(len(self.database.held), 21)

    def test_a_slow_database(self) -> None:
        """A database that is too slow for large writes gets smaller ones, until they go through."""
        self.database.answer = lambda points: (
            fail(NotWrittenError("too slow")) if len(points) > 600 else succeed([])
        )
        self.delivery.start([])
        self.offer(20, points=500)
        self.pass_time(3 * LONGEST_S)
        self.assertEqual(len(self.database.held), 20)

    def test_a_database_slower_than_a_chunk(self) -> None:
        """A chunk that is too much at a time is written in parts, and acknowledged after the last."""
        self.database.answer = lambda points: (
            fail(NotWrittenError("too slow")) if len(points) > 600 else succeed([])
        )
        self.delivery.start([])
        self.offer(3, points=CHUNK_POINTS)
        self.pass_time(3 * LONGEST_S)
        self.assertEqual((self.delivery.waiting, len(self.spool.chunks)), ((0, 0), 0))
        self.assertEqual(self.sample("points_written", writer="db"), 3 * CHUNK_POINTS)

    def test_a_bad_batch_holds_nobody(self) -> None:
        """One chunk that always fails delays no newer one, and takes no other down with it."""
        self.delivery.start([])

        def choke(points: Sequence[Point]) -> Deferred[Any]:
            if any(point.measurement == "c2" for point in points):
                return fail(NotWrittenError("HTTP 500"))
            return succeed([])

        self.database.answer = choke
        self.offer(3)
        self.pass_time(3 * LONGEST_S)
        self.assertEqual(self.database.held, {"c1", "c3"})
        for number in range(4, 30):
            self.offer()
            self.assertIn(f"c{number}", self.database.held)
        self.assertIsNone(self.delivery.trouble)
        self.assertEqual(self.delivery.waiting, (1, 2))

    def test_bad_batches_are_said_once(self) -> None:
        """However many chunks fail while others are taken, that is said once, and its end."""
        self.delivery.start([])

        def choke(points: Sequence[Point]) -> Deferred[Any]:
            # As on a disk that has room for very little.
            return succeed([]) if len(points) <= 2 else fail(NotWrittenError("disk full"))

        with capturedLogs() as events:
            self.database.answer = choke
            for _ in range(20):
                self.offer(1, points=3)
                self.offer(1, points=2)
            self.pass_time(3 * LONGEST_S)
            self.assertEqual(self.delivery.waiting, (20, 60))
            self.database.answer = lambda points: succeed([])
            self.pass_time(3 * LONGEST_S)
            self.assertEqual(self.delivery.waiting, (0, 0))
        said = [text for event in events if "while others" in (text := formatEvent(event) or "")]
        stuck = [
            text for event in events if "takes other points" in (text := formatEvent(event) or "")
        ]
        self.assertEqual(len(stuck), 1)
        self.assertIn("3 of http://c: disk full", stuck[0])
        self.assertEqual(
            said, ["writer db: no points wait any more that failed while others were taken"]
        )

    def test_reasons_are_said_once(self) -> None:
        """Reasons that take turns while a database is away are said once each, and the end of it."""
        self.delivery.start([])
        reasons = cycle(["refused", "no answer"])
        with capturedLogs() as events:
            for _ in range(2):
                self.database.answer = lambda points: fail(NotWrittenError(next(reasons)))
                self.offer()
                self.pass_time(10 * LONGEST_S)
                self.database.answer = lambda points: succeed([])
                self.pass_time(3 * LONGEST_S)
        said = [formatEvent(event) or "" for event in events]
        found = [
            word
            for text in said
            for word in ("refused", "no answer", "writes again")
            if word in text
        ]
        self.assertEqual(sorted(found[:2]), ["no answer", "refused"])
        self.assertEqual(sorted(found[3:5]), ["no answer", "refused"])
        self.assertEqual((found[2::3], len(found)), (["writes again"] * 2, 6))

    def test_a_hanging_batch_holds_nobody(self) -> None:
        """While an old write hangs, new ones go through beside it."""
        self.database.answer = lambda points: fail(NotWrittenError("down"))
        self.delivery.start([])
        self.offer()
        hanging: Deferred[Any] = Deferred()
        self.database.answer = lambda points: (
            hanging if points[0].measurement == "c1" else succeed([])
        )
        self.pass_time(5)
        for number in range(2, 20):
            self.offer()
            self.assertIn(f"c{number}", self.database.held)
        hanging.callback([])
        self.assertIn("c1", self.database.held)

    def test_a_write_that_never_ends(self) -> None:
        """A write that is never answered is given up after a while and repeated."""
        self.delivery.start([])
        self.database.answer = lambda points: Deferred()
        self.offer()
        self.pass_time(WRITE_TIMEOUT_S - 1)
        self.assertIsNone(self.delivery.trouble)
        while self.delivery.trouble is None:
            self.pass_time(0.1)
        self.assertEqual(self.delivery.trouble, f"no answer within {WRITE_TIMEOUT_S:g} s")
        self.database.answer = lambda points: succeed([])
        self.pass_time(LONGEST_S)
        self.assertEqual(self.database.held, {"c1"})

    def test_a_writer_that_raises(self) -> None:
        """An exception out of a plugin is a failed write, not the end."""
        self.delivery.start([])

        def burst(points: Sequence[Point]) -> Deferred[Any]:
            raise ZeroDivisionError("a bug in a plugin")

        self.database.answer = burst
        self.offer()
        self.assertEqual(self.delivery.trouble, "ZeroDivisionError: a bug in a plugin")
        self.database.answer = lambda points: succeed(None)
        self.pass_time(LONGEST_S)
        self.assertEqual(self.database.held, {"c1"})

    def test_not_permitted(self) -> None:
        """A database that turns us away is asked again only slowly, and then gets everything."""
        self.delivery.start([])
        self.database.answer = lambda points: fail(NotPermittedError("wrong password"))
        self.offer()
        self.pass_time(600)
        self.assertLess(len(self.database.writes), 13)
        self.assertEqual(self.delivery.trouble, "wrong password")
        self.database.answer = lambda points: succeed([])
        self.pass_time(130)
        self.assertEqual(self.database.held, {"c1"})

    def test_open_again(self) -> None:
        """A writer that cannot open is opened again; what came meanwhile is written then."""
        self.database.opening = lambda: fail(NotWrittenError("no such file"))
        self.delivery.start([])
        self.offer()
        self.pass_time(30)
        self.assertEqual(self.database.writes, [])
        self.assertEqual(self.delivery.trouble, "no such file")
        self.database.opening = lambda: succeed(None)
        opens = self.database.opens
        self.pass_time(2 * LONGEST_S)
        self.assertEqual(self.database.held, {"c1"})
        self.assertEqual(self.database.opens, opens + 1)

    def test_refused_points(self) -> None:
        """Points that the database will never take are let go and counted."""
        self.delivery.start([])
        self.database.answer = lambda points: succeed([Refusal(points[0], "wrong type")])
        self.offer()
        self.offer()
        self.assertEqual(self.sample("points_written", writer="db"), 2)
        self.assertEqual(self.sample("points_dropped", writer="db", reason="refused"), 2)
        self.assertEqual(len(self.spool.chunks), 0)

    def test_refused_texts(self) -> None:
        """What a collector wrote into points that are refused begins no line of the log, nor fills it."""
        text = "x\nall is well \x1b[2J" + "y" * 2000
        self.database.answer = lambda points: succeed(
            [Refusal(Point(text, {text: text}, {"a": 1.0}, 1), "wrong type")]
        )
        self.delivery.start([])
        with capturedLogs() as events:
            self.offer()
        (told,) = [formatEvent(event) for event in events]
        assert told is not None
        self.assertTrue(told.isprintable())
        self.assertLess(len(told), 1500)

    def test_dropped_by_the_spool(self) -> None:
        """What the spool drops is counted once, whether it waited or was being written."""
        self.delivery.start([])
        under_way: Deferred[Any] = Deferred()
        self.database.answer = lambda points: under_way
        self.offer()
        self.delivery.offer(self.take())
        self.clock.advance(3700)
        self.spool.expire()
        self.assertEqual(self.sample("points_dropped", writer="db", reason="too_old"), 4)
        self.assertEqual(self.delivery.waiting, (0, 0))
        self.pass_time(300)
        self.assertEqual(len(self.database.writes), 1)

    def test_dropped_before_it_was_offered(self) -> None:
        """What the spool drops before anybody was told of it is counted, and never tried."""
        self.spool._held.max_octets = 600
        self.delivery.start([])
        chunks = self.take(3)
        self.assertEqual(list(self.spool.chunks.values()), chunks[2:])
        self.delivery.offer(chunks)
        self.pass_time(2)
        self.assertEqual(self.database.writes, [["c3"]])
        self.assertEqual(self.sample("points_dropped", writer="db", reason="full"), 4)
        self.assertEqual(self.sample("points_written", writer="db"), 2)

    def test_written_while_dropped(self) -> None:
        """A write that succeeds though the spool dropped its chunk meanwhile counts as written."""
        self.delivery.start([])
        under_way: Deferred[Any] = Deferred()
        self.database.answer = lambda points: under_way
        self.offer()
        self.spool._drop("full", list(self.spool.chunks.values()))
        under_way.callback([])
        self.assertEqual(self.sample("points_written", writer="db"), 2)
        self.assertEqual(self.sample("points_dropped", writer="db", reason="full"), 0)

    def test_gone_meanwhile(self) -> None:
        """A chunk whose points nobody has any more is forgotten, not tried for ever."""
        self.delivery.start([])
        [chunk] = self.take()
        self.spool.acknowledge("db", [chunk])
        self.delivery.offer([chunk])
        self.pass_time(5)
        self.assertEqual(self.delivery.waiting, (0, 0))
        self.assertEqual(self.database.writes, [])
        self.assertEqual(self.sample("write_failures", writer="db"), 0)

    def test_a_long_backlog(self) -> None:
        """Thousands of chunks that failed are written in the end, some of them bad, newest first."""
        down = True

        def answer(points: Sequence[Point]) -> Deferred[Any]:
            if down or any(point.measurement in ("c7", "c1500") for point in points):
                return fail(NotWrittenError("HTTP 500"))
            return succeed([])

        self.database.answer = answer
        self.delivery.start(self.take(3000, points=1))
        for _ in range(5):
            self.offer()
        down = False
        self.database.writes.clear()
        self.offer()
        self.pass_time(3 * LONGEST_S)
        self.assertEqual(len(self.database.held), 3004)
        self.assertEqual(self.database.writes[0][0], "c3006")
        self.assertEqual(self.delivery.waiting, (2, 2))

    def test_left_from_an_earlier_run(self) -> None:
        """What an earlier run left is written, newest first."""
        self.delivery.start(self.take(3, points=CHUNK_POINTS))
        self.pass_time(1)
        self.assertEqual(self.database.writes, [["c3", "c2"], ["c1"]])

    def test_stop_waits(self) -> None:
        """Stopping lets the write under way end, starts no other, and closes the writer."""
        self.delivery.start([])
        under_way: Deferred[Any] = Deferred()
        self.database.answer = lambda points: under_way
        self.offer()
        self.delivery.offer(self.take())
        stopped = self.delivery.stop(5.0)
        self.assertNoResult(stopped)
        under_way.callback([])
        self.successResultOf(stopped)
        self.assertTrue(self.database.closed)
        self.pass_time(60)
        self.assertEqual(self.database.held, {"c1"})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_does_not_wait_for_ever(self) -> None:
        """A write that does not end is given up when stopping; its chunk stays in the spool."""
        self.delivery.start([])
        self.database.answer = lambda points: Deferred()
        self.offer()
        stopped = self.delivery.stop(5.0)
        self.clock.advance(5.0)
        self.successResultOf(stopped)
        self.assertEqual(len(self.spool.chunks), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_that_takes_long(self) -> None:
        """A writer that is still busy when its time to close is over is left to itself."""
        self.delivery.start([])
        self.database.close = Deferred  # type: ignore[method-assign]
        stopped = self.delivery.stop(5.0)
        self.assertNoResult(stopped)
        self.clock.advance(5.0)
        self.successResultOf(stopped)
        self.assertEqual(self.flushLoggedErrors(), [])


class BackoffTests(SynchronousTestCase):
    """How long the waits are."""

    def test_bounds(self) -> None:
        """Waits grow and stay within their bounds, however many failures."""
        draw = random.Random(7)
        for failures in range(1, 5000, 7):
            self.assertLessEqual(wait_s(failures, draw), LONGEST_S)
            self.assertGreater(wait_s(failures, draw), 0)
        self.assertLessEqual(wait_s(1, draw), 1.0)
        mean = sum(wait_s(20, draw) for _ in range(1000)) / 1000
        self.assertGreater(mean, LONGEST_S / 3)
