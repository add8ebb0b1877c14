"""Statistics of round-trip times in columns: quantiles, variation, jitter, histograms, sums. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.histogram import bin_of
from llama.collector.intervals.replies import UNKNOWN_DSCP, Ints
from llama.collector.intervals.summary import STATS, Stats

P999_SAMPLES = 1000  # fewer samples than this have no meaningful p99.9
JITTER_GAIN = 1 / 16  # RFC 3550 section 6.4.1
#: What a difference weighs, by how many came after it; the oldest less than 1e-7.
_JITTER_WEIGHTS = JITTER_GAIN * (1 - JITTER_GAIN) ** np.arange(257)


def _blank() -> Stats:
    """Return a row of STATS of which nothing is known."""
    row = np.zeros(1, STATS)
    for name in STATS.names or ():
        if name.endswith("_ns"):
            row[name] = np.nan
    row["rtt_sum_ns"] = 0.0
    row["dscp_at_reflector"] = UNKNOWN_DSCP
    row["dscp_at_collector"] = UNKNOWN_DSCP
    return row


BLANK = _blank()
#: How the figures of a pair come of those of its flows, besides those by hand; averages by samples.
_SUMMED = (
    "sent", "received", "lost", "lost_forward", "lost_reverse", "lost_unknown", "late",
    "duplicate", "reordered", "samples", "remarked_forward", "remarked_reverse", "rtt_sum_ns",
)  # fmt: skip
_HIGHEST = ("ttl_at_reflector", "ttl_at_collector")
_AVERAGED = (
    "jitter_ns", "ipdv_ns", "ipdv_forward_ns", "ipdv_reverse_ns", "owd_forward_ns",
    "owd_reverse_ns", "owd_error_ns",
)  # fmt: skip


def quantiles(stats: Stats, ordered: npt.NDArray[np.float64]) -> None:
    """Fill in extremes and quantiles (nearest rank) from rows in rising order, NaN, for none, last."""
    count = stats["samples"].astype(np.int64)
    row = np.arange(len(count))
    stats["rtt_min_ns"] = ordered[:, 0]
    stats["rtt_max_ns"] = ordered[row, np.maximum(count - 1, 0)]
    for name, q in (("rtt_p50_ns", 0.5), ("rtt_p90_ns", 0.9), ("rtt_p99_ns", 0.99)):
        stats[name] = ordered[row, _rank(q, count)]
    many = np.flatnonzero(count >= P999_SAMPLES)
    if many.size:
        stats["rtt_p999_ns"][many] = ordered[many, _rank(0.999, count[many])]


def _rank(q: float, count: Ints) -> Ints:
    """Return the place of a quantile among ``count`` values in rising order; 0 where there are none."""
    rank: Ints = np.maximum(np.ceil(q * count).astype(np.int64) - 1, 0)
    return rank


def _mean(total: npt.NDArray[np.float64], count: Ints) -> npt.NDArray[np.float64]:
    """Return means, NaN of nothing."""
    mean: npt.NDArray[np.float64] = np.full(len(total), np.nan)
    return np.divide(total, count, out=mean, where=count > 0)


def variation(stats: Stats, name: str, delay: npt.NDArray[np.float64]) -> None:
    """Fill in the mean |difference| of the delays of probes sent one after the other (RFC 3393)."""
    difference = np.abs(np.diff(delay, axis=0))
    valid = ~np.isnan(difference)
    total = np.where(valid, difference, 0.0).sum(axis=0)
    stats[name] = _mean(total, valid.sum(axis=0))


def jitter(stats: Stats, rtt: npt.NDArray[np.float64], known: npt.NDArray[np.bool_]) -> None:
    """Fill in RFC 3550's running estimate, J += (|D| - J) / 16, over the probes received.

    As a sum: the k-th last of the differences D weighs (15/16)**(k-1) / 16.
    """
    if len(rtt) < 2:
        return
    if known.all():
        weights = _JITTER_WEIGHTS[np.minimum(np.arange(len(rtt) - 1), len(_JITTER_WEIGHTS) - 1)]
        stats["jitter_ns"] = weights[::-1] @ np.abs(np.diff(rtt, axis=0))
        return
    turn = np.arange(len(rtt))[:, None]
    before = np.maximum.accumulate(np.where(known, turn, -1))[:-1]
    valid = known[1:] & (before >= 0)
    previous = rtt[np.maximum(before, 0), np.arange(rtt.shape[1])]
    difference = np.where(valid, np.abs(rtt[1:] - previous), 0.0)
    age = np.cumsum(valid[::-1], axis=0)[::-1] - 1  # 0 for the last difference
    weight = _JITTER_WEIGHTS[np.minimum(age, len(_JITTER_WEIGHTS) - 1)]
    estimate = np.where(valid, weight * difference, 0.0).sum(axis=0)
    stats["jitter_ns"] = np.where(valid.any(axis=0), estimate, np.nan)


def sum_pairs(pair_stats: Stats, stats: Stats, ports: int) -> None:
    """Sum the flows of each pair: counts exactly, marks by or, the rest as its name says."""
    pairs = len(pair_stats)

    def by_port(*names: str) -> npt.NDArray[Any]:
        """Return columns of the flows, (names, ports, pairs)."""
        columns = np.array([stats[name] for name in names]).reshape(len(names), pairs, ports)
        return np.ascontiguousarray(columns.transpose(0, 2, 1))

    for name, total in zip(_SUMMED, by_port(*_SUMMED).sum(axis=1), strict=True):
        pair_stats[name] = total
    pair_stats["suspect"] = np.bitwise_or.reduce(by_port("suspect")[0])
    for name, highest in zip(_HIGHEST, by_port(*_HIGHEST).max(axis=1), strict=True):
        pair_stats[name] = highest
    # The class seen by a remarked flow, if there is one, is worth more than that of the others.
    for name, remarked in (
        ("dscp_at_reflector", "remarked_forward"),
        ("dscp_at_collector", "remarked_reverse"),
    ):
        seen, changed = by_port(name, remarked)
        known = (seen != UNKNOWN_DSCP).argmax(axis=0)
        where = np.where(changed.any(axis=0), changed.argmax(axis=0), known)
        pair_stats[name] = seen[where, np.arange(pairs)]
    values = by_port(*_AVERAGED)
    valid = ~np.isnan(values)
    weight = np.where(valid, by_port("samples"), 0)
    weighed = (np.where(valid, values, 0.0) * weight).sum(axis=1)
    for name, total, samples in zip(_AVERAGED, weighed, weight.sum(axis=1), strict=True):
        pair_stats[name] = _mean(total, samples)


def histograms(
    ordered: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return the sparse histograms of rows of RTTs: bins, counts, bins per row.

    Each row is in rising order, and NaN, which stands for none, last.
    """
    known = ~np.isnan(ordered)
    bins = bin_of(ordered[known])
    rows = np.repeat(np.arange(len(ordered)), known.sum(axis=1))
    begins = np.ones(len(bins), np.bool_)  # where another bin begins, or another row
    begins[1:] = (bins[1:] != bins[:-1]) | (rows[1:] != rows[:-1])
    first = np.flatnonzero(begins)
    counts = np.diff(first, append=len(bins))
    per_row = np.bincount(rows[first], minlength=len(ordered))
    return bins[first], counts.astype(np.uint32), per_row
