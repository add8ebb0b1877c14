"""STAMP test packets, unauthenticated: RFC 8762 sections 4.2.1 and 4.3.1, SSID of RFC 8972.

::

        Session-Sender                         Session-Reflector
     0  Sequence Number            u32      0  Sequence Number                   u32
     4  Timestamp (T1)             NTP 64   4  Timestamp (T3)                    NTP 64
    12  Error Estimate             u16     12  Error Estimate                    u16
    14  SSID                       u16     14  SSID                              u16
    16  MBZ                        28      16  Receive Timestamp (T2)            NTP 64
                                           24  Session-Sender Sequence Number    u32
                                           28  Session-Sender Timestamp (T1)     NTP 64
                                           36  Session-Sender Error Estimate     u16
                                           38  MBZ                               u16
                                           40  Session-Sender TTL                u8
                                           41  MBZ                               3
    44  TLVs (RFC 8972 section 4)          44  TLVs

All in network byte order. A time stamp is NTP's: seconds since 1900 in the upper 32 bits, fractions
of 2**-32 s in the lower. This file knows neither sockets nor what a session is.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.wire.rows import records

BASE_SIZE = 44  # octets, both packets

SENDER = np.dtype(
    {
        "names": ["sequence", "timestamp", "error_estimate", "ssid", "mbz"],
        "formats": [">u4", ">u8", ">u2", ">u2", "V28"],
        "offsets": [0, 4, 12, 14, 16],
        "itemsize": BASE_SIZE,
    }
)
REFLECTOR = np.dtype(
    {
        "names": [
            "sequence", "timestamp", "error_estimate", "ssid", "receive_timestamp",
            "sender_sequence", "sender_timestamp", "sender_error_estimate", "mbz1",
            "sender_ttl", "mbz2",
        ],
        "formats": [
            ">u4", ">u8", ">u2", ">u2", ">u8", ">u4", ">u8", ">u2", ">u2", "u1", "V3",
        ],
        "offsets": [0, 4, 12, 14, 16, 24, 28, 36, 38, 40, 41],
        "itemsize": BASE_SIZE,
    }
)  # fmt: skip
SENDER_STRUCT = struct.Struct(">IQHH28x")

# Error Estimate (RFC 4656 section 4.1.2): S bit (clock synchronised), Z bit (0: NTP format),
# six bits of scale, eight of multiplier: error = multiplier * 2**(scale - 32) seconds.
ERROR_SYNCHRONISED = 0x8000
ERROR_PTP_FORMAT = 0x4000

NTP_UNIX_SECONDS = 2_208_988_800  # from 1900-01-01 to 1970-01-01
_SECOND = 1_000_000_000
_TOP_BIT = np.uint64(1 << 63)


def ntp_from_unix_ns(unix_ns: int) -> int:
    """Return the 64-bit NTP time stamp of a Unix time in nanoseconds (era 0 or, from 2036, 1)."""
    seconds, ns = divmod(unix_ns, _SECOND)
    # Rounded up, so that converting back by truncation gives the same nanosecond.
    return (seconds + NTP_UNIX_SECONDS & 0xFFFFFFFF) << 32 | -(-(ns << 32) // _SECOND)


def unix_ns_from_ntp(ntp: int) -> int:
    """Return the Unix time, in nanoseconds, of a 64-bit NTP time stamp between 1968 and 2104."""
    seconds = ntp >> 32
    if seconds < 0x80000000:  # RFC 4330 section 3: the era that began in 2036
        seconds += 1 << 32
    return (seconds - NTP_UNIX_SECONDS) * _SECOND + ((ntp & 0xFFFFFFFF) * _SECOND >> 32)


def ntp_from_timespec(
    seconds: npt.NDArray[np.uint64], ns: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return the NTP stamps of Unix times given as columns of whole seconds and nanoseconds."""
    fraction = ((ns << np.uint64(32)) + np.uint64(_SECOND - 1)) // np.uint64(_SECOND)
    return (seconds + np.uint64(NTP_UNIX_SECONDS)) << np.uint64(32) | fraction


