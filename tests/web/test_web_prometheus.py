"""PromQL as the matrix's store, with real servers, filled as they are in the field."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from servers import Victoria
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from web_counters import Prometheus, exposed
from web_data import NASTY_HOST, standard_fleet
from web_memory import MemoryStore
from web_store_case import END_S, RealStoreCase, by_series

from llama.interfaces import Point
from llama.scraper.writers import victoriametrics as writer
from llama.web.answers import Answers, MatrixQuestion
from llama.web.metrics import METRICS
from llama.web.store import StoreError, TooMuchError, Window, series_key
from llama.web.stores import prometheus, promql
from llama.web.stores.prometheus import PrometheusStore
from llama.web.stores.prometheus_api import MOST_WARNINGS, PrometheusDatabase


def settle(server: Victoria, metric: str) -> None:
    """Wait until every series that was written can be found, which takes a new one some seconds."""
    fleet = standard_fleet(END_S)
    series = len({series_key(p.tags) for p in fleet.points(END_S - 1200, END_S - 1140)})
    query = {
        "query": f"count(last_over_time({metric}[3h]))",
        "time": f"{END_S:.0f}",
        "nocache": "1",
    }
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        server.get("/internal/force_flush", {})
        found = json.loads(server.get("/api/v1/query", query))["data"]["result"]
        if found and int(found[0]["value"][1]) == series:
            return
        time.sleep(0.1)
    raise AssertionError(f"{metric}: {found}, wanted {series}")


class PortionsTest(SynchronousTestCase):
    """How many series one question is about."""

    def test_portions(self) -> None:
        """Small sources come together; large ones come in parts, by destination."""
        sources = {"a": {"x": 2, "y": 2}, "b": {"x": 2}, "c": {"x": 4, "y": 4, "z": 1}, "d": {}}
        self.assertEqual(
            list(promql.portions("m", sources, 6)),
            [
                'm{src_hostname="c",dst_hostname=~"x"}',
                'm{src_hostname="c",dst_hostname=~"y|z"}',
                'm{src_hostname=~"a|b|d"}',
            ],
        )
        self.assertEqual(list(promql.portions("m", sources, 4))[:1], ['m{src_hostname=~"a"}'])


class Saying(Resource):
    """A database that answers whatever it is asked with `said`."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, Any] = {}

    def render(self, _: Any) -> bytes:
        """Answer."""
        return json.dumps({"status": "success", **self.said}).encode()


class PartTest(TestCase):
    """Databases of which a part is away."""

    def setUp(self) -> None:
        """Start one."""
        self.server = Saying()
        port = reactor.listenTCP(0, Site(self.server), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.database = PrometheusDatabase(reactor, url=f"http://127.0.0.1:{port.getHost().port}")
        self.addCleanup(self.database.stop)
        self.logged: list[str] = []

        def note(event: dict[str, Any]) -> None:
            if event.get("log_namespace", "").endswith("PrometheusDatabase"):
                self.logged.append(event.get("warning", "no more"))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)

    async def test_part(self) -> None:
        """A part of the data is no answer to any question, and why is said."""
        window = Window(END_S - 600, END_S)
        ends = np.array([END_S])
        vector = {"resultType": "vector", "result": []}
        matrix = {"resultType": "matrix", "result": []}
        for data, ask in (
            (vector, lambda: self.database.instant("x")),
            (vector, lambda: self.database.labels("x", END_S)),
            (matrix, lambda: self.database.samples("x", END_S)),
            (matrix, lambda: self.database.steps("x", ends, 30.0)),
            ([], lambda: self.database.values_of("x", "{}", window)),
            ([], lambda: self.database.count_by("x", "{}", window)),
        ):
            self.server.said = {"data": data, "isPartial": False}
            await ask()
            self.server.said = {
                "data": data,
                "isPartial": True,
                "warnings": ["vmstorage-2 is away"],
            }
            error = await self.assertFailure(ask(), StoreError)
            self.assertIn("has only a part of the data (isPartial)", str(error))
            self.assertIn("vmstorage-2 is away", str(error))

    async def test_more_series_than_there_is_room_for(self) -> None:
        """Many series of a sample each take room for all steps of each: they are refused."""
        series = {"metric": {}, "values": [[END_S, "1"]]}
        self.server.said = {"data": {"resultType": "matrix", "result": [series] * 1000}}
        ends = END_S + 30 * np.arange(300)
        with self.assertRaisesRegex(TooMuchError, "1,000 series and 300 steps are too many"):
            await self.database.steps("x", ends, 30.0)
        self.assertEqual(len(await self.database.steps("x", ends[:30], 30.0)), 1000)

    async def test_warnings(self) -> None:
        """What a database warns of with whole data is logged, each once, and not without end."""
        vector = {"resultType": "vector", "result": []}
        for warnings in (["a store\nis away", "odd\x1b[2J"], ["a store is away"], []):
            self.server.said = {"data": vector, "warnings": warnings}
            await self.database.instant("x")
        await deferLater(reactor, 0.0)
        self.assertEqual(self.logged[0], "a store is away")
        self.assertEqual(len(self.logged), 2)
        self.assertTrue("".join(self.logged).isprintable(), self.logged)
        for start in (0, 60, 120):
            warnings = [f"{start + n} is away" for n in range(60)]
            self.server.said = {"data": vector, "warnings": warnings}
            await self.database.instant("x")
        await deferLater(reactor, 0.0)
        self.assertEqual(len(self.logged), MOST_WARNINGS + 1)
        self.assertEqual(self.logged[-1], "no more")


