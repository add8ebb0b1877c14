"""This process itself: what it uses of its machine, and may use, and the status that it ends with."""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import sys


def raise_open_files() -> None:
    """Raise the limit of open files as far as that needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems have a lower limit of their own.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


def end_with_1() -> None:
    """Let this process have status 1 when it ends, under twistd too, which ends with 0.

    It ends as it would have without.
    """
    atexit.register(_exit_1)


def _exit_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
