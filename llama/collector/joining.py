"""Puts the figures of a window's tracks together to one closed interval, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import evolve

from llama.collector import memory
from llama.collector.intervals import closing
from llama.collector.intervals.open_interval import OpenInterval
from llama.collector.intervals.summary import FLOW, STATS, ClosedInterval, Stats
from llama.collector.probing.track import Track
from llama.collector.slices import Job

ROWS_AT_ONCE = 4000  # copied in a slice: half a millisecond


def flow_rows(track: Track) -> Job[Any]:
    """Return the FLOW rows of a track, the same at every close: made at the first, bit by bit."""
    while track.flow_rows is None:
        ports, pairs = track.ports, len(track.pairs)
        numbers = [sock.number for sock in track.sockets]
        rows = np.zeros((pairs, ports), FLOW)
        for first in range(0, pairs, 1000):
            some = slice(first, first + 1000)
            rows["pair"][some] = np.arange(pairs, dtype=np.uint32)[some, None]
            rows["source_port"][some] = numbers
            rows["ssid"][some] = track.ssids_sent[track.variant[some]][:, None]
            yield None
        if numbers == [sock.number for sock in track.sockets]:  # none was made anew meanwhile
            track.flow_rows = rows.reshape(-1)
    return track.flow_rows


def part_of(
    track: Track, interval: OpenInterval, figures: closing.Figures, flows: Any
) -> ClosedInterval:
    """Return one track's share of a closed interval; pairs that were retired idle are left out."""
    part = ClosedInterval(
        close_number=0, start_ns=0, end_ns=0,
        pairs=track.pairs if interval.called is None else interval.called,
        pair_stats=figures.pair_stats, flows=flows, flow_stats=figures.flow_stats,
        histogram_start=figures.histogram_start, histogram_bin=figures.histogram_bin,
        histogram_count=figures.histogram_count,
    )  # fmt: skip
    keep = track.live | (figures.pair_stats["sent"] > 0)
    return part if keep.all() else part.only(np.flatnonzero(keep))


def joined(
    parts: Sequence[ClosedInterval],
    close_number: int,
    interval: OpenInterval,
    timeout_s: float,
    notes: Sequence[set[str]],
) -> Job[ClosedInterval]:
    """Return one closed interval of all ``parts``, made bit by bit."""
    told: dict[str, Any] = {
        "close_number": close_number,
        "start_ns": interval.start_ns,
        "end_ns": interval.end_ns,
        "timeout_s": timeout_s,
        "notes": tuple(sorted(set().union(*notes))),
    }
    parts = [part for part in parts if len(part.pairs)] or parts[:1]
    if len(parts) == 1:
        return evolve(parts[0], **told)
    pairs = [p for part in parts for p in part.pairs]
    first_pairs = np.cumsum([0, *(len(part.pairs) for part in parts)])
    flows = np.concatenate([part.flows for part in parts])
    flows["pair"] += np.repeat(
        first_pairs[:-1].astype(np.uint32), [len(part.flows) for part in parts]
    )
    starts = [np.zeros(1, np.uint32)]
    entries = 0
    for part in parts:
        starts.append(part.histogram_start[1:] + np.uint32(entries))
        entries += len(part.histogram_bin)
    yield None
    pair_stats = yield from _gathered([part.pair_stats for part in parts])
    flow_stats = yield from _gathered([part.flow_stats for part in parts])
    return ClosedInterval(
        **told,
        pairs=pairs,
        pair_stats=pair_stats,
        flows=flows,
        flow_stats=flow_stats,
        histogram_start=np.concatenate(starts),
        histogram_bin=np.concatenate([part.histogram_bin for part in parts]),
        histogram_count=np.concatenate([part.histogram_count for part in parts]),
    )


def _gathered(parts: Sequence[Stats]) -> Job[Stats]:
    """Return rows of STATS one after the other, copied bit by bit."""
    whole = memory.rows(sum(map(len, parts)), STATS)
    place = 0
    for part in parts:
        for first in range(0, len(part), ROWS_AT_ONCE):
            some = part[first : first + ROWS_AT_ONCE]
            whole[place : place + len(some)] = some
            place += len(some)
            yield None
    return whole
