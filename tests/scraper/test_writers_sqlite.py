"""The embedded store: what it holds, how it rolls up, and what it lets go of."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scraper_case import left_by_kills, until
from sqlite_case import DAY_MS, START, WINDOW_MS, StoreCase, point
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llama.interfaces import NotWrittenError, Point
from llama.scraper.writers import sqlite, sqlite_schema
from llama.scraper.writers.options import Options
from llama.threads import connect


class WriteTests(StoreCase):
    """Writing and reading back."""

    async def test_a_sample(self) -> None:
        """A point is one row of one series, every known figure in its column."""
        writer = await self.opened()
        await writer.write([point(START, rtt=0.25, loss=0.0, sent=30.0)])
        self.assertEqual(
            self.rows("SELECT samples.*, measurement, tags FROM samples JOIN series ON id = series_id"),
            [{"time_ms": START, "series_id": 1, "rtt": 0.25, "loss": 0.0, "sent": 30.0,
              "measurement": "raw_stats", "tags": '{"dst":"b","src":"a"}'}],
        )  # fmt: skip

    async def test_twice(self) -> None:
        """Writing a point twice changes nothing, also by another process that has the file open."""
        writer = await self.opened()
        other = await self.opened()
        for each in (writer, other, writer):
            await each.write([point(START, rtt=0.25), point(START, "c", rtt=0.5)])
        self.assertEqual(len(self.rows("SELECT * FROM samples")), 2)
        self.assertEqual(len(self.rows("SELECT * FROM series")), 2)

    async def test_other_figures(self) -> None:
        """Figures without a column of their own are kept as JSON."""
        writer = await self.opened()
        stats = Point("collector_stats", {"src_hostname": "a"}, {"tick_lag_ms": 1.5, "sent": 2.0},
                      START * 10**6)  # fmt: skip
        await writer.write([stats])
        self.assertEqual(
            self.rows("SELECT sent, more ->> 'tick_lag_ms' AS lag FROM samples"),
            [{"sent": 2.0, "lag": 1.5}],
        )

    async def test_nasty_tags(self) -> None:
        """Tags of any characters come back as they were."""
        tags = {"a\\": "x'\"\n\0☃ ,=", "b": "é"}
        writer = await self.opened()
        await writer.write([Point("raw_stats", tags, {"rtt": 1.0}, START * 10**6)])
        self.assertEqual(json.loads(self.rows("SELECT tags FROM series")[0]["tags"]), tags)

    async def test_many_series(self) -> None:
        """A series that is remembered takes some hundred octets."""
        writer = await self.opened()
        points = [point(START, f"host{n}", rtt=1.0) for n in range(2000)]
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        await writer.write(points)
        grown, _ = tracemalloc.get_traced_memory()
        self.assertLess(grown / len(points), 1000)

    async def test_another_programs_file(self) -> None:
        """Another program's database is refused and left alone; so is no database at all."""
        with sqlite3.connect(self.path) as db:
            db.execute("CREATE TABLE precious (x)")
        db.close()
        with self.assertRaises(NotWrittenError) as raised:
            await self.opened()
        self.assertIn("another program's database", str(raised.exception))
        self.path.write_bytes(b"hello " * 1000)
        with self.assertRaises(NotWrittenError) as raised:
            await self.opened()
        self.assertIn("file is not a database", str(raised.exception))
        self.assertEqual(self.path.read_bytes(), b"hello " * 1000)

    async def test_killed_while_begun(self) -> None:
        """A process killed at any moment while it makes a store leaves what the next one takes."""
        left = left_by_kills(self.path, sqlite.prepare)
        self.assertGreater(len(left), 10)
        for self.path in left:
            writer = await self.opened()
            await writer.write([point(START, rtt=1.0)])
            self.assertEqual(len(self.rows("SELECT * FROM samples")), 1)

    async def test_directory_is_missing(self) -> None:
        """Missing directories are made; one that cannot be is said."""
        self.path = self.directory / "a" / "b" / "store.db"
        await self.opened()
        (self.directory / "file").touch()
        self.path = self.directory / "file" / "store.db"
        with self.assertRaises(NotWrittenError) as raised:
            await self.opened()
        self.assertIn("File exists", str(raised.exception))

    async def test_locked_for_long(self) -> None:
        """A write that another program holds up fails, and can be repeated."""
        writer = await self.opened()
        await writer._pool.runWithConnection(lambda c: c.execute("PRAGMA busy_timeout=50").close())
        db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("BEGIN EXCLUSIVE")
        with self.assertRaises(NotWrittenError) as raised:
            await writer.write([point(START, rtt=1.0)])
        self.assertIn("locked", str(raised.exception))
        db.execute("ROLLBACK")
        db.close()
        await writer.write([point(START, rtt=1.0)])
        self.assertEqual(len(self.rows("SELECT * FROM samples")), 1)


