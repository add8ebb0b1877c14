"""The writers that speak line protocol, against real servers and against hostile answers."""

from __future__ import annotations

import gzip
import time
from typing import Any

from servers import Influx, Victoria
from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from llama.interfaces import NotPermittedError, NotWrittenError, Point
from llama.scraper.writers import http, influxdb, influxdb2, victoriametrics

TIME = 1_700_000_010 * 10**9
NASTY = {
    "plain": "01", "space": "New York", "comma": "a,b", "equals": "x=y", "quote": 'say "hi"',
    "apostrophe": "it's", "unicode": "Zürich ☃", "tab": "a\tb", "inner backslash": "a\\b",
    "k,e=y s": "v", "hash": "#1", "trailing": "C:\\", "line\nend": "a\nb",
}  # fmt: skip
#: What of them comes back changed: see `llama.scraper.writers.line_protocol`.
CHANGED = {"trailing": "C:/", "line end": "a b"}


def some_points(count: int, **fields: float) -> list[Point]:
    """Return points of one moment."""
    return [
        Point("raw_stats", {"dst": f"d{n}"}, {"rtt": n + 0.25, **fields}, TIME)
        for n in range(count)
    ]


class Database(Resource):
    """Answers writes as the test says, and keeps what was sent."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []
        self.bodies: list[bytes] = []
        self.answer: Any = lambda lines: (204, b"")
        self.location = ""

    def render(self, request: Any) -> Any:
        """Note the request and answer."""
        body = request.content.read()
        if request.getHeader("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.requests.append(request)
        self.bodies.append(body)
        answer = self.answer(body.splitlines())
        if answer is None:
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET
        if self.location:
            request.setHeader("Location", self.location)
        request.setResponseCode(answer[0])
        return answer[1]


class FakeDatabaseTests(TestCase):
    """Answers that a real server gives too seldom."""

    def setUp(self) -> None:
        """Listen."""
        self.database = Database()
        self.port = reactor.listenTCP(
            0, Site(self.database, reactor=reactor), interface="127.0.0.1"
        )
        self.addCleanup(self.port.stopListening)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"

    def writer(self, **options: Any) -> Any:
        """Make an InfluxDB 2 writer for it."""
        given = {"url": self.url, "org": "net ops", "bucket": "b&c", "token": "t0ken"} | options
        writer = influxdb2.make(reactor, given)
        self.addCleanup(writer.close)
        return writer

    async def test_what_is_sent(self) -> None:
        """Organisation, bucket, precision and token are where InfluxDB 2 wants them."""
        self.assertEqual(await self.writer().write(some_points(2)), [])
        [request] = self.database.requests
        self.assertEqual(request.path, b"/api/v2/write")
        self.assertEqual(
            request.args, {b"org": [b"net ops"], b"bucket": [b"b&c"], b"precision": [b"ns"]}
        )
        self.assertEqual(request.getHeader("authorization"), "Token t0ken")
        self.assertEqual(request.getHeader("content-encoding"), "gzip")
        self.assertEqual(len(self.database.bodies[0].splitlines()), 2)

    async def test_uncompressed(self) -> None:
        """Compression can be turned off."""
        await self.writer(gzip="false").write(some_points(1))
        self.assertIsNone(self.database.requests[0].getHeader("content-encoding"))

    async def test_bad_points_are_found(self) -> None:
        """Of many points exactly the bad ones are refused, in a bounded number of requests."""

        def answer(lines: list[bytes]) -> tuple[int, bytes]:
            bad = [line for line in lines if b"d7 " in line or b"d1234 " in line]
            if not bad:
                return 204, b""
            return 422, b'{"code":"unprocessable entity","message":"bad point: %s"}' % bad[0]

        self.database.answer = answer
        refusals = await self.writer().write(some_points(2000))
        self.assertEqual({r.point.tags["dst"] for r in refusals}, {"d7", "d1234"})
        self.assertEqual({r.reason for r in refusals}, {"bad point: the line"})
        self.assertLess(len(self.database.bodies), 60)

    async def test_all_bad(self) -> None:
        """When a database says that it dropped them all, it is not asked one by one."""
        self.database.answer = lambda lines: (
            400, b'{"error":"partial write: field type conflict dropped=%d"}' % len(lines)
        )  # fmt: skip
        refusals = await self.writer().write(some_points(1000))
        self.assertEqual(len(refusals), 1000)
        self.assertEqual({r.reason for r in refusals}, {"field type conflict"})
        self.assertEqual(len(self.database.bodies), 1)

    async def test_half_bad(self) -> None:
        """However many are bad, the number of requests stays bounded and the count right."""

        def answer(lines: list[bytes]) -> tuple[int, bytes]:
            bad = sum(b"odd" in line for line in lines)
            return (400, b'{"error":"partial write: x dropped=%d"}' % bad) if bad else (204, b"")

        self.database.answer = answer
        points = [
            Point("m", {"n": f"{n}{'odd' if n % 2 else ''}"}, {"x": 1.0}, TIME) for n in range(4000)
        ]
        refusals = await self.writer().write(points)
        self.assertEqual(len(refusals), 2000)
        self.assertLess(len(self.database.bodies), http.MAX_REQUESTS + 50)

    async def test_too_large(self) -> None:
        """A request that is too large for the server is halved."""
        self.database.answer = lambda lines: (413, b"") if len(lines) > 100 else (204, b"")
        self.assertEqual(await self.writer().write(some_points(1000)), [])
        good = [body for body in self.database.bodies if len(body.splitlines()) <= 100]
        self.assertEqual(sum(len(body.splitlines()) for body in good), 1000)

    async def test_not_the_points_fault(self) -> None:
        """Whatever else goes wrong, no point is refused: all are kept for later."""
        for status, body in (
            (400, b"<html>400 The plain HTTP request was sent to HTTPS port</html>"),
            (404, b'{"error":"database not found"}'), (429, b""), (500, b"oops"), (503, b""),
            (302, b""), (200 + 99, b""),
        ):  # fmt: skip
            self.database.answer = lambda lines, status=status, body=body: (status, body)
            with self.assertRaises(NotWrittenError) as raised:
                await self.writer().write(some_points(3))
            self.assertIn(str(status), str(raised.exception))

    async def test_said_of_every_point(self) -> None:
        """What InfluxDB says of any request, as of one without an organisation, lets no point go."""
        told = b'{"code":"invalid","message":"Please provide either orgID or org"}'
        self.database.answer = lambda lines: (400, told)
        for count in (1, 2, 3, 2000):
            self.database.bodies.clear()
            with self.assertRaises(NotWrittenError) as raised:
                await self.writer(org="").write(some_points(count))
            self.assertIn("HTTP 400: Please provide either orgID or org;", str(raised.exception))
            self.assertLessEqual(len(self.database.bodies), http.MAX_REQUESTS)

    async def test_the_only_point_is_bad(self) -> None:
        """A point without company is refused when what is said is said of points."""
        for said in (
            b"unable to parse 'x': invalid field format",
            b"failure writing points to database: partial write: field type conflict dropped=1",
            b"partial write of line protocol occurred",
        ):
            self.database.answer = lambda lines, said=said: (400, b'{"error":"%s"}' % said)
            self.assertEqual(len(await self.writer().write(some_points(1))), 1)

    async def test_login_page(self) -> None:
        """Pages that answer 200 to anything, or lead to one, acknowledge nothing; it is said where."""
        remedy = "is 'url' the database itself, without a login page or another program before it?"
        for make, more, path in (
            (influxdb.make, {"database": "x"}, "/write"),
            (influxdb2.make, {"bucket": "b", "token": "secret"}, "/api/v2/write"),
            (victoriametrics.make, {"token": "secret"}, "/write"),
        ):
            writer = make(reactor, {"url": self.url} | more)
            self.addCleanup(writer.close)
            for status, body, said in (
                (200, b"<html>Please log in</html>", "with '<html>Please log in</html>'"),
                (200, b"", "with 'no text'"),
                (201, b"{}", "with '{}'"),
                *((n, b"", f"a redirect to {self.url}/login") for n in (301, 302, 303, 307, 308)),
            ):
                self.database.location = f"{self.url}/login" if status > 300 else ""
                self.database.answer = lambda lines, status=status, body=body: (status, body)
                with self.assertRaises(NotWrittenError) as raised:
                    await writer.write(some_points(3))
                self.assertEqual(
                    str(raised.exception),
                    f"{self.url}{path} answers HTTP {status}, {said}, expected 204: {remedy}",
                )
        self.assertEqual({request.path for request in self.database.requests},
                         {b"/write", b"/api/v2/write"})  # fmt: skip

    async def test_login_page_creates_nothing(self) -> None:
        """Nor is such a page taken for a database that has been created."""
        writer = influxdb.make(reactor, {"url": self.url, "database": "x", "create": "true"})
        self.addCleanup(writer.close)
        self.database.answer = lambda lines: (200, b"<html>Please log in</html>")
        with self.assertRaises(NotWrittenError) as raised:
            await writer.open()
        self.assertIn(f"{self.url}/query answers HTTP 200", str(raised.exception))

    async def test_not_permitted(self) -> None:
        """A wrong token is told apart, since only a person can mend it."""
        for status in (401, 403):
            self.database.answer = lambda lines, status=status: (
                status, b'{"message":"unauthorized access"}'
            )  # fmt: skip
            with self.assertRaises(NotPermittedError) as raised:
                await self.writer().write(some_points(3))
            self.assertEqual(
                str(raised.exception), f"not permitted (HTTP {status}): unauthorized access"
            )

    async def test_hanging(self) -> None:
        """A server that never answers ends in a failure, and the connection is closed."""
        self.database.answer = lambda lines: None
        with self.assertRaises(NotWrittenError) as raised:
            await self.writer(timeout="0.2").write(some_points(3))
        self.assertEqual(str(raised.exception), "no answer within 0.2 s")

    async def test_nobody_there(self) -> None:
        """A closed port is said in plain words."""
        with self.assertRaises(NotWrittenError) as raised:
            await self.writer(url="http://127.0.0.1:1").write(some_points(3))
        self.assertEqual(str(raised.exception), "connection refused")


class InfluxTests(TestCase):
    """InfluxDB 1.x itself."""

    server: Influx

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server with a user."""
        cls.server = Influx("admin", "secret")
        cls.server.start()

    @classmethod
    def tearDownClass(cls) -> None:
        """End it."""
        cls.server.stop()

    def writer(self, database: str, **options: Any) -> Any:
        """Make a writer for it."""
        given = {
            "url": self.server.url, "database": database, "username": "admin",
            "password": "secret",
        } | options  # fmt: skip
        writer = influxdb.make(reactor, given)
        self.addCleanup(writer.close)
        return writer

    async def created(self, database: str, **options: Any) -> Any:
        """Return a writer whose database has been created."""
        writer = self.writer(database, create="true", **options)
        await writer.open()
        return writer

    async def test_tags(self) -> None:
        """Tags of any characters arrive as they are, but for what line protocol cannot say."""
        writer = await self.created("t\"a'g s")
        tags = NASTY | {"empty": ""}
        self.assertEqual(await writer.write([Point("m", tags, {"x": 1.5}, TIME + 7)]), [])
        [row] = self.server.run("SELECT * FROM m", "t\"a'g s")
        expected = {name.replace("\n", " "): text for name, text in NASTY.items()} | CHANGED
        self.assertEqual(row, expected | {"x": 1.5, "time": TIME + 7})

    async def test_twice(self) -> None:
        """A point written twice is there once."""
        writer = await self.created("twice")
        for _ in range(2):
            self.assertEqual(await writer.write(some_points(3)), [])
        self.assertEqual(len(self.server.run("SELECT * FROM raw_stats", "twice")), 3)
        await writer.open()  # creating what is there changes nothing
        self.assertEqual(len(self.server.run("SELECT * FROM raw_stats", "twice")), 3)

    async def test_type_conflict(self) -> None:
        """Points in conflict with the type of a field are refused, all others are written."""
        writer = await self.created("conflict")
        # InfluxDB knows types shard by shard, so of the same week.
        self.server.write("conflict", f'raw_stats,dst=z jitter="text" {TIME}')
        points = some_points(500)
        for n in (3, 77, 401):
            points[n] = Point("raw_stats", {"dst": f"d{n}"}, {"jitter": 1.0}, TIME)
        refusals = await writer.write(points)
        self.assertEqual({r.point.tags["dst"] for r in refusals}, {"d3", "d77", "d401"})
        self.assertEqual(
            {r.reason for r in refusals},
            {'field type conflict: input field "jitter" on measurement "raw_stats" is type float,'
             " already exists as type string"},
        )  # fmt: skip
        rows = self.server.run("SELECT count(rtt) FROM raw_stats", "conflict")
        self.assertEqual(rows[0]["count"], 497)

    async def test_retention_policy(self) -> None:
        """Points go into the policy that is named; those it is too late for are refused."""
        writer = await self.created("kept", retention_policy="short")
        self.server.run('CREATE RETENTION POLICY "short" ON "kept" DURATION 1h REPLICATION 1')
        now_ns = time.time_ns()
        points = [Point("m", {}, {"x": 1.0}, TIME), Point("m", {}, {"x": 2.0}, now_ns)]
        refusals = await writer.write(points)
        self.assertEqual([r.point for r in refusals], points[:1])
        self.assertEqual(refusals[0].reason, "points beyond retention policy")
        rows = self.server.run('SELECT * FROM "kept"."short"."m"', "kept")
        self.assertEqual([row["x"] for row in rows], [2.0])

    async def test_no_database(self) -> None:
        """Without ``create`` a missing database is said, and nothing is refused."""
        with self.assertRaises(NotWrittenError) as raised:
            await self.writer("missing").write(some_points(3))
        self.assertEqual(str(raised.exception), 'HTTP 404: database not found: "missing"')

    async def test_database_dropped(self) -> None:
        """With ``create`` a database that was dropped while running is created again."""
        writer = await self.created("again")
        self.server.run("DROP DATABASE again")
        self.assertEqual(await writer.write(some_points(3)), [])
        self.assertEqual(len(self.server.run("SELECT * FROM raw_stats", "again")), 3)

    async def test_wrong_password(self) -> None:
        """A wrong password is said as such, when creating and when writing."""
        writer = self.writer("x", password="wrong", create="true")
        for attempt in (writer.open, lambda: writer.write(some_points(1))):
            with self.assertRaises(NotPermittedError) as raised:
                await attempt()
            self.assertIn("authorization failed", str(raised.exception))


