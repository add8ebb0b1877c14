"""Replies that the reflector's own host does not send, and who is told of it."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
from network import alone, ip
from reflector_case import StillReactor, probe
from twisted.trial.unittest import SynchronousTestCase

from llama.net.port import BatchPort
from llama.reflector.guard import Guard
from llama.reflector.protocol import FEW, Reflector
from llama.reflector.sessions import Sessions
from llama.reflector.unsent import MOST, Unsent
from llama.wire import tlv

_V4 = 0xFFFF << 32


class UnsentTests(SynchronousTestCase):
    """Counts by source."""

    def test_of_each_source(self) -> None:
        """Each has its own count, alone and by column; an IPv6 source is a /64."""
        unsent = Unsent()
        low = np.array([_V4 | 1, _V4 | 2, 7], np.uint64)
        high = np.array([0, 0, 0x20010DB8 << 32], np.uint64)
        self.assertIsNone(unsent.counts(high, low))
        for n in range(3):
            unsent.add(0x20010DB8 << 32, n)
        unsent.add(0, _V4 | 2)
        counts = unsent.counts(high, low)
        assert counts is not None
        self.assertEqual(counts.tolist(), [0, 1, 3])
        counts = unsent.counts(None, low[:2])
        assert counts is not None
        self.assertEqual(counts.tolist(), [0, 1])
        self.assertEqual((unsent.count(0, _V4 | 2), unsent.count(0, _V4 | 1)), (1, 0))

    def test_no_ipv6_source_is_made_up_that_is_an_ipv4_one(self) -> None:
        """What was not sent to a /64 with the octets of a mapped address is nothing of that host's."""
        unsent = Unsent()
        unsent.add(_V4 | 1, 9)
        low = np.array([_V4 | 1, 5], np.uint64)
        told = [unsent.counts(None, low), unsent.counts(np.array([0, _V4 | 1], np.uint64), low)]
        self.assertEqual([each.tolist() for each in told if each is not None], [[0, 0], [0, 1]])
        self.assertEqual((unsent.count(0, _V4 | 1), unsent.count(_V4 | 1, 5)), (0, 1))

    def test_more_than_a_column_has_room_for(self) -> None:
        """After months without a route a count begins anew in its column, as all that is told does."""
        unsent = Unsent()
        unsent._counts = {_V4 | 1: 2**32 + 5, (7 << 64): 2**32 + 6}
        high, low = np.array([0, 7], np.uint64), np.array([_V4 | 1, 1], np.uint64)
        told = [unsent.counts(high, low), unsent.counts(None, low[:1])]
        self.assertEqual([each.tolist() for each in told if each is not None], [[5, 6], [5]])

    def test_no_end_of_them(self) -> None:
        """However many sources there are, some are remembered: those that came last."""
        unsent = Unsent()
        for n in range(1000):
            unsent.add(0, n)
        self.assertEqual(sum(unsent.count(0, n) for n in range(1000)), MOST)
        self.assertEqual(unsent.count(0, 999), 1)


class HostTests(SynchronousTestCase):
    """A real host that does not send to some addresses."""

    def ask(self, client: socket.socket, count: int) -> list[int]:
        """Ask ``count`` times at once; return what the replies that came tell of refusals."""
        for n in range(count):
            client.sendto(probe(n, tlvs=tlv.request(0, tlv.SIZE)), self.address)
        for _ in range(count):
            self.port.doRead()
        told = []
        while True:
            try:
                packet = client.recv(2048)
            except BlockingIOError:
                return told
            told.append(int(tlv.read_one(memoryview(packet)[44:]).guard_drops))

    def client(self, address: str) -> socket.socket:
        """A socket to ask from."""
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(client.close)
        client.setblocking(False)
        client.bind((address, 0))
        return client

    @alone
    def test_forbidden_and_no_route(self: Any) -> None:
        """Its source is told, alone or among many, once a reply gets through; others are not."""
        reactor = StillReactor()
        protocol = Reflector(reactor.seconds, Guard(), Sessions(64))
        self.port = BatchPort(reactor, protocol, "127.0.0.1", 0, stamped=False)
        self.port.startListening()
        self.address = ("127.0.0.1", self.port.getHost().port)
        one, other = self.client("127.0.0.8"), self.client("127.0.0.9")
        ip("rule add pref 100 lookup local")
        ip("rule del pref 0")
        refused = 0
        for kind, reason in (("prohibit", "send_forbidden"), ("unreachable", "send_no_route")):
            for count in (1, 4 * FEW):
                before = protocol.tally.dropped[reason]
                ip(f"rule add pref 10 to 127.0.0.8 {kind}")
                self.assertEqual(self.ask(one, count), [])
                self.assertEqual(protocol.tally.dropped[reason] - before, count)
                ip("rule del pref 10")
                refused += count
                self.assertEqual(self.ask(one, count), [refused] * count)
                self.assertEqual(self.ask(other, count), [0] * count)
        self.assertEqual(protocol.tally.limited, 0)
        self.port.stopListening()
        reactor.advance(0)
