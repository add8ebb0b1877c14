"""Closes intervals: rows of a ledger's cells become the figures of flows and pairs.

The work comes as a generator that does a bounded slice at each step, so that its caller can spread
it over time: probing must never wait for arithmetic. What grows with its probes is a pair's own step
alone, which takes 15 ms for 200,000 of them in an interval. Pure; knows neither Twisted nor sockets.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.ma  # else np.unique loads it when first called: no probe leaves for 60 ms
import numpy.typing as npt

from llama.collector import memory
from llama.collector.intervals import cell, direction, statistics
from llama.collector.intervals.ledger import LONG_WAIT_NS, Ledger
from llama.collector.intervals.open_interval import OpenInterval
from llama.collector.intervals.own_drops import OwnDrops
from llama.collector.intervals.replies import UNKNOWN_DSCP, Ints
from llama.collector.intervals.summary import STATS, Stats, suspect_bit

SLICE = 4000  # cells looked at in a step, of which a step takes about a millisecond
APART_NS = 3_600_000_000_000  # longer than any timeout, and than a step back within an interval
#: Noted of intervals in which this host held probes that it had accepted.
WAITED = "probes waited in this host's own queue, for so long that replies came after their timeout"

#: Of intervals that were closed while more came than is read.
UNREAD = "closed before all that had come was read"


class Figures:
    """What `close` gives: flow and pair rows of STATS, and the pairs' histograms."""

    def __init__(self, book: Ledger, interval: OpenInterval) -> None:
        self._book, self._interval = book, interval
        self.oddities = _Oddities(book, interval)
        # Each slice fills in its own rows.
        self.flow_stats: Stats = memory.rows(book.flows, STATS)
        self.pair_stats: Stats = memory.rows(book.pairs, STATS)
        self.histogram_start = np.zeros(book.pairs + 1, np.uint32)
        self.histogram_bin: npt.NDArray[np.uint16] = np.zeros(0, np.uint16)
        self.histogram_count: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)

    def take_off(self) -> None:
        """Have the ledger done with the interval: the figures are where they belong."""
        self._book.over.remove(self._interval)
        self.oddities.take_off(self._book)
        self._book.late_after_close += self._interval.late_since_told
        self._book.forget_doubts()


def give_up(book: Ledger, interval: OpenInterval) -> None:
    """Have the ledger done with an interval that cannot be closed, and with what was kept for it."""
    Figures(book, interval).take_off()


