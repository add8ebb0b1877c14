"""What tests of the real hping3 have in common: a prober that ticks, and ends all that it ran."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase

from llama.collector.intervals import closing
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.summary import Pair
from llama.collector.probing.hping3.cycle import KNOWN_AFTER_S, Cycle
from llama.collector.probing.hping3.prober import Hping3Prober, RunTrack
from llama.collector.probing.hping3.process import find_program
from llama.collector.probing.plan import Group, Source
from llama.collector.slices import at_once

TICK_S = 0.01


def require_hping3() -> None:
    """Skip where hping3 cannot be run."""
    if os.geteuid() or find_program("hping3") is None:
        raise SkipTest("needs root and hping3")


class ProbeCase(TestCase):
    """A prober that ticks."""

    timeout = 60

    def setUp(self) -> None:
        """Make a prober."""
        require_hping3()
        self.prober: Any = Hping3Prober(reactor, chance=random.Random(5))
        self.most = 0  # runs seen at once
        self.addCleanup(self.no_run_left)

    async def no_run_left(self) -> None:
        """End everything; the processes are gone, and reaped."""
        pids = self.pids()
        self.prober.close()
        await self.prober.ended()
        for pid in pids:
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def pids(self) -> list[int]:
        """The processes under way."""
        return [run.process.pid for run in self.prober._runs.values() if run.process.pid]

    def group(
        self, addresses: Sequence[str], port: int, *, ports: int = 3,
        dscps: Sequence[int] = (0,), program: str = "hping3", processes: int = 8,
    ) -> Group:  # fmt: skip
        """A group that is probed five times a second."""
        sources = tuple(
            Source(
                version=4, address=None, interface=None, number=0, owner=f"t/{n}", df=False,
                protocol="hping3",
            )
            for n in range(ports)
        )  # fmt: skip
        pairs = tuple(
            Pair(
                target=address, src_ip="", dst_ip=address, dst_port=port, dscp=dscp,
                class_name=str(dscp), probe="hping3", size=0, port_group="",
                tags={"dst_hostname": address},
            )
            for address in addresses
            for dscp in dscps
        )  # fmt: skip
        cycle = Cycle(program=program, spacing_s=0.01, processes=processes, timeout_s=1.0)
        return Group(
            test="t", probe="hping3", version=4, sources=sources, rate_pps=5,
            timeout_s=KNOWN_AFTER_S, pairs=pairs, cycle=cycle,
        )  # fmt: skip

    def begin(self, group: Group, count: int = 2) -> RunTrack:
        """Have the prober probe a group, every flow ``count`` times."""
        dscps = np.array([pair.dscp for pair in group.pairs], np.uint8)
        ledger = Ledger(dscps, len(group.sources), group.rate_pps, group.timeout_s, 10)
        live = np.ones(len(group.pairs), np.bool_)
        track: RunTrack = self.prober.track(group, ledger, live, time.monotonic())
        track.schedule.limit = count * ledger.flows
        ledger.roll(0, 1, 0.0)
        self.prober.arrange([track])
        return track

    async def until(self, wanted: Callable[[], object]) -> None:
        """Tick until something holds."""
        while not wanted():
            self.prober.tick(time.monotonic(), 0.02)
            self.prober.drain()
            self.most = max(self.most, len(self.prober._runs))
            await deferLater(reactor, TICK_S)

    async def run_through(self, track: RunTrack) -> None:
        """Tick until all was sent, or not, and every run has ended."""
        limit = track.schedule.limit or 0
        done = lambda: self.prober.sent + self.prober.failed_sends.total() >= limit  # noqa: E731
        await self.until(lambda: done() and not self.prober._runs)

    def closed(self, track: RunTrack) -> closing.Figures:
        """The figures of all that was probed."""
        track.ledger.roll(1, 2, 0.0)
        return at_once(closing.close(track.ledger, track.ledger.over[0]))

    async def measure(self, group: Group, count: int = 2) -> closing.Figures:
        """Probe a group to its end."""
        track = self.begin(group, count)
        await self.run_through(track)
        return self.closed(track)

    def script(self, text: str) -> str:
        """A program of our own instead of hping3."""
        path = Path(self.mktemp())
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return str(path)
