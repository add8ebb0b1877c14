"""What ``llama send`` prints for people: progress while it runs, then a summary."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from llama.collector.answers.encode import LAST_VALUES
from llama.collector.intervals.replies import UNKNOWN_DSCP
from llama.collector.intervals.summary import Pair, Stats, reasons, suspect_bit
from llama.collector.oneshot import Outcome, Result, Wanted
from llama.collector.probing.plan import PROTOCOLS
from llama.collector.probing.refusals import NO_PORT, Refusal
from llama.config import class_name
from llama.config.probes import KINDS
from llama.printable import printable

COUNTS = (
    "sent", "received", "lost", "lost_forward", "lost_reverse", "lost_unknown", "late", "duplicate",
    "reordered", "remarked_forward", "remarked_reverse",
)  # fmt: skip
TIMES = ("rtt_min_ns", "rtt_p50_ns", "rtt_p90_ns", "rtt_p99_ns", "rtt_p999_ns", "rtt_max_ns")
#: What keeps probes from leaving this host, for people; by its name, as errno(3) has it.
_WHY_NOT = {
    "EPERM": "a firewall of this host forbids them",
    "ENETUNREACH": "this host has no route there",
    "EHOSTUNREACH": "this host has no way there",
    "EMSGSIZE": "they are larger than the link out of this host takes at once; see --size and --df",
    "ENOBUFS": "the queue out of this host is full",
}
VARIATIONS = ("jitter_ns", "ipdv_ns", "ipdv_forward_ns", "ipdv_reverse_ns")
ONE_WAY = ("owd_forward_ns", "owd_reverse_ns", "owd_error_ns")


def figures(row: Any) -> dict[str, Any]:
    """Return one row of STATS as plain numbers: counts, percent, nanoseconds, last values or None."""
    told: dict[str, Any] = {name: int(row[name]) for name in COUNTS}
    told["loss_percent"] = 100.0 * told["lost"] / told["sent"] if told["sent"] else None
    told["rtt_samples"] = samples = int(row["samples"])
    told["rtt_mean_ns"] = float(row["rtt_sum_ns"]) / samples if samples else None
    for name in (*TIMES, *VARIATIONS, *ONE_WAY):
        value = float(row[name])
        told[name] = None if np.isnan(value) else value
    for name, unknown in LAST_VALUES.items():
        last = int(row[name])
        told[name] = None if last == unknown else last
    told["suspect"] = list(reasons(int(row["suspect"])))
    return told


def summary(result: Result) -> dict[str, Any]:
    """Return the summary of a test as JSON-ready values: whole, by class and size, by flow."""
    ports = len(result.ports)
    return {
        "seconds": result.seconds,
        "notes": list(result.notes),
        "failed_sends": result.failed_sends,
        "refusals": [_refusal(result, one) for one in result.refusals],
        "total": {
            name: int(result.pair_stats[name].sum()) for name in COUNTS
        },
        "pairs": [
            {"class": pair.class_name, "size": pair.size, **figures(row), "dscp": remark(pair, row)}
            for pair, row in zip(result.pairs, result.pair_stats, strict=True)
        ],
        "flows": [
            {
                "class": result.pairs[n // ports].class_name,
                "size": result.pairs[n // ports].size,
                "source_port": result.ports[n % ports],
                **figures(row),
            }
            for n, row in enumerate(result.flow_stats)
        ],
    }  # fmt: skip


def _refusal(result: Result, one: Refusal) -> dict[str, Any]:
    """Return what somebody said of our probes as JSON-ready values."""
    pair = None if one.pair is None else result.pairs[one.pair]
    return {
        "class": pair and pair.class_name,
        "size": pair and pair.size,
        "by": one.by,
        "refusal": one.refusal,
        "mtu": one.mtu or None,
        "probes": one.probes,
        "proven": one.proven,
    }


def remark(pair: Pair, row: Any) -> str | None:
    """Return, for people, how the network changed the class, and on which way; None if it did not."""
    told = []
    sent, there, here = pair.dscp, int(row["dscp_at_reflector"]), int(row["dscp_at_collector"])
    if row["remarked_forward"]:
        verb = "bleached" if there == 0 else "remarked"
        told.append(
            f"forward: {class_name(sent)} arrives at the reflector as {class_name(there)} ({verb},"
            f" {row['remarked_forward']} of {row['received']})"
        )
    if row["remarked_reverse"]:
        verb = "bleached" if here == 0 else "remarked"
        told.append(
            f"reverse: replies come back as {class_name(here)} ({verb},"
            f" {row['remarked_reverse']} of {row['received']})"
        )
    if not told and there == UNKNOWN_DSCP and here not in (sent, UNKNOWN_DSCP):
        told.append(
            f"replies come back as {class_name(here)}; the reflector does not tell how it was asked"
        )
    return "; ".join(told) or None


def ms(ns: float | None) -> str:
    """Return a time in milliseconds, to the microsecond below a second."""
    if ns is None or np.isnan(ns):
        return "—"
    return f"{ns / 1e6:.3f}"


class Report:
    """Prints to ``out``: each probe of a single flow, or a line of progress, then the summary."""

    def __init__(self, named: str, wanted: Wanted, out: TextIO) -> None:
        self._named, self._wanted, self._out = named, wanted, out
        self._live = out.isatty()
        self._single = wanted.flows * len(wanted.dscps) * max(1, len(wanted.sizes)) == 1
        self._told = self._lost = 0
        self._last_shown = -1.0

    def _line(self, text: str = "") -> None:
        print(printable(text), file=self._out, flush=True)

    def begin(self, ports: Sequence[int]) -> None:
        """Say what is going to be done."""
        wanted = self._wanted
        sizes = wanted.sizes or (KINDS[wanted.probe].natural_size,)
        where = f"[{wanted.address}]" if ":" in wanted.address else wanted.address
        name = "" if self._named == wanted.address else f"{self._named} "
        classes = ", ".join(class_name(dscp) for dscp in wanted.dscps)
        flows = f"{len(ports)} flows" if len(ports) > 1 else f"source port {ports[0]}"
        if wanted.probe != "icmp":
            where += f":{wanted.port}"
        elif len(ports) == 1:
            flows = f"identifier {ports[0]}"
        self._line(
            f"LLAMA {name}{where}: {wanted.probe} probes of"
            f" {', '.join(map(str, sizes))} octets, {classes}, {flows},"
            f" every {wanted.interval_s:g} s"
        )

    def told(self, outcome: Outcome) -> None:
        """Show one probe."""
        self._told += 1
        self._lost += outcome.lost
        if self._single:
            if outcome.lost:
                fate = "late" if outcome.late else "lost"
                self._line(f"seq={outcome.seq} {fate}")
            else:
                ttl = f" ttl={outcome.ttl_at_collector}" if outcome.ttl_at_collector else ""
                self._line(f"seq={outcome.seq} rtt={ms(outcome.rtt_ns)} ms{ttl}")
        elif self._live:
            now = outcome.sent_ns / 1e9
            if abs(now - self._last_shown) > 0.1:  # the wall clock may be set back
                self._last_shown = now
                whole = self._wanted.count * self._wanted.flows * len(self._wanted.dscps)
                whole *= max(1, len(self._wanted.sizes))
                text = f"{self._told} of {whole} probes, {self._lost} lost"
                print(f"\r{text}\x1b[K", end="", file=self._out, flush=True)

    def end(self, result: Result) -> None:
        """Print the summary."""
        if self._live and not self._single:
            print("\r\x1b[K", end="", file=self._out)
        self._line()
        for line in self._summary(result):
            self._line(line)

    def _summary(self, result: Result) -> Iterator[str]:
        several = len(result.pairs) > 1
        for pair, row in zip(result.pairs, result.pair_stats, strict=True):
            if several:
                yield f"--- {pair.class_name}, {pair.size} octets ---"
            yield from _pair_lines(pair, row)
            yield ""
        if len(result.ports) > 1 and result.pair_stats["sent"].any():
            yield from self._flow_lines(result)
        for error, count in sorted(result.failed_sends.items()):
            why = f": {_WHY_NOT[error]}" if error in _WHY_NOT else ""
            yield f"not sent: {count} probes ({error}{why}); they are not counted as lost"
        if self._wanted.probe in ("llama-go", "llama-python"):
            yield "the reflector tells no times: these round trips contain what it took itself"
        for note in result.notes:
            yield f"suspect: {note}"
        if (result.pair_stats["suspect"] & np.uint32(suspect_bit("user_timestamps"))).any():
            yield "suspect: answers were timed in user space, so this host's own delay is in round trips"
        yield from self._refusal_lines(result)
        if self._is_unexplained(result):
            if result.pair_stats["late"].any():
                yield (
                    f"nothing came back within {self._wanted.timeout_s:g} s, but later: see --timeout"
                )
                return
            if self._wanted.probe in PROTOCOLS:
                what = "ICMP" if self._wanted.probe == "icmp" else "TCP"
                yield (
                    "nothing came back: is the host up, and does every firewall between let"
                    f" {what} through?"
                )
                return
            yield (
                f"nothing came back from port {self._wanted.port}: does a reflector run there"
                " (llama reflect), and does every firewall between let UDP through?"
            )

    def _refusal_lines(self, result: Result) -> Iterator[str]:
        """Tell what was said of our probes, and of sizes that nothing is said of, and nothing came of."""
        several = len(self._wanted.dscps) > 1
        for one in result.refusals:
            if one.pair is None:
                yield (
                    f"somebody says as {one.by}: {one.refusal}; it quotes too little of a probe to"
                    " prove that it is not forged"
                )
                continue
            pair = result.pairs[one.pair]
            mtu = f" (MTU {one.mtu})" if one.mtu else ""
            name = f"{pair.class_name} " if several else ""
            sent = result.pair_stats["sent"][one.pair]
            yield (
                f"{one.by} says: {one.refusal}{mtu} for {one.probes} of {sent} {name}probes of"
                f" {pair.size} octets"
            )
        refused = {one.pair for one in result.refusals}
        least: dict[int, int] = {}  # the smallest size of a class of which something came back
        for pair, row in zip(result.pairs, result.pair_stats, strict=True):
            if row["received"]:
                least[pair.dscp] = min(pair.size, least.get(pair.dscp, pair.size))
        for n, (pair, row) in enumerate(zip(result.pairs, result.pair_stats, strict=True)):
            small = least.get(pair.dscp, pair.size)
            silent = row["sent"] and not row["received"] and not row["late"]
            if silent and small < pair.size and n not in refused:
                name = f"{pair.class_name} " if several else ""
                yield (
                    f"nothing came back of {name}probes of {pair.size} octets, but of those of"
                    f" {small}: is a link on the way too small for them?"
                )

    def _is_unexplained(self, result: Result) -> bool:
        """Return whether nothing came back, and nobody on the way says why of each class and size."""
        if result.pair_stats["received"].any() or not result.pair_stats["sent"].any():
            return False
        refused = {
            one.pair
            for one in result.refusals
            if one.proven and not (one.refusal == NO_PORT and self._is_target(one.by))
        }
        return not refused.issuperset(np.flatnonzero(result.pair_stats["sent"]).tolist())

    def _is_target(self, address: str) -> bool:
        wanted = self._wanted.address.partition("%")[0]
        return ipaddress.ip_address(address) == ipaddress.ip_address(wanted)

    def _flow_lines(self, result: Result) -> Iterator[str]:
        ports = len(result.ports)
        stats: Stats = result.flow_stats
        lossy = np.flatnonzero(stats["lost"])
        whole = int((stats["received"][lossy] == 0).sum())
        if lossy.size:
            dead = f", {whole} of them everything" if whole else ""
            yield f"{len(lossy)} of {len(stats)} flows lose{dead}:"
        else:
            yield f"none of {len(stats)} flows loses:"
        yield "  source port  class     size  sent  lost  fwd  rev   ?   rtt p50 ms   p99 ms"
        for n, row in enumerate(stats):
            pair = result.pairs[n // ports]
            yield (
                f"  {result.ports[n % ports]:>11}  {pair.class_name:<8} {pair.size:>5}"
                f" {row['sent']:>5} {row['lost']:>5} {row['lost_forward']:>4}"
                f" {row['lost_reverse']:>4} {row['lost_unknown']:>3}"
                f" {ms(row['rtt_p50_ns']):>12} {ms(row['rtt_p99_ns']):>8}"
            )
        yield ""


def _percent(loss: float) -> str:
    """Write a loss with three digits that matter; what is less than all is never 100 %."""
    text = f"{loss:.3g}"
    return ">99.9 %" if text == "100" and loss < 100 else f"{text} %"


def _pair_lines(pair: Pair, row: Any) -> Iterator[str]:
    told = figures(row)
    loss = "—" if told["loss_percent"] is None else _percent(told["loss_percent"])
    yield (
        f"{told['sent']} sent, {told['received']} received, {told['lost']} lost ({loss})"
        + (
            f": {told['lost_forward']} forward, {told['lost_reverse']} reverse,"
            f" {told['lost_unknown']} unknown"
            if told["lost"]
            else ""
        )
    )
    odd = [f"{told[name]} {name}" for name in ("late", "duplicate", "reordered") if told[name]]
    if odd:
        yield ", ".join(odd)
    if told["rtt_mean_ns"] is not None:
        names = ("min", "mean", "p50", "p90", "p99", "max")
        values = " / ".join(ms(told[f"rtt_{name}_ns"]) for name in names)
        yield f"rtt {'/'.join(names)} = {values} ms"
        yield (
            f"variation: jitter {ms(told['jitter_ns'])} ms, ipdv {ms(told['ipdv_ns'])} ms"
            f" (forward {ms(told['ipdv_forward_ns'])}, reverse {ms(told['ipdv_reverse_ns'])})"
        )
    if told["owd_error_ns"] is not None:
        yield (
            f"one way, by both clocks: forward {ms(told['owd_forward_ns'])} ms, reverse"
            f" {ms(told['owd_reverse_ns'])} ms, give or take {ms(told['owd_error_ns'])} ms"
        )
    changed = remark(pair, row)
    if changed:
        yield f"class: {changed}"
