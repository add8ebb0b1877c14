"""What a ledger has on record of one probe: a cell, its flags, and what is no value in it."""

from __future__ import annotations

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
