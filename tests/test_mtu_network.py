"""Probes that are too large for a link, beside others from the same socket, in a real fabric."""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llama.collector.summary import suspect_bit
from llama.lab import hosts
from llama.lab.fabric import Fabric
from llama.lab.hosts import Traffic
from llama.lab.namespaces import Lab, clear

NEEDS = (
    None
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "sysctl")))
    else "needs root, iproute2, procps and nftables"
)
PATIENCE_S = 60.0


class TooLargeTests(SynchronousTestCase):
    skip = NEEDS

    def setUp(self):
        """Have two hosts, and a router in between that says what it cannot forward."""
        run = tempfile.TemporaryDirectory()
        self.addCleanup(run.cleanup)
        name = f"mtu{os.getpid()}"
        self.addCleanup(clear, name, Path(run.name))
        self.lab = Lab.build(name, Fabric(2, 1, 1), Path(run.name))
        (cable,) = (link for link in self.lab.fabric.links if link.nodes == ("leaf2", "h2-1"))
        for end in (cable.a, cable.b):
            self.lab.run(end.node, "ip", "link", "set", "dev", end.interface, "mtu", "1300")
        for sysctl in ("net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=10000"):
            self.lab.run("leaf2", "sysctl", "-q", "-w", sysctl)
        hosts.start_reflector(self.lab, "h2-1")
        traffic = Traffic(interval_s=2, flows=2, rate_pps=20.0, sizes=(96, 1400))
        hosts.start_collector(self.lab, "h1-1", traffic)

    def get(self, path):
        """Return what the collector answers."""
        url = f"http://{self.lab.fabric.management_address('h1-1')}:{hosts.COLLECTOR_PORT}{path}"
        program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
        return json.loads(self.lab.run("h1-1", sys.executable, "-c", program, url))

    def intervals(self, size):
        """Return the figures of all intervals of probes of that size, the first left out."""
        points = [
            point
            for point in self.get("/influxdata?since=")
            if point["measurement"] == "raw_stats" and point["tags"]["size"] == str(size)
        ]
        points.sort(key=lambda point: point["time"])
        return [point["fields"] for point in points[1:]]

    def test_small_probes_do_not_suffer(self):
        """Large ones are lost, and the errors about them keep no small one from leaving.

        Nor when the collector's traces have the kernel tell errors at the socket of both.
        """
        send_failed = suspect_bit("send_failed")
        end = time.monotonic() + PATIENCE_S
        large = []
        while time.monotonic() < end:
            time.sleep(0.5)
            try:
                large = self.intervals(1400)
            except Exception:  # it does not listen yet
                continue
            health = [
                point["fields"]
                for point in self.get("/influxdata?since=")
                if point["measurement"] == "collector_stats"
            ]
            if len(large) >= 4 and health[-1]["trace_packets_total"] > 0:
                break
        self.assertGreaterEqual(len(large), 4)
        self.assertGreater(health[-1]["trace_packets_total"], 0)
        for fields in large:
            self.assertEqual(fields["received"], 0)
        for fields in self.intervals(96):
            self.assertEqual((fields["lost"], int(fields["suspect"]) & send_failed), (0, 0), fields)
            self.assertGreater(fields["sent"], 0)
