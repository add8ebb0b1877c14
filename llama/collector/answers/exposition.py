"""Prometheus text of what was measured: counters and histograms that add up since the start.

They are kept a row a series (`llama.collector.answers.series`), so that they survive reloads, and turned
into text in slices. Never per flow: a flow is too fine for a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from llama.collector.answers.packed import Packed, Packer
from llama.collector.answers.series import Rows, Series
from llama.collector.intervals import histogram
from llama.collector.intervals.summary import SUSPECT_REASONS, ClosedInterval
from llama.collector.slices import Job, Pace

#: What a provider of health says: numbers by name, or by name and reason. A name that ends in
#: ``_total`` is a counter, any other a gauge.
Health = Mapping[str, float | Mapping[str, float]]

#: Gives the lines of some rows of a metric.
Lines = Callable[[slice], Iterator[str]]

#: The figure, its metric, the labels of its own, and the metric's help.
COUNTERS = (
    ("sent", "probes_sent", "", "Probes sent."),
    ("received", "probes_received", "", "Probes answered within their timeout."),
    ("lost_forward", "probes_lost", "forward", "Probes not answered, by where they were lost."),
    ("lost_reverse", "probes_lost", "reverse", ""),
    ("lost_unknown", "probes_lost", "unknown", ""),
    ("late", "replies_late", "", "Replies that came after their timeout; their probes are lost."),
    ("duplicate", "replies_duplicate", "", "Further replies to a probe already answered."),
    ("reordered", "replies_reordered", "", "Replies overtaken by the reply to a later probe."),
    ("remarked_forward", "probes_remarked", "forward", "Probes whose DSCP changed on the way."),
    ("remarked_reverse", "probes_remarked", "reverse", ""),
)

#: What the collector says of itself, by name, and each metric's help.
HEALTH_HELP = {
    "probes_sent_total": "Probes that the kernel took.",
    "replies_received_total": "Replies to probes on record, late ones included.",
    "stranger_packets_total": "Packets that are no reply to a probe on record.",
    "receive_drops_total": "Packets that the kernel dropped at a full socket buffer.",
    "damaged_packets_total": "Packets with a wrong checksum.",
    "send_failures_total": "Probes that could not be sent, by the name of the error.",
    "probes_skipped_total": "Probes that were not sent, being more than 50 ms late.",
    "probes_per_second": "What the schedule asks for.",
    "intervals_unclosed_total": "Intervals that could not be closed: their figures are lost.",
    "tick_lag_seconds": "By how much a tick came late at worst, in this interval and the last.",
    "pairs": "Pairs that are probed, and those of before with an interval to close.",
    "flows": "Flows of these pairs.",
    "groups_refused": "Parts of tests that are refused a source port or an interface.",
    "names_failing": "Names that do not resolve.",
    "config_generation": "One more whenever what is probed is another.",
    "resident_bytes": "Memory resident.",
    "cpu_seconds_total": "Processor time used, user and system.",
    "trace_packets_total": "Packets of traces sent.",
    "traces_total": "Traces that ended.",
    "trace_failures_total": "Faults of the collector in tracing.",
    "trace_answers_mismatched_total": "ICMP errors about traces that fit no packet.",
    "paths_known": "Flows of which a path is known.",
    "path_changes_total": "Times that a flow was found on another path.",
    "intervals_held": "Closed intervals that can be asked for.",
    "intervals_forgotten_total": "Intervals that went before they were fetched.",
    "flows_forgotten_total": "Flows of held intervals that were too many to keep.",
    "packed_bytes": "Memory of the points of held intervals.",
    "series": "Pairs that these metrics have.",
    "encoding_longest_slice_seconds": "The longest slice of encoding in this window.",
}


def _bounds() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the buckets' upper bounds in seconds, and the bucket of every fine bin.

    The bounds are those edges of fine bins that are nearest to 50 µs, 100 µs, 200 µs ... 1 s, so
    that no fine bin is split and the counts are exact.
    """
    wanted_ns = np.array([m * 10.0**e for e in range(4, 10) for m in (1, 2, 5)][2:-2])
    edges_ns = histogram.lower_bound_ns(np.arange(histogram.BINS))
    places = np.abs(edges_ns[:, np.newaxis] - wanted_ns).argmin(axis=0)
    bucket_of_bin = np.searchsorted(places, np.arange(histogram.BINS), side="right")
    return edges_ns[places] / 1e9, bucket_of_bin.astype(np.int64)


