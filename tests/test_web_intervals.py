"""Collectors with long intervals are not silent between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from web_data import Fleet
from web_site import fill

from llama.interfaces import Point
from llama.web.answers import Answers, MatrixQuestion
from llama.web.metrics import METRICS
from llama.web.stores.sqlite import SQLiteStore

#: A time at which an interval of any length ends.
END_S = 1_750_003_200.0 // 3600 * 3600


class LongIntervalTest(TestCase):
    """A real store, looked at at any time of an interval."""

    def answers(self, points: Sequence[Point]) -> Answers:
        """Return what answers from a store with these points."""
        path = Path(self.mktemp())
        fill(path, points)
        store = SQLiteStore(reactor, path=str(path))
        self.addCleanup(store.stop)
        return Answers(reactor, store)

    async def silent(self, answers: Answers, at_s: float) -> tuple[list[str], int]:
        """Return who is silent and how many pairs are healthy."""
        question = MatrixQuestion(
            metric=METRICS["loss"],
            at_s=at_s,
            span_s=0.0,
            where={},
            group=[],
            rows="all",
            cols="all",
        )
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
