"""The UDP ports that a reflector never answers, whoever asks from there: no prober sends from one.

Both sides of a probe must know them. What a reflector refuses is lost to its collector, which cannot
tell such a flow from one whose path is broken.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Source ports that no prober uses and that something may answer from: a reply to one of these may
#: be answered, and the answer be taken for a probe.
REFUSED_PORTS = {
    0: "reserved: nothing can be answered there",
    7: "echo",
    11: "systat",
    13: "daytime",
    17: "quote of the day",
    19: "character generator",
    37: "time",
    53: "DNS",
    69: "TFTP",
    111: "portmapper",
    123: "NTP",
    137: "NetBIOS name service",
    138: "NetBIOS datagrams",
    161: "SNMP",
    177: "XDMCP",
    389: "CLDAP",
    427: "service location",
    500: "IKE",
    520: "RIP",
    623: "IPMI",
    862: "STAMP: another reflector",
    1434: "SQL Server browser",
    1604: "Citrix browser",
    1701: "L2TP",
    1900: "SSDP",
    3283: "Apple remote desktop",
    3478: "STUN",
    3702: "WS-Discovery",
    5060: "SIP",
    5093: "Sentinel licence manager",
    5353: "multicast DNS",
    5683: "CoAP",
    8100: "LLAMA: another reflector",
    11211: "memcached",
    27960: "Quake",
}


def named(ports: Iterable[int]) -> str:
    """Return ports of `REFUSED_PORTS` for people, the first few with what they are known for."""
    numbers = sorted(ports)
    told = ", ".join(f"{number} ({REFUSED_PORTS[number]})" for number in numbers[:3])
    return told + (f" and {len(numbers) - 3} more" if len(numbers) > 3 else "")
