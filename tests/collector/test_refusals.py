"""What is said by ICMP of the probes of a test with an end, and who is believed."""

from __future__ import annotations

import io
import json
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve
from icmp_flood import flood, unreachable
from network import alone
from services import BIN
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.cli._report import Report, summary
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.summary import STATS, Pair
from llama.collector.oneshot import Result, Wanted
from llama.collector.probing.icmp import IcmpProber
from llama.collector.probing.plan import Group, Source
from llama.collector.probing.refusals import _PROOF, MOST, Refusal, Refusals
from llama.collector.probing.udp import UdpProber
from llama.config.probes import KINDS
from llama.net.errors import IcmpError
from llama.net.port import transmit_ids_supported

ROUTER = "10.9.1.1"


def pairs(port: int, probe: str, *sizes: int) -> tuple[Pair, ...]:
    """Return pairs on loopback, one a size, each in two classes."""
    return tuple(
        Pair(
            target="127.0.0.1", src_ip="", dst_ip="127.0.0.1", dst_port=port, dscp=dscp,
            class_name=name, probe=probe, size=size, port_group="", tags={},
        )
        for dscp, name in ((0, "BE"), (46, "EF"))
        for size in sizes
    )  # fmt: skip


class Believed(SynchronousTestCase):
    """Real probes, and errors about them."""

    def probe(self, kind: str, *sizes: int) -> None:
        """Send three probes of each flow; keep what they look like."""
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(sink.close)
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(10)
        self.to = sink.getsockname()
        prober = UdpProber(ids=transmit_ids_supported(), chance=random.Random(1))
        self.addCleanup(prober.close)
        every = pairs(self.to[1], kind, *(sizes or (KINDS[kind].natural_size,)))
        sources = tuple(
            Source(version=4, address="127.0.0.1", interface=None, number=0, owner=str(n), df=True)
            for n in range(2)
        )
        key = bytes(32) if kind == "stamp-auth" else None
        group = Group(
            test="send", probe=kind, version=4, sources=sources, rate_pps=100, timeout_s=1.0,
            pairs=every, key=key,
        )  # fmt: skip
        ledger = Ledger(np.array([p.dscp for p in every], np.uint8), 2, 100.0, 1.0, 1.0)
        live = np.ones(len(every), np.bool_)
        self.track = prober.track(group, ledger, live, time.monotonic())
        self.track.schedule.limit = 6 * len(every)
        prober.arrange([self.track])
        self.track.schedule.begin(time.monotonic())
        while prober.sent < self.track.schedule.limit:
            prober.tick(time.monotonic(), 0.01)
            time.sleep(0.002)
        packets = [sink.recvfrom(2048) for _ in range(prober.sent)]
        self.sent = [(octets, sender[1]) for octets, sender in packets]
        self.refusals = Refusals(self.track)

    def say(self, octets: bytes, port: int, error: IcmpError | None = None) -> None:
        """Have an error about a packet from that port arrive, of a router unless it is another."""
        error = error or IcmpError(4, 3, 4, ROUTER, *self.to, b"", 1400)
        (sock,) = [sock for sock in self.track.sockets if sock.number == port]
        self.refusals.error(sock, evolve(error, payload=octets))

    def found(self) -> list[tuple[int | None, str, str, int, int]]:
        """Return what was proven."""
        return [
            (one.pair, one.by, one.refusal, one.mtu, one.probes)
            for one in self.refusals.found()
            if one.proven
        ]

    def test_every_kind(self) -> None:
        """Whatever the format, a quote of number and time names the class and size, once a probe."""
        for kind in "stamp", "twamp-light", "stamp-auth", "llama-go", "llama-python":
            self.probe(kind)
            for octets, port in self.sent * 2:
                self.say(octets[:32], port)
            told = [(n, ROUTER, "packet too big", 1400, 6) for n in range(2)]
            self.assertEqual((kind, self.found()), (kind, told))
            self.assertEqual(self.refusals.forged, 0)

    def test_sizes(self) -> None:
        """Of two sizes only the one that is refused is named."""
        self.probe("stamp", 96, 1400)
        for octets, port in self.sent:
            if len(octets) == 1400:
                self.say(octets[:12], port)
        sizes = [self.track.pairs[one[0] or 0].size for one in self.found()]
        self.assertEqual(sizes, [1400, 1400])

    def test_forged(self) -> None:
        """Neither another number nor another time, nor another port or target, is a probe of ours."""
        for kind in "stamp", "twamp-light", "stamp-auth", "llama-go", "llama-python":
            self.probe(kind)
            octets, port = self.sent[0]
            other = next(number for _, number in self.sent if number != port)
            for place in range(_PROOF[kind][0]):
                changed = bytearray(octets[:32])
                changed[place] ^= 1
                self.say(bytes(changed), port)
            self.say(octets, other)
            self.say(b"x" * 64, port)
            self.say(b"", port, IcmpError(4, 3, 1, ROUTER, "192.0.2.1", 9, b""))
            elsewhere = IcmpError(4, 3, 4, ROUTER, "127.0.0.1", self.to[1] ^ 1, b"", 1400)
            self.say(octets, port, elsewhere)
            self.assertEqual(self.refusals.found(), [])
            self.assertEqual(self.refusals.forged, _PROOF[kind][0] + 4)

    def test_times_that_nobody_sent(self) -> None:
        """What was never sent has the time zero on record, which everybody can guess."""
        self.probe("stamp")
        octets, port = self.sent[0]
        for number in (0, 4, 1 << 31, (1 << 32) - 1):
            self.say(number.to_bytes(4, "big") + octets[4:12], port)
            epoch = (2_208_988_800 << 32).to_bytes(8, "big")
            self.say(number.to_bytes(4, "big") + epoch, port)
        self.assertEqual((self.found(), self.refusals.forged), ([], 8))

    def test_old_routers(self) -> None:
        """What quotes too little is told apart, and not at all beside what is forged."""
        self.probe("stamp")
        _, port = self.sent[0]
        for quote in (b"", bytes(120), self.sent[0][0][:11]):
            self.say(quote, port)
        bare = Refusal(None, ROUTER, "packet too big", 0, 3, proven=False)
        self.assertEqual(self.refusals.found(), [bare])
        self.say(b"forged" * 4, port)
        self.assertEqual(self.refusals.found(), [])

    def test_old_routers_over_ipv6(self) -> None:
        """There are none."""
        self.probe("stamp")
        self.say(b"", self.sent[0][1], IcmpError(6, 1, 1, "2001:db8::1", *self.to, b""))
        self.assertEqual((self.refusals.found(), self.refusals.forged), ([], 1))

    def test_bounded(self) -> None:
        """Whoever uses many names fills no memory."""
        self.probe("stamp")
        octets, port = self.sent[0]
        for n in range(2 * MOST):
            who = IcmpError(4, 3, 13, f"10.0.0.{n}", *self.to, b"")
            self.say(octets, port, who)
            self.say(b"", port, who)
        self.assertEqual((len(self.found()), len(self.refusals._bare)), (1, MOST))

    def test_words(self) -> None:
        """Every code has its words; what says nothing of a probe is left out."""
        self.probe("stamp")
        (octets, port), (more, other), *_ = self.sent
        self.say(octets, port, IcmpError(4, 11, 0, ROUTER, *self.to, b""))
        self.say(more, other, IcmpError(4, 3, 3, "127.0.0.1", *self.to, b""))
        self.say(octets, port, IcmpError(4, 11, 1, ROUTER, *self.to, b""))
        words = {(one[1], one[2]) for one in self.found()}
        self.assertEqual(
            words, {(ROUTER, "time to live exceeded"), ("127.0.0.1", "port unreachable")}
        )


