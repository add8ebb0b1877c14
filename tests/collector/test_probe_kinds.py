"""Probes that need no reflector, ICMP echo and TCP connection attempts, over real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve
from network import alone
from services import BIN
from tcp_listeners import listener, silent_port
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.collector.intervals import closing
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.summary import Pair, reasons
from llama.collector.probing import tcp
from llama.collector.probing.attempts import attempt_socket
from llama.collector.probing.icmp import ECHO, REPLY, REQUEST, checksums
from llama.collector.probing.plan import Group, Source, make_plan
from llama.collector.probing.probers import Probers
from llama.collector.probing.tcp import TcpProber
from llama.collector.probing.track import Track
from llama.collector.rearranging import rearranged
from llama.collector.slices import at_once
from llama.config import CollectorConfig, SourcePort, Target, Test
from llama.net.flow_label import label_of, labelled
from llama.net.port import transmit_ids_supported

SO_RCVBUFFORCE = 33
COUNT = 5


def can_ping() -> bool:
    """Whether ICMP sockets may be opened here."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP).close()
        except PermissionError:
            continue
        return True
    return False


class KindCase(SynchronousTestCase):
    """A prober of every kind, ticked by hand."""

    timeout_s = 0.3

    def setUp(self) -> None:
        """Make a prober."""
        self.prober: Any = Probers(ids=transmit_ids_supported(), chance=random.Random(5))
        self.addCleanup(lambda: self.prober.close())

    def group(
        self,
        kind: str,
        addresses: Sequence[str],
        port: int = 0,
        *,
        ports: int = 1,
        dscps: Sequence[int] = (0,),
        in_flight: int = 256,
    ) -> Group:
        """A group of one kind, at a rate that hurries."""
        version = 6 if ":" in addresses[0] else 4
        sources = tuple(
            Source(
                version=version, address=None, interface=None, number=0, owner=f"{kind}{n}",
                df=False, protocol=kind,
            )
            for n in range(ports)
        )  # fmt: skip
        pairs = tuple(
            Pair(
                target=address, src_ip="", dst_ip=address, dst_port=port, dscp=dscp,
                class_name=str(dscp), probe=kind, size=56 if kind == "icmp" else 0,
                port_group="", tags={"dst_hostname": address},
            )
            for address in addresses
            for dscp in dscps
        )  # fmt: skip
        return Group(
            test="t", probe=kind, version=version, sources=sources, rate_pps=100,
            timeout_s=self.timeout_s, pairs=pairs, in_flight=in_flight,
        )  # fmt: skip

    def begin(self, group: Group) -> Track:
        """Have the prober probe a group, every flow `COUNT` times."""
        dscps = np.array([pair.dscp for pair in group.pairs], np.uint8)
        ledger = Ledger(dscps, len(group.sources), group.rate_pps, group.timeout_s, 10)
        live = np.ones(len(group.pairs), np.bool_)
        track: Track = self.prober.track(group, ledger, live, time.monotonic())
        track.schedule.limit = COUNT * ledger.flows
        ledger.roll(0, 1, 0.0)
        self.prober.arrange([track])
        return track

    def run_through(self, track: Track) -> None:
        """Tick until all was sent and nothing is waited for any more."""
        wanted = COUNT * track.ledger.flows
        give_up = time.monotonic() + 60

        def over() -> bool:
            sent = self.prober.sent + self.prober.failed_sends.total()
            return bool(sent >= wanted) and not self.pending(track)

        while not over():
            assert time.monotonic() < give_up, "it did not end"
            self.prober.tick(time.monotonic(), 0.02)
            self.prober.drain()
            time.sleep(0.001)

    @staticmethod
    def pending(track: Track) -> bool:
        """Whether a probe without an answer is younger than the timeout."""
        book = track.ledger
        waiting = (book.t1 != 0) & (book.flags & 1 == 0)
        young = time.time_ns() - book.t1 < book.timeout_ns + 50_000_000
        return bool((waiting & young).any())

    def closed(self, track: Track) -> closing.Figures:
        """The figures of all that was probed."""
        track.ledger.roll(1, 2, 0.0)
        return at_once(closing.close(track.ledger, track.ledger.over[0]))

    def measure(self, group: Group) -> closing.Figures:
        """Probe a group to its end."""
        track = self.begin(group)
        self.run_through(track)
        return self.closed(track)


