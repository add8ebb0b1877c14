"""The reflector's protocol: a batch of requests becomes a batch of replies, in place.

`Reflector` answers STAMP (RFC 8762, stateful) and the packets of earlier LLAMA fleets. Most rows of a
batch are alike and are answered by column; a batch of a few, a row of another format, every datagram
where there are keys, and those of Twisted's ordinary UDP port go through `llama.reflector.answer`, the
same rules one at a time.
It never sends more octets than it was sent, but to short probes of listed sources; it never sleeps, and
knows nothing of collectors.
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
from llama.reflector.allow import MAPPED
from llama.reflector.answer import Answer, ntp_now
from llama.reflector.answer_batch import BatchAnswerer, Rows
from llama.reflector.arrival import (
    Arrival,
    is_somebody,
    packed_address,
    read_arrival,
    read_source,
)
from llama.wire import llama_go, stamp, tlv

CHUNK = 8  # replies that share one T3: it is read, then at most so many are sent
# With so much waiting, replies are late by whole batches, and Follow-Up tells when they left.
MANY, LARGE_CHUNK = 128, 32
_TOS = struct.Struct("<i")
FEW = 3  # up to so many datagrams are answered one at a time
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


class Reflector(BatchAnswerer, DatagramProtocol):
    """Answers probes on a `BatchPort`, or on Twisted's own UDP port where there is no `recvmmsg`."""

    noisy = False

    def startProtocol(self) -> None:
        """Learn which port this is: nobody but another reflector sends from it."""
        self._local_port = self.transport.getHost().port

    # Twisted's ordinary UDP port: one datagram at a time, user-space stamps, no TTL and no TOS

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer one datagram; ``addr`` is (host, port) or IPv6's longer form."""
        length = len(datagram)
        octets = bytearray(datagram)
        if length < stamp.BASE_SIZE:
            octets.extend(bytes(stamp.BASE_SIZE - length))
        high, low = packed_address(addr[0])
        # As a source, 0.0.0.0 is nobody; as a destination it is this machine itself.
        somebody = is_somebody(high, low) if ":" in addr[0] else low != MAPPED
        arrival = Arrival(high, low, addr[1], unicast=somebody)
        answer = self.answer(memoryview(octets), length, arrival)
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
            high, low = (inbound.names6[half][:count] for half in ("high", "low"))
            if not high.all():  # loopback, or what nobody has over IPv6: none or an IPv4 address
                within = low.astype(np.uint64)
                plain &= (high != 0) | ((within != 0) & (within >> np.uint64(32) != 0xFFFF))
        if odd.size:
            plain[odd] = False
        if np.count_nonzero(plain) == count:
            self._answer_rows(port, None, count)
            return
        rows = np.flatnonzero(plain)
        if rows.size:
            self._answer_rows(port, rows, count)
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
            self.departures.ask_one(port, row, answer.place)
        outbound.describe(row, answer.length, control, inbound)
        if answer.timed:
            answer.depart(octets)
        self.tally.answered[answer.format] += self._send(port, row, 1)
        if wanted:
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

    def _answer_rows(self, port: BatchPort, rows: Rows | None, count: int) -> None:
        """Answer rows by column, all of the first ``count`` if None."""
        ready = self.answer_batch(port, rows, count)
        if ready is None:
            return
        self._depart(port, ready.rows, count)
        if ready.stamped:
            port.read_transmit_stamps()

    def _depart(self, port: BatchPort, rows: Rows | None, count: int) -> None:
        """Stamp T3 and send, a chunk at a time."""
        timestamp = stamp.reflector_view(port.inbound.octets)["timestamp"]
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
        rows: Rows | None = None,
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

    def transmitStampsReceived(
        self,
        ids: npt.NDArray[np.uint64],
        seconds: npt.NDArray[np.uint64],
        ns: npt.NDArray[np.uint64],
    ) -> None:
        """Remember when replies really left, for the next Follow-Up Telemetry of their sessions."""
        self.departures.enter(ids, seconds, ns)

    def transmitStampReceived(self, identifier: int, seconds: int, ns: int) -> None:
        """Do what `transmitStampsReceived` does, for one reply."""
        self.departures.enter_one(identifier, seconds, ns)
