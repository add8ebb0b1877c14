"""Paths that changed and took the RTT of their flows along: told once, and no suspects; pure.

A planned reroute over a longer way makes nobody late. `Measured` gives a flow whose path changed a new
ordinary RTT, and notes where the two differ; here they become one sighting for each way that was
left for another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from llama.pinpoint.evidence import Hosts
from llama.pinpoint.sighting import LISTED, Sighting, common_tags
from llama.pinpoint.windows import Moved

#: Changes of one interval that are told, those of the most flows.
MOST = 8


def reroutes(moved: Iterable[Moved], hosts: Hosts) -> Iterator[Sighting]:
    """Yield what changed, the most flows first: sightings of the symptom "rerouted"."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Moved]] = {}
    for one in moved:
        left = tuple(hop for hop in one.before if hop not in one.after)
        entered = tuple(hop for hop in one.after if hop not in one.before)
        groups.setdefault((left, entered), []).append(one)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (left, entered), some in largest[:MOST]:
        yield _sighting(" ".join(left), " ".join(entered), some, hosts)


def _sighting(left: str, entered: str, some: list[Moved], hosts: Hosts) -> Sighting:
    before_ms = float(np.median([one.before_ns for one in some])) / 1e6
    after_ms = float(np.median([one.after_ns for one in some])) / 1e6
    name = f"{entered or 'no other hop'} instead of {left or 'none'}"
    ends = Counter((one.source, one.destination) for one in some)
    pairs = [pair for pair, _ in ends.most_common(LISTED)]
    flows = frozenset(one.number for one in some)
    return Sighting(
        key=f"path {left} to {entered}",
        kind="path",
        name=name,
        symptom="rerouted",
        direction="unknown",
        only={},
        evidence=(
            f"{len(some)} flows of {len(ends)} pairs cross {name}:"
            f" {before_ms:.3g} ms became {after_ms:.3g} ms, {after_ms - before_ms:+.2g} ms"
        ),
        rate=0.0,
        explains=len(some),
        confidence=1.0,
        flows=flows,
        hit=flows,
        pairs=tuple((hosts.names[a], hosts.names[b]) for a, b in pairs),
        tags=common_tags(hosts, pairs),
        paths=tuple({one.after: None for one in some}),
        places=frozenset(place for one in some for place in _places(one, hosts)),
    )


def _places(one: Moved, hosts: Hosts) -> Iterator[tuple[str, str]]:
    """Yield the nodes and links that a flow has left or entered: the cause may be any of them."""
    ends = hosts.names[one.source], hosts.names[one.destination]
    before, after = ((ends[0], *hops, ends[1]) for hops in (one.before, one.after))
    for node in {*before} ^ {*after}:
        yield "node", node
    for sender, receiver in {*pairwise(before)} ^ {*pairwise(after)}:
        yield "link", f"{sender} -> {receiver}"
