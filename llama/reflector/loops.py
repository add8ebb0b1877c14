"""Replies that come to a reflector as if they were probes: what loops are made of.

By the standard a reflector cannot tell a reply from a probe, since it must ignore the octets that a
probe leaves zero (RFC 8762 section 4.2.1). A reply has the time there that it was received at (T2). It
is within an hour of when the reply left by the same clock (T3), whatever that clock shows, or of now by
ours; padding of a probe is either by a chance of one in 300,000 at most. Its TTL, also there, tells
nothing: reflectors to whom it is unknown leave it zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HOUR_S = 3600
_PTP_EPOCH_S = 2_208_988_800  # s from NTP's epoch, 1900, to PTP's, 1970
_PTP = 0x40  # Z bit of the Error Estimate's first octet: stamps in PTP format

# Octet of T3, of the Error Estimate and of T2 in a reply.
_UNAUTHENTICATED = 4, 12, 16
_AUTHENTICATED = 16, 24, 32


def looks_like_stamp_reply(
    octets: npt.NDArray[np.uint8], length: npt.NDArray[np.integer], now_ntp: int
) -> npt.NDArray[np.bool_]:
    """Tell which rows are STAMP replies, unauthenticated, rather than probes: (N,) of (N, >= 44).

    ``now_ntp`` is the time as a 64-bit NTP stamp. Both stamp formats are known, NTP's and PTP's.
    """
    sent_at, estimate_at, stamp_at = _UNAUTHENTICATED
    seconds = octets[:, stamp_at : stamp_at + 4].view(">u4")[:, 0].astype(np.uint32)
    reply: npt.NDArray[np.bool_] = seconds != 0
    if not reply.any():  # probes by the book: zero there
        return reply
    reply &= length >= stamp_at + 4
    now_s = np.uint32(now_ntp >> 32)
    since = (octets[:, estimate_at] & _PTP != 0) * np.uint32(_PTP_EPOCH_S)
    # Modulo 2**32, so that it holds across the end of NTP's era in 2036.
    from_now = seconds + since.astype(np.uint32) - now_s + np.uint32(HOUR_S)
    sent = octets[:, sent_at : sent_at + 4].view(">u4")[:, 0].astype(np.uint32)
    from_sent = seconds - sent + np.uint32(HOUR_S)
    reply &= (from_now <= 2 * HOUR_S) | (from_sent <= 2 * HOUR_S)
    return reply


def looks_like_stamp_reply_one(
    packet: memoryview, now_ntp: int, authenticated: bool = False
) -> bool:
    """Return what `looks_like_stamp_reply` returns, for one packet, which may be authenticated."""
    sent_at, estimate_at, stamp_at = _AUTHENTICATED if authenticated else _UNAUTHENTICATED
    if len(packet) < stamp_at + 4:
        return False
    seconds = int.from_bytes(packet[stamp_at : stamp_at + 4], "big")
    if not seconds:
        return False
    sent = int.from_bytes(packet[sent_at : sent_at + 4], "big")
    if (seconds - sent + HOUR_S) & 0xFFFFFFFF <= 2 * HOUR_S:
        return True
    if packet[estimate_at] & _PTP:
        seconds += _PTP_EPOCH_S
    return (seconds - (now_ntp >> 32) + HOUR_S) & 0xFFFFFFFF <= 2 * HOUR_S


class Echoes:
    """The legacy packets echoed lately, so that one that keeps coming back is known.

    Senders never send the same octets twice: each probe has a time, or a token, of its own. So octets
    seen ``most`` times go round between us and something that echoes as we do, but with a new TTL.
    The last ``capacity`` are remembered, and up to as many more: each must come back before it is
    forgotten, so these are more than the receive buffers of several such services have room for. All
    of them take some 30 MB, which only a flood of such packets makes use of.
    """

    def __init__(self, capacity: int = 1 << 17, most: int = 4) -> None:
        self._capacity = capacity
        self._most = most
        self._new: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def too_often(self, packet: bytes) -> bool:
        """Count one arrival of ``packet``; tell whether it has come ``most`` times before."""
        known = hash(packet)
        seen = self._new.get(known) or self._old.get(known, 0)
        if len(self._new) >= self._capacity:
            self._old, self._new = self._new, {}
        self._new[known] = min(seen + 1, self._most)
        return seen >= self._most