class VictoriaPointsTest(RealStoreCase, TestCase):
    """VictoriaMetrics, filled with line protocol by the scraper's own writer."""

    @classmethod
    def tearDownClass(cls) -> None:
        """End the server."""
        if cls.filled is not None:
            cls.filled.stop()
            cls.filled = None
        super().tearDownClass()

    async def fill(self, points: Sequence[Point]) -> Victoria:
        """See `RealStoreCase`."""
        server = Victoria()
        server.start()
        database = writer.make(reactor, {"url": server.url})
        await database.open()
        for start in range(0, len(points), 5000):
            assert not await database.write(points[start : start + 5000])
        await database.close()
        settle(server, "raw_stats_sent")
        return server

    def open(self, filled: Victoria) -> PrometheusStore:
        """See `RealStoreCase`."""
        return PrometheusStore(reactor, url=filled.url)

    async def test_nasty_values(self) -> None:
        """Values that try to end a string match nothing, and harm nothing."""
        window = Window(END_S - 600, END_S)
        for value in ('"} or vector(1) #', "\\", '\\"', "'", "a\nb", "{}", "é", "`"):
            where = {"src_hostname": value, "dst_hostname": "iad2"}
            found = await self.store.history(window, 60.0, ("sent",), where)
            self.assertEqual(list(found.series), [], value)
        where = {"src_hostname": NASTY_HOST, "dst_hostname": "iad1", "class": "BE"}
        found = await self.store.history(window, 60.0, ("sent",), where)
        self.assertEqual(len(found.series), 1)

    async def test_remembered_in_portions(self) -> None:
        """Sources of many series are asked about in portions, and nobody is left out."""
        for most in (1, 3, 40):
            self.patch(prometheus, "SERIES_AT_ONCE", most)
            await self.test_remembered()

    async def test_wrong_server(self) -> None:
        """What is no such database is said so in one line."""
        store = PrometheusStore(reactor, url=self.filled.url + "/nothing")
        self.addCleanup(store.stop)
        error = await self.assertFailure(store.newest(), StoreError)
        self.assertIn("HTTP 400", str(error))


