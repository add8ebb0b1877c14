"""What tests of the reflector's protocol have in common: ports that stand still, probes, failures."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

from twisted.internet import udp
from twisted.internet.error import MessageLengthError
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.net import mmsg
from llama.net.port import BatchPort, transmit_ids_supported
from llama.reflector.guard import Guard
from llama.reflector.protocol import Reflector
from llama.reflector.sessions import Sessions
from llama.wire import stamp


class StillReactor(Clock):
    """A reactor that reads nothing by itself: the tests say when."""

    def addReader(self, reader: Any) -> None:
        """Watch nothing."""

    def removeReader(self, reader: Any) -> None:
        """Watch nothing."""

    def addWriter(self, writer: Any) -> None:
        """Watch nothing."""

    def removeWriter(self, writer: Any) -> None:
        """Watch nothing."""


def probe(sequence: int, ssid: int = 7, tlvs: bytes = b"") -> bytes:
    """A STAMP probe sent now."""
    now = stamp.ntp_from_unix_ns(time.time_ns())
    return stamp.SENDER_STRUCT.pack(sequence, now, stamp.error_estimate(None), ssid) + tlvs


#: What the kernel may say to a reply, and how it is counted.
FAILURES = (
    (errno.EAGAIN, "send_buffer_full"),
    (errno.ENOBUFS, "send_buffer_full"),
    (errno.EPERM, "send_forbidden"),
    (errno.EHOSTUNREACH, "send_no_route"),
    (errno.EMSGSIZE, "send_too_long"),
    (errno.EIO, "send_failed"),
)


class FailingTransport:
    """A port of Twisted's whose socket takes nothing, for the reason ``code``."""

    def __init__(self, code: int) -> None:
        self._code = code

    def write(self, datagram: bytes, addr: Any) -> None:
        """Fail as `twisted.internet.udp.Port` does."""
        if self._code == errno.EMSGSIZE:
            raise MessageLengthError("message too long")
        raise OSError(self._code, os.strerror(self._code))


class RefusingSends:
    """A port's outgoing messages, of which the kernel refuses the first and every so many."""

    def __init__(self, real: Any, every: int, code: int) -> None:
        self.real = real
        self.taken = 0
        self._every = every
        self._code = code
        self._met = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def send(self, fd: int, first: int, count: int, *, picked: bool = False) -> int:
        """Send up to the next one that is refused; refuse that."""
        if self._met % self._every == 0:
            self._met += 1
            raise OSError(self._code, os.strerror(self._code))
        sent = self.real.send(fd, first, min(count, self._every - self._met % self._every),
                              picked=picked)  # fmt: skip
        self._met += sent
        self.taken += sent
        return int(sent)

    def send_row(self, row: int, length: int, ancillary: Any) -> None:
        """Refuse."""
        raise OSError(self._code, os.strerror(self._code))


class ReflectorCase(SynchronousTestCase):
    """A reflector on one port, and a socket to ask it from."""

    batched = True
    server = "127.0.0.1"

    def setUp(self) -> None:
        """Listen, and open the asking socket."""
        if self.batched and not mmsg.AVAILABLE:
            raise SkipTest("this platform has no recvmmsg")
        self.reactor = StillReactor()
        self.protocol = self.reflector()
        self.port = self.listen(self.protocol, self.server)
        family = socket.AF_INET6 if ":" in self.server else socket.AF_INET
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(self.client.close)
        self.client.settimeout(2)
        self.client.bind((self.server, 0))
        self.address = (self.server, self.port.getHost().port)

    def reflector(self, **options: Any) -> Reflector:
        """A reflector with its own guard and sessions."""
        return Reflector(
            self.reactor.seconds, options.pop("guard", None) or Guard(), Sessions(64), **options
        )

    def listen(self, protocol: Reflector, address: str, port: int = 0) -> Any:
        """Bind a port for ``protocol``."""
        if self.batched:
            listening: Any = BatchPort(
                self.reactor, protocol, address, port, stamped=transmit_ids_supported()
            )
        else:
            listening = udp.Port(port, protocol, address, 65536, self.reactor)
        listening.startListening()

        def close() -> None:
            listening.stopListening()
            self.reactor.advance(0)

        self.addCleanup(close)
        return listening

    def ask(self, *packets: bytes) -> None:
        """Send packets and let the reflector read them."""
        for packet in packets:
            self.client.sendto(packet, self.address)
        self.port.doRead()

    def answer(self) -> bytes:
        """The next reply."""
        return self.client.recv(65536)

    def silent(self) -> bool:
        """Whether nothing more came back."""
        self.client.setblocking(False)
        try:
            self.client.recv(65536)
        except BlockingIOError:
            return True
        finally:
            self.client.settimeout(2)
        return False
