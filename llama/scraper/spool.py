"""The spool on disk: what was taken from a collector survives until every database has it.

Here is what is held, what is done when, and what happens when the disk refuses; what stands in the
file, and the statements on it, is in `llama.scraper.spool_file`. They run in one thread, through
`twisted.enterprise.adbapi`.

Points and the cursor that follows them are one transaction, so that a collector is asked again
for exactly what is not here, whatever happens in between. ``synchronous=NORMAL``: killing the
process loses nothing. Losing *power* can take the last transactions back, cursor and points
together: they are then asked for, or written, a second time, which changes nothing. A sync of the
disk for every transaction (FULL) would buy only that this happens less often.

The file is locked for as long as it is open, so two scrapers cannot share one. A damaged file is
set aside and a new one begun; another program's, or another version's, is left alone. Where a file
was removed, or replaced, a new one is begun, or what is there opened. A full disk makes `put` fail
while everything else goes on; so does a file that cannot be opened anew, until it can.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from llama.interfaces import Point
from llama.scraper import spool_file as file
from llama.scraper.buffer import (
    Batch,
    Chunk,
    Held,
    Holder,
    NotStoredError,
    Taken,
    expand,
    new_chunk,
    pack_all,
)
from llama.scraper.whereabouts import MovedError, Whereabouts
from llama.threads import connect, disconnect

T = TypeVar("T")

#: Seconds to wait for the lock of another process.
BUSY_S = 1.0
#: Seconds between two attempts to open a file that cannot be opened.
OPEN_RETRY_S = 5.0


class DiskSpool(Holder):
    """A spool in a SQLite file. ``reactor`` needs `IReactorThreads` and time.

    How long chunks wait is counted by the reactor's time, unless ``seconds`` is another clock.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        max_octets: int,
        max_age_s: float,
        unix_time_s: Callable[[], float] = time.time,
        seconds: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(Held(max_octets, max_age_s, seconds or reactor.seconds))
        self._reactor = reactor
        self._unix_time_s = unix_time_s
        self._path = Path(path)
        self._pool: Any = None
        self._whereabouts: Any = None  # of the file that is, or was, open; if that went well
        self._unnoted: list[tuple[int, str]] = []  # acknowledged, but not yet so on disk
        self._renewal = DeferredLock()  # held while the file is being opened
        self._renewals = 0
        self._renewed = ""  # why it was the last time
        self._not_open: str | None = None  # why the file cannot be opened, while it is being tried
        self._waiting: list[Deferred[None]] = []  # for an opening to end well, or to fail once
        # Held while chunks are added, or the writers that they wait for change.
        self._adding = DeferredLock()
        self._closed = False
        self._pause: Deferred[None] = succeed(None)

    def open(self, writers: Collection[str]) -> Deferred[None]:
        """Open or create the file and read what it holds.

        Where it cannot be opened (another process has it, no permission, a full disk), the reason
        is said, and is the spool's trouble, and it is tried again until it can.
        """
        self._writers = set(writers)

        async def opened() -> None:
            await self._renewal.run(self._open)
            await self._forget_writers()

        return Deferred.fromCoroutine(opened())

    async def _open(self, damage: str | None = None) -> None:
        """Open the file; one that is damaged, and still there when it can be, is set aside first."""
        try:
            await self._open_until_it_can(damage)
        finally:
            self._tell_waiting()

    async def _open_until_it_can(self, damage: str | None) -> None:
        said = ""
        while not self._is_closed():
            try:
                if damage is not None:
                    if self._whereabouts is None or self._whereabouts.is_there():
                        self._set_aside(damage)
                    damage = None
                pool = self._connect()
            except OSError as error:
                problem = str(error)
                if damage is not None:
                    problem = f"damaged ({damage}), and it cannot be set aside: {error.strerror}"
                    if self._whereabouts is None:
                        damage = None  # look again: it may be another one by then
            else:
                try:
                    self._taken, chunks, whereabouts = await pool.runWithConnection(self._load)
                    break
                except file.DamagedError as error:
                    await disconnect(self._reactor, pool)
                    damage, self._whereabouts = str(error), None
                    continue
                except Exception as error:
                    await disconnect(self._reactor, pool)
                    problem = file.explain(error, self._path)
                    expected = isinstance(error, sqlite3.Error | OSError | file.ForeignFileError)
                    if not expected and problem != said:
                        self._log.failure("a fault in the scraper itself")
            if self._is_closed():
                return
            self._not_open = self.trouble = f"it cannot be opened: {problem}"
            if problem != said:
                said = problem
                self._log.error(
                    "spool {path} cannot be opened: {problem}; trying again every {wait:g} s",
                    path=self._path,
                    problem=problem,
                    wait=OPEN_RETRY_S,
                )
            self._tell_waiting()
            self._pause = deferLater(self._reactor, OPEN_RETRY_S)
            with suppress(CancelledError):
                await self._pause
        else:
            return
        if self._is_closed():
            await disconnect(self._reactor, pool)
            return
        now_s = self._unix_time_s()
        for chunk in chunks:
            self._held.add(chunk, age_s=now_s - chunk.taken_s)
            self._last = max(self._last, chunk.number)
        self._pool, self._whereabouts = pool, whereabouts
        self._not_open = self.trouble = None
        if said:
            self._log.info("spool {path} is open", path=self._path)

    def _load(self, db: Any) -> tuple[dict[str, Taken], list[Chunk], Whereabouts]:
        """Read the file and say which it is; in the spool's thread."""
        taken, chunks = file.load(db, self._path, self._last)
        return taken, chunks, Whereabouts(self._path)

    def _is_closed(self) -> bool:
        return self._closed  # which can change with every await

    def _connect(self) -> Any:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return connect(self._reactor, self._path, BUSY_S)

    def pack(self, points: Sequence[Point], ready: bool = True) -> Deferred[Sequence[Batch]]:
        """Make batches of points, in the spool's thread."""
        return Deferred.fromCoroutine(self._pack(points, ready))

    async def _pack(self, points: Sequence[Point], ready: bool) -> Sequence[Batch]:
        try:
            return await self._run(lambda _: pack_all(points, ready))
        except (sqlite3.Error, OSError) as error:
            raise NotStoredError(file.explain(error, self._path)) from None

    def put(
        self, collector: str, taken: Taken, batches: Sequence[Batch], now_s: float
    ) -> Deferred[Sequence[Chunk]]:
        """Keep points and how far their collector has been read, in one transaction."""
        return self._adding.run(self._put, collector, taken, batches, now_s, self._renewals)

    async def _put(
        self, collector: str, taken: Taken, batches: Sequence[Batch], now_s: float, renewals: int
    ) -> Sequence[Chunk]:
        octets = self._require_room(batches)
        leaving = self._held.excess(collector, octets)
        new = [new_chunk(collector, batch, now_s, self._writers) for batch in batches]

        def insert(cursor: Any) -> None:
            if self._renewals != renewals:
                return
            self._whereabouts.see(cursor)
            file.check_room(self._path, octets)
            file.delete(cursor, [chunk.number for chunk in leaving])
            file.insert(cursor, new, batches)
            file.set_taken(cursor, collector, taken)

        try:
            await self._run(insert)
        except (sqlite3.Error, OSError) as error:
            self.trouble = file.explain(error, self._path)
            raise NotStoredError(self.trouble) from None
        if self._renewals != renewals:
            # These points follow on what is lost. Their collector is asked for all that it holds.
            raise NotStoredError(f"{self._renewed}, and a new one is begun")
        self.trouble = None
        self._forget("full", leaving)
        for chunk, batch in zip(new, batches, strict=True):
            self._held.add(chunk, batch.points)
            self._last = max(self._last, chunk.number)
        self._taken[collector] = taken
        return new

    def read(self, chunk: Chunk) -> Deferred[Sequence[Point] | None]:
        """Fire with a chunk's points; a damaged chunk is dropped."""
        if (points := self._held.ready(chunk)) is not None:
            return succeed(points)
        return Deferred.fromCoroutine(self._read(chunk))

    async def _read(self, chunk: Chunk) -> Sequence[Point] | None:
        def select(cursor: Any) -> list[Point] | None:
            payload = file.payload(cursor, chunk.number)
            return None if payload is None else expand(payload)

        try:
            return await self._run(self._here(select))
        except OSError:
            if self.chunks.get(chunk.number) is chunk:
                raise
            return None  # what it was in is lost, and no other can be opened
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
        renewals = self._renewals
        try:
            await self._run(self._here(lambda cursor: file.acknowledge(cursor, noting, shrink)))
        except BaseException as error:
            self._note_later(noting, renewals)
            if not isinstance(error, (sqlite3.Error, OSError)):
                raise
            self.trouble = self.trouble or file.explain(error, self._path)

    def _note_later(self, pairs: Iterable[tuple[int, str]], renewals: int) -> None:
        """Have what could not be noted be noted with the next acknowledgement.

        ``pairs`` are numbers of chunks in the file that there was after so many ``renewals``, and
        writers that they wait for no more. In another file those numbers are other chunks'.
        """
        if self._renewals == renewals:
            self._unnoted += pairs

    def set_writers(self, writers: Collection[str]) -> Deferred[None]:
        """Change the writers that chunks wait for; what no remaining one lacks is dropped."""
        self._writers = set(writers)
        return Deferred.fromCoroutine(self._forget_writers())

    async def _forget_writers(self) -> None:
        await self._adding.run(self._keep_writers)

    async def _keep_writers(self) -> None:
        """Have chunks wait for no writer that is gone: in memory at once, then on disk."""
        writers, renewals = set(self._writers), self._renewals
        orphans, gone = [], []
        for chunk in self.chunks.values():
            if chunk.waiting & writers:
                gone += [(chunk.number, writer) for writer in chunk.waiting - writers]
                chunk.waiting &= writers
            else:
                orphans.append(chunk)
        await self._drop("writer_removed", orphans)
        try:
            await self._run(lambda cursor: file.keep_writers(cursor, writers))
        except (sqlite3.Error, OSError) as error:
            self._note_later(gone, renewals)
            self.trouble = self.trouble or file.explain(error, self._path)

    def expire(self) -> Deferred[None]:
        """Drop what has waited for too long."""
        return Deferred.fromCoroutine(self._drop("too_old", self._held.old()))

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
            await disconnect(self._reactor, pool)

    async def _drop(self, reason: str, chunks: Sequence[Chunk]) -> None:
        if not chunks:
            return
        self._forget(reason, chunks)
        renewals = self._renewals
        try:
            numbers = [chunk.number for chunk in chunks]
            await self._run(self._here(lambda cursor: file.delete(cursor, numbers)))
        except (sqlite3.Error, OSError):
            waiting = ((chunk.number, writer) for chunk in chunks for writer in chunk.waiting)
            self._note_later(waiting, renewals)

    def _forget(self, reason: str, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            if self._held.remove(chunk):
                self.dropped(reason, chunk)

    def _here(self, do: Callable[[Any], T]) -> Callable[[Any], T | None]:
        """Return a transaction that does nothing in another file, which has numbers of its own."""
        renewals = self._renewals
        return lambda cursor: do(cursor) if self._renewals == renewals else None

    async def _run(self, interaction: Callable[[Any], T]) -> T:
        """Run a transaction; if the file turns out damaged or moved, once more in a new one.

        Raises `OSError` when the spool is closed or cannot be opened at present, and whatever
        ``interaction`` raises.
        """
        for last in (False, True):
            await self._settled()
            if (pool := self._pool) is None:
                raise OSError(self._not_open or "the spool is closed")
            try:
                result: T = await pool.runInteraction(interaction)
                return result
            except (sqlite3.DatabaseError, MovedError) as error:
                if last or not (isinstance(error, MovedError) or file.is_damage(error)):
                    raise
                # Whoever gives up waiting for this, all others need it.
                self._renewal.run(self._renew, pool, error).addErrback(self._not_renewed)
        raise AssertionError("unreachable")

    def _not_renewed(self, failure: Failure) -> None:
        self._not_open = self.trouble = "it cannot be opened: a fault in the scraper itself"
        self._log.failure("a fault in the scraper itself", failure)

    async def _settled(self) -> None:
        """Wait for an opening under way, unless it has failed: who knows how long it is tried."""
        if self._pool is None and self._renewal.locked and self._not_open is None:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting

    def _tell_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def _renew(self, lost: Any, error: Exception) -> None:
        """Leave a damaged file, or one that is not there, for a new one, unless it is done."""
        if self._pool is not lost:
            return
        self._pool = None
        self._renewals += 1
        self._unnoted = []
        self._taken = {}
        self._forget("damaged", list(self.chunks.values()))
        try:  # else what the old one has beside it would be taken for that of another in its place
            await lost.runWithConnection(self._whereabouts.see)
        except MovedError as gone:
            error = gone
        except (sqlite3.Error, OSError):
            pass  # it is damaged
        await disconnect(self._reactor, lost)
        moved = isinstance(error, MovedError)
        self._renewed = "its file was removed or replaced" if moved else "it was damaged"
        if moved:
            self._log.error(
                "spool: {problem} while it was in use: what waited in it is given up, and it is"
                " opened anew; collectors are asked again for what they still hold",
                problem=str(error),
            )
        await self._open(None if moved else str(error))
        if self.chunks:  # of a file that others may have written, for writers of theirs
            keeping = Deferred.fromCoroutine(self._keep_writers())
            self.found(list(self.chunks.values()))
            await keeping

    def _set_aside(self, why: str) -> None:
        """Rename a damaged file, so that a new one can be begun, and say so."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._unix_time_s()))
        aside = file.set_aside(self._path, stamp)
        self._log.error(
            "spool {path} is damaged ({why}): set aside as {aside}, a new one is begun;"
            " collectors are asked again for what they still hold",
            path=self._path,
            why=why,
            aside=aside,
        )


async def _nothing() -> None:
    """Do nothing, once the lock allows it."""
