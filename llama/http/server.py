"""HTTP as every LLAMA service speaks it: where it listens, who may ask, and what it refuses.

Shared by reflector, collector, scraper, pinpointing and web; how they ask others is
`llama.http.client`'s part. It knows nothing of what is served: a service
hands in a Twisted ``IResource`` (a Klein app's, or `JsonRoot` with children) and gets a
`HttpService` that is bound to localhost unless told otherwise, checks an optional token in
constant time and, where that is all there is, that it is localhost that was asked; it limits
requests, connections and their duration, and answers errors as JSON.
"""

from __future__ import annotations

import base64
import hmac
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import orjson
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource, getChildForRequest
from zope.interface import implementer

from llama.config import endpoint
from llama.http.certificates import keep_renewed
from llama.http.host import HOST, cannot_be_rebound, is_local
from llama.http.listening import clear_left_behind, explain
from llama.http.shortage import Shortage
from llama.http.site import HttpSite

SECOND = 1.0

#: What a browser may do with any answer of ours, unless the page says otherwise.
DEFAULT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

_SECURITY_HEADERS = {
    "Server": "llama",
    "Cache-Control": "no-store",
    "Content-Security-Policy": DEFAULT_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_log = Logger()


class CannotListen(SystemExit, Exception):  # noqa: N818  as Twisted names its own
    """The address cannot be bound. Ends the program with its message, which is one line.

    It is an `Exception`, too, so that twistd tidies up and, when it runs as a daemon, tells whoever
    started it.
    """


class BadRequestError(Exception):
    """A request that cannot be answered; its text is one line for whoever asked."""


def unexpected(name: str, text: str, expected: str) -> BadRequestError:
    """Return what to raise for a parameter with a value that it cannot have."""
    # As much of it as tells which one is meant, on one line whatever it is.
    return BadRequestError(f"{name}={repr(text[:40])[1:-1]}: expected {expected}")


def url_of(address: Any, *, secure: bool = False) -> str:
    """Return the address of a listening port as people would type it."""
    host = getattr(address, "host", None)
    if host is None:
        return f"unix:{getattr(address, 'name', '')}"
    bracketed = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{bracketed}:{getattr(address, 'port', 0)}/"


def set_json(request: Any, code: int = 200) -> None:
    """Say that the answer to ``request`` is JSON and has this status."""
    request.setResponseCode(code)
    request.setHeader("Content-Type", "application/json")


def json_error(request: Any, code: int, message: str) -> bytes:
    """Make the answer to ``request`` an error and return its body, ``{"error": message}``."""
    set_json(request, code)
    body = orjson.dumps({"error": message}, option=orjson.OPT_APPEND_NEWLINE)
    request.setHeader("Content-Length", str(len(body)))
    return body


def wrong_method(request: Any, allowed: Iterable[str]) -> bytes:
    """Make the answer to ``request`` that its method does not do, and which do; return its body.

    RFC 9110 section 15.5.6.
    """
    methods = sorted(allowed)
    request.setHeader("Allow", ", ".join(methods))
    return json_error(request, 405, f"expected the method {' or '.join(methods)}")


def plain(request: Any, line: str = "ok") -> bytes:
    """Make the answer to ``request`` a line of text, as ``/status`` has it, and return its body."""
    request.setHeader("Content-Type", "text/plain; charset=utf-8")
    return line.encode()


def takes_gzip(request: Any) -> bool:
    """Tell whether the ``Accept-Encoding`` of a request allows gzip (RFC 9110 section 12.5.3)."""
    allowed: dict[str, bool] = {}
    # As octets: what is no UTF-8 could not be had as text.
    said = (request.getHeader(b"accept-encoding") or b"").decode("ascii", "replace")
    for part in said.lower().split(","):
        coding, *parameters = [word.strip() for word in part.split(";")]
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        allowed[coding] = weight.strip("0.") != ""
    return allowed.get("gzip", allowed.get("*", False))


def set_security_headers(request: Any) -> None:
    """Give an answer the headers that every answer of ours carries."""
    for name, value in _SECURITY_HEADERS.items():
        request.setHeader(name, value)


class Query:
    """The query of a request, read strictly; what nobody asks for is ignored.

    Every method raises `BadRequestError` for a value it cannot take, and for a parameter that is
    given more than once: which of them counts would be a guess.
    """

    def __init__(self, request: Any) -> None:
        self._args: dict[bytes, list[bytes]] = request.args or {}

    def text(self, name: str) -> str | None:
        """Return the parameter as text, or None if it is not there."""
        values = self._args.get(name.encode())
        if not values:
            return None
        if len(values) > 1:
            raise BadRequestError(f"{name}: given {len(values)} times, expected once")
        try:
            return values[0].decode()
        except UnicodeDecodeError:
            raise BadRequestError(f"{name}: not UTF-8") from None

    def whole(self, name: str, default: int, *, low: int = 0, high: int = 2**53) -> int:
        """Return the parameter as a whole number within ``low`` and ``high``."""
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 16):
            raise unexpected(name, text, "a whole number")
        number = int(text)
        if not low <= number <= high:
            raise unexpected(name, text, f"{low} to {high}")
        return number

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a finite number between ``low`` and ``high``; None if it is absent."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise unexpected(name, text, f"a number from {low:g} to {high:g}")
        return value

    def flag(self, name: str) -> bool:
        """Return whether the parameter is ``1``; without it, or with ``0``, it is not."""
        text = self.text(name)
        if text not in (None, "0", "1"):
            raise unexpected(name, text, "0 or 1")
        return text == "1"


