"""Closed windows of time and the cursors that walk through them, as the collector has them.

A window's points are kept as JSON until it is one of too many. A cursor is opaque to others: the
incarnation of this memory and the number of the last window that its owner has.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Mapping
from typing import Any

import orjson

_CURSOR = re.compile(r"([0-9a-f]{16})-([0-9]{1,15})")


class Windows:
    """The newest ``keep`` closed windows."""

    def __init__(self, keep: int, *, incarnation: str | None = None) -> None:
        self.incarnation = secrets.token_hex(8) if incarnation is None else incarnation
        self.newest = 0  # the number of the last one closed
        self._held: deque[bytes] = deque(maxlen=keep)

    def append(self, point: Mapping[str, Any]) -> None:
        """Hold the point of a window that has just closed."""
        self.newest += 1
        self._held.append(orjson.dumps(point))

    @property
    def cursor(self) -> str:
        """The cursor of somebody who has everything."""
        return f"{self.incarnation}-{self.newest}"

    def answer(self, since: str | None) -> tuple[bytes, int]:
        """Return a JSON list of points, and how many windows after the cursor are held no more.

        ``since`` None asks for the newest window alone, a cursor for what closed after it; one that is
        empty, nonsense or of another incarnation for all that is held.
        """
        held = list(self._held)
        missed = 0
        if since is None:
            held = held[-1:]
        else:
            match = _CURSOR.fullmatch(since)
            if match and match[1] == self.incarnation and int(match[2]) <= self.newest:
                after = self.newest - int(match[2])
                missed = max(0, after - len(held))
                held = held[len(held) - min(after, len(held)) :]
        return b"[" + b",".join(held) + b"]", missed
