"""One HTTP request, against servers that stall: it ends in time and leaves nothing open."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

from scraper_case import until
from test_writers_tls import self_signed
from twisted.internet import reactor
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama.http_client import Reply, TooLargeError, agent_of, connection_pool, explain, request

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


class StallTests(TestCase):
    """Answers that never end."""

    def setUp(self) -> None:
        """Listen with and without TLS."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-http-client-"))
        self.addCleanup(shutil.rmtree, self.directory)
        certificate, key = self_signed("localhost")
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