@implementer(IResource)
class Guard:
    """What every request passes first: security headers, and the token if there is one.

    The token is shown as ``Authorization: Bearer TOKEN``, or, since a browser can only ask
    people for it so, as the password of Basic authentication with any user name. ``/status``
    needs none: it says nothing but ``ok``.

    With ``for_this_machine``, without a token, only those are answered who ask for an address, for
    localhost or for this machine by name: a page from elsewhere whose name was made to lead here (DNS
    rebinding) asks for that name.
    """

    isLeaf = False
    for_this_machine = False

    def __init__(self, root: Any, token: str | None = None) -> None:
        self._root = root
        self._token = token.encode() if token else None

    def getChildWithDefault(self, name: bytes, request: Any) -> Any:
        """Return the resource that was asked for, or one that refuses."""
        set_security_headers(request)
        request.postpath.insert(0, request.prepath.pop())
        wrong = _wrong(request)
        if wrong:
            return _Refusal(400, wrong)
        if self._token is None and self.for_this_machine:
            asked = HOST.fullmatch(request.getHeader(b"host") or b"")
            if asked and not cannot_be_rebound(asked[1]):
                return _Refusal(
                    421,
                    "this service is for its own machine: ask for localhost or an address, or give it"
                    " a token",
                )
        if self._token is None or request.path == b"/status" or self._shown(request):
            found: IResource = getChildForRequest(self._root, request)
            return found
        request.setHeader("WWW-Authenticate", 'Bearer realm="llama"')
        request.responseHeaders.addRawHeader("WWW-Authenticate", 'Basic realm="llama"')
        return _Refusal(401, "this service wants its token: Authorization: Bearer TOKEN")

    def render(self, request: Any) -> NoReturn:
        """Never: a request always has a path, so `getChildWithDefault` answers it."""
        raise AssertionError(f"{request.path!r} was not traversed")

    def putChild(self, path: bytes, child: Any) -> NoReturn:
        """Never: children belong to the resource that is guarded."""
        raise TypeError("put children into the guarded resource")

    def _shown(self, request: Any) -> bool:
        assert self._token is not None
        scheme, _, credentials = (request.getHeader(b"authorization") or b"").partition(b" ")
        shown = credentials.strip()
        if scheme.lower() == b"basic":
            try:
                shown = base64.b64decode(shown, validate=True).partition(b":")[2]
            except ValueError:
                shown = b""
        elif scheme.lower() != b"bearer":
            shown = b""
        return hmac.compare_digest(shown, self._token)


def _wrong(request: Any) -> str:
    """Return what is wrong with a request's address, which an application may rely on, or nothing.

    Klein would answer such a request with a traceback in the log.
    """
    try:
        b"/".join(request.postpath).decode()
    except UnicodeDecodeError:
        return "the path is not UTF-8"
    if not HOST.fullmatch(request.getHeader(b"host") or b""):
        return "the Host header names no host"
    if len(request.requestHeaders.getRawHeaders(b"host", ())) > 1:
        return "more than one Host header"
    return ""


class _Refusal(Resource):
    """Answers every request with one error."""

    isLeaf = True

    def __init__(self, code: int, message: str) -> None:
        super().__init__()
        self._answer = code, message

    def render(self, request: Any) -> bytes:
        """Answer with the error."""
        return json_error(request, *self._answer)


