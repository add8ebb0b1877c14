"""The flow label of IPv6, RFC 6437: one for all TCP connections from a port, which routers may hash.

By itself the kernel draws another one for each connection (as it does for no UDP socket of ours), and
what routers take for another flow may go another way. A label is chosen after it was leased:
IPV6_FLOWLABEL_MGR of ipv6(7), ``linux/in6.h``.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

_FLOWLABEL_MGR, _FLOWINFO_SEND = 32, 33
_GET, _ANYONE, _CREATE = 0, 255, 1
_REQUEST = struct.Struct("=16sIBBHHHI")  # struct in6_flowlabel_req; the label in network order
#: What the kernel lets programs choose of 20 bits (net.ipv6.flowlabel_state_ranges).
_BITS = 19


def label_of(port: int) -> int:
    """Return the label of a source port, 1 to 0x7FFFF; neighbours' are far apart."""
    return (port * 0x9E3779B1 & 0xFFFFFFFF) >> 32 - _BITS or 1


def labelled(sock: socket.socket, address: tuple[Any, ...], port: int) -> tuple[Any, ...]:
    """Return an IPv6 ``address`` as ``sock`` is to connect to it, with the label of ``port``.

    Without one, for the kernel to choose, if it leases no more: there are 4,096 at a time on a host, of
    which an ordinary user gets some 3,000, and a lease ends some seconds after its socket.
    """
    host, number, _, scope = address
    label = label_of(port)
    asked = socket.inet_pton(socket.AF_INET6, host), socket.htonl(label), _GET, _ANYONE, _CREATE
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, _FLOWLABEL_MGR, _REQUEST.pack(*asked, 0, 0, 0))
        sock.setsockopt(socket.IPPROTO_IPV6, _FLOWINFO_SEND, 1)
    except OSError:
        return address
    return host, number, label, scope
