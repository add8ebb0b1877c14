"""What tests with peers that are not ours have in common: those programs, and a reflector of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from llama.collector.answers.history import Held, History
from llama.collector.intervals.summary import ClosedInterval
from llama.collector.service import ProbingService
from llama.config import CollectorConfig, ReflectorConfig
from llama.reflector.service import PortService

PEERS = Path(__file__).parent.parent / "peers"


class _Running(ProcessProtocol):
    """A peer reflector: ``port`` fires with the port that it prints, ``ended`` when it has ended."""

    def __init__(self) -> None:
        self.port: Deferred[int] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.said = self.errors = b""

    def outReceived(self, data: bytes) -> None:
        self.said += data
        if b"\n" in self.said and not self.port.called:
            self.port.callback(int(self.said))

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Any) -> None:
        if not self.port.called:
            self.port.errback(AssertionError(self.errors.decode()))
        if reason.check(ProcessDone):
            self.ended.callback(None)
        else:
            self.ended.errback(AssertionError(self.errors.decode()))


class PeersCase(TestCase):
    """Starts what a test needs and ends it with the test."""

    timeout = 60

    async def peer_reflector(self, kind: str, key: str = "", lose: int = 0) -> int:
        """Start a reflector that is not ours, which loses every ``lose``-th probe; return its port."""
        running = _Running()
        process = reactor.spawnProcess(
            running, sys.executable,
            [sys.executable, str(PEERS / "reflector.py"), kind, key, str(lose)], None,
        )  # fmt: skip

        def end() -> Deferred[None]:
            if not running.ended.called:
                process.closeStdin()
            return running.ended

        self.addCleanup(end)
        return await running.port

    async def peer_sender(self, **want: Any) -> dict[str, Any]:
        """Run a sender that is not ours to its end; return what it says."""
        [said] = await self.peer_senders([want])
        return said

    async def peer_senders(self, wants: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run senders that are not ours, one after the other; return what each says."""
        wants = [{"host": "127.0.0.1", **want} for want in wants]
        out, errors, code = await getProcessOutputAndValue(
            sys.executable, [str(PEERS / "sender.py"), json.dumps(wants)], None
        )
        self.assertEqual(0, code, errors.decode())
        said: list[dict[str, Any]] = json.loads(out)
        return said

    def collector(
        self, config: CollectorConfig
    ) -> tuple[list[ClosedInterval], ProbingService, Deferred[None]]:
        """Start probing; return the intervals as they close, the service, and a Deferred.

        That fires with the first interval of the third window.
        """
        history = History(config.keep_intervals)
        intervals: list[ClosedInterval] = []
        enough: Deferred[None] = Deferred()

        def closed(held: Held) -> None:
            intervals.append(held.closed)
            if len({each.start_ns for each in intervals}) > 2 and not enough.called:
                enough.callback(None)

        history.observers.append(closed)
        service = ProbingService(reactor, config, history)
        service.startService()
        self.addCleanup(service.stopService)
        return intervals, service, enough

    def reflector(self, batched: bool | None = None, **config: Any) -> PortService:
        """Start a reflector of ours on a free port of 127.0.0.1, or of ``addresses``."""
        config.setdefault("addresses", ("127.0.0.1",))
        service = PortService(reactor, ReflectorConfig(port=0, **config), batched=batched)
        service.startService()
        self.addCleanup(service.stopService)
        return service
