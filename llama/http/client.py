"""HTTP as LLAMA asks it of others: one request, with a deadline and a bound on its answer.

Collectors, databases, a pinpointing service, webhooks: all are asked so. Any of them may be hostile: how
much is kept of what it sends, and which server is asked, is decided here and not by it. What is served
stands in `llama.http.server`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from attrs import frozen
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    FileBodyProducer,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    _HTTP11ClientFactory,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from llama.config.urls import NO_TLS
from llama.http.gunzip import DamagedError, Gunzip
from llama.printable import printable

#: Octets of an answer's headers, about: at what comes at one go beyond them it is given up.
MOST_HEAD = 256 * 1024
#: Redirects in a row that are followed.
MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOBODY: Any = LogPublisher()
_UNHEARD = Logger(observer=_NOBODY)
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)


class TooLargeError(Exception):
    """An answer is larger than it may be."""


class UnusableError(Exception):
    """What came is no answer to be used: damaged, strangely packed, or only to be had elsewhere.

    The text says which, for people.
    """


@frozen
class Reply:
    """An HTTP answer, complete."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the last header of that name as text, or None; what is no UTF-8 becomes U+FFFD."""
        values = self.headers.getRawHeaders(name.encode("ascii"))
        return values[-1].decode("utf-8", "replace") if values else None

    def excerpt(self) -> str:
        """Return the start of the body for a log: one line, printable, bounded."""
        text = self.body[:400].decode("utf-8", "replace")
        return printable(" ".join(text.split()))[:200]


class _Body(Protocol):
    """Collects a body up to a limit; a body beyond it, or given up, closes the connection.

    ``came`` is called with every piece. The limit holds for what comes, and for what it is unpacked to.
    """

    def __init__(self, limit: int, came: Callable[[], None]) -> None:
        self._limit = limit
        self._came = came
        self._octets = bytearray()  # one for all: pieces may have an octet each
        self._packed = 0  # octets that came of it
        self._over = False
        self._gunzip: Gunzip | None = None
        self.done: Deferred[bytes] = Deferred(lambda _: self._give_up())

    def receive(self, response: Any) -> None:
        """Take the body of a response, unpacked as it says; fails `done` with `UnusableError`."""
        named = b",".join(response.headers.getRawHeaders(b"Content-Encoding", [])).lower()
        codings = [coding for part in named.split(b",") if (coding := part.strip())]
        if codings in ([b"gzip"], [b"x-gzip"]):
            if response.length != 0:  # what has no body has none that is packed
                self._gunzip = Gunzip()
        elif codings not in ([], [b"identity"]):
            text = _start(b", ".join(codings))
            self._finish(Failure(UnusableError(f"its body is packed as {text}, not as gzip once")))
        response.deliverBody(self)

    def connectionMade(self) -> None:
        """Close the connection to what is not wanted."""
        if self._over:
            self._abort()

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece; what still comes once it is over is dropped."""
        if self._over:
            return
        self._came()
        if self._gunzip is None:
            self._take(data)
            return
        self._packed += len(data)
        if self._packed > self._limit:  # to nothing, or nearly: work without end
            self._refuse_size()
            return
        try:
            for piece in self._gunzip.pieces(data, self._limit - len(self._octets)):
                self._take(piece)
        except DamagedError as error:
            self._refuse(UnusableError(str(error)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Answer, or fail when the body broke off."""
        if not reason.check(ResponseDone, PotentialDataLoss):
            self._finish(reason)
            return
        try:
            if self._gunzip is not None and not self._over:
                self._gunzip.end()
        except DamagedError as error:
            self._finish(Failure(UnusableError(str(error))))
        else:
            self._finish(bytes(self._octets))

    def _take(self, piece: bytes) -> None:
        if len(self._octets) + len(piece) <= self._limit:
            self._octets += piece
        else:
            self._refuse_size()

    def _refuse_size(self) -> None:
        self._refuse(TooLargeError(f"more than {self._limit:,} octets"))

    def _refuse(self, problem: Exception) -> None:
        self._finish(Failure(problem))
        self._abort()

    def _finish(self, result: Any) -> None:
        if not self._over:
            self._over = True
            self._octets = bytearray()
            self.done.callback(result)

    def _give_up(self) -> None:
        """Close the connection; `done` then fails as every cancelled Deferred does."""
        self._over = True
        self._abort()

    def _abort(self) -> None:
        _close(self.transport)


