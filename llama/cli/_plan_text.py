"""The answer of ``llama check`` as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for one file without mistakes."""
    whose = "a web page" if answer["service"] == "web" else f"a {answer['service']}"
    yield f"{answer['file']}: {whose}'s configuration without mistakes"
    yield ""
    if answer["service"] == "collector":
        yield from _collector(answer)
    else:
        for name, value in answer.items():
            if name not in ("file", "ok", "service", "warnings"):
                yield f"{name.replace('_', ' '):<24}{_value(value)}"
    if answer["warnings"]:
        yield ""
        yield "warnings"
        yield from (f"  {warning}" for warning in answer["warnings"])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)


def _collector(answer: Mapping[str, Any]) -> Iterator[str]:
    held_s = answer["interval_s"] * answer["keep_intervals"]
    yield (
        f"intervals of {answer['interval_s']} s, {answer['keep_intervals']} of them held"
        f" ({held_s / 60:.0f} min); HTTP on {answer['api']}; src_hostname {answer['src_hostname']}"
    )
    for test in answer["tests"]:
        yield ""
        yield from _test(test)
    total, caps = answer["total"], answer["caps"]
    yield ""
    yield f"in total: {_figures(total)}, {total['series']:,} series"
    limits = []
    if caps["pps"] is not None:
        limits.append(f"{caps['pps']:,.6g} packets/s")
    if caps["bps"] is not None:
        limits.append(bits(caps["bps"]))
    yield f"caps: {' and '.join(limits) or 'none'}" + (
        f", which leave {caps['share_of_rate']:.1%}: {caps['effective_pps']:,.6g} packets/s,"
        f" {bits(caps['effective_bps'])}"
        if caps["share_of_rate"] < 1
        else ""
    )
    yield f"memory: about {answer['memory_bytes'] / 1e6:,.0f} MB; sockets: {answer['sockets']:,}"
    yield ""
    # Root may do what a service's user may not, and hears of nothing that is to be set for that.
    superuser = ", for root: ask as the collector's user, if that is another"
    yield f"this machine{superuser if answer['superuser'] else ''}"
    for finding in answer["host"]:
        mark = "ok" if finding["suffices"] else "SET"
        yield f"  {mark:<4}{finding['setting']} = {finding['value']}: {finding['message']}"
        if finding["command"]:
            yield f"        {finding['command']}"


def _test(test: Mapping[str, Any]) -> Iterator[str]:
    sizes = ", ".join(map(str, test["sizes"]))
    yield f"test {test['name']}: {test['probe']} to {_count(test['targets'], 'target')}"
    yield (
        f"  {_count(test['source_ports'], 'source port')}; {', '.join(test['classes'])};"
        f" {sizes} octets; {test['rate_pps']:g}/s of every flow; timeout {test['timeout_s']:g} s"
    )
    yield f"  to each target: {_figures(test['per_target'])}"
    flow, series = (test["per_interval"][f"{of}_probes"] for of in ("flow", "series"))
    yield (
        f"  least loss an interval shows: {_least(series)} of a target's {series:,.4g} probes of a"
        f" class and size, {_least(flow)} of a flow's {flow:,.4g}"
    )
    if test["coverage"]:
        yield from _coverage(test["coverage"], test["source_ports"])


def _coverage(rows: Sequence[Mapping[str, Any]], ports: int) -> Iterator[str]:
    columns = [
        ("equal-cost paths", [str(row["paths"]) for row in rows]),
        (
            f"share that {_count(ports, 'flow')} cover{'s' * (ports == 1)}",
            [_share(row["expected_share"]) for row in rows],
        ),
        ("flows for all, 90 % sure", [str(row["flows_for_all"]) for row in rows]),
    ]
    width = max(len(title) for title, _ in columns)
    for title, cells in columns:
        yield f"  {title:<{width}}" + "".join(f"{cell:>6}" for cell in cells)


def _least(probes: float) -> str:
    """Return the smallest loss that so many probes can show: of one of them."""
    return f"{float(f'{min(100.0, 100 / probes):.2g}'):g} %"


def _share(share: float) -> str:
    return ">99%" if share > 0.99 else f"{share:.0%}"


def _figures(figures: Mapping[str, float]) -> str:
    return (
        f"{_count(int(figures['flows']), 'flow')}, {figures['pps']:,.6g} packets/s,"
        f" {bits(figures['bps'])}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def bits(bps: float) -> str:
    """Return bits per second with a decimal multiple."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bps < 1000:
            return f"{bps:.4g} {unit}"
        bps /= 1000
    return f"{bps:,.4g} Gbit/s"
