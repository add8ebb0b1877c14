"""Long work done between the reactor's turns, in slices so short that no probe waits for one.

A job is a generator. It works on some rows, yields, and is continued a few milliseconds later. How
many rows a slice may have is found by measuring: a `Pace` remembers, for one kind of work, how many
fit into a slice. A thread would not do: it takes the interpreter's lock for much longer at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")
MILLISECOND = 0.001


class Pace:
    """How many rows of one kind of work fit into a slice."""

    #: What a slice should take: half of what it may, since rows differ and processors stall.
    aim_s = 1 * MILLISECOND
    most = 4096

    def __init__(self, rows: int = 16) -> None:
        self.rows = rows
        self._did = rows

    def slices(self, count: int) -> Iterator[slice]:
        """Yield all of ``count`` rows by slices, each as long as fits by then.

        A job yields this pace after each.
        """
        start = 0
        while start < count:
            part = slice(start, min(count, start + self.rows))
            self._did = part.stop - start
            yield part
            start = part.stop

    def took(self, seconds: float) -> None:
        """Learn from a slice. A slow one at most halves the next, a fast one adds half.

        A short slice, the last of a job, cannot show that more would fit.
        """
        factor = min(1.5, max(0.5, self.aim_s / max(seconds, 1e-9)))
        if self._did >= self.rows or factor < 1.0:
            self.rows = min(self.most, max(1, int(self.rows * factor + 0.5)))


#: A job: it yields the `Pace` it has just used for a slice, or None for one of a fixed length.
Job = Generator[Pace | None, None, T]


def at_once(job: Job[T]) -> T:
    """Do a job to its end, for who has nothing else to do, and return what it gives."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            result: T = end.value
            return result


class _Task(Generic[T]):
    """A job that was handed in."""

    def __init__(self, job: Job[T], done: Callable[[_Task[T]], None]) -> None:
        self.job = job
        self._done = done
        self.result: Deferred[T] = Deferred(self._cancel)

    def step(self) -> bool:
        """Do a slice; return whether the job goes on."""
        started = time.perf_counter()
        try:
            pace = next(self.job)
        except StopIteration as end:
            self._done(self)
            self.result.callback(end.value)
            return False
        except Exception:
            self._done(self)
            self.result.errback()
            return False
        if pace is not None:
            pace.took(time.perf_counter() - started)
        return True

    def _cancel(self, _result: Deferred[T]) -> None:
        self._done(self)
        self.job.close()


class Slices:
    """Does jobs, one slice at a time.

    Two lanes take turns: what must be done in any case (`background`), in the order it came, and
    what somebody waits for (`asked`). With somebody waiting the pause between slices is short.
    """

    #: Between slices: an eighth of a core is enough for a background that has the whole interval,
    #: and a third for somebody who waits.
    pause_s = 8 * MILLISECOND
    short_pause_s = 2 * MILLISECOND

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._background: deque[_Task[Any]] = deque()
        self._asked: deque[_Task[Any]] = deque()
        self._call: Any = None
        self._asked_turn = False
        self.hurried = 0  # who waits for background work adds one here for as long
        self.longest_s = 0.0  # the longest slice since somebody last took it (`take_longest_s`)

    def background(self, job: Job[T]) -> Deferred[T]:
        """Do a job after those that came before; the Deferred fires with what it returns."""
        return self._add(self._background, job)

    def asked(self, job: Job[T]) -> Deferred[T]:
        """Do a job that somebody waits for. Cancelling the Deferred stops it."""
        return self._add(self._asked, job)

    @property
    def waiting(self) -> int:
        """How many jobs somebody waits for."""
        return len(self._asked)

    def take_longest_s(self) -> float:
        """Return the longest slice, in seconds, since this was last called."""
        longest, self.longest_s = self.longest_s, 0.0
        return longest

    def stop(self) -> None:
        """Drop all jobs."""
        for task in [*self._background, *self._asked]:
            task.result.addErrback(lambda _: None)
            task.result.cancel()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _add(self, lane: deque[_Task[Any]], job: Job[T]) -> Deferred[T]:
        task = _Task(job, lane.remove)
        lane.append(task)
        if self._call is None:
            self._call = self._clock.callLater(0, self._turn)
        return task.result

    def _turn(self) -> None:
        self._call = None
        self._asked_turn = not self._asked_turn
        lanes = (
            (self._asked, self._background) if self._asked_turn else (self._background, self._asked)
        )
        lane = lanes[0] or lanes[1]
        if lane:
            started = time.perf_counter()
            lane[0].step()
            self.longest_s = max(self.longest_s, time.perf_counter() - started)
        if self._call is None and (self._background or self._asked):
            hurry = self._asked or self.hurried
            self._call = self._clock.callLater(
                self.short_pause_s if hurry else self.pause_s, self._turn
            )
