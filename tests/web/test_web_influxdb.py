"""InfluxDB as the matrix's store, with the real server, filled by the scraper's own writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from servers import Influx
from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from web_store_case import COLUMNS, END_S, RealStoreCase

from llama.interfaces import Point
from llama.scraper.writers import influxdb as writer
from llama.web.store import StoreError, StoreTimeoutError, TooMuchError, Window
from llama.web.stores.influxdb import InfluxDBStore, identifier, matching, within

#: A name that needs quoting, too.
DATABASE = 'lla"ma'


class InfluxDBTest(RealStoreCase, TestCase):
    """Over a real InfluxDB that wants a user and a password."""

    server: Influx

    @classmethod
    def tearDownClass(cls) -> None:
        """End the server."""
        if cls.filled is not None:
            cls.filled.stop()
            cls.filled = None
        super().tearDownClass()

    async def fill(self, points: Sequence[Point]) -> Influx:
        """See `RealStoreCase`."""
        server = Influx("reader", "se cret", max_rows=20)  # a usual guard rail, if not as low
        server.start()
        database = writer.make(
            reactor,
            {"url": server.url, "database": DATABASE, "create": True} | self.credentials(server),
        )
        await database.open()
        for start in range(0, len(points), 5000):
            assert not await database.write(points[start : start + 5000])
        await database.close()
        return server

    def credentials(self, server: Influx) -> dict[str, Any]:
        """Return what opens it."""
        return {"username": server.user, "password": server.password}

    def open(self, filled: Influx) -> InfluxDBStore:
        """See `RealStoreCase`."""
        return self.store_for(filled)

    def store_for(self, server: Influx, **options: Any) -> InfluxDBStore:
        """Return a store with other options."""
        given = {"url": server.url, "database": DATABASE} | self.credentials(server) | options
        store = InfluxDBStore(reactor, **given)
        self.addCleanup(store.stop)
        return store

    async def test_retention_policy(self) -> None:
        """A retention policy is named in the query; one that is not there is the server's error."""
        window = Window(END_S - 120, END_S)
        named = self.store_for(self.filled, retention_policy="autogen")
        self.assertTrue((await named.latest(window, COLUMNS)).series)
        other = self.store_for(self.filled, retention_policy='no "such" one')
        error = await self.assertFailure(other.latest(window, COLUMNS), StoreError)
        self.assertIn("retention policy not found", str(error))

    async def test_wrong_password(self) -> None:
        """A wrong password is said as the server says it."""
        store = self.store_for(self.filled, password="wrong")
        error = await self.assertFailure(store.newest(), StoreError)
        self.assertIn("HTTP 401: authorization failed", str(error))

    async def test_wrong_database(self) -> None:
        """A database that is not there is named."""
        store = self.store_for(self.filled, database="nowhere")
        error = await self.assertFailure(store.newest(), StoreError)
        self.assertIn("database not found: nowhere", str(error))

    async def test_too_much(self) -> None:
        """An answer that is too large is given up, and said."""
        store = self.store_for(self.filled, max_octets=1000)
        window = Window(END_S - 120, END_S)
        await self.assertFailure(store.latest(window, COLUMNS), TooMuchError)

    async def test_long_series(self) -> None:
        """A series that comes in several chunks is one, with all its rows."""
        store = self.store_for(self.filled)
        window = Window(END_S - 3600, END_S)
        query = f'SELECT "sent" FROM raw_stats WHERE {within(window)} GROUP BY "probe"'
        (found,) = await store._select(query)
        self.assertEqual([tags for tags, _, _ in found], [{"probe": "stamp"}])
        wanted = [p for p in self.points if p.measurement == "raw_stats"]
        wanted = [p for p in wanted if window.start_s < p.time_ns / 1e9 <= window.end_s]
        self.assertGreater(len(wanted), 10_000)  # rows of a chunk
        self.assertEqual(len(found[0][2]), len(wanted))

    async def test_cut_off(self) -> None:
        """An answer that a server cut off is not taken for all there is."""
        store = self.store_for(self.filled)
        series = {"name": "x", "tags": {"h": "1"}, "columns": ["time", "sent"], "values": [[1, 2]]}
        for cut in (
            {"results": [{"series": [{**series, "partial": True}]}]},
            {"results": [{"series": [series], "partial": True}]},
            {"results": []},
        ):
            self.assertRaises(TooMuchError, store._read, [cut], 1)
        self.assertEqual(len(store._read([{"results": [{"series": [series]}]}], 1)[0]), 1)

    async def test_frozen(self) -> None:
        """A server that accepts and says nothing is given up after the time allowed."""
        store = self.store_for(self.filled, timeout_s=0.3)
        self.filled.freeze()
        try:
            error = await self.assertFailure(store.newest(), StoreTimeoutError)
        finally:
            self.filled.thaw()
        self.assertIn("no answer within 0.3 s", str(error))

    async def test_refused(self) -> None:
        """A server that is not there is said in one line."""
        store = self.store_for(self.filled, url="http://127.0.0.1:1")
        error = await self.assertFailure(store.newest(), StoreError)
        self.assertEqual(str(error), "http://127.0.0.1:1: connection refused")

    async def test_nasty_values(self) -> None:
        """Values that try to end a string match nothing, and harm nothing."""
        window = Window(END_S - 600, END_S)
        for value in (
            "' OR 1=1 --",
            "\\' OR ''='",
            '"; DROP DATABASE x',
            "$v1",
            "a\nb",
            "\x00",
            "é",
        ):
            where = {"src_hostname": value, "dst_hostname": "iad2"}
            found = await self.store.history(window, 60.0, ("sent",), where)
            self.assertEqual(list(found.series), [], value)
        self.assertEqual(await self.store.newest(), END_S)


class QuotingTest(TestCase):
    """What stands in a query."""

    def test_identifier(self) -> None:
        """A name cannot end its own quotes."""
        self.assertEqual(identifier('a"b\\c\nd'), '"a\\"b\\\\c\\nd"')

    def test_matching(self) -> None:
        """Values are parameters and never part of the query."""
        condition, values = matching({"src": "x' OR 'a'='a", 'd"': "y"})
        self.assertEqual(condition, ' AND "src" = $v0 AND "d\\"" = $v1')
        self.assertEqual(values, {"v0": "x' OR 'a'='a", "v1": "y"})
