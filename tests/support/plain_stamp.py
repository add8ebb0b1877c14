"""STAMP base packets decoded plainly, field by field: what batches and columns are compared with."""

from __future__ import annotations

import struct
from typing import NamedTuple

_PROBE = struct.Struct(">IQHH")
#: A whole Session-Reflector packet: the fields of `StampReply`.
REPLY = struct.Struct(">IQHHQIQH2xB3x")
_AUTH_PROBE = struct.Struct(">I12xQHH")
_AUTH_REPLY = struct.Struct(">I12xQHH4xQ8xI12xQH6xB")

Octets = bytes | bytearray | memoryview


class StampProbe(NamedTuple):
    """A Session-Sender packet; the times are 64-bit stamps as they stand (RFC 8762 section 4.2)."""

    sequence: int
    timestamp: int
    error_estimate: int
    ssid: int


class StampReply(NamedTuple):
    """A Session-Reflector packet (RFC 8762 section 4.3)."""

    sequence: int
    timestamp: int
    error_estimate: int
    ssid: int
    receive_timestamp: int
    sender_sequence: int
    sender_timestamp: int
    sender_error_estimate: int
    sender_ttl: int


def stamp_probe(packet: Octets) -> StampProbe | None:
    """Decode an unauthenticated Session-Sender packet; None if it has fewer than 44 octets."""
    return StampProbe(*_PROBE.unpack_from(packet)) if len(packet) >= 44 else None


def stamp_reply(packet: Octets) -> StampReply | None:
    """Decode an unauthenticated Session-Reflector packet; None if it has fewer than 44 octets."""
    return StampReply(*REPLY.unpack_from(packet)) if len(packet) >= 44 else None


def auth_probe(packet: Octets) -> StampProbe | None:
    """Decode an authenticated Session-Sender packet; None under 112 octets. Verifies nothing."""
    return StampProbe(*_AUTH_PROBE.unpack_from(packet)) if len(packet) >= 112 else None


def auth_reply(packet: Octets) -> StampReply | None:
    """Decode an authenticated Session-Reflector packet; None under 112 octets. Verifies nothing."""
    return StampReply(*_AUTH_REPLY.unpack_from(packet)) if len(packet) >= 112 else None
