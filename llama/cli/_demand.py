"""What a collector's configuration demands of the machine it runs on: sockets, ports, memory."""

from __future__ import annotations

from collections import Counter

from attrs import frozen

from llama.collector.intervals.summary import FLOW, STATS
from llama.collector.probing.hping3.process import programs_of
from llama.collector.probing.sockets import SMALLEST_ROOM, zone_of
from llama.config import CollectorConfig, Test
from llama.config.offered_load import offered, packet_octets, sizes_of, versions

#: For so long a collector may be kept from reading before replies are dropped.
STALL_S = 0.25
#: Octets of a process without targets, of a series' names, of a series' histogram in a closed
#: interval, of an open flow, and of a probe whose answer is awaited.
_BASE, _SERIES, _HISTOGRAM, _OPEN_FLOW, _AWAITED = 74_000_000, 6000, 150, 550, 64
#: Closed intervals whose flows are all held; afterwards only the lossy ones are.
_FLOW_INTERVALS = 2


@frozen(kw_only=True)
class Demand:
    """What is needed of the machine."""

    sockets: int
    system_ports: int  #: ports that the system is to choose
    fixed_ports: tuple[tuple[int, int], ...]  #: first and last of every range
    receive_buffer: int  #: octets in the kernel, of the busiest socket
    conntrack: int  #: entries if a firewall tracks every flow
    neighbours: dict[int, int]  #: IP version -> targets, if all were on directly attached links
    icmp: bool
    interfaces: tuple[str, ...]  #: devices to bind to, or that link-local targets are behind
    programs: tuple[str, ...]  #: programs to run
    memory: int  #: octets, estimated


def demand(config: CollectorConfig) -> Demand:
    """Work out what ``config`` demands."""
    wanted = offered(config)
    sockets: Counter[object] = Counter()
    system_ports, buffer, awaited = 0, 0.0, 0.0
    fixed: set[tuple[int, int]] = set()
    places: dict[int, set[str]] = {4: set(), 6: set()}
    for test in config.tests:
        families = {v for target in test.targets for v in versions(test, target)}
        for target in test.targets:
            for version in versions(test, target):
                places[version].add(target.host)
        buffer = max(buffer, _receive_buffer(test))
        numbers = sorted({port.number for port in test.source_ports if port.number})
        fixed.update(_ranges(numbers))
        chosen = sum(not port.number for port in test.source_ports)
        if test.probe == "hping3":  # ports that nobody else gets, and what its programs say
            sockets["hping3", id(test)] = len(test.source_ports) + 3 * test.options["processes"]
        elif test.probe == "tcp":
            held = len(test.source_ports) * len(families)  # so that nobody else gets the port
            sockets["tcp", id(test)] = int(test.options["in_flight"]) + held
        else:
            sockets["system", id(test)] = chosen * len(families)
            for port in test.source_ports:
                if port.number:
                    for version in families:
                        place = (port.address or test.source, test.interface)
                        sockets[port.number, version, place] = 1
        if test.probe != "icmp":
            system_ports += chosen
    for test in config.tests:
        for port in test.source_ports:
            share = len(port.dscps) * max(1, len(test.sizes))
            awaited += len(test.targets) * share * test.rate_pps * port.timeout_s
    held = config.keep_intervals * (STATS.itemsize + _HISTOGRAM)
    flow = _OPEN_FLOW + _FLOW_INTERVALS * (STATS.itemsize + FLOW.itemsize)
    return Demand(
        sockets=sum(sockets.values()),
        system_ports=system_ports,
        fixed_ports=tuple(sorted(fixed)),
        receive_buffer=int(buffer),
        conntrack=wanted.flows,
        neighbours={version: len(hosts) for version, hosts in places.items()},
        icmp=any(test.probe == "icmp" for test in config.tests),
        interfaces=tuple(sorted(_interfaces(config))),
        programs=tuple(programs_of(config)),
        memory=int(
            _BASE + wanted.series * (_SERIES + held) + wanted.flows * flow + awaited * _AWAITED
        ),
    )


def _interfaces(config: CollectorConfig) -> set[str]:
    """Return the devices that tests are bound to, or that link-local targets are behind."""
    zones = {
        zone_of(target.host, test.interface) for test in config.tests for target in test.targets
    }
    return {name for name in (*zones, *(test.interface for test in config.tests)) if name}


def _receive_buffer(test: Test) -> float:
    """Return the octets that a test's busiest socket fills while the collector cannot read."""
    if test.probe in ("tcp", "hping3"):
        return 0.0
    octets = max(packet_octets(test.probe, size, 6) for size in sizes_of(test))
    reply = SMALLEST_ROOM if octets < 500 else 2 * octets + SMALLEST_ROOM
    busiest = max(len(port.dscps) for port in test.source_ports)
    pps = len(test.targets) * busiest * max(1, len(test.sizes)) * test.rate_pps
    return pps * STALL_S * (reply + SMALLEST_ROOM)


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Return the ranges that rising numbers make up."""
    made: list[tuple[int, int]] = []
    for number in numbers:
        if made and number == made[-1][1] + 1:
            made[-1] = (made[-1][0], number)
        else:
            made.append((number, number))
    return made
