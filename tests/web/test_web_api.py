"""The JSON API of llama-web over real HTTP: what it answers, what it refuses, what it survives."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, readBody
from twisted.web.http_headers import Headers
from twisted.web.test.requesthelper import DummyRequest
from web_api_case import END_S, ApiCase
from web_data import NASTY_HOST, Fleet, standard_fleet
from web_memory import MemoryStore

from llama.collector.intervals.summary import suspect_bit
from llama.http.server import BadRequestError
from llama.web.api import STATIC
from llama.web.params import Arguments, read_range
from llama.web.store import StoreError, StoreTimeoutError, TooMuchError

#: Members whose own members are named by the user, or are the fields of a point.
FREE = {"tags", "figures"}


class AnswerTest(ApiCase):
    """What is answered."""

    async def test_status(self) -> None:
        """How fresh the data are, and whether flows can be asked for."""
        said = await self.api("status")
        self.assertEqual(said["newest"], END_S)
        self.assertEqual(said["store"], "memory")
        self.assertFalse(said["flows"])
        answer = await self.get("/status")
        self.assertEqual(answer.body, b"ok")

    async def test_dimensions(self) -> None:
        """What can be chosen."""
        said = await self.api("dimensions")
        self.assertEqual(said["groups"], ["datacenter", "rack"])
        self.assertEqual(said["hierarchy"], ["datacenter", "rack"])
        self.assertEqual(said["classes"], ["BE", "EF"])
        self.assertEqual(said["probes"], ["stamp"])
        self.assertEqual(len(said["metrics"]), 9)

    async def test_matrix(self) -> None:
        """Rows, columns and dense cells fit each other; dead hosts are named once."""
        said = await self.api("matrix", rows="*", cols="*")
        cells = len(said["rows"]) * len(said["cols"])
        for name in ("state", "value", "members", "bad", "missing", "suspect", "worst_src"):
            self.assertEqual(len(said["cells"][name]), cells, name)
        self.assertEqual(
            {(each["kind"], each["host"]) for each in said["sick"]},
            {("down", "fra2"), ("silent", "fra2"), ("blind", "lax2")},
        )
        silent = next(row for row in said["rows"] if row["host"] == "fra2")
        self.assertEqual((silent["silent"], silent["silent_since"]), (1, END_S - 900))
        self.assertEqual(said["summary"]["bad"], 2)
        self.assertEqual(
            [(each["src"], each["dst"]) for each in said["worst"]],
            [(NASTY_HOST, "iad1"), ("lax1", "iad2")],
        )

    async def test_nasty_group(self) -> None:
        """A group of any name can be opened by its path."""
        said = await self.api("matrix", group="rack", rows="none", cols="*")
        nasty = next(row for row in said["rows"] if "DROP" in row["path"][0])
        self.assertIsNone(nasty["host"])
        path = nasty["path"][0].replace("~", "~~").replace("/", "~s").replace(",", "~c")
        said = await self.api("matrix", group="rack", rows=path, cols="*")
        self.assertIn("lax3", [row["host"] for row in said["rows"]])

    async def test_past(self) -> None:
        """Another time is another matrix; a span puts intervals together."""
        said = await self.api("matrix", at=END_S - 700)
        self.assertEqual(said["summary"]["bad"], 0)
        said = await self.api("pairs", span=1200)
        worst = {(each["src"], each["dst"]): each["value"] for each in said["pairs"]}
        self.assertAlmostEqual(worst["lax1", "iad2"], 100 * 30 / 640 / 2, 3)

    async def test_pairs(self) -> None:
        """Page by page every pair comes exactly once, the worst first."""
        seen, values, cursor = [], [], ""
        while cursor is not None:
            said = await self.api("pairs", limit=20, cursor=cursor)
            seen += [(each["src"], each["dst"]) for each in said["pairs"]]
            values += [each["value"] for each in said["pairs"]]
            cursor = said["next"]
        self.assertEqual(len(seen), said["total"])
        self.assertEqual(len(set(seen)), len(seen))
        known = [value for value in values if value is not None]
        self.assertEqual(known, sorted(known, reverse=True))

    async def test_history(self) -> None:
        """One pair over time: sums, percentiles, a heat map, its series with their tags."""
        query = {"src": "lax1", "dst": "iad2", "from": END_S - 1200, "to": END_S}
        said = await self.api("history", step=60, **query)
        self.assertEqual(len(said["time"]), 20)
        self.assertEqual(
            said["columns"]["lost_forward"][-1], 4 * 30.0
        )  # two classes, two intervals
        self.assertEqual(said["columns"]["lost_forward"][0], 0.0)
        self.assertEqual(said["heat"]["source"], "percentiles")
        for row in said["heat"]["counts"]:
            self.assertAlmostEqual(sum(row), 4 * 640 - row_lost(row), delta=200)
        self.assertEqual({each["tags"]["class"] for each in said["series"]}, {"BE", "EF"})
        said = await self.api("history", **query, **{"class": "EF"})
        self.assertEqual(len(said["series"]), 1)
        answer = await self.get("/api/v1/history?src=lax1&dst=nobody")
        self.assertEqual(answer.code, 404)
        self.assertIn("no measurements from 'lax1' to 'nobody'", answer.json()["error"])

    async def test_suspect(self) -> None:
        """Whatever cast doubt on any interval of a span is told, not just the highest bit."""
        both = {"receive_drops", "late_ticks"}
        said = await self.api("pairs", span=300, limit=1000)
        pair = next(it for it in said["pairs"] if (it["src"], it["dst"]) == ("iad10", "iad2"))
        self.assertEqual(set(pair["suspect"]), both)
        query = {"src": "iad10", "dst": "iad2", "from": END_S - 300, "to": END_S, "step": 60}
        said = await self.api("history", **query)
        self.assertEqual(set(said["columns"]["suspect"]), {float(sum(map(suspect_bit, both)))})

    async def test_timeline(self) -> None:
        """How the mesh did, step by step, without a hole between its blocks."""
        query = {"from": END_S - 1500, "to": END_S}
        said = await self.api("timeline", step=30, **query)
        self.assertEqual(said["time"], [END_S - 1500 + 30 * n for n in range(1, 51)])
        self.assertEqual(said["series"][0], 142)
        # Two pairs, the host that is down and the blind source, who have one pair in common.
        self.assertEqual(said["lossy"][-1], 2 * (2 + 8 + 8 - 1))
        self.assertEqual(said["worst_percent"][-1], 100.0)

    async def test_incidents(self) -> None:
        """Without anything that looks for incidents there are none, and that is said."""
        said = await self.api("incidents")
        self.assertEqual(said, {"configured": False, "incidents": [], "total": 0, "next": None})

    async def test_incidents_of_others(self) -> None:
        """Whatever knows of incidents can be plugged in."""

        class Known:
            async def incidents(self, at_s: Any, cursor: Any, limit: int) -> dict[str, Any]:
                return {"configured": True, "incidents": [{"at": at_s, "n": limit}], "next": cursor}

            def stop(self) -> None:
                stopped.append(self)

        stopped: list[Known] = []
        service = self.start(self.store, incidents=Known())
        said = await self.api("incidents", limit=7, cursor="x")
        self.assertEqual(
            said, {"configured": True, "incidents": [{"at": END_S, "n": 7}], "next": "x"}
        )
        await service.stopService()
        self.assertEqual(stopped, [service.incidents])

    async def test_packed(self) -> None:
        """A big answer is packed for whoever takes it so, and for nobody else."""

        async def ask(path: str, accepted: str) -> tuple[list[str], bytes]:
            url = f"{self.base}/api/v1/{path}".encode()
            headers = Headers({"Accept-Encoding": [accepted]})
            response = await Agent(reactor).request(b"GET", url, headers)
            body = await readBody(response)
            return response.headers.getRawHeaders("content-encoding", []), body

        wanted = (await self.api("pairs"))["pairs"]
        for accepted, packed in (
            ("gzip, br", True),
            ("gzip;q=0.5", True),
            ("gzip;q=0", False),
            ("gzip ; q=0", False),
            ("br", False),
        ):
            coding, body = await ask(f"pairs?at={END_S}", accepted)
            self.assertEqual(coding, ["gzip"] if packed else [], accepted)
            body = gzip.decompress(body) if packed else body
            self.assertEqual(json.loads(body)["pairs"], wanted)
        self.assertEqual((await ask("incidents", "gzip"))[0], [])

    async def test_empty_store(self) -> None:
        """A store without a sample has an empty matrix, not an error."""
        self.start(MemoryStore())
        self.assertIsNone((await self.api("status"))["newest"])
        said = await self.api("matrix")
        self.assertEqual((said["rows"], said["cols"], said["newest"]), ([], [], None))
        self.assertEqual((await self.api("pairs"))["pairs"], [])
        self.assertEqual((await self.api("dimensions"))["classes"], [])
        self.assertEqual(sum((await self.api("timeline"))["series"]), 0)


def row_lost(row: list[float]) -> float:
    """Return what is missing of a heat map's row to all probes of two classes and intervals."""
    return 4 * 640 - sum(row)


