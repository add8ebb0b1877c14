"""When within its interval a collector is asked, and which turn a moment belongs to."""

from __future__ import annotations

from attrs import define


@define
class Phase:
    """Turns every ``interval_s``, ``at_s`` after each whole number of intervals since 1970.

    Moments are Unix times, s.
    """

    interval_s: float
    at_s: float

    def wait_s(self, now_s: float) -> float:
        """Return how long it is until the next turn."""
        return (self.at_s - now_s) % self.interval_s

    def keep(self, now_s: float) -> None:
        """Let the phase be that of the turn at ``now_s`` when the wall clock, not it, was stepped.

        Else turns might lie just where `slot_ns` rounds, and two of them have one slot.
        """
        half_s = self.interval_s / 2
        off_s = (now_s - self.at_s + half_s) % self.interval_s - half_s
        if abs(off_s) > half_s / 2:
            self.at_s = now_s % self.interval_s

    def slot_ns(self, now_s: float) -> int:
        """Return the aligned time, Unix ns, that the turn at about ``now_s`` stands for."""
        turn = round((now_s - self.at_s) / self.interval_s)
        return round(turn * self.interval_s * 1000) * 1_000_000
