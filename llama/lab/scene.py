"""The demo's network on paper: its hosts, and the fault that a seed picks.

Three sites of two hosts. Hosts of one site reach each other directly; between sites every ordered
pair of hosts has a way of its own, whose `Impairment` in both directions stands here. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from attrs import frozen

from llama.lab.relay import Impairment

SITES = ("iad", "lax", "fra")
HOSTS_PER_SITE = 2
#: Source ports of every collector towards every target, and the equal-cost paths they spread over.
FLOWS = 16
PATHS = 8
#: One-way delays, ms: between near sites, and to and from the far one.
_NEAR_MS = (1.5, 4.0)
_FAR_MS = (90.0, 140.0)
#: What a bad path loses, and how many of the paths are bad.
_PATH_LOSS = (0.5, 0.9)
_BAD_PATHS = (1, 3)


@frozen(kw_only=True)
class Host:
    """A host of the demo: it answers probes at ``address`` and sends from there."""

    name: str
    site: str
    address: str


@frozen(kw_only=True)
class Way:
    """The way from one host to another of a different site, there and back."""

    source: Host
    destination: Host
    forward: Impairment
    reverse: Impairment


@frozen(kw_only=True)
class Scene:
    """A network with one lossy pair and one far site."""

    seed: int
    hosts: tuple[Host, ...]
    ways: tuple[Way, ...]
    lossy: tuple[str, str]  # the source and destination, by name, whose forward way loses
    far: str  # the site

    @property
    def pairs(self) -> list[tuple[Host, Host]]:
        """Every ordered pair of two hosts."""
        return [(a, b) for a in self.hosts for b in self.hosts if a != b]

    def way(self, source: Host, destination: Host) -> Way | None:
        """Return the way between two hosts, None if they reach each other directly."""
        for way in self.ways:
            if way.source == source and way.destination == destination:
                return way
        return None


def hosts(block: int | None) -> tuple[Host, ...]:
    """Return the demo's hosts: in 127.``block``.0.0/16, or all on 127.0.0.1 without a block.

    Linux answers on all of 127.0.0.0/8, other systems on 127.0.0.1 alone.
    """
    return tuple(
        Host(name=f"{site}-{number}", site=site, address=address(block, place, number))
        for place, site in enumerate(SITES, 1)
        for number in range(1, HOSTS_PER_SITE + 1)
    )


def address(block: int | None, place: int, number: int) -> str:
    """Return an address of a block, or 127.0.0.1 without one."""
    return "127.0.0.1" if block is None else f"127.{block}.{place}.{number}"


def scene(seed: int, among: tuple[Host, ...]) -> Scene:
    """Return the network that a seed picks among these hosts: the same for the same seed."""
    random = Random(seed)
    far = random.choice(SITES)
    delay_s = {
        frozenset(pair): random.uniform(*(_FAR_MS if far in pair else _NEAR_MS)) / 1000
        for pair in _site_pairs()
    }
    pairs = [(a, b) for a in among for b in among if a.site != b.site]
    source, destination = random.choice(pairs)
    bad_paths = random.sample(range(PATHS), random.randint(*_BAD_PATHS))
    path_loss = random.uniform(*_PATH_LOSS)

    def way(a: Host, b: Host) -> Way:
        delay = delay_s[frozenset((a.site, b.site))]
        healthy = Impairment(delay_s=delay, jitter_s=delay / 20)
        lossy = Impairment(
            delay_s=delay,
            jitter_s=delay / 20,
            paths=PATHS,
            bad_paths=bad_paths,
            path_loss=path_loss,
        )
        forward = lossy if (a, b) == (source, destination) else healthy
        return Way(source=a, destination=b, forward=forward, reverse=healthy)

    return Scene(
        seed=seed,
        hosts=among,
        ways=tuple(way(a, b) for a, b in pairs),
        lossy=(source.name, destination.name),
        far=far,
    )


def _site_pairs() -> Iterator[tuple[str, str]]:
    for number, site in enumerate(SITES):
        for other in SITES[number + 1 :]:
            yield site, other