class DocumentedTest(ApiCase):
    """docs/api.rst and the API say the same."""

    async def test_members(self) -> None:
        """Every member of every answer stands in the manual."""
        text = (Path(__file__).parent.parent.parent / "docs" / "api.rst").read_text()
        named = set(re.findall(r'"(\w+)":|``(\w+)``', text))
        known = {one or other for one, other in named}

        def members(said: Any) -> set[str]:
            if isinstance(said, list):
                return set().union(*map(members, said))
            if isinstance(said, dict):
                inner = {name: value for name, value in said.items() if name not in FREE}
                return set(said) | set().union(*map(members, inner.values()))
            return set()

        for path, query in (
            ("status", {}),
            ("dimensions", {}),
            ("matrix", {"rows": "none"}),
            ("pairs", {}),
            ("history", {"src": "lax1", "dst": "iad2", "from": END_S - 600, "to": END_S}),
            ("timeline", {"from": END_S - 600, "to": END_S}),
            ("incidents", {}),
        ):
            self.assertIn(f"``{path}``\n---", text)
            self.assertEqual(members(await self.api(path, **query)) - known, set(), path)

    async def test_metrics(self) -> None:
        """Every metric is named in both manuals."""
        docs = Path(__file__).parent.parent.parent / "docs"
        for metric in (await self.api("dimensions"))["metrics"]:
            self.assertIn(f"``{metric['name']}``", (docs / "api.rst").read_text())
            title = metric["title"].replace("RTT p90", "RTT p50, p90").replace("RTT p99", "p99")
            self.assertIn(title, (docs / "web.rst").read_text())


