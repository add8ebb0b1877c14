"""The source ports of the full format: ports, the groups they make, and what they mean together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from llama.config import values
from llama.config.dscp import class_name
from llama.config.model import SourcePort
from llama.config.tree import Document, KeySpec, Node, undefined

DEFAULT_TIMEOUT_S = 1.0
DEFAULT_COUNT = 4
#: All port groups together.
MAX_PORTS = 1_000_000
#: What "default" is where a file does not define it.
DEFAULT_SOURCE_PORTS = (SourcePort(name="default"),) * DEFAULT_COUNT


@frozen
class Placed:
    """What was read, and where."""

    value: Any
    node: Node


def placed(read: values.Read[Any]) -> values.Read[Placed]:
    """Return a reader that remembers where it read."""
    return lambda doc, node: Placed(read(doc, node), node)


TIMEOUT = values.duration(0.001, 60, "ms")
CLASSES = values.one_or_more("traffic classes such as [BE, EF]", values.dscp)
PORT = {
    "ip": KeySpec(values.address),
    "port": KeySpec(values.whole(0, 65535, "UDP port, 0: the system chooses"), 0),
    "tos": KeySpec(placed(values.tos)),
    "dscp": KeySpec(placed(CLASSES)),
    "timeout": KeySpec(TIMEOUT, DEFAULT_TIMEOUT_S),
}
_DEFAULT_PORT = {name: spec.default for name, spec in PORT.items()}
PORT_GROUP = {
    "port": KeySpec(placed(values.text("the name of a port")), required=True),
    "count": KeySpec(values.whole(1, 60_000, "source ports"), 1),
}


def read_port(doc: Document, node: Node) -> Mapping[str, Any]:
    """Read one port, by the keys of `PORT`."""
    given = doc.mapping(node, "a port", PORT)
    if given["tos"] and given["dscp"]:
        doc.wrong(given["dscp"].node, "both tos and dscp name the class, expected one of them")
    return given


def read_port_group(doc: Document, node: Node) -> Sequence[tuple[Node, Mapping[str, Any]]]:
    """Read one port group: each item's node and its values by the keys of `PORT_GROUP`."""
    return doc.sequence(
        node,
        "a port group",
        lambda doc, node: (node, doc.mapping(node, "an item of a port group", PORT_GROUP)),
        "port: NAME",
    )


def source_ports(
    doc: Document, entries: Sequence[tuple[Node, Mapping[str, Any]]], ports: Mapping[str, Any]
) -> tuple[SourcePort, ...] | None:
    """Return the source ports of one port group, or None when a mistake spoils it."""
    made: list[SourcePort] = []
    taken: dict[int, list[tuple[str | None, str]]] = {}
    for node, entry in entries:
        ref = entry["port"]
        if ref is None:
            return None
        if ref.value not in ports and ref.value != "default":
            doc.wrong(ref.node, undefined("port", ref.value, {"default": None, **ports}))
            return None
        port = ports.get(ref.value, _DEFAULT_PORT)
        if port is None:
            return None
        dscps = (port["tos"].value,) if port["tos"] else (0,)
        dscps = port["dscp"].value if port["dscp"] else dscps
        address = None if port["ip"] in ("0.0.0.0", "::") else port["ip"]  # noqa: S104  not bound
        base, count = port["port"], entry["count"]
        if base and base + count - 1 > 65535:
            doc.wrong(
                node, f"port {ref.value!r} counts from {base} to {base + count - 1}, past 65535"
            )
            continue
        for number in range(base, base + count) if base else (0,) * count:
            others = taken.setdefault(number, []) if number else []
            clash = [name for other, name in others if address in (None, other) or other is None]
            if clash:
                doc.wrong(
                    node,
                    f"source port {number} of port {ref.value!r} is already that of port"
                    f" {clash[0]!r} in this group; one port can send several classes:"
                    " `dscp: [BE, EF]`",
                )
                break
            others.append((address, ref.value))
            made.append(
                SourcePort(
                    name=ref.value,
                    address=address,
                    number=number,
                    dscps=dscps,
                    timeout_s=port["timeout"],
                )
            )
    return tuple(made)


def one_timeout_a_class(doc: Document, node: Node, ports: Sequence[SourcePort]) -> None:
    """Refuse to count one class's probes by different timeouts: they are one series."""
    timeouts: dict[tuple[str | None, int], float] = {}
    for port in ports:
        for dscp in port.dscps:
            other = timeouts.setdefault((port.address, dscp), port.timeout_s)
            if other != port.timeout_s:
                doc.wrong(
                    node,
                    f"its ports send class {class_name(dscp)} with timeouts of"
                    f" {other * 1000:g} and {port.timeout_s * 1000:g} ms, expected the same one:"
                    " their results are one series",
                )
                return
