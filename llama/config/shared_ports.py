"""Tests that cannot share a source port are refused.

They share a socket there, with what is set for all that leaves it, and must be told apart by what
comes back.
"""

from __future__ import annotations

from typing import Any

from llama.config.full import PlacedTest
from llama.config.probes import KINDS
from llama.config.tree import Document, Node, line_of


def refuse_both_ways(doc: Document, tests: list[PlacedTest]) -> None:
    """Note a mistake for every test that differs in ``df`` from another on the same source port.

    It is set for a socket, and there cannot be two at one port.
    """
    seen: dict[Any, PlacedTest] = {}
    for placed in tests:
        test = placed.test
        if not KINDS[test.probe].fragments:
            continue
        for port in test.source_ports:
            if not port.number:
                continue
            other = seen.setdefault(
                (port.address or test.source, test.interface, port.number), placed
            )
            if other.test.df is not test.df:
                doc.wrong(
                    placed.node,
                    f"tests {test.name!r} and {other.test.name!r} (line {line_of(other.node)}) both send"
                    f" from source port {port.number}, one with df and one without: give one another"
                    " source port",
                )
                break


def refuse_shared_ports(doc: Document, tests: list[PlacedTest]) -> None:
    """Note a mistake for every twamp-light test that probes as another one does.

    A reply of a TWAMP-Light responder bears nothing that tells which test it is for. From one
    source port to one address and port the replies of one test would be taken for the other's.
    """
    seen: dict[Any, tuple[str, Node]] = {}
    for placed in tests:
        test = placed.test
        if test.probe != "twamp-light":
            continue
        sources = {
            (port.address or test.source, test.interface, port.number)
            for port in test.source_ports
            if port.number
        }
        hosts = {(target.host.lower().removesuffix("."), target.port) for target in test.targets}
        for source, host in sorted(
            ((source, host) for source in sources for host in hosts), key=repr
        ):
            other, node = seen.setdefault((source, host), (test.name, placed.node))
            if node is not placed.node:
                doc.wrong(
                    placed.node,
                    f"tests {test.name!r} and {other!r} (line {line_of(node)}) both send twamp-light"
                    f" probes from source port {source[2]} to {host[0]} port {host[1]}: such peers"
                    " do not say which of them they answer; give one another source port, or make"
                    " them one test with several classes or sizes",
                )
                break
