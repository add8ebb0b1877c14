"""Bounds what a client can take of a server: connections, time, headers, bodies."""

from __future__ import annotations

import fcntl
import resource
import struct
import termios
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

MINUTE = 60.0
_NOBODY: Any = LogPublisher()
#: Digits of a body's length; Python raises for thousands of them.
MOST_DIGITS = 19
#: What part of the files that this process may open connections may have: the rest needs some, too.
PART_OF_FILES = 4


class Channel(HTTPChannel):
    """A connection that ends by itself, however slowly the other side writes or reads."""

    maxHeaders = 64
    totalHeadersSize = 16 * 1024
    abortTimeout = 5
    #: How long a client may take nothing of an answer before it is dropped.
    stall_s = MINUTE

    site: HttpSite
    #: Twisted has a line for every connection that idles: whoever may connect could fill the disk.
    _log = Logger(observer=_NOBODY)
    #: It is being dropped, and takes no place any more.
    dropped = False
    _stalled: Any = None
    _unsent_before: int | None = None
    _deaf = False

    def resetTimeout(self) -> None:
        """Do nothing: octets that trickle in do not prolong the time that a request may take."""

    def pauseProducing(self) -> None:
        """Note that the client does not read, besides pausing."""
        self._watch()
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Note that the client reads again, besides resuming."""
        self._forget_stall()
        super().resumeProducing()

    def loseConnection(self) -> None:
        """Hang up once all is sent, which must not take for ever: nothing else is timed by then."""
        self._watch()
        super().loseConnection()

    def timeoutConnection(self) -> None:
        """End a connection without a request; one whose answer is still being read may finish that."""
        if self.unsent():
            self.loseConnection()
        else:
            super().timeoutConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Clean up, and tell the site."""
        self._forget_stall()
        super().connectionLost(reason)
        self.site.disconnected(self)

    def dataReceived(self, data: bytes) -> None:
        """Take octets, unless a request was refused before its end."""
        if not self._deaf:
            super().dataReceived(data)

    def headerReceived(self, line: bytes) -> bool:
        """Refuse a length that is too long to be read, besides taking headers."""
        name, _, value = line.partition(b":")
        digits = value.strip()
        if name.lower() == b"content-length" and len(digits) > MOST_DIGITS and digits.isdigit():
            self.refuse_body()
            return False
        return bool(super().headerReceived(line))

    def refuse_body(self) -> None:
        """Answer that the body of the present request is too long, and hang up."""
        if not self._deaf:
            self._deaf = True
            transport: Any = self.transport
            transport.write(
                b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.loseConnection()

    def busy(self) -> bool:
        """Tell whether an answer is being made or sent."""
        return bool(self._handlingRequest)

    def stalled(self) -> bool:
        """Tell whether an answer waits for the client to read it."""
        return self._stalled is not None

    def drop(self) -> None:
        """Hang up at once."""
        self.dropped = True
        transport: Any = self.transport
        transport.abortConnection()

    def unsent(self) -> int | None:
        """Return how many octets of answers the client's host has not taken; None if that is unknown."""
        connection: Any = getattr(self.transport, "transport", self.transport)  # what is below TLS
        if not isinstance(connection, FileDescriptor):
            return None
        ours = len(connection.dataBuffer) - connection.offset + connection._tempDataLen
        try:
            (kernels,) = struct.unpack(
                "i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
            )
        except OSError:
            return int(ours)
        return int(ours + kernels)

    def _watch(self) -> None:
        """Drop the client in a while, unless it goes on reading."""
        if self._stalled is None:
            self._unsent_before = self.unsent()
            self._stalled = self.callLater(self.stall_s, self._look)

    def _look(self) -> None:
        """Drop the client if it has taken nothing since this was last looked at."""
        self._stalled = None
        unsent, before = self.unsent(), self._unsent_before
        if unsent is not None and before is not None and unsent < before:
            self._watch()
        else:
            self.forceAbortClient()

    def _forget_stall(self) -> None:
        stalled, self._stalled = self._stalled, None
        if stalled is not None and stalled.active():
            stalled.cancel()


class _Headers:
    """A resource as HEAD is answered by it: without the body."""

    def __init__(self, resource: Any) -> None:
        self._resource = resource

    def render(self, request: Any) -> Any:
        """Answer with the length alone, if it is there."""
        body = self._resource.render(request)
        if not isinstance(body, bytes):
            return body
        request.setHeader("Content-Length", str(len(body)))
        return b""


class _Request(Request):
    """A request whose body is bounded."""

    channel: Channel
    _taken = 0

    def render(self, resrc: Any) -> None:
        """Answer, and leave no line in the log for every HEAD, as Twisted does: who may ask or not."""
        super().render(_Headers(resrc) if self.method == b"HEAD" else resrc)

    def gotLength(self, length: int | None) -> None:
        """Refuse a body that says it is too long before it is read."""
        super().gotLength(0)  # keeps the body in memory, which the limit makes harmless
        if (length or 0) > self.channel.site.max_body:
            self.channel.refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        """Refuse a body that turns out too long, as one without a stated length can."""
        self._taken += len(data)
        if self._taken > self.channel.site.max_body:
            self.channel.refuse_body()
        else:
            super().handleContentChunk(data)


class _TooMany(Protocol):
    """Hangs up. No protocol at all would do so, too, but not under TLS: there it is an error."""

    def connectionMade(self) -> None:
        """Do so, without a word."""
        transport: Any = self.transport
        transport.abortConnection()


class HttpSite(Site):
    """A site with limits and without an access log.

    ``max_connections``: for a further one the oldest makes room of those that no answer is made for;
    it is closed itself if there is none. There are fewer where only few files may be open.
    ``timeout_s``: how long a client may take, from its connection or its previous answer, to send a
    whole request. ``max_body``: octets of a request's body.
    """

    protocol: Any = Channel
    noisy = False
    reactor: Any

    def __init__(
        self,
        root: Any,
        *,
        reactor: Any,
        max_connections: int = 512,
        timeout_s: float = 2 * MINUTE,
        max_body: int = 64 * 1024,
    ) -> None:
        super().__init__(
            root,
            requestFactory=_Request,
            parsePOSTFormSubmission=False,
            timeout=timeout_s,
            reactor=reactor,
        )
        self.max_connections = max_connections
        self.max_body = max_body
        self.channels: dict[Channel, None] = {}  # in the order in which they came
        self._idle: list[Deferred[None]] = []

    def startFactory(self) -> None:
        """Start without the clock that only an access log needs."""

    def stopFactory(self) -> None:
        """Stop what `startFactory` did not start."""

    def acceptableProtocols(self) -> list[bytes]:
        """Offer over TLS what a `Channel` speaks: Twisted would offer HTTP/2 where it finds it."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: Any) -> Any:
        """Return a channel, or what hangs up at once when there are too many."""
        if len(self.channels) >= self._most_connections() and not self._make_room():
            return _TooMany()
        channel: Any = super().buildProtocol(addr)
        self.channels[channel] = None
        return channel

    def _most_connections(self) -> int:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files == resource.RLIM_INFINITY:
            return self.max_connections
        return min(self.max_connections, max(files // PART_OF_FILES, 1))

    def _make_room(self) -> bool:
        """Drop one connection, if need be, for another; tell whether there is room now."""
        here = [channel for channel in self.channels if not channel.dropped]
        if len(here) < self._most_connections():
            return True
        # Who says nothing goes before who does not read what was asked for.
        for idle in (lambda channel: not channel.busy(), Channel.stalled):
            for channel in filter(idle, here):
                channel.drop()
                return True
        return False

    def log(self, request: Any) -> None:
        """Do nothing: whoever may ask could fill the disk."""

    def disconnected(self, channel: Channel) -> None:
        """Forget a connection that is gone."""
        self.channels.pop(channel, None)
        if not self.channels:
            waiting, self._idle = self._idle, []
            for deferred in waiting:
                deferred.callback(None)

    def close(self, grace_s: float) -> Deferred[None]:
        """Close every connection: idle ones now, busy ones after their answer or ``grace_s``.

        The Deferred fires when none is left.
        """
        if not self.channels:
            return succeed(None)
        abort = self.reactor.callLater(grace_s, self._abort)

        def no_abort(_: None) -> None:
            if abort.active():
                abort.cancel()

        done: Deferred[None] = Deferred()
        self._idle.append(done)
        for channel in list(self.channels):
            channel.persistent = 0  # a busy one closes itself after its answer
            if not channel.busy():
                channel.loseConnection()
        return done.addCallback(no_abort)

    def _abort(self) -> None:
        for channel in list(self.channels):
            channel.forceAbortClient()
