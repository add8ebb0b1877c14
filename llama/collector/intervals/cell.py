"""What a ledger has on record of one probe: a cell, and how many of these there must be."""

from __future__ import annotations

import math

import numpy as np

CELL = np.dtype(
    [
        ("t1", "i8"), ("elapsed", "i8"), ("forward", "i8"), ("transmit", "i4"),
        ("residence", "i4"), ("number", "u4"), ("flags", "u1"), ("dscp_there", "u1"),
        ("dscp_asked", "u1"), ("dscp_here", "u1"), ("ttl_there", "u1"), ("ttl_here", "u1"),
        ("", "V6"),
    ]
)  # fmt: skip

# Flags of a cell.
RECEIVED = 1  # a reply came within the timeout
FOLLOWED = 2  # its residence at the reflector is known to the kernel's transmit stamp (Follow-Up)
STAMPED = 4  # T1 is the kernel's transmit stamp
USER_TIMES = 8  # T4 is a user-space stamp: our own delay is in it
NO_RTT = 16  # received, but the clock was stepped in between, or the stamps make no sense
LATE = 32  # a reply came after the timeout
DOUBTED = 64  # the reflector's numbers are no use here: a duplicate, or no SSID returned

RESIDENCE_UNKNOWN = np.iinfo(np.int32).min

SLACK_S = 8.0  # how long after its last timeout an interval may take to be closed


def depth_needed(rate_pps: float, timeout_s: float, interval_s: float, least: int = 0) -> int:
    """Return how many cells a flow needs so that none is reused before its interval has closed.

    At least ``least``, in any case.

    Fast flows get a power of two: their sequence numbers come round after 2**32 probes, in months,
    and then too must each number lead to the cell after the last one's.
    """
    depth = max(least, math.ceil(rate_pps * (interval_s + timeout_s + SLACK_S)) + 2)
    return 1 << (depth - 1).bit_length() if rate_pps >= 10 else depth
