"""Waiting for one's own descriptor in the reactor's stead, while it has nothing else to do.

A turn of the reactor costs several times what it takes to wait for a descriptor, most of all on a
processor that has slept since the last one.
"""

from __future__ import annotations

import select
import sys
import time
from typing import Any

if sys.platform.startswith("linux"):
    from twisted.internet.epollreactor import EPollReactor

#: The reactor is left alone for so long, s, at most: what is asked of it meanwhile, such as to watch
#: something new, waits until then. Nor while a timer is due as soon: what is done in slices has one after
#: the other, and those that waited for us would be done at one time.
ALONE_S = 0.05
#: And for no time at all if it watches more than this: all of it would be looked at each time. How much
#: that is, is looked at again after so long, s.
MOST_WATCHED, CROWDED_S = 64, 1.0


class Alone:
    """Tells a descriptor's owner, in its ``doRead``, whether it may as well wait there.

    ``while alone.comes_next(fd): ...`` after `begin` does what there is to do until the reactor has
    something else to do, be it a descriptor, a timer, a thread's call or a signal.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._until_s = 0.0
        self._crowded_until_s = 0.0
        self._watched: dict[int, int] = {}  # what `_poll` looks at: descriptors, and for what
        self._poll: Any = None

    def begin(self) -> bool:
        """Watch all that the reactor does; return False if that cannot be, or is too much."""
        now_s = time.monotonic()
        if now_s < self._crowded_until_s:
            return False
        try:
            if not self._watch_all():
                self._crowded_until_s = now_s + CROWDED_S
                return False
        except Exception:  # what was closed behind its back: to find out is the reactor's business
            return False
        self._until_s = now_s + ALONE_S
        return True

    def _watch_all(self) -> bool:
        reactor = self._reactor
        # Other reactors keep their timers elsewhere.
        if not (sys.platform.startswith("linux") and isinstance(reactor, EPollReactor)):
            return False
        readers, writers = reactor.getReaders(), reactor.getWriters()
        if len(readers) + len(writers) > MOST_WATCHED:
            return False
        watched = {reader.fileno(): select.POLLIN for reader in readers}
        for writer in writers:
            watched[writer.fileno()] = watched.get(writer.fileno(), 0) | select.POLLOUT
        if watched != self._watched:
            poll = select.poll()
            for fd, events in watched.items():
                poll.register(fd, events)
            self._watched, self._poll = watched, poll
        return True

    def comes_next(self, fd: int) -> bool:
        """Wait until ``fd`` is readable, and nothing else; return False if it is not to be.

        That is when the reactor has something else to do, or will have soon.
        """
        left_s = self._until_s - time.monotonic()
        timer_s = self._reactor.timeout()
        near = timer_s is not None and timer_s < ALONE_S
        # What threads have handed over may wait without a word: its wake-up call was taken already.
        if left_s <= 0 or near or self._reactor.threadCallQueue or fd < 0:
            return False
        events = self._poll.poll(1000 * left_s)
        return len(events) == 1 and events[0][0] == fd
