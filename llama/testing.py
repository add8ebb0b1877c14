"""Public fakes: what a test needs of LLAMA without a network, a clock or a database.

They are used by LLAMA's own tests and by benchmarks, and are part of its public API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.collector.intervals import histogram
from llama.collector.intervals.summary import FLOW, STATS, ClosedInterval, Pair
from llama.config.dscp import class_name

NANOSECONDS = 1_000_000_000
#: When the first interval of `closed_interval` starts, in seconds of Unix time.
FIRST_START_S = 1_700_000_010


def pair(number: int = 0, **changes: Any) -> Pair:
    """Return a pair; those of different numbers differ in target and address.

    ``changes`` are attributes of `Pair` to be given other values; with ``dscp`` the class follows.
    """
    target = f"reflector{number:05}.example.net"
    attributes: dict[str, Any] = {
        "target": target,
        "src_ip": "192.0.2.1",
        "dst_ip": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        "dst_port": 8100,
        "dscp": 0,
        "probe": "stamp",
        "size": 44,
        "port_group": "default",
        "tags": {
            "src_hostname": "collector01.example.net",
            "dst_hostname": target,
            "rack": f"{number % 40:02}",
            "cluster": f"c{number % 8}",
            "datacenter": ("iad", "fra", "nrt")[number % 3],
        },
        **changes,
    }
    attributes.setdefault("class_name", class_name(attributes["dscp"]))
    return Pair(**attributes)


def closed_interval(
    pairs: int | Sequence[Pair] = 3,
    *,
    close_number: int = 1,
    flows_per_pair: int = 4,
    probes_per_flow: int = 10,
    loss: float | Sequence[float] | npt.NDArray[np.float64] = 0.0,
    suspect: int = 0,
    notes: tuple[str, ...] = (),
    interval_s: int = 30,
    start_s: int | None = None,
    seed: int = 0,
) -> ClosedInterval:
    """Return a closed interval whose figures agree with each other, as a ledger's do.

    Every probe is drawn: which are lost (``loss``: the probability, one for all flows or one for
    each) and in which direction, and the round-trip time of the others. Flow and pair figures and
    histograms are then counted from the probes. ``probes_per_flow`` 0: nothing was sent. Without
    ``start_s`` intervals follow each other by their close number.
    """
    rng = np.random.default_rng([seed, close_number])
    members = [pair(n) for n in range(pairs)] if isinstance(pairs, int) else pairs
    n, per_pair = len(members), flows_per_pair * probes_per_flow
    flows = np.zeros(n * flows_per_pair, dtype=FLOW)
    flows["pair"] = np.repeat(np.arange(n), flows_per_pair)
    flows["source_port"] = 50000 + np.tile(np.arange(flows_per_pair), n)
    flows["ssid"] = 1

    base_ns = 50e3 * (1 + np.arange(n, dtype=np.float64) % 997)
    rtt_ns = base_ns.repeat(per_pair).reshape(len(flows), probes_per_flow)
    rtt_ns = np.floor(rtt_ns * (1 + rng.exponential(0.05, rtt_ns.shape)))
    lost = rng.random(rtt_ns.shape) < np.broadcast_to(loss, (len(flows),))[:, np.newaxis]
    direction = rng.integers(0, 3, rtt_ns.shape)
    rtt_ns[lost] = np.nan

    flow_stats = _figures(rtt_ns, direction)
    pair_stats = _figures(rtt_ns.reshape(n, per_pair), direction.reshape(n, per_pair))
    for stats in (flow_stats, pair_stats):
        stats["suspect"] = suspect

    bins = histogram.bin_of(np.nan_to_num(rtt_ns)).astype(np.int64)
    owner = np.arange(n).repeat(per_pair).reshape(rtt_ns.shape)
    keys, counts = np.unique((owner * histogram.BINS + bins)[~lost], return_counts=True)
    start_s = FIRST_START_S + (close_number - 1) * interval_s if start_s is None else start_s
    return ClosedInterval(
        close_number=close_number,
        start_ns=start_s * NANOSECONDS,
        end_ns=(start_s + interval_s) * NANOSECONDS,
        pairs=members,
        pair_stats=pair_stats,
        flows=flows,
        flow_stats=flow_stats,
        histogram_start=np.searchsorted(keys // histogram.BINS, np.arange(n + 1)).astype("<u4"),
        histogram_bin=(keys % histogram.BINS).astype("<u2"),
        histogram_count=counts.astype("<u4"),
        notes=notes,
    )


def _figures(rtt_ns: npt.NDArray[np.float64], direction: npt.NDArray[np.int64]) -> Any:
    """Count probes, a row each of times (NaN: lost) and of directions, into rows of `STATS`."""
    rows, sent = rtt_ns.shape
    stats = np.zeros(rows, dtype=STATS)
    lost = np.isnan(rtt_ns)
    stats["sent"] = sent
    stats["lost"] = lost.sum(axis=1)
    stats["received"] = stats["samples"] = sent - lost.sum(axis=1)
    for number, name in enumerate(("lost_forward", "lost_reverse", "lost_unknown")):
        stats[name] = (lost & (direction == number)).sum(axis=1)
    for name in STATS.names or ():
        if name.endswith("_ns"):
            stats[name] = np.nan
    stats["rtt_sum_ns"] = np.nansum(rtt_ns, axis=1)
    known = stats["samples"] > 0
    stats["dscp_at_reflector"] = stats["dscp_at_collector"] = np.where(known, 0, 255)
    stats["ttl_at_reflector"] = np.where(known, 61, 0)
    stats["ttl_at_collector"] = np.where(known, 60, 0)
    if not sent:
        return stats
    ordered = np.sort(rtt_ns, axis=1)  # NaN last
    samples = stats["samples"].astype(np.int64)

    def rank(q: float) -> npt.NDArray[np.float64]:
        place = np.clip(np.ceil(q * samples).astype(np.int64) - 1, 0, None)
        return np.take_along_axis(ordered, place[:, np.newaxis], axis=1)[:, 0]

    stats["rtt_min_ns"], stats["rtt_max_ns"] = rank(0.0), rank(1.0)
    quantiles = (("p50", 0.5, 1), ("p90", 0.9, 1), ("p99", 0.99, 1), ("p999", 0.999, 1000))
    for name, q, least in quantiles:
        value = histogram.midpoint_ns(histogram.bin_of(np.nan_to_num(rank(q))))
        stats[f"rtt_{name}_ns"] = np.where(samples >= least, value, np.nan)
    steps = np.abs(np.diff(ordered, axis=1))
    counted = np.maximum((~np.isnan(steps)).sum(axis=1), 1)
    mean = np.where(samples > 1, np.nansum(steps, axis=1) / counted, np.nan)
    stats["jitter_ns"] = stats["ipdv_ns"] = mean
    stats["ipdv_forward_ns"] = stats["ipdv_reverse_ns"] = mean / 2
    return stats
