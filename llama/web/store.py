"""What the matrix asks of a database: the `Store` protocol and the shapes of its answers.

A store knows nothing of matrices, groups or colours: it gives back *series* (one tag set each, see
`llama.collector.intervals.summary.Pair.series_tags`) with columns of figures. The columns bear the
names of the fields that the scraper writes, and times are Unix seconds. NaN is "no sample", never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from attrs import field, frozen
from twisted.internet.defer import Deferred

Tags = Mapping[str, str]
Column = npt.NDArray[np.float64]

#: How each column is put together over time. Counts add up. Percentiles cannot be averaged, so a
#: span of time has those of its worst interval. Of bits all that were ever set are (``or``).
AGGREGATE: Mapping[str, str] = {
    "sent": "sum",
    "received": "sum",
    "lost": "sum",
    "lost_forward": "sum",
    "lost_reverse": "sum",
    "lost_unknown": "sum",
    "late": "sum",
    "duplicate": "sum",
    "reordered": "sum",
    "remarked_forward": "sum",
    "remarked_reverse": "sum",
    "rtt": "max",
    "rtt_min": "min",
    "rtt_max": "max",
    "rtt_p50": "max",
    "rtt_p90": "max",
    "rtt_p99": "max",
    "jitter": "max",
    "flows": "max",
    "flows_lossy": "max",
    "suspect": "or",
    "dscp_at_reflector": "max",
    "dscp_at_collector": "max",
}


class StoreError(Exception):
    """The database could not answer; the text is one line for a person: what, where, what to do."""


class StoreTimeoutError(StoreError):
    """The database took longer than the store allows."""


class TooMuchError(StoreError):
    """The answer would be larger than the store allows."""


#: Series of a history times its steps, at most: to make its picture of so many takes a dozen seconds.
MOST_CELLS = 250_000


def see_room(series: int, steps: int, most: int = MOST_CELLS) -> None:
    """Raise `TooMuchError` for more cells than ``most``, before there is memory for them.

    However few samples an answer has, it is they that are filled.
    """
    if series * steps > most:
        raise TooMuchError(
            f"{series:,} series and {steps:,} steps are too many; ask for one class, for less time or"
            " for longer steps"
        )


@frozen
class Window:
    """A span of time: after ``start_s``, up to and including ``end_s`` (Unix seconds)."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Return how long the span is."""
        return self.end_s - self.start_s

    def steps(self, step_s: float) -> Column:
        """Return the ends of the steps that fill this span, aligned to multiples of ``step_s``.

        A step that ends at ``t`` covers ``(t - step_s, t]``; the first and the last may reach out
        of the window and then hold only what is within it.
        """
        first = np.floor(self.start_s / step_s) + 1
        last = np.ceil(self.end_s / step_s)
        return np.arange(first, last + 1, dtype=np.float64) * step_s


@frozen(eq=False)
class Snapshot:
    """One row of figures for each of ``series``."""

    series: Sequence[Tags]
    time_s: Column  # of the newest sample that went in; one for each series
    columns: Mapping[str, Column] = field(repr=False)  # likewise

    def column(self, name: str) -> Column:
        """Return a column, all NaN if the store has no such figure."""
        if name in self.columns:
            return self.columns[name]
        return np.full(len(self.series), np.nan)


@frozen(eq=False)
class Activity:
    """Which series there are, when each was last heard of, and how often it speaks."""

    series: Sequence[Tags]
    last_s: Column
    interval_s: Column  # estimated; NaN after a single sample
    #: How many more series there were that belong to the mesh no more (`llama.web.mesh.members`).
    dropped: int = 0
    #: Whether all series are here that there are to know of in the time.
    complete: bool = True


@frozen(eq=False)
class History:
    """Figures over time: ``columns[name][series, step]``. Steps without a sample are NaN."""

    series: Sequence[Tags]
    step_s: float
    time_s: Column  # the end of every step
    columns: Mapping[str, npt.NDArray[np.float64]] = field(repr=False)
    #: Exact RTT histograms where the store has them: bin edges in ms (one longer than the bins;
    #: the last may be infinite) and counts[step, bin] over all series.
    histogram_edges_ms: Column | None = None
    histogram_counts: npt.NDArray[np.float64] | None = field(default=None, repr=False)


@frozen(eq=False)
class Timeline:
    """How the whole mesh did over time, one row a step."""

    step_s: float
    time_s: Column  # the end of every step
    series: Column  # how many spoke
    lossy: Column  # how many of these lost LOSSY_PERCENT of their probes or more
    worst_percent: Column  # the highest loss of any


#: From this much loss on a series counts as lossy, in percent.
LOSSY_PERCENT = 0.1


class Store(Protocol):
    """A database with the measurements of a fleet, read only.

    Every method returns a `Deferred` that fails with `StoreError`; none blocks the reactor.
    ``where`` maps tag names to the one value wanted.
    """

    #: "sqlite", "influxdb", "prometheus": for people.
    kind: str

    def newest(self) -> Deferred[float | None]:
        """Give the time of the newest sample of all that is not in the future, or None."""

    def resolution_s(self, start_s: float) -> Deferred[float]:
        """Give how long the rows are that are left of times from ``start_s`` on; 0: intervals."""

    def timeline_step_s(self, start_s: float) -> Deferred[float]:
        """Give the shortest step of a timeline from ``start_s`` on; 0: any."""

    def activity(self, window: Window) -> Deferred[Activity]:
        """Give all series that had a sample in the window."""

    def remembered(self, window: Window, speaking: frozenset[str]) -> Deferred[Activity]:
        """Give the series of sources other than these that had a sample in the window.

        Windows are days long; intervals are not told. What takes too long to find may be left out
        of an answer that says that it is not complete.
        """

    def latest(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """Give the newest sample in the window of each series that has one."""

    def latest_of(
        self, window: Window, columns: Sequence[str], some: Activity
    ) -> Deferred[Snapshot]:
        """Give the newest sample in the window of each of some series that has one.

        These speak seldom, and the window is long. Of what is only left in longer rows the figures
        of a row stand.
        """

    def total(self, window: Window, columns: Sequence[str]) -> Deferred[Snapshot]:
        """Give the whole window of each series put together as `AGGREGATE` says."""

    def baseline(self, window: Window) -> Deferred[Snapshot]:
        """Give each series' usual RTT over the window: column ``rtt_p50`` alone, a median."""

    def history(
        self, window: Window, step_s: float, columns: Sequence[str], where: Tags
    ) -> Deferred[History]:
        """Give the figures over time of the series that match ``where``."""

    def timeline(self, window: Window, step_s: float, where: Tags) -> Deferred[Timeline]:
        """Give how the whole mesh did over time."""

    def stop(self) -> Deferred[Any]:
        """Let go of connections and threads."""


def series_key(tags: Tags) -> tuple[tuple[str, str], ...]:
    """Return what names a series, to match the answers of two questions."""
    return tuple(sorted(tags.items()))
