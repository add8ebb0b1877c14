"""Targets behind one of this host's interfaces, of which the file does not say which."""

from __future__ import annotations

from llama.config.full import PlacedTest
from llama.config.tree import Document

_BEGIN = ("fe8", "fe9", "fea", "feb")  # addresses of fe80::/10


def refuse_without_interface(doc: Document, tests: list[PlacedTest]) -> None:
    """Refuse link-local targets without an interface: the kernel would take any, and all be lost."""
    for placed in tests:
        if placed.test.interface is not None:
            continue
        for target, node in zip(placed.test.targets, placed.target_nodes, strict=True):
            host = target.host
            if host[:3] in _BEGIN and ":" in host and "%" not in host:
                doc.wrong(
                    node,
                    f"{host!r} is link-local, expected the interface that it is behind with it, as in"
                    f" {host}%eth0",
                )
