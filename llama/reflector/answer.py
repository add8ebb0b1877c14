"""One request and its reply: the rules that every datagram is answered by.

`Answerer` judges and answers a single datagram in place, in plain Python; what is above it
(`llama.reflector.protocol`) reads, sends, and does the same to whole batches by column. It never makes
more octets of a request than it has, but for listed senders, and never waits.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from attrs import define
from twisted.logger import Logger

from llama.net.port import BatchPort
from llama.reflector import signed
from llama.reflector.arrival import Arrival, presentable
from llama.reflector.departures import Departures
from llama.reflector.guard import REASONS, TOTAL_RATE, Guard
from llama.reflector.keyring import KeyRing
from llama.reflector.legacy import echo_class
from llama.reflector.loops import Echoes, looks_like_stamp_reply_one
from llama.reflector.provisioned import Provisioned
from llama.reflector.sessions import Sessions
from llama.reflector.tally import Tally
from llama.wire import auth, scalar, stamp, tlv

_DISTINCT = 64  # octets with which no two probes of earlier fleets begin
# A probe's fields, and the octets where a reply has the seconds of its Receive Timestamp.
_REQUEST = struct.Struct(">IQHHI")
_REPLY = struct.Struct(">IQHHQ14sHB3x")


@define(eq=False)
class Answer:
    """What `Answerer.answer` decided: the reply is in place, ``length`` octets of it."""

    format: str  # as it is counted once the kernel has taken it
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
            signed.depart(octets, ntp_now(), self.key)


class Answerer:
    """Answers one datagram at a time, and holds what all of them are judged by.

    ``seconds`` is a clock that never goes back. ``clock_error_ns`` tells the wall clock's error or None
    (see `llama.net.clock`); it is asked every 16 seconds. ``started_ns``, since 1970, and
    ``earlier_drops`` are those of a reflector that had this socket's place before, or has others.
    ``rules`` are those of `use`.
    """

    log = Logger()
    transport: Any  # a BatchPort, or Twisted's UDP port

    def __init__(
        self,
        seconds: Callable[[], float],
        guard: Guard,
        sessions: Sessions,
        *,
        tally: Tally | None = None,
        clock_error_ns: Callable[[], float | None] = lambda: None,
        started_ns: int | None = None,
        earlier_drops: int = 0,
        **rules: Any,
    ) -> None:
        self._seconds = seconds
        self.sessions = sessions
        self.departures = Departures(sessions)
        self.tally = Tally() if tally is None else tally
        self._clock_error_ns = clock_error_ns
        self.use(guard, **rules)
        self.started_ns = time.time_ns() if started_ns is None else started_ns
        self._error_estimate = stamp.error_estimate(None)
        self._error_due = self._drops_due = float("-inf")
        self._local_port = 0
        self._receive_drops = self._earlier_drops = earlier_drops
        self._complained = float("-inf")
        self._mute = 0
        self._echoes = Echoes()

    def use(
        self,
        guard: Guard,
        *,
        reply_dscps: Collection[int] = (),
        legacy: bool = True,
        keys: KeyRing | None = None,
        allow_unauthenticated: bool = False,
        provisioned: Provisioned | None = None,
    ) -> None:
        """Judge by these rules from now on; sessions and counts go on.

        ``reply_dscps`` are the classes that a probe may ask its reply to have, besides the one it came
        with; ``legacy`` says whether earlier fleets are answered. With ``keys`` only probes that one of
        them signed are answered, unless ``allow_unauthenticated``; with ``provisioned`` only those of its
        sessions.
        """
        self.guard = guard
        self._permitted = np.zeros(64, np.bool_)
        self._permitted[list(reply_dscps)] = True
        self._legacy = legacy
        self._keys = keys
        self._allow_unauthenticated = allow_unauthenticated
        self._provisioned = provisioned

    def _now(self) -> tuple[float, int]:
        now = self._seconds()
        if now >= self._error_due:
            self._error_due = now + 16
            self._error_estimate = stamp.error_estimate(self._clock_error_ns())
        if now >= self._drops_due and isinstance(self.transport, BatchPort):
            self._drops_due = now + 0.25
            self._receive_drops = self._earlier_drops + self.transport.receive_drops()
        return now, int(now) + 1  # sessions outlive this socket: theirs is the clock of all

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
        if not arrival.unicast:  # one spoofed packet would have every host of a segment answer
            self._refuse("not_unicast", arrival, length)
            return None
        code = self.guard.admit_one(arrival.high, arrival.low, arrival.port, now)
        if code:
            self.tally.limited += code == TOTAL_RATE
            self._refuse(REASONS[code], arrival, length)
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
            return self._echo(octets, length, arrival, *legacy)
        if length < stamp.BASE_SIZE:
            # TWAMP-Light senders may ask with 14 octets; only a source that the operator has listed
            # gets the standard's 44 for fewer, since a spoofed one would get more than was sent.
            if length < 14 or not self.guard.may_amplify(arrival.high, arrival.low):
                self._refuse("short", arrival, length)
                return None
            octets[length : stamp.BASE_SIZE] = bytes(stamp.BASE_SIZE - length)
            length = stamp.BASE_SIZE
        sequence, _sent, _error, ssid, received_s = _REQUEST.unpack_from(octets)
        if received_s and looks_like_stamp_reply_one(octets, ntp_now()):
            self._refuse("loop", arrival, length)
            return None
        if not self._knows(arrival, ssid):
            self._refuse("no_session", arrival, length)
            return None
        place, number = self._number(arrival, ssid, tick)
        received = arrival.received_ntp
        if received is None:
            received = ntp_now()
        _REPLY.pack_into(
            octets, 0, number, 0, self._error_estimate, ssid, received,
            bytes(octets[:14]), 0, arrival.ttl or 0,
        )  # fmt: skip
        tos = (arrival.tos or 0) & 0xFC
        followed = False
        if length > stamp.BASE_SIZE:
            area = octets[stamp.BASE_SIZE : length]
            told = arrival.tos or 0, self._follow_up(place), self._state(arrival), self._permitted
            if tlv.usual_one(area):
                followed = True
                tos = tlv.reflect_usual_one(area, *told)
            else:
                keys: tuple[bytes, ...] = ()
                if self._keys is not None:
                    keys = self._keys.fitting(arrival.high, arrival.low, ssid)
                followed = _wants_follow_up(area)
                tos = tlv.reflect_one(area, *told, keys, False, sequence, number)
        return Answer("stamp", length, tos, place if followed else -1)

    def _echo(
        self, octets: memoryview, length: int, arrival: Arrival, name: str, tos: int | None
    ) -> Answer | None:
        """Do what `answer` does for a probe of an earlier fleet, which may ask for a TOS octet."""
        if not self._knows(arrival, 0):
            self._refuse("no_session", arrival, length)
            return None
        if arrival.ttl is None and not self.guard.may_amplify(arrival.high, arrival.low):
            # The echo could not leave with a hop less than it came with, as a loop's must.
            self._refuse("no_ttl", arrival, length)
            return None
        again = self._echoes.too_often(bytes(octets[: min(length, _DISTINCT)]))
        if again or (arrival.ttl is not None and arrival.ttl <= 1):
            self._refuse("loop", arrival, length)
            return None
        ttl = None if arrival.ttl is None else arrival.ttl - 1
        if tos is None or not self._permitted[tos >> 2]:
            tos = arrival.tos or 0
        return Answer(name, length, tos & 0xFC, ttl=ttl, timed=False)

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
        if signed.is_reply(octets[:length], ntp_now()):
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
            ntp_now() if received is None else received, arrival.ttl or 0, arrival.tos or 0,
            self._follow_up(place), self._state(arrival), self._permitted,
        )  # fmt: skip
        return Answer("stamp-auth", length, tos, place if followed else -1, key=key)

    def _state(self, arrival: Arrival | None = None) -> tlv.State:
        """Return what a source is told of us; without one, what all sources are told."""
        limited = self.tally.limited
        if arrival is not None:
            high, low = np.array([[arrival.high], [arrival.low]], np.uint64)
            own = self.guard.refusals(high, low) if self.guard.limits_sources else None
            limited += 0 if own is None else int(own[0])
            limited += self.tally.unsent.count(arrival.high, arrival.low)
        return tlv.State(self.started_ns, self._receive_drops, limited)

    def _follow_up(self, place: int) -> tlv.FollowUp:
        """Return what is known of the last reply of a session."""
        left = int(self.sessions.follow_stamp[place])
        return tlv.FollowUp(
            int(self.sessions.follow_sequence[place]), left, tlv.SW_LOCAL if left else 0
        )


def stamp_departure(octets: memoryview | bytearray) -> None:
    """Write T3, now, into a STAMP reply."""
    struct.pack_into(">Q", octets, 4, ntp_now())


def _wants_follow_up(area: memoryview) -> bool:
    """Tell whether the TLVs of a probe ask when the last reply left."""
    return any(each.type == tlv.FOLLOW_UP for each in scalar.tlvs(area))


def ntp_now() -> int:
    """Return the time as a 64-bit NTP stamp."""
    return stamp.ntp_from_unix_ns(time.time_ns())
