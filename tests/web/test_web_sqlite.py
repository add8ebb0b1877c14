"""The embedded store, filled by the scraper's own writer."""

from __future__ import annotations

import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from scraper_case import until
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from web_data import Fleet
from web_memory import MemoryStore
from web_sqlite import roll_up, write
from web_store_case import COLUMNS, END_S, SLOW, RealStoreCase, fleet_points, whole_matrix

from llama.interfaces import Point
from llama.scraper.writers import sqlite as writer
from llama.web.answers import Answers
from llama.web.store import Snapshot, StoreError, StoreTimeoutError, TooMuchError, Window
from llama.web.stores import sqlite, sqlite_questions, sqlite_reader
from llama.web.stores.sqlite import SQLiteStore

_directory = tempfile.TemporaryDirectory(prefix="llama-test-")


class SQLiteTest(RealStoreCase, TestCase):
    """Raw samples, as they are on a small mesh."""

    async def fill(self, points: Sequence[Point]) -> Path:
        """See `RealStoreCase`."""
        path = Path(_directory.name, "raw.sqlite")
        await write(path, points)
        return path

    def open(self, filled: Path) -> SQLiteStore:
        """See `RealStoreCase`."""
        return SQLiteStore(reactor, path=str(filled))


class BigSQLiteTest(RealStoreCase, TestCase):
    """The same with five-minute rows wherever they serve, as on a mesh that is large."""

    columns = tuple(name for name in COLUMNS if name != "rtt")  # there it is a mean

    async def fill(self, points: Sequence[Point]) -> Path:
        """See `RealStoreCase`."""
        path = Path(_directory.name, "big.sqlite")
        await write(path, points)
        roll_up(path)
        return path

    def open(self, filled: Path) -> SQLiteStore:
        """See `RealStoreCase`."""
        self.patch(sqlite_reader, "MANY_ROWS", 2000)
        return SQLiteStore(reactor, path=str(filled))

    async def test_resolution(self) -> None:
        """Of very many series a timeline has steps of five minutes, and an answer says so."""
        self.assertEqual(await self.store.timeline_step_s(self.end_s - 3600), 0.0)
        self.patch(sqlite_questions, "COARSE_SERIES", 100)
        self.assertEqual(await self.store.timeline_step_s(self.end_s - 3600), 300.0)
        window = Window(self.end_s - 900, self.end_s)
        for asked, told in ((None, 300.0), (30.0, 300.0), (600.0, 600.0)):
            said = await Answers(reactor, self.store).timeline(window, asked, {})
            self.assertEqual(said["step_s"], told)
            self.assertTrue(all(said["series"]), said)

    async def test_single_moments(self) -> None:
        """However many series there are, a moment and a pair are known by the interval."""
        self.patch(sqlite_questions, "COARSE_SERIES", 100)
        self.assertEqual(await self.store.resolution_s(self.end_s - 3600), 0.0)
        answers = Answers(reactor, self.store)
        at_s = self.end_s - 130  # not the end of any row
        said = await answers.matrix(whole_matrix(at_s))
        self.assertEqual((said["at"], said["span_s"]), (at_s, 0.0))
        self.assertIn(("silent", "fra2"), [(each["kind"], each["host"]) for each in said["sick"]])
        window = Window(self.end_s - 600, self.end_s)
        told = await answers.history(window, None, "lax1", "iad2", {})
        self.assertEqual((told["step_s"], len(told["time"])), (30.0, 20))

    async def test_baseline(self) -> None:
        """Of many moments an even choice tells the usual RTT near enough.

        Which of those it meets that spoke a few times, half a day ago, depends on the hour.
        """
        window = Window(self.end_s - 86400, self.end_s)
        self.patch(sqlite_questions, "BASELINE_ROWS", 2000)
        self.relative = 0.02
        got = await self.store.baseline(window)
        wanted = await self.memory.baseline(window)
        names = {f"{name}{interval_s}" for name in "ab" for interval_s in SLOW}
        all_day = [
            Snapshot([each.series[n] for n in rows], each.time_s[rows],
                     {"rtt_p50": each.column("rtt_p50")[rows]})
            for each in (got, wanted)
            for rows in [[n for n, tags in enumerate(each.series)
                          if tags["src_hostname"] not in names]]
        ]  # fmt: skip
        self.same_snapshots(*all_day, ["rtt_p50"])

    async def test_matrix(self) -> None:
        """What needs no baseline does not differ at all."""
        window = Window(self.end_s - 3600, self.end_s)
        got = await self.store.total(window, self.columns)
        wanted = await self.memory.total(window, self.columns)
        self.same_snapshots(got, wanted, self.columns)


