"""A router that changes traffic classes, in network namespaces: it is named, with its direction."""

from __future__ import annotations

import os
import shutil
import subprocess
import unittest

from servers import free_udp_port
from services import BIN
from twisted.trial.unittest import SynchronousTestCase


def run(*words: str) -> str:
    """Run a command to its end; a failure is told with its output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


class RemarkingTests(SynchronousTestCase):
    """A sender, a router and a reflector."""

    def setUp(self) -> None:
        """Make three namespaces in a row, and a reflector at the end."""
        if os.geteuid() or not shutil.which("nft") or not shutil.which("ip"):
            raise unittest.SkipTest("needs root, iproute2 and nftables")
        mark = f"llt{os.getpid() % 100000}"
        self.sender, self.router, self.far = (f"{mark}{end}" for end in "srf")
        for name in (self.sender, self.router, self.far):
            run("ip", "netns", "add", name)
            self.addCleanup(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for end, name, net in ((self.sender, "near", 1), (self.far, "away", 2)):
            run("ip", "-n", self.router, "link", "add", name, "type", "veth", "peer", "eth0",
                "netns", end)  # fmt: skip
            run("ip", "-n", self.router, "address", "add", f"10.99.{net}.1/24", "dev", name)
            run("ip", "-n", self.router, "link", "set", name, "up")
            run("ip", "-n", end, "address", "add", f"10.99.{net}.2/24", "dev", "eth0")
            run("ip", "-n", end, "link", "set", "eth0", "up")
            run("ip", "-n", end, "route", "add", "default", "via", f"10.99.{net}.1")
        self.inside(self.router, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        self.port = free_udp_port()
        reflector = subprocess.Popen(
            ["ip", "netns", "exec", self.far, BIN / "llama", "reflect", "--port", str(self.port)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.addCleanup(reflector.wait)
        self.addCleanup(reflector.terminate)
        assert reflector.stdout is not None
        self.addCleanup(reflector.stdout.close)
        self.assertIn("answering", reflector.stdout.readline())

    def inside(self, namespace: str, *words: str) -> str:
        """Run a command in a namespace."""
        return run("ip", "netns", "exec", namespace, *words)

    def send(self) -> str:
        """What ``llama send`` says of sixteen flows in two classes."""
        return self.inside(
            self.sender, str(BIN / "llama"), "send", f"10.99.2.2:{self.port}", "--flows", "16",
            "--dscp", "EF,BE", "--count", "3", "--interval", "0.1",
        )  # fmt: skip

    def bleach(self, interface: str) -> None:
        """Have the router set to zero the class of what comes in at ``interface``."""
        self.inside(
            self.router, "nft", "add table ip t; add chain ip t f"
            " { type filter hook forward priority 0; };"
            f" add rule ip t f iifname {interface} ip dscp set cs0",
        )  # fmt: skip

    def test_untouched(self) -> None:
        """Nothing is said where nothing is changed."""
        self.assertNotIn("class:", self.send())

    def test_bleached_on_the_way_there(self) -> None:
        """Probes whose class is taken away are told as such, forward, and no other."""
        self.bleach("near")
        told = self.send()
        self.assertIn("forward: EF arrives at the reflector as BE (bleached, 48 of 48)", told)
        self.assertNotIn("reverse:", told)
        self.assertEqual(told.count("class:"), 1)

    def test_bleached_on_the_way_back(self) -> None:
        """Replies whose class is taken away are told as such, reverse, and no other."""
        self.bleach("away")
        told = self.send()
        self.assertIn("reverse: replies come back as BE (bleached, 48 of 48)", told)
        self.assertNotIn("forward: EF", told)
        self.assertEqual(told.count("class:"), 1)
