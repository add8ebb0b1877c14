"""One connection attempt's socket, and what the kernel tells of its SYN: ``TCP_INFO``, ``SO_MEMINFO``.

When attempts are made, and what they mean to a ledger, is `llama.collector.probing.tcp`'s part.
"""

from __future__ import annotations

import socket
import struct

from llama.collector.probing.plan import Source
from llama.collector.probing.sockets import leave_spare
from llama.net import mmsg
from llama.net.lookup import socket_address

_ABORT = struct.pack("=ii", 1, 0)  # struct linger: close with RST
_TCP_SYNCNT = 7
_RTT_AT, _RETRANSMITS_AT = 68, 100  # tcpi_rtt (us) and tcpi_total_retrans in struct tcp_info
_INFO_SIZE = 104
#: The first octets of struct tcp_info, state and congestion state (SYN_SENT, CWR), of a SYN refused here.
_SYN_REFUSED = bytes([2, 2])
_WRITE_AT = 8  # SK_MEMINFO_WMEM_ALLOC: octets that are neither sent nor dropped


def attempt_socket(source: Source, number: int) -> socket.socket:
    """Return a socket bound to port ``number`` of a source; raises `OSError` if that cannot be."""
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        leave_spare(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_SYNCNT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if source.interface is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, source.interface.encode())
        anywhere = "0.0.0.0" if source.version == 4 else "::"  # noqa: S104
        sock.bind(socket_address(source.address or anywhere, number))
    except OSError:
        sock.close()
        raise
    return sock


def was_refused_here(sock: socket.socket) -> bool:
    """Return whether the queue of a device has just refused a SYN: it was not sent."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 2) == _SYN_REFUSED


def waits_here(sock: socket.socket) -> bool:
    """Return whether a SYN is still in a queue of this host, or of its device."""
    memory = sock.getsockopt(socket.SOL_SOCKET, mmsg.SO_MEMINFO, _WRITE_AT + 4)
    return any(memory[_WRITE_AT:])


def times_of(sock: socket.socket) -> tuple[int, int]:
    """Return the round trip of an answer, us, 0 if unknown, and how often the SYN was sent again."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    (rtt_us,) = struct.unpack_from("=I", info, _RTT_AT)
    (again,) = struct.unpack_from("=I", info, _RETRANSMITS_AT)
    return rtt_us, again