class CrowdedSQLiteTest(TestCase):
    """A file to which one collector wrote a series for every point."""

    async def test_more_series_than_there_is_room_for(self) -> None:
        """The history of such a pair is refused: it would take room for all steps of each."""
        path = Path(self.mktemp())
        pair = {"src_hostname": "a", "dst_hostname": "b"}
        await write(
            path,
            [
                Point("raw_stats", {**pair, "n": str(n)}, {"sent": 1.0}, int(END_S * 1e9))
                for n in range(1000)
            ],
        )
        store = SQLiteStore(reactor, path=str(path))
        self.addCleanup(store.stop)
        window = Window(END_S - 300, END_S)
        with self.assertRaisesRegex(TooMuchError, "1,000 series and 300 steps are too many"):
            await store.history(window, 1.0, COLUMNS, pair)
        found = await store.history(window, 10.0, COLUMNS, pair)
        self.assertEqual(found.columns["sent"].shape, (1000, 30))

    async def test_more_series_than_spoke(self) -> None:
        """Those of days ago take no room, and no history of today is refused for them."""
        path = Path(self.mktemp())
        pair = {"src_hostname": "a", "dst_hostname": "b"}
        times = [END_S - 5 * 86400] * 1000 + [END_S] * 2
        await write(
            path,
            [
                Point("raw_stats", {**pair, "n": str(n)}, {"sent": 1.0}, int(time_s * 1e9))
                for n, time_s in enumerate(times)
            ],
        )
        store = SQLiteStore(reactor, path=str(path))
        self.addCleanup(store.stop)
        found = await store.history(Window(END_S - 300, END_S), 1.0, COLUMNS, pair)
        self.assertEqual([tags["n"] for tags in found.series], ["1000", "1001"])
        self.assertEqual(found.columns["sent"][:, -1].tolist(), [1.0, 1.0])


class OldSQLiteTest(TestCase):
    """A file whose older raw samples are gone."""

    async def setUp(self) -> None:
        """Fill a file and forget all raw samples but those of the last half hour."""
        self.path = Path(self.mktemp())
        self.fleet, self.points = fleet_points(hours=1)
        await write(self.path, self.points)
        roll_up(self.path, forget_before_s=END_S - 1830)
        self.store = SQLiteStore(reactor, path=str(self.path))
        self.addCleanup(self.store.stop)
        self.memory = MemoryStore(self.points)

    async def test_resolution(self) -> None:
        """It says from when on five minutes are the shortest step."""
        self.assertEqual(await self.store.resolution_s(END_S - 1500), 0.0)
        self.assertEqual(await self.store.resolution_s(END_S - 1900), 300.0)

    async def test_short_steps(self) -> None:
        """Steps too short for what is left are answered in longer ones, none of them empty."""
        window = Window(END_S - 3600, END_S)
        answers = Answers(reactor, self.store)
        said = await answers.timeline(window, 30.0, {})
        self.assertEqual((said["step_s"], len(said["series"])), (300.0, 12))
        self.assertTrue(all(said["series"]))
        said = await answers.history(window, 30.0, "lax1", "iad2", {})
        self.assertEqual((said["step_s"], len(said["time"])), (300.0, 12))

    async def test_history(self) -> None:
        """History goes on past the raw samples, and sums are the same."""
        where = {"src_hostname": "lax1", "dst_hostname": "iad2", "class": "EF"}
        window = Window(END_S - 3600, END_S)
        got = await self.store.history(window, 300.0, COLUMNS, where)
        wanted = await self.memory.history(window, 300.0, COLUMNS, where)
        for name in ("sent", "lost", "rtt_p99", "rtt_min"):
            self.assertEqual(got.columns[name].tolist(), wanted.columns[name].tolist(), name)

    async def test_old_moment(self) -> None:
        """A moment without raw samples is known by its five-minute row."""
        got = await self.store.total(Window(END_S - 2700, END_S - 2400), COLUMNS)
        wanted = await self.memory.total(Window(END_S - 2700, END_S - 2400), COLUMNS)
        self.assertEqual(sum(got.column("lost")), sum(wanted.column("lost")))

    async def test_newest_row(self) -> None:
        """A moment in a row that is not yet over goes no further than the newest data."""
        db = sqlite3.connect(self.path)
        with db:
            db.execute("DELETE FROM samples WHERE time_ms > ?", ((END_S - 720) * 1000,))
            db.execute(
                "UPDATE facts SET value = ? WHERE name = 'removed_to_ms'", (int(END_S) * 1000,)
            )
        db.close()
        answers = Answers(reactor, self.store)
        for at_s, told_s in (
            (END_S - 830, END_S - 720),
            (END_S - 690, END_S - 690),
            (END_S - 1990, END_S - 1800),
        ):
            said = await answers.matrix(whole_matrix(at_s))
            self.assertEqual((said["at"], said["span_s"]), (told_s, 300.0))

    async def test_silent_since(self) -> None:
        """A series that fell silent is known to the second, though it stands in a longer row."""
        activity = await self.store.activity(Window(END_S - 3600, END_S))
        silent = [
            last
            for tags, last in zip(activity.series, activity.last_s.tolist(), strict=True)
            if tags["src_hostname"] == "lax3" and tags["dst_hostname"] == "iad1"
        ]
        self.assertEqual(silent, [END_S - 600] * 2)


