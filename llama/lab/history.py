"""The demo's view of its database: the newest intervals, as `llama.lab.readings` wants them.

It reads what the scraper has written (`llama.scraper.writers.sqlite_schema`) through a connection
of its own, and nothing else: no figure reaches the demo's matrix another way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from attrs import frozen
from twisted.enterprise import adbapi

from llama.collector.intervals.summary import reasons
from llama.lab.readings import Reading
from llama.threads import disconnect

_NEWEST = """
SELECT time_ms, tags, loss, flows, flows_lossy, rtt_p50, suspect
FROM samples JOIN series ON series.id = samples.series_id
WHERE measurement = 'raw_stats' AND time_ms > max(?, (SELECT max(time_ms) FROM samples) - ?)
ORDER BY time_ms DESC
"""


@frozen(kw_only=True)
class Interval:
    """All that is stored of one interval."""

    end_s: float  # Unix time
    readings: tuple[Reading, ...]
    whole: bool  # no pair is missing


class History:
    """The database at ``path``, to which a scraper writes ``pairs`` pairs every ``interval_s``.

    What ended before ``since_s`` (Unix time) is left from an earlier demo, and not looked at.
    """

    def __init__(
        self, reactor: Any, path: Path, *, interval_s: int, pairs: int, since_s: float
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._since_ms = since_s * 1000
        self._interval_ms = interval_s * 1000
        self._pairs = pairs
        self._ready = False
        self._pool = adbapi.ConnectionPool(
            "sqlite3",
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            check_same_thread=False,
            cp_reactor=reactor,
            cp_min=1,
            cp_max=1,
            cp_noisy=False,
        )

    async def newest(self, count: int) -> list[Interval]:
        """Return the last ``count`` intervals of which anything is stored, newest first.

        Raises `sqlite3.Error` when the database cannot be read, though once it could.
        """
        if not self._ready and not self._path.exists():
            return []
        try:
            # One more than asked for: the newest row may be of no pair.
            span_ms = (count + 1) * self._interval_ms
            rows = await self._pool.runQuery(_NEWEST, (self._since_ms, span_ms))
        except sqlite3.OperationalError:
            if self._ready:
                raise
            return []  # the scraper is making it at this moment
        self._ready = True
        readings: dict[int, list[Reading]] = {}
        for time_ms, tags, *figures in rows:
            readings.setdefault(time_ms, []).append(_reading(orjson.loads(tags), figures))
        return [
            Interval(end_s=time_ms / 1000, readings=tuple(found), whole=len(found) == self._pairs)
            for time_ms, found in list(readings.items())[:count]
        ]

    async def close(self) -> None:
        """Let go of the database, once what was asked of it is answered."""
        if self._pool.running:
            await disconnect(self._reactor, self._pool)


def to_show(newest: Sequence[Interval]) -> Interval | None:
    """Return the newest whole interval; without any, the oldest given, which should be whole.

    The newest lacks pairs while collectors are being asked. ``newest`` is newest first.
    """
    for interval in newest:
        if interval.whole:
            return interval
    return newest[-1] if newest else None


def _reading(tags: Mapping[str, str], figures: list[float | None]) -> Reading:
    loss, flows, flows_lossy, rtt_p50, suspect = figures
    return Reading(
        source=tags["src_hostname"],
        destination=tags["dst_hostname"],
        source_site=tags["src_site"],
        destination_site=tags["site"],
        loss=loss,
        flows=None if flows is None else int(flows),
        flows_lossy=None if flows_lossy is None else int(flows_lossy),
        rtt_p50_ms=rtt_p50,
        suspect=reasons(int(suspect or 0)),
    )
