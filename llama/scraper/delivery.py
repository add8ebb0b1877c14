"""Handing chunks to one writer: newest first, what failed again later, beside what is new.

Two lanes, each with at most one write under way:

- *live*: chunks that were never tried, newest first, joined to writes of a fair size, which is
  halved with every failure, lest it be too much for a slow database, and grows again slowly. While
  this lane fails, the whole writer waits, longer and longer, and then tries with the newest chunk.
- *retry*: chunks whose write failed, newest first, each after a wait of its own. What fails here
  holds up only the retry lane, so one batch that a database chokes on never delays newer ones;
  from its third failure on a chunk is tried alone, so that it takes no others down with it.

A writer knows nothing of the others: a dead one never holds a living one. Nothing is given up
here; the spool's bounds alone decide when a chunk must go.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from llama.http.client import explain
from llama.interfaces import NotPermittedError, NotWrittenError, Point, Refusal
from llama.printable import MOST_TOLD, printable
from llama.reasons import Reasons
from llama.scraper.backoff import NOT_PERMITTED_S, wait_s
from llama.scraper.buffer import Chunk, Spool
from llama.scraper.counts import Counts

#: Seconds that new chunks wait for company, so that small ones are written together.
GATHER_S = 1.0
#: Points of one write: the most, and the least that it is reduced to while writes fail.
MOST_POINTS, LEAST_POINTS = 5000, 500
#: Seconds after which a write that a plugin never ends is given up.
WRITE_TIMEOUT_S = 60.0
#: Failures after which a chunk is tried alone.
ALONE_AFTER = 2


@define(eq=False)
class _Lane:
    """One write at a time, and when the next may start (clock's seconds)."""

    retries: bool
    busy: Deferred[Any] | None = None
    failures: int = 0
    closed_until: float = 0.0


@define
class _Tried:
    """What is known of a chunk whose write failed."""

    chunk: Chunk
    failures: int
    due: float


@define(eq=False)
class Delivery:
    """The queue of one writer. ``clock`` is `IReactorTime`; times are its seconds."""

    _log = Logger()

    writer: Any  # an ITimeSeriesWriter
    _clock: Any
    _spool: Spool
    _counts: Counts
    _draw: random.Random = field(factory=random.Random)
    _gather_s: float = GATHER_S
    opened: bool = False
    trouble: str | None = None  # why the last write of new points failed; None when it did not
    _reasons: Reasons = field(factory=Reasons)  # for it, that the log has named since it began
    newest_ns: int | None = None  # Unix time of the newest point acknowledged
    _fresh: dict[int, Chunk] = field(factory=dict)  # by number, which is the order of taking
    _tried: dict[int, _Tried] = field(factory=dict)
    _due: list[int] = field(factory=list)  # heap of -number: tried, and may be tried again
    _later: list[tuple[float, int]] = field(factory=list)  # heap of due time, number: not yet
    _under_way: dict[int, Chunk] = field(factory=dict)
    _gone: dict[int, str] = field(factory=dict)  # dropped while under way, and why
    _stuck: set[int] = field(factory=set)  # numbers of those that fail while others are taken
    _stuck_reasons: Reasons = field(factory=Reasons)  # for that, which the log has named
    _live: _Lane = field(factory=lambda: _Lane(False))
    _retry: _Lane = field(factory=lambda: _Lane(True))
    _most_points: int = MOST_POINTS
    _worked: bool = False  # the last write of new points went well
    _since: float = 0.0  # when trouble began
    _named: set[str] = field(factory=set)  # refusals that the log has named
    _timer: Any = None
    _running: bool = False

    @property
    def name(self) -> str:
        """The writer's."""
        return str(self.writer.name)

    @property
    def waiting(self) -> tuple[int, int]:
        """How many chunks, and how many points, wait for this writer."""
        chunks = [
            *self._fresh.values(),
            *(tried.chunk for tried in self._tried.values()),
            *self._under_way.values(),
        ]
        return len(chunks), sum(chunk.points for chunk in chunks)

    def start(self, chunks: Iterable[Chunk]) -> None:
        """Begin, with what an earlier run of the process left."""
        self._running = True
        self._counts.begin_writer(self.name)
        now = self._clock.seconds()
        for chunk in chunks:
            self._again(chunk, 0, now)
        self._pump()

    def offer(self, chunks: Iterable[Chunk]) -> None:
        """Take new chunks."""
        for chunk in chunks:
            if (
                self._spool.chunks.get(chunk.number) is chunk
            ):  # else it is gone already, and counted
                self._fresh[chunk.number] = chunk
        if self._live.busy is None and self._live.closed_until <= self._clock.seconds():
            points = sum(chunk.points for chunk in self._fresh.values())
            if points < self._most_points:
                self._live.closed_until = self._clock.seconds() + self._gather_s
        self._pump()

    def forget(self, reason: str, chunk: Chunk) -> None:
        """Let go of a chunk that the spool has dropped before this writer had it, and count it."""
        if chunk.number in self._under_way:
            self._gone[chunk.number] = reason  # unless its write goes well
            return
        self._fresh.pop(chunk.number, None)  # if it was offered yet
        self._tried.pop(chunk.number, None)
        self._no_longer_stuck(chunk)
        self._counts.dropped.labels(self.name, reason).inc(chunk.points)

    def stop(self, grace_s: float) -> Deferred[None]:
        """Start nothing more; fire when what is under way has ended, or was given up."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return Deferred.fromCoroutine(self._end(grace_s))

    async def _end(self, grace_s: float) -> None:
        under_way = [lane.busy for lane in (self._live, self._retry) if lane.busy is not None]
        timers = [self._clock.callLater(grace_s, busy.cancel) for busy in under_way]
        for busy, timer in zip(under_way, timers, strict=True):
            await busy
            if timer.active():
                timer.cancel()
        closing = maybeDeferred(self.writer.close).addTimeout(grace_s, self._clock)
        await closing.addErrback(self._not_closed, grace_s)

    def _not_closed(self, failure: Failure, grace_s: float) -> None:
        if failure.check(DeferredTimeoutError):
            self._log.warn(
                "writer {writer} did not close within {seconds:g} s; what it is still at ends by itself",
                writer=self.name,
                seconds=grace_s,
            )
        else:
            self._log.failure("writer {writer} did not close well", failure, writer=self.name)

    def _pump(self) -> None:
        """Start what may start now, and set the timer for what may start later."""
        if not self._running:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock.seconds()
        later = []
        for lane in (self._live, self._retry):
            if lane.busy is not None:
                continue
            at = self._ready_at(lane)
            if at is None:
                continue
            if at <= now:
                self._begin(lane, self._choose(lane))
            else:
                later.append(at)
        if later and self._running:
            self._timer = self._clock.callLater(max(0.0, min(later) - now), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._pump()

    def _ready_at(self, lane: _Lane) -> float | None:
        """Return when a lane has something to do, or None when it must wait for an event."""
        if not lane.retries:
            return lane.closed_until if self._fresh or not self.opened else None
        if not self.opened:
            return None
        self._promote()
        if not self._due and not self._later:
            return None
        # While new points cannot be written, old ones wait; but with no new ones, they must try.
        closed = max(lane.closed_until, self._live.closed_until if self.trouble else 0.0)
        return closed if self._due else max(self._later[0][0], closed)

    def _again(self, chunk: Chunk, failures: int, due: float) -> None:
        """Let a chunk be tried again once it is due."""
        self._tried[chunk.number] = _Tried(chunk, failures, due)
        heappush(self._later, (due, chunk.number))

    def _promote(self) -> None:
        """Sort out which of the chunks that were tried are due; forget those that are gone."""
        now = self._clock.seconds()
        while self._later and (self._later[0][0] <= now or self._stale(*self._later[0])):
            due, number = heappop(self._later)
            if not self._stale(due, number):
                heappush(self._due, -number)
        while self._due and -self._due[0] not in self._tried:
            heappop(self._due)

    def _stale(self, due: float, number: int) -> bool:
        tried = self._tried.get(number)
        return tried is None or tried.due != due

    def _choose(self, lane: _Lane) -> list[Chunk]:
        """Take the newest chunks that fit into one write out of a lane's queue."""
        chosen: list[Chunk] = []
        points = 0
        if not lane.retries:
            for chunk in reversed(self._fresh.values()):
                points += chunk.points
                if chosen and points > self._most_points:
                    break
                chosen.append(chunk)
            return chosen
        aside: list[int] = []
        while self._due:
            number = -self._due[0]
            tried = self._tried.get(number)
            if tried is None:
                heappop(self._due)
                continue
            alone = tried.failures > ALONE_AFTER
            if alone and chosen:
                aside.append(heappop(self._due))
                continue
            points += tried.chunk.points
            if chosen and points > self._most_points:
                break
            heappop(self._due)
            chosen.append(tried.chunk)
            if alone:
                break
        for entry in aside:
            heappush(self._due, entry)
        return chosen

    def _begin(self, lane: _Lane, chunks: Sequence[Chunk]) -> None:
        failures = {}
        for chunk in chunks:
            tried = self._tried.pop(chunk.number, None)
            self._fresh.pop(chunk.number, None)
            failures[chunk.number] = tried.failures if tried else 0
            self._under_way[chunk.number] = chunk
        lane.busy = Deferred.fromCoroutine(self._attempt(chunks))
        lane.busy.addBoth(self._ended, lane, chunks, failures)

    def _ended(
        self, result: Any, lane: _Lane, chunks: Sequence[Chunk], failures: dict[int, int]
    ) -> None:
        """Sort out what became of the chunks of a write."""
        lane.busy = None
        now = self._clock.seconds()
        failed = isinstance(result, Failure)
        wait = self._went_wrong(lane, result.value) if failed else 0.0
        for chunk in chunks:
            del self._under_way[chunk.number]
            reason = self._gone.pop(chunk.number, None)
            if not failed and chunk.number in result:
                self._no_longer_stuck(chunk)
                continue
            if reason is not None:
                self._counts.dropped.labels(self.name, reason).inc(chunk.points)
            if self._spool.chunks.get(chunk.number) is not chunk:
                self._no_longer_stuck(chunk)
                continue  # nobody has its points any more
            count = failures[chunk.number] + 1
            self._again(chunk, count, now + max(wait, wait_s(count, self._draw)))
            if count > ALONE_AFTER and self._worked and failed:
                self._say_stuck(chunk, count, _why(result.value))
        if not failed:
            self._went_well(lane)
        if self._running and self._timer is None:
            # Not at once: a writer that needs no waiting would nest one call per write.
            self._timer = self._clock.callLater(0, self._on_time)

    def _say_stuck(self, chunk: Chunk, count: int, problem: str) -> None:
        """Say why chunks fail while others are taken: each reason once, until none is left."""
        self._stuck.add(chunk.number)
        if self._stuck_reasons.is_news(problem):
            self._log.warn(
                "writer {writer} takes other points, but some failed {count} times, such as {points} of"
                " {collector}: {problem}; they are kept and tried again",
                writer=self.name,
                points=chunk.points,
                collector=chunk.collector,
                count=count,
                problem=problem,
            )

    def _no_longer_stuck(self, chunk: Chunk) -> None:
        """Say so once no chunk is left that failed while others were taken."""
        self._stuck.discard(chunk.number)
        if not self._stuck and self._stuck_reasons.over():
            self._log.info(
                "writer {writer}: no points wait any more that failed while others were taken",
                writer=self.name,
            )

    async def _attempt(self, chunks: Sequence[Chunk]) -> Collection[int]:
        """Write chunks and have them acknowledged; returns the numbers of those written.

        Raises whatever the writer raises.
        """
        if not self.opened:
            await self._patiently(self.writer.open)
            self.opened = True
        points: list[Point] = []
        refusals: list[Refusal] = []
        written = []
        for chunk in chunks:
            held = await self._spool.read(chunk)
            if held is not None:
                points += held
                written.append(chunk)
        if points:
            # A chunk alone may be more than is to be written at a time by now. It is acknowledged as a
            # whole: should a later part fail, the first ones are written again, which changes nothing.
            most = self._most_points
            for first in range(0, len(points), most):
                part = points[first : first + most]
                refusals += await self._patiently(self.writer.write, part) or ()
            self._count(points, refusals)
            await self._spool.acknowledge(self.name, written)
        return {chunk.number for chunk in written}

    async def _patiently(self, do: Callable[..., Deferred[Any]], *args: Any) -> Any:
        return await maybeDeferred(do, *args).addTimeout(WRITE_TIMEOUT_S, self._clock)

    def _count(self, points: Sequence[Point], refusals: Sequence[Refusal]) -> None:
        self._counts.written.labels(self.name).inc(len(points) - len(refusals))
        newest = max(point.time_ns for point in points)
        self.newest_ns = max(newest, self.newest_ns or newest)
        for refusal in refusals:
            self._counts.dropped.labels(self.name, "refused").inc()
            if refusal.reason not in self._named and len(self._named) < 1000:
                self._named.add(refusal.reason)
                self._log.error(
                    "writer {writer} refuses points, such as {measurement} {tags}: {reason};"
                    " they are let go and counted, which is said once",
                    writer=self.name,
                    measurement=printable(refusal.point.measurement[:MOST_TOLD]),
                    tags=str(dict(refusal.point.tags))[:MOST_TOLD],
                    reason=refusal.reason,
                )

    def _went_well(self, lane: _Lane) -> None:
        lane.failures = 0
        lane.closed_until = self._clock.seconds()
        self._most_points = min(MOST_POINTS, self._most_points + 100)
        self._worked = self._worked or not lane.retries
        if self.trouble is None:
            return
        chunks, points = self.waiting
        self._log.info(
            "writer {writer} writes again, after {seconds:.0f} s; {points} points in {chunks}"
            " chunks wait for it",
            writer=self.name,
            seconds=self._clock.seconds() - self._since,
            points=points,
            chunks=chunks,
        )
        self.trouble = None
        self._reasons.over()
        for each in (self._live, self._retry):
            each.failures = 0
            each.closed_until = self._clock.seconds()

    def _went_wrong(self, lane: _Lane, error: BaseException) -> float:
        """Close a lane for a while; returns for how long, in seconds."""
        self._counts.failures.labels(self.name).inc()
        lane.failures += 1
        self._most_points = max(LEAST_POINTS, self._most_points // 2)
        wait = wait_s(lane.failures, self._draw)
        if isinstance(error, NotPermittedError):
            wait = max(wait, NOT_PERMITTED_S)
        lane.closed_until = self._clock.seconds() + wait
        if lane.retries and self._worked:
            return wait  # new points go through: these are a matter of their own
        self._worked = False
        text = _why(error)
        if self.trouble is None:
            self._since = self._clock.seconds()
        if self._running and self._reasons.is_news(text):
            self._log.error(
                "writer {writer} cannot write: {problem}; its points are kept and tried again",
                writer=self.name,
                problem=text,
            )
        self.trouble = text
        return wait


def _why(error: BaseException) -> str:
    """Say in a few words, for a person, why a write failed: in the writer's own, if it found any."""
    if isinstance(error, NotPermittedError | NotWrittenError):
        return str(error)
    return explain(error, WRITE_TIMEOUT_S)
