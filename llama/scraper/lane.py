"""Lanes: so many at a time, in the order in which they come, and nobody for long.

Who is in a lane for as long as its places may be held goes on beside it, and the next gets in, unless
there are too many beside it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred


class Lane:
    """Has a number of places, each of which is held for ``longest_s`` at most unless it is kept.

    With those beside it there are ``most`` at a time.
    """

    def __init__(self, clock: Any, places: int, longest_s: float, most: float = math.inf) -> None:
        self._clock = clock
        self._longest_s = longest_s
        self._free = places
        self._more = most  # that may get in before somebody is gone
        self._waiting: deque[Deferred[None]] = deque()
        self._letting_in = False

    async def enter(self) -> Place:
        """Return a place once it is one's turn."""
        turn: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(turn)
        self._let_in()
        await turn
        return Place(self, self._clock, self._longest_s)

    def free(self, *, places: int = 0, gone: int = 0) -> None:
        """Have places for the next, or room for them beside the lane."""
        self._free += places
        self._more += gone
        self._let_in()

    def _let_in(self) -> None:
        # Who gets in may leave at once, and so the next, and so on: by recursion some dozens could
        # do so, and there are thousands of them when a scraper stops or its disk is full.
        if self._letting_in:
            return
        self._letting_in = True
        try:
            while self._free and self._more > 0 and self._waiting:
                self._free -= 1
                self._more -= 1
                self._waiting.popleft().callback(None)
        finally:
            self._letting_in = False


class Place:
    """A place in a lane."""

    def __init__(self, lane: Lane, clock: Any, longest_s: float) -> None:
        self._lane = lane
        self._held = self._there = True
        self._end = clock.callLater(longest_s, self._stand_aside)

    def keep(self) -> None:
        """Hold it, if it is still held, until it is left."""
        if self._end.active():
            self._end.cancel()

    def _stand_aside(self) -> None:
        self._held = False
        self._lane.free(places=1)

    def leave(self) -> None:
        """Let the next one in; may be called again."""
        self.keep()
        held, self._held = self._held, False
        there, self._there = self._there, False
        self._lane.free(places=int(held), gone=int(there))
