"""The HTTP that every service shares: where it listens, who may ask, what it refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest

from self_signed import self_signed
from servers import free_port
from services import Service, until
from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.test.requesthelper import DummyRequest

from llama.http import server as http
from llama.http.host import asked_by_this_machine
from llama.http.shortage import QUIET_S, Shortage
from llama.http.site import Channel


def serving(test: TestCase, where: str, **pages: Any) -> http.HttpService:
    """Return a running service with these pages, which ends with a test."""
    root = http.JsonRoot()
    for name, page in pages.items():
        root.putChild(name.encode(), page)
    service = http.HttpService(reactor, where, root, what="test")
    service.startService()
    test.addCleanup(service.stopService)
    return service


class AddressTests(SynchronousTestCase):
    def test_is_local(self):
        """Loopback addresses and Unix sockets are local, everything else is not."""
        self.assertTrue(http.is_local(IPv4Address("TCP", "127.0.0.53", 1)))
        self.assertTrue(http.is_local(IPv6Address("TCP", "::1", 1)))
        self.assertTrue(http.is_local(IPv6Address("TCP", "::ffff:127.0.0.1", 1)))
        self.assertFalse(http.is_local(IPv6Address("TCP", "::ffff:10.0.0.1", 1)))
        self.assertTrue(http.is_local(UNIXAddress("/run/x")))
        self.assertFalse(http.is_local(IPv4Address("TCP", "0.0.0.0", 1)))
        self.assertFalse(http.is_local(IPv6Address("TCP", "::", 1)))

    def test_url(self):
        """An address is shown as people would type it."""
        self.assertEqual(http.url_of(IPv6Address("TCP", "::1", 80)), "http://[::1]:80/")
        self.assertEqual(
            http.url_of(IPv4Address("TCP", "10.0.0.1", 443), secure=True), "https://10.0.0.1:443/"
        )


class _Echo(Resource):
    """Answers with the query as `http.Query` reads it."""

    isLeaf = True

    def render_GET(self, request):
        query = http.Query(request)
        try:
            answer = {
                "text": query.text("text"),
                "limit": query.whole("limit", 10, low=1, high=100),
                "lossy": query.flag("lossy"),
            }
        except http.BadRequestError as bad:
            return http.json_error(request, 400, str(bad))
        http.set_json(request)
        return json.dumps(answer).encode()


def _client(token: str | None = None) -> tuple[HTTPClient, RequestTraversalAgent]:
    root = http.JsonRoot()
    root.putChild(b"echo", _Echo())
    agent = RequestTraversalAgent(http.Guard(root, token))
    return HTTPClient(agent), agent


class Asking(SynchronousTestCase):
    def ask(self, path: str, method: str = "GET", token: str | None = None, **kwargs):
        """Return the answer to a request, and its body."""
        client, _ = _client(token)
        response = self.successResultOf(client.request(method, f"http://x{path}", **kwargs))
        body = self.successResultOf(response.content())
        return response, body

    def test_status(self):
        """/status says ok, in plain text."""
        response, body = self.ask("/status")
        self.assertEqual((response.code, body), (200, b"ok"))
        self.assertEqual(
            response.headers.getRawHeaders("Content-Type"), ["text/plain; charset=utf-8"]
        )

    def test_head(self):
        """HEAD is answered like GET without the body."""
        response, body = self.ask("/status", "HEAD")
        self.assertEqual((response.code, body), (200, b""))

    def test_not_found(self):
        """A path that is not served gives 404 as JSON, never a page."""
        response, body = self.ask("/nowhere/at/all")
        self.assertEqual(response.code, 404)
        self.assertEqual(json.loads(body), {"error": "nothing is served at /nowhere/at/all"})

    def test_only_reading(self):
        """Methods that could change something are refused, as JSON, and the right ones named."""
        response, body = self.ask("/status", "DELETE")
        self.assertEqual(response.code, 405)
        self.assertEqual(response.headers.getRawHeaders("Allow"), ["GET, HEAD"])
        self.assertIn("error", json.loads(body))

    def test_security_headers(self):
        """Every answer forbids what a browser could be tricked into, and names no version."""
        for path in ("/status", "/nowhere"):
            headers = self.ask(path)[0].headers
            self.assertEqual(headers.getRawHeaders("Server"), ["llama"])
            self.assertEqual(headers.getRawHeaders("X-Content-Type-Options"), ["nosniff"])
            self.assertIn("default-src 'none'", headers.getRawHeaders("Content-Security-Policy")[0])

    def test_query(self):
        """Parameters are read strictly; unknown ones are ignored."""
        _, body = self.ask("/echo?text=a%20b&limit=7&lossy=1&unknown=x")
        self.assertEqual(json.loads(body), {"text": "a b", "limit": 7, "lossy": True})
        _, body = self.ask("/echo")
        self.assertEqual(json.loads(body), {"text": None, "limit": 10, "lossy": False})

    def test_gzip(self):
        """Who names gzip, or anything at all, takes it, unless with a weight of nothing."""
        for accepted, expected in (
            (None, False),
            ("", False),
            ("identity", False),
            ("x-gzipped", False),
            ("gzip", True),
            ("br;q=1.0, GZip;q=0.001", True),
            ("gzip;q=0.5", True),
            ("gzip;q=0", False),
            ("gzip ; Q=0.000", False),
            ("*", True),
            ("*;q=0", False),
            ("*;q=0, gzip", True),
            ("gzip;q=0, *", False),
            (b"\xff", False),
            (b"\xff, gzip", True),
        ):
            request = DummyRequest([])
            if accepted is not None:
                request.requestHeaders.setRawHeaders("Accept-Encoding", [accepted])
            self.assertIs(http.takes_gzip(request), expected, accepted)

    def test_bad_values(self):
        """A bad value gives 400 and one line that says what was expected."""
        for query, message in (
            ("limit=ten", "limit=ten: expected a whole number"),
            ("limit=-1", "limit=-1: expected a whole number"),
            ("limit=0", "limit=0: expected 1 to 100"),
            ("limit=1%0A2", "limit=1\\n2: expected a whole number"),
            ("limit=5&limit=7", "limit: given 2 times, expected once"),
            ("lossy=yes", "lossy=yes: expected 0 or 1"),
            ("text=%ff", "text: not UTF-8"),
        ):
            response, body = self.ask(f"/echo?{query}")
            self.assertEqual((response.code, json.loads(body)), (400, {"error": message}))

    def test_impossible_addresses(self):
        """A path or a host that is none is refused before an application stumbles over it."""
        response, body = self.ask("/status%ff")
        self.assertEqual((response.code, json.loads(body)["error"]), (400, "the path is not UTF-8"))
        for host in ("a" * 64, "a..b", "x y", "a/b", "[1", "h:port", "\u00e9"):
            response, body = self.ask("/status", headers={"Host": host})
            self.assertEqual(response.code, 400, host)
            self.assertIn("Host", json.loads(body)["error"])
        for host in ("localhost", "a.example.net.:80", "[::1]:5000", "10.0.0.1:1", "my_host"):
            self.assertEqual(self.ask("/status", headers={"Host": host})[0].code, 200, host)

    def test_token_wanted(self):
        """With a token, who does not show it gets 401 and is told how to."""
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "Digest secret"},
            {"Authorization": "Basic !!!"},
            {"Authorization": "Basic " + b64encode(b"secret").decode()},
        ):
            response, body = self.ask("/echo", token="secret", headers=headers)
            self.assertEqual(response.code, 401, headers)
            self.assertIn(
                'Bearer realm="llama"', response.headers.getRawHeaders("WWW-Authenticate")
            )
            self.assertIn("token", json.loads(body)["error"])

    def test_token_shown(self):
        """Who shows the token, as a program or as a browser does, is answered."""
        for shown in (
            "Bearer secret",
            "bearer secret",
            "Basic " + b64encode(b"me:secret").decode(),
        ):
            response, _ = self.ask("/echo", token="secret", headers={"Authorization": shown})
            self.assertEqual(response.code, 200, shown)

    def test_status_needs_no_token(self):
        """A health check needs no token, and learns nothing else."""
        self.assertEqual(self.ask("/status", token="secret")[1], b"ok")
        self.assertEqual(self.ask("/status/more", token="secret")[0].code, 401)


class _Never(Resource):
    """Never answers."""

    isLeaf = True

    def render_GET(self, request):
        self.request = request
        return NOT_DONE_YET


class _Big(Resource):
    """Answers with more than any socket buffer holds."""

    isLeaf = True

    def render_GET(self, request):
        return bytes(20_000_000)


class _WhoAsks(Resource):
    """Answers whether a program of this machine asks."""

    isLeaf = True

    def render_GET(self, request):
        return b"%r" % asked_by_this_machine(request)


class _Transport(StringTransport):
    """Remembers being aborted."""

    aborted = False

    def abortConnection(self):
        self.aborted = True
        super().abortConnection()


class _OfFewFiles(Service):
    """A service that may open no more than 60 files."""

    def command(self) -> list[str]:
        return ["sh", "-c", 'ulimit -n 60; exec "$@"', "sh", *super().command()]


class FewFiles(SynchronousTestCase):
    def test_idle_connections_make_room(self):
        """Where files give out before connections do, who says nothing keeps nobody out, either."""
        port = free_port()
        where = f"127.0.0.1:{port}"
        options = "--port", "0", "--interface", "127.0.0.1", "--api", where
        service = _OfFewFiles("llama-reflector", *options).start()
        self.addCleanup(service.stop)
        until(lambda: socket.create_connection(("127.0.0.1", port), 5).close() or True, where)
        for _ in range(30):
            idle = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(5)]
            for each in idle:
                self.addCleanup(each.close)

        def asked() -> bool:  # those that it accepts at one go may be too many all the same
            with urllib.request.urlopen(f"http://{where}/status", timeout=10) as answer:
                return answer.read() == b"ok"

        until(asked, "an answer")
        self.assertLess(len(os.listdir(f"/proc/{service.pid}/fd")), 45)


class Limits(SynchronousTestCase):
    def setUp(self):
        """Serve a root with a child that never answers, on a clock of our own."""
        self.clock = Clock()
        root = http.JsonRoot()
        self.never = _Never()
        root.putChild(b"never", self.never)
        self.site = http.HttpSite(
            http.Guard(root),
            reactor=self.clock,
            max_connections=2,
            timeout_s=60.0,
            max_body=100,
        )

    def connect(self):
        """Return a channel of the site's and its transport."""
        channel = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        transport = _Transport()
        channel.makeConnection(transport)
        return channel, transport

    def ask(self, channel):
        """Have a channel be busy with a request."""
        channel.dataReceived(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")

    def test_connections(self):
        """Beyond the limit a connection is closed if the others are busy; when one goes, it may come."""
        first, _ = self.connect()
        self.ask(first)
        self.ask(self.connect()[0])
        self.assertTrue(self.connect()[1].aborted)
        first.connectionLost()
        self.assertFalse(self.connect()[1].aborted)

    def test_the_oldest_idle_connection_makes_room(self):
        """Who holds connections and says nothing keeps nobody else out."""
        busy, busy_transport = self.connect()
        self.ask(busy)
        idle = [self.connect()[1]]
        for n in range(5):
            _, transport = self.connect()
            self.assertFalse(transport.aborted)
            self.assertEqual([old.aborted for old in idle], [True] * (n + 1))
            idle.append(transport)
        self.assertFalse(busy_transport.aborted)

    def test_unread_answers_make_room(self):
        """Nor does who asks and does not read; who waits for an answer is left alone."""
        first, first_transport = self.connect()
        second, second_transport = self.connect()
        self.ask(first)
        self.ask(second)
        second.pauseProducing()
        self.assertIsNotNone(self.connect()[0])
        self.assertEqual((first_transport.aborted, second_transport.aborted), (False, True))

    def test_trickled_request(self):
        """A request that comes in drops does not hold its connection beyond the limit."""
        channel, transport = self.connect()
        for octet in b"GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 100:
            channel.dataReceived(bytes([octet]))
            self.clock.advance(1)
        self.assertTrue(transport.disconnecting)

    def test_idle_clients_leave_no_trace(self):
        """Nobody fills the log by connections of which nothing comes, or whose answers are not read."""
        with capturedLogs() as events:
            for request in (b"", b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n"):
                channel, transport = self.connect()
                channel.dataReceived(request)
                channel.pauseProducing()
                self.clock.advance(61)
                self.clock.advance(61)
                self.assertTrue(transport.disconnecting or transport.aborted)
        self.assertEqual([formatEvent(event) for event in events], [])

    def test_idle_between_requests(self):
        """After an answer the time for the next request starts anew."""
        channel, transport = self.connect()
        for _ in range(3):
            self.clock.advance(50)
            channel.dataReceived(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(transport.value().count(b"HTTP/1.1 200 OK"), 3)
        self.assertFalse(transport.disconnecting)
        self.clock.advance(61)
        self.assertTrue(transport.disconnecting)

    def test_unread_answer(self):
        """A client that does not read its answer is dropped after a while."""
        channel, transport = self.connect()
        channel.dataReceived(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        channel.pauseProducing()
        self.clock.advance(Channel.stall_s - 1)
        channel.resumeProducing()
        self.clock.advance(2)
        self.assertFalse(transport.aborted)
        channel.pauseProducing()
        self.clock.advance(Channel.stall_s + 1)
        self.assertTrue(transport.aborted)

    def test_unread_last_answer(self):
        """A client that does not read the answer after which we hang up is dropped as well."""
        channel, transport = self.connect()
        channel.dataReceived(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertTrue(transport.disconnecting)
        self.clock.advance(Channel.stall_s - 1)
        self.assertFalse(transport.aborted)
        self.clock.advance(2)
        self.assertTrue(transport.aborted)
        channel.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slow_reader(self):
        """A client that takes its time, but goes on reading, gets its whole answer."""
        channel, transport = self.connect()
        unsent = 1_000_000
        self.patch(channel, "unsent", lambda: unsent)
        self.ask(channel)
        channel.pauseProducing()
        for _ in range(9):
            unsent -= 100_000
            self.clock.advance(Channel.stall_s)
        self.assertFalse(transport.aborted)
        self.clock.advance(Channel.stall_s)
        self.assertTrue(transport.aborted)

    def test_slow_reader_asks_no_more(self):
        """Nor is it cut off for not asking again while it reads."""
        channel, transport = self.connect()
        unsent = 1_000_000
        self.patch(channel, "unsent", lambda: unsent)
        channel.dataReceived(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(9):
            unsent -= 100_000
            self.clock.pump([Channel.stall_s])
        self.assertTrue(transport.disconnecting)
        self.assertFalse(transport.aborted)

    def test_stated_body(self):
        """A body that says it is too long is refused before it is sent."""
        channel, transport = self.connect()
        channel.dataReceived(b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n")
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 413 "))
        self.assertTrue(transport.disconnecting)

    def test_head_leaves_no_trace(self):
        """HEAD is answered without a body, and without a line in the log, also where it is refused."""
        for path, code, length in ((b"/status", 200, 2), (b"/nowhere", 404, 42)):
            channel, transport = self.connect()
            with capturedLogs() as logged:
                channel.dataReceived(b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            answer = transport.value()
            self.assertTrue(answer.startswith(b"HTTP/1.1 %d " % code), answer)
            self.assertIn(b"\r\nContent-Length: %d\r\n" % length, answer)
            self.assertTrue(answer.endswith(b"\r\n\r\n"))
            self.assertEqual(logged, [])
            channel.connectionLost()

    def test_two_hosts(self):
        """Who names two hosts is refused: a proxy on the way may have gone by the other one."""
        channel, transport = self.connect()
        channel.dataReceived(b"GET /status HTTP/1.1\r\nHost: evil.example\r\nHost: x\r\n\r\n")
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 400 "))
        self.assertIn(b"more than one Host header", transport.value())

    def test_length_without_end(self):
        """A length of more digits than are read as a number is refused like any that is too long."""
        for more in (b"", b"Accept: x\r\n"):
            channel, transport = self.connect()
            length = b"Content-Length: " + b"9" * 5000 + b"\r\n"
            channel.dataReceived(b"POST /status HTTP/1.1\r\nHost: x\r\n" + length + more + b"\r\n")
            self.assertEqual(transport.value().count(b"HTTP/1.1"), 1)
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 413 "))
            self.assertTrue(transport.disconnecting)
            channel.connectionLost()

    def test_unstated_body(self):
        """A body without a stated length is refused, once, when it grows too long."""
        channel, transport = self.connect()
        channel.dataReceived(
            b"POST /status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(10):
            channel.dataReceived(b"20\r\n" + b"x" * 32 + b"\r\n")
        self.assertEqual(transport.value().count(b"HTTP/1.1"), 1)
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 413 "))

    def test_short_body(self):
        """A short body does no harm: the request is answered on its merits."""
        channel, transport = self.connect()
        channel.dataReceived(b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        channel.dataReceived(b"x" * 100)
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 200 OK"))

    def test_headers(self):
        """Too many headers, or too long ones, are refused."""
        for headers in (b"A: b\r\n" * 65, (b"A: " + b"b" * 9000 + b"\r\n") * 2):
            channel, transport = self.connect()
            channel.dataReceived(b"GET /status HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
            self.assertTrue(transport.value().startswith(b"HTTP/1.1 400 "), transport.value())
            channel.connectionLost()

    def test_endless_line(self):
        """A line that does not end ends the connection."""
        channel, transport = self.connect()
        channel.dataReceived(b"GET /" + b"x" * 20000)
        self.assertTrue(transport.disconnecting)

    def test_close(self):
        """Closing hangs up on idle clients at once, and on busy ones when the grace is over."""
        idle, idle_transport = self.connect()
        busy, busy_transport = self.connect()
        busy.dataReceived(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        closed = self.site.close(2.0)
        self.assertTrue(idle_transport.disconnecting)
        self.assertFalse(busy_transport.disconnecting)
        idle.connectionLost()
        self.assertNoResult(closed)
        self.clock.advance(2)
        self.assertTrue(busy_transport.aborted)
        busy.connectionLost()
        self.successResultOf(closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_waits_for_answer(self):
        """An answer under way when the service stops is finished, then the connection closed."""
        channel, transport = self.connect()
        channel.dataReceived(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        closed = self.site.close(2.0)
        self.never.request.write(b"late")
        self.never.request.finish()
        self.assertIn(b"late", transport.value())
        self.assertTrue(transport.disconnecting)
        channel.connectionLost()
        self.successResultOf(closed)

    def test_close_without_connections(self):
        """With nobody connected there is nothing to wait for."""
        self.successResultOf(self.site.close(2.0))


def _is_closed(client: socket.socket) -> bool:
    """Say whether the server has closed a connection on which it says nothing."""
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


class Shortages(SynchronousTestCase):
    def test_its_end_is_said(self):
        """Once none has been turned away for a minute that is said; until then, each reason once."""
        clock = Clock()
        shortage = Shortage(clock, "test")
        port = SimpleNamespace(_logger=None)
        shortage.watch(port)
        with capturedLogs() as events:
            for reason in ("ENFILE", "ENOMEM"):
                for _ in range(3):
                    port._logger.info("({acceptError})", acceptError=reason)
                    clock.advance(QUIET_S - 1)
                clock.advance(1)
            for reason in ("ECONNABORTED", "EMFILE", "ECONNABORTED", "EMFILE"):
                port._logger.info("({acceptError})", acceptError=reason)
                clock.advance(QUIET_S - 1)
            shortage.stop()
            clock.advance(QUIET_S)
        away = "test: connections are turned away ({})"
        again = "test: for 60 s no connection was turned away any more"
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                away.format("ENFILE"), again, away.format("ENOMEM"), again, away.format("ECONNABORTED"),
                f"{away.format('EMFILE')}: this process may have no more files open, see LimitNOFILE="
                " of its unit",
            ],
        )  # fmt: skip


class OverLoopback(TestCase):
    """The service on a real socket."""

    def serve(self, where: str = "127.0.0.1:0", **kwargs) -> http.HttpService:
        """Return a running service, which ends with the test."""
        service = http.HttpService(reactor, where, http.JsonRoot(), what="test", **kwargs)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    async def get(self, url: str, **kwargs):
        """Return the answer of a real client's request, and its body."""
        pool = HTTPConnectionPool(reactor, persistent=False)
        response = await HTTPClient(Agent(reactor, pool=pool)).get(url, **kwargs)
        return response, await response.content()

    def logged(self) -> list[str]:
        """Return a list that fills with what the module logs."""
        lines: list[str] = []

        def observe(event):
            if event.get("log_namespace") == "llama.http.server":
                lines.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def test_served(self):
        """A real client is answered, and the log says where and that only this machine can ask."""
        lines = self.logged()
        service = self.serve(local_hint="no remote scraper can reach it")

        async def run():
            response, body = await self.get(service.url + "status")
            self.assertEqual((response.code, body), (200, b"ok"))
            self.assertEqual(lines, [f"test: {service.url}; no remote scraper can reach it"])

        return Deferred.fromCoroutine(run())

    async def test_no_descriptor_is_left(self):
        """Of all connections that are turned away for want of file descriptors the log has one line."""
        service = self.serve()
        host = service.port.getHost()
        clients = [socket.socket() for _ in range(20)]
        for client in clients:
            self.addCleanup(client.close)
        await deferLater(reactor, 0)  # the reactor opens files of its own when it starts
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)  # the next that would be given
        os.close(free)
        with capturedLogs() as events:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
            try:
                for client in clients:
                    client.connect((host.host, host.port))
                    client.setblocking(False)
                while clients:
                    await deferLater(reactor, 0.01)
                    clients = [client for client in clients if not _is_closed(client)]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
        said = (
            "test: connections are turned away (EMFILE): this process may have no more files open"
        )
        lines = [formatEvent(event) for event in events]
        self.assertEqual([line.partition(",")[0] for line in lines], [said])
        response, body = await self.get(service.url + "status")
        self.assertEqual((response.code, body), (200, b"ok"))

    def test_stop_with_kept_connection(self):
        """Stopping ends also the connection that a client kept open."""
        service = http.HttpService(reactor, "127.0.0.1:0", http.JsonRoot(), what="test")
        service.startService()

        async def run():
            pool = HTTPConnectionPool(reactor, persistent=True)
            response = await HTTPClient(Agent(reactor, pool=pool)).get(service.url + "status")
            await response.content()
            self.assertEqual(len(service.site.channels), 1)
            await service.stopService()
            self.assertEqual(len(service.site.channels), 0)
            await pool.closeCachedConnections()

        return Deferred.fromCoroutine(run())

    def test_unread_octets_are_known(self):
        """What a client has not read of its answers is known, and when it has read some of it."""
        service = serving(self, "127.0.0.1:0", big=_Big())
        client = socket.create_connection(("127.0.0.1", service.port.getHost().port))
        self.addCleanup(client.close)
        client.setblocking(False)
        client.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

        async def until(true):
            while not true():
                await deferLater(reactor, 0.01)

        async def run():
            await until(lambda: any(one.unsent() for one in service.site.channels))
            (channel,) = service.site.channels
            before = channel.unsent()
            self.assertTrue(channel.stalled())
            left = 5_000_000
            while left > 0:
                try:
                    left -= len(client.recv(1 << 16))
                except BlockingIOError:
                    await deferLater(reactor, 0.01)
            await until(lambda: channel.unsent() < before)
            self.assertGreater(channel.unsent(), 0)
            channel.drop()
            await until(lambda: not service.site.channels)

        return Deferred.fromCoroutine(run())

    def test_names_that_lead_here(self):
        """With only localhost to protect it, it answers nobody who asks for a name of others."""
        own = socket.gethostname()
        services = [
            (self.serve(), 421),
            (self.serve(token="secret"), 200),
            (self.serve("0.0.0.0:0"), 200),
        ]

        async def run():
            for service, code in services:
                for host, expected in (
                    ("evil.example", code), ("evil.example.:5004", code), (f"{own}.evil.example", code),
                    ("127.0.0.1.evil.example", code), ("localhost.evil.example", code),
                    ("localhost:5004", 200), ("LocalHost.", 200), ("10.0.0.1:80", 200), ("[::1]:1", 200),
                    (own, 200), (f"{own.partition('.')[0]}:5004", 200),
                ):  # fmt: skip
                    url = f"http://127.0.0.1:{service.port.getHost().port}/status"
                    response, body = await self.get(url, headers={"Host": host})
                    self.assertEqual(response.code, expected, (host, service.where))
                    self.assertEqual(b"its own machine" in body, expected == 421)

        return Deferred.fromCoroutine(run())

    def test_who_asks(self):
        """A program of this machine asks by loopback for loopback; a page is of loopback, too."""
        here, there = IPv4Address("TCP", "127.0.0.1", 1), IPv4Address("TCP", "192.0.2.1", 1)
        for address, host, origin, expected in (
            (here, "127.0.0.1:5004", None, True),
            (here, "localhost", "http://localhost:5004", True),
            (here, "[::1]:1", "https://[::1]:1", True),
            (here, "a.localhost", "http://127.0.0.53", True),
            (here, "evil.example:5004", "http://evil.example:5004", False),
            (here, "127.0.0.1:5004", "http://evil.example", False),
            (here, "127.0.0.1:5004", "null", False),
            (here, "127.0.0.1:5004", "http://[", False),
            (here, "192.0.2.1", None, False),
            (here, None, None, False),
            (there, "127.0.0.1:5004", None, False),
            (UNIXAddress("/run/x"), "any", None, True),
            (UNIXAddress("/run/x"), "any", "http://evil.example", False),
        ):
            request = DummyRequest([])
            request.getHost = lambda address=address: address
            for name, value in (("host", host), ("origin", origin)):
                if value is not None:
                    request.requestHeaders.setRawHeaders(name, [value])
            self.assertIs(asked_by_this_machine(request), expected, (host, origin))

    def test_who_asks_where_both_families_are_served(self):
        """Whoever asks by IPv4 for loopback, of a service on ``[::]``, is of this machine as well."""
        service = serving(self, "[::]:0", here=_WhoAsks())

        async def run():
            for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
                url = f"http://127.0.0.1:{service.port.getHost().port}/here"
                _, body = await self.get(url, headers={"Host": host})
                self.assertEqual(body, b"True", host)
                _, body = await self.get(
                    url, headers={"Host": host, "Origin": "http://evil.example"}
                )
                self.assertEqual(body, b"False", host)

        return Deferred.fromCoroutine(run())

    def test_wide_open(self):
        """Bound to every address it does not claim to be local, and a bare token is warned of."""
        lines = self.logged()
        service = self.serve("0.0.0.0:0", token="secret")
        self.assertEqual(lines[0], f"test: {service.url}")
        self.assertIn("clear text", lines[1])

    def test_taken_port(self):
        """A port that is in use ends the program with one line."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            service = http.HttpService(reactor, where, http.JsonRoot(), what="test")
            wrong = self.assertRaises(http.CannotListen, service.startService)
        self.assertEqual(
            str(wrong),
            f"test: cannot listen on {where}: Address already in use; end what listens there, or"
            " choose another in the configuration",
        )

    def refusal(self, where: str) -> str:
        """Return why a service cannot listen there, and what it says to do."""
        service = http.HttpService(reactor, where, http.JsonRoot(), what="test")
        wrong = self.assertRaises(http.CannotListen, service.startService)
        beginning = f"test: cannot listen on {where}: "
        self.assertTrue(str(wrong).startswith(beginning), str(wrong))
        self.assertNotIn("\n", str(wrong))
        return str(wrong).removeprefix(beginning)

    def test_bound_later(self):
        """An endpoint that is not bound at once is refused, and told to give up."""

        class Later:
            """An endpoint that takes its time."""

            def listen(self, factory):
                self.port = Deferred()
                return self.port

        later = Later()
        self.patch(http, "serverFromString", lambda *_: later)
        said = self.refusal("haproxy:later:80")
        self.assertIn("bound only later", said)
        self.assertIsNone(self.successResultOf(later.port))  # the failure was taken

    def test_sockets_in_files(self):
        """Of a unix endpoint it says what can be done about a file, nothing about ports."""
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/socket"
            with socket.socket(socket.AF_UNIX) as taken:
                taken.bind(path)
                taken.listen()
                used = "end what listens there, or choose another path"
                for where in (f"unix:{path}:lockfile=0", f"unix:lockfile=0:address={path}",
                              f"unix:{path}"):  # fmt: skip
                    self.assertEqual(self.refusal(where), f"Address already in use; {used}")
                self.assertEqual(self.refusal(f"unix:{path}"), f"Cannot acquire lock; {used}")
            Path(path).unlink()
            Path(f"{path}.lock").unlink()  # Twisted locked it when it was refused
            Path(path).write_text("")
            said = self.refusal(f"unix:{path}")
            self.assertTrue(
                said.endswith("; what is there is no socket: choose another path"), said
            )
            self.assertEqual(Path(path).read_text(), "")
            said = self.refusal(f"unix:{directory}/nowhere/socket")
            self.assertIn(f"there is no directory {directory}/nowhere: make it", said)

    async def test_sockets_left_behind(self):
        """What a killed process left does not keep the next one from listening."""
        with tempfile.TemporaryDirectory() as directory:
            path, lock = Path(directory, "socket"), Path(directory, "socket.lock")
            living = str(os.getppid())  # the number of another process by now
            for left, holder, age_s in ((True, None, 60), (True, str(os.getpid()), 0),
                                        (False, str(os.getpid()), 0), (True, living, 60)):  # fmt: skip
                for option in ("", ":lockfile=0"):
                    then = time.time() - age_s
                    if left:
                        with socket.socket(socket.AF_UNIX) as killed:
                            killed.bind(str(path))
                        os.utime(path, (then, then))
                    if holder is not None:
                        lock.symlink_to(holder)
                        os.utime(lock, (then, then), follow_symlinks=False)
                    where = f"unix:{path}{option}"
                    service = http.HttpService(reactor, where, http.JsonRoot(), what="test")
                    service.startService()
                    with socket.socket(socket.AF_UNIX) as asking:
                        asking.connect(str(path))
                    await service.stopService()
                    self.assertEqual(os.listdir(directory), [])
            lock.symlink_to(living)  # by one that is about to listen
            said = self.refusal(f"unix:{path}")
            self.assertTrue(said.endswith(f"there, remove {path}.lock"), said)
            self.assertTrue(lock.is_symlink())
            lock.unlink()
            with socket.socket(socket.AF_UNIX) as starting:
                starting.bind(str(path))
                self.assertIn("nothing listens there", self.refusal(f"unix:{path}:lockfile=0"))
                self.assertTrue(path.is_socket())

    def test_sockets_of_somebody_else(self):
        """Where this user may not make a socket, with or without a lock, the directory is named."""
        if os.geteuid():
            raise SkipTest("needs root, to be somebody else")
        with tempfile.TemporaryDirectory() as directory:
            os.seteuid(65534)
            try:
                for lock in "01":
                    said = self.refusal(f"unix:{directory}/socket:lockfile={lock}")
                    self.assertIn("Permission denied; this user may not make files in", said)
                    self.assertIn(f"{directory}: give it to them", said)
            finally:
                os.seteuid(0)

    def test_taken_port_of_a_daemon(self):
        """A daemon that cannot listen tells whoever started it, in a line, and leaves no pid file."""
        directory = Path(self.mktemp())
        directory.mkdir()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            (directory / "service.tac").write_text(
                "from twisted.application.service import Application\n"
                "from twisted.internet import reactor\n"
                "from llama.http.server import HttpService, JsonRoot\n"
                "application = Application('test')\n"
                f"service = HttpService(reactor, {where!r}, JsonRoot(), what='test')\n"
                "service.setServiceParent(application)\n"
            )
            twistd = shutil.which("twistd", path=str(Path(sys.executable).parent)) or "twistd"
            files = ["-y", "service.tac", "--pidfile", "daemon.pid", "--logfile", "daemon.log"]
            started = subprocess.run(
                [twistd, *files],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
            )
        self.assertEqual(started.returncode, 1)
        self.assertIn(f"test: cannot listen on {where}: Address already", started.stderr.decode())
        self.assertNotIn("Traceback", (directory / "daemon.log").read_text())
        self.assertFalse((directory / "daemon.pid").exists())

    def test_tls(self):
        """With an ssl endpoint it speaks TLS, and says https."""
        directory = Path(self.mktemp())
        directory.mkdir()
        key = directory / "key.pem"
        certificate = directory / "certificate.pem"
        self_signed(key, certificate)
        service = self.serve(
            f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1", token="secret"
        )
        self.assertTrue(service.url.startswith("https://127.0.0.1:"))
        trusted = trustRootFromCertificates([Certificate.loadPEM(certificate.read_bytes())])

        async def run():
            pool = HTTPConnectionPool(reactor, persistent=False)
            agent = Agent(reactor, pool=pool, contextFactory=BrowserLikePolicyForHTTPS(trusted))
            response = await HTTPClient(agent).get(service.url + "status")
            self.assertEqual(await response.content(), b"ok")

        return Deferred.fromCoroutine(run())

    async def test_too_many_over_tls(self):
        """Over TLS, too, who is one too many is hung up on, and leaves nothing behind."""
        directory = Path(self.mktemp())
        directory.mkdir()
        key, certificate = directory / "key.pem", directory / "certificate.pem"
        self_signed(key, certificate)
        service = self.serve(f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1")
        self.patch(service.site, "_most_connections", lambda: 0)
        port = service.port.getHost().port

        def ask():
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                    return client.recv(1)
            except ConnectionResetError:
                return b""

        with capturedLogs() as said:
            self.assertEqual([await deferToThread(ask) for _ in range(3)], [b""] * 3)
        self.assertEqual([formatEvent(event) for event in said if "log_failure" in event], [])
        self.assertEqual(service.site.acceptableProtocols(), [b"http/1.1"])

    async def test_renewed_certificate(self):
        """New files are taken with the next connection; what cannot be used changes nothing."""
        directory = Path(self.mktemp())
        directory.mkdir()
        key, certificate = directory / "key.pem", directory / "certificate.pem"
        self_signed(key, certificate)
        first = key.read_bytes(), certificate.read_bytes()
        for names in ((f"privateKey={key}", f"certKey={certificate}"), (key, certificate)):
            key.write_bytes(first[0])
            certificate.write_bytes(first[1])
            service = self.serve(f"ssl:0:{names[0]}:{names[1]}:interface=127.0.0.1")
            port = service.port.getHost().port

            def shown(port=port):
                pem = ssl.get_server_certificate(("127.0.0.1", port))
                return ssl.PEM_cert_to_DER_cert(pem)

            def expected():
                return ssl.PEM_cert_to_DER_cert(certificate.read_text())

            self.assertEqual(await deferToThread(shown), expected())
            old = expected()
            self_signed(key, certificate)
            self.assertNotEqual(expected(), old)
            with capturedLogs() as said:
                for _ in range(2):
                    self.assertEqual(await deferToThread(shown), expected())
            self.assertEqual([str(e).count("read again") for e in said if "where" in e], [1])
            old = expected()
            for spoil in (lambda: key.write_bytes(first[0]), key.unlink,
                          lambda: certificate.write_text("-----BEGIN CERT")):  # fmt: skip
                spoil()
                with capturedLogs() as said:
                    for _ in range(2):
                        self.assertEqual(await deferToThread(shown), old)
                warned = [formatEvent(e) for e in said if "where" in e]
                self.assertEqual(len(warned), 1, warned)
                self.assertIn("its new certificate cannot be used, the old one is (", warned[0])
            self_signed(key, certificate)
            self.assertEqual(await deferToThread(shown), expected())

    def test_nonsense(self):
        """A listening address that is none ends the program with one line."""
        for where in ("tcp:99999999:bogus=1", "host", "nothing:such:thing"):
            service = http.HttpService(reactor, where, http.JsonRoot(), what="test")
            wrong = self.assertRaises(http.CannotListen, service.startService)
            self.assertIn(f"test: cannot listen on {where}", str(wrong))
            self.assertNotIn("\n", str(wrong))
