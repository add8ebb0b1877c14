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
#: something new, waits until then.
ALONE_S = 0.05
#: And for no time at all if it watches more than this: all of it is looked at each time.
MOST_WATCHED = 64


class Alone:
    """Tells a descriptor's owner, in its ``doRead``, whether it may as well wait there.

    ``while alone.comes_next(fd): ...`` after `begin` does what there is to do until the reactor has
    something else to do, be it a descriptor, a timer, a thread's call or a signal.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._until_s = 0.0
        self._watched: dict[int, int] = {}  # what `_poll` looks at: descriptors, and for what
        self._poll: Any = None

    def begin(self) -> bool:
        """Watch all that the reactor does; return False if that cannot be, or is too much."""
        reactor = self._reactor
        # Other reactors keep their timers elsewhere.
        if not (sys.platform.startswith("linux") and isinstance(reactor, EPollReactor)):
            return False
        readers = [reader.fileno() for reader in reactor.getReaders()]
        writers = [writer.fileno() for writer in reactor.getWriters()]
        if len(readers) + len(writers) > MOST_WATCHED or -1 in readers or -1 in writers:
            return False
        watched = dict.fromkeys(readers, select.POLLIN)
        for fd in writers:
            watched[fd] = watched.get(fd, 0) | select.POLLOUT
        if watched != self._watched:
            self._watched, self._poll = watched, select.poll()
            for fd, events in watched.items():
                self._poll.register(fd, events)
        self._until_s = time.monotonic() + ALONE_S
        return True

    def comes_next(self, fd: int, least_s: float = 0.001) -> bool:
        """Wait until ``fd`` is readable, and nothing else; return False if it is not to be.

        That is as soon as the reactor has something else to do, or would have within ``least_s``.
        """
        wait_s = self._until_s - time.monotonic()
        timer_s = self._reactor.timeout()
        if timer_s is not None and timer_s < wait_s:
            wait_s = timer_s
        if wait_s < least_s:
            return False
        events = self._poll.poll(1000 * wait_s)
        return len(events) == 1 and events[0][0] == fd
