"""The collector's HTTP side: what it measured, for programs, databases and people.

Nothing that it answers changes anything, and nothing that it does takes longer than a slice: an
interval is encoded after it closed, bit by bit, and requests are given what is ready. Where it
listens and who may ask is `llama.http.server`'s part. Described in docs/http.rst.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import numpy.typing as npt
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from llama.collector.answers import encode, exposition, page
from llama.collector.answers.cached_body import CachedBody
from llama.collector.answers.exposition import Health
from llama.collector.answers.history import Held, History
from llama.collector.answers.packed import Packed, join, pack
from llama.collector.answers.selection import FlowQuery, pairs_of, select_flows
from llama.collector.answers.sending import send
from llama.collector.intervals.summary import ClosedInterval
from llama.collector.slices import Job, Slices
from llama.http.errors import add_errors
from llama.http.server import Query, json_error, plain
from llama.paths.table import PathTable

JSON = "application/json"
HTML = "text/html; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

_OPEN, _COMMA, _CLOSE = pack(b"["), pack(b","), pack(b"]")
_ALL = 2**53  # closed intervals, where a question sets no limit
#: Windows of time that may wait to be encoded: one or two do for a moment after each close.
_MOST_BEHIND = 4
#: Requests that may wait for work of their own at one time.
_MOST_WAITING = 32

_log = Logger()


class BusyError(Exception):
    """Too many requests wait already."""


class CollectorApi:
    """Serves a `History`: ``api.app.resource()`` is the root for a `llama.http.server.HttpService`.

    It notices what is appended to ``history`` by itself. ``health`` tells how the collector itself
    is doing (see `llama.collector.answers.exposition.Health`): it is called at every close and for every
    ``/metrics``, so it must be quick. ``src_hostname`` names the collector.
    """

    app = Klein()

    def __init__(
        self,
        reactor: Any,
        history: History,
        *,
        src_hostname: str,
        health: Callable[[], Health] = dict,
        paths: PathTable | None = None,
        trouble: Callable[[], str] = str,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._history = history
        self._src_hostname = src_hostname
        self._health = health
        self._trouble = trouble
        self._paths_known = PathTable() if paths is None else paths
        self._unix_time_s = unix_time_s
        self._slices = Slices(reactor)
        self._totals = exposition.Totals(history.series)
        self._latency = CachedBody(self._slices, self._encode_latency)
        self._metrics = CachedBody(self._slices, self._totals.text)
        self._making: set[Held] = set()
        self._finished: list[Deferred[None]] = []  # who waits for an interval to be encoded
        self._own_windows: deque[int] = deque(maxlen=64)  # ends of those that have a point of ours
        self._forgotten = (0, False)  # how many at the last close, and whether that was said
        history.observers.append(self._closed)

    def stop(self) -> None:
        """Drop the work that is not finished, and say what ends with the process."""
        self._slices.stop()
        left = sum(not held.fetched for held in self._history.held)
        if self._history.walked and left:
            _log.warn(
                "{count} closed intervals that were not fetched yet end with this process, as does the"
                " one under way: what they measured is in no database",
                count=left,
            )

    def health(self) -> dict[str, Any]:
        """Return the collector's health, with what this side of it adds."""
        history = self._history
        return {
            **self._health(),
            "intervals_held": len(history.held),
            "intervals_forgotten_total": history.forgotten,
            "flows_forgotten_total": history.forgotten_flows,
            "packed_bytes": history.packed_octets,
            "series": int(history.series.live().sum()),
            "encoding_longest_slice_seconds": self._slices.longest_s,
        }

    # What happens when an interval closes.

    def _closed(self, held: Held) -> None:
        closed = held.closed
        # Once a window, however many tests close in it, and whenever: later is not what tells, as the
        # wall clock may have been years ahead when we began.
        if closed.end_ns not in self._own_windows:
            self._own_windows.append(closed.end_ns)
            held.health = exposition.flat(self.health())
            self._slices.take_longest_s()
        self._say_forgotten()
        self._making.add(held)
        self._slices.background(self._encode(held)).addCallbacks(
            self._encoded, self._not_encoded, callbackArgs=(held,), errbackArgs=(held,)
        )

    def _encode(self, held: Held) -> Job[None]:
        closed, history, series = held.closed, self._history, self._history.series
        yield from history.count_flows(held)
        assert held.flows is not None
        assert held.flows_lossy is not None
        now_s = self._reactor.seconds()
        rows = yield from series.rows_of(closed.pairs, now_s)
        yield None
        tags = [series.tags[row] or b"{}" for row in rows.tolist()]
        yield None
        own = []
        if held.health is not None:
            own.append(encode.own_point(self._src_hostname, held.health, closed.end_ns))
        points = yield from encode.points(closed, held.flows, held.flows_lossy, tags, own)
        yield from self._totals.add(closed, rows, held.flows, held.flows_lossy)
        held.rows, held.points = rows, points
        length_s = (closed.end_ns - closed.start_ns) / 1e9
        ended = series.end(now_s - 3.5 * length_s)
        if len(ended):
            self._totals.forget(ended)
        yield None

    def _encoded(self, _: None, held: Held) -> None:
        self._making.discard(held)
        self._latency.closed()
        self._metrics.closed()
        self._slices.background(self._history.thin()).addErrback(self._not_thinned)
        self._tell()

    def _not_encoded(self, failure: Failure, held: Held) -> None:
        self._making.discard(held)
        if not failure.check(CancelledError):
            number = held.closed.close_number
            _log.failure("Interval {number} could not be encoded", failure, number=number)
        self._tell()

    def _not_thinned(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            _log.failure("Older intervals could not be thinned", failure)

    def _tell(self) -> None:
        finished, self._finished = self._finished, []
        self._slices.hurried -= len(finished)
        for waiting in finished:
            waiting.callback(None)

    def _next_encoded(self) -> Deferred[None]:
        def leave(waiting: Deferred[None]) -> None:
            self._finished.remove(waiting)
            self._slices.hurried -= 1

        waiting: Deferred[None] = Deferred(leave)
        self._finished.append(waiting)
        self._slices.hurried += 1
        return waiting

    def _say_forgotten(self) -> None:
        before, said = self._forgotten
        now = self._history.forgotten
        if now == before:
            said = False
        elif self._history.walked and not said:
            said = True
            _log.warn(
                "Forgot a closed interval that no scraper had fetched ({count} so far): "
                "see why scrapers stay away, or hold more intervals",
                count=now,
            )
        self._forgotten = now, said

    # What is asked.

    @app.route("/status", methods=["GET"])
    def _status(self, request: Any) -> bytes:
        trouble = self._trouble() or self._behind()
        if trouble:
            request.setResponseCode(503)
        return plain(request, trouble or "ok")

    @app.route("/influxdata", methods=["GET"])
    @inlineCallbacks
    def _influxdata(self, request: Any) -> Generator[Deferred[Any], Any, None]:
        query = Query(request)
        since, limit = query.text("since"), query.whole("limit", _ALL, low=1)
        found, missed = self._points(since)
        while not found and self._making:
            yield self._next_encoded()
            found, missed = self._points(since)
        if since is not None and len(found) > limit:
            request.setHeader("Llama-More", str(len(found) - limit))
            del found[limit:]
        number = found[-1].closed.close_number if found else self._history.newest
        request.setHeader("Llama-Cursor", self._history.cursor(number))
        if missed:
            request.setHeader("Llama-Missed", str(missed))
        parts = [_OPEN]
        for held in found:
            assert held.points is not None
            if held.points.size:
                parts += [held.points, _COMMA]
        if len(parts) > 1:
            parts.pop()
        yield send(request, self._reactor, join([*parts, _CLOSE]), JSON)
        if since is not None:
            for held in found:
                held.fetched = True

    def _behind(self) -> str:
        """Return that encoding does not keep up with closing, if that is so."""
        windows = len({held.closed.end_ns for held in self._making})
        if windows <= _MOST_BEHIND:
            return ""
        return f"{windows} closed intervals wait to be encoded: what is told is old"

    def _points(self, since: str | None) -> tuple[list[Held], int]:
        """Return the finished intervals to answer with, in the order of closing."""
        if since is None:
            newest = [one.held for one in self._history.newest_of_pairs()]
            return sorted(newest, key=lambda held: held.closed.close_number), 0
        after, missed = self._history.since(since)
        ready = []
        for held in after:
            if held in self._making:
                break
            if held.points is not None:
                ready.append(held)
        return ready, missed

    @app.route("/latency", methods=["GET"])
    @inlineCallbacks
    def _latency_asked(self, request: Any) -> Generator[Deferred[Any], Any, None]:
        query = Query(request)
        target, class_name = query.text("target"), query.text("class")
        if target is None and class_name is None:
            body = yield self._latency.get()
        else:
            body = yield self._asked(self._encode_latency(target, class_name))
        yield send(request, self._reactor, body, JSON)

    def _encode_latency(
        self, target: str | None = None, class_name: str | None = None
    ) -> Job[Packed]:
        newest = self._history.newest_of_pairs()
        yield None
        head = self._head([one.closed for one in newest])
        parts = []
        for one in newest:
            wanted = yield from pairs_of(one.closed.pairs, one.numbers, target, class_name)
            parts.append((one, wanted))
        body = yield from encode.latency(head, parts)
        return body

    @app.route("/flows", methods=["GET"])
    @inlineCallbacks
    def _flows(self, request: Any) -> Generator[Deferred[Any], Any, None]:
        query = FlowQuery.read(Query(request))
        if (missing := self._not_held(query)) is not None:
            request.write(json_error(request, 404, missing))
            return
        body = yield self._asked(self._encode_flows(query))
        yield send(request, self._reactor, body, JSON)

    def _not_held(self, query: FlowQuery) -> str | None:
        """Say what is asked for that is not held, and what is; None where it is held."""
        held = [one.closed for one in self._history.held]
        if query.close_number is not None and self._numbered(query.close_number) is None:
            span = f"{held[0].close_number} to {held[-1].close_number} are" if held else "none is"
            return f"interval {query.close_number} is not held; {span}"
        if query.at_s is not None and not self._at(query.at_s):
            since = f"those since {encode.utc_text(held[0].start_ns)} are" if held else "none is"
            return f"no interval of that time is held; {since}"
        return None

    def _at(self, at_s: float) -> list[tuple[ClosedInterval, npt.NDArray[np.int64]]]:
        """Return the intervals of a time, and the newest of every pair where it is after them all."""
        time_ns = round(at_s * 1e6) * 1000  # what a double tells, and our ends are
        if time_ns > max((held.closed.end_ns for held in self._history.held), default=time_ns):
            return self._newest()
        return [(one, np.arange(len(one.pairs))) for one in self._history.of_time(time_ns)]

    def _newest(self) -> list[tuple[ClosedInterval, npt.NDArray[np.int64]]]:
        return [(one.closed, one.numbers) for one in self._history.newest_of_pairs()]

    def _numbered(self, close_number: int) -> Held | None:
        for held in self._history.held:
            if held.closed.close_number == close_number:
                return held
        return None

    def _encode_flows(self, query: FlowQuery) -> Job[Packed]:
        if query.at_s is not None:
            intervals = self._at(query.at_s)
        elif query.close_number is None:
            intervals = self._newest()
        else:
            held = self._numbered(query.close_number)
            closed = [] if held is None else [held.closed]
            intervals = [(one, np.arange(len(one.pairs))) for one in closed]
        parts, count = yield from select_flows(intervals, query)
        yield None
        end = query.offset + query.limit
        head = self._head([closed for closed, _ in intervals])
        head |= {"count": count, "offset": query.offset, "limit": query.limit}
        head["next_offset"] = end if end < count else None
        body = yield from encode.flows(head, parts)
        return body

    @app.route("/paths", methods=["GET"])
    @inlineCallbacks
    def _paths(self, request: Any) -> Generator[Deferred[Any], Any, None]:
        since_s = Query(request).whole("since", 0)
        body = yield self._asked(self._encode_paths(since_s))
        yield send(request, self._reactor, body, JSON)

    def _encode_paths(self, since_s: float) -> Job[Packed]:
        now = self._unix_time_s()
        head = {"src_hostname": self._src_hostname, "incarnation": self._history.incarnation}
        rows = list(self._paths_known.since(since_s))
        body = yield from encode.paths(head | {"time": now}, rows)
        return body

    @app.route("/metrics", methods=["GET"])
    @inlineCallbacks
    def _metrics_asked(self, request: Any) -> Generator[Deferred[Any], Any, None]:
        pairs = yield self._metrics.get()
        own = pack(exposition.health_text("llama_collector", self.health()))
        yield send(request, self._reactor, join([own, pairs]), PROMETHEUS)

    @app.route("/", methods=["GET"])
    @inlineCallbacks
    def _page(self, request: Any) -> Generator[Deferred[Any], Any, None]:
        query = Query(request)
        view = page.View(
            target=query.text("target") or "",
            offset=query.whole("offset", 0),
            limit=query.whole("limit", 200, low=1, high=1000),
        )
        newest = self._history.newest_of_pairs()
        body = yield self._asked(page.render(self._src_hostname, newest, view, self._unix_time_s()))
        request.setHeader("Content-Security-Policy", page.POLICY)
        yield send(request, self._reactor, body, HTML)

    def _asked(self, job: Job[Packed]) -> Deferred[Packed]:
        if self._slices.waiting >= _MOST_WAITING:
            raise BusyError
        return self._slices.asked(job)

    def _head(self, intervals: list[ClosedInterval]) -> dict[str, Any]:
        """Return what a JSON answer for programs says first: who measured, and when."""
        return {
            "src_hostname": self._src_hostname,
            "incarnation": self._history.incarnation,
            "intervals": [
                {
                    "close_number": closed.close_number,
                    "start": encode.utc_text(closed.start_ns),
                    "end": encode.utc_text(closed.end_ns),
                    "timeout_ms": closed.timeout_s * 1e3,
                    "all_flows": closed.all_flows,
                    "notes": list(closed.notes),
                }
                for closed in intervals
            ],
        }

    # What cannot be answered.

    @app.handle_errors(BusyError)
    def _busy(self, request: Any, failure: Failure) -> bytes:
        request.setHeader("Retry-After", "1")
        return json_error(request, 503, "too many requests wait for an answer; ask again")

    @app.handle_errors(CancelledError)
    def _stopping(self, request: Any, failure: Failure) -> bytes:
        return json_error(request, 503, "the collector is stopping")

    add_errors(app, _log)
