"""Free addresses and ports on loopback, so that a demo disturbs nothing and nobody disturbs it."""

from __future__ import annotations

import errno
import itertools
import socket

_BLOCKS = range(10, 110)
_RESERVATION_PORT = 8100


class NoPlaceError(Exception):
    """There is no free place; the text is one line for a person."""


class Block:
    """A network 127.``number``.0.0/16 that no other demo here uses, for as long as it is held.

    ``number`` is None on systems that answer on 127.0.0.1 alone.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        for number in _BLOCKS:
            held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                held.bind((f"127.{number}.255.254", _RESERVATION_PORT))
            except OSError as error:
                held.close()
                if error.errno == errno.EADDRINUSE:
                    continue
                return
            self._held = held
            self.number = number
            return
        raise NoPlaceError(f"all of 127.{_BLOCKS[0]}.0.0 to 127.{_BLOCKS[-1]}.0.0 are in use")

    def release(self) -> None:
        """Let others have it."""
        if self.number is not None:
            self._held.close()


class Ports:
    """Free ports: the usual number where it is free, else one that the system chooses."""

    def __init__(self) -> None:
        self._given: set[tuple[int, str, int]] = set()

    def udp(self, address: str, usual: int) -> int:
        """Return a free UDP port that was not returned before; raises `NoPlaceError`."""
        return self._free(socket.SOCK_DGRAM, address, usual)

    def tcp(self, address: str, usual: int) -> int:
        """Return a free TCP port that was not returned before; raises `NoPlaceError`."""
        return self._free(socket.SOCK_STREAM, address, usual)

    def _free(self, kind: int, address: str, usual: int) -> int:
        for wanted in itertools.chain([usual], itertools.repeat(0, 100)):
            with socket.socket(socket.AF_INET, kind) as trial:
                if kind == socket.SOCK_STREAM:
                    # As Twisted does; else a port whose last connections linger looks taken.
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    trial.bind((address, wanted))
                except OSError:
                    continue
                port: int = trial.getsockname()[1]
            if (kind, address, port) not in self._given:
                self._given.add((kind, address, port))
                return port
        raise NoPlaceError(f"no port is free on {address}")
