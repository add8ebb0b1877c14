"""Which failures to send are worth a line in the log. Pure.

A destination and an error are told of once, and again after an interval in which all went well. However
many there are, an interval has few lines, and little is remembered.
"""

from __future__ import annotations

MOST_LINES = 20  # an interval
MOST_KNOWN = 4096  # destinations and errors, of one interval


class Complaints:
    """Remembers what was told of in this interval and in the one before."""

    def __init__(self) -> None:
        self._now: set[tuple[str, str]] = set()
        self._before: set[tuple[str, str]] = set()
        self._lines = 0
        self._untold = 0

    def worth_telling(self, address: str, error: str) -> bool:
        """Note that ``error`` befell what was sent to ``address``; tell whether to say so."""
        failure = (address, error)
        if failure in self._now or len(self._now) >= MOST_KNOWN:
            return False
        self._now.add(failure)
        if failure in self._before:
            return False
        self._lines += 1
        if self._lines > MOST_LINES:
            self._untold += 1
            return False
        return True

    def next_interval(self) -> int:
        """Begin another interval; return how many failures of this one were not told of."""
        self._before, self._now = self._now, set()
        untold, self._untold, self._lines = self._untold, 0, 0
        return untold
