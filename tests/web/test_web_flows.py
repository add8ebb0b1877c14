"""The flows of a pair, from the HTTP side of real collectors."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from web_api_case import END_S, LISTEN, ApiCase
from web_data import NASTY_HOST

from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.http.server import HttpService
from llama.testing import closed_interval, pair
from llama.web import flows as web_flows
from llama.web.flows import CollectorFlows, UnknownCollectorError
from llama.web.store import StoreError, TooMuchError


class FlowsTest(ApiCase):
    """Flows, from the HTTP side of a real collector."""

    async def setUp(self) -> None:  # type: ignore[override]
        """Start two collectors and a service that knows them."""
        super().setUp()
        members = [pair(n, tags={"src_hostname": "lax1", "dst_hostname": name})
                   for n, name in enumerate(("iad1", "iad2"))]  # fmt: skip
        self.urls = []
        self.histories = []
        for name in ("other", "lax1"):
            history = History(5)
            self.urls.append(self.collector(name, history))
            self.histories.append(history)
            start_s = int(END_S) - 120
            for number in range(1, 5):
                loss = [0.0] * 64 + ([1.0] * 3 + [0.0] * 61 if number == 4 else [0.0] * 64)
                one = closed_interval(
                    members,
                    close_number=number,
                    flows_per_pair=64,
                    loss=loss,
                    start_s=start_s + (number - 1) * 30,
                )
                history.append(one)
            while history.held[-1].points is None:  # being encoded, in slices
                await deferLater(reactor, 0.01)
        self.start(self.store, collectors=tuple(self.urls), collector_token="t")

    def collector(self, name: str, history: History) -> str:
        """Start a collector's HTTP side, and return its URL."""
        api = CollectorApi(reactor, history, src_hostname=name)
        self.addCleanup(api.stop)
        http = HttpService(reactor, LISTEN, api.app.resource(), what="test", token="t")
        http.startService()
        self.addCleanup(http.stopService)
        return http.url.rstrip("/")

    async def test_flows(self) -> None:
        """The collector of the source is found, and says which source ports lose."""
        self.assertTrue((await self.api("status"))["flows"])
        said = await self.api("flows", src="lax1", dst="iad2")
        self.assertEqual((said["total"], said["time"]), (64, END_S))
        lossy = [flow for flow in said["flows"] if flow["lost"]]
        self.assertEqual([flow["source_port"] for flow in lossy], [50000, 50001, 50002])
        self.assertEqual({flow["loss"] for flow in lossy}, {100.0})

    async def test_past(self) -> None:
        """Another time is another interval, as long as the collector holds it."""
        said = await self.api("flows", src="lax1", dst="iad2", at=END_S - 60)
        self.assertEqual(said["time"], END_S - 60)
        self.assertEqual(sum(flow["lost"] for flow in said["flows"]), 0)
        answer = await self.get(f"/api/v1/flows?src=lax1&dst=iad2&at={END_S - 5000}")
        self.assertEqual(answer.code, 404)
        self.assertIn("does not hold flows of that time any more", answer.json()["error"])

    async def test_not_closed_yet(self) -> None:
        """Of a time after the newest interval, that one is told, as long as no later one is closed."""
        for passed_s in (10, 50):
            said = await self.api("flows", src="lax1", dst="iad2", at=END_S + passed_s)
            self.assertEqual(said["time"], END_S)

    async def test_several_intervals_of_a_time(self) -> None:
        """However many intervals each time closes in, the one with the pair's flows is found."""
        history = History(50)
        url = self.collector("lax1", history)
        source = CollectorFlows(reactor, [url], token="t")
        self.addCleanup(source.stop)
        start_s = int(END_S) - 40 * 30
        parts = [
            [pair(n, tags={"src_hostname": "lax1", "dst_hostname": name})]
            for n, name in enumerate(("iad1", "iad2", "iad3"))
        ]
        for number in range(1, 121):
            window, part = divmod(number - 1, 3)
            history.append(
                closed_interval(
                    parts[part],
                    close_number=number,
                    flows_per_pair=4,
                    loss=1.0,
                    start_s=start_s + window * 30,
                )
            )
            while history.held[-1].points is None:  # being encoded, in slices
                await deferLater(reactor, 0.001)
        for passed in (0, 1, 2, 25, 39):
            for name in ("iad1", "iad2", "iad3"):
                said = await source.flows("lax1", name, {}, END_S - 30 * passed)
                self.assertEqual((said["time"], said["total"]), (END_S - 30 * passed, 4))

    async def test_unknown(self) -> None:
        """A source without a collector is said with what to do about it."""
        answer = await self.get(f"/api/v1/flows?src={quote(NASTY_HOST)}&dst=iad2")
        self.assertEqual(answer.code, 404)
        self.assertIn("see `collectors` in the web configuration", answer.json()["error"])

    async def test_wrong_token(self) -> None:
        """A collector that turns us away is as good as none, but for what it says."""
        self.start(self.store, collectors=tuple(self.urls), collector_token="wrong")
        answer = await self.get("/api/v1/flows?src=lax1&dst=iad2")
        self.assertEqual(answer.code, 404)
        self.assertRegex(answer.json()["error"], "no collector that answers .*: HTTP 401")


