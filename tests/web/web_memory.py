"""A `Store` over a list of points, written the obvious way: what the real ones are judged by."""

from __future__ import annotations

import functools
import math
import operator
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from twisted.internet.defer import Deferred, succeed

from llama.interfaces import Point
from llama.web.store import (
    AGGREGATE,
    LOSSY_PERCENT,
    Activity,
    History,
    Snapshot,
    Tags,
    Timeline,
    Window,
    series_key,
)


def _put_together(name: str, values: list[float]) -> float:
    if not values:
        return math.nan
    return {"sum": math.fsum, "max": max, "min": min, "or": _union}[AGGREGATE[name]](values)


def _union(values: list[float]) -> float:
    return float(functools.reduce(operator.or_, map(int, values)))


class MemoryStore:
    """Holds ``points`` and answers by walking over them."""

    kind = "memory"

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self.stopped = False
        self._series: dict[tuple[tuple[str, str], ...], list[tuple[float, dict[str, float]]]] = {}
        self.add(points)

    def add(self, points: Iterable[Point]) -> None:
        """Put further points in; they must come in order of time."""
        for point in points:
            if point.measurement == "raw_stats":
                rows = self._series.setdefault(series_key(point.tags), [])
                rows.append((point.time_ns / 1e9, dict(point.fields)))

    def _within(
        self, window: Window, where: Tags | None = None
    ) -> Iterable[tuple[Tags, list[tuple[float, dict[str, float]]]]]:
        for key, rows in self._series.items():
            tags = dict(key)
            if all(tags.get(name) == value for name, value in (where or {}).items()):
                found = [row for row in rows if window.start_s < row[0] <= window.end_s]
                if found:
                    yield tags, found

    def sources(self) -> set[str]:
        """Return the names of all sources."""
        return {dict(key)["src_hostname"] for key in self._series}

    def newest(self) -> Deferred[float | None]:
        """See `llama.web.store.Store`."""
        return succeed(max((rows[-1][0] for rows in self._series.values()), default=None))

    def resolution_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return succeed(0.0)

    def timeline_step_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return succeed(0.0)

    def activity(self, window: Window) -> Deferred[Activity]:
        """See `llama.web.store.Store`."""
        found = list(self._within(window))
        return succeed(
            Activity(
                [tags for tags, _ in found],
                np.array([rows[-1][0] for _, rows in found]),
                np.array(
                    [rows[-1][0] - rows[-2][0] if len(rows) > 1 else math.nan for _, rows in found]
                ),
            )
        )

    def remembered(self, window: Window, speaking: frozenset[str]) -> Deferred[Activity]:
        """See `llama.web.store.Store`."""
        found = [
            (tags, rows)
            for tags, rows in self._within(window)
            if tags.get("src_hostname", "") not in speaking
        ]
        return succeed(
            Activity(
                [tags for tags, _ in found],
                np.array([rows[-1][0] for _, rows in found], dtype=float),
                np.full(len(found), math.nan),
            )
        )

    def latest(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        return succeed(self._snapshot(window, columns, lambda rows: rows[-1:]))

    def latest_of(
        self, window: Window, columns: Sequence[str], some: Activity
    ) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        wanted = set(map(series_key, some.series))
        part = MemoryStore()
        part._series = {key: rows for key, rows in self._series.items() if key in wanted}
        return part.latest(window, columns)

    def total(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        return succeed(self._snapshot(window, columns, lambda rows: rows))

    def _snapshot(self, window: Window, columns: Sequence[str], chosen: Any) -> Snapshot:
        found = list(self._within(window))
        return Snapshot(
            [tags for tags, _ in found],
            np.array([rows[-1][0] for _, rows in found], dtype=float),
            {
                name: np.array(
                    [
                        _put_together(
                            name, [figures[name] for _, figures in chosen(rows) if name in figures]
                        )
                        for _, rows in found
                    ],
                    dtype=float,
                )
                for name in columns
            },
        )

    def baseline(self, window: Window) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        found = [
            (tags, rows[-1][0], values)
            for tags, rows in self._within(window)
            if (values := [figures["rtt_p50"] for _, figures in rows if "rtt_p50" in figures])
        ]
        return succeed(
            Snapshot(
                [tags for tags, _, _ in found],
                np.array([time for _, time, _ in found], dtype=float),
                {"rtt_p50": np.array([statistics.median(v) for _, _, v in found], dtype=float)},
            )
        )

    def history(
        self, window: Window, step_s: float, columns: Sequence[str], where: Tags
    ) -> Deferred[History]:
        """See `llama.web.store.Store`."""
        ends = window.steps(step_s)
        found = list(self._within(window, where))
        out = {name: np.full((len(found), ends.size), math.nan) for name in columns}
        for n, (_, rows) in enumerate(found):
            for step, end in enumerate(ends):
                inside = [figures for time, figures in rows if end - step_s < time <= end]
                for name in columns:
                    values = [figures[name] for figures in inside if name in figures]
                    out[name][n, step] = _put_together(name, values)
        return succeed(History([tags for tags, _ in found], step_s, ends, out))

    def timeline(self, window: Window, step_s: float, where: Tags) -> Deferred[Timeline]:
        """See `llama.web.store.Store`."""
        ends = window.steps(step_s)
        series, lossy = np.zeros(ends.size), np.zeros(ends.size)
        worst = np.full(ends.size, math.nan)
        for _, rows in self._within(window, where):
            for step, end in enumerate(ends):
                inside = [figures for time, figures in rows if end - step_s < time <= end]
                sent = sum(figures["sent"] for figures in inside)
                if inside:
                    series[step] += 1
                if sent:
                    loss = 100.0 * sum(figures["lost"] for figures in inside) / sent
                    lossy[step] += loss >= LOSSY_PERCENT
                    worst[step] = np.fmax(worst[step], loss)
        return succeed(Timeline(step_s, ends, series, lossy, worst))

    def stop(self) -> Deferred[None]:
        """See `llama.web.store.Store`."""
        self.stopped = True
        return succeed(None)
