"""What this process itself uses of its machine: memory and processor time."""

from __future__ import annotations

import os
import resource


def resident_octets() -> int:
    """Return how much memory this process has resident, in octets."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor_s() -> float:
    """Return the processor time, user and system, that this process has used, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
