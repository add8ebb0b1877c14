"""Packets that arrived damaged are told from those that a full buffer had no room for, at both ends."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import numpy as np
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from network import alone
from reflector_case import StillReactor, probe
from timekeeper_case import TimekeeperCase, pair
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.ledger import Ledger
from llama.collector.probing import sockets
from llama.collector.probing.icmp import IcmpProber
from llama.collector.probing.plan import Source
from llama.config import ReflectorConfig
from llama.net import drops, mmsg
from llama.net.drops import Causes, counters
from llama.reflector.service import PortService
from llama.wire import tlv

SNMP = """\
Icmp: InMsgs InErrors InCsumErrors
Icmp: 7 6 5
IcmpMsg: InType3
IcmpMsg: 7
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 900 1 60 900 {no_room} 0 {damaged} 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 0 0 0 0 0 0 99 0 99
"""  # noqa: E501  what the kernel says
SNMP6 = """\
Ip6InReceives                   \t2
Icmp6InCsumErrors               \t{echoes}
Udp6RcvbufErrors                \t{no_room}
Udp6InCsumErrors                \t{damaged}
"""


class CountersTests(SynchronousTestCase):
    """The kernel's texts."""

    def test_both_files(self) -> None:
        """Names are those of snmp6 in both."""
        found = counters(SNMP.format(no_room=40, damaged=20))
        self.assertEqual(found["UdpRcvbufErrors"], 40)
        self.assertEqual(found["UdpInCsumErrors"], 20)
        self.assertEqual(found["UdpLiteMemErrors"], 99)
        self.assertEqual(found["IcmpInCsumErrors"], 5)
        self.assertEqual(
            counters(SNMP6.format(echoes=3, no_room=4, damaged=5)),
            {
                "Ip6InReceives": 2,
                "Icmp6InCsumErrors": 3,
                "Udp6RcvbufErrors": 4,
                "Udp6InCsumErrors": 5,
            },
        )

    def test_of_this_machine(self) -> None:
        """They can be read here."""
        self.assertIn("UdpInCsumErrors", counters(drops.read_text("snmp")))

    @given(st.text(alphabet="Udp: \n0129x", max_size=60))
    def test_nonsense(self, text: str) -> None:
        """Any other text is a ValueError, or says nothing."""
        try:
            found = counters(text)
        except ValueError:
            return
        self.assertTrue(all(isinstance(value, int) for value in found.values()))


class CausesTests(SynchronousTestCase):
    """What is made of them."""

    no_room = damaged = echoes = 100
    broken = False

    def read(self, name: str) -> str:
        """Return the text of a file."""
        if self.broken:
            raise PermissionError(13, "no")
        text = SNMP if name == "snmp" else SNMP6
        return text.format(no_room=self.no_room, damaged=self.damaged, echoes=self.echoes)

    def test_udp(self) -> None:
        """All that was dropped was damaged only if no room was lacking, and so many were damaged."""
        for family in (socket.AF_INET, socket.AF_INET6):
            causes = Causes(family, read=self.read)
            self.damaged += 5
            self.assertEqual(causes.damaged([2, 3]), 5)
            self.assertEqual(causes.damaged([1]), 0)  # they were counted before
            self.damaged += 7  # some of them somebody else's
            self.assertEqual(causes.damaged([3]), 3)
            self.damaged += 1
            self.no_room += 1
            self.assertEqual(causes.damaged([2]), 0)
            self.damaged += 1
            self.assertEqual(causes.damaged([2]), 0)  # of one the cause is not known

    def test_raw(self) -> None:
        """Each raw socket counts all messages that were damaged."""
        causes = Causes(socket.AF_INET6, raw=True, read=self.read)
        self.echoes += 5
        self.no_room += 1  # of UDP
        self.assertEqual(causes.damaged([5, 5]), 5)
        self.echoes += 5
        self.assertEqual(causes.damaged([5, 6]), 0)

    def test_unreadable(self) -> None:
        """Where the counters cannot be read, drops are ours; once they can be again, it is known."""
        causes = Causes(socket.AF_INET, read=self.read)
        self.damaged += 50
        self.broken = True
        self.assertEqual(causes.damaged([1]), 0)
        self.broken = False
        self.assertEqual(causes.damaged([1]), 0)
        self.damaged += 1
        self.assertEqual(causes.damaged([1]), 1)
        self.assertEqual(Causes(socket.AF_INET, read=lambda name: "Udp: x\n").damaged([1]), 0)


class NoteTests(SynchronousTestCase):
    """The note of an interval."""

    def test_one_note(self) -> None:
        """Each window has one, with its sum."""
        ledger = Ledger(np.zeros(1, np.uint8), 1, 10.0, 1.0, 30.0)
        ledger.roll(0, 30, 0.0)
        ledger.mark(0, "another")
        ledger.note_more(3, "packets")
        ledger.note_more(4, "packets")
        ledger.roll(30, 60, 30.0)
        ledger.note_more(5, "packets")
        self.assertEqual(
            [i.notes for i in ledger.open_intervals()],
            [{"another", "12 packets"}, {"5 packets"}],
        )


