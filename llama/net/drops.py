"""Why the kernel dropped packets at our sockets: they found no room, or they had arrived damaged.

A socket counts both as one (`llama.net.mmsg.receive_drops`), but the first is our own doing, the second
is not. What tells them apart are counters of the network namespace, of all sockets there together:
``/proc/net/snmp`` and ``/proc/net/snmp6``. UDP's checksum is verified when a packet is read. One of
no more than 76 octets, header included, is verified earlier, and never counted at a socket.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from typing import NamedTuple


class Errors(NamedTuple):
    """How many packets of one protocol found no room, and how many were damaged, since boot."""

    no_room: int
    damaged: int


def counters(text: str) -> dict[str, int]:
    """Return what is counted in the text of ``snmp`` or ``snmp6``, by names like ``UdpInErrors``.

    Raises `ValueError` for any other text.
    """
    found: dict[str, int] = {}
    names: list[str] = []
    for line in text.splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # snmp6 has one on a line
            (value,) = rest
            found[first] = int(value)
        elif names:  # snmp has a line of names, and one of values
            found |= {first[:-1] + n: int(v) for n, v in zip(names, rest, strict=True)}
            names = []
        else:
            names = rest
    return found


def read_text(name: str) -> str:
    """Return the text of ``snmp`` or ``snmp6`` in the network namespace of this thread.

    Raises `OSError`. ``/proc/net`` is the main thread's.
    """
    with open(f"/proc/thread-self/net/{name}") as file:
        return file.read()


class Causes:
    """Tells why packets were dropped at UDP sockets of a ``family``, or with ``raw`` at raw ICMPv6 ones.

    ``read`` returns the text of ``snmp`` or ``snmp6``, or raises `OSError`.
    """

    def __init__(
        self, family: int, *, raw: bool = False, read: Callable[[str], str] = read_text
    ) -> None:
        self._file = "snmp" if family == socket.AF_INET else "snmp6"
        self._prefix = "Icmp6" if raw else "Udp" if family == socket.AF_INET else "Udp6"
        #: What they are packets of.
        self.protocol = "ICMPv6" if raw else "UDP" if family == socket.AF_INET else "UDP over IPv6"
        self._raw = raw
        self._read = read
        self._last = self._errors()

    def _errors(self) -> Errors | None:
        """Return what is counted by now, None if that is not known; costs some 50 us."""
        try:
            found = counters(self._read(self._file))
            # Each raw socket is given a packet of its own: there is no such counter of them.
            no_room = 0 if self._raw else found[self._prefix + "RcvbufErrors"]
            no_room += found.get(self._prefix + "MemErrors", 0)  # since Linux 5.13
            return Errors(no_room, found[self._prefix + "InCsumErrors"])
        except (OSError, ValueError, KeyError):
            return None

    def damaged(self, drops: Collection[int]) -> int:
        """Return how many packets arrived damaged, if that is why all of ``drops`` were dropped.

        ``drops`` are those of each of our sockets that had any since this was last asked; the
        kernel has told them before this is called. Returns 0 where any may have found no room, at
        whoever's socket: then all of them are ours to answer for.
        """
        before, now = self._last, self._errors()
        self._last = now
        if before is None or now is None or now.no_room != before.no_room:
            return 0
        count = max(drops) if self._raw else sum(drops)
        return count if count <= now.damaged - before.damaged else 0
