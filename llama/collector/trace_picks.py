"""Which of the collector's flows to trace, and in what order.

Flows that lose everything come first, then lossy ones and their healthy siblings, then those of which
no path is known, then the others again.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter

import numpy as np

from llama.collector.intervals.summary import ClosedInterval, Pair
from llama.collector.slices import Job
from llama.paths.table import FlowKey, Known, PathTable

#: Flows of one interval that are picked for what they lost, and lossy ones that are looked at for it.
PICKED, LOSSY_LOOKED_AT = 128, 512
#: Of more lossy flows than this, as many are taken by chance.
LOSSY_SAMPLE = 4096
#: Of a pair that is wholly dead, flows that may be picked: one tells as much as all of them.
OF_DEAD_PAIR = 2
#: A lossy flow whose path was confirmed so lately is not traced again, s: routes may have changed
#: since, and a vote for a link that the flow has left misleads.
FRESH_S = 10.0
#: Nor is a dead one that was met dead so lately.
DEAD_FRESH_S = 20.0
#: Healthy flows traced beside a lossy pair.
SIBLINGS = 4
#: With nothing else to do every flow is traced again so often, at most.
AGAIN_S = 300.0
#: Flows of an interval that are looked at for that, and in one go, so that no tick waits long.
LOOKED_AT, AT_A_TIME = 1024, 128
#: Flows looked through for one that is due, of one timeout.
LOOKED_THROUGH = 64
#: A path with silent hops is traced again so soon, s, so many times: it may have been chance.
SOON_S, TRIES = 15.0, 4
#: Hops that flows were found to have left, of which is remembered when.
LEFT = 256
#: Probes whose flows can be traced from outside their sessions.
TRACEABLE = frozenset(("stamp", "stamp-auth", "twamp-light"))


class Picks:
    """Picks flows of closed intervals, by what they lost and by what ``table`` knows of their paths."""

    def __init__(self, table: PathTable, unix_time_s: Callable[[], float]) -> None:
        self._table = table
        self._unix_time_s = unix_time_s
        self._left: OrderedDict[str, float] = OrderedDict()  # hop -> Unix time
        self._chance = np.random.default_rng()
        # Both by the timeout of the tests: they close for themselves.
        self._looked_at: Counter[float] = Counter()
        self._idle: OrderedDict[float, deque[FlowKey]] = OrderedDict()

    def _lossy(self, closed: ClosedInterval) -> list[int]:
        """Return rows of lossy flows in the order in which they should be looked at.

        One of each pair comes first, then the second of each, the dead ones before the others. Every
        other is of a pair that hears nothing at all, the newly dead ones first: dead hosts, of which
        there may always be some, shall not keep others waiting. By chance where nothing decides.
        """
        stats, pairs = closed.flow_stats, closed.flows["pair"]
        lossy = np.flatnonzero(stats["lost"])
        if not lossy.size:
            return []
        traceable = np.fromiter(
            (pair.probe in TRACEABLE for pair in closed.pairs), np.bool_, len(closed.pairs)
        )
        lossy = lossy[traceable[pairs[lossy]]]
        if len(lossy) > LOSSY_SAMPLE:  # so that no tick waits long for them to be sorted
            lossy = np.unique(lossy[self._chance.integers(0, len(lossy), LOSSY_SAMPLE)])
        pair = pairs[lossy]
        heard = np.zeros(len(closed.pairs), np.bool_)
        heard[pairs[stats["received"] > 0]] = True
        # The flows of a pair lie together.
        turn = np.arange(len(lossy)) - np.searchsorted(pair, pair)
        order = np.lexsort((self._chance.random(len(lossy)), stats["received"][lossy] > 0, turn))
        some_heard = lossy[order[heard[pair[order]]]][:LOSSY_LOOKED_AT]
        none_heard = lossy[order[~heard[pair[order]] & (turn[order] < OF_DEAD_PAIR)]]
        dead = none_heard[:LOSSY_LOOKED_AT].tolist()
        known = [self._table.get(key) for key in keys(closed, dead)]
        long_dead = [one is not None and one.reach is not None for one in known]
        dead.sort(key=dict(zip(dead, long_dead, strict=True)).__getitem__)
        both = itertools.zip_longest(some_heard.tolist(), dead)
        return [row for rows in both for row in rows if row is not None][:LOSSY_LOOKED_AT]

    def suffering(self, closed: ClosedInterval) -> Iterator[FlowKey]:
        """Yield lossy flows that should be traced, each pair's healthy siblings after them."""
        stats, pairs = closed.flow_stats, closed.flows["pair"]
        count = 0
        seen: dict[int, int] = {}
        for row in self._lossy(closed):
            if count >= PICKED:
                return
            pair = int(pairs[row])
            dead = not stats["received"][row]
            (key,) = keys(closed, [row])
            known = self._table.get(key)
            if (
                known is None
                or self._doubtful(known)
                or self._age_s(known) >= (DEAD_FRESH_S if dead else FRESH_S)
                or (dead and known.reach is None)
            ):
                count += 1
                yield key
            if pair in seen:
                continue
            seen[pair] = row
            # The flows of a pair lie side by side.
            first, last = np.searchsorted(pairs, [pair, pair + 1])
            healthy = first + np.flatnonzero(stats["lost"][first:last] == 0)[:SIBLINGS]
            for key in keys(closed, healthy.tolist()):
                known = self._table.get(key)
                if known is None or self._doubtful(known) or self._age_s(known) >= FRESH_S:
                    count += 1
                    yield key

    def in_turn(self, closed: ClosedInterval) -> Job[list[FlowKey]]:
        """Return flows of which nothing is the matter, those traced longest ago first, bit by bit.

        One class and size of a flow shows the path of all. Of those never traced one to each destination
        comes first: it tells how far that is, so the others need no packets that go beyond. Intervals of
        other timeouts are gone through for themselves.
        """
        place = self._looked_at[closed.timeout_s]
        begin = place if place < len(closed.flows) else 0
        self._looked_at[closed.timeout_s] = begin + LOOKED_AT
        seen: set[tuple[str, int, int]] = set()
        turns: Counter[str] = Counter()
        order = []
        end = min(begin + LOOKED_AT, len(closed.flows))
        for first in range(begin, end, AT_A_TIME):
            for key in keys(closed, range(first, min(first + AT_A_TIME, end))):
                if key.tuple5 not in seen:
                    seen.add(key.tuple5)
                    order.append((self._last_traced(key), turns[key.dst_ip], key))
                    turns[key.dst_ip] += 1
            yield None
        return [key for _, _, key in sorted(order, key=itemgetter(0, 1))]

    def line_up(self, closed: ClosedInterval) -> Job[None]:
        """Line up flows of which nothing is the matter, if none of these tests wait for their turns."""
        if closed.all_flows and closed.timeout_s not in self._idle:
            self._idle[closed.timeout_s] = deque((yield from self.in_turn(closed)))

    def next_due(self) -> FlowKey | None:
        """Take the next of those lined up that is to be traced; tests take turns at it."""
        for timeout_s, waiting in list(self._idle.items()):
            for _ in range(min(len(waiting), LOOKED_THROUGH)):
                key = waiting.popleft()
                if self.is_due(key):  # it was not traced meanwhile, for what it lost
                    self._idle.move_to_end(timeout_s)
                    return key
            if not waiting:
                del self._idle[timeout_s]
        return None

    def is_due(self, key: FlowKey) -> bool:
        """Return whether a flow of which nothing is the matter should be traced again."""
        return self._unix_time_s() - self._last_traced(key) >= AGAIN_S

    def _last_traced(self, key: FlowKey) -> float:
        """Return when a flow was traced, or an earlier time if that should be done better soon."""
        known = self._table.get(key)
        if known is None or self._age_s(known) == math.inf:
            return 0.0
        wanting = (not known.complete or None in known.hops) and known.traces < TRIES
        # Who refused a flow that is well by now has changed its mind.
        soon = wanting or bool(known.refused_by) or self._doubtful(known)
        return known.traced - (AGAIN_S - SOON_S if soon else 0.0)

    def _age_s(self, known: Known | None) -> float:
        """Return how long ago a flow was traced; infinity if never, or before the clock was set back."""
        age_s = math.inf if known is None else self._unix_time_s() - known.traced
        return age_s if age_s >= 0 else math.inf

    def _doubtful(self, known: Known) -> bool:
        """Return whether other flows left a hop of this path since it was traced."""
        left = (self._left.get(hop, 0.0) for hop in known.hops if hop)
        return any(known.traced < when <= self._unix_time_s() for when in left)

    def note_left(self, hops: Iterable[str]) -> None:
        """Note that flows through these hops may have other paths from now on."""
        for hop in hops:
            self._left[hop] = self._unix_time_s()
            self._left.move_to_end(hop)
        while len(self._left) > LEFT:
            self._left.popitem(last=False)


def keys(closed: ClosedInterval, rows: Sequence[int] | range) -> Iterator[FlowKey]:
    """Yield the keys of those of some rows of an interval's flows that can be traced."""
    flows = closed.flows[list(rows)]
    for number, source_port, _ in flows.tolist():
        pair: Pair = closed.pairs[number]
        if pair.probe in TRACEABLE:
            yield FlowKey(pair.dst_ip, pair.dst_port, source_port, pair.dscp, pair.size)
