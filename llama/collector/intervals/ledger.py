"""The ledger: which probe was sent when, and what is known of its reply. Pure; time is passed in.

A ledger holds the flows of one test that share rate and timeout: ``pairs`` x ``ports`` of them, flow
number ``pair * ports + port``. Each flow has ``depth`` cells, and the probe with sequence number s
lives in cell ``s % depth * flows + flow``: what is under way at one time lies side by side in memory.
Sending writes a cell, a transmit stamp and a reply fill it in, closing an interval reads them all
(`llama.collector.intervals.closing`). There are so many that a cell is not used again before the
interval of its probe has closed. So a probe costs a few column writes, whatever the number of flows,
and there is nothing to expire: what has no reply in time when its interval closes is lost.

Bursts that were `sent` are entered together by `settle`, since entering ten at a time costs hardly
more than entering one. Whatever changes the ledger settles it first. Until then the columns show it
as it was before those bursts: who reads cells that may be among them must settle it, too; closing an
interval, whose probes were all sent before `roll`, need not.

An interval of a flow is a range of its sequence numbers. When wall time passes a boundary, `roll`
notes every flow's next number; that is all that happens then.
"""

from __future__ import annotations

import math
import secrets
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llama.collector import memory
from llama.collector.intervals.cell import (
    CELL,
    DOUBTED,
    LATE,
    NO_RTT,
    RECEIVED,
    RESIDENCE_UNKNOWN,
    SLACK_S,
    STAMPED,
    USER_TIMES,
    depth_needed,
)
from llama.collector.intervals.follow_up import follow_up
from llama.collector.intervals.open_interval import OpenInterval, Windows
from llama.collector.intervals.replies import Ints, Octets, Replies
from llama.collector.intervals.summary import suspect_bit

#: What probes wait for less in this host's own queue puts nothing off.
LONG_WAIT_NS = 1_000_000
#: A reflector that took less, ns and of the timeout, made nothing late: the way there and back did.
HELD_NS, HELD_SHARE = 5_000_000, 0.1
#: Noted of an interval in which replies came to what was not sent.
FORGED = "a reflector answered forged probes: the direction of what was lost then is unknown"
#: Likewise, where those may have been probes of ours that are not on record any more.
FORGOTTEN = (
    "replies came so late that their probes were forgotten: the direction of what was lost then is"
    " unknown"
)
#: Noted of one in which replies were late that their reflector had held.
HELD = (
    "a reflector held probes until their time was over, some of them maybe of an earlier interval"
)


class Probes(NamedTuple):
    """Columns of probes to be sent, one row each: (N,) arrays. No two are of one flow."""

    flows: Ints
    cells: Ints
    sequence: npt.NDArray[np.uint32]
    t1_ns: Ints  # written when they are settled


