"""What a collector's own host does to probes that it had accepted is not the network's doing."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess

from attrs import evolve
from network import alone, ip
from timekeeper_case import TimekeeperCase, pair, watch_of_this_network
from twisted.trial.unittest import SkipTest

from llama.collector.host_watch import HostWatch
from llama.collector.intervals.summary import reasons, suspect_bit
from llama.net import queues


def nft(rules: str) -> str:
    """Have nftables take rules, in the network of the test, or say what it has."""
    done = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout


class OwnQueueTests(TimekeeperCase):
    """Probes are dropped between socket and driver, where the kernel calls them sent."""

    def setUp(self) -> None:
        """Be root, and have nftables."""
        if os.geteuid() or not shutil.which("nft"):
            raise SkipTest("needs root and nftables")
        super().setUp()

    def begin(self) -> None:
        """Probe a reflector in the network of this test."""
        self.answer_everywhere()
        self.patch(self.timekeeper, "_host", watch_of_this_network())  # of this network
        self.timekeeper.use([self.group(pair("127.0.0.1", self.number), rate=100)])
        self.newest(1)

    def drop(self, some: str = "") -> None:
        """Drop probes as they leave for the driver, behind the socket and its errors."""
        nft(
            "add table netdev own\n"
            "add chain netdev own out { type filter hook egress device lo priority 0; }\n"
            f"add rule netdev own out udp dport {self.number} {some} counter drop\n"
        )

    def dropped(self) -> int:
        """How many that were."""
        rules = nft("list table netdev own").split()
        return int(rules[rules.index("packets") + 1])

    @alone
    def test_refused(self) -> None:
        """What its queue or firewall drops may be what is lost: the interval is marked, and says so."""
        self.begin()
        before = self.prober.sent
        self.drop("numgen random mod 10 < 3")
        newest = self.newest(3)
        dropped = self.dropped()
        self.assertGreater(dropped, 50)
        self.assertGreater(self.prober.sent - before, 2 * dropped)
        [row] = newest.pair_stats
        self.assertGreater(int(row["lost"]), 20)
        self.assertEqual(reasons(int(row["suspect"])), ("send_failed",))
        self.assertTrue(any("datagrams of this host were dropped" in n for n in newest.notes))
        self.assertEqual(reasons(int(self.closed[0].pair_stats[0]["suspect"])), ())

    def link(self, name: str, network: str) -> None:
        """Lay a cable whose other end has no address; of the neighbour there one is known."""
        ip(f"link add {name}0 type veth peer name {name}1")
        for end in (f"{name}0", f"{name}1"):
            ip(f"link set {end} up")
        ip(f"addr add {network}.1/24 dev {name}0")
        ip(f"neigh replace {network}.2 lladdr 02:00:00:00:00:01 dev {name}0")

    def queue(self, device: str, *rules: str) -> None:
        """Have packets wait for an interface in queues by these rules."""
        for rule in rules:
            tc = ["tc", "qdisc", "add", "dev", device, *rule.split()]
            if subprocess.run(tc, capture_output=True).returncode:
                raise SkipTest("needs the queues tbf and pfifo_head_drop")

    @alone
    def test_dropped_later(self) -> None:
        """A queue may drop what it had accepted, as CoDel does: only it counts that, and it is marked."""
        self.link("v", "10.99.1")
        self.queue("v0", "root handle 1: tbf rate 64kbit burst 2kb latency 100ms",
                   "parent 1:1 handle 2: pfifo_head_drop limit 5")  # fmt: skip
        before = HostWatch()._read()
        self.patch(self.timekeeper, "_host", watch_of_this_network())
        group = self.group(pair("10.99.1.2", self.number), rate=200)  # nobody answers there
        sources = tuple(evolve(source, address=None) for source in group.sources)
        self.timekeeper.use([evolve(group, sources=sources)])
        # Where networks are taken down meanwhile, the kernel may be a second late to tell.
        self.run_until(lambda: self.closed and "send_failed" in self.reasons(self.closed[-1]))
        newest = self.closed[-1]
        self.assertEqual(HostWatch()._read(), before)
        self.assertTrue(any("datagrams of this host were dropped" in n for n in newest.notes))

    @alone
    def test_others(self) -> None:
        """Datagrams of another program that are dropped so do not mark pairs that lose nothing."""
        self.begin()
        self.drop("udp sport 9")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 9))
            for _ in range(20):
                other.sendto(b"x", ("127.0.0.1", self.number))
        self.newest(2)
        self.assertEqual(self.dropped(), 20)
        for interval in self.closed:
            [row] = interval.pair_stats
            self.assertEqual((int(row["lost"]), int(row["suspect"])), (0, 0))

    def outage(self, change: str) -> list[tuple[int, int]]:
        """Lost probes and marks, interval by interval, of a target on a link that changes for one.

        Without the marks of a test that had to wait for a processor.
        """
        self.link("v", "10.99.1")
        self.answer_everywhere()
        self.patch(self.timekeeper, "_host", watch_of_this_network())
        group = self.group(pair("10.99.1.2", self.number), rate=20)
        sources = tuple(evolve(source, address=None) for source in group.sources)
        self.timekeeper.use([evolve(group, sources=sources)])
        self.newest(1)
        ip(change)
        self.newest(2)
        rows = [interval.pair_stats[0] for interval in self.closed]
        self.assertEqual(sum(int(row["received"]) for row in rows), 0)
        waited = suspect_bit("late_ticks") | suspect_bit("cpu_starved")
        return [(int(row["lost"]), int(row["suspect"]) & ~waited) for row in rows]

    @alone
    def test_no_neighbour(self) -> None:
        """Who does not answer for its address is down: what waits for it in vain is lost, unmarked."""
        told = self.outage("neigh del 10.99.1.2 dev v0")
        self.assertEqual([mark for _, mark in told], [0, 0, 0])
        self.assertGreater(min(lost for lost, _ in told[1:]), 30)

    @alone
    def test_no_neighbour_beside_a_busy_queue(self) -> None:
        """What another program's queue drops of very many packets excuses nobody's neighbour."""
        self.link("w", "10.99.2")
        self.queue("w0", "root handle 1: tbf rate 200mbit burst 20kb latency 100ms",
                   "parent 1:1 handle 2: pfifo_head_drop limit 30")  # fmt: skip
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            tick, turns = self.timekeeper.tick, itertools.cycle([80] + [5] * 100)

            def busy() -> None:
                for _ in range(next(turns)):
                    other.sendto(bytes(1000), ("10.99.2.2", 9))
                tick()

            self.patch(self.timekeeper, "tick", busy)
            told = self.outage("neigh del 10.99.1.2 dev v0")
        ((passed, dropped),) = (line for line in queues.counts().values() if line.dropped)
        self.assertGreater(passed, 9 * dropped)
        self.assertEqual([mark for _, mark in told], [0, 0, 0])

    @alone
    def test_no_carrier(self) -> None:
        """Nor is it this host that has no link when the other end's goes down."""
        told = self.outage("link set v1 down")
        self.assertEqual([mark for _, mark in told], [0, 0, 0])
        self.assertGreater(min(lost for lost, _ in told[1:]), 30)
