"""However a lab is ended nothing of it is left: by signals at once, after SIGKILL by who comes next."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llama.lab.fabric import Fabric
from llama.lab.namespaces import NAMESPACES, RUN, Lab, LabError, clear

NEEDS = (
    None
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "sysctl")))
    else "needs root, iproute2, procps and nftables"
)
SCENARIO = """
fabric: {leaves: 2, spines: 1, hosts_per_leaf: 1}
traffic: {flows: 2}
steps: [{at: 0, kind: loss, on: leaf1 -> spine1}]
end: 600
"""
LAB = (sys.executable, "-c", "from llama.cli.lab import lab; lab(prog_name='llama lab')")


class Ended(SynchronousTestCase):
    skip = NEEDS

    def setUp(self):
        """Choose a name, and write a scenario that takes long."""
        self.name = f"ended{os.getpid()}"
        self.addCleanup(clear, self.name)
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.scenario = Path(self.directory.name) / "scenario.yaml"
        self.scenario.write_text(SCENARIO)

    def run_until_broken(self):
        """Start ``llama lab run`` and return it once the fault is there."""
        playing = subprocess.Popen(
            [*LAB, "run", "--name", self.name, str(self.scenario)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.addCleanup(playing.stdout.close)
        self.addCleanup(playing.wait)
        self.addCleanup(playing.kill)
        self.assertIn('"injected"', playing.stdout.readline())
        return playing

    def assert_nothing_left(self):
        """Nothing in the kernel or in files bears the lab's name."""
        self.assertEqual(list(NAMESPACES.glob(f"llama-{self.name}-*")), [])
        self.assertFalse((RUN / self.name).exists())

    def test_commands_for_this_lab(self):
        """What is said to type next is about the lab of this name, not of the usual one."""
        up = [*LAB, "up", "--bare", "--leaves", "2", "--spines", "1", "--hosts-per-leaf", "1"]
        done = subprocess.run(
            [*up, "--name", self.name], capture_output=True, text=True, timeout=60
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        for command in ("status", "fault", "down"):
            self.assertIn(f"llama lab {command} --name {self.name}", done.stdout)

    def test_one_that_is_up(self):
        """A lab that is up is not built anew by an `up` that does not say so."""
        up = [*LAB, "up", "--bare", "--leaves", "2", "--spines", "1", "--hosts-per-leaf", "1"]
        up += ["--name", self.name]
        options = {"capture_output": True, "text": True, "timeout": 60}
        self.assertEqual(subprocess.run(up, **options).returncode, 0)
        before = {path.stat().st_ino for path in NAMESPACES.glob(f"llama-{self.name}-*")}
        done = subprocess.run(up, **options)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"llama lab down --name {self.name}", done.stderr)
        there = {path.stat().st_ino for path in NAMESPACES.glob(f"llama-{self.name}-*")}
        self.assertEqual(there, before)
        self.assertEqual(subprocess.run([*up, "--again"], **options).returncode, 0)

    def test_by_signals(self):
        """Interrupted, asked to end, or without its terminal, it takes all back before it ends."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            playing = self.run_until_broken()
            # All of the group, as a terminal does it.
            os.killpg(playing.pid, number)
            said = playing.communicate(timeout=60)[0]
            self.assertNotIn("Traceback", said)
            self.assertIn('"healed"', said)
            self.assert_nothing_left()

    def test_after_sigkill(self):
        """What a killed run left runs on until the next `run`, `up` or `down` removes it."""
        killed = self.run_until_broken()
        with self.assertRaisesRegex(LabError, f"in use by process {killed.pid}"):
            Lab.build(self.name, Fabric(1, 1, 1))
        killed.kill()
        killed.wait()
        left = Lab.open(self.name)
        self.assertTrue(any(process.alive for process in left.processes))
        again = self.run_until_broken()
        until = time.monotonic() + 30
        while any(process.alive for process in left.processes) and time.monotonic() < until:
            time.sleep(0.1)
        self.assertFalse(any(process.alive for process in left.processes))
        again.kill()
        again.wait()
        subprocess.run([*LAB, "down", "--name", self.name], check=True, capture_output=True)
        self.assert_nothing_left()
