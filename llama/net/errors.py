"""The error queue of a socket: ICMP errors about its own packets, without root (ip(7)).

With `IP_RECVERR` the kernel keeps every ICMP error that quotes a packet of the socket: who sent it,
what it says, and what of our payload it quotes. An error also makes one later call on the socket
fail with its errno, whatever that call was about. Without it the kernel tells an unconnected socket
nothing of ICMP, in neither way. Raw sockets hear of others' packets, too; TCP sockets hear until they are
connected, from Linux 5.8 on.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import frozen

from llama.net import mmsg

#: struct sock_extended_err: errno, origin, type, code, padding, info, data; then the offender's
#: struct sockaddr.
_EXTENDED = struct.Struct("=IBBBxII")
ORIGIN_ICMP, ORIGIN_ICMP6 = 2, 3
#: Version, type and code of what says that a packet was too big (RFC 1191, RFC 8201).
_TOO_BIG = frozenset(((4, 3, 4), (6, 2, 0)))
#: Times that a call is made again because its errno may be of another packet: each ICMP error spoils one.
PATIENCE = 8
#: errno values that may have been left by an ICMP error about another packet.
PASSING = frozenset(
    (
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        errno.EACCES,
        errno.EMSGSIZE,
        errno.ENONET,
    )
)


@frozen
class IcmpError:
    """One ICMP error about one of our packets."""

    version: int  # 4 or 6
    kind: int  # ICMP or ICMPv6 type
    code: int
    offender: str  # who sent the error
    destination: str  # where our packet was going
    port: int
    payload: bytes  # what the error quotes of it, maybe nothing
    mtu: int = 0  # of the link that it was too big for, octets; 0: not said


def enable(sock: socket.socket) -> None:
    """Have a socket keep the ICMP errors about its packets."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(mmsg.SOL_IP, mmsg.IP_RECVERR, 1)
    else:
        sock.setsockopt(mmsg.SOL_IPV6, mmsg.IPV6_RECVERR, 1)


def disable(sock: socket.socket) -> None:
    """Have a socket hear nothing of ICMP any more, and forget what it has heard.

    Before Linux 6.7 the transmit stamps that wait in its error queue are lost, too.
    """
    if sock.family == socket.AF_INET:
        sock.setsockopt(mmsg.SOL_IP, mmsg.IP_RECVERR, 0)
    else:
        sock.setsockopt(mmsg.SOL_IPV6, mmsg.IPV6_RECVERR, 0)
    clear(sock)


def clear(sock: socket.socket) -> None:
    """Take away the errno that an ICMP error has left for the next call on a socket."""
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def from_control(
    control: Sequence[tuple[int, int, bytes]], name: tuple[str, int], payload: bytes
) -> IcmpError | None:
    """Return the ICMP error that came as ancillary data; None if it was something else.

    `name` is the address that `recvmsg` gave: where our packet was going.
    """
    for level, kind, data in control:
        if (level, kind) not in (
            (mmsg.SOL_IP, mmsg.IP_RECVERR),
            (mmsg.SOL_IPV6, mmsg.IPV6_RECVERR),
        ):
            continue
        if len(data) < _EXTENDED.size + 16:
            return None
        _, origin, icmp_type, code, info, _ = _EXTENDED.unpack_from(data)
        address = data[_EXTENDED.size :]
        family = int.from_bytes(address[:2], "little")
        if origin == ORIGIN_ICMP and family == socket.AF_INET:
            offender, version = socket.inet_ntop(socket.AF_INET, address[4:8]), 4
        elif origin == ORIGIN_ICMP6 and family == socket.AF_INET6 and len(address) >= 24:
            offender, version = socket.inet_ntop(socket.AF_INET6, address[8:24]), 6
        else:
            return None
        mtu = info if (version, icmp_type, code) in _TOO_BIG else 0
        return IcmpError(version, icmp_type, code, offender, name[0], name[1], payload, mtu)
    return None


def read(sock: socket.socket, at_most: int = 64) -> Iterator[IcmpError]:
    """Yield the ICMP errors that wait at a non-blocking socket, at most so many entries."""
    for _ in range(at_most):
        try:
            payload, control, _, name = sock.recvmsg(2048, 512, mmsg.MSG_ERRQUEUE)
        except BlockingIOError:
            return
        except OSError as reason:
            if reason.errno not in PASSING:
                raise
            continue
        error = from_control(control, name[:2], payload)
        if error is not None:
            yield error


def send(
    sock: socket.socket, payload: bytes, control: list[tuple[int, int, bytes]], to: Any
) -> None:
    """Send a datagram; again, up to `PATIENCE` times, while a refusal may be of an earlier one."""
    for times in range(PATIENCE + 1):
        try:
            sock.sendmsg([payload], control, 0, to)
            return
        except OSError as reason:
            if reason.errno not in PASSING or times == PATIENCE:
                raise
        clear(sock)
