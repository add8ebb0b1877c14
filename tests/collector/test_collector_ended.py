"""A collector that cannot begin to probe: it ends, and whoever supervises it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from servers import free_port
from twisted.trial.unittest import SynchronousTestCase

#: A collector in whose planning there is a fault.
FAULTY = """
import sys
from twisted.scripts.twistd import run
from llama.collector import service
service.make_plan = lambda *_: 1 // 0
sys.argv[0] = "twistd"
run()
"""


class EndedTests(SynchronousTestCase):
    def ended(self, host: str) -> subprocess.CompletedProcess[str]:
        """What such a collector left that was to probe this host."""
        path = Path(self.mktemp())
        path.write_text(f"{host}: {{rack: a}}\n")
        words = ["-n", "--pidfile=", "llama-collector", "--config", str(path)]
        words += ["--api", f"127.0.0.1:{free_port()}"]
        return subprocess.run(
            [sys.executable, "-c", FAULTY, *words], capture_output=True, text=True, timeout=60
        )

    def test_before_the_reactor_runs(self) -> None:
        """Addresses are planned at once: the reactor is yet to run then, and stops all the same."""
        self.check(self.ended("127.0.0.9"))

    def test_while_it_runs(self) -> None:
        """Names are planned when they are known."""
        self.check(self.ended("localhost"))

    def check(self, ended: subprocess.CompletedProcess[str]) -> None:
        """Its status is 1, its log says why, and its end was as orderly as any."""
        self.assertEqual(ended.returncode, 1, ended.stdout)
        self.assertEqual(ended.stdout.count("Traceback"), 1, ended.stdout)
        self.assertIn("llama-collector cannot go on", ended.stdout)
        self.assertIn("ZeroDivisionError", ended.stdout)
        self.assertIn("Server Shut Down", ended.stdout)