def _close(transport: Any) -> None:
    """Close the connection of a body, if it has one, without waiting for the other side.

    Twisted gives a body no `ITCPTransport` but a proxy, which has no ``abortConnection`` and
    whose ``loseConnection`` would wait, over TLS, for a goodbye that may never come.
    """
    if transport is not None:
        transport.stopProducing()


class _Unread(Protocol):
    """A body that nobody wants: its connection is closed before any of it is read."""

    def connectionMade(self) -> None:
        """Close the connection."""
        _close(self.transport)


class _Connection(HTTP11ClientProtocol):
    """Gives up on a head without end, which Twisted would collect for as long as it comes."""

    _head = 0

    def request(self, request: Any) -> Deferred[Any]:
        """Ask, without a line in the log for every ``100 Continue``: five times as long as those are."""
        answer = super().request(request)
        if self._parser is not None:
            self._parser._log = _UNHEARD
        return answer

    def dataReceived(self, data: bytes) -> None:
        """Take what comes, and count what is no body."""
        super().dataReceived(data)
        if self._parser is None or self._parser.state not in ("STATUS", "HEADER"):
            self._head = 0
            return
        self._head += len(data)
        if self._head > MOST_HEAD:
            transport: Any = self.transport
            transport.abortConnection()
            self._giveUp(Failure(UnusableError(f"more than {MOST_HEAD:,} octets of headers")))


class _QuietFactory(_HTTP11ClientFactory):
    """Makes connections without a line in the log for each of them."""

    noisy = False

    def buildProtocol(self, addr: Any) -> HTTP11ClientProtocol:
        """Return a connection that is not in use yet."""
        return _Connection(self._quiescentCallback)


def connection_pool(reactor: Any, *, persistent: bool = True) -> HTTPConnectionPool:
    """Return a pool of connections that are kept for less long than servers usually keep them.

    So a request seldom meets a connection that is just being closed. Nor does one leave lines in the
    log: what asks every few seconds would bury all else there.
    """
    pool = HTTPConnectionPool(reactor, persistent=persistent)
    pool.cachedConnectionTimeout = 30
    pool._factory = _QuietFactory
    return pool


def agent_of(
    reactor: Any, pool: HTTPConnectionPool, connect_timeout_s: float, ca_file: str | None
) -> Any:
    """Return an `IAgent` that keeps its connections in ``pool``.

    https is checked against the authorities in ``ca_file`` (PEM) or against the system's. Raises
    `ValueError`, in one line, when the file holds none or TLS is not installed.
    """
    if ca_file is None:
        return Agent(reactor, connectTimeout=connect_timeout_s, pool=pool)
    try:
        from twisted.internet.ssl import Certificate, trustRootFromCertificates
    except ImportError:
        raise ValueError(NO_TLS) from None
    try:
        blocks = _PEM.findall(Path(ca_file).read_bytes())
        roots = [Certificate.loadPEM(block) for block in blocks]
    except OSError as problem:
        raise ValueError(f"ca_file {ca_file}: {problem.strerror}") from None
    except Exception:
        raise ValueError(f"ca_file {ca_file}: a certificate in it is damaged") from None
    if not roots:
        raise ValueError(f"ca_file {ca_file}: holds no PEM certificate")
    policy = BrowserLikePolicyForHTTPS(trustRootFromCertificates(roots))
    return Agent(reactor, policy, connectTimeout=connect_timeout_s, pool=pool)


