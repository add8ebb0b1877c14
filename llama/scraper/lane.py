"""Lanes: so many at a time, in the order in which they come, and nobody for long.

Who is in a lane for as long as its places may be held goes on beside it, and the next gets in.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import DeferredSemaphore


class Lane:
    """Has a number of places, each of which is held for ``longest_s`` at most unless it is kept."""

    def __init__(self, clock: Any, places: int, longest_s: float) -> None:
        self._clock = clock
        self._longest_s = longest_s
        self._places = DeferredSemaphore(places)

    async def enter(self) -> Place:
        """Return a place once it is one's turn."""
        await self._places.acquire()
        return Place(self._clock, self._places, self._longest_s)


class Place:
    """A place in a lane."""

    def __init__(self, clock: Any, places: DeferredSemaphore, longest_s: float) -> None:
        self._places = places
        self._held = True
        self._end = clock.callLater(longest_s, self.leave)

    def keep(self) -> None:
        """Hold it, if it is still held, until it is left."""
        if self._end.active():
            self._end.cancel()

    def leave(self) -> None:
        """Let the next one in; may be called again."""
        self.keep()
        if self._held:
            self._held = False
            self._places.release()