class Echoes(SynchronousTestCase):
    """Real echo requests, through raw sockets, and errors about them."""

    def probe(self) -> None:
        """Send three requests of each flow to ourselves; keep what they look like."""
        sink = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.addCleanup(sink.close)
        sink.settimeout(10)
        self.prober = IcmpProber(ids=transmit_ids_supported(), chance=random.Random(1))
        self.addCleanup(self.prober.close)
        every = pairs(0, "icmp", 56, 600)
        sources = tuple(
            Source(version=4, address="127.0.0.1", interface=None, number=0, owner=str(n),
                   df=False, protocol="icmp")
            for n in range(2)
        )  # fmt: skip
        group = Group(
            test="send", probe="icmp", version=4, sources=sources, rate_pps=100, timeout_s=1.0,
            pairs=every,
        )  # fmt: skip
        ledger = Ledger(np.array([p.dscp for p in every], np.uint8), 2, 100.0, 1.0, 1.0)
        track = self.prober.track(group, ledger, np.ones(len(every), np.bool_), time.monotonic())
        track.schedule.limit = 6 * len(every)
        self.prober.arrange([track])
        track.schedule.begin(time.monotonic())
        while self.prober.sent < track.schedule.limit:
            self.prober.tick(time.monotonic(), 0.01)
            time.sleep(0.002)
        self.sent: list[bytes] = []
        while len(self.sent) < self.prober.sent:
            packet = sink.recv(2048)[20:]
            if packet[0] == 8:
                self.sent.append(packet)
        self.refusals = Refusals(track)
        self.prober.told_errors = self.refusals.error

    def say(self, request: bytes) -> None:
        """Have an error about a request reach every socket, as the kernel gives it to raw ones."""
        error = IcmpError(4, 3, 13, ROUTER, "127.0.0.1", 0, request[:32])
        for sock in self.prober.sockets.values():
            self.prober._hand_over(sock, error)

    @alone
    def test_believed(self) -> None:
        """A quote of a whole request names its class and size, once, whoever else hears of it."""
        self.probe()
        for request in self.sent * 2:
            self.say(request)
        told = [(one.pair, one.by, one.probes, one.proven) for one in self.refusals.found()]
        self.assertEqual(told, [(n, ROUTER, 6, True) for n in range(4)])
        self.assertEqual(self.refusals.forged, 0)

    @alone
    def test_forged(self) -> None:
        """No octet may be another, but of the checksum; what is of another program is no forgery."""
        self.probe()
        identifier, checksum = (4, 5), (2, 3)
        for place in set(range(24)) - set(checksum):
            changed = bytearray(self.sent[0])
            changed[place] ^= 1
            self.say(bytes(changed))
        self.assertEqual(self.refusals.found(), [])
        self.assertEqual(self.refusals.forged, 24 - len(identifier) - len(checksum))

    @alone
    def test_old_routers(self) -> None:
        """What quotes no more than identifier and number is told apart."""
        self.probe()
        self.say(self.sent[0][:8])
        bare = Refusal(None, ROUTER, "administratively prohibited", 0, 1, proven=False)
        self.assertEqual(self.refusals.found(), [bare])


