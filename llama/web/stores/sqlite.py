"""The embedded store: the SQLite file that the scraper writes, asked without holding the reactor.

Every question (`sqlite_questions`, `sqlite_activity`) runs in a thread of `adbapi` with a connection
that can only read, in one snapshot of the file, and is broken off when it takes too long.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from llama.scraper.writers import sqlite_schema as schema
from llama.threads import disconnect
from llama.web.store import (
    Activity,
    History,
    Snapshot,
    StoreError,
    StoreTimeoutError,
    Tags,
    Timeline,
    Window,
)
from llama.web.stores import sqlite_activity
from llama.web.stores import sqlite_questions as questions
from llama.web.stores.sqlite_reader import Reader, SeriesCache

T = TypeVar("T")

#: Steps of SQLite's machine between two looks at the clock: some milliseconds.
_STEPS = 50_000


class SQLiteStore:
    """Reads ``path``; a question may take ``timeout_s``, and ``threads`` run at once."""

    kind = "sqlite"

    def __init__(
        self,
        reactor: Any,
        *,
        path: str,
        timeout_s: float = 20.0,
        threads: int = 3,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._unix_time_s = unix_time_s
        self._path = path
        self._timeout_s = timeout_s
        self._threads = threads
        self._pool: Any = None
        self._closed: Deferred[None] = succeed(None)  # when all that were let go are closed
        self._file: tuple[int, int] | None = None
        self._series = SeriesCache()

    def stop(self) -> Deferred[None]:
        """Break off what is being asked and close the connections."""
        self._close()
        return self._closed

    def _close(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None  # which breaks off its questions
            before = self._closed
            self._closed = disconnect(self._reactor, pool).addCallback(lambda _: before)

    def _opened(self) -> Any:
        """Return the connections to the file that is there now; raises `StoreError`."""
        try:
            stat = os.stat(self._path)
        except OSError as error:
            raise StoreError(
                f"{self._path}: {error.strerror}; is this where the scraper's sqlite writer writes?"
            ) from None
        if self._file != (stat.st_dev, stat.st_ino):
            self._close()  # another file has taken the place of the one that was known
            self._file = stat.st_dev, stat.st_ino
            self._series = SeriesCache()
        if self._pool is None:
            self._pool = adbapi.ConnectionPool(
                "sqlite3",
                f"file:{quote(self._path)}?mode=ro",
                uri=True,
                check_same_thread=False,
                timeout=5.0,
                cp_reactor=self._reactor,
                cp_min=1,
                cp_max=self._threads,
                cp_noisy=False,
                cp_openfun=_prepare,
            )
            self._pool.start()
        return self._pool

    def _ask(self, question: Callable[[Reader], T]) -> Deferred[T]:
        try:
            pool = self._opened()
        except StoreError:
            return fail(Failure())
        series = self._series
        deadline = self._reactor.seconds() + self._timeout_s  # waiting for a thread counts, too
        cancelled = threading.Event()

        def in_thread(connection: Any) -> T:
            started, left = time.monotonic(), deadline - self._reactor.seconds()

            def over() -> bool:
                late = time.monotonic() - started > left
                return late or self._pool is not pool or cancelled.is_set()

            if cancelled.is_set():
                raise StoreError(f"{self._path}: nobody waits for the answer any more")
            connection.set_progress_handler(over, _STEPS)
            connection.execute("BEGIN")
            return question(Reader(connection, series))

        answer: Deferred[T] = Deferred(lambda _: cancelled.set())

        def arrived(found: Any) -> None:
            if not answer.called:
                answer.callback(found)

        pool.runWithConnection(in_thread).addErrback(self._explain).addBoth(arrived)
        return answer

    def _explain(self, failure: Failure) -> Any:
        failure.trap(sqlite3.Error, StoreError)
        if failure.check(StoreError):
            return failure
        if failure.getErrorMessage() == "interrupted":
            raise StoreTimeoutError(
                f"{self._path}: no answer within {self._timeout_s:g} s; ask for less time"
            )
        said = failure.getErrorMessage()
        if getattr(failure.value, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
            said += "; the user of llama-web must be able to read it, and to write in its directory"
        raise StoreError(f"{self._path}: {said}")

    def newest(self) -> Deferred[float | None]:
        """See `llama.web.store.Store`."""
        now_s = self._unix_time_s()
        return self._ask(lambda reader: questions.newest(reader, now_s))

    def resolution_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.resolution_s(reader, start_s))

    def timeline_step_s(self, start_s: float) -> Deferred[float]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.timeline_step_s(reader, start_s))

    def activity(self, window: Window) -> Deferred[Activity]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: sqlite_activity.activity(reader, window))

    def remembered(self, window: Window, speaking: frozenset[str]) -> Deferred[Activity]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: sqlite_activity.remembered(reader, window, speaking))

    def latest(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.latest(reader, window, columns))

    def latest_of(
        self, window: Window, columns: Sequence[str], some: Activity
    ) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.latest_of(reader, window, columns, some))

    def total(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.total(reader, window, columns))

    def baseline(self, window: Window) -> Deferred[Snapshot]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.baseline(reader, window))

    def history(
        self, window: Window, step_s: float, columns: Sequence[str], where: Tags
    ) -> Deferred[History]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.history(reader, window, step_s, columns, where))

    def timeline(self, window: Window, step_s: float, where: Tags) -> Deferred[Timeline]:
        """See `llama.web.store.Store`."""
        return self._ask(lambda reader: questions.timeline(reader, window, step_s, where))


def _prepare(connection: Any) -> None:
    """Look at a file that was just opened; raises `StoreError` if it is no store of ours."""
    name = connection.execute("PRAGMA database_list").fetchone()[2]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != schema.APPLICATION_ID:
        raise StoreError(f"{name}: is no LLAMA store; the scraper's sqlite writer makes one")
    if version != schema.VERSION:
        raise StoreError(f"{name}: is of schema {version}, expected {schema.VERSION}")
    connection.execute("PRAGMA query_only=1")
    connection.execute("PRAGMA cache_size=-65536")