def authorization(
    token: str | None = None, username: str | None = None, password: str | None = None
) -> dict[str, str]:
    """Return the header by which a request shows who asks: a bearer token, or else a user name.

    Nothing for neither.
    """
    if token:
        return {"Authorization": f"Bearer {token}"}
    if username:
        pair = base64.b64encode(f"{username}:{password or ''}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


async def request(
    agent: Any,
    clock: Any,
    method: str,
    url: str,
    *,
    timeout_s: float,
    max_octets: int,
    head_only: bool = False,
    longest_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    """Make a request of an `IAgent` and return the whole answer, whatever its status.

    Not by treq, whose URLs cannot have an IPv6 address for a host.

    Raises `twisted.internet.defer.TimeoutError` when it is not all there after ``timeout_s``,
    `TooLargeError` when the body exceeds ``max_octets``, and whatever connecting raises. None of
    these leaves anything open. With ``longest_s`` an answer may take that long, provided that a
    piece of it comes at least every ``timeout_s``. The limit is on the unpacked body, if that is packed:
    by gzip, once, or else `UnusableError` is raised, as it is for a body that is damaged. With
    ``head_only`` the body is not read, whatever it is, and empty in the answer.

    Only a GET follows redirects: of anything else the place that it was sent to must know what became
    of it. Nor does a GET follow one that leads to another scheme, host or port: who answers decides
    nothing of which servers are asked. That raises `UnusableError`, too.
    """

    async def once(url: str) -> Reply:
        response = await agent.request(
            method.encode("ascii"),
            url.encode("ascii"),
            Headers({k: [v] for k, v in {"Accept-Encoding": "gzip", **(headers or {})}.items()}),
            None if body is None else FileBodyProducer(io.BytesIO(body)),
        )
        if head_only:
            response.deliverBody(_Unread())
            return Reply(response.code, response.headers, b"")
        reader = _Body(max_octets, came)
        reader.receive(response)
        return Reply(response.code, response.headers, await reader.done)

    async def whole() -> Reply:
        at = url
        for _ in range(MOST_REDIRECTS + 1):
            reply = await once(at)
            to = reply.headers.getRawHeaders(b"Location")
            if method != "GET" or reply.status not in _REDIRECTS or not to:
                return reply
            at = _redirected(at, to[-1])
        raise UnusableError(f"more than {MOST_REDIRECTS} redirects in a row")

    late = []

    def give_up(after_s: float) -> None:
        late.append(after_s)
        answer.cancel()

    silence = clock.callLater(timeout_s, give_up, timeout_s)
    deadlines = [silence]
    if longest_s is not None:
        deadlines.append(clock.callLater(longest_s, give_up, longest_s))

    def came() -> None:
        if longest_s is not None:
            silence.reset(timeout_s)

    answer: Deferred[Reply] = Deferred.fromCoroutine(whole())
    try:
        return await answer
    except Exception:
        if late:  # whatever became of being cancelled
            raise DeferredTimeoutError(*late) from None
        raise
    finally:
        for deadline in deadlines:
            if deadline.active():
                deadline.cancel()


def _redirected(url: str, location: bytes) -> str:
    """Return where a redirect from ``url`` leads on the same server.

    Raises `UnusableError` when it leads to another. The authority of what is returned is that of
    ``url``, to the letter: no two readings of ``location`` can lead anywhere else.
    """
    said = _start(location)
    try:
        to = urljoin(url, location.decode("ascii"))
        same = _origin(to) == _origin(url)
        path = urlsplit(to)._replace(scheme="", netloc="", fragment="").geturl()
    except ValueError:  # UnicodeDecodeError is one
        raise UnusableError(f"a redirect to {said!r}, which is no URL") from None
    if not same:
        raise UnusableError(
            f"a redirect to {said}, on another server, which is not followed: if that is the right"
            " one, give its URL instead"
        )
    if not re.fullmatch(r"(/[!-~]*)?", path) or path.startswith("//"):
        raise UnusableError(f"a redirect to {said!r}, which is no URL")
    at = urlsplit(url)
    return f"{at.scheme}://{at.netloc}{path or '/'}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port; raises `ValueError` for what is no URL."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def _start(octets: bytes) -> str:
    """Return what somebody sent for a log: printable, bounded."""
    return printable(octets[:200].decode("utf-8", "replace"))


def explain(problem: BaseException, timeout_s: float) -> str:
    """Say in a few words, for a person, why a request failed, or what was made of some."""
    if isinstance(problem, UnusableError):
        return str(problem)
    if isinstance(problem, DeferredTimeoutError | CancelledError):
        return f"no answer within {problem.args[0] if problem.args else timeout_s:g} s"
    if isinstance(problem, ResponseFailed | RequestTransmissionFailed) and problem.reasons:
        return explain(problem.reasons[0].value, timeout_s)
    if isinstance(problem, NotImplementedError):  # Twisted's, of https
        return NO_TLS
    if isinstance(problem, error.ConnectionRefusedError):
        return "connection refused"
    if isinstance(problem, error.DNSLookupError):
        return "the name does not resolve"
    if isinstance(problem, error.ConnectError):
        return (
            problem.args[0]
            if problem.args and isinstance(problem.args[0], str)
            else (problem.__doc__ or "cannot connect")
        )
    if isinstance(problem, error.ConnectionLost | error.ConnectionDone):
        return "the connection broke off"
    if type(problem).__module__ == "OpenSSL.SSL" and problem.args:
        reasons = problem.args[0]  # a list of (library, function, reason)
        return f"TLS: {reasons[-1][-1]}" if isinstance(reasons, list) and reasons else "TLS fails"
    text = printable(" ".join(str(problem).split()))[:200]
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__
