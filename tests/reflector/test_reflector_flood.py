"""A real reflector under floods of forged packets, in a network of their own.

The packets come from ``benchmarks/c/spoof.c`` over a veth pair; needs root, iproute2 and a C compiler.
What is tried here in seconds, ``python -m benchmarks hostile`` tries with ten million sources.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack
from typing import Any

from benchmark_programs import compiled, directory_for
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks import hostile
from benchmarks.programs import BenchmarkError

#: More than this, in MB, no number of sources may take once the tables have been full.
MOST_MB = 2.0


class AskingTests(SynchronousTestCase):
    """What is taken from outside is worth something only where it can fail."""

    def asked(self, *, listens: bool) -> hostile.Siege:
        """Return a siege of something that never answers, or takes no connection."""
        directory = directory_for(self)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(listening.close)
        listening.bind(str(directory / "api.sock"))
        if listens:
            listening.listen(8)
        nothing: Any = None
        return hostile.Siege({}, directory, nothing, nothing, patience_s=0.05)

    def test_metrics_that_hang_are_seen(self) -> None:
        """A request that was given up counts with its time, and fails the attack it was made in."""
        for listens, least in ((True, 0.05), (False, 0.0)):  # never answers; takes no connection
            siege = self.asked(listens=listens)
            with self.assertRaises(BenchmarkError) as caught, siege.asking(0.01):
                pass
            self.assertIn("/metrics did not answer under attack", str(caught.exception))
            self.assertEqual(1, len(siege.took_s))
            self.assertGreaterEqual(siege.took_s[0], least)
            self.assertRaises(OSError, siege.counts)
            self.assertEqual(2, len(siege.took_s))


class SpoofTests(SynchronousTestCase):
    def test_nobody_else_is_attacked(self) -> None:
        """The program that forges packets sends them to no network but the tests' own."""
        program = str(compiled()["spoof"])
        for host in ("192.0.2.1", "10.99.0.4", "10.98.255.255", "128.0.0.1", "0.0.0.0"):
            done = subprocess.run(
                [program, "--host", host, "--port", "9", "--count", "0"],
                capture_output=True, text=True,
            )  # fmt: skip
            self.assertEqual((2, ""), (done.returncode, done.stdout))
            self.assertIn(f"--host {host}: forged probes go to", done.stderr)
        for host in ("127.0.0.1", "127.255.0.1"):
            done = subprocess.run(
                [program, "--host", host, "--port", "9", "--count", "0"],
                capture_output=True, text=True,
            )  # fmt: skip
            self.assertNotIn("--host", done.stderr)


class SiegeCase(SynchronousTestCase):
    further = ""

    def setUp(self) -> None:
        """Start a reflector behind a cable and have every table of it full."""
        if os.geteuid():
            raise SkipTest("forged packets and network namespaces need root")
        for tool in ("ip", "sysctl", "tcpdump"):
            if shutil.which(tool) is None:
                raise SkipTest(f"needs {tool}: apt install iproute2 procps tcpdump")
        with ExitStack() as stack:
            self.siege = stack.enter_context(
                hostile.siege(compiled(), directory_for(self), self.further)
            )
            self.addCleanup(stack.pop_all().close)
        self.siege.attack("to fill the tables", "--count", 90_000, "--first", "10.200.0.0")

    def look_at(self, row: dict[str, Any]) -> dict[str, float]:
        """Check what holds of any attack; return the reflector's counts of it."""
        counts: dict[str, float] = row["counts"]
        answered = counts[hostile.ANSWERED]
        dropped = sum(n for name, n in counts.items() if name.startswith("dropped_total"))
        self.assertEqual(counts["received_total"], answered + dropped)
        self.assertEqual(row["sent"], counts["received_total"] + counts["receive_drops_total"])
        # What it says it answered is on the wire; ARP and IPv6 add a few packets.
        self.assertTrue(0 <= row["replies"] - answered <= 30, (row["replies"], answered))
        self.assertLess(row["after"] - row["MB before"], MOST_MB)
        self.assertGreater(row["asked"], 2)  # /metrics answered, again and again, all the while
        return counts

    def end_it(self) -> None:
        """See it end in the midst of a flood, by itself and as it was told."""
        _, status = self.siege.stop_under()
        self.assertEqual(-signal.SIGTERM, status)


class SpoofedTests(SiegeCase):
    def test_sources_take_no_memory(self) -> None:
        """Hundreds of thousands of forged sources are answered and forgotten, and leave no trace."""
        row = self.siege.attack("sources", "--count", 250_000, "--rate", 50_000)
        counts = self.look_at(row)
        self.assertEqual(250_000, row["sources"])
        # Each is a session of its own, and there is room for 65,536.
        self.assertEqual(
            counts[hostile.ANSWERED], counts["sessions"] + counts["sessions_evicted_total"]
        )
        self.assertLessEqual(self.siege.counts()["sessions"], 65_536)

    def test_a_flood_without_limits(self) -> None:
        """Of twice what it can answer it answers what it can, and says the kernel dropped the rest."""
        row = self.siege.attack("flood", "--seconds", 2)
        counts = self.look_at(row)
        self.assertGreater(counts["receive_drops_total"], 0)
        self.assertGreater(counts[hostile.ANSWERED], 10_000)
        self.end_it()


class LimitedTests(SiegeCase):
    further = "limits: {pps: 5000, pps_per_source: 100}\n"

    def test_a_flood_with_limits(self) -> None:
        """It answers as many as its limits allow, and counts the others, whoever they come from."""
        row = self.siege.attack("forged", "--seconds", 2)
        counts = self.look_at(row)
        answered = counts[hostile.ANSWERED]
        # Over any stretch of time the rate, and the burst once; a fifth of it on a slow day.
        self.assertLessEqual(answered, 5000 * (1 + row["seconds"] + 1))
        self.assertGreater(answered, 1000 * row["seconds"])
        refused = counts['dropped_total{reason="total_rate"}']
        self.assertGreater(refused, answered)
        self.assertEqual(counts["limited_total"], refused)
        row = self.siege.attack("few", "--seconds", 1, "--sources", 5, "--first", "10.50.0.0")
        counts = self.look_at(row)
        # The burst of 100 and 100 replies/s for each of the five.
        self.assertLessEqual(counts[hostile.ANSWERED], 5 * 100 * (1 + row["seconds"] + 1))
        self.assertGreater(counts[hostile.ANSWERED], 0)
        self.assertGreater(counts['dropped_total{reason="source_rate"}'], 0)
        self.end_it()
