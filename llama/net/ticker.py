"""A steady tick: a kernel timer that the reactor watches, finer than its own millisecond timeouts."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from llama.net.alone import Alone

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK, _TFD_CLOEXEC = 0o4000, 0o2000000


_TIMERFD = sys.platform.startswith("linux")


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
        self._loop: LoopingCall | None = None
        self._alone = Alone(reactor)

    def open(self) -> None:
        """Have the kernel's timer, so that `start` cannot fail; raises `OSError`."""
        if _TIMERFD and self._fd < 0:
            self._fd = self._create()
            self.connected = True
            self.startReading()

    def start(self, period_s: float) -> None:
        """Begin to tick, or tick at another pace from now on; raises `OSError` as `open` does."""
        self.open()
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
        self._loop = LoopingCall(self._call)
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
        if self._alone.begin():
            while self._alone.comes_next(self._fd):
                self._tick()

    def _tick(self) -> None:
        try:
            os.read(self._fd, 8)
        except OSError as reason:
            if reason.errno != errno.EAGAIN:
                raise
            return
        self._call()

    def _call(self) -> None:
        try:
            self._callback()
        except Exception:  # nobody would ever call again
            self.log.failure("a tick failed; the next one is not far")

    def logPrefix(self) -> str:
        """Return what stands before this timer's log lines."""
        return "Ticker"
