"""What probers have in common whose probes leave through no socket that they keep open.

A socket for each source port keeps it from everyone else on this host; what is sent from there is sent
through others, or by a program. Such a prober is used as `llama.collector.probing.udp.UdpProber` is.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from llama.collector.intervals.summary import Pair
from llama.collector.probing.plan import places_of
from llama.collector.probing.prober import Prober
from llama.collector.probing.sockets import HeldPort
from llama.collector.probing.track import Track
from llama.collector.probing.udp import LONGEST_DRAIN_S

#: How often a prober with anything to probe looks at what happened, s.
DRAIN_S = 0.010


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


class PortHolder(Prober[HeldPort]):
    """The ports, and the figures, of such a prober."""

    def __init__(self, chance: random.Random | None) -> None:
        super().__init__(chance)
        self.received = 0
        self.strangers = 0

    def drain_every_s(self) -> float:
        """Return how often to `drain`, s."""
        return DRAIN_S if self.tracks else LONGEST_DRAIN_S

    def check_drops(self) -> int:
        """Return 0: no buffer of ours fills."""
        return 0
