"""Replies in fragments that this host cannot put together, beside such as the network lost."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from network import alone, ip
from timekeeper_case import TimekeeperCase, pair, watch_of_this_network
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.collector.host_watch import NOTE, HostWatch, _growth, _Look
from llama.collector.intervals.summary import reasons
from llama.net import queues
from llama.net.queues import Line

IPV4 = Path("/proc/sys/net/ipv4")


class FragmentsTests(TimekeeperCase):
    """Probes of two sizes over a loopback with an MTU of 1,500 octets."""

    def probe(self) -> None:
        """Have both probed."""
        ip("link set lo mtu 1500")
        self.answer_everywhere()
        self.patch(self.timekeeper, "_host", watch_of_this_network())  # of this network
        small, large = (pair("127.0.0.1", self.number, size=size) for size in (96, 3000))
        self.timekeeper.use([self.group(small, large)])
        self.newest(2)

    def check(self, *expected: tuple[str, ...]) -> None:
        """The newest interval has these marks of small and large probes; only large ones are lost."""
        stats = self.closed[-1].pair_stats
        marks = [
            tuple(name for name in reasons(int(row["suspect"])) if name == "receive_drops")
            for row in stats
        ]
        self.assertEqual(marks, list(expected))
        self.assertEqual(stats["lost"].tolist(), [0, stats["sent"][1]])
        self.assertGreater(stats["sent"][1], 0)

    @alone
    def test_no_memory(self) -> None:
        """What the kernel may not keep marks what may have been in fragments, and that alone."""
        for name in ("ipfrag_low_thresh", "ipfrag_high_thresh"):
            (IPV4 / name).write_text("1")
        self.probe()
        self.check((), ("receive_drops",))
        self.assertIn(NOTE, self.closed[-1].notes)

    @alone
    def test_lost_on_the_way(self) -> None:
        """A fragment that never came is the network's loss, also when the kernel gives the rest up."""
        if not shutil.which("nft"):
            raise SkipTest("needs nftables")
        (IPV4 / "ipfrag_time").write_text("1")
        rules = "add table ip t; add chain ip t c { type filter hook prerouting priority -450; }; "
        rules += "add rule ip t c ip frag-off & 0x1fff != 0 drop"
        subprocess.run(["nft", rules], check=True)
        self.probe()
        self.newest(2)
        names, values = Path("/proc/thread-self/net/snmp").read_text().splitlines()[:2]
        counts = dict(zip(names.split(), values.split(), strict=True))
        self.assertNotEqual(counts["ReasmFails"], "0")
        self.check((), ())


class BacklogTests(TimekeeperCase):
    """Packets to this host that the kernel drops before it looks whose they are."""

    def test_marks_what_may_have_been_hit(self) -> None:
        """Pairs of which replies may be among them are marked, and none that lost more than that."""
        share, passed, dropped, when_s = 0.0, 1e6, 255.0, time.monotonic()

        def read(name: str) -> str:
            nonlocal passed, dropped, when_s
            if name != "softnet_stat":
                raise FileNotFoundError(name)
            packets, when_s = 1e6 * (time.monotonic() - when_s), time.monotonic()
            passed += packets * (1 - share)
            dropped += packets * share
            return f"{int(passed):08x} {int(dropped):08x} 00000000\n{9:08x} {7:08x} 00000000\n"

        self.patch(self.timekeeper, "_host", HostWatch(read, dict))
        pairs = pair("127.0.0.1", self.number), pair("127.0.0.1", 9)  # nobody answers there
        self.timekeeper.use([self.group(*pairs)])
        # Not by few packets, nor by many of very many, is that excused that everything is lost.
        for drops, marks in ((0.0, [False] * 2), (3e-6, [False] * 2), (1e-3, [False] * 2),
                             (0.5, [False, True])):  # fmt: skip
            share = drops
            closed = self.newest(2)
            found = ["receive_drops" in reasons(int(bits)) for bits in closed.pair_stats["suspect"]]
            self.assertEqual(closed.pair_stats["lost"].astype(bool).tolist(), [False, True])
            self.assertEqual(found, marks)
        self.assertTrue(any("packets found no room" in note for note in closed.notes))


