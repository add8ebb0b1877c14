"""The collector as a Twisted service: probing, history and HTTP, from one configuration."""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from llama.collector.api import CollectorApi
from llama.collector.engine import Engine
from llama.collector.history import History
from llama.collector.hping3_process import programs_of, unusable_in
from llama.collector.memory import return_large_blocks, settle
from llama.collector.names import Names
from llama.collector.plan import make_plan
from llama.collector.probers import Probers
from llama.collector.summary import ClosedInterval
from llama.collector.tracing import Tracing
from llama.config import CollectorConfig, ConfigErrors, load_collector
from llama.http import CannotListen, HttpService
from llama.net import mmsg
from llama.net.clock import clock_error_ns
from llama.net.port import transmit_ids_supported
from llama.net.route import local_address
from llama.net.ticker import Ticker
from llama.process import processor_s, resident_octets

RETRY_S = 10.0  # after which sockets that could not be had are asked for again
#: Names that do not answer may take hours, all together: what is known by then is probed meanwhile.
MEANWHILE_S = 5.0


class ProbingService(Service):
    """Probes what ``config`` says while it runs, and appends what it measures to ``history``."""

    log = Logger()

    def __init__(self, reactor: Any, config: CollectorConfig, history: History) -> None:
        self.config = config
        self._reactor = reactor
        self._history = history
        self._names = Names(reactor, self._replan)
        self._retry: Any = None
        self._meanwhile: Any = None
        self._planned: dict[str, tuple[str, ...]] = {}  # the addresses that the plan is made of
        self._ticker = Ticker(reactor, self._tick)
        self.prober = Probers(reactor, ids=transmit_ids_supported())
        self.engine = Engine(
            reactor, self.prober, config.interval_s, self._interval_closed,
            clock_error_ns=clock_error_ns, retick=self._ticker.start,
        )  # fmt: skip
        self.tracing = Tracing(self.prober.udp)
        self._sources: dict[tuple[str, str | None], str] = {}
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
        self._look_up().addErrback(self._failed)

    def _hosts(self) -> list[str]:
        return sorted({target.host for test in self.config.tests for target in test.targets})

    def _look_up(self) -> Deferred[None]:
        """Look all names up, then plan; fires when that is done."""
        asked = self._names.look_up(self._hosts())
        if not asked.called:
            self._meanwhile = self._reactor.callLater(MEANWHILE_S, self._plan_meanwhile)
        return asked.addCallback(self._plan_all)

    def _plan_meanwhile(self) -> None:
        """Probe what is known while other names are still being looked up."""
        self._meanwhile = self._reactor.callLater(self.config.interval_s, self._plan_meanwhile)
        if self._names.addresses and self._names.addresses != self._planned:
            self._replan()

    def _plan_all(self, _: Any) -> None:
        self._stop_meanwhile()
        if self.running:
            self._replan()

    def _stop_meanwhile(self) -> None:
        if self._meanwhile is not None and self._meanwhile.active():
            self._meanwhile.cancel()

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
        self._sources = {}
        self._planned = dict(self._names.addresses)
        groups = make_plan(self.config, self._names.addresses, self._source_address)
        refused = self.engine.use(groups)
        for group, reason in refused:
            self.log.error(
                "test {test} is not probed over IPv{version}: cannot open its {probe} sockets:"
                " {reason}",
                test=group.test, version=group.version, probe=group.probe,
                reason=reason.strerror or reason,
            )  # fmt: skip
        if refused and (self._retry is None or not self._retry.active()):
            # At boot a VRF or an address may come later than we do.
            self._retry = self._reactor.callLater(RETRY_S, self._replan)
        groups = tuple(group for group in groups if all(group is not one for one, _ in refused))
        settle()
        self.log.info(
            "probing {pairs} pairs over {flows} flows at {rate:.0f} probes/s",
            pairs=sum(len(group.pairs) for group in groups),
            flows=sum(group.flows for group in groups),
            rate=sum(group.load()[0] for group in groups),
        )

    def _source_address(self, destination: str, configured: str | None) -> str:
        """Return whence the kernel sends to a destination: nothing is sent to find out."""
        if configured is not None and configured not in ("0.0.0.0", "::"):  # noqa: S104
            return configured
        key = destination, configured
        if key not in self._sources:
            # Without a route the series is named all the same, by the unspecified address.
            unspecified = "::" if ":" in destination else "0.0.0.0"  # noqa: S104
            self._sources[key] = local_address(destination) or unspecified
        return self._sources[key]

    def reload(self) -> None:
        """Read the configuration file again; a bad one changes nothing."""
        try:
            config = load_collector(self.config.path)
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

        self._stop_meanwhile()
        self._look_up().addErrback(not_reloaded)
        self.say_notes()

    def say_notes(self) -> None:
        """Say what is suspicious about the configuration."""
        for note in self.config.notes:
            self.log.warn("{note}", note=str(note))

    def stopService(self) -> Deferred[None]:
        """Stop probing; fires when no program that was run for it is left."""
        super().stopService()
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._stop_meanwhile()
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
        """Return how the collector itself is doing; see `llama.collector.exposition.Health`."""
        engine, prober = self.engine, self.prober
        return {
            "probes_sent_total": prober.sent,
            "replies_received_total": prober.received,
            "stranger_packets_total": prober.strangers,
            "receive_drops_total": prober.receive_drops,
            "send_failures_total": dict(prober.failed_sends),
            "probes_skipped_total": sum(track.schedule.skipped for track in prober.tracks),
            "probes_per_second": prober.probes_per_s,
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
    """A whole collector: ``probing``, ``history`` and ``http``."""

    def __init__(self, reactor: Any, config: CollectorConfig) -> None:
        super().__init__()
        self.history = History(config.keep_intervals)
        self.probing = ProbingService(reactor, config, self.history)
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
