# ruff: noqa: S608  names of tables and columns are ours; everything else is a parameter
"""One snapshot of the embedded store's file: its series, its moments, and which table has what.

Raw samples stand in it for some days and five-minute rows for longer, both clustered by time: one
moment of the whole mesh is a short scan, a long time of one pair is a look-up per moment. Which of
the two tables answers is chosen here: raw where it is there and not too much, else five-minute rows,
with raw ones at the ends of the window. All runs in a thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from llama.scraper.writers import sqlite_schema as schema
from llama.web.store import Tags, Window

Rows = npt.NDArray[np.float64]
Span = tuple[str, int, int]  # table, after, up to (ms)

RAW, ROLLED = "samples", "samples_5m"
MEASUREMENT = "raw_stats"
#: From this many rows on the five-minute rows answer, where they can.
MANY_ROWS = 1_500_000
#: Samples come in at most so much later than they were taken, if clocks are right.
LATE_MS = 3_600_000


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
            removed = schema.fact(connection, "series_removed") or 0
            # More than was known: this snapshot is newer than all that the cache was filled from.
            if removed > self._removed:
                self._removed = removed
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
            (json_list(series),),
        )
        return dict(rows.fetchall())

    def raw_from_ms(self) -> int:
        """Return the time after which all raw samples are still there."""
        removed_to = schema.fact(self._connection, "removed_to_ms") or 0
        return round_up(removed_to, schema.WINDOW_MS)

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
            (json_list(moments),),
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
        first = round_up(start, schema.WINDOW_MS) if start >= raw_from else start
        last = min(
            _round_down(end, schema.WINDOW_MS), _round_down(self.rolled_to_ms(), schema.WINDOW_MS)
        )
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


def round_up(value: int, unit: int) -> int:
    """Return the next multiple of ``unit`` that is not below ``value``."""
    return -(-value // unit) * unit


def _round_down(value: int, unit: int) -> int:
    return value // unit * unit


def json_list(numbers: Iterable[float]) -> str:
    """Return whole numbers as a parameter for ``json_each``."""
    return orjson.dumps(list(map(int, numbers))).decode()


def looking_up(table: str) -> str:
    """Return what joins moments (?1, JSON) and series (?2, JSON) with a table, by its key."""
    return (
        "json_each(?1) AS t CROSS JOIN json_each(?2) AS s"
        f" CROSS JOIN {table} ON time_ms = t.value AND series_id = s.value"
    )
