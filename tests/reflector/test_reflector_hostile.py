"""Hostile packets at a real reflector and a real prober, over loopback; see docs/security.rst.

Packets from another's port are sent through a raw socket and so need root.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import struct

import numpy as np
from forged import send, settle, spoof, stamp_probe
from peers_case import PeersCase
from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater
from wire_packets import KEY, golden

from llama.process import resident_octets
from llama.reflector.guard import Guard
from llama.reflector.service import PortService
from llama.reflector.sessions import Sessions
from llama.wire import auth


class _Echo(DatagramProtocol):
    """RFC 862, on whatever port."""

    echoed = 0

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.echoed += 1
        self.transport.write(datagram, addr)


class LoopTests(PeersCase):
    """One forged packet sets two services on each other; nothing may go on for long."""

    def pair(self, batched: bool | None = None) -> tuple[PortService, PortService]:
        """Start two reflectors on ports that neither knows of."""
        return self.reflector(batched), self.reflector(batched)

    async def test_stamp_between_two_reflectors_ends_at_once(self) -> None:
        """The first reply is known for a reply."""
        one, other = self.pair()
        spoof(stamp_probe(), other.port_number, one.port_number)
        self.assertEqual(2, await settle(one, other))
        self.assertEqual(1, one.tally.answered["stamp"])
        self.assertEqual(1, other.tally.dropped["loop"])

    async def test_stamp_ends_where_no_ttl_is_known(self) -> None:
        """Also a reply whose sender's TTL is zero, for want of knowing it, is known for a reply."""
        one, other = self.pair(batched=False)
        spoof(stamp_probe(), other.port_number, one.port_number)
        self.assertEqual(2, await settle(one, other))
        self.assertEqual(1, one.tally.answered["stamp"])
        self.assertEqual(1, other.tally.dropped["loop"])

    async def test_earlier_formats_do_not_begin_where_no_ttl_is_known(self) -> None:
        """Without a TTL to take a hop from, strangers' packets of earlier formats are not echoed."""
        for packet in (golden("llama-go"), golden("llama-python")):
            one, other = self.pair(batched=False)
            spoof(packet, other.port_number, one.port_number)
            self.assertEqual(1, await settle(one, other))
            self.assertEqual({"no_ttl": 1}, dict(one.tally.dropped))

    async def test_stamp_in_batches_ends_at_once(self) -> None:
        """A flood of forged packets, answered by column, is over after one reply each."""
        one, other = self.pair()
        for _ in range(100):
            spoof(stamp_probe(), other.port_number, one.port_number)
        self.assertEqual(200, await settle(one, other))
        self.assertEqual(100, one.tally.answered["stamp"])
        self.assertEqual(100, other.tally.dropped["loop"])

    async def test_earlier_formats_end_soon(self) -> None:
        """An echo is as its probe, which does not come back so often, and has less hops to go."""
        for name, packet in (("llama-go", "llama-go"), ("llama-python", "llama-python")):
            one, other = self.pair()
            spoof(golden(packet), other.port_number, one.port_number)
            received = await settle(one, other)
            self.assertTrue(2 <= received <= 10, received)
            self.assertEqual(1, one.tally.dropped["loop"] + other.tally.dropped["loop"], name)

    async def test_earlier_formats_have_a_last_hop(self) -> None:
        """What came with its last hop is not echoed, whoever sent it."""
        service = self.reflector()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            for hops in (2, 1):
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
                send(golden("llama-python"), service.port_number, sock)
        await settle(service)
        self.assertEqual(1, service.tally.answered["llama-python"])
        self.assertEqual(1, service.tally.dropped["loop"])

    async def test_with_an_echo_service(self) -> None:
        """What an echo service returns to us is our own reply, and known for it."""
        service = self.reflector()
        echo = _Echo()
        port = reactor.listenUDP(0, echo, "127.0.0.1")
        self.addCleanup(port.stopListening)
        spoof(stamp_probe(), port.getHost().port, service.port_number)
        self.assertEqual(2, await settle(service))
        self.assertEqual(1, echo.echoed)
        for packet in (golden("llama-go"), golden("llama-python")):
            before = service.tally.received
            spoof(packet, port.getHost().port, service.port_number)
            self.assertTrue(2 <= await settle(service) - before <= 6)
        self.assertEqual(3, service.tally.dropped["loop"])

    async def test_ports_of_services_that_answer_are_refused(self) -> None:
        """Echo, chargen, DNS and the like, and other reflectors, are never answered."""
        service = self.reflector()
        ports = (7, 13, 17, 19, 37, 53, 123, 862, 8100, service.port_number)
        for port in ports:
            for payload in (stamp_probe(), golden("llama-go"), golden("llama-python")):
                spoof(payload, port, service.port_number)
        self.assertEqual(3 * len(ports), await settle(service))
        self.assertEqual({}, dict(service.tally.answered))
        self.assertEqual(3 * len(ports), service.tally.dropped["source_port"])

    async def test_permitted_ports_are_answered_and_loop_no_longer(self) -> None:
        """A listed port that is permitted is answered, and what comes back is known as ever."""
        service = self.reflector(permit_source_ports=(862, 7))
        for payload in (stamp_probe(), golden("llama-go"), golden("llama-python")):
            spoof(payload, 862, service.port_number)
            spoof(payload, 19, service.port_number)
        # Nobody listens on 862 here: the replies meet no service, so nothing comes back.
        self.assertEqual(6, await settle(service))
        self.assertEqual(3, service.tally.answered.total())
        self.assertEqual({"source_port": 3}, dict(service.tally.dropped))
        one = self.reflector()
        other = self.reflector(permit_source_ports=(one.port_number,))
        spoof(stamp_probe(), one.port_number, other.port_number)
        self.assertEqual(2, await settle(one, other))
        self.assertEqual(1, one.tally.dropped["loop"])


