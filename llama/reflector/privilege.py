"""What a reflector that was started as root keeps of it once twistd has changed to another user.

Ports below 1024 (`ip_unprivileged_port_start`) are bound before that. To bind one again, when a
reload moves the reflector to another address, takes CAP_NET_BIND_SERVICE: it is kept where the
reflector has such a port and as long as it has it, and nothing else ever is. Once it has moved to
another port it cannot come back without being started anew. Capabilities are the calling thread's;
other threads lose all of theirs with the change of user. Nothing happens on systems other than Linux.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CAP_NET_BIND_SERVICE = 10  # of capabilities(7)
_PR_SET_KEEPCAPS = 8  # of prctl(2)
_VERSION_3 = 0x20080522  # of capget(2): two words of each set
_FIRST_FREE = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_LINUX = sys.platform.startswith("linux")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def is_privileged(port: int) -> bool:
    """Tell whether only the privileged may bind a port, on this machine."""
    try:
        first_free = int(_FIRST_FREE.read_text())
    except (OSError, ValueError):
        first_free = 1024
    return 0 < port < first_free


def keep_for_change_of_user() -> None:
    """Have this thread's capabilities outlast setuid(2), for `shed` to take most of them away."""
    if _LINUX:
        _called("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)


def shed(*, keep_binding: bool) -> None:
    """Give up every capability but, with ``keep_binding``, CAP_NET_BIND_SERVICE if it is there.

    Root, who is to stay root, is left alone.
    """
    if not _LINUX or os.geteuid() == 0:
        return
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _called("capget", ctypes.byref(header), sets)
    kept = sets[0].permitted & (1 << CAP_NET_BIND_SERVICE if keep_binding else 0)
    sets[0] = _Sets(kept, kept, 0)
    sets[1] = _Sets(0, 0, 0)
    _called("capset", ctypes.byref(header), sets)


def may_be_root_again() -> bool:
    """Tell whether the real or the saved user is root, so that setuid(2) leads back to it."""
    return hasattr(os, "getresuid") and 0 in os.getresuid()


def _called(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
