"""The sockets that UDP probes leave from, and addresses as the kernel has them."""

from __future__ import annotations

import errno
import os
import resource
import socket

from llama.collector.intervals.summary import Pair
from llama.collector.probing.plan import Group, Source
from llama.config.link_local import BEGINNINGS
from llama.net import errors, mmsg
from llama.net.lookup import socket_address
from llama.wire.source_ports import REFUSED_PORTS

SOCKET_BUFFER = 4 << 20  # octets asked for; the kernel gives at most net.core.rmem_max
#: Octets of receive buffer that a small packet takes: 212,992, the stock buffer, hold 256 of them. Each
#: probe puts two there, a transmit stamp and its reply, and large replies take up to twice their size
#: more, as do stamps that come with their packet, for want of an identifier.
SMALLEST_ROOM = 832
SPARE_FILES = 32  # that probing leaves to all else: HTTP, names, programs


class HeldPort:
    """A source port, ``number``, that is held by a socket bound to it: nobody else here has it."""

    ordinal = 0  #: its number within its prober, which sets it

    def __init__(self, source: Source, sock: socket.socket, number: int) -> None:
        self.source = source
        self.sock = sock
        self.number = number
        self.family: int = sock.family  # a plain number: the socket makes an enum at each look


class ProbeSocket(HeldPort):
    """A source port that probes leave from and replies come to, and what is counted about it."""

    hears_errors = False  #: whether it keeps the ICMP errors about its packets

    def __init__(self, source: Source, *, kernel_stamps: bool, ids: bool) -> None:
        self._kernel_stamps, self._ids = kernel_stamps, ids
        sock, number, device = self._made(source, source.number)
        super().__init__(source, sock, number)
        self.device = device  # number of the interface that it is bound to, 0: to none
        self.cannot_follow = False  # an interface that was made anew; that has been said
        self.fd = sock.fileno()
        self.buffer: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.drops = 0

    def _made(
        self, source: Source, number: int, beside: socket.socket | None = None
    ) -> tuple[socket.socket, int, int]:
        """Return a socket that is set up and bound, the number it got, and that of its interface.

        ``beside`` is another, which may have that number: both let the other have it.
        """
        device = 0
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        sock = self._create(family)
        try:
            leave_spare(sock)
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
            if family == socket.AF_INET6 and sock.type != socket.SOCK_RAW:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for one in (sock, beside) if beside is not None else ():
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if source.interface is not None:
                device = interface_number(source.interface)
                name = source.interface.encode()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            if source.df:
                mmsg.forbid_fragments(sock)
            else:
                mmsg.believe_no_path_mtu(sock)
            mmsg.enable_receive_options(sock)
            flags = mmsg.SOF_RX_SOFTWARE | mmsg.SOF_SOFTWARE
            if self._kernel_stamps:
                flags |= mmsg.SOF_TX_SOFTWARE
                if self._ids:
                    flags |= mmsg.SOF_OPT_ID | mmsg.SOF_OPT_TSONLY | mmsg.SOF_OPT_CMSG
            sock.setsockopt(mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, flags)
            anywhere = "0.0.0.0" if source.version == 4 else "::"  # noqa: S104
            bound = self._bind(sock, source.address or anywhere, number)
        except OSError:
            sock.close()
            raise
        if not number and bound in REFUSED_PORTS:
            try:
                return self._made(source, 0, beside)  # another one, as this is taken meanwhile
            finally:
                sock.close()
        return sock, bound, device

    def follow_interface(self) -> None:
        """Bind to the interface of our name anew, which has another number now.

        The kernel keeps a socket bound to the one that is gone. The descriptor stays the same, and so
        does the number unless somebody else has it. Raises `OSError`; then nothing has changed.
        """
        try:
            fresh, self.number, self.device = self._made(self.source, self.number, self.sock)
        except OSError:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            if self.source.number:
                raise
            fresh, self.number, self.device = self._made(self.source, 0)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        os.dup2(fresh.fileno(), self.fd, inheritable=False)
        fresh.close()
        self.hears_errors = self.cannot_follow = False
        self.drops = 0

    def _create(self, family: int) -> socket.socket:
        return socket.socket(family, socket.SOCK_DGRAM)

    def _bind(self, sock: socket.socket, address: str, number: int) -> int:
        """Bind the socket and return the number it got."""
        sock.bind(socket_address(address, number))
        bound: int = sock.getsockname()[1]
        return bound

    def hear_errors(self) -> None:
        """Have the kernel keep the ICMP errors about what leaves here, if it does not yet."""
        if not self.hears_errors:
            errors.enable(self.sock)
            self.hears_errors = True

    def hear_no_errors(self) -> None:
        """Have it keep them no more, and let none hinder what is sent; see `errors.disable`."""
        errors.disable(self.sock)
        self.hears_errors = False

    def new_drops(self) -> int:
        """Return how many packets the kernel has dropped here since this was last asked."""
        drops = mmsg.receive_drops(self.sock)
        new = (drops - self.drops) & 0xFFFFFFFF
        self.drops = drops
        return new


def leave_spare(sock: socket.socket) -> None:
    """Raise `OSError` (EMFILE) if a socket is among the last that this process may open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and sock.fileno() >= limit - SPARE_FILES:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def sockaddr(version: int, address: str, port: int, scope: int = 0) -> bytes:
    """Return ``struct sockaddr_in`` or ``sockaddr_in6``; a link-local address needs its ``scope``."""
    network_port = port.to_bytes(2, "big")
    if version == 4:
        family = socket.AF_INET.to_bytes(2, "little")
        return family + network_port + socket.inet_aton(address) + bytes(8)
    packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    family = socket.AF_INET6.to_bytes(2, "little")
    return family + network_port + bytes(4) + packed + scope.to_bytes(4, "little")


def zone_of(address: str, interface: str | None) -> str | None:
    """Return which interface a link-local address is behind: its own zone, else ``interface``.

    None for any other address.
    """
    host, _, zone = address.partition("%")
    return (zone or interface) if host[:3].lower() in BEGINNINGS else None


def interface_number(name: str) -> int:
    """Return the number that an interface has now; 0 if there is none of this name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return int(name) if name.isdecimal() else 0


def require_zone(address: str, interface: str | None) -> None:
    """Raise `OSError` if the interface that a link-local address is behind is not there."""
    zone = zone_of(address, interface)
    if zone is not None and not interface_number(zone):
        raise OSError(errno.ENODEV, f"there is no interface {zone}")


def endpoint(octets: bytes) -> tuple[str, int]:
    """Return address and port of a ``struct sockaddr_in`` or ``sockaddr_in6``."""
    port = int.from_bytes(octets[2:4], "big")
    if int.from_bytes(octets[:2], "little") == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, octets[4:8]), port
    return socket.inet_ntop(socket.AF_INET6, octets[8:24]), port


def by_zone(group: Group) -> tuple[Group, list[tuple[Group, OSError]]]:
    """Return the pairs of a group whose interface is there, and the others by what is missing."""
    missing: dict[str, tuple[list[Pair], OSError]] = {}
    there = []
    for pair in group.pairs:
        try:
            require_zone(pair.dst_ip, group.sources[0].interface)
        except OSError as reason:
            missing.setdefault(str(reason), ([], reason))[0].append(pair)
        else:
            there.append(pair)
    if not missing:
        return group, []
    return group.with_pairs(there), [(group.with_pairs(p), why) for p, why in missing.values()]
