"""The files of a `PinpointService`: for their owner alone when they are made, and whole lines in them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def private(path: str, flags: int) -> int:
    """Open a file, as an ``opener``; one that is made is for its owner alone."""
    return os.open(path, flags, 0o600)


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