class RemovedSeriesTest(TestCase):
    """Series that the scraper removed with their last rows."""

    async def test_forgotten(self) -> None:
        """They are known no more, while new ones are; nobody has another's tags."""
        path = Path(self.mktemp())
        old = Fleet(hosts={"a": ("x", "1"), "b": ("y", "2")})
        await write(path, list(old.points(END_S - 600, END_S - 300)))
        store = SQLiteStore(reactor, path=str(path))
        self.addCleanup(store.stop)
        self.assertEqual(len((await store.activity(Window(END_S - 3600, END_S))).series), 4)
        scraper = writer.make(reactor, {"path": str(path), "raw": 600, "rollup": 600})
        await scraper.open()
        try:
            scraper._measured_ms = lambda: int(time.time() * 1000)  # as if others were there
            await scraper._keep_up()
            new = Fleet(hosts={"c": ("x", "1"), "d": ("y", "2")})
            await scraper.write(list(new.points(END_S - 60, END_S)))
        finally:
            await scraper.close()
        activity = await store.activity(Window(END_S - 3600, END_S))
        self.assertEqual({tags["src_hostname"] for tags in activity.series}, {"c", "d"})
        known = store._series._tags.values()
        self.assertEqual(sorted({tags["src_hostname"] for tags in known}), ["b", "c", "d"])


