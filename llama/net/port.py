"""A UDP socket that hands its protocol whole batches, as a Twisted listening port.

`BatchPort` stands where Twisted's own UDP port would: it owns the socket, tells the reactor when to
look at it, and gives what came to ``protocol.batchReceived(port, count)``, with the datagrams in
``port.inbound``. Answers are written into the requests and leave through ``port.outbound``. It knows
no packet format.

An entry in a socket's error queue (a transmit stamp) raises EPOLLERR without EPOLLIN, which Twisted's
reactors take for a disconnect. So the reactor is given an inner epoll object that watches the
socket: to the reactor it is simply readable, whatever happened.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from typing import Any, Protocol

import numpy as np
from twisted.internet import defer, error
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python import failure
from zope.interface import implementer

from llama.net import mmsg
from llama.net.alone import Alone
from llama.net.drops import Causes
from llama.net.lookup import socket_address
from llama.net.mmsg import Layout, Messages

HEAD = 256  # octets of each datagram that are looked at by column
LONGEST = 9216  # octets of UDP payload: a jumbo frame's
SLOTS = 512
RECEIVE_BUFFER = 4 << 20  # octets asked for; the kernel gives at most net.core.rmem_max


class BatchProtocol(Protocol):
    """What a `BatchPort` asks of its protocol."""

    def makeConnection(self, transport: Any) -> object:
        """Take note that the port is bound, before the first batch."""

    def doStop(self) -> object:
        """Take note that the port is closed."""

    def batchReceived(self, port: BatchPort, count: int) -> None:
        """Take the first ``count`` datagrams of ``port.inbound``."""

    def transmitStampsReceived(self, ids: Any, seconds: Any, ns: Any) -> None:
        """Take transmit stamps: the identifiers given with the datagrams, and when they left."""

    def transmitStampReceived(self, identifier: int, seconds: int, ns: int) -> None:
        """Take a single transmit stamp."""


def transmit_ids_supported() -> bool:
    """Tell whether the kernel lets a datagram carry an identifier for its transmit stamp (6.13)."""
    if not mmsg.AVAILABLE:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", 0))
            probe.setsockopt(
                mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, mmsg.SOF_SOFTWARE | mmsg.SOF_OPT_ID
            )
            control = [(mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID, b"\0\0\0\0")]
            probe.sendmsg([b""], control, 0, probe.getsockname())
        except OSError:
            return False
    return True


def reply_layout(family: int, stamped: bool) -> Layout:
    """Return the ancillary data a reply is sent with: whence, its class, and perhaps a stamp's id."""
    if family == socket.AF_INET:
        kinds = [(mmsg.SOL_IP, mmsg.IP_PKTINFO, 12), (mmsg.SOL_IP, mmsg.IP_TOS, 4)]
    else:
        kinds = [(mmsg.SOL_IPV6, mmsg.IPV6_PKTINFO, 20), (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS, 4)]
    if stamped:
        kinds += [
            (mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, 4),
            (mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID, 4),
        ]
    return Layout(kinds)


def stamp_layout(family: int) -> Layout:
    """Return the ancillary layout of a bare transmit stamp in the error queue (OPT_TSONLY)."""
    stamp = (mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, 48)
    if family == socket.AF_INET:
        return Layout([stamp, (mmsg.SOL_IP, mmsg.IP_RECVERR, 32)])
    return Layout([stamp, (mmsg.SOL_IPV6, mmsg.IPV6_RECVERR, 44)])


