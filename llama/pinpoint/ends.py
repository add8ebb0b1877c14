"""What is sick at the ends of flows: dead hosts, dead reflectors, blind collectors; pure.

This comes first. A host that is down makes every flow to it a total loss, and a collector that is
cut off sees the whole network dead: as votes on links, both would bury the truth.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.pinpoint.evidence import Hosts, Mask


@frozen(eq=False)
class Sick:
    """One host, or all hosts that share a tag, and what is the matter."""

    kind: str  # "host", "reflector", "collector", "tag"
    name: str
    hosts: frozenset[int]
    direction: str
    evidence: str
    #: Whether only what is sent to them is lost, and their own collectors reach others.
    receiving: bool = False


@frozen(eq=False)
class Ends:
    """The hosts that are dead to others, and those that see nothing."""

    sick: tuple[Sick, ...]
    dead: Mask  # by host: nobody gets an answer from it
    blind: Mask  # by host: its collector gets no answer from anybody


def examine(
    hosts: Hosts,
    source: npt.NDArray[np.integer],
    destination: npt.NDArray[np.integer],
    dead_flow: Mask,
    threshold: float,
) -> Ends:
    """Find the sick ends among flows given by their ends and whether they lost everything.

    `threshold` is the share of an end's flows that must be dead. A host probed by a single
    source, or a source with a single target, cannot be judged: it may be either, or the way.
    """
    count = len(hosts.names)
    pair = source.astype(np.int64) * count + destination
    pairs, which = np.unique(pair, return_inverse=True)
    flows = np.bincount(which, minlength=len(pairs))
    gone = np.bincount(which, weights=dead_flow, minlength=len(pairs))
    pair_source, pair_destination = np.divmod(pairs, max(count, 1))

    def share_dead(end: npt.NDArray[np.int64], keep: Mask) -> tuple[Mask, npt.NDArray[np.int64]]:
        """Return, by host at this end of the kept pairs: all dead, and in how many pairs it is."""
        total = np.bincount(end[keep], weights=flows[keep], minlength=count)
        lost = np.bincount(end[keep], weights=gone[keep], minlength=count)
        return (total > 0) & (lost >= threshold * total), np.bincount(end[keep], minlength=count)

    everything = np.ones(len(pairs), bool)
    blind, targets = share_dead(pair_source, everything)
    blind &= targets >= 2
    seeing = ~blind[pair_source]
    if not seeing.any():
        # Nobody sees anything: that says nothing about any single one.
        nobody = np.zeros(count, bool)
        return Ends((), nobody, nobody)
    dead, sources = share_dead(pair_destination, seeing)
    dead &= sources >= 2
    # Whose targets are all dead to everybody is not blind for that.
    alive = ~dead[pair_destination]
    truly, targets = share_dead(pair_source, alive)
    blind &= truly & (targets >= 1)

    reaching = np.bincount(pair_source, weights=flows - gone, minlength=count) > 0
    probed = np.zeros(count, bool)
    probed[pair_destination] = True
    sick = list(_grouped(hosts, dead, probed, reaching & ~blind))
    told = {host for group in sick for host in group.hosts}
    for host in np.flatnonzero(dead).tolist():
        if host not in told:
            why = bool(blind[host]), bool(reaching[host])
            sick.append(_dead(hosts, host, *why, sources[host]))
    sick += [_blind(hosts, int(host), targets[host]) for host in np.flatnonzero(blind & ~dead)]
    return Ends(tuple(sick), dead, blind)


def _blind(hosts: Hosts, host: int, targets: int) -> Sick:
    """Say that a collector sees nothing of what others see."""
    name = hosts.names[host]
    why = (
        f"collector {name}: loses everything to all {targets} targets, which others reach;"
        " its own problem"
    )
    return Sick("collector", name, frozenset((host,)), "unknown", why)


def _dead(hosts: Hosts, host: int, blind: bool, reaching: bool, sources: int) -> Sick:
    """Say what a dead host is: down, cut off, or only without its reflector."""
    name = hosts.names[host]
    everyone = f"all {sources} sources lose it entirely"
    rack = _healthy_neighbours(hosts, host)
    if host in hosts.silent:
        why = f"host {name} down: {everyone}, its collector does not answer{rack}"
    elif blind:
        why = f"host {name} cut off: {everyone}, and its own collector loses everything{rack}"
    elif reaching:
        why = f"reflector of {name} dead: {everyone}, but its collector reaches others{rack}"
        return Sick("reflector", name, frozenset((host,)), "unknown", why, receiving=True)
    else:
        why = f"host {name} down: {everyone}{rack}"
    return Sick("host", name, frozenset((host,)), "unknown", why)


def _healthy_neighbours(hosts: Hosts, host: int) -> str:
    """Return words on the hosts that share a tag with this one; none of them is dead."""
    for key, value in hosts.tags[host].items():
        others = sum(tags.get(key) == value for tags in hosts.tags) - 1
        if 0 < others < len(hosts.tags) - 1:
            return f"; {others} more of {key} {value} not"
    return ""


def _grouped(hosts: Hosts, dead: Mask, probed: Mask, reaching: Mask) -> Iterable[Sick]:
    """Yield one cause for two or more dead hosts that are all there is of a tag's value.

    `reaching` are hosts whose collectors reach others.
    """
    members: dict[tuple[str, str], set[int]] = {}
    for host in np.flatnonzero(probed):
        for key, value in hosts.tags[int(host)].items():
            members.setdefault((key, value), set()).add(int(host))
    alive = bool((probed & ~dead).any())
    told: set[int] = set()
    # The largest first: a dead site is one cause, not its dead racks.
    for (key, value), group in sorted(members.items(), key=lambda item: -len(item[1])):
        if alive and len(group) >= 2 and not group & told and all(dead[h] for h in group):
            told |= group
            all_of_it = f"every source outside loses all of its {len(group)} hosts"
            if all(reaching[h] for h in group):
                # Nobody restarts reflectors who reads that a rack is down.
                name = f"{key} {value} receiving"
                why = f"reflectors of {key} {value} dead: {all_of_it}, but their collectors reach others"
                yield Sick("tag", name, frozenset(group), "unknown", why, receiving=True)
            else:
                why = f"{key} {value} down: {all_of_it}"
                yield Sick("tag", f"{key} {value}", frozenset(group), "unknown", why)
