"""Source ports that a file names and that reflectors refuse: such flows would lose everything."""

from __future__ import annotations

from llama.config.full import PlacedTest
from llama.config.tree import Document
from llama.wire.source_ports import REFUSED_PORTS, named

#: Kinds of probe that our reflectors answer; other responders need not mind the port.
ANSWERED_BY_OURS = frozenset(("stamp", "stamp-auth", "llama-go", "llama-python"))


def note_refused_ports(doc: Document, tests: list[PlacedTest]) -> None:
    """Note every test that sends from a port that no reflector answers, unless that permits it."""
    for placed in tests:
        if placed.test.probe not in ANSWERED_BY_OURS:
            continue
        refused = {port.number for port in placed.test.source_ports if port.number in REFUSED_PORTS}
        refused.discard(0)  # the system's choice, which is another then
        if refused:
            doc.note(
                placed.node,
                f"test {placed.test.name!r} probes from port {named(refused)}, which LLAMA's"
                " reflectors refuse, as a guard against loops: such flows would lose everything;"
                " choose other ports, or list these under permit_source_ports at every reflector",
            )