class EchoTests(KindCase):
    """ICMP echo on loopback."""

    def setUp(self) -> None:
        """Skip where ICMP sockets are not to be had."""
        if not can_ping():
            raise SkipTest("needs root, or a group in net.ipv4.ping_group_range")
        super().setUp()

    def test_both_families(self) -> None:
        """Every echo comes back, with TTL and kernel stamps, and nothing is made up."""
        for address in ("127.0.0.1", "::1"):
            figures = self.measure(self.group("icmp", [address], ports=3))
            (row,) = figures.pair_stats
            self.assertEqual((row["sent"], row["lost"]), (3 * COUNT, 0))
            self.assertEqual(row["samples"], 3 * COUNT)
            self.assertGreater(row["rtt_min_ns"], 0)
            self.assertEqual(row["ttl_at_collector"], 64)
            self.assertEqual((row["ttl_at_reflector"], row["dscp_at_reflector"]), (0, 255))
            self.assertTrue(np.isnan(row["ipdv_forward_ns"]))
            self.assertFalse(np.isnan(row["ipdv_ns"]))
            self.assertNotIn("user_timestamps", reasons(int(row["suspect"])))
            self.prober.close()
            self.setUp()

    def test_classes_and_many_flows(self) -> None:
        """Classes, targets and identifiers are told apart; a class comes back as it left."""
        hosts = [f"127.0.0.{n}" for n in range(1, 33)]
        figures = self.measure(self.group("icmp", hosts, ports=4, dscps=(46, 0)))
        sent = figures.pair_stats["sent"].tolist()
        self.assertEqual((len(sent), sum(sent)), (64, 4 * COUNT * 64))
        self.assertEqual(figures.pair_stats["received"].tolist(), sent)
        self.assertEqual(figures.pair_stats["dscp_at_collector"].tolist(), [46, 0] * 32)
        self.assertEqual(self.prober.strangers, 0)

    def test_strangers(self) -> None:
        """Replies with the wrong token, sequence number or length change nothing but a count."""
        if os.geteuid():
            raise SkipTest("needs root, to forge replies")
        track = self.begin(self.group("icmp", ["127.0.0.1"]))
        self.run_through(track)
        forger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.addCleanup(forger.close)
        number = track.sockets[0].number
        forged = np.zeros(1, ECHO)
        forged["identifier"], forged["sequence"], forged["number"] = number, 1, 1
        forged["ssid"] = track.ssids[0]
        octets = forged.view(np.uint8).reshape(1, -1)
        forged["checksum"] = checksums(octets)
        short = bytearray(struct.pack("!BBHHH", 0, 0, 0, number, 0))
        short[2:4] = int(checksums(np.frombuffer(bytes(short), np.uint8)[None])[0]).to_bytes(2)
        for packet in (octets.tobytes(), bytes(short)):
            forger.sendto(packet, ("127.0.0.1", 0))
        give_up = time.monotonic() + 30
        while self.prober.strangers < 2:
            assert time.monotonic() < give_up, "forged replies were not seen"
            self.prober.drain()
        (row,) = self.closed(track).pair_stats
        self.assertEqual((row["sent"], row["received"], row["duplicate"]), (COUNT, COUNT, 0))


