"""A collector for the scraper's tests: it closes intervals and speaks the contract of /influxdata.

It keeps a ledger of every point it ever closed; tests judge databases by that alone.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site


def rfc3339(time_s: float) -> str:
    """Return a Unix time as collectors write it."""
    return datetime.fromtimestamp(time_s, UTC).isoformat().replace("+00:00", "Z")


class FakeCollector(Resource):
    """Serves ``/influxdata`` over ``closed`` intervals.

    ``behave`` changes how it answers; a URL there is redirected to.
    """

    isLeaf = True

    def __init__(self, name: str, keep: int = 1000) -> None:
        super().__init__()
        self.name = name
        self.incarnation = "a1"
        self.closed: list[tuple[int, list[dict[str, Any]]]] = []
        self.keep = keep
        self.ledger: dict[tuple[str, int], dict[str, float]] = {}  # (dst, time_s) -> fields
        self.questions: list[str | None] = []  # values of ``since``; None when not asked so
        self.authorizations: set[str | None] = set()
        self.behave = "well"
        self.cursors = True
        self.headers: list[tuple[bytes, bytes]] = []  # in addition, whatever they are
        self.limits = True  # as collectors of ours know them
        self.octets_per_s = 0  # how fast it sends; 0: as fast as can be
        self.port: Any = None
        self.hanging: list[Any] = []
        self.sending: list[Any] = []
        self._number = 0

    def listen(self, reactor: Any) -> str:
        """Listen on a free port; returns the base URL."""
        self.port = reactor.listenTCP(0, Site(self, reactor=reactor), interface="127.0.0.1")
        return f"http://127.0.0.1:{self.port.getHost().port}"

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        for sending in self.sending:
            if sending.running:
                sending.stop()
        for request in self.hanging:
            request.transport.abortConnection()
        await self.port.stopListening()

    def close(self, time_s: int, pairs: int = 3, **fields: float) -> None:
        """Close an interval that ends at ``time_s``, with figures that tell points apart."""
        points = []
        for pair in range(pairs):
            figures = {
                "loss": 0.0, "lost": 0.0, "sent": 30.0, "received": 30.0,
                "rtt": round(0.25 + pair + (time_s % 1000) / 1000, 6),
                "rtt_p99": 3.5, "suspect": 0.0,
            } | fields  # fmt: skip
            dst = f"dst{pair}"
            points.append(
                {
                    "measurement": "raw_stats",
                    "tags": {"src_hostname": self.name, "dst_hostname": dst, "rack": "01",
                             "class": "BE"},
                    "fields": figures,
                    "time": rfc3339(time_s),
                }
            )  # fmt: skip
            self.ledger[dst, time_s] = figures
        self._number += 1
        self.closed.append((self._number, points))
        del self.closed[: -self.keep]

    def restart(self) -> None:
        """Forget what was closed, as a new process does."""
        self.incarnation = f"b{self._number}"
        self.closed = []
        self._number = 0

    def render_GET(self, request: Any) -> Any:
        """Answer as told."""
        since = request.args.get(b"since", [None])[-1]
        self.authorizations.add(request.getHeader("authorization"))
        self.questions.append(None if since is None else since.decode())
        if self.behave == "hang":
            self.hanging.append(request)
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET
        if self.behave == "half":
            request.setHeader("Content-Length", "1000000")
            request.write(b"[" + b" " * 1000)
            self.hanging.append(request)
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET
        if self.behave == "garbage":
            return b"\xff<html>nothing here"
        if self.behave.startswith("http:"):
            request.redirect(self.behave.encode())
            return b""
        if self.behave == "error":
            request.setResponseCode(500)
            return b"broken"
        if self.behave == "large" and since == b"":
            return b"[" + b" " * 3_000_000 + b"]"
        found = self._asked_for(since)
        limit = int(request.args.get(b"limit", [len(found)])[-1])
        number = self._number
        if since is not None and self.limits and len(found) > limit:
            request.setHeader("Llama-More", str(len(found) - limit))
            del found[limit:]
            number = found[-1][0]
        if self.cursors:
            request.setHeader("Llama-Cursor", f"{self.incarnation}:{number}")
        for name, value in self.headers:
            request.responseHeaders.addRawHeader(name, value)
        body = json.dumps([point for _, points in found for point in points]).encode()
        return self._slowly(request, body) if self.octets_per_s else body

    def _asked_for(self, since: bytes | None) -> list[tuple[int, list[dict[str, Any]]]]:
        if since is None or not self.cursors:
            return self.closed[-1:]
        incarnation, _, number = since.decode().partition(":")
        after = int(number) if incarnation == self.incarnation else 0
        return [(closed, points) for closed, points in self.closed if closed > after]

    def _slowly(self, request: Any, body: bytes) -> Any:
        """Send a body through a narrow link."""
        request.setHeader("Content-Length", str(len(body)))
        piece = self.octets_per_s // 50 or 1
        starts = iter(range(0, len(body), piece))

        def send() -> None:
            start = next(starts, None)
            if start is None:
                sending.stop()
                request.finish()
            else:
                request.write(body[start : start + piece])

        sending = LoopingCall(send)
        self.sending.append(sending)
        request.notifyFinish().addErrback(lambda _: sending.running and sending.stop())
        sending.start(0.02)
        return NOT_DONE_YET
