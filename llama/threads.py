"""What goes on in a thread cannot be cancelled: giving up waiting for it, and closing after it.

Who writes a SQLite file has one connection and one thread, through `twisted.enterprise.adbapi`: what
it is asked to do is done one after the other, in the order of asking.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier, Thread
from typing import Any, TypeVar

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

T = TypeVar("T")


class DaemonThreads:
    """Threads that nobody waits for when the process ends; there are as many as were busy at once."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._work: SimpleQueue[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = (
            SimpleQueue()
        )
        self._threads = self._busy = 0

    def call(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        """Call ``work`` in one of them; fails as it does, or with `RuntimeError` if none can be had."""
        done: Deferred[T] = Deferred()
        if self._busy == self._threads:
            try:
                Thread(target=self._run, daemon=True).start()
            except RuntimeError:
                self._reactor.callLater(0, done.errback, Failure())
                return done
            self._threads += 1
        self._busy += 1
        self._work.put((done, work, args))
        return done

    def _run(self) -> None:
        while True:
            done, work, args = self._work.get()
            try:
                result = work(*args)
            except BaseException:
                self._reactor.callFromThread(self._end, done.errback, Failure())
            else:
                self._reactor.callFromThread(self._end, done.callback, result)
            del done, work, args

    def _end(self, fire: Callable[[Any], None], result: Any) -> None:
        self._busy -= 1
        fire(result)


def outlasting(begun: Deferred[T]) -> Deferred[T]:
    """Return a Deferred that fires as ``begun`` does; cancelling it leaves ``begun`` alone."""
    waiting: Deferred[T] = Deferred()
    begun.chainDeferred(waiting)
    return waiting


def connect(reactor: Any, path: Path, busy_s: float) -> Any:
    """Return a pool of one connection, which waits ``busy_s`` for locks of other processes."""
    pool = adbapi.ConnectionPool(
        "sqlite3",
        str(path),
        check_same_thread=False,
        timeout=busy_s,
        cp_reactor=reactor,
        cp_min=1,
        cp_max=1,
        cp_noisy=False,
    )
    pool.start()
    return pool


def disconnect(reactor: Any, pool: Any) -> Deferred[None]:
    """Close a pool of connections once its threads have done all that they were asked to, and fire then.

    ``pool.close()`` alone would hold up the reactor for as long. Whoever cancels this no longer
    waits, and the pool is closed all the same.
    """

    def idle(_: Any) -> None:
        if pool.running:  # else the reactor's end was faster
            pool.close()

    idling = Barrier(pool.max)
    threads = [
        deferToThreadPool(reactor, pool.threadpool, _let_go, pool, idling) for _ in range(pool.max)
    ]
    return outlasting(DeferredList(threads, consumeErrors=True).addBoth(idle))


def _let_go(pool: Any, idling: Barrier) -> None:
    """Close the connection, which may sync the disk, in the thread that has it.

    As each waits until all have nothing else to do, no thread does so twice.
    """
    idling.wait()
    connection = pool.connections.get(pool.threadID())
    if connection is not None:
        pool.disconnect(connection)
