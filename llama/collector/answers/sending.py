"""Sends a packed body to whoever asked, a little at a time and only as fast as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from llama.collector.answers.packed import Packed
from llama.http.server import takes_gzip

#: Octets handed to the transport in one turn of the reactor. Unpacking as many takes 0.3 ms.
_TURN = 64 * 1024


def send(request: Any, clock: Any, body: Packed, content_type: str) -> Deferred[None]:
    """Send ``body`` as the answer to ``request``; the Deferred fires when all of it is on its way.

    The request is not finished. Cancelling the Deferred stops sending.
    """
    request.setHeader("Content-Type", content_type)
    request.setHeader("Vary", "Accept-Encoding")
    if takes_gzip(request):
        request.setHeader("Content-Encoding", "gzip")
        request.setHeader("Content-Length", str(body.gzip_size))
        pieces = body.gzip()
    else:
        request.setHeader("Content-Length", str(body.size))
        pieces = body.plain()
    if request.method == b"HEAD":
        return succeed(None)
    return _Sending(request, clock, pieces).done


@implementer(IPushProducer)
class _Sending:
    """Writes some pieces, lets the reactor turn, and goes on, unless the transport is full.

    Twisted's own way of pulling from a producer would go on for 10 ms at a stretch.
    """

    def __init__(self, request: Any, clock: Any, pieces: Iterator[bytes]) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self._end())
        self._request = request
        self._clock = clock
        self._pieces = pieces
        self._paused = False
        self._call: Any = None
        request.registerProducer(self, True)
        self._turn()

    def pauseProducing(self) -> None:
        """Wait: the transport holds enough."""
        self._paused = True
        self._cancel()

    def resumeProducing(self) -> None:
        """Go on."""
        self._paused = False
        if self._call is None:
            self._call = self._clock.callLater(0, self._turn)

    def stopProducing(self) -> None:
        """Stop: the client is gone. Whoever waits for `done` cancels it."""
        self._cancel()

    def _turn(self) -> None:
        self._call = None
        octets: list[bytes] = []
        size = 0
        for piece in self._pieces:
            octets.append(piece)
            size += len(piece)
            if size >= _TURN:
                break
        if octets:
            self._request.write(b"".join(octets))
        if size < _TURN:
            self._end()
            self.done.callback(None)
        elif self._call is None and not self._paused:
            self._call = self._clock.callLater(0, self._turn)

    def _end(self) -> None:
        self._cancel()
        if self._request.channel is not None:  # else the client has hung up
            self._request.unregisterProducer()

    def _cancel(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
