"""`ScraperService`: poller, spool, writers and API in one Twisted service."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredLock, gatherResults, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from llama.config import ScraperConfig, WriterConfig
from llama.http.client import agent_of, connection_pool
from llama.http.server import HttpService
from llama.scraper import api
from llama.scraper.buffer import Chunk, MemorySpool, Spool
from llama.scraper.counts import Counts
from llama.scraper.delivery import Delivery
from llama.scraper.poll import Poller
from llama.scraper.spool import DiskSpool
from llama.scraper.spool_file import see_whose
from llama.scraper.writers import WriterConfigError, make_writers

#: Seconds that writes under way are given when the service stops.
GRACE_S = 5.0
#: Seconds for which a connection to a collector is kept for its next question: that of a backlog. With
#: thousands of collectors most of those that wait for the next turn would be open files for nothing.
CACHED_S = 5
#: Seconds between looks for chunks that are too old.
EXPIRE_EVERY_S = 30.0
#: Part of what the spool may hold, or of the time that points may wait, from which on this is said.
HALF = 0.5


class ScraperService(MultiService):
    """Moves closed intervals from collectors to databases while it runs.

    Raises `WriterConfigError` when what the configuration says of a writer is wrong, and
    `ForeignFileError` when the spool's file is something else. It may be part of any process: it
    uses ``reactor`` alone, and ``unix_time_s`` for the time of day. One that cannot start stops it.
    With Twisted's own reactor that process should call `llama.net.reactor.prepare` first.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: ScraperConfig,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.config = config
        self._unix_time_s = unix_time_s
        #: Called before the reactor is stopped because the scraper cannot start.
        self.failing: Callable[[], None] = lambda: None
        self.counts = Counts()
        self.spool = _spool(reactor, config, unix_time_s)
        self.spool.dropped = self._dropped
        self.spool.found = self._taken
        self.deliveries: dict[str, Delivery] = {}
        self.http: HttpService | None = None
        self._reactor = reactor
        self._pool = connection_pool(reactor)
        self._pool.cachedConnectionTimeout = CACHED_S
        self.poller = self._make_poller(config)
        self._writers = dict(zip(config.writers, make_writers(reactor, config), strict=True))
        for writer in self._writers.values():
            self._add(writer)
        self._expiry = LoopingCall(self._look_after_spool)
        self._expiry.clock = reactor
        self._unsaid: dict[str, tuple[int, int]] = {}  # dropped, not yet logged: points, chunks
        self._said: set[str] = set()  # reasons logged lately
        self._said_filling = False
        self._starting: Deferred[None] = succeed(None)
        self._leaving: dict[str, Delivery] = {}  # those that a reload takes away, by name
        self._endings: list[Deferred[None]] = []  # theirs
        self._reloading = DeferredLock()  # held while a configuration is applied
        if config.api:
            self.http = HttpService(
                reactor, config.api, api.root(self), what="llama-scraper", token=config.api_token
            )
            self.http.setServiceParent(self)

    def now_s(self) -> float:
        """Return Unix time."""
        return self._unix_time_s()

    def startService(self) -> None:
        """Open the spool; then deliver what it holds and ask the collectors."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> None:
        self._log.failure("the scraper cannot start, and ends", failure)
        if self.running:  # it would live and do nothing
            self.failing()
            self._reactor.callWhenRunning(self._reactor.stop)  # it may be about to run

    async def _start(self) -> None:
        for note in self.config.notes:
            self._log.warn("{note}", note=str(note))
        await self.spool.open(list(self.deliveries))
        if not self.running:
            return
        chunks = list(self.spool.chunks.values())
        if chunks:
            self._log.info(
                "{points} points in {chunks} chunks are left from an earlier run",
                points=sum(chunk.points for chunk in chunks),
                chunks=len(chunks),
            )
        for name, delivery in self.deliveries.items():
            delivery.start(chunk for chunk in chunks if name in chunk.waiting)
        self._log.info(
            "asking {collectors} collectors every {interval:g} s, writing to {writers}",
            collectors=len(self.config.collectors),
            interval=self.config.interval_s,
            writers=", ".join(self.deliveries),
        )
        self._expiry.start(EXPIRE_EVERY_S)
        self.poller.set_collectors(self.config.collectors)

    def stopService(self) -> Deferred[None]:
        """Stop asking, let writes under way end, and close everything; the spool keeps the rest."""
        stopped = super().stopService() or succeed(None)
        return gatherResults([stopped, Deferred.fromCoroutine(self._stop())]).addCallback(
            lambda _: None
        )

    async def _stop(self) -> None:
        await self.poller.stop()
        if self._expiry.running:
            self._expiry.stop()
        ending = [delivery.stop(GRACE_S) for delivery in self.deliveries.values()]
        for ended in ending + self._endings:
            await ended
        if self.config.spool is None:
            self._say_given_up()
        await self.spool.close()
        await self._starting
        await self._pool.closeCachedConnections()

    def _say_given_up(self) -> None:
        """Say what ends with this process, which has no disk to leave it on."""
        chunks = list(self.spool.chunks.values())
        if not chunks:
            return
        self._log.error(
            "{points} points of the last {minutes:.0f} minutes that {writers} did not take end with this"
            " process; only what the collectors still hold is fetched anew: configure a 'spool' on disk",
            points=sum(chunk.points for chunk in chunks),
            minutes=self.spool.age_s / 60,
            writers=", ".join(sorted({name for chunk in chunks for name in chunk.waiting})),
        )

    def reload(self, config: ScraperConfig) -> Deferred[None]:
        """Apply the difference to a new configuration, after those that are still being applied.

        Fails with `WriterConfigError`, having changed nothing, when a writer's section or the CA
        file is wrong. Spool and API stay as they are; what they would need a restart for is said.
        """
        applied: Deferred[None] = self._reloading.run(
            lambda: Deferred.fromCoroutine(self._apply(config))
        )
        return applied

    async def _apply(self, config: ScraperConfig) -> None:
        await self._starting
        if not self.running:
            return
        old = self.config
        poller = self.poller if _asking(old) == _asking(config) else self._make_poller(config)
        sections = [s for s in config.writers if s not in self._writers]
        kept = {s: w for s, w in self._writers.items() if s in config.writers}
        made = dict(
            zip(sections, make_writers(self._reactor, _only(config, sections)), strict=True)
        )
        names = [w.name for w in (*kept.values(), *made.values())]
        if clash := [name for name in names if names.count(name) > 1]:
            raise WriterConfigError(f"{config.path}: two writers are named {clash[0]!r}")
        for section in [s for s in self._writers if s not in kept]:
            name = self._writers.pop(section).name
            self._leaving[name] = self.deliveries.pop(name)
        self._endings = [delivery.stop(GRACE_S) for delivery in self._leaving.values()]
        for ended in self._endings:
            await ended
        if not self.running:
            return
        await self.spool.set_writers(names)
        self._leaving, self._endings = {}, []
        if not self.running:
            return
        for section, writer in made.items():
            self._writers[section] = writer
            self._add(writer)
            # One that had this name before, with another password say, may have left some.
            left = [c for c in self.spool.chunks.values() if writer.name in c.waiting]
            self.deliveries[writer.name].start(left)
        if poller is not self.poller:
            stay = [url for url in self.poller.collectors if url in config.collectors]
            self.poller.set_collectors(stay)
            await self.poller.stop()
            if not self.running:
                return
            self.poller = poller
        self.poller.set_collectors(config.collectors)
        self.config = config
        for what in ("spool", "api", "api_token"):
            if getattr(old, what) != getattr(config, what):
                self._log.warn("a new {what!r} needs a restart of the scraper", what=what)
        self._log.info(
            "configuration {path} is in force: {collectors} collectors, {writers} writers",
            path=config.path,
            collectors=len(config.collectors),
            writers=len(self.deliveries),
        )

    def _make_poller(self, config: ScraperConfig) -> Poller:
        try:
            agent = agent_of(self._reactor, self._pool, config.timeout_s, config.ca_file)
        except ValueError as error:
            raise WriterConfigError(f"{config.path}: {error}") from None
        return Poller(
            self._reactor,
            agent,
            self.spool,
            self.counts,
            self._taken,
            interval_s=config.interval_s,
            timeout_s=config.timeout_s,
            concurrency=config.concurrency,
            token=config.collector_token,
            unix_time_s=self._unix_time_s,
        )

    def _add(self, writer: Any) -> None:
        self.deliveries[writer.name] = Delivery(writer, self._reactor, self.spool, self.counts)

    def _taken(self, chunks: Sequence[Chunk]) -> None:
        for name, delivery in self.deliveries.items():
            delivery.offer(chunk for chunk in chunks if name in chunk.waiting)

    def _dropped(self, reason: str, chunk: Chunk) -> None:
        """Let every writer that lacks a chunk know that it is gone, and say so."""
        for name in chunk.waiting:
            if delivery := self.deliveries.get(name) or self._leaving.get(name):
                delivery.forget(reason, chunk)
            else:  # it is not configured any more
                self.counts.dropped.labels(name, reason).inc(chunk.points)
        points, chunks = self._unsaid.get(reason, (0, 0))
        self._unsaid[reason] = points + chunk.points, chunks + 1
        if reason not in self._said:
            self._say_dropped()

    def _say_dropped(self) -> None:
        """Say what has been dropped and not yet said: the first of it at once, then now and then."""
        self._said = set(self._unsaid)
        for reason, (points, chunks) in self._unsaid.items():
            self._log.error(
                "{points} points in {chunks} chunks were dropped before all writers had them:"
                " {reason}",
                points=points,
                chunks=chunks,
                reason=_REASONS[reason],
            )
        self._unsaid = {}

    def _look_after_spool(self) -> Deferred[None]:
        self._say_dropped()
        self._say_filling()
        return self.spool.expire()

    def _say_filling(self) -> None:
        """Say that the spool is half full, or what is in it half as old as may be, before it drops."""
        spool = self.spool
        full, old = spool.octets / spool.max_octets, spool.age_s / spool.max_age_s
        if max(full, old) < HALF / 2:
            self._said_filling = False
        if max(full, old) < HALF or self._said_filling:
            return
        self._said_filling = True
        left_s = min(spool.age_s * (1 / full - 1), spool.max_age_s - spool.age_s)
        self._log.error(
            "{full:.0%} of the spool is taken, and the oldest points wait for {age:.1f} hours: in some"
            " {left:.1f} hours the first will be dropped, unless {writers} can write by then",
            full=full,
            age=spool.age_s / 3600,
            left=left_s / 3600,
            writers=", ".join(
                f"{name} ({delivery.trouble or 'which is behind'})"
                for name, delivery in self.deliveries.items()
                if delivery.waiting[0]
            ),
        )


_REASONS = {
    "full": "the spool has reached its size",
    "too_old": "they waited for longer than the spool keeps them",
    "damaged": "the spool was damaged, or its file removed",
    "writer_removed": "no such writer is configured any more",
}


def _spool(reactor: Any, config: ScraperConfig, unix_time_s: Callable[[], float]) -> Spool:
    if config.spool is None:
        return MemorySpool(seconds=reactor.seconds)
    see_whose(config.spool.path)
    return DiskSpool(
        reactor, config.spool.path, config.spool.max_bytes, config.spool.max_age_s, unix_time_s
    )


def _asking(config: ScraperConfig) -> tuple[object, ...]:
    """Return what a poller is made of."""
    return (
        config.interval_s,
        config.timeout_s,
        config.concurrency,
        config.collector_token,
        config.ca_file,
    )


def _only(config: ScraperConfig, sections: Sequence[WriterConfig]) -> ScraperConfig:
    """Return a configuration with only these writers."""
    return evolve(config, writers=tuple(sections))
