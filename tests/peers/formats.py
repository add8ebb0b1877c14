"""STAMP and the legacy formats as scapy packets and by hand: written from the documents, not from ours.

Base packets without authentication and the TLVs are scapy's own. The authenticated ones, which
scapy does not have, are declared here field by field from RFC 8762 figures 4 and 6.
"""

from __future__ import annotations

import hashlib
import struct
import time

from scapy.contrib.stamp import (
    ErrorEstimate,
    STAMPSessionReflectorTestUnauthenticated,
    STAMPSessionSenderTestUnauthenticated,
    STAMPTestTLV,
)
from scapy.fields import (
    ByteField,
    IntField,
    LongField,
    NBytesField,
    PacketListField,
    ShortField,
    XStrFixedLenField,
)
from scapy.packet import Packet

Probe = STAMPSessionSenderTestUnauthenticated
Reply = STAMPSessionReflectorTestUnauthenticated
Tlv = STAMPTestTLV
EPOCH = 2_208_988_800  # s from 1900 to 1970


class AuthProbe(Packet):
    """RFC 8762 figure 4 with the SSID of RFC 8972 figure 3."""

    name = "STAMP Session-Sender Test, authenticated"
    fields_desc = [
        IntField("seq", 0),
        NBytesField("mbz1", 0, 12),
        LongField("ts", 0),
        ShortField("err_estimate", 1),
        ShortField("ssid", 0),
        NBytesField("mbz2", 0, 68),
        XStrFixedLenField("hmac", bytes(16), 16),
        PacketListField("tlv_objects", [], STAMPTestTLV),
    ]


class AuthReply(Packet):
    """RFC 8762 figure 6 with the SSID of RFC 8972 figure 4."""

    name = "STAMP Session-Reflector Test, authenticated"
    fields_desc = [
        IntField("seq", 0),
        NBytesField("mbz1", 0, 12),
        LongField("ts", 0),
        ShortField("err_estimate", 1),
        ShortField("ssid", 0),
        NBytesField("mbz2", 0, 4),
        LongField("ts_rx", 0),
        NBytesField("mbz3", 0, 8),
        IntField("seq_sender", 0),
        NBytesField("mbz4", 0, 12),
        LongField("ts_sender", 0),
        ShortField("err_estimate_sender", 1),
        NBytesField("mbz5", 0, 6),
        ByteField("ttl_sender", 0),
        NBytesField("mbz6", 0, 15),
        XStrFixedLenField("hmac", bytes(16), 16),
        PacketListField("tlv_objects", [], STAMPTestTLV),
    ]


def hmac_sha256_128(key: bytes, text: bytes) -> bytes:
    """Return HMAC-SHA-256 as RFC 2104 section 2 has it, truncated to 128 bits."""
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in key) + text).digest()
    return hashlib.sha256(bytes(octet ^ 0x5C for octet in key) + inner).digest()[:16]


def signed(packet: bytes, key: bytes) -> bytes:
    """Return an authenticated packet with its HMAC, and that of its HMAC TLV if it has one."""
    out = bytearray(packet)
    out[96:112] = hmac_sha256_128(key, packet[:96])
    at = 112
    while at + 4 <= len(out):
        kind, length = out[at + 1], int.from_bytes(out[at + 2 : at + 4], "big")
        if kind == 8:
            out[at + 4 : at + 20] = hmac_sha256_128(key, bytes(out[:4] + out[112:at]))
        at += 4 + length
    return bytes(out)


def is_signed(packet: bytes, key: bytes) -> bool:
    """Tell whether an authenticated packet, and its HMAC TLV if it has one, are genuine."""
    return len(packet) >= 112 and signed(packet, key) == packet


def ntp_now() -> int:
    """Return the time as a 64-bit NTP stamp."""
    ns = time.time_ns()
    return (ns // 10**9 + EPOCH << 32) + (ns % 10**9 << 32) // 10**9


def error_estimate(value: int = 0x8001) -> ErrorEstimate:
    """Return an Error Estimate as scapy has it."""
    return ErrorEstimate(S=value >> 15, Z=value >> 14 & 1, scale=value >> 8 & 63,
                         multiplier=value & 255)  # fmt: skip


def varint(number: int) -> bytes:
    """Return a protobuf varint."""
    out = b""
    while number > 127:
        out += bytes((number & 127 | 128,))
        number >>= 7
    return out + bytes((number,))


def go_probe(signature: bytes, tos: bytes | None, padding: int = 1000) -> bytes:
    """Return a probe as LLAMA Go marshals it; ``tos`` None leaves the field out."""
    out = b"\x0a" + varint(len(signature)) + signature
    if tos is not None:
        out += b"\x12" + varint(len(tos)) + tos
    out += b"\x18" + varint(time.time_ns())
    return out + (b"\x3a" + varint(padding) + bytes(padding) if padding else b"")


def python_probe(tos: int) -> bytes:
    """Return a probe as the archived Python LLAMA packs it."""
    return struct.pack("<10sBddd?", b"__llama__", tos, time.time() * 1000, 0, 0, False)
