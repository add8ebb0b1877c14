"""A batch of STAMP requests and their replies: the rules of `llama.reflector.answer`, by column."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llama.net import mmsg
from llama.net.port import HEAD, BatchPort
from llama.reflector.answer import Answerer, ntp_now
from llama.reflector.guard import REASONS, TOTAL_RATE
from llama.reflector.loops import looks_like_stamp_reply
from llama.wire import stamp, tlv

Rows = npt.NDArray[np.intp]
Words = npt.NDArray[np.uint64]

# Octets of our own senders' layout of TLVs, see `llama.wire.tlv`.
_FOLLOW_UP_TYPE = stamp.BASE_SIZE + 9
_STATE_TYPE = stamp.BASE_SIZE + 29
_STATE_LIMITED = stamp.BASE_SIZE + 48
_COUNTED = np.uint8(255)  # refused, for a reason that is not the guard's
_V4 = 0xFFFF << 32  # ::ffff:0:0/96, under which IPv4 addresses are counted


class Sources(NamedTuple):
    """Whom requests came from: (N,) each."""

    high: Words | None  # upper half of the address as IPv6; None: all of them are IPv4
    low: Words
    port: npt.NDArray[np.uint16]

    def rows(self, keep: Rows) -> Sources:
        """Return some of them."""
        high = None if self.high is None else self.high[keep]
        return Sources(high, self.low[keep], self.port[keep])


class Arrivals(NamedTuple):
    """What the kernel said of requests, as `llama.reflector.arrival.Arrival` has it of one: (N,) each."""

    local: Words
    received_ntp: Words
    ttl: Words
    tos: Words


class Ready(NamedTuple):
    """Replies that lie in a port's rooms, T3 left to their departure."""

    rows: Rows | None  # None: all of the batch
    stamped: bool  # whether the kernel is asked when some of them leave