class CountersCase:
    """The collectors' own counters: what they rose by is what the judge adds up."""

    filled: Any = None

    @classmethod
    def tearDownClass(cls) -> None:
        """End the server."""
        if cls.filled is not None:
            cls.filled.stop()
            cls.filled = None

    def fill(self, texts: list[tuple[float, str]]) -> Any:
        """Return a server with what was exposed at some times."""
        raise NotImplementedError

    def setUp(self: Any) -> None:
        """Fill a server, the first time, and open it."""
        cls = type(self)
        if cls.filled is None:
            cls.fleet = standard_fleet(END_S)
            cls.filled = self.fill(list(exposed(cls.fleet, END_S - 1260, END_S)))
            cls.memory = MemoryStore(cls.fleet.points(END_S - 1260, END_S))
        self.store = PrometheusStore(reactor, url=self.filled.url)
        self.addCleanup(self.store.stop)

    async def test_total(self: Any) -> None:
        """Counts are exactly those of the intervals in the window."""
        names = ("sent", "received", "lost", "lost_forward", "lost_reverse", "lost_unknown",
                 "remarked_forward", "flows", "suspect")  # fmt: skip
        window = Window(END_S - 270, END_S)
        got = await self.store.total(window, names)
        wanted = await self.memory.total(window, names)
        self.assertEqual(
            sorted(map(series_key, got.series)), sorted(map(series_key, wanted.series))
        )
        for name in names:
            right = by_series(wanted, name)
            for key, value in by_series(got, name).items():
                self.assertAlmostEqual(value, right[key], 3, (name, key))

    async def test_rtt(self: Any) -> None:
        """Percentiles come from buckets that are at most 2.5 times as wide as they begin."""
        window = Window(END_S - 270, END_S)
        got = await self.store.total(window, ("rtt", "rtt_p50", "rtt_p99", "received", "jitter"))
        wanted = await self.memory.total(window, ("rtt_p50", "rtt_p99"))
        for name in ("rtt_p50", "rtt_p99"):
            right = by_series(wanted, name)
            for key, value in by_series(got, name).items():
                if math.isnan(right[key]):
                    self.assertTrue(math.isnan(value), (name, key))
                else:
                    self.assertTrue(1 / 2.6 < value / right[key] < 2.6, (name, key, value))
        self.assertTrue(all(map(math.isnan, by_series(got, "jitter").values())))

    async def test_activity(self: Any) -> None:
        """Who fell silent, and when, to the scrape."""
        window = Window(END_S - 1200, END_S)
        got, wanted = await self.store.activity(window), await self.memory.activity(window)
        right = dict(zip(map(series_key, wanted.series), wanted.last_s, strict=True))
        found = dict(zip(map(series_key, got.series), got.last_s, strict=True))
        self.assertEqual(found, right)
        self.assertEqual(np.nanmedian(got.interval_s), 30.0)

    async def test_matrix(self: Any) -> None:
        """The matrices of loss are the judge's; dead hosts, blind and silent sources, too."""
        mine, judge = Answers(reactor, self.store), Answers(reactor, self.memory)
        for name in ("loss", "loss_forward", "loss_reverse", "remarked"):
            question = MatrixQuestion(
                metric=METRICS[name], at_s=END_S, span_s=240.0, where={}, group=None,
                rows="all", cols="all",
            )  # fmt: skip
            got, wanted = await mine.matrix(question), await judge.matrix(question)
            for part in ("state", "value", "members", "bad", "missing", "suspect"):
                for n, value in enumerate(wanted["cells"][part]):
                    mine_value = got["cells"][part][n]
                    if value is None or mine_value is None:
                        self.assertEqual(mine_value, value, (name, part, n))
                    else:
                        self.assertAlmostEqual(mine_value, value, 2, (name, part, n))
            for part in ("rows", "cols", "sick", "summary", "group"):
                self.assertEqual(got[part], wanted[part], (name, part))

    async def test_live(self: Any) -> None:
        """The newest moment shows every fault of the past minutes."""
        question = MatrixQuestion(
            metric=METRICS["loss"], at_s=END_S, span_s=0.0, where={"class": "EF"}, group=[],
            rows="all", cols="all",
        )  # fmt: skip
        got = await Answers(reactor, self.store).matrix(question)
        worst = {(pair["src"], pair["dst"]): pair["value"] for pair in got["worst"]}
        self.assertAlmostEqual(worst[("lax1", "iad2")], 100 * 30 / 640, 3)
        self.assertEqual(
            {(each["kind"], each["host"]) for each in got["sick"]},
            {("down", "fra2"), ("silent", "fra2"), ("blind", "lax2")},
        )

    async def test_history(self: Any) -> None:
        """One pair over time, with its histogram."""
        await self.store.activity(Window(END_S - 1200, END_S))
        self.assertEqual(await self.store.resolution_s(END_S), 120.0)
        where = {"src_hostname": "lax1", "dst_hostname": "iad2", "class": "EF"}
        window = Window(END_S - 1200, END_S)
        found = await self.store.history(window, 120.0, ("sent", "lost", "jitter"), where)
        wanted = await self.memory.history(window, 120.0, ("sent", "lost"), where)
        for name in ("sent", "lost"):
            for got, right in zip(found.columns[name][0], wanted.columns[name][0], strict=True):
                self.assertAlmostEqual(got, right, 3)
        assert found.histogram_counts is not None
        for counted, sent, lost in zip(
            found.histogram_counts.sum(axis=1),
            wanted.columns["sent"][0],
            wanted.columns["lost"][0],
            strict=True,
        ):
            self.assertAlmostEqual(counted, sent - lost, 3)

    async def test_timeline(self: Any) -> None:
        """How many series lost, over time."""
        window = Window(END_S - 960, END_S)
        got = await self.store.timeline(window, 120.0, {"class": "EF"})
        wanted = await self.memory.timeline(window, 120.0, {"class": "EF"})
        self.assertEqual(got.lossy.tolist(), wanted.lossy.tolist())
        self.assertEqual(got.series.tolist(), wanted.series.tolist())

    async def test_newest(self: Any) -> None:
        """The newest sample is found, though it is some minutes old."""
        self.assertEqual(await self.store.newest(), END_S)

    async def test_baseline(self: Any) -> None:
        """The usual RTT is that of the whole time."""
        got = by_series(await self.store.baseline(Window(END_S - 1200, END_S)), "rtt_p50")
        right = by_series(await self.memory.baseline(Window(END_S - 1200, END_S)), "rtt_p50")
        for key, value in got.items():
            self.assertTrue(1 / 2.6 < value / right[key] < 2.6, (key, value))


class PrometheusTest(CountersCase, TestCase):
    """A real Prometheus."""

    def fill(self, texts: list[tuple[float, str]]) -> Prometheus:
        """See `CountersCase`."""
        server = Prometheus()
        server.fill(texts)
        server.start()
        return server


class VictoriaCountersTest(CountersCase, TestCase):
    """A real VictoriaMetrics that scraped the collectors."""

    def fill(self, texts: list[tuple[float, str]]) -> Victoria:
        """See `CountersCase`."""
        server = Victoria()
        server.start()
        for time_s, text in texts:
            url = f"{server.url}/api/v1/import/prometheus?timestamp={round(time_s * 1000)}"
            urllib.request.urlopen(url, data=text.encode(), timeout=20).close()
        settle(server, "llama_probes_sent_total")
        return server
