"""The reflector's protocol: a batch of requests becomes a batch of replies, in place.

`Reflector` answers STAMP (RFC 8762, stateful) and the packets of earlier LLAMA fleets. Most rows of a
batch are alike and are answered by column; a batch of a few, a row of another format, every datagram
where there are keys, and those of Twisted's ordinary UDP port go through `llama.reflector.answer`, the
same rules one at a time.
It never sends more octets than it was sent, never sleeps, and knows nothing of collectors.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from twisted.internet.error import MessageLengthError
from twisted.internet.protocol import DatagramProtocol

from llama.net import mmsg
from llama.net.port import HEAD, LONGEST, BatchPort
from llama.reflector.answer import Answer, Answerer, ntp_now
from llama.reflector.arrival import Arrival, packed_address, read_arrival, read_source
from llama.reflector.guard import REASONS, TOTAL_RATE
from llama.reflector.loops import looks_like_stamp_reply
from llama.wire import llama_go, stamp, tlv

# Octets of our own senders' layout of TLVs, see `llama.wire.tlv`.
_FOLLOW_UP_TYPE = stamp.BASE_SIZE + 9
_STATE_TYPE = stamp.BASE_SIZE + 29
_STATE_LIMITED = stamp.BASE_SIZE + 48
_COUNTED = np.uint8(255)  # refused, for a reason that is not the guard's
CHUNK = 8  # replies that share one T3: it is read, then at most so many are sent
# With so much waiting, replies are late by whole batches, and Follow-Up tells when they left.
MANY, LARGE_CHUNK = 128, 32
_TOS = struct.Struct("<i")
FEW = 3  # up to so many datagrams are answered one at a time
_V4 = 0xFFFF << 32  # ::ffff:0:0/96, under which IPv4 addresses are counted
_FULL = (errno.EAGAIN, errno.ENOBUFS)
#: How it is counted that the kernel did not take a reply.
_NOT_SENT = {
    errno.EAGAIN: "send_buffer_full",
    errno.ENOBUFS: "send_buffer_full",
    errno.EPERM: "send_forbidden",
    errno.EACCES: "send_forbidden",
    errno.ENETUNREACH: "send_no_route",
    errno.EHOSTUNREACH: "send_no_route",
    errno.EINVAL: "send_no_route",  # a source on loopback, and the way to it leads elsewhere
    errno.EMSGSIZE: "send_too_long",
}
#: Of these, what this host denies to one destination. How long a packet may be is the network's doing.
_DENIED = frozenset({"send_forbidden", "send_no_route"})


class Reflector(Answerer, DatagramProtocol):
    """Answers probes on a `BatchPort`, or on Twisted's own UDP port where there is no `recvmmsg`."""

    noisy = False
    _received_s: npt.NDArray[np.uint32]

    def startProtocol(self) -> None:
        """Learn which port this is: nobody but another reflector sends from it."""
        self._local_port = self.transport.getHost().port
        if isinstance(self.transport, BatchPort):
            # Octets 16 to 19: zero in probes by the book, the seconds of T2 in replies.
            self._received_s = self.transport.inbound.octets.view(np.uint32)[:, 4]

    # Twisted's ordinary UDP port: one datagram at a time, user-space stamps, no TTL and no TOS

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer one datagram; ``addr`` is (host, port) or IPv6's longer form."""
        length = len(datagram)
        octets = bytearray(datagram)
        if length < stamp.BASE_SIZE:
            octets.extend(bytes(stamp.BASE_SIZE - length))
        high, low = packed_address(addr[0])
        answer = self.answer(memoryview(octets), length, Arrival(high, low, addr[1]))
        if answer is None:
            return
        del octets[answer.length :]
        if answer.timed:
            answer.depart(octets)
        try:
            self.transport.write(bytes(octets), addr)
        except OSError as reason:
            self._not_sent(reason.errno, (high, low))
        except MessageLengthError:
            self._not_sent(errno.EMSGSIZE, (high, low))
        else:
            self.tally.answered[answer.format] += 1

    # BatchPort: whole batches

    def batchReceived(self, port: BatchPort, count: int) -> None:
        """Answer the first ``count`` datagrams of ``port.inbound``."""
        if count <= FEW or self._keys is not None:
            for row in range(count):
                self._answer_row(port, row)
            return
        inbound = port.inbound
        length = inbound.length[:count]
        odd = port.layout.odd_rows(inbound, 0, count)
        plain = length >= stamp.BASE_SIZE
        plain &= (inbound.flags[:count] & mmsg.MSG_TRUNC) == 0
        if self._legacy:
            plain &= ~llama_go.recognise(inbound.octets[:count], length)
        plain &= tlv.beginning_suffices(inbound.octets[:count], length)
        word = port.layout.offsets[port.pktinfo] // 8
        asked = inbound.words[:count, word]
        if port.family == socket.AF_INET:  # our own address and the one asked: unlike for groups
            destination = inbound.words[:count, word + 1] & np.uint64(0xFFFFFFFF)
            plain &= asked >> np.uint64(32) == destination
        else:
            plain &= asked & np.uint64(0xFF) != np.uint64(0xFF)
        if odd.size:
            plain[odd] = False
        if np.count_nonzero(plain) == count:
            self._answer_batch(port, None, count)
            return
        rows = np.flatnonzero(plain)
        if rows.size:
            self._answer_batch(port, rows, count)
        for row in np.flatnonzero(~plain).tolist():
            self._answer_row(port, row)

    def _answer_row(self, port: BatchPort, row: int) -> None:
        """Answer one datagram of a batch through `answer`, with what the kernel said of it."""
        inbound, outbound = port.inbound, port.outbound
        length, flags = inbound.received(row)
        if length > LONGEST or flags & mmsg.MSG_TRUNC:
            self.tally.received += 1
            self.tally.drop("oversize")
            return
        arrival, reply_from = read_arrival(port, row)
        octets = inbound.octets_view[row * HEAD : (row + 1) * HEAD]
        if length > HEAD:  # looked at as a whole, and put back into its two parts
            whole = memoryview(bytearray(octets) + inbound.tails[row, : length - HEAD].tobytes())
            answer = self.answer(whole, length, arrival)
            octets[:] = whole[:HEAD]
            inbound.tails[row, : length - HEAD] = whole[HEAD:]
        else:
            answer = self.answer(octets, length, arrival)
        if answer is None:
            return
        if answer.ttl is not None:
            self._send_echo(port, row, answer, reply_from)
            return
        pktinfo = row * outbound.control_room + 16
        outbound.control_view[pktinfo : pktinfo + len(reply_from)] = reply_from
        wanted = answer.place >= 0 and port.stamped
        control = port.plain_control  # best effort is what the socket sends by itself
        if answer.tos or wanted:
            control = port.reply_layout.room if wanted else port.classed_control
            tos = pktinfo - 16 + port.reply_layout.offsets[port.tos]
            _TOS.pack_into(outbound.control_view, tos, answer.tos)
        if wanted:
            self._tag(port, row, answer.place)
        outbound.describe(row, answer.length, control, inbound)
        if answer.timed:
            answer.depart(octets)
        self.tally.answered[answer.format] += self._send(port, row, 1)
        if wanted:
            port.stamps_due += 1
            port.read_transmit_stamps()

    def _send_echo(self, port: BatchPort, row: int, answer: Answer, reply_from: bytes) -> None:
        """Send a legacy packet back, with a TTL of its own."""
        v4 = port.family == socket.AF_INET
        level, kind = port.tos
        ancillary = [
            (*port.pktinfo, reply_from),
            (level, kind, struct.pack("<i", answer.tos)),
            (level, mmsg.IP_TTL if v4 else mmsg.IPV6_HOPLIMIT, struct.pack("<i", answer.ttl)),
        ]
        try:
            port.send_row(row, answer.length, ancillary)
        except OSError as reason:
            self._not_sent(reason.errno, read_source(port, row))
        else:
            self.tally.answered[answer.format] += 1

    def _tag(self, port: BatchPort, row: int, place: int) -> None:
        """Give one reply an identifier that leads from its transmit stamp back to its session."""
        offset = port.reply_layout.offsets[mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID]
        where = row * port.outbound.control_room + offset
        number = self.sessions.sent_view[place] - 1 & self._turn_mask
        struct.pack_into(
            "<I", port.outbound.control_view, where, place | number << self._turn_shift
        )

    @property
    def _turn_shift(self) -> int:
        return (self.sessions.capacity - 1).bit_length()

    @property
    def _turn_mask(self) -> int:
        return (1 << 32 - self._turn_shift) - 1

    def _answer_batch(self, port: BatchPort, rows: npt.NDArray[np.intp] | None, count: int) -> None:
        """Answer STAMP requests by column: rows ``rows``, or all of the first ``count`` if None."""
        now, tick = self._now()
        inbound, outbound = port.inbound, port.outbound
        octets = inbound.octets
        which: Any = slice(0, count) if rows is None else rows
        self.tally.received += count if rows is None else len(rows)

        if port.family == socket.AF_INET:
            source_port = inbound.names4["port"][which]
            high = None
            low = inbound.names4["address"][which].astype(np.uint64) | np.uint64(_V4)
        else:
            source_port = inbound.names6["port"][which]
            high = inbound.names6["high"][which].astype(np.uint64)
            low = inbound.names6["low"][which].astype(np.uint64)
        refused = self.guard.admit(high, low, source_port, now)
        if np.count_nonzero(self._received_s[which]):
            replies = looks_like_stamp_reply(octets[which], inbound.length[which], ntp_now())
            replies &= refused == 0  # the guard's own reason goes first, and is counted below
            if replies.any():
                self.tally.drop("loop", int(np.count_nonzero(replies)))
                refused = np.where(replies, _COUNTED, refused)
        if self._provisioned is not None:
            ssid = stamp.sender_view(octets)["ssid"][which]
            strange = ~self._provisioned.known(high, low, source_port, ssid) & (refused == 0)
            self.tally.drop("no_session", int(np.count_nonzero(strange)))
            refused = np.where(strange, _COUNTED, refused)
        if np.count_nonzero(refused):
            keep = np.flatnonzero(refused == 0)
            self._count_refusals(refused)
            rows = keep if rows is None else rows[keep]
            which = rows
            if not rows.size:
                return
            source_port, low = source_port[keep], low[keep]
            high = None if high is None else high[keep]

        words = inbound.words
        pktinfo = port.layout.offsets[port.pktinfo] // 8
        if port.family == socket.AF_INET:
            asked = words[which, pktinfo]
            local = asked >> np.uint64(32)
            outbound.words[which, 2] = asked & np.uint64(0xFFFFFFFF00000000)
            tos = words[which, port.layout.offsets[mmsg.SOL_IP, mmsg.IP_TOS] // 8]
            ttl = words[which, port.layout.offsets[mmsg.SOL_IP, mmsg.IP_TTL] // 8]
        else:
            asked = words[which, pktinfo]
            local = asked * np.uint64(31) ^ words[which, pktinfo + 1]
            outbound.words[which, 2] = asked
            outbound.words[which, 3] = words[which, pktinfo + 1]
            # Only a link-local reply needs to be told its interface; others follow the routes.
            near = (asked & np.uint64(0xC0FF)) == np.uint64(0x80FE)
            outbound.words[which, 4] = np.where(near, words[which, pktinfo + 2], np.uint64(0))
            tos = words[which, port.layout.offsets[mmsg.SOL_IPV6, mmsg.IPV6_TCLASS] // 8]
            ttl = words[which, port.layout.offsets[mmsg.SOL_IPV6, mmsg.IPV6_HOPLIMIT] // 8]

        reply = stamp.reflector_view(octets)
        ends = source_port.astype(np.uint64) << np.uint64(32)
        ends |= reply["ssid"][which].astype(np.uint64)
        ends |= np.uint64(self._local_port << 16)
        places = self.sessions.places(self.sessions.keys(high, low, ends, local), tick)
        numbers = self.sessions.number(places)

        octets[which, 24:38] = octets[which, 0:14]
        octets[which, 38:40] = 0
        reply["sequence"][which] = numbers
        reply["error_estimate"][which] = self._error_estimate
        reply["receive_timestamp"][which] = stamp.ntp_from_timespec(
            words[which, 2], words[which, 3]
        )
        octets[which, 40] = ttl
        octets[which, 41:44] = 0

        length = inbound.length[which]
        longer = length > HEAD
        if np.count_nonzero(longer):
            outbound.iov_length[which] = np.minimum(length, HEAD)
            outbound.tail_length[which] = np.maximum(length, HEAD) - HEAD
            outbound.iovlen[which] = 1 + longer
        else:
            outbound.iov_length[which] = length
            outbound.iovlen[which] = 1  # the tail is not looked at
        outbound.namelen[which] = inbound.namelen[which]
        wanted = None
        if np.count_nonzero(length > stamp.BASE_SIZE):
            reply_tos, wanted = self._answer_tlvs_by_column(
                port, which, length, tos.astype(np.uint8), places
            )
            for own in (self.guard.refusals(high, low), self.tally.unsent.counts(high, low)):
                if own is not None and own.any():
                    self._tell_own(octets, which, own)
        else:
            reply_tos = tos & np.uint64(0xFC)
        outbound.words[which, port.reply_layout.offsets[port.tos] // 8] = reply_tos
        # Best effort is what the socket sends by itself, and cheaper not to be told.
        outbound.controllen[which] = np.where(
            reply_tos == 0, port.plain_control, port.classed_control
        )
        if wanted is not None:
            self._ask_for_stamps(port, which, wanted, places, numbers)
        self._depart(port, rows, count, reply["timestamp"])
        if wanted is not None:
            port.read_transmit_stamps()

    def _answer_tlvs_by_column(
        self,
        port: BatchPort,
        which: Any,
        length: npt.NDArray[Any],
        tos: npt.NDArray[np.uint8],
        places: npt.NDArray[np.intp],
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

    def _ask_for_stamps(
        self,
        port: BatchPort,
        which: Any,
        wanted: npt.NDArray[np.bool_],
        places: npt.NDArray[np.intp],
        numbers: npt.NDArray[np.uint32],
    ) -> None:
        """Have the kernel stamp the ``wanted`` replies, and name the session of each (see `_tag`)."""
        rows = np.flatnonzero(wanted) if isinstance(which, slice) else which[wanted]
        turn = numbers[wanted].astype(np.uint64) & np.uint64(self._turn_mask)
        offset = port.reply_layout.offsets[mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID]
        port.outbound.words[rows, offset // 8] = places[wanted].astype(
            np.uint64
        ) | turn << np.uint64(self._turn_shift)
        port.outbound.controllen[rows] = port.reply_layout.room
        port.stamps_due += len(rows)

    @staticmethod
    def _tell_own(octets: npt.NDArray[np.uint8], which: Any, own: npt.NDArray[np.uint32]) -> None:
        """Add what is each source's own to the refusals that its reply tells of, in our layout."""
        told = octets[:, _STATE_LIMITED : _STATE_LIMITED + 4].view(">u4")[:, 0]
        ours = (octets[which, _STATE_TYPE] == tlv.STATE) & (octets[which, _STATE_TYPE - 1] == 0)
        told[which] += np.where(ours, own, np.uint32(0))

    def _depart(
        self,
        port: BatchPort,
        rows: npt.NDArray[np.intp] | None,
        count: int,
        timestamp: npt.NDArray[Any],
    ) -> None:
        """Stamp T3 and send, a chunk at a time."""
        if rows is not None:
            port.outbound.pick(rows)
            count = len(rows)
        size = CHUNK if count < MANY else LARGE_CHUNK
        taken = 0
        for first in range(0, count, size):
            end = min(first + size, count)
            chunk: Any = slice(first, end) if rows is None else rows[first:end]
            timestamp[chunk] = ntp_now()
            taken += self._send(port, first, end - first, rows)
        self.tally.answered["stamp"] += taken

    def _send(
        self,
        port: BatchPort,
        first: int,
        count: int,
        rows: npt.NDArray[np.intp] | None = None,
    ) -> int:
        """Hand replies to the kernel and return how many it took; the others are never queued.

        With ``rows``, which are picked, ``first`` counts in these.
        """
        end = first + count
        failed = 0
        while first < end:
            try:
                first += port.outbound.send(port.fd, first, end - first, picked=rows is not None)
            except OSError as reason:
                row = first if rows is None else int(rows[first])
                source = read_source(port, row)
                if reason.errno in _FULL:
                    self._not_sent(reason.errno, source, end - first)
                    return count - failed - (end - first)
                # One reply could not go (EPERM of a firewall, no route); the others can.
                self._not_sent(reason.errno, source)
                failed += 1
                first += 1
        return count - failed

    def _not_sent(self, number: int | None, source: tuple[int, int], count: int = 1) -> None:
        """Count replies that the kernel did not take, by its reason, an ``errno``.

        ``source`` are the halves of the address that the first of them was for.
        """
        reason = _NOT_SENT.get(number or 0, "send_failed")
        self.tally.drop(reason, count)
        # Our own doing, as a limit is: nobody is to blame the network for it.
        if number in _FULL:
            self.tally.limited += count
        elif reason in _DENIED:
            self.tally.unsent.add(*source)

    def _count_refusals(self, refused: npt.NDArray[np.uint8]) -> None:
        codes, counts = np.unique(refused[(refused > 0) & (refused < _COUNTED)], return_counts=True)
        for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
            self.tally.drop(REASONS[code], number)
            if code == TOTAL_RATE:
                self.tally.limited += number

    def transmitStampsReceived(
        self,
        ids: npt.NDArray[np.uint64],
        seconds: npt.NDArray[np.uint64],
        ns: npt.NDArray[np.uint64],
    ) -> None:
        """Remember when replies really left, for the next Follow-Up Telemetry of their sessions.

        A stamp names a place and the low bits of a number, not a session. One that is read after its
        place went to another session is dropped unless that has been sent as many replies already;
        only then does it tell the new session of a reply of its own, but with the old one's time.
        """
        sessions = self.sessions
        places = (ids & np.uint64(sessions.capacity - 1)).astype(np.intp)
        turn = (ids >> np.uint64(self._turn_shift)).astype(np.uint32)
        sent = sessions.sent[places]
        newest = sent - np.uint32(1)
        behind = (newest - turn) & np.uint32(self._turn_mask)
        known = behind < sent
        places = places[known]
        sessions.follow_sequence[places] = (newest - behind)[known]
        sessions.follow_stamp[places] = stamp.ntp_from_timespec(seconds, ns)[known]

    def transmitStampReceived(self, identifier: int, seconds: int, ns: int) -> None:
        """Do what `transmitStampsReceived` does, for one reply."""
        sessions = self.sessions
        place = identifier & sessions.capacity - 1
        sent = sessions.sent_view[place]
        newest = sent - 1
        behind = newest - (identifier >> self._turn_shift) & self._turn_mask
        if behind >= sent:  # the place has gone to a new session
            return
        sessions.follow_sequence[place] = newest - behind & 0xFFFFFFFF
        sessions.follow_stamp[place] = stamp.ntp_from_unix_ns(seconds * 1_000_000_000 + ns)
