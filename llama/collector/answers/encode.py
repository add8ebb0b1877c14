"""JSON of what was measured: points for a time-series database, pairs and flows for programs.

Each function here is a job (see `llama.collector.slices`) that encodes some rows and yields. Times
are rounded to the nanosecond. What is unknown is absent from a point and null in JSON for
programs; NaN appears nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from llama.collector.answers.history import Newest
from llama.collector.answers.packed import Packed, Packer
from llama.collector.intervals.summary import ClosedInterval, Pair, Stats, reasons
from llama.collector.slices import Job, Pace
from llama.paths.table import FlowKey, Known
from llama.paths.table import as_json as path_row
from llama.rfc3339 import utc_text

#: Figures that are counts, by the same name everywhere.
COUNTS = (
    "sent",
    "received",
    "lost",
    "lost_forward",
    "lost_reverse",
    "lost_unknown",
    "late",
    "duplicate",
    "reordered",
    "remarked_forward",
    "remarked_reverse",
)
#: Figures that are times, by their names in `STATS` without the unit.
TIMES = (
    "rtt_min",
    "rtt_max",
    "rtt_p50",
    "rtt_p90",
    "rtt_p99",
    "rtt_p999",
    "jitter",
    "ipdv",
    "ipdv_forward",
    "ipdv_reverse",
    "owd_forward",
    "owd_reverse",
    "owd_error",
)
#: Figures that are a last value, and the number that says it is unknown.
LAST_VALUES = {
    "dscp_at_reflector": 255,
    "dscp_at_collector": 255,
    "ttl_at_reflector": 0,
    "ttl_at_collector": 0,
}
#: A point's fields: those that are the same for most pairs while all is well, and its times.
_ALIKE_FIELDS = ("loss", *COUNTS, "suspect", "flows", "flows_lossy", *LAST_VALUES)
_TIME_FIELDS = ("rtt", *TIMES)
_MADE = 1000  # texts of alike figures that are kept, and those of a slice more

_pace_of_points = Pace()
_pace_of_rows = Pace()


def _ms(time_ns: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    whole_ns: npt.NDArray[np.float64] = np.rint(time_ns, dtype=np.float64)
    return whole_ns / 1e6


def loss_percent(stats: Stats) -> npt.NDArray[np.float64]:
    """Return the share of probes lost of each row, in percent; NaN where nothing was sent."""
    sent = stats["sent"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.round(100.0 * stats["lost"] / sent, 6)


def rtt_mean_ms(stats: Stats) -> npt.NDArray[np.float64]:
    """Return the mean round-trip time of each row, in milliseconds; NaN without samples."""
    samples = stats["samples"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return _ms(np.where(samples > 0, stats["rtt_sum_ns"], np.nan) / samples)


def _members(names: Sequence[str], columns: npt.NDArray[np.float64]) -> list[bytes]:
    """Return JSON members, without braces, of each row of ``columns``, (names, N); NaN is absent."""
    unknown = np.isnan(columns)
    shown = np.flatnonzero(~unknown.all(axis=1))
    if not len(shown):
        return [b""] * columns.shape[1]
    names = [names[n] for n in shown.tolist()]
    rows = zip(*columns[shown].tolist(), strict=True)
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    if unknown[shown].any():
        objects = [
            {name: value for name, value in members.items() if value == value}
            for members in objects
        ]
    # There are no braces in names and numbers.
    return orjson.dumps(objects)[2:-2].split(b"},{")


def _alike(
    stats: Stats,
    flows: npt.NDArray[np.int64],
    flows_lossy: npt.NDArray[np.int64],
    made: dict[bytes, bytes],
) -> list[bytes]:
    """Return `_ALIKE_FIELDS` of each pair as JSON members; ``made`` keeps texts by their figures."""
    columns = [loss_percent(stats), *(stats[name] for name in COUNTS), stats["suspect"]]
    columns += [flows, flows_lossy]
    columns += [
        np.where(stats[name] == unknown, np.nan, stats[name])
        for name, unknown in LAST_VALUES.items()
    ]
    figures = np.stack(columns, axis=1, dtype=np.float64)
    keys = figures.view(f"V{8 * len(columns)}")[:, 0].tolist()
    if len(made) > _MADE:
        made.clear()
    new = {key: number for number, key in enumerate(keys) if key not in made}
    if new:
        texts = _members(_ALIKE_FIELDS, figures[list(new.values())].T)
        made.update(zip(new, texts, strict=True))
    return [made[key] for key in keys]


def _times(stats: Stats) -> list[bytes]:
    """Return `_TIME_FIELDS` of each pair as JSON members, with a comma before them."""
    columns = np.stack([rtt_mean_ms(stats), *(_ms(stats[f"{name}_ns"]) for name in TIMES)])
    return [b"," + text if text else b"" for text in _members(_TIME_FIELDS, columns)]


def points(
    closed: ClosedInterval,
    flows: npt.NDArray[np.int64],
    flows_lossy: npt.NDArray[np.int64],
    tags: Sequence[bytes],
    own: Sequence[dict[str, Any]] = (),
) -> Job[Packed]:
    """Encode an interval as `raw_stats` points: a JSON list without its brackets.

    ``flows`` and ``flows_lossy`` count those of each pair, ``tags`` are each pair's tag set as
    JSON, and ``own`` are further points, of the collector's own health.
    """
    packer = Packer()
    point = b'{"measurement":"raw_stats","tags":%b,"fields":{%b%b},"time":"%b"}'
    time = utc_text(closed.end_ns).encode()
    made: dict[bytes, bytes] = {}
    comma = b""
    for part in _pace_of_points.slices(len(closed.pairs)):
        stats = closed.pair_stats[part]
        alike = _alike(stats, flows[part], flows_lossy[part], made)
        rows = zip(tags[part], alike, _times(stats), strict=True)
        packer.add(comma + b",".join([point % (*row, time) for row in rows]))
        comma = b","
        yield _pace_of_points
    if own:
        packer.add(comma + orjson.dumps(list(own))[1:-1])
    return packer.packed()


def own_point(src_hostname: str, health: Mapping[str, float], end_ns: int) -> dict[str, Any]:
    """Return the point of the collector's own health for the interval that ended then."""
    return {
        "measurement": "collector_stats",
        "tags": {"src_hostname": src_hostname},
        "fields": {name: float(value) for name, value in health.items() if value == value},
        "time": utc_text(end_ns),
    }