class VictoriaTests(TestCase):
    """VictoriaMetrics itself, through each of the three writers."""

    server: Victoria

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server."""
        cls.server = Victoria()
        cls.server.start()

    @classmethod
    def tearDownClass(cls) -> None:
        """End it."""
        cls.server.stop()

    async def written(self, make: Any, **options: Any) -> list[dict[str, Any]]:
        """Write points of nasty tags twice and return what is there."""
        writer = make(reactor, {"url": self.server.url} | options)
        self.addCleanup(writer.close)
        await writer.open()
        name = make.__module__.rpartition(".")[2]
        points = [Point(name, NASTY, {"rtt": 0.25, "loss": 0.0}, TIME + n * 10**9) for n in (0, 1)]
        for _ in range(2):
            self.assertEqual(await writer.write(points), [])
        return sorted(
            self.server.export(f'{{__name__=~"{name}_.*"}}'), key=lambda s: s["metric"]["__name__"]
        )

    def check(self, name: str, found: list[dict[str, Any]], **more: str) -> None:
        """See that two metrics of two samples are there, once."""
        tags = {n.replace("\n", " "): text for n, text in NASTY.items()} | CHANGED | more
        for series, field, value in zip(found, ("loss", "rtt"), (0, 0.25), strict=True):
            self.assertEqual(series["metric"], tags | {"__name__": f"{name}_{field}"})
            self.assertEqual(series["values"], [value, value])
            self.assertEqual(series["timestamps"], [TIME // 10**6, TIME // 10**6 + 1000])

    async def test_own(self) -> None:
        """The writer that is made for it."""
        self.check("victoriametrics", await self.written(victoriametrics.make))

    async def test_as_influxdb(self) -> None:
        """It takes what is meant for InfluxDB 1.x; the database becomes a label."""
        found = await self.written(influxdb.make, database="llama")
        self.check("influxdb", found, db="llama")

    async def test_as_influxdb2(self) -> None:
        """It takes what is meant for InfluxDB 2.x."""
        self.check("influxdb2", await self.written(influxdb2.make, bucket="llama"))


class OptionTests(TestCase):
    """What is wrong with the options of these writers is said in one line."""

    def test_wrong(self) -> None:
        """Each mistake has its message."""
        for make, options, message in (
            (influxdb.make, {}, "'database' is missing"),
            (influxdb.make, {"database": "x", "url": "db:8086"},
             "'url': 'db:8086' is no http:// or https:// address"),
            (influxdb.make, {"database": "x", "url": "http://me:pw@db"},
             "'url': a URL has a user or a password in it, which is not sent"),
            (influxdb.make, {"database": "x", "url": "http://db?u=me&p=pw"},
             "'url': a URL has a query or a fragment, expected one such as http://tsdb:8086"),
            (influxdb.make, {"database": "x", "url": "http://[FE80::1%eth0]:8086"},
             "'url': 'http://[FE80::1%eth0]:8086' is link-local: servers are not asked through an"
             " interface; expected another address"),
            (influxdb.make, {"database": "x", "create": "perhaps"},
             "'create' is 'perhaps', expected true or false"),
            (influxdb.make, {"database": "x", "timeout": "soon"},
             "'timeout' is 'soon', expected a time of at least 0.1 s such as 30, 30s or 2d"),
            (influxdb.make, {"database": "x", "databse": "y"}, "unknown key 'databse'"),
            (influxdb.make, {"database": "x", "ca_file": "/nowhere"},
             "ca_file /nowhere: No such file or directory"),
            (influxdb2.make, {}, "'bucket' is missing"),
            (influxdb2.make, {"bucket": "b", "token": "a\nb"},
             "'token' holds characters that no token has"),
            (victoriametrics.make, {"database": "x"}, "unknown key 'database'"),
        ):  # fmt: skip
            with self.assertRaises(ValueError) as raised:
                make(reactor, options)
            self.assertEqual(str(raised.exception), message)

    def test_names(self) -> None:
        """A writer's name tells it from others and holds no secret."""
        options = {"url": "http://db:8086/", "database": "x", "username": "u", "password": "pw"}
        self.assertEqual(influxdb.make(reactor, options).name, "influxdb http://db:8086/x")
        self.assertEqual(influxdb.make(reactor, options | {"name": "main"}).name, "main")