BOUNDS_S, BUCKET_OF_BIN = _bounds()
BUCKETS = len(BOUNDS_S) + 1

_pace_of_adding = Pace()
_pace_of_lines = Pace()
_pace_of_histograms = Pace()
_pace_of_suspects = Pace()


class Totals:
    """What every series has added up to, and its last gauges."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self._counts = np.zeros((0, len(COUNTERS)), np.int64)
        self._buckets = np.zeros((0, BUCKETS), np.int64)
        self._rtt_sum_ns = np.zeros(0)
        self._flows = np.zeros((0, 2), np.int64)
        self._suspect = np.zeros(0, np.int64)

    def add(
        self,
        closed: ClosedInterval,
        rows: Rows,
        flows: npt.NDArray[np.int64],
        flows_lossy: npt.NDArray[np.int64],
    ) -> Job[None]:
        """Add an interval; ``rows`` are its pairs' series."""
        self._grow()
        start = closed.histogram_start.astype(np.int64)
        buckets = self._buckets.reshape(-1)
        for part in _pace_of_adding.slices(len(rows)):
            some, stats = rows[part], closed.pair_stats[part]
            for column, (name, *_) in enumerate(COUNTERS):
                np.add.at(self._counts[:, column], some, stats[name])
            np.add.at(self._rtt_sum_ns, some, np.nan_to_num(stats["rtt_sum_ns"]))
            self._flows[some, 0] = flows[part]
            self._flows[some, 1] = flows_lossy[part]
            self._suspect[some] = stats["suspect"]
            entries = slice(start[part.start], start[part.stop])
            owner = np.repeat(some, np.diff(start[part.start : part.stop + 1]))
            bucket = BUCKET_OF_BIN[closed.histogram_bin[entries]]
            np.add.at(buckets, owner * BUCKETS + bucket, closed.histogram_count[entries])
            yield _pace_of_adding

    def forget(self, rows: Rows) -> None:
        """Set series that ended to nothing: if one comes back, it counts from 0."""
        self._grow()
        self._counts[rows] = self._buckets[rows] = self._flows[rows] = 0
        self._rtt_sum_ns[rows] = self._suspect[rows] = 0

    def text(self) -> Job[Packed]:
        """Encode everything as it is when the job begins."""
        self._grow()
        rows = np.flatnonzero(self._series.live())
        names = list(self._series.labels)
        # Copies, since the next interval may be added before the last line is written.
        counts, buckets = self._counts[rows], self._buckets[rows]
        sums_s = self._rtt_sum_ns[rows] / 1e9
        flows, suspect = self._flows[rows], self._suspect[rows]
        yield None
        labels = [names[row] or "" for row in rows.tolist()]
        yield None
        packer = Packer()

        def family(lines: Lines, pace: Pace = _pace_of_lines) -> Job[None]:
            for part in pace.slices(len(rows)):
                packer.add("".join(lines(part)).encode())
                yield pace

        for column, (_, name, direction, help_text) in enumerate(COUNTERS):
            if help_text:
                packer.add(_heading(f"llama_{name}_total", "counter", help_text))
            yield from family(_counter_lines(name, direction, labels, counts[:, column]))
        packer.add(
            _heading("llama_rtt_seconds", "histogram", "Round-trip times, without the reflector's.")
        )
        yield from family(_histogram_lines(labels, buckets, sums_s), _pace_of_histograms)
        for column, (name, help_text) in enumerate(
            (
                ("flows", "Flows of the newest closed interval."),
                ("flows_lossy", "Flows that lost probes in the newest closed interval."),
            )
        ):
            packer.add(_heading(f"llama_{name}", "gauge", help_text))
            yield from family(_gauge_lines(name, labels, flows[:, column]))
        packer.add(
            _heading(
                "llama_suspect",
                "gauge",
                "1: our own doing, not the network's, may be in the newest closed interval.",
            )
        )
        yield from family(_suspect_lines(labels, suspect), _pace_of_suspects)
        return packer.packed()

    def _grow(self) -> None:
        need = len(self._series)
        have = len(self._rtt_sum_ns)
        if need <= have:
            return
        more = max(need, 2 * have) - have
        self._counts = np.pad(self._counts, ((0, more), (0, 0)))
        self._buckets = np.pad(self._buckets, ((0, more), (0, 0)))
        self._flows = np.pad(self._flows, ((0, more), (0, 0)))
        self._rtt_sum_ns = np.pad(self._rtt_sum_ns, (0, more))
        self._suspect = np.pad(self._suspect, (0, more))


