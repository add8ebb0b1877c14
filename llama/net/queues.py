"""How many packets the queues of this host's interfaces have passed and dropped, by rtnetlink(7).

Some drop what they had accepted, as CoDel does: then nobody is told, and nothing else counts it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_QUEUE = struct.Struct("=BBHiIII")  # struct tcmsg: family, padding, interface, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")
_STATS = struct.Struct("=QII")  # struct tc_stats begins so: octets, packets, drops
_RTM_GETQDISC, _NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 38, 1, 0x10, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ROOT = 0xFFFFFFFF  # parent of an interface's own queue, which counts what those within it drop
_TCA_STATS = 3
_REQUEST = _HEADER.pack(
    _HEADER.size + _QUEUE.size, _RTM_GETQDISC, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0
) + bytes(_QUEUE.size)


class Line(NamedTuple):
    """How many packets a line that packets wait in has let pass and dropped; modulo 2**32."""

    passed: int
    dropped: int


def counts() -> dict[tuple[int, int], Line]:
    """Return the counters of every interface's own queue, by number of interface and handle.

    Those are in the network namespace of this thread. Raises `OSError`. May wait for whoever changes
    interfaces: not to be called where nothing may wait.
    """
    found: dict[tuple[int, int], Line] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(1)
        sock.sendto(_REQUEST, (0, 0))
        while True:
            answer = sock.recv(1 << 16)
            place = 0
            while place + _HEADER.size <= len(answer):
                length, kind, flags, *_ = _HEADER.unpack_from(answer, place)
                if kind == _NLMSG_ERROR:
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
                if flags & _NLM_F_DUMP_INTR:
                    raise OSError(errno.EINTR, "interfaces changed meanwhile")
                if kind == _NLMSG_DONE:
                    return found
                _enter(found, answer, place + _HEADER.size, place + length)
                place += max(_HEADER.size, length + 3 & ~3)


def _enter(found: dict[tuple[int, int], Line], answer: bytes, place: int, end: int) -> None:
    """Enter the queue that is told of between two places of an answer, if it is an interface's own."""
    if place + _QUEUE.size > end:
        return
    _, _, _, interface, handle, parent, _ = _QUEUE.unpack_from(answer, place)
    if parent != _ROOT:
        return
    place += _QUEUE.size
    while place + _ATTRIBUTE.size <= end:
        size, name = _ATTRIBUTE.unpack_from(answer, place)
        if name == _TCA_STATS and place + _ATTRIBUTE.size + _STATS.size <= end:
            _, passed, dropped = _STATS.unpack_from(answer, place + _ATTRIBUTE.size)
            found[interface, handle] = Line(passed, dropped)
            return
        place += max(_ATTRIBUTE.size, size + 3 & ~3)
