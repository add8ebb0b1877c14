"""One HTTP request, against servers that stall: it ends in time and leaves nothing open."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

from scraper_case import until
from self_signed import self_signed_pem
from twisted.internet import reactor
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase
from twisted.web.client import ResponseFailed
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama.http.client import (
    Reply,
    TooLargeError,
    UnusableError,
    agent_of,
    connection_pool,
    explain,
    request,
)

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ZIPPED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1000000\r\n\r\n"
HALF_ZIPPED = gzip.compress(bytes(range(256)) * 100)[:-100]


class Stalling(Protocol):
    """Sends what its factory holds when it is asked, and then nothing more."""

    def connectionMade(self) -> None:
        """Count it."""
        self.factory.open.add(self)  # type: ignore[attr-defined]

    def connectionLost(self, reason: Any = None) -> None:
        """Count it no more."""
        self.factory.open.discard(self)  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        """Answer."""
        self.transport.write(self.factory.answer)  # type: ignore[attr-defined]


class Telling(Resource):
    """Tells who is asked, in gzip; ``/moved`` is elsewhere."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        """Answer."""
        if request.path == b"/moved":
            request.redirect(b"/here")
            return b"it moved"
        request.setHeader("Content-Encoding", "gzip")
        return gzip.compress(b"%s %s %s" % (
            request.method, request.getHeader("Host").encode(), request.content.read()
        ))  # fmt: skip


class AnswerTests(TestCase):
    """Answers that come."""

    async def test_addresses(self) -> None:
        """A host may be an address of either family; an answer may be packed, or elsewhere."""
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        agent = agent_of(reactor, pool, 1.0, None)
        for address, host in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
            port = reactor.listenTCP(0, Site(Telling()), interface=address)
            self.addCleanup(port.stopListening)
            place = f"{host}:{port.getHost().port}"
            for method, path, status, said in (
                ("GET", "here", 200, f"GET {place} "),
                ("GET", "moved", 200, f"GET {place} "),
                ("POST", "here", 200, f"POST {place} {{}}"),
                ("POST", "moved", 302, "it moved"),
            ):
                reply = await request(
                    agent, reactor, method, f"http://{place}/{path}", timeout_s=5, max_octets=1000,
                    body=b"{}" if method == "POST" else None,
                )  # fmt: skip
                self.assertEqual((reply.status, reply.body.decode()), (status, said))


class Saying(Resource):
    """Answers with the headers and the body that it is told to, by path; notes who was asked what."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, tuple[int, list[tuple[str, bytes]], bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def render(self, request: Any) -> bytes:
        """Answer."""
        path = request.uri.decode()
        self.asked.append((path, request.getHeader("Authorization")))
        status, headers, body = self.answers.get(path, (200, [], b"here"))
        request.setResponseCode(status)
        for name, value in headers:
            request.responseHeaders.addRawHeader(name, value)
        return body


