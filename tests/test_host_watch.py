"""Replies in fragments that this host cannot put together, beside such as the network lost."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from network import alone, ip
from timekeeper_case import TimekeeperCase, pair
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.collector.host_watch import NOTE, HostWatch
from llama.collector.intervals.summary import reasons

IPV4 = Path("/proc/sys/net/ipv4")


class FragmentsTests(TimekeeperCase):
    """Probes of two sizes over a loopback with an MTU of 1,500 octets."""

    def probe(self) -> None:
        """Have both probed."""
        ip("link set lo mtu 1500")
        self.answer_everywhere()
        self.patch(self.timekeeper, "_host", HostWatch())  # of this network
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
        """Pairs of which replies may be among them, and no others."""
        dropped = [7, 255]

        def read(name: str) -> str:
            if name != "softnet_stat":
                raise FileNotFoundError(name)
            return "".join(f"{1 << 20:08x} {drops:08x} 00000000\n" for drops in dropped)

        self.patch(self.timekeeper, "_host", HostWatch(read))
        pairs = pair("127.0.0.1", self.number), pair("127.0.0.1", 9)  # nobody answers there
        self.timekeeper.use([self.group(*pairs)])
        self.newest(2)
        self.assertNotIn("receive_drops", self.reasons(self.closed[-1]))
        dropped[1] += 3
        closed = self.newest(1)
        marks = ["receive_drops" in reasons(int(bits)) for bits in closed.pair_stats["suspect"]]
        self.assertEqual(closed.pair_stats["lost"].astype(bool).tolist(), [False, True])
        self.assertEqual(marks, [False, True])
        self.assertTrue(any(note.startswith("3 packets found no room") for note in closed.notes))


class CountersTests(SynchronousTestCase):
    """What the kernel says."""

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
