"""Reads what collectors measured: flows of every new interval, pairs when they are new, paths.

Whatever a collector answers, or does not, is its own problem: it is noted, and the others are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import orjson
from attrs import Factory, define
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llama.http.bounded_json import read_json
from llama.http.client import (
    TooLargeError,
    agent_of,
    authorization,
    connection_pool,
    explain,
    request,
)
from llama.pinpoint import answers
from llama.pinpoint.answers import LARGEST, LATEST_S, MOST_FLOWS, MOST_GROUPS, AnswerError
from llama.pinpoint.windows import PART, Measured
from llama.printable import printable
from llama.reasons import Reasons
from llama.threads import outlasting

PAGE = 10_000
MOST_OCTETS = 64 << 20  # of one answer
#: Values in one answer, of which the shortest take far more octets in memory than on the wire.
MOST_VALUES = 8_000_000
AT_ONCE = 16
#: A delay by others' answers that is worth waiting longer for.
LEAST_S = 0.01
#: Intervals of one collector that are read in one go, after a pause; and at first, so that the newest
#: that is whole everywhere is among them.
MOST_INTERVALS, FIRST_INTERVALS = 4, 2
#: By so much an interval may close late because its probes were held up in their own host, s: no
#: transmit stamp is believed that is later.
HELD_UP_S = 2**31 / 1e9
#: Pairs are read again after so many intervals: their tags may be others by now.
PAIRS_AGAIN = 10


T = TypeVar("T")
END = object()


class GoneError(AnswerError):
    """A collector does not hold what was asked for."""


class TwiceError(AnswerError):
    """A collector is read by another name already."""


@define
class Source:
    """One collector and how far it was read."""

    url: str
    incarnation: str = ""
    seen: int = 0  # close number of the newest interval read
    pairs_age: int = 0  # intervals since its pairs were read
    paths_s: int = 0  # Unix time up to which its paths were read
    worked_s: float = 0.0  # that its answers took to read
    problem: str = ""  # why the last attempt failed; "": it did not
    answers: bool = False  # it did when it was asked last, which may be under way
    reasons: Reasons = Factory(Reasons)  # for it, that the log has named since it began
    left_out: str = ""  # of what it said when its pairs were read last
    #: Unix times up to which each of its groups of tests has handed in all. Those of longer timeouts
    #: close later, under numbers of their own.
    ends: tuple[float, ...] = ()
    #: So many of its groups, those that are the furthest behind, are not waited for.
    given_up: int = 0

    @property
    def told(self) -> str:
        """What people should know: why nothing was read, or what not; "": all is well."""
        return self.problem or self.left_out

    def has(self, end_s: float) -> bool:
        """Return whether all of the interval that ended then was read that is waited for."""
        return all(end >= end_s for end in sorted(self.ends)[self.given_up :])


class Fleet:
    """The collectors at some base URLs. `read` puts what is new into `measured`."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        urls: Sequence[str],
        measured: Measured,
        *,
        timeout_s: float = 5.0,
        turn_s: float = 30.0,
        token: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        self.measured = measured
        self.sources = [Source(url.rstrip("/")) for url in urls]
        self._reactor = reactor
        self._timeout_s = timeout_s  # of one request
        self._turn_s = turn_s  # of all that is asked of one collector at a time
        self._headers = authorization(token)
        self._pool = connection_pool(reactor)
        self._agent = agent_of(reactor, self._pool, timeout_s, ca_file)
        self._turns = DeferredSemaphore(AT_ONCE)
        self._worked_s = 0.0  # that the answers of all took to read

    async def read(self) -> None:
        """Read every collector; those that fail are noted in `measured.silent`, never raised.

        Those that failed the last time come last, so that they keep no others waiting. If it is
        cancelled, nothing is noted of those that were being read.
        """
        order = sorted(self.sources, key=lambda source: source.problem != "")
        turns = [self._turns.run(self._begin, source) for source in order]
        await gatherResults(turns, consumeErrors=True)

    def whole(self, end_s: float) -> bool:
        """Return whether every collector that answers has handed in all of that interval."""
        return all(source.problem or source.has(end_s) for source in self.sources)

    def give_up(self, due_s: float, end_s: float, again: bool) -> None:
        """Wait no longer for groups that have not handed in the interval that ended at `due_s`.

        That holds until they are less far behind, of which one can tell only at the same time
        after an interval's end: when `again` is true. How far behind they are is counted from
        `end_s`.
        """
        for source in self.sources:
            late = sum(end < due_s for end in source.ends)
            source.given_up = late if again else max(late, source.given_up)
            if source.given_up and source.ends and not source.problem:
                self.measured.behind[source.url] = end_s - min(source.ends)
            else:
                self.measured.behind.pop(source.url, None)

    def _begin(self, source: Source) -> Deferred[None]:
        return Deferred.fromCoroutine(self._turn(source))

    async def stop(self) -> None:
        """Close all connections."""
        await self._pool.closeCachedConnections()

    async def _turn(self, source: Source) -> None:
        """Read a collector, for as long as it may take, and note how that went.

        What the others' answers took to read is added to the time that it has.
        """
        late = []
        deadline: Any = None
        others_s = self._worked_s - source.worked_s

        def give_up() -> None:
            nonlocal deadline, others_s
            before_s, others_s = others_s, self._worked_s - source.worked_s
            if others_s - before_s >= LEAST_S:  # meanwhile it was not its turn
                deadline = self._reactor.callLater(others_s - before_s, give_up)
                return
            late.append(source)
            reading.cancel()

        deadline = self._reactor.callLater(self._turn_s, give_up)
        reading = Deferred.fromCoroutine(self._source(source))
        try:
            await outlasting(reading)  # or nobody could tell what becomes of being cancelled
        except Exception as problem:
            if late:
                why = f"was not read to the end within {self._turn_s:g} s"
            elif isinstance(problem, CancelledError):
                reading.cancel()
                raise
            elif isinstance(problem, AnswerError):
                why = str(problem)
            else:
                why = explain(problem, self._timeout_s)
            why = printable(why)
            if source.reasons.is_news(why):
                self.log.warn("{url}: {why}", url=source.url, why=why)
            source.problem, source.answers = why, False
            if isinstance(problem, TwiceError):
                self.measured.silent.discard(source.url)
            else:
                self.measured.silent.add(source.url)
            return
        finally:
            if deadline.active():
                deadline.cancel()
        if source.reasons.over():
            self.log.info("{url} answers again", url=source.url)
        source.problem = ""
        self.measured.silent.discard(source.url)

    async def _source(self, source: Source) -> None:
        """Read what is new of a collector; raises `AnswerError` for what is no answer."""
        try:
            await self._flows(source)
            await self._paths(source)
        except KeyError as e:
            raise AnswerError(
                f"an answer lacks {e}: is it a LLAMA collector of this version?"
            ) from None

    async def _get(self, source: Source, path: str) -> Mapping[str, Any]:
        reply = await request(
            self._agent,
            self._reactor,
            "GET",
            source.url + path,
            timeout_s=self._timeout_s,
            max_octets=MOST_OCTETS,
            headers=self._headers,
        )
        place = path.partition("?")[0]  # else every interval had a reason of its own
        if reply.status == 404:
            raise GoneError(f"{place} answered 404: is that a LLAMA collector?")
        if reply.status != 200:
            raise AnswerError(f"{place} answered {reply.status}: {reply.excerpt()}")
        with self._working(source):
            answer = _json(path, reply.body)
        if not isinstance(answer, dict):
            raise AnswerError(f"{path} is no JSON object: is that a LLAMA collector?")
        return answer

    async def _in_parts(
        self,
        source: Source,
        rows: Sequence[Mapping[str, Any]],
        read: Callable[[Sequence[Mapping[str, Any]]], list[T]],
    ) -> list[T]:
        """Return what ``read`` makes of rows; others have their turn of the reactor in between."""
        found: list[T] = []
        for at in range(0, len(rows), PART):
            if at:
                await deferLater(self._reactor, 0)
            with self._working(source):
                found += read(rows[at : at + PART])
        return found

    @contextmanager
    def _working(self, source: Source) -> Iterator[None]:
        """Note what is done within as work on that collector's answers, which keeps others waiting."""
        began_s = self._reactor.seconds()
        try:
            yield
        finally:
            took_s = max(0.0, self._reactor.seconds() - began_s)
            self._worked_s += took_s
            source.worked_s += took_s

    async def _flows(self, source: Source) -> None:
        """Read the flows of the intervals that closed since the last time."""
        head = await self._get(source, "/flows?limit=1")
        incarnation = answers.text(head, "incarnation")
        if incarnation != source.incarnation:
            for other in self.sources:
                if other is not source and other.incarnation == incarnation:
                    if other.answers:
                        raise TwiceError(f"the same collector as {other.url}, by another name")
                    other.incarnation = ""  # it is read by this name from now on
            source.incarnation, source.seen, source.paths_s = incarnation, 0, 0
            source.pairs_age = PAIRS_AGAIN
        source.answers = True
        groups = answers.rows(head, "intervals", MOST_GROUPS)
        source.ends = _ends(groups)
        numbers = [answers.whole(group, "close_number", LARGEST, 1) for group in groups]
        if not numbers or max(numbers) <= source.seen:
            return
        newest = max(numbers)
        if source.seen:
            first = max(source.seen + 1, newest - MOST_INTERVALS * len(groups) + 1)
        else:
            held = newest - self.measured.keep * len(groups) + 1  # those before would be let go
            first = max(1, held, min(numbers) - FIRST_INTERVALS * len(groups) + 1)
        if source.pairs_age >= PAIRS_AGAIN:
            await self._pairs(source)
        source.pairs_age += 1
        for number in range(first, newest + 1):
            with suppress(GoneError):
                await self._interval(source, number)
            source.seen = number

    async def _interval(self, source: Source, number: int) -> None:
        """Read one interval's flows, page by page, and take them once all are there.

        If a page fails, all are read again: what was taken then would count twice.
        """
        rows: list[answers.FlowRow] = []
        known = True  # all of their pairs
        offset = 0
        while True:
            path = f"/flows?close_number={number}&limit={PAGE}&offset={offset}"
            answer = await self._get(source, path)
            groups = answers.rows(answer, "intervals", MOST_GROUPS)
            if not all(answers.flag(interval, "all_flows") for interval in groups):
                return  # too old: the healthy ones were let go, and votes would be one-sided
            page = answers.rows(answer, "flows", PAGE)
            read = await self._in_parts(source, page, answers.flows)
            with self._working(source):
                known = known and all(self.measured.pairs.knows(source.url, row) for row in read)
            rows += read
            if len(rows) > MOST_FLOWS:
                raise AnswerError(f"an interval has more than {MOST_FLOWS:,} flows")
            if answer["next_offset"] is None:
                break
            if not page:
                raise AnswerError("/flows says that more follows after a page without flows")
            offset = answers.whole(answer, "next_offset", LARGEST, offset + 1)
        with self._working(source):
            answers.one_interval(rows)
        if not known:
            await self._pairs(source)
        steps, more = self.measured.adding(source.url, rows), True
        while more:
            await deferLater(self._reactor, 0)
            with self._working(source):
                more = next(steps, END) is not END

    async def _pairs(self, source: Source) -> None:
        """Read who the ends of all pairs are, and their tags."""
        answer = await self._get(source, "/latency")
        pairs = answers.rows(answer, "pairs", MOST_FLOWS)
        reader = answers.PairReader()
        found = await self._in_parts(source, pairs, reader.read)
        with self._working(source):
            self.measured.pairs.add(source.url, found)
        if reader.left_out and reader.left_out != source.left_out:
            self.log.warn("{url}: {what}", url=source.url, what=reader.left_out)
        source.left_out = reader.left_out
        source.pairs_age = 0

    async def _paths(self, source: Source) -> None:
        """Read the paths that were traced since the last time."""
        answer = await self._get(source, f"/paths?since={source.paths_s}")
        now_s = int(answers.number(answer, "time", LATEST_S))
        if (
            now_s < source.paths_s
        ):  # its clock was set back: what was traced since bears earlier times
            answer = await self._get(source, "/paths?since=0")
        paths = answers.rows(answer, "paths", MOST_FLOWS)
        found = await self._in_parts(source, paths, answers.paths)
        for at in range(0, len(found), PART):
            await deferLater(self._reactor, 0)
            with self._working(source):
                self.measured.add_paths(source.url, found[at : at + PART])
        source.paths_s = now_s