class SayingCase(TestCase):
    """A server on a free port that says what it is told to."""

    def setUp(self) -> None:
        """Listen."""
        self.server, self.url = self.listen()
        self.pool = connection_pool(reactor)
        self.agent = agent_of(reactor, self.pool, 1.0, None)

    async def tearDown(self) -> None:
        """Close the connections; one that was refused may only now be done."""
        await deferLater(reactor, 0)
        await self.pool.closeCachedConnections()

    def listen(self) -> tuple[Saying, str]:
        """Return a server, and its URL."""
        server = Saying()
        port = reactor.listenTCP(0, Site(server), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return server, f"http://127.0.0.1:{port.getHost().port}"

    async def ask(self, path: str, max_octets: int = 1_000_000, method: str = "GET") -> Reply:
        """Make a request."""
        return await request(
            self.agent, reactor, method, self.url + path, timeout_s=20, max_octets=max_octets,
            headers={"Authorization": "Bearer secret"},
        )  # fmt: skip


class PackedTests(SayingCase):
    """Bodies that are packed, well or not."""

    async def packed(self, codings: list[bytes], body: bytes, max_octets: int = 1_000_000) -> bytes:
        """Return what is made of a body with these Content-Encoding headers."""
        headers = [("Content-Encoding", coding) for coding in codings]
        self.server.answers["/"] = 200, headers, body
        return (await self.ask("/", max_octets)).body

    async def test_one_gzip_or_none(self) -> None:
        """A body may be packed by gzip, under either name, in one member or several, or not at all."""
        zipped = gzip.compress(b"abc" * 1000)
        for codings, body in (
            ([], b"abc" * 1000),
            ([b""], b"abc" * 1000),
            ([b"identity"], b"abc" * 1000),
            ([b"gzip"], zipped),
            ([b"X-GZip"], zipped),
            ([b"gzip"], gzip.compress(b"abc" * 400) + gzip.compress(b"") + gzip.compress(b"abc" * 600)),
        ):  # fmt: skip
            self.assertEqual(await self.packed(codings, body, 3000), b"abc" * 1000)
            with self.assertRaises(TooLargeError):
                await self.packed(codings, body, 2999)
        self.server.answers["/"] = 204, [("Content-Encoding", b"gzip")], b""
        self.assertEqual((await self.ask("/")).body, b"")

    async def test_other_codings(self) -> None:
        """Any other coding is refused, and gzip that is not the only one."""
        twice = gzip.compress(gzip.compress(b"abc"))
        for codings, said in (
            ([b"gzip, gzip"], "gzip, gzip"),
            ([b"gzip", b"gzip"], "gzip, gzip"),
            ([b"x-gzip,identity"], "x-gzip, identity"),
            ([b"br"], "br"),
            ([b"\xff\x1bdeflate"], "\ufffd\ufffddeflate"),
        ):
            with self.assertRaises(UnusableError) as raised:
                await self.packed(codings, twice)
            self.assertEqual(
                explain(raised.exception, 1), f"its body is packed as {said}, not as gzip once"
            )

    async def test_damaged(self) -> None:
        """A body that breaks off, is damaged or goes on as something else is no answer."""
        zipped = gzip.compress(bytes(range(256)) * 100)
        wrong = zipped[:-5] + bytes([zipped[-5] ^ 1]) + zipped[-4:]
        for body in (zipped[:-1], zipped[:-100], zipped[:5], zipped + b"\x1f", zipped + b"\0"):
            with self.assertRaises(UnusableError) as raised:
                await self.packed([b"gzip"], body)
            self.assertEqual(str(raised.exception), "its gzip breaks off")
        for body in (wrong, b"not packed at all", zipped + b"garbage", zipped + b"\0\0"):
            with self.assertRaises(UnusableError) as raised:
                await self.packed([b"gzip"], body)
            self.assertIn("its gzip is damaged (", str(raised.exception))

    async def test_bombs_take_no_memory(self) -> None:
        """However much a body would be unpacked, no more than the limit of it is ever in memory."""
        squeezed = zlib.compressobj(9, wbits=31)
        bomb = b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(256)) + squeezed.flush()
        self.assertLess(len(bomb), 300_000)
        members = gzip.compress(bytes(1 << 18), 9) * 1024
        nested = gzip.compress(bomb, 9)
        for codings, body, problem in (
            ([b"gzip"], bomb, TooLargeError),
            ([b"gzip"], members, TooLargeError),
            ([b"gzip, gzip"], nested, UnusableError),
            ([b"gzip", b"gzip"], nested, UnusableError),
        ):
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            with self.assertRaises(problem):
                await self.packed(codings, body, 1 << 20)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(most, 8 << 20)

    async def test_members_without_anything_in_them(self) -> None:
        """What is unpacked to nothing has the same limit: else it would be work without end."""
        with self.assertRaises(TooLargeError):
            await self.packed([b"gzip"], gzip.compress(b"") * 5000, 1 << 16)


class RedirectTests(SayingCase):
    """Answers that are elsewhere."""

    async def test_same_server(self) -> None:
        """A GET follows redirects on its server, shows its token there, and ends if they do not."""
        for location in (b"/there?a=b", f"{self.url}/there?a=b".encode(), b"there?a=b#part"):
            for status in (301, 302, 303, 307, 308):
                self.server.asked.clear()
                self.server.answers["/"] = status, [("Location", location)], b"moved"
                self.assertEqual((await self.ask("/")).body, b"here")
                self.assertEqual(
                    self.server.asked, [("/", "Bearer secret"), ("/there?a=b", "Bearer secret")]
                )
        self.server.answers["/round"] = 302, [("Location", b"/round")], b""
        with self.assertRaises(UnusableError) as raised:
            await self.ask("/round")
        self.assertEqual(str(raised.exception), "more than 5 redirects in a row")
        self.server.answers["/nowhere"] = 302, [], b""
        self.assertEqual((await self.ask("/nowhere")).status, 302)

    async def test_other_servers(self) -> None:
        """No redirect to another scheme, host or port is followed, and it is said where it leads."""
        other, url = self.listen()
        port = self.url.rpartition(":")[2]
        for location in (
            f"{url}/", url[5:], f"https://127.0.0.1:{port}/", f"http://localhost:{port}/",
            f"http://127.0.0.1:{port}@{url[7:]}/", "http://169.254.169.254/latest", "file:///etc/passwd",
        ):  # fmt: skip
            self.server.answers["/"] = 307, [("Location", location.encode())], b""
            with self.assertRaises(UnusableError) as raised:
                await self.ask("/")
            self.assertEqual(
                explain(raised.exception, 1),
                f"a redirect to {location}, on another server, which is not followed: if that is"
                " the right one, give its URL instead",
            )
        self.assertEqual(other.asked, [])

    async def test_strange_locations(self) -> None:
        """What is no URL is not followed, and is said in one line of printable characters."""
        for location in (
            b"\xff/",
            b"/a b",
            b"http://[::1/",
            b"http://127.0.0.1:99999/",
            b"/\x1b[2J",
        ):
            self.server.asked.clear()
            self.server.answers["/"] = 302, [("Location", location)], b""
            with self.assertRaises(UnusableError) as raised:
                await self.ask("/")
            self.assertRegex(
                str(raised.exception), r"^a redirect to '[^\x00-\x1f]+', which is no URL$"
            )
            self.assertEqual(len(self.server.asked), 1)

    async def test_posts_follow_none(self) -> None:
        """Of anything but a GET the redirect itself is the answer."""
        self.server.answers["/"] = 307, [("Location", b"/there")], b"moved"
        reply = await self.ask("/", method="POST")
        self.assertEqual((reply.status, reply.header("Location")), (307, "/there"))


