"""Probes that are too large for a link, beside others from the same socket, in a real fabric."""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import suspect_bit
from llama.lab import hosts
from llama.lab.fabric import MANAGEMENT, Fabric
from llama.lab.hosts import Traffic
from llama.lab.namespaces import Lab, LabError, clear

NEEDS = (
    None
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "sysctl")))
    else "needs root, iproute2, procps and nftables"
)
PATIENCE_S = 60.0


class Narrow(SynchronousTestCase):
    """Two hosts, the link to one of which is too small for some probes."""

    skip = NEEDS

    def setUp(self):
        """Have two hosts, and a router in between that says what it cannot forward."""
        run = tempfile.TemporaryDirectory()
        self.addCleanup(run.cleanup)
        name = f"mtu{os.getpid()}"
        self.addCleanup(clear, name, Path(run.name))
        self.lab = Lab.build(name, Fabric(2, 1, 1), Path(run.name))
        self.set_mtu(1300)
        for sysctl in ("net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=10000"):
            self.lab.run("leaf2", "sysctl", "-q", "-w", sysctl)
        hosts.start_reflector(self.lab, "h2-1")

    def set_mtu(self, octets):
        """Have packets of at most so many octets fit through the link to h2-1."""
        (cable,) = (link for link in self.lab.fabric.links if link.nodes == ("leaf2", "h2-1"))
        for end in (cable.a, cable.b):
            self.lab.run(end.node, "ip", "link", "set", "dev", end.interface, "mtu", str(octets))

    def router(self):
        """Return the address that leaf2 answers from."""
        names = self.lab.fabric.names()
        shown = self.lab.run("leaf2", "ip", "-o", "-4", "route", "get",
                             str(self.lab.fabric.address("h1-1")))  # fmt: skip
        address = shown.split(" src ")[1].split()[0]
        self.assertEqual(names[address], "leaf2")
        return address


class SendTests(Narrow):
    def send(self, *arguments):
        """Return what a test of three probes a size from h1-1 to h2-1 prints."""
        llama = str(Path(sys.executable).parent / "llama")
        address = str(self.lab.fabric.address("h2-1"))
        words = (llama, "send", address, "-c", "3", "-i", "0.3", *arguments)
        return self.lab.run("h1-1", *words, check=False)

    def test_told_by_the_router(self):
        """What it says of large probes, or of all, is told, and no reflector asked after."""
        said = "says: packet too big (MTU 1300) for 3 of 3 probes of 1400 octets"
        for sizes in ("1400", "96,1400"):
            text = self.send("-s", sizes, "--df")
            self.assertIn(f"{self.router()} {said}", text)
            self.assertNotIn("does a reflector run there", text)
            self.assertNotIn("not sent", text)
        self.assertIn("3 sent, 3 received", text)
        summary = json.loads(self.send("-s", "1400", "--df", "--json").splitlines()[-1])
        self.assertEqual(
            summary["refusals"],
            [{"class": "BE", "size": 1400, "by": self.router(), "refusal": "packet too big",
              "mtu": 1300, "probes": 3, "proven": True}],
        )  # fmt: skip
        text = self.send("--probe", "icmp", "-s", "1400", "--df")
        self.assertIn(f"{self.router()} {said}", text)
        llama = str(Path(sys.executable).parent / "llama")
        trace = (llama, "trace", str(self.lab.fabric.address("h2-1")), "--flows", "2", "--no-dns")
        text = self.lab.run("h1-1", *trace, "--size", "1400", "--df", check=False)
        self.assertIn(f"packet too big, says {self.router()}\n", text)
        self.assertIn("0 flows reached", text)
        reject(self.lab)
        text = self.send()
        said = "says: administratively prohibited for 3 of 3 probes of 96 octets"
        self.assertIn(f"{self.router()} {said}", text)
        self.assertNotIn("does a reflector run there", text)
        for probe in ("icmp", "tcp"):
            text = self.send("--probe", probe)
            said = "says: administratively prohibited for 3 of 3 probes of"
            self.assertIn(f"{self.router()} {said}", text)
            self.assertIn("3 sent, 0 received", text)
            self.assertNotIn("is the host up", text)
        text = self.lab.run("h1-1", *trace, check=False)
        self.assertIn(f"administratively prohibited, says {self.router()}\n", text)
        self.assertNotIn("is a reflector running there", text)


def reject(lab):
    """Have leaf2 refuse all probes that it should forward."""
    chain = "add chain ip refuse forward { type filter hook forward priority 0; }"
    probes = f"{{ udp . {hosts.REFLECTOR_PORT}, tcp . {hosts.REFLECTOR_PORT} }}"
    for what in (f"meta l4proto . th dport {probes}", "icmp type echo-request"):
        rule = f"add rule ip refuse forward {what} reject with icmp type admin-prohibited"
        lab.run("leaf2", "nft", f"add table ip refuse; {chain}; {rule}")


class TooLargeTests(Narrow):
    def setUp(self):
        """Have a collector probe through it, in both sizes."""
        super().setUp()
        traffic = Traffic(interval_s=2, flows=16, rate_pps=10.0, sizes=(96, 1400))
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
            except LabError:  # it does not listen yet
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
        self.what_the_router_said()
        self.set_mtu(1500)
        end = time.monotonic() + PATIENCE_S
        while "no longer refuses" not in self.log() and time.monotonic() < end:
            time.sleep(0.5)
        self.assertIn(f"{self.router()} no longer refuses ", self.log())

    def log(self):
        """Return what the collector has logged."""
        return (self.lab.directory / "h1-1-collector.log").read_text()

    def what_the_router_said(self):
        """It is one hop, its refusal stands beside the path, and beside what is suspected."""
        end = time.monotonic() + PATIENCE_S
        paths, large = [], []
        while time.monotonic() < end and (len(large) < 2 or len(paths) < len(large) + 16):
            time.sleep(0.5)
            paths = self.get("/paths")["paths"]
            large = [row for row in paths if row["size_octets"] == 1400]
        for row in large:
            self.assertEqual((row["refusal"], row["refused_by"]), ("packet too big", self.router()))
            self.assertEqual(
                (row["reach"], row["hops"][2], row["changed"]), (3, self.router(), None)
            )
            self.assertEqual(len(set(row["hops"])), len(row["hops"]))
        self.assertIn(f"{self.router()} refuses {large[0]['source_port']} to", self.log())
        self.assertNotIn("is another", self.log())
        llama = str(Path(sys.executable).parent / "llama")
        url = f"http://{self.lab.fabric.management_address('h1-1')}:{hosts.COLLECTOR_PORT}"
        names = str(hosts.write_names(self.lab))
        words = (llama, "pinpoint", "--once", "--json", "--names", names, url)
        (suspect,) = json.loads(self.lab.run(MANAGEMENT, *words))
        self.assertEqual(suspect["direction"], "forward")
        self.assertIn("explains 16 of 16 lossy flows", suspect["evidence"])
        self.assertTrue(suspect["evidence"].endswith("; leaf2 refuses them: packet too big"))
        refusal = {"by": "leaf2", "refusal": "packet too big", "refused": 16}
        self.assertEqual((suspect["refusals"], suspect["name"]), ([refusal], "size 1400"))
