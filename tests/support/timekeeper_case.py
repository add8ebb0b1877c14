"""A timekeeper, its prober and a reflector over real loopback sockets, ticked by hand."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from reflector_case import StillReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.host_watch import HostWatch
from llama.collector.intervals.summary import ClosedInterval, Pair, reasons
from llama.collector.probing.plan import Group, Source
from llama.collector.probing.udp import UdpProber
from llama.collector.timekeeper import Timekeeper
from llama.net.drops import read_text
from llama.net.port import BatchPort, transmit_ids_supported
from llama.reflector.guard import Guard
from llama.reflector.protocol import Reflector
from llama.reflector.sessions import Sessions


def pair(address: str, port: int, dscp: int = 0, size: int = 96) -> Pair:
    """A pair on loopback."""
    return Pair(
        target=address, src_ip="127.0.0.1", dst_ip=address, dst_port=port, dscp=dscp,
        class_name="BE" if not dscp else str(dscp), probe="stamp", size=size, port_group="default",
        tags={"dst_hostname": address},
    )  # fmt: skip


def watch_of_this_network() -> HostWatch:
    """A watch of what is the network's of this test alone: backlogs are the whole machine's."""

    def read(name: str) -> str:
        if name == "softnet_stat":
            raise FileNotFoundError(name)
        return read_text(name)

    return HostWatch(read)


class NeverStarved:
    """A process that never waits for a processor, whatever else this machine is doing."""

    def waited_s(self) -> float:
        """How long it waited."""
        return 0.0


class TimekeeperCase(SynchronousTestCase):
    """A reflector and a timekeeper in one thread, in step."""

    interval_s = 1
    timeout_s = 0.2
    kernel_stamps = True
    ids = transmit_ids_supported()

    def setUp(self) -> None:
        """Bind a reflector and make a timekeeper with clocks that can be stepped."""
        self.clock = Clock()
        self.reactor = StillReactor()
        self.guard = Guard()
        self.protocol = Reflector(self.reactor.seconds, self.guard, Sessions(1024))
        self.port = BatchPort(
            self.reactor, self.protocol, "127.0.0.1", 0, stamped=transmit_ids_supported()
        )
        self.port.startListening()
        self.addCleanup(self.stop_reflector)
        self.step_ns = 0
        self.closed: list[ClosedInterval] = []
        self.prober = UdpProber(
            ids=self.ids, kernel_stamps=self.kernel_stamps, wall_ns=self.wall_ns,
            chance=random.Random(3),
        )  # fmt: skip
        self.timekeeper = Timekeeper(
            self.clock, self.prober, self.interval_s, self.closed.append, wall_ns=self.wall_ns,
        )  # fmt: skip
        self.addCleanup(self.timekeeper.stop)
        self.patch(self.timekeeper, "_host", watch_of_this_network())
        self.patch(self.timekeeper, "_starvation", NeverStarved())

    def answer_everywhere(self) -> None:
        """Have the reflector answer at all addresses of this host."""
        self.stop_reflector()
        self.port = BatchPort(self.reactor, self.protocol, "0.0.0.0", 0, stamped=False)
        self.port.startListening()

    def stop_reflector(self) -> None:
        """Close its socket."""
        self.port.stopListening()
        self.reactor.advance(0)

    def wall_ns(self) -> int:
        """The wall clock, stepped."""
        return time.time_ns() + self.step_ns

    def group(self, *pairs: Pair, ports: int = 2, rate: float = 50) -> Group:
        """A group of one test."""
        sources = tuple(
            Source(version=4, address="127.0.0.1", interface=None, number=0, owner=str(n), df=False)
            for n in range(ports)
        )
        return Group(
            test="default", probe="stamp", version=4, sources=sources, rate_pps=rate,
            timeout_s=self.timeout_s, pairs=pairs or (pair("127.0.0.1", self.number),),
        )  # fmt: skip

    @property
    def number(self) -> int:
        """The reflector's port."""
        return int(self.port.getHost().port)

    def run_until(self, wanted: Callable[[], Any], answering: bool = True) -> None:
        """Tick, and let the reflector answer, until something holds."""
        give_up = time.monotonic() + 30
        while not wanted():
            if time.monotonic() > give_up:
                raise AssertionError("it did not happen")
            self.timekeeper.tick()
            if answering:
                self.port.doRead()
            self.clock.advance(0.01)
            time.sleep(0.001)

    def bring_in_all(self) -> None:
        """Have all that was sent answered and read, and what came back with it; send nothing."""
        give_up = time.monotonic() + 30
        while self.prober.received < self.prober.sent and time.monotonic() < give_up:
            self.port.doRead()
            self.prober.drain()
        while not self.prober.drain():
            pass

    def newest(self, count: int) -> ClosedInterval:
        """Run until ``count`` more intervals have closed; return the newest."""
        wanted = len(self.closed) + count
        self.run_until(lambda: len(self.closed) >= wanted)
        return self.closed[-1]

    def reasons(self, interval: ClosedInterval) -> set[str]:
        """Why an interval is suspect."""
        return {name for bits in interval.pair_stats["suspect"] for name in reasons(int(bits))}
