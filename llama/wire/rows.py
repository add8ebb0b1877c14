"""Rows of octets, one packet each, seen as records."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def records(
    octets: npt.NDArray[np.uint8], kind: np.dtype[np.void], start: int = 0
) -> npt.NDArray[Any]:
    """View each row of ``octets``, (N, >= start + itemsize), from ``start`` on as a record: (N,)."""
    if len(octets) and octets.flags.c_contiguous:
        # A quarter of the time that the other way takes.
        return np.ndarray(len(octets), kind, octets, start, octets.strides[:1])
    return octets[:, start : start + kind.itemsize].view(kind)[:, 0]
