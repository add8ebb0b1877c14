"""Forged ICMP errors, from another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from scapy.layers.inet import ICMP, IP, UDP

#: Sends messages to an address in turn, 20,000 a second in all.
FLOODER = """
import socket, sys, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
victim, messages = sys.argv[1], [bytes.fromhex(word) for word in sys.argv[2:]]
print("flooding", flush=True)
while True:
    for n in range(20):
        raw.sendto(messages[n % len(messages)], (victim, 0))
    time.sleep(0.001)
"""


def unreachable(source_port: int, quoted: bytes = b"") -> bytes:
    """An ICMP message that says a host is none, about UDP from a source port of ours."""
    udp = UDP(sport=source_port, dport=9, len=8 + 44, chksum=0)
    return bytes(ICMP(type=3, code=1) / IP(src="127.0.0.1", dst="192.0.2.77") / udp / quoted)


@contextmanager
def flood(*messages: bytes, victim: str = "127.0.0.1") -> Iterator[None]:
    """Send forged errors until the end, from another process in the network of the test."""
    command = [sys.executable, "-c", FLOODER, victim, *(message.hex() for message in messages)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()
