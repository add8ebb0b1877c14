"""Packets over loopback, in anybody's name; and reflectors that come to rest."""

from __future__ import annotations

import os
import socket
import time

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest

from llama.reflector.service import PortService
from llama.wire import stamp


def need_root() -> None:
    """Skip the test unless it may forge packets."""
    if os.geteuid() != 0:
        raise SkipTest("needs root, to send from a port that another program has")


def spoof(payload: bytes, sport: int, dport: int) -> None:
    """Send a datagram over loopback that says it comes from ``sport``."""
    need_root()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        header = bytes(UDP(sport=sport, dport=dport, len=8 + len(payload), chksum=0))
        raw.sendto(header + payload, ("127.0.0.1", 0))


def spoof6(payload: bytes, source: str, dport: int) -> None:
    """Send a datagram over IPv6 loopback that says it comes from ``source``, port 40000."""
    need_root()
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        packet = IPv6(src=source, dst="::1") / UDP(sport=40000, dport=dport) / payload
        raw.sendto(bytes(packet), ("::1", 0))


def spoof_nobody(payload: bytes, dport: int) -> None:
    """Send a datagram on loopback to everybody that says it comes from 0.0.0.0, port 40000."""
    need_root()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("lo", 0))
        addressed = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=40000, dport=dport)
        raw.send(
            bytes(Ether(src="00:00:00:00:00:00", dst="ff:ff:ff:ff:ff:ff") / addressed / payload)
        )


def send(payload: bytes, port: int, sock: socket.socket | None = None) -> None:
    """Send a datagram over loopback from a port of our own."""
    own = sock or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.sendto(payload, ("127.0.0.1", port))
    if sock is None:
        own.close()


def stamp_probe(ssid: int = 5) -> bytes:
    """Return a probe sent now."""
    now = stamp.ntp_from_unix_ns(time.time_ns())
    return stamp.SENDER_STRUCT.pack(1, now, 0x8001, ssid)


async def settle(*services: PortService) -> int:
    """Wait until the reflectors have had nothing to do for a while; return what all received."""
    before = -1
    while True:
        received = sum(service.tally.received for service in services)
        if received == before:
            return received
        before = received
        await deferLater(reactor, 0.25)
