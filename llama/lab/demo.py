"""The demo: real reflectors, collectors, scraper and web page for six hosts on loopback, in one process.

The network between the sites is `llama.lab.relay`, one relay an ordered pair of hosts, impaired as
`llama.lab.scene` says. Everything else is what ``twistd`` would start, from ordinary configuration
files, written to a directory where people can read them.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import yaml
from attrs import frozen
from twisted.application.service import MultiService
from twisted.internet.defer import DeferredList, maybeDeferred

from llama import config
from llama.collector.service import CollectorService
from llama.lab.places import Ports
from llama.lab.relay import Relay
from llama.lab.scene import FLOWS, Host, Scene
from llama.reflector.service import ReflectorService
from llama.scraper.service import ScraperService
from llama.web.service import WebService

#: Probes per second of every flow.
RATE_PPS = 2
_TIMEOUT_MS = 2000
_KEEP_S = 900
#: The usual ports of a fleet; where one is taken, the system chooses another.
_REFLECTOR_PORT = 8100
_COLLECTOR_PORT = 5000
_REFLECTOR_API_PORT = 5002
_SCRAPER_API_PORT = 5003
_WEB_PORT = 5001


@frozen(kw_only=True)
class Addresses:
    """Where to look while the demo runs."""

    collectors: dict[str, str]  # base URL by host name
    web: str
    store: Path  # the SQLite database


class Demo:
    """Everything that runs: start it once, then stop it once.

    Scraper and web page listen on the address ``home``; files are written to ``directory``, which
    is absolute.
    """

    def __init__(
        self, reactor: Any, scene: Scene, interval_s: int, directory: Path, home: str
    ) -> None:
        self._reactor = reactor
        self._scene = scene
        self._home = home
        self._interval_s = interval_s
        self._directory = directory
        self._ports = Ports()
        self._services = MultiService()
        self._relays: list[Relay] = []

    async def start(self) -> Addresses:
        """Start everything, reflectors first, and say where it is.

        Raises `NoPlaceError` and what the services raise; then, too, call `stop`.
        """
        reflectors = {host: self._start_reflector(host) for host in self._scene.hosts}
        collectors = {
            host.name: self._start_collector(host, self._targets(host, reflectors))
            for host in self._scene.hosts
        }
        store = self._directory / "llama.sqlite"
        self._start_scraper(list(collectors.values()), store)
        web = self._start_web(list(collectors.values()), store)
        self._services.startService()
        return Addresses(collectors=collectors, web=web, store=store)

    async def stop(self) -> None:
        """Stop everything that was started, and wait until it has stopped."""
        if self._services.running:
            await maybeDeferred(self._services.stopService)
        await DeferredList([relay.stop() for relay in self._relays], consumeErrors=True)

    def _start_reflector(self, host: Host) -> int:
        port = self._ports.udp(host.address, _REFLECTOR_PORT)
        path = self._write(
            f"reflector-{host.name}",
            {
                "addresses": [host.address],
                "port": port,
                "api": {"bind": self._bind(host.address, _REFLECTOR_API_PORT)},
            },
        )
        ReflectorService(self._reactor, config.load_reflector(path)).setServiceParent(
            self._services
        )
        return port

    def _targets(self, host: Host, reflectors: dict[Host, int]) -> list[dict[str, Any]]:
        """Return every other host as a collector's target: a relay to it, or itself if near."""
        return [
            {
                "name": other.name,
                "host": other.address,
                "port": self._way(host, other, port),
                "tags": {"site": other.site},
            }
            for other, port in reflectors.items()
            if other != host
        ]

    def _way(self, source: Host, destination: Host, port: int) -> int:
        """Return the port of the destination's address that leads there from the source."""
        way = self._scene.way(source, destination)
        if way is None:
            return port
        relay = Relay(
            self._reactor,
            (destination.address, port),
            random=Random(f"{self._scene.seed} {source.name} {destination.name}"),
            forward=way.forward,
            reverse=way.reverse,
        )
        listening = self._reactor.listenUDP(0, relay, interface=destination.address)
        self._relays.append(relay)
        relayed: int = listening.getHost().port
        return relayed

    def _start_collector(self, host: Host, targets: list[dict[str, Any]]) -> str:
        bind = self._bind(host.address, _COLLECTOR_PORT)
        path = self._write(
            f"collector-{host.name}",
            {
                "summarization": {
                    "interval": self._interval_s,
                    "keep": max(2, _KEEP_S // self._interval_s),
                },
                "api": {"bind": bind},
                "source_tags": {"src_hostname": host.name, "src_site": host.site},
                "ports": {"sender": {"ip": host.address, "timeout": _TIMEOUT_MS}},
                "port_groups": {"flows": [{"port": "sender", "count": FLOWS}]},
                "rate_limits": {"steady": {"cps": RATE_PPS}},
                "tests": [{"targets": "mesh", "port_group": "flows", "rate_limit": "steady"}],
                "targets": {"mesh": targets},
            },
        )
        CollectorService(self._reactor, config.load_collector(path)).setServiceParent(
            self._services
        )
        return f"http://{bind}"

    def _start_scraper(self, collectors: list[str], store: Path) -> None:
        path = self._write(
            "scraper",
            {
                "interval": min(1, self._interval_s),
                "collectors": collectors,
                "writers": [{"type": "sqlite", "path": str(store)}],
                "api": {"bind": self._bind(self._home, _SCRAPER_API_PORT)},
            },
        )
        ScraperService(self._reactor, config.load_scraper(path)).setServiceParent(self._services)

    def _start_web(self, collectors: list[str], store: Path) -> str:
        bind = self._bind(self._home, _WEB_PORT)
        path = self._write(
            "web",
            {
                "listen": bind,
                "store": {"type": "sqlite", "path": str(store)},
                "collectors": collectors,
            },
        )
        WebService(self._reactor, config.load_web(path)).setServiceParent(self._services)
        return f"http://{bind}"

    def _bind(self, address: str, usual: int) -> str:
        return f"{address}:{self._ports.tcp(address, usual)}"

    def _write(self, name: str, content: dict[str, Any]) -> str:
        path = self._directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return str(path)