class RefuseTest(ApiCase):
    """What is refused, and how."""

    async def test_parameters(self) -> None:
        """Each mistake is named with what was expected, as JSON."""
        mistakes = {
            "matrix?metric=speed": "metric=speed: expected one of loss,",
            "matrix?at=now": "at=now: expected a number from 0",
            "matrix?at=nan": "at=nan: expected a number",
            "matrix?at=inf": "at=inf: expected a number",
            "matrix?span=-1": "span=-1: expected a number from 0 to 604800",
            "matrix?span=1e9": "span=1e9: ",
            "matrix?rows=a~x": "rows: '~x' is no escape",
            "matrix?rows=" + "a" * 13000: "rows: 13000 characters",
            "matrix?group=a,b,c,d,e,f,g": "group: at most 6",
            "matrix?class=" + "x" * 600: "class: 600 characters",
            "matrix?at=1&at=2": "at: given 2 times",
            "matrix?class=%ff": "class: not UTF-8",
            "pairs?limit=0": "limit=0: expected 1 to 1000",
            "pairs?limit=1001": "limit=1001: expected",
            "pairs?cursor=x": "cursor=x: expected",
            "history?src=a": "dst: missing",
            "history?src=a&dst=b&from=5&to=4": "from: must lie before to",
            "history?src=a&dst=b&from=0&to=1e10": "from: must lie before to, by at most 400 days",
            "timeline?from=0&to=86400&step=1": "step: more than 2000 steps",
            "timeline?step=0": "step=0: expected a number from 1",
        }
        for query, message in mistakes.items():
            answer = await self.get(f"/api/v1/{query}")
            self.assertEqual(answer.code, 400, query)
            self.assertIn(message, answer.json()["error"], query)
            self.assertNotIn("\n", answer.json()["error"])

    async def test_paths_and_methods(self) -> None:
        """What is not served, and every method but GET and HEAD, is refused as JSON."""
        for path in ("/api/v1/nothing", "/api/v2/matrix", "/favicon.ico", "/static/"):
            answer = await self.get(path)
            self.assertEqual(answer.code, 404, path)
            self.assertIn("nothing is served at", answer.json()["error"])
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            answer = await self.get("/api/v1/matrix", method)
            self.assertEqual(answer.code, 405, method)
            self.assertEqual(answer.header("Allow"), "GET, HEAD")
            self.assertEqual(answer.json()["error"], "expected the method GET or HEAD")

    async def test_files(self) -> None:
        """The page's own files are served, and nothing else of the machine."""
        self.assertIn("app.js", STATIC)
        for name, kind in STATIC.items():
            answer = await self.get(f"/static/{name}")
            self.assertEqual((answer.code, answer.header("content-type")), (200, kind))
        for name in (
            "../api.py",
            "..%2fapi.py",
            "%2e%2e/api.py",
            "/etc/passwd",
            ".",
            "app.js/",
            "x",
        ):
            answer = await self.get(f"/static/{name}")
            self.assertEqual(answer.code, 404, name)
            self.assertNotIn(b"import", answer.body)

    async def test_headers(self) -> None:
        """The page may load nothing from elsewhere, and nothing may frame it or guess types."""
        answer = await self.get("/")
        policy = answer.header("content-security-policy")
        for part in ("default-src 'none'", "script-src 'self'", "connect-src 'self'",
                     "frame-ancestors 'none'"):  # fmt: skip
            self.assertIn(part, policy)
        self.assertNotIn("unsafe", policy)
        for path in ("/", "/static/app.js", "/api/v1/status", "/nothing"):
            answer = await self.get(path)
            self.assertEqual(answer.header("x-content-type-options"), "nosniff", path)
            self.assertEqual(answer.header("access-control-allow-origin"), "", path)
            self.assertIn("default-src 'none'", answer.header("content-security-policy"))

    async def test_no_foreign_origin(self) -> None:
        """No file of the page names another origin."""
        for name in STATIC:
            body = (await self.get(f"/static/{name}")).body.decode()
            for text in ("http:", "https:", "//cdn", "@import"):
                found = body.replace("http://www.w3.org/2000/svg", "")
                self.assertNotIn(text, found, name)

    async def test_token(self) -> None:
        """With a token nothing is told without it, but that the service is there."""
        self.start(self.store, api_token="s3cret")
        for path in ("/", "/static/app.js", "/api/v1/matrix"):
            self.assertEqual((await self.get(path)).code, 401, path)
        self.assertEqual((await self.get("/status")).code, 200)
        shown = {"Authorization": "Bearer s3cret"}
        self.assertEqual((await self.get("/api/v1/matrix", **shown)).code, 200)

    async def test_too_wide(self) -> None:
        """More rows than anyone can draw are refused with what to do; folded they are shown."""
        hosts = {f"h{n}": (f"dc{n % 5}", "r1") for n in range(450)}
        fleet = Fleet(hosts=hosts, classes=("BE",))
        points = [fleet.point("h0", host, "BE", END_S) for host in hosts if host != "h0"]
        self.start(MemoryStore(point for point in points if point is not None))
        answer = await self.get(f"/api/v1/matrix?at={END_S}&cols=*")
        self.assertEqual(answer.code, 400)
        self.assertIn("cols: 449 would be shown, at most 400", answer.json()["error"])
        said = await self.api("matrix")
        self.assertEqual(len(said["cols"]), 5)
        self.assertEqual(sum(said["cells"]["members"]), 449)


