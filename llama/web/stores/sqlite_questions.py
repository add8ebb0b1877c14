# ruff: noqa: S608  names of tables and columns are ours; everything else is a parameter
"""Questions to the embedded store, in SQL. What stands in the file: the scraper's `sqlite_schema`.

Raw samples for some days and five-minute rows for longer, both clustered by time: one moment of
the whole mesh is a short scan, a long time of one pair is a look-up per moment. Which of the two
tables answers is chosen here: raw where it is there and not too much, else five-minute rows, with
raw ones at the ends of the window. All run in a thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from llama.collector.summary import SUSPECT_REASONS
from llama.scraper.writers import sqlite_schema as schema

from ..grid import put_together
from ..store import (
    AGGREGATE,
    LOSSY_PERCENT,
    Activity,
    Column,
    History,
    Snapshot,
    Tags,
    Timeline,
    Window,
)

Rows = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Span = tuple[str, int, int]  # table, after, up to (ms)

RAW, ROLLED = "samples", "samples_5m"
MEASUREMENT = "raw_stats"
#: From this many rows on the five-minute rows answer, where they can.
MANY_ROWS = 1_500_000
#: How far back is looked to see how often a series speaks: in a mesh of few series, of many.
RECENT_MS, RECENT_MANY_MS = 6 * 60_000, 3 * 60_000
MANY_SERIES = 5000
#: From so many series on five minutes are the shortest step of a timeline.
COARSE_SERIES = 100_000
#: Moments that are looked at together, the newest first, until all are found.
MOMENTS_AT_ONCE = 120
#: Times at which a series that speaks seldom is looked for: more of its intervals than make it silent.
SPOKEN = 6
#: So many rows are looked at, or looked for, to find when series were last heard of.
MOST_LOOKED_AT = 3_000_000
ROWS_AT_ONCE = 500_000
#: A row that is looked for costs as much as so many of those that stand one after the other.
LOOKING_UP = 4
#: Samples come in at most so much later than they were taken, if clocks are right.
LATE_MS = 3_600_000
#: Rows of a baseline at most; of more moments, an even choice is looked at.
BASELINE_ROWS = 600_000


class SeriesCache:
    """The tag sets of all series. They never change: only new ones are read, removed ones forgotten.

    Shared by threads: what they have taken out is never changed, only replaced.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._last_id = 0
        self._removed = 0  # series, as far as is known here
        self._tags: dict[int, Tags] = {}
        self._others: frozenset[int] = frozenset()  # of other measurements

    def read(self, connection: Any) -> tuple[dict[int, Tags], frozenset[int]]:
        """Return the tags of all series of pairs by their numbers, and the numbers of others."""
        with self._lock:
            found = connection.execute(
                "SELECT id, measurement, tags FROM series WHERE id > ?", (self._last_id,)
            ).fetchall()
            if found:
                # The same few values again and again: a thousand hosts have a million series.
                new = {
                    number: {name: sys.intern(value) for name, value in orjson.loads(tags).items()}
                    for number, measurement, tags in found
                    if measurement == MEASUREMENT
                }
                self._tags = {**self._tags, **new}
                self._others |= {number for number, kind, _ in found if kind != MEASUREMENT}
                self._last_id = max(number for number, _, _ in found)
            removed = connection.execute(
                "SELECT value FROM facts WHERE name = 'series_removed'"
            ).fetchone()
            # More than was known: this snapshot is newer than all that the cache was filled from.
            if removed is not None and removed[0] > self._removed:
                self._removed = removed[0]
                left = {number for (number,) in connection.execute("SELECT id FROM series")}
                self._tags = {n: tags for n, tags in self._tags.items() if n in left}
                self._others &= left
            return self._tags, self._others


