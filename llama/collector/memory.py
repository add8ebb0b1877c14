"""How this process uses memory, told to the allocator and to the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_MMAP_THRESHOLD_OCTETS = 1 << 20


def return_large_blocks() -> None:
    """Have blocks of a megabyte and more given back to the system when they are freed.

    The columns of closed intervals are such blocks. By default glibc raises its threshold as they
    are freed and keeps them: measured with 160,000 flows, 55 MB more stayed resident.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_OCTETS)


def settle() -> None:
    """Take what exists now out of the garbage collector's rounds: it is there to stay.

    With ten thousand pairs a full round takes 40 ms, in which no probe leaves.
    """
    gc.collect()
    gc.freeze()
