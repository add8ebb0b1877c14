"""The questions that the page asks, answered from a `Store`: matrix, pairs, history, timeline.

Here the pure parts meet: what is asked of the store, what is remembered for how long, and what
shape the JSON has (docs/api.rst describes it). Work on arrays is done in threads, so that a big
mesh never holds the reactor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from llama.web import present
from llama.web.fold import Open, fold, lay_out, reduce_to_pairs
from llama.web.groups import in_ranges
from llama.web.heat import heat_map
from llama.web.mesh import (
    KNOWN_INTERVALS,
    LONGEST_INTERVAL_S,
    Mesh,
    due_s,
    interval_of,
    intervals_of,
    judge,
    lookback_s,
    make_mesh,
    seldom,
    speaking,
    together,
    with_seldom,
)
from llama.web.metrics import ALWAYS, METRICS, Metric, with_received
from llama.web.shared import SharedAnswers
from llama.web.store import AGGREGATE, Activity, Snapshot, Store, StoreError, Window, series_key

T = TypeVar("T")

_log = Logger()

WEEK_S = 7 * 86400.0
#: What was heard within this time is asked for to know who belongs to the mesh.
ACTIVE_S = KNOWN_INTERVALS * LONGEST_INTERVAL_S
#: For so long the matrix waits to know who fell silent, and so long after a failure it is asked again.
REMEMBERED_WITHIN_S, REMEMBERED_AGAIN_S = 3.0, 120.0
#: A matrix has at most this many rows and columns; beyond it groups must be folded.
MAX_ENTRIES = 400
#: How many steps a history has if nobody says otherwise, at most.
STEPS = 120
#: The steps that history comes in; the shortest that is no shorter than the mesh's interval.
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


class NotFoundError(Exception):
    """What was asked about does not exist; the text says what."""


class TooWideError(Exception):
    """The matrix would have more rows or columns than anyone can draw; the text says what to do."""


@frozen
class MatrixQuestion:
    """Which matrix is wanted."""

    metric: Metric
    at_s: float | None  # None: now
    span_s: float  # 0: the newest interval of each series
    where: dict[str, str]  # class, probe
    group: list[str] | None  # None: as the tags suggest
    rows: Open
    cols: Open


@frozen(eq=False)
class _Moment:
    """All that is known of one moment."""

    mesh: Mesh
    activity: Activity
    at_s: float
    window: Window
    span_s: float


class Answers:
    """Answers about one store.

    ``reactor`` gives timers and threads, ``unix_time_s`` what time it is. A source that fell silent
    is shown for ``remember_s``, unless it is among those to ``forget``: hosts that were removed or
    renamed.
    """

    def __init__(
        self,
        reactor: Any,
        store: Store,
        remember_s: float = WEEK_S,
        forget: frozenset[str] = frozenset(),
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._unix_time_s = unix_time_s
        self.store = store
        self._remember_s = remember_s
        self._forget = forget
        # A snapshot of 40,000 series with a dozen columns is some 20 MB; what these are is some 50 MB
        # where a database tells their tags anew.
        self._snapshots = SharedAnswers(reactor, 6)
        self._meshes = SharedAnswers(reactor, 12)
        self._others = SharedAnswers(reactor, 64)

    def now_s(self) -> float:
        """Return the wall-clock time."""
        return self._unix_time_s()

    def in_thread(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        """Give what ``work`` returns, without holding the reactor."""
        pool = self._reactor.getThreadPool()
        done: Deferred[T] = deferToThreadPool(self._reactor, pool, work, *args)
        return done

    # --- what the store is asked -------------------------------------------------------------

    def _activity(self, at_s: float) -> Deferred[Activity]:
        # By the minute: who belongs to the mesh does not change by the second.
        end = np.ceil(at_s / 60.0) * 60.0

        def good_for_s(activity: Activity) -> float:
            return 5.0 if interval_of(activity) is None or not activity.complete else 60.0

        async def ask() -> Activity:
            active = await self.store.activity(Window(end - 60.0 - ACTIVE_S, end))
            sources = await self.in_thread(speaking, active, end - 60.0)
            remembered = await self._within(REMEMBERED_WITHIN_S, self._remembered(end, sources))
            return await self.in_thread(together, active, sources, remembered)

        return self._meshes.get(
            ("activity", end), good_for_s, lambda: Deferred.fromCoroutine(ask()), self._past(at_s)
        )

    def _past(self, at_s: float) -> bool:
        """Return whether one may go on from a time, as by the strip; who looks live all need it."""
        return at_s < self.now_s() - 60.0

    def _remembered(self, at_s: float, sources: frozenset[str]) -> Deferred[Activity | None]:
        """Give what the sources said last that fell silent, or None if the store cannot tell."""
        # By the hour: of sources that did not speak for so long there is nothing newer.
        end = np.floor(at_s / 3600.0) * 3600.0

        async def ask() -> Activity | None:
            try:
                return await self.store.remembered(Window(end - self._remember_s, end), sources)
            except StoreError as error:
                _log.warn("silent sources are not known: {error}", error=error)
                return None

        def good_for_s(found: Activity | None) -> float:
            # What failed is not asked again by everyone who looks.
            return REMEMBERED_AGAIN_S if found is None else 3600.0

        return self._meshes.get(
            ("remembered", end, sources),
            good_for_s,
            lambda: Deferred.fromCoroutine(ask()),
            self._past(at_s),
        )

    def _within(self, seconds: float, asked: Deferred[T | None]) -> Deferred[T | None]:
        """Give an answer, or None if it takes too long; it is still waited for by others."""
        answer: Deferred[T | None] = Deferred()
        late = self._reactor.callLater(seconds, answer.callback, None)

        def arrived(found: Any) -> None:
            if late.active():
                late.cancel()
                answer.callback(found)

        asked.addBoth(arrived)
        return answer

    def _baseline(self, at_s: float) -> Deferred[Snapshot]:
        # By the hour: the usual RTT of a day does not change by the minute.
        end = np.floor(at_s / 3600.0) * 3600.0
        window = Window(end - 86400.0, end)

        def good_for_s(snapshot: Snapshot) -> float:
            return 3600.0 if snapshot.series else 60.0

        async def ask() -> Snapshot:
            found = await self.store.baseline(window)
            if found.series:
                return found
            # Less than an hour of history is the only usual there is.
            return await self.store.baseline(Window(at_s - 86400.0, at_s))

        return self._meshes.get(
            ("baseline", end), good_for_s, lambda: Deferred.fromCoroutine(ask()), self._past(at_s)
        )

    def _resolution_s(self, start_s: float) -> Deferred[float]:
        minute = start_s // 60.0 * 60.0
        return self._others.get(
            ("resolution", minute), 60.0, lambda: self.store.resolution_s(minute)
        )

    def _timeline_step_s(self, start_s: float) -> Deferred[float]:
        minute = start_s // 60.0 * 60.0
        return self._others.get(
            ("timeline step", minute), 60.0, lambda: self.store.timeline_step_s(minute)
        )

    def _newest(self) -> Deferred[float | None]:
        asked_s = self._reactor.seconds()

        def good_for_s(_: float | None) -> float:
            # The page asks again some seconds after it lost patience: it shall find what it waited for.
            return max(1.0, float(self._reactor.seconds() - asked_s))

        return self._others.get("newest", good_for_s, self.store.newest, give_up=False)

    async def _moment(
        self, at_s: float | None, span_s: float, columns: Sequence[str], metric: Metric
    ) -> _Moment:
        live = at_s is None
        at = self.now_s() if at_s is None else at_s
        activity = await self._activity(at)
        usual = min(interval_of(activity) or LONGEST_INTERVAL_S, LONGEST_INTERVAL_S)
        known = interval_of(activity) is not None
        # What is older has fallen silent, but for those that speak less often.
        lookback = lookback_s(usual, usual) if known else LONGEST_INTERVAL_S
        some = None if span_s else seldom(activity, usual)
        if not live and not span_s:
            # Where only longer rows are left, the row around the moment is what is known of it.
            resolution = await self._resolution_s(at - lookback)
            if resolution > (lookback if known else 0.0):
                newest = await self._newest()
                row_s = float(np.ceil(at / resolution) * resolution)
                at = max(at, min(row_s, at if newest is None else newest))
                span_s = resolution
        window = Window(at - (span_s or lookback), at)
        wanted = tuple(dict.fromkeys((*ALWAYS, *columns, *metric.columns)))
        key = ("live" if live else at, span_s, wanted, metric.needs_baseline)

        async def ask() -> _Moment:
            question = self.store.total if span_s else self.store.latest
            found = await question(window, wanted)
            if some is not None and len(some.series):
                rare = await self._latest_of(some, usual, at, live, wanted)
                found = await self.in_thread(with_seldom, found, rare, some, at, usual)
            snapshot = evolve(found, columns=with_received(found.columns))
            if metric.needs_baseline:
                baseline = await self._baseline(at)
                snapshot = await self.in_thread(_with_baseline, snapshot, baseline)
            for_silence = None if span_s else at
            mesh = await self.in_thread(make_mesh, snapshot, activity, for_silence, self._forget)
            return _Moment(mesh, activity, at, window, span_s)

        keep = 1.0 if live else 30.0
        return await self._snapshots.get(key, keep, lambda: Deferred.fromCoroutine(ask()))

    def _latest_of(
        self, some: Activity, usual_s: float, at_s: float, live: bool, columns: tuple[str, ...]
    ) -> Deferred[Snapshot]:
        """Give the newest samples of series that speak seldom, asked for as seldom."""
        sources = frozenset(tags.get("src_hostname", "") for tags in some.series)
        about = sources, some.last_s.tobytes(), some.interval_s.tobytes()
        window = Window(at_s - lookback_s(float(some.interval_s.max()), usual_s), at_s)

        def good_for_s(found: Snapshot) -> float:
            # As long as what is newer is among the usual, and then until something new is due.
            wait_s = min(due_s(some, found, at_s) - at_s, LONGEST_INTERVAL_S)
            return max(lookback_s(usual_s, usual_s) / 2, wait_s)

        return self._meshes.get(
            ("latest of", None if live else at_s, columns, *about),
            good_for_s,
            lambda: self.store.latest_of(window, columns, some),
            not live,
        )

    # --- answers -----------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Return how fresh the data are."""
        now = self.now_s()
        newest = await self._newest()
        interval = interval_of(await self._activity(now))
        return {"now": now, "newest": newest, "interval_s": interval, "store": self.store.kind}

    async def dimensions(self, at_s: float | None) -> dict[str, Any]:
        """Return what can be chosen: group keys, classes, kinds of probe."""
        activity = await self._activity(self.now_s() if at_s is None else at_s)
        return await self.in_thread(present.dimensions, activity)

    async def matrix(self, question: MatrixQuestion) -> dict[str, Any]:
        """Return the matrix; raises `TooWideError`."""
        moment = await self._moment(
            question.at_s, question.span_s, ("flows", "flows_lossy"), question.metric
        )
        return await self.in_thread(_matrix, question, moment)

    async def pairs(self, question: MatrixQuestion, offset: int, limit: int) -> dict[str, Any]:
        """Return pairs of hosts, the worst first, from ``offset`` on."""
        moment = await self._moment(
            question.at_s, question.span_s, ("flows", "flows_lossy"), question.metric
        )
        return await self.in_thread(_pairs, question, moment, offset, limit)

    async def history(
        self, window: Window, step_s: float | None, src: str, dst: str, where: dict[str, str]
    ) -> dict[str, Any]:
        """Return one pair's figures over time, in one direction; raises `NotFoundError`."""
        step = await self._step(window, step_s, await self._resolution_s(window.start_s))
        end = np.ceil(window.end_s / step) * step
        key = ("history", window.start_s // step, end, step, src, dst, *sorted(where.items()))
        tags = {"src_hostname": src, "dst_hostname": dst, **where}
        found = await self._others.get(
            key, 2.0, lambda: self.store.history(window, step, tuple(AGGREGATE), tags)
        )
        if not found.series:
            raise NotFoundError(f"no measurements from {src!r} to {dst!r} in this time")
        found = evolve(found, columns=with_received(found.columns))
        heat = await self.in_thread(heat_map, found)
        activity = await self._activity(window.end_s)
        intervals = await self.in_thread(intervals_of, activity, tags)
        return await self.in_thread(present.history, src, dst, found, heat, intervals)

    async def timeline(
        self, window: Window, step_s: float | None, where: dict[str, str]
    ) -> dict[str, Any]:
        """Return how the whole mesh did over time.

        What lies in the past is remembered, the longer the older it is: a scraper that was away
        may still fill a gap.
        """
        step = await self._step(window, step_s, await self._timeline_step_s(window.start_s))
        # A fixed grid of blocks, so that a sliding window finds its blocks again.
        block = 30 * step
        first, last = int(window.start_s // block), int(np.ceil(window.end_s / block))
        now = self.now_s()
        parts = []
        for n in range(first, last):
            part = Window(n * block, (n + 1) * block)
            parts.append(
                await self._others.get(
                    ("timeline", part, step, *sorted(where.items())),
                    min(3600.0, max(5.0, (now - part.end_s) / 10)),
                    partial(self.store.timeline, part, step, where),
                )
            )
        return present.timeline(parts, step, window)

    async def _step(self, window: Window, asked_s: float | None, least_s: float) -> float:
        """Return the step that is asked for, or else some 120th; of ``least_s`` at least."""
        if asked_s is not None and asked_s >= least_s:
            return asked_s
        if asked_s is not None:
            wanted = least_s
        else:
            interval = interval_of(await self._activity(window.end_s)) or 1.0
            wanted = max(window.length_s / STEPS, interval, least_s)
        return float(next((step for step in STEPS_S if step >= wanted), STEPS_S[-1]))


def _with_baseline(snapshot: Snapshot, baseline: Snapshot) -> Snapshot:
    usual = {
        series_key(tags): value
        for tags, value in zip(baseline.series, baseline.column("rtt_p50"), strict=True)
    }
    column = np.fromiter(
        (usual.get(series_key(tags), np.nan) for tags in snapshot.series),
        np.float64,
        len(snapshot.series),
    )
    return evolve(snapshot, columns={**snapshot.columns, "baseline": column})


def _matrix(question: MatrixQuestion, moment: _Moment) -> dict[str, Any]:
    mesh = moment.mesh
    keys = question.group if question.group is not None else mesh.places.hierarchy()
    chosen = mesh.where(question.where)
    pairs = reduce_to_pairs(mesh, question.metric, chosen)
    loss = METRICS["loss"]
    losses = pairs if question.metric is loss else reduce_to_pairs(mesh, loss, chosen)
    health = judge(mesh)
    sources = [mesh.places.source_path(host, keys) for host in mesh.sources]
    destinations = [mesh.places.destination_path(host, keys) for host in mesh.destinations]
    rows = lay_out(mesh.sources, in_ranges(mesh.sources, sources), question.rows)
    cols = lay_out(mesh.destinations, in_ranges(mesh.destinations, destinations), question.cols)
    for name, axis in (("rows", rows), ("cols", cols)):
        if len(axis.entries) > MAX_ENTRIES:
            raise TooWideError(
                f"{name}: {len(axis.entries)} would be shown, at most {MAX_ENTRIES} can be: "
                "close groups, or choose other group keys"
            )
    cells = fold(pairs, health, rows, cols)
    return {
        **present.moment(moment.at_s, moment.span_s, moment.window, mesh, moment.activity),
        "metric": question.metric.describe(),
        "group": keys,
        "rows": present.entries(rows, mesh.sources, health, "src"),
        "cols": present.entries(cols, mesh.destinations, health, "dst"),
        "cells": present.cells(question.metric, cells, pairs, mesh),
        "sick": present.sick(mesh, health),
        "summary": present.summary(pairs, losses, mesh, health, moment.activity.dropped),
        "worst": present.pairs(question.metric, mesh, pairs, present.rank(pairs, health)[:12]),
    }


def _pairs(question: MatrixQuestion, moment: _Moment, offset: int, limit: int) -> dict[str, Any]:
    mesh = moment.mesh
    pairs = reduce_to_pairs(mesh, question.metric, mesh.where(question.where))
    order = present.rank(pairs, None)
    end = offset + limit
    return {
        **present.moment(moment.at_s, moment.span_s, moment.window, mesh, moment.activity),
        "metric": question.metric.describe(),
        "pairs": present.pairs(question.metric, mesh, pairs, order[offset:end]),
        "total": len(order),
        "next": str(end) if end < len(order) else None,
    }
