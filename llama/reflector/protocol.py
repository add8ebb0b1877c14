"""The reflector's protocol: a batch of requests becomes a batch of replies, in place.

`Reflector` answers STAMP (RFC 8762, stateful) and the packets of earlier LLAMA fleets. Most rows of a
batch are alike and are answered by column; a batch of a few, a row of another format, every datagram
where there are keys, and those of Twisted's ordinary UDP port go through `Reflector.answer`, the same
rules one at a time.
It never sends more octets than it was sent, never sleeps, and knows nothing of collectors.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import define
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from llama.net import mmsg
from llama.net.port import HEAD, LONGEST, BatchPort
from llama.reflector import signed
from llama.reflector.guard import REASONS, TOTAL_RATE, Guard
from llama.reflector.keyring import KeyRing
from llama.reflector.legacy import echo_class
from llama.reflector.loops import Echoes, looks_like_stamp_reply, looks_like_stamp_reply_one
from llama.reflector.provisioned import Provisioned
from llama.reflector.sessions import Sessions
from llama.reflector.tally import Tally
from llama.wire import auth, llama_go, scalar, stamp, tlv

# Octets of our own senders' layout of TLVs, see `llama.wire.tlv`.
_FOLLOW_UP_TYPE = stamp.BASE_SIZE + 9
_STATE_TYPE = stamp.BASE_SIZE + 29
_STATE_LIMITED = stamp.BASE_SIZE + 48
_COUNTED = np.uint8(255)  # refused, for a reason that is not the guard's
CHUNK = 8  # replies that share one T3: it is read, then at most so many are sent
# With so much waiting, replies are late by whole batches, and Follow-Up tells when they left.
MANY, LARGE_CHUNK = 128, 32
_DISTINCT = 64  # octets with which no two probes of earlier fleets begin
FEW = 3  # up to so many datagrams are answered one at a time
_V4 = 0xFFFF << 32  # ::ffff:0:0/96, under which IPv4 addresses are counted
# The ancillary data of an IPv4 datagram as it nearly always comes: stamp, PKTINFO, TTL, TOS.
_USUAL_V4 = struct.Struct("<qiiqq32xqii4xI4s4xqiii4xqiiB")
_USUAL_KINDS_V4 = (
    16 + 48, mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, 16 + 12, mmsg.SOL_IP, mmsg.IP_PKTINFO,
    16 + 4, mmsg.SOL_IP, mmsg.IP_TTL, 16 + 1, mmsg.SOL_IP, mmsg.IP_TOS,
)  # fmt: skip
_PKTINFO_V4 = struct.Struct("<II4s")
_PAIR = struct.Struct(">QQ")
_REQUEST = struct.Struct(">IQHH")
_REPLY = struct.Struct(">IQHHQ14sHB3x")


@define(eq=False)
class Arrival:
    """One datagram's circumstances; None where the platform does not tell."""

    high: int  # source address as IPv6 (IPv4 mapped), upper 64 bits
    low: int
    port: int  # source port
    local: int = 0  # the address asked, folded to 64 bits
    received_ntp: int | None = None  # kernel's receive stamp
    ttl: int | None = None
    tos: int | None = None
    unicast: bool = True  # False: it was sent to a group or to everybody


@define(eq=False)
class Answer:
    """What `Reflector.answer` decided: the reply is in place, ``length`` octets of it."""

    length: int
    tos: int
    place: int = -1  # the session whose transmit stamp is wanted, or -1
    ttl: int | None = None  # of a legacy echo: one less than it came with, so that a loop dies
    timed: bool = True  # a STAMP reply, which T3 is written into as it leaves
    key: bytes | None = None  # what an authenticated reply is signed with as it leaves

    def depart(self, octets: memoryview | bytearray) -> None:
        """Write T3, now, into a STAMP reply, and sign it if need be."""
        if self.key is None:
            stamp_departure(octets)
        else:
            signed.depart(octets, _ntp_now(), self.key)


