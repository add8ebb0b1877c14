"""How many replies to each source our own host would not send: forbidden by its firewall, or no route.

That is no loss of the network's, and it is told to that source alone: else one that cannot be answered
would cast doubt on what all the others measure.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.uint64]

#: Sources remembered. There are few on a host that is well; who forges any number takes no more room.
MOST = 32


class Unsent:
    """Counts by source, an IPv4 address or an IPv6 /64, as `llama.reflector.guard` knows them.

    The one that was first counted is forgotten first.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, high: int, low: int) -> None:
        """Count a reply to a source, whose address has these halves, IPv4 mapped."""
        key = high << 64 or low
        self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._counts) > MOST:
            del self._counts[next(iter(self._counts))]

    def count(self, high: int, low: int) -> int:
        """Return how many were counted of a source."""
        return self._counts.get(high << 64 or low, 0)

    def counts(self, high: Halves | None, low: Halves) -> npt.NDArray[np.uint32] | None:
        """Return how many were counted of each source: (N,); None while there are none at all.

        Modulo 2**32. ``high`` (None: zero) and ``low`` are (N,).
        """
        if not self._counts:
            return None
        found = np.zeros(len(low), np.uint32)
        for source, count in self._counts.items():
            upper, lower = source >> 64, source & 0xFFFFFFFFFFFFFFFF
            told = np.uint32(count & 0xFFFFFFFF)
            if upper and high is not None:
                found[high == np.uint64(upper)] = told
            elif not upper:
                alike = low == np.uint64(lower)
                found[alike if high is None else alike & (high == 0)] = told
        return found
