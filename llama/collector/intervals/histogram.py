"""Log-linear histogram bins for round-trip times: which bin a time falls into and what it stands for.

Every power of two from 2**10 ns to 2**36 ns (1 µs to 68 s) is divided into 16 bins of equal width.
A bin is reported by its midpoint, so a value read back is at most 1/32 = 3.125 % away from the one
put in (values below 1.024 µs fall into bin 0, those above 68 s into the last). Histograms of the
same bins merge by adding counts, which is why pairs, groups and intervals can be summed without
averaging percentiles. The scheme is that of HdrHistogram, reduced to one precision.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SUB_BITS = 4
LOWEST_EXPONENT = 10
HIGHEST_EXPONENT = 36
BINS = (HIGHEST_EXPONENT - LOWEST_EXPONENT) << SUB_BITS
_BIAS = 1023  # of the exponent of a double


def bin_of(rtt_ns: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Return the bin of each time: ``rtt_ns`` is of any shape, in nanoseconds, finite."""
    # IEEE 754 has the same scheme: an exponent, and a fraction of which the first bits are ours.
    bits = np.maximum(np.asarray(rtt_ns, dtype=np.float64), 1.0).view(np.int64)
    index = (bits >> 52 - SUB_BITS) - (_BIAS + LOWEST_EXPONENT << SUB_BITS)
    bins: npt.NDArray[np.uint16] = np.clip(index, 0, BINS - 1).astype(np.uint16)
    return bins


def lower_bound_ns(index: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the lowest time, in nanoseconds, that falls into each bin (any shape)."""
    number = np.asarray(index, dtype=np.int64)
    exponent = (number >> SUB_BITS) + LOWEST_EXPONENT
    fraction = (number & ((1 << SUB_BITS) - 1)) / (1 << SUB_BITS)
    bound: npt.NDArray[np.float64] = np.ldexp(1.0 + fraction, exponent)
    return bound


def midpoint_ns(index: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the time, in nanoseconds, that each bin stands for: the middle of it (any shape)."""
    number = np.asarray(index, dtype=np.int64)
    return (lower_bound_ns(number) + lower_bound_ns(number + 1)) / 2
