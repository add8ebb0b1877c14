"""A fabric in numbers: what flows would lose under given faults, with the truth known.

The same `Fabric` and `Fault` as in namespaces, and the columns that `llama.pinpoint.locate` reads,
so that pinpointing can be measured over thousands of faults in seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.config.dscp import dscp_number
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.pinpoint.evidence import FLOWS, Hosts, Paths

#: Octets of IPv4 and UDP headers.
HEADERS = 28


@frozen(eq=False)
class Window:
    """What one window looked like."""

    flows: npt.NDArray[np.void]  # FLOWS
    hosts: Hosts
    paths: Paths


class Simulation:
    """Every host probes every other over `per_pair` source ports in each class, size and IP version.

    Forward and reverse path of a flow are hashed independently, as real ones are. `traced` is
    the share of flows whose path is known, and of dead flows that a trace met dead.
    """

    def __init__(
        self,
        fabric: Fabric,
        random: np.random.Generator,
        per_pair: int = 16,
        classes: Sequence[str] = ("BE",),
        sizes: Sequence[int] = (44,),
        families: Sequence[int] = (4,),
        traced: float = 1.0,
    ) -> None:
        self.fabric, self.random = fabric, random
        names = list(fabric.hosts)
        racks = list(fabric.hosts.values())
        self.hosts = Hosts(names=names, tags=[{"rack": rack} for rack in racks])
        ends = [(a, b) for a, b in itertools.product(range(len(names)), repeat=2) if a != b]
        kinds = list(itertools.product(map(dscp_number, classes), sizes, families, range(per_pair)))
        self.flows = np.zeros(len(ends) * len(kinds), FLOWS)
        count = len(self.flows)
        self.flows["source"] = np.repeat([a for a, _ in ends], len(kinds))
        self.flows["destination"] = np.repeat([b for _, b in ends], len(kinds))
        self.flows["dscp"] = np.tile([dscp for dscp, *_ in kinds], len(ends))
        self.flows["size"] = np.tile([size for _, size, *_ in kinds], len(ends))
        self.flows["family"] = np.tile([family for *_, family, _ in kinds], len(ends))
        self.flows["remarked_to"] = 255
        self.links = list(fabric.directions)
        number = {link: n for n, link in enumerate(self.links)}
        leaf = np.array([fabric.leaf_names.index(rack) for rack in racks])
        up = np.array([number[host, rack] for host, rack in fabric.hosts.items()])
        down = np.array([number[rack, host] for host, rack in fabric.hosts.items()])
        leaf_up = np.array([[number[a, s] for s in fabric.spine_names] for a in fabric.leaf_names])
        leaf_down = np.array(
            [[number[s, a] for s in fabric.spine_names] for a in fabric.leaf_names]
        )

        def way(a: npt.NDArray[np.integer], b: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
            """Return the links from hosts a to hosts b over random spines: (flows, 4), -1: none."""
            spine = random.integers(0, fabric.spines, count)
            local = leaf[a] == leaf[b]
            middle = np.where(local, -1, leaf_up[leaf[a], spine])
            return np.stack(
                [up[a], middle, np.where(local, -1, leaf_down[leaf[b], spine]), down[b]], axis=1
            )

        self.forward = way(self.flows["source"], self.flows["destination"])
        self.reverse = way(self.flows["destination"], self.flows["source"])
        self.known = random.random(count) < traced
        self.met = random.random(count) < traced

    def _hit(self, fault: Fault, way: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which flows the fault reaches at which place of their way: (flows, 4)."""
        if "->" in fault.on:
            direction = self.fabric.direction(fault.on)
            key = direction.sender.node, direction.receiver.node
            hit = way == self.links.index(key)
        else:
            # A node is reached where it is left again; a host, or a dead node, also where it
            # is entered.
            leaving = [n for n, (a, _) in enumerate(self.links) if a == fault.on]
            hit = np.isin(way, leaving)
            if fault.on in self.fabric.hosts:
                hit |= np.isin(way, [n for n, (_, b) in enumerate(self.links) if b == fault.on])
        if fault.dscp is not None:
            hit &= (self.flows["dscp"] == dscp_number(fault.dscp))[:, None]
        if fault.family is not None:
            hit &= (self.flows["family"] == int(fault.family))[:, None]
        if fault.kind == "mtu":
            hit &= (self.flows["size"] + HEADERS > fault.octets)[:, None]
        if fault.kind == "flows":
            hit &= (self.random.random(len(way)) < fault.share)[:, None]
        reached: npt.NDArray[np.bool_] = hit
        return reached

    def window(
        self, faults: Sequence[Fault], sent: int, noise: float = 0.0, family: int | None = None
    ) -> Window:
        """Return what `sent` probes of every flow meet, with a share of `noise` lost anywhere.

        The faults are of one `family` only, if one is given.
        """
        flows = self.flows.copy()
        flows["sent"] = sent
        count = len(flows)
        rates = {"f": np.full((count, 4), 0.0), "r": np.full((count, 4), 0.0)}
        silent: set[int] = set()
        for fault in faults:
            if fault.kind in ("frozen", "down") and fault.on in self.fabric.spine_names:
                continue  # routed around
            for way_name, way in (("f", self.forward), ("r", self.reverse)):
                hit = self._hit(fault, way)
                if family is not None:
                    hit &= (flows["family"] == family)[:, None]
                if fault.kind == "delay":
                    flows["late"] |= hit.any(axis=1)
                elif fault.kind == "bleach":
                    column = "remarked_forward" if way_name == "f" else "remarked_reverse"
                    changed = hit.any(axis=1) & (flows["dscp"] != dscp_number(fault.to))
                    flows[column][changed] = sent
                    if way_name == "f":
                        flows["remarked_to"][changed] = dscp_number(fault.to)
                elif fault.kind not in ("icmp-limit", "icmp-silent"):
                    rate = fault.percent / 100 if fault.kind in ("loss", "class", "silent") else 1.0
                    rates[way_name] = 1 - (1 - rates[way_name]) * (1 - rate * hit)
            if fault.kind in ("frozen", "down") and fault.on in self.fabric.hosts:
                silent.add(self.hosts.names.index(fault.on))
        there = 1 - np.prod(1 - rates["f"], axis=1) * (1 - noise)
        back = 1 - np.prod(1 - rates["r"], axis=1) * (1 - noise)
        self._lose(flows, there, back, sent)
        hosts = Hosts(names=self.hosts.names, tags=self.hosts.tags, silent=frozenset(silent))
        paths = self._paths(rates["f"])
        keep = ~np.isin(flows["source"], sorted(silent))
        return Window(flows[keep], hosts, _only(paths, keep))

    def _lose(
        self,
        flows: npt.NDArray[np.void],
        there: npt.NDArray[np.float64],
        back: npt.NDArray[np.float64],
        sent: int,
    ) -> None:
        """Draw the losses, and which of them have an unknown direction: those after the last reply."""
        arrived = self.random.binomial(sent, 1 - there)
        received = self.random.binomial(arrived, 1 - back)
        lost = sent - received
        either = np.clip(1 - (1 - there) * (1 - back), 0, 1 - 1e-12)
        with np.errstate(divide="ignore"):
            trailing = np.floor(np.log(self.random.random(len(flows))) / np.log(either))
        trailing = np.where(received == 0, lost, np.minimum(np.nan_to_num(trailing), lost))
        unknown = trailing.astype(np.int64)
        of_forward = self.random.hypergeometric(
            np.maximum(sent - arrived, 0), np.maximum(arrived - received, 0), unknown
        )
        flows["lost_forward"] = sent - arrived - of_forward
        flows["lost_reverse"] = arrived - received - (unknown - of_forward)
        flows["lost_unknown"] = unknown

    def _paths(self, rate: npt.NDArray[np.float64]) -> Paths:
        """Return the known paths, and how far traces came on those that are dead forward."""
        broken = rate >= 0.95
        present = self.forward >= 0
        depth = np.cumsum(present, axis=1) - 1
        first = np.where(broken.any(axis=1), np.argmax(broken, axis=1), 0)
        answered = np.where(broken.any(axis=1) & self.met, depth[np.arange(len(depth)), first], -1)
        shown = present & self.known[:, None]
        start = np.concatenate(([0], np.cumsum(shown.sum(axis=1))))
        return Paths(
            links=self.links,
            start=start,
            link=self.forward[shown].astype(np.int32),
            answered=answered.astype(np.int16),
        )


def _only(paths: Paths, keep: npt.NDArray[np.bool_]) -> Paths:
    """Return the paths of some flows."""
    counts = np.diff(paths.start)
    return Paths(
        links=paths.links,
        start=np.concatenate(([0], np.cumsum(counts[keep]))),
        link=paths.link[np.repeat(keep, counts)],
        answered=paths.answered[keep],
    )
