# ruff: noqa: S608  names of tables and columns are ours; everything else is a parameter
"""Questions about figures to the embedded store, in SQL, each to one snapshot of its file.

What stands in the file: the scraper's `sqlite_schema`. Which series there are is asked in
`sqlite_activity`. All run in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import orjson

from llama.collector.intervals.summary import SUSPECT_REASONS
from llama.scraper.writers import sqlite_schema as schema
from llama.web.grid import put_together
from llama.web.store import (
    AGGREGATE,
    LOSSY_PERCENT,
    MOST_CELLS,
    Activity,
    Column,
    History,
    Snapshot,
    Tags,
    Timeline,
    Window,
    see_room,
)
from llama.web.stores.sqlite_reader import (
    MEASUREMENT,
    RAW,
    ROLLED,
    Reader,
    Rows,
    Span,
    json_list,
    looking_up,
    ms,
    round_up,
)

Flags = npt.NDArray[np.bool_]

#: From so many series on five minutes are the shortest step of a timeline.
COARSE_SERIES = 100_000
#: Times at which a series that speaks seldom is looked for: more of its intervals than make it silent.
SPOKEN = 6
#: Rows of a baseline at most; of more moments, an even choice is looked at.
BASELINE_ROWS = 600_000


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
    # They are the very tag sets of an earlier answer, and are not changed but shared.
    number_of: dict[int, int] = {id(tags): number for number, tags in reader.tags.items()}
    keys: dict[str, list[tuple[int, int]]] = {RAW: [], ROLLED: []}
    for tags, last_s, interval_s in zip(
        some.series, some.last_s.tolist(), some.interval_s.tolist(), strict=True
    ):
        number = number_of.get(id(tags))
        if number is None:  # of a file whose place another one has taken since
            continue
        last, interval = ms(last_s), max(1000, ms(interval_s))
        newest_ms = end - (end - last) % interval
        for time_ms in range(newest_ms, start, -interval)[:SPOKEN]:
            if time_ms > raw_from:
                keys[RAW].append((time_ms, number))
            else:
                keys[ROLLED].append((round_up(time_ms, schema.WINDOW_MS), number))
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
            (json_list(t for each, t in moments if each == table),),
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
    numbers = reader.matching(where)
    ends = window.steps(step_s)
    known = _known(columns)
    moments = [
        (table, json_list(reader.moments(table, start, end).tolist()))
        for table, start, end in reader.spans(window, len(numbers), step_s)
    ]

    def look_up(chosen: Sequence[str], numbers: Sequence[int]) -> Rows:
        query, wanted = f"SELECT {', '.join(chosen)} FROM ", json_list(numbers)
        parts = [reader.rows(query + looking_up(table), (at, wanted)) for table, at in moments]
        return np.concatenate([np.empty((0, len(chosen))), *parts])

    if len(numbers) * ends.size > MOST_CELLS:  # of all that there ever were, who spoke?
        numbers = np.unique(look_up(["DISTINCT series_id"], numbers)).astype(int).tolist()
        see_room(len(numbers), ends.size)
    rows = look_up(["series_id", "time_ms", *known], numbers)
    spoke, series = np.unique(rows[:, 0], return_inverse=True)
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
        (json_list(listed), LOSSY_PERCENT),
    )
    ends = window.steps(step_s)
    place = (rows[:, 0] - np.rint(ends[0] / step_s)).astype(np.int64)
    inside = (place >= 0) & (place < ends.size)
    series, lossy, worst = np.zeros(ends.size), np.zeros(ends.size), np.full(ends.size, np.nan)
    series[place[inside]] = rows[inside, 1]
    lossy[place[inside]] = np.nan_to_num(rows[inside, 2])
    worst[place[inside]] = rows[inside, 3]
    return Timeline(step_s, ends, series, lossy, worst)
