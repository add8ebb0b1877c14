# ruff: noqa: S608  names of tables and columns are ours; everything else is a parameter
"""Which series the embedded store has, how often each speaks, and when it was last heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llama.scraper.writers import sqlite_schema as schema
from llama.web.store import Activity, Window
from llama.web.stores.sqlite_reader import RAW, ROLLED, Reader, json_list, looking_up, ms

#: How far back is looked to see how often a series speaks: in a mesh of few series, of many.
RECENT_MS, RECENT_MANY_MS = 6 * 60_000, 3 * 60_000
MANY_SERIES = 5000
#: Moments that are looked at together, the newest first, until all are found.
MOMENTS_AT_ONCE = 120
#: So many rows are looked at, or looked for, to find when series were last heard of.
MOST_LOOKED_AT = 3_000_000
ROWS_AT_ONCE = 500_000
#: A row that is looked for costs as much as so many of those that stand one after the other.
LOOKING_UP = 4


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
        f"SELECT series_id, time_ms FROM {looking_up(RAW)}",
        (json_list(moments.tolist()), json_list(each[0] for each in series.values())),
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
            f"SELECT series_id, max(time_ms) FROM {looking_up(table)} GROUP BY series_id",
            (json_list(moments), json_list(series)),
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