class StallTests(TestCase):
    """Answers that never end."""

    def setUp(self) -> None:
        """Listen with and without TLS."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-http-client-"))
        self.addCleanup(shutil.rmtree, self.directory)
        certificate, key = self_signed_pem("localhost")
        (self.directory / "ca.pem").write_bytes(certificate)
        self.factory: Any = Factory.forProtocol(Stalling)
        self.factory.open = set()
        pair = PrivateCertificate.loadPEM(certificate + key)
        plain = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.addCleanup(plain.stopListening)
        secure = reactor.listenSSL(0, self.factory, pair.options(), interface="127.0.0.1")
        self.addCleanup(secure.stopListening)
        self.urls = (
            f"http://127.0.0.1:{plain.getHost().port}/",
            f"https://localhost:{secure.getHost().port}/",
        )
        self.pool = connection_pool(reactor)
        self.addCleanup(self.pool.closeCachedConnections)
        self.client = agent_of(reactor, self.pool, 1.0, str(self.directory / "ca.pem"))

    async def ask(self, url: str, **more: Any) -> Reply:
        """Make a request that may take 0.2 s."""
        given = {"timeout_s": 0.2, "max_octets": 10**9} | more
        return await request(self.client, reactor, "GET", url, **given)

    async def test_connection_is_closed(self) -> None:
        """However the body comes, a timeout closes the connection, which the server sees."""
        for url in self.urls:
            for answer in (
                LENGTH,
                LENGTH + b"x" * 1000,
                CHUNKED + b"5\r\nhello\r\n",
                ZIPPED + HALF_ZIPPED,
                b"",
                b"HTTP/1.1 200 OK\r\nConte",
            ):
                self.factory.answer = answer
                with self.assertRaises(DeferredTimeoutError) as raised:
                    await self.ask(url)
                self.assertEqual(explain(raised.exception, 0.2), "no answer within 0.2 s")
                await until(lambda: not self.factory.open, f"{url} {answer!r} closed", 5)

    async def test_headers_without_end(self) -> None:
        """Headers that go on and on are given up long before they fill memory or log; a few are taken."""
        begun = b"HTTP/1.1 200 OK\r\n"
        for url in self.urls:
            for endless in (
                begun + b"A: b\r\n" * 500_000,
                begun + b"A: b\r\n" + b" more\r\n" * 500_000,
                b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
            ):
                self.factory.answer = endless
                with self.assertRaises(ResponseFailed) as raised, capturedLogs() as logged:
                    await self.ask(url, timeout_s=20)
                self.assertEqual(logged, [])
                said = explain(raised.exception, 20)
                self.assertEqual(said, "more than 262,144 octets of headers")
                await until(lambda: not self.factory.open, f"{url} closed", 5)
        self.factory.answer = begun + b"A: b\r\n" * 10_000 + b"Content-Length: 2\r\n\r\nok"
        for _ in range(8):  # on one connection, which they all together would be too much for
            self.assertEqual((await self.ask(self.urls[0], timeout_s=20)).body, b"ok")
        self.assertEqual(len(self.factory.open), 1)

    async def test_too_large(self) -> None:
        """A body that exceeds the limit closes the connection, too, packed as it may be."""
        squeezed = zlib.compressobj(wbits=31)
        bomb = squeezed.compress(bytes(10**6)) + squeezed.flush(zlib.Z_SYNC_FLUSH)
        for url in self.urls:
            for answer in (
                LENGTH + b"x" * 5001,
                CHUNKED + b"ffff\r\n" + b"x" * 5001,
                ZIPPED + bomb,
            ):
                self.factory.answer = answer
                with self.assertRaises(TooLargeError):
                    await self.ask(url, max_octets=5000)
                await until(lambda: not self.factory.open, f"{url} {answer[:80]!r} closed", 5)
