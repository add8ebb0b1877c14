"""Which way the kernel would send; nothing is sent to find out."""

from __future__ import annotations

import socket


def local_address(destination: str) -> str | None:
    """Return whence the kernel would send to ``destination``; None if it has no route."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((destination, 9))
        except OSError:
            return None
        return str(sock.getsockname()[0])
