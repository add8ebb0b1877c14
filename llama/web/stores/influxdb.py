# ruff: noqa: S608  names in a query are ours or quoted; values are parameters
"""InfluxDB 1.x (and what speaks its InfluxQL): questions to measurement ``raw_stats``.

Tag values travel as bound parameters; names in a query are ours, and quoted. Answers are asked for in
chunks, a line of JSON each: a server with ``max-row-limit`` cuts off any other. InfluxQL's windows
begin with their start and ours end with their end, hence the offset of a nanosecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from twisted.internet.defer import Deferred, succeed

from llama.web.grid import put_together
from llama.web.store import (
    AGGREGATE,
    LOSSY_PERCENT,
    Activity,
    History,
    Snapshot,
    Tags,
    Timeline,
    TooMuchError,
    Window,
    see_room,
    series_key,
)
from llama.web.stores.database import Database, deferred, json_lines

MEASUREMENT = "raw_stats"

#: Sources that are asked for by name in one query.
SOURCES_AT_ONCE = 50

#: All values of ``suspect`` that are not zero, which few are.
_DOUBTS, _DOUBTED = 'distinct("suspect")', '"suspect" > 0'

#: One series of an answer: its tags, the names of its columns, its rows.
Found = tuple[Tags, list[str], list[list[Any]]]


class InfluxDBStore:
    """Asks a database by InfluxQL. ``options`` are those of `Database`."""

    kind = "influxdb"

    def __init__(
        self,
        reactor: Any,
        *,
        database: str = "llama",
        retention_policy: str | None = None,
        unix_time_s: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        self._database = Database(reactor, **options)
        self._unix_time_s = unix_time_s
        self._name = database
        policy = f"{identifier(retention_policy)}." if retention_policy else ""
        self._from = f"{policy}{identifier(MEASUREMENT)}"

    def stop(self) -> Deferred[None]:
        """Close the connections."""
        return self._database.stop()

    async def _select(
        self, *queries: str, values: Mapping[str, str] | None = None
    ) -> list[list[Found]]:
        """Return the series that each query gives; times are Unix milliseconds."""
        parameters = {
            "db": self._name,
            "epoch": "ms",
            "chunked": "true",
            "q": ";".join(queries),
            "params": orjson.dumps(dict(values or {})).decode(),
        }
        return await self._database.ask(
            "/query", parameters, lambda said: self._read(said, len(queries)), load=json_lines
        )

    def _read(self, chunks: list[Any], queries: int) -> list[list[Found]]:
        answers: list[list[Found]] = [[] for _ in range(queries)]
        unfinished = set(range(queries))  # queries of which more is to come
        goes_on = False  # the series that came last
        for chunk in chunks:
            if "error" in chunk:
                raise self._database.complain(chunk["error"])
            for place, result in enumerate(chunk["results"]):
                if "error" in result:
                    raise self._database.complain(result["error"])
                query = result.get("statement_id", place)
                found = answers[query]
                for each in result.get("series", ()):
                    tags = {name: value for name, value in each.get("tags", {}).items() if value}
                    if not all(isinstance(value, str) for value in tags.values()):
                        raise TypeError("a tag that is no text")
                    if goes_on and found and found[-1][0] == tags:
                        found[-1][2].extend(each["values"])
                    else:
                        found.append((tags, each["columns"], each["values"]))
                    goes_on = each.get("partial", False)
                if not (result.get("partial", False) or goes_on):
                    unfinished.discard(query)
        if unfinished:
            raise TooMuchError(
                f"{self._database.url}: its answer ends early, as with max-row-limit;"
                " raise that, or ask for less time"
            )
        return answers

    @deferred
    async def newest(self) -> float | None:
        """See `llama.web.store.Store`."""
        now_s = self._unix_time_s()
        # Looking through all there ever was takes its time.
        for window in (Window(now_s - 3600.0, now_s), Window(0.0, now_s)):
            (found,) = await self._select(
                f'SELECT last("sent") FROM {self._from} WHERE {within(window)}'
            )
            if found:
                return float(found[0][2][0][0]) / 1000
        return None

    def resolution_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return succeed(0.0)

    def timeline_step_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return self.resolution_s(start_s)

    @deferred
    async def activity(self, window: Window) -> Activity:
        """See `llama.web.store.Store`."""
        (found,) = await self._select(
            f'SELECT "sent" FROM {self._from} WHERE {within(window)}'
            " GROUP BY * ORDER BY time DESC LIMIT 2"
        )
        times = [[float(row[0]) for row in rows] for _, _, rows in found]
        return Activity(
            [tags for tags, _, _ in found],
            np.array([each[0] for each in times], dtype=np.float64) / 1000,
            np.array([each[0] - each[1] if len(each) > 1 else np.nan for each in times]) / 1000,
        )

    @deferred
    async def remembered(self, window: Window, speaking: frozenset[str]) -> Activity:
        """See `llama.web.store.Store`."""
        (known,) = await self._select(
            f'SHOW TAG VALUES FROM {self._from} WITH KEY = "src_hostname"'
        )
        sources = sorted({row[1] for _, _, rows in known for row in rows} - speaking)
        found: list[Found] = []
        for first in range(0, len(sources), SOURCES_AT_ONCE):
            found += await self._newest_rows(window, (), sources[first : first + SOURCES_AT_ONCE])
        return Activity(
            [tags for tags, _, _ in found],
            np.array([rows[0][0] for _, _, rows in found], dtype=np.float64) / 1000,
            np.full(len(found), np.nan),
        )

    @deferred
    async def latest(self, window: Window, columns: Sequence[str]) -> Snapshot:
        """See `llama.web.store.Store`."""
        return self._latest(await self._newest_rows(window, columns), columns)

    async def _newest_rows(
        self, window: Window, columns: Sequence[str], sources: Sequence[str] = ()
    ) -> list[Found]:
        """Return the newest row of each series, of all sources or of these."""
        condition, values = _of(sources)
        # Selectors like last() would take each field from another time.
        chosen = ", ".join(map(identifier, ("sent", *_known(columns))))
        (found,) = await self._select(
            f"SELECT {chosen} FROM {self._from} WHERE {within(window)}{condition}"
            " GROUP BY * ORDER BY time DESC LIMIT 1",
            values=values,
        )
        return found

    def _latest(self, found: Sequence[Found], columns: Sequence[str]) -> Snapshot:
        rows = [rows[0] for _, _, rows in found]
        names = ["time", "sent", *_known(columns)]
        return _snapshot([tags for tags, _, _ in found], rows, names, columns)

    @deferred
    async def latest_of(self, window: Window, columns: Sequence[str], some: Activity) -> Snapshot:
        """See `llama.web.store.Store`. All series of a source speak as seldom."""
        sources = sorted({tags.get("src_hostname", "") for tags in some.series})
        found: list[Found] = []
        for first in range(0, len(sources), SOURCES_AT_ONCE):
            part = sources[first : first + SOURCES_AT_ONCE]
            found += await self._newest_rows(window, columns, part)
        return self._latest(found, columns)

    @deferred
    async def total(self, window: Window, columns: Sequence[str]) -> Snapshot:
        """See `llama.web.store.Store`."""
        known = _known(columns)
        rest = f"FROM {self._from} WHERE {within(window)}"
        found, last, doubts = await self._select(
            f"SELECT {_together(known)} {rest} GROUP BY *",
            f'SELECT last("sent") {rest} GROUP BY *',
            f"SELECT {_DOUBTS} {rest} AND {_DOUBTED} GROUP BY *",
        )
        times = {series_key(tags): rows[0][0] for tags, _, rows in last}
        rows = [[times.get(series_key(tags)), *rows[0][1:]] for tags, _, rows in found]
        if "suspect" in known:
            bits = {series_key(tags): rows for tags, _, rows in doubts}
            column = 1 + known.index("suspect")
            for (tags, _, _), row in zip(found, rows, strict=True):
                for _, value in bits.get(series_key(tags), ()):
                    row[column] = int(row[column]) | int(value)
        return _snapshot([tags for tags, _, _ in found], rows, ["time", *known], columns)

    @deferred
    async def baseline(self, window: Window) -> Snapshot:
        """See `llama.web.store.Store`."""
        (found,) = await self._select(
            f'SELECT median("rtt_p50"), median("rtt") FROM {self._from}'
            f" WHERE {within(window)} GROUP BY *"
        )
        rows = [
            [window.end_s * 1000, middle if middle is not None else mean]
            for _, _, ((_, middle, mean),) in found
        ]
        return _snapshot([tags for tags, _, _ in found], rows, ["time", "rtt_p50"], ["rtt_p50"])

    @deferred
    async def history(
        self, window: Window, step_s: float, columns: Sequence[str], where: Tags
    ) -> History:
        """See `llama.web.store.Store`."""
        known = _known(columns)
        condition, values = matching(where)
        rest = f"FROM {self._from} WHERE {within(window)}{condition}"
        found, doubts = await self._select(
            f"SELECT {_together(known)} {rest} GROUP BY {_by(step_s)}, * fill(none)",
            f"SELECT {_DOUBTS} {rest} AND {_DOUBTED} GROUP BY {_by(step_s)}, *",
            values=values,
        )
        bits = {series_key(tags): rows for tags, _, rows in doubts}
        ends = window.steps(step_s)
        shape = len(found), ends.size
        see_room(*shape)
        out = {name: np.full(shape, np.nan) for name in columns}
        for n, (_, _, rows) in enumerate(found):
            table = np.array(rows, dtype=np.float64)
            place = _places(table[:, 0], step_s, ends)
            for column, name in enumerate(known):
                out[name][n] = put_together(name, place, table[:, 1 + column], ends.size)
            more = np.array(bits.get(series_key(found[n][0]), ()), dtype=np.float64)
            if more.size and "suspect" in known:
                place = np.concatenate([place, _places(more[:, 0], step_s, ends)])
                suspect = np.concatenate([table[:, 1 + known.index("suspect")], more[:, 1]])
                out["suspect"][n] = put_together("suspect", place, suspect, ends.size)
        return History([tags for tags, _, _ in found], step_s, ends, out)

    @deferred
    async def timeline(self, window: Window, step_s: float, where: Tags) -> Timeline:
        """See `llama.web.store.Store`."""
        condition, values = matching(where)
        each = (
            f'SELECT sum("sent") AS "sent", 100 * sum("lost") / sum("sent") AS "loss"'
            f" FROM {self._from} WHERE {within(window)}{condition}"
            f" GROUP BY {_by(step_s)}, * fill(none)"
        )
        rest = f"{within(window)} GROUP BY {_by(step_s)} fill(none)"
        spoke, lossy = await self._select(
            f'SELECT count("sent"), max("loss") FROM ({each}) WHERE {rest}',
            f'SELECT count("loss") FROM ({each}) WHERE "loss" >= {LOSSY_PERCENT} AND {rest}',
            values=values,
        )
        ends = window.steps(step_s)
        series, bad = np.zeros(ends.size), np.zeros(ends.size)
        worst = np.full(ends.size, np.nan)
        for _, _, rows in spoke:
            table = np.array(rows, dtype=np.float64)
            place = _places(table[:, 0], step_s, ends)
            series[place], worst[place] = np.nan_to_num(table[:, 1]), table[:, 2]
        for _, _, rows in lossy:
            table = np.array(rows, dtype=np.float64)
            bad[_places(table[:, 0], step_s, ends)] = np.nan_to_num(table[:, 1])
        return Timeline(step_s, ends, series, bad, worst)


def identifier(name: str) -> str:
    r"""Return a name as InfluxQL takes any: in double quotes, with ``\`` before what would end it."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def within(window: Window) -> str:
    """Return the condition that a time lies in the window."""
    return f"time > {round(window.start_s * 1000):d}ms AND time <= {round(window.end_s * 1000):d}ms"