class LimitTests(PeersCase):
    """Who may ask and how often, with real packets."""

    def replies(self, service: PortService, probes: int) -> int:
        """Return how many of ``probes`` sent at once are answered."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            for _ in range(probes):
                send(stamp_probe(), service.port_number, sock)
        return probes

    async def test_sources_that_are_not_listed_get_nothing(self) -> None:
        """With a list, others are dropped and counted."""
        service = self.reflector(allow=(ipaddress.ip_network("192.0.2.0/24"),))
        self.replies(service, 50)
        self.assertEqual(50, await settle(service))
        self.assertEqual({"not_allowed": 50}, dict(service.tally.dropped))

    async def test_what_is_over_the_limit_is_dropped_and_counted(self) -> None:
        """A limit answers its burst at once and the rest never: it does not put anything off."""
        for limits, burst in (({}, 10), ({"burst_per_source": 1000}, 1000)):
            service = self.reflector(max_pps_per_source=1.0, **limits)
            self.replies(service, 1500)
            self.assertEqual(1500, await settle(service))
            answered = service.tally.answered["stamp"]
            self.assertEqual(1500, answered + service.tally.dropped["source_rate"])
            self.assertTrue(burst <= answered <= burst + 10, answered)

    async def test_garbage_is_survived(self) -> None:
        """Random datagrams of every size, alone and in batches, leave good probes their replies."""
        service = self.reflector()
        chance = random.Random(4)
        names = ["stamp-probe-tlvs", "llama-go", "auth-probe-tlvs", "llama-go-empty-tos"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            for turn in range(1500):
                packet = bytearray(golden(chance.choice(names)))
                for _ in range(chance.randrange(8)):
                    packet[chance.randrange(len(packet))] = chance.randrange(256)
                size = chance.choice((0, 1, 13, 14, 36, 43, 44, 45, 100, 255, 256, 257, 1400))
                packet = (packet + chance.randbytes(1400))[:size] if turn % 3 else packet
                send(bytes(packet), service.port_number, sock)
                if turn % 50 == 49:
                    await deferLater(reactor, 0)
        await settle(service)
        said = await self.peer_sender(port=service.port_number, kind="stamp", count=5)
        self.assertEqual(list(range(5)), [reply["seq"] for reply in said["replies"]])
        self.assertEqual(
            service.tally.received,
            service.tally.answered.total() + service.tally.dropped.total(),
        )

    async def test_authentic_octets_of_another_size_are_no_key(self) -> None:
        """An authenticated probe at a reflector without keys is a STAMP probe with odd padding."""
        service = self.reflector()
        packet = bytearray(112)
        auth.pack_probe(packet, 1, 2, 3, 4, KEY)
        send(bytes(packet), service.port_number)
        self.assertEqual(1, await settle(service))
        self.assertEqual(1, service.tally.answered["stamp"])


class ExhaustionTests(PeersCase):
    async def test_spoofed_sources_take_no_memory(self) -> None:
        """The tables stay as big as they were made; a forgotten session only begins anew."""
        service = self.reflector(max_sessions=64)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            for ssid in range(2000):
                send(stamp_probe(ssid), service.port_number, sock)
                if ssid % 100 == 99:
                    await deferLater(reactor, 0)
        await settle(service)
        self.assertEqual(2000, service.tally.answered["stamp"])
        self.assertLessEqual(len(service.sessions), 64)
        # How many exactly depends on how many came together: crowds are not remembered at all.
        self.assertGreater(service.sessions.evicted, 64)
        said = await self.peer_sender(port=service.port_number, kind="stamp", count=3)
        self.assertEqual([0, 1, 2], [reply["seq"] for reply in said["replies"]])

    def test_ten_million_sources_take_no_memory(self) -> None:
        """Ten million addresses go through the guard and the sessions, by column, without trace."""
        guard, sessions = Guard(source_rate_pps=10.0), Sessions()
        port = np.full(256, 40000, np.uint16)
        ends = port.astype(np.uint64)
        local = np.zeros(256, np.uint64)

        def flood(first: int, count: int) -> int:
            for n in range(first, first + count, 256):
                low = np.arange(n, n + 256, dtype=np.uint64) | np.uint64(0xFFFF_00000000)
                self.assertFalse(guard.admit(None, low, port, n / 1e6).any())
                places = sessions.places(sessions.keys(None, low, ends, local), n // 1_000_000 + 1)
                self.assertFalse(sessions.number(places).any())
            return resident_octets()

        most = 2_000_128  # by then every place has been taken
        before = flood(0, most)
        self.assertLess(flood(most, 10_000_128) - before, 8 << 20)  # not an octet for each
        self.assertEqual(most + 10_000_128, len(sessions) + sessions.evicted)
        self.assertLessEqual(len(sessions), sessions.capacity)


class OneReplyTests(PeersCase):
    async def test_replies_are_never_longer_than_probes(self) -> None:
        """Whatever is sent, no more octets come back: nobody is worth spoofing."""
        service = self.reflector()
        chance = random.Random(5)
        raws = [golden(name) for name in ("stamp-probe", "stamp-probe-tlvs", "auth-probe-tlvs",
                                          "llama-go", "llama-go-empty-tos", "llama-python",
                                          "twamp-light-probe")]  # fmt: skip
        raws += [chance.randbytes(size) for size in (1, 30, 44, 47, 300, 1400)]
        raws += [struct.pack(">IQHH", 1, 2, 3, 4) + b"\x80\x01\xff\xff" * 90]
        wants = [{"port": service.port_number, "kind": "raw", "raw": raw.hex(), "count": 1,
                  "wait_s": 0.2} for raw in raws]  # fmt: skip
        for raw, said in zip(raws, await self.peer_senders(wants), strict=True):
            self.assertLessEqual(len(said["replies"]), 1)
            for reply in said["replies"]:
                self.assertEqual(len(raw), len(reply["octets"]) // 2)
