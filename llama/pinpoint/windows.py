"""What collectors measured, interval by interval, as the columns that pinpointing reads. Pure.

Rows of a collector's ``/flows``, ``/latency`` and ``/paths`` come in, `Window` goes out: flows summed
up over the last so many intervals, with their hosts, tags and paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.collector.intervals.summary import SUSPECT_REASONS
from llama.paths.table import FlowKey, Hops
from llama.pinpoint.answers import MOST_FLOWS, AnswerError, FlowRow
from llama.pinpoint.evidence import DEAD, FLOWS, HOSTS_LATE, HOSTS_LOST, Hosts, Indices, Paths
from llama.pinpoint.flow_table import FlowTable, flow_key
from llama.pinpoint.ordinary import OrdinaryRtt, Step
from llama.pinpoint.pairs import Pairs
from llama.pinpoint.traced import TracedPaths

#: Intervals that are held for windows over several of them.
KEEP = 12
#: A flow not measured for so many intervals is forgotten.
FORGET = 120
#: Rows that are read or taken at one go, of which the worst hold the reactor for some 20 ms.
PART = 2000

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

    def nodes_of(self, flow: int) -> list[str]:
        """Return the names of the nodes that a flow crosses, its ends included; [] if unknown."""
        first, last = self.paths.start[flow], self.paths.start[flow + 1]
        links = [self.paths.links[n] for n in self.paths.link[first:last].tolist()]
        return [links[0][0], *(link[1] for link in links)] if links else []


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


class Measured:
    """Everything that was measured lately: who measures whom (`pairs`), how flows did, their `paths`.

    `pairs`, `add_flows` and `add_paths` take it, in this order; `window` reads it.

    `name` names the addresses of hops; several addresses of one router should get one name.
    `length_s` is how long intervals are said to be, which holds where collectors do not agree.
    """

    def __init__(
        self, keep: int = KEEP, name: Callable[[str], str] = str, length_s: float = 0.0
    ) -> None:
        self.keep = keep
        self.pairs = Pairs()
        self.paths = TracedPaths(name)
        self._flows = FlowTable()
        self._ordinary = OrdinaryRtt()
        #: Interval's end -> collector -> its rows and their figures.
        self._intervals: dict[float, dict[str, tuple[Indices, Any]]] = {}
        self._moved: dict[float, list[Moved]] = {}  # by the interval's end, as `_intervals`
        self.silent: set[str] = set()  # collectors that did not answer lately
        #: Collectors that are not waited for, and how far behind they are, s.
        self.behind: dict[str, float] = {}
        self.judged_s = 0.0  # the end of the interval that was judged last
        self.due_s = inf  # the end of the interval that is looked for: later ones are of the future
        self.ahead: dict[str, float] = {}  # collectors too far in the future, and how far, s
        #: Collector -> rows that came after their intervals had been judged, since `take_late`.
        self._late_rows: dict[str, set[int]] = {}
        self.length_s = 0.0  # of intervals, as most collectors have them
        self._told_length_s = length_s
        self._lengths: dict[str, float] = {}  # by collector
        #: Row of a flow -> the collector that it is new of, and how many each has.
        self._maker: dict[int, str] = {}
        self._made: Counter[str] = Counter()

    # Filling

    def add_flows(self, collector: str, rows: Sequence[FlowRow]) -> None:
        """Take the flows of a collector's ``/flows``; those of unknown pairs are left out.

        Raises `AnswerError`, and takes none, if the collector then had more than `MOST_FLOWS`.
        """
        for _ in self.adding(collector, rows):
            pass

    def adding(self, collector: str, rows: Sequence[FlowRow]) -> Iterator[None]:
        """Do what `add_flows` does in steps, between which something else may be done.

        Who does not go on to the end may begin again: no probe of an interval is counted before.
        """
        by_end: dict[float, list[FlowRow]] = {}
        for row in rows:
            by_end.setdefault(row.end_s, []).append(row)
        for end_s, some in by_end.items():
            self._lengths[collector] = end_s - some[0].start_s
            votes = Counter(self._lengths.values())
            self.length_s = max(votes, key=lambda s: (votes[s], s == self._told_length_s))
            yield from self._add(collector, end_s, some)

    def _add(self, collector: str, end_s: float, rows: Sequence[FlowRow]) -> Iterator[None]:
        self.ahead.pop(collector, None)
        own = [end for end, parts in self._intervals.items() if collector in parts]
        future = {end for end in own if end > self.due_s} - {end_s}
        if end_s > self.due_s + self.keep * self.length_s or (
            end_s > self.due_s and len(future) >= self.keep
        ):
            self.ahead[collector] = end_s - self.due_s
            return
        known = [row for row in rows if self.pairs.knows(collector, row)]
        self._refuse_too_many(collector, end_s, known)
        parts = [(np.zeros(0, np.int64), np.zeros(0, FLOWS))]
        for at in range(0, len(known), PART):
            yield
            parts.append(self._take(collector, end_s, known[at : at + PART]))
        where, figures = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if end_s <= self.judged_s and known:
            self._late_rows.setdefault(collector, set()).update(where.tolist())
        interval = self._intervals.setdefault(end_s, {})
        if collector in interval:
            before, old = interval[collector]
            where, figures = np.concatenate([before, where]), np.concatenate([old, figures])
        interval[collector] = where, figures
        # Each collector pushes out only what is its own, whatever the times it tells.
        for oldest in sorted(end for end in {*own, end_s} if end <= self.due_s)[: -self.keep]:
            del self._intervals[oldest][collector]
            if not self._intervals[oldest]:
                del self._intervals[oldest]
                self._moved.pop(oldest, None)

    def _take(
        self, collector: str, end_s: float, rows: Sequence[FlowRow]
    ) -> tuple[Indices, npt.NDArray[np.void]]:
        """Return the rows of the table and the figures of flows, and learn their ordinary RTTs."""
        where: Indices = np.array([self._row(collector, row) for row in rows], np.int64)
        figures, rtt_ns = _figures(rows)
        for step in self._ordinary.steps(where, rtt_ns):
            self._moved.setdefault(end_s, []).append(self._as_moved(step))
        figures["late"] = self._ordinary.late(where, rtt_ns)
        alive = where[lost_probes(figures) < DEAD * figures["sent"]]
        self.paths.confirm(map(self._flows.flow, alive.tolist()), end_s - self.length_s)
        self._flows.note(where, end_s)
        return where, figures

    def forget_after(self, end_s: float) -> None:
        """Forget the intervals that ended later than that: of a clock that has been set back since."""
        for later in [end for end in self._intervals if end > end_s]:
            del self._intervals[later]
            self._moved.pop(later, None)

    def _refuse_too_many(self, collector: str, end_s: float, rows: Sequence[FlowRow]) -> None:
        """Raise `AnswerError` if a collector would have too many flows, lately or in an interval."""
        there = self._intervals.get(end_s, {}).get(collector)
        if there is not None and len(there[0]) + len(rows) > MOST_FLOWS:
            raise AnswerError(f"an interval has more than {MOST_FLOWS:,} flows")
        if self._made[collector] + len(rows) > MOST_FLOWS:
            new = sum(
                (self.pairs.ends(collector, row)[0], row.key) not in self._flows.rows
                for row in rows
            )
            if self._made[collector] + new > MOST_FLOWS:
                raise AnswerError(
                    f"more than {MOST_FLOWS:,} flows within {FORGET} intervals; let several"
                    " collectors measure them"
                )

    def _row(self, collector: str, row: FlowRow) -> int:
        """Return where a flow stands in the table, which it may be new in."""
        source, destination = self.pairs.ends(collector, row)
        before = len(self._flows.rows)
        at = self._flows.row((source, row.key), destination, self.pairs.names[source])
        if len(self._flows.rows) > before:
            self._maker[at] = collector
            self._made[collector] += 1
        return at

    def _as_moved(self, step: Step) -> Moved:
        ends = self._flows.columns[step.row]
        return Moved(
            number=int(self._flows.numbers[step.row]),
            source=int(ends["source"]),
            destination=int(ends["destination"]),
            before=tuple(self.paths.called(hop) or "(silent)" for hop in step.before[:-1]),
            after=tuple(self.paths.called(hop) or "(silent)" for hop in step.after[:-1]),
            before_ns=step.before_ns,
            after_ns=step.after_ns,
        )

    def add_paths(self, collector: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the paths of a collector's ``/paths``; those of an unknown collector are left out.

        Raises `AnswerError` for more than `MOST_FLOWS`.
        """
        source = self.pairs.collectors.get(collector)
        if source is None:
            return
        changed: list[int] = []
        for row in rows:
            left = self.paths.add(source, row)
            if left:
                changed += self._reroute(source, flow_key(row), left, tuple(row["hops"]))
        own = [end for end, parts in self._intervals.items() if collector in parts]
        if changed and own:
            # What was ordinary on another path made them late in its newest interval.
            where, figures = self._intervals[max(own)][collector]
            figures["late"][np.isin(where, changed)] = False

    def _reroute(self, source: int, key: FlowKey, before: Hops, after: Hops) -> list[int]:
        """Begin a new ordinary RTT for a flow whose path is another, and its like; return their rows.

        Those of its like that were traced themselves have paths of their own.
        """
        rows = []
        for row in self._flows.likes(source, key):
            flow = self._flows.flow(row)
            if flow == (source, key) or not self.paths.came_through(flow):
                rows.append(row)
        self._ordinary.begin_anew(rows, before, after)
        return rows

    def forget(self, now_s: float) -> int:
        """Forget flows that were not measured for long, and hosts without any; return how many flows."""
        before_s = now_s - FORGET * max(self.length_s, 1.0)
        for end in [end for end in self._intervals if end < before_s]:  # of those silent since
            del self._intervals[end]
            self._moved.pop(end, None)
        gone = self._flows.forget(before_s)
        for row in gone:
            self._ordinary.forget(row)
            self._made[self._maker.pop(row)] -= 1
        if gone or self.pairs.changed:
            self.paths.forget(before_s, self._flows)
            self.pairs.forget({*self._flows.hosts(), *self.paths.sources()})
        return len(gone)

    # Reading

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
        flows = self._flows.columns[rows]
        for name in _COUNTS:
            flows[name] = np.bincount(place, figures[name], len(rows))
        # Of several intervals, late and re-marked is what the newest says, untrusted what any does.
        flows["late"][place] = figures["late"]
        flows["remarked_to"][place] = figures["remarked_to"]
        suspect = np.zeros(len(rows), np.uint32)
        np.bitwise_or.at(suspect, place, figures["suspect"])
        flows["suspect"] = suspect
        begin = chosen[0] - self.length_s if chosen else 0.0
        hosts = self.pairs.hosts(self.silent)
        paths = self.paths.columns(
            self._flows.flows(rows), flows["destination"].tolist(), hosts.names, begin
        )
        return Window(
            flows=flows,
            hosts=hosts,
            paths=paths,
            numbers=self._flows.numbers[rows],
            end_s=chosen[-1] if chosen else 0.0,
        )

    def counts(
        self, end_s: float, numbers: npt.NDArray[np.int64], undoubted: bool = False
    ) -> tuple[int, int]:
        """Return how many probes flows with these lasting numbers sent, and lost, in one interval.

        What a flow measured while nothing came back is left out; of what is `undoubted` also what the
        hosts may have lost themselves.
        """
        sent = lost = 0
        for where, figures in self._intervals[end_s].values():
            lost_each = lost_probes(figures)
            mine = (lost_each < DEAD * figures["sent"]) & np.isin(
                self._flows.numbers[where], numbers
            )
            if undoubted:
                mine &= (figures["suspect"] & HOSTS_LOST) == 0
                late = (figures["suspect"] & HOSTS_LATE) != 0
                lost_each -= np.where(late, figures["lost_unknown"], 0)
            sent += int(figures["sent"][mine].sum())
            lost += int(lost_each[mine].sum())
        return sent, lost

    def take_late(self) -> dict[str, frozenset[int]]:
        """Return by source the lasting numbers of flows that came too late to be judged; forget them."""
        late = {
            self.pairs.host_of(collector): frozenset(self._flows.numbers[sorted(rows)].tolist())
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
        gone = gone[~np.isin(self._flows.numbers[gone], list(besides))]
        hosts, counts = np.unique(self._flows.columns["source"][gone], return_counts=True)
        return {
            self.pairs.names[h]: n for h, n in zip(hosts.tolist(), counts.tolist(), strict=True)
        }


def _figures(
    rows: Sequence[FlowRow],
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.float64]]:
    """Return what these rows of ``/flows`` say, but for the ends of the flows, and their RTTs, ns."""
    figures = np.zeros(len(rows), FLOWS)
    for name in _COUNTS:
        figures[name] = [getattr(row, name) for row in rows]
    figures["remarked_to"] = [
        255 if row.dscp_at_reflector is None else row.dscp_at_reflector for row in rows
    ]
    figures["suspect"] = [sum(_BITS.get(reason, 0) for reason in row.suspect) for row in rows]
    rtt_ns = [np.nan if row.rtt_p50_ms is None else row.rtt_p50_ms * 1e6 for row in rows]
    return figures, np.array(rtt_ns, np.float64)


def lost_probes(flows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Return how many probes each flow lost."""
    lost: npt.NDArray[np.int64] = (
        flows["lost_forward"].astype(np.int64) + flows["lost_reverse"] + flows["lost_unknown"]
    )
    return lost
