"""Reads a collector's file again in a process of its own: thousands of targets take a second or more.

A thread would not do, see `llama.collector.slices`. The other process is `llama.config.pickled`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import sys
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

from llama.config import CollectorConfig, ConfigErrors

#: A file that is not read by then, s, never will be: it may be a pipe.
LONGEST_S = 120.0


class RereadingError(Exception):
    """The process gave no answer; says why."""


class _Reader(ProcessProtocol):
    """The process; ``said`` fires with what it wrote. Cancelling that ends it."""

    transport: Any

    def __init__(self) -> None:
        self.said: Deferred[bytes] = Deferred(lambda _: self._end())
        self._written: list[bytes] = []
        self._complaints: list[bytes] = []

    def outReceived(self, data: bytes) -> None:
        """Take a part of the answer."""
        self._written.append(data)

    def errReceived(self, data: bytes) -> None:
        """Take what it complains of."""
        self._complaints.append(data)

    def processEnded(self, reason: Any) -> None:
        """Give the answer, if anybody still wants it."""
        if self.said.called:
            return
        if reason.check(ProcessDone):
            self.said.callback(b"".join(self._written))
        else:
            complaint = b"".join(self._complaints).decode("utf-8", "backslashreplace").strip()
            why = complaint or reason.getErrorMessage()
            self.said.errback(RereadingError(f"it could not be read: {why}"))

    def _end(self) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")


def read_again(reactor: Any, path: str) -> Deferred[CollectorConfig]:
    """Read the file that is to take the place of the one in use.

    The Deferred fails with `ConfigErrors` that hold every mistake in it, or with `RereadingError`.
    Cancelling it ends the process.
    """
    reader = _Reader()
    command = [sys.executable, "-P", "-m", "llama.config.pickled", path]
    ways = os.pathsep.join(way or os.curdir for way in sys.path)
    try:
        reactor.spawnProcess(reader, sys.executable, command, {**os.environ, "PYTHONPATH": ways})
    except OSError as reason:
        return fail(RereadingError(f"there is no process to be had to read it: {reason.strerror}"))
    reader.said.addTimeout(LONGEST_S, reactor, onTimeoutCancel=_too_late)
    return reader.said.addCallback(_understood)


def _too_late(_result: Any, timeout_s: float) -> Any:
    raise RereadingError(f"it could not be read within {timeout_s:.0f} s")


def _understood(said: bytes) -> CollectorConfig:
    gc.disable()  # it would look for garbage again and again in what is made here
    try:
        config: Any = pickle.loads(said)  # noqa: S301  it is our own code that said it
    finally:
        gc.enable()
    if isinstance(config, CollectorConfig):
        return config
    raise ConfigErrors(config)
