"""What a collector would do with a configuration, as figures: the answer of ``llama check``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from attrs import evolve

from llama.cli._coverage import PATHS, expected_share, flows_to_cover
from llama.cli._demand import demand
from llama.cli._host import Host
from llama.collector.probing.hping3.cycle import spacing_s
from llama.collector.probing.plan import cycle_of
from llama.config import CollectorConfig, Test, class_name
from llama.config.offered_load import Offered, offered, offered_to, share_of_rate, sizes_of
from llama.config.probes import KINDS
from llama.config.tree import shown
from llama.pinpoint.answers import MOST_TAGS
from llama.pinpoint.evidence import LEAST_SENT

#: Probes/s that a collector was measured with, of half a core (docs/performance.rst).
_MEASURED_PPS = 60_000
#: What a run of hping3 takes besides sending, s, when all is answered.
_START_S = 0.06


def plan(config: CollectorConfig, host: Host) -> dict[str, Any]:
    """Return everything that ``llama check`` says about a collector, ready for JSON."""
    wanted = offered(config)
    needs = demand(config)
    share = share_of_rate(config, wanted)
    return {
        "service": "collector",
        "interval_s": config.interval_s,
        "keep_intervals": config.keep_intervals,
        "api": config.api,
        "src_hostname": config.src_hostname,
        "tests": [_test(test, config.interval_s, share) for test in config.tests],
        "total": _figures(wanted),
        "caps": {
            "pps": config.max_pps,
            "bps": config.max_bps,
            "share_of_rate": share,
            "effective_pps": wanted.pps * share,
            "effective_bps": wanted.bps * share,
        },
        "memory_bytes": needs.memory,
        "sockets": needs.sockets,
        "superuser": host.superuser,
        "host": [
            {
                "setting": finding.setting,
                "value": finding.value,
                "suffices": finding.suffices,
                "message": finding.message,
                "command": finding.command,
            }
            for finding in host.findings(needs)
        ],
        "warnings": warnings(config),
    }


def _figures(figures: Offered) -> dict[str, float]:
    return {
        "series": figures.series,
        "flows": figures.flows,
        "pps": figures.pps,
        "bps": figures.bps,
    }


def _test(test: Test, interval_s: float, share: float) -> dict[str, Any]:
    ports = len(test.source_ports)
    probes = test.rate_pps * share * interval_s
    each = Counter(offered_to(test, target) for target in test.targets)
    one = max(each, key=lambda figures: figures.bps)
    classes = sorted({dscp for port in test.source_ports for dscp in port.dscps})
    return {
        "name": test.name,
        "probe": test.probe,
        "targets": len(test.targets),
        "classes": [class_name(dscp) for dscp in classes],
        "sizes": list(sizes_of(test)),
        "source_ports": ports,
        "rate_pps": test.rate_pps,
        "timeout_s": test.timeout_s,
        "per_target": _figures(one),
        "per_interval": {"flow_probes": probes, "series_probes": probes * ports},
        "coverage": [
            {
                "paths": paths,
                "expected_share": expected_share(paths, ports),
                "flows_for_all": flows_to_cover(paths),
            }
            for paths in PATHS
        ]
        if KINDS[test.probe].ecmp
        else [],
    }


def warnings(config: CollectorConfig) -> list[str]:
    """Return what is legal but suspicious, or more than a collector can do, a line each."""
    said = [str(note) for note in config.notes]
    for test in config.tests:
        where = f"test {test.name!r}"
        if not KINDS[test.probe].ecmp:
            said.append(
                f"{where}: {test.probe} probes have no ports, so that most routers send them all"
                " over one of several equal-cost paths; UDP or TCP probes see the others"
            )
        elif len(test.source_ports) == 1:
            said.append(
                f"{where}: one source port is one flow, which sees one of several equal-cost"
                " paths; raise the count of its port group"
            )
        if test.timeout_s > config.interval_s:
            said.append(
                f"{where}: its timeout of {test.timeout_s:g} s is longer than the interval of"
                f" {config.interval_s} s, so that results come several intervals late"
            )
        probes = test.rate_pps * config.interval_s
        if probes < 1:
            said.append(
                f"{where}: a flow sends {probes:g} probes an interval,"
                " so that most intervals have nothing to say of it"
            )
        elif probes < LEAST_SENT:
            said.append(
                f"{where}: a flow sends {probes:g} probes an interval: llama pinpoint judges no interval"
                f" of a flow by fewer than {LEAST_SENT}"
            )
    said += _tag_names(config)
    wanted = offered(config)
    share = share_of_rate(config, wanted)
    said += [line for test in config.tests for line in _runs(test, share)]
    if wanted.pps * share > _MEASURED_PPS:
        said.append(
            f"{wanted.pps * share:,.6g} packets/s are more than a collector was measured with,"
            f" {_MEASURED_PPS:,}: what it cannot send in time it leaves out, and marks the interval for;"
            " lower `cps`, or set `limits: {pps: ...}`, which takes the full format"
        )
    if share < 1:
        said.append(
            f"the caps leave {share:.1%} of the configured rate:"
            f" {wanted.pps * share:,.6g} packets/s instead of {wanted.pps:,.6g}"
        )
    return said


def _tag_names(config: CollectorConfig) -> Iterator[str]:
    """Say whether all targets have more names of tags together than ``llama pinpoint`` reads."""
    targets = [target for test in config.tests for target in test.targets]
    times = Counter(name for target in targets for name in target.tags)
    if len(times) > MOST_TAGS:
        seldom = min(times, key=lambda name: times[name])
        yield (
            f"{config.path}: its targets have {len(times)} names of tags together, such as"
            f" {shown(seldom)}: llama pinpoint leaves out all beyond {MOST_TAGS} of a collector; name"
            " tags alike at every target, and let their texts say what differs"
        )


def _runs(test: Test, share: float) -> Iterator[str]:
    """Say whether hping3 cannot be run as often as a test asks for, at a ``share`` of its rate."""
    cycle = cycle_of(test)
    if cycle is None:
        return
    classes = max(len(port.dscps) for port in test.source_ports)
    ports, rate = len(test.source_ports), test.rate_pps * share
    spacing = spacing_s(cycle.spacing_s, cycle.processes, 1 / rate, ports, math.inf)
    runs = math.ceil(ports / evolve(cycle, spacing_s=spacing).probes_of_a_run)
    took_s = classes * (runs * _START_S + (ports - runs) * spacing) * rate
    where = f"test {test.name!r}"
    if took_s > 1:
        yield (
            f"{where}: runs of hping3 to one target follow one another and would take {took_s:.1f} s"
            f" of every second: about {1 - 1 / took_s:.0%} of the probes will not be sent; lower the"
            " rate or the count of source ports"
        )
    busy = len(test.targets) * min(took_s, 1.0)
    if busy > cycle.processes:
        yield (
            f"{where}: about {math.ceil(busy)} processes of hping3 would have to run at once, but"
            f" `processes` is {cycle.processes}: about {1 - cycle.processes / busy:.0%} of the"
            " probes will not be sent; raise it, or lower the rate"
        )
