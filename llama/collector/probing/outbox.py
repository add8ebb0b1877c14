"""Probes of one track, made ready before they are due.

All that can be known of a probe beforehand is written for many of them at once: address, class,
size, identifier, sequence number. When they are sent only the time is left to write.
"""

from __future__ import annotations

import math
import socket
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.replies import Ints
from llama.collector.probing.inbox import HEAD
from llama.collector.probing.schedule import BURST, Burst
from llama.collector.probing.track import Track
from llama.net import mmsg
from llama.net.clock import clock_error_ns
from llama.net.mmsg import Layout, Messages
from llama.net.port import LONGEST
from llama.wire import stamp

AHEAD_S = 0.05  # for which probes are made ready at once
MOST = 384  # of them: a probe is no cheaper with more
ESTIMATED_NS = 1_000_000_000  # so often the kernel is asked how good its clock is


class Outbox:
    """The next probes of a track in the order of its schedule, one in each row of ``out``.

    ``probes`` says of each row which probe it is. ``ids`` says whether a
    datagram carries an identifier for its transmit stamp; ``padding`` is what large probes end with.
    """

    def __init__(self, track: Track, *, ids: bool, padding: npt.NDArray[np.uint8]) -> None:
        self._track = track
        self._total = len(track.schedule.flows)
        ahead = math.ceil(track.schedule.probes_per_s * AHEAD_S)
        # No more than there are flows: none may be there twice.
        rows = min(max(BURST, min(ahead, MOST)), self._total)
        family = track.sockets[0].family
        v4 = family == socket.AF_INET
        tos = (mmsg.SOL_IP, mmsg.IP_TOS) if v4 else (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS)
        identifier = [(mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID, 4)] if ids else []
        layout = Layout([*identifier, (*tos, 4)])
        self._classed = layout.room
        self._unclassed = layout.offsets[tos] - 16
        self.out = Messages(rows, HEAD, layout.room, tail=LONGEST, padding=padding)
        self.out.namelen[:] = mmsg.SOCKADDR_IN.itemsize if v4 else mmsg.SOCKADDR_IN6.itemsize
        layout.write_headers(self.out)
        self._tos = self.out.words[:, layout.word(*tos)]
        self._id = self.out.words[:, layout.word(*identifier[0][:2])] if ids else None
        probes = stamp.sender_view(self.out.octets)
        self._sequence: npt.NDArray[Any] = probes["sequence"]
        self._timestamp: npt.NDArray[Any] = probes["timestamp"]
        at = track.estimate_at
        estimates = None if at is None else self.out.octets[:, at : at + 2].view(">u2")[:, 0]
        self._estimate: npt.NDArray[Any] | None = estimates
        self._estimated = stamp.error_estimate(None)
        self._estimated_ns = 0
        self._several = len(track.ssids) > 1
        apart_ns = 1 if track.format is None else track.format.apart_ns
        self._apart_ns: Ints = np.arange(rows) * apart_ns
        self.probes = track.ledger.upcoming(np.zeros(0, np.int64))
        self._place = 0  # in the schedule, of the next row
        self._next = rows  # the first row that is not sent yet
        #: Which of the track's classes and sizes each row has.
        self._variant: npt.NDArray[np.intp] = np.zeros(rows, np.intp)
        self._dress(np.full(rows, track.schedule.order[0]))

    def forget(self) -> None:
        """Make all probes ready anew: their cells have other numbers."""
        self._next = self.out.slots

    def ready(self, burst: Burst) -> slice:
        """Return the rows that hold the probes of a burst; they count as sent from now on."""
        first, end = self._next, self._next + len(burst.flows)
        if burst.place != self._place or end > self.out.slots:
            self._refill(burst.place)
            first, end = 0, len(burst.flows)
        self._next = end
        self._place = (burst.place + end - first) % self._total
        return slice(first, end)

    def _refill(self, place: int) -> None:
        """Make probes ready from a place in the schedule on."""
        track, rows = self._track, self.out.slots
        turn = place % len(track.schedule.order)
        self.probes = track.ledger.upcoming(_stretch(track.schedule.flows, place, rows))
        self.out.names[:] = _stretch(track.names_in_order, turn, rows)
        if self._id is not None:
            self._id[:] = self.probes.cells + track.first_cell
        if self._several:
            self._dress(_stretch(track.schedule.order, turn, rows))
        self._number()

    def _dress(self, pairs: npt.NDArray[np.intp]) -> None:
        """Give each row the class and size of a pair. If all have the same, once is enough."""
        track, out = self._track, self.out
        self._variant = track.variant[pairs]
        out.octets[:] = track.templates[self._variant]
        self._tell_error()
        out.iov_length[:] = track.head[self._variant]
        out.tail_length[:] = track.tail[self._variant]
        out.iovlen[:] = np.where(out.tail_length, 2, 1)
        self._tos[:] = tos = track.tos[pairs]
        # Best effort is what the socket sends by itself, and cheaper not to be told.
        out.controllen[:] = np.where(tos == 0, self._unclassed, self._classed)

    def _number(self) -> None:
        """Write the sequence numbers, and what else the packet says of its flow."""
        if self._track.format is None:
            self._sequence[:] = self.probes.sequence

    def stamp(self, rows: slice, t1_ns: int) -> int | Ints:
        """Write the time into probes that are about to be sent; return T1, of all or (N,)."""
        track = self._track
        if abs(t1_ns - self._estimated_ns) >= ESTIMATED_NS:
            self._estimated_ns = t1_ns
            self._estimated = stamp.error_estimate(clock_error_ns())
            self._tell_error()
        if track.format is None and not self._several:
            self._timestamp[rows] = stamp.ntp_from_unix_ns(t1_ns)
            return t1_ns
        # Peers that return no SSID tell classes apart by the time; those that echo take octets that
        # come again and again, be it at other addresses of theirs, for a loop.
        times: Ints = t1_ns - self._apart_ns[: rows.stop - rows.start]
        if track.format is None:
            self._timestamp[rows] = stamp.ntp_column(times)
        else:
            ssids = track.ssids[self._variant[rows]]
            track.format.write(self.out.octets[rows], ssids, self.probes.sequence[rows], times)
        return times

    def _tell_error(self) -> None:
        """Write what our own clock may be off by (RFC 8762 section 4.2.1)."""
        if self._estimate is not None:
            self._estimate[:] = self._estimated


def _stretch(column: npt.NDArray[Any], first: int, count: int) -> npt.NDArray[Any]:
    """Return ``count`` rows of a column from ``first`` on; it begins anew where it ends."""
    if first + count <= len(column):
        return column[first : first + count]
    return column[np.arange(first, first + count) % len(column)]
