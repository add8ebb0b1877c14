"""What systemd is told by the program of a unit: how grave a line of its log is, that it is ready."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any, TextIO

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    textFileLogObserver,
)
from zope.interface import implementer

#: What syslog(3) calls the levels.
_PRIORITIES = {
    LogLevel.debug: 7,
    LogLevel.info: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}

_log = Logger()


@implementer(ILogObserver)
class JournalObserver:
    """Writes each line of an event behind its priority, as sd-daemon(3) has it, without the time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: LogEvent) -> None:
        """Write an event; one of several lines, as with a traceback, becomes several entries."""
        priority = _PRIORITIES.get(event.get("log_level", LogLevel.info), 6)
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        for line in text.splitlines():
            self._stream.write(f"<{priority}>{line}\n")
        self._stream.flush()


def journal(stream: TextIO | None = None) -> Any:
    """Return what logs to ``stream``, standard output unless given, be it the journal or not.

    It is for ``twistd --logger`` as well.
    """
    stream = sys.stdout if stream is None else stream
    return JournalObserver(stream) if _is_journal(stream) else textFileLogObserver(stream)


def _is_journal(stream: TextIO) -> bool:
    """Return whether a stream leads to the journal, as systemd says in ``JOURNAL_STREAM``."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file behind it
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def ready() -> None:
    """Say that the program does its duty now, where ``NOTIFY_SOCKET`` asks for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(b"READY=1", f"\0{address[1:]}" if address[0] == "@" else address)
    except OSError as error:
        _log.warn("systemd does not learn that all is ready: {reason}", reason=error.strerror)
