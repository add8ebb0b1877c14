"""What the kernel says of its own wall clock: whether it is synchronised, and how far it may be off."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_STA_UNSYNC = 0x0040
_MAXERROR_UNKNOWN_US = 16_000_000  # what the kernel states when nobody keeps its clock


class _Timex(ctypes.Structure):
    """``struct timex`` of adjtimex(2), padded to more than its size anywhere."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_ubyte * 256),
    )


@functools.cache
def _adjtimex() -> Any:
    """Return the C library's function; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)


def clock_error_ns() -> float | None:
    """Return the kernel's bound on its clock error, in nanoseconds; None if it is not synchronised.

    From adjtimex(2), as kept by chronyd, ntpd or ptp4l. None on other systems than Linux.
    """
    adjtimex = _adjtimex()
    if adjtimex is None:
        return None
    timex = _Timex()
    if adjtimex(ctypes.byref(timex)) < 0 or timex.status & _STA_UNSYNC:
        return None
    if not 0 < timex.maxerror < _MAXERROR_UNKNOWN_US:
        return None
    return float(timex.maxerror * 1000)
