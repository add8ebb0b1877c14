"""The spool on disk: what was taken from a collector survives until every database has it.

A SQLite file in WAL mode, used from one thread through `twisted.enterprise.adbapi`::

    cursors (collector, cursor, newest_ns)    how far each collector has been read
    chunks  (number, collector, taken_s, points, newest_ns, payload)
    waiting (chunk, writer)                   who has not acknowledged which chunk

Points and the cursor that follows them are one transaction, so that a collector is asked again
for exactly what is not here, whatever happens in between. ``synchronous=NORMAL``: killing the
process loses nothing. Losing *power* can take the last transactions back, cursor and points
together: they are then asked for, or written, a second time, which changes nothing. A sync of the
disk for every transaction (FULL) would buy only that this happens less often.

The file is locked for as long as it is open, so two scrapers cannot share one. A damaged file is
set aside and a new one begun; a full disk makes `put` fail while everything else goes on.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llama.interfaces import Point

from .buffer import (
    CHUNK_OVERHEAD,
    Batch,
    Chunk,
    Dropped,
    Held,
    NotStoredError,
    Taken,
    expand,
    new_chunk,
    pack_all,
)

T = TypeVar("T")

#: Free space, octets, that is left alone on the disk: acknowledging needs a little room, too.
RESERVE = 4 * 1024 * 1024
#: Seconds between two attempts to open a file that cannot be opened.
OPEN_RETRY_S = 5.0
#: Free pages, of 4 KiB, that the file may hold before it is made smaller.
FREE_PAGES = 4096

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cursors (
    collector TEXT PRIMARY KEY, cursor TEXT, newest_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (
    number INTEGER PRIMARY KEY AUTOINCREMENT, collector TEXT NOT NULL, taken_s REAL NOT NULL,
    points INTEGER NOT NULL, newest_ns INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS waiting (
    chunk INTEGER NOT NULL, writer TEXT NOT NULL, PRIMARY KEY (chunk, writer)) WITHOUT ROWID;
"""
_APPLICATION_ID = 0x4C4C5350  # "LLSP"
_VERSION = 1


class _DamagedError(Exception):
    """The file is no spool, or a broken one."""


