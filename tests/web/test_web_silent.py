"""A collector that fell silent is told so for days, and a series that is measured no more is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from web_data import Fleet
from web_sqlite import roll_up, write
from web_store_case import whole_matrix

from llama.interfaces import Point
from llama.scraper.writers import sqlite as writer
from llama.web import answers as answers_module
from llama.web.answers import Answers
from llama.web.store import StoreError, Window
from llama.web.stores import sqlite_activity
from llama.web.stores.sqlite import SQLiteStore

HOUR_S, DAY_S = 3600.0, 86400.0
END_S = 1_750_003_200.0
HOSTS = dict.fromkeys("abcd", ("x", "1"))


def points(interval_s: int, days: float, gone_s: float, back_s: float = 0.0) -> Iterator[Point]:
    """Yield some days of a fleet of which d fell silent ``gone_s`` before END_S."""
    fleet = Fleet(hosts=HOSTS, classes=("BE",), interval_s=interval_s)
    for point in fleet.points(END_S - days * DAY_S, END_S):
        ago_s = END_S - point.time_ns / 1e9
        if point.tags["src_hostname"] != "d" or not back_s <= ago_s < gone_s:
            yield point


class SilentTest(TestCase):
    """A real store."""

    async def filled(self, *some: Point, **options: Any) -> Answers:
        """Return what answers from a store with these points."""
        self.path = Path(self.mktemp())
        await write(self.path, some)
        self.store = SQLiteStore(reactor, path=str(self.path))
        self.addCleanup(self.store.stop)
        return Answers(reactor, self.store, **options)

    async def matrix(self, answers: Answers, at_s: float = END_S) -> Any:
        """Return a matrix of single hosts."""
        question = whole_matrix(at_s)
        return await answers.matrix(question)

    def told_silent(self, said: Any, since_s: float) -> None:
        """Check that d is silent since a time, and all the rest is well."""
        self.assertEqual(
            [(each["kind"], each["host"], each.get("since")) for each in said["sick"]],
            [("silent", "d", since_s)],
        )
        summary = said["summary"]
        self.assertEqual((summary["hosts_silent"], summary["pairs"]), (1, 12))
        self.assertEqual((summary["sick"], summary["healthy"], summary["missing"]), (3, 9, 0))

    async def test_for_hours(self) -> None:
        """Who has been silent for 59 minutes is as silent after 61, and after some hours."""
        for gone_s in (59 * 60.0, 61 * 60.0, 3 * HOUR_S + 120, 5 * HOUR_S):
            answers = await self.filled(*points(60, 6 / 24, gone_s))
            self.told_silent(await self.matrix(answers), END_S - gone_s)

    async def test_for_days(self) -> None:
        """It is remembered for as long as is configured, and then taken for removed."""
        answers = await self.filled(*points(900, 7.5, 6.5 * DAY_S))
        self.told_silent(await self.matrix(answers), END_S - 6.5 * DAY_S)
        roll_up(self.path, forget_before_s=END_S - 2 * DAY_S)
        self.told_silent(await self.matrix(Answers(reactor, self.store)), END_S - 6.5 * DAY_S)
        said = await self.matrix(Answers(reactor, self.store, 6 * DAY_S))
        self.assertEqual((said["sick"], said["summary"]["pairs"]), ([], 9))

    async def test_forgotten(self) -> None:
        """Who was removed, as the configuration says, is shown neither as source nor as destination."""
        gone = END_S - HOUR_S / 2
        fleet = Fleet(hosts=HOSTS, classes=("BE",), interval_s=60)
        answers = await self.filled(
            *(
                point
                for point in fleet.points(END_S - 2 * HOUR_S, END_S)
                if point.time_ns / 1e9 <= gone
                or "d" not in (point.tags["src_hostname"], point.tags["dst_hostname"])
            )
        )
        summary = (await self.matrix(answers))["summary"]
        self.assertEqual((summary["hosts_silent"], summary["missing"]), (1, 3))
        answers = Answers(reactor, self.store, forget=frozenset({"d"}))
        said = await self.matrix(answers)
        summary = said["summary"]
        self.assertEqual((said["sick"], summary["missing"], summary["pairs"]), ([], 0, 6))
        self.assertEqual(
            (summary["healthy"], summary["sources"], summary["destinations"]), (6, 3, 3)
        )
        before = (await self.matrix(answers, gone))["summary"]
        self.assertEqual((before["healthy"], before["sources"]), (12, 4))

    async def test_forgotten_at_once(self) -> None:
        """Who is to be forgotten goes as soon as it is silent, and is there while it measures."""
        for gone_s, there in ((0.0, True), (120.0, True), (200.0, False), (300.0, False),
                              (400.0, False)):  # fmt: skip
            answers = await self.filled(*points(60, 2 / 24, gone_s))
            said = await self.matrix(answers)
            silent = [each["host"] for each in said["sick"]]
            self.assertEqual(silent, [] if there else ["d"], gone_s)
            answers = Answers(reactor, self.store, forget=frozenset({"d"}))
            said = await self.matrix(answers)
            summary = said["summary"]
            # As a destination it is there in either case: the others measure to it.
            self.assertEqual((said["sick"], summary["missing"]), ([], 0), gone_s)
            self.assertEqual(
                (summary["sources"], summary["destinations"], summary["healthy"]),
                (4, 4, 12) if there else (3, 4, 9),
                gone_s,
            )

    async def test_forgotten_and_seldom(self) -> None:
        """One that is to be forgotten and measures seldom is there between two of its intervals."""
        often = Fleet(hosts=HOSTS, classes=("BE",), interval_s=60)
        rare = Fleet(hosts=HOSTS, classes=("BE",), interval_s=600)
        some = [
            point
            for fleet, sources in ((often, "abc"), (rare, "d"))
            for point in fleet.points(END_S - 2 * HOUR_S, END_S)
            if point.tags["src_hostname"] in sources
        ]
        await self.filled(*some)
        for at_s in (END_S - 60, END_S - 240):
            answers = Answers(reactor, self.store, forget=frozenset({"d"}))
            said = await self.matrix(answers, at_s)
            self.assertEqual((said["sick"], said["summary"]["healthy"]), ([], 12), at_s)

    async def test_as_noted(self) -> None:
        """The scraper's own notes of when each series was heard tell the same, exactly."""
        answers = await self.filled(*points(60, 12 / 24, 10 * HOUR_S + 60))
        scraper = writer.make(reactor, {"path": str(self.path), "raw": 10**10, "rollup": 10**10})
        await scraper.open()
        try:
            await scraper._keep_up()
        finally:
            await scraper.close()
        self.told_silent(await self.matrix(answers), END_S - 10 * HOUR_S - 60)

    async def test_looking_back(self) -> None:
        """Who was silent at some time in the past is so there, though it came back since."""
        answers = await self.filled(*points(60, 12 / 24, 10 * HOUR_S, 4 * HOUR_S))
        said = await self.matrix(answers)
        self.assertEqual((said["sick"], said["summary"]["healthy"]), ([], 12))
        said = await self.matrix(answers, END_S - 5 * HOUR_S)
        self.told_silent(said, END_S - 10 * HOUR_S)

    async def test_measured_no_more(self) -> None:
        """What a source that speaks has left out for an hour is no trouble, but counted."""
        fleet = Fleet(hosts=HOSTS, classes=("BE",), interval_s=60)
        left: list[Point] = []
        for point in fleet.points(END_S - 6 * HOUR_S, END_S):
            pair = point.tags["src_hostname"], point.tags["dst_hostname"]
            gone_s = {("a", "b"): 2 * HOUR_S, ("a", "c"): 1800.0}.get(pair, 0.0)
            if END_S - point.time_ns / 1e9 >= gone_s:
                left.append(point)
        said = await self.matrix(await self.filled(*left))
        summary = said["summary"]
        self.assertEqual((summary["pairs"], summary["missing"], summary["dropped"]), (11, 1, 1))

    async def test_unknown(self) -> None:
        """A store that cannot tell who fell silent long ago, or takes long, still has a matrix."""
        self.patch(answers_module, "REMEMBERED_WITHIN_S", 0.05)
        for gone_s, told in ((2 * HOUR_S, ["d"]), (5 * HOUR_S, [])):
            for never in (False, True):
                answers = await self.filled(*points(60, 6 / 24, gone_s))
                asked = []

                def remembered(*about: Any, never: bool = never, asked: Any = asked) -> Any:
                    asked.append(about)
                    return Deferred() if never else fail(StoreError("too much"))

                self.patch(self.store, "remembered", remembered)
                said = await self.matrix(answers)
                self.assertFalse(said["silent_known"])
                self.assertEqual([each["host"] for each in said["sick"]], told)
                self.assertEqual(said["summary"]["healthy"], 9)
                await self.matrix(answers, END_S + 61)
                self.assertEqual(len(asked), 1)

    async def test_known_later(self) -> None:
        """What takes long is known once it is there."""
        self.patch(answers_module, "REMEMBERED_WITHIN_S", 0.05)
        answers = await self.filled(*points(60, 12 / 24, 5 * HOUR_S))
        real, late = self.store.remembered, Deferred[None]()
        self.patch(
            self.store, "remembered", lambda *about: late.addCallback(lambda _: real(*about))
        )
        self.assertFalse((await self.matrix(answers))["silent_known"])
        late.callback(None)
        await deferLater(reactor, 0.2)
        said = await self.matrix(answers, END_S + 61)
        self.assertTrue(said["silent_known"])
        self.told_silent(said, END_S - 5 * HOUR_S)

    async def test_grown(self) -> None:
        """At a moment of the past nobody looks for series that came later, however many."""
        fleet = Fleet(hosts=dict.fromkeys("abcdefgh", ("x", "1")), classes=("BE",), interval_s=60)
        some = list(points(60, 12 / 24, 4 * HOUR_S))
        some += fleet.points(END_S - 1800, END_S)
        answers = await self.filled(*some)
        self.patch(sqlite_activity, "MOST_LOOKED_AT", 3000)
        at_s = END_S - HOUR_S
        window = Window(at_s - DAY_S, at_s)
        found = await self.store.remembered(window, frozenset("abc"))
        self.assertEqual((len(found.series), found.complete), (3, True))
        self.told_silent(await self.matrix(answers, at_s), END_S - 4 * HOUR_S)

    async def test_outage(self) -> None:
        """All that an outage silenced is found at its beginning."""
        some = [p for p in points(60, 6 / 24, 0) if not 1800 < END_S - p.time_ns / 1e9 < 3 * HOUR_S]
        await self.filled(*some)
        roll_up(self.path)
        self.patch(sqlite_activity, "MOST_LOOKED_AT", 100)
        window = Window(END_S - DAY_S, END_S - HOUR_S)
        found = await self.store.remembered(window, frozenset())
        self.assertEqual((len(found.series), found.complete), (12, True))
        self.assertEqual(set(found.last_s.tolist()), {END_S - 3 * HOUR_S})

    async def test_bounded(self) -> None:
        """What cannot be found in reasonable time is given up, and that is said."""
        some = [
            point
            for point in points(60, 6 / 24, 0)
            if point.tags["src_hostname"] != "a" or not 0 < END_S - point.time_ns / 1e9 < 4 * HOUR_S
        ]
        await self.filled(*some)
        window = Window(END_S - DAY_S, END_S - HOUR_S)
        for most, told in ((10**6, (3, True)), (100, (0, False))):
            self.patch(sqlite_activity, "MOST_LOOKED_AT", most)
            found = await self.store.remembered(window, frozenset("bcd"))
            self.assertEqual((len(found.series), found.complete), told)

    async def test_last_words(self) -> None:
        """Of a source that fell silent only what it measured at last is remembered."""
        left = [
            point
            for point in points(60, 12 / 24, 5 * HOUR_S)
            if (point.tags["src_hostname"], point.tags["dst_hostname"]) != ("d", "a")
            or END_S - point.time_ns / 1e9 >= 8 * HOUR_S
        ]
        said = await self.matrix(await self.filled(*left))
        self.assertEqual([each["host"] for each in said["sick"]], ["d"])
        self.assertEqual(said["summary"]["pairs"], 11)
