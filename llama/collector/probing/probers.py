"""All kinds of probe as one prober: each group is probed by the one that knows its kind.

UDP is always there; the others from the first group that needs them. What they are told and
asked is what `llama.collector.timekeeper.Timekeeper` tells and asks a `UdpProber`.
"""

from __future__ import annotations

import random
import time
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from llama.collector.intervals.ledger import Ledger
from llama.collector.probing.hping3.prober import Hping3Prober
from llama.collector.probing.icmp import IcmpProber
from llama.collector.probing.plan import Group, Source
from llama.collector.probing.sockets import HeldPort
from llama.collector.probing.tcp import TcpProber
from llama.collector.probing.track import Track
from llama.collector.probing.udp import UdpProber

AnyProber = UdpProber | TcpProber | Hping3Prober

#: From this share of an interval's probes on the log tells that they were left out.
_WORTH_TELLING = 0.01


class Probers:
    """Probes groups of every kind; `udp` is the one that probes by UDP.

    ``reactor`` is told of sockets whose answers must be timed in user space; without one they are
    timed at the next tick. It runs hping3, which cannot do without. The rest is as for `UdpProber`.
    """

    log = Logger()

    def __init__(
        self,
        reactor: object = None,
        *,
        ids: bool,
        kernel_stamps: bool = True,
        wall_ns: Callable[[], int] = time.time_ns,
        chance: random.Random | None = None,
    ) -> None:
        self._reactor = reactor
        self._ids, self._kernel_stamps = ids, kernel_stamps
        self._wall_ns, self._chance = wall_ns, chance
        self.udp = UdpProber(ids=ids, kernel_stamps=kernel_stamps, wall_ns=wall_ns, chance=chance)
        self._probers: dict[str, AnyProber] = {"udp": self.udp}
        self.tracks: list[Track] = []
        self._before = 0, 0  # sent and skipped when this interval began
        self._too_late = False  # in the interval before, and it was told

    def _prober(self, protocol: str) -> AnyProber:
        if protocol not in self._probers:
            self._probers[protocol] = self._make(protocol)
        return self._probers[protocol]

    def _make(self, protocol: str) -> AnyProber:
        times: Any = {"wall_ns": self._wall_ns, "chance": self._chance}
        if protocol == "tcp":
            return TcpProber(reactor=self._reactor, **times)
        if protocol == "hping3":
            return Hping3Prober(self._reactor, **times)
        return IcmpProber(ids=self._ids, kernel_stamps=self._kernel_stamps, **times)

    def of(self, group: Group) -> AnyProber:
        """Return the prober of a group."""
        return self._prober(_protocol(group))

    def open(self, source: Source) -> HeldPort:
        """Return the socket of a source, opened if need be; raises `OSError` if it cannot be."""
        return self._prober(source.protocol).open(source)

    def let_go(self, source: Source) -> None:
        """Close the socket of a source."""
        self._prober(source.protocol).let_go(source)

    @property
    def sockets(self) -> Mapping[Source, HeldPort]:
        """The sockets that are open."""
        every: list[Any] = [prober.sockets for prober in self._probers.values()]
        return ChainMap(*every)

    def track(
        self, group: Group, ledger: Ledger, live: npt.NDArray[np.bool_], now_s: float
    ) -> Track:
        """Return a track for a group, to be handed to `arrange`."""
        return self.of(group).track(group, ledger, live, now_s)

    def arrange(self, tracks: Sequence[Track]) -> None:
        """Probe these tracks, and only these, from now on."""
        self.tracks = list(tracks)
        for protocol, prober in self._probers.items():
            prober.arrange([track for track in tracks if _protocol(track.group) == protocol])

    def close(self) -> None:
        """Close all sockets, end all programs."""
        for prober in self._probers.values():
            prober.close()

    def ended(self) -> Deferred[None]:
        """Fire when no program that was run is left, after `close`."""
        prober = self._probers.get("hping3")
        return prober.ended() if isinstance(prober, Hping3Prober) else succeed(None)

    def tick(self, now_s: float, elapsed_s: float) -> None:
        """Send what is due at ``now_s``, ``elapsed_s`` after the last tick; see `UdpProber.tick`."""
        for prober in self._probers.values():
            prober.tick(now_s, elapsed_s)

    def drain(self) -> bool:
        """Read all that waits; return whether nothing was left."""
        emptied = [prober.drain() for prober in self._probers.values()]
        return all(emptied)

    def drain_every_s(self) -> float:
        """Return how often to `drain` so that nothing overflows, s."""
        return min(prober.drain_every_s() for prober in self._probers.values())

    def follow_interfaces(self) -> None:
        """Go on through interfaces that were made anew."""
        for prober in self._probers.values():
            prober.follow_interfaces()

    def next_interval(self) -> None:
        """Take note that another interval begins; say once if probes of this one were left out."""
        for prober in self._probers.values():
            prober.next_interval()
        sent, skipped = self.sent - self._before[0], self.skipped - self._before[1]
        self._before = self.sent, self.skipped
        too_late = skipped > _WORTH_TELLING * (sent + skipped)
        if too_late and not self._too_late:
            # No warning: the intervals are marked, and what shows them, as the demo, says so.
            self.log.info(
                "{skipped} of {due} probes of an interval were left out, as it was too late to send"
                " them: this host has too much else to do, or too much is asked of it (llama check)",
                skipped=skipped, due=sent + skipped,
            )  # fmt: skip
        self._too_late = too_late

    def check_drops(self) -> int:
        """Ask the kernel for packets dropped at full buffers; return how many are new."""
        return sum(prober.check_drops() for prober in self._probers.values())

    @property
    def probes_per_s(self) -> float:
        """How many probes are sent a second, when all goes well."""
        return sum(prober.probes_per_s for prober in self._probers.values())

    @property
    def sent(self) -> int:
        """How many probes were sent."""
        return sum(prober.sent for prober in self._probers.values())

    @property
    def skipped(self) -> int:
        """How many probes were not sent, since it was too late for them."""
        return sum(prober.skipped for prober in self._probers.values())

    @property
    def received(self) -> int:
        """How many of them were answered."""
        return sum(prober.received for prober in self._probers.values())

    @property
    def strangers(self) -> int:
        """How many packets came that answer no probe of ours."""
        return sum(prober.strangers for prober in self._probers.values())

    @property
    def receive_drops(self) -> int:
        """How many packets the kernel dropped at full buffers."""
        return sum(prober.receive_drops for prober in self._probers.values())

    @property
    def damaged(self) -> int:
        """How many packets arrived damaged."""
        return sum(prober.damaged for prober in self._probers.values())

    @property
    def failed_sends(self) -> Counter[str]:
        """How many probes could not be sent, by the name of the error."""
        total: Counter[str] = Counter()
        for prober in self._probers.values():
            total.update(prober.failed_sends)
        return total


def _protocol(group: Group) -> str:
    return group.sources[0].protocol
