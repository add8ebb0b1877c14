"""What a fault should be called by whoever pinpoints it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama.lab.fabric import Fabric
from llama.lab.faults import Fault


def names(fabric: Fabric, fault: Fault) -> set[str]:
    """Return the names, as suspects bear them, that are right for a fault.

    The link between a host and its leaf carries what the host alone sends or receives: nothing
    can tell the two apart from outside, so the host's name is right as well. Likewise a leaf
    and its rack.
    """
    if "->" in fault.on:
        direction = fabric.direction(fault.on)
        ends = direction.sender.node, direction.receiver.node
        found = {str(direction)}
        for host in set(ends) & set(fabric.hosts):
            found |= {host, f"{host} sending", f"{host} receiving"}
        return found
    if fault.on in fabric.leaf_names:
        forms = ("", " sending", " receiving")
        return {fault.on, *(f"rack {fault.on}{form}" for form in forms)}
    if fault.on in fabric.hosts:
        return {fault.on, f"{fault.on} sending", f"{fault.on} receiving"}
    return {fault.on}


def right(fabric: Fabric, fault: Fault, suspect: Mapping[str, Any]) -> bool:
    """Return whether a suspect, as ``/suspects`` gives it, is this fault.

    Names under which the very same flows are known count, for nothing can tell these apart.
    """
    wanted = names(fabric, fault)
    said = {suspect["name"], *suspect["also"]}
    said |= {text.partition(" ")[2] for text in suspect["also"]}
    return bool(wanted & said)