class DiskSpool:
    """A spool in a SQLite file. ``reactor`` needs `IReactorThreads` and time."""

    _log = Logger()

    def __init__(self, reactor: Any, path: str, max_octets: int, max_age_s: float) -> None:
        self.dropped: Dropped = lambda reason, chunk: None
        self.trouble: str | None = None
        self._reactor = reactor
        self._path = Path(path)
        self._held = Held(max_octets, max_age_s)
        self._taken: dict[str, Taken] = {}
        self._writers: set[str] = set()
        self._pool: Any = None
        self._unnoted: list[tuple[int, str]] = []  # acknowledged, but not yet so on disk
        self._renewal = DeferredLock()  # held while the file is being opened
        self._closed = False
        self._pause: Deferred[None] = succeed(None)

    @property
    def chunks(self) -> OrderedDict[int, Chunk]:
        """All chunks held."""
        return self._held.chunks

    @property
    def octets(self) -> int:
        """What they take."""
        return self._held.octets

    def open(self, writers: Collection[str]) -> Deferred[None]:
        """Open or create the file and read what it holds.

        Where it cannot be opened (another process has it, no permission, a full disk), the reason
        is said and it is tried again until it can.
        """
        self._writers = set(writers)

        async def opened() -> None:
            await self._renewal.run(self._open)
            await self._forget_writers()

        return Deferred.fromCoroutine(opened())

    async def _open(self) -> None:
        said = ""
        while not self._is_closed():
            try:
                pool = self._connect()
            except OSError as error:
                problem = str(error)
            else:
                try:
                    self._taken, chunks = await pool.runWithConnection(self._load)
                    break
                except _DamagedError as error:
                    pool.close()
                    self._set_aside(str(error))
                    continue
                except sqlite3.Error as error:
                    pool.close()
                    problem = _explain(error)
            if problem != said:
                said = problem
                self._log.error(
                    "Spool {path} cannot be opened: {problem}; trying again every {wait:g} s",
                    path=self._path,
                    problem=problem,
                    wait=OPEN_RETRY_S,
                )
            self._pause = deferLater(self._reactor, OPEN_RETRY_S)
            with suppress(CancelledError):
                await self._pause
        else:
            return
        if self._is_closed():
            pool.close()
            return
        for chunk in chunks:
            self._held.add(chunk)
        self._pool = pool

    def _is_closed(self) -> bool:
        return self._closed  # which can change with every await

    def _connect(self) -> Any:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        pool = adbapi.ConnectionPool(
            "sqlite3",
            str(self._path),
            check_same_thread=False,
            timeout=1.0,
            cp_reactor=self._reactor,
            cp_min=1,
            cp_max=1,
            cp_noisy=False,
        )
        pool.start()
        return pool

    def _load(self, db: Any) -> tuple[dict[str, Taken], list[Chunk]]:
        """Prepare the file and read everything but the payloads. In the spool's thread."""
        try:
            for pragma in (
                "locking_mode=EXCLUSIVE",  # before WAL: no shared memory beside the file
                "auto_vacuum=INCREMENTAL",
                "journal_mode=WAL",
                "synchronous=NORMAL",
                "wal_autocheckpoint=256",
                "journal_size_limit=1048576",
            ):
                db.execute(f"PRAGMA {pragma}").fetchall()
            application, version = (
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            )
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and (application, version) != (_APPLICATION_ID, _VERSION):
                raise _DamagedError("it is another program's, or another version's")
            check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if check != "ok":
                raise _DamagedError(check)
            db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={_VERSION}")
            db.executescript(_SCHEMA)
            taken = db.execute("SELECT collector, cursor, newest_ns FROM cursors").fetchall()
            chunks = {
                row[0]: Chunk(row[0], row[1], row[2], row[3], row[4], row[5], set())
                for row in db.execute(
                    "SELECT number, collector, taken_s, points, length(payload), newest_ns"
                    " FROM chunks ORDER BY number"
                )
            }
            for writer, number in db.execute("SELECT writer, chunk FROM waiting"):
                if number in chunks:
                    chunks[number].waiting.add(writer)
        except sqlite3.DatabaseError as error:
            if _is(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _DamagedError(str(error)) from None
            raise
        return (
            {collector: Taken(cursor, newest) for collector, cursor, newest in taken},
            list(chunks.values()),
        )

    def taken(self, collector: str) -> Taken:
        """Say how far a collector has been read."""
        return self._taken.get(collector, Taken())

    def pack(self, points: Sequence[Point], ready: bool = True) -> Deferred[Sequence[Batch]]:
        """Make batches of points, in the spool's thread."""
        return Deferred.fromCoroutine(self._run(lambda _: pack_all(points, ready)))

    def put(
        self, collector: str, taken: Taken, batches: Sequence[Batch], now_s: float
    ) -> Deferred[Sequence[Chunk]]:
        """Keep points and how far their collector has been read, in one transaction."""
        return Deferred.fromCoroutine(self._put(collector, taken, batches, now_s))

    async def _put(
        self, collector: str, taken: Taken, batches: Sequence[Batch], now_s: float
    ) -> Sequence[Chunk]:
        octets = sum(len(batch.payload) + CHUNK_OVERHEAD for batch in batches)
        writers = sorted(self._writers)
        new = [new_chunk(collector, batch, now_s, writers) for batch in batches]

        def insert(cursor: Any) -> None:
            self._check_room(octets)
            for chunk, batch in zip(new, batches, strict=True):
                cursor.execute(
                    "INSERT INTO chunks (collector, taken_s, points, newest_ns, payload)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (collector, now_s, chunk.points, chunk.newest_ns, batch.payload),
                )
                chunk.number = cursor.lastrowid
                cursor.executemany(
                    "INSERT INTO waiting (chunk, writer) VALUES (?, ?)",
                    [(chunk.number, writer) for writer in writers],
                )
            cursor.execute(
                "INSERT OR REPLACE INTO cursors (collector, cursor, newest_ns) VALUES (?, ?, ?)",
                (collector, taken.cursor, taken.newest_ns),
            )

        try:
            await self._drop("full", self._held.excess(octets))
            await self._run(insert)
        except (sqlite3.Error, OSError) as error:
            self.trouble = _explain(error)
            raise NotStoredError(self.trouble) from None
        self.trouble = None
        for chunk, batch in zip(new, batches, strict=True):
            self._held.add(chunk, batch.points)
        self._taken[collector] = taken
        return new

    def _check_room(self, octets: int) -> None:
        """Raise `OSError` (ENOSPC) when keeping ``octets`` more would use up the reserve."""
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < RESERVE + octets:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, chunk: Chunk) -> Deferred[Sequence[Point] | None]:
        """Fire with a chunk's points; a damaged chunk is dropped."""
        if (points := self._held.ready(chunk)) is not None:
            return succeed(points)
        return Deferred.fromCoroutine(self._read(chunk))

    async def _read(self, chunk: Chunk) -> Sequence[Point] | None:
        def select(cursor: Any) -> list[Point] | None:
            row = cursor.execute(
                "SELECT payload FROM chunks WHERE number = ?", (chunk.number,)
            ).fetchone()
            return expand(row[0]) if row else None

        try:
            return await self._run(select)
        except (zlib.error, ValueError, TypeError):
            await self._drop("damaged", [chunk])
            return None

    def acknowledge(self, writer: str, chunks: Sequence[Chunk]) -> Deferred[None]:
        """Note on disk that a writer has these chunks.

        Where the disk refuses, it is remembered and noted with the next acknowledgement; a
        process killed before that writes these chunks again.
        """
        for chunk in chunks:
            if self.chunks.get(chunk.number) is chunk:  # else it was dropped meanwhile
                chunk.waiting.discard(writer)
                self._unnoted.append((chunk.number, writer))
                if not chunk.waiting:
                    self._held.remove(chunk)
        return Deferred.fromCoroutine(self._note())

    async def _note(self) -> None:
        noting, self._unnoted = self._unnoted, []
        shrink = self.trouble is not None

        def delete(cursor: Any) -> None:
            cursor.executemany("DELETE FROM waiting WHERE chunk = ? AND writer = ?", noting)
            cursor.executemany(
                "DELETE FROM chunks WHERE number = ?1"
                " AND NOT EXISTS (SELECT 1 FROM waiting WHERE chunk = ?1)",
                [(number,) for number in {number for number, _ in noting}],
            )
            if shrink or cursor.execute("PRAGMA freelist_count").fetchone()[0] > FREE_PAGES:
                cursor.execute("PRAGMA incremental_vacuum(1024)").fetchall()

        try:
            await self._run(delete)
        except (sqlite3.Error, OSError) as error:
            self._unnoted = noting + self._unnoted
            self.trouble = self.trouble or _explain(error)

    def set_writers(self, writers: Collection[str]) -> Deferred[None]:
        """Change the writers that chunks wait for; what no remaining one lacks is dropped."""
        self._writers = set(writers)
        return Deferred.fromCoroutine(self._forget_writers())

    async def _forget_writers(self) -> None:
        orphans = [c for c in self.chunks.values() if not c.waiting & self._writers]
        await self._drop("writer_removed", orphans)
        for chunk in self.chunks.values():
            chunk.waiting &= self._writers
        names = sorted(self._writers)
        marks = ",".join("?" * len(names))
        forget = f"DELETE FROM waiting WHERE writer NOT IN ({marks})"  # noqa: S608
        try:
            await self._run(lambda cursor: _do(cursor, forget, names))
        except (sqlite3.Error, OSError) as error:
            self.trouble = self.trouble or _explain(error)

    def expire(self, now_s: float) -> Deferred[None]:
        """Drop what has waited for too long."""
        return Deferred.fromCoroutine(self._drop("too_old", self._held.old(now_s)))

    def close(self) -> Deferred[None]:
        """Note what is not yet noted, and close the file."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._closed = True
        self._pause.cancel()
        await self._renewal.run(_nothing)  # let an opening under way end
        if self._pool is not None:
            if self._unnoted:
                await self._note()
            pool, self._pool = self._pool, None
            pool.close()

    async def _drop(self, reason: str, chunks: Sequence[Chunk]) -> None:
        if not chunks:
            return
        self._forget(reason, chunks)
        try:
            await self._run(lambda cursor: _delete(cursor, [c.number for c in chunks]))
        except (sqlite3.Error, OSError):
            self._unnoted += [(c.number, writer) for c in chunks for writer in c.waiting]

    def _forget(self, reason: str, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            if self._held.remove(chunk):
                self.dropped(reason, chunk)

    async def _run(self, interaction: Callable[[Any], T]) -> T:
        """Run a transaction; if the file turns out damaged, once more in a new one.

        Raises `OSError` when the spool is closed, and whatever ``interaction`` raises.
        """
        for last in (False, True):
            if self._pool is None and not last:
                await self._renewal.run(_nothing)  # wait for an opening under way
            if (pool := self._pool) is None:
                raise OSError("the spool is closed")
            try:
                result: T = await pool.runInteraction(interaction)
                return result
            except sqlite3.DatabaseError as error:
                if last or not _is(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                await self._renewal.run(self._renew, pool, str(error))
        raise AssertionError("unreachable")

    async def _renew(self, damaged: Any, why: str) -> None:
        """Set a damaged file aside and begin a new one, unless another call has done so."""
        if self._pool is not damaged:
            return
        self._pool = None
        damaged.close()
        self._set_aside(why)
        self._unnoted = []
        self._taken = {}
        self._forget("damaged", list(self.chunks.values()))
        await self._open()

    def _set_aside(self, why: str) -> None:
        """Rename the file, and SQLite's beside it, so that a new one can be begun."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._reactor.seconds()))
        aside = self._path.with_name(f"{self._path.name}.corrupt-{stamp}")
        for suffix in ("", "-wal", "-shm", "-journal"):
            try:
                os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")
            except FileNotFoundError:
                continue
        self._log.error(
            "Spool {path} is damaged ({why}): set aside as {aside}, a new one is begun;"
            " collectors are asked again for what they still hold",
            path=self._path,
            why=why,
            aside=aside.name,
        )


async def _nothing() -> None:
    """Do nothing, once the lock allows it."""


def _do(cursor: Any, statement: str, values: Sequence[Any]) -> None:
    cursor.execute(statement, values)


def _delete(cursor: Any, numbers: Sequence[int]) -> None:
    cursor.executemany("DELETE FROM waiting WHERE chunk = ?", [(number,) for number in numbers])
    cursor.executemany("DELETE FROM chunks WHERE number = ?", [(number,) for number in numbers])


def _is(error: sqlite3.Error, *codes: int) -> bool:
    """Say whether an error is one of SQLite's primary result codes."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in codes


def _explain(error: Exception) -> str:
    """Say why storing failed, for a person."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    if isinstance(error, sqlite3.Error) and _is(error, sqlite3.SQLITE_FULL):
        return "the disk is full"
    return str(error)
