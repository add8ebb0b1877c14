"""What every store must answer about the same fleet, judged by the `MemoryStore`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from web_data import NASTY_HOST, Fleet, standard_fleet
from web_memory import MemoryStore

from llama.interfaces import Point
from llama.web.answers import Answers, MatrixQuestion
from llama.web.metrics import METRICS
from llama.web.store import History, Snapshot, Store, Tags, Window, series_key

#: The end of the fleet's history: some minutes ago, since databases look back from now.
END_S = time.time() // 600 * 600 - 600
HOURS = 2

#: Intervals of some further hosts, and how long before END_S they spoke last.
SLOW, AGO_S = (300, 3600), 12 * 3600

COLUMNS = (
    "sent", "received", "lost", "lost_forward", "lost_reverse", "lost_unknown", "remarked_forward",
    "rtt", "rtt_min", "rtt_p50", "rtt_p99", "rtt_max", "jitter", "flows", "flows_lossy", "suspect",
)  # fmt: skip


def fleet_points(end_s: float = END_S, hours: float = HOURS) -> tuple[Fleet, list[Point]]:
    """Return the standard fleet and all its points, with some that are no pair's among them."""
    fleet = standard_fleet(end_s)
    points = []
    for interval_s in SLOW:  # long before, so that nobody else sees them
        slow = Fleet(
            hosts={f"{name}{interval_s}": ("x", "1") for name in "ab"}, interval_s=interval_s
        )
        points += slow.points(end_s - AGO_S - 3 * 3600, end_s - AGO_S)
    points.sort(key=lambda point: point.time_ns)
    points += fleet.points(end_s - hours * 3600, end_s)
    points.append(Point("collector_stats", {"src_hostname": "iad1"}, {"ticks": 1.0, "sent": 9e9},
                        int(end_s) * 10**9))  # fmt: skip
    return fleet, points


def whole_matrix(at_s: float | None, metric: str = "loss", span_s: float = 0.0) -> MatrixQuestion:
    """Return what asks for a figure between all single hosts, at a moment or over a span before."""
    return MatrixQuestion(
        metric=METRICS[metric], at_s=at_s, span_s=span_s, where={}, group=[], rows="all", cols="all"
    )


def by_series(snapshot: Snapshot, name: str) -> dict[Any, float]:
    """Return a column by series."""
    return {
        series_key(tags): value
        for tags, value in zip(snapshot.series, snapshot.column(name).tolist(), strict=True)
    }


