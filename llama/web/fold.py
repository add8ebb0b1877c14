"""Folding: from series to pairs of hosts to the cells of a matrix of open and closed groups.

A cell shows its worst member, and how many have no data: what fell silent must not hide behind what
still speaks. Hosts that are sick as a whole (`llama.web.mesh.judge`) are named
at their header instead: where a group has other members, they do not count in its cells. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from attrs import field, frozen

from llama.collector.intervals.summary import suspect_bit
from llama.web.groups import Path, natural_path
from llama.web.mesh import Flags, Health, Index, Mesh
from llama.web.metrics import Metric
from llama.web.store import Column

#: What is known about a cell, in rising order: the highest of its members' stands. How many of them
#: have less, `Pairs` and `Cells` tell.
NOT_PROBED, NO_DATA, NO_VALUE, VALUE = 0, 1, 2, 3

_SEND_FAILED = suspect_bit("send_failed")

#: Opening groups by itself, the page shows at most so many rows or columns.
AUTOMATIC_ENTRIES = 48

#: Which groups are open: these, all, none, or as many as AUTOMATIC_ENTRIES allows.
Open = frozenset[Path] | Literal["all", "none", "auto"]


@frozen
class Entry:
    """One visible row or column: a host, or a closed group of hosts."""

    path: Path  # of the group; the groups that the host is in
    host: str | None  # None: a closed group
    hosts: int


@frozen(eq=False)
class Axis:
    """The visible rows or columns, and which of them each host belongs to."""

    entries: Sequence[Entry]
    of_host: Index


def lay_out(hosts: Sequence[str], paths: Sequence[Path], opened: Open) -> Axis:
    """Return the axis of ``hosts``, which stand in ``paths``."""
    if opened == "auto":
        opened = _open_automatically(paths)
    shown: list[tuple[Path, str | None]] = []
    for host, path in zip(hosts, paths, strict=True):
        closed = next(
            (path[:n] for n in range(1, len(path) + 1) if not _is_open(path[:n], opened)), None
        )
        shown.append((path, host) if closed is None else (closed, None))
    order = sorted(set(shown), key=lambda it: (natural_path(it[0]), _host_key(it[1])))
    number = {it: n for n, it in enumerate(order)}
    of_host = np.fromiter((number[it] for it in shown), np.int64, len(shown))
    count = np.bincount(of_host, minlength=len(order))
    entries = [Entry(path, host, int(n)) for (path, host), n in zip(order, count, strict=True)]
    return Axis(entries, of_host)


def _host_key(host: str | None) -> tuple[tuple[int, int, str], ...]:
    return natural_path((host,))[0] if host is not None else ()


def _is_open(path: Path, opened: Open) -> bool:
    return opened == "all" or (isinstance(opened, frozenset) and path in opened)


def _open_automatically(paths: Sequence[Path]) -> Open:
    if len(paths) <= AUTOMATIC_ENTRIES:
        return "all"
    opened: frozenset[Path] = frozenset()
    for depth in range(1, max(map(len, paths))):
        within = {path[: depth + 1] for path in paths if len(path) > depth}
        if len(within) + sum(len(path) <= depth for path in paths) > AUTOMATIC_ENTRIES:
            break
        opened |= {path[:depth] for path in paths}
    return opened


@frozen(eq=False)
class Pairs:
    """One row for each (source, destination) that is probed, over the series that were chosen."""

    src: Index
    dst: Index
    state: Index  # NOT_PROBED never occurs
    value: Column
    bad: Flags
    suspect: Index  # bits
    flows: Column  # of the worst series
    flows_lossy: Column
    series: Index  # how many there are
    silent: Index  # of these, without data
    worst: Index  # the worst series, its number in the mesh


def reduce_to_pairs(mesh: Mesh, metric: Metric, chosen: Flags) -> Pairs:
    """Return each pair's worst among the series that ``chosen`` marks."""
    rows = np.flatnonzero(chosen)
    cols = max(len(mesh.destinations), 1)
    pair, inverse = np.unique(mesh.src[rows] * cols + mesh.dst[rows], return_inverse=True)
    value = metric.value({name: column[rows] for name, column in mesh.columns.items()})
    doubts = np.where(mesh.heard[rows], np.nan_to_num(mesh.columns["suspect"][rows]), 0.0)
    bits = doubts.astype(np.int64)
    # What its own host refused to send was measured no more than what nobody tells of.
    refused = (_figure(mesh, "sent", rows) == 0) & (bits & _SEND_FAILED > 0)
    data = mesh.heard[rows] & ~refused
    state = np.where(~data, NO_DATA, np.where(np.isnan(value), NO_VALUE, VALUE)).astype(np.int64)
    worst = _worst(inverse, value, pair.size)
    suspect = np.zeros(pair.size, dtype=np.int64)
    np.bitwise_or.at(suspect, inverse, bits & ~metric.ignored_suspicion)
    pair_state = np.zeros(pair.size, dtype=np.int64)
    np.maximum.at(pair_state, inverse, state)
    pair_value = value[worst] if pair.size else np.empty(0)
    level = metric.level(pair_value)
    bad = level >= metric.bad_level if metric.bad_level is not None else np.zeros(pair.size, bool)
    number = rows[worst] if pair.size else np.empty(0, dtype=np.int64)
    return Pairs(
        src=pair // cols,
        dst=pair % cols,
        state=pair_state,
        value=pair_value,
        bad=np.asarray(bad, dtype=bool),
        suspect=suspect,
        flows=_figure(mesh, "flows", number),
        flows_lossy=_figure(mesh, "flows_lossy", number),
        series=np.bincount(inverse, minlength=pair.size),
        silent=np.bincount(inverse, ~data, pair.size).astype(np.int64),
        worst=number,
    )


