"""A collector whose names do not all resolve: it probes what it can, and says what it cannot."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from collector_case import Resolver, ServiceCase
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher

from llama.collector.answers.history import History
from llama.collector.names import Names
from llama.collector.service import ProbingService


class DeadResolverTests(ServiceCase):
    """The DNS is down, as it is at three in the morning."""

    def test_addresses_do_not_wait_for_names(self) -> None:
        """What needs no look-up is probed though not one name is answered for."""
        service = self.service("127.0.0.9", *(f"host{n}.example" for n in range(100)))
        self.assertIn("nothing is probed", service.trouble())
        self.reactor.advance(Names.timeout_s)
        self.assertEqual(self.probed(service), {"127.0.0.9"})
        self.assertEqual(service.trouble(), "")

    def test_nothing_known_is_said(self) -> None:
        """With no address at all nothing is probed, and the status says so until it is."""
        service = self.service("host.example")
        self.reactor.advance(Names.timeout_s)
        self.assertEqual(self.probed(service), set())
        self.assertIn("no target", service.trouble())
        self.resolver.known["host.example"] = "127.0.0.8"
        for _ in range(13):
            self.reactor.advance(5)
        self.assertEqual(self.probed(service), {"127.0.0.8"})
        self.assertEqual(service.trouble(), "")

    def test_what_becomes_of_a_name_is_said(self) -> None:
        """The log has every address that is probed in place of another, of each family, once."""
        told: list[str] = []

        def tell(event: Any) -> None:
            told.append(formatEvent(event))

        globalLogPublisher.addObserver(tell)
        self.addCleanup(globalLogPublisher.removeObserver, tell)
        resolver, reactor = Resolver(), MemoryReactorClock()
        reactor.nameResolver = resolver
        names = Names(reactor, lambda: None)
        self.addCleanup(names.stop)
        for known, said in (
            ("127.0.0.8 ::8", []),
            ("127.0.0.7 127.0.0.8 ::8", []),  # what is probed is still there
            ("127.0.0.7 ::8", ["host.example is now ::8, 127.0.0.7, and was 127.0.0.8, ::8"]),
            ("127.0.0.7", ["host.example is now 127.0.0.7, and was ::8, 127.0.0.7"]),
            ("127.0.0.7 ::8", ["host.example is now 127.0.0.7, ::8, and was 127.0.0.7"]),
            ("", ["host.example does not resolve: going on with 127.0.0.7, ::8"]),
            ("", []),
            ("::8 127.0.0.6", ["host.example resolves again: ::8, 127.0.0.6"]),
        ):
            resolver.known["host.example"] = known
            if names.addresses:
                reactor.advance(60)
            else:
                self.successResultOf(names.look_up(["host.example"]))
            self.assertEqual(told, said)
            told.clear()

    def test_nothing_known_of_a_whole_test(self) -> None:
        """Nor is that well, though another test is probed."""
        config = self.service("127.0.0.9").config
        (probed,) = config.tests
        target = evolve(probed.targets[0], host="host.example")
        tests = probed, evolve(probed, name="other", targets=(target,))
        service = ProbingService(self.reactor, evolve(config, tests=tests), History(2))
        service.startService()
        self.addCleanup(service.stopService)
        self.reactor.advance(Names.timeout_s)
        told = "test other is not probed: no address of a target is known; see the log"
        self.assertEqual(service.trouble(), told)
        self.resolver.known["host.example"] = "127.0.0.8"
        for _ in range(13):
            self.reactor.advance(5)
        self.assertEqual(service.trouble(), "")

    def test_all_known_is_planned_at_once(self) -> None:
        """Names that are answered for are probed without a pause, in one plan."""
        service = self.service("127.0.0.9")
        self.assertEqual(self.probed(service), {"127.0.0.9"})
        self.assertEqual(service.timekeeper.generation, 1)
        self.assertEqual([c for c in self.reactor.getDelayedCalls() if "meanwhile" in str(c)], [])
