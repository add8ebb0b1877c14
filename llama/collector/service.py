"""The collector as a Twisted service: probing, history and HTTP, from one configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.collector.engine import Engine
from llama.collector.hping3.process import programs_of, unusable_in
from llama.collector.memory import return_large_blocks, settle
from llama.collector.names import Names
from llama.collector.plan import Group, Source, make_plan
from llama.collector.probers import Probers
from llama.collector.slices import Job, Slices
from llama.collector.sockets import zone_of
from llama.collector.summary import ClosedInterval
from llama.collector.tracing import Tracing
from llama.config import CollectorConfig, ConfigErrors, load_collector
from llama.http.server import CannotListen, HttpService
from llama.net import mmsg
from llama.net.clock import clock_error_ns
from llama.net.port import transmit_ids_supported
from llama.net.route import local_address
from llama.net.ticker import Ticker
from llama.process import processor_s, raise_open_files, resident_octets

#: After which sockets that could not be had are asked for again, at first and at last.
RETRY_S, LONGEST_RETRY_S = 10.0, 120.0
#: After which it is looked up whence the kernel sends to a destination, and how many at once.
SOURCES_S, SOURCES_AT_ONCE = 60.0, 64

Way = tuple[str, str | None]  # a destination, and the interface that its probes are bound to


def _local_address(way: Way) -> str | None:
    """Return whence the kernel sends; None if that is not known."""
    destination, interface = way
    zone = zone_of(destination, interface)
    if zone is not None:
        destination = f"{destination.partition('%')[0]}%{zone}"
    return local_address(destination, interface)


class ProbingService(Service):
    """Probes what ``config`` says while it runs, and appends what it measures to ``history``.

    ``changes`` win over the file whenever it is read again.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: CollectorConfig,
        history: History,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self._changes = dict(changes or {})
        self._reactor = reactor
        self._history = history
        self._names = Names(reactor, self._replan)
        self._groups: Sequence[Group] = ()  # planned
        self._retry: Any = None
        self._retry_s = RETRY_S
        self._refused: set[tuple[str, str, str]] = set()  # test, whom, why
        self._ticker = Ticker(reactor, self._tick)
        self.prober = Probers(reactor, ids=transmit_ids_supported())
        self.engine = Engine(
            reactor, self.prober, config.interval_s, self._interval_closed,
            clock_error_ns=clock_error_ns, retick=self._ticker.start, arranged=self._arranged,
        )  # fmt: skip
        self.tracing = Tracing(self.prober.udp)
        self._slices = Slices(reactor)
        self._sources: dict[Way, str] = {}  # whence the kernel sends
        self._known_sources: dict[Way, str] = {}  # the same, while a plan is made anew
        self._sources_call: Any = None
        self._newest = config  # read last; in use once it is known that its programs run

    def startService(self) -> None:
        """Look all names up, then begin to probe."""
        super().startService()
        if not mmsg.AVAILABLE:
            raise CannotListen(
                "llama-collector: needs 64-bit Linux (recvmmsg and kernel time stamps)"
            )
        refused = unusable_in(self.config)
        if refused is not None:
            raise CannotListen(f"llama-collector: {refused}")
        return_large_blocks()
        raise_open_files()
        try:
            self._ticker.open()  # what is arranged when it fails would wait for a tick for ever
        except OSError as reason:
            raise CannotListen(f"llama-collector: no timer to be had: {reason.strerror}") from None
        self._sources_call = self._reactor.callLater(SOURCES_S, self._look_for_sources)
        self._look_up().addErrback(self._failed)

    def _hosts(self) -> list[str]:
        return sorted({target.host for test in self.config.tests for target in test.targets})

    def _look_up(self) -> Deferred[None]:
        """Look all names up, then plan with those that were answered for in time; fires then."""
        return self._names.look_up(self._hosts()).addCallback(self._plan_all)

    def _plan_all(self, _: Any) -> None:
        if self.running:
            self._replan()

    def _failed(self, failure: Any) -> None:
        self.log.failure("llama-collector cannot go on", failure=failure)
        self._reactor.stop()

    def _interval_closed(self, closed: ClosedInterval) -> None:
        self._history.append(closed)
        self.tracing.closed(closed)

    def _tick(self) -> None:
        self.engine.tick()
        self.tracing.tick()

    def _replan(self) -> None:
        """Work out what to probe from the configuration and the addresses known now."""
        self._known_sources, self._sources = self._sources, {}
        self._groups = make_plan(self.config, self._names.addresses, self._source_address)
        self._known_sources = {}
        self._retry_s = RETRY_S
        self._probe()

    def _probe(self) -> None:
        """Probe what is planned; what cannot be is tried again, and again, ever more seldom.

        At boot a VRF or an address may come later than we do.
        """
        self._stop_retry()
        complete = False
        try:
            refused = self.engine.use(self._groups)
            complete = not refused
            self._say_refused(refused)
        finally:
            if not complete:
                self._retry = self._reactor.callLater(self._retry_s, self._probe)
                self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)

    def _say_refused(self, refused: Sequence[tuple[Group, OSError]]) -> None:
        """Say what is not probed, and why, unless that was said before; and what is probed again."""
        before, self._refused = self._refused, set()
        for group, reason in refused:
            targets = list(dict.fromkeys(pair.target for pair in group.pairs))
            more = f" and {len(targets) - 3} more" if len(targets) > 3 else ""
            whom = f"{', '.join(targets[:3])}{more} by {group.probe} over IPv{group.version}"
            said = group.test, whom, reason.strerror or str(reason)
            self._refused.add(said)
            if said not in before:
                self.log.error(
                    "test {test} does not probe {whom}: {reason}",
                    test=said[0], whom=whom, reason=said[2],
                )  # fmt: skip
        still = {(test, whom) for test, whom, _ in self._refused}
        for test, whom in sorted({(test, whom) for test, whom, _ in before} - still):
            self.log.info("test {test}: {whom} is refused no more", test=test, whom=whom)

    def _stop_retry(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()

    def _arranged(self) -> None:
        """Say what is probed from now on."""
        settle()
        groups = self.engine.groups
        self.log.info(
            "probing {pairs} pairs over {flows} flows at {rate:.0f} probes/s",
            pairs=sum(len(group.pairs) for group in groups),
            flows=sum(group.flows for group in groups),
            rate=sum(group.load()[0] for group in groups),
        )

    def _source_address(self, destination: str, source: Source) -> str:
        """Return whence the kernel sends to a destination: nothing is sent to find out."""
        if source.address is not None and source.address not in ("0.0.0.0", "::"):  # noqa: S104
            return source.address
        way = destination, source.interface
        if way not in self._sources:
            # Without a route the series is named all the same, by the unspecified address.
            unspecified = "::" if source.version == 6 else "0.0.0.0"  # noqa: S104
            known = self._known_sources.get(way) or _local_address(way)
            self._sources[way] = known or unspecified
        return self._sources[way]

    def _look_for_sources(self) -> None:
        """Find out whether the kernel sends from other addresses by now."""
        self._sources_call = None
        looking = self._slices.background(self._sources_now())
        looking.addCallback(self._sources_found).addErrback(self._sources_not_taken_up)

    def _sources_now(self) -> Job[dict[Way, str]]:
        """Return whence the kernel sends to each destination; one that has no route is left out."""
        found = {}
        for n, way in enumerate(list(self._sources)):
            if n and n % SOURCES_AT_ONCE == 0:
                yield None
            source = _local_address(way)
            if source is not None:
                found[way] = source
        return found

    def _sources_found(self, found: dict[Way, str]) -> None:
        self._sources_call = self._reactor.callLater(SOURCES_S, self._look_for_sources)
        changed = {way: s for way, s in found.items() if self._sources.get(way, s) != s}
        if changed:
            self.log.info(
                "sends to {count} destinations from another address than before, such as {source}",
                count=len(changed), source=next(iter(changed.values())),
            )  # fmt: skip
            self._sources.update(changed)
            self._replan()

    def _sources_not_taken_up(self, failure: Any) -> None:
        if failure.check(CancelledError):  # that is our stop
            return
        self.log.failure("our own addresses could not be taken up", failure=failure)
        if self._sources_call is None:
            self._sources_call = self._reactor.callLater(SOURCES_S, self._look_for_sources)

    def reload(self) -> None:
        """Read the configuration file again; a bad one changes nothing."""
        try:
            config = attrs.evolve(load_collector(self.config.path, again=True), **self._changes)
        except ConfigErrors as errors:
            for mistake in errors.mistakes:
                self.log.error("not reloaded: {mistake}", mistake=str(mistake))
            return
        programs = {p for p in programs_of(config) if p not in programs_of(self.config)}
        checked: Deferred[str | None] = (
            # Running a program to see whether it runs takes longer than a tick may.
            deferToThreadPool(self._reactor, self._reactor.getThreadPool(), unusable_in, config)
            if programs
            else succeed(None)
        )
        self._newest = config
        checked.addCallback(self._take_up, config)
        checked.addErrback(lambda failure: self.log.failure("not reloaded", failure=failure))

    def _take_up(self, refused: str | None, config: CollectorConfig) -> None:
        """Probe what a new configuration says, from the next interval on."""
        if refused is not None:
            self.log.error("not reloaded: {mistake}", mistake=refused)
            return
        if not self.running or config is not self._newest:
            return
        if (config.interval_s, config.keep_intervals, config.api) != (
            self.config.interval_s, self.config.keep_intervals, self.config.api,
        ):  # fmt: skip
            self.log.warn("interval, keep and api take effect only when the collector is restarted")
        before, self.config = self.config, config
        self.log.info(
            "{path} reloaded: takes effect when the next interval begins", path=config.path
        )

        def not_reloaded(failure: Any) -> None:
            self.config = before
            self.log.failure("not reloaded, going on as before", failure=failure)

        self._look_up().addErrback(not_reloaded)
        self.say_notes()

    def say_notes(self) -> None:
        """Say what is suspicious about the configuration."""
        for note in self.config.notes:
            self.log.warn("{note}", note=str(note))

    def stopService(self) -> Deferred[None]:
        """Stop probing; fires when no program that was run for it is left."""
        super().stopService()
        self._stop_retry()
        if self._sources_call is not None:
            self._sources_call.cancel()
            self._sources_call = None
        self._slices.stop()
        self._names.stop()
        self._ticker.stop()
        self.engine.stop()
        return self.prober.ended()

    def trouble(self) -> str:
        """Return what is the matter, if anything; else an empty text."""
        if not self.prober.tracks and self._hosts():
            return "nothing is probed: no target could be so far; see the log"
        return self.engine.trouble()

    def health(self) -> dict[str, Any]:
        """Return how the collector itself is doing; see `llama.collector.answers.exposition.Health`."""
        engine, prober = self.engine, self.prober
        return {
            "probes_sent_total": prober.sent,
            "replies_received_total": prober.received,
            "stranger_packets_total": prober.strangers,
            "receive_drops_total": prober.receive_drops,
            "damaged_packets_total": prober.damaged,
            "send_failures_total": dict(prober.failed_sends),
            "probes_skipped_total": prober.skipped,
            "probes_per_second": prober.probes_per_s,
            "intervals_unclosed_total": engine.unclosed,
            "tick_lag_seconds": max(engine.lag_s, engine.last_lag_s),
            "pairs": sum(len(track.pairs) for track in prober.tracks),
            "flows": sum(track.ledger.flows for track in prober.tracks),
            "names_failing": len(self._names.failing),
            "config_generation": engine.generation,
            "resident_bytes": resident_octets(),
            "cpu_seconds_total": processor_s(),
            **self.tracing.health(),
        }


class CollectorService(MultiService):
    """A whole collector: ``probing``, ``history`` and ``http``.

    ``changes`` are already in ``config``; they win over its file when that is read again.
    """

    def __init__(
        self, reactor: Any, config: CollectorConfig, changes: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.history = History(config.keep_intervals)
        self.probing = ProbingService(reactor, config, self.history, changes)
        self.api = CollectorApi(
            reactor,
            self.history,
            src_hostname=config.src_hostname,
            health=self.probing.health,
            paths=self.probing.tracing.table,
            trouble=self.probing.trouble,
        )
        self.http = HttpService(
            reactor, config.api, self.api.app.resource(), what="llama-collector",
            token=config.api_token,
            local_hint="only this machine can reach it: no remote scraper can"
            " (api.bind in the configuration, or --api)",
        )  # fmt: skip
        self.addService(self.http)
        self.addService(self.probing)

    def startService(self) -> None:
        """Serve and probe, and say what is suspicious about the configuration."""
        super().startService()
        self.probing.say_notes()

    def stopService(self) -> Any:
        """Stop probing and serving."""
        self.api.stop()
        return super().stopService()