def _heading(name: str, kind: str, help_text: str) -> bytes:
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n".encode()


def _counter_lines(
    name: str, direction: str, labels: list[str], values: npt.NDArray[np.int64]
) -> Lines:
    own = f'direction="{direction}",' if direction else ""

    def lines(part: slice) -> Iterator[str]:
        for text, value in zip(labels[part], values[part].tolist(), strict=True):
            yield f"llama_{name}_total{{{own}{text}}} {value}\n"

    return lines


def _gauge_lines(name: str, labels: list[str], values: npt.NDArray[np.int64]) -> Lines:
    def lines(part: slice) -> Iterator[str]:
        for text, value in zip(labels[part], values[part].tolist(), strict=True):
            yield f"llama_{name}{{{text}}} {value}\n"

    return lines


def _histogram_lines(
    labels: list[str], buckets: npt.NDArray[np.int64], sums_s: npt.NDArray[np.float64]
) -> Lines:
    heads = [f'llama_rtt_seconds_bucket{{le="{bound}",' for bound in [*BOUNDS_S.tolist(), "+Inf"]]

    def lines(part: slice) -> Iterator[str]:
        up_to = np.cumsum(buckets[part], axis=1)
        for text, counts, total in zip(
            labels[part], up_to.tolist(), sums_s[part].tolist(), strict=True
        ):
            for head, count in zip(heads, counts, strict=True):
                yield f"{head}{text}}} {count}\n"
            yield f"llama_rtt_seconds_sum{{{text}}} {total!r}\n"
            yield f"llama_rtt_seconds_count{{{text}}} {counts[-1]}\n"

    return lines


def _suspect_lines(labels: list[str], suspect: npt.NDArray[np.int64]) -> Lines:
    def lines(part: slice) -> Iterator[str]:
        for number in (np.flatnonzero(suspect[part]) + part.start).tolist():
            bits = int(suspect[number])
            for bit, reason in enumerate(SUSPECT_REASONS):
                if bits >> bit & 1:
                    yield f'llama_suspect{{reason="{reason}",{labels[number]}}} 1\n'

    return lines


def flat(health: Health) -> dict[str, float]:
    """Return health as fields of a point: a reason becomes a part of the name."""
    fields: dict[str, float] = {}
    for name, value in health.items():
        if isinstance(value, Mapping):
            fields.update({f"{name}_{reason}": float(number) for reason, number in value.items()})
        else:
            fields[name] = float(value)
    return fields


def health_text(prefix: str, health: Health) -> bytes:
    """Return health as Prometheus text; every name gets ``prefix`` and an underscore before it."""
    parts: list[str] = []
    for name, value in health.items():
        metric = f"{prefix}_{name}"
        kind = "counter" if name.endswith("_total") else "gauge"
        parts.append(f"# HELP {metric} {HEALTH_HELP.get(name, name)}\n# TYPE {metric} {kind}\n")
        if isinstance(value, Mapping):
            parts += [f'{metric}{{reason="{key}"}} {_number(n)}\n' for key, n in value.items()]
        else:
            parts.append(f"{metric} {_number(value)}\n")
    return "".join(parts).encode()


def _number(value: float) -> str:
    number = float(value)
    if number != number:
        return "NaN"
    return repr(int(number)) if number.is_integer() else repr(number)