class DamageTests(KindCase):
    """Echo replies that arrive damaged, at raw sockets: the kernel hands them over all the same."""

    damage: dict[int, int]  # by sequence number, which octet of the message
    note = "packets of ICMP arrived damaged: their checksums are wrong"

    def answer(self) -> None:
        """Answer in the kernel's place, with sums of our own, and damage what is to be damaged."""
        while True:
            try:
                packet, sender = self.echoing.recvfrom(65535)
            except BlockingIOError:
                return
            message = bytearray(packet[20:])
            if message[0] != REQUEST[socket.AF_INET]:
                continue
            message[0], message[2:4] = REPLY[socket.AF_INET], bytes(2)
            even = bytes(message) + bytes(len(message) % 2)
            message[2:4] = int(checksums(np.frombuffer(even, np.uint8)[None])[0]).to_bytes(2)
            (sequence,) = struct.unpack_from("!I", message, ECHO.fields["sequence"][1])
            if sequence in self.damage:
                message[self.damage[sequence]] ^= 0x55
            self.echoing.sendto(message, sender)

    def probe(self, *sizes: int) -> Track:
        """Probe `COUNT` times with each so many octets after the header."""
        Path("/proc/sys/net/ipv4/icmp_echo_ignore_all").write_text("1")
        self.echoing = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.addCleanup(self.echoing.close)
        self.echoing.setblocking(False)
        drain = self.prober.drain

        def answered() -> bool:
            self.answer()
            return bool(drain())

        self.patch(self.prober, "drain", answered)
        self.icmp = self.prober._prober("icmp")
        self.icmp._padding[:] = 0xA5  # what is left behind in a room must tell
        group = self.group("icmp", ["127.0.0.1"])
        (pair,) = group.pairs
        track = self.begin(group.with_pairs([evolve(pair, size=size) for size in sizes]))
        self.assertTrue(track.sockets[0].raw)
        self.run_through(track)
        return track

    def check(self, damage: dict[int, int], *sizes: int) -> None:
        """What is damaged is lost, counted and noted; the rest is received, and none is strange."""
        self.damage = damage
        track = self.probe(*sizes)
        assert track.ledger.current is not None
        notes = [note for note in track.ledger.current.notes if note.endswith(self.note)]
        self.assertEqual(len(notes), bool(damage))
        for row in self.closed(track).pair_stats:
            self.assertEqual((row["sent"], row["lost"]), (COUNT, len(damage)), sizes)
            self.assertEqual(row["suspect"], 0)
        self.assertEqual((self.icmp.damaged, self.icmp.strangers), (len(damage) * len(sizes), 0))
        self.prober.close()
        self.setUp()

    @alone
    def test_damaged(self) -> None:
        """Wherever it is, in the padding of small and large ones, odd ones too, or in what is ours."""
        for size in (56, 57, 164, 165, 1400, 1401, 9216):
            last = 8 + size - 1
            self.check({}, size)
            self.check({1: last, 3: 8 + size // 2, 4: 8}, size)
        self.check({2: 7, 3: 16}, 56)

    @alone
    def test_in_turn(self) -> None:
        """What a longer one left behind in the same room is no part of a shorter one."""
        for damage in ({}, {2: 9}):
            self.check(damage, 9001, 56, 3001, 57, 200)


class ConnectionTests(KindCase):
    """TCP connection attempts on loopback."""

    @staticmethod
    def closed_port() -> int:
        """A port where nobody listens."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return int(sock.getsockname()[1])

    @staticmethod
    def lingering(port: int) -> list[str]:
        """The kernel's TCP sockets that know ``port``, listening ones left out."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        lines += Path("/proc/net/tcp6").read_text().splitlines()[1:]
        mark = f":{port:04X}"
        return [
            line
            for line in lines
            if any(end.endswith(mark) for end in line.split()[1:3]) and line.split()[3] != "0A"
        ]

    def test_open_ports(self) -> None:
        """SYN+ACK is an answer, timed by the kernel; nothing lingers on either side."""
        for address in ("127.0.0.1", "::1"):
            accepting = listener(self, address)
            port = accepting.getsockname()[1]
            group = self.group("tcp", [address], port, ports=4)
            (row,) = self.measure(group).pair_stats
            self.assertEqual((row["sent"], row["lost"]), (4 * COUNT, 0))
            self.assertEqual(row["samples"], 4 * COUNT)
            self.assertNotIn("user_timestamps", reasons(int(row["suspect"])))
            accepting.close()  # what waited to be accepted goes with it
            self.assertEqual(self.lingering(port), [])
            self.prober.close()
            self.setUp()

    def test_closed_ports(self) -> None:
        """RST is an answer as good, timed in user space and labelled so."""
        port = self.closed_port()
        (row,) = self.measure(self.group("tcp", ["127.0.0.1"], port, ports=4)).pair_stats
        self.assertEqual((row["sent"], row["lost"]), (4 * COUNT, 0))
        self.assertGreater(row["samples"], 0)  # none from a late tick
        self.assertIn("user_timestamps", reasons(int(row["suspect"])))
        self.assertEqual(self.lingering(port), [])

    def test_looked_at_too_late(self) -> None:
        """A RST seen by a tick that was late counts, but has no round trip."""
        self.prober.close()
        self.prober = TcpProber(monotonic_s=lambda: time.monotonic() + 1, chance=random.Random(5))
        (row,) = self.measure(self.group("tcp", ["127.0.0.1"], self.closed_port())).pair_stats
        self.assertEqual((row["received"], row["samples"]), (COUNT, 0))

    def test_no_answer(self) -> None:
        """Without an answer all is lost, one attempt at a time, and every socket is let go."""
        port = silent_port(self)
        before = len(self.lingering(port))
        files = len(os.listdir("/proc/self/fd"))
        track = self.begin(self.group("tcp", ["127.0.0.1"], port))
        while not self.prober.sent:
            self.prober.tick(time.monotonic(), 0.02)
        self.assertEqual(len(self.lingering(port)), before + 1)
        self.run_through(track)
        self.assertGreater(self.prober.failed_sends["EALREADY"], 0)
        (row,) = self.closed(track).pair_stats
        self.assertEqual((row["received"], row["lost"]), (0, row["sent"]))
        self.assertEqual(row["lost_unknown"], row["lost"])
        self.assertEqual(len(self.lingering(port)), before)
        self.prober.close()
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), files)

    def test_bounded_in_flight(self) -> None:
        """Attempts above the bound are not made, and are counted."""
        group = self.group("tcp", ["127.0.0.1"], silent_port(self), ports=6, in_flight=2)
        track = self.begin(group)
        self.run_through(track)
        self.assertGreater(self.prober.failed_sends["EMFILE"], 0)
        self.assertLess(self.prober.sent, 6 * COUNT)
        self.assertEqual(self.closed(track).pair_stats["lost"].sum(), self.prober.sent)

    def take_turns(self, group: Group, attempts: int) -> list[int]:
        """Probe what does not answer until so many attempts were made; return those of each flow."""
        track = self.begin(group)
        track.schedule.limit = None
        give_up = time.monotonic() + 60
        while self.prober.sent < attempts:
            assert time.monotonic() < give_up, "too few attempts"
            self.prober.tick(time.monotonic(), 0.02)
            self.prober.drain()
            time.sleep(0.001)
        assert track.ledger.current is not None
        self.assertEqual(track.ledger.current.pair_suspect.any(), False)
        self.assertIn("wait for one another", str(track.ledger.current.notes))
        numbers: list[int] = (track.ledger.next_sequence - 1).tolist()
        return numbers

    def test_classes_take_turns(self) -> None:
        """Classes that share a source port have as many attempts each, and are marked."""
        group = self.group("tcp", ["127.0.0.1"], silent_port(self), dscps=(0, 46, 10))
        self.assertEqual(self.take_turns(group, 9), [3, 3, 3])

    def test_flows_take_turns(self) -> None:
        """Flows beyond ``in_flight`` are probed in turn, none of them is left out for ever."""
        group = self.group("tcp", ["127.0.0.1"], silent_port(self), ports=6, in_flight=2)
        self.assertEqual(self.take_turns(group, 12), [2] * 6)

    def test_well_again(self) -> None:
        """When a path answers again every flow has its own rate, and nothing more is refused."""
        port = self.closed_port()
        track = self.begin(self.group("tcp", ["127.0.0.1"], port, dscps=(0, 46)))
        way = track.group.sources[0], "127.0.0.1", port
        tcp = self.prober._probers["tcp"]
        tcp._ways.add(way)
        while not tcp.failed_sends["EALREADY"]:
            self.prober.tick(time.monotonic(), 0.02)
        tcp._ways.discard(way)
        failed = tcp.failed_sends.total()
        track.schedule.limit = None
        while self.prober.sent < 60:
            self.prober.tick(time.monotonic(), 0.02)
            self.prober.drain()
            time.sleep(0.001)
        self.assertEqual(tcp.failed_sends.total(), failed)
        first, second = track.ledger.next_sequence.tolist()
        self.assertLessEqual(abs(first - second), 2)

    def test_many_flows(self) -> None:
        """Hundreds of flows from a few ports to many targets, without a file left open."""
        files = len(os.listdir("/proc/self/fd"))
        hosts = [f"127.0.1.{n}" for n in range(1, 65)]
        figures = self.measure(self.group("tcp", hosts, self.closed_port(), ports=4))
        sent = figures.flow_stats["sent"].tolist()
        self.assertEqual((len(sent), sum(sent)), (256, COUNT * 256))
        self.assertEqual(figures.flow_stats["received"].tolist(), sent)
        self.prober.close()
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), files)

    def test_sockets_of_a_program_that_is_begun(self) -> None:
        """A child that has a copy of an ended attempt's socket changes nothing for the next ones."""
        made, silent = attempt_socket, silent_port(self)

        def copied(source: Source, number: int) -> socket.socket:
            sock = made(source, number)
            self.addCleanup(os.close, os.dup(sock.fileno()))
            return sock

        patched = self.patch(tcp, "attempt_socket", copied)
        (row,) = self.measure(self.group("tcp", ["127.0.0.1"], self.closed_port())).pair_stats
        self.assertEqual((row["sent"], row["lost"]), (COUNT, 0))
        patched.restore()
        # The next one has the same descriptor.
        self.begin(self.group("tcp", ["127.0.0.1"], silent))
        while self.prober.sent == COUNT:
            self.prober.tick(time.monotonic(), 0.02)
        self.prober.tick(time.monotonic(), 0.02)
        self.assertEqual((self.prober.sent, self.prober.received), (COUNT + 1, COUNT))

    def test_answer_that_cannot_be_taken(self) -> None:
        """It is logged, once, and the reactor, which drops who raises, is told of nothing."""
        self.prober.close()
        reactor: Any = MemoryReactor()
        self.prober = TcpProber(reactor=reactor, chance=random.Random(5))
        track = self.begin(self.group("tcp", ["127.0.0.1"], self.closed_port()))
        self.patch(self.prober, "_answered", lambda *_, **__: 1 / 0)
        self.prober._attempt(track, 0)
        (reader,) = reactor.getReaders()
        for _ in range(2):
            reader.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.prober._attempts, {})

    def test_under_way_at_a_reload(self) -> None:
        """An attempt goes on in the ledger that takes the place of the old one."""
        port = silent_port(self)
        group = self.group("tcp", ["127.0.0.1"], port)
        old = self.begin(group)
        while not self.prober.sent:
            self.prober.tick(time.monotonic(), 0.02)
        more = self.group("tcp", ["127.0.0.2", "127.0.0.1"], port)
        ledger = rearranged(old.ledger, np.zeros(2, np.uint8), np.array([1]), np.array([0]))
        track = self.prober.track(more, ledger, np.ones(2, np.bool_), time.monotonic())
        track.schedule.limit = 0
        self.prober.arrange([track])
        self.assertEqual(int(ledger.next_sequence[1]), 2)
        while self.pending(track):
            self.prober.drain()
        figures = self.closed(track)
        self.assertEqual(figures.pair_stats["lost"].tolist(), [0, 1])

    def wire(self) -> socket.socket:
        """A socket that is given what passes loopback from now on."""
        try:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        except PermissionError:
            raise SkipTest("needs root, to look at packets") from None
        self.addCleanup(wire.close)
        # Whatever else is sent over loopback meanwhile must neither push it out nor keep us here.
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        wire.bind(("lo", 0))
        wire.settimeout(0.2)
        return wire

    def syns(self, wire: socket.socket, port: int) -> Iterator[tuple[bytes, bytes]]:
        """The SYNs to a port that have passed: the headers of IP, and of TCP with what follows."""
        end_s = time.monotonic() + 20
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end_s:
                packet = wire.recv(2048)
                size = 20 if packet[0] >> 4 == 4 else 40
                ip, tcp = packet[:size], packet[size:]
                if tcp[2:4] == port.to_bytes(2, "big") and tcp[13] == 2:
                    yield ip, tcp

    def test_class_on_the_wire(self) -> None:
        """The SYN leaves in the pair's class, in both families."""
        wire, port = self.wire(), self.closed_port()
        for address in ("127.0.0.1", "::1"):
            self.measure(self.group("tcp", [address], port, dscps=(46,)))
            self.prober.close()
            self.setUp()
        classes: dict[int, set[int]] = {4: set(), 6: set()}
        for ip, _ in self.syns(wire, port):
            version = ip[0] >> 4
            tos = ip[1] if version == 4 else (ip[0] << 4 | ip[1] >> 4) & 0xFF
            classes[version].add(tos >> 2)
        self.assertEqual(classes, {4: {46}, 6: {46}})

    def test_flow_label(self) -> None:
        """All SYNs from a port have one label, and those from others another."""
        wire, port = self.wire(), self.closed_port()
        self.measure(self.group("tcp", ["::1"], port, ports=3, dscps=(0, 46)))
        labels: dict[int, set[int]] = {}
        for ip, syn in self.syns(wire, port):
            label = int.from_bytes(ip[:4], "big") & 0xFFFFF
            labels.setdefault(int.from_bytes(syn[:2], "big"), set()).add(label)
        self.assertEqual(labels, {number: {label_of(number)} for number in labels})
        self.assertEqual(len(set().union(*labels.values())), 3)

    def test_no_flow_label(self) -> None:
        """A label that another program has for itself alone is left to it."""
        address = ("::1", 9, 0, 0)
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as other,
            socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as ours,
        ):
            self.assertEqual(labelled(ours, address, 40000), ("::1", 9, label_of(40000), 0))
            request = struct.pack(
                "=16sIBBHHHI", bytes(15) + b"\1", socket.htonl(label_of(40001)), 0, 1, 1, 0, 0, 0
            )
            other.setsockopt(socket.IPPROTO_IPV6, 32, request)
            self.assertEqual(labelled(ours, address, 40001), address)


