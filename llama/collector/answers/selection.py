"""Which pairs and flows of held intervals somebody asked for. Pure, in slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.collector.intervals.summary import ClosedInterval, Pair
from llama.collector.slices import Job, Pace
from llama.http.server import BadRequestError, Query

Numbers = npt.NDArray[np.int64]

#: Flows looked at in one slice.
_FLOWS = 8192

_pace = Pace()


@frozen(kw_only=True)
class FlowQuery:
    """What of all flows somebody wants; None is everything."""

    target: str | None = None
    class_name: str | None = None
    source_port: int | None = None
    lossy: bool = False
    close_number: int | None = None  # of one held interval
    at_s: float | None = None  # Unix time in the intervals; None for both: the newest of every pair
    offset: int = 0
    limit: int = 1000

    @classmethod
    def read(cls, query: Query) -> FlowQuery:
        """Read the query of a request; raises `BadRequestError` for what cannot be."""
        source_port = query.whole("source_port", -1, low=0, high=65535)
        close_number = query.whole("close_number", -1, low=1)
        at_s = query.number("at", 0, 1e11)
        if close_number >= 0 and at_s is not None:
            raise BadRequestError("expected one of close_number and at")
        return cls(
            target=query.text("target"),
            class_name=query.text("class"),
            source_port=None if source_port < 0 else source_port,
            lossy=query.flag("lossy"),
            close_number=None if close_number < 0 else close_number,
            at_s=at_s,
            offset=query.whole("offset", 0),
            limit=query.whole("limit", 1000, low=1, high=10_000),
        )


def _named(pair: Pair, target: str | None, class_name: str | None) -> bool:
    return (class_name is None or pair.class_name == class_name) and (
        target is None or target in (pair.target, pair.dst_ip, pair.tags.get("dst_hostname"))
    )


def pairs_of(
    pairs: Sequence[Pair], numbers: Numbers, target: str | None, class_name: str | None
) -> Job[Numbers]:
    """Return those ``numbers`` whose pairs are to a target (its name, address or hostname)."""
    if target is None and class_name is None:
        return numbers
    wanted = numbers.tolist()
    found: list[int] = []
    for part in _pace.slices(len(wanted)):
        found += [number for number in wanted[part] if _named(pairs[number], target, class_name)]
        yield _pace
    return np.array(found, np.int64)


def select_flows(
    intervals: Sequence[tuple[ClosedInterval, Numbers]], query: FlowQuery
) -> Job[tuple[list[tuple[ClosedInterval, Numbers]], int]]:
    """Return the numbers of the flows of each interval that are wanted, and how many match.

    ``intervals`` come with the numbers of those of their pairs that count. The numbers returned
    are those within the query's offset and limit, the count is of all.
    """
    parts: list[tuple[ClosedInterval, Numbers]] = []
    count = 0
    end = query.offset + query.limit
    for closed, numbers in intervals:
        wanted = np.zeros(len(closed.pairs), np.bool_)
        chosen = yield from pairs_of(closed.pairs, numbers, query.target, query.class_name)
        wanted[chosen] = True
        for start in range(0, len(closed.flows), _FLOWS):
            flows = closed.flows[start : start + _FLOWS]
            match = wanted[flows["pair"]]
            if query.source_port is not None:
                match &= flows["source_port"] == query.source_port
            if query.lossy:
                match &= closed.flow_stats["lost"][start : start + _FLOWS] > 0
            found = np.flatnonzero(match) + start
            inside = found[max(0, query.offset - count) : max(0, end - count)]
            if len(inside):
                parts.append((closed, inside))
            count += len(found)
            yield None
    return parts, count
