"""What a fault should be called by whoever pinpoints it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama.config.dscp import class_name, dscp_number
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.lab.hosts import VERSIONS, Traffic

#: Octets of IP and UDP headers by IP version.
_HEADERS = {4: 28, 6: 48}


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


def confined(fault: Fault, traffic: Traffic) -> dict[str, set[str]]:
    """Return which classes, sizes and IP versions of the traffic alone a fault hits.

    By the keys of a suspect's ``only``; one of which the fault hits all is not among them.
    """
    hit: dict[str, set[str]] = {}
    if fault.dscp is not None and len(traffic.classes) > 1:
        hit["class"] = {class_name(dscp_number(fault.dscp))}
    versions = VERSIONS[traffic.family]
    if fault.family is not None:
        mine = (int(fault.family),)
        if versions != mine:
            hit["family"] = {f"IPv{fault.family}"}
        versions = mine
    if fault.kind == "mtu":
        headers = max(_HEADERS[version] for version in versions)
        large = {str(size) for size in traffic.sizes if size + headers > fault.octets}
        if len(large) < len(traffic.sizes):
            hit["size"] = large
    return hit


def right(fabric: Fabric, traffic: Traffic, fault: Fault, suspect: Mapping[str, Any]) -> bool:
    """Return whether a suspect, as ``/suspects`` gives it, is this fault under this traffic.

    Names under which the very same flows are known count, for nothing can tell these apart. What
    hits one class, size or IP version alone must be said to be so, and nothing else may.
    """
    wanted = names(fabric, fault)
    said = {suspect["name"], *suspect["also"]}
    said |= {text.partition(" ")[2] for text in suspect["also"]}
    alone, only = confined(fault, traffic), suspect["only"]
    # Whoever says that a class is re-marked says which, and is not bound to say it twice.
    if alone and not only and fault.kind != "bleach":
        return False
    fits = all(value in alone.get(key, ()) for key, value in only.items())
    return fits and bool(wanted & said)
