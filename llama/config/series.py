"""No two targets of a collector may write the same series: those not told apart are refused."""

from __future__ import annotations

import ipaddress
from typing import Any

from llama.config.dscp import class_name
from llama.config.full import PlacedTest
from llama.config.model import Target, Test
from llama.config.offered_load import port_of
from llama.config.tree import Document, Node, line_of


def refuse_collisions(doc: Document, tests: list[PlacedTest]) -> None:
    """Note a mistake for every target whose series another one writes already.

    A series is named by source, destination address and port, class, kind of probe, size, port
    group and tags (`llama.collector.intervals.summary.Pair`).
    """
    seen: dict[Any, tuple[Node, Node]] = {}
    for placed in tests:
        test = placed.test
        classes = sorted({dscp for port in test.source_ports for dscp in port.dscps})
        sources = {port.address or test.source for port in test.source_ports}
        whole_test: dict[int, int] = {}
        for target, node in zip(test.targets, placed.target_nodes, strict=True):
            found = None
            for series in _series(test, target, classes, sources):
                first = seen.setdefault(series, (node, placed.node))
                if first[1] is not placed.node or first[0] is not node:
                    found = found or (series, first)
            if found is None:
                continue
            series, (first_node, first_test) = found
            if first_node is node:
                whole_test.setdefault(line_of(first_test), series[-1])
                continue
            doc.wrong(
                node,
                f"target {target.host} port {target.port} ({class_name(series[-1])},"
                f" {test.probe}) is also that of line {line_of(first_node)} with the same tags:"
                " their results would overwrite each other; give one another tag or remove it",
            )
        for line, dscp in whole_test.items():
            doc.wrong(
                placed.node,
                f"this test sends {test.probe} probes in class {class_name(dscp)} from port group"
                f" {test.port_group!r} to the targets of the test in line {line}: their results"
                " would overwrite each other; use another port group, or targets with other tags",
            )


def _series(test: Test, target: Target, classes: list[int], sources: set[str | None]) -> list[Any]:
    """Return a key for every series that a test writes for a target; the class comes last."""
    try:
        families: set[int] = {ipaddress.ip_address(target.host).version}
    except ValueError:
        families = {4, 6} if test.family in ("any", "both") else {int(test.family)}
    return [
        (
            source,
            test.interface,
            target.host.lower().removesuffix("."),
            port_of(test, target),
            family,
            test.probe,
            size,
            test.port_group,
            target.tags,
            dscp,
        )
        for dscp in classes
        for family in families
        for source in sources
        for size in test.sizes or (0,)
    ]