class Reflector(DatagramProtocol):
    """Answers probes on a `BatchPort`, or on Twisted's own UDP port where there is no `recvmmsg`.

    ``seconds`` is the reactor's clock. ``clock_error_ns`` tells the wall clock's error or None
    (see `llama.net.clock`); it is asked every 16 seconds. ``reply_dscps`` are the classes that a
    Class of Service TLV may ask for; ``legacy`` says whether earlier fleets are answered.

    With ``keys`` only probes that one of them signed are answered, unless
    ``allow_unauthenticated``; with ``provisioned`` only those of its sessions.
    """

    log = Logger()
    noisy = False
    transport: Any  # a BatchPort, or Twisted's UDP port

    def __init__(
        self,
        seconds: Callable[[], float],
        guard: Guard,
        sessions: Sessions,
        *,
        tally: Tally | None = None,
        clock_error_ns: Callable[[], float | None] = lambda: None,
        reply_dscps: Collection[int] = (),
        legacy: bool = True,
        keys: KeyRing | None = None,
        allow_unauthenticated: bool = False,
        provisioned: Provisioned | None = None,
    ) -> None:
        self._seconds = seconds
        self.guard = guard
        self.sessions = sessions
        self.tally = Tally() if tally is None else tally
        self._clock_error_ns = clock_error_ns
        self._permitted = np.zeros(64, np.bool_)
        self._permitted[list(reply_dscps)] = True
        self._legacy = legacy
        self._keys = keys
        self._allow_unauthenticated = allow_unauthenticated
        self._provisioned = provisioned
        self.started_ns = time.time_ns()
        self._error_estimate = stamp.error_estimate(None)
        self._error_due = self._drops_due = float("-inf")
        self._started = seconds()
        self._local_port = 0
        self._receive_drops = 0
        self._complained = float("-inf")
        self._mute = 0
        self._echoes = Echoes()

    # Both ports

    def startProtocol(self) -> None:
        """Learn which port this is: nobody but another reflector sends from it."""
        self._local_port = self.transport.getHost().port

    def _now(self) -> tuple[float, int]:
        now = self._seconds()
        if now >= self._error_due:
            self._error_due = now + 16
            self._error_estimate = stamp.error_estimate(self._clock_error_ns())
        if now >= self._drops_due and isinstance(self.transport, BatchPort):
            self._drops_due = now + 0.25
            self._receive_drops = self.transport.receive_drops()
        return now, int(now - self._started) + 1

    def _refuse(self, reason: str, arrival: Arrival, length: int) -> None:
        """Count a datagram dropped for ``reason`` and, at most every ten seconds, say so."""
        self.tally.drop(reason)
        now = self._seconds()
        if now - self._complained < 10:
            self._mute += 1
            return
        self._complained = now
        self.log.info(
            "dropped {length} octets from {source}: {reason} ({mute} more since last said)",
            length=length, source=presentable(arrival), reason=reason, mute=self._mute,
        )  # fmt: skip
        self._mute = 0

    def answer(self, octets: memoryview, length: int, arrival: Arrival) -> Answer | None:
        """Turn one request into its reply, in place, T3 left to `Answer.depart`.

        ``octets`` is writable and has room for at least ``length``, or 44, octets. Returns None,
        having counted why, where there is nothing to answer.
        """
        now, tick = self._now()
        self.tally.received += 1
        code = self.guard.admit_one(arrival.high, arrival.low, arrival.port, now)
        if code:
            self.tally.limited += code == TOTAL_RATE
            self._refuse(REASONS[code], arrival, length)
            return None
        if not arrival.unicast:  # one spoofed packet would have every host of a segment answer
            self._refuse("not_unicast", arrival, length)
            return None
        if self._keys is not None:
            key = signed.key_of(self._keys, octets, length, arrival.high, arrival.low)
            if key is not None:
                return self._answer_signed(octets, length, arrival, key, tick)
            if not self._allow_unauthenticated:
                self._refuse(self._unsigned(octets, length, arrival), arrival, length)
                return None
        legacy = echo_class(octets, length) if self._legacy else None
        if legacy is not None:
            if not self._knows(arrival, 0):
                self._refuse("no_session", arrival, length)
                return None
            name, tos = legacy
            again = self._echoes.too_often(bytes(octets[: min(length, _DISTINCT)]))
            if again or (arrival.ttl is not None and arrival.ttl <= 1):
                self._refuse("loop", arrival, length)
                return None
            self.tally.answered[name] += 1
            ttl = None if arrival.ttl is None else arrival.ttl - 1
            tos = (arrival.tos or 0) if tos is None else tos
            return Answer(length, tos & 0xFC, ttl=ttl, timed=False)
        if length < stamp.BASE_SIZE:
            # TWAMP-Light senders may ask with 14 octets; only a source that the operator has listed
            # gets the standard's 44 for fewer, since a spoofed one would get more than was sent.
            if length < 14 or not self.guard.may_amplify(arrival.high, arrival.low):
                self._refuse("short", arrival, length)
                return None
            octets[length : stamp.BASE_SIZE] = bytes(stamp.BASE_SIZE - length)
            length = stamp.BASE_SIZE
        elif octets[40] and looks_like_stamp_reply_one(octets, _ntp_now()):
            self._refuse("loop", arrival, length)
            return None
        sequence, _sent, _error, ssid = _REQUEST.unpack_from(octets)
        if not self._knows(arrival, ssid):
            self._refuse("no_session", arrival, length)
            return None
        place, number = self._number(arrival, ssid, tick)
        received = arrival.received_ntp
        if received is None:
            received = _ntp_now()
        _REPLY.pack_into(
            octets, 0, number, 0, self._error_estimate, ssid, received,
            bytes(octets[:14]), 0, arrival.ttl or 0,
        )  # fmt: skip
        tos = (arrival.tos or 0) & 0xFC
        followed = False
        if length > stamp.BASE_SIZE:
            area = octets[stamp.BASE_SIZE : length]
            keys: tuple[bytes, ...] = ()
            if self._keys is not None:
                keys = self._keys.fitting(arrival.high, arrival.low, ssid)
            followed = _wants_follow_up(area)
            tos = tlv.reflect_one(
                area, arrival.tos or 0, self._follow_up(place), self._state(arrival),
                self._permitted,
                keys, False, sequence, number,
            )  # fmt: skip
        self.tally.answered["stamp"] += 1
        return Answer(length, tos, place if followed else -1)

    def _knows(self, arrival: Arrival, ssid: int) -> bool:
        """Tell whether a probe belongs to a session that is served."""
        if self._provisioned is None:
            return True
        return self._provisioned.knows(arrival.high, arrival.low, arrival.port, ssid)

    def _number(self, arrival: Arrival, ssid: int, tick: int) -> tuple[int, int]:
        """Return the place of a probe's session and the number of its reply."""
        ends = arrival.port << 32 | self._local_port << 16 | ssid
        key = self.sessions.key(arrival.high, arrival.low, ends, arrival.local)
        place = self.sessions.place_of(key, tick)
        number = self.sessions.sent_view[place]
        self.sessions.sent_view[place] = number + 1 & 0xFFFFFFFF
        return place, number

    def _unsigned(self, octets: memoryview, length: int, arrival: Arrival) -> str:
        """Return why a datagram is not answered that no key has signed."""
        assert self._keys is not None
        if length < auth.BASE_SIZE:
            return "unauthenticated"
        ssid = signed.ssid_of(octets)
        return "bad_hmac" if self._keys.fitting(arrival.high, arrival.low, ssid) else "no_key"

    def _answer_signed(
        self, octets: memoryview, length: int, arrival: Arrival, key: bytes, tick: int
    ) -> Answer | None:
        """Do what `answer` does for a probe that ``key`` has signed."""
        if signed.is_reply(octets[:length], _ntp_now()):
            self._refuse("loop", arrival, length)
            return None
        ssid = signed.ssid_of(octets)
        if not self._knows(arrival, ssid):
            self._refuse("no_session", arrival, length)
            return None
        place, number = self._number(arrival, ssid, tick)
        received = arrival.received_ntp
        followed = _wants_follow_up(octets[auth.BASE_SIZE : length])
        tos = signed.answer(
            octets, length, key, number, self._error_estimate,
            _ntp_now() if received is None else received, arrival.ttl or 0, arrival.tos or 0,
            self._follow_up(place), self._state(arrival), self._permitted,
        )  # fmt: skip
        self.tally.answered["stamp-auth"] += 1
        return Answer(length, tos, place if followed else -1, key=key)

    def _state(self, arrival: Arrival | None = None) -> tlv.State:
        """Return what a source is told of us; without one, what all sources are told."""
        limited = self.tally.limited
        if arrival is not None:
            high, low = np.array([[arrival.high], [arrival.low]], np.uint64)
            own = self.guard.refusals(high, low) if self.guard.limits_sources else None
            limited += 0 if own is None else int(own[0])
        return tlv.State(self.started_ns, self._receive_drops, limited)

    def _follow_up(self, place: int) -> tlv.FollowUp:
        """Return what is known of the last reply of a session."""
        left = int(self.sessions.follow_stamp[place])
        return tlv.FollowUp(
            int(self.sessions.follow_sequence[place]), left, tlv.SW_LOCAL if left else 0
        )

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
        except OSError:
            self.tally.drop("send_failed")

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
        word = port.layout.offsets[_pktinfo_of(port)] // 8
        asked = inbound.words[:count, word]
        if port.family == socket.AF_INET:  # our own address and the one asked: unlike for groups
            destination = inbound.words[:count, word + 1] & np.uint64(0xFFFFFFFF)
            plain &= asked >> np.uint64(32) == destination
        else:
            plain &= asked & np.uint64(0xFF) != np.uint64(0xFF)
        if odd.size:
            plain[odd] = False
        if plain.all():
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
        length = int(inbound.length[row])
        if length > LONGEST or int(inbound.flags[row]) & mmsg.MSG_TRUNC:
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
        control = row * outbound.control_room
        struct.pack_into(
            "<i", outbound.control_view, control + port.reply_layout.offsets[_tos_of(port)],
            answer.tos,
        )  # fmt: skip
        pktinfo = control + 16
        outbound.control_view[pktinfo : pktinfo + len(reply_from)] = reply_from
        wanted = answer.place >= 0 and port.stamped
        if wanted:
            self._tag(port, row, answer.place)
        outbound.controllen[row] = port.reply_layout.room if wanted else port.plain_control
        outbound.iov_length[row] = min(answer.length, HEAD)
        outbound.tail_length[row] = max(answer.length - HEAD, 0)
        outbound.namelen[row] = inbound.namelen[row]
        answer.depart(octets)
        self._send(port, row, 1, picked=False)
        if wanted:
            port.stamps_due += 1
            port.read_transmit_stamps()

    def _send_echo(self, port: BatchPort, row: int, answer: Answer, reply_from: bytes) -> None:
        """Send a legacy packet back, with a TTL of its own."""
        v4 = port.family == socket.AF_INET
        level, kind = _tos_of(port)
        ancillary = [
            (*_pktinfo_of(port), reply_from),
            (level, kind, struct.pack("<i", answer.tos)),
            (level, mmsg.IP_TTL if v4 else mmsg.IPV6_HOPLIMIT, struct.pack("<i", answer.ttl)),
        ]
        try:
            port.send_row(row, answer.length, ancillary)
        except OSError:
            self.tally.drop("send_failed")

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
        if octets[which, 40].any():
            replies = looks_like_stamp_reply(octets[which], inbound.length[which], _ntp_now())
            if replies.any():
                self.tally.drop("loop", int(np.count_nonzero(replies & (refused == 0))))
                refused = np.where(replies, _COUNTED, refused)
        if self._provisioned is not None:
            ssid = stamp.sender_view(octets)["ssid"][which]
            strange = ~self._provisioned.known(high, low, source_port, ssid) & (refused == 0)
            self.tally.drop("no_session", int(np.count_nonzero(strange)))
            refused = np.where(strange, _COUNTED, refused)
        if refused.any():
            keep = np.flatnonzero(refused == 0)
            self._count_refusals(refused)
            rows = keep if rows is None else rows[keep]
            which = rows
            if not rows.size:
                return
            source_port, low = source_port[keep], low[keep]
            high = None if high is None else high[keep]

        words = inbound.words
        pktinfo = port.layout.offsets[_pktinfo_of(port)] // 8
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
        outbound.iov_length[which] = np.minimum(length, HEAD)
        outbound.tail_length[which] = np.maximum(length, HEAD) - HEAD
        outbound.namelen[which] = inbound.namelen[which]
        outbound.controllen[which] = port.plain_control
        followed = False
        if (length > stamp.BASE_SIZE).any():
            reply_tos, followed = self._answer_tlvs_by_column(
                port, which, length, tos.astype(np.uint8), places, numbers
            )
            own = self.guard.refusals(high, low)
            if own is not None and own.any():
                self._tell_refusals(octets, which, own)
        else:
            reply_tos = tos & np.uint64(0xFC)
        outbound.words[which, port.reply_layout.offsets[_tos_of(port)] // 8] = reply_tos
        self._depart(port, rows, count, reply["timestamp"])
        if followed:
            port.read_transmit_stamps()

    def _answer_tlvs_by_column(
        self,
        port: BatchPort,
        which: Any,
        length: npt.NDArray[Any],
        tos: npt.NDArray[np.uint8],
        places: npt.NDArray[np.intp],
        numbers: npt.NDArray[np.uint32],
    ) -> tuple[npt.NDArray[np.uint8], bool]:
        """Process the TLVs of a batch; return (TOS of each reply, whether stamps are due)."""
        octets = port.inbound.octets[which]
        # Where our own senders, and most others that ask, have their Follow-Up TLV; a session
        # that has it elsewhere is served when its probes come one at a time.
        wanted = octets[:, _FOLLOW_UP_TYPE] == tlv.FOLLOW_UP
        wanted &= length >= stamp.BASE_SIZE + tlv.SIZE
        reply_tos = tlv.reflect(
            octets, length, tos, self.sessions.follow_sequence[places],
            self.sessions.follow_stamp[places], self._state(), self._permitted,
        )  # fmt: skip
        if not isinstance(which, slice):
            port.inbound.octets[which] = octets
        if not port.stamped or not wanted.any():
            return reply_tos, False
        rows = np.flatnonzero(wanted) if isinstance(which, slice) else which[wanted]
        turn = numbers[wanted].astype(np.uint64) & np.uint64(self._turn_mask)
        offset = port.reply_layout.offsets[mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID]
        port.outbound.words[rows, offset // 8] = places[wanted].astype(
            np.uint64
        ) | turn << np.uint64(self._turn_shift)
        port.outbound.controllen[rows] = port.reply_layout.room
        port.stamps_due += len(rows)
        return reply_tos, True

    @staticmethod
    def _tell_refusals(
        octets: npt.NDArray[np.uint8], which: Any, own: npt.NDArray[np.uint32]
    ) -> None:
        """Add each source's own refusals to the state that its reply carries, in our layout."""
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
        picked = rows is not None
        if rows is not None:
            port.outbound.pick(rows)
            count = len(rows)
        size = CHUNK if count < MANY else LARGE_CHUNK
        for first in range(0, count, size):
            end = min(first + size, count)
            chunk: Any = slice(first, end) if rows is None else rows[first:end]
            timestamp[chunk] = _ntp_now()
            self._send(port, first, end - first, picked=picked)
        self.tally.answered["stamp"] += count

    def _send(self, port: BatchPort, first: int, count: int, *, picked: bool) -> None:
        """Hand replies to the kernel; what it does not take is dropped and counted, never queued."""
        end = first + count
        while first < end:
            try:
                first += port.outbound.send(port.fd, first, end - first, picked=picked)
            except OSError as reason:
                if reason.errno in (errno.EAGAIN, errno.ENOBUFS):
                    self.tally.drop("send_buffer_full", end - first)
                    return
                # One reply could not go (EPERM of a firewall, no route); the others can.
                self.tally.drop("send_failed")
                first += 1

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
        """Remember when replies really left, for the next Follow-Up Telemetry of their sessions."""
        sessions = self.sessions
        places = (ids & np.uint64(sessions.capacity - 1)).astype(np.intp)
        turn = (ids >> np.uint64(self._turn_shift)).astype(np.uint32)
        mask = np.uint32(self._turn_mask)
        newest = sessions.sent[places] - np.uint32(1)
        sessions.follow_sequence[places] = newest - ((newest - turn) & mask)
        sessions.follow_stamp[places] = stamp.ntp_from_timespec(seconds, ns)


def stamp_departure(octets: memoryview | bytearray) -> None:
    """Write T3, now, into a STAMP reply."""
    struct.pack_into(">Q", octets, 4, _ntp_now())


def _wants_follow_up(area: memoryview) -> bool:
    """Tell whether the TLVs of a probe ask when the last reply left."""
    return any(each.type == tlv.FOLLOW_UP for each in scalar.tlvs(area))


def _ntp_now() -> int:
    return stamp.ntp_from_unix_ns(time.time_ns())


def packed_address(host: str) -> tuple[int, int]:
    """Return an address as two 64-bit halves of an IPv6 address; IPv4 as ::ffff:a.b.c.d."""
    if ":" in host:
        high, low = _PAIR.unpack(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
        return high, low
    return 0, _V4 | int.from_bytes(socket.inet_aton(host), "big")


def presentable(arrival: Arrival) -> str:
    """Return the source of a datagram as people write it."""
    if not arrival.high and arrival.low >> 32 == 0xFFFF:
        return f"{socket.inet_ntoa((arrival.low & 0xFFFFFFFF).to_bytes(4, 'big'))}:{arrival.port}"
    packed = _PAIR.pack(arrival.high, arrival.low)
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{arrival.port}"


def _tos_of(port: BatchPort) -> tuple[int, int]:
    if port.family == socket.AF_INET:
        return mmsg.SOL_IP, mmsg.IP_TOS
    return mmsg.SOL_IPV6, mmsg.IPV6_TCLASS


def _pktinfo_of(port: BatchPort) -> tuple[int, int]:
    if port.family == socket.AF_INET:
        return mmsg.SOL_IP, mmsg.IP_PKTINFO
    return mmsg.SOL_IPV6, mmsg.IPV6_PKTINFO


def read_arrival(port: BatchPort, row: int) -> tuple[Arrival, bytes]:
    """Return what the kernel said of one datagram of a batch, and the PKTINFO to answer it with."""
    inbound = port.inbound
    v4 = port.family == socket.AF_INET
    name = row * mmsg.NAME_ROOM
    if v4:
        source_port, address = struct.unpack_from(">HI", inbound.names_view, name + 2)
        arrival = Arrival(0, _V4 | address, source_port)
    else:
        source_port, high, low = struct.unpack_from(">H4xQQ", inbound.names_view, name + 2)
        arrival = Arrival(high, low, source_port)
    first = row * inbound.control_room
    if v4 and inbound.control_room >= _USUAL_V4.size:
        (
            *stamp_kind, seconds, ns, a, b, c, asked, destination, d, e, f, ttl, g, h, i, tos
        ) = _USUAL_V4.unpack_from(inbound.control_view, first)  # fmt: skip
        if (*stamp_kind, a, b, c, d, e, f, g, h, i) == _USUAL_KINDS_V4:
            arrival.received_ntp = stamp.ntp_from_unix_ns(seconds * 1_000_000_000 + ns)
            arrival.local, arrival.ttl, arrival.tos = asked, ttl, tos
            arrival.unicast = destination == asked.to_bytes(4, "little")
            return arrival, _PKTINFO_V4.pack(0, asked, destination)
    control = inbound.control_view[first : first + inbound.control_room]
    reply_from = bytes(12 if v4 else 20)
    for level, kind, data in mmsg.walk_control(control, int(inbound.controllen[row])):
        if level == mmsg.SOL_SOCKET and kind == mmsg.SO_TIMESTAMPING:
            seconds, ns = struct.unpack_from("<qq", data)
            if seconds:
                arrival.received_ntp = stamp.ntp_from_unix_ns(seconds * 1_000_000_000 + ns)
        elif (level, kind) == (mmsg.SOL_IP, mmsg.IP_PKTINFO):
            arrival.local = int(struct.unpack_from("<I", data, 4)[0])
            arrival.unicast = data[4:8] == data[8:12]
            reply_from = bytes(4) + bytes(data[4:12])
        elif (level, kind) == (mmsg.SOL_IPV6, mmsg.IPV6_PKTINFO):
            upper, lower = struct.unpack_from("<QQ", data)
            arrival.local = (upper * 31 & 0xFFFFFFFFFFFFFFFF) ^ lower
            near = upper & 0xC0FF == 0x80FE
            arrival.unicast = upper & 0xFF != 0xFF
            reply_from = bytes(data[:16]) + (bytes(data[16:20]) if near else bytes(4))
        elif (level, kind) in ((mmsg.SOL_IP, mmsg.IP_TTL), (mmsg.SOL_IPV6, mmsg.IPV6_HOPLIMIT)):
            arrival.ttl = data[0]
        elif (level, kind) in ((mmsg.SOL_IP, mmsg.IP_TOS), (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS)):
            arrival.tos = data[0]
    return arrival, reply_from
