"""TCP ports on loopback that accept, and that do not answer."""

from __future__ import annotations

import socket
from typing import Any


def listener(test: Any, address: str = "127.0.0.1", backlog: int = 512) -> socket.socket:
    """Return a socket that accepts at a port of its own as long as ``test`` lasts."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    test.addCleanup(sock.close)
    sock.bind((address, 0))
    sock.listen(backlog)
    return sock


def silent_port(test: Any) -> int:
    """Return a port whose queue of connections is full: it does not answer."""
    sock = listener(test, backlog=0)
    for _ in range(2):
        filler = socket.socket()
        test.addCleanup(filler.close)
        filler.setblocking(False)
        filler.connect_ex(sock.getsockname())
    return int(sock.getsockname()[1])