def ntp_column(unix_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return the NTP stamps of a column of Unix times in nanoseconds."""
    seconds, ns = np.divmod(unix_ns.astype(np.uint64), np.uint64(_SECOND))
    return ntp_from_timespec(seconds, ns)


def unix_ns_column(ntp: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the Unix times, in nanoseconds, of a column of NTP stamps (native byte order)."""
    # The top bit tells the era (RFC 4330 section 3): turned over, seconds count on from 1968.
    seconds = ((ntp ^ _TOP_BIT) >> np.uint64(32)).view(np.int64)
    seconds -= NTP_UNIX_SECONDS - 0x80000000
    seconds *= _SECOND
    ns = ntp & np.uint64(0xFFFFFFFF)
    ns *= np.uint64(_SECOND)
    ns >>= np.uint64(32)
    seconds += ns.view(np.int64)
    return seconds


def time_column(
    stamps: npt.NDArray[np.uint64], estimate: npt.NDArray[np.uint16], echoed: int = 0
) -> npt.NDArray[np.int64]:
    """Return the Unix times, in nanoseconds, of stamps in NTP format, or PTP's where Z says so.

    ``stamps`` are (N,), or (K, N) for K stamps of each packet; ``estimate`` is (N,). Of K stamps
    the first ``echoed`` are the sender's, which are NTP's whatever the reflector says of its own.
    """
    times = unix_ns_column(stamps)
    ptp = np.flatnonzero(estimate & ERROR_PTP_FORMAT)
    if ptp.size:  # truncated PTPv2: seconds and nanoseconds, since 1970
        told = stamps[echoed:][..., ptp]
        seconds, ns = told >> np.uint64(32), told & np.uint64(0xFFFFFFFF)
        times[echoed:][..., ptp] = (seconds * np.uint64(_SECOND) + ns).astype(np.int64)
    return times


def error_estimate(error_ns: float | None) -> int:
    """Return the Error Estimate field for a clock known to be within ``error_ns`` nanoseconds.

    None says that the clock is not synchronised: S is 0 and the error the largest there is to say
    (RFC 4656 forbids a multiplier of 0).
    """
    if error_ns is None:
        return 0x3FFF
    units = max(1, int(error_ns * 2**32 / _SECOND))  # of 2**-32 s
    scale = max(0, units.bit_length() - 8)
    multiplier = -(-units >> scale)
    if multiplier > 0xFF:
        multiplier, scale = -(-multiplier >> 1), scale + 1
    return ERROR_SYNCHRONISED | min(scale, 63) << 8 | multiplier


def error_ns(estimate: int) -> float | None:
    """Return the clock error, in nanoseconds, that an Error Estimate states; None if unsynchronised."""
    if not estimate & ERROR_SYNCHRONISED or not estimate & 0xFF:
        return None
    return float((estimate & 0xFF) * 2.0 ** ((estimate >> 8 & 0x3F) - 32) * _SECOND)


def error_column(estimate: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the clock errors, in nanoseconds, that a column of Error Estimates states, or NaN."""
    if len(estimate) and np.count_nonzero(estimate == estimate[0]) == len(estimate):
        alike = error_ns(int(estimate[0]))
        return np.full(len(estimate), np.nan if alike is None else alike, np.float32)
    result = np.full(len(estimate), np.nan, np.float32)
    rows = np.flatnonzero((estimate & ERROR_SYNCHRONISED) & np.where(estimate & 0xFF, 0xFFFF, 0))
    if rows.size:
        told = estimate[rows].astype(np.int64)
        result[rows] = np.ldexp((told & 0xFF) * 1e9, (told >> 8 & 0x3F) - 32)
    return result


def sender_view(octets: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """View rows of octets, (N, >= 44), as sender packets: (N,) of dtype SENDER, no copy."""
    return records(octets, SENDER)


def reflector_view(octets: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """View rows of octets, (N, >= 44), as reflector packets: (N,) of dtype REFLECTOR, no copy."""
    return records(octets, REFLECTOR)
