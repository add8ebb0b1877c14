"""How many packets the queues of this host's interfaces have dropped, by rtnetlink(7).

Some drop what they had accepted, as CoDel does: then nobody is told, and nothing else counts it.
"""

from __future__ import annotations

import socket
import struct

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_QUEUE = struct.Struct("=BBHiIII")  # struct tcmsg: family, padding, interface, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")
_RTM_GETQDISC, _NLM_F_REQUEST, _NLM_F_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 38, 1, 0x300, 2, 3
_ROOT = 0xFFFFFFFF  # parent of an interface's own queue, which counts what those within it drop
_TCA_STATS, _DROPS_AT = 3, 12  # in struct tc_stats, behind octets and packets
_REQUEST = _HEADER.pack(
    _HEADER.size + _QUEUE.size, _RTM_GETQDISC, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0
) + bytes(_QUEUE.size)


def dropped() -> int:
    """Return how many packets there are, in the network namespace of this thread; raises `OSError`."""
    total = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(1)
        sock.sendto(_REQUEST, (0, 0))
        while True:
            answer = sock.recv(1 << 16)
            place = 0
            while place + _HEADER.size <= len(answer):
                length, kind, *_ = _HEADER.unpack_from(answer, place)
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel does not tell of its queues")
                if kind == _NLMSG_DONE:
                    return total
                total += _drops_of(answer, place + _HEADER.size, place + length)
                place += max(_HEADER.size, length + 3 & ~3)


def _drops_of(answer: bytes, place: int, end: int) -> int:
    """Return what the queue has dropped that is told of between two places of an answer."""
    if place + _QUEUE.size > end or _QUEUE.unpack_from(answer, place)[5] != _ROOT:
        return 0
    place += _QUEUE.size
    while place + _ATTRIBUTE.size <= end:
        size, name = _ATTRIBUTE.unpack_from(answer, place)
        if name == _TCA_STATS:
            return int.from_bytes(answer[place + 4 + _DROPS_AT :][:4], "little")
        place += max(_ATTRIBUTE.size, size + 3 & ~3)
    return 0
