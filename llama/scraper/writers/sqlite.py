"""The embedded store: a SQLite file that the matrix reads. What stands in it: `sqlite_schema`.

Used from one thread through `twisted.enterprise.adbapi`, and perhaps by other processes at the same
time: whatever decides by what it has read takes the file's lock first (``BEGIN IMMEDIATE``).
``synchronous=NORMAL`` in WAL mode would lose acknowledged points with the power; they are
acknowledged to the spool, which then forgets them, so commits are synced (``FULL``): one sync a batch.
A file that was removed or replaced while it was open takes nothing: it is opened anew.

What is past its time is told by when most of what comes was measured, unless that is in the future: a
wall clock that is years ahead for a minute would have all of the history removed in it.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median_high, median_low
from typing import Any

import orjson
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from llama.interfaces import ITimeSeriesWriter, NotWrittenError, Point, Refusal
from llama.reasons import Reasons
from llama.scraper.whereabouts import MovedError, Whereabouts, forbidden
from llama.scraper.writers import sqlite_late as late
from llama.scraper.writers import sqlite_old as old
from llama.scraper.writers import sqlite_schema as schema
from llama.scraper.writers.options import Options
from llama.threads import connect, disconnect, outlasting

DAY = 86400.0
MINUTE = 60.0
#: Seconds to wait for the lock of another process.
BUSY_S = 30.0
#: Windows rolled up in one transaction, so that writing gets its turn in between.
WINDOWS_AT_ONCE = 4
#: Old rows removed in one transaction; likewise.
ROWS_AT_ONCE = 20_000
#: Batches by whose times it is known what is old.
BATCHES_KNOWN = 64
#: Series whose number is remembered.
SERIES_KNOWN = 200_000

_FIELD_SET = frozenset(schema.FIELDS)
#: Measurement, and tags as JSON.
_SeriesKey = tuple[str, str]


@implementer(ITimeSeriesWriter)
class SQLiteWriter:
    """Writes samples, rolls them up every minute, and removes what is past its time."""

    _log = Logger()

    def __init__(
        self, reactor: Any, options: Options, unix_time_s: Callable[[], float] = time.time
    ) -> None:
        self._path = Path(options.text("path"))
        self.name = options.text("name", f"sqlite {self._path}")
        self._raw_s = options.seconds("raw", 2 * DAY, lowest=600)
        self._rolled_s = options.seconds("rollup", 30 * DAY, lowest=600)
        self._reactor = reactor
        self._unix_time_s = unix_time_s
        self._pool: Any = None
        self._changing = DeferredLock()  # held while the file is being opened or closed
        self._whereabouts: Whereabouts | None = None  # of the file that is open
        # The store's thread alone has these: ids of series that are there, and how many were removed.
        self._series: dict[_SeriesKey, int] = {}
        self._series_removed = 0
        # When the points of each batch that was written lately were measured, in the middle.
        self._middles_ms: deque[int] = deque(maxlen=BATCHES_KNOWN)
        self._upkeep = LoopingCall(self._keep_up)
        self._upkeep.clock = reactor
        self._keeping: Deferred[None] = succeed(None)
        self._reasons = Reasons()  # why upkeep fails

    def open(self) -> Deferred[None]:
        """Open or create the file; fails with `NotWrittenError` when it is another program's."""
        return self._changing.run(self._open)

    async def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWrittenError(f"{self._path.parent}: {error.strerror}") from None
        pool = connect(self._reactor, self._path, BUSY_S)
        try:
            whereabouts = await pool.runWithConnection(self._prepare)
        except BaseException as error:
            closed = disconnect(self._reactor, pool)
            if not isinstance(error, CancelledError):  # else its thread is still at it
                await closed
            if isinstance(error, sqlite3.Error | OSError | NotWrittenError):
                raise NotWrittenError(self._explain(error)) from None
            raise
        self._pool, self._whereabouts = pool, whereabouts
        if not self._upkeep.running:
            self._keeping = self._upkeep.start(MINUTE, now=False).addErrback(
                lambda failure: failure.trap(CancelledError)
            )

    def _prepare(self, connection: Any) -> Whereabouts:
        """Prepare the file and say which it is; in the store's thread."""
        prepare(connection)
        self._series, self._series_removed = {}, 0
        return Whereabouts(self._path)

    async def _open_again(self) -> None:
        if self._pool is None:
            await self._open()

    def write(self, points: Sequence[Point]) -> Deferred[Sequence[Refusal]]:
        """Write points in one transaction.

        When the file was removed or replaced, that is said and nothing is written; the next write
        opens what is there then.
        """
        return Deferred.fromCoroutine(self._write(points))

    async def _write(self, points: Sequence[Point]) -> Sequence[Refusal]:
        if self._pool is None:
            await self._changing.run(self._open_again)
        pool = self._pool
        try:
            await pool.runWithConnection(self._commit, self._whereabouts, points)
        except MovedError as error:
            # Whoever gives up waiting for this, no other may begin before it is done.
            await outlasting(self._changing.run(self._leave, pool))
            raise NotWrittenError(f"{error}: it is opened anew") from None
        except (sqlite3.Error, OSError) as error:
            raise NotWrittenError(self._explain(error)) from None
        if points:
            self._middles_ms.append(median_high(point.time_ns for point in points) // 1_000_000)
        return []

    def _explain(self, error: Exception) -> str:
        return forbidden(error, self._path) or f"{self._path}: {error}"

    async def _leave(self, pool: Any) -> None:
        """Close a file, unless another call has done so."""
        if pool is not None and self._pool is pool:
            self._pool = None
            await disconnect(self._reactor, pool)

    def _commit(self, connection: Any, whereabouts: Whereabouts, points: Sequence[Point]) -> None:
        """Write points in one transaction; in the store's thread."""
        whereabouts.see(connection)
        new = self._insert(connection.cursor(), points)
        connection.commit()
        # Not before: an id that is taken back is given to the next new series, whichever that is.
        if len(self._series) + len(new) > SERIES_KNOWN:
            self._series.clear()
        self._series.update(new)

    def _insert(self, cursor: Any, points: Sequence[Point]) -> dict[_SeriesKey, int]:
        """Insert points, which is not committed yet; returns the ids that are not known yet."""
        cursor.execute("BEGIN IMMEDIATE")
        self._forget_removed_series(cursor)
        new: dict[_SeriesKey, int] = {}
        removed_to = schema.fact(cursor, "removed_to_ms") or 0
        rows: list[late.Row] = []
        for point in points:
            time_ms = point.time_ns // 1_000_000
            fields = point.fields
            more = {name: value for name, value in fields.items() if name not in _FIELD_SET}
            rows.append(
                (
                    time_ms,
                    self._series_id(cursor, point, new),
                    *map(fields.get, schema.FIELDS),
                    orjson.dumps(more, option=orjson.OPT_SORT_KEYS).decode() if more else None,
                )
            )
        kept = [row for row in rows if row[0] > removed_to]
        cursor.executemany(schema.UPSERT, kept)
        cursor.executemany(
            "INSERT OR IGNORE INTO unrolled VALUES (?)",
            [(window,) for window in {schema.window_end(row[0]) for row in kept}],
        )
        unknown_to = schema.fact(cursor, "unknown_to_ms") or 0
        late.merge(cursor, [row for row in rows if unknown_to < row[0] <= removed_to])
        return new

    def _series_id(self, cursor: Any, point: Point, new: dict[_SeriesKey, int]) -> int:
        """Return the id of a point's series; one that had to be asked for is added to ``new``."""
        # As text: what orjson returns keeps 4 KiB to itself however short it is.
        tags = orjson.dumps(dict(point.tags), option=orjson.OPT_SORT_KEYS).decode()
        key = point.measurement, tags
        number = self._series.get(key) or new.get(key)
        if number is None:
            cursor.execute("INSERT OR IGNORE INTO series (measurement, tags) VALUES (?, ?)", key)
            cursor.execute("SELECT id FROM series WHERE measurement = ? AND tags = ?", key)
            number = new[key] = int(cursor.fetchone()[0])
        return number

    def _forget_removed_series(self, cursor: Any) -> None:
        """Forget the ids of series that were removed, by whichever process."""
        removed = schema.fact(cursor, "series_removed") or 0
        if removed != self._series_removed:
            there = {number for (number,) in cursor.execute("SELECT id FROM series")}
            self._series = {key: n for key, n in self._series.items() if n in there}
            self._series_removed = removed

    async def _keep_up(self) -> None:
        """Roll up and remove in small transactions until nothing is left to do."""
        try:
            while await self._some(self._roll_up, int(self._unix_time_s() * 1000)):
                pass
            while await self._some(old.look_back):
                pass
            while await self._some(self._remove, self._measured_ms()):
                pass
        except sqlite3.Error as error:
            if self._reasons.is_news(problem := str(error)):
                self._log.warn(
                    "store {path}: rolling up or removing old rows failed ({problem});"
                    " tried again every minute",
                    path=self._path,
                    problem=problem,
                )
        except Exception:  # the loop would end, and the file grow for ever
            self._log.failure("a fault in the scraper itself, in the store {path}", path=self._path)
        else:
            if self._reasons.over():
                self._log.info(
                    "store {path}: old rows are rolled up and removed again", path=self._path
                )

    async def _some(self, do: Callable[..., bool], *args: int) -> bool:
        """Do some of the upkeep, unless the file is closed; says whether there was anything to do."""
        if not self._upkeep.running or self._pool is None:
            return False
        return bool(await self._pool.runInteraction(do, *args))

    def _measured_ms(self) -> int:
        """Return when most of what was written lately was measured; never in the future."""
        measured_ms = median_low(self._middles_ms) if self._middles_ms else 0
        return min(int(self._unix_time_s() * 1000), measured_ms)

    def _roll_up(self, cursor: Any, now_ms: int) -> bool:
        """Roll up some windows that are over; says whether there was anything to do."""
        cursor.execute("BEGIN IMMEDIATE")
        windows = cursor.execute(
            "SELECT time_ms FROM unrolled WHERE time_ms <= ? ORDER BY time_ms LIMIT ?",
            (now_ms, WINDOWS_AT_ONCE),
        ).fetchall()
        for (end,) in windows:
            cursor.execute(schema.ROLL_UP, {"end": end})
            cursor.execute(schema.HEARD, {"end": end})
            cursor.execute("DELETE FROM unrolled WHERE time_ms = ?", (end,))
        return bool(windows)

    def _remove(self, cursor: Any, now_ms: int) -> bool:
        """Remove some of what is past its time; says whether there was anything."""
        cursor.execute("BEGIN IMMEDIATE")
        oldest = cursor.execute("SELECT min(time_ms) FROM samples").fetchone()[0]
        end = now_ms if oldest is None else schema.window_end(oldest)
        unrolled = cursor.execute("SELECT 1 FROM unrolled WHERE time_ms <= ?", (end,)).fetchone()
        if raw := end <= now_ms - int(self._raw_s * 1000) and not unrolled:
            # From now on, though most of them may still be there for a while, what comes for this
            # window or an older one is late.
            removed_to = schema.fact(cursor, "removed_to_ms") or 0
            schema.set_fact(cursor, "removed_to_ms", max(end, removed_to))
            late.remove(cursor, end, ROWS_AT_ONCE)
        before = now_ms - int(self._rolled_s * 1000)
        oldest = cursor.execute("SELECT min(time_ms) FROM samples_5m").fetchone()[0]
        if rolled := oldest is not None and oldest <= before:
            some = {"time": oldest, "rows": ROWS_AT_ONCE}
            if cursor.execute(schema.REMOVE_ROLLED, some).rowcount < ROWS_AT_ONCE:
                cursor.execute("DELETE FROM removed WHERE time_ms <= ?", (oldest,))
        if not (raw or rolled):
            self._remove_series(cursor, now_ms - int(max(self._raw_s, self._rolled_s) * 1000))
        return raw or rolled

    def _remove_series(self, cursor: Any, before_ms: int) -> None:
        """Remove the series of which no rows are left."""
        if schema.fact(cursor, "heard_from_ms"):
            return  # it is not known yet
        gone = cursor.execute(schema.GONE, {"before": before_ms}).fetchall()
        if not gone:
            return
        cursor.executemany("DELETE FROM series WHERE id = ?", gone)
        cursor.executemany("DELETE FROM heard WHERE series_id = ?", gone)
        removed = schema.fact(cursor, "series_removed") or 0
        schema.set_fact(cursor, "series_removed", removed + len(gone))

    def close(self) -> Deferred[None]:
        """Close the file once its thread has ended what it does, also a write that was given up."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        if self._upkeep.running:
            self._upkeep.stop()
            await self._keeping
        await self._changing.run(lambda: Deferred.fromCoroutine(self._leave(self._pool)))


def prepare(db: Any) -> None:
    """Make a new file, or see that it is ours and bring it up to date.

    Raises `NotWrittenError` or `sqlite3.Error`.
    """
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if tables and application != schema.APPLICATION_ID:
        raise NotWrittenError("is another program's database, expected a new or empty file")
    if tables and version != schema.VERSION:
        raise NotWrittenError(f"is of schema {version}, expected {schema.VERSION}")
    db.execute("PRAGMA journal_mode=WAL").fetchall()
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA cache_size=-16384")
    old.bring_up_to_date(db)
    db.executescript(schema.SCHEMA + schema.TEMPORARY)


def make(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Make a writer from the keys of docs/writers.rst; raises `ValueError`."""
    read = Options(options)
    writer = SQLiteWriter(reactor, read)
    read.end()
    return writer