class Ledger(Windows):
    """The probes and replies of some pairs x ``ports`` flows at ``rate_pps`` probes a second each.

    ``dscp_sent`` (pairs,) is each pair's class; ``interval_s`` the length of an interval;
    ``timeout_s`` how long a reply may take; ``depth`` how many cells a flow has at least.
    """

    def __init__(
        self,
        dscp_sent: npt.NDArray[np.uint8],
        ports: int,
        rate_pps: float,
        timeout_s: float,
        interval_s: float,
        depth: int = 0,
    ) -> None:
        super().__init__()
        self.dscp_sent = dscp_sent
        self.pairs, self.ports = len(dscp_sent), ports
        pairs = self.pairs
        self.rate_pps, self.timeout_s, self.interval_s = rate_pps, timeout_s, interval_s
        self.timeout_ns = round(timeout_s * 1e9)
        #: The highest rate there ever was: what is on record may be of then.
        self.fastest_pps = rate_pps
        self.depth = depth_needed(rate_pps, timeout_s, interval_s, depth)
        self.flows = flows = pairs * ports
        cells = flows * self.depth
        # As if probe 0 had been lost: one that counts what it answers begins at 0, and so shows that
        # it counts; a stateless reflector returns our numbers as its own.
        self.next_sequence = np.ones(flows, np.uint32)
        self.first_sequence = self.next_sequence.copy()  # that a flow ever had
        # What is known of a probe lies side by side: entering a reply touches one place in memory.
        self._cells: Any = memory.rows(cells, CELL)
        #: T1 as sent: user space, Unix ns; 0 before the first.
        self.t1: Ints = self._cells["t1"]
        #: The kernel's transmit stamp - T1, ns.
        self.transmit: npt.NDArray[np.int32] = self._cells["transmit"]
        #: T4 - T1, ns.
        self.elapsed: Ints = self._cells["elapsed"]
        #: T2 - T1, ns.
        self.forward: Ints = self._cells["forward"]
        #: T3 - T2, ns.
        self.residence: npt.NDArray[np.int32] = self._cells["residence"]
        #: The reflector's sequence number.
        self.number: npt.NDArray[np.uint32] = self._cells["number"]
        self.flags: Octets = self._cells["flags"]
        self.dscp_there: Octets = self._cells["dscp_there"]
        self.dscp_asked: Octets = self._cells["dscp_asked"]
        self.dscp_here: Octets = self._cells["dscp_here"]
        self.ttl_there: Octets = self._cells["ttl_there"]
        self.ttl_here: Octets = self._cells["ttl_here"]
        #: What each flow's reflector last said its clock may be off by, ns; NaN: not in sync.
        self.clock_error_there = np.full(flows, np.nan, np.float32)
        # The last reply of each flow up to the last closed interval, where direction starts from.
        self.anchor_sequence = np.zeros(flows, np.uint32)
        self.anchor_number = np.zeros(flows, np.uint32)
        self.anchored = np.zeros(flows, np.bool_)
        #: Which pairs' reflectors have said that they count, so that their numbers are no echo.
        self.counting = np.zeros(pairs, np.bool_)
        #: Of which pairs probes were seen to get the kernel's transmit stamp.
        self.stamping = np.zeros(pairs, np.bool_)
        # The next probe when a reflector was last seen to answer what we did not send, flow by flow.
        self.doubt_sequence = np.zeros(flows, np.uint32)
        self.doubted = np.zeros(flows, np.bool_)
        self.late_after_close: list[Ints] = []  # flows of late replies to closed intervals
        #: Bursts sent but not entered yet.
        self._unsettled: list[tuple[Probes, slice, int | Ints]] = []
        self.strangers = 0  # replies to no probe of ours, or with another's time stamp
        #: Whether the other end stamps what it answers; else nothing is known of one way alone.
        self.stamps_there = True

    def begin_by_chance(self) -> None:
        """Have flows begin with any number, before there is any interval.

        Probes of a burst have their time and SSID in common. So what one target sees of its own would
        be enough to answer those of another in its name, but for their numbers.
        """
        chance = np.frombuffer(secrets.token_bytes(4 * self.flows), np.uint32)
        # From 1 to 2**31, from where none comes round (see `depth_needed`) nor is before the first.
        self.next_sequence = (chance >> np.uint32(1)) + np.uint32(1)
        self.first_sequence = self.next_sequence.copy()

    # Time

    def roll(self, start_ns: int, end_ns: int, now_s: float) -> None:
        """Begin the window from ``start_ns`` to ``end_ns`` (Unix time); the current one is over.

        ``now_s`` is the monotonic clock, by which the old window may be closed a timeout later.
        """
        self.settle()
        if self.current is not None:
            self.current.end = self.next_sequence.copy()
            self.current.due = now_s + self.timeout_s + self.current.waited_ns / 1e9
            self.over.append(self.current)
        self.current = OpenInterval(
            start_ns,
            end_ns,
            self.next_sequence.copy(),
            pair_suspect=np.zeros(self.pairs, np.uint32),
            duplicates=np.zeros(self.flows, np.uint32),
        )

    def pairs_waiting(self) -> npt.NDArray[np.bool_]:
        """Tell which pairs have probes in a window that is not closed yet: (pairs,)."""
        sent = np.zeros(self.flows, np.bool_)
        for interval in self.over:
            assert interval.end is not None
            sent |= interval.end != interval.first
        return np.asarray(sent.reshape(self.pairs, self.ports).any(axis=1))

    def wait_here(self, cells: Ints) -> npt.NDArray[np.bool_]:
        """Take probes as received in time that are late by what they waited in this host: which, (N,).

        The kernel's transmit stamp tells when the driver got them, behind this host's own queue.
        """
        flags = self.flags[cells]
        waited: npt.NDArray[np.bool_] = ((flags & LATE) != 0) & ((flags & STAMPED) != 0)
        waited &= self.elapsed[cells] - self.transmit[cells] <= self.timeout_ns
        self.flags[cells[waited]] ^= np.uint8(LATE | RECEIVED)
        return waited

    def clock_stepped(self) -> None:
        """Take back the RTTs of all probes in flight: their T4 will be on another clock than T1."""
        self.settle()
        horizon = max(1, math.ceil(self.fastest_pps * (self.timeout_s + SLACK_S)) + 1)
        every = np.arange(self.flows)
        for back in range(1, min(horizon, self.depth) + 1):
            sequence = self.next_sequence - np.uint32(back)
            cells = self.cells(every, sequence)
            waiting = cells[(self.flags[cells] & (RECEIVED | LATE)) == 0]
            self.flags[waiting] |= NO_RTT
        if self.current is not None:
            self.current.steps.append(self.next_sequence.copy())

    # Probes

    def cells(self, flows: Ints, sequence: npt.NDArray[np.uint32]) -> Ints:
        """Return the cell of each probe; the shapes of flows and sequence numbers broadcast."""
        # One type throughout: numpy takes three times as long over two.
        return sequence.astype(np.int64) % self.depth * self.flows + flows

    def cell(self, flow: int, sequence: int) -> int:
        """Return the cell of one probe."""
        return sequence % self.depth * self.flows + flow

    def upcoming(self, flows: Ints) -> Probes:
        """Return the next probe of each flow, at most one a flow."""
        self.settle()
        sequence = self.next_sequence[flows]
        cells = self.cells(flows, sequence)
        return Probes(flows, cells, sequence, np.zeros(len(flows), np.int64))

    def sent(self, probes: Probes, rows: slice, t1_ns: int | Ints) -> None:
        """Note ``rows`` of what was `upcoming` as sent; ``t1_ns`` is the time of all, or (N,) of them.

        None may be of a flow of which another is noted since the last `settle`.
        """
        self._unsettled.append((probes, rows, t1_ns))

    def settle(self) -> None:
        """Enter what was `sent`."""
        if not self._unsettled:
            return
        bursts, self._unsettled = self._unsettled, []
        for probes, rows, t1_ns in bursts:
            probes.t1_ns[rows] = t1_ns
        probes, rows, _ = bursts[0]
        for more, following, _ in bursts[1:]:
            if more is probes and following.start == rows.stop:
                rows = slice(rows.start, following.stop)
                continue
            self._settle(probes, rows)
            probes, rows = more, following
        self._settle(probes, rows)

    def _settle(self, probes: Probes, rows: slice) -> None:
        cells = probes.cells[rows]
        self.next_sequence[probes.flows[rows]] = probes.sequence[rows] + np.uint32(1)
        self.t1[cells] = probes.t1_ns[rows]
        self.flags[cells] = 0

    def send(self, flows: Ints, t1_ns: int | Ints) -> tuple[Ints, npt.NDArray[np.uint32]]:
        """Enter the next probe of each flow, at most one a flow; return cells and sequence numbers."""
        probes = self.upcoming(flows)
        self.sent(probes, slice(0, len(flows)), t1_ns)
        self.settle()
        return probes.cells, probes.sequence

    def unsend(self, flows: Ints, cells: Ints) -> None:
        """Take back the last probes of some flows, which the kernel would not send: they are not lost."""
        self.settle()
        self.next_sequence[flows] -= np.uint32(1)
        self.t1[cells] = 0

    def transmitted(self, cells: Ints, stamp_ns: Ints) -> None:
        """Enter kernel transmit stamps (Unix ns). What is no plausible one for its cell is ignored."""
        self.settle()
        delta = stamp_ns - self.t1[cells]
        # Seen without a sign, what is negative is too large.
        sane = delta.view(np.uint64) < 2**31
        if np.count_nonzero(sane) < len(sane):
            cells, delta = cells[sane], delta[sane]
        self.transmit[cells] = delta
        self.flags[cells] |= STAMPED
        if (longest_ns := int(delta.max(initial=0))) > LONG_WAIT_NS:
            for interval in self.open_intervals():
                interval.put_off(longest_ns)

    def genuine(self, replies: Replies) -> npt.NDArray[np.bool_]:
        """Tell which replies echo number and time of a probe on record: (N,)."""
        return self._genuine(replies, self.t1[self.cells(replies.flow, replies.sequence)])

    def _genuine(self, replies: Replies, t1: Ints) -> npt.NDArray[np.bool_]:
        """Do what `genuine` does; ``t1`` are those of the cells that their numbers lead to."""
        genuine: npt.NDArray[np.bool_] = t1 == replies.echoed_ns
        genuine &= t1 != 0
        genuine &= self.on_record(replies.flow, replies.sequence)
        return genuine

    def forgotten(self, interval: OpenInterval, ahead_s: float) -> bool:
        """Tell whether cells of probes of an interval that is over are others' in ``ahead_s``, or now."""
        assert interval.end is not None
        behind = (self.next_sequence - interval.first).astype(np.int64)
        behind += math.ceil(ahead_s * self.rate_pps)
        return bool(((behind > self.depth) & (interval.end != interval.first)).any())

    def on_record(self, flows: Ints, sequence: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Tell which numbers are of the last ``depth`` of their flows: others lead to the same cells."""
        return self.next_sequence[flows] - sequence - np.uint32(1) < self.depth

    def reply(self, replies: Replies) -> int:
        """Enter replies; return how many were answers to probes of ours, duplicates not counted.

        A reply counts if its sequence number and the time stamp it echoes are those of a probe
        still on record; anything else is a stranger's and changes nothing but ``strangers``.
        """
        self.settle()
        cells = self.cells(replies.flow, replies.sequence)
        t1 = self.t1[cells]
        genuine = self._genuine(replies, t1)
        known = self.flags[cells]
        heard = replies
        fresh = genuine & ((known & (RECEIVED | LATE)) == 0)
        if not fresh.all():
            if not genuine.all():
                self.doubt_strange(replies.flow[~genuine], replies.sequence[~genuine])
                self.strangers += int(np.count_nonzero(~genuine))
                heard = replies.rows(genuine)
            again = genuine & ~fresh
            if again.any():
                self._count_again(replies.flow[again], replies.sequence[again])
                self._doubt_twins(cells[again], replies.number[again], self.number[cells[again]])
            replies = replies.rows(fresh)
            cells, t1, known = cells[fresh], t1[fresh], known[fresh]
        if len(cells) > 1:
            # Whoever wrote a cell last finds its own turn there: only then is no cell twice.
            turns = np.arange(len(cells), dtype=np.uint32)
            self.number[cells] = turns
            if (self.number[cells] != turns).any():
                _, first, which = np.unique(cells, return_index=True, return_inverse=True)
                keep = np.zeros(len(cells), np.bool_)
                keep[first] = True
                self._count_again(replies.flow[~keep], replies.sequence[~keep])
                self._doubt_twins(cells, replies.number, replies.number[first[which]])
                known = self.flags[cells]
                replies = replies.rows(keep)
                cells, t1, known = cells[keep], t1[keep], known[keep]
        elapsed = replies.t4_ns - t1
        in_time = (elapsed <= self.timeout_ns) | ((known & NO_RTT) != 0)
        all_in_time = in_time.all()
        if all_in_time and replies.kernel_t4.all() and replies.numbered.all():
            self.flags[cells] = known | np.uint8(RECEIVED)
        else:
            flags = known | np.where(in_time, np.uint8(RECEIVED), np.uint8(LATE))
            flags |= np.where(replies.kernel_t4, np.uint8(0), np.uint8(USER_TIMES))
            flags |= np.where(replies.numbered, np.uint8(0), np.uint8(DOUBTED))
            self.flags[cells] = flags
        self.elapsed[cells] = elapsed
        self.forward[cells] = replies.t2_ns - t1
        residence = replies.t3_ns - replies.t2_ns
        sane = (residence >= 0) & (residence < 2**31)
        self.residence[cells] = np.where(sane, residence, RESIDENCE_UNKNOWN)
        self.number[cells] = replies.number
        self.dscp_there[cells] = replies.dscp_there
        self.dscp_asked[cells] = replies.dscp_asked
        self.dscp_here[cells] = replies.dscp_here
        self.ttl_there[cells] = replies.ttl_there
        self.ttl_here[cells] = replies.ttl_here
        self.clock_error_there[replies.flow] = replies.clock_error_ns
        if not all_in_time:
            self._late(replies.flow[~in_time], replies.sequence[~in_time])
            on_the_way = elapsed - residence
            held = ~in_time & (on_the_way >= 0) & (on_the_way <= self.timeout_ns)
            held &= residence >= min(HELD_NS, HELD_SHARE * self.timeout_ns)
            if held.any():
                self.mark(
                    suspect_bit("reflector_late"), HELD, pairs=replies.flow[held] // self.ports
                )
        follow_up(self, heard)
        return len(cells)

    def _count_again(self, flows: Ints, sequence: npt.NDArray[np.uint32]) -> None:
        """Count replies to probes that had one already with the oldest interval that those may be of.

        No more is kept of them: who is asked once may answer without end.
        """
        for interval in self.open_intervals():
            ours = np.ones(len(flows), np.bool_)
            if interval.end is not None:
                ours = (sequence - interval.end[flows]).astype(np.int32) < 0
            np.add.at(interval.duplicates, flows[ours], np.uint32(1))
            flows, sequence = flows[~ours], sequence[~ours]

    def _doubt_twins(
        self, cells: Ints, number: npt.NDArray[np.uint32], before: npt.NDArray[np.uint32]
    ) -> None:
        """Doubt probes that were answered twice, with another number: they were counted twice.

        With the same number it was the reply that was duplicated, which nobody counts.
        """
        self.flags[cells[number != before]] |= DOUBTED

    def doubt_strange(self, flows: Ints, sequence: npt.NDArray[np.uint32]) -> None:
        """Note that the reflectors of some flows answered what is not on record, numbered so."""
        self.settle()
        behind = self.next_sequence[flows] - sequence
        old = (behind > self.depth) & (
            behind <= self.next_sequence[flows] - self.first_sequence[flows]
        )
        for which, note in ((~old, FORGED), (old, FORGOTTEN)):
            if which.any():
                self.doubt(flows[which], note)

    def doubt(self, flows: Ints, note: str = FORGED) -> None:
        """Note that the reflectors of some flows answered other packets than probes in their name.

        They counted them, so what they count says nothing of our probes about that time.
        """
        self.settle()
        self.doubt_sequence[flows] = self.next_sequence[flows]
        self.doubted[flows] = True
        self.mark(0, note)

    def forget_doubts(self) -> None:
        """Have done with doubts older than all that is on record and than where directions start."""
        if not self.doubted.any():
            return
        oldest = self.next_sequence - np.uint32(self.depth)
        behind = self.anchored & ((self.anchor_sequence - oldest).astype(np.int32) < 0)
        start = np.where(behind, self.anchor_sequence, oldest)
        self.doubted &= (self.doubt_sequence - start).astype(np.int32) >= 0

    def _late(self, flows: Ints, sequence: npt.NDArray[np.uint32]) -> None:
        """Count late replies whose interval, or flow there, has closed already with the next one."""
        oldest = self.open_intervals()[:1]
        for interval in oldest:
            behind = (sequence - interval.first[flows]).astype(np.int32) < 0
            if behind.any():
                self.late_after_close.append(flows[behind])
            if interval.told and interval.end is not None:
                told = ~behind & (flows < interval.told)
                told &= (sequence - interval.end[flows]).astype(np.int32) < 0
                interval.late_since_told.append(flows[told])
                behind |= told
            # They were numbered after the reply that the next directions start from, perhaps.
            self.anchored[flows[behind]] = False

    # Reload (who goes on with other pairs: `llama.collector.rearranging`)

    def take_rate(self, rate_pps: float) -> bool:
        """Go on at another rate; return False, and do not, if flows have too few cells for it."""
        depth = depth_needed(rate_pps, self.timeout_s, self.interval_s, self.depth)
        if depth != self.depth:
            return False
        self.rate_pps = rate_pps
        self.fastest_pps = max(self.fastest_pps, rate_pps)
        return True
