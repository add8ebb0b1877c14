"""Samples that come when those of their five minutes are gone: merged into the five-minute row, once.

A backlog can be days old, and comes in any order. So the store remembers, for every moment whose
samples it has removed, of which series it had one: a bit each, some hundred octets a moment. What
comes late and is not among them is added to its five-minute row and noted, both in the transaction
that the writer acknowledges; what comes again, after a crash or an answer that was lost, is known.

A window's samples are removed some at a time. As soon as the first of them go the window is one of
those whose samples are gone: what comes for it is late, and known if it is among those still there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.scraper.writers import sqlite_schema as schema

#: A row as `sqlite_schema.UPSERT` takes it: time in ms and series first.
Row = tuple[Any, ...]


def merge(cursor: Any, rows: Sequence[Row]) -> None:
    """Merge samples of windows that were removed; those that are known change nothing."""
    ends = set()
    ordered = sorted(rows, key=lambda row: row[0])
    for time_ms, some in groupby(ordered, key=lambda row: row[0]):
        known = _series_of(cursor, time_ms)
        late = {row[1]: row for row in some if row[1] >= len(known) or not known[row[1]]}
        for series in [number for number in late if _is_there(cursor, time_ms, number)]:
            del late[series]
        if late:
            cursor.executemany(schema.TAKE_LATE, late.values())
            _note(cursor, time_ms, known, list(late))
            ends.add(schema.window_end(time_ms))
    for end in ends:
        cursor.execute(schema.MERGE, {"end": end})
        cursor.execute(schema.HEARD_LATE, {"end": end})
    cursor.execute("DELETE FROM late")


def remove(cursor: Any, end: int, rows: int) -> None:
    """Remove the oldest ``rows`` of the samples up to ``end`` (ms), and remember which they were."""
    oldest = cursor.execute(schema.OLDEST, {"end": end, "rows": rows}).fetchall()
    for time_ms, some in groupby(oldest, key=lambda row: row[0]):
        _note(cursor, time_ms, _series_of(cursor, time_ms), [number for _, number in some])
    if oldest:
        cursor.execute(schema.REMOVE, oldest[-1])


def _is_there(cursor: Any, time_ms: int, series: int) -> bool:
    """Say whether a sample was not yet removed."""
    found = cursor.execute(
        "SELECT 1 FROM samples WHERE time_ms = ? AND series_id = ?", (time_ms, series)
    )
    return found.fetchone() is not None


def _series_of(cursor: Any, time_ms: int) -> npt.NDArray[np.bool_]:
    """Return, by series, whether a sample of that moment was there."""
    row = cursor.execute("SELECT series FROM removed WHERE time_ms = ?", (time_ms,)).fetchone()
    packed = np.frombuffer(zlib.decompress(row[0]) if row else b"", np.uint8)
    return np.unpackbits(packed).astype(bool)


def _note(cursor: Any, time_ms: int, known: npt.NDArray[np.bool_], series: Sequence[int]) -> None:
    """Note that samples of these series, besides those known, were there."""
    bits = np.zeros(max(len(known), max(series) + 1), bool)
    bits[: len(known)] = known
    bits[series] = True
    packed = zlib.compress(np.packbits(bits).tobytes(), 1)
    cursor.execute("INSERT OR REPLACE INTO removed VALUES (?, ?)", (time_ms, packed))