class FailingStore(MemoryStore):
    """Answers as it is told to."""

    answer: Any = None

    def latest(self, window: Any, columns: Any) -> Deferred[Any]:
        """See `Store`."""
        answered: Deferred[Any] = self.answer()
        return answered


class TroubleTest(ApiCase):
    """A store that is slow or fails."""

    def setUp(self) -> None:
        """Start a service over it."""
        self.fleet = standard_fleet(END_S)
        self.store = FailingStore(self.fleet.points(END_S - 300, END_S))
        self.service = self.start(self.store)

    async def test_errors(self) -> None:
        """What the store says comes through as one line of JSON, with a status that tells why."""
        for error, code in (
            (StoreError("http://tsdb: connection refused"), 502),
            (StoreTimeoutError("http://tsdb: no answer within 20 s"), 504),
            (TooMuchError("http://tsdb: its answer has more than 1 octet"), 507),
        ):
            self.store.answer = lambda error=error: fail(error)
            answer = await self.get(f"/api/v1/matrix?at={END_S}")
            self.assertEqual((answer.code, answer.json()["error"]), (code, str(error)))

    async def test_mistake_of_ours(self) -> None:
        """A bug is logged with its traceback; who asked gets one line."""
        self.store.answer = lambda: fail(ZeroDivisionError("oops"))
        answer = await self.get(f"/api/v1/matrix?at={END_S}")
        self.assertEqual(answer.code, 500)
        self.assertNotIn("oops", answer.json()["error"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_slow(self) -> None:
        """While the store thinks, everything else is answered; the same question is asked once."""
        asked: list[Deferred[Any]] = []

        def slow() -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        self.store.answer = slow
        waiting = [Deferred.fromCoroutine(self.get(f"/api/v1/matrix?at={END_S}")) for _ in range(3)]
        while not asked:
            await deferLater(reactor, 0.01)
        self.assertEqual((await self.get("/api/v1/status")).code, 200)
        self.assertEqual((await self.get("/")).code, 200)
        self.assertEqual((await self.get(f"/api/v1/timeline?to={END_S}")).code, 200)
        await deferLater(reactor, 0.05)
        self.assertEqual(len(asked), 1)
        asked[0].errback(StoreError("gone"))
        self.assertEqual([each.code for each in await gatherResults(waiting)], [502] * 3)

    async def test_left(self) -> None:
        """Once all who asked have closed their connections the store is asked no further."""
        asked: list[Deferred[Any]] = []

        def slow() -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        self.store.answer = slow
        waiting = [Deferred.fromCoroutine(self.get(f"/api/v1/matrix?at={END_S}")) for _ in range(2)]
        while not asked:
            await deferLater(reactor, 0.01)
        await deferLater(reactor, 0.05)
        for each in waiting:
            self.assertFalse(asked[0].called)
            each.addErrback(lambda _: None)
            each.cancel()
            await deferLater(reactor, 0.1)
        self.assertTrue(asked[0].called)

    async def test_stop(self) -> None:
        """Stopping lets go of the store."""
        await self.service.stopService()
        self.assertTrue(self.store.stopped)
        self.service.startService()


class ArgumentsTest(SynchronousTestCase):
    """Whatever a query holds is read or refused, never a failure of ours."""

    @settings(
        max_examples=300,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(
        st.dictionaries(
            st.sampled_from(
                [b"metric", b"at", b"span", b"class", b"group", b"rows", b"from", b"to", b"step"]
            ),
            st.lists(
                st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
                min_size=1,
                max_size=2,
            ),
        )
    )
    def test_any_query(self, args: dict[bytes, list[bytes]]) -> None:
        """Any octets give values within their bounds, or `BadRequestError`."""
        request = DummyRequest([])
        request.args = args
        arguments = Arguments(request)
        try:
            arguments.metric()
            at = arguments.number("at", 0, 1e11)
            arguments.filters()
            arguments.group()
            arguments.opened("rows")
            window, _ = read_range(arguments, 1e9)
        except BadRequestError as error:
            self.assertNotIn("\n", str(error))
            return
        self.assertTrue(at is None or 0 <= at <= 1e11)
        self.assertLess(window.start_s, window.end_s)
