"""A collector's probing on a clock of its own, with names that somebody else resolves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.answers.history import History
from llama.collector.service import ProbingService
from llama.config import load_collector

CONFIG = """
summarization: {{interval: 10}}
ports: {{any: {{port: 0, timeout: 1000}}}}
port_groups: {{all: [{{port: any, count: 1}}]}}
rate_limits: {{slow: {{cps: 1}}}}
tests: [{{targets: some, port_group: all, rate_limit: slow}}]
targets:
  some:
{targets}
"""


class Resolver:
    """Answers for the names it knows, each with addresses or none; for others it never does."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.waiting: list[tuple[Any, str]] = []

    def resolveHostName(self, receiver: Any, name: str, *_: Any, **__: Any) -> None:
        """Look a name up, at once or never."""
        receiver.resolutionBegan(None)
        if name in self.known:
            for address in self.known[name].split():
                kind = IPv6Address if ":" in address else IPv4Address
                receiver.addressResolved(kind("UDP", address, 0))
            receiver.resolutionComplete()


class ServiceCase(SynchronousTestCase):
    """A collector's probing on a clock of its own, with sockets that are real."""

    def service(self, *hosts: str) -> ProbingService:
        """A probing service for these hosts, started."""
        path = Path(self.mktemp())
        lines = (
            f"    - {{ip: '{host}', port: 9, tags: {{dst_hostname: h{n}}}}}"
            for n, host in enumerate(hosts)
        )
        path.write_text(CONFIG.format(targets="\n".join(lines)))
        self.resolver = Resolver()
        self.reactor = MemoryReactorClock()
        self.reactor.nameResolver = self.resolver
        service = ProbingService(self.reactor, load_collector(path), History(2))
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def probed(self, service: ProbingService) -> set[str]:
        """The addresses that are probed."""
        return {pair.dst_ip for track in service.prober.tracks for pair in track.pairs}