def _ends(groups: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return up to when each group of tests has handed in all, Unix seconds.

    Tests of one timeout close together, and intervals in the order in which their timeouts run out: what
    had to close before another one that did is of pairs that are probed no more, which a collector lists
    for a while. Who does not say timeouts has none that are alike, and no order.
    """
    newest: dict[tuple[str, float], float] = {}
    for group in groups:
        name = "timeout_ms" if "timeout_ms" in group else "close_number"
        which = name, answers.number(group, name, LARGEST)
        newest[which] = max(newest.get(which, 0.0), answers.time_s(group, "end"))
    timeouts_s = {which: which[1] / 1e3 for which in newest if which[0] == "timeout_ms"}
    over_s = max((newest[which] + timeout for which, timeout in timeouts_s.items()), default=0.0)
    for which, timeout in timeouts_s.items():
        newest[which] = max(newest[which], over_s - HELD_UP_S - timeout)
    return tuple(newest.values())


def _json(path: str, body: bytes) -> Any:
    """Return what an answer says; raises `AnswerError` if that is nothing, or too much."""
    try:
        return read_json(body, MOST_VALUES)
    except TooLargeError as error:
        raise AnswerError(f"{path} has {error}") from None
    except orjson.JSONDecodeError:
        raise AnswerError(f"{path} is no JSON: is that a LLAMA collector?") from None
