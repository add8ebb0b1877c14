"""TLVs behind a STAMP base packet (RFC 8972 section 4): their rules, one packet at a time.

::

     0  flags    U 0x80: not understood, M 0x40: malformed, I 0x20: failed its HMAC; rest zero
     1  type     1 Extra Padding   4 Class of Service   7 Follow-Up Telemetry   8 HMAC
     2  length   u16, octets of value
     4  value

    Class of Service (4.4)      DSCP1 6 bits, DSCP2 6 bits, ECN 2 bits, RP 2 bits, reserved u16
    Follow-Up Telemetry (4.7)   sequence u32, timestamp NTP 64, method u8, reserved 3
    HMAC (4.8)                  16 octets
    reflector state (240)       "LLMA", start u64 (ns since the Unix epoch), receive drops u32,
                                guard drops u32

The reflector state is an experimental type of ours; a type 240 without its mark is another's and
not understood. `llama.wire.tlv` does the same to whole batches that have our sender's layout.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from llama.wire import scalar
from llama.wire.auth import MAX_TRIED

EXTRA_PADDING, CLASS_OF_SERVICE, FOLLOW_UP, HMAC, STATE = 1, 4, 7, 8, 240
UNRECOGNISED, MALFORMED, INTEGRITY = 0x80, 0x40, 0x20
SW_LOCAL = 2  # timestamping method (RFC 8972 section 5.5)

MARK = b"LLMA"
STATE_SIZE = 20  # octets of value
SIZE = 52  # octets of our sender's TLVs, without HMAC and padding
HMAC_SIZE = 20  # octets of an HMAC TLV
UNKNOWN = 255  # a DSCP that nothing is known of

_STANDARD = frozenset((EXTRA_PADDING, CLASS_OF_SERVICE, FOLLOW_UP, HMAC))
_FOLLOW_VALUE = struct.Struct(">IQB3x")
_STATE_VALUE = struct.Struct(">4sQII")

Keys = Sequence[bytes]


class State(NamedTuple):
    """What a reflector says of itself: when it started, and how many packets it lost or refused."""

    started_ns: int = 0
    receive_drops: int = 0
    guard_drops: int = 0


class FollowUp(NamedTuple):
    """The transmit stamp of an earlier reply: its sequence number, NTP stamp (0: none), method."""

    sequence: int = 0
    stamp: int = 0
    method: int = 0


class Answer(NamedTuple):
    """What the TLVs of one reply say, or by column (N,) those of a batch.

    ``dscp`` is what the probe reached the reflector with (255: it did not say), ``refused`` that
    the reply could not have the class asked for; a ``follow_stamp`` of 0 is none, and
    ``started_ns`` 0 says that the reflector's state is not known.
    """

    dscp: Any = UNKNOWN
    refused: Any = False
    follow_sequence: Any = 0
    follow_stamp: Any = 0
    started_ns: Any = 0
    receive_drops: Any = 0
    guard_drops: Any = 0

    def rows(self, keep: Any) -> Answer:
        """Return those of a batch that ``keep`` (N,) says."""
        return Answer(*(column[keep] for column in self))


class Permitted(Protocol):
    """Tells of a DSCP, 0 to 63, whether replies may be sent with it where a probe asks for it."""

    def __getitem__(self, dscp: int, /) -> Any:
        """Return whether ``dscp`` may be used."""


def request(dscp: int, size: int, key: bytes | None = None, sequence: int = 0) -> bytes:
    """Return the TLVs, ``size`` octets in all, of a probe that asks for replies in class ``dscp``.

    They are, in this order, Class of Service, Follow-Up Telemetry, reflector state, with a key an
    HMAC over ``sequence`` (the probe's sequence number) and themselves, and Extra Padding up to
    the size. `ValueError` if the size has no room for them or leaves 1 to 3 octets.
    """
    fixed = SIZE + (HMAC_SIZE if key is not None else 0)
    padding = size - fixed
    if padding < 0 or 0 < padding < 4:
        raise ValueError(f"TLVs take {fixed} octets, or with padding {fixed + 4} and more")
    area = bytearray(size)
    struct.pack_into(">BBHH", area, 0, UNRECOGNISED, CLASS_OF_SERVICE, 4, dscp << 10)
    struct.pack_into(">BBH", area, 8, UNRECOGNISED, FOLLOW_UP, _FOLLOW_VALUE.size)
    struct.pack_into(">BBH4s", area, 28, UNRECOGNISED, STATE, STATE_SIZE, MARK)
    if key is not None:
        struct.pack_into(">BBH", area, SIZE, UNRECOGNISED, HMAC, 16)
        area[SIZE + 4 : fixed] = digest(key, sequence, area[:SIZE])
    if padding:
        struct.pack_into(">BBH", area, fixed, UNRECOGNISED, EXTRA_PADDING, padding - 4)
    return bytes(area)


def digest(key: bytes, sequence: int, preceding: scalar.Octets) -> bytes:
    """Return the value of an HMAC TLV: over the sequence number and all TLVs before it (4.8)."""
    return hmac.digest(key, struct.pack(">I", sequence) + preceding, "sha256")[:16]


def _understood(area: scalar.Octets, tlv: scalar.Tlv) -> bool:
    """Tell whether a TLV is of a type that we know; type 240 is ours with its mark only."""
    if tlv.type != STATE:
        return tlv.type in _STANDARD
    return tlv.length == STATE_SIZE and area[tlv.offset + 4 : tlv.offset + 8] == MARK


def verify(
    area: scalar.Octets, found: list[scalar.Tlv], sequence: int, keys: Keys, must: bool
) -> tuple[bool, bytes | None, int]:
    """Check the HMAC TLV among the TLVs ``found``: (whether their data may be used, key, offset).

    Key and offset (of the HMAC TLV) are None and 0 where there is none to check. It has to be there
    if ``must``, but for a lone Extra Padding, and only Extra Padding may follow it; all else is a
    failed verification (4.8), as is an HMAC that there is no key for.
    """
    place = next((n for n, tlv in enumerate(found) if tlv.type == HMAC), None)
    if place is None:
        alone = [tlv.type for tlv in found] == [EXTRA_PADDING]
        return (not must or alone), None, 0
    tlv = found[place]
    if tlv.malformed or any(later.type != EXTRA_PADDING for later in found[place + 1 :]):
        return False, None, 0
    theirs = bytes(area[tlv.offset + 4 : tlv.offset + 20])
    preceding = bytes(area[: tlv.offset])
    for key in keys[:MAX_TRIED]:
        if hmac.compare_digest(digest(key, sequence, preceding), theirs):
            return True, key, tlv.offset
    return False, None, 0


def reflect_one(
    area: bytearray | memoryview,
    tos: int,
    follow: FollowUp,
    state: State,
    permitted: Permitted,
    keys: Keys = (),
    must_authenticate: bool = False,
    probe_sequence: int = 0,
    reply_sequence: int = 0,
    size: int | None = None,
) -> int:
    """Answer in place the TLVs, ``area``, of one probe; return the TOS octet for the reply.

    ``tos`` is what the probe came with; the sequence numbers are those that the HMAC TLVs of the
    probe and of the reply cover; ``size`` is that of all TLVs if ``area`` is their beginning only.
    ``keys`` are those, at most two, that may have made an HMAC TLV; with ``must_authenticate``, as
    in authenticated mode, TLVs without one get the I flag. For the rest see `llama.wire.tlv.reflect`.
    """
    found = scalar.tlvs(area, size)
    came_in = tos & 0xFC
    reply_tos = -1
    usable, key, hmac_at = verify(area, found, probe_sequence, keys, must_authenticate)
    for tlv in found:
        at = tlv.offset
        flags = 0 if _understood(area, tlv) else UNRECOGNISED
        if tlv.malformed:
            flags |= MALFORMED
            if tlv.type == FOLLOW_UP:  # 4.7: zero what is there of the two fields
                area[at + 4 : at + 4 + min(tlv.length, 12)] = bytes(min(tlv.length, 12))
        if not usable:
            flags |= INTEGRITY
        area[at] = flags
        if flags:
            continue
        if tlv.type == CLASS_OF_SERVICE:
            dscp = area[at + 4] >> 2
            granted = bool(permitted[dscp]) or dscp << 2 == came_in
            struct.pack_into(">I", area, at + 4, dscp << 26 | tos << 18 | (not granted) << 16)
            if reply_tos < 0 and granted:
                reply_tos = dscp << 2
        elif tlv.type == FOLLOW_UP:
            _FOLLOW_VALUE.pack_into(area, at + 4, *(follow if follow.stamp else FollowUp()))
        elif tlv.type == STATE:
            drops = state.receive_drops & 0xFFFFFFFF, state.guard_drops & 0xFFFFFFFF
            _STATE_VALUE.pack_into(area, at + 4, MARK, state.started_ns, *drops)
    if key is not None:
        area[hmac_at + 4 : hmac_at + 20] = digest(key, reply_sequence, bytes(area[:hmac_at]))
    return came_in if reply_tos < 0 else reply_tos


def read_one(
    area: scalar.Octets,
    sequence: int = 0,
    keys: Keys = (),
    must_authenticate: bool = False,
    size: int | None = None,
) -> Answer:
    """Read the TLVs, ``area``, of one reply; ``sequence`` is the reply's own sequence number.

    ``size`` is that of all TLVs if ``area`` is their beginning only.

    What has the U flag is passed over, nothing is read behind an M flag or a malformed TLV, and
    nothing at all where one has the I flag or the HMAC is wrong (RFC 8972 sections 4 and 4.8).
    """
    found = scalar.tlvs(area, size)
    answer = Answer()
    if any(tlv.flags & INTEGRITY for tlv in found):
        return answer
    if not verify(area, found, sequence, keys, must_authenticate)[0]:
        return answer
    for tlv in found:
        if tlv.malformed or tlv.flags & MALFORMED:
            break
        if tlv.flags & UNRECOGNISED or not _understood(area, tlv):
            continue
        at = tlv.offset + 4
        if tlv.type == CLASS_OF_SERVICE:
            value = int.from_bytes(area[at : at + 2], "big")
            answer = answer._replace(dscp=value >> 4 & 0x3F, refused=value & 3 == 1)
        elif tlv.type == FOLLOW_UP:
            sequence_, stamp, _ = _FOLLOW_VALUE.unpack_from(area, at)
            answer = answer._replace(follow_sequence=sequence_, follow_stamp=stamp)
        elif tlv.type == STATE:
            _, started, receive_drops, guard_drops = _STATE_VALUE.unpack_from(area, at)
            answer = answer._replace(
                started_ns=started, receive_drops=receive_drops, guard_drops=guard_drops
            )
    return answer
