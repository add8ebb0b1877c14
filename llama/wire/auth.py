"""STAMP test packets, authenticated: RFC 8762 sections 4.2.2, 4.3.2 and 4.4, SSID of RFC 8972.

::

        Session-Sender                         Session-Reflector
     0  Sequence Number            u32      0  Sequence Number                   u32
     4  MBZ                        12       4  MBZ                               12
    16  Timestamp (T1)             NTP 64  16  Timestamp (T3)                    NTP 64
    24  Error Estimate             u16     24  Error Estimate                    u16
    26  SSID                       u16     26  SSID                              u16
    28  MBZ                        68      28  MBZ                               4
                                           32  Receive Timestamp (T2)            NTP 64
                                           40  MBZ                               8
                                           48  Session-Sender Sequence Number    u32
                                           52  MBZ                               12
                                           64  Session-Sender Timestamp (T1)     NTP 64
                                           72  Session-Sender Error Estimate     u16
                                           74  MBZ                               6
                                           80  Session-Sender TTL                u8
                                           81  MBZ                               15
    96  HMAC                       16      96  HMAC                              16
   112  TLVs (RFC 8972 section 4)         112  TLVs, with an HMAC of their own

The HMAC is HMAC-SHA-256 over the first 96 octets, truncated to 128 bits. Nothing on the wire says
that a packet is authenticated, or with which key: that is configuration (`llama.reflector.keyring`).
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.wire import scalar
from llama.wire.rows import records

BASE_SIZE = 112  # octets, both packets
COVERED = 96  # octets that the HMAC covers
MAX_TRIED = 2  # keys tried per packet: a hostile one costs no more than two digests

_PROBE = struct.Struct(">I12xQHH68x")
_REPLY = struct.Struct(">I12xQHH4xQ8xI12xQH6xB15x")

SENDER = np.dtype(
    {
        "names": ["sequence", "timestamp", "error_estimate", "ssid"],
        "formats": [">u4", ">u8", ">u2", ">u2"],
        "offsets": [0, 16, 24, 26],
        "itemsize": BASE_SIZE,
    }
)
REFLECTOR = np.dtype(
    {
        "names": [
            "sequence", "timestamp", "error_estimate", "ssid", "receive_timestamp",
            "sender_sequence", "sender_timestamp", "sender_error_estimate", "sender_ttl",
        ],
        "formats": [">u4", ">u8", ">u2", ">u2", ">u8", ">u4", ">u8", ">u2", "u1"],
        "offsets": [0, 16, 24, 26, 32, 48, 64, 72, 80],
        "itemsize": BASE_SIZE,
    }
)  # fmt: skip

Row = bytearray | memoryview


def digest(key: bytes, packet: scalar.Octets) -> bytes:
    """Return the 16 octets of the HMAC of a packet of at least 96 octets."""
    return hmac.digest(key, packet[:COVERED], "sha256")[:16]


def verify(packet: scalar.Octets, keys: Sequence[bytes]) -> bytes | None:
    """Return the key that made the HMAC of a packet; None if none did or it is under 112 octets.

    At most the first two keys are tried, and compared in constant time. MBZ octets are not looked
    at, but covered like all others.
    """
    if len(packet) < BASE_SIZE:
        return None
    theirs = bytes(packet[COVERED:BASE_SIZE])
    for key in keys[:MAX_TRIED]:
        if hmac.compare_digest(digest(key, packet), theirs):
            return key
    return None


def sign(packet: Row, key: bytes) -> None:
    """Write the HMAC of a packet of at least 112 octets into it."""
    packet[COVERED:BASE_SIZE] = digest(key, packet)


def pack_probe(
    packet: Row, sequence: int, timestamp: int, error_estimate: int, ssid: int, key: bytes
) -> None:
    """Write a Session-Sender packet, signed, into the first 112 octets of ``packet``."""
    _PROBE.pack_into(packet, 0, sequence, timestamp, error_estimate, ssid)
    sign(packet, key)


def answer(
    packet: Row,
    sequence: int,
    timestamp: int,
    error_estimate: int,
    receive_timestamp: int,
    ttl: int,
    key: bytes | None = None,
) -> None:
    """Turn a verified probe into its reply in place: its TLVs are not touched.

    ``sequence`` is the session's next number, the stamps are NTP's (T3, T2), ``ttl`` is what the
    probe came with. The SSID is the probe's. Without a ``key`` it is left unsigned, for `sign` once
    T3 is known.
    """
    probe = _PROBE.unpack_from(packet)
    _REPLY.pack_into(
        packet, 0, sequence, timestamp, error_estimate, probe[3], receive_timestamp, *probe[:3], ttl
    )
    if key is not None:
        sign(packet, key)


def sender_view(octets: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """View rows of octets, (N, >= 112), as sender packets: (N,) of dtype SENDER, no copy."""
    return records(octets, SENDER)


def reflector_view(octets: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """View rows of octets, (N, >= 112), as reflector packets: (N,) of dtype REFLECTOR, no copy."""
    return records(octets, REFLECTOR)
