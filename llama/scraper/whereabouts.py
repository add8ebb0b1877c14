"""Whether a database that is open is still the file at its path, and whether it may be written.

A file that is removed, or whose place another one takes, stays open: SQLite goes on writing into it
without an error, and all of that is gone once it is closed. Of one that may not be written it says
"disk I/O error", or less.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

_BESIDE = ("-wal", "-shm")
#: What SQLite says where it may not write.
_FORBIDDEN = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_CANTOPEN,
)


class MovedError(OSError):
    """The file is no longer the one that was opened. The text names it and says what happened."""


class Whereabouts:
    """The files of a database that was just opened at ``path``, and how to know them again.

    For the thread that has its connection.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {suffix: _identity(f"{path}{suffix}") for suffix in ("", *_BESIDE)}

    def is_there(self) -> bool:
        """Say whether the file is where it was; raises `OSError` when none can say."""
        return self._known[""] is not None and _identity(self._path) == self._known[""]

    def see(self, db: Any) -> None:
        """Raise `MovedError` when the file is not there any more, and `OSError` when none can say.

        ``db`` is its connection, or a cursor outside of a transaction. What the old file has
        beside it is removed then: SQLite would take it for the new one's, which would be damaged.
        It may close the old one after that, and begin a new one.
        """
        if self.is_there():
            return
        with suppress(sqlite3.Error):  # what stands beside goes into the file, if it was renamed
            db.execute("PRAGMA wal_checkpoint").fetchall()
        for suffix in _BESIDE:
            beside = f"{self._path}{suffix}"
            # As long as the old one is open, no other can have its number.
            with suppress(OSError):
                if (known := self._known[suffix]) is not None and _identity(beside) == known:
                    os.unlink(beside)
        if os.path.exists(self._path):
            raise MovedError(f"another file has taken the place of {self._path}")
        raise MovedError(f"{self._path} was removed")


def forbidden(error: Exception, path: Path) -> str | None:
    """Say, for a person, which file of a database may not be written, if that is why SQLite failed."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _FORBIDDEN:
        return None
    with suppress(OSError):
        for there in (Path(f"{path}{suffix}") for suffix in ("", *_BESIDE)):
            if not there.exists() or os.access(there, os.R_OK | os.W_OK):
                continue
            if os.statvfs(there).f_flag & os.ST_RDONLY:
                return f"{there} is on a file system that is mounted read-only"
            return f"{there} is {_owner(there)}'s, and may not be written by this user"
    return None


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Return device and inode of a file; None where there is none."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_dev, stat.st_ino
