"""Which way lost probes were lost, without synchronised clocks. Pure.

RFC 8762's stateful reflector numbers its replies. Take the received probes of a flow in the order
of sending, with sequence number s and reflector number r. A *cut* is a received probe before which
all r are smaller and after which all are greater, and which was not so slow that the next ones could
have overtaken it: nothing was reordered across it. Between two neighbouring cuts, with m replies
received after the first up to the second::

    forward = (s2 - s1) - (r2 - r1)       never reached the reflector
    reverse = (r2 - r1) - m               answered, but the reply never came

It is believed only if neither is negative, nor forward from the second cut to the next, if
r2 >= s2 - s1 (a counter that was reset in between cannot have come so far), if no duplicate was seen,
nor a reply to what was not sent, and if the reflector is known to count: a stateless one (RFC 8762,
section 4) returns s as r, which would make all losses reverse ones. It does count if it says so, or
once r differs from s. Losses with no cut on both sides are of unknown direction, and so are mixed ones
that spread over two intervals.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.collector.intervals import cell
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.open_interval import OpenInterval
from llama.collector.intervals.replies import Ints
from llama.collector.intervals.summary import Stats

#: What is missing may have been so many times slower than the slowest probe that was answered.
SLOWER = 2


@frozen(eq=False)
class _Record:
    """What is on record of some flows, a row each, by order of sending.

    Column 0 of `received`, `position` and `distance` is the last reply before all that follow,
    where there is one to start from: they are of shape (flows, depth + 1), `cells` and `sent_at` of
    (flows, depth).
    """

    oldest: npt.NDArray[np.uint32]  # sequence number of the first cell, by flow
    cells: Ints
    sent_at: Ints  # T1 of each cell, 0 where there was no probe
    received: npt.NDArray[np.bool_]
    position: Ints  # of a probe, counted from `oldest`
    number: npt.NDArray[np.uint32]  # the reflector's
    distance: Ints  # of these from the flow's first
    trusted: npt.NDArray[np.bool_]  # by flow: the reflector counts, and nothing casts doubt on it


class Starts(NamedTuple):
    """The last replies before an interval, from which its directions start, one a flow: (flows,)."""

    sequence: npt.NDArray[np.uint32]
    number: npt.NDArray[np.uint32]  # the reflector's
    there: npt.NDArray[np.bool_]  # whether there is one

    @classmethod
    def of(cls, book: Ledger, which: Ints) -> Starts:
        """Return those that a ledger has now."""
        return cls(book.anchor_sequence[which], book.anchor_number[which], book.anchored[which])

    def rows(self, some: slice) -> Starts:
        """Return some of them."""
        return Starts(self.sequence[some], self.number[some], self.there[some])


def _record(book: Ledger, which: Ints, starts: Starts) -> _Record:
    """Return all that is on record: older probes may be numbered late, newer ones tell of these."""
    oldest = book.next_sequence[which] - np.uint32(book.depth)
    turn = np.arange(book.depth)
    sequence = oldest[:, None] + turn.astype(np.uint32)
    cells = book.cells(which[:, None], sequence)
    flags = book.flags[cells]
    # A reply that came late was neither lost on the way there nor on the way back: its probe counts
    # as lost, of unknown direction, and its number counts here.
    known = (flags & (cell.RECEIVED | cell.LATE)) != 0
    sent_at = book.t1[cells]
    if book.depth & (book.depth - 1):
        # Numbers below 0, before the first, do not lead to cells of their own; above they never come
        # round (see `depth_needed`).
        there = sequence < book.next_sequence[which][:, None]
        known &= there
        sent_at[~there] = 0
    doubted = (known & ((flags & cell.DOUBTED) != 0)).any(axis=1)
    counting = (known & (book.number[cells] != sequence)).any(axis=1)
    counting |= book.counting[which // book.ports]
    anchor = (starts.sequence - oldest).astype(np.int32).astype(np.int64)
    anchored = starts.there & (anchor < 0)
    counting |= anchored & (starts.number != starts.sequence)
    forged = (book.doubt_sequence[which] - oldest).astype(np.int32).astype(np.int64)
    doubted |= book.doubted[which] & (forged >= np.where(anchored, anchor, 0))
    received = np.concatenate([anchored[:, None], known], axis=1)
    position = np.empty(received.shape, np.int64)
    position[:, 0] = np.where(anchored, anchor, -1)
    position[:, 1:] = turn
    number = np.concatenate([starts.number[:, None], book.number[cells]], axis=1)
    # Numbers come round at 2**32: they are compared as distances from the row's first.
    start = np.take_along_axis(number, received.argmax(axis=1)[:, None], axis=1)
    distance = (number - start).astype(np.int32).astype(np.int64)
    return _Record(
        oldest, cells, sent_at, received, position, number, distance, counting & ~doubted
    )


def _cuts(book: Ledger, record: _Record) -> npt.NDArray[np.bool_]:
    """Return which of the replies are cuts."""
    received, distance = record.received, record.distance
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    largest = np.maximum.accumulate(np.where(received, distance, low), axis=1)
    smallest = np.minimum.accumulate(np.where(received, distance, high)[:, ::-1], axis=1)[:, ::-1]
    cut: npt.NDArray[np.bool_] = received & (largest == distance) & (smallest == distance)
    # Equal numbers are two replies with one number: no cut lies between them.
    before = np.concatenate([np.full((len(cut), 1), low), largest[:, :-1]], axis=1)
    after = np.concatenate([smallest[:, 1:], np.full((len(cut), 1), high)], axis=1)
    cut &= (before < distance) & (after > distance)
    # A probe so slow that the next ones may have overtaken it, and been lost then, is none either.
    delay = book.forward[record.cells]
    quickest = np.where(received[:, 1:], delay, high).min(axis=1)
    sent_at = record.sent_at
    until_next = np.full(delay.shape, high)
    until_next[:, :-1] = np.where(sent_at[:, 1:] > 0, sent_at[:, 1:] - sent_at[:, :-1], high)
    # By two clocks, of which one may have been stepped: by our own it was no slower than the round trip.
    excess = np.minimum(delay - quickest[:, None], book.elapsed[record.cells])
    cut[:, 1:] &= excess < until_next
    # Nor one that may have overtaken what is missing: that was counted after it if it was lost on its
    # way back.
    slowest = np.where(received[:, 1:], excess, 0).max(axis=1)
    missing = np.where(received[:, 1:], 0, sent_at)
    since = sent_at - np.maximum.accumulate(missing, axis=1)
    cut[:, 1:] &= since + excess > SLOWER * slowest[:, None]
    return cut


def tell(
    book: Ledger,
    interval: OpenInterval,
    stats: Stats,
    flows: Ints,
    lossy: npt.NDArray[np.intp],
    starts: Starts,
) -> None:
    """Tell forward from reverse loss in the flows ``lossy`` (places in ``flows``).

    ``starts`` are theirs, as they were before the interval's own `anchor`.
    """
    assert interval.end is not None
    which = flows[lossy]
    record = _record(book, which, starts)
    received, oldest = record.received, record.oldest
    cuts = np.flatnonzero(_cuts(book, record))  # through all rows: neighbours are so in a row
    row = cuts // received.shape[1]
    closes = row[1:] == row[:-1]  # the right end of a stretch between two cuts
    row = row[1:]

    def since_left(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return by how much values are more than at the cut before, at all cuts but the first."""
        at_cuts = values.reshape(-1)[cuts]
        more: npt.NDArray[Any] = at_cuts[1:] - at_cuts[:-1]
        return more

    asked = since_left(record.position)
    counted = since_left(record.distance)
    answered = since_left(np.cumsum(received, axis=1))
    lost = asked - answered
    forward = asked - counted
    reverse = counted - answered
    turn = np.arange(book.depth)
    first = (interval.first[which] - oldest).astype(np.int32)[:, None]
    end = (interval.end[which] - oldest).astype(np.int32)[:, None]
    inside = np.zeros(received.shape, np.bool_)
    inside[:, 1:] = (turn >= first) & (turn < end)
    lost_here = since_left(np.cumsum(inside & ~received, axis=1))
    believed = closes & (lost_here > 0) & (forward >= 0) & (reverse >= 0)
    # What was counted beyond what was asked for since a cut was sent before it: so it is none.
    beyond = closes & (forward < 0)
    believed[:-1] &= ~beyond[1:]
    # Who does not say that it counts our probes alone may count others', too: here it has.
    strange = np.zeros(len(which), np.bool_)
    strange[row[beyond]] = True
    believed &= (record.trusted & ~(strange & ~book.counting[which // book.ports]))[row]
    believed &= record.number.reshape(-1)[cuts[1:]].astype(np.int64) >= asked
    all_forward = believed & (reverse == 0)
    all_reverse = believed & (forward == 0)
    mixed = believed & (forward > 0) & (reverse > 0) & (lost_here == lost)
    for name, all_of_it, some in (
        ("lost_forward", all_forward, forward), ("lost_reverse", all_reverse, reverse)
    ):  # fmt: skip
        told = np.where(all_of_it, lost_here, 0) + np.where(mixed, some, 0)
        stats[name][lossy] = np.bincount(row, told, len(which))
    stats["lost_unknown"] = stats["lost"] - stats["lost_forward"] - stats["lost_reverse"]


def anchor(
    book: Ledger,
    flows: Ints,
    sequence: npt.NDArray[np.uint32],
    cells: Ints,
    received: npt.NDArray[np.bool_],
    flags: npt.NDArray[np.uint8],
) -> None:
    """Remember each flow's last reply as the start for the next interval's directions.

    Only if nothing was reordered across it. A flow without a reply keeps its older anchor.
    Columns (probes, flows).
    """
    turn = np.arange(len(received))[:, None]
    flow = np.arange(len(flows))
    last = np.where(received, turn, -1).max(axis=0)
    some = last >= 0
    at = np.maximum(last, 0)
    number = book.number[cells]
    newest = number[at, flow]
    numbered = (flags & (cell.RECEIVED | cell.LATE)) != 0
    ahead = numbered & ((number - newest).astype(np.int32) > 0)
    doubted = (flags[at, flow] & cell.DOUBTED) != 0
    delay = book.forward[cells]
    quickest = np.where(received, delay, np.iinfo(np.int64).max).min(axis=0)
    slower = np.minimum(delay - quickest, book.elapsed[cells])  # as in `_cuts`
    excess = slower[at, flow]
    overtaken = some & (excess >= 1e9 / book.fastest_pps)
    sent_at = book.t1[cells]
    missing = np.where(~numbered & (turn < at), sent_at, 0).max(axis=0)
    slowest = np.where(received, slower, 0).max(axis=0)
    since = sent_at[at, flow] - missing
    overtook = some & (since + excess <= SLOWER * slowest)
    sound = some & ~ahead.any(axis=0) & ~doubted & ~overtaken & ~overtook
    book.anchor_sequence[flows[some]] = sequence[at, flow][some]
    book.anchor_number[flows[some]] = newest[some]
    book.anchored[flows[some]] = sound[some]
