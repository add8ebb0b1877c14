"""How this process uses memory, told to the allocator and to the garbage collector."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import sys

import numpy as np
import numpy.typing as npt

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


def rows(count: int, dtype: npt.DTypeLike) -> npt.NDArray[np.void]:
    """Return ``count`` rows of zeros whose memory is had page by page, as they are used.

    numpy asks for huge pages: then one row in some ten thousand takes 5 ms to write.
    """
    octets = count * np.dtype(dtype).itemsize
    if octets < _MMAP_THRESHOLD_OCTETS or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(count, dtype)
    room = mmap.mmap(-1, octets, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that knows no huge pages refuses
        room.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(room, dtype)


def settle() -> None:
    """Take what exists now out of the garbage collector's rounds: it is there to stay.

    With ten thousand pairs a full round takes 40 ms, in which no probe leaves.
    """
    gc.collect()
    gc.freeze()