def send_damaged(address: str, port: int, count: int) -> None:
    """Send UDP datagrams with a wrong checksum."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        # Too long for the kernel to verify it before it looks for a socket.
        payload = probe(0) + bytes(100)
        header = struct.pack(">4H", 5555, port, 8 + len(payload), 0x1234)
        for _ in range(count):
            raw.sendto(header + payload, (address, 0))


def flood(address: str, port: int, count: int) -> None:
    """Send more than there is room for."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(count):
            sock.sendto(bytes(9000), (address, port))


class CollectorTests(TimekeeperCase):
    """What comes to a real prober in a network of its own."""

    def looked_at(self) -> tuple[set[str], set[str]]:
        """Return reasons and notes of two intervals that have closed since."""
        first = len(self.closed)
        self.prober.drain()  # the kernel looks at the checksums now
        self.prober.check_drops()
        self.run_until(lambda: len(self.closed) > first + 1, answering=False)
        closed = self.closed[first:]
        notes = {note for interval in closed for note in interval.notes}
        return {r for interval in closed for r in self.reasons(interval)}, notes

    @alone
    def test_damaged_or_dropped(self) -> None:
        """Damaged packets are noted and mark nothing; those without room mark, whatever else came."""
        self.patch(sockets, "SOCKET_BUFFER", 1 << 16)
        for version, address, of in ((4, "127.0.0.1", "UDP"), (6, "::1", "UDP over IPv6")):
            source = Source(
                version=version, address=address, interface=None, number=0, owner="", df=False
            )
            group = self.group(pair(address, 9), ports=1, rate=20)
            group = evolve(group, version=version, sources=(source,))
            self.prober.damaged = self.prober.receive_drops = 0
            self.timekeeper.use([group])
            self.closed.clear()
            self.run_until(lambda: len(self.closed) > 2, answering=False)
            self.assertEqual([p.dst_ip for p in self.closed[-1].pairs], [address])
            number = self.prober.sockets[source].number
            send_damaged(address, number, 7)
            said, notes = self.looked_at()
            self.assertNotIn("receive_drops", said)
            self.assertIn(f"7 packets of {of} arrived damaged: their checksums are wrong", notes)
            self.assertEqual((self.prober.damaged, self.prober.receive_drops), (7, 0))
            send_damaged(address, number, 3)
            self.prober.drain()
            flood(address, number, 50)
            said, notes = self.looked_at()
            self.assertIn("receive_drops", said)
            self.assertEqual(self.prober.damaged, 7)
            self.assertGreater(self.prober.receive_drops, 3)

    @alone
    def test_raw_echoes(self) -> None:
        """Raw ICMPv6 sockets are told of damaged echo replies as drops as well, each of all."""
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("1 0")
        prober = IcmpProber(ids=self.ids)
        self.addCleanup(prober.close)
        for owner in "ab":
            prober.open(
                Source(
                    version=6, address="::1", interface=None, number=0, owner=owner, df=False,
                    protocol="icmp",
                )
            )  # fmt: skip
        here = socket.inet_pton(socket.AF_INET6, "::1")
        packet = struct.pack(">IHBB", 6 << 28, 16, socket.IPPROTO_ICMPV6, 64) + here + here
        packet += struct.pack(">BBHHH", 129, 0, 0x1234, 1, 1) + bytes(8)
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for _ in range(5):
                raw.sendto(packet, ("::1", 0))
        self.assertEqual(prober.check_drops(), 0)
        self.assertEqual((prober.damaged, prober.receive_drops), (5, 0))


class ReflectorTests(SynchronousTestCase):
    """What comes to a real reflector in a network of its own."""

    def told(self, service: PortService, address: str) -> int:
        """Return how many drops a reply tells of."""
        for port in service.ports:
            port.protocol._drops_due = 0.0
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.bind((address, 0))
            client.sendto(probe(0, tlvs=tlv.request(0, tlv.SIZE)), (address, service.port_number))
            for port in service.ports:
                for _ in range(600):
                    port.doRead()
            return int(tlv.read_one(memoryview(client.recv(2048))[44:]).receive_drops)

    @alone
    def test_damaged_are_not_told(self) -> None:
        """Its host's faults are told to collectors, damaged probes are the network's."""
        for address in ("127.0.0.1", "::1"):
            reactor = StillReactor()
            service = PortService(reactor, ReflectorConfig(port=0, addresses=(address,)))
            service.startService()
            send_damaged(address, service.port_number, 7)
            self.assertEqual(self.told(service, address), 0)
            self.assertEqual((service.damaged(), service.receive_drops()), (7, 0))
            send_damaged(address, service.port_number, 3)
            room = service.ports[0]._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            flood(address, service.port_number, room // 4096 + 64)
            for _ in range(600):
                service.ports[0].doRead()
            dropped = self.told(service, address)
            self.assertGreater(dropped, 0)
            self.assertEqual((service.damaged(), service.receive_drops()), (7, dropped))
            service.stopService()
            self.assertEqual((service.damaged(), service.receive_drops()), (7, dropped))
            reactor.advance(0)


class SocketTests(SynchronousTestCase):
    """The sockets probes leave from."""

    def test_drops_are_read_without_a_later_packet(self) -> None:
        """SO_MEMINFO tells of dropped packets at once."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
            sock.bind(("127.0.0.1", 0))
            for _ in range(100):
                sock.sendto(bytes(1000), sock.getsockname())
            self.assertGreater(mmsg.receive_drops(sock), 50)