class OwnHostTests(KindCase):
    """SYNs that do not leave this host, or not at once: the kernel takes them all the same."""

    def setUp(self) -> None:
        """Skip where queues cannot be made."""
        if not all(map(shutil.which, ("tc", "nft"))):
            raise SkipTest("needs iproute2 and nftables")
        super().setUp()

    def queue(self, kind: str, backlog: int = 0) -> None:
        """Have what leaves over loopback wait in such a queue, behind so many octets."""
        done = subprocess.run(
            ["tc", "qdisc", "add", "dev", "lo", "root", *kind.split()], capture_output=True
        )
        if done.returncode:
            raise SkipTest(f"needs the queue {kind}")
        with (
            socket.socket(type=socket.SOCK_DGRAM) as hole,
            socket.socket(type=socket.SOCK_DGRAM) as sock,
        ):
            hole.bind(("127.0.0.1", 0))
            for _ in range(backlog // 1000):
                sock.sendto(bytes(1000 - 42), hole.getsockname())
            self.once()

    def once(self) -> None:
        """Have one SYN sent, to a port where nobody listens, and wait for what becomes of it."""
        port = ConnectionTests.closed_port()
        track = self.begin(self.group("tcp", ["127.0.0.1"], port))
        track.schedule.limit = 1
        give_up = time.monotonic() + 60
        while not self.prober.sent + self.prober.failed_sends.total() or self.pending(track):
            assert time.monotonic() < give_up, "it did not end"
            self.prober.tick(time.monotonic(), 0.02)
            self.prober.drain()
        assert track.ledger.current is not None
        self.notes = track.ledger.current.notes
        (self.row,) = self.closed(track).pair_stats
        self.reasons = reasons(int(self.row["suspect"]))

    @alone
    def test_refused(self) -> None:
        """What a full queue refuses was not sent."""
        self.queue("pfifo limit 0")
        self.assertEqual((self.row["sent"], self.reasons), (0, ("send_failed",)))
        self.assertEqual(self.prober.failed_sends, {"ENOBUFS": 1})
        self.assertEqual(self.notes, {"probes could not be sent: ENOBUFS"})

    @alone
    def test_waited(self) -> None:
        """The time in a queue of ours is no round trip."""
        self.queue("tbf rate 80kbit burst 1600 latency 10s", backlog=3000)  # for 140 ms
        self.assertEqual((self.row["received"], self.row["samples"]), (1, 0))
        note = "SYNs waited in this host's own queue, and have no round trip"
        self.assertEqual(self.notes, {note})

    @alone
    def test_did_not_leave(self) -> None:
        """What waits there until its time is over may have been lost by nobody else."""
        self.queue("tbf rate 8kbit burst 1600 latency 10s", backlog=3000)
        self.assertEqual((self.row["lost"], self.reasons), (1, ("send_failed",)))
        self.assertIn("SYNs waited in this host's own queue, and had no answer in time", self.notes)

    @alone
    def test_lost_elsewhere(self) -> None:
        """Neither what is lost beyond, nor what this host's firewall dropped, is told for such."""
        for hook in ("input", "output"):
            rules = "add table inet t; add chain inet t c { type filter hook "
            rules += hook + " priority 0; }; add rule inet t c tcp flags syn drop"
            subprocess.run(["nft", rules], check=True)
            self.once()
            self.assertEqual((self.row["lost"], self.reasons, self.notes), (1, (), set()))
            subprocess.run(["nft", "delete table inet t"], check=True)
            self.prober.close()
            self.setUp()


class PlanTests(SynchronousTestCase):
    """What a configuration makes of these kinds."""

    def config(self, probe: str, path: str = "c.yaml", **more: Any) -> CollectorConfig:
        """A configuration of one test."""
        target = Target(name="t", host="192.0.2.1", port=443)
        test = Test(
            name="one", targets=(target,), probe=probe, source_ports=(SourcePort(name="a"),) * 2,
            rate_pps=10, options={"in_flight": 9} if probe == "tcp" else {},
        )  # fmt: skip
        return CollectorConfig(path=path, tests=(test,), src_hostname="here", **more)

    def plan(self, config: CollectorConfig) -> Group:
        """The only group of a plan."""
        (group,) = make_plan(config, {"192.0.2.1": ["192.0.2.1"]}, lambda _to, _own: "192.0.2.9")
        return group

    def test_what_is_sent(self) -> None:
        """ICMP has no port, TCP the target's; each knows what it costs, and caps hold."""
        echo, attempt = self.plan(self.config("icmp")), self.plan(self.config("tcp"))
        self.assertEqual((echo.pairs[0].dst_port, attempt.pairs[0].dst_port), (0, 443))
        self.assertEqual({s.protocol for s in echo.sources + attempt.sources}, {"icmp", "tcp"})
        self.assertEqual(attempt.in_flight, 9)
        self.assertEqual(echo.load(), (20, 20 * 8 * (20 + 8 + 56)))
        # An open port is sent an ACK and a RST as well.
        self.assertEqual(attempt.load(), (3 * 20, 20 * 8 * (60 + 52 + 52)))
        self.assertAlmostEqual(self.plan(self.config("tcp", max_pps=10)).rate_pps, 0.9 * 10 / 6)


class SendTests(SynchronousTestCase):
    """``llama send``, by a user without any privilege, in a network of its own."""

    RULES = "add table inet t; add chain inet t in { type filter hook input priority 0; }; "

    def send(self, *commands: str, prepare: str = "") -> list[list[dict[str, Any]]]:
        """Run ``llama send`` some times; return the lines that each printed."""
        if os.geteuid() or not all(map(shutil.which, ("unshare", "setpriv", "ip", "nft"))):
            raise SkipTest("needs root, util-linux, iproute2 and nftables")
        nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all"
        lines = ["set -e", "ip link set lo up", prepare]
        lines += [
            f"{nobody} {BIN / 'llama'} send --json -c 3 -i 0.05 -W 0.3 {c} || true; echo"
            for c in commands
        ]
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", "\n".join(lines)],
            capture_output=True, text=True, timeout=240, cwd="/",
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        self.errors = done.stderr
        return [
            [json.loads(line) for line in part.splitlines() if line]
            for part in done.stdout.split("\n\n")[: len(commands)]
        ]

    def test_without_privilege(self) -> None:
        """Datagram ICMP sockets and TCP answer; what is dropped is lost, and nothing else is."""
        allow = "sysctl -qw net.ipv4.ping_group_range='0 2147483647'\n"
        drop = "nft '" + self.RULES + "add rule inet t in tcp dport 9 drop; "
        drop += "add rule inet t in ip daddr 127.0.0.9 drop'"
        echo4, echo6, refused, lost, gone = self.send(
            "--probe icmp --dscp EF --flows 2 127.0.0.1", "--probe icmp ::1",
            "--probe tcp 127.0.0.1:7", "--probe tcp 127.0.0.1:9", "--probe icmp 127.0.0.9",
            prepare=allow + drop,
        )  # fmt: skip
        self.assertEqual(echo4[-1]["total"]["received"], 6)
        self.assertTrue(all(probe["kernel_sent"] for probe in echo4[:-1]))
        self.assertEqual({probe["dscp_at_collector"] for probe in echo4[:-1]}, {46})
        self.assertEqual(echo6[-1]["total"]["received"], 3)
        self.assertEqual(refused[-1]["total"]["received"], 3)
        for silent in (lost, gone):
            total = silent[-1]["total"]
            self.assertEqual((total["received"], total["lost"]), (0, total["sent"]))
            self.assertGreater(total["sent"], 0)

    def test_not_allowed(self) -> None:
        """Who may not ping is told so in one line that says what is missing."""
        self.send("--probe icmp 127.0.0.1", prepare="sysctl -qw net.ipv4.ping_group_range='1 0'")
        self.assertEqual(self.errors.count("\n"), 1, self.errors)
        self.assertIn("net.ipv4.ping_group_range", self.errors)
