"""A collector that reads its file again: no probe waits for that, and what fails changes nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve
from collector_case import ServiceCase
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llama.collector import rereading
from llama.collector import service as service_module
from llama.collector.probing import plan
from llama.collector.probing.plan import AT_A_TIME, as_before, make_plan, plan_slowly
from llama.collector.rereading import RereadingError, read_again
from llama.collector.service import ProbingService
from llama.collector.tracing import BURST, RATE_PPS
from llama.config import CollectorConfig, ConfigErrors, SourcePort, Target, Test, load_collector


def config_of(*hosts: str) -> CollectorConfig:
    """A configuration of one test."""
    targets = tuple(Target(name=f"h{n}", host=host, port=9) for n, host in enumerate(hosts))
    ports = (SourcePort(name="any"),)
    return CollectorConfig(
        path="c.yaml", tests=(Test(name="t", targets=targets, source_ports=ports),)
    )


class ReloadTests(ServiceCase):
    """Reloads whose file is read by the test."""

    def setUp(self) -> None:
        """Have files read when the test says so."""
        self.readings: list[Deferred[CollectorConfig]] = []

        def read(*_: object) -> Deferred[CollectorConfig]:
            self.readings.append(Deferred())
            return self.readings[-1]

        self.patch(service_module, "read_again", read)

    def reloaded(self, service: ProbingService, config: CollectorConfig) -> None:
        """Reload, with this in the file."""
        service.reload()
        self.readings[-1].callback(config)
        self.go_on()

    def go_on(self) -> None:
        """Let the time pass that planning takes."""
        for _ in range(50):
            self.reactor.advance(0.01)

    def wanted(self, service: ProbingService) -> set[str]:
        """The addresses that are probed from the next interval on."""
        return {pair.dst_ip for group in service._groups for pair in group.pairs}

    def test_other_targets(self) -> None:
        """What the file says is probed from the next interval on; names that are gone are forgotten."""
        service = self.service("127.0.0.9", "host.example")
        self.reactor.advance(5)
        self.resolver.known["other.example"] = "127.0.0.8"
        self.reloaded(service, config_of("127.0.0.7", "other.example"))
        self.assertEqual(self.wanted(service), {"127.0.0.7", "127.0.0.8"})
        self.assertEqual(service._names.addresses.keys(), {"127.0.0.7", "other.example"})
        self.assertEqual(service._names.failing, set())

    def traces_pps(self, service: ProbingService) -> float:
        """How many packets of traces may leave in any second."""
        return service.tracing._rate_pps + service.tracing._most

    def test_traces_get_what_the_cap_leaves(self) -> None:
        """Traces have what is left beside the probes, of those to come as of those that are sent."""
        service = self.service("127.0.0.9")  # one probe a second
        self.assertEqual(self.traces_pps(service), RATE_PPS + BURST)
        for hosts, left in ((8, 20 - 8 * 1.05), (2, 20 - 8 * 1.05), (2, 20 - 2 * 1.05)):
            some = evolve(config_of(*(f"127.0.0.{n + 1}" for n in range(hosts))), max_pps=20.0)
            tests = tuple(evolve(test, rate_pps=1.0) for test in some.tests)
            self.reloaded(service, evolve(some, tests=tests))
            self.assertAlmostEqual(self.traces_pps(service), left)
            service.timekeeper._begin_window(
                service.timekeeper._end_ns + 1, service.timekeeper._now_s()
            )

    def test_a_plan_that_fails_changes_nothing(self) -> None:
        """Neither the configuration nor any address is another then: the next plan is as before."""

        def fault(*_: object) -> Iterator[None]:
            yield None
            raise ZeroDivisionError

        service = self.service("127.0.0.9")
        config = service.config
        self.patch(service_module, "plan_slowly", fault)
        self.reloaded(service, config_of("127.0.0.7"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(service.config, config)
        self.assertEqual(service._names.addresses.keys(), {"127.0.0.9"})
        service._replan()
        self.assertEqual(self.wanted(service), {"127.0.0.9"})

    def test_groups_that_cannot_be_used_change_nothing(self) -> None:
        """The same holds of a fault in what takes the plan up."""
        service = self.service("127.0.0.9")
        config = service.config
        use = service.timekeeper.use
        self.patch(service.timekeeper, "use", lambda _: 1 // 0)
        self.reloaded(service, config_of("127.0.0.7"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(service.config, config)
        self.assertEqual(service._names.addresses.keys(), {"127.0.0.9"})
        self.assertEqual(self.wanted(service), {"127.0.0.9"})
        self.patch(service.timekeeper, "use", use)

    def test_one_after_the_other(self) -> None:
        """Two reloads do not get into each other's way; a third adds nothing to a second that waits."""
        service = self.service("127.0.0.9")
        for _ in range(3):
            service.reload()
        self.assertEqual(len(self.readings), 1)
        self.readings[0].callback(config_of("127.0.0.7"))
        self.go_on()
        self.assertEqual(len(self.readings), 2)
        self.assertEqual(self.wanted(service), {"127.0.0.7"})
        self.readings[1].callback(config_of("127.0.0.6"))
        self.go_on()
        self.assertEqual(len(self.readings), 2)
        self.assertEqual(self.wanted(service), {"127.0.0.6"})

    def test_an_address_that_changes_meanwhile(self) -> None:
        """What becomes known of names while the plan is made is in it."""
        service = self.service("127.0.0.9")
        self.resolver.known["host.example"] = "127.0.0.8"
        service.reload()
        self.readings[0].callback(config_of(*["host.example"] * 3 * AT_A_TIME))
        self.reactor.advance(service_module.BETWEEN_S)
        self.reactor.advance(0)
        service._names._found(["127.0.0.5"], "host.example")
        self.go_on()
        self.assertEqual(self.wanted(service), {"127.0.0.5"})

    def test_stopped_meanwhile(self) -> None:
        """A collector that stops reads and plans nothing any more, and complains of nothing."""
        service = self.service("127.0.0.9")
        service.reload()
        service.stopService()
        self.go_on()
        self.assertTrue(self.readings[0].called)
        self.assertEqual(self.wanted(service), {"127.0.0.9"})


