"""What a collector's configuration asks for in figures: flows, packets and bits per second.

Octets are those of IP packets, header included, as probes leave; replies are the same again. A probe
that leaves in fragments counts as one packet.
"""

from __future__ import annotations

import ipaddress

from attrs import frozen

from llama.config.model import CollectorConfig, Target, Test
from llama.config.probes import KINDS

IP_HEADER = {4: 20, 6: 40}  # octets
#: What of a cap the probes may take. The rest is for traces, and for what a pause put off.
PROBES_SHARE = 0.9


@frozen(kw_only=True)
class Offered:
    """What is sent when nothing limits it."""

    series: int = 0  #: rows of results: pairs of hosts by class and size
    flows: int = 0
    pps: float = 0.0
    bps: float = 0.0  #: bit/s of IP packets

    def __add__(self, other: Offered) -> Offered:
        return Offered(
            series=self.series + other.series,
            flows=self.flows + other.flows,
            pps=self.pps + other.pps,
            bps=self.bps + other.bps,
        )


def sizes_of(test: Test) -> tuple[int, ...]:
    """Return the sizes of a test's probes, in octets after the UDP, TCP or ICMP header."""
    kind = KINDS[test.probe]
    bare = kind.least_size if test.options.get("tlvs") is False else None
    return test.sizes or (bare or kind.natural_size,)


def packet_octets(probe: str, size: int, version: int) -> int:
    """Return the octets of the IP packet that a probe of ``size`` octets is."""
    return IP_HEADER[version] + KINDS[probe].header + size


def sent_for(probe: str, size: int, version: int) -> tuple[int, int]:
    """Return how many IP packets this host sends for a probe of ``size`` octets, and their octets."""
    kind = KINDS[probe]
    beyond_ip = (kind.header + size, *kind.after)
    return len(beyond_ip), sum(beyond_ip) + len(beyond_ip) * IP_HEADER[version]


def versions(test: Test, target: Target) -> tuple[int, ...]:
    """Return the IP versions a target is probed over; a hostname in family "any" counts as 4."""
    try:
        return (ipaddress.ip_address(target.host).version,)
    except ValueError:
        return {"any": (4,), "4": (4,), "6": (6,), "both": (4, 6)}[test.family]


def port_of(test: Test, target: Target) -> int:
    """Return the port that a test's probes go to; for ICMP, which has none, 0."""
    if test.probe == "hping3":
        return int(test.options["tcp_port"])
    return 0 if test.probe == "icmp" else target.port


def offered_to(test: Test, target: Target) -> Offered:
    """Return what one test sends to one target."""
    total = Offered()
    flows = sum(len(port.dscps) for port in test.source_ports)
    classes = len({dscp for port in test.source_ports for dscp in port.dscps})
    for version in versions(test, target):
        for size in sizes_of(test):
            rate = flows * test.rate_pps
            packets, octets = sent_for(test.probe, size, version)
            total += Offered(series=classes, flows=flows, pps=rate * packets, bps=rate * 8 * octets)
    return total


def offered(config: CollectorConfig) -> Offered:
    """Return what all tests send together, before the caps."""
    total = Offered()
    for test in config.tests:
        kinds: dict[tuple[int, ...], int] = {}
        examples: dict[tuple[int, ...], Target] = {}
        for target in test.targets:
            family = versions(test, target)
            kinds[family] = kinds.get(family, 0) + 1
            examples.setdefault(family, target)
        for family, count in kinds.items():
            one = offered_to(test, examples[family])
            total += Offered(
                series=one.series * count,
                flows=one.flows * count,
                pps=one.pps * count,
                bps=one.bps * count,
            )
    return total


def share_of_rate(config: CollectorConfig, wanted: Offered) -> float:
    """Return the share of the configured rate that the caps leave, 1.0 when they do not bind."""
    shares = [1.0]
    if config.max_pps is not None and wanted.pps:
        shares.append(PROBES_SHARE * config.max_pps / wanted.pps)
    if config.max_bps is not None and wanted.bps:
        shares.append(PROBES_SHARE * config.max_bps / wanted.bps)
    return min(shares)