class Heard(SynchronousTestCase):
    """``llama send`` on a machine where nobody answers."""

    def send(self, target: str, *arguments: str) -> dict[str, Any]:
        """Return the summary of a test."""
        words = [BIN / "llama", "send", target, "--json", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return summary

    @alone
    def test_both_families(self) -> None:
        """The host says that nobody listens, with identifiers for stamps or without."""
        for target, by in ("127.0.0.1:9", "127.0.0.1"), ("[::1]:9", "::1"):
            for stamps in "kernel", "user":
                summary = self.send(target, "-c", "3", "-i", "0.02", "-W", "0.3",
                                    "--timestamps", stamps)  # fmt: skip
                (row,) = summary["refusals"]
                self.assertEqual(
                    (row["by"], row["refusal"], row["probes"], row["proven"]),
                    (by, "port unreachable", 3, True),
                )

    @alone
    def test_without_a_reflector(self) -> None:
        """What is said of echo requests, through either kind of socket, and of SYNs is heard, too."""
        if not shutil.which("nft"):
            raise SkipTest("needs nftables")
        for rule in (
            "table inet refuse",
            "chain inet refuse input { type filter hook input priority 0; }",
            "rule inet refuse input tcp dport 9 reject with icmpx type admin-prohibited",
            "rule inet refuse input tcp dport 10 reject with icmpx type port-unreachable",
            "rule inet refuse input icmp type echo-request reject with icmpx type admin-prohibited",
            "rule inet refuse input icmpv6 type echo-request reject with icmpx type admin-prohibited",
        ):
            subprocess.run(["nft", f"add {rule}"], check=True)
        for limit in "ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit":
            Path("/proc/sys/net", limit).write_text("0")
        for groups in "1 0", "0 2147483647":  # raw sockets, and those for everybody
            Path("/proc/sys/net/ipv4/ping_group_range").write_text(groups)
            for target, by in ("127.0.0.1:9", "127.0.0.1"), ("[::1]:9", "::1"):
                for probe in "icmp", "tcp":
                    summary = self.send(target, "--probe", probe, "-c", "3", "-i", "0.02", "-f", "2",
                                        "-W", "0.3")  # fmt: skip
                    (row,) = summary["refusals"]
                    self.assertEqual(
                        (row["by"], row["refusal"], row["probes"], row["proven"]),
                        (by, "administratively prohibited", 6, True),
                    )
                    self.assertEqual(summary["total"]["lost"], 6)
        # This is a closed port as well as one that a firewall refuses: it counts, and is told.
        summary = self.send("127.0.0.1:10", "--probe", "tcp", "-c", "3", "-i", "0.02")
        (row,) = summary["refusals"]
        self.assertEqual((row["refusal"], summary["total"]["received"]), ("port unreachable", 3))

    @alone
    def test_a_flood(self) -> None:
        """Whoever knows the port keeps no probe from leaving, and nothing of his is told."""
        with flood(unreachable(40000), unreachable(40000, b"forged" * 8)):
            summary = self.send("127.0.0.1:9", "--source-port", "40000", "-c", "100", "-i", "0.01",
                                "-W", "0.5")  # fmt: skip
        self.assertEqual((summary["failed_sends"], summary["total"]["sent"]), ({}, 100))
        for row in summary["refusals"]:  # of which a full buffer may have left none
            self.assertEqual((row["by"], row["refusal"]), ("127.0.0.1", "port unreachable"))


class Told(SynchronousTestCase):
    """What is printed."""

    def result(self, *refusals: Refusal, received: tuple[int, ...] = (0, 0)) -> Result:
        """Return the result of three probes of 96 and of 1472 octets."""
        stats = np.zeros(2, STATS)
        stats["sent"], stats["received"] = 3, received
        stats["lost"] = stats["lost_unknown"] = 3 - stats["received"]
        return Result(
            pairs=pairs(8100, "stamp", 96, 1472)[:2], pair_stats=stats, flow_stats=stats,
            histogram=(np.zeros(0), np.zeros(0)), ports=[40000], notes=(), failed_sends={},
            seconds=1.0, refusals=refusals,
        )  # fmt: skip

    def text(self, result: Result) -> str:
        """Return what people read."""
        out = io.StringIO()
        wanted = Wanted(address="127.0.0.1", port=8100, sizes=(96, 1472))
        Report("127.0.0.1", wanted, out).end(result)
        return out.getvalue()

    def test_too_big(self) -> None:
        """Who says so, the MTU, and of how many; no question about a reflector."""
        large = Refusal(1, ROUTER, "packet too big", 1400, 3, proven=True)
        small = Refusal(0, ROUTER, "administratively prohibited", 0, 2, proven=True)
        text = self.text(self.result(large, small))
        self.assertIn(
            "10.9.1.1 says: packet too big (MTU 1400) for 3 of 3 probes of 1472 octets\n", text
        )
        self.assertIn(
            "10.9.1.1 says: administratively prohibited for 2 of 3 probes of 96 octets\n", text
        )
        self.assertNotIn("does a reflector run there", text)
        self.assertIn("does a reflector run there", self.text(self.result(large)))

    def test_the_target_itself(self) -> None:
        """If it says that nobody listens, the question stands; if another says so, it does not."""
        for who, asked in (("127.0.0.1", True), (ROUTER, False)):
            said = [Refusal(n, who, "port unreachable", 0, 3, proven=True) for n in range(2)]
            text = self.text(self.result(*said))
            self.assertIn(f"{who} says: port unreachable for 3 of 3 probes of 96 octets", text)
            self.assertEqual("does a reflector run there" in text, asked)

    def test_without_proof(self) -> None:
        """It is told as what it is, and explains nothing."""
        bare = Refusal(None, ROUTER, "packet too big", 0, 3, proven=False)
        text = self.text(self.result(bare))
        self.assertIn("somebody says as 10.9.1.1: packet too big; it quotes too little", text)
        self.assertIn("does a reflector run there", text)

    def test_small_ones_came_back(self) -> None:
        """Then it is no matter of the reflector, be it that nobody says what it is."""
        text = self.text(self.result(received=(3, 0)))
        self.assertNotIn("does a reflector run there", text)
        self.assertIn(
            "nothing came back of probes of 1472 octets, but of those of 96: is a link on the way"
            " too small for them?",
            text,
        )
        large = Refusal(1, ROUTER, "packet too big", 1400, 3, proven=True)
        self.assertNotIn("but of those", self.text(self.result(large, received=(3, 0))))

    def test_for_programs(self) -> None:
        """The same in JSON."""
        large = Refusal(1, ROUTER, "packet too big", 1400, 3, proven=True)
        bare = Refusal(None, ROUTER, "host unreachable", 0, 2, proven=False)
        self.assertEqual(
            summary(self.result(large, bare))["refusals"],
            [
                {"class": "BE", "size": 1472, "by": ROUTER, "refusal": "packet too big",
                 "mtu": 1400, "probes": 3, "proven": True},
                {"class": None, "size": None, "by": ROUTER, "refusal": "host unreachable",
                 "mtu": None, "probes": 2, "proven": False},
            ],
        )  # fmt: skip
