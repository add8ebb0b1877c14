"""The reflector as a Twisted service: its sockets, its guard, and what it says over HTTP."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from llama.config import ReflectorConfig
from llama.http.server import CannotListen, HttpService
from llama.net import mmsg
from llama.net.clock import clock_error_ns
from llama.net.port import BatchPort, transmit_ids_supported
from llama.reflector import api
from llama.reflector.allow import AllowList
from llama.reflector.guard import Guard
from llama.reflector.keyring import KeyRing
from llama.reflector.protocol import Reflector
from llama.reflector.provisioned import Provisioned
from llama.reflector.sessions import Sessions
from llama.reflector.stats import Stats
from llama.reflector.tally import Tally

#: Of the configuration, what a guard is made of.
_GUARDED = attrs.filters.include(
    "port", "refuse_source_ports", "permit_source_ports", "allow", "max_pps", "max_pps_per_source",
    "burst", "burst_per_source",
)  # fmt: skip

#: Of a wildcard IPv6 address that cannot be had: this machine has no IPv6.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class AnswersNowhere(Exception):  # noqa: N818  what it is, not what went wrong
    """New sockets could not be had, and those given up for them could not be had again."""


class PortService(Service):
    """The reflector's sockets, one for each of ``addresses``, all with the same guard and sessions.

    ``batched`` chooses `BatchPort` (the default where the platform has it) or Twisted's own UDP
    port, on which TTL, class, kernel stamps and the asked address are unknown. Port 0 takes any
    free port, the same for all addresses, and keeps it. ``generation`` counts the configurations in
    use so far. ``started_ns``, since 1970, and the counts outlast the sockets.
    """

    log = Logger()

    def __init__(self, reactor: Any, config: ReflectorConfig, *, batched: bool | None = None):
        self._reactor = reactor
        self._config = config
        self.batched = mmsg.AVAILABLE if batched is None else batched
        # Found out by a socket, which a reload may not get once its old ones are closed.
        self._stamped = self.batched and transmit_ids_supported()
        self.tally = Tally()
        self.sessions = Sessions(config.max_sessions)
        self.generation = 1
        self.started_ns = time.time_ns()
        self._by_address: dict[str, Any] = {}
        self._number = config.port
        self._past_drops: Counter[str] = Counter()  # of sockets that are closed, by address
        self._past_damaged = 0
        self._rules = self._new_rules(config, self._new_guard(config, config.port))

    @property
    def ports(self) -> list[Any]:
        """The ports that are listened on."""
        return list(self._by_address.values())

    @staticmethod
    def _new_guard(config: ReflectorConfig, number: int) -> Guard:
        return Guard(
            own_ports=[number],
            refuse=config.refuse_source_ports,
            permit=config.permit_source_ports,
            allow=AllowList(config.allow) if config.allow else None,
            source_rate_pps=config.max_pps_per_source,
            source_burst=config.burst_per_source,
            total_rate_pps=config.max_pps,
            total_burst=config.burst,
        )

    @staticmethod
    def _new_rules(config: ReflectorConfig, guard: Guard) -> dict[str, Any]:
        """Return what a `Reflector` judges by."""
        keys = provisioned = None
        if config.keys:
            keys = KeyRing((k.key.secret, k.prefixes, k.ssids) for k in config.keys)
        if config.sessions:
            provisioned = Provisioned((s.source, s.source_port, s.ssid) for s in config.sessions)
        return {
            "guard": guard,
            "reply_dscps": config.reply_dscps,
            "legacy": config.legacy,
            "keys": keys,
            "allow_unauthenticated": config.allow_unauthenticated,
            "provisioned": provisioned,
        }

    def privilegedStartService(self) -> None:
        """Bind while the process may still bind low ports."""
        self._begin()
        super().privilegedStartService()

    def startService(self) -> None:
        """Bind, unless that was done before privileges were dropped."""
        if not self._by_address:
            self._begin()
        super().startService()

    def _begin(self) -> None:
        try:
            self._listen(self._config, self._config.port)
        except CannotListen:
            self._close(self._by_address)
            raise

    def _listen(self, config: ReflectorConfig, number: int) -> None:
        """Listen where ``config`` says and nobody does yet, on port ``number``.

        Raises `CannotListen`; what was opened before that is open still.
        """
        if config.interface and not self.batched:
            raise CannotListen(
                "llama-reflector: to answer on one interface takes 64-bit Linux, here it would be on all"
                " of them: name addresses instead of an interface"
            )
        wildcard = set(config.addresses) == {"0.0.0.0", "::"}  # noqa: S104
        for address in config.addresses:
            if address in self._by_address:
                continue
            try:
                port = self._open(config, address, number)
            except CannotListenError as reason:
                code = getattr(reason.socketError, "errno", None)
                if address == "::" and wildcard and self._by_address and code in _NO_IPV6:
                    self.log.info("no IPv6 here ({reason}): answering IPv4 only", reason=reason)
                    continue
                advice = "choose another with --port or --interface"
                if code == errno.EACCES:
                    advice = "ports below 1024 take CAP_NET_BIND_SERVICE"
                elif code == errno.EADDRNOTAVAIL:  # of IPv6 also while it is looked for twice
                    advice = "the address is none of this machine's, or not yet"
                raise CannotListen(
                    f"llama-reflector: cannot listen on UDP {address} port {number}: "
                    f"{reason.socketError}; {advice}"
                ) from None
            self._by_address[address] = port
            if not number:  # any free one was asked for: known only now
                number = port.getHost().port
                before = self._rules["guard"]
                self._rules["guard"] = self._new_guard(config, number)
                self._rules["guard"].go_on_from(before, time.monotonic())
        self._number = number
        for port in self.ports:
            port.protocol.use(**self._rules)
        self.log.info(
            "answering on UDP {hosts} ({how})",
            hosts=", ".join(f"{p.getHost().host} port {p.getHost().port}" for p in self.ports),
            how="kernel time stamps" if self.batched else "user-space time stamps",
        )
        if config.legacy and not self.batched and not config.allow:
            self.log.info(
                "no TTL is known here: LLAMA Go's and the archived Python LLAMA's probes are not"
                " answered, unless their sources are listed under allow"
            )

    def _close(self, addresses: Iterable[str]) -> Deferred[Any]:
        """Close the sockets at ``addresses``; the Deferred fires when they are closed."""
        closing = {address: self._by_address.pop(address) for address in list(addresses)}
        for address, port in closing.items():
            if isinstance(port, BatchPort):
                self._past_drops[address] += port.receive_drops()
                self._past_damaged += port.damaged()
        return gatherResults([port.stopListening() for port in closing.values()])

    def _open(self, config: ReflectorConfig, address: str, number: int) -> Any:
        """Listen on an address; raises `CannotListenError`."""
        protocol = Reflector(
            time.monotonic,  # whatever a reactor that is somebody else's counts by
            sessions=self.sessions,
            tally=self.tally,
            clock_error_ns=clock_error_ns,
            started_ns=self.started_ns,
            earlier_drops=self._past_drops[address],
            **self._rules,
        )
        if not self.batched:
            return self._reactor.listenUDP(number, protocol, address, 65536)
        port = BatchPort(
            self._reactor, protocol, address, number,
            interface=config.interface, stamped=self._stamped,
        )  # fmt: skip
        try:
            port.startListening()
        except OSError as reason:  # no socket at all: a machine without IPv6
            raise CannotListenError(address, number, reason) from None
        return port

    async def use(self, config: ReflectorConfig) -> None:
        """Answer by another configuration from now on; sessions and counts go on.

        Sockets stay, too, unless they are to be elsewhere. Raises `CannotListen` if it names places
        that cannot be had; then all is as before. Raises `AnswersNowhere` if that cannot be. Changes
        nothing when the service is stopped meanwhile.
        """
        before, rules, number = self._config, self._rules, self.port_number
        wanted = number if config.port == before.port else config.port
        moved = (config.port, config.interface) != (before.port, before.interface)
        gone = [a for a in self._by_address if moved or a not in config.addresses]
        guard = rules["guard"]
        if attrs.asdict(config, filter=_GUARDED, recurse=False) != attrs.asdict(
            before, filter=_GUARDED, recurse=False
        ):
            guard = self._new_guard(config, wanted)
            guard.go_on_from(rules["guard"], time.monotonic())
        # What is to go goes first: a wildcard address and one of the host's exclude each other.
        await self._close(gone)
        if not self.running:
            return
        kept = set(self._by_address)
        self._rules = self._new_rules(config, guard)
        try:
            self._listen(config, wanted)
        except CannotListen as refused:
            self._rules = rules
            await self._close(set(self._by_address) - kept)  # they may be in the way of the old
            if not self.running:
                return
            self._listen_again(before, number, refused)
            raise
        self._config = config
        self.generation += 1

    def _listen_again(self, before: ReflectorConfig, number: int, refused: CannotListen) -> None:
        """Answer where we did before; raises `AnswersNowhere` if nothing of that can be had."""
        try:
            self._listen(before, number)
        except CannotListen as lost:
            if not self._by_address:
                raise AnswersNowhere(f"{refused}; and no longer where it was: {lost}") from None
            for port in self.ports:
                port.protocol.use(**self._rules)
            self.log.error("answers at fewer addresses than before: {reason}", reason=str(lost))

    def stopService(self) -> Deferred[Any]:
        """Close the sockets; the Deferred fires when they are closed."""
        super().stopService()
        return self._close(self._by_address)

    @property
    def port_number(self) -> int:
        """The UDP port that is answered on, once the service runs; amid a reload, the last one."""
        return self._number

    def receive_drops(self) -> int:
        """Return how many datagrams the kernel dropped because they were not read in time."""
        now = sum(port.receive_drops() for port in self.ports if isinstance(port, BatchPort))
        return self._past_drops.total() + now

    def damaged(self) -> int:
        """Return how many datagrams arrived with a wrong checksum, as far as that is seen here."""
        now = sum(port.damaged() for port in self.ports if isinstance(port, BatchPort))
        return self._past_damaged + now


class ReflectorService(MultiService):
    """A whole reflector: sockets, and what it says of itself where ``config.api`` says."""

    log = Logger()

    def __init__(
        self, reactor: Any, config: ReflectorConfig, *, batched: bool | None = None
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._config = config
        self._changing = DeferredLock()
        self.ports = PortService(reactor, config, batched=batched)
        self.stats = Stats(reactor, config, self.ports)
        self.http = HttpService(
            reactor, config.api, api.root(self.ports, self.stats), what="llama-reflector",
            token=config.api_token,
            local_hint="only this machine can reach it: no remote scraper can"
            " (api.bind in the configuration, or --api)",
        )  # fmt: skip
        for service in (self.ports, self.stats, self.http):
            self.addService(service)

    def startService(self) -> None:
        """Start, and say what is suspicious about the configuration."""
        super().startService()
        self._say_notes(self._config)

    def _say_notes(self, config: ReflectorConfig) -> None:
        for note in config.notes:
            self.log.warn("{note}", note=str(note))

    async def use(self, config: ReflectorConfig) -> None:
        """Go on with another configuration; one whose places cannot be had changes nothing."""
        try:
            # One after the other, however fast they come.
            await self._changing.run(lambda: Deferred.fromCoroutine(self.ports.use(config)))
        except CannotListen as refused:
            self.log.error("not reloaded: {reason}", reason=str(refused))
            return
        except AnswersNowhere as lost:
            self.log.critical("ends, since it would answer nowhere: {reason}", reason=str(lost))
            self.failed()
            return
        if not self.running:
            return
        started, now = (
            (c.api, c.api_token, c.max_sessions, c.interval_s, c.keep_intervals, c.stats_tags)
            for c in (self._config, config)
        )
        if started != now:
            self.log.warn(
                "api, stats and limits: {{sessions}} take effect only when the reflector is restarted"
            )
        self.log.info("reloaded {path}", path=config.path)
        self._say_notes(config)

    def failed(self) -> None:
        """End the program, since it cannot do its duty."""
        self._reactor.stop()