class BatchAnswerer(Answerer):
    """Answers whole batches, likewise in place."""

    def answer_batch(self, port: BatchPort, rows: Rows | None, count: int) -> Ready | None:
        """Turn STAMP requests into replies: rows ``rows``, or all of the first ``count`` if None.

        Returns None, having counted why, where there is nothing to answer.
        """
        now, tick = self._now()
        which: Any = slice(0, count) if rows is None else rows
        self.tally.received += count if rows is None else len(rows)
        sources = _read_sources(port, which)
        refused = self._judge(port, which, sources, now)
        if np.count_nonzero(refused):
            keep = np.flatnonzero(refused == 0)
            self._count_refusals(refused)
            rows = keep if rows is None else rows[keep]
            which = rows
            if not rows.size:
                return None
            sources = sources.rows(keep)
        arrivals = _turn_round(port, which)
        octets = port.inbound.octets
        reply = stamp.reflector_view(octets)
        ends = sources.port.astype(np.uint64) << np.uint64(32)
        ends |= reply["ssid"][which].astype(np.uint64)
        ends |= np.uint64(self._local_port << 16)
        keys = self.sessions.keys(sources.high, sources.low, ends, arrivals.local)
        places = self.sessions.places(keys, tick)
        numbers = self.sessions.number(places)

        octets[which, 24:38] = octets[which, 0:14]
        octets[which, 38:40] = 0
        reply["sequence"][which] = numbers
        reply["error_estimate"][which] = self._error_estimate
        reply["receive_timestamp"][which] = arrivals.received_ntp
        octets[which, 40] = arrivals.ttl
        octets[which, 41:44] = 0

        length = _take_lengths(port, which)
        wanted = None
        if np.count_nonzero(length > stamp.BASE_SIZE):
            reply_tos, wanted = self._answer_tlvs_by_column(
                port, which, length, arrivals.tos.astype(np.uint8), places
            )
            refusals = self.guard.refusals(sources.high, sources.low)
            unsent = self.tally.unsent.counts(sources.high, sources.low)
            for own in (refusals, unsent):
                if own is not None and own.any():
                    _tell_own(octets, which, own)
        else:
            reply_tos = arrivals.tos & np.uint64(0xFC)
        outbound = port.outbound
        outbound.words[which, port.reply_layout.offsets[port.tos] // 8] = reply_tos
        # Best effort is what the socket sends by itself, and cheaper not to be told.
        outbound.controllen[which] = np.where(
            reply_tos == 0, port.plain_control, port.classed_control
        )
        if wanted is not None:
            asking = np.flatnonzero(wanted) if rows is None else rows[wanted]
            self.departures.ask(port, asking, places[wanted], numbers[wanted])
        return Ready(rows, wanted is not None)

    def _judge(
        self, port: BatchPort, which: Any, sources: Sources, now: float
    ) -> npt.NDArray[np.uint8]:
        """Return why each request is not answered: a reason of the guard's, `_COUNTED`, or 0."""
        octets = port.inbound.octets
        refused = self.guard.admit(sources.high, sources.low, sources.port, now)
        # Octets 16 to 19: zero in probes by the book, the seconds of T2 in replies.
        if np.count_nonzero(octets.view(np.uint32)[which, 4]):
            replies = looks_like_stamp_reply(octets[which], port.inbound.length[which], ntp_now())
            replies &= refused == 0  # the guard's own reason goes first, and is counted below
            if replies.any():
                self.tally.drop("loop", int(np.count_nonzero(replies)))
                refused = np.where(replies, _COUNTED, refused)
        if self._provisioned is not None:
            ssid = stamp.sender_view(octets)["ssid"][which]
            strange = ~self._provisioned.known(sources.high, sources.low, sources.port, ssid)
            strange &= refused == 0
            self.tally.drop("no_session", int(np.count_nonzero(strange)))
            refused = np.where(strange, _COUNTED, refused)
        return refused

    def _answer_tlvs_by_column(
        self,
        port: BatchPort,
        which: Any,
        length: npt.NDArray[Any],
        tos: npt.NDArray[np.uint8],
        places: Rows,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
        """Process the TLVs of a batch; return (TOS of each reply, which of them are to be stamped)."""
        octets = port.inbound.octets[which]
        # Where our own senders, and most others that ask, have their Follow-Up TLV; a session
        # that has it elsewhere is served when its probes come one at a time.
        wanted = octets[:, _FOLLOW_UP_TYPE] == tlv.FOLLOW_UP
        wanted &= length >= stamp.BASE_SIZE + tlv.SIZE
        if self.sessions.crowded:
            wanted &= places < self.sessions.capacity  # others are not remembered
        reply_tos = tlv.reflect(
            octets, length, tos, self.sessions.follow_sequence[places],
            self.sessions.follow_stamp[places], self._state(), self._permitted,
        )  # fmt: skip
        if not isinstance(which, slice):
            port.inbound.octets[which] = octets
        return reply_tos, wanted if port.stamped and wanted.any() else None

    def _count_refusals(self, refused: npt.NDArray[np.uint8]) -> None:
        codes, counts = np.unique(refused[(refused > 0) & (refused < _COUNTED)], return_counts=True)
        for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
            self.tally.drop(REASONS[code], number)
            if code == TOTAL_RATE:
                self.tally.limited += number


def _read_sources(port: BatchPort, which: Any) -> Sources:
    """Return whom some rows of a batch came from."""
    inbound = port.inbound
    if port.family == socket.AF_INET:
        address = inbound.names4["address"][which].astype(np.uint64)
        return Sources(None, address | np.uint64(_V4), inbound.names4["port"][which])
    return Sources(
        inbound.names6["high"][which].astype(np.uint64),
        inbound.names6["low"][which].astype(np.uint64),
        inbound.names6["port"][which],
    )


def _turn_round(port: BatchPort, which: Any) -> Arrivals:
    """Have the replies of some rows leave from where they were asked; return how their requests came."""
    words, outbound = port.inbound.words, port.outbound
    pktinfo = port.layout.offsets[port.pktinfo] // 8
    asked = words[which, pktinfo]
    if port.family == socket.AF_INET:
        local = asked >> np.uint64(32)
        outbound.words[which, 2] = asked & np.uint64(0xFFFFFFFF00000000)
        tos_word = port.layout.offsets[mmsg.SOL_IP, mmsg.IP_TOS] // 8
        ttl_word = port.layout.offsets[mmsg.SOL_IP, mmsg.IP_TTL] // 8
    else:
        local = asked * np.uint64(31) ^ words[which, pktinfo + 1]
        outbound.words[which, 2] = asked
        outbound.words[which, 3] = words[which, pktinfo + 1]
        # Only a link-local reply needs to be told its interface; others follow the routes.
        near = (asked & np.uint64(0xC0FF)) == np.uint64(0x80FE)
        outbound.words[which, 4] = np.where(near, words[which, pktinfo + 2], np.uint64(0))
        tos_word = port.layout.offsets[mmsg.SOL_IPV6, mmsg.IPV6_TCLASS] // 8
        ttl_word = port.layout.offsets[mmsg.SOL_IPV6, mmsg.IPV6_HOPLIMIT] // 8
    received_ntp = stamp.ntp_from_timespec(words[which, 2], words[which, 3])
    outbound.namelen[which] = port.inbound.namelen[which]
    return Arrivals(local, received_ntp, words[which, ttl_word], words[which, tos_word])


def _take_lengths(port: BatchPort, which: Any) -> npt.NDArray[Any]:
    """Have replies as long as their requests; return how long: (N,)."""
    outbound = port.outbound
    length: npt.NDArray[Any] = port.inbound.length[which]
    longer = length > HEAD
    if np.count_nonzero(longer):
        outbound.iov_length[which] = np.minimum(length, HEAD)
        outbound.tail_length[which] = np.maximum(length, HEAD) - HEAD
        outbound.iovlen[which] = 1 + longer
    else:
        outbound.iov_length[which] = length
        outbound.iovlen[which] = 1  # the tail is not looked at
    return length


def _tell_own(octets: npt.NDArray[np.uint8], which: Any, own: npt.NDArray[np.uint32]) -> None:
    """Add what is each source's own to the refusals that its reply tells of, in our layout."""
    told = octets[:, _STATE_LIMITED : _STATE_LIMITED + 4].view(">u4")[:, 0]
    ours = (octets[which, _STATE_TYPE] == tlv.STATE) & (octets[which, _STATE_TYPE - 1] == 0)
    told[which] += np.where(ours, own, np.uint32(0))
