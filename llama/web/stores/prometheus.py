"""Databases that speak PromQL over ``/api/v1``: Prometheus, VictoriaMetrics, Thanos, Mimir.

What is asked is told by `llama.web.stores.promql`; which of its two kinds of names a database has
is found out by asking it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from twisted.internet.defer import Deferred, succeed

from llama.collector.summary import SUSPECT_REASONS, suspect_bit

from ..store import (
    Activity,
    Column,
    History,
    Snapshot,
    Tags,
    Timeline,
    Window,
    series_key,
)
from .database import Database
from .promql import (
    FEW_SOURCES,
    NO_TAGS,
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

Key = tuple[tuple[str, str], ...]


@frozen(eq=False)
class Vector:
    """One instant of some series."""

    tags: list[Tags]
    values: Column

    def by_key(self) -> dict[Key, float]:
        """Return the values by series."""
        return dict(zip(map(series_key, self.tags), self.values.tolist(), strict=True))


class PrometheusStore:
    """Asks by PromQL. ``options`` are those of `Database`; its ``url`` is without ``/api/v1``."""

    kind = "prometheus"

    def __init__(self, reactor: Any, **options: Any) -> None:
        self._database = Database(reactor, **options)
        self._reactor = reactor
        self._names: Names | None = None
        self._scraped_every_s = 30.0

    def stop(self) -> Deferred[None]:
        """Close the connections."""
        return self._database.stop()

    # --- asking ------------------------------------------------------------------------------

    async def _which(self) -> Names:
        """Return which names the database has; until it has any, counters are taken for granted."""
        if self._names is None:
            kinds: tuple[Names, ...] = (Counters(), Points())
            for names in kinds:
                series = await self._database.ask(
                    "/api/v1/query",
                    {"query": f"count(last_over_time({names.presence}[30d]))"},
                    self._vector,
                )
                if series.tags:
                    self._names = names
                    break
        return self._names or Counters()

    def _data(self, said: Any, kind: str) -> list[Any]:
        if said["status"] != "success":
            raise self._database.complain(said.get("error", "no reason given"))
        if said["data"]["resultType"] != kind:
            raise ValueError(f"a {said['data']['resultType']}, expected a {kind}")
        found: list[Any] = said["data"]["result"]
        return found

    def _vector(self, said: Any) -> Vector:
        found = self._data(said, "vector")
        values = np.array([each["value"][1] for each in found], dtype=np.float64)
        return Vector([_tags(each["metric"]) for each in found], values)

    def _instant(self, query: str, at_s: float) -> Deferred[Vector]:
        return self._database.ask(
            "/api/v1/query", {"query": query, "time": f"{at_s:.3f}", "nocache": "1"}, self._vector
        )

    def _raw(self, query: str, at_s: float) -> Deferred[list[tuple[Tags, Column, Column]]]:
        """Give the samples themselves: tags, times in seconds, values."""

        def read(said: Any) -> list[tuple[Tags, Column, Column]]:
            answer = []
            for each in self._data(said, "matrix"):
                table = np.array(each["values"], dtype=np.float64).reshape(-1, 2)
                answer.append((_tags(each["metric"]), table[:, 0], table[:, 1]))
            return answer

        return self._database.ask(
            "/api/v1/query", {"query": query, "time": f"{at_s:.3f}", "nocache": "1"}, read
        )

    def _range(
        self, query: str, ends: Column, step_s: float
    ) -> Deferred[list[tuple[dict[str, str], Column]]]:
        """Give each series over the steps that end at ``ends``, labels and all."""

        def read(said: Any) -> list[tuple[dict[str, str], Column]]:
            answer = []
            for each in self._data(said, "matrix"):
                table = np.array(each["values"], dtype=np.float64).reshape(-1, 2)
                row = np.full(ends.size, np.nan)
                place = np.rint((table[:, 0] - ends[0]) / step_s).astype(np.int64)
                inside = (place >= 0) & (place < ends.size)
                row[place[inside]] = table[inside, 1]
                answer.append((each["metric"], row))
            return answer

        parameters = {
            "query": query,
            "start": f"{ends[0]:.3f}",
            "end": f"{ends[-1]:.3f}",
            "step": f"{step_s:g}",
            "nocache": "1",
        }
        return self._database.ask("/api/v1/query_range", parameters, read)

    # --- questions ---------------------------------------------------------------------------

    def newest(self) -> Deferred[float | None]:
        """See `llama.web.store.Store`."""

        async def ask() -> float | None:
            names = await self._which()
            spoke = f"timestamp({names.presence})"  # of the past five minutes
            for query in (f"max({spoke})", f"max(max_over_time({spoke}[1d:5m]))"):
                found = await self._instant(query, float(self._reactor.seconds()))
                if found.tags:
                    return float(found.values[0])
            return None

        return Deferred.fromCoroutine(ask())

    def resolution_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`. What a counter rose by takes some samples to tell."""
        return succeed(4 * self._scraped_every_s if isinstance(self._names, Counters) else 0.0)

    def timeline_step_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return self.resolution_s(start_s)

    def activity(self, window: Window) -> Deferred[Activity]:
        """See `llama.web.store.Store`."""

        async def ask() -> Activity:
            names = await self._which()
            presence = names.presence
            end, recent = window.end_s, min(RECENT_S, window.length_s)
            span = f"{round(window.length_s * 1000) - 1:d}ms"
            everyone, spoke, often = await self._database.ask_all(
                [
                    lambda: self._instant(f"last_over_time({presence}[{span}])", end),
                    lambda: self._instant(f"timestamp({presence})", end),
                    lambda: self._instant(names.every(recent), end),
                ]
            )
            last = spoke.by_key()
            silent = {
                tags.get("src_hostname", "")
                for tags in everyone.tags
                if series_key(tags) not in last
            }
            if silent:
                which = presence
                if len(silent) <= FEW_SOURCES:
                    which = of_sources(presence, sorted(silent))
                asked = f"max_over_time(timestamp({which})[{span}:1m])"
                last = (await self._instant(asked, end)).by_key() | last
            keys = list(map(series_key, everyone.tags))
            interval = _in_order(often, keys)
            if isinstance(names, Points) and np.isnan(interval).any():
                rarely = await self._instant(names.every(window.length_s), end)
                interval = np.where(np.isnan(interval), _in_order(rarely, keys), interval)
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

        return Deferred.fromCoroutine(ask())

    def remembered(self, window: Window, speaking: frozenset[str]) -> Deferred[Activity]:
        """See `llama.web.store.Store`."""

        async def ask() -> Activity:
            presence = (await self._which()).presence
            known = await self._database.ask(
                "/api/v1/label/src_hostname/values",
                {
                    "match[]": presence,
                    "start": f"{window.start_s:.3f}",
                    "end": f"{window.end_s:.3f}",
                },
                lambda said: frozenset(map(str, said["data"])),
                get=True,
            )
            silent = sorted(known - speaking)
            counted = await self._database.ask_all(
                [lambda source=source: self._destinations(source, window) for source in silent]  # type: ignore[misc]
            )
            span = f"{round(window.length_s * 1000) - 1:d}ms:{STALE_S}s"

            def question(which: str) -> Callable[[], Deferred[Vector]]:
                asked = f"max_over_time(timestamp({which})[{span}])"
                return lambda: self._instant(asked, window.end_s)

            found = await self._database.ask_all(
                [
                    question(which)
                    for which in portions(
                        presence, dict(zip(silent, counted, strict=True)), SERIES_AT_ONCE
                    )
                ]
            )
            tags = [each for vector in found for each in vector.tags]
            last = np.concatenate([np.empty(0), *(vector.values for vector in found)])
            inside = last > window.start_s
            return Activity(
                [each for each, kept in zip(tags, inside.tolist(), strict=True) if kept],
                last[inside],
                np.full(int(inside.sum()), np.nan),
            )

        return Deferred.fromCoroutine(ask())

    def _destinations(self, source: str, window: Window) -> Deferred[dict[str, int]]:
        """Give how many series of a source there are to each destination, without any sample."""
        presence = (self._names or Counters()).presence

        def read(said: Any) -> dict[str, int]:
            count: dict[str, int] = {}
            for each in said["data"]:
                name = each.get("dst_hostname", "")
                count[name] = count.get(name, 0) + 1
            return count

        return self._database.ask(
            "/api/v1/series",
            {
                "match[]": selector(presence, {"src_hostname": source}),
                "start": f"{window.start_s:.3f}",
                "end": f"{window.end_s:.3f}",
            },
            read,
            get=True,
        )

    def latest(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""

        async def ask() -> Snapshot:
            names = await self._which()
            if isinstance(names, Counters):
                return await self._rise(names, window, columns)
            return await self._newest_points(names, window, columns)

        return Deferred.fromCoroutine(ask())

    def latest_of(
        self, window: Window, columns: Sequence[str], some: Activity
    ) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`. All series of a source speak as seldom."""

        async def ask() -> Snapshot:
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

        return Deferred.fromCoroutine(ask())

    async def _newest_points(
        self, names: Points, window: Window, columns: Sequence[str], sources: Sequence[str] = ()
    ) -> Snapshot:
        # The samples themselves: last_over_time() would fill a gap with an older interval's.
        wanted = list(dict.fromkeys(("sent", *names.columns(columns))))
        span = f"[{round(window.length_s * 1000) - 1:d}ms]"

        def question(name: str) -> Callable[[], Deferred[list[tuple[Tags, Column, Column]]]]:
            which = of_sources(names.prefix + name, sources) if sources else names.raw(name, {})
            return lambda: self._raw(which + span, window.end_s)

        answers = dict(
            zip(wanted, await self._database.ask_all([question(n) for n in wanted]), strict=True)
        )

        def put_together() -> Snapshot:
            series = [tags for tags, _, _ in answers["sent"]]
            newest = np.array([times[-1] for _, times, _ in answers["sent"]], dtype=np.float64)
            place = {series_key(tags): n for n, tags in enumerate(series)}
            found = {}
            for name in wanted:
                column = found[name] = np.full(len(series), np.nan)
                for tags, times, values in answers[name]:
                    n = place.get(series_key(tags), -1)
                    if n >= 0 and times[-1] == newest[n]:
                        column[n] = values[-1]
            return _snapshot(series, newest, found, columns)

        return await self._database.in_thread(put_together)

    def total(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""

        async def ask() -> Snapshot:
            return await self._rise(await self._which(), window, columns)

        return Deferred.fromCoroutine(ask())

    async def _rise(self, names: Names, window: Window, columns: Sequence[str]) -> Snapshot:
        wanted = list(dict.fromkeys(("sent", *names.columns(columns))))
        queries = [names.over(name, window.length_s, {}) for name in wanted]
        queries.append(f"timestamp({names.presence})")

        def question(query: str) -> Callable[[], Deferred[Vector]]:
            return lambda: self._instant(query, window.end_s)

        answers = await self._database.ask_all([question(query) for query in queries])
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
            times = answers[len(wanted)].by_key()
            time_s = np.array([times.get(key, np.nan) for key in keys], dtype=np.float64)
            found = {}
            for name, answer in zip(wanted, answers, strict=False):
                values = answer.by_key()
                found[name] = np.array([values.get(key, np.nan) for key in keys], dtype=np.float64)
            if isinstance(names, Counters):
                found["suspect"] = np.array([reasons.get(key, 0.0) for key in keys])
            else:
                for n, key in enumerate(keys):
                    if key in reasons:
                        found["suspect"][n] = reasons[key]
            return _snapshot(series, time_s, found, columns)

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
        found = await self._range(names.doubts(each_s, where), ends, each_s)
        answer = {}
        for labels, row in found:
            bits = np.nan_to_num(row).astype(np.int64).reshape(steps, int(parts))
            answer[series_key(_tags(labels))] = np.bitwise_or.reduce(bits, axis=1).astype(float)
        return answer

    async def _reasons(self, window: Window) -> dict[Key, float]:
        """Return the suspect bits of the series that have any."""
        span = f"{round(window.length_s * 1000):d}ms"
        found = await self._database.ask(
            "/api/v1/query",
            {
                "query": f"max_over_time({SUSPECT}[{span}])",
                "time": f"{window.end_s:.3f}",
                "nocache": "1",
            },
            lambda said: [each["metric"] for each in self._data(said, "vector")],
        )
        bits: dict[Key, int] = {}
        for labels in found:
            if labels.get("reason") in SUSPECT_REASONS:
                key = series_key(_tags(labels))
                bits[key] = bits.get(key, 0) | suspect_bit(labels["reason"])
        return {key: float(each) for key, each in bits.items()}

    def baseline(self, window: Window) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""

        async def ask() -> Snapshot:
            names = await self._which()
            found = await self._instant(names.usual(window.length_s), window.end_s)
            known = ~np.isnan(found.values)
            series = [tags for tags, fine in zip(found.tags, known, strict=True) if fine]
            time_s = np.full(len(series), window.end_s)
            return Snapshot(series, time_s, {"rtt_p50": found.values[known]})

        return Deferred.fromCoroutine(ask())

    def history(
        self, window: Window, step_s: float, columns: Sequence[str], where: Tags
    ) -> Deferred[History]:
        """See `llama.web.store.Store`."""

        async def ask() -> History:
            names, ends = await self._which(), window.steps(step_s)
            wanted = list(dict.fromkeys(("sent", *names.columns(columns))))
            queries = [names.over(name, step_s, where) for name in wanted]
            if isinstance(names, Counters):
                queries.append(f"sum by(le)({names.buckets(step_s, where)})")

            def question(
                query: str,
            ) -> Callable[[], Deferred[list[tuple[dict[str, str], Column]]]]:
                return lambda: self._range(query, ends, step_s)

            answers = await self._database.ask_all([question(query) for query in queries])
            series = [_tags(labels) for labels, _ in answers[0]]
            place = {series_key(tags): n for n, tags in enumerate(series)}
            out = {name: np.full((len(series), ends.size), np.nan) for name in columns}
            for name, answer in zip(wanted, answers, strict=False):
                for labels, row in answer:
                    n = place.get(series_key(_tags(labels)))
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

        return Deferred.fromCoroutine(ask())

    def timeline(self, window: Window, step_s: float, where: Tags) -> Deferred[Timeline]:
        """See `llama.web.store.Store`."""

        async def ask() -> Timeline:
            names, ends = await self._which(), window.steps(step_s)
            queries = (
                f"count({names.over('sent', step_s, where)})",
                lossy(names, step_s, where),
                f"max({names.loss(step_s, where)})",
            )

            def question(
                query: str,
            ) -> Callable[[], Deferred[list[tuple[dict[str, str], Column]]]]:
                return lambda: self._range(query, ends, step_s)

            answers = await self._database.ask_all([question(query) for query in queries])
            series, bad, worst = (
                answer[0][1] if answer else np.full(ends.size, np.nan) for answer in answers
            )
            return Timeline(step_s, ends, np.nan_to_num(series), np.nan_to_num(bad), worst)

        return Deferred.fromCoroutine(ask())


def _tags(labels: dict[str, str]) -> Tags:
    return {name: value for name, value in labels.items() if name not in NO_TAGS}


def _in_order(found: Vector, keys: Sequence[Key]) -> Column:
    values = found.by_key()
    return np.array([values.get(key, np.nan) for key in keys], dtype=np.float64)


def _snapshot(
    series: list[Tags], time_s: Column, found: dict[str, Column], columns: Sequence[str]
) -> Snapshot:
    missing = np.full(len(series), np.nan)
    return Snapshot(series, time_s, {name: found.get(name, missing) for name in columns})


def _buckets(
    answer: list[tuple[dict[str, str], Column]], steps: int
) -> tuple[Column, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return edges in ms and counts[step, bin] from cumulative buckets."""
    rows = sorted((float(labels["le"]), np.nan_to_num(row)) for labels, row in answer)
    if not rows:
        return np.array([0.0, np.inf]), np.zeros((steps, 1))
    edges = np.array([0.0, *(bound * 1000 for bound, _ in rows)])
    up_to = np.array([row for _, row in rows])
    counts = np.diff(up_to, axis=0, prepend=np.zeros((1, steps)))
    return edges, np.maximum(counts, 0.0).T
