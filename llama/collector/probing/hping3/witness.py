"""Sees which probes of hping3 are answered, so that what the program misses is not called lost.

hping3 captures all the packets of a device, without a filter, into a buffer of two megabytes: other
traffic, or a few milliseconds without a processor, and answers are gone (one in 500 was, with eight
runs at once on an idle host). A raw socket of our own is given the same segments by the kernel, and
by a filter only those to the ports that probes leave from. It needs CAP_NET_RAW, as hping3 does.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from llama.collector.probing.hping3.cycle import stretches
from llama.net import bpf
from llama.net.bpf import Step

#: Octets of receive buffer asked for.
_BUFFER = 1 << 20
#: Segments read at once, lest a flood keeps us from everything else.
_MOST = 256
#: Ranges of ports that a filter distinguishes; of more, all between the first and the last pass.
_RANGES = 60
_SYN, _RST, _ACK = 0x02, 0x04, 0x10


class Seen(NamedTuple):
    """An answer to a SYN, as it arrived on this host."""

    address: str
    port: int
    own_port: int
    acknowledged: int
    dscp: int
    ttl: int


class Witness:
    """A raw socket that is given the answers to SYNs; raises `OSError` if it may not be had."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.watch(())

    def watch(self, ports: Iterable[int]) -> None:
        """Be given what arrives for these ports of this host, and no more."""
        numbers = sorted(set(ports))
        ranges = [
            (numbers[part[0]], numbers[part[-1]])
            for part in stretches([(None, number) for number in numbers], 65536)
        ]
        if len(ranges) > _RANGES:
            ranges = [(numbers[0], numbers[-1])]
        bpf.attach(self._sock, _program(ranges))

    def seen(self) -> Iterator[Seen]:
        """Yield what has arrived since."""
        for _ in range(_MOST):
            try:
                octets = self._sock.recv(128)
            except BlockingIOError:
                return
            header = (octets[0] & 0x0F) * 4
            if len(octets) < header + 20:
                continue
            port, own, _, acknowledged, _, flags = struct.unpack_from("!HHIIBB", octets, header)
            if flags & _ACK and flags & (_SYN | _RST):
                yield Seen(
                    socket.inet_ntoa(octets[12:16]), port, own, acknowledged, octets[1] >> 2,
                    octets[8],
                )  # fmt: skip

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()


def _program(ranges: list[tuple[int, int]]) -> list[Step]:
    """Return a filter that passes segments to ports within ``ranges``."""
    steps = [Step(bpf.LOAD_IP_HEADER_SIZE), Step(bpf.LOAD_U16_AT_X, 2)]  # the destination port
    for number, (low, high) in enumerate(ranges):
        passed = 2 * (len(ranges) - number - 1) + 1
        steps += [
            Step(bpf.IF_AT_LEAST, low, otherwise=1),
            Step(bpf.IF_GREATER, high, otherwise=passed),
        ]
    return [*steps, bpf.DROP, bpf.PASS]
