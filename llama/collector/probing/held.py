"""What probers have in common whose probes leave through no socket that they keep open.

A socket for each source port keeps it from everyone else on this host; what is sent from there is sent
through others, or by a program. Such a prober is used as `llama.collector.probing.udp.UdpProber` is.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from llama.collector.intervals.summary import Pair, suspect_bit
from llama.collector.probing.complaints import Complaints
from llama.collector.probing.plan import Source, places_of
from llama.collector.probing.sockets import ProbeSocket
from llama.collector.probing.track import Track
from llama.collector.probing.udp import LONGEST_DRAIN_S

#: How often a prober with anything to probe looks at what happened, s.
DRAIN_S = 0.010


class HeldPort(ProbeSocket):
    """A source port held by a socket that is bound to it."""

    def __init__(self, source: Source, sock: socket.socket) -> None:
        self.source = source
        self.sock = sock
        self.fd = sock.fileno()
        self.number: int = sock.getsockname()[1]
        self.buffer = 0
        self.drops = 0

    def new_drops(self) -> int:
        """Return 0: nothing is received here."""
        return 0


class UnderWay(Protocol):
    """A probe, or several, of one pair, of which not all is known yet."""

    group: tuple[object, ...]  # its identity
    pair: Pair


T = TypeVar("T", bound=UnderWay)


def places_now(
    under_way: Iterable[T], tracks: Mapping[tuple[object, ...], Track]
) -> Iterator[tuple[T, Track | None, int]]:
    """Yield where that which is under way belongs among tracks, by the identity of their groups.

    With each the number of its pair there; None, and -1, if it is not wanted any more.
    """
    groups: dict[tuple[object, ...], dict[Pair, list[T]]] = {}
    for one in under_way:
        groups.setdefault(one.group, {}).setdefault(one.pair, []).append(one)
    for group, by_pair in groups.items():
        track = tracks.get(group)
        places = places_of(list(by_pair), () if track is None else track.pairs)
        for place, some in zip(places, by_pair.values(), strict=True):
            for one in some:
                yield one, track if place >= 0 else None, place


class PortHolder:
    """The ports, and the figures, of such a prober."""

    tracks: Sequence[Track]

    def __init__(self, chance: random.Random | None) -> None:
        self._chance = random.Random() if chance is None else chance
        self.sockets: dict[Source, ProbeSocket] = {}
        self.tracks = []
        self.sent = 0
        self.skipped = 0
        self.received = 0
        self.strangers = 0
        self.receive_drops = 0
        self.damaged = 0
        self.failed_sends: Counter[str] = Counter()
        self._complaints = Complaints()

    def let_go(self, source: Source) -> None:
        """Let a source's port go."""
        self.sockets.pop(source).sock.close()

    def _let_go_unused(self) -> None:
        """Let the ports go that none of the tracks probes from."""
        used = {source for track in self.tracks for source in track.group.sources}
        for source in [source for source in self.sockets if source not in used]:
            self.let_go(source)

    def _let_all_go(self) -> None:
        for held in self.sockets.values():
            held.sock.close()
        self.sockets.clear()

    @property
    def probes_per_s(self) -> float:
        """How many probes are sent a second, when all goes well."""
        return sum(track.schedule.probes_per_s for track in self.tracks)

    def drain_every_s(self) -> float:
        """Return how often to `drain`, s."""
        return DRAIN_S if self.tracks else LONGEST_DRAIN_S

    def check_drops(self) -> int:
        """Return 0: no buffer of ours fills."""
        return 0

    def _note_skipped(self, track: Track, before: int) -> None:
        """Count, and mark, the probes that a track's schedule has skipped since it said ``before``."""
        new = track.schedule.skipped - before
        if new:
            self.skipped += new
            track.ledger.mark_current(
                suspect_bit("late_ticks"), "probes were skipped: too late to send"
            )
