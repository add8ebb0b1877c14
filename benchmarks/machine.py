"""The machine that a benchmark ran on, and what its processes use of it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy

import twisted


def describe() -> dict[str, Any]:
    """Return what a reader must know of this machine to judge its figures."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": memory_kb // 1024,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "twisted": twisted.__version__,
        "load_average": os.getloadavg()[0],
        "stolen_s": stolen_s(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def stolen_s() -> float:
    """Return for how many seconds since boot a hypervisor gave our cores to somebody else."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def cpu_ns(pid: int) -> int:
    """Return the CPU time, user and system of all threads, that process ``pid`` has used.

    Read from the process's CPU clock as clock_getcpuclockid(3) makes it: to the nanosecond, where
    /proc/PID/stat counts hundredths of a second.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def resident_mb(pid: int) -> float:
    """Return the memory, in units of 2**20 octets, that process ``pid`` holds in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cores() -> tuple[int, int]:
    """Return two cores: one for what is measured, one for what drives it.

    They are the same where there is but one, and the figures then mean little.
    """
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1], usable[0]
