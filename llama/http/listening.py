"""Why a place to listen at cannot be had, and what to do about it: one line, for people.

What a killed process left of a socket in the file system is removed, and not worth a line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from typing import Any

from twisted.internet.error import CannotListenError

from llama.config.endpoints import socket_file

_REMEDIES = {
    errno.EADDRINUSE: "; end what listens there, or choose another in the configuration",
    errno.EADDRNOTAVAIL: "; it is none of this machine's, or not yet",
    errno.EACCES: "; ports below 1024 take CAP_NET_BIND_SERVICE",
}

#: A lock, or a socket without one, that is younger may be that of a process that is about to listen.
STARTING_S = 10.0


def clear_left_behind(where: str) -> None:
    """Remove the socket of an endpoint, and Twisted's lock on it, if nobody listens there any more.

    By the number in the lock alone that cannot be told: after a restart it may be another process's,
    and in a container it is always our own.
    """
    path = socket_file(where)
    if path is None or _is_heard(path) or (os.path.lexists(path) and not _is_socket(path)):
        return
    lock = f"{path}.lock"
    with contextlib.suppress(OSError):  # then listening fails, and says why
        if os.path.lexists(lock):
            if os.readlink(lock) != str(os.getpid()) and _is_new(lock):
                return
            os.unlink(lock)
        elif _is_new(path):
            return
        if os.path.lexists(path) and not _is_heard(path):
            os.unlink(path)


def explain(where: str, reason: Any) -> str:
    """Return why nothing can listen at an endpoint, from what its ``listen`` failed with."""
    problem = reason.socketError if isinstance(reason, CannotListenError) else reason
    text = str(getattr(problem, "strerror", None) or problem)
    code = getattr(problem, "errno", 0)
    path = socket_file(where)
    if path is not None:
        return f"{text}{_socket_remedy(path, code, text)}"
    return f"{text}{_REMEDIES.get(code, '')}"


def _socket_remedy(path: str, code: int | None, text: str) -> str:
    """Say what to do about a socket in the file system."""
    directory = os.path.dirname(path) or "."
    if code in (errno.EACCES, errno.EPERM):
        return (
            f"; this user may not make files in {directory}: give it to them (in a unit file,"
            " RuntimeDirectory=)"
        )
    if code == errno.ENOENT:
        return f"; there is no directory {directory}: make it (in a unit file, RuntimeDirectory=)"
    if code == errno.EADDRINUSE:
        if not _is_socket(path):
            return "; what is there is no socket: choose another path"
        if _is_heard(path):
            return "; end what listens there, or choose another path"
        return f"; nothing listens there, it was left behind: remove {path}"
    if text == "Cannot acquire lock":
        if _is_heard(path):
            return "; end what listens there, or choose another path"
        return f"; unless something is just starting or ending there, remove {path}.lock"
    return ""


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _is_new(path: str) -> bool:
    return abs(time.time() - os.lstat(path).st_mtime) < STARTING_S


def _is_heard(path: str) -> bool:
    """Say whether somebody listens at a socket; when that cannot be told, somebody does."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.setblocking(False)
            asking.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    return True