class Reader:
    """One snapshot of the file."""

    def __init__(self, connection: Any, cache: SeriesCache) -> None:
        self._connection = connection
        self.tags, self.others = cache.read(connection)

    def rows(self, query: str, parameters: Any = ()) -> Rows:
        """Return the rows of numbers that a query gives, NULL as NaN; of shape (n, columns)."""
        cursor = self._connection.execute(query, parameters)
        width = len(cursor.description)
        parts = []
        while some := cursor.fetchmany(20_000):
            parts.append(np.array(some, dtype=np.float64))
        return np.concatenate(parts) if parts else np.empty((0, width))

    def one(self, query: str, *parameters: Any) -> int | None:
        """Return the only value of a query."""
        row = self._connection.execute(query, parameters).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def ours(self, rows: Rows) -> Rows:
        """Return those rows whose first column is a series with measurements of pairs."""
        if not self.others:
            return rows
        return rows[~np.isin(rows[:, 0], list(self.others))]

    def matching(self, where: Tags) -> list[int]:
        """Return the numbers of the series that bear all these tags."""
        return [
            number
            for number, tags in self.tags.items()
            if all(tags.get(name) == value for name, value in where.items())
        ]

    def heard(self, series: Iterable[int]) -> dict[int, int]:
        """Return when (ms) each of these series was last heard of, as far as that was noted."""
        if not self.one("SELECT count(*) FROM sqlite_master WHERE name = 'heard'"):
            return {}  # the scraper that wrote the file did not know of it yet
        rows = self._connection.execute(
            "SELECT series_id, time_ms FROM heard"
            " WHERE series_id IN (SELECT value FROM json_each(?))",
            (_json(series),),
        )
        return dict(rows.fetchall())

    def raw_from_ms(self) -> int:
        """Return the time after which all raw samples are still there."""
        removed_to = self.one("SELECT value FROM facts WHERE name = 'removed_to_ms'")
        return _up(removed_to or 0, schema.WINDOW_MS)

    def rolled_to_ms(self) -> int:
        """Return the time up to which five-minute rows are complete.

        An old row to which a late sample came gets it within a minute, and counts as complete
        meanwhile: a collector whose clock is behind is late all the time.
        """
        newest = self.one(f"SELECT max(time_ms) FROM {ROLLED}") or 0
        waiting = self.one(
            "SELECT min(time_ms) FROM unrolled WHERE time_ms > ? AND (time_ms > ? OR NOT EXISTS"
            f" (SELECT 1 FROM {ROLLED} WHERE {ROLLED}.time_ms = unrolled.time_ms))",
            self.raw_from_ms(),
            newest - LATE_MS,
        )
        return newest if waiting is None else waiting - schema.WINDOW_MS

    def moments(self, table: str, start: int, end: int) -> Rows:
        """Return the times (ms) at which there are samples."""
        return self.rows(
            f"WITH RECURSIVE moments (t) AS ("
            f" SELECT min(time_ms) FROM {table} WHERE time_ms > ?1"
            f" UNION ALL SELECT (SELECT min(time_ms) FROM {table} WHERE time_ms > t) FROM moments"
            " WHERE t < ?2) SELECT t FROM moments WHERE t <= ?2",
            (start, end),
        )[:, 0]

    def highest(self, table: str, moments: Sequence[int]) -> list[int]:
        """Return the highest number of a series at each of these moments (ms)."""
        rows = self._connection.execute(
            f"SELECT (SELECT max(series_id) FROM {table} WHERE time_ms = value) FROM json_each(?)",
            (_json(moments),),
        )
        return [number or 0 for (number,) in rows]

    def spans(
        self,
        window: Window,
        series: int | None = None,
        step_s: float | None = None,
        rolled: bool = False,
    ) -> list[Span]:
        """Return which table answers for which part of a window.

        ``series`` is how many are wanted (None: all). Where raw samples are few enough they are
        preferred, since five-minute rows reach out of windows that are not aligned to them; and
        for steps of less than five minutes (``step_s``; None: no steps) wherever they are there,
        since of such steps most would have no row. ``rolled``: five-minute rows are preferred.
        """
        start, end = ms(window.start_s), ms(window.end_s)
        raw_from = self.raw_from_ms()
        many = (series if series is not None else len(self.tags)) * 10_000
        if not rolled and start >= raw_from:
            if many > MANY_ROWS:
                many = self._raw_rows(start, end, series)
            if many <= MANY_ROWS:
                return [(RAW, start, end)]
        first = _up(start, schema.WINDOW_MS) if start >= raw_from else start
        last = min(_down(end, schema.WINDOW_MS), _down(self.rolled_to_ms(), schema.WINDOW_MS))
        fine = step_s is not None and ms(step_s) < schema.WINDOW_MS
        if fine or series is not None:  # history of few series: raw as far back as it goes
            last = min(last, max(first, raw_from))
        if last <= first:
            return [(RAW, start, end)]
        parts = [(RAW, start, first), (ROLLED, first, last), (RAW, last, end)]
        return [part for part in parts if part[1] < part[2]]

    def _raw_rows(self, start: int, end: int, series: int | None) -> int:
        each = series if series is not None else len(self.tags)
        # The times of a fifth of the window tell how many there are in all of it.
        tail = end - max(1, (end - start) // 5)
        return each * 5 * (len(self.moments(RAW, tail, end)) + 1)


def ms(seconds: float) -> int:
    """Return a time as the file has it."""
    return int(np.floor(seconds * 1000 + 0.5))


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _down(value: int, unit: int) -> int:
    return value // unit * unit


def _known(columns: Sequence[str]) -> list[str]:
    """Return those of the columns that the file has; only these ever stand in a query."""
    return [name for name in columns if name in schema.FIELDS and name in AGGREGATE]


def _union(spans: Sequence[Span], columns: Sequence[str]) -> str:
    """Return a subquery for the rows of these spans; the numbers in it are ours."""
    chosen = ", ".join(["series_id", "time_ms", *columns])
    return " UNION ALL ".join(
        f"SELECT {chosen} FROM {table} WHERE time_ms > {start:d} AND time_ms <= {end:d}"
        for table, start, end in spans
    )


def newest(reader: Reader, now_s: float) -> float | None:
    """Return the time of the newest sample of a pair that is not in the future."""
    found = reader.one(
        f"SELECT time_ms FROM {RAW} JOIN series ON id = series_id"
        " WHERE measurement = ? AND time_ms <= ? ORDER BY time_ms DESC LIMIT 1",
        MEASUREMENT,
        ms(now_s),
    )
    if found is None:
        found = reader.one(f"SELECT max(time_ms) FROM {ROLLED} WHERE time_ms <= ?", ms(now_s))
    return None if found is None else found / 1000


def resolution_s(reader: Reader, start_s: float) -> float:
    """Return how long the rows are that are left from a time on; 0: raw ones are."""
    return schema.WINDOW_MS / 1000 if ms(start_s) < reader.raw_from_ms() else 0.0


def timeline_step_s(reader: Reader, start_s: float) -> float:
    """Return the shortest step of a timeline: of very many series raw samples are too many."""
    if len(reader.tags) > COARSE_SERIES:
        return schema.WINDOW_MS / 1000
    return resolution_s(reader, start_s)


def activity(reader: Reader, window: Window) -> Activity:
    """Return which series there are."""
    start, end = ms(window.start_s), ms(window.end_s)
    recently = max(start, end - (RECENT_MANY_MS if len(reader.tags) > MANY_SERIES else RECENT_MS))
    recent = reader.ours(
        reader.rows(
            "SELECT series_id, max(time_ms), min(time_ms), count(*) FROM samples"
            " WHERE time_ms > ? AND time_ms <= ? GROUP BY series_id",
            (recently, end),
        )
    )
    last = dict(zip(recent[:, 0].tolist(), recent[:, 1].tolist(), strict=True))
    twice = recent[recent[:, 3] > 1]
    each = (twice[:, 1] - twice[:, 2]) / (twice[:, 3] - 1)
    interval = dict(zip(twice[:, 0].tolist(), each.tolist(), strict=True))
    silent = [number for number in reader.tags if number not in last]
    heard, complete = _last_heard(reader, Window(window.start_s, recently / 1000), silent)
    last |= heard
    interval |= _slow(reader, start, end, last, interval)
    numbers = [number for number in last if number in reader.tags]
    return Activity(
        [reader.tags[int(number)] for number in numbers],
        np.array([last[number] for number in numbers], dtype=np.float64) / 1000,
        np.array([interval.get(number, np.nan) for number in numbers], dtype=np.float64) / 1000,
        complete=complete,
    )


def remembered(reader: Reader, window: Window, speaking: frozenset[str]) -> Activity:
    """Return the series of sources that fell silent."""
    silent = [
        number
        for number, tags in reader.tags.items()
        if tags.get("src_hostname", "") not in speaking
    ]
    last, complete = _last_heard(reader, window, silent)
    return Activity(
        [reader.tags[int(number)] for number in last],
        np.array(list(last.values()), dtype=np.float64) / 1000,
        np.full(len(last), np.nan),
        complete=complete,
    )


def _slow(
    reader: Reader, start: int, end: int, last: dict[float, float], known: dict[float, float]
) -> dict[float, float]:
    """Return the intervals (ms) of series of sources of which none spoke twice lately.

    All series of a source speak equally often, so the last two samples of one tell.
    """
    once = [number for number in last if number in reader.tags and number not in known]
    if not once:
        return {}
    heard = {reader.tags[int(n)].get("src_hostname") for n in known if n in reader.tags}
    series: dict[str | None, list[float]] = {}
    for number in sorted(once, key=last.__getitem__, reverse=True):
        source = reader.tags[int(number)].get("src_hostname")
        if source not in heard:
            series.setdefault(source, []).append(number)
    moments = reader.moments(RAW, max(start, reader.raw_from_ms()), end).astype(np.int64)
    rows = reader.rows(
        f"SELECT series_id, time_ms FROM {_looking_up(RAW)}",
        (orjson.dumps(moments.tolist()).decode(), _json(each[0] for each in series.values())),
    )
    answer: dict[float, float] = {}
    for numbers in series.values():
        times = np.sort(rows[rows[:, 0] == numbers[0], 1])
        if times.size > 1:
            answer |= dict.fromkeys(numbers, float(times[-1] - times[-2]))
    return answer


def _last_heard(
    reader: Reader, window: Window, series: Sequence[int]
) -> tuple[dict[float, float], bool]:
    """Return when (ms) each of these series was last heard of within the window, if it was.

    And whether these are all.
    """
    if not series or window.length_s <= 0:
        return {}, True
    start, end = ms(window.start_s), ms(window.end_s)
    noted = reader.heard(series)
    last: dict[float, float] = {n: t for n, t in noted.items() if start < t <= end}
    # Those that were heard later too, and those that no roll-up has seen yet.
    left = {number for number in series if noted.get(number, end + 1) > end}
    looked_at = 0
    # Five-minute rows wherever there are some: they are fewer, and as good.
    for table, after, up_to in reversed(reader.spans(window, rolled=True)) if left else ():
        moments = reader.moments(table, after, up_to).astype(np.int64)[::-1].tolist()
        # Series are numbered as they appear: who has a higher number came later.
        highest = reader.highest(table, moments)
        at_once = max(1, min(MOMENTS_AT_ONCE, ROWS_AT_ONCE // max(1, len(reader.tags))))
        for first in range(0, len(moments), at_once):
            some = moments[first : first + at_once]
            wanted = [n for n in left if n <= max(highest[first:])]
            if not wanted:
                break
            if looked_at >= MOST_LOOKED_AT:
                return last, False
            found, cost = _heard_at(reader, table, some, wanted)
            looked_at += cost
            if table == ROLLED:
                found |= _within_rows(reader, found)
            last |= {n: min(t, end) for n, t in found.items()}
            left.difference_update(map(int, found))
    return last, True


def _within_rows(reader: Reader, found: Mapping[float, float]) -> dict[float, float]:
    """Return when series were last heard within these rows, where raw samples tell."""
    raw_from = reader.raw_from_ms()
    exact: dict[float, float] = {}
    for row in sorted(set(found.values())):
        if row - schema.WINDOW_MS >= raw_from:
            moments = reader.moments(RAW, int(row) - schema.WINDOW_MS, int(row))
            series = [int(number) for number, time_ms in found.items() if time_ms == row]
            exact |= _heard_at(reader, RAW, moments.astype(np.int64)[::-1].tolist(), series)[0]
    return exact


def _heard_at(
    reader: Reader, table: str, moments: Sequence[int], series: Sequence[int]
) -> tuple[dict[float, float], int]:
    """Return at which of these moments (the newest first) some series were heard last.

    And how many rows were looked at, as it were.
    """
    if len(series) * LOOKING_UP <= len(reader.tags):
        rows = reader.rows(
            f"SELECT series_id, max(time_ms) FROM {_looking_up(table)} GROUP BY series_id",
            (_json(moments), _json(series)),
        )
        return dict(rows.tolist()), len(series) * len(moments) * LOOKING_UP
    looked_at = 0
    wanted = set(series)
    found: dict[float, float] = {}
    for moment in moments:  # usually the newest has them all
        rows = reader.rows(f"SELECT series_id FROM {table} WHERE time_ms = ?", (moment,))
        heard = wanted.intersection(rows[:, 0].astype(np.int64).tolist())
        found |= dict.fromkeys(map(float, heard), float(moment))
        wanted -= heard
        looked_at += len(rows)
        if not wanted:
            break
    return found, looked_at


def _json(numbers: Iterable[float]) -> str:
    return orjson.dumps(list(map(int, numbers))).decode()


def _looking_up(table: str) -> str:
    """Return what joins moments (?1, JSON) and series (?2, JSON) with a table, by its key."""
    return (
        "json_each(?1) AS t CROSS JOIN json_each(?2) AS s"
        f" CROSS JOIN {table} ON time_ms = t.value AND series_id = s.value"
    )


def latest(reader: Reader, window: Window, columns: Sequence[str]) -> Snapshot:
    """Return the newest sample of each series."""
    start, end = ms(window.start_s), ms(window.end_s)
    spans = [(RAW, start, end)] if start >= reader.raw_from_ms() else reader.spans(window)
    # SQLite takes bare columns from the row that max() found.
    snapshot, numbers = _snapshot(reader, spans, columns, _known(columns))
    in_row = np.zeros(len(numbers), dtype=bool)
    for table, after, up_to in spans:
        if table == ROLLED:
            in_row |= (snapshot.time_s * 1000 > after) & (snapshot.time_s * 1000 <= up_to)
    return _as_heard(reader, snapshot, numbers, in_row)


def _as_heard(reader: Reader, snapshot: Snapshot, numbers: Column, in_row: Flags) -> Snapshot:
    """Return a snapshot in which those out of five-minute rows are as old as was noted.

    Such a row has the time of its end, at which a series may have been silent for minutes.
    """
    if not in_row.any():
        return snapshot
    heard = reader.heard(numbers[in_row].tolist())
    noted = np.array([heard.get(int(n), np.inf) for n in numbers.tolist()], dtype=np.float64)
    time_s = np.where(in_row, np.minimum(snapshot.time_s, noted / 1000), snapshot.time_s)
    return Snapshot(snapshot.series, time_s, snapshot.columns)


def latest_of(reader: Reader, window: Window, columns: Sequence[str], some: Activity) -> Snapshot:
    """Return the newest sample of some series, by its key: intervals before and after its last."""
    start, end, raw_from = ms(window.start_s), ms(window.end_s), reader.raw_from_ms()
    number_of: dict[int, int] = {id(tags): number for number, tags in reader.tags.items()}
    keys: dict[str, list[tuple[int, int | None]]] = {RAW: [], ROLLED: []}
    for tags, last_s, interval_s in zip(
        some.series, some.last_s.tolist(), some.interval_s.tolist(), strict=True
    ):
        number, last, interval = number_of.get(id(tags)), ms(last_s), max(1000, ms(interval_s))
        newest_ms = end - (end - last) % interval
        for time_ms in range(newest_ms, start, -interval)[:SPOKEN] if number is not None else ():
            if time_ms > raw_from:
                keys[RAW].append((time_ms, number))
            else:
                keys[ROLLED].append((_up(time_ms, schema.WINDOW_MS), number))
    known = _known(columns)
    chosen = ", ".join(["series_id", "time_ms", *known])
    parts = []
    for table, wanted in keys.items():
        rows = reader.rows(
            f"SELECT {chosen} FROM json_each(?) AS k CROSS JOIN {table}"
            " ON time_ms = k.value ->> 0 AND series_id = k.value ->> 1",
            (orjson.dumps([key for key in wanted if key[0] <= end]).decode(),),
        )
        parts.append(np.column_stack([rows, np.full(len(rows), table == ROLLED)]))
    rows = np.concatenate(parts)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    newest_of = np.flatnonzero(np.diff(rows[:, 0], append=np.inf))
    rows = rows[newest_of]
    found = Snapshot(
        [reader.tags[int(number)] for number in rows[:, 0].tolist()],
        rows[:, 1] / 1000,
        _columns(columns, known, rows[:, 2:]),
    )
    return _as_heard(reader, found, rows[:, 0], rows[:, -1] > 0)


def _columns(columns: Sequence[str], known: Sequence[str], rows: Rows) -> dict[str, Column]:
    found = {name: rows[:, n] for n, name in enumerate(known)}
    return {name: found.get(name, np.full(len(rows), np.nan)) for name in columns}


def total(reader: Reader, window: Window, columns: Sequence[str]) -> Snapshot:
    """Return the whole window of each series."""
    known = _known(columns)
    return _snapshot(reader, reader.spans(window), columns, list(map(_together, known)))[0]


def _together(name: str) -> str:
    if AGGREGATE[name] == "or":
        flags = (f"max(CAST({name} AS INTEGER) & {1 << n})" for n in range(len(SUSPECT_REASONS)))
        return f"({' | '.join(flags)})"
    return f"{AGGREGATE[name]}({name})"


def _snapshot(
    reader: Reader, spans: Sequence[Span], columns: Sequence[str], chosen: Sequence[str]
) -> tuple[Snapshot, Column]:
    """Return what these spans have of each series, and the numbers of the series."""
    known = _known(columns)
    query = (
        f"SELECT {', '.join(['series_id', 'max(time_ms)', *chosen])}"
        f" FROM ({_union(spans, known)}) GROUP BY series_id"
    )
    rows = reader.ours(reader.rows(query))
    snapshot = Snapshot(
        [reader.tags[int(number)] for number in rows[:, 0].tolist()],
        rows[:, 1] / 1000,
        _columns(columns, known, rows[:, 2:]),
    )
    return snapshot, rows[:, 0]


def baseline(reader: Reader, window: Window) -> Snapshot:
    """Return each series' median of ``rtt_p50``, over an even choice of moments if they are many."""
    moments = []
    for table, start, end in reader.spans(window):
        moments += [(table, time_ms) for time_ms in reader.moments(table, start, end).tolist()]
    most = max(12, BASELINE_ROWS // max(1, len(reader.tags)))
    if len(moments) > most:
        places = np.linspace(0, len(moments) - 1, most).round().astype(int)
        moments = [moments[place] for place in places.tolist()]
    parts = [
        reader.rows(
            f"SELECT series_id, time_ms, rtt_p50 FROM {table}"
            " WHERE time_ms IN (SELECT value FROM json_each(?)) AND rtt_p50 IS NOT NULL",
            (orjson.dumps([int(t) for each, t in moments if each == table]).decode(),),
        )
        for table in (RAW, ROLLED)
    ]
    rows = reader.ours(np.concatenate(parts))
    order = np.lexsort((rows[:, 2], rows[:, 0]))
    number, first, count = np.unique(rows[order, 0], return_index=True, return_counts=True)
    values = rows[order, 2]
    median = (
        (values[first + (count - 1) // 2] + values[first + count // 2]) / 2 if len(rows) else []
    )
    last = np.zeros(number.size)
    np.maximum.at(last, np.searchsorted(number, rows[:, 0]), rows[:, 1])
    return Snapshot(
        [reader.tags[int(each)] for each in number.tolist()],
        last / 1000,
        {"rtt_p50": np.asarray(median, dtype=np.float64)},
    )


def history(
    reader: Reader, window: Window, step_s: float, columns: Sequence[str], where: Tags
) -> History:
    """Return the figures over time of some series."""
    numbers = np.array(reader.matching(where), dtype=np.int64)
    known = _known(columns)
    parts = [np.empty((0, 2 + len(known)))]
    for table, start, end in reader.spans(window, len(numbers), step_s):
        chosen = ", ".join(["series_id", "time_ms", *known])
        moments = reader.moments(table, start, end).astype(np.int64).tolist()
        parts.append(
            reader.rows(
                f"SELECT {chosen} FROM {_looking_up(table)}",
                (orjson.dumps(moments).decode(), orjson.dumps(numbers.tolist()).decode()),
            )
        )
    rows = np.concatenate(parts)
    spoke, series = np.unique(rows[:, 0], return_inverse=True)
    ends = window.steps(step_s)
    step = np.ceil(rows[:, 1] / 1000 / step_s - 1e-9) - np.rint(ends[0] / step_s)
    shape = len(spoke), ends.size
    place = series * ends.size + np.clip(step.astype(np.int64), 0, ends.size - 1)
    out = {
        name: put_together(name, place, rows[:, 2 + n], len(spoke) * ends.size).reshape(shape)
        for n, name in enumerate(known)
    }
    for name in columns:
        out.setdefault(name, np.full(shape, np.nan))
    return History([reader.tags[int(number)] for number in spoke.tolist()], step_s, ends, out)


def timeline(reader: Reader, window: Window, step_s: float, where: Tags) -> Timeline:
    """Return how the mesh did over time."""
    step = ms(step_s)
    if where:
        chosen = "series_id IN (SELECT value FROM json_each(?1))"
        listed = reader.matching(where)
    else:
        chosen = "series_id NOT IN (SELECT value FROM json_each(?1))"
        listed = sorted(reader.others)
    rows = reader.rows(
        "SELECT step, count(*), sum(CASE WHEN sent > 0 THEN 100.0 * lost / sent >= ?2 END),"
        " max(CASE WHEN sent > 0 THEN 100.0 * lost / sent END) FROM ("
        f"SELECT series_id, (time_ms + {step - 1:d}) / {step:d} AS step,"
        " sum(sent) AS sent, sum(lost) AS lost"
        f" FROM ({_union(reader.spans(window, step_s=step_s), ['sent', 'lost'])}) WHERE {chosen}"
        " GROUP BY step, series_id) GROUP BY step",
        (orjson.dumps(listed).decode(), LOSSY_PERCENT),
    )
    ends = window.steps(step_s)
    place = (rows[:, 0] - np.rint(ends[0] / step_s)).astype(np.int64)
    inside = (place >= 0) & (place < ends.size)
    series, lossy, worst = np.zeros(ends.size), np.zeros(ends.size), np.full(ends.size, np.nan)
    series[place[inside]] = rows[inside, 1]
    lossy[place[inside]] = np.nan_to_num(rows[inside, 2])
    worst[place[inside]] = rows[inside, 3]
    return Timeline(step_s, ends, series, lossy, worst)
