"""Databases that answer what none of their kind would: told as theirs, not as a mistake of the page."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import Any

import orjson
from scraper_case import until
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, ensureDeferred, gatherResults
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama.web.store import StoreError, TooMuchError, Window
from llama.web.stores import database
from llama.web.stores.influxdb import InfluxDBStore

WINDOW = Window(1_000_000.0, 1_000_060.0)
SERIES = {"tags": {"src_hostname": "a"}, "columns": ["time", "sent"], "values": [[1e9, 5]]}


class Saying(Resource):
    """Says what it is told to, of the first thing that is asked, and nothing of the others."""

    isLeaf = True
    said: dict[str, Any]
    whole = b""

    def render_POST(self, request: Any) -> bytes:
        """Answer."""
        if self.whole:
            return self.whole
        others = range(1, request.args[b"q"][0].count(b";") + 1)
        return orjson.dumps({"results": [self.said, *({"statement_id": n} for n in others)]})


class InfluxQLTests(TestCase):
    """What speaks InfluxQL, or something like it."""

    def setUp(self) -> None:
        """Listen, and make a store that asks there."""
        self.server: Any = Saying()
        listen: Any = reactor
        port = listen.listenTCP(0, Site(self.server), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.url = f"http://127.0.0.1:{port.getHost().port}"
        self.store = InfluxDBStore(reactor, url=self.url)
        self.addCleanup(self.store.stop)

    def say(self, **changes: Any) -> None:
        """Let the server answer with one series, of which some is changed."""
        self.server.said = {"statement_id": 0, "series": [{**SERIES, **changes}]}

    async def test_a_series_as_it_should_be(self) -> None:
        """What the others differ from is taken."""
        self.say()
        found = await self.store.activity(WINDOW)
        self.assertEqual(found.series, [{"src_hostname": "a"}])

    async def test_strange_series(self) -> None:
        """Tags that are no texts, values that are no numbers, rows that are none."""
        for changes in (
            {"tags": {"src_hostname": ["a"]}},
            {"tags": {"src_hostname": {"a": "b"}}},
            {"tags": {"src_hostname": 5}},
            {"values": [["x", 5]]},
            {"values": [[None, 5]]},
            {"values": [[[1], 5]]},
            {"values": 5},
            {"values": [5]},
            {"values": [[]]},
        ):
            self.say(**changes)
            for _ in range(2):
                said = f"{self.url}: answered what was not expected"
                with self.assertRaisesRegex(StoreError, said):
                    await self.store.activity(WINDOW)
        self.flushLoggedErrors()

    async def test_more_values_than_there_is_memory_for(self) -> None:
        """An answer of more values than an honest one has is refused before any of it is read."""
        self.patch(database, "MOST_VALUES", 10_000)
        read: list[int] = []
        self.patch(orjson, "loads", lambda body: read.append(len(body)))
        for body in (b'{"results":[0' + b",[]" * 10_000, b"{}\n" * 10_000, b"\n" * 10_001):
            self.server.whole = body
            with self.assertRaisesRegex(TooMuchError, "more than 10,000 values"):
                await self.store.activity(WINDOW)
        self.assertEqual(read, [])

    async def test_one_is_read_after_the_other(self) -> None:
        """Answers that come together are not all in memory as values at once."""
        self.say()
        both = threading.Barrier(2)
        met = []

        def load(body: bytes) -> Any:
            with contextlib.suppress(threading.BrokenBarrierError):
                met.append(both.wait(0.2))
            return orjson.loads(body)

        ask = partial(self.store._database.ask, "/query", {"q": ""}, len, load=load)
        self.assertEqual(await self.store._database.ask_all([ask, ask]), [1, 1])
        self.assertEqual(met, [])

    async def test_given_up_while_it_is_read(self) -> None:
        """Who hangs up and asks anew has no second answer read beside the one under way."""
        self.say()
        begun: list[bytes] = []
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def load(body: bytes) -> Any:
            begun.append(body)
            if len(begun) > 1:
                return orjson.loads(body)
            go_on.wait()
            raise AttributeError("what nobody waits for any more")

        asking = self.store._database
        first = asking.ask("/query", {"q": ""}, len, load=load)
        await until(lambda: bool(begun), "a thread that reads")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        others = [asking.ask("/query", {"q": ""}, len, load=load) for _ in range(3)]
        await until(
            lambda: len(begun) > 1 or len(asking._reading.waiting) == 3, "answers that wait"
        )
        self.assertEqual(len(begun), 1)
        others[0].cancel()
        self.failureResultOf(others[0], CancelledError)
        go_on.set()
        self.assertEqual(await gatherResults(others[1:]), [1, 1])
        self.assertEqual(len(begun), 3)

    async def test_more_series_than_there_is_room_for(self) -> None:
        """A history of many series of a sample each takes room for all steps of each: it is refused."""
        self.server.said = {"statement_id": 0, "series": [SERIES] * 1000}
        window = Window(1_000_000.0, 1_000_000.0 + 300)
        with self.assertRaisesRegex(TooMuchError, "1,000 series and 300 steps are too many"):
            await self.store.history(window, 1.0, ("sent",), {})
        found = await self.store.history(window, 10.0, ("sent",), {})
        self.assertEqual(found.columns["sent"].shape, (1000, 30))

    async def test_a_mistake_of_ours(self) -> None:
        """What no answer is to blame for has a traceback in the log, and only one."""

        def mistake(*_: Any) -> Any:
            raise AttributeError("misspelt")

        self.patch(self.store, "_select", mistake)
        for _ in range(3):
            await self.assertFailure(ensureDeferred(self.store.newest()), StoreError)
        (logged,) = self.flushLoggedErrors()
        self.assertIn("in mistake", logged.getTraceback())

    async def test_every_question(self) -> None:
        """So it is with whatever is asked, and what is told of it is printable and short."""
        store, columns = self.store, ("sent", "suspect")
        self.say(values=[["\x1b" + "9" * 5000, "x"]])
        for ask in (
            store.newest,
            lambda: store.latest(WINDOW, columns),
            lambda: store.total(WINDOW, columns),
            lambda: store.baseline(WINDOW),
            lambda: store.history(WINDOW, 30.0, columns, {}),
            lambda: store.timeline(WINDOW, 30.0, {}),
        ):
            error = await self.assertFailure(ensureDeferred(ask()), StoreError)
            self.assertIn("answered what was not expected", str(error))
            self.assertTrue(str(error).isprintable(), error)
            self.assertLess(len(str(error)), 500)
        self.flushLoggedErrors()
