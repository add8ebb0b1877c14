"""What collectors measured, interval by interval, as the columns that pinpointing reads. Pure.

Rows of a collector's ``/flows``, ``/latency`` and ``/paths`` come in, `Window` goes out: flows summed
up over the last so many intervals, with their hosts, tags and paths. Every flow keeps its row, a
lasting number, and what is ordinary for its RTT.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.collector.summary import SUSPECT_REASONS
from llama.pinpoint.evidence import FLOWS, NOT_TRACED, Hosts, Paths
from llama.pinpoint.table import FlowKey, Hops, agree, same_way

#: An RTT is out of the ordinary above the ordinary one by this, and by half of it.
LATE_NS = 1_000_000.0
#: How fast the ordinary follows what is measured, and what is measured while late, a share an
#: interval: what stays late for hours becomes the ordinary.
FOLLOW, FOLLOW_LATE = 0.1, 0.002
#: Flows that stay dead are traced again only now and then: so long it counts where they were met
#: dead, s before a window in which they still are.
MET_DEAD_S = 60.0
#: Share of loss above which nothing worth the name came back.
DEAD = 0.95
#: Intervals that are held for windows over several of them.
KEEP = 12
#: A flow not measured for so many intervals is forgotten.
FORGET = 120

#: Stands in a path for what lies between the last hop that answered and the destination's router.
UNKNOWN = "?"

_BITS = {name: 1 << n for n, name in enumerate(SUSPECT_REASONS)}
_COUNTS = (
    "sent",
    "lost_forward",
    "lost_reverse",
    "lost_unknown",
    "remarked_forward",
    "remarked_reverse",
)


@frozen(kw_only=True, eq=False)
class Window:
    """Columns for `llama.pinpoint.locate.locate`, and what the flows are called."""

    flows: npt.NDArray[np.void]
    hosts: Hosts
    paths: Paths
    numbers: npt.NDArray[np.int64]  # lasting, one a flow
    end_s: float  # Unix time at which the newest interval ended


@frozen(kw_only=True)
class Moved:
    """A flow whose RTT became another when its path did. Hops are names, the ends left out."""

    number: int  # lasting
    source: int  # index into the host table
    destination: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_ns: float  # what was ordinary
    after_ns: float


def unix_s(text: str) -> float:
    """Return the Unix time of an RFC 3339 time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Measured:
    """Everything that was measured lately. `add_*` fill it, `window` reads it.

    `name` names the addresses of hops; several addresses of one router should get one name.
    """

    def __init__(self, keep: int = KEEP, name: Callable[[str], str] = str) -> None:
        self.keep = keep
        self._name = name
        self._hosts: dict[str, int] = {}
        self._host_names: list[str] = []  # "" where a host was forgotten
        self._free_hosts: list[int] = []
        self._tags: list[dict[str, str]] = []
        #: Collector -> its pairs, and what it said of hosts when it was asked last; who said something
        #: new last comes last.
        self._pairs: dict[str, dict[tuple[Any, ...], tuple[int, int]]] = {}
        self._said: dict[str, dict[int, dict[str, str]]] = {}
        self._rows: dict[tuple[int, FlowKey], int] = {}
        self._keys: list[tuple[int, FlowKey] | None] = []
        self._free: list[int] = []
        size = 1024
        self._flows = np.zeros(size, FLOWS)  # what does not change: ends, class, size
        self._numbers = np.zeros(size, np.int64)
        self._ordinary_ns = np.full(size, np.nan)
        self._measured = np.zeros(size, np.int64)  # the interval a flow was last measured in
        #: Interval's end -> collector -> its rows and their figures.
        self._intervals: OrderedDict[float, dict[str, tuple[npt.NDArray[np.int64], Any]]] = (
            OrderedDict()
        )
        self._moved: dict[float, list[Moved]] = {}  # by the interval's end, as `_intervals`
        #: Row -> what was ordinary for its RTT, and its hops then and now: until it is measured again.
        self._rerouted: dict[int, tuple[float, Hops, Hops]] = {}
        #: Flow -> hops of its path, () if none is known; hops that answered to the newest trace if it
        #: did not come through, else -1; when that was. Where that trace was on another way than the
        #: known one, `UNKNOWN` and the destination follow what it met.
        self.paths: dict[tuple[int, FlowKey], tuple[Hops, int, float]] = {}
        self._by_tuple: dict[tuple[int, tuple[str, int, int]], Hops] = {}
        #: Flow -> hops of the last path that came through, which its ordinary RTT belongs to.
        self._whole: dict[tuple[int, FlowKey], Hops] = {}
        #: The rows of all classes and sizes of a flow.
        self._likes: dict[tuple[int, tuple[str, int, int]], list[int]] = {}
        #: Source and destination's address -> the router before it, how many hops away it is, and the
        #: last router that answers.
        self._ends: dict[tuple[int, str], tuple[str | None, int, int]] = {}
        #: Hops of traces that did not come through, and when: the path nevertheless, if the flow
        #: lives on. Not every reflector answers a trace.
        self._unconfirmed: dict[tuple[int, FlowKey], tuple[Hops, float]] = {}
        self.collectors: dict[str, int] = {}  # collector -> its host
        self.silent: set[str] = set()  # collectors that did not answer lately
        self.behind: dict[
            str, float
        ] = {}  # collectors not waited for -> how far behind they are, s
        self.judged_s = 0.0  # the end of the interval that was judged last
        self.due_s = inf  # the end of the interval that is looked for: later ones are of the future
        self.ahead: dict[str, float] = {}  # collectors too far in the future, and how far, s
        #: Collector -> rows that came after their intervals had been judged, since `take_late`.
        self._late_rows: dict[str, set[int]] = {}
        self.length_s = 0.0

    # Hosts and pairs

    def _host(self, name: str) -> int:
        number = self._hosts.get(name)
        if number is None:
            number = self._free_hosts.pop() if self._free_hosts else len(self._host_names)
            self._hosts[name] = number
            self._host_names[number : number + 1] = [name]
            self._tags[number : number + 1] = [{}]
        return number

    def add_pairs(self, collector: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take all pairs of a collector's ``/latency``: who the ends are, and their tags.

        ``src_X`` is tag X of the source, ``dst_X`` and every other one of the destination. What the
        collector said before is forgotten.
        """
        pairs: dict[tuple[Any, ...], tuple[int, int]] = {}
        said: dict[int, dict[str, str]] = {}
        for row in rows:
            tags = row["tags"]
            source = self._host(tags.get("src_hostname") or row["src_ip"])
            destination = self._host(tags.get("dst_hostname") or row["target"])
            pairs[_pair(row)] = source, destination
            self.collectors[collector] = source
            of_source, of_destination = (
                said.setdefault(source, {}),
                said.setdefault(destination, {}),
            )
            for key, value in tags.items():
                if key in ("src_hostname", "dst_hostname"):
                    continue
                if key.startswith("src_"):
                    of_source[key[4:]] = value
                else:
                    of_destination[key.removeprefix("dst_")] = value
        self._pairs[collector] = pairs
        before = self._said.get(collector, {})
        changed = [host for host in {*before, *said} if before.get(host) != said.get(host)]
        if changed:
            self._said.pop(collector, None)
            self._said[collector] = said
        for host in changed:
            merged = {**self._tags[host], **said.get(host, {})}
            if host in before:  # what it said may have been said by others, too
                merged = {k: v for one in self._said.values() for k, v in one.get(host, {}).items()}
            if merged != self._tags[host]:
                self._tags[host] = merged
            if said.get(host) == merged:
                said[host] = self._tags[host]  # once, not once a collector

    def knows(self, collector: str, row: Mapping[str, Any]) -> bool:
        """Return whether a flow's pair was taken by `add_pairs`."""
        return _pair(row) in self._pairs.get(collector, ())

    # Flows

    def add_flows(self, collector: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the flows of a collector's ``/flows``; those of unknown pairs are left out."""
        by_end: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_end.setdefault(row["interval_end"], []).append(row)
        for end_text, some in by_end.items():
            self.length_s = unix_s(end_text) - unix_s(some[0]["interval_start"])
            self._add(collector, unix_s(end_text), some)

    def _add(self, collector: str, end_s: float, rows: list[Mapping[str, Any]]) -> None:
        self.ahead.pop(collector, None)
        if end_s > self.due_s + self.keep * self.length_s:
            self.ahead[collector] = end_s - self.due_s
            return
        known = [row for row in rows if self.knows(collector, row)]
        where = np.array([self._row(collector, row) for row in known], np.int64)
        figures = np.zeros(len(known), FLOWS)
        for name in _COUNTS:
            figures[name] = [row[name] for row in known]
        figures["remarked_to"] = [
            255 if row["dscp_at_reflector"] is None else row["dscp_at_reflector"] for row in known
        ]
        figures["suspect"] = [
            sum(_BITS.get(reason, 0) for reason in row["suspect"]) for row in known
        ]
        rtt_ns = np.array(
            [np.nan if row["rtt_p50_ms"] is None else row["rtt_p50_ms"] * 1e6 for row in known],
            float,
        )
        if self._rerouted:
            self._note_moved(end_s, where, rtt_ns)
        figures["late"] = self._late(where, rtt_ns)
        if self._unconfirmed and known:
            begin_s = end_s - self.length_s
            self._confirm(where[lost_probes(figures) < DEAD * figures["sent"]], begin_s)
        self._measured[where] = int(end_s)
        if end_s <= self.judged_s and known:
            self._late_rows.setdefault(collector, set()).update(where.tolist())
        interval = self._intervals.setdefault(end_s, {})
        if collector in interval:
            before, old = interval[collector]
            where, figures = np.concatenate([before, where]), np.concatenate([old, figures])
        interval[collector] = where, figures
        past = sorted(end for end in self._intervals if end <= self.due_s)
        for oldest in past[: -self.keep]:
            del self._intervals[oldest]
            self._moved.pop(oldest, None)

    def _row(self, collector: str, row: Mapping[str, Any]) -> int:
        """Return the row of a flow, which may be a new one."""
        source, destination = self._pairs[collector][_pair(row)]
        key = source, flow_key(row)
        number = self._rows.get(key)
        if number is not None:
            return number
        if self._free:
            number = self._free.pop()
            self._keys[number] = key
        else:
            number = len(self._keys)
            self._keys.append(key)
            if number == len(self._flows):
                self._grow()
        self._rows[key] = number
        self._likes.setdefault((source, key[1].tuple5), []).append(number)
        flow = self._flows[number]
        flow["source"], flow["destination"] = source, destination
        flow["dscp"], flow["size"] = row["dscp"], row["size_octets"]
        self._ordinary_ns[number] = np.nan
        text = f"{self._host_names[source]} {key[1]}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        # Below 2**53, so that JSON readers keep it whole.
        self._numbers[number] = int.from_bytes(digest, "big") >> 11
        return number

    def _grow(self) -> None:
        more = len(self._flows)
        self._flows = np.concatenate([self._flows, np.zeros(more, FLOWS)])
        self._numbers = np.concatenate([self._numbers, np.zeros(more, np.int64)])
        self._ordinary_ns = np.concatenate([self._ordinary_ns, np.full(more, np.nan)])
        self._measured = np.concatenate([self._measured, np.zeros(more, np.int64)])

    def _late(self, where: npt.NDArray[np.int64], rtt_ns: npt.NDArray[np.float64]) -> Any:
        """Return which RTTs are out of the ordinary, and follow the ordinary."""
        ordinary = self._ordinary_ns[where]
        fresh = np.isnan(ordinary)
        ordinary = np.where(fresh, rtt_ns, ordinary)
        with np.errstate(invalid="ignore"):
            late = _slower(rtt_ns, ordinary)
            step = np.where(late, FOLLOW_LATE, np.where(rtt_ns < ordinary, 1.0, FOLLOW))
            moved = ordinary + step * (rtt_ns - ordinary)
        self._ordinary_ns[where] = np.where(np.isnan(rtt_ns), ordinary, moved)
        return late

    def _note_moved(self, end_s: float, where: npt.NDArray[np.int64], rtt_ns: Any) -> None:
        """Note those of these flows that took another path and have another RTT on it."""
        for row, after_ns in zip(where.tolist(), rtt_ns.tolist(), strict=True):
            if row not in self._rerouted or np.isnan(after_ns):
                continue
            before_ns, before, after = self._rerouted.pop(row)
            if not (_slower(after_ns, before_ns) or _slower(before_ns, after_ns)):
                continue
            moved = Moved(
                number=int(self._numbers[row]),
                source=int(self._flows["source"][row]),
                destination=int(self._flows["destination"][row]),
                before=tuple(self._called(hop) or "(silent)" for hop in before[:-1]),
                after=tuple(self._called(hop) or "(silent)" for hop in after[:-1]),
                before_ns=before_ns,
                after_ns=after_ns,
            )
            self._moved.setdefault(end_s, []).append(moved)

    # Paths

    def add_paths(self, collector: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the paths of a collector's ``/paths``."""
        source = self.collectors.get(collector)
        if source is None:
            return
        changed: list[int] = []
        for row in rows:
            key = flow_key(row)
            hops: Hops = tuple(row["hops"])
            reach = -1 if row["reach"] is None else int(row["reach"])
            self._unconfirmed.pop((source, key), None)
            if not row["complete"]:
                met = hops
                hops = self._of_dead(source, key, met)
                known = hops or (source, key.tuple5) in self._by_tuple
                if not known and not row.get("refusal") and reach == len(met) > 0:
                    self._unconfirmed[source, key] = met, row["traced"]
            elif not same_way(self._whole.get((source, key), hops), hops):
                changed += self._reroute(source, key, hops)
            self._know(source, key, hops, reach, row["traced"])
        own = [end for end, parts in self._intervals.items() if collector in parts]
        if changed and own:
            # What was ordinary on another path made them late in its newest interval.
            where, figures = self._intervals[max(own)][collector]
            figures["late"][np.isin(where, changed)] = False

    def _reroute(self, source: int, key: FlowKey, hops: Hops) -> list[int]:
        """Begin a new ordinary RTT for a flow whose path is another, and its like; return their rows."""
        before = self._whole[source, key]
        likes = self._likes.get((source, key.tuple5), [])
        rows = [
            row
            for row in likes
            if self._keys[row] == (source, key) or self._keys[row] not in self._whole
        ]
        for row in rows:
            ordinary_ns = float(self._ordinary_ns[row])
            if not np.isnan(ordinary_ns):
                self._rerouted[row] = ordinary_ns, before, hops
            self._ordinary_ns[row] = np.nan
        return rows

    def _of_dead(self, source: int, key: FlowKey, met: Hops) -> Hops:
        """Return the path of a flow of which the newest trace met these hops and then died.

        It is the known one, its own or that of its like, unless the trace met others: then what it
        met, and nothing beyond. () means that nothing is known.
        """
        own = self.paths.get((source, key), ((), -1, 0.0))[0]
        if own and UNKNOWN not in own and _may_be_of(met, own):
            return own
        like = self._by_tuple.get((source, key.tuple5))
        if like and not _may_be_of(met, like):
            del self._by_tuple[source, key.tuple5]
        elif like and not own:
            return ()
        end = self._ends.get((source, key.dst_ip))
        if end is None or not met:
            return ()
        router, distance, last = end
        # If all routers answered that ever do, the rest of the way is as it was.
        if self._called(met[-1]) == self._called(router):
            return (*met, key.dst_ip)
        if len(met) >= last:
            return (*met, *(None,) * (distance - 1 - len(met)), key.dst_ip)
        return (*met, UNKNOWN, key.dst_ip)

    def _called(self, hop: str | None) -> str | None:
        return None if hop is None else self._name(hop)

    def _know(self, source: int, key: FlowKey, hops: Hops, reach: int, traced_s: float) -> None:
        """Take a flow's path, and how far a trace came that met it dead."""
        self.paths[source, key] = hops, reach, traced_s
        if hops and UNKNOWN not in hops:
            last = max((n for n, hop in enumerate(hops[:-1], 1) if hop is not None), default=0)
            router = hops[-2] if len(hops) > 1 else None
            self._ends[source, key.dst_ip] = router, len(hops), last
            self._by_tuple[source, key.tuple5] = hops
            self._whole[source, key] = hops

    def _confirm(self, alive: npt.NDArray[np.int64], begin_s: float) -> None:
        """Take what traces found of flows that were alive in an interval which began after them.

        Their destinations gave no answer to the trace; they follow the last hop that did.
        """
        for row in alive.tolist():
            key = self._keys[row]
            found = None if key is None else self._unconfirmed.get(key)
            if key is not None and found is not None and found[1] <= begin_s:
                del self._unconfirmed[key]
                self._know(key[0], key[1], (*found[0], key[1].dst_ip), -1, found[1])

    def _links(
        self, source: int, destination: int, hops: Sequence[str | None], numbers: dict[Any, int]
    ) -> list[int]:
        """Return the numbers of the links along the hops, new ones included."""
        names = self._host_names
        at, found = names[source], []
        for hop in hops[:-1]:
            if hop == UNKNOWN:
                router = self._called(self._ends.get((source, str(hops[-1])), (None, 0, 0))[0])
                after = f"(unknown before {router or names[destination]})"
                found.append(numbers.setdefault((at, after), len(numbers)))
                at = router or after
                continue
            after = f"(silent after {at})" if hop is None else self._name(hop)
            found.append(numbers.setdefault((at, after), len(numbers)))
            at = after
        found.append(numbers.setdefault((at, names[destination]), len(numbers)))
        return found

    # Reading

    def host_of(self, collector: str) -> str:
        """Return the name of a collector's host; what it is called itself if it has told no pair."""
        host = self.collectors.get(collector)
        return collector if host is None else self._host_names[host]

    @property
    def ends(self) -> list[float]:
        """When the intervals held ended, Unix seconds, the oldest first."""
        return sorted(self._intervals)

    def last(self, end_s: float, intervals: int) -> list[float]:
        """Return the ends of those of the `intervals` up to the one that ended then which are held."""
        begin_s = end_s - (intervals - 0.5) * self.length_s
        return [end for end in self.ends if begin_s < end <= end_s]

    def moved(self, end_s: float) -> list[Moved]:
        """Return the flows of that interval that were found to have another RTT on another path."""
        return self._moved.get(end_s, [])

    def window(self, end_s: float, intervals: int = 1, alive_only: bool = False) -> Window:
        """Return the flows of the `intervals` up to the one that ended at `end_s`, summed up.

        `alive_only` leaves out what a flow measured in intervals in which nothing came back.
        """
        chosen = self.last(end_s, intervals)
        parts = [part for end in chosen for part in self._intervals[end].values()]
        where = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
        figures = np.concatenate([np.zeros(0, FLOWS), *(part[1] for part in parts)])
        if alive_only:
            alive = lost_probes(figures) < DEAD * figures["sent"]
            where, figures = where[alive], figures[alive]
        rows, place = np.unique(where, return_inverse=True)
        flows = self._flows[rows]
        for name in _COUNTS:
            flows[name] = np.bincount(place, figures[name], len(rows))
        # Of several intervals, late and re-marked is what the newest says, untrusted what any does.
        flows["late"][place] = figures["late"]
        flows["remarked_to"][place] = figures["remarked_to"]
        suspect = np.zeros(len(rows), np.uint32)
        np.bitwise_or.at(suspect, place, figures["suspect"])
        flows["suspect"] = suspect
        begin = chosen[0] - self.length_s if chosen else 0.0
        silent = frozenset(self.collectors[name] for name in self.silent if name in self.collectors)
        hosts = Hosts(names=tuple(self._host_names), tags=list(self._tags), silent=silent)
        paths = self._columns(rows, flows, begin)
        return Window(
            flows=flows,
            hosts=hosts,
            paths=paths,
            numbers=self._numbers[rows],
            end_s=chosen[-1] if chosen else 0.0,
        )

    def take_late(self) -> dict[str, frozenset[int]]:
        """Return by source the lasting numbers of flows that came too late to be judged; forget them."""
        late = {
            self._host_names[self.collectors[collector]]: frozenset(
                self._numbers[sorted(rows)].tolist()
            )
            for collector, rows in self._late_rows.items()
        }
        self._late_rows = {}
        return late

    def missing(
        self, end_s: float, intervals: int, besides: Collection[int] = ()
    ) -> dict[str, int]:
        """Return by source how many flows of the last `intervals` were not measured in the newest.

        Those with the lasting numbers `besides` are not counted.
        """
        chosen = self.last(end_s, intervals)
        rows = [[part[0] for part in self._intervals[end].values()] for end in chosen]
        none = [np.zeros(0, np.int64)]
        known = np.concatenate([*none, *(one for some in rows[:-1] for one in some)])
        there = np.concatenate([*none, *(one for some in rows[-1:] for one in some)])
        gone = np.setdiff1d(known, there)
        gone = gone[~np.isin(self._numbers[gone], list(besides))]
        hosts, counts = np.unique(self._flows["source"][gone], return_counts=True)
        return {
            self._host_names[h]: n for h, n in zip(hosts.tolist(), counts.tolist(), strict=True)
        }

    def _columns(
        self, rows: npt.NDArray[np.int64], flows: npt.NDArray[np.void], begin_s: float
    ) -> Paths:
        """Return the paths of these rows, of a window that began at `begin_s`."""
        numbers: dict[Any, int] = {}
        cache: dict[Any, list[int]] = {}
        links: list[int] = []
        start = np.zeros(len(rows) + 1, np.int64)
        answered = np.full(len(rows), -1, np.int16)
        for n, row in enumerate(rows.tolist()):
            key = self._keys[row]
            if key is not None:
                source, flow = key
                known = self.paths.get(key)
                hops = known[0] if known else ()
                hops = hops or self._by_tuple.get((source, flow.tuple5), ())
                if hops:
                    destination = int(flows["destination"][n])
                    way = source, destination, hops
                    if way not in cache:
                        cache[way] = self._links(source, destination, hops, numbers)
                    links += cache[way]
                # Where all routers answered that ever do, only what lies behind them or the way
                # back can be dead.
                last = max((n for n, hop in enumerate(hops[:-1], 1) if hop is not None), default=0)
                if known:
                    answered[n] = _answered(*known[1:], last, begin_s)
            start[n + 1] = len(links)
        return Paths(
            links=list(numbers), start=start, link=np.array(links, np.int32), answered=answered
        )

    def hops_of(self, window: Window, flow: int) -> list[str]:
        """Return the names of the nodes that a flow of a window crosses, its ends included."""
        first, last = window.paths.start[flow], window.paths.start[flow + 1]
        links = [window.paths.links[n] for n in window.paths.link[first:last].tolist()]
        return [links[0][0], *(link[1] for link in links)] if links else []

    def forget(self, now_s: float) -> int:
        """Forget flows that were not measured for long, and hosts without any; return how many flows."""
        before = now_s - FORGET * max(self.length_s, 1.0)
        gone = [
            n for n, key in enumerate(self._keys) if key is not None and self._measured[n] < before
        ]
        for number in gone:
            key = self._keys[number]
            assert key is not None
            self._keys[number] = None
            del self._rows[key]
            likes = self._likes[key[0], key[1].tuple5]
            likes.remove(number)
            if not likes:
                del self._likes[key[0], key[1].tuple5]
            self._rerouted.pop(number, None)
            self._free.append(number)
        if gone:
            self._forget_paths(before)
            self._forget_hosts()
        return len(gone)

    def _forget_paths(self, before_s: float) -> None:
        """Forget the paths of flows that are not measured; a new one may be traced first."""
        old = [
            key
            for key, (_, _, traced_s) in self.paths.items()
            if key not in self._rows and traced_s < before_s
        ]
        for key in old:
            del self.paths[key]
            self._whole.pop(key, None)
            self._unconfirmed.pop(key, None)
            if (key[0], key[1].tuple5) not in self._likes:
                self._by_tuple.pop((key[0], key[1].tuple5), None)
        there = {(source, key.dst_ip) for source, key in (*self._rows, *self.paths)}
        self._ends = {end: how for end, how in self._ends.items() if end in there}

    def _forget_hosts(self) -> None:
        """Forget hosts that no flow and no pair has; their numbers are used again."""
        used = {source for source, _ in self.paths} | set(self.collectors.values())
        rows = list(self._rows.values())
        used |= {*self._flows["source"][rows].tolist(), *self._flows["destination"][rows].tolist()}
        for pairs in self._pairs.values():
            for ends in pairs.values():
                used.update(ends)
        for name in [name for name, number in self._hosts.items() if number not in used]:
            number = self._hosts.pop(name)
            self._host_names[number], self._tags[number] = "", {}
            self._free_hosts.append(number)
        for said in self._said.values():
            for number in said.keys() - used:
                del said[number]


def _slower(rtt_ns: Any, ordinary_ns: Any) -> Any:
    """Return whether an RTT, or which of many, is out of the ordinary."""
    return rtt_ns > 1.5 * ordinary_ns + LATE_NS


def _answered(reach: int, traced_s: float, last: int, begin_s: float) -> int:
    """Return `Paths.answered` of a flow in a window that began then, if it is dead in it."""
    if reach < 0:  # the trace came through
        return -1 if traced_s > begin_s else NOT_TRACED
    if traced_s < begin_s - MET_DEAD_S:
        return NOT_TRACED
    return reach if reach < last else -1


def _may_be_of(met: Hops, path: Hops) -> bool:
    """Return whether a trace that died after these hops may have been on a path."""
    return len(met) < len(path) and agree(met, path)


def lost_probes(flows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Return how many probes each flow lost."""
    lost: npt.NDArray[np.int64] = (
        flows["lost_forward"].astype(np.int64) + flows["lost_reverse"] + flows["lost_unknown"]
    )
    return lost


def _pair(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what names a pair in ``/latency`` and ``/flows``."""
    names = ("target", "src_ip", "dst_ip", "dst_port", "dscp", "probe", "size_octets", "port_group")
    return tuple(row[name] for name in names)


def flow_key(row: Mapping[str, Any]) -> FlowKey:
    """Return what names a flow in ``/flows`` and ``/paths`` of one collector."""
    return FlowKey(
        row["dst_ip"], row["dst_port"], row["source_port"], row["dscp"], row["size_octets"]
    )
