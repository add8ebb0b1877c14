"""Many collectors in one process, for the scraper to ask: each answers with a large interval.

``python -m benchmarks.fleet PAIRS INTERVAL_S`` prints ``{"port": …}`` and serves
``/0/influxdata``, ``/1/influxdata``, … in the form, and as packed, as our collectors answer. An
interval closes whenever one is over by the clock; ``/ledger`` says how many points were handed out.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from typing import Any

from treq.testing import RequestTraversalAgent
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.rfc3339 import utc_text
from llama.testing import closed_interval, pair

NAME, TIME = b"collector01.example.net", b"@TIME@"


def template(pairs: int) -> bytes:
    """Return what our own collector answers for an interval, with a mark where the time stands."""
    clock, history = Clock(), History(1)
    api = CollectorApi(clock, history, src_hostname=NAME.decode(), health=dict)
    closed = closed_interval([pair(n) for n in range(pairs)], loss=0.01)
    history.append(closed)
    while calls := clock.getDelayedCalls():
        clock.advance(max(0.0, min(call.getTime() for call in calls) - clock.seconds()))
    bodies: list[bytes] = []
    agent = RequestTraversalAgent(api.app.resource())
    asked = agent.request(b"GET", b"http://localhost/influxdata")
    asked.addCallback(lambda response: _body(agent, response)).addCallback(bodies.append)
    agent.flush()
    while not bodies:
        clock.advance(0.01)
        agent.flush()
    return bodies[0].replace(utc_text(closed.end_ns).encode(), TIME)


def _body(agent: Any, response: Any) -> Any:
    from twisted.web.client import readBody

    body = readBody(response)
    agent.flush()
    return body


class Fleet(Resource):
    """Answers for all of them; a cursor is the number of an interval."""

    isLeaf = True

    def __init__(self, body: bytes, interval_s: float) -> None:
        super().__init__()
        self._body = body
        self._points = body.count(b'"measurement"')
        self._interval_s = interval_s
        self._handed_out = 0

    def render_GET(self, request: Any) -> bytes:
        """Answer with the newest interval if it is newer than the cursor."""
        if request.path == b"/ledger":
            return json.dumps({"points": self._handed_out}).encode()
        name = request.path.split(b"/")[1]
        newest = int(time.time() / self._interval_s)
        request.setHeader("Llama-Cursor", str(newest))
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Content-Encoding", "gzip")
        if request.args.get(b"since") == [str(newest).encode()]:
            return gzip.compress(b"[]")
        self._handed_out += self._points
        moment = utc_text(int(newest * self._interval_s) * 10**9).encode()
        body = self._body.replace(NAME, b"collector" + name).replace(TIME, moment)
        return gzip.compress(body, 1)


def main() -> None:
    """Serve until killed."""
    pairs, interval_s = int(sys.argv[1]), float(sys.argv[2])
    site = Site(Fleet(template(pairs), interval_s), reactor=reactor)
    port = reactor.listenTCP(0, site, interface="127.0.0.1", backlog=1024)
    print(json.dumps({"port": port.getHost().port}), flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
