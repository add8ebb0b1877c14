"""The paths of flows as they were last traced: bounded, with times, and with what changed. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from attrs import define, field, frozen

from llama.pinpoint.trace import Path

#: Earlier paths that are remembered of a flow.
EARLIER = 4


@frozen
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

    #: The last path that came through, or the longest that did not.
    hops: tuple[str | None, ...]
    complete: bool
    traced: float  # the newest trace
    confirmed: float  # the newest trace that found `hops`
    #: Of the newest trace, if it did not come through: the last hop that answered. None: it did.
    reach: int | None = None
    refusal: str = ""
    traces: int = 0
    changed: float | None = None  # when the hops were last found to be others
    earlier: list[tuple[float, tuple[str | None, ...]]] = field(factory=list)


def same_way(a: tuple[str | None, ...], b: tuple[str | None, ...]) -> bool:
    """Return whether two traces may be of one path: what was silent once may be anything."""
    return len(a) == len(b) and all(
        x == y or x is None or y is None for x, y in zip(a, b, strict=True)
    )


class PathTable:
    """`Known` by `FlowKey`, at most so many; those traced longest ago are forgotten first."""

    def __init__(self, most: int = 65_536) -> None:
        self.most = most
        self.changes = 0
        self._known: OrderedDict[FlowKey, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: FlowKey) -> bool:
        return key in self._known

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

        A trace that did not come through says how far it came; it does not unsay the path.
        """
        known = self._known.pop(key, None)
        changed = False
        if known is None:
            known = Known(path.hops, path.complete, now, now)
        elif path.complete or not known.complete:
            changed = path.complete and known.complete and not same_way(path.hops, known.hops)
            if changed:
                known.earlier = [(known.confirmed, known.hops), *known.earlier][:EARLIER]
                known.changed = now
                self.changes += 1
            if changed or not known.complete or path.hops.count(None) <= known.hops.count(None):
                known.hops = path.hops
            known.complete = known.complete or path.complete
            known.confirmed = now
        known.traced = now
        known.traces += 1
        known.reach = None if path.complete else path.reach
        known.refusal = path.refusal
        self._known[key] = known
        while len(self._known) > self.most:
            self._known.popitem(last=False)
        return changed


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
        "changed": known.changed,
    }