class MovedTests(StoreCase):
    """A file that is no longer where it was, while it is written to."""

    async def refused(self, writer: sqlite.SQLiteWriter, reason: str) -> None:
        """See that nothing is acknowledged, and why."""
        with self.assertRaises(NotWrittenError) as raised:
            await writer.write([point(START + 1, rtt=2.0)])
        self.assertEqual(str(raised.exception), reason)

    def reader(self) -> subprocess.Popen[bytes]:
        """Start another process that has the file open, as the web page may for long."""
        code = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
            "db.execute('BEGIN'); print(db.execute('SELECT 1 FROM samples').fetchall(), flush=True);"
            "sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    async def test_removed(self) -> None:
        """What was removed takes nothing; the next write makes it anew, also its directory."""
        self.path = self.directory / "below" / "store.db"
        for remove in (
            lambda: [file.unlink() for file in self.path.parent.iterdir()],
            self.path.unlink,
            lambda: shutil.rmtree(self.path.parent),
        ):
            writer = await self.opened()
            await writer.write([point(START, rtt=1.0)])
            reader = self.reader()
            for n in range(100):
                await writer.write([point(START, f"d{n}", rtt=1.0)])
            remove()
            await self.refused(writer, f"{self.path} was removed: it is opened anew")
            await writer._keep_up()
            await writer.write([point(START + 1, rtt=2.0)])
            self.assertEqual(self.rows("SELECT rtt FROM samples"), [{"rtt": 2.0}])
            reader.communicate()
            await writer.close()
            self.path.unlink()
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_directory_cannot_be_made(self) -> None:
        """Where its directory cannot be made again, writing fails until it can."""
        self.path = self.directory / "below" / "store.db"
        writer = await self.opened()
        shutil.rmtree(self.path.parent)
        self.path.parent.touch()
        await self.refused(writer, f"{self.path} was removed: it is opened anew")
        await self.refused(writer, f"{self.path.parent}: File exists")
        self.path.parent.unlink()
        await writer.write([point(START + 1, rtt=2.0)])
        self.assertEqual(self.rows("SELECT rtt FROM samples"), [{"rtt": 2.0}])

    async def test_replaced(self) -> None:
        """What is put in its place, a backup say, is neither damaged nor taken for the old one."""
        writer = await self.opened()
        await writer.write([point(START - 1, rtt=0.5)])
        backup = self.directory / "backup"
        with sqlite3.connect(self.path) as db, sqlite3.connect(backup) as to:
            db.backup(to)
        db.close()
        to.close()
        for n in range(200):
            await writer.write([point(START, f"d{n}", rtt=1.0)])
        os.replace(backup, self.path)
        there = f"another file has taken the place of {self.path}"
        await self.refused(writer, f"{there}: it is opened anew")
        await writer.write([point(START + 1, rtt=2.0)])
        self.assertEqual(self.rows("SELECT rtt FROM samples"), [{"rtt": 0.5}, {"rtt": 2.0}])
        self.assertEqual(self.rows("PRAGMA integrity_check"), [{"integrity_check": "ok"}])

    async def test_renamed(self) -> None:
        """What was acknowledged is in the file that was renamed, whole."""
        writer = await self.opened()
        await writer.write([point(START, rtt=1.0)])
        old = self.path.rename(self.directory / "old.db")
        await self.refused(writer, f"{self.path} was removed: it is opened anew")
        await writer.write([point(START + 1, rtt=2.0)])
        self.assertEqual(self.rows("SELECT rtt FROM samples"), [{"rtt": 2.0}])
        self.path = old
        self.assertEqual(self.rows("SELECT rtt FROM samples"), [{"rtt": 1.0}])

    async def test_two_writes(self) -> None:
        """Of two writes that find it removed neither is acknowledged; it is made anew once."""
        writer = await self.opened()
        await writer.write([point(START, rtt=1.0)])
        made: list[Any] = []
        self.patch(sqlite, "connect", lambda *a: made.append(connect(*a)) or made[-1])
        self.path.unlink()
        for expected in (NotWrittenError, None):
            both = [writer.write([point(START + n, rtt=2.0)]) for n in (1, 2)]
            for each in both:
                if expected:
                    await self.assertFailure(each, expected)
                else:
                    await each
        self.assertEqual(len(made), 1)
        self.assertEqual(len(self.rows("SELECT * FROM samples")), 2)

    async def test_none_can_say(self) -> None:
        """While the file system does not say what is there, nothing is taken and nothing given up."""
        self.path = self.directory / "below" / "store.db"
        writer = await self.opened()
        await writer.write([point(START, rtt=1.0)])
        below = self.path.parent
        aside = below.rename(self.directory / "aside")
        below.symlink_to(below)
        with self.assertRaises(NotWrittenError) as raised:
            await writer.write([point(START + 1, rtt=2.0)])
        self.assertIn("Too many levels of symbolic links", str(raised.exception))
        below.unlink()
        aside.rename(below)
        await writer.write([point(START + 1, rtt=2.0)])
        self.assertEqual(len(self.rows("SELECT * FROM samples")), 2)


