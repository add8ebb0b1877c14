"""A collector that has to wait for a processor says so, and does not blame the network."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from timekeeper_case import TimekeeperCase

from llama.collector.health import STARVED_SHARE, Starvation

#: Others on our processor that never rest: a share of a third is left to us.
RIVALS = 2
#: They end with whoever began them, and by themselves.
RIVAL = """
import os, sys, time
parent, until = os.getppid(), time.monotonic() + 60
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while os.getppid() == parent and time.monotonic() < until:
    pass
"""


class StarvationTests(TimekeeperCase):
    """Other programs have the processor that this one needs."""

    def crowd(self) -> None:
        """Have others run on one processor, and nowhere else run ourselves."""
        allowed = os.sched_getaffinity(0)
        processor = min(allowed)
        for _ in range(RIVALS):
            rival = subprocess.Popen(
                [sys.executable, "-c", RIVAL, str(processor)], stdout=subprocess.PIPE
            )
            self.addCleanup(rival.communicate)
            self.addCleanup(rival.kill)
            assert rival.stdout is not None
            rival.stdout.readline()
        os.sched_setaffinity(0, {processor})
        self.addCleanup(os.sched_setaffinity, 0, allowed)

    def test_share(self) -> None:
        """What it waited is most of the time, and is told once."""
        self.crowd()
        since = time.monotonic()
        watch = Starvation()
        while time.monotonic() < since + 1:
            pass
        waited_s = watch.waited_s()
        took_s = time.monotonic() - since
        self.assertGreater(waited_s, STARVED_SHARE * took_s)
        self.assertLess(waited_s, took_s)
        again_s = watch.waited_s()
        self.assertLess(again_s, time.monotonic() - since - took_s)

    def test_unknown(self) -> None:
        """Where the kernel does not tell, nothing is said."""
        self.assertEqual(Starvation(self.mktemp()).waited_s(), 0.0)

    def test_intervals_are_marked(self) -> None:
        """Intervals that it touched are suspect, for that reason."""
        self.patch(self.timekeeper, "_starvation", Starvation())
        self.timekeeper.use([self.group(rate=20)])
        self.crowd()

        def starved() -> bool:
            until = time.monotonic() + 0.003  # as if it had very much to do
            while time.monotonic() < until:
                pass
            return len(self.closed) > 2

        self.run_until(starved)
        self.assertIn("cpu_starved", self.reasons(self.closed[-1]))
        self.assertIn("the collector had to wait for a processor", self.closed[-1].notes)