class Saying(Resource):
    """A collector that says what it is told to."""

    isLeaf = True
    said: object = None

    def render_GET(self, request: Any) -> bytes:
        """Answer."""
        return json.dumps(self.said).encode()


class StrangeTest(TestCase):
    """Answers that no collector of ours gives."""

    def asking(self) -> tuple[Saying, CollectorFlows, str]:
        """Return a collector that says what it is told to, who asks it, and its URL."""
        server = Saying()
        port = reactor.listenTCP(0, Site(server), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}"
        asked = CollectorFlows(reactor, [url])
        self.addCleanup(asked.stop)
        return server, asked, url

    async def test_renamed(self) -> None:
        """A collector whose host has another name by now is found by that, whoever asked before."""
        self.patch(web_flows, "NAMES_HOLD_S", 0.0)
        server, asked, _ = self.asking()
        for name in ("old", "new", "old"):
            server.said = {"src_hostname": name, "flows": [], "intervals": []}
            said = await asked.flows(name, "b", {}, None)
            self.assertEqual(said["src"], name)

    async def test_strange_answers(self) -> None:
        """Whatever a collector answers, it is told as that collector's."""
        server, asked, url = self.asking()
        for flows, intervals in (
            ([5], []), (["x"], []), ([{}], []), ([[]], []), ([None], []),
            ([{"probe": "stamp", "interval_end": 5}], []),
            ([], [5]), ([], [{}]), ([], [{"end": "x"}]), ([], [{"end": 5}]), ([], [["end"]]),
        ):  # fmt: skip
            server.said = {"src_hostname": "a", "flows": flows, "intervals": intervals}
            for at_s in (None, 1.7e9 - 1e6):
                with self.assertRaises(StoreError) as raised:
                    await asked.flows("a", "b", {}, at_s)
                self.assertEqual(
                    str(raised.exception), f"{url}: answered what no collector of ours would"
                )

    async def test_of_a_past_time_without_an_answer(self) -> None:
        """What a collector that knows no ``at`` tells of now is not taken for the time asked about."""
        server, asked, url = self.asking()
        now = {"start": "2023-11-14T22:13:00Z", "end": "2023-11-14T22:13:30Z"}  # 1.7e9 is between
        server.said = {"src_hostname": "a", "flows": [], "intervals": [now]}
        self.assertEqual((await asked.flows("a", "b", {}, None))["total"], 0)
        with self.assertRaises(UnknownCollectorError) as raised:
            await asked.flows("a", "b", {}, 1.7e9 - 1e6)
        self.assertEqual(
            str(raised.exception), f"{url}: is too old to tell of flows of a past time"
        )

    async def test_values(self) -> None:
        """Figures are numbers; an answer of more values than flows have is not read at all."""
        server, asked, _ = self.asking()
        names = ("sent", "received", "lost", "lost_forward", "lost_reverse", "loss_percent")
        good = dict.fromkeys(names, 1) | {
            "class": "BE", "probe": "stamp", "source_port": None, "rtt_p50_ms": 0.5,
            "interval_end": "2023-11-14T00:00:00Z",
        }  # fmt: skip
        server.said = {"src_hostname": "a", "flows": [good], "intervals": []}
        self.assertEqual((await asked.flows("a", "b", {}, None))["total"], 1)
        deep: Any = []
        for _ in range(300):
            deep = [deep]
        for wrong in ({"loss_percent": "<b>"}, {"rtt_p50_ms": deep}, {"class": {}}, {"sent": []}):
            server.said = {"src_hostname": "a", "flows": [good | wrong], "intervals": []}
            with self.assertRaises(StoreError) as raised:
                await asked.flows("a", "b", {}, None)
            self.assertIn("what no collector of ours would", str(raised.exception))
        server.said = {"src_hostname": "a", "flows": [{}] * 1_100_000, "intervals": []}
        with self.assertRaises(TooMuchError) as too_much:
            await asked.flows("a", "b", {}, None)
        self.assertIn("more than 1,000,000 values", str(too_much.exception))
