"""One collector with a wrong clock says nothing wrong about the others."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from web_data import Fleet
from web_sqlite import roll_up, write
from web_store_case import END_S, whole_matrix

from llama.interfaces import Point
from llama.web.answers import Answers
from llama.web.store import Window
from llama.web.stores import sqlite_reader
from llama.web.stores.sqlite import SQLiteStore

HOSTS = dict.fromkeys(("a", "b", "c", "d"), ("x", "1"))


def skewed(fleet: Fleet, since_s: float, ahead_s: Mapping[str, float]) -> Iterator[Point]:
    """Yield a fleet's points as collectors date them whose clocks are ahead."""
    for point in fleet.points(since_s, END_S):
        ahead_ns = int(ahead_s.get(point.tags["src_hostname"], 0.0) * 1e9)
        yield evolve(point, time_ns=point.time_ns + ahead_ns)


class WrongClockTest(TestCase):
    """A real store; END_S is the end of the newest interval of those whose clocks are right."""

    async def open(self, *points: Point) -> SQLiteStore:
        """Return a store with these points."""
        self.path = Path(self.mktemp())
        await write(self.path, points)
        store = SQLiteStore(reactor, path=str(self.path))
        self.addCleanup(store.stop)
        return store

    async def matrix(self, store: SQLiteStore, at_s: float) -> Any:
        """Return a matrix."""
        question = whole_matrix(at_s)
        return await Answers(reactor, store).matrix(question)

    async def test_ahead(self) -> None:
        """A clock that is ahead, by less or more than the others' samples are late, harms none."""
        fleet = Fleet(hosts=HOSTS, classes=("BE",), interval_s=10)
        for ahead_s in (25.0, 90.0, 3600.0):
            store = await self.open(*skewed(fleet, END_S - 4500, {"d": ahead_s}))
            for late_s in (12.0, 29.0):  # ten seconds an interval, and a scrape every thirty
                said = await self.matrix(store, END_S + late_s)
                self.assertEqual(said["summary"]["healthy"], 12, (ahead_s, late_s))
                self.assertEqual(said["sick"], [], (ahead_s, late_s))
                self.assertLessEqual(said["newest"], END_S + late_s)

    async def test_silent_beside_ahead(self) -> None:
        """Who falls silent is seen to, whatever another's clock says."""
        fleet = Fleet(hosts=HOSTS, classes=("BE",), interval_s=10)
        points = skewed(fleet, END_S - 1800, {"d": 90.0})
        store = await self.open(
            *(p for p in points if p.tags["src_hostname"] != "a" or p.time_ns < (END_S - 60) * 1e9)
        )
        said = await self.matrix(store, END_S + 12)
        self.assertEqual([each["host"] for each in said["sick"]], ["a"])

    async def test_newest(self) -> None:
        """A sample of next year is not the newest."""
        fleet = Fleet(hosts=HOSTS)
        points = list(fleet.points(END_S - 300, END_S))
        store = await self.open(*points, evolve(points[0], time_ns=points[0].time_ns + 3 * 10**16))
        self.assertEqual(await store.newest(), END_S)

    async def test_behind(self) -> None:
        """A sample of years ago takes no five-minute row out of the history."""
        fleet = Fleet(hosts=HOSTS, classes=("BE",), interval_s=300)
        points = list(fleet.points(END_S - 36000, END_S))
        store = await self.open(*points)
        roll_up(self.path, forget_before_s=END_S - 7200)
        self.patch(sqlite_reader, "MANY_ROWS", 10)
        window = Window(END_S - 36000, END_S)
        before = await store.timeline(window, 300.0, {})
        self.assertEqual(set(before.series.tolist()), {12.0})
        for years_ns in (3 * 10**17, (36000 - 900) * 10**9):
            await write(self.path, [evolve(points[0], time_ns=points[0].time_ns - years_ns)])
            after = await store.timeline(window, 300.0, {})
            self.assertEqual(after.series.tolist(), before.series.tolist(), years_ns)
            self.assertEqual(await store.resolution_s(END_S - 36000), 300.0)

    async def test_late_samples_count(self) -> None:
        """A row that was made before the last samples of its time came is not yet taken."""
        fleet = Fleet(hosts=HOSTS, classes=("BE",))
        points = list(fleet.points(END_S - 3600, END_S))
        late = [point for point in points if point.time_ns == END_S * 10**9]
        store = await self.open(*(point for point in points if point not in late))
        roll_up(self.path)
        await write(self.path, late)
        self.patch(sqlite_reader, "MANY_ROWS", 10)
        found = await store.timeline(Window(END_S - 3600, END_S), 300.0, {})
        total = await store.total(Window(END_S - 3600, END_S), ("sent",))
        self.assertEqual(set(found.series.tolist()), {12.0})
        self.assertEqual(sum(total.column("sent")), 12 * 120 * fleet.probes)

    async def test_removed(self) -> None:
        """From when on raw samples are all there is what the scraper says, not the oldest row."""
        fleet = Fleet(hosts=HOSTS, classes=("BE",))
        store = await self.open(*fleet.points(END_S - 3600, END_S))
        self.assertEqual(await store.resolution_s(END_S - 3600), 0.0)
        db = sqlite3.connect(self.path)
        with db:
            db.execute("INSERT INTO facts VALUES ('removed_to_ms', ?)", (int(END_S - 1800) * 1000,))
        db.close()
        self.assertEqual(await store.resolution_s(END_S - 3600), 300.0)
        self.assertEqual(await store.resolution_s(END_S - 1500), 0.0)