@implementer(IListeningPort)
class BatchPort(FileDescriptor):
    """A bound UDP socket, IPv4 or IPv6 by its ``address``, read in batches of at most `SLOTS`.

    ``stamped`` says whether single datagrams may ask for a transmit stamp (see `transmit_ids_supported`).
    ``interface`` binds to a device or VRF by name. Raises `twisted.internet.error.CannotListenError`
    from `startListening` where the address cannot be had.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        protocol: BatchProtocol,
        address: str,
        port: int,
        *,
        interface: str | None = None,
        stamped: bool = False,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        super().__init__(reactor)
        self._alone = Alone(reactor)
        self.protocol = protocol
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.stamped = stamped
        self.layout = mmsg.receive_layout(self.family)
        self.reply_layout = reply_layout(self.family, stamped)
        self.inbound = Messages(SLOTS, HEAD, self.layout.room, tail=LONGEST - HEAD)
        self.outbound = Messages(SLOTS, HEAD, self.reply_layout.room, share=self.inbound)
        self.reply_layout.write_headers(self.outbound)
        if stamped:
            flags = self.reply_layout.offsets[mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING]
            self.outbound.words[:, flags // 8] = mmsg.SOF_TX_SOFTWARE
        self.stamps_due = 0  # transmit stamps asked for and not read yet
        classed = reply_layout(self.family, stamped=False)
        #: Level and type of what says whence a reply comes, and of its class.
        self.pktinfo, self.tos = (kind[:2] for kind in classed.kinds)
        #: Octets of a reply's ancillary data with both, and with the first alone.
        self.classed_control = classed.room
        self.plain_control = classed.offsets[self.tos] - 16
        self._stamp_layout = stamp_layout(self.family)
        self._stamps = Messages(SLOTS, 1, self._stamp_layout.room) if stamped else None
        self._bind = (address, port)
        self._interface = interface
        self._receive_buffer = receive_buffer
        self._socket: socket.socket | None = None
        self._drops = self._no_room = self._damaged = 0  # as the kernel tells; of these, why
        self._stopped: list[defer.Deferred[None]] = []  # those who wait for it

    def startListening(self) -> None:
        """Bind, connect the protocol, and begin to read."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if self.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            if self._interface is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())
            mmsg.believe_no_path_mtu(sock)
            mmsg.enable_receive_options(sock)
            flags = mmsg.SOF_RX_SOFTWARE | mmsg.SOF_SOFTWARE
            if self.stamped:
                flags |= mmsg.SOF_OPT_ID | mmsg.SOF_OPT_TSONLY | mmsg.SOF_OPT_CMSG
            sock.setsockopt(mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, flags)
            sock.bind(socket_address(*self._bind))
            self._epoll = select.epoll()
        except OSError as reason:
            sock.close()
            raise error.CannotListenError(*self._bind, reason) from None
        self._socket = sock
        self._causes = Causes(self.family)
        self.fd = sock.fileno()
        self._epoll.register(self.fd, select.EPOLLIN)
        self.connected = True
        self.protocol.makeConnection(self)
        self.startReading()

    def fileno(self) -> int:
        """Return the descriptor of the inner epoll object, or -1 when stopped."""
        return -1 if self._socket is None else self._epoll.fileno()

    def doRead(self) -> None:
        """Read one batch, and those that come while the reactor has no other duties."""
        self._read_batch()
        if self._alone.begin():
            while self._alone.comes_next(self.fileno()):
                self._read_batch()

    def _read_batch(self) -> None:
        try:
            if self.stamps_due > 0:
                self.read_transmit_stamps()
            if self._socket is None:
                return
            try:
                count = self.inbound.receive(self.fd)
            except OSError as reason:
                # An error that an earlier reply met on its way; reading it has cleared it.
                if reason.errno not in _PASSING_ERRORS:
                    self.log.error("cannot read from the socket: {reason}", reason=reason)
                return
            if count:
                self.protocol.batchReceived(self, count)
            else:  # woken for the error queue: by a stamp that came late, or one nobody waits for
                self.read_transmit_stamps()
        except Exception:  # the reactor would close the port
            self.log.failure("a batch of datagrams, or of transmit stamps, failed")

    def read_transmit_stamps(self) -> None:
        """Empty the error queue and hand the transmit stamps in it to the protocol."""
        stamps = self._stamps
        if stamps is None or self._socket is None:
            return
        self.stamps_due = 0
        while count := stamps.receive(self.fd, flags=mmsg.MSG_DONTWAIT | mmsg.MSG_ERRQUEUE):
            if count == 1:
                self._read_one_stamp(stamps)
                break
            rows = np.arange(count)
            odd = self._stamp_layout.odd_rows(stamps, 0, count)
            if odd.size:
                rows = np.setdiff1d(rows, odd)
            words = stamps.words[rows]
            identifier = words[:, self._id_word] >> np.uint64(32)
            self.protocol.transmitStampsReceived(identifier, words[:, 2], words[:, 3])
            if count < stamps.slots:
                break

    def _read_one_stamp(self, stamps: Messages) -> None:
        """Hand over a stamp that came alone, in a third of the time that columns would take."""
        (
            *first, seconds, ns, second_length, level, kind, identifier
        ) = _ONE_STAMP.unpack_from(stamps.control_view)  # fmt: skip
        (stamp, (error_level, error_kind, error_length)) = self._stamp_layout.kinds
        if (
            int(stamps.controllen[0]) == self._stamp_layout.room
            and first == [16 + stamp[2], *stamp[:2]]
            and (second_length, level, kind) == (16 + error_length, error_level, error_kind)
        ):
            self.protocol.transmitStampReceived(identifier, seconds, ns)

    @property
    def _id_word(self) -> int:
        # struct sock_extended_err: errno u32, origin type code pad, info u32, data u32 (the id).
        kind = (
            (mmsg.SOL_IP, mmsg.IP_RECVERR)
            if self.family == socket.AF_INET
            else (mmsg.SOL_IPV6, mmsg.IPV6_RECVERR)
        )
        return self._stamp_layout.word(*kind) + 1

    def send_row(self, row: int, length: int, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Send ``length`` octets of one inbound row back with ancillary data of any kind.

        Raises `OSError` if the kernel does not take it.
        """
        assert self._socket is not None
        head = self.inbound.octets[row, : min(length, HEAD)]
        tail = self.inbound.tails[row, : max(length - HEAD, 0)]
        name = bytes(self.inbound.names[row, : int(self.inbound.namelen[row])])
        self._socket.sendmsg(
            [head.data, tail.data], ancillary, socket.MSG_DONTWAIT, unpack_name(name)
        )

    def receive_drops(self) -> int:
        """Return how many datagrams the kernel has dropped at this socket since they found no room."""
        return self._dropped()[0]

    def damaged(self) -> int:
        """Return how many datagrams have arrived here with a wrong checksum, see `llama.net.drops`."""
        return self._dropped()[1]

    def _dropped(self) -> tuple[int, int]:
        if self._socket is None:
            return 0, 0
        drops = mmsg.receive_drops(self._socket)
        new = drops - self._drops & 0xFFFFFFFF
        if new:
            self._drops = drops
            damaged = self._causes.damaged([new])
            self._damaged += damaged
            self._no_room += new - damaged
        return self._no_room, self._damaged

    def getHost(self) -> IPv4Address | IPv6Address:
        """Return the bound address."""
        if self._socket is None:
            host, port = self._bind
        else:
            host, port = self._socket.getsockname()[:2]
        kind = IPv6Address if self.family == socket.AF_INET6 else IPv4Address
        return kind("UDP", host, port)

    def stopListening(self) -> defer.Deferred[None]:
        """Stop reading and close; the Deferred fires when the socket is closed."""
        if self._socket is None:
            return defer.succeed(None)
        stopped: defer.Deferred[None] = defer.Deferred()
        self._stopped.append(stopped)
        self.stopReading()
        self.reactor.callLater(0, self.connectionLost, failure.Failure(error.ConnectionDone()))
        return stopped

    def connectionLost(self, reason: failure.Failure) -> None:
        """Close the socket and tell the protocol."""
        super().connectionLost(reason)
        if self._socket is None:
            return
        self._epoll.close()
        self._socket.close()
        self._socket = None
        self.protocol.doStop()
        waiting, self._stopped = self._stopped, []
        for stopped in waiting:
            stopped.callback(None)

    def logPrefix(self) -> str:
        """Return what stands before this port's log lines."""
        return type(self.protocol).__name__


def unpack_name(name: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return a ``struct sockaddr_in`` or ``sockaddr_in6`` as the socket module's address."""
    port = int.from_bytes(name[2:4], "big")
    if len(name) < mmsg.SOCKADDR_IN6.itemsize:
        return socket.inet_ntop(socket.AF_INET, name[4:8]), port
    scope = int.from_bytes(name[24:28], "little")
    flow = int.from_bytes(name[4:8], "big")
    return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope


# A bare transmit stamp: SO_TIMESTAMPING, then an IP_RECVERR whose ee_data is the identifier.
_ONE_STAMP = struct.Struct("<qiiqq32xqii12xI")
_PASSING_ERRORS = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE, errno.EPROTO}
)
