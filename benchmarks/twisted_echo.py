"""The plain Twisted echo that the reflector is compared with: one callback a datagram.

Run as a program: it binds a free UDP port of 127.0.0.1, prints ``{"port": N}`` and echoes until it
is killed. Its receive buffer is as large as the system lets it be, so that it can be saturated
without loss; all else is as Twisted has it.
"""

from __future__ import annotations

import json
import socket
import sys

from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol


class Echo(DatagramProtocol):
    """Sends every datagram back to where it came from."""

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Echo ``datagram``."""
        self.transport.write(datagram, addr)


def main() -> None:
    """Serve until killed."""
    port = reactor.listenUDP(0, Echo(), interface="127.0.0.1")
    port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sys.stdout.write(json.dumps({"port": port.getHost().port}) + "\n")
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main()
