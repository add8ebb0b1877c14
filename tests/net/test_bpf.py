"""Filters of sockets, as the kernel runs them."""

from __future__ import annotations

import socket
import struct

from twisted.trial.unittest import SynchronousTestCase

from llama.net import bpf
from llama.net.bpf import Step


class FilterTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Connect two sockets by which datagrams come without a header of any kind."""
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)
        self.ours.setblocking(False)

    def passed(self, *numbers: int) -> list[int]:
        """Send numbers of two octets; return those that were handed over."""
        for number in numbers:
            self.theirs.send(struct.pack("!H", number))
        found = []
        while True:
            try:
                found.append(*struct.unpack("!H", self.ours.recv(8)))
            except BlockingIOError:
                return found

    def test_packed(self) -> None:
        """A step is eight octets: its code, whither to go on, and its number."""
        packed = bpf.pack([Step(bpf.IF_EQUAL, 0x01020304, then=5, otherwise=6)])
        self.assertEqual(packed, struct.pack("=HBBI", 0x15, 5, 6, 0x01020304))

    def test_conditions(self) -> None:
        """What a condition passes is handed over, and nothing else; the newest filter counts."""
        for code, expected in (
            (bpf.IF_EQUAL, [7]),
            (bpf.IF_GREATER, [8, 65535]),
            (bpf.IF_AT_LEAST, [7, 8, 65535]),
        ):
            condition = Step(code, 7, otherwise=1)
            bpf.attach(self.ours, [Step(bpf.LOAD_U16), condition, bpf.PASS, bpf.DROP])
            self.assertEqual(self.passed(0, 6, 7, 8, 65535), expected)

    def test_no_program(self) -> None:
        """What the kernel would not run is refused."""
        self.assertRaises(OSError, bpf.attach, self.ours, [])
        self.assertRaises(OSError, bpf.attach, self.ours, [Step(bpf.LOAD_U16)])