def figures(stats: Stats) -> list[dict[str, Any]]:
    """Return the figures of rows of `STATS` for programs: units in their names, None if unknown."""
    columns: dict[str, list[Any]] = {name: stats[name].tolist() for name in COUNTS}
    columns["loss_percent"] = loss_percent(stats).tolist()
    columns["rtt_samples"] = stats["samples"].tolist()
    columns["rtt_mean_ms"] = rtt_mean_ms(stats).tolist()
    for name in TIMES:
        columns[f"{name}_ms"] = _ms(stats[f"{name}_ns"]).tolist()
    for name, unknown in LAST_VALUES.items():
        columns[name] = [None if value == unknown else value for value in stats[name].tolist()]
    columns["suspect"] = [reasons(bits) for bits in stats["suspect"].tolist()]
    names = tuple(columns)
    # orjson writes NaN as null.
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def pair_names(pair: Pair) -> dict[str, Any]:
    """Return what names a pair, for programs."""
    return {
        "target": pair.target,
        "src_ip": pair.src_ip,
        "dst_ip": pair.dst_ip,
        "dst_port": pair.dst_port,
        "class": pair.class_name,
        "dscp": pair.dscp,
        "probe": pair.probe,
        "size_octets": pair.size,
        "port_group": pair.port_group,
    }


def _listed(
    head: dict[str, Any], name: str, slices: Iterable[Sequence[dict[str, Any]]]
) -> Job[Packed]:
    """Encode an object: the members of ``head``, and the list of what is in the ``slices``.

    They are made at `_pace_of_rows`.
    """
    packer = Packer()
    packer.add(orjson.dumps(head)[:-1] + b',"' + name.encode() + b'":[')
    comma = b""
    for objects in slices:
        packer.add(comma + orjson.dumps(objects)[1:-1])
        comma = b","
        yield _pace_of_rows
    packer.add(b"]}\n")
    return packer.packed()


def _when(closed: ClosedInterval) -> dict[str, Any]:
    return {
        "interval_start": utc_text(closed.start_ns),
        "interval_end": utc_text(closed.end_ns),
        "close_number": closed.close_number,
    }


def latency(
    head: dict[str, Any], parts: Sequence[tuple[Newest, npt.NDArray[np.int64]]]
) -> Job[Packed]:
    """Encode pairs for programs: ``head`` and, under ``pairs``, an object a pair.

    ``parts`` are intervals and the numbers of those of their pairs that are wanted.
    """

    def slices() -> Iterator[list[dict[str, Any]]]:
        for newest, numbers in parts:
            closed = newest.closed
            when = _when(closed)
            for part in _pace_of_rows.slices(len(numbers)):
                some = numbers[part]
                rows = zip(
                    some.tolist(),
                    newest.flows[some].tolist(),
                    newest.flows_lossy[some].tolist(),
                    figures(closed.pair_stats[some]),
                    strict=True,
                )
                yield [
                    {
                        **pair_names(closed.pairs[number]),
                        "tags": dict(closed.pairs[number].tags),
                        **when,
                        "flows": count,
                        "flows_lossy": lossy,
                        **row,
                    }
                    for number, count, lossy, row in rows
                ]

    return _listed(head, "pairs", slices())


def flows(
    head: dict[str, Any], parts: Sequence[tuple[ClosedInterval, npt.NDArray[np.int64]]]
) -> Job[Packed]:
    """Encode flows for programs: ``head`` and, under ``flows``, an object a flow.

    ``parts`` are intervals and the numbers of those of their flows that are wanted.
    """

    def slices() -> Iterator[list[dict[str, Any]]]:
        for closed, numbers in parts:
            when = _when(closed)
            for part in _pace_of_rows.slices(len(numbers)):
                some = numbers[part]
                stats = figures(closed.flow_stats[some])
                yield [
                    {
                        **pair_names(closed.pairs[number]),
                        "source_port": source_port,
                        "ssid": ssid,
                        **when,
                        **row,
                    }
                    for (number, source_port, ssid), row in zip(
                        closed.flows[some].tolist(), stats, strict=True
                    )
                ]

    return _listed(head, "flows", slices())


def paths(head: dict[str, Any], rows: Sequence[tuple[FlowKey, Known]]) -> Job[Packed]:
    """Encode traced paths for programs: ``head`` and, under ``paths``, an object a flow."""
    slices = _pace_of_rows.slices(len(rows))
    return _listed(head, "paths", ([path_row(*row) for row in rows[part]] for part in slices))
