"""Authenticated probes at the reflector: RFC 8762 section 4.4, RFC 8972 section 4.8.

What is verified here is a whole probe, one at a time; which session it belongs to and what number
its reply gets is for the caller, as for all other probes. The reply is signed as it leaves, since
its HMAC covers T3.
"""

from __future__ import annotations

import struct

from llama.reflector.keyring import KeyRing
from llama.reflector.loops import looks_like_stamp_reply_one
from llama.wire import auth, tlv
from llama.wire.tlv_rules import Permitted

_TIMESTAMP_AT, _SSID_AT = 16, 26
_NUMBERS = struct.Struct(">I")


def ssid_of(octets: memoryview) -> int:
    """Return the SSID of an authenticated probe of at least 112 octets."""
    return octets[_SSID_AT] << 8 | octets[_SSID_AT + 1]


def key_of(ring: KeyRing, octets: memoryview, length: int, high: int, low: int) -> bytes | None:
    """Return the key that signed a probe from the address ``high``, ``low``; None if none did.

    ``octets`` holds the whole datagram, of ``length`` octets. At most two keys are tried.
    """
    if length < auth.BASE_SIZE:
        return None
    return auth.verify(octets[:length], ring.fitting(high, low, ssid_of(octets)))


def is_reply(octets: memoryview, now_ntp: int) -> bool:
    """Tell whether a genuine packet is another reflector's reply: the beginning of a loop."""
    return looks_like_stamp_reply_one(octets, now_ntp, authenticated=True)


def answer(
    octets: memoryview,
    length: int,
    key: bytes,
    number: int,
    error_estimate: int,
    received_ntp: int,
    ttl: int,
    tos: int,
    follow: tlv.FollowUp,
    state: tlv.State,
    permitted: Permitted,
) -> int:
    """Turn a probe that ``key`` signed into its reply in place; return the TOS octet for it.

    ``number`` is the session's next; the rest is as of `llama.wire.tlv.reflect_one`. T3 and the HMAC
    of the base packet are left to `depart`. TLVs must have an HMAC of the same key, else they come
    back with the I flag and are not acted upon.
    """
    (sequence,) = _NUMBERS.unpack_from(octets)
    auth.answer(octets, number, 0, error_estimate, received_ntp, ttl)
    if length == auth.BASE_SIZE:
        return tos & 0xFC
    area = octets[auth.BASE_SIZE : length]
    return tlv.reflect_one(area, tos, follow, state, permitted, (key,), True, sequence, number)


def depart(octets: memoryview | bytearray, now_ntp: int, key: bytes) -> None:
    """Write T3, now, into a reply of `answer`, and sign it."""
    struct.pack_into(">Q", octets, _TIMESTAMP_AT, now_ntp)
    auth.sign(octets, key)
