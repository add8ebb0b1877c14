"""Databases that speak PromQL: Prometheus, VictoriaMetrics, Thanos, Mimir.

What is asked is told by `llama.web.stores.promql`, and asked through `prometheus_api`; which of the
two kinds of names a database has is found out by asking it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from twisted.internet.defer import Deferred, succeed

from llama.collector.intervals.summary import SUSPECT_REASONS, suspect_bit
from llama.web.store import Activity, Column, History, Snapshot, Tags, Timeline, Window, series_key
from llama.web.stores.database import MOST_VALUES, deferred
from llama.web.stores.prometheus_api import Key, Labels, PrometheusDatabase, tags_of
from llama.web.stores.promql import (
    FEW_SOURCES,
    SUSPECT,
    Counters,
    Names,
    Points,
    lossy,
    of_sources,
    portions,
    selector,
)

#: How far back is looked to see how often a series speaks.
RECENT_S = 360.0
#: Series of which the last words are asked for at once: at 2,000 steps a week, ten million samples,
#: a fifth of what Prometheus takes by default (``query.max-samples``).
SERIES_AT_ONCE = 5000

#: For so long a sample stands for now, unless a server is told otherwise.
STALE_S = 300
#: Steps of one answer, of which VictoriaMetrics gives 30,000 at most.
MOST_STEPS = 20_000


class PrometheusStore:
    """Asks by PromQL. ``options`` are those of `Database`; its ``url`` is without ``/api/v1``."""

    kind = "prometheus"

    def __init__(
        self, reactor: Any, *, unix_time_s: Callable[[], float] = time.time, **options: Any
    ) -> None:
        self._database = PrometheusDatabase(reactor, **options)
        self._unix_time_s = unix_time_s
        self._names: Names | None = None
        self._scraped_every_s = 30.0

    def stop(self) -> Deferred[None]:
        """Close the connections."""
        return self._database.stop()

    async def _which(self) -> Names:
        """Return which names the database has; until it has any, counters are taken for granted."""
        if self._names is None:
            kinds: tuple[Names, ...] = (Counters(), Points())
            for names in kinds:
                count = f"count(last_over_time({names.presence}[30d]))"
                if (await self._database.instant(count)).tags:
                    self._names = names
                    break
        return self._names or Counters()

    @deferred
    async def newest(self) -> float | None:
        """See `llama.web.store.Store`."""
        names = await self._which()
        spoke = f"timestamp({names.presence})"  # of the past five minutes
        for query in (f"max({spoke})", f"max(max_over_time({spoke}[1d:5m]))"):
            found = await self._database.instant(query, self._unix_time_s())
            if found.tags:
                return float(found.values[0])
        return None

    def resolution_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`. What a counter rose by takes some samples to tell."""
        return succeed(4 * self._scraped_every_s if isinstance(self._names, Counters) else 0.0)

    def timeline_step_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return self.resolution_s(start_s)

    @deferred
    async def activity(self, window: Window) -> Activity:
        """See `llama.web.store.Store`."""
        names = await self._which()
        presence = names.presence
        end, recent = window.end_s, min(RECENT_S, window.length_s)
        span = f"{round(window.length_s * 1000) - 1:d}ms"
        everyone, spoke, often = await self._database.ask_all(
            [
                partial(self._database.instant, f"last_over_time({presence}[{span}])", end),
                partial(self._database.instant, f"timestamp({presence})", end),
                partial(self._database.instant, names.every(recent), end),
            ]
        )
        last = spoke.by_key()
        silent = {
            tags.get("src_hostname", "") for tags in everyone.tags if series_key(tags) not in last
        }
        if silent:
            which = presence
            if len(silent) <= FEW_SOURCES:
                which = of_sources(presence, sorted(silent))
            asked = f"max_over_time(timestamp({which})[{span}:1m])"
            last = (await self._database.instant(asked, end)).by_key() | last
        keys = list(map(series_key, everyone.tags))
        interval = often.in_order(keys)
        if isinstance(names, Points) and np.isnan(interval).any():
            rarely = await self._database.instant(names.every(window.length_s), end)
            interval = np.where(np.isnan(interval), rarely.in_order(keys), interval)
        if not np.isnan(interval).all():
            self._scraped_every_s = float(np.nanmedian(interval))
        if isinstance(names, Counters):
            # Scraped as often as all others, however few scrapes there were since its start.
            interval = np.where(np.isnan(interval), np.nan, self._scraped_every_s)
        return Activity(
            everyone.tags,
            np.array([last.get(key, window.start_s) for key in keys], dtype=np.float64),
            interval,
        )

    @deferred
    async def remembered(self, window: Window, speaking: frozenset[str]) -> Activity:
        """See `llama.web.store.Store`."""
        presence = (await self._which()).presence
        known = await self._database.values_of("src_hostname", presence, window)
        silent = sorted(known - speaking)
        chosen = [selector(presence, {"src_hostname": source}) for source in silent]
        counted = await self._database.ask_all(
            [partial(self._database.count_by, "dst_hostname", one, window) for one in chosen]
        )
        destinations = dict(zip(silent, counted, strict=True))
        span = f"{round(window.length_s * 1000) - 1:d}ms:{STALE_S}s"
        queries = [
            f"max_over_time(timestamp({which})[{span}])"
            for which in portions(presence, destinations, SERIES_AT_ONCE)
        ]
        found = await self._database.ask_all(
            [partial(self._database.instant, query, window.end_s) for query in queries]
        )
        tags = [each for vector in found for each in vector.tags]
        last = np.concatenate([np.empty(0), *(vector.values for vector in found)])
        inside = last > window.start_s
        return Activity(
            [each for each, kept in zip(tags, inside.tolist(), strict=True) if kept],
            last[inside],
            np.full(int(inside.sum()), np.nan),
        )

    @deferred
    async def latest(self, window: Window, columns: Sequence[str]) -> Snapshot:
        """See `llama.web.store.Store`."""
        names = await self._which()
        if isinstance(names, Counters):
            return await self._rise(names, window, columns)
        return await self._newest_points(names, window, columns)

    @deferred
    async def latest_of(self, window: Window, columns: Sequence[str], some: Activity) -> Snapshot:
        """See `llama.web.store.Store`. All series of a source speak as seldom."""
        names = await self._which()
        if isinstance(names, Counters):  # which are all scraped as often
            return Snapshot([], np.empty(0), {name: np.empty(0) for name in columns})
        sources = sorted({tags.get("src_hostname", "") for tags in some.series})
        parts = [
            await self._newest_points(names, window, columns, sources[n : n + FEW_SOURCES])
            for n in range(0, len(sources), FEW_SOURCES)
        ]
        return Snapshot(
            [tags for part in parts for tags in part.series],
            np.concatenate([part.time_s for part in parts]),
            {name: np.concatenate([part.column(name) for part in parts]) for name in columns},
        )

    async def _newest_points(
        self, names: Points, window: Window, columns: Sequence[str], sources: Sequence[str] = ()
    ) -> Snapshot:
        # The samples themselves: last_over_time() would fill a gap with an older interval's.
        wanted = list(dict.fromkeys(("sent", *names.columns(columns))))
        span = f"[{round(window.length_s * 1000) - 1:d}ms]"

        queries = [
            (of_sources(names.prefix + name, sources) if sources else names.raw(name, {})) + span
            for name in wanted
        ]
        found = await self._database.ask_all(
            [partial(self._database.samples, query, window.end_s) for query in queries]
        )
        answers = dict(zip(wanted, found, strict=True))

        def put_together() -> Snapshot:
            series = [tags for tags, _, _ in answers["sent"]]
            newest = np.array([times[-1] for _, times, _ in answers["sent"]], dtype=np.float64)
            place = {series_key(tags): n for n, tags in enumerate(series)}
            known = {}
            for name in wanted:
                column = known[name] = np.full(len(series), np.nan)
                for tags, times, values in answers[name]:
                    n = place.get(series_key(tags), -1)
                    if n >= 0 and times[-1] == newest[n]:
                        column[n] = values[-1]
            return _snapshot(series, newest, known, columns)

        return await self._database.in_thread(put_together)

    @deferred
    async def total(self, window: Window, columns: Sequence[str]) -> Snapshot:
        """See `llama.web.store.Store`."""
        return await self._rise(await self._which(), window, columns)

    async def _rise(self, names: Names, window: Window, columns: Sequence[str]) -> Snapshot:
        wanted = list(dict.fromkeys(("sent", *names.columns(columns))))
        queries = [names.over(name, window.length_s, {}) for name in wanted]
        queries.append(f"timestamp({names.presence})")
        *answers, spoke = await self._database.ask_all(
            [partial(self._database.instant, query, window.end_s) for query in queries]
        )
        reasons: dict[Key, float] = {}
        if isinstance(names, Counters):
            reasons = await self._reasons(window)
        elif "suspect" in wanted:
            reasons = {
                key: float(bits[0])
                for key, bits in (await self._doubts(names, window, window.length_s, {})).items()
            }

        def put_together() -> Snapshot:
            series = answers[0].tags
            keys = list(map(series_key, series))
            found = {
                name: answer.in_order(keys) for name, answer in zip(wanted, answers, strict=True)
            }
            if isinstance(names, Counters):
                found["suspect"] = np.array([reasons.get(key, 0.0) for key in keys])
            else:
                for n, key in enumerate(keys):
                    if key in reasons:
                        found["suspect"][n] = reasons[key]
            return _snapshot(series, spoke.in_order(keys), found, columns)

        return await self._database.in_thread(put_together)

    async def _doubts(
        self, names: Points, window: Window, step_s: float, where: Tags
    ) -> dict[Key, Column]:
        """Return the suspect bits by step, from ``window.start_s`` on, of the series with any."""
        # Interval by interval, as long as those are not too many for one answer.
        parts = max(
            1.0, np.floor(step_s / max(self._scraped_every_s, window.length_s / MOST_STEPS))
        )
        each_s = step_s / parts
        steps = int(np.ceil(window.length_s / step_s - 1e-9))
        ends = window.start_s + each_s * np.arange(1, steps * parts + 1)
        found = await self._database.steps(names.doubts(each_s, where), ends, each_s, MOST_VALUES)
        answer = {}
        for labels, row in found:
            bits = np.nan_to_num(row).astype(np.int64).reshape(steps, int(parts))
            answer[series_key(tags_of(labels))] = np.bitwise_or.reduce(bits, axis=1).astype(float)
        return answer

    async def _reasons(self, window: Window) -> dict[Key, float]:
        """Return the suspect bits of the series that have any."""
        span = f"{round(window.length_s * 1000):d}ms"
        found = await self._database.labels(f"max_over_time({SUSPECT}[{span}])", window.end_s)
        bits: dict[Key, int] = {}
        for labels in found:
            if labels.get("reason") in SUSPECT_REASONS:
                key = series_key(tags_of(labels))
                bits[key] = bits.get(key, 0) | suspect_bit(labels["reason"])
        return {key: float(each) for key, each in bits.items()}

    @deferred
    async def baseline(self, window: Window) -> Snapshot:
        """See `llama.web.store.Store`."""
        names = await self._which()
        found = await self._database.instant(names.usual(window.length_s), window.end_s)
        known = ~np.isnan(found.values)
        series = [tags for tags, fine in zip(found.tags, known, strict=True) if fine]
        time_s = np.full(len(series), window.end_s)
        return Snapshot(series, time_s, {"rtt_p50": found.values[known]})

    @deferred
    async def history(
        self, window: Window, step_s: float, columns: Sequence[str], where: Tags
    ) -> History:
        """See `llama.web.store.Store`."""
        names, ends = await self._which(), window.steps(step_s)
        wanted = list(dict.fromkeys(("sent", *names.columns(columns))))
        queries = [names.over(name, step_s, where) for name in wanted]
        if isinstance(names, Counters):
            queries.append(f"sum by(le)({names.buckets(step_s, where)})")
        # Those to be drawn in buckets come last.
        answers = await self._database.ask_all(
            [partial(self._database.steps, query, ends, step_s) for query in queries]
        )
        series = [tags_of(labels) for labels, _ in answers[0]]
        place = {series_key(tags): n for n, tags in enumerate(series)}
        out = {name: np.full((len(series), ends.size), np.nan) for name in columns}
        for name, answer in zip(wanted, answers, strict=False):
            for labels, row in answer:
                n = place.get(series_key(tags_of(labels)))
                if n is not None and name in out:
                    out[name][n] = row
        if not isinstance(names, Counters):
            if "suspect" in wanted:
                whole = Window(ends[0] - step_s, ends[-1])
                for key, bits in (await self._doubts(names, whole, step_s, where)).items():
                    if key in place:
                        out["suspect"][place[key]][bits > 0] = bits[bits > 0]
            return History(series, step_s, ends, out)
        edges, counts = _buckets(answers[-1], ends.size)
        return History(series, step_s, ends, out, edges, counts)

    @deferred
    async def timeline(self, window: Window, step_s: float, where: Tags) -> Timeline:
        """See `llama.web.store.Store`."""
        names, ends = await self._which(), window.steps(step_s)
        queries = (
            f"count({names.over('sent', step_s, where)})",
            lossy(names, step_s, where),
            f"max({names.loss(step_s, where)})",
        )
        answers = await self._database.ask_all(
            [partial(self._database.steps, query, ends, step_s) for query in queries]
        )
        series, bad, worst = (
            answer[0][1] if answer else np.full(ends.size, np.nan) for answer in answers
        )
        return Timeline(step_s, ends, np.nan_to_num(series), np.nan_to_num(bad), worst)


def _snapshot(
    series: list[Tags], time_s: Column, found: dict[str, Column], columns: Sequence[str]
) -> Snapshot:
    missing = np.full(len(series), np.nan)
    return Snapshot(series, time_s, {name: found.get(name, missing) for name in columns})


def _buckets(
    answer: Sequence[tuple[Labels, Column]], steps: int
) -> tuple[Column, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return edges in ms and counts[step, bin] from cumulative buckets."""
    rows = sorted((float(labels["le"]), np.nan_to_num(row)) for labels, row in answer)
    if not rows:
        return np.array([0.0, np.inf]), np.zeros((steps, 1))
    edges = np.array([0.0, *(bound * 1000 for bound, _ in rows)])
    up_to = np.array([row for _, row in rows])
    counts = np.diff(up_to, axis=0, prepend=np.zeros((1, steps)))
    return edges, np.maximum(counts, 0.0).T
