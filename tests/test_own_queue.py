"""What a collector's own host does to probes that it had accepted is not the network's doing."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from engine_case import EngineCase, pair
from network import alone
from twisted.trial.unittest import SkipTest

from llama.collector.closing import NEVER_LEFT
from llama.collector.summary import reasons


def nft(rules: str) -> str:
    """Have nftables take rules, in the network of the test, or say what it has."""
    done = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout


class OwnQueueTests(EngineCase):
    """Probes are dropped between socket and driver, where the kernel calls them sent."""

    def setUp(self) -> None:
        """Be root, and have nftables."""
        if os.geteuid() or not shutil.which("nft"):
            raise SkipTest("needs root and nftables")
        super().setUp()

    def begin(self) -> None:
        """Probe a reflector in the network of this test."""
        self.answer_everywhere()
        self.engine.use([self.group(pair("127.0.0.1", self.number), rate=100)])
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

    def figures(self, *names: str) -> list[tuple[Any, ...]]:
        """Figures of the one pair, interval by interval."""
        return [tuple(int(i.pair_stats[0][n]) for n in names) for i in self.closed]

    @alone
    def test_some(self) -> None:
        """Probes that its queue or firewall drops count as not sent, and mark the interval."""
        self.begin()
        before = self.prober.sent
        self.drop("numgen random mod 10 < 3")
        self.newest(3)
        dropped = self.dropped()
        self.assertGreater(dropped, 50)
        self.assertGreater(self.prober.sent - before, 2 * dropped)
        for sent, received, lost in self.figures("sent", "received", "lost"):
            self.assertEqual((received, lost), (sent, 0))
        newest = self.closed[-1]
        self.assertLess(int(newest.pair_stats[0]["sent"]), 180)  # of 200
        self.assertEqual(reasons(int(newest.pair_stats[0]["suspect"])), ("send_failed",))
        self.assertIn(NEVER_LEFT, newest.notes)
        self.assertEqual(reasons(int(self.closed[0].pair_stats[0]["suspect"])), ())

    @alone
    def test_direction_of_others(self) -> None:
        """Nor do they look like loss on the way there beside what really is lost on the way back."""
        self.begin()
        nft(
            "add table ip back\n"
            "add chain ip back in { type filter hook input priority 0; }\n"
            f"add rule ip back in udp sport {self.number} numgen random mod 10 < 1 drop\n"
        )
        self.drop("numgen random mod 10 < 1")
        self.newest(4)
        told = self.figures("lost", "lost_forward", "lost_reverse")[1:]
        self.assertEqual(sum(forward for _, forward, _ in told), 0)
        self.assertGreater(sum(lost for lost, _, _ in told), 30)
        self.assertGreater(sum(reverse for _, _, reverse in told), 20)

    @alone
    def test_all(self) -> None:
        """Where none gets a stamp any more, nobody knows: they are lost, and the interval is marked."""
        self.begin()
        self.drop()
        newest = self.newest(3)
        row = newest.pair_stats[0]
        self.assertEqual(int(row["lost"]), int(row["sent"]))
        self.assertGreater(int(row["sent"]), 150)
        self.assertEqual(reasons(int(row["suspect"])), ("send_failed",))
