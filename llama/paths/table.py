"""The paths of flows as they were last traced: bounded, with times, and with what changed. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from attrs import define, field, frozen

from llama.paths.trace import Path

#: Earlier paths that are remembered of a flow.
EARLIER = 4
#: Traces in a row in which a hop that answered before may be silent. Then it is silent: the flow may
#: cross another router by now, which never answers.
SILENT = 4

Hops = tuple[str | None, ...]


@frozen(cache_hash=True)  # looked up once for every flow of a judgement
class FlowKey:
    """What a router hashes, and what else may decide about a path."""

    dst_ip: str
    dst_port: int
    source_port: int
    dscp: int
    size: int  # octets of UDP payload

    @property
    def tuple5(self) -> tuple[str, int, int]:
        """What all classes and sizes of it have in common."""
        return self.dst_ip, self.dst_port, self.source_port


@define
class Known:
    """What is known of a flow's path. Times are Unix seconds."""

    #: The last path that came through; as far as it goes where a newer trace that did not come
    #: through found other hops.
    hops: Hops
    complete: bool
    traced: float  # the newest trace
    confirmed: float  # the newest trace that found `hops`
    #: Of the newest trace, if it did not come through: the last hop that answered. None: it did.
    reach: int | None = None
    refusal: str = ""
    refused_by: str = ""
    traces: int = 0
    changed: float | None = None  # when the hops were last found to be others
    left: frozenset[str] = frozenset()  # hops that it was found to have left then
    silent: int = 0  # traces in a row in which one of `hops` gave no answer
    earlier: list[tuple[float, Hops]] = field(factory=list)


def agree(a: Hops, b: Hops) -> bool:
    """Return whether no hop differs as far as both go: what was silent may have been anything."""
    return all(x == y or x is None or y is None for x, y in zip(a, b, strict=False))


def same_way(a: Hops, b: Hops) -> bool:
    """Return whether two traces that came through may be of one path."""
    return len(a) == len(b) and agree(a, b)


class PathTable:
    """`Known` by `FlowKey`, at most so many; those traced longest ago are forgotten first."""

    def __init__(self, most: int = 65_536) -> None:
        self.most = most
        self.changes = 0
        self._known: OrderedDict[FlowKey, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: FlowKey) -> Known | None:
        """Return what is known of a flow."""
        return self._known.get(key)

    def since(self, time_s: float) -> Iterator[tuple[FlowKey, Known]]:
        """Yield what was traced at that Unix time or later, the newest first."""
        for key in reversed(self._known):
            known = self._known[key]
            if known.traced < time_s:
                return
            yield key, known

    def enter(self, key: FlowKey, path: Path, now: float) -> bool:
        """Take a trace that was finished `now`; return whether the path is another than before.

        A trace that did not come through says how far it came, and does not unsay the path unless
        it met another hop on it. Then only what it met is known.
        """
        known = self._known.pop(key, None)
        changed = False
        if known is None:
            known = Known(path.hops, path.complete, now, now)
        else:
            changed = _contradicts(path, known)
            if changed:
                known.left = _left(path, known)
                known.earlier = [(known.confirmed, known.hops), *known.earlier][:EARLIER]
                known.changed = now
                known.traces = 0
                self.changes += 1
            if changed or path.complete or not known.complete:
                hops = path.hops
                if path.complete and known.complete and not changed:
                    hops = tuple(a or b for a, b in zip(path.hops, known.hops, strict=True))
                known.silent = 0 if hops == path.hops else known.silent + 1
                known.hops = path.hops if known.silent >= SILENT else hops
                known.complete = path.complete
                known.confirmed = now
        known.traced = now
        known.traces += 1
        known.reach = None if path.complete else path.reach
        known.refusal, known.refused_by = path.refusal, path.refused_by
        self._known[key] = known
        while len(self._known) > self.most:
            self._known.popitem(last=False)
        return changed


def _contradicts(path: Path, known: Known) -> bool:
    """Return whether a trace cannot be of the path that is known, however far either goes."""
    beyond = (known.complete and len(path.hops) > len(known.hops)) or (
        path.complete and len(known.hops) > len(path.hops)
    )
    return beyond or not agree(path.hops, known.hops)


def _left(path: Path, known: Known) -> frozenset[str]:
    """Return the hops that are no more on the path, as far as the trace came."""
    before = known.hops if path.complete else known.hops[: len(path.hops)]
    return frozenset(hop for hop in before if hop is not None) - frozenset(path.hops)


def as_json(key: FlowKey, known: Known) -> dict[str, Any]:
    """Return one row for programs."""
    return {
        "dst_ip": key.dst_ip,
        "dst_port": key.dst_port,
        "source_port": key.source_port,
        "dscp": key.dscp,
        "size_octets": key.size,
        "hops": known.hops,
        "complete": known.complete,
        "traced": known.traced,
        "confirmed": known.confirmed,
        "reach": known.reach,
        "refusal": known.refusal or None,
        "refused_by": known.refused_by or None,
        "changed": known.changed,
    }
