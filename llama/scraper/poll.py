"""Asking the collectors: each on its own clock, none held up by another.

Every collector has a `LoopingCall` with a phase of its own. It is asked for what it closed after
the cursor that was last spooled, so nothing is missed and nothing lost when either side was away.
It is asked for a few intervals at a time, which are safe once they are here: so a backlog comes
through the narrowest link, piece by piece. Collectors that do not answer, or never did, wait for each
other in a lane of their own, and so never hold up those that do. A place in a lane is for one question,
and for as long as a collector may be silent: an answer that takes longer, and keeps coming, goes on
beside the lane and holds up nobody. In the lane of those that do not answer it is for much less: where
hundreds of them are dead, each of the others among them would be asked too seldom to lose nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from llama.http.client import (
    Reply,
    TooLargeError,
    UnusableError,
    authorization,
    explain,
    request,
)
from llama.interfaces import Point
from llama.scraper.buffer import (
    READY_POINTS,
    Batch,
    Chunk,
    LargerThanSpoolError,
    NotStoredError,
    Spool,
    Taken,
)
from llama.scraper.counts import Counts
from llama.scraper.headers import read_headers
from llama.scraper.lane import Lane, Place
from llama.scraper.names import Names
from llama.scraper.phase import Phase
from llama.scraper.points import BadAnswerError, not_yet_taken, portions, read_answer
from llama.scraper.remarks import Remarks

#: Octets of one answer, unpacked. 10,000 pairs are about 9 MB for each interval.
MAX_ANSWER = 512 * 1024 * 1024
#: Closed intervals that one question asks for; after one that failed a single one, until there are
#: no more.
MOST_INTERVALS = 4
#: Requests that one turn may take to catch up.
MAX_REQUESTS = 100
#: Seconds that an answer with a single interval may take, as long as more of it comes. One with
#: several may take an interval of the scraper: then less is asked for, before too much is forgotten.
LONGEST_ANSWER_S = 600.0
#: Seconds without a new point after which a collector without cursors is said to be stuck; never
#: less than ten intervals.
STALE_S = 900.0
#: Seconds between attempts to take something while the spool cannot.
SPOOL_RETRY_S = 5.0
#: Part of the timeout for which a collector that does not answer holds its place.
DOUBTFUL_PART = 20
#: So many of those are asked at once, times the concurrency: each may have a long answer after all.
MOST_DOUBTFUL = 6
_GOLDEN = 0.6180339887498949  # its multiples, modulo one, spread evenly however many there are


class _NoAnswerError(Exception):
    """A collector did not answer. The text says why."""


class _StaleError(Exception):
    """A collector answers with nothing new. The text says for how long."""


class Poller:
    """Asks any number of collectors. ``taken`` is called with the chunks that were spooled.

    ``clock`` is the reactor; what is stamped, and compared with stamps, is of ``unix_time_s``.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        agent: Any,
        spool: Spool,
        counts: Counts,
        taken: Callable[[Sequence[Chunk]], None],
        *,
        interval_s: float,
        timeout_s: float,
        concurrency: int,
        token: str | None = None,
        max_answer: int = MAX_ANSWER,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.unix_time_s = unix_time_s
        self.agent = agent
        self.spool = spool
        self.counts = counts
        self.taken = taken
        self.interval_s = interval_s
        self.timeout_s = timeout_s
        self.max_answer = max_answer
        self.headers = authorization(token)
        self.collectors: dict[str, CollectorPoll] = {}
        self.sound = Lane(clock, concurrency, timeout_s)
        self.doubtful = Lane(
            clock, max(1, concurrency // 4), timeout_s / DOUBTFUL_PART, MOST_DOUBTFUL * concurrency
        )
        self.names = Names()
        self._leaving: list[Deferred[None]] = []  # the ends of those that are asked no more
        self._phase = random.random()
        self._retry_spool_at = 0.0
        self._said_full = False

    def set_collectors(self, urls: Iterable[str]) -> None:
        """Ask exactly these collectors from now on; those asked already go on undisturbed."""
        wanted = dict.fromkeys(urls)
        self._leaving = [ending for ending in self._leaving if not ending.called]
        leaving = [url for url in self.collectors if url not in wanted]
        if leaving:
            ends = [self.collectors.pop(url).stop() for url in leaving]
            self._leaving.append(gatherResults(ends).addCallback(self._have_left, leaving))
        for url in leaving:
            self.names.forget(url)
        for url in wanted:
            if url not in self.collectors:
                self._phase = (self._phase + _GOLDEN) % 1.0
                self.collectors[url] = CollectorPoll(url, self, self._phase * self.interval_s)
                self.collectors[url].start()

    def _have_left(self, _: object, urls: Sequence[str]) -> None:
        """Show no more of collectors that are asked no more, unless they are again."""
        self.counts.end_collectors({*urls} - self.collectors.keys())

    async def stop(self) -> None:
        """Ask no more; returns when nothing is under way."""
        ending = [collector.stop() for collector in self.collectors.values()]
        for ended in [*ending, *self._leaving]:
            await ended
        self.collectors = {}

    def may_take(self) -> bool:
        """Say whether it makes sense to ask for more: seldom, while the spool cannot take it."""
        if self.spool.trouble is None:
            if self._said_full:
                self._said_full = False
                self._log.info("the spool takes points again")
            return True
        now = self.clock.seconds()
        if now < self._retry_spool_at:
            return False
        self._retry_spool_at = now + SPOOL_RETRY_S
        return True

    def not_stored(self, problem: str) -> None:
        """Say, once, that nothing can be taken at present."""
        self._retry_spool_at = self.clock.seconds() + SPOOL_RETRY_S
        if not self._said_full:
            self._said_full = True
            self._log.error(
                "the spool cannot take points: {problem}; they stay with their collectors,"
                " which are asked again as soon as it can",
                problem=problem,
            )


class CollectorPoll:
    """Asks one collector, again and again. ``phase_s`` is when within the interval."""

    _log = Logger()

    def __init__(self, url: str, poller: Poller, phase_s: float) -> None:
        self.url = url
        self.trouble: str | None = None  # why the last question failed
        self._heard = False  # it has answered
        self._failing = ""  # in which way: another way is said anew, other words are not
        self.plain = False  # it knows no cursors
        self._poller = poller
        self._phase = Phase(poller.interval_s, phase_s)
        self._call = LoopingCall.withCount(self._turn)
        self._call.clock = poller.clock
        self._first: Any = None
        self._under_way: Deferred[Any] = succeed(None)
        self._asking: Deferred[Any] = succeed(None)
        self._stopped = False
        self._most = MOST_INTERVALS  # to ask for at one time
        self._newest_only = False  # the last answer was too large: ask for less
        self._ahead = False  # its newest point lies in the future, which was said
        self._last_ns: frozenset[int] = frozenset()  # times in its last answer, without cursors
        self._new_at: float | None = None  # when something new last came, or the first answer
        self._remarks = Remarks(url, poller.counts)
        self._since = 0.0

    @property
    def lag_s(self) -> float | None:
        """Age of the newest point taken from it, in seconds; None before the first.

        Less than nothing, when a clock is or was wrong.
        """
        newest_ns = self._poller.spool.taken(self.url).newest_ns
        return None if newest_ns is None else self._poller.unix_time_s() - newest_ns / 1e9

    def start(self) -> None:
        """Begin at the next moment that has the phase."""
        self._poller.counts.begin_collector(self.url)
        wait_s = self._phase.wait_s(self._poller.unix_time_s())
        self._first = self._poller.clock.callLater(
            wait_s, self._call.start, self._poller.interval_s
        )

    def stop(self) -> Deferred[None]:
        """Ask no more, and fire when the spool has what is already here."""
        self._stopped = True
        if self._first is not None and self._first.active():
            self._first.cancel()
        if self._call.running:
            self._call.stop()
        self._asking.cancel()
        return Deferred.fromCoroutine(self._ended())

    async def _ended(self) -> None:
        done: Deferred[None] = Deferred()
        self._under_way.addBoth(lambda _: done.callback(None))
        await done

    def _turn(self, count: int) -> Deferred[None]:
        """Take one turn; the `LoopingCall` waits for it, and counts what it misses meanwhile."""
        if count > 1:
            self._count("skipped", count - 1)
        self._phase.keep(self._poller.unix_time_s())
        self._under_way = Deferred.fromCoroutine(self._ask_all())
        return self._under_way

    def _count(self, result: str, times: int = 1) -> None:
        self._poller.counts.polls.labels(self.url, result).inc(times)

    async def _ask_all(self) -> None:
        """Ask until there is no more to be had; whatever goes wrong is said, and ends the turn."""
        try:
            for _ in range(MAX_REQUESTS):
                if not await self._ask_in_lane():
                    break
        except NotStoredError as error:
            self._count("spool_full")
            self._poller.not_stored(str(error))
            return
        except (TooLargeError, LargerThanSpoolError) as error:
            alone = self._most == 1
            self._newest_only = alone and not self._newest_only and not self.plain
            self._failed("oversized", f"its answer is too large: {error}")
        except BadAnswerError as error:
            self._failed("garbage", str(error))
        except _StaleError as error:
            self._failed("stale", str(error))
        except _NoAnswerError as error:
            if not self._stopped:
                self._failed("no_answer", str(error))
        except Exception as error:
            self._failed("error", f"{type(error).__name__}: {error}")
            self._log.failure("a fault in the scraper itself")

    async def _ask_in_lane(self) -> bool:
        """Ask once, when it is this collector's turn; says whether to ask again."""
        sound = self._heard and self.trouble is None
        lane = self._poller.sound if sound else self._poller.doubtful
        place = await lane.enter()
        try:
            if self._stopped:
                return False
            if not self._poller.may_take():
                self._count("spool_full")
                return False
            more = await self._ask(place)
        finally:
            place.leave()
        self._answered(more)
        return more and not self._stopped

    def _answered(self, more: bool) -> None:
        """End what trouble there was; less is asked for at a time until there is no ``more``."""
        self._count("ok")
        self._heard = True
        if self.trouble is not None:
            self.trouble = None
            self._log.info(
                "collector {url} answers again, after {seconds:.0f} s",
                url=self.url,
                seconds=self._poller.clock.seconds() - self._since,
            )
        if not more:
            self._most = MOST_INTERVALS

    def _failed(self, result: str, problem: str) -> None:
        self._count(result)
        if self.trouble is None:
            self._since = self._poller.clock.seconds()
        if self._failing != result or self.trouble is None:
            refused = problem == "connection refused"
            hint = " (does it run, and listen there? api.bind, --api)" if refused else ""
            self._log.warn(
                "collector {url}: {problem}; asked again every {interval:g} s",
                url=self.url,
                problem=problem + hint,
                interval=self._poller.interval_s,
            )
        self.trouble = problem
        self._failing = result
        self._most = 1

    async def _ask(self, place: Place) -> bool:
        """Ask once and spool what comes; says whether to ask again at once."""
        taken = self._known()
        newest_only = self.plain or self._newest_only
        since = quote(taken.cursor or "", safe="")
        reply = await self._get("" if newest_only else f"?since={since}&limit={self._most}")
        place.keep()  # else answers without number could wait for a disk that is slow
        if reply.status != 200:
            raise BadAnswerError(f"HTTP {reply.status}: {reply.excerpt() or 'no reason given'}")
        said = read_headers(reply)
        for name in said.oddities:
            self._remarks.once(f"its header {name} is no number, or several, and is not believed")
        cursor = said.cursor
        if cursor is None:
            self.plain = True
            self._remarks.once("it gives no Llama-Cursor: only its newest interval can be taken")
        elif self.plain:  # it has learnt about cursors: ask for all that it holds
            self.plain = False
            return True
        batches, times = await self._read(reply.body, taken)
        cursor = taken.cursor if cursor is None else cursor
        now = self._poller.clock.seconds()
        if batches or self._new_at is None:
            self._new_at = now
        if not batches and cursor == taken.cursor:
            self._newest_only = False
            self._last_ns = times
            self._see_whether_stuck(now - self._new_at)
            return False
        if not await self._put(taken, cursor, batches):
            return True
        self._last_ns = times
        self._remarks.missed(said.missed)
        if self._newest_only:
            self._newest_only = False
            self._remarks.passed_over()
        return cursor != taken.cursor and said.more

    def _see_whether_stuck(self, stale_s: float) -> None:
        """Raise `_StaleError` after too long without a new point, where no cursor tells of none."""
        if self.plain and stale_s > max(STALE_S, 10 * self._poller.interval_s):
            raise _StaleError(f"nothing new for {stale_s:.0f} s: see whether it still measures")

    async def _put(self, taken: Taken, cursor: str | None, batches: Sequence[Batch]) -> bool:
        """Spool what came after ``taken``; says no if the spool was begun anew meanwhile."""
        poller = self._poller
        newest = max((batch.newest_ns for batch in batches), default=0)
        if not (self._ahead and batches):  # else what comes now may well be older
            newest = max(newest, taken.newest_ns or 0)
        if poller.spool.taken(self.url) != taken:
            return False  # this follows on what it lost
        reached = Taken(cursor, newest or None)
        chunks = await poller.spool.put(self.url, reached, batches, poller.unix_time_s())
        poller.taken(chunks)  # first of all: what is in the spool and offered to nobody is stranded
        poller.counts.taken.labels(self.url).inc(sum(batch.count for batch in batches))
        return True

    async def _get(self, query: str) -> Reply:
        """Return what the collector answers.

        Raises `TooLargeError`, `BadAnswerError` or `_NoAnswerError`.
        """
        poller = self._poller
        longest_s = LONGEST_ANSWER_S if self._most == 1 else poller.interval_s
        asking = Deferred.fromCoroutine(
            request(
                poller.agent,
                poller.clock,
                "GET",
                f"{self.url}/influxdata{query}",
                timeout_s=poller.timeout_s,
                longest_s=max(longest_s, poller.timeout_s),
                max_octets=poller.max_answer,
                headers=poller.headers,
            )
        )
        self._asking = asking
        try:
            return await asking
        except TooLargeError:
            raise
        except UnusableError as error:
            raise BadAnswerError(str(error)) from None
        except Exception as error:
            raise _NoAnswerError(explain(error, poller.timeout_s)) from None

    def _known(self) -> Taken:
        """Return how far it has been read; says so when that is in the future.

        A time more than an interval ahead of ours is no measure: what comes next may well be older
        and yet new.
        """
        taken = self._poller.spool.taken(self.url)
        lag_s = self.lag_s
        ahead = lag_s is not None and lag_s < -self._poller.interval_s
        if lag_s is not None and ahead and not self._ahead:
            self._log.warn(
                "collector {url}: its newest point lies {seconds:.0f} s in the future: its clock,"
                " or that of this host, is or was wrong; its points are taken all the same",
                url=self.url,
                seconds=-lag_s,
            )
        self._ahead = ahead
        return taken

    async def _read(self, body: bytes, taken: Taken) -> tuple[list[Batch], frozenset[int]]:
        """Return what an answer holds, ready to be put; others get their turn in between.

        Of a collector without cursors, also the times (Unix ns) of all points in the answer.
        """
        scrape_ns = self._phase.slot_ns(self._poller.unix_time_s())
        batches: list[Batch] = []
        times: set[int] = set()
        for portion in portions(body):
            answer = read_answer(portion, scrape_ns)
            self._remarks.odd(answer)
            points: Sequence[Point] = answer.points
            if self.url in self._poller.collectors:
                self._poller.names.hear(self.url, points)
            if self.plain:
                times.update(point.time_ns for point in points)
                points = not_yet_taken(
                    answer.points, taken.newest_ns, self._last_ns if self._ahead else None
                )
                self._remarks.reject("repeated", len(answer.points) - len(points))
            ready = sum(batch.count for batch in batches) < READY_POINTS
            batches += await self._poller.spool.pack(points, ready)
        return batches, frozenset(times)
