"""All paths between two hosts: when enough flows were traced, and the graph they make. Pure.

How many flows are enough is the stopping rule of multipath detection (Augustin, Friedman and
Teixeira 2007; Veitch et al. 2009): having seen k next hops, n flows are enough if k + 1 equally
likely ones would have shown all with the wanted probability.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import comb

from attrs import define, field, frozen

from llama.paths.trace import Path

#: Chance, at one branching, of having missed a path.
MISS = 0.05
#: The name of a hop that did not answer.
SILENT = "*"


def missed(hops: int, flows: int) -> float:
    """Return the chance that `flows` show fewer than `hops` equally likely next hops.

    By inclusion and exclusion: the coupon collector's problem.
    """
    if hops <= 1:
        return 0.0 if flows else 1.0
    if flows < hops:
        return 1.0
    return min(
        1.0,
        max(
            0.0,
            -math.fsum((-1) ** j * comb(hops, j) * (1 - j / hops) ** flows for j in range(1, hops)),
        ),
    )


def enough(seen: int, miss: float = MISS) -> int:
    """Return how many flows must go through a node that showed `seen` next hops: 6, 11, 16, ..."""
    flows = seen + 1
    while missed(seen + 1, flows) > miss:
        flows += 1
    return flows


@define
class Node:
    """A hop, by TTL and name: several addresses of one router are one."""

    ttl: int
    name: str
    flows: int = 0
    lossy: int = 0  # flows through it that lose probes end to end
    rtt_s: float = math.nan
    next: Counter[str] = field(factory=Counter)
    #: Flows whose next hop answered; silent ones tell nothing about branching.
    continued: int = 0

    @property
    def seen(self) -> list[str]:
        """The next hops that answered."""
        return [name for name in self.next if name != SILENT]


@frozen
class Graph:
    """Nodes by TTL (0 is ourselves) and name. A hop that never answered is ``*``."""

    nodes: dict[tuple[int, str], Node]

    def layer(self, ttl: int) -> list[Node]:
        """Return the nodes at a TTL, by name."""
        return sorted(
            (node for (where, _), node in self.nodes.items() if where == ttl),
            key=lambda node: node.name,
        )

    @property
    def depth(self) -> int:
        """The largest TTL."""
        return max((ttl for ttl, _ in self.nodes), default=0)

    @property
    def paths(self) -> int:
        """How many different paths it allows, from us to the last layer.

        A silent hop that may be one of those that answered to other flows is no further path.
        """
        ways = {(0, node.name): 1 for node in self.layer(0)}
        total = 0
        for ttl in range(self.depth + 1):
            for node in self.layer(ttl):
                here = ways.get((ttl, node.name), 0)
                if not node.next:
                    total += here
                for name in node.next:
                    if name != SILENT or not self._may_be_known(node):
                        ways[ttl + 1, name] = ways.get((ttl + 1, name), 0) + here
        return total

    def _may_be_known(self, node: Node) -> bool:
        """Return whether the silent next hop leads only where one that answered leads, too."""
        after = set(self.nodes[node.ttl + 1, SILENT].next)
        return any(after <= set(self.nodes[node.ttl + 1, name].next) for name in node.seen)

    def confidence(self) -> float:
        """Return the probability that no branch was missed, one more at each node assumed.

        Every node with k next hops seen by n flows has missed a further, equally likely one with
        the probability `missed`; the nodes are taken as independent.
        """
        sure = 1.0
        for node in self.nodes.values():
            if node.continued:
                sure *= 1 - missed(len(node.seen) + 1, node.continued)
        return sure

    def wanting(self) -> int:
        """Return how many more flows the most doubtful node needs; 0 if all have enough."""
        need = 0
        total = max((node.flows for node in self.layer(0)), default=0)
        for node in self.nodes.values():
            if not node.continued:
                continue
            short = enough(len(node.seen)) - node.continued
            if short > 0:
                # Only its share of the flows comes by.
                need = max(need, math.ceil(short * total / node.continued))
        return need


def graph(
    paths: Iterable[tuple[Path, bool]], source: str, name: Callable[[str], str] = str
) -> Graph:
    """Return the graph of paths, each with whether its flow loses probes end to end."""
    nodes: dict[tuple[int, str], Node] = {}

    def node(ttl: int, label: str) -> Node:
        return nodes.setdefault((ttl, label), Node(ttl, label))

    for path, lossy in paths:
        labels = [source, *(SILENT if hop is None else name(hop) for hop in path.hops)]
        rtts = [math.nan, *path.rtts_s]
        for ttl, (label, rtt_s) in enumerate(zip(labels, rtts, strict=True)):
            here = node(ttl, label)
            here.flows += 1
            here.lossy += lossy
            here.rtt_s = rtt_s if not here.rtt_s <= rtt_s else here.rtt_s
            if ttl + 1 < len(labels):
                here.next[labels[ttl + 1]] += 1
                if labels[ttl + 1] != SILENT:
                    here.continued += 1
    return Graph(nodes)


# The picture: one column a layer, every node on a row of its own, lines between.

_LINES = {
    "": " ", "E": "╶", "W": "╴", "EW": "─", "N": "╵", "S": "╷", "NS": "│", "ES": "┌", "EN": "└",
    "SW": "┐", "NW": "┘", "ENS": "├", "NSW": "┤", "ESW": "┬", "ENW": "┴", "ENSW": "┼",
}  # fmt: skip


def picture(made: Graph, label: Callable[[Node], str]) -> list[str]:
    """Return the graph as lines of text, from left to right. `label` writes a node.

    Nodes that lead to the same set of next hops share one vertical line, so that the full mesh
    between two layers is one line and not its every link.
    """
    layers = [made.layer(ttl) for ttl in range(made.depth + 1)]
    height = max(len(layer) for layer in layers)
    rows = [
        {node.name: _row(n, len(layer), height) for n, node in enumerate(layer)} for layer in layers
    ]
    total = 2 * height - 1
    lines = [""] * total
    for ttl, layer in enumerate(layers):
        labels = {rows[ttl][node.name]: label(node) for node in layer}
        width = max(len(text) for text in labels.values())
        last = ttl == len(layers) - 1
        for row in range(total):
            text = labels.get(row, "")
            node = next((n for n in layer if rows[ttl][n.name] == row), None)
            fill = "─" if node is not None and node.next and not last else " "
            lines[row] += text + (fill * (width - len(text)))
        if not last:
            for row, drawn in enumerate(_wires(layer, rows[ttl], rows[ttl + 1], total)):
                lines[row] += drawn
    return [line.rstrip() for line in lines]


def _row(n: int, count: int, height: int) -> int:
    """Return the line of the n-th of `count` nodes, spread over a picture of `height` nodes."""
    return (height - count) + 2 * n


def _wires(
    layer: Sequence[Node], rows: dict[str, int], next_rows: dict[str, int], total: int
) -> list[str]:
    """Return the lines between two layers, one vertical a set of next hops."""
    bundles: dict[frozenset[str], list[Node]] = {}
    for node in layer:
        if node.next:
            bundles.setdefault(frozenset(node.next), []).append(node)
    width = 2 * len(bundles) + 1
    cells = [[set[str]() for _ in range(width)] for _ in range(total)]

    def horizontal(row: int, first: int, last: int) -> None:
        for column in range(first, last + 1):
            if column > first:
                cells[row][column].add("W")
            if column < last:
                cells[row][column].add("E")

    for number, (targets, sources) in enumerate(bundles.items()):
        x = 2 * number + 1
        from_rows = [rows[node.name] for node in sources]
        to_rows = [next_rows[name] for name in targets]
        for row in from_rows:
            horizontal(row, 0, x)
            cells[row][0].add("W")
        for row in to_rows:
            horizontal(row, x, width - 1)
            cells[row][width - 1].add("E")
        low, high = min(from_rows + to_rows), max(from_rows + to_rows)
        for row in range(low, high + 1):
            if row > low:
                cells[row][x].add("N")
            if row < high:
                cells[row][x].add("S")
    return ["".join(_LINES["".join(sorted(cell))] for cell in row) for row in cells]
