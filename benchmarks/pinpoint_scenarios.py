"""Scenarios to be pinpointed: drawn from a seed, every kind of fault at random places.

Nothing is broken here; `benchmarks.pinpoint` does that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from attrs import frozen

from llama.lab.fabric import Fabric
from llama.lab.faults import Fault

#: Classes and sizes that kinds of fault need to show; they share the flows of a pair.
TRAFFICS: dict[str, dict[str, Any]] = {
    "plain": {},
    "classes": {"classes": ("BE", "EF")},
    "sizes": {"sizes": (96, 1400)},
    "families": {"family": "both"},
}


def does_harm(fabric: Fabric, fault: Fault) -> bool:
    """Return whether a fault does any harm that measurement can see.

    A spine that is visibly down is routed around, and routers' ICMP carries no traffic.
    """
    if fault.kind.startswith("icmp"):
        return False
    return not (fault.kind == "down" and fault.on in fabric.spine_names)


@frozen
class Drawn:
    """A scenario: one or two faults at once, and the traffic under which they show."""

    faults: tuple[Fault, ...]
    traffic: str = "plain"


#: Scenarios that are drawn, at most, for one that fits.
TRIES = 200


def draw(seed: int, fabric: Fabric, count: int, only: str = "") -> list[Drawn]:
    """Return `count` scenarios for a fabric by the seed, every kind of fault in turn.

    With `only`, those whose words contain it; fewer if there are none. The same seed draws the
    same scenarios in the same order, however many are wanted.
    """
    kinds = _kinds(random.Random(f"{seed} {fabric}"), fabric)
    drawn: list[Drawn] = []
    for n in range(TRIES * count):
        scenario = kinds[n % len(kinds)]()
        if len(drawn) < count and only in describe(scenario):
            drawn.append(scenario)
    # Traffic of one sort at a time, so that collectors are restarted but twice.
    return sorted(drawn, key=lambda scenario: list(TRAFFICS).index(scenario.traffic))


def _kinds(chance: random.Random, fabric: Fabric) -> list[Callable[[], Drawn]]:
    """Return what draws a scenario of each kind."""
    core = [f"{a} -> {b}" for a, b in fabric.directions if "spine" in a + b]
    edge = [f"{a} -> {b}" for a, b in fabric.directions if "spine" not in a + b]
    every = list(fabric.hosts)

    def fault(kind: str, on: str, **options: Any) -> Fault:
        return Fault.from_mapping({"kind": kind, "on": on, **options})

    def loss(percent: float, where: list[str] = core) -> Drawn:
        return Drawn((fault("loss", chance.choice(where), percent=percent),))

    def two(one: float, other: float) -> Drawn:
        a, b = chance.sample(core, 2)
        return Drawn((fault("loss", a, percent=one), fault("loss", b, percent=other)))

    return [
        lambda: loss(100),
        lambda: loss(30),
        lambda: loss(5),
        lambda: loss(1),
        lambda: loss(0.5),
        lambda: Drawn((fault("flows", chance.choice(core), share=chance.choice((0.25, 0.5))),)),
        lambda: Drawn((fault("silent", chance.choice(fabric.spine_names)),)),
        lambda: Drawn(
            (fault("silent", chance.choice(fabric.spine_names), percent=chance.choice((30, 5, 1))),)
        ),
        lambda: Drawn((fault("down", chance.choice(fabric.leaf_names)),)),
        lambda: Drawn((fault("down", chance.choice(every)),)),
        lambda: Drawn((fault("frozen", chance.choice(every)),)),
        lambda: Drawn((fault("delay", chance.choice(core), ms=chance.choice((5, 20))),)),
        lambda: two(100, 30),
        lambda: Drawn((fault("class", chance.choice(core), dscp="EF"),), "classes"),
        lambda: Drawn((fault("bleach", chance.choice(core), dscp="EF"),), "classes"),
        lambda: Drawn((fault("mtu", chance.choice(core), octets=1000),), "sizes"),
        lambda: loss(chance.choice((30, 5)), edge),
        lambda: two(30, 5),
        lambda: Drawn(
            (
                fault(
                    chance.choice(("icmp-limit", "icmp-silent")), chance.choice(fabric.spine_names)
                ),
            )
        ),
        lambda: Drawn((fault("down", chance.choice(fabric.spine_names)),)),
        lambda: loss(1),
        lambda: Drawn(
            (fault("down", chance.choice(every)), fault("loss", chance.choice(core), percent=30))
        ),
        lambda: Drawn(
            (fault("loss", chance.choice(core), percent=chance.choice((100, 30)), family=6),),
            "families",
        ),
        lambda: Drawn((fault("silent", chance.choice(fabric.spine_names), family=6),), "families"),
    ]


def describe(scenario: Drawn) -> str:
    """Return a scenario in a few words."""
    words = []
    for fault in scenario.faults:
        options = {k: v for k, v in fault.record().items() if k not in ("kind", "on", "name")}
        shown = " ".join(
            f"{k}={v}"
            for k, v in options.items()
            if k in ("percent", "share", "ms", "dscp", "octets", "family")
        )
        words.append(f"{fault.kind} {fault.on} {shown}".strip())
    return " + ".join(words)
