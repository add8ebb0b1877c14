"""The paths of flows as collectors traced them, and what that tells of flows that have died. Pure.

A trace that meets a flow dead ends early. Then the flow's path is the one that is known of it, or of
another class or size of it, unless the trace met other hops: then what it met.

A flow that was found on another way lately may have lost on any of them: it has the links of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.paths.table import FlowKey, Hops, agree, same_way
from llama.paths.trace import LOOP
from llama.pinpoint.answers import MOST_FLOWS, AnswerError
from llama.pinpoint.evidence import NOT_TRACED, Indices, Paths
from llama.pinpoint.flow_table import Flow, FlowTable, flow_key

#: Flows that stay dead are traced again only now and then: so long it counts where they were met
#: dead, s before a window in which they still are.
MET_DEAD_S = 60.0

#: So long before a window a flow may have been back unseen on a path that it was found to have left, s:
#: collectors trace every flow again by then. One that has left more paths than so many may take any,
#: packet by packet, and a trace does not show the path of its probes.
RETURN_S, MOST_LEFT = 300.0, 1

#: A silent hop is looked for on so many ways between the same ends at most, and in a window so many
#: links are taken for crossed on account of it: who tells of more than any network has gets no more.
MOST_WAYS, MOST_FILLED = 64, 1_000_000

#: Stands in a path for what lies between the last hop that answered and the destination's router.
UNKNOWN = "?"


class TracedPaths:
    """The paths of flows. ``name`` names the addresses of hops."""

    def __init__(self, name: Callable[[str], str]) -> None:
        self._name_now = name
        self.name_anew()
        #: Flow -> hops of its path, () if none is known; hops that answered to the newest trace if it
        #: did not come through, else -1; when that was. Where that trace was on another way than the
        #: known one, `UNKNOWN` and the destination follow what it met.
        self._paths: dict[Flow, tuple[Hops, int, float]] = {}
        self._by_tuple: dict[tuple[int, tuple[str, int, int]], Hops] = {}
        #: Flow -> hops of the paths that it was found to have left, and when, the newest last; and of
        #: all classes and sizes of a flow together, as `_by_tuple`.
        self._left: dict[Flow, dict[Hops, float]] = {}
        self._left_by_tuple: dict[tuple[int, tuple[str, int, int]], dict[Hops, float]] = {}
        #: Flow -> hops of the last path that came through, which its ordinary RTT belongs to.
        self._whole: dict[Flow, Hops] = {}
        #: Source and destination's address -> the router before it, how many hops away it is, and the
        #: last router that answers.
        self._ends: dict[tuple[int, str], tuple[str | None, int, int]] = {}
        #: Hops of traces that did not come through, and when: the path nevertheless, if the flow
        #: lives on. Not every reflector answers a trace.
        self._unconfirmed: dict[Flow, tuple[Hops, float]] = {}
        #: Who refused to forward the newest trace, an address or those of a loop, and why: of flows
        #: whose trace was.
        self._refusals: dict[Flow, tuple[tuple[str, ...], str]] = {}
        self._count: Counter[int] = Counter()  # of `_paths`, by source

    def name_anew(self) -> None:
        """Call hops from now on what they are called by now.

        Names may come from the DNS at any time, and no router may have two in one judgement.
        """
        self._name = cache(self._name_now)

    def __len__(self) -> int:
        """Return of how many flows something is known."""
        return len(self._paths)

    def sources(self) -> Iterator[int]:
        """Yield the hosts that send the flows of which something is known."""
        return (source for source, _ in self._paths)

    def came_through(self, flow: Flow) -> bool:
        """Return whether a trace of this very flow ever did."""
        return flow in self._whole

    def called(self, hop: str | None) -> str | None:
        """Return the name of a hop; None of one that did not answer."""
        return None if hop is None else self._name(hop)

    # What traces found

    def add(self, source: int, row: Mapping[str, Any]) -> Hops:
        """Take a row of a collector's ``/paths``; return the path that its flow has left, or ().

        Raises `AnswerError` if that were more than `MOST_FLOWS` from one source.
        """
        key = flow_key(row)
        flow = source, key
        if self._count[source] >= MOST_FLOWS and flow not in self._paths:
            raise AnswerError(f"more than {MOST_FLOWS:,} flows were traced from one host")
        hops: Hops = tuple(row["hops"])
        reach = -1 if row["reach"] is None else int(row["reach"])
        left: Hops = ()
        self._unconfirmed.pop(flow, None)
        self._refusals.pop(flow, None)
        if reach >= 0 and row.get("refusal") and row.get("refused_by"):
            by: tuple[str, ...] = (row["refused_by"],)
            if row["refusal"] == LOOP:
                hops, by = self._before_loop(hops, by)
                reach = len(hops)
            self._refusals[flow] = by, row["refusal"]
        if not row["complete"]:
            met = hops
            hops = self._of_dead(source, key, met)
            known = hops or (source, key.tuple5) in self._by_tuple
            if not known and not row.get("refusal") and reach == len(met) > 0:
                self._unconfirmed[flow] = met, row["traced"]
        elif not same_way(self._whole.get(flow, hops), hops):
            left = self._whole[flow]
        self._know(flow, hops, reach, row["traced"])
        return left

    def _before_loop(self, hops: Hops, by: tuple[str, ...]) -> tuple[Hops, tuple[str, ...]]:
        """Return the hops up to the first router of a loop, and all that are in it."""
        named = [self.called(hop) for hop in hops]
        for n, name in enumerate(named):
            first = named.index(name)
            if name is not None and first < n:
                return hops[: first + 1], tuple(hop for hop in hops[first:n] if hop)
        return hops, by

    def confirm(self, alive: Iterable[Flow], begin_s: float) -> None:
        """Take what traces found of flows that were alive in an interval which began after them.

        Their destinations gave no answer to the trace; they follow the last hop that did.
        """
        if not self._unconfirmed:
            return
        for flow in alive:
            found = self._unconfirmed.get(flow)
            if found is not None and found[1] <= begin_s:
                del self._unconfirmed[flow]
                self._know(flow, (*found[0], flow[1].dst_ip), -1, found[1])

    def _of_dead(self, source: int, key: FlowKey, met: Hops) -> Hops:
        """Return the path of a flow of which the newest trace met these hops and then died.

        It is the known one, its own or that of its like, unless the trace met others: then what it
        met, and nothing beyond. () means that nothing is known.
        """
        own = self._paths.get((source, key), ((), -1, 0.0))[0]
        if own and UNKNOWN not in own and _may_be_of(met, own):
            return own
        like = self._by_tuple.get((source, key.tuple5))
        if like and not _may_be_of(met, like):
            del self._by_tuple[source, key.tuple5]
        elif like and not own:
            return ()
        end = self._ends.get((source, key.dst_ip))
        if end is None or not met:
            return ()
        router, distance, last = end
        # If all routers answered that ever do, the rest of the way is as it was.
        if self.called(met[-1]) == self.called(router):
            return (*met, key.dst_ip)
        if len(met) >= last:
            return (*met, *(None,) * (distance - 1 - len(met)), key.dst_ip)
        return (*met, UNKNOWN, key.dst_ip)

    def _know(self, flow: Flow, hops: Hops, reach: int, traced_s: float) -> None:
        """Take a flow's path, and how far a trace came that met it dead."""
        self._count[flow[0]] += flow not in self._paths
        self._paths[flow] = hops, reach, traced_s
        if hops and UNKNOWN not in hops:
            source, key = flow
            router = hops[-2] if len(hops) > 1 else None
            self._ends[source, key.dst_ip] = router, len(hops), _last_answering(hops)
            before = self._whole.get(flow, hops)
            if not same_way(before, hops):
                for left in (
                    self._left.setdefault(flow, {}),
                    self._left_by_tuple.setdefault((source, key.tuple5), {}),
                ):
                    for way in [way for way in left if same_way(way, before)]:
                        del left[way]
                    left[before] = traced_s
                    while len(left) > MOST_LEFT + 2:
                        del left[next(iter(left))]
            self._by_tuple[source, key.tuple5] = hops
            self._whole[flow] = hops

    # What is known of them

    def columns(
        self,
        flows: Sequence[Flow | None],
        destinations: Sequence[int],
        names: Sequence[str],
        begin_s: float,
    ) -> Paths:
        """Return the paths of these flows, as of a window that began at `begin_s`, Unix seconds.

        They go to the hosts with the numbers `destinations`; hosts have these `names`. None is a
        flow that was forgotten.
        """
        numbers: dict[tuple[str, str], int] = {}
        cache: dict[tuple[int, int, Hops, tuple[Hops, ...]], tuple[list[int], list[int]]] = {}
        links: list[int] = []
        left: list[tuple[int, int]] = []
        crossed: Indices = np.zeros(len(flows) + 1, np.int64)  # links, by flow, after a 0
        answered: npt.NDArray[np.int16] = np.full(len(flows), -1, np.int16)
        refused = _Refused()
        untraced: list[tuple[int, Flow, Hops]] = []
        # Of flows that were found on another way: those of which a hop there is silent, and by their
        # ends the links of ways without such.
        gaps: list[tuple[int, tuple[int, int, Hops, tuple[Hops, ...]]]] = []
        whole: dict[tuple[int, int], dict[Hops, list[int]]] = {}
        for n, (flow, destination) in enumerate(zip(flows, destinations, strict=True)):
            if flow is None:
                continue
            source, key = flow
            known = self._paths.get(flow)
            hops = (known[0] if known else ()) or self._by_tuple.get((source, key.tuple5), ())
            own = known is not None and bool(known[0])
            before = self._lately_left(flow, hops, own, begin_s) if self._left else ()
            if hops:
                way = source, destination, hops, before
                if way not in cache:
                    cache[way] = _crossed(
                        [
                            [
                                numbers.setdefault(link, len(numbers))
                                for link in self._links(source, destination, each, names)
                            ]
                            for each in (hops, *before)
                        ]
                    )
                newest, others = cache[way]
                links += newest
                crossed[n + 1] = len(newest)
                left += [(n, link) for link in others]
                if self._left and newest and None not in hops and UNKNOWN not in hops:
                    whole.setdefault((source, destination), {})[hops] = newest
                elif 0 < len(before) <= MOST_LEFT:
                    gaps.append((n, way))
            if known:
                # Where all routers answered that ever do, only what lies behind them or the way
                # back can be dead.
                answered[n] = _answered(*known[1:], hops, begin_s)
            if known and flow in self._refusals and known[2] >= begin_s - MET_DEAD_S:
                by, refusal = self._refusals[flow]
                who = ", ".join(sorted(set(map(self._name, by))))
                refused.add(n, flow, hops, known[1], (who, refusal))
                if not hops or known[1] < len(hops):  # where it lies is no question then
                    answered[n] = known[1]
            elif not known or answered[n] == NOT_TRACED:
                untraced.append((n, flow, hops))
        for n, reach in refused.likewise(untraced):
            answered[n] = reach
        left += _through_gaps(gaps, whole, cache)
        return Paths(
            links=list(numbers),
            start=np.cumsum(crossed),
            link=np.array(links, np.int32),
            answered=answered,
            left=np.array(left, np.int64).reshape(-1, 2),
            refusals=refused.refusals,
        )

    def _lately_left(self, flow: Flow, hops: Hops, own: bool, begin_s: float) -> tuple[Hops, ...]:
        """Return the other paths that a flow, or all of its like, may have been back on since then."""
        source, key = flow
        like = source, key.tuple5
        left = self._left.get(flow) if own else self._left_by_tuple.get(like)
        return tuple(
            way
            for way, at_s in (left or {}).items()
            if at_s > begin_s - RETURN_S and not same_way(way, hops)
        )

    def _links(
        self, source: int, destination: int, hops: Hops, names: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield the links along the hops."""
        at = names[source]
        for hop in hops[:-1]:
            if hop == UNKNOWN:
                router = self.called(self._ends.get((source, str(hops[-1])), (None, 0, 0))[0])
                after = f"(unknown before {router or names[destination]})"
                yield at, after
                at = router or after
                continue
            after = f"(silent after {at})" if hop is None else self._name(hop)
            yield at, after
            at = after
        yield at, names[destination]

    def forget(self, before_s: float, flows: FlowTable) -> None:
        """Forget the paths of flows that are not measured; a new one may be traced first."""
        old = [
            flow
            for flow, (_, _, traced_s) in self._paths.items()
            if flow not in flows.rows and traced_s < before_s
        ]
        for flow in old:
            source, key = flow
            del self._paths[flow]
            self._count[source] -= 1
            self._whole.pop(flow, None)
            self._left.pop(flow, None)
            self._unconfirmed.pop(flow, None)
            self._refusals.pop(flow, None)
            if not flows.likes(source, key):
                self._by_tuple.pop((source, key.tuple5), None)
                self._left_by_tuple.pop((source, key.tuple5), None)
        there = {(source, key.dst_ip) for source, key in (*flows.rows, *self._paths)}
        self._ends = {end: how for end, how in self._ends.items() if end in there}


def _through_gaps(
    gaps: Iterable[tuple[int, tuple[int, int, Hops, tuple[Hops, ...]]]],
    whole: Mapping[tuple[int, int], Mapping[Hops, list[int]]],
    crossed: Mapping[tuple[int, int, Hops, tuple[Hops, ...]], tuple[list[int], list[int]]],
) -> list[tuple[int, int]]:
    """Return flows, and links that they may have crossed where a hop of their way is silent.

    That may be any router that others between the same ends were seen on. Else the way that a flow left
    would count more than the one that it is on.
    """
    found: list[tuple[int, int]] = []
    fills: dict[tuple[int, int, Hops, tuple[Hops, ...]], list[int]] = {}
    for n, way in gaps:
        if way not in fills:
            source, destination, hops, _ = way
            ways = whole.get((source, destination), {})
            through = {
                link
                for other, links in (ways if len(ways) <= MOST_WAYS else {}).items()
                if same_way(other, hops)
                for link in links
            }
            fills[way] = sorted(through.difference(*crossed[way]))
        if len(found) + len(fills[way]) > MOST_FILLED:
            break
        found += [(n, link) for link in fills[way]]
    return found


def _crossed(ways: Sequence[list[int]]) -> tuple[list[int], list[int]]:
    """Return the links of a flow's newest way, and those that it may have crossed besides.

    After too many ways nobody knows which it takes next: only what they have in common is certain.
    """
    newest, *left = ways
    if len(left) > MOST_LEFT:
        return [], [link for link in newest if all(link in way for way in left)]
    return newest, list(dict.fromkeys(link for way in left for link in way if link not in newest))


class _Refused:
    """The flows of one window that a router refused to forward, and others that are just like them.

    Of a pair that is dead few flows are traced. What a router refuses of one it refuses of all that
    come to it with the same ends, class and size, and would leave it by the same link.
    """

    def __init__(self) -> None:
        self.refusals: dict[int, tuple[str, str]] = {}  # flow of the window -> who, and why
        #: What flows are alike in -> the way to the router and the next hop -> its refusal.
        self._ways: dict[Any, dict[Hops, tuple[str, str]]] = {}

    @staticmethod
    def _kind(flow: Flow) -> tuple[int, str, int, int, int]:
        source, key = flow
        return source, key.dst_ip, key.dst_port, key.dscp, key.size

    def add(self, number: int, flow: Flow, hops: Hops, reach: int, said: tuple[str, str]) -> None:
        """Take a flow that was traced, and refused by the router so many hops away."""
        self.refusals[number] = said
        way = hops[: reach + 1]
        if len(way) == reach + 1 and None not in way and UNKNOWN not in way:
            self._ways.setdefault(self._kind(flow), {})[way] = said

    def likewise(self, others: Iterable[tuple[int, Flow, Hops]]) -> Iterator[tuple[int, int]]:
        """Take flows that were not traced yet; yield those that are refused, and how far they come."""
        if not self._ways:
            return
        for number, flow, hops in others:
            for way, said in self._ways.get(self._kind(flow), {}).items():
                if hops[: len(way)] == way:
                    self.refusals[number] = said
                    yield number, len(way) - 1


def _last_answering(hops: Hops) -> int:
    """Return how many hops away the last router is that answers; 0: none does."""
    return max((n for n, hop in enumerate(hops[:-1], 1) if hop is not None), default=0)


def _answered(reach: int, traced_s: float, hops: Hops, begin_s: float) -> int:
    """Return `Paths.answered` of a flow in a window that began then, if it is dead in it."""
    if reach < 0:  # the trace came through
        return -1 if traced_s > begin_s else NOT_TRACED
    if traced_s < begin_s - MET_DEAD_S:
        return NOT_TRACED
    return reach if reach < _last_answering(hops) else -1


def _may_be_of(met: Hops, path: Hops) -> bool:
    """Return whether a trace that died after these hops may have been on a path."""
    return len(met) < len(path) and agree(met, path)
