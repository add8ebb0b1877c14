"""All series of one moment as arrays over pairs of hosts, and which hosts are sick as a whole.

Between a database's answer and the drawn matrix. A host that nobody reaches, one that reaches
nobody, and one that fell silent are each *one* finding, and are found here before anything is
folded. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from attrs import evolve, field, frozen

from llama.web.groups import Places, find_places, natural
from llama.web.store import Activity, Column, Snapshot, Tags, series_key

Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: A series that is this many of its intervals behind the newest one has fallen silent.
SILENT_INTERVALS = 2.5
#: All have fallen silent if the newest samples are this many intervals old.
ALL_SILENT_INTERVALS = 3.0
#: The longest interval that a collector can be configured with.
LONGEST_INTERVAL_S = 3600.0
#: For so long, and so many of its intervals, a series belongs to the mesh while its source speaks
#: without it.
KNOWN_S, KNOWN_INTERVALS = 3600.0, 3.0
#: What is measured: series that agree in these tags, of which one fell silent, are one.
MEASURED = ("src_hostname", "dst_hostname", "class", "probe", "size", "port_group")
#: There are samples up to the time that this share of the sources has reached. Were it the newest
#: of all, one source whose clock is ahead would make everybody else look late.
REACHED_BY = 0.25


@frozen(eq=False)
class Mesh:
    """Every known series at one moment. Arrays have one row a series."""

    series: Sequence[Tags]
    sources: Sequence[str]  # hostnames in natural order
    destinations: Sequence[str]
    src: Index  # into sources
    dst: Index  # into destinations
    heard: Flags  # has a sample
    last_s: Column  # when it was last heard of
    columns: Mapping[str, Column] = field(repr=False)  # NaN where not heard
    places: Places = field(repr=False)

    def where(self, tags: Tags) -> Flags:
        """Return which series bear all these tags."""
        chosen = np.ones(len(self.series), dtype=bool)
        for name, value in tags.items():
            chosen &= np.fromiter(
                (each.get(name) == value for each in self.series), bool, len(self.series)
            )
        return chosen


def interval_of(activity: Activity) -> float | None:
    """Return the usual time between the samples of a series in seconds, or None if unknown."""
    known = activity.interval_s[~np.isnan(activity.interval_s)]
    return float(np.median(known)) if known.size else None


def intervals_of(activity: Activity, where: Tags) -> dict[tuple[tuple[str, str], ...], float]:
    """Return the known intervals of the series that bear these tags, by `series_key`."""
    return {
        series_key(tags): interval
        for tags, interval in zip(activity.series, activity.interval_s.tolist(), strict=True)
        if interval == interval and all(tags.get(name) == where[name] for name in where)
    }


Seconds = TypeVar("Seconds", float, Column)


def lookback_s(interval_s: Seconds, usual_s: float) -> Seconds:
    """Return how far back lies what a series with this interval may have said last, if it speaks."""
    return SILENT_INTERVALS * interval_s + ALL_SILENT_INTERVALS * usual_s


def seldom(activity: Activity, usual_s: float) -> Activity:
    """Return the series that speak less often than is usual, with their intervals."""
    chosen = np.flatnonzero(activity.interval_s > 1.01 * usual_s)
    return evolve(
        activity,
        series=[activity.series[n] for n in chosen.tolist()],
        last_s=activity.last_s[chosen],
        interval_s=np.minimum(activity.interval_s[chosen], LONGEST_INTERVAL_S),
    )


def due_s(some: Activity, found: Snapshot, at_s: float) -> float:
    """Return when the first of some series speaks next, of those that have not fallen silent."""
    last_s = some.last_s.copy()
    series = list(some.series)
    place = _places(series, found.series)
    known = place < last_s.size
    np.fmax.at(last_s, place[known], found.time_s[known])
    speaking = last_s > at_s - SILENT_INTERVALS * some.interval_s
    return float((last_s + some.interval_s)[speaking].min(initial=np.inf))


def with_seldom(
    usual: Snapshot, found: Snapshot, some: Activity, at_s: float, usual_s: float
) -> Snapshot:
    """Return a snapshot with the newer samples of ``some`` that were ``found``, if not too old."""
    names = list(some.series)
    own = _places(names, found.series)
    interval_s = np.concatenate([some.interval_s, np.zeros(len(names) - some.interval_s.size)])
    oldest_s = at_s - lookback_s(interval_s[own], usual_s)
    chosen = np.flatnonzero((found.time_s > oldest_s) & (found.time_s <= at_s))
    series = list(usual.series)
    place = _places(series, [found.series[n] for n in chosen.tolist()])
    added = len(series) - len(usual.series)
    time_s = np.concatenate([usual.time_s, np.full(added, -np.inf)])
    newer = found.time_s[chosen] > time_s[place]
    into, out = place[newer], chosen[newer]
    time_s[into] = found.time_s[out]
    columns = {}
    for name, column in usual.columns.items():
        columns[name] = np.concatenate([column, np.full(added, np.nan)])
        columns[name][into] = found.column(name)[out]
    return Snapshot(series, time_s, columns)


def members(activity: Activity) -> Activity:
    """Return the series that belong to the mesh.

    A series does that until its source has spoken for an hour (or some intervals, if those are
    long) without it: then it is measured no more. What a source said last, before it fell silent,
    belongs to the mesh.
    """
    sources, src = _index(activity.series, "src_hostname")
    words_s = np.full(len(sources), -np.inf)
    np.maximum.at(words_s, src, activity.last_s)
    interval_s = np.minimum(activity.interval_s, LONGEST_INTERVAL_S)  # else it had a gap
    known_s = np.fmax(KNOWN_S, KNOWN_INTERVALS * interval_s)
    kept = activity.last_s > words_s[src] - known_s
    series = [tags for tags, keep in zip(activity.series, kept.tolist(), strict=True) if keep]
    dropped = activity.dropped + int(np.count_nonzero(~kept))
    return evolve(
        activity,
        series=series,
        last_s=activity.last_s[kept],
        interval_s=activity.interval_s[kept],
        dropped=dropped,
    )


def speaking(activity: Activity, at_s: float) -> frozenset[str]:
    """Return the sources that were heard lately: within an hour, or within some intervals."""
    interval_s = np.minimum(activity.interval_s, LONGEST_INTERVAL_S)
    lately = activity.last_s > at_s - np.fmax(KNOWN_S, KNOWN_INTERVALS * interval_s)
    return frozenset(
        tags.get("src_hostname", "")
        for tags, heard in zip(activity.series, lately.tolist(), strict=True)
        if heard
    )


def together(active: Activity, sources: frozenset[str], remembered: Activity | None) -> Activity:
    """Return the members of the mesh: of these sources those active, and those remembered.

    Where it is not known (None) what is remembered, all that are active: whoever fell silent longer
    ago is missing then.
    """
    if remembered is None:
        return members(evolve(active, complete=False))
    kept = [n for n, tags in enumerate(active.series) if tags.get("src_hostname", "") in sources]
    return members(
        Activity(
            [*(active.series[n] for n in kept), *remembered.series],
            np.concatenate([active.last_s[kept], remembered.last_s]),
            np.concatenate([active.interval_s[kept], remembered.interval_s]),
            complete=active.complete and remembered.complete,
        )
    )


def _with_any(series: Sequence[Tags], hosts: frozenset[str]) -> Flags:
    ends = ((tags.get("src_hostname", ""), tags.get("dst_hostname", "")) for tags in series)
    return np.fromiter((not hosts.isdisjoint(each) for each in ends), bool, len(series))


def make_mesh(
    snapshot: Snapshot,
    activity: Activity,
    at_s: float | None,
    forget: frozenset[str] = frozenset(),
) -> Mesh:
    """Return what is known of every series that the snapshot or the activity names.

    With ``at_s`` (the moment asked for) the snapshot is of newest samples, and those that are too
    old to speak for that moment count as not heard. Of hosts to ``forget`` there is only what is heard.
    """
    series = list(activity.series)
    place = _places(series, snapshot.series)
    added = len(series) - len(activity.series)
    last_s = np.concatenate([activity.last_s, np.full(added, np.nan)])
    interval = np.concatenate([activity.interval_s, np.full(added, np.nan)])
    heard = np.zeros(len(series), dtype=bool)
    heard[place] = True
    np.fmax.at(last_s, place, snapshot.time_s)
    sources, src = _index(series, "src_hostname")
    destinations, dst = _index(series, "dst_hostname")
    if at_s is not None and len(series):
        usual = interval_of(activity)
        if usual is not None:
            each = np.where(np.isnan(interval), usual, interval)
            reached = _reached_s(src[place], snapshot.time_s, len(sources))
            reference = max(min(reached, at_s), at_s - ALL_SILENT_INTERVALS * usual)
            time_s = np.full(len(series), -np.inf)
            time_s[place] = snapshot.time_s
            heard &= time_s >= reference - SILENT_INTERVALS * each
    kept = ~_replaced(series, src * max(len(destinations), 1) + dst, heard)
    if forget:
        kept &= heard | ~_with_any(series, forget)
    columns = {}
    for name, column in snapshot.columns.items():
        spread = np.full(len(kept), np.nan)
        spread[place] = column
        spread[~heard] = np.nan
        columns[name] = spread[kept]
    series = [tags for tags, keep in zip(series, kept.tolist(), strict=True) if keep]
    src, dst = src[kept], dst[kept]
    if forget:  # a host of which nothing is left is none
        sources, src = _index(series, "src_hostname")
        destinations, dst = _index(series, "dst_hostname")
    return Mesh(
        series=series,
        sources=sources,
        destinations=destinations,
        src=src,
        dst=dst,
        heard=heard[kept],
        last_s=last_s[kept],
        columns=columns,
        places=find_places(series),
    )


def _replaced(series: Sequence[Tags], pair: Index, heard: Flags) -> Flags:
    """Return which series are silent because the same is now measured under other tags.

    A host that moved to another rack or address is a new series; the old one is no trouble.
    """
    silent = np.flatnonzero(~heard)
    speaking = np.flatnonzero(heard & np.isin(pair, pair[silent]))
    known = {_measured(series[n]) for n in speaking.tolist()}
    replaced = np.zeros(len(series), dtype=bool)
    replaced[[n for n in silent.tolist() if _measured(series[n]) in known]] = True
    return replaced


def _measured(tags: Tags) -> tuple[str | None, ...]:
    return tuple(map(tags.get, MEASURED))


def _reached_s(src: Index, time_s: Column, sources: int) -> float:
    newest = np.full(sources, -np.inf)
    np.maximum.at(newest, src, time_s)
    newest = newest[np.isfinite(newest)]
    return float(np.quantile(newest, 1 - REACHED_BY, method="lower")) if newest.size else -np.inf


def _places(series: list[Tags], found: Sequence[Tags]) -> Index:
    """Return the place in ``series`` of each found one; those that are new are put at its end."""
    # Most stores give the same object for the same series, which spares comparing 40,000 of them.
    by_object = {id(tags): n for n, tags in enumerate(series)}
    place = [by_object.get(id(tags), -1) for tags in found]
    if -1 in place:
        known = {series_key(tags): n for n, tags in enumerate(series)}
        for n, tags in enumerate(found):
            if place[n] < 0:
                place[n] = known.setdefault(series_key(tags), len(series))
                if place[n] == len(series):
                    series.append(tags)
    return np.asarray(place, dtype=np.int64)


def _index(series: Sequence[Tags], name: str) -> tuple[list[str], Index]:
    values = [tags.get(name, "") for tags in series]
    names = sorted(set(values), key=natural)
    number = {value: n for n, value in enumerate(names)}
    return names, np.fromiter((number[value] for value in values), np.int64, len(values))


@frozen(eq=False)
class Health:
    """Hosts that are sick as a whole. Arrays have one row a host."""

    down: Flags  # destinations that no seeing source reaches
    blind: Flags  # sources that reach nobody, though others do
    silent: Flags  # sources from which nothing was heard
    silent_since_s: Column  # when a silent source was last heard of
    reaching: Flags  # destinations whose own collector reaches others


def judge(mesh: Mesh) -> Health:
    """Return which hosts are down, blind or silent, over all classes and kinds of probe.

    *Blind* is a source that loses everything to two destinations or more while another source
    reaches one of them. *Down* is a destination that loses everything from two sources or more
    that are not blind. With fewer witnesses a lost pair is just a lost pair.
    """
    rows, cols = len(mesh.sources), len(mesh.destinations)
    sent = np.where(mesh.heard, np.nan_to_num(mesh.columns["sent"]), 0.0)
    received = np.where(mesh.heard, np.nan_to_num(mesh.columns["received"]), 0.0)
    pair = mesh.src * cols + mesh.dst
    number, inverse = np.unique(pair, return_inverse=True)
    asked = np.bincount(inverse, sent, number.size) > 0
    reached = np.bincount(inverse, received, number.size) > 0
    src, dst = number // max(cols, 1), number % max(cols, 1)
    # A host's probes to itself say nothing about the network.
    names = np.asarray(mesh.sources, dtype=object)[src] if number.size else np.empty(0, object)
    other = np.asarray(mesh.destinations, dtype=object)[dst] if number.size else names
    asked &= names != other

    reachable = np.bincount(dst[asked & reached], minlength=cols) > 0
    tried = np.bincount(src[asked], minlength=rows)
    succeeded = np.bincount(src[asked & reached], minlength=rows)
    fair = np.bincount(src[asked & reachable[dst]], minlength=rows) > 0
    blind = (tried >= 2) & (succeeded == 0) & fair

    seeing = asked & ~blind[src]
    witnesses = np.bincount(dst[seeing], minlength=cols)
    down = (witnesses >= 2) & (np.bincount(dst[seeing & reached], minlength=cols) == 0)

    spoke = np.bincount(mesh.src, mesh.heard, rows) > 0
    since = np.full(rows, -np.inf)
    np.maximum.at(since, mesh.src, mesh.last_s)
    reaching = np.isin(mesh.destinations, np.asarray(mesh.sources)[succeeded > 0])
    return Health(down, blind, ~spoke, since, reaching)