class CountersTests(SynchronousTestCase):
    """What the kernel says."""

    def test_interfaces_come_and_go(self) -> None:
        """What a line has dropped before it was looked at is nothing new, and hides nothing either."""
        one, other = (1, 0), (2, 0)
        looks: list[dict[tuple[int, int], Line]] = [
            {one: Line(9000, 5000), other: Line(10, 3)},
            {other: Line(20, 43)},
            {one: Line(9000, 5000), other: Line(30, 43)},
            {one: Line(10, 1), other: Line(40, 43)},
            {one: Line(19, 2), other: Line(50, 43)},
        ]
        growths = [
            _growth(_Look(n, before), _Look(n + 2, now))
            for n, (before, now) in enumerate(pairwise(looks))
        ]
        self.assertEqual(growths, [(40, 2 * 0.8), (0, 0.0), (0, 0.0), (1, 2 * 0.1)])

    @alone
    def test_counters_of_queues(self) -> None:
        """Of every interface's own queue the kernel tells what tc tells."""
        ip("link add v0 type veth peer name v1")
        tc = ["tc", "qdisc", "add", "dev", "v0", "root", "pfifo", "limit", "1"]
        if subprocess.run(tc, capture_output=True).returncode:
            raise SkipTest("needs the queue pfifo")
        self.assertIn(Line(0, 0), queues.counts().values())

    def ask(self, watch: HostWatch) -> None:
        """Have a watch ask for queues, and take the answer."""
        watch.check([])
        assert watch._asked is not None
        watch._asked.result()
        watch.check([])

    def test_no_thread(self) -> None:
        """Where no thread can be had, queues are not looked at, and nothing else minds."""
        watch = HostWatch(read_queues=lambda: {"eth0": Line(0, 0)})
        pools = []

        class Full(ThreadPoolExecutor):
            def submit(self, *_: object, **__: object) -> Future[Any]:
                pools.append(self)
                raise RuntimeError("can't start new thread")

        usual = watch._new_threads
        watch._threads = Full(1)
        self.patch(watch, "_new_threads", lambda: Full(1))
        for _ in range(3):
            watch.check([])
        self.assertEqual(
            len(set(map(id, pools))), 3
        )  # what was asked in vain waits in none of them
        watch._threads = usual()
        self.ask(watch)
        self.assertIsNotNone(watch._queues)

    def test_answers_that_make_no_sense(self) -> None:
        """What cannot be read of the kernel's answers is not known."""
        for error in (struct.error, KeyError, ValueError, OSError):

            def broken(error: type[Exception] = error) -> dict[str, Line]:
                raise error("no such answer")

            watch = HostWatch(read_queues=broken)
            self.ask(watch)
            self.assertIsNone(watch._queues)

    def test_a_mistake_of_ours(self) -> None:
        """What nobody foresaw fails once, not for good: intervals wait for what is asked here."""

        def broken() -> dict[str, Line]:
            raise MemoryError

        watch = HostWatch(read_queues=broken)
        watch.check([])
        assert watch._asked is not None
        watch._asked.exception()
        watch._read_queues = lambda: {"eth0": Line(0, 0)}
        self.assertRaises(MemoryError, watch.check, [])
        self.ask(watch)
        self.assertIsNotNone(watch._queues)

    def test_not_there(self) -> None:
        """Without counters, of IPv6 or at all, nothing is known to fail."""
        files: dict[str, str] = {}

        def read(name: str) -> str:
            if name not in files:
                raise FileNotFoundError(name)
            return files[name]

        watch = HostWatch(read)
        self.assertEqual(watch._last, {})
        files["snmp"] = (
            "Ip: ReasmTimeout ReasmFails\nIp: 3 7\nUdp: InErrors SndbufErrors\nUdp: 2 5\n"
        )
        watch.check([])
        self.assertEqual(watch._last, {4: (4, 5)})
        files["snmp"] = "something else"
        watch.check([])
        self.assertEqual(watch._last, {})