class ConcurrencyTests(StoreCase):
    """Writes, closing and other processes at the same time."""

    def samples(self) -> set[tuple[str, int, float]]:
        """Return what stands under which destination, as (dst, ms since `START`, loss)."""
        rows = self.rows(
            "SELECT tags ->> 'dst' AS dst, time_ms, loss FROM samples"
            " LEFT JOIN series ON id = series_id"
        )
        return {(row.get("dst", "none"), row["time_ms"] - START, row["loss"]) for row in rows}

    def keep_reactor_busy(self, writer: sqlite.SQLiteWriter) -> None:
        """Do what a busy reactor does: learn of no result before the thread has done all it was asked."""
        done = threading.Event()
        writer._pool.threadpool.callInThread(done.set)
        self.assertTrue(done.wait(10))

    async def test_failing_beside_a_good_one(self) -> None:
        """A write that is taken back lends its series' numbers to none that was queued behind it."""
        writer = await self.opened()
        bad = Point("raw_stats", {"src": "a", "dst": "x"}, {"loss": object()}, START * 10**6)  # type: ignore[dict-item]
        failing = writer.write([point(START, "b", loss=0.0), point(START, "c", loss=0.0), bad])
        queued = writer.write([point(START, "c", loss=100.0)])
        self.keep_reactor_busy(writer)
        with self.assertRaises(NotWrittenError):
            await failing
        await queued
        await writer.write([point(START + 1, dst, loss=1.0) for dst in "dec"])
        later = {(dst, 1, 1.0) for dst in "dec"}
        self.assertEqual(self.samples(), {("c", 0, 100.0), *later})

    async def test_series_removed_by_another(self) -> None:
        """A series that another process has removed gets a new number when it comes back."""
        writer, other = await self.opened(), await self.opened()
        await writer.write([point(START + 1, "b", loss=0.0)])
        await writer.write([point(START + 31 * DAY_MS, "c", loss=0.0)])
        for do in (other._roll_up, other._remove):
            while await other._pool.runInteraction(do, START + 32 * DAY_MS):
                pass
        self.assertEqual(len(self.rows("SELECT * FROM series")), 1)
        now = 32 * DAY_MS
        await writer.write([point(START + now, "b", loss=5.0), point(START + now, "c", loss=6.0)])
        self.assertLessEqual({("b", now, 5.0), ("c", now, 6.0)}, self.samples())

    async def test_window_removed_by_another(self) -> None:
        """While a write looks whether it comes late, no other process makes it so."""
        writer, other = await self.opened(), await self.opened()
        now = START + 3 * DAY_MS
        await writer.write([point(START + n, sent=10.0, lost=0.0, loss=0.0) for n in (1, 2)])
        await other._pool.runInteraction(other._roll_up, now)
        await other._pool.runWithConnection(lambda c: c.execute("PRAGMA busy_timeout=0").close())
        locked: list[Any] = []
        fact = sqlite_schema.fact

        def meanwhile(cursor: Any, name: str) -> int | None:
            found = fact(cursor, name)
            if name == "removed_to_ms" and not locked:
                locked.append(None)
                removed = threading.Event()
                reactor.callFromThread(
                    lambda: other._pool.runInteraction(other._remove, now).addBoth(
                        lambda result: (locked.append(result), removed.set())
                    )
                )
                removed.wait(10)
            return found

        self.patch(sqlite_schema, "fact", meanwhile)
        await writer.write([point(START + 3, sent=1.0, lost=1.0, loss=100.0)])
        self.assertIn("locked", str(locked[1]))
        for do in (other._roll_up, other._remove):
            while await other._pool.runInteraction(do, now):
                pass
        self.assertEqual(
            self.rows("SELECT sent, lost FROM samples_5m"), [{"sent": 21.0, "lost": 1.0}]
        )

    async def test_closed_during_a_write(self) -> None:
        """Closing beside a write that was given up, and cannot end, leaves the reactor free."""
        writer = await self.opened()
        lock = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(lock.close)
        lock.execute("BEGIN IMMEDIATE")
        writing = writer.write([point(START, loss=1.0)])
        writing.cancel()
        await self.assertFailure(writing, CancelledError)
        closing = writer.close()
        await deferLater(reactor, 0.1)  # or the thread holds all of this up
        self.assertFalse(closing.called)
        lock.execute("COMMIT")
        await closing
        self.assertEqual(self.samples(), {("b", 0, 1.0)})

    async def test_closing_given_up(self) -> None:
        """Closing that nobody waits for any more ends by itself, as does an opening."""
        writer = await self.opened()
        lock = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(lock.close)
        lock.execute("BEGIN IMMEDIATE")
        other = sqlite.make(reactor, {"path": str(self.path)})
        pools: list[Any] = [writer._pool]
        self.patch(sqlite, "connect", lambda *a: pools.append(connect(*a)) or pools[-1])
        given_up = [writer.write([point(START, loss=1.0)]), writer.close(), other.open()]
        for each in reversed(given_up):
            each.cancel()
            await self.assertFailure(each, CancelledError)
        await deferLater(reactor, 0.1)
        self.assertTrue(pools[0].running)
        lock.execute("COMMIT")
        await until(lambda: not any(pool.running for pool in pools), "both closed")
        self.assertEqual(len(pools), 2)
        self.assertEqual(self.samples(), {("b", 0, 1.0)})


