"""A reactor that counts time by a clock which nobody sets.

Twisted's reactors count by the wall clock: set back by an hour, none of their timers runs for an hour;
set forward, all run at once. Whoever needs the time of day asks for it (`time.time`), not the reactor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def count_steadily(reactor: Any, monotonic_s: Callable[[], float] = time.monotonic) -> None:
    """Let ``reactor.seconds()``, and with it all its timers, go by the monotonic clock from now on.

    To be called before anything takes a time from the reactor to compare it later. Calls that wait
    already come when they would have. May be called again, which changes nothing.
    """
    if reactor.seconds == monotonic_s:
        return
    waiting = [(call, call.getTime() - reactor.seconds()) for call in reactor.getDelayedCalls()]
    reactor.seconds = monotonic_s
    for call, left_s in waiting:
        call.seconds = monotonic_s  # each has the clock that the reactor had when it was made
        call.reset(left_s)
