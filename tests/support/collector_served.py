"""A collector's HTTP side in memory, for tests: intervals go in, answers come out."""

from __future__ import annotations

import gzip
import json
from typing import Any

import treq
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.http.server import Guard
from llama.testing import FIRST_START_S, closed_interval


class Answer:
    """An answer: its ``code``, ``headers`` and ``body``, unpacked if it came packed."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.code = response.code
        self.headers = response.headers
        self.sent_octets = len(body)
        self.body = gzip.decompress(body) if self.header("Content-Encoding") == "gzip" else body

    def header(self, name: str) -> str | None:
        """Return the only header of that name, or None."""
        values = self.headers.getRawHeaders(name) or [None]
        assert len(values) == 1, values
        return values[0]

    def json(self) -> Any:
        """Return the body as JSON; constants that JSON does not have are refused."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} in JSON")

        assert self.header("Content-Type") == "application/json"
        return json.loads(self.body, parse_constant=refuse)


class Served:
    """A `CollectorApi` on a clock of its own."""

    def __init__(self, keep: int = 5, health: Any = dict) -> None:
        self.trouble = ""
        self.clock = Clock()
        self.history = History(keep)
        self.api = CollectorApi(
            self.clock,
            self.history,
            src_hostname="collector01.example.net",
            health=health,
            trouble=lambda: self.trouble,
            unix_time_s=lambda: FIRST_START_S + 100.0,
        )
        self.agent = RequestTraversalAgent(Guard(self.api.app.resource()))

    def close(self, *args: Any, work: bool = True, **kwargs: Any) -> Any:
        """Let an interval close (see `closed_interval`), and be encoded; return it."""
        kwargs.setdefault("close_number", self.history.newest + 1)
        closed = closed_interval(*args, **kwargs)
        self.history.append(closed)
        if work:
            self.work()
        return closed

    def work(self) -> None:
        """Do all the work that is due, however many turns it takes."""
        for _ in range(100_000):
            calls = self.clock.getDelayedCalls()
            if not calls:
                return
            self.clock.advance(max(0.0, min(c.getTime() for c in calls) - self.clock.seconds()))
        raise AssertionError("the work does not end")

    def slices_idle(self) -> bool:
        """Return whether nothing is being made."""
        slices = self.api._slices
        return not (slices._background or slices._asked)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Deferred[Any]:
        """Ask for a path, with headers such as ``Accept_Encoding``; do not work."""
        wanted = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        return self.agent.request(method.encode(), b"http://x" + path.encode(), wanted)

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask for a path and work until it is answered."""
        responses: list[Any] = []
        bodies: list[bytes] = []
        self.ask(path, method, **headers).addBoth(responses.append)
        self._until(responses)
        treq.content(responses[0]).addBoth(bodies.append)
        self._until(bodies)
        return Answer(responses[0], bodies[0])

    def _until(self, results: list[Any]) -> None:
        for _ in range(100_000):
            if results:
                if hasattr(results[0], "raiseException"):
                    results[0].raiseException()
                return
            self.agent.flush()
            self.clock.advance(0.01)
        raise AssertionError("no answer")
