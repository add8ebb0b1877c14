"""What runs on the hosts of a fabric: a reflector and a collector each, probing every other host.

Their configurations are generated into the lab's directory. Pinpointing runs on the management
node and reads the collectors over the management network, which the fabric's faults do not reach.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

from llama.config import ConfigErrors
from llama.config.collector import read_collector
from llama.config.tree import Document
from llama.lab.fabric import MANAGEMENT, Fabric
from llama.lab.namespaces import Lab, Process

COLLECTOR_PORT = 5000
REFLECTOR_PORT = 8100
PINPOINT_PORT = 5004
#: Which IP versions each family of a test means.
VERSIONS = {"4": (4,), "6": (6,), "both": (4, 6)}


@frozen
class Traffic:
    """How much each collector sends to each other host.

    Raises `ValueError` for what a collector would refuse: it would end at once, and the lab be up
    without it.
    """

    interval_s: int = 5
    flows: int = 16  # source ports
    rate_pps: float = 5.0  # of every flow
    classes: tuple[str, ...] = ("BE",)
    sizes: tuple[int, ...] = ()  # octets of UDP payload; (): the probe's own
    family: str = "4"  # of IP: "4", "6", or "both", which doubles the flows

    def __attrs_post_init__(self) -> None:
        """Have it read as a collector would."""
        if self.family not in VERSIONS:
            reason = f"family {self.family!r} is not one of {', '.join(VERSIONS)}"
            raise ValueError(f"no collector takes such traffic: {reason}")
        root: Any = yaml.compose(yaml.safe_dump(collector_configuration(Fabric(), "h1-1", self)))
        document = Document("", root)
        read_collector(document)
        try:
            document.finish()
        except ConfigErrors as errors:
            reasons = "; ".join(mistake.message for mistake in errors.mistakes)
            raise ValueError(f"no collector takes such traffic: {reasons}") from None


def collector_configuration(fabric: Fabric, host: str, traffic: Traffic) -> dict[str, Any]:
    """Return the collector's configuration of one host as YAML wants it."""
    tests: list[dict[str, Any]] = []
    targets: dict[str, list[dict[str, Any]]] = {}
    for version in VERSIONS[traffic.family]:
        address = fabric.address if version == 4 else fabric.ipv6_address
        name = f"ipv{version}"
        test: dict[str, Any] = {
            "name": name,
            "targets": name,
            "port_group": "fabric",
            "rate_limit": "fabric",
            "dscp": list(traffic.classes),
            "source": str(address(host)),
        }
        if traffic.sizes:
            test |= {"sizes": list(traffic.sizes), "df": True}
        tests.append(test)
        targets[name] = [
            {
                "ip": str(address(other)),
                "port": REFLECTOR_PORT,
                "name": other,
                "tags": {"dst_rack": fabric.hosts[other]},
            }
            for other in fabric.hosts
            if other != host
        ]
    return {
        "summarization": {"interval": traffic.interval_s},
        "source_tags": {"src_hostname": host, "src_rack": fabric.hosts[host]},
        "api": {"bind": f"{fabric.management_address(host)}:{COLLECTOR_PORT}"},
        "ports": {"any": {"port": 0, "timeout": 1000}},
        "port_groups": {"fabric": [{"port": "any", "count": traffic.flows}]},
        "rate_limits": {"fabric": {"cps": traffic.rate_pps}},
        "tests": tests,
        "targets": targets,
    }


def collector_urls(lab: Lab) -> dict[str, str]:
    """Return host -> base URL of its collector, as the management node reaches it."""
    return {
        host: f"http://{lab.fabric.management_address(host)}:{COLLECTOR_PORT}"
        for host in lab.fabric.hosts
    }


def write_names(lab: Lab) -> Path:
    """Write ``names``: every address and the node it belongs to, one a line, like /etc/hosts."""
    path = lab.directory / "names"
    path.write_text("".join(f"{a}\t{node}\n" for a, node in lab.fabric.names().items()))
    return path


def twistd() -> str:
    """Return the path of the twistd that belongs to this interpreter."""
    return str(Path(sys.executable).parent / "twistd")


def start_reflector(lab: Lab, host: str) -> Process:
    """Start the reflector of a host."""
    arguments = [twistd(), "-n", "--pidfile=", "llama-reflector", "--port", str(REFLECTOR_PORT)]
    return lab.start(host, "reflector", arguments)


def start_collector(lab: Lab, host: str, traffic: Traffic) -> Process:
    """Write the configuration of a host's collector, and start it."""
    path = lab.directory / f"{host}-collector.yaml"
    configuration = collector_configuration(lab.fabric, host, traffic)
    path.write_text(yaml.safe_dump(configuration, sort_keys=False))
    arguments = [twistd(), "-n", "--pidfile=", "llama-collector", "--config", str(path)]
    return lab.start(host, "collector", arguments)


def start_pinpoint(lab: Lab, traffic: Traffic, listen: str | None = None) -> Process:
    """Start pinpointing on the management node; its judgements go to `judgements`.

    It serves on that node's loopback unless `listen` says otherwise.
    """
    arguments = [
        str(Path(sys.executable).parent / "llama"),
        "pinpoint",
        *collector_urls(lab).values(),
        f"--interval={traffic.interval_s}",
        f"--settle={min(4.0, traffic.interval_s - 0.5)}",
        f"--listen={listen or f'127.0.0.1:{PINPOINT_PORT}'}",
        f"--names={write_names(lab)}",
        f"--state={lab.directory / 'incidents.json'}",
        f"--record={judgements(lab)}",
    ]
    return lab.start(MANAGEMENT, "pinpoint", arguments)


def judgements(lab: Lab) -> Path:
    """Return the file of pinpointing's judgements, one JSON object a line."""
    return lab.directory / "judgements.jsonl"


def start_scraper(lab: Lab, traffic: Traffic, store: Path) -> Process:
    """Start a scraper on the management node that writes to an SQLite file."""
    path = lab.directory / "scraper.yaml"
    configuration = {
        "interval": min(1, traffic.interval_s),
        "collectors": list(collector_urls(lab).values()),
        "writers": [{"type": "sqlite", "path": str(store)}],
    }
    path.write_text(yaml.safe_dump(configuration, sort_keys=False))
    arguments = [twistd(), "-n", "--pidfile=", "llama-scraper", "--config", str(path)]
    return lab.start(MANAGEMENT, "scraper", arguments)


def start_all(lab: Lab, traffic: Traffic, listen: str | None = None) -> None:
    """Start every reflector, then every collector, then pinpointing (which serves at `listen`)."""
    for host in lab.fabric.hosts:
        start_reflector(lab, host)
    for host in lab.fabric.hosts:
        start_collector(lab, host, traffic)
    start_pinpoint(lab, traffic, listen)
