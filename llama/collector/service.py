"""The collector as a Twisted service: probing, history and HTTP, from one configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.collector.intervals.summary import ClosedInterval
from llama.collector.memory import return_large_blocks, settle
from llama.collector.names import Names
from llama.collector.probing.hping3.process import programs_of, unusable_in
from llama.collector.probing.plan import (
    Group,
    Source,
    as_before,
    make_plan,
    plan_slowly,
    room_for_traces,
)
from llama.collector.probing.probers import Probers
from llama.collector.probing.sockets import zone_of
from llama.collector.rereading import RereadingError, read_again
from llama.collector.slices import Job, Slices
from llama.collector.timekeeper import Timekeeper
from llama.collector.tracing import Tracing
from llama.config import CollectorConfig, ConfigErrors
from llama.config.offered_load import offered, share_of_rate
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

#: Parts of a reload come so long after one another, for ticks to come between.
BETWEEN_S = 0.01

Way = tuple[str, str | None]  # a destination, and the interface that its probes are bound to


def _local_address(way: Way) -> str | None:
    """Return whence the kernel sends; None if that is not known."""
    destination, interface = way
    zone = zone_of(destination, interface)
    if zone is not None:
        destination = f"{destination.partition('%')[0]}%{zone}"
    return local_address(destination, interface)


def _source_address(
    found: dict[Way, str], before: Mapping[Way, str], destination: str, source: Source
) -> str:
    """Return whence the kernel sends to a destination: nothing is sent to find out.

    It is asked if that is neither ``found``, where it is noted, nor known from ``before``.
    """
    if source.address is not None and source.address not in ("0.0.0.0", "::"):  # noqa: S104
        return source.address
    way = destination, source.interface
    if way not in found:
        # Without a route the series is named all the same, by the unspecified address.
        unspecified = "::" if source.version == 6 else "0.0.0.0"  # noqa: S104
        found[way] = before.get(way) or _local_address(way) or unspecified
    return found[way]


def _hosts(config: CollectorConfig) -> set[str]:
    return {target.host for test in config.tests for target in test.targets}


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
        self.timekeeper = Timekeeper(
            reactor, self.prober, config.interval_s, self._interval_closed,
            clock_error_ns=clock_error_ns, retick=self._ticker.start, arranged=self._arranged,
        )  # fmt: skip
        self.tracing = Tracing(self.prober.udp)
        self._slices = Slices(reactor)
        self._sources: dict[Way, str] = {}  # whence the kernel sends
        self._sources_call: Any = None
        self._reloading = DeferredLock()  # held while the file is read and planned
        self._underway: Deferred[CollectorConfig] | None = None  # its reading
        #: Called before the reactor is stopped because nothing can be probed at all.
        self.failing: Callable[[], None] = lambda: None

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

    def _look_up(self) -> Deferred[None]:
        """Look all names up, then plan with those that were answered for in time; fires then."""
        return self._names.look_up(_hosts(self.config)).addCallback(self._plan_all)

    def _plan_all(self, _: Any) -> None:
        if self.running:
            self._replan()

    def _failed(self, failure: Any) -> None:
        self.log.failure("llama-collector cannot go on", failure=failure)
        if self.running:  # it would live and do nothing
            self.failing()
            self._reactor.callWhenRunning(self._reactor.stop)  # it may be about to run

    def _interval_closed(self, closed: ClosedInterval) -> None:
        self._history.append(closed)
        if not self.running:  # by who waited for this interval
            return
        self.tracing.closed(closed)
        lined_up = self._slices.background(self.tracing.line_up(closed))
        lined_up.addErrback(lambda failure: failure.trap(CancelledError))  # that is our stop

    def _tick(self) -> None:
        self.timekeeper.tick()
        self.tracing.tick()

    def _replan(self) -> None:
        """Work out what to probe from the configuration and the addresses known now."""
        sources: dict[Way, str] = {}
        source_address = partial(_source_address, sources, self._sources)
        self._groups = make_plan(self.config, self._names.addresses, source_address)
        self._sources = sources
        self._retry_s = RETRY_S
        self._probe()

    def _probe(self) -> None:
        """Probe what is planned; what cannot be is tried again, and again, ever more seldom.

        At boot a VRF or an address may come later than we do.
        """
        self._stop_retry()
        complete = False
        self._keep_traces_within()
        try:
            refused = self.timekeeper.use(self._groups)
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

    def _keep_traces_within(self) -> None:
        """Leave traces what the caps leave beside what is probed and what is about to be."""
        self.tracing.keep_within(
            *room_for_traces(self.config, self._groups, self.timekeeper.groups)
        )

    def _arranged(self) -> None:
        """Say what is probed from now on."""
        settle()
        self._keep_traces_within()
        groups = self.timekeeper.groups
        share = share_of_rate(self.config, offered(self.config))
        self.log.info(
            "probing {pairs} pairs over {flows} flows at {rate:.0f} probes/s{capped}",
            capped="" if share == 1 else f": the caps leave {share:.1%} of what is configured",
            pairs=sum(len(group.pairs) for group in groups),
            flows=sum(group.flows for group in groups),
            rate=sum(group.rate_pps * group.flows for group in groups),
        )

    def _look_for_sources(self) -> None:
        """Find out whether the kernel sends from other addresses by now."""
        self._sources_call = None
        looking = self._slices.background(self._sources_now())
        looking.addCallback(self._sources_found).addErrback(self._sources_not_taken_up)

    def _sources_now(self) -> Job[dict[Way, str]]:
        """Return whence the kernel sends to destinations, if from elsewhere than was known so far."""
        changed = {}
        for n, way in enumerate(list(self._sources)):
            if n and n % SOURCES_AT_ONCE == 0:
                yield None
            source = _local_address(way)
            if source is not None and source != self._sources.get(way, source):
                changed[way] = source
        return changed

    def _sources_found(self, changed: dict[Way, str]) -> None:
        self._sources_call = self._reactor.callLater(SOURCES_S, self._look_for_sources)
        changed = {way: source for way, source in changed.items() if way in self._sources}
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
        if self._reloading.waiting:
            return  # it has yet to be read
        reloaded = self._reloading.run(lambda: Deferred.fromCoroutine(self._reload()))
        reloaded.addErrback(self._not_reloaded)

    async def _reload(self) -> None:
        """Probe what the file says now from the next interval on; no probe waits for that."""
        if not self.running:
            return
        try:
            self._underway = read_again(self._reactor, self.config.path)
            config = attrs.evolve(await self._underway, **self._changes)
        except ConfigErrors as errors:
            for mistake in errors.mistakes:
                self.log.error("not reloaded: {mistake}", mistake=str(mistake))
            return
        except RereadingError as error:
            self.log.error("not reloaded: {error}", error=str(error))
            return
        await deferLater(self._reactor, BETWEEN_S)  # for a tick to come between
        if {*programs_of(config)} - {*programs_of(self.config)}:
            # Running a program to see whether it runs takes longer than a tick may.
            refused = await deferToThreadPool(
                self._reactor, self._reactor.getThreadPool(), unusable_in, config
            )
            if refused is not None:
                self.log.error("not reloaded: {mistake}", mistake=refused)
                return
        if not self.running:
            return
        started, now = (
            (c.interval_s, c.keep_intervals, c.api, c.api_token) for c in (self.config, config)
        )
        if started != now:
            self.log.warn("interval, keep and api take effect only when the collector is restarted")
        # Until all is known, what is probed goes by the configuration and the names of before.
        await self._names.look_up(_hosts(config), besides=_hosts(self.config))
        while self.running:
            known = dict(self._names.addresses)
            groups, sources = await self._slices.asked(self._planned(config, known))
            if known == self._names.addresses:
                self._take_up(config, groups, sources)
                await deferLater(self._reactor, BETWEEN_S)
                settle()  # lest the garbage collector does when the next interval begins
                return

    def _planned(
        self, config: CollectorConfig, known: Mapping[str, Sequence[str]]
    ) -> Job[tuple[Sequence[Group], dict[Way, str]]]:
        """Return what to probe by another configuration, and whence the kernel sends."""
        sources: dict[Way, str] = {}
        groups = yield from plan_slowly(
            config, known, partial(_source_address, sources, self._sources)
        )
        groups = yield from as_before(groups, self._groups)
        return groups, sources

    def _take_up(
        self, config: CollectorConfig, groups: Sequence[Group], sources: dict[Way, str]
    ) -> None:
        before = self.config, self._groups, self._sources
        self.config, self._groups, self._sources = config, groups, sources
        self._retry_s = RETRY_S
        try:
            self._probe()
        except Exception:
            self.config, self._groups, self._sources = before
            raise
        self._names.keep(_hosts(config))
        self.log.info(
            "{path} reloaded: takes effect when the next interval begins", path=config.path
        )
        self.say_notes()

    def _not_reloaded(self, failure: Any) -> None:
        if not self.running:  # that is our stop
            return
        self._names.keep(_hosts(self.config))
        self.log.failure("not reloaded, going on as before", failure=failure)

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
        if self._underway is not None:
            self._underway.cancel()
        self._slices.stop()
        self._names.stop()
        self._ticker.stop()
        self.timekeeper.stop()
        return self.prober.ended()

    def trouble(self) -> str:
        """Return what is the matter, if anything; else an empty text."""
        if not self.prober.tracks and _hosts(self.config):
            return "nothing is probed: no target could be so far; see the log"
        planned = {group.test for group in self._groups}
        for test in self.config.tests:
            if test.targets and test.name not in planned:
                return (
                    f"test {test.name} is not probed: no address of a target is known; see the log"
                )
        return self.timekeeper.trouble()

    def health(self) -> dict[str, Any]:
        """Return how the collector itself is doing; see `llama.collector.answers.exposition.Health`."""
        timekeeper, prober = self.timekeeper, self.prober
        return {
            "probes_sent_total": prober.sent,
            "replies_received_total": prober.received,
            "stranger_packets_total": prober.strangers,
            "receive_drops_total": prober.receive_drops,
            "damaged_packets_total": prober.damaged,
            "send_failures_total": dict(prober.failed_sends),
            "probes_skipped_total": prober.skipped,
            "probes_per_second": prober.probes_per_s,
            "intervals_unclosed_total": timekeeper.closer.unclosed,
            "tick_lag_seconds": max(timekeeper.lag_s, timekeeper.last_lag_s),
            "pairs": sum(len(track.pairs) for track in prober.tracks),
            "flows": sum(track.ledger.flows for track in prober.tracks),
            "groups_refused": len(timekeeper.refused),
            "names_failing": len(self._names.failing),
            "config_generation": timekeeper.generation,
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
