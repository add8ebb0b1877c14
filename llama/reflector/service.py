"""The reflector as a Twisted service: its sockets, its guard, and its status over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.twisted import MetricsResource
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from llama.config import ReflectorConfig
from llama.http import CannotListen, HttpService, JsonRoot
from llama.net import mmsg
from llama.net.clock import clock_error_ns
from llama.net.port import BatchPort, transmit_ids_supported
from llama.reflector.allow import AllowList
from llama.reflector.guard import Guard
from llama.reflector.keyring import KeyRing
from llama.reflector.protocol import Reflector
from llama.reflector.provisioned import Provisioned
from llama.reflector.sessions import Sessions
from llama.reflector.tally import Tally


class PortService(Service):
    """The reflector's sockets, one for each of ``addresses``, all with the same guard and sessions.

    ``batched`` chooses `BatchPort` (the default where the platform has it) or Twisted's own UDP
    port, on which TTL, class, kernel stamps and the asked address are unknown. Port 0 takes any
    free port, the same for all addresses.
    """

    log = Logger()

    def __init__(self, reactor: Any, config: ReflectorConfig, *, batched: bool | None = None):
        self._reactor = reactor
        self._config = config
        self.batched = mmsg.AVAILABLE if batched is None else batched
        self.tally = Tally()
        self.sessions = Sessions(config.max_sessions)
        self.ports: list[Any] = []
        self._guard = self._new_guard(config.port)
        self._keys = None
        if config.keys:
            self._keys = KeyRing((k.key.secret, k.prefixes, k.ssids) for k in config.keys)
        self._provisioned = None
        if config.sessions:
            self._provisioned = Provisioned(
                (each.source, each.source_port, each.ssid) for each in config.sessions
            )

    def _new_guard(self, port: int) -> Guard:
        config = self._config
        return Guard(
            own_ports=[port],
            refuse=config.refuse_source_ports,
            permit=config.permit_source_ports,
            allow=AllowList(config.allow) if config.allow else None,
            source_rate_pps=config.max_pps_per_source,
            total_rate_pps=config.max_pps,
        )

    def privilegedStartService(self) -> None:
        """Bind while the process may still bind low ports."""
        self._listen()
        super().privilegedStartService()

    def startService(self) -> None:
        """Bind, unless that was done before privileges were dropped."""
        if not self.ports:
            self._listen()
        super().startService()

    def _listen(self) -> None:
        config, number = self._config, self._config.port
        wildcard = set(config.addresses) == {"0.0.0.0", "::"}  # noqa: S104
        stamped = self.batched and transmit_ids_supported()
        for address in config.addresses:
            protocol = Reflector(
                self._reactor.seconds,
                self._guard,
                self.sessions,
                tally=self.tally,
                clock_error_ns=clock_error_ns,
                reply_dscps=config.reply_dscps,
                legacy=config.legacy,
                keys=self._keys,
                allow_unauthenticated=config.allow_unauthenticated,
                provisioned=self._provisioned,
            )
            try:
                if self.batched:
                    port = BatchPort(
                        self._reactor, protocol, address, number,
                        interface=config.interface, stamped=stamped,
                    )  # fmt: skip
                    port.startListening()
                else:
                    port = self._reactor.listenUDP(number, protocol, address, 65536)
            except CannotListenError as reason:
                if address == "::" and wildcard and self.ports:
                    self.log.info("no IPv6 here ({reason}): answering IPv4 only", reason=reason)
                    continue
                for other in self.ports:
                    other.stopListening()
                raise CannotListen(
                    f"llama-reflector: cannot listen on UDP {address} port {number}: "
                    f"{reason.socketError}; choose another with --port or --interface"
                ) from None
            self.ports.append(port)
            number = port.getHost().port
            if number != config.port:  # any free one was asked for: known only now
                protocol.guard = self._guard = self._new_guard(number)
        self.log.info(
            "answering on UDP {hosts} ({how})",
            hosts=", ".join(f"{p.getHost().host} port {p.getHost().port}" for p in self.ports),
            how="kernel time stamps" if self.batched else "user-space time stamps",
        )

    def stopService(self) -> Deferred[Any]:
        """Close the sockets; the Deferred fires when they are closed."""
        super().stopService()
        ports, self.ports = self.ports, []
        return gatherResults([port.stopListening() for port in ports])

    @property
    def port_number(self) -> int:
        """The UDP port that is answered on, once the service runs."""
        return int(self.ports[0].getHost().port)

    def receive_drops(self) -> int:
        """Return how many datagrams the kernel dropped because they were not read in time."""
        return sum(port.receive_drops() for port in self.ports if isinstance(port, BatchPort))


class ReflectorMetrics(Collector):
    """What a reflector has done, for Prometheus."""

    def __init__(self, ports: PortService) -> None:
        self._ports = ports

    def describe(self) -> list[Metric]:
        """Return nothing: there are no metrics to check for duplicates."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        ports, tally = self._ports, self._ports.tally
        yield CounterMetricFamily(
            "llama_reflector_received", "Datagrams received", value=tally.received
        )
        answered = CounterMetricFamily(
            "llama_reflector_answered", "Replies sent, by packet format", labels=["format"]
        )
        for name, count in sorted({"stamp": 0, **tally.answered}.items()):
            answered.add_metric([name], count)
        yield answered
        dropped = CounterMetricFamily(
            "llama_reflector_dropped", "Datagrams not answered, by reason", labels=["reason"]
        )
        for name, count in sorted(tally.dropped.items()):
            dropped.add_metric([name], count)
        yield dropped
        yield CounterMetricFamily(
            "llama_reflector_receive_drops",
            "Datagrams that the kernel dropped at a full socket buffer",
            value=ports.receive_drops(),
        )
        yield GaugeMetricFamily(
            "llama_reflector_sessions", "Sessions remembered", value=len(ports.sessions)
        )
        yield CounterMetricFamily(
            "llama_reflector_sessions_evicted",
            "Sessions forgotten to make room for others",
            value=ports.sessions.evicted,
        )


class ReflectorService(MultiService):
    """A whole reflector: sockets, and ``/status`` and ``/metrics`` where ``config.api`` says."""

    def __init__(
        self, reactor: Any, config: ReflectorConfig, *, batched: bool | None = None
    ) -> None:
        super().__init__()
        self.ports = PortService(reactor, config, batched=batched)
        self.addService(self.ports)
        root = JsonRoot()
        registry = CollectorRegistry()
        registry.register(ReflectorMetrics(self.ports))
        metrics: Any = MetricsResource(registry)
        root.putChild(b"metrics", metrics)
        self.http = HttpService(
            reactor, config.api, root, what="llama-reflector", token=config.api_token
        )
        self.addService(self.http)
