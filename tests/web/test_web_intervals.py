"""Collectors with long intervals are not silent between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from web_data import Fault, Fleet
from web_site import fill
from web_sqlite import roll_up
from web_store_case import whole_matrix

from llama.interfaces import Point
from llama.web.answers import Answers
from llama.web.store import Activity, Window
from llama.web.stores import sqlite_reader
from llama.web.stores.sqlite import SQLiteStore

#: A time at which an interval of any length ends.
END_S = 1_750_003_200.0 // 3600 * 3600


def fleet_with_gap(fleet: Fleet) -> Fleet:
    """Return a fleet of which c said nothing for forty minutes, some time ago."""
    gap = Fault(kind="silent", src="c", start_s=END_S - 6000, end_s=END_S - 3600)
    return evolve(fleet, faults=(gap,))


class LongIntervalTest(TestCase):
    """A real store, looked at at any time of an interval."""

    def answers(self, points: Sequence[Point]) -> Answers:
        """Return what answers from a store with these points."""
        self.path = Path(self.mktemp())
        fill(self.path, points)
        store = SQLiteStore(reactor, path=str(self.path))
        self.addCleanup(store.stop)
        return Answers(reactor, store)

    def clock(self, answers: Answers, now_s: float) -> Clock:
        """Return what tells the answers the time of day from now on."""
        clock = Clock()
        clock.advance(now_s)
        self.patch(answers, "now_s", clock.seconds)
        for shared in (answers._snapshots, answers._meshes, answers._others):
            self.patch(shared, "_clock", clock)
        return clock

    async def silent(self, answers: Answers, at_s: float | None) -> tuple[list[str], int]:
        """Return who is silent and how many pairs are healthy."""
        question = whole_matrix(at_s)
        said: Any = await answers.matrix(question)
        return [each["host"] for each in said["sick"]], said["summary"]["healthy"]

    def fleet(self, names: str, interval_s: int) -> Fleet:
        """Return a fleet of these hosts."""
        hosts = dict.fromkeys(names, ("x", "1"))
        return Fleet(hosts=hosts, classes=("BE",), interval_s=interval_s)

    async def test_between(self) -> None:
        """With every legal interval all are well until the next sample must have come."""
        for interval_s in (30, 120, 300, 900, 3600):
            fleet = self.fleet("abc", interval_s)
            answers = self.answers(list(fleet.points(END_S - 4 * interval_s, END_S)))
            for late_s in (5, interval_s // 2, interval_s + 20, 2 * interval_s):
                self.assertEqual(
                    await self.silent(answers, END_S + late_s), ([], 6), (interval_s, late_s)
                )
            late_s = 6 * interval_s
            self.assertEqual(await self.silent(answers, END_S + late_s), (list("abc"), 0))

    async def test_looked_up(self) -> None:
        """One slow collector does not make every look at the mesh a look at hours of it."""
        slow, fast = self.fleet("ab", 3600), self.fleet("cdef", 30)
        points = list(slow.points(END_S - 3 * 3600, END_S))
        points += fleet_with_gap(fast).points(END_S - 3 * 3600, END_S + 3000)
        answers = self.answers(points)
        asked: list[tuple[str, float, int]] = []
        real = answers.store.latest, answers.store.latest_of

        def latest(window: Window, columns: Sequence[str]) -> Any:
            asked.append(("latest", window.length_s, 0))
            return real[0](window, columns)

        def latest_of(window: Window, columns: Sequence[str], some: Activity) -> Any:
            asked.append(("latest_of", window.length_s, len(some.series)))
            return real[1](window, columns, some)

        self.patch(answers.store, "latest", latest)
        self.patch(answers.store, "latest_of", latest_of)
        clock = self.clock(answers, END_S + 3000)
        for wait_s in (10, 2, 28, 30):
            clock.advance(wait_s)
            self.assertEqual(await self.silent(answers, None), ([], 14))
        self.assertEqual({each for each in asked if each[0] == "latest"}, {("latest", 165.0, 0)})
        # Again only when something new is due.
        self.assertEqual(
            [each for each in asked if each[0] != "latest"], [("latest_of", 9090.0, 2)]
        )
        clock.advance(630)
        await self.silent(answers, None)
        self.assertEqual(len([each for each in asked if each[0] != "latest"]), 2)

    async def test_history(self) -> None:
        """A pair's history tells how often the pair speaks, whatever is usual."""
        slow, fast = self.fleet("ab", 900), self.fleet("cdef", 30)
        points = [*slow.points(END_S - 3600, END_S), *fast.points(END_S - 3600, END_S)]
        answers = self.answers(points)
        window = Window(END_S - 3600, END_S)
        for src, dst, interval_s in (("a", "b", 900.0), ("c", "d", 30.0)):
            said = await answers.history(window, None, src, dst, {})
            self.assertEqual(said["interval_s"], interval_s)
            self.assertEqual([each["interval_s"] for each in said["series"]], [interval_s])

    async def test_slow_goes_silent(self) -> None:
        """A slow source beside fast ones is silent once its third sample is missing."""
        slow, fast = self.fleet("ab", 900), self.fleet("cdef", 30)
        points = list(slow.points(END_S - 7200, END_S))
        points += fast.points(END_S - 7200, END_S + 3000)
        answers = self.answers(points)
        for late_s, told in ((2200, ([], 14)), (2500, (["a", "b"], 12))):
            self.assertEqual(await self.silent(answers, END_S + late_s), told)

    async def test_rolled(self) -> None:
        """Who spoke early in five minutes was not heard at their end."""
        fleet = self.fleet("abcd", 60)
        end_s = END_S + 3600
        points = [
            point
            for point in fleet.points(END_S, end_s)
            if point.tags["src_hostname"] != "d" or point.time_ns / 1e9 <= end_s - 240
        ]
        answers = self.answers(points)
        self.patch(sqlite_reader, "MANY_ROWS", 10)
        roll_up(self.path, note=True)
        self.assertEqual(await self.silent(answers, end_s + 15), (["d"], 9))
        roll_up(self.path, forget_before_s=end_s - 30)
        found = await answers.store.latest(Window(end_s - 330, end_s), ("sent",))
        for tags, time_s in zip(found.series, found.time_s.tolist(), strict=True):
            self.assertEqual(time_s, end_s - (240 if tags["src_hostname"] == "d" else 0))

    async def test_first_sample(self) -> None:
        """After a single sample nobody knows how often there will be one."""
        fleet = self.fleet("abc", 3600)
        answers = self.answers(list(fleet.points(END_S - 3600, END_S)))
        self.assertEqual(await self.silent(answers, END_S + 3000), ([], 6))

    async def test_beside_fast(self) -> None:
        """A slow source beside fast ones is as well as they, and the fast are judged as such."""
        slow, fast = self.fleet("ab", 3600), self.fleet("cdef", 30)
        points = list(slow.points(END_S - 7200, END_S))
        points += fast.points(END_S - 7200, END_S + 3000)
        answers = self.answers(points)
        self.assertEqual(await self.silent(answers, END_S + 3010), ([], 14))
        gone = [
            p for p in points if p.tags["src_hostname"] != "c" or p.time_ns / 1e9 < END_S + 2800
        ]
        answers = self.answers(gone)
        self.assertEqual(await self.silent(answers, END_S + 3010), (["c"], 11))
