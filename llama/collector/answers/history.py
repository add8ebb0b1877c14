"""The closed intervals that a collector still holds, and the cursors that walk through them.

It holds those of the last so many windows of time. Of these, the newest two of every pair are
whole; older ones keep what `/influxdata` says about them, already packed, and only those flows that
lost something, within a bound. It serves nothing itself and knows no sockets.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping

import attrs
import numpy as np
import numpy.typing as npt
from attrs import define, frozen

from llama.collector.answers.packed import Packed
from llama.collector.answers.series import Rows, Series
from llama.collector.intervals.summary import ClosedInterval
from llama.collector.slices import Job

_CURSOR = re.compile(r"([0-9a-f]{16})-([0-9]{1,15})")
#: Flows looked at in one slice.
_FLOWS = 8192
#: Intervals passed by in one slice.
_PASSED = 1024


@define(eq=False, kw_only=True)
class Held:
    """A closed interval and what was made of it. ``None`` is: not yet, or no longer."""

    closed: ClosedInterval  # older ones without histograms, and with lossy flows only
    whole: bool = True  # as it was closed
    has_figures: bool = True  # False: ``closed.pair_stats`` was let go, `points` tells it all
    rows: Rows | None = None  # the series of each pair
    flows: npt.NDArray[np.int64] | None = None  # how many flows each pair had
    flows_lossy: npt.NDArray[np.int64] | None = None  # and how many of them lost probes
    health: Mapping[str, float] | None = None  # the collector's own, when the interval closed
    points: Packed | None = None  # JSON points, comma between them, no brackets
    fetched: bool = False  # somebody who walks with a cursor has got it


@frozen(kw_only=True)
class Newest:
    """A closed interval that is the newest of those of its pairs whose ``numbers`` these are.

    It stays as it was when it was asked for, whatever is thinned meanwhile.
    """

    held: Held
    closed: ClosedInterval
    flows: npt.NDArray[np.int64]  # how many each pair had, lossy or not
    flows_lossy: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]


class History:
    """The closed intervals of the last ``keep`` windows of time, oldest first in ``held``.

    ``forgotten`` counts those that had to go before anybody who walks with a cursor got them.
    """

    #: Flows kept of intervals that are no longer whole, in all: when everything is lossy, detail
    #: of the past must not take the memory that measuring needs.
    lossy_flows_most = 100_000

    def __init__(self, keep: int, *, incarnation: str | None = None) -> None:
        if keep < 1:
            raise ValueError(f"a collector holds at least 1 closed interval, not {keep}")
        self.keep = keep
        self.incarnation = secrets.token_hex(8) if incarnation is None else incarnation
        self.held: deque[Held] = deque()
        self._closed_of_window: Counter[int] = Counter()  # by the window's end
        self.series = Series()
        self.newest = 0  # the highest close number
        self.forgotten = 0
        self.forgotten_flows = 0
        self.walked = False  # somebody has asked with a cursor
        self.observers: list[Callable[[Held], None]] = []  # called with every interval appended

    @property
    def packed_octets(self) -> int:
        """How much memory the points of all held intervals take."""
        return sum(held.points.held_octets for held in self.held if held.points is not None)

    def append(self, closed: ClosedInterval) -> Held:
        """Hold an interval that has just closed; the oldest goes when there are too many."""
        if closed.close_number <= self.newest:
            raise ValueError(f"interval {closed.close_number} closed after {self.newest}")
        self.newest = closed.close_number
        held = Held(closed=closed)
        self.held.append(held)
        self._closed_of_window[closed.end_ns] += 1
        while len(self._closed_of_window) > self.keep:
            oldest = self.held.popleft()
            self.forgotten += not oldest.fetched
            self._closed_of_window[oldest.closed.end_ns] -= 1
            if not self._closed_of_window[oldest.closed.end_ns]:
                del self._closed_of_window[oldest.closed.end_ns]
        for observer in self.observers:
            observer(held)
        return held

    def cursor(self, close_number: int) -> str:
        """Return the cursor of somebody who has everything up to ``close_number``."""
        return f"{self.incarnation}-{close_number}"

    def since(self, cursor: str) -> tuple[list[Held], int]:
        """Return the intervals that closed after ``cursor``, and how many that did are gone.

        With an empty cursor, or one of another incarnation, or one that is none, these are all
        that are held.
        """
        self.walked = True
        match = _CURSOR.fullmatch(cursor)
        if match is None or match[1] != self.incarnation or int(match[2]) > self.newest:
            return list(self.held), 0
        number = int(match[2])
        after = [held for held in self.held if held.closed.close_number > number]
        oldest = self.held[0].closed.close_number if self.held else self.newest + 1
        return after, max(0, oldest - number - 1)

    def newest_of_pairs(self) -> list[Newest]:
        """Return the newest intervals, and which of their pairs they are the newest of.

        Tests with longer timeouts close later, so the newest figures of all pairs can stand in
        several intervals. Only intervals whose points are made count. Newest first.
        """
        missing = self.series.live()
        found: list[Newest] = []
        for held in reversed(self.held):
            if not missing.any():
                break
            if held.points is None or held.rows is None or not held.has_figures:
                continue
            numbers = np.flatnonzero(missing[held.rows])
            if len(numbers):
                missing[held.rows] = False
                assert held.flows is not None
                assert held.flows_lossy is not None
                found.append(
                    Newest(
                        held=held,
                        closed=held.closed,
                        flows=held.flows,
                        flows_lossy=held.flows_lossy,
                        numbers=numbers,
                    )
                )
        return found

    def of_time(self, time_ns: int) -> list[ClosedInterval]:
        """Return the intervals of the window that a time lies in, which is up to its end.

        Of windows that a clock set back has begun twice it is the one that ends last.
        """
        closed = [
            held.closed
            for held in self.held
            if held.closed.start_ns < time_ns <= held.closed.end_ns
        ]
        end_ns = max((one.end_ns for one in closed), default=0)
        return [one for one in closed if one.end_ns == end_ns]

    def count_flows(self, held: Held) -> Job[None]:
        """Count the flows of every pair, and those that lost probes."""
        closed = held.closed
        pairs = len(closed.pairs)
        flows, lossy = np.zeros(pairs, np.int64), np.zeros(pairs, np.int64)
        for start in range(0, len(closed.flows), _FLOWS):
            owner = closed.flows["pair"][start : start + _FLOWS]
            lost = closed.flow_stats["lost"][start : start + _FLOWS] > 0
            flows += np.bincount(owner, minlength=pairs)
            lossy += np.bincount(owner[lost], minlength=pairs)
            yield None
        held.flows, held.flows_lossy = flows, lossy

    def thin(self) -> Job[None]:
        """Let go of what older intervals need no longer.

        What was thinned before is passed by, many in a slice: with a slice for each, a collector that
        holds more intervals than there are slices in one would fall behind for ever.
        """
        times_seen = np.zeros(len(self.series), np.int64)
        live = self.series.live()
        room = self.lossy_flows_most
        for passed, held in enumerate(list(reversed(self.held)), 1):
            if passed % _PASSED == 0:
                yield None
            if held.rows is None or held.points is None:
                continue
            if held.whole:
                needed = bool((live[held.rows] & (times_seen[held.rows] < 2)).any())
                times_seen[held.rows] += 1
                if needed:
                    continue
                yield from self._keep_lossy(held)
            if len(held.closed.flows) > room:
                self._drop_flows(held)
                yield None
            room -= len(held.closed.flows)

    def _keep_lossy(self, held: Held) -> Job[None]:
        """Let go of the flows without loss, in slices, and of the pairs' figures."""
        closed = held.closed
        kept: list[npt.NDArray[np.int64]] = []
        count = 0
        for start in range(0, len(closed.flows), _FLOWS):
            lossy = np.flatnonzero(closed.flow_stats["lost"][start : start + _FLOWS]) + start
            count += len(lossy)
            if count <= self.lossy_flows_most:
                kept.append(lossy)
            yield None
        if count > self.lossy_flows_most:
            self.forgotten_flows += count
            kept = []
        size = sum(map(len, kept))
        flows = np.empty(size, closed.flows.dtype)
        stats = np.empty(size, closed.flow_stats.dtype)
        filled = 0
        for numbers in kept:
            end = filled + len(numbers)
            flows[filled:end] = closed.flows[numbers]
            stats[filled:end] = closed.flow_stats[numbers]
            filled = end
            yield None
        held.closed = attrs.evolve(
            closed,
            pair_stats=closed.pair_stats[:0].copy(),
            flows=flows,
            flow_stats=stats,
            histogram_start=np.zeros(len(closed.pairs) + 1, np.uint32),
            histogram_bin=np.zeros(0, np.uint16),
            histogram_count=np.zeros(0, np.uint32),
            all_flows=False,
        )
        held.whole = held.has_figures = False

    def _drop_flows(self, held: Held) -> None:
        self.forgotten_flows += len(held.closed.flows)
        held.closed = attrs.evolve(
            held.closed,
            flows=held.closed.flows[:0].copy(),
            flow_stats=held.closed.flow_stats[:0].copy(),
        )
