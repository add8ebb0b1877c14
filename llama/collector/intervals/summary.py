"""Closed intervals: the figures of every pair and flow over one aligned window of time.

This file says what a closed interval *is*; `llama.collector.joining` makes it, of what
`llama.collector.intervals.closing` made of the ledgers, and `llama.collector.answers.api` serves it.
Everything is columnar: one structured row of `STATS` a flow or a pair. It knows neither sockets nor
Twisted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from attrs import evolve, field, frozen

#: One row of figures, of a flow or of a pair. Counts are of probes *sent in the interval*:
#: ``sent = received + lost`` and ``lost = lost_forward + lost_reverse + lost_unknown``, always.
#: Times are nanoseconds; NaN is "no sample", which is never zero.
STATS = np.dtype(
    [
        ("sent", "<u4"),
        ("received", "<u4"),
        ("lost", "<u4"),
        ("lost_forward", "<u4"),  # between us and the reflector
        ("lost_reverse", "<u4"),  # between the reflector and us
        ("lost_unknown", "<u4"),  # the direction cannot be known
        ("late", "<u4"),  # replies that came after their timeout (their probes are lost)
        ("duplicate", "<u4"),  # further replies to a probe already answered
        ("reordered", "<u4"),  # replies overtaken by the reply to a later probe
        ("samples", "<u4"),  # received probes whose RTT is known
        ("remarked_forward", "<u4"),  # reached the reflector with another DSCP than sent
        ("remarked_reverse", "<u4"),  # came back with another DSCP than the reflector gave
        ("dscp_at_reflector", "u1"),  # as last received there; 255: unknown
        ("dscp_at_collector", "u1"),  # as last received here; 255: unknown
        ("ttl_at_reflector", "u1"),  # as last received there; 0: unknown
        ("ttl_at_collector", "u1"),  # as last received here; 0: unknown
        ("suspect", "<u4"),  # bits of SUSPECT_REASONS: our own fault may be in these figures
        ("rtt_sum_ns", "<f8"),
        ("rtt_min_ns", "<f8"),
        ("rtt_max_ns", "<f8"),
        ("rtt_p50_ns", "<f4"),
        ("rtt_p90_ns", "<f4"),
        ("rtt_p99_ns", "<f4"),
        ("rtt_p999_ns", "<f4"),  # only from 1,000 samples up
        ("jitter_ns", "<f4"),  # RFC 3550 section 6.4.1 estimator over RTTs
        ("ipdv_ns", "<f4"),  # mean |difference| of the RTTs of consecutive probes (RFC 3393)
        ("ipdv_forward_ns", "<f4"),  # likewise of the one-way delay to the reflector
        ("ipdv_reverse_ns", "<f4"),  # likewise of the one-way delay back
        ("owd_forward_ns", "<f4"),  # mean one-way delay there; NaN unless both clocks are in sync
        ("owd_reverse_ns", "<f4"),  # mean one-way delay back; likewise
        ("owd_error_ns", "<f4"),  # what the clocks say they may be off by; NaN when they do not
    ]
)
Stats = npt.NDArray[np.void]  # rows of STATS

#: Why an interval's figures may be our own doing, a bit each. The bit's number is its place here.
SUSPECT_REASONS = (
    "receive_drops",  # the kernel dropped packets at our full socket buffer
    "send_failed",  # probes could not be handed to the kernel (ENOBUFS, EPERM, no route, ...)
    "late_ticks",  # our own timer ran late: probes were skipped
    "cpu_starved",  # the process was runnable but not run
    "clock_step",  # the wall clock was stepped within the interval
    "reflector_drops",  # the reflector's socket buffer overflowed
    "reflector_limit",  # the reflector or its host refused probes or replies: limit, firewall, no route
    "reflector_restart",  # the reflector was started anew within the interval
    "user_timestamps",  # RTTs from user-space stamps, which contain our own scheduling delay
    "reflector_late",  # the reflector held probes until their time was over
)


def reasons(bits: int) -> tuple[str, ...]:
    """Return the names of the suspect bits that are set, in the order of `SUSPECT_REASONS`."""
    return tuple(name for n, name in enumerate(SUSPECT_REASONS) if bits >> n & 1)


def suspect_bit(name: str) -> int:
    """Return the bit of one of `SUSPECT_REASONS`; raises `ValueError` for any other name."""
    return 1 << SUSPECT_REASONS.index(name)


@frozen(kw_only=True, eq=False)
class Pair:
    """One series: what is probed from here to one target in one class, whatever the source port.

    ``tags`` are the target's, which has ``src_hostname`` and ``dst_hostname`` among them when it is read.
    """

    target: str  # as written in the configuration: hostname or address
    src_ip: str
    dst_ip: str
    dst_port: int
    dscp: int
    class_name: str  # "BE", "EF", "AF11", ... or "DSCP 3"
    probe: str  # "stamp", ...
    size: int  # octets of UDP payload sent
    port_group: str
    tags: Mapping[str, str]

    def series_tags(self) -> dict[str, str]:
        """Return the whole tag set that names this series in a time-series database.

        The tags of ours come last: a user's tag of the same name cannot make two series one.
        """
        return {
            **self.tags,
            "src_ip": self.src_ip,
            "dst_ip": self.dst_ip,
            "dst_port": str(self.dst_port),
            "class": self.class_name,
            "probe": self.probe,
            "size": str(self.size),
            "port_group": self.port_group,
        }


#: One row a flow, in step with the flow figures.
FLOW = np.dtype([("pair", "<u4"), ("source_port", "<u2"), ("ssid", "<u2")])


@frozen(kw_only=True, eq=False)
class ClosedInterval:
    """The figures of one aligned window, complete: every probe sent in it is received or lost.

    Intervals of tests with longer timeouts close later than others: a window of wall time can
    come as several closed intervals, each with pairs of its own.
    """

    close_number: int  # 1, 2, 3, ... in the order of closing; the cursor of ``?since=``
    start_ns: int  # Unix time, ns, a multiple of the interval's length
    end_ns: int
    pairs: Sequence[Pair]
    pair_stats: npt.NDArray[np.void] = field(repr=False)  # STATS, one row a pair
    #: FLOW rows and their STATS: all flows, or after a while only those that lost something.
    flows: npt.NDArray[np.void] = field(repr=False)
    flow_stats: npt.NDArray[np.void] = field(repr=False)
    #: Sparse RTT histograms: those of pair p are rows histogram_start[p]:histogram_start[p+1].
    histogram_start: npt.NDArray[np.uint32] = field(repr=False)  # one longer than pairs
    histogram_bin: npt.NDArray[np.uint16] = field(repr=False)
    histogram_count: npt.NDArray[np.uint32] = field(repr=False)
    #: Free text for people: what made the interval suspect, with figures.
    notes: tuple[str, ...] = ()
    timeout_s: float = 0.0  # that of its tests
    all_flows: bool = True  # False once the flows without loss have been let go

    def only(self, pairs: npt.NDArray[np.intp]) -> ClosedInterval:
        """Return this interval with only some pairs, given by number in rising order."""
        number = np.full(len(self.pairs), -1, np.int64)
        number[pairs] = np.arange(len(pairs))
        kept = np.flatnonzero(number[self.flows["pair"]] >= 0)
        flows = self.flows[kept]
        flows["pair"] = number[flows["pair"]]
        spans = np.diff(self.histogram_start)
        entries = np.flatnonzero(np.repeat(number >= 0, spans))
        return evolve(
            self,
            pairs=[self.pairs[n] for n in pairs.tolist()],
            pair_stats=self.pair_stats[pairs],
            flows=flows,
            flow_stats=self.flow_stats[kept],
            histogram_start=np.concatenate([[0], np.cumsum(spans[pairs])]).astype(np.uint32),
            histogram_bin=self.histogram_bin[entries],
            histogram_count=self.histogram_count[entries],
        )
