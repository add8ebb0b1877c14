"""Which way the kernel would send; nothing is sent to find out."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import NamedTuple

from llama.net.lookup import socket_address


def local_address(destination: str, interface: str | None = None) -> str | None:
    """Return whence the kernel would send to ``destination``; None if that is not known.

    Through ``interface`` alone, if it is given: a VRF has routes of its own.
    """
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            if interface is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            sock.connect(socket_address(destination, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return None


_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_RTM_GETROUTE, _NLM_F_REQUEST, _NLMSG_ERROR = 26, 1, 2
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_PREFSRC = 1, 2, 4, 7


class Way(NamedTuple):
    """How the kernel would send: through which device, from which address."""

    device: str
    source: str


def way_to(destination: str, source: str | None = None) -> Way:
    """Ask the kernel how it would send to an IPv4 ``destination``, from ``source`` if given.

    Raises `OSError` if it would not: no route, or an address that is not ours (rtnetlink(7)).
    """
    wanted = _attribute(_RTA_DST, socket.inet_aton(destination))
    if source is not None:
        wanted += _attribute(_RTA_SRC, socket.inet_aton(source))
    body = _ROUTE.pack(socket.AF_INET, 32, 32 if source else 0, 0, 0, 0, 0, 0, 0) + wanted
    request = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        sock.settimeout(1)
        sock.sendto(request, (0, 0))
        answer = sock.recv(65536)
    length, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        raise OSError(-code, os.strerror(-code))
    found: dict[int, bytes] = {}
    place = _HEADER.size + _ROUTE.size
    while place + 4 <= length:
        size, name = struct.unpack_from("=HH", answer, place)
        found[name] = answer[place + 4 : place + size]
        place += max(4, (size + 3) & ~3)
    chosen = found.get(_RTA_PREFSRC)
    if _RTA_OIF not in found or (chosen is None and source is None):
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    device = socket.if_indextoname(int.from_bytes(found[_RTA_OIF], sys.byteorder))
    return Way(device, source or socket.inet_ntoa(chosen or b""))


def _attribute(name: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), name) + value
