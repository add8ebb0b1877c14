"""RTT over time as a heat map: how many replies took how long in each step.

From exact histograms where the store has them, else from the percentiles it has: between two known
percentiles the replies are spread evenly over the logarithm of time, and the answer says so. Pure.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from llama.web.store import History

#: Known points of the distribution: column and share of replies at or below it.
_KNOTS = (("rtt_min", 0.0), ("rtt_p50", 0.5), ("rtt_p90", 0.9), ("rtt_p99", 0.99), ("rtt_max", 1.0))

_BINS = 32


@frozen(eq=False)
class Heat:
    """Replies by time and RTT."""

    source: Literal["histogram", "percentiles"]
    edges_ms: npt.NDArray[np.float64]  # one longer than the bins
    counts: npt.NDArray[np.float64] = field(repr=False)  # [step, bin]


def heat_map(history: History) -> Heat | None:
    """Return the heat map of all series of a history together, or None without any RTT."""
    if history.histogram_edges_ms is not None and history.histogram_counts is not None:
        return _trim(history.histogram_edges_ms, history.histogram_counts)
    return from_percentiles(history)


def _trim(edges: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> Heat | None:
    used = np.flatnonzero(np.nan_to_num(counts).sum(axis=0) > 0)
    if not used.size:
        return None
    first, last = int(used[0]), int(used[-1])
    return Heat("histogram", edges[first : last + 2], np.nan_to_num(counts[:, first : last + 1]))


def from_percentiles(history: History) -> Heat | None:
    """Return the heat map that the percentiles of each series and step imply.

    It needs the columns ``received`` and those of `_KNOTS`.
    """
    low, high = history.columns["rtt_min"], history.columns["rtt_max"]
    if np.isnan(low).all() or np.isnan(high).all():
        return None
    bottom, top = max(float(np.nanmin(low)), 1e-3), max(float(np.nanmax(high)), 1e-3)
    # A little air, so that a constant RTT is a line inside the picture and not its whole height.
    edges = np.geomspace(bottom / 1.1, top * 1.1, _BINS + 1)
    counts = np.zeros((history.time_s.size, _BINS))
    received = np.nan_to_num(history.columns["received"])
    for series, step in zip(*np.nonzero(received > 0), strict=True):
        knots = [
            (float(history.columns[name][series, step]), share)
            for name, share in _KNOTS
            if not np.isnan(history.columns[name][series, step])
        ]
        if knots:
            counts[step] += received[series, step] * _shares(knots, edges)
    return Heat("percentiles", edges, counts)


def _shares(
    knots: list[tuple[float, float]], edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    times = np.maximum.accumulate(np.log([max(time, 1e-3) for time, _ in knots]))
    shares = np.array([share for _, share in knots])
    shares[0], shares[-1] = 0.0, 1.0
    # A hair apart, since equal percentiles are a step in the distribution.
    times = times + np.arange(times.size) * 1e-9
    cumulative = np.interp(np.log(edges), times, shares, left=0.0, right=1.0)
    if times.size == 1:
        cumulative = (np.log(edges) >= times[0]).astype(np.float64)
    return np.asarray(np.diff(cumulative))
