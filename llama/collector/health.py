"""The collector's eye on itself: lateness, starvation, steps of the clock.

What is found here marks intervals as suspect, lest the network be blamed for its own host.
"""

from __future__ import annotations

from collections.abc import Callable

STARVED_SHARE = 0.25  # of some time spent runnable but not run


class ClockWatch:
    """Finds steps of the wall clock, by comparing it with the monotonic one."""

    #: Smaller steps than this, in nanoseconds, are taken for the time between two readings.
    least_ns = 1_000_000

    def __init__(self, wall_ns: Callable[[], int], monotonic_ns: Callable[[], int]) -> None:
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self._offset = self._read()

    def _read(self) -> int:
        before = self._monotonic_ns()
        wall = self._wall_ns()
        return wall - (before + self._monotonic_ns()) // 2

    def step_ns(self) -> int:
        """Return by how much the wall clock was stepped since last asked; 0 if it was not.

        A slew by NTP, of at most 500 ppm, is no step.
        """
        offset = self._read()
        if abs(offset - self._offset) >= self.least_ns:
            # Being suspended between two readings looks the same: the smallest of three counts.
            offset = min((offset, self._read(), self._read()), key=lambda o: abs(o - self._offset))
        step = offset - self._offset
        self._offset = offset
        return step if abs(step) >= self.least_ns else 0


def step_note(step_ns: int) -> str:
    """Return what is said of a step of the wall clock."""
    return f"the wall clock was stepped by {step_ns / 1e9:.6f} s"


class Starvation:
    """Tells how long this process was runnable but not run, from ``/proc/self/schedstat``."""

    def __init__(self, path: str = "/proc/self/schedstat") -> None:
        self._path = path
        self._last: int | None = self._read()

    def _read(self) -> int | None:
        try:
            with open(self._path, encoding="ascii") as file:
                return int(file.read().split()[1])
        except (OSError, ValueError, IndexError):
            return None

    def waited_s(self) -> float:
        """Return the time, in seconds, waited for a processor since last asked; 0 if unknown."""
        now = self._read()
        waited = 0 if now is None or self._last is None else now - self._last
        self._last = now
        return max(0, waited) / 1e9
