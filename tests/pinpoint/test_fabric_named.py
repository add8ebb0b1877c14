"""The whole way in a real fabric: probes, traces and judgements name the link that is broken."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from llama.lab import faults, hosts, truth
from llama.lab.fabric import MANAGEMENT, Fabric
from llama.lab.faults import Fault
from llama.lab.hosts import Traffic
from llama.lab.namespaces import Lab, clear
from llama.lab.scenario import Judgements

pytestmark = pytest.mark.quiet

NEEDS = (
    None
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "sysctl")))
    else "needs root, iproute2, procps and nftables"
)
#: Long enough for a machine that is busy with other tests.
PATIENCE_S = 120.0


class Named(SynchronousTestCase):
    skip = NEEDS
    lab = None

    def setUp(self):
        """Build a fabric with everything that runs on it."""
        self.run_directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.run_directory.cleanup)
        run = Path(self.run_directory.name)
        name = f"named{os.getpid()}"
        self.addCleanup(clear, name, run)
        self.lab = Lab.build(name, Fabric(3, 2, 1), run)
        self.traffic = Traffic(interval_s=2, flows=12, rate_pps=10.0)
        hosts.start_all(self.lab, self.traffic)
        self.said = Judgements(self.lab)

    def until(self, condition):
        """Return the first judgement for which the condition holds."""
        end = time.monotonic() + PATIENCE_S
        last = None
        while time.monotonic() < end:
            for last in self.said():
                if condition(last):
                    return last
            time.sleep(0.1)
        log = (self.lab.directory / "mgmt-pinpoint.log").read_text()
        raise AssertionError(f"it never came; the last judgement: {last}; the log:\n{log[-2000:]}")

    def test_a_dead_link_and_its_end(self):
        """A link that dies is named by its own name, becomes an incident, and recovers."""
        self.until(lambda judgement: judgement["flows"] and judgement["paths"] >= 72)
        fault = Fault.from_mapping({"kind": "loss", "on": "spine2 -> leaf3"})
        faults.inject(self.lab, fault)

        def opened(judgement):
            return any(
                event["event"] in ("opened", "changed")
                and truth.right(self.lab.fabric, self.traffic, fault, event["incident"])
                for event in judgement["events"]
            )

        judgement = self.until(opened)
        (suspect,) = [
            one
            for one in judgement["suspects"]
            if truth.right(self.lab.fabric, self.traffic, fault, one)
        ]
        self.assertEqual((suspect["kind"], suspect["direction"]), ("link", "forward"))
        self.assertTrue(all(there == "h3-1" for _, there in suspect["pairs"]))
        for path in suspect["paths"]:
            self.assertEqual(path[2:4], ["spine2", "leaf3"])
        url = f"http://127.0.0.1:{hosts.PINPOINT_PORT}/incidents"
        program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
        said = self.lab.run(MANAGEMENT, os.sys.executable, "-c", program, url)
        self.assertGreaterEqual(json.loads(said)["total"], 1)
        faults.heal(self.lab, fault.name)
        self.until(lambda judgement: any(e["event"] == "recovered" for e in judgement["events"]))
        log = (self.lab.directory / "h1-1-collector.log").read_text()
        self.assertNotIn("Traceback", log)