class SQLiteFileTest(TestCase):
    """Files that are not what they should be."""

    def store(self, path: Path | str, **options: float) -> SQLiteStore:
        """Return a store that is stopped in the end."""
        store = SQLiteStore(reactor, path=str(path), **options)  # type: ignore[arg-type]
        self.addCleanup(store.stop)
        return store

    async def test_missing(self) -> None:
        """A file that is not there is said in one line, and not made."""
        path = self.mktemp()
        store = self.store(path)
        error = await self.assertFailure(store.newest(), StoreError)
        self.assertIn(f"{path}: No such file or directory; is this where", str(error))
        self.assertFalse(Path(path).exists())

    async def test_appears(self) -> None:
        """Once the scraper has made the file, it is read without a restart."""
        path = Path(self.mktemp())
        store = self.store(path)
        await self.assertFailure(store.newest(), StoreError)
        _, points = fleet_points(hours=0.1)
        await write(path, points)
        self.assertEqual(await store.newest(), END_S)

    async def test_replaced(self) -> None:
        """A file that takes another's place is read anew, series and all."""
        path, other = Path(self.mktemp()), Path(self.mktemp())
        store = self.store(path)
        _, points = fleet_points(hours=0.1)
        await write(path, points)
        self.assertEqual(await store.newest(), END_S)
        fleet = Fleet(hosts={"a": ("x", "1"), "b": ("y", "2")})
        await write(other, list(fleet.points(END_S, END_S + 60)))
        other.rename(path)
        Path(f"{path}-wal").unlink(missing_ok=True)
        self.assertEqual(await store.newest(), END_S + 60)
        activity = await store.activity(Window(END_S, END_S + 60))
        self.assertEqual({tags["src_hostname"] for tags in activity.series}, {"a", "b"})

    async def test_let_go_beside_a_slow_disk(self) -> None:
        """Neither another file nor stopping waits in the reactor for what a thread is still at."""
        path, other = Path(self.mktemp()), Path(self.mktemp())
        for file in (path, other):
            await write(file, fleet_points(hours=0.1)[1])
        go_on, busy = threading.Event(), []
        self.addCleanup(go_on.set)

        def slow(reader: sqlite_reader.Reader, now_s: float) -> float:
            busy.append(threading.get_ident())
            go_on.wait(5)
            return now_s

        self.patch(sqlite_questions, "newest", slow)
        store = SQLiteStore(reactor, path=str(path))
        asked = [store.newest(), store.newest()]
        await until(lambda: len(busy) == 2, "two threads at work")
        other.rename(path)
        asked.append(store.newest())
        await until(lambda: len(busy) == 3, "a third one, of the file that is there now")
        stopped = store.stop()
        await deferLater(reactor, 0.1)
        self.assertEqual([one.called for one in (*asked, stopped)], [False] * 4)
        go_on.set()
        await stopped
        await gatherResults(asked)
        threads = {thread.ident for thread in threading.enumerate()}
        self.assertFalse(threads & set(busy))

    async def test_foreign(self) -> None:
        """Another program's database, or none at all, is refused by name."""
        path = Path(self.mktemp())
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE samples (x)")
        db.close()
        error = await self.assertFailure(self.store(path).newest(), StoreError)
        self.assertIn("is no LLAMA store", str(error))
        path.write_bytes(b"not a database, but long enough to look at" * 100)
        error = await self.assertFailure(self.store(path).newest(), StoreError)
        self.assertIn("file is not a database", str(error))

    async def test_not_ours_to_read(self) -> None:
        """What cannot be opened is told with what it takes."""
        path = Path(self.mktemp())
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))  # which not even root can open as a file
        error = await self.assertFailure(self.store(path).newest(), StoreError)
        self.assertIn("the user of llama-web must be able to read it", str(error))

    async def test_empty(self) -> None:
        """A store without a single sample has no newest one, and empty answers."""
        path = Path(self.mktemp())
        await write(path, [Point("collector_stats", {"a": "b"}, {"x": 1.0}, 10**18)])
        store = self.store(path)
        window = Window(END_S - 3600, END_S)
        self.assertIsNone(await store.newest())
        self.assertEqual(list((await store.activity(window)).series), [])
        self.assertEqual(list((await store.latest(window, COLUMNS)).series), [])
        self.assertEqual(list((await store.baseline(window)).series), [])
        self.assertEqual(list((await store.history(window, 60.0, COLUMNS, {"a": "b"})).series), [])
        self.assertEqual(sum((await store.timeline(window, 60.0, {})).series), 0)

    async def test_too_slow(self) -> None:
        """A question that takes too long is broken off."""
        path = Path(self.mktemp())
        _, points = fleet_points(hours=0.5)
        await write(path, points)
        store = self.store(path, timeout_s=0.0)
        self.patch(sqlite, "_STEPS", 1)
        window = Window(END_S - 3600, END_S)
        error = await self.assertFailure(store.total(window, COLUMNS), StoreTimeoutError)
        self.assertIn("no answer within 0 s", str(error))

    async def test_given_up(self) -> None:
        """A question that is cancelled is broken off, or never asked, and the next has its turn."""
        path = Path(self.mktemp())
        await write(path, fleet_points(hours=0.1)[1])
        begun: list[str] = []
        ended: list[Exception] = []

        def endless(reader: sqlite_reader.Reader, now_s: float) -> None:
            begun.append("endless")
            try:
                reader.one("WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT 1 FROM n)"
                           " SELECT count(*) FROM n")  # fmt: skip
            except sqlite3.OperationalError as error:
                ended.append(error)
                raise

        self.patch(sqlite_questions, "newest", endless)
        store = self.store(path, threads=1)
        asked = [store.newest() for _ in range(9)]
        next_one = store.resolution_s(END_S)
        await until(lambda: bool(begun), "a thread at work")
        for each in asked:
            each.cancel()
            self.assertFailure(each, CancelledError)
        self.assertEqual(await next_one, 0.0)
        self.assertEqual((len(begun), len(ended)), (1, 1))
