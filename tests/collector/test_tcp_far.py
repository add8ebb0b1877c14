"""Connection attempts to a host that is far away: what of an earlier one arrives loses no later one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from services import BIN, until
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.lab.delay import MARK

PORT = 8100
#: It greets who connects, and hangs up.
SERVICE = f"""
import socket
with socket.create_server(("10.99.0.2", {PORT})) as server:
    while True:
        connection, _ = server.accept()
        try:
            connection.send(b"220 welcome")
        except OSError:
            pass
        connection.close()
"""


def run(*words: str, feed: str = "") -> str:
    """Run a command to its end; a failure is told with its output."""
    done = subprocess.run(words, input=feed, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


class FarTests(SynchronousTestCase):
    """A prober, a cable, and a host with a service that speaks first."""

    def setUp(self) -> None:
        """Make two namespaces."""
        if os.geteuid() or not all(map(shutil.which, ("ip", "nft"))):
            raise SkipTest("needs root, iproute2 and nftables")
        mark = f"llf{os.getpid() % 100000}"
        self.here, self.far = mark + "h", mark + "f"
        for name in (self.here, self.far):
            run("ip", "netns", "add", name)
            self.addCleanup(run, "ip", "netns", "del", name)
        run("ip", "-n", self.here, "link", "add", "eth0", "type", "veth", "peer", "eth0",
            "netns", self.far)  # fmt: skip
        for name, number in ((self.here, 1), (self.far, 2)):
            run("ip", "-n", name, "address", "add", f"10.99.0.{number}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        self.start(self.far, sys.executable, "-c", SERVICE)
        until(lambda: f":{PORT}" in self.inside(self.far, "ss", "-lnt"), "the service")

    def start(self, namespace: str, *words: str) -> None:
        """Start a program in a namespace, until the test ends."""
        program = subprocess.Popen(["ip", "netns", "exec", namespace, *words])
        self.addCleanup(program.wait)
        self.addCleanup(program.terminate)

    def inside(self, namespace: str, *words: str, feed: str = "") -> str:
        """Run a command in a namespace."""
        return run("ip", "netns", "exec", namespace, *words, feed=feed)

    def rule(self, hook: str, rule: str) -> None:
        """Have a netdev hook of our end of the cable do something."""
        self.inside(self.here, "nft", "-f", "-", feed=(
            "add table netdev t\n"
            f"add chain netdev t c {{ type filter hook {hook} device eth0 priority 0; }}\n"
            f"add rule netdev t c {rule}\n"
        ))  # fmt: skip

    def send(self, *options: str) -> dict[str, Any]:
        """Return the summary of ``llama send``."""
        told = self.inside(
            self.here, str(BIN / "llama"), "send", f"10.99.0.2:{PORT}", "--probe", "tcp", "--json",
            *options,
        )  # fmt: skip
        summary: dict[str, Any] = json.loads(told.splitlines()[-1])
        return summary

    def test_a_service_that_speaks_first(self) -> None:
        """A long round trip alone loses nothing, though attempts are due before all of the last came."""
        self.inside(self.here, "ip", "tuntap", "add", "name", "tap0", "mode", "tap")
        self.inside(self.here, "sysctl", "-q", "net.ipv6.conf.tap0.disable_ipv6=1")
        self.inside(self.here, "ip", "link", "set", "tap0", "up")
        self.start(self.here, sys.executable, "-m", "llama.lab.delay", "eth0", "tap0", "150", "0")
        until(lambda: "LOWER_UP" in self.inside(self.here, "ip", "link", "show", "tap0"), "it")
        self.rule("egress", f'meta mark != {MARK} fwd to "tap0"')
        summary = self.send("--flows", "4", "-c", "16", "-i", "0.2")
        (pair,) = summary["pairs"]
        self.assertGreaterEqual(pair["sent"], 16)
        self.assertEqual((pair["received"], pair["lost"]), (pair["sent"], 0))
        self.assertGreater(pair["rtt_min_ns"], 150e6)
        self.assertEqual(set(summary["failed_sends"]), {"EALREADY"})

    def test_an_answer_is_lost(self) -> None:
        """It costs one probe: the next one meets what was left at the other end, and counts."""
        flags = "tcp flags & (syn | ack) == syn | ack"
        self.rule("ingress", f"tcp sport {PORT} {flags} numgen inc mod 1000 == 2 counter drop")
        summary = self.send("-c", "80", "-i", "0.03")
        self.assertIn("packets 1 ", self.inside(self.here, "nft", "list", "table", "netdev", "t"))
        (pair,) = summary["pairs"]
        self.assertGreaterEqual(pair["sent"], 10)
        self.assertEqual((pair["lost"], pair["suspect"]), (1, []))