def _figure(mesh: Mesh, name: str, rows: Index) -> Column:
    return mesh.columns[name][rows] if name in mesh.columns else np.full(rows.size, np.nan)


def _worst(group: Index, value: Column, groups: int) -> Index:
    """Return for each group the place of its highest value (of any member if all are NaN)."""
    order = np.lexsort((np.where(np.isnan(value), -np.inf, value), group))
    last = np.cumsum(np.bincount(group, minlength=groups)) - 1
    return order[last]


@frozen(eq=False)
class Cells:
    """The matrix, dense and row by row: ``array[row * columns + column]``."""

    state: Index
    value: Column
    members: Index  # pairs of hosts behind the cell
    bad: Index  # of these, unhealthy
    missing: Index  # of these, without data in any or all of their series
    silent: Index  # series without data
    suspect: Index  # bits of any
    worst: Index = field(repr=False)  # the worst pair's number in Pairs; -1: no pair


def fold(pairs: Pairs, health: Health, rows: Axis, cols: Axis) -> Cells:
    """Return the cells of the visible rows and columns."""
    size = len(rows.entries) * len(cols.entries)
    hidden = _outvoted(health.blind | health.silent, rows)[pairs.src]
    hidden |= _outvoted(health.down, cols)[pairs.dst]
    kept = np.flatnonzero(~hidden)
    cell = rows.of_host[pairs.src[kept]] * len(cols.entries) + cols.of_host[pairs.dst[kept]]
    value = pairs.value[kept]
    state = np.zeros(size, dtype=np.int64)
    np.maximum.at(state, cell, pairs.state[kept])
    suspect = np.zeros(size, dtype=np.int64)
    np.bitwise_or.at(suspect, cell, pairs.suspect[kept])
    members = np.bincount(cell, minlength=size)
    worst = np.full(size, -1, dtype=np.int64)
    used, inverse = np.unique(cell, return_inverse=True)
    if used.size:
        worst[used] = kept[_worst(inverse, value, used.size)]
    return Cells(
        state=state,
        value=np.where(worst >= 0, pairs.value[worst], np.nan)
        if pairs.value.size
        else np.full(size, np.nan),
        members=members,
        bad=np.bincount(cell, pairs.bad[kept], size).astype(np.int64),
        missing=np.bincount(cell, pairs.silent[kept] > 0, size).astype(np.int64),
        silent=np.bincount(cell, pairs.silent[kept], size).astype(np.int64),
        suspect=suspect,
        worst=worst,
    )


def _outvoted(sick: Flags, axis: Axis) -> Flags:
    """Return which sick hosts stand in an entry that also has healthy ones."""
    if not len(axis.entries):
        return sick
    healthy = np.bincount(axis.of_host, ~sick, len(axis.entries)) > 0
    return sick & healthy[axis.of_host]
