"""A body that is the same for everybody until the next interval closes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from llama.collector.answers.packed import Packed
from llama.collector.slices import Job, Slices

_log = Logger()


class CachedBody:
    """Is made anew at every close while somebody wants it, and let go when nobody does.

    Whoever asks gets the newest that is finished, or, when there is none, the one that is then
    made. ``make`` starts a job that makes it.
    """

    #: After so many intervals without a request it is not made any more, until the next request.
    patience = 10

    def __init__(self, slices: Slices, make: Callable[[], Job[Packed]]) -> None:
        self._slices = slices
        self._make = make
        self._body: Packed | None = None
        self._unasked = self.patience
        self._queued = False
        self._running: Deferred[None] | None = None
        self._waiting: list[Deferred[Packed]] = []

    def closed(self) -> None:
        """Note that an interval has closed."""
        self._unasked += 1
        if self._unasked <= self.patience:
            self._start()
        else:
            self._body = None

    def get(self) -> Deferred[Packed]:
        """Return the newest finished body, or the one being made."""
        self._unasked = 0
        if self._body is not None:
            return succeed(self._body)
        waiting: Deferred[Packed] = Deferred(self._leave)
        self._waiting.append(waiting)
        self._slices.hurried += 1
        if self._running is None:
            self._start()
        return waiting

    def _start(self) -> None:
        if not self._queued:  # a job that is queued will see what has just closed
            self._queued = True
            self._running = self._slices.background(self._job())
            self._running.addErrback(self._failed)

    def _job(self) -> Job[None]:
        self._queued = False
        body = yield from self._make()
        self._body = body
        if not self._queued:
            self._running = None
        for waiting in self._leaving():
            waiting.callback(body)

    def _failed(self, failure: Failure) -> None:
        self._running, self._queued = None, False
        for waiting in self._leaving():
            waiting.errback(failure)
        if not failure.check(CancelledError):
            _log.failure("An answer could not be encoded", failure)

    def _leaving(self) -> list[Deferred[Packed]]:
        waiting, self._waiting = self._waiting, []
        self._slices.hurried -= len(waiting)
        return waiting

    def _leave(self, waiting: Deferred[Any]) -> None:
        self._waiting.remove(waiting)
        self._slices.hurried -= 1