class UpkeepTests(StoreCase):
    """Rolling up and removing, at times of the test's choice."""

    async def upkeep(self, writer: sqlite.SQLiteWriter, now_ms: int) -> None:
        """Do what a minute's upkeep does, as if it were ``now_ms``."""
        while await writer._pool.runInteraction(writer._roll_up, now_ms):
            pass
        while await writer._pool.runInteraction(writer._remove, now_ms):
            pass

    async def test_rolled_up(self) -> None:
        """A window becomes one row a series: sums, weighted mean, extremes, last and union."""
        writer = await self.opened()
        end = START + WINDOW_MS
        await writer.write(
            [
                point(START, rtt=99.0, sent=1.0, lost=1.0),  # belongs to the window before
                point(START + 1, sent=10.0, received=10.0, lost=0.0, loss=0.0, rtt=1.0, rtt_min=0.5,
                      rtt_max=2.0, rtt_p99=2.0, suspect=1.0, ttl_at_collector=60.0, flows=4.0),
                point(end - 1, sent=30.0, received=30.0, lost=0.0, loss=0.0, rtt=2.0, rtt_min=0.6,
                      rtt_max=9.0, rtt_p99=8.0, suspect=1025.0, ttl_at_collector=61.0, flows=4.0),
                point(end, sent=10.0, received=0.0, lost=10.0, loss=100.0, suspect=0.0),
                point(end, "c", sent=0.0),
                point(end + 1, sent=1.0, lost=1.0),  # belongs to the window after
            ]
        )  # fmt: skip
        await self.upkeep(writer, end)
        found = {
            (row.pop("time_ms") - START, row.pop("series_id")): row
            for row in self.rows("SELECT * FROM samples_5m")
        }
        self.assertEqual(set(found), {(0, 1), (WINDOW_MS, 1), (WINDOW_MS, 2)})
        self.assertEqual(
            found[WINDOW_MS, 1],
            {"sent": 50.0, "received": 40.0, "lost": 10.0, "loss": 20.0, "rtt": 1.75,
             "rtt_min": 0.5, "rtt_max": 9.0, "rtt_p99": 8.0, "suspect": 1025.0,
             "ttl_at_collector": 61.0, "flows": 4.0},
        )  # fmt: skip
        self.assertEqual(found[WINDOW_MS, 2], {"sent": 0.0})

    async def test_late_points(self) -> None:
        """Points that come after their window was rolled up are in it after the next time."""
        writer = await self.opened()
        await writer.write([point(START + 1, sent=10.0, lost=0.0)])
        await self.upkeep(writer, START + WINDOW_MS)
        await writer.write([point(START + 2, sent=10.0, lost=5.0)])
        await self.upkeep(writer, START + WINDOW_MS)
        [row] = self.rows("SELECT sent, loss FROM samples_5m")
        self.assertEqual(row, {"sent": 20.0, "loss": 25.0})

    async def test_old_collectors(self) -> None:
        """Figures of collectors that say only loss and rtt are rolled up too."""
        writer = await self.opened()
        await writer.write(
            [point(START + 1, rtt=1.0, loss=0.0), point(START + 2, rtt=3.0, loss=50.0)]
        )
        await self.upkeep(writer, START + WINDOW_MS)
        [row] = self.rows("SELECT rtt, loss FROM samples_5m")
        self.assertEqual(row, {"rtt": 2.0, "loss": 25.0})

    async def test_kept_as_long_as_asked(self) -> None:
        """Raw rows go after two days, five-minute rows after thirty, in step with the clock."""
        writer = await self.opened()
        moments = range(START + 1, START + 4 * DAY_MS, DAY_MS // 2)
        await writer.write([point(t, sent=1.0, lost=0.0) for t in moments])
        now = START + 4 * DAY_MS
        await self.upkeep(writer, now)
        [raw] = self.rows("SELECT min(time_ms) AS oldest, count(*) AS n FROM samples")
        self.assertGreater(raw["oldest"], now - 2 * DAY_MS)
        self.assertEqual(raw["n"], 4)
        self.assertEqual(self.rows("SELECT count(*) AS n FROM samples_5m"), [{"n": 8}])
        await self.upkeep(writer, START + 32 * DAY_MS)
        self.assertEqual(self.rows("SELECT * FROM samples"), [])
        self.assertEqual(self.rows("SELECT count(*) AS n FROM samples_5m")[0]["n"], 4)

    async def test_wall_clock_far_ahead(self) -> None:
        """A clock that is years ahead removes nothing, also where one collector has that clock, too."""
        now_s = (START + DAY_MS) / 1000
        options = Options({"path": str(self.path)})
        writer = sqlite.SQLiteWriter(reactor, options, lambda: now_s)
        await writer.open()
        self.addCleanup(writer.close)
        await writer.write([point(START + 1, sent=1.0)])
        for n in range(3):
            await writer.write([point(START + DAY_MS + n, f"c{n}", sent=1.0)])
        await writer._keep_up()
        before = self.rows("SELECT time_ms, sent FROM samples_5m")
        now_s += 10 * 365 * 86400
        await writer._keep_up()
        await writer.write([point(int(now_s * 1000), "d", sent=1.0)])
        await writer._keep_up()
        self.assertEqual(self.rows("SELECT count(*) AS n FROM samples"), [{"n": 5}])
        self.assertEqual(self.rows("SELECT time_ms, sent FROM samples_5m")[: len(before)], before)
        for n in range(sqlite.BATCHES_KNOWN):
            await writer.write([point(int(now_s * 1000) + n, "d", sent=1.0)])
        await writer._keep_up()
        [row] = self.rows("SELECT min(time_ms) AS oldest FROM samples")
        self.assertEqual(row["oldest"], int(now_s * 1000))

    async def test_upkeep_that_fails(self) -> None:
        """However long another program is in the way, that is said once, and its end as well."""
        writer = await self.opened()
        await writer._pool.runWithConnection(lambda c: c.execute("PRAGMA busy_timeout=50").close())
        db = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(db.close)
        with capturedLogs() as events:
            for _ in range(2):
                db.execute("BEGIN EXCLUSIVE")
                for _ in range(2):
                    await writer._keep_up()
                db.execute("ROLLBACK")
                for _ in range(2):
                    await writer._keep_up()
        failed = (
            "rolling up or removing old rows failed (database is locked); tried again every minute"
        )
        said = [failed, "old rows are rolled up and removed again"]
        self.assertEqual(
            [formatEvent(event) for event in events],
            2 * [f"store {self.path}: {text}" for text in said],
        )

    async def test_only_removed_while_something_comes(self) -> None:
        """Where nothing is measured any more the last that was stays."""
        writer = await self.opened()
        await writer.write([point(START + 1, sent=1.0)])
        await writer._keep_up()
        await writer.close()
        writer = await self.opened()
        await writer._keep_up()
        self.assertEqual(self.rows("SELECT count(*) AS n FROM samples"), [{"n": 1}])

    async def test_later_than_raw(self) -> None:
        """What comes when its window's samples are gone is added to the five-minute row."""
        writer = await self.opened()
        await writer.write([point(START + 1, sent=10.0, lost=0.0)])
        await self.upkeep(writer, START + WINDOW_MS)
        await self.upkeep(writer, START + 3 * DAY_MS)
        await writer.write([point(START + 2, sent=1.0, lost=1.0), point(START + 2, "c", sent=3.0)])
        await self.upkeep(writer, START + 3 * DAY_MS)
        self.assertEqual(
            self.rows("SELECT series_id, sent, lost FROM samples_5m ORDER BY series_id"),
            [{"series_id": 1, "sent": 11.0, "lost": 1.0}, {"series_id": 2, "sent": 3.0}],
        )
        self.assertEqual(self.rows("SELECT * FROM samples"), [])

    async def test_late_backlog(self) -> None:
        """A backlog of three days ago, newest first and each part twice, adds up to the truth."""
        now = START + 3 * DAY_MS
        backlog = [
            point(START + n * 30_000, sent=100.0, lost=lost, received=100.0 - lost, rtt=rtt,
                  rtt_min=rtt, rtt_max=rtt, suspect=bit)
            for n, lost, rtt, bit in [(10, 0.0, 1.0, 1.0), (9, 50.0, 4.0, 2.0), (8, 0.0, 2.0, 1.0),
                                      (1, 50.0, 3.0, 8.0)]
        ]  # fmt: skip
        writer = await self.opened()
        await writer.write([point(now, sent=1.0)])
        for part in (backlog[:1], backlog[1:3], backlog[3:], backlog):
            await writer.write(part)
            await self.upkeep(writer, now)
            # Killed before the spool noted it: another process writes it again, and once more.
            writer = await self.opened()
            await writer.write(part)
            await writer.write(part)
            await self.upkeep(writer, now)
        [row] = self.rows("SELECT * FROM samples_5m WHERE time_ms <= ?", [START + WINDOW_MS])
        self.assertEqual(
            row,
            {"time_ms": START + WINDOW_MS, "series_id": 1, "sent": 400.0, "lost": 100.0,
             "received": 300.0, "loss": 25.0, "rtt": 650 / 300, "rtt_min": 1.0, "rtt_max": 4.0,
             "suspect": 11.0},
        )  # fmt: skip
        await self.upkeep(writer, START + 31 * DAY_MS)
        self.assertEqual(
            self.rows("SELECT * FROM removed WHERE time_ms <= ?", [START + WINDOW_MS]), []
        )

    def series(self) -> list[str]:
        """Return the destinations of the series that are known."""
        return [row["tags"][8] for row in self.rows("SELECT tags FROM series ORDER BY id")]

    async def test_series_go_with_their_rows(self) -> None:
        """A series of which no row is left goes, too; the writer knows it no more."""
        writer = await self.opened()
        for n, dst in enumerate("bcd"):
            await writer.write([point(START + 1 + n * DAY_MS, dst, sent=1.0, lost=0.0)])
        await writer.write([Point("collector_stats", {"z": "e"}, {"x": 1.0}, START * 1_000_000)])
        await writer.write([point(START + 1 + 3 * DAY_MS, "f", sent=1.0, lost=0.0)])
        await self.upkeep(writer, START + 29 * DAY_MS)
        self.assertEqual(len(self.series()), 5)
        await self.upkeep(writer, START + 31 * DAY_MS)
        self.assertEqual(self.series(), list("cdf"))
        self.assertEqual(self.rows("SELECT value FROM facts WHERE name = 'series_removed'"),
                         [{"value": 2}])  # fmt: skip
        await self.upkeep(writer, START + 60 * DAY_MS)
        self.assertEqual(self.series(), ["f"])  # else its number would be given again
        now = START + 60 * DAY_MS
        await writer.write([point(now, "b", sent=1.0, lost=0.0), point(now, "c", sent=1.0)])
        found = self.rows("SELECT tags FROM samples JOIN series ON id = series_id")
        self.assertEqual([row["tags"][8] for row in found], list("bc"))
        self.assertEqual([row["id"] for row in self.rows("SELECT id FROM series")], [5, 6, 7])

    async def test_series_that_comes_back(self) -> None:
        """A series that is heard again just when its last row goes, stays."""
        writer = await self.opened()
        for dst in "bc":
            await writer.write([point(START + 1, dst, sent=1.0, lost=0.0)])
        await self.upkeep(writer, START + WINDOW_MS)
        now = START + 31 * DAY_MS
        await writer.write([point(now + 1, "b", sent=1.0, lost=0.0)])
        await self.upkeep(writer, now + 2)
        self.assertEqual(self.series(), list("bc"))
        [row] = self.rows("SELECT series_id FROM samples")
        self.assertEqual(row, {"series_id": 1})

    async def test_series_of_late_points(self) -> None:
        """A series stays as long as the five-minute row of a point that came late."""
        writer = await self.opened()
        day = DAY_MS
        await writer.write([point(START + 1, "b", sent=1.0), point(START + 9 * day, "c", sent=1.0)])
        await self.upkeep(writer, START + 12 * day)
        late = [point(START + 5 * day, "b", sent=1.0), point(START + 5 * day, "d", sent=1.0)]
        await writer.write([*late, point(START + 12 * day, "e", sent=1.0)])
        await self.upkeep(writer, START + 31 * day)
        self.assertEqual(self.series(), list("bcde"))
        await self.upkeep(writer, START + 36 * day)
        self.assertEqual(self.series(), list("ce"))

    async def test_many_rows(self) -> None:
        """However many rows a window and a moment have, few are removed in one transaction."""
        self.patch(sqlite, "ROWS_AT_ONCE", 30)
        writer = await self.opened()
        await writer.write(
            [point(START + 1 + n // 100, str(n % 100), sent=1.0) for n in range(1000)]
        )
        await self.upkeep(writer, START + WINDOW_MS)
        for table, days in (("samples", 3), ("samples_5m", 31)):
            left = [len(self.rows(f"SELECT 1 FROM {table}"))]
            while await writer._pool.runInteraction(writer._remove, START + days * DAY_MS):
                left.append(len(self.rows(f"SELECT 1 FROM {table}")))
            self.assertEqual(left, [*range(left[0], 0, -30), 0])
        self.assertEqual(self.rows("SELECT * FROM removed"), [])

    async def test_late_amid_removal(self) -> None:
        """What comes while its window's samples are being removed counts once, gone or not yet."""
        self.patch(sqlite, "ROWS_AT_ONCE", 3)
        writer = await self.opened()
        points = [point(START + n, dst, sent=1.0, lost=0.0) for n in (1, 2) for dst in "bcd"]
        await writer.write(points[:5])
        now = START + 3 * DAY_MS
        await self.upkeep(writer, START + WINDOW_MS)
        await writer._pool.runInteraction(writer._remove, now)
        self.assertEqual(len(self.rows("SELECT * FROM samples")), 2)
        self.assertEqual(
            self.rows("SELECT value FROM facts WHERE name = 'removed_to_ms'"),
            [{"value": START + WINDOW_MS}],
        )
        for _ in range(2):
            await writer.write(points)
            self.assertEqual(
                self.rows("SELECT sum(sent) AS sent FROM samples_5m GROUP BY series_id"),
                [{"sent": 2.0}] * 3,
            )
        await self.upkeep(writer, now)
        await writer.write(points)
        self.assertEqual(self.rows("SELECT sum(sent) AS n FROM samples_5m"), [{"n": 6.0}])
        self.assertEqual(self.rows("SELECT * FROM samples"), [])

    async def test_by_itself(self) -> None:
        """The upkeep that a running writer does every minute removes what is long past."""
        writer = await self.opened()
        now_ms = int(time.time() * 1000)
        await writer.write([point(START + 1, sent=1.0)])
        await writer.write([point(now_ms, sent=1.0)])
        await writer.write([point(now_ms, "c", sent=1.0)])
        self.assertTrue(writer._upkeep.running)
        await writer._keep_up()
        self.assertEqual(self.rows("SELECT DISTINCT time_ms FROM samples"), [{"time_ms": now_ms}])
        self.assertEqual(self.rows("SELECT * FROM unrolled WHERE time_ms < ?", [now_ms]), [])


class AggregateTests(SynchronousTestCase):
    """The roll-up's arithmetic, against plain Python."""

    @settings(max_examples=60)
    @given(
        st.lists(
            st.fixed_dictionaries(
                {"sent": st.integers(0, 100), "lost": st.integers(0, 100)},
                optional={"rtt": st.floats(0.001, 1000), "suspect": st.integers(0, 2047),
                          "dscp_at_reflector": st.integers(0, 255)},
            ),
            min_size=1,
            max_size=10,
        )
    )  # fmt: skip
    def test_any_samples(self, samples: list[dict[str, Any]]) -> None:
        """Whatever the samples, sums, loss, mean, last and union come out right."""
        db = sqlite3.connect(":memory:")
        sqlite.prepare(db)
        for n, sample in enumerate(samples):
            sample["received"] = max(0, sample["sent"] - sample["lost"])
            row = [START + 1 + n, 1, *(sample.get(name) for name in sqlite_schema.FIELDS), None]
            db.execute(sqlite_schema.UPSERT, row)
        db.execute(sqlite_schema.ROLL_UP, {"end": START + WINDOW_MS})
        db.row_factory = sqlite3.Row
        row = dict(db.execute("SELECT * FROM samples_5m").fetchone())
        db.close()
        sent, lost = sum(s["sent"] for s in samples), sum(s["lost"] for s in samples)
        self.assertEqual((row["sent"], row["lost"]), (sent, lost))
        self.assertEqual(row["loss"], 100.0 * lost / sent if sent else None)
        weighed = [(s["rtt"], s["received"]) for s in samples if "rtt" in s and s["received"]]
        if weighed:
            mean = sum(r * w for r, w in weighed) / sum(w for _, w in weighed)
            self.assertTrue(math.isclose(row["rtt"], mean, rel_tol=1e-9))
        else:
            self.assertIsNone(row["rtt"])
        last = [s["dscp_at_reflector"] for s in samples if "dscp_at_reflector" in s]
        self.assertEqual(row["dscp_at_reflector"], last[-1] if last else None)
        union = 0
        for sample in samples:
            union |= sample.get("suspect", 0)
        known = any("suspect" in sample for sample in samples)
        self.assertEqual(row["suspect"], union if known else None)


class LateTests(SynchronousTestCase):
    """Rows that are merged, against rows that are made at once."""

    @settings(max_examples=200)
    @given(
        st.lists(
            st.tuples(
                st.integers(1, 10),
                st.sampled_from("bcd"),
                st.booleans(),
                st.fixed_dictionaries(
                    {"sent": st.integers(1, 100), "lost": st.integers(0, 1), "rtt": st.integers(1, 9)},
                    optional={"suspect": st.integers(0, 2047), "rtt_max": st.integers(1, 9)},
                ),
                st.integers(0, 3),
            ),
            min_size=1,
            max_size=30,
            unique_by=lambda sample: sample[:2],
        ),
        st.booleans(),
        st.lists(st.lists(st.sampled_from([None, None, 0, 1, 2]), max_size=9), min_size=4, max_size=4),
        st.lists(st.sampled_from(["well", "killed before", "killed after"]), max_size=30),
    )  # fmt: skip
    def test_any_order(
        self, samples: list[Any], counts: bool, steps: list[Any], ends: list[str]
    ) -> None:
        """However late and often samples come, whatever is killed when, each is in its row once."""
        parts: list[list[Point]] = [[], [], [], []]
        for n, dst, twice, figures, part in samples:
            fields = {name: float(value) for name, value in figures.items()}
            if counts:
                fields["received"] = fields["sent"] - fields["lost"]
            else:
                fields = {"rtt": fields["rtt"], "loss": fields["lost"]}
            parts[part].append(point(START + n * 30_000, dst, **fields))
            if twice:
                parts[3].append(parts[part][-1])
        found = [
            self.rolled(parts, steps, ends),
            self.rolled([[p for part in parts for p in part]], [[]], []),
        ]
        for merged, whole in zip(*found, strict=True):
            self.assertEqual(merged[0], whole[0])
            for one, other in zip(merged[1:], whole[1:], strict=True):
                self.assertTrue(one == other or math.isclose(one, other, rel_tol=1e-9))

    def rolled(self, parts: list[list[Point]], steps: list[Any], ends: list[str]) -> list[Any]:
        """Return the five-minute rows after parts were written, long after they were due.

        ``steps`` says what comes after each: some upkeep (None), or an earlier part once more;
        ``ends`` how transactions end: a writer that is killed does again what it does not know as
        done.
        """
        self.patch(sqlite, "ROWS_AT_ONCE", 2)
        db = sqlite3.connect(":memory:")
        sqlite.prepare(db)
        cursor = db.cursor()
        writer = sqlite.make(reactor, {"path": "unused"})
        left = iter(ends)

        def do(name: str, argument: Any) -> bool:
            nonlocal writer
            while True:
                more: bool = getattr(writer, name)(cursor, argument)
                end = next(left, "well")
                (db.rollback if end == "killed before" else db.commit)()
                if end == "well":
                    return more
                writer = sqlite.make(reactor, {"path": "unused"})

        now = START + 3 * DAY_MS
        for n, (part, some) in enumerate(zip(parts, steps, strict=True)):
            do("_insert", part)
            for step in some:
                if step is not None:
                    do("_insert", parts[min(step, n)])
                elif not do("_roll_up", now):
                    do("_remove", now)
        while do("_roll_up", now):
            pass
        while do("_remove", now):
            pass
        self.assertEqual(db.execute("SELECT * FROM samples").fetchall(), [])
        rows = db.execute(
            "SELECT tags, sent, received, lost, loss, rtt, rtt_max, suspect, more"
            " FROM samples_5m JOIN series ON id = series_id ORDER BY tags"
        ).fetchall()
        db.close()
        return [(row[0], *(float(value or 0) for value in row[1:])) for row in rows]