def close(
    book: Ledger, interval: OpenInterval, clock_error_ns: float | None = None
) -> Generator[None, None, Figures]:
    """Close the oldest window that is over, a slice of pairs at each step; return its `Figures`.

    ``clock_error_ns`` is what our own clock may be off by, None if it is not synchronised; without
    it no one-way delay is stated. `interval` must be ``book.over[0]``, and stays there until the
    figures are safe (see `Figures.take_off`): what fails before can be closed again.
    """
    assert interval.end is not None
    figures = Figures(book, interval)
    interval.told, interval.late_since_told = 0, []
    span = (interval.end - interval.first).astype(np.int64)
    widest = int(span.max(initial=0))
    # So many flows at a time: those of some pairs, or of a part of one.
    flows = max(1, SLICE // min(book.depth, widest + 2))
    step = max(1, flows // max(1, book.ports))
    flows = min(flows, step * book.ports)
    bins: list[npt.NDArray[np.uint16]] = []
    counts: list[npt.NDArray[np.uint32]] = []
    for pair in range(0, book.pairs, step):
        end = min(pair + step, book.pairs)
        parts = []
        for first in range(pair * book.ports, end * book.ports, flows):
            yield
            last = min(first + flows, end * book.ports)
            part = yield from _close_flows(book, interval, figures, first, last, clock_error_ns)
            parts.append(part)
        if len(parts) > 1:
            yield
        slice_bins, slice_counts, per_pair = _close_pairs(book, interval, figures, pair, end, parts)
        bins.append(slice_bins)
        counts.append(slice_counts)
        figures.histogram_start[pair + 1 : end + 1] = per_pair
    yield
    np.cumsum(figures.histogram_start, out=figures.histogram_start)
    figures.histogram_bin = np.concatenate(bins) if bins else figures.histogram_bin
    figures.histogram_count = np.concatenate(counts) if counts else figures.histogram_count
    return figures


class _Oddities:
    """Duplicates of an interval's probes, and late replies to intervals closed before: by flow."""

    def __init__(self, book: Ledger, interval: OpenInterval) -> None:
        self._interval, self._duplicates = interval, interval.duplicates.copy()
        self._seen = len(book.late_after_close)
        late = np.concatenate([np.zeros(0, np.int64), *book.late_after_close])
        self._flows, self._counts = np.unique(late, return_counts=True)

    def take_off(self, book: Ledger) -> None:
        """Take what is told of here off the ledger, but not what has come since."""
        for following in book.open_intervals()[:1]:
            following.duplicates += self._interval.duplicates - self._duplicates
        book.late_after_close = book.late_after_close[self._seen :]

    def add_to(self, stats: Stats, first: int, end: int) -> None:
        """Add those of flows ``first`` to ``end``, whose rows ``stats`` are."""
        stats["duplicate"] += self._duplicates[first:end]
        low, high = np.searchsorted(self._flows, (first, end))
        stats["late"][self._flows[low:high] - first] += self._counts[low:high].astype(np.uint32)


class _Closed(NamedTuple):
    """What is known of some flows besides their figures."""

    rtt: npt.NDArray[np.float64]  # (flows, probes), ns, NaN for none
    unstamped: Ints  # (flows,): probes that were neither stamped nor answered at all


def _close_flows(
    book: Ledger,
    interval: OpenInterval,
    figures: Figures,
    first_flow: int,
    end_flow: int,
    clock_error_ns: float | None,
) -> Generator[None, None, _Closed]:
    """Fill in the figures of flows ``first_flow`` to ``end_flow``, but for what their pair decides."""
    flows = np.arange(first_flow, end_flow)
    stats = figures.flow_stats[first_flow:end_flow]
    stats[:] = statistics.BLANK
    figures.oddities.add_to(stats, first_flow, end_flow)
    sequence, cells, flags = _look_up(book, interval, stats, flows)
    received = (flags & cell.RECEIVED) != 0
    stats["received"] = received.sum(axis=0)
    stats["lost"] = stats["sent"] - stats["received"]
    stats["late"] += ((flags & cell.LATE) != 0).sum(axis=0, dtype=np.uint32)
    told = cell.RECEIVED | cell.LATE | cell.STAMPED
    sent = np.arange(len(cells))[:, None] < stats["sent"]
    unstamped = (sent & ((flags & told) == 0)).sum(axis=0)

    elapsed = book.elapsed[cells]
    arrival = np.where(received, book.t1[cells] + elapsed, np.iinfo(np.int64).max)
    stats["reordered"] = _overtaken(interval, flows, sequence, flags, arrival)
    transmit = np.where(flags & cell.STAMPED, book.transmit[cells], 0)
    residence = book.residence[cells]
    rtt = (elapsed - transmit - residence).astype(np.float64)
    known = received & ((flags & cell.NO_RTT) == 0) & (residence != cell.RESIDENCE_UNKNOWN)
    known &= rtt >= 0
    rtt[~known] = np.nan
    stats["samples"] = known.sum(axis=0)
    stats["rtt_sum_ns"] = np.where(known, rtt, 0.0).sum(axis=0)
    by_flow = np.ascontiguousarray(rtt.T)
    statistics.quantiles(stats, np.sort(by_flow, axis=1))
    statistics.variation(stats, "ipdv_ns", rtt)
    statistics.jitter(stats, rtt, known)
    there = (book.forward[cells] - transmit).astype(np.float64)
    there[~known if book.stamps_there else ...] = np.nan
    _forget_still_clocks(book, cells, there)
    back = rtt - there
    statistics.variation(stats, "ipdv_forward_ns", there)
    statistics.variation(stats, "ipdv_reverse_ns", back)
    if clock_error_ns is not None:
        _one_way(book, stats, flows, there, back, clock_error_ns)
    _remarks(book, stats, flows, cells, received)
    user = (received & ((flags & cell.USER_TIMES) != 0)).any(axis=0)
    stats["suspect"] |= np.where(user, np.uint32(suspect_bit("user_timestamps")), np.uint32(0))
    stats["suspect"] |= interval.pair_suspect[flows // book.ports] | np.uint32(interval.suspect)
    stats["lost_unknown"] = stats["lost"]
    lossy = np.flatnonzero(stats["lost"])
    starts = direction.Starts.of(book, flows[lossy])
    direction.anchor(book, flows, sequence, cells, received, flags)
    interval.told = end_flow
    most = max(1, SLICE // book.depth)  # at a time: what is on record of a flow may be long
    for first in range(0, len(lossy), most):
        yield
        some = slice(first, first + most)
        direction.tell(book, interval, stats, flows, lossy[some], starts.rows(some))
    return _Closed(by_flow, unstamped)


def _look_up(
    book: Ledger, interval: OpenInterval, stats: Stats, flows: Ints
) -> tuple[npt.NDArray[np.uint32], Ints, npt.NDArray[np.uint8]]:
    """Return numbers, cells and flags of the probes that flows sent in an interval, and fill in how many.

    A column a flow, a row a turn; flags are 0 where a flow has fewer. What there is more of lies side by
    side, here and in all that is made of it: numpy is slow to reduce many short stretches.
    """
    assert interval.end is not None
    first = interval.first[flows]
    span = (interval.end[flows] - first).astype(np.int64)
    # If closing comes so late that cells were used again, what they held is unknown: not lost.
    gone = (book.next_sequence[flows] - first).astype(np.int64) - book.depth
    if (gone > 0).any():
        gone = np.clip(gone, 0, span)
        first, span = first + gone.astype(np.uint32), span - gone
        stats["suspect"][gone > 0] |= np.uint32(suspect_bit("late_ticks"))
    stats["sent"] = span
    width = max(1, int(span.max(initial=0)))
    turn = np.arange(width)[:, None]
    sequence = np.asarray(first + turn.astype(np.uint32), order="C" if width < len(flows) else "F")
    cells = book.cells(flows, sequence)
    flags = np.where(turn < span, book.flags[cells], np.uint8(0))
    book.stamping[flows[flags[0] & cell.STAMPED != 0] // book.ports] = True
    if np.count_nonzero(flags & cell.LATE):
        late = cells[(flags & cell.LATE) != 0]
        waited = late[book.wait_here(late)]
        if waited.size:
            if book.transmit[waited].max() > LONG_WAIT_NS:
                interval.notes.add(WAITED)
            flags = np.where(turn < span, book.flags[cells], np.uint8(0))
    return sequence, cells, flags


def _overtaken(
    interval: OpenInterval,
    flows: Ints,
    sequence: npt.NDArray[np.uint32],
    flags: npt.NDArray[np.uint8],
    arrival: Ints,
) -> Ints:
    """Return how many replies of each flow came after one to a later probe, by when they arrived."""
    compared = (flags & cell.RECEIVED) != 0
    if interval.suspect & suspect_bit("clock_step"):
        # What arrived by another clock than it was sent by is not compared, nor across a step.
        compared &= (flags & cell.NO_RTT) == 0
        for step in interval.steps:
            arrival[(sequence - step[flows]).astype(np.int32) >= 0] += APART_NS
        arrival[~compared] = np.iinfo(np.int64).max
    later = np.minimum.accumulate(arrival[::-1])[::-1]
    overtaken: Ints = (compared[:-1] & (later[1:] < arrival[:-1])).sum(axis=0)
    return overtaken


def _close_pairs(
    book: Ledger,
    interval: OpenInterval,
    figures: Figures,
    first_pair: int,
    end_pair: int,
    parts: Sequence[_Closed],
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Close pairs ``first_pair`` to ``end_pair``, whose flows are closed, in ``parts`` if it is one.

    Returns their histograms and the bins of each.
    """
    ports = book.ports
    stats = figures.flow_stats[first_pair * ports : end_pair * ports]
    if interval.refused.many or interval.dropped_later.many:
        unstamped = np.concatenate([part.unstamped for part in parts])
        _mark_silent_refusals(book, interval, stats, slice(first_pair, end_pair), unstamped)
    if interval.undelivered.many:
        _mark_undelivered(interval, stats, ports)
    rtt = parts[0].rtt
    if len(parts) > 1:
        rtt = np.concatenate([part.rtt.reshape(-1) for part in parts])
    pair_stats = figures.pair_stats[first_pair:end_pair]
    pair_stats[:] = statistics.BLANK
    statistics.sum_pairs(pair_stats, stats, ports)
    ordered = np.sort(rtt.reshape(end_pair - first_pair, -1), axis=1)
    statistics.quantiles(pair_stats, ordered)
    return statistics.histograms(ordered)


def _mark_silent_refusals(
    book: Ledger, interval: OpenInterval, stats: Stats, pairs: slice, unstamped: Ints
) -> None:
    """Mark pairs that may have lost probes in this host: behind the socket's back.

    The kernel's transmit stamp is made behind the host's own firewall and queue, so what was dropped
    there has none; but nor has what found no neighbour or carrier, which is the network's. So the
    kernel must have counted as many such drops as well. ``unstamped`` tells of each flow how many
    probes were neither stamped nor answered at all.
    """
    lost = np.where(np.repeat(book.stamping[pairs], book.ports), unstamped, 0)
    for drops, where in (
        (interval.refused, "in its own queue or firewall"),
        (interval.dropped_later, "by the queues of its interfaces"),
    ):
        if _mark_own(interval, stats, book.ports, drops, lost, "send_failed"):
            interval.notes.add(
                f"{drops.many} datagrams of this host were dropped {where}, probes among them perhaps"
            )


def _mark_undelivered(interval: OpenInterval, stats: Stats, ports: int) -> None:
    """Mark pairs that may have lost something in a backlog of this host, in any direction."""
    drops = interval.undelivered
    if _mark_own(interval, stats, ports, drops, stats["lost"].astype(np.int64), "receive_drops"):
        interval.notes.add(
            f"{drops.many} packets found no room in a processor's backlog of this host,"
            " probes or replies among them perhaps"
        )


def _mark_own(
    interval: OpenInterval, stats: Stats, ports: int, drops: OwnDrops, lost: Ints, reason: str
) -> bool:
    """Mark pairs of which drops in this host account for all that flows ``lost``; return if any."""
    by_pair = lost.reshape(-1, ports).sum(axis=1)
    sent = stats["sent"].astype(np.int64).reshape(-1, ports).sum(axis=1)
    ours = drops.account_for(by_pair, sent, (interval.end_ns - interval.start_ns) / 1e9)
    bit = np.uint32(suspect_bit(reason))
    stats["suspect"] |= np.where(np.repeat(ours, ports), bit, np.uint32(0))
    return bool(ours.any())


def _forget_still_clocks(book: Ledger, cells: Ints, there: npt.NDArray[np.float64]) -> None:
    """Take back what seemed to be delays to peers whose T2 mostly stands still: the time between probes.

    ``there`` are those of ``cells`` (probes, flows), NaN for none.
    """
    spread = np.fmax.reduce(there, axis=0) - np.fmin.reduce(there, axis=0)
    for flow in np.flatnonzero(spread >= 0.5e9 / book.fastest_pps).tolist():
        known = cells[~np.isnan(there[:, flow]), flow]
        t2_ns = book.t1[known] + book.forward[known]
        if 2 * len(np.unique(t2_ns)) < len(t2_ns):
            there[:, flow] = np.nan


def _remarks(
    book: Ledger, stats: Stats, flows: Ints, cells: Ints, received: npt.NDArray[np.bool_]
) -> None:
    """Fill in DSCP and TTL as seen at both ends, of the last probe received that tells."""
    there, here = book.dscp_there[cells], book.dscp_here[cells]
    asked = book.dscp_asked[cells]
    unknown = UNKNOWN_DSCP
    sent = book.dscp_sent[flows // book.ports]
    stats["remarked_forward"] = (received & (there != unknown) & (there != sent)).sum(axis=0)
    stats["remarked_reverse"] = (
        received & (here != unknown) & (asked != unknown) & (here != asked)
    ).sum(axis=0)
    turn = np.arange(len(received))[:, None]
    flow = np.arange(len(flows))
    newest = np.where(received, turn, -1).max(axis=0)
    all_heard = bool((newest >= 0).all())
    for name, column, none in (
        ("dscp_at_reflector", there, unknown),
        ("dscp_at_collector", here, unknown),
        ("ttl_at_reflector", book.ttl_there[cells], 0),
        ("ttl_at_collector", book.ttl_here[cells], 0),
    ):
        value = column[newest, flow]
        if not all_heard or (value == none).any():
            telling = received & (column != none)
            last = np.where(telling, turn, -1).max(axis=0)
            value = np.where(last >= 0, column[np.maximum(last, 0), flow], none)
        stats[name] = value


def _one_way(
    book: Ledger,
    stats: Stats,
    flows: Ints,
    there: npt.NDArray[np.float64],
    back: npt.NDArray[np.float64],
    clock_error_ns: float,
) -> None:
    """Fill in one-way delays with their clock error, where both ends say that they are in sync.

    A mean that is negative by more than that error shows that one of them is wrong in saying so:
    then nothing is stated.
    """
    error = book.clock_error_there[flows] + clock_error_ns
    valid = ~np.isnan(there)
    count = valid.sum(axis=0)
    rows = np.flatnonzero((count > 0) & ~np.isnan(error))
    if not rows.size:
        return
    forward = np.where(valid, there, 0.0).sum(axis=0)[rows] / count[rows]
    reverse = np.where(valid, back, 0.0).sum(axis=0)[rows] / count[rows]
    sound = (forward >= -error[rows]) & (reverse >= -error[rows])
    rows = rows[sound]
    stats["owd_forward_ns"][rows] = forward[sound]
    stats["owd_reverse_ns"][rows] = reverse[sound]
    stats["owd_error_ns"][rows] = error[rows]
