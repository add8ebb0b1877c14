"""The sets of flows that have a name: by path, by end, by tag, by class, size and IP version; pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import evolve

from llama.config.dscp import class_name
from llama.pinpoint.evidence import Hosts, Indices, Paths
from llama.pinpoint.scan import Family

#: Of sets that contain the same flows, the physical thing is named before the tag, and a host before the
#: cable to it: the network is not blamed for what may be a host's own slowness.
_RANK = {"host": 0, "link": 1, "node": 2, "class": 3, "size": 3, "family": 3, "tag": 4, "pair": 5}
#: Nats. A tag, and more so a pair of tags or anything in one class only, must fit clearly better
#: than the plain thing: there are so many of them that some fit well by chance.
_HANDICAP = {"tag": 0.5, "pair": 1.5, "confined": 2.0}


def path_families(
    flows: npt.NDArray[np.void], paths: Paths, met_dead: npt.NDArray[np.bool_]
) -> list[Family]:
    """Return links and nodes, also in one class, size or IP version alone where there are several.

    A flow is in those of a way that it left, too, unless it was met dead on the one that it took then.
    """
    start = paths.start.astype(np.int64)
    link = paths.link.astype(np.int64)
    owner = np.repeat(np.arange(len(flows)), np.diff(start))
    depth = (np.arange(len(link)) - start[owner]).astype(np.int16)
    entered, names = _entered(paths)
    last = np.full(len(flows), -1, np.int64)  # the node that a flow's path ends at
    traced = np.flatnonzero(np.diff(start))
    last[traced] = entered[link[start[traced + 1] - 1]]
    # Of every flow all but the last link enter a node that forwards. One that still answered may yet be
    # the one that forwards no more.
    inner = np.arange(len(link)) < start[owner + 1] - 1
    nodes = owner[inner], entered[link[inner]], depth[inner] + np.int16(1)
    left_owner, left_link = paths.left[~met_dead[paths.left[:, 0]]].T
    # Two links that a flow may have crossed may enter one node.
    left_at = np.unique(left_owner * len(names) + entered[left_link])
    left_at = left_at[~np.isin(left_at, nodes[0] * len(names) + nodes[1])]
    node_owner, left_node = np.divmod(left_at, max(1, len(names)))
    through = (last[node_owner] >= 0) & (left_node != last[node_owner])
    families = [
        Family(
            kind="link",
            label=[f"{a} -> {b}" for a, b in paths.links].__getitem__,
            size=len(paths.links),
            rank=_RANK["link"],
            **_members(len(flows), owner, link, depth, left_owner, left_link),
        ),
        Family(
            kind="node",
            label=names.__getitem__,
            size=len(names),
            rank=_RANK["node"],
            **_members(len(flows), *nodes, node_owner[through], left_node[through]),
        ),
    ]
    return [*families, *_each_alone(families, flows)]


def _entered(paths: Paths) -> tuple[Indices, list[str]]:
    """Return which node each link enters, and the names of all nodes."""
    names = sorted({node for pair in paths.links for node in pair})
    number = {name: n for n, name in enumerate(names)}
    return np.array([number[b] for _, b in paths.links], np.int64), names


def _members(
    flows: int,
    owner: Indices,
    member: Indices,
    depth: npt.NDArray[np.int16],
    left_owner: Indices,
    left_member: Indices,
) -> dict[str, Any]:
    """Return `member`, `start` and `depth` of a `Family`: what flows cross, and what they may have."""
    # A flow on a way that it left is proof of nothing there.
    owner = np.concatenate([owner, left_owner])
    order = np.argsort(owner, kind="stable")
    return {
        "member": np.concatenate([member, left_member])[order],
        "depth": np.concatenate([depth, np.full(len(left_owner), -1, np.int16)])[order],
        "start": np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=flows)))),
    }


def _kinds(flows: npt.NDArray[np.void]) -> Iterator[tuple[str, list[str], Indices]]:
    """Yield classes, sizes and IP versions, where there are several: these, and which each flow has."""
    for key, column, name in (
        ("class", flows["dscp"], class_name),
        ("size", flows["size"], str),
        ("family", flows["family"], "IPv{}".format),
    ):
        values, which = np.unique(column, return_inverse=True)
        if len(values) > 1:
            yield key, [name(int(value)) for value in values], which.astype(np.int64)


def _each_alone(families: Sequence[Family], flows: npt.NDArray[np.void]) -> Iterator[Family]:
    """Yield the families with every candidate in every class, size and IP version alone."""
    for family, (key, values, which) in itertools.product(families, list(_kinds(flows))):
        yield _confined(family, key, values, which)


def _confined(whole: Family, key: str, values: Sequence[str], which: Indices) -> Family:
    """Return every candidate in every class, say, alone; `which` has that of each flow."""
    many = len(values)
    if whole.start is not None:
        which = np.repeat(which, np.diff(whole.start))
    return evolve(
        whole,
        label=lambda c: whole.label(c // many),
        size=whole.size * many,
        member=whole.member * many + which,  # what is in none, below 0, stays so
        handicap=whole.handicap + _HANDICAP["confined"],
        confined=lambda c: {key: values[c % many]},
    )


def host_families(flows: npt.NDArray[np.void], hosts: Hosts) -> list[Family]:
    """Return hosts as sources, destinations or either, also in one class, size or IP version alone."""
    source, destination = flows["source"].astype(np.int64), flows["destination"].astype(np.int64)
    families = [
        _column("host", source, _labels(hosts.names, "{} sending")),
        _column("host", destination, _labels(hosts.names, "{} receiving")),
        _either("host", source, destination, _labels(hosts.names, "{}")),
    ]
    return [*families, *_each_alone(families, flows)]


def tag_families(flows: npt.NDArray[np.void], hosts: Hosts) -> list[Family]:
    """Return hosts, tags of sources, destinations or either, pairs of tags, and what `_kinds` yields.

    Tags, too, also in one class, size or IP version alone, as `host_families`.
    """
    source, destination = flows["source"].astype(np.int64), flows["destination"].astype(np.int64)
    families = host_families(flows, hosts)
    for key in sorted({key for tags in hosts.tags for key in tags}):
        values = sorted({tags[key] for tags in hosts.tags if key in tags})
        if len(values) < 2:
            continue
        number = {value: n for n, value in enumerate(values)}
        of_host = np.array([number.get(tags.get(key, ""), -1) for tags in hosts.tags], np.int64)
        a, b = of_host[source], of_host[destination]
        tagged = [
            _column("tag", a, _labels(values, f"{key} {{}} sending")),
            _column("tag", b, _labels(values, f"{key} {{}} receiving")),
            _either("tag", a, b, _labels(values, f"{key} {{}}")),
        ]
        families += [*tagged, *_each_alone(tagged, flows)]
        families.append(_pairs(key, values, a, b, "->"))
        there_and_back = np.where(a == b, -1, np.minimum(a, b))
        families.append(_pairs(key, values, there_and_back, np.maximum(a, b), "<->"))
    for kind, values, which in _kinds(flows):
        form = "{}" if kind == "family" else f"{kind} {{}}"
        families.append(_column(kind, which, _labels(values, form)))
    return families


def _labels(names: Sequence[str], form: str) -> Callable[[int], str]:
    return lambda candidate: form.format(names[candidate])


def _column(kind: str, member: Indices, label: Callable[[int], str]) -> Family:
    """Return candidates of which every flow is in one, or in none (-1)."""
    return Family(
        kind=kind,
        label=label,
        size=int(member.max(initial=-1)) + 1,
        member=member,
        rank=_RANK[kind],
        handicap=_HANDICAP.get(kind, 0.0),
    )


def _either(kind: str, a: Indices, b: Indices, label: Callable[[int], str]) -> Family:
    """Return candidates that every flow is in at one end or the other, or at both."""
    ends = np.stack([a, b], axis=1)
    inside = ends >= 0
    inside[:, 1] &= a != b
    return Family(
        kind=kind,
        label=label,
        size=int(ends.max(initial=-1)) + 1,
        member=ends[inside],
        start=np.concatenate(([0], np.cumsum(inside.sum(axis=1)))),
        rank=_RANK[kind],
        handicap=_HANDICAP.get(kind, 0.0),
        both=True,
    )


def _pairs(key: str, values: Sequence[str], a: Indices, b: Indices, arrow: str) -> Family:
    """Return the pairs of a tag's values, from one to the other or in both directions."""
    many = len(values)
    present, which = np.unique(np.where((a < 0) | (b < 0), -1, a * many + b), return_inverse=True)
    hidden = int(len(present) > 0 and present[0] < 0)

    def label(candidate: int) -> str:
        first, second = divmod(int(present[candidate + hidden]), many)
        return f"{key} {values[first]} {arrow} {key} {values[second]}"

    return evolve(_column("pair", which.astype(np.int64) - hidden, label), both=arrow == "<->")