def matching(where: Tags) -> tuple[str, dict[str, str]]:
    """Return the condition that tags have these values, and the parameters that it names."""
    values = {f"v{n}": value for n, value in enumerate(where.values())}
    names = zip(where, values, strict=True)
    return "".join(f" AND {identifier(tag)} = ${name}" for tag, name in names), values


def _of(sources: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the condition that it is one of these sources (none: any), and its parameters."""
    values = {f"v{n}": source for n, source in enumerate(sources)}
    condition = " OR ".join(f'"src_hostname" = ${name}' for name in values)
    return f" AND ({condition})" if values else "", values


def _by(step_s: float) -> str:
    return f"time({round(step_s * 1000):d}ms, 1ns)"


def _known(columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name in AGGREGATE]


def _together(columns: Sequence[str]) -> str:
    # InfluxQL has no union of bits: the values that there were are asked for besides.
    how = {name: AGGREGATE[name].replace("or", "max") for name in columns}
    return ", ".join(f"{how[name]}({identifier(name)})" for name in columns)


def _places(starts_ms: Any, step_s: float, ends: Any) -> Any:
    """Return the place of each step, told by its start, among ``ends``."""
    place = np.rint(np.floor(starts_ms) / 1000 / step_s) + 1 - np.rint(ends[0] / step_s)
    return np.clip(place.astype(np.int64), 0, ends.size - 1)


def _snapshot(
    series: list[Tags], rows: list[list[Any]], names: Sequence[str], columns: Sequence[str]
) -> Snapshot:
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    found = dict(zip(names, table.T, strict=True))
    missing = np.full(len(rows), np.nan)
    return Snapshot(
        series, found["time"] / 1000, {name: found.get(name, missing) for name in columns}
    )
