"""Probes of earlier fleets, and TLVs, decoded plainly: what the batch decoders are measured by.

The batch modules come here with the odd rows that do not have the layout they know by column, the
tests compare whole batches with these functions, and the fuzzer attacks them. So nothing here is
fast, and everything is bounded: no packet takes more than `MAX_FIELDS` or `MAX_TLVS` steps, none
raises, and what is not the format asked for is None.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

#: Fields of a protobuf looked at before it is refused; a LLAMA probe has at most seven.
MAX_FIELDS = 32
#: TLVs looked at in one packet; the one after them counts as malformed, and the rest is copied.
MAX_TLVS = 32

Octets = bytes | bytearray | memoryview

_PYTHON = struct.Struct("<10sBddd?")


class GoProbe(NamedTuple):
    """A probe of LLAMA Go; ``tos`` is None where the field is absent or empty."""

    signature: bytes
    tos: int | None
    sent: int
    rcvd: int
    rtt: int
    lost: bool


class PythonProbe(NamedTuple):
    """A probe of the archived Python LLAMA; times in milliseconds."""

    tos: int
    sent: float
    rcvd: float
    rtt: float
    lost: bool


class Tlv(NamedTuple):
    """One TLV of a packet: where its flags octet is, and how many octets of value are there."""

    offset: int
    flags: int
    type: int
    length: int
    malformed: bool


def python_probe(packet: Octets) -> PythonProbe | None:
    """Decode a probe of the archived Python LLAMA; None if it is none."""
    if len(packet) != _PYTHON.size:
        return None
    signature, tos, sent, rcvd, rtt, lost = _PYTHON.unpack(packet)
    return PythonProbe(tos, sent, rcvd, rtt, lost) if signature == b"__llama__\0" else None


def _varint(packet: Octets, at: int) -> tuple[int, int]:
    """Return a varint and the offset behind it; an offset of -1 says that there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(packet):
            return 0, -1
        octet = packet[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    return 0, -1


_FIXED = {1: 8, 5: 4}  # octets of the wire types of fixed size
_WIRE_TYPES = {1: 2, 2: 2, 3: 0, 4: 0, 5: 0, 6: 0, 7: 2}  # of the fields of a probe
_STAMP_MBZ = bytes(28)  # octets 16 to 43 of a STAMP probe
#: What a probe can begin with: the tags of its fields.
GO_TAGS = frozenset(number << 3 | wire_type for number, wire_type in _WIRE_TYPES.items())


def go_probe(packet: Octets, size: int | None = None) -> GoProbe | None:
    """Decode a protobuf ``Probe`` of LLAMA Go; None if it is none.

    ``size`` is that of the packet if ``packet`` holds only the beginning of it: what a field that
    begins within says of the rest must fit, and what no field says of it is taken to be legal.

    Fields may come in any order, more than once (the last counts) or, but for the signature of ten
    octets, not at all; unknown ones are skipped, but for groups, which proto3 does not have, and not
    in front, where a tag is what tells a probe from other packets. What has the zeros of a STAMP
    probe is one, though number, clock error and SSID may by chance read as fields around them.
    """
    if not packet or packet[0] not in GO_TAGS or packet[16:44] == _STAMP_MBZ:
        return None
    signature: bytes = b""
    tos: int | None = None
    numbers = {3: 0, 4: 0, 5: 0, 6: 0}
    at = fields = 0
    end = len(packet) if size is None else size
    while at < end:
        if at >= len(packet):
            break
        key, at = _varint(packet, at)
        number, wire_type = key >> 3, key & 7
        fields += 1
        known = _WIRE_TYPES.get(number)
        if at < 0 or not 0 < number < 1 << 29 or fields > MAX_FIELDS:
            return None
        if known is not None and known != wire_type:
            return None
        if wire_type == 0:
            value, at = _varint(packet, at)
            if at < 0:
                return None
            if known is not None:
                numbers[number] = value
            continue
        if wire_type == 2:
            octets, at = _varint(packet, at)
            if at < 0:
                return None
        elif wire_type in _FIXED:
            octets = _FIXED[wire_type]
        else:
            return None
        if octets > end - at:
            return None
        if number == 1:
            signature = bytes(packet[at : at + octets])
        elif number == 2:
            tos = packet[at] if octets and at < len(packet) else None
        at += octets
    if len(signature) != 10:
        return None
    return GoProbe(signature, tos, numbers[3], numbers[4], numbers[5], bool(numbers[6]))


#: Octets of value that a TLV of a type must have (RFC 8972 sections 4.4, 4.7 and 4.8).
VALUE_SIZES = {4: 4, 7: 16, 8: 16}


def tlvs(area: Octets, size: int | None = None) -> list[Tlv]:
    """Return the TLVs that follow a base packet, at most `MAX_TLVS` and the one found malformed.

    ``size`` is how many octets follow it if ``area`` holds only the first of them; what is not
    wholly there, but for Extra Padding, is not looked at.

    Nothing behind a malformed one is looked at (RFC 8972 section 4). Neither is anything behind
    four octets of zero, or fewer at the end: type 0 is reserved and senders set the U flag, so this
    is the plain packet padding of a TWAMP-Light sender (RFC 8762 section 4.6).
    """
    found: list[Tlv] = []
    at, end = 0, len(area) if size is None else size
    while at < end:
        head = bytes(area[at : at + 4])
        if not any(head) or len(head) < min(4, end - at):
            break
        if len(head) < 4:
            found.append(Tlv(at, head[0], head[1] if len(head) > 1 else 0, 0, True))
            break
        length = head[2] << 8 | head[3]
        room = end - at - 4
        if head[1] != 1 and min(length, room) > len(area) - at - 4:
            break
        malformed = (
            length > room or VALUE_SIZES.get(head[1], length) != length or len(found) >= MAX_TLVS
        )
        found.append(Tlv(at, head[0], head[1], min(length, room), malformed))
        if malformed:
            break
        at += 4 + length
    return found