class SliceTests(SynchronousTestCase):
    """Planning ten thousand targets, between two probes and the next."""

    def test_so_many_at_a_time(self) -> None:
        """A plan is made bit by bit, and is the same as if it were made at once."""
        hosts = [f"10.0.{n >> 8}.{n & 255}" for n in range(5 * AT_A_TIME + 1)]
        config, known = config_of(*hosts), {host: (host,) for host in hosts}
        asked = 0

        def source_address(*_: object) -> str:
            nonlocal asked
            asked += 1
            return "127.0.0.1"

        wanted = make_plan(config, known, source_address)
        self.assertEqual(asked, len(hosts))
        planning, most = plan_slowly(config, known, source_address), 0
        while True:
            asked = 0
            try:
                next(planning)
            except StopIteration as end:
                groups = end.value
                break
            most = max(most, asked)
        self.assertEqual(most, AT_A_TIME)
        self.assertTrue(plan.same_groups(groups, wanted))

    def test_pairs_that_stay(self) -> None:
        """They are the very same as before, which is soon found when the plan is taken up."""
        hosts = [f"10.0.{n >> 8}.{n & 255}" for n in range(2 * AT_A_TIME + 1)]
        known = {host: (host,) for host in [*hosts, "10.9.9.9"]}
        groups = make_plan(config_of(*hosts), known, lambda *_: "127.0.0.1")
        others = make_plan(config_of("10.9.9.9", *hosts[1:]), known, lambda *_: "127.0.0.1")
        planning, bits = as_before(others, groups), 0
        while True:
            try:
                next(planning)
            except StopIteration as end:
                found = end.value
                break
            bits += 1
        self.assertEqual(bits, 7)
        self.assertTrue(plan.same_groups(found, others))
        same = [one is other for one, other in zip(groups[0].pairs, found[0].pairs, strict=True)]
        self.assertEqual(same, [False] + [True] * 2 * AT_A_TIME)


class ReadingTests(TestCase):
    """The process that reads a file."""

    def write(self, text: str) -> str:
        """Return the path of such a file."""
        path = Path(self.mktemp())
        path.write_text(text)
        return str(path)

    async def test_same(self) -> None:
        """What it gives is what would be read here; equal tags have equal hashes."""
        path = self.write("127.0.0.9: {rack: '1'}\nhost.example: {}\n")
        here, there = load_collector(path), await read_again(reactor, path)
        self.assertEqual(there, here)
        self.assertEqual(hash(there.tests), hash(here.tests))

    async def test_mistakes(self) -> None:
        """Mistakes in the file are what it fails with, that it ends amid a line among them."""
        wrong = await self.assertFailure(read_again(reactor, self.write("a: {}")), ConfigErrors)
        self.assertIn(":1: ends amid a line", str(wrong))

    async def test_no_answer(self) -> None:
        """A process that fails is told of."""
        self.patch(rereading.sys, "executable", "/bin/false")
        wrong = await self.assertFailure(read_again(reactor, "a"), RereadingError)
        self.assertIn("it could not be read: ", str(wrong))

    async def test_cancelled(self) -> None:
        """Who does not want it any more has the process ended: this one would wait for ever."""
        path = self.mktemp()
        subprocess.run(["mkfifo", path], check=True)
        ended: Deferred[None] = Deferred()
        self.patch(rereading._Reader, "processEnded", lambda *_: ended.callback(None))
        reading = read_again(reactor, path)
        reading.cancel()
        await self.assertFailure(reading, CancelledError)
        await ended.addTimeout(30, reactor)
