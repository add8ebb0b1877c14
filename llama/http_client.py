"""HTTP as LLAMA asks it of others: one request, with a deadline and a bound on its answer.

Collectors, databases, a pinpointing service, webhooks: all are asked so. What is served stands in
`llama.http`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    BrowserLikeRedirectAgent,
    ContentDecoderAgent,
    FileBodyProducer,
    GzipDecoder,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    _HTTP11ClientFactory,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from llama.printable import printable

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)


class TooLargeError(Exception):
    """An answer is larger than it may be."""


@frozen
class Reply:
    """An HTTP answer, complete."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the last header of that name as text, or None."""
        values = self.headers.getRawHeaders(name)
        return values[-1] if values else None

    def excerpt(self) -> str:
        """Return the start of the body for a log: one line, printable, bounded."""
        text = self.body[:400].decode("utf-8", "replace")
        return printable(" ".join(text.split()))[:200]


class _Body(Protocol):
    """Collects a body up to a limit; a body beyond it, or given up, closes the connection.

    ``came`` is called with every piece.
    """

    def __init__(self, limit: int) -> None:
        self.came: Callable[[], None] = lambda: None
        self._limit = limit
        self._chunks: list[bytes] = []
        self._size = 0
        self._over = False
        self.done: Deferred[bytes] = Deferred(lambda _: self._give_up())

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece; what still comes once it is over is dropped."""
        if self._over:
            return
        self.came()
        self._size += len(data)
        if self._size <= self._limit:
            self._chunks.append(data)
        else:
            self._finish(Failure(TooLargeError(f"more than {self._limit:,} octets")))
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Answer, or fail when the body broke off."""
        if reason.check(ResponseDone, PotentialDataLoss):
            self._finish(b"".join(self._chunks))
        else:
            self._finish(reason)

    def _finish(self, result: Any) -> None:
        if not self._over:
            self._over = True
            self.done.callback(result)

    def _give_up(self) -> None:
        """Close the connection; `done` then fails as every cancelled Deferred does."""
        self._over = True
        self._abort()

    def _abort(self) -> None:
        """Close the connection without waiting for the other side.

        Twisted gives a body no `ITCPTransport` but a proxy, which has no ``abortConnection`` and
        whose ``loseConnection`` would wait, over TLS, for a goodbye that may never come.
        """
        if self.transport is not None:
            self.transport.stopProducing()


class _QuietFactory(_HTTP11ClientFactory):
    """Makes connections without a line in the log for each of them."""

    noisy = False


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
        raise ValueError("TLS is not installed: pip install 'llama-mesh[tls]'") from None
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
    longest_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    """Make a request of an `IAgent` and return the whole answer, whatever its status.

    Not by treq, whose URLs cannot have an IPv6 address for a host.

    Raises `twisted.internet.defer.TimeoutError` when it is not all there after ``timeout_s``,
    `TooLargeError` when the body exceeds ``max_octets``, and whatever connecting raises. None of
    these leaves anything open. With ``longest_s`` an answer may take that long, provided that a
    piece of it comes at least every ``timeout_s``. Only a GET follows redirects: of anything else
    the place that it was sent to must know what became of it.
    """
    reader = _Body(max_octets)
    asking: Any = ContentDecoderAgent(agent, [(b"gzip", GzipDecoder)])
    if method == "GET":
        asking = BrowserLikeRedirectAgent(asking)

    async def whole() -> Reply:
        response = await asking.request(
            method.encode("ascii"),
            url.encode("ascii"),
            Headers({k: [v] for k, v in (headers or {}).items()}),
            None if body is None else FileBodyProducer(io.BytesIO(body)),
        )
        response.deliverBody(reader)
        return Reply(response.code, response.headers, await reader.done)

    answer: Deferred[Reply] = Deferred.fromCoroutine(whole())
    late = []

    def give_up(after_s: float) -> None:
        late.append(after_s)
        answer.cancel()

    silence = clock.callLater(timeout_s, give_up, timeout_s)
    deadlines = [silence]
    if longest_s is not None:
        deadlines.append(clock.callLater(longest_s, give_up, longest_s))
        reader.came = lambda: silence.reset(timeout_s)
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


def explain(problem: BaseException, timeout_s: float) -> str:
    """Say in a few words, for a person, why a request failed, or what was made of some."""
    if isinstance(problem, DeferredTimeoutError | CancelledError):
        return f"no answer within {problem.args[0] if problem.args else timeout_s:g} s"
    if isinstance(problem, ResponseFailed | RequestTransmissionFailed) and problem.reasons:
        return explain(problem.reasons[0].value, timeout_s)
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
