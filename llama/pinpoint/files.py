"""The files of ``llama pinpoint``: for their owner alone when they are made, whole lines, one writer."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def private(path: str, flags: int) -> int:
    """Open a file, as an ``opener``; one that is made is for its owner alone."""
    return os.open(path, flags, 0o600)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a file that is replaced, and may not be there yet, from other processes that do this, too.

    The lock is on ``path`` + ".lock", which is removed at the end. The kernel lets go of it with the
    process: what somebody who was killed left there holds up nobody. Raises `BlockingIOError` if another
    has it, and `OSError` if there can be none.
    """
    beside = path.with_name(path.name + ".lock")
    while True:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it before may have removed it since it was opened: then it is nobody's any more.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), beside.stat()):
                    break
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):  # what is left holds up nobody
            beside.unlink()
        os.close(descriptor)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, which ends as one, to a file: all of it or nothing.

    It begins a line, too, whatever somebody who was killed left of one. Raises `OSError`, of a full disk
    say.
    """
    # Not of a pipe or a terminal, which holds none, nor of what this user may only write.
    lines = path.is_file() and os.access(path, os.R_OK)
    with open(path, "ab+" if lines else "ab", buffering=0, opener=private) as file:
        descriptor = file.fileno()
        length = os.fstat(descriptor).st_size if lines else 0
        if length and os.pread(descriptor, 1, length - 1) != b"\n":
            line = b"\n" + line
        end = length
        try:
            while line:  # once, unless there is no room for all of it: the next time says so
                written = os.write(descriptor, line)
                end += written
                line = line[written:]
        except OSError:
            with suppress(OSError):  # one that may only be appended to, say
                if os.fstat(descriptor).st_size == end:  # nobody else has appended to it
                    file.truncate(length)
            raise