class _OnlyReading(Resource):
    """Answers every request that it is of the wrong method."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        """Answer with the error."""
        return wrong_method(request, ("GET", "HEAD"))


class _Status(Resource):
    """Says that the service is there."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        """Answer ``ok``."""
        return plain(request)


class JsonRoot(Resource):
    """The root of a service without an application of its own: ``/status``, and errors as JSON.

    What else it serves is put in with ``putChild``, for instance ``metrics`` with
    `llama.http.metrics.MetricsPage`. No request changes anything: only GET and HEAD pass.
    """

    def __init__(self) -> None:
        super().__init__()
        status: Any = _Status()
        self.putChild(b"status", status)

    def getChildWithDefault(self, path: bytes, request: Any) -> Any:
        """Return the child of that name, or one that refuses."""
        if request.method not in (b"GET", b"HEAD"):
            return _OnlyReading()
        if request.postpath:  # no child has children
            return self.getChild(path, request)
        child: Any = super().getChildWithDefault(path, request)
        return child

    def getChild(self, path: bytes, request: Any) -> Any:
        """Return what answers for a path that is not served."""
        return _Refusal(404, f"nothing is served at {request.path.decode(errors='replace')}")


class HttpService(Service):
    """Serves ``root`` at ``where`` (see `llama.config.endpoint`) while it runs.

    Raises `CannotListen`, or `ValueError` for a ``where`` that is none, when it is started.
    ``port`` is the listening port once it runs; ``what`` names the service in messages, and
    ``local_hint`` is what the log says, once, if no other machine can reach it.
    """

    #: How long an answer may take to leave when the service stops.
    grace_s = 2 * SECOND

    def __init__(
        self,
        reactor: Any,
        where: str,
        root: Any,
        *,
        what: str,
        token: str | None = None,
        local_hint: str = "only this machine can reach it",
        **limits: Any,
    ) -> None:
        self.where = where
        self._guard = Guard(root, token)
        self.site = HttpSite(self._guard, reactor=reactor, **limits)
        self.port: Any = None
        self._reactor = reactor
        self._what = what
        self._token = token
        self._local_hint = local_hint
        self._shortage = Shortage(reactor, what)

    @property
    def url(self) -> str:
        """Where to reach it; it must be running."""
        assert self.port is not None
        return url_of(self.port.getHost(), secure=self._secure())

    def privilegedStartService(self) -> None:
        """Bind while the process may still bind low ports."""
        self._listen()
        super().privilegedStartService()

    def startService(self) -> None:
        """Bind, unless that was done before privileges were dropped."""
        if self.port is None:
            self._listen()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop listening and close every connection; fires when all are gone."""
        super().stopService()
        self._shortage.stop()
        port, self.port = self.port, None
        stopped = succeed(None) if port is None else port.stopListening() or succeed(None)
        return stopped.addCallback(lambda _: self.site.close(self.grace_s))

    def _listen(self) -> None:
        try:
            server = serverFromString(self._reactor, endpoint(self.where))
        except Exception as wrong:  # what a parser of Twisted's or of a plugin's may raise
            reason = " ".join(str(wrong).split()) or type(wrong).__name__
            raise CannotListen(f"{self._what}: cannot listen on {self.where}: {reason}") from None
        keep_renewed(self._reactor, server, endpoint(self.where))
        clear_left_behind(self.where)
        listening = server.listen(self.site)
        listening.addCallbacks(self._listens, self._refused)
        failed: list[Failure] = []
        listening.addErrback(failed.append)
        if failed:
            failed[0].raiseException()
        if self.port is None:  # as no endpoint of Twisted's own is
            listening.cancel()
            raise CannotListen(
                f"{self._what}: cannot listen on {self.where}: an endpoint that is bound only later"
                " does not do here; give ADDRESS:PORT, ssl: or unix:"
            )

    def _listens(self, port: Any) -> None:
        self.port = port
        self._shortage.watch(port)
        address = port.getHost()
        self._guard.for_this_machine = is_local(address) and hasattr(address, "host")
        hint = f"; {self._local_hint}" if is_local(address) and hasattr(address, "host") else ""
        _log.info("{what}: {url}{hint}", what=self._what, url=self.url, hint=hint)
        if not is_local(address) and self._token and not self._secure():
            _log.warn(
                "{what}: the token crosses the network in clear text; give an ssl: endpoint",
                what=self._what,
            )

    def _refused(self, failure: Failure) -> NoReturn:
        reason = explain(self.where, failure.value)
        raise CannotListen(f"{self._what}: cannot listen on {self.where}: {reason}") from None

    def _secure(self) -> bool:
        return self.where.strip().startswith(("ssl:", "tls:"))
