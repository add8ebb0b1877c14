"""The figures that the matrix can show: how each comes from a series' columns, and what is bad.

Pure arithmetic on columns. A *level* says how bad a value is, 0 (fine) to 5, for metrics that have
a good and a bad; the others are merely shown, and their levels only separate magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.collector.intervals.summary import suspect_bit
from llama.web.store import Column

Columns = Mapping[str, Column]
Figures = npt.NDArray[np.float64]

#: What every question needs: whether a pair answers at all, and whether we doubt ourselves.
ALWAYS = ("sent", "received", "lost", "suspect")


def with_received(columns: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return the columns with ``received`` filled in as sent less lost where it is not known.

    Collectors of dropbox/llama tell no more than those two. In which direction they lost is not
    known, and stays so.
    """
    received, sent, lost = columns["received"], columns["sent"], columns["lost"]
    return {**columns, "received": np.where(np.isnan(received), sent - lost, received)}


def percent(part: Column, whole: Column) -> Column:
    """Return ``part`` of ``whole`` in percent; NaN where nothing was sent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 100.0 * part / whole, np.nan)


def _loss(columns: Columns) -> Column:
    return percent(columns["lost"], columns["sent"])


def _directed(name: str) -> Callable[[Columns], Column]:
    def loss(columns: Columns) -> Column:
        # Loss whose direction cannot be known is neither this direction's nor the other's:
        # with nothing else lost this way, there is no figure.
        hidden = (columns["lost_unknown"] > 0) & ~(columns[name] > 0)
        return np.where(hidden, np.nan, percent(columns[name], columns["sent"]))

    return loss


def _rtt(name: str) -> Callable[[Columns], Column]:
    def rtt(columns: Columns) -> Column:
        value = columns[name]
        if name == "rtt_p50":  # other collectors than ours only know a mean
            value = np.where(np.isnan(value), columns["rtt"], value)
        return np.where(columns["received"] > 0, value, np.nan)

    return rtt


def _over_baseline(columns: Columns) -> Column:
    with np.errstate(divide="ignore", invalid="ignore"):
        usual = columns["baseline"]
        return np.where(usual > 0, _rtt("rtt_p50")(columns) / usual, np.nan)


def _remarked(columns: Columns) -> Column:
    both = np.fmax(columns["remarked_forward"], 0) + np.fmax(columns["remarked_reverse"], 0)
    unknown = np.isnan(columns["remarked_forward"]) & np.isnan(columns["remarked_reverse"])
    share = np.minimum(percent(both, columns["received"]), 100.0)
    return np.where(unknown, np.nan, share)


@frozen
class Metric:
    """One thing that the matrix can show."""

    name: str
    title: str
    unit: str
    columns: tuple[str, ...]  # besides ALWAYS
    value: Callable[[Columns], Column]
    #: A value is at level n if it reaches the n-th of these (level 1: above zero, if given as 0).
    levels: tuple[float, ...]
    bad_level: int | None  # from this level on a pair is unhealthy; None: there is no bad
    ignored_suspicion: int = 0  # suspect bits that say nothing about this figure
    needs_baseline: bool = False

    def level(self, values: Column) -> Column:
        """Return the level of each value, NaN for NaN."""
        counted = np.zeros(values.shape)
        for threshold in self.levels:
            counted += (values > 0) if threshold == 0 else (values >= threshold)
        return np.where(np.isnan(values), np.nan, counted)

    def describe(self) -> dict[str, object]:
        """Return what a client needs to name, scale and judge values."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "levels": list(self.levels),
            "bad_level": self.bad_level,
        }


_LOSS_LEVELS = (0.0, 0.1, 1.0, 10.0, 100.0)
_TIME_LEVELS = (1.0, 5.0, 20.0, 80.0, 200.0)
_STAMPS = suspect_bit("user_timestamps")
_RTT = ("rtt", "rtt_p50")

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "loss", "%", (), _loss, _LOSS_LEVELS, 2, _STAMPS),
        Metric(
            "loss_forward",
            "loss forward",
            "%",
            ("lost_forward", "lost_unknown"),
            _directed("lost_forward"),
            _LOSS_LEVELS,
            2,
            _STAMPS,
        ),
        Metric(
            "loss_reverse",
            "loss reverse",
            "%",
            ("lost_reverse", "lost_unknown"),
            _directed("lost_reverse"),
            _LOSS_LEVELS,
            2,
            _STAMPS,
        ),
        Metric("rtt_p50", "RTT p50", "ms", _RTT, _rtt("rtt_p50"), _TIME_LEVELS, None),
        Metric("rtt_p90", "RTT p90", "ms", ("rtt_p90",), _rtt("rtt_p90"), _TIME_LEVELS, None),
        Metric("rtt_p99", "RTT p99", "ms", ("rtt_p99",), _rtt("rtt_p99"), _TIME_LEVELS, None),
        Metric(
            "rtt_baseline",
            "RTT vs past day",
            "×",  # noqa: RUF001  the sign is the unit
            _RTT,
            _over_baseline,
            (1.1, 1.25, 1.5, 2.0, 5.0),
            3,
            needs_baseline=True,
        ),
        Metric(
            "jitter",
            "jitter",
            "ms",
            ("jitter",),
            _rtt("jitter"),
            (0.1, 0.5, 2.0, 10.0, 50.0),
            None,
        ),
        Metric(
            "remarked",
            "remarked DSCP",
            "%",
            ("remarked_forward", "remarked_reverse"),
            _remarked,
            _LOSS_LEVELS,
            1,
            _STAMPS,
        ),
    )
}
