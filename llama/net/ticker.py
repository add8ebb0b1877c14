"""A steady tick: a kernel timer that the reactor watches, finer than its own millisecond timeouts.

A turn of the reactor costs several times what it takes to wait for a timer, most of all a processor
that has slept since the last one. So while there is nothing else to do the ticks are waited for here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

if sys.platform.startswith("linux"):
    from twisted.internet.epollreactor import EPollReactor

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK, _TFD_CLOEXEC = 0o4000, 0o2000000


_TIMERFD = sys.platform.startswith("linux")
#: The reactor is left alone for so long, s, at most: what a tick asks of it, such as to watch something
#: new, waits until then.
ALONE_S = 0.05
#: And for no time at all if it watches more than this: all of it is looked at with every tick.
MOST_WATCHED = 64


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Ticker(FileDescriptor):
    """Calls ``callback()`` every ``period_s`` seconds, by timerfd(2) where there is one.

    Ticks that were missed are not made up for: however late the reactor comes, it is called once.
    """

    log = Logger()

    def __init__(self, reactor: Any, callback: Callable[[], None]) -> None:
        super().__init__(reactor)
        self._callback = callback
        self._fd = -1
        self._period_s = 0.0
        self._loop: LoopingCall | None = None
        self._watched: dict[int, int] = {}  # what `_poll` looks at: descriptors, and for what
        self._poll: Any = None

    def open(self) -> None:
        """Have the kernel's timer, so that `start` cannot fail; raises `OSError`."""
        if _TIMERFD and self._fd < 0:
            self._fd = self._create()
            self.connected = True
            self.startReading()

    def start(self, period_s: float) -> None:
        """Begin to tick, or tick at another pace from now on; raises `OSError` as `open` does."""
        self.open()
        self._period_s = period_s
        if _TIMERFD:
            libc = ctypes.CDLL(None, use_errno=True)
            seconds, ns = divmod(max(1, round(period_s * 1e9)), 1_000_000_000)
            spec = _Itimerspec(seconds, ns, seconds, ns)
            if libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None) < 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            return
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        self._loop = LoopingCall(self._callback)
        self._loop.clock = self.reactor
        self._loop.start(period_s)

    @staticmethod
    def _create() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return fd

    def stop(self) -> None:
        """Tick no more."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
        if self._fd >= 0:
            self.stopReading()
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Return the timer's descriptor, -1 when stopped."""
        return self._fd

    def doRead(self) -> None:
        """Take note of a tick, and of those that follow while nothing else happens."""
        self._tick()
        until_s = time.monotonic() + ALONE_S
        if not self._watch_all():
            return
        while self._comes_next(until_s):
            self._tick()

    def _tick(self) -> None:
        try:
            os.read(self._fd, 8)
        except OSError as reason:
            if reason.errno != errno.EAGAIN:
                raise
            return
        try:
            self._callback()
        except Exception:  # the reactor would never call again
            self.log.failure("a tick failed; the next one is not far")

    def _watch_all(self) -> bool:
        """Watch all that the reactor does; return False if that cannot be, or is too much."""
        reactor: Any = self.reactor
        if not isinstance(reactor, EPollReactor):  # others keep their timers elsewhere
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
        return True

    def _comes_next(self, until_s: float) -> bool:
        """Wait for the next tick; return False without it if the reactor has something to do before."""
        left_s = self.reactor.timeout()
        if left_s is not None and left_s < self._period_s:
            return False
        if time.monotonic() + self._period_s > until_s:
            return False
        events = self._poll.poll(1000 * ALONE_S)
        return len(events) == 1 and events[0][0] == self._fd

    def logPrefix(self) -> str:
        """Return what stands before this timer's log lines."""
        return "Ticker"