class StoreCase:
    """The tests; a subclass is a `TestCase` that gives ``points`` and ``store``."""

    points: Sequence[Point]
    store: Store
    end_s = END_S
    relative = 1e-9  # how far figures may be off
    columns: Sequence[str] = COLUMNS
    _memory: MemoryStore | None = None

    def same(self: Any, got: float, wanted: float, what: object) -> None:
        """Compare two figures; NaN is NaN."""
        near = math.isclose(got, wanted, rel_tol=self.relative, abs_tol=1e-9)
        if not (near or (math.isnan(got) and math.isnan(wanted))):
            self.fail(f"{what}: got {got}, wanted {wanted}")

    def same_snapshots(self: Any, got: Snapshot, wanted: Snapshot, columns: Sequence[str]) -> None:
        """Compare two snapshots, whatever the order of their series."""
        self.assertEqual(
            sorted(map(series_key, got.series)), sorted(map(series_key, wanted.series))
        )
        for name in columns:
            right = by_series(wanted, name)
            for key, value in by_series(got, name).items():
                self.same(value, right[key], (name, key))

    def same_histories(self: Any, got: History, wanted: History, columns: Sequence[str]) -> None:
        """Compare two histories, whatever the order of their series."""
        self.assertEqual(got.time_s.tolist(), wanted.time_s.tolist())
        place = {series_key(tags): n for n, tags in enumerate(wanted.series)}
        self.assertEqual(sorted(map(series_key, got.series)), sorted(place))
        for n, tags in enumerate(got.series):
            for name in columns:
                right = wanted.columns[name][place[series_key(tags)]]
                for step, value in enumerate(got.columns[name][n].tolist()):
                    self.same(value, right[step], (name, step, got.time_s[step]))

    @property
    def memory(self) -> MemoryStore:
        """The judge."""
        cls = type(self)
        if cls._memory is None:
            cls._memory = MemoryStore(self.points)
        return cls._memory

    async def test_newest(self: Any) -> None:
        """The newest sample is that of a pair, not one of a collector about itself."""
        self.assertEqual(await self.store.newest(), await self.memory.newest())

    async def test_activity(self: Any) -> None:
        """Every series of the past hour is known, with the time it was last heard of."""
        window = Window(self.end_s - 3600, self.end_s)
        got, wanted = await self.store.activity(window), await self.memory.activity(window)
        right = dict(zip(map(series_key, wanted.series), wanted.last_s, strict=True))
        found = dict(zip(map(series_key, got.series), got.last_s, strict=True))
        self.assertEqual(found, right)
        self.assertEqual(np.nanmedian(got.interval_s), 30.0)

    async def test_slow(self: Any) -> None:
        """Sources that speak every five minutes, or every hour, are known to do so."""
        for ago_s in (0, 200, 3500):
            window = Window(self.end_s - AGO_S - 3 * 3600 - ago_s, self.end_s - AGO_S - ago_s)
            got, wanted = await self.store.activity(window), await self.memory.activity(window)
            right = dict(zip(map(series_key, wanted.series), wanted.interval_s, strict=True))
            found = dict(zip(map(series_key, got.series), got.interval_s, strict=True))
            self.assertEqual(found, right)
            self.assertEqual(set(right.values()), set(map(float, SLOW)))

    async def test_remembered(self: Any) -> None:
        """Of sources that fell silent long ago all series are known, and when each spoke last."""
        speaking = frozenset(self.memory.sources()) - {"a300", "b3600", "fra2", NASTY_HOST}
        for ago_s in (3600, AGO_S // 2, AGO_S + 1800):
            window = Window(self.end_s - 3 * 86400, self.end_s - ago_s)
            got = await self.store.remembered(window, speaking)
            wanted = await self.memory.remembered(window, speaking)
            right = dict(zip(map(series_key, wanted.series), wanted.last_s, strict=True))
            found = dict(zip(map(series_key, got.series), got.last_s, strict=True))
            self.assertEqual(set(found), set(right))
            for key, last_s in found.items():  # to five minutes, where that is all there is
                self.assertTrue(0 <= last_s - right[key] <= 300, (key, last_s, right[key]))
            self.assertTrue(np.isnan(got.interval_s).all())
        everyone = frozenset(self.memory.sources())
        got = await self.store.remembered(Window(self.end_s - 3 * 86400, self.end_s), everyone)
        self.assertEqual(list(got.series), [])

    async def test_latest_of(self: Any) -> None:
        """Sources that speak seldom are looked up, at any time between two of their samples."""
        for ago_s in (30, 200, 3500):
            end_s = self.end_s - AGO_S - ago_s
            some = await self.store.activity(Window(end_s - 3 * 3600, end_s))
            window = Window(end_s - 9000, end_s)
            for moved_s in (0, 3600):  # as they were before what is known of them, too
                moved = evolve(some, last_s=some.last_s + moved_s)
                got = await self.store.latest_of(window, self.columns, moved)
                wanted = await self.memory.latest_of(window, self.columns, some)
                self.same_snapshots(got, wanted, self.columns)
                self.assertEqual(len(got.series), 8)

    async def test_latest(self: Any) -> None:
        """The newest sample of each series, whole: no figure of an older one fills a gap."""
        for end_s in (self.end_s, self.end_s - 990, self.end_s - 3 * 3600 * HOURS):
            window = Window(end_s - 120, end_s)
            got = await self.store.latest(window, self.columns)
            self.same_snapshots(got, await self.memory.latest(window, self.columns), self.columns)

    async def test_total(self: Any) -> None:
        """A span of time put together, also one that is not aligned to anything."""
        for length in (300, 1234, 3600):
            window = Window(self.end_s - 60 - length, self.end_s - 60)
            got = await self.store.total(window, self.columns)
            self.same_snapshots(got, await self.memory.total(window, self.columns), self.columns)

    async def test_baseline(self: Any) -> None:
        """The usual RTT of each series."""
        window = Window(self.end_s - 86400, self.end_s)
        got = await self.store.baseline(window)
        self.same_snapshots(got, await self.memory.baseline(window), ["rtt_p50"])

    async def test_history(self: Any) -> None:
        """One pair over time, both classes; gaps are gaps."""
        window = Window(self.end_s - 3600, self.end_s)
        for src, dst in (
            ("lax1", "iad2"),
            (NASTY_HOST, "iad1"),
            ("lax3", "iad1"),
            ("iad10", "iad2"),
            ("x", "y"),
        ):
            for step in (30.0, 60.0, 300.0):
                where = {"src_hostname": src, "dst_hostname": dst}
                got = await self.store.history(window, step, self.columns, where)
                wanted = await self.memory.history(window, step, self.columns, where)
                self.same_histories(got, wanted, self.columns)

    async def test_timeline(self: Any) -> None:
        """How many series there were, how many lost and how much, also of one class."""
        filters: tuple[Tags, ...] = (
            {},
            {"class": "EF"},
            {"class": "EF", "probe": "stamp"},
            {"class": "'"},
        )
        for where in filters:
            window = Window(self.end_s - 3600, self.end_s)
            for step in (30.0, 300.0):
                got = await self.store.timeline(window, step, where)
                wanted = await self.memory.timeline(window, step, where)
                self.assertEqual(got.time_s.tolist(), wanted.time_s.tolist())
                self.assertEqual(got.series.tolist(), wanted.series.tolist())
                self.assertEqual(got.lossy.tolist(), wanted.lossy.tolist())
                for step_got, step_wanted in zip(
                    got.worst_percent, wanted.worst_percent, strict=True
                ):
                    self.same(step_got, step_wanted, ("worst", where))

    async def test_matrix(self: Any) -> None:
        """Every metric's whole matrix, now, before, and over a span of time."""
        mine, judge = Answers(reactor, self.store), Answers(reactor, self.memory)
        for name, metric in METRICS.items():
            for at_s, span_s in ((self.end_s, 0.0), (self.end_s - 1800, 0.0), (self.end_s, 600.0)):
                question = MatrixQuestion(
                    metric=metric, at_s=at_s, span_s=span_s, where={}, group=None,
                    rows="all", cols="all",
                )  # fmt: skip
                got, wanted = await mine.matrix(question), await judge.matrix(question)
                self.same_answers(got, wanted, (name, at_s, span_s))

    def same_answers(self: Any, got: Any, wanted: Any, what: tuple[object, ...]) -> None:
        """Compare two answers as JSON."""
        if isinstance(wanted, dict):
            self.assertEqual(set(got), set(wanted), what)
            for name in wanted:
                # Of two series that are equally bad either may be named.
                if name not in ("tags", "flows"):
                    self.same_answers(got[name], wanted[name], (*what, name))
        elif isinstance(wanted, list):
            self.assertEqual(len(got), len(wanted), what)
            for n, each in enumerate(wanted):
                self.same_answers(got[n], each, (*what, n))
        elif isinstance(wanted, float) and isinstance(got, float):
            self.assertTrue(
                math.isclose(got, wanted, rel_tol=max(self.relative, 1e-6), abs_tol=2e-4),
                (what, got, wanted),
            )
        else:
            self.assertEqual(got, wanted, what)


class RealStoreCase(StoreCase):
    """A store that is filled once for all tests of a class."""

    filled: Any = None
    timeout = 60

    async def fill(self, points: Sequence[Point]) -> Any:
        """Fill the database and return what finds it again."""
        raise NotImplementedError

    def open(self, filled: Any) -> Store:
        """Return a store over what was filled."""
        raise NotImplementedError

    async def setUp(self) -> None:
        """Fill the database, the first time, and open it."""
        cls = type(self)
        if cls.filled is None:
            _, cls.points = fleet_points()
            cls.filled = await self.fill(cls.points)
        self.store = self.open(cls.filled)
        cast(Any, self).addCleanup(self.store.stop)


def later(seconds: float, work: Callable[[], Any]) -> Deferred[Any]:
    """Return what ``work`` gives after some seconds of real time."""
    from twisted.internet.task import deferLater

    return deferLater(reactor, seconds, work)
