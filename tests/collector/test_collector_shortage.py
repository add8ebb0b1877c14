"""A collector that does not get the sockets it wants: it probes what it can, and does not give up."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from typing import Any

from attrs import evolve
from timekeeper_case import TimekeeperCase
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from llama.collector import service as service_module
from llama.collector.answers.history import History
from llama.collector.probing.sockets import SPARE_FILES
from llama.collector.service import ProbingService
from llama.config import CollectorConfig, SourcePort, Target, Test
from llama.http.server import CannotListen
from llama.net import route
from llama.net.ticker import Ticker


def open_files() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class FilesTests(TimekeeperCase):
    """More sockets wanted than this process may have open."""

    def limit(self, more: int) -> None:
        """Allow so many descriptors more than there are now."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, before[1]))

    def test_what_is_refused_keeps_nothing(self) -> None:
        """Sockets opened for a test that cannot be probed are closed at once; others go on."""
        self.timekeeper.use([self.group()])
        big = evolve(self.group(ports=300), test="big", sources=tuple(
            evolve(source, owner=f"big{n}") for n, source in enumerate(self.group(ports=300).sources)
        ))  # fmt: skip
        self.limit(SPARE_FILES + 20)
        before = open_files()
        for _ in range(2):
            [(group, reason)] = self.timekeeper.use([self.group(), big])
            self.assertEqual((group.test, reason.strerror), ("big", "Too many open files"))
            self.assertEqual(open_files(), before)
        self.assertEqual(len(self.prober.sockets), 2)
        row = self.newest(2).pair_stats[0]
        self.assertEqual((row["lost"], row["sent"] > 0), (0, True))

    def test_others_find_some_left(self) -> None:
        """Probing that takes all it can get leaves descriptors to HTTP and whatever else."""
        self.limit(SPARE_FILES + 20)
        group = self.group(ports=300)
        [(_, _)] = self.timekeeper.use([group])
        for source in group.sources[:10]:
            self.prober.open(source)
        others = [socket.socket() for _ in range(SPARE_FILES // 2)]
        for sock in others:
            sock.close()


class RetryTests(SynchronousTestCase):
    """A source port that somebody else has."""

    def setUp(self) -> None:
        """Take a port, and have a collector probe from it, besides from others."""
        self.taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.taken.close)
        self.taken.bind(("0.0.0.0", 0))
        self.settled: list[None] = []
        self.patch(service_module, "settle", lambda: self.settled.append(None))
        target = Target(name="x", host="127.0.0.9", port=9)
        ports = {"good": 0, "bad": self.taken.getsockname()[1]}
        tests = tuple(
            Test(name=name, targets=(target,), port_group=name,
                 source_ports=(SourcePort(name=name, number=number),))
            for name, number in ports.items()
        )  # fmt: skip
        self.reactor = MemoryReactorClock()
        config = CollectorConfig(path="", tests=tests)
        self.service = ProbingService(self.reactor, config, History(2))
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def probed(self) -> set[str]:
        """The names of the tests that are probed, when the next interval has begun."""
        self.service.timekeeper._end_ns = 1
        self.service.timekeeper.tick()
        return {track.group.test for track in self.service.prober.tracks}

    def test_a_test_refused_for_ever_disturbs_nothing(self) -> None:
        """It is asked for again, ever more seldom, and nothing is planned or arranged for that."""
        asked: list[float] = []
        use = self.service.timekeeper.use

        def counted(groups: Any) -> Any:
            asked.append(self.reactor.seconds())
            return use(groups)

        self.patch(self.service.timekeeper, "use", counted)
        self.patch(service_module, "make_plan", None)
        with capturedLogs() as said:
            for _ in range(40):
                self.reactor.advance(10)
                self.assertEqual(self.probed(), {"good"})
        self.assertEqual(asked, [10.0, 30.0, 70.0, 150.0, 270.0, 390.0])
        self.assertEqual((self.service.timekeeper.generation, len(self.settled)), (1, 1))
        self.assertEqual([event for event in said if "does not probe" in str(event)], [])

    def test_it_is_probed_once_it_can_be(self) -> None:
        """When the port is free the test is taken up with the next interval, and that is a change."""
        self.taken.close()
        self.reactor.advance(10)
        self.assertEqual(self.probed(), {"good", "bad"})
        self.assertEqual((self.service.timekeeper.generation, len(self.settled)), (2, 2))
        self.assertEqual([c for c in self.reactor.getDelayedCalls() if "_probe" in str(c)], [])

    def test_it_is_told(self) -> None:
        """As long as nothing of a test is probed that is trouble, though others are."""
        self.assertEqual(self.probed(), {"good"})
        told = "test bad is not probed: Address already in use; see the log"
        self.assertEqual(self.service.trouble(), told)
        self.assertEqual(self.service.health()["groups_refused"], 1)
        self.taken.close()
        self.reactor.advance(10)
        self.assertEqual(self.probed(), {"good", "bad"})
        self.assertEqual(self.service.trouble(), "")
        self.assertEqual(self.service.health()["groups_refused"], 0)

    def test_an_error_does_not_end_the_trying(self) -> None:
        """Whatever goes wrong with one attempt, there is another."""
        use = self.service.timekeeper.use
        self.patch(self.service.timekeeper, "use", lambda _: 1 // 0)
        self.assertRaises(ZeroDivisionError, self.reactor.advance, 10)
        self.service.timekeeper.use = use  # type: ignore[method-assign]
        self.taken.close()
        self.reactor.advance(20)
        self.assertEqual(self.probed(), {"good", "bad"})


class LimitTests(SynchronousTestCase):
    """What is done about the limit."""

    def test_no_timer(self) -> None:
        """Without a timer nothing would ever be probed: the collector does not start."""

        def refuse(_: Ticker) -> None:
            raise OSError(24, "Too many open files")

        self.patch(Ticker, "open", refuse)
        config = CollectorConfig(path="", tests=())
        service = ProbingService(MemoryReactorClock(), config, History(2))
        wrong = self.assertRaises(CannotListen, service.startService)
        said = "llama-collector: no timer to be had: Too many open files"
        self.assertEqual(str(wrong), said)

    def test_no_socket_is_no_route(self) -> None:
        """Where no socket can be had to ask, whence the kernel would send is not known."""

        def refuse(*_: object) -> None:
            raise OSError(24, "Too many open files")

        self.patch(route.socket, "socket", refuse)
        self.assertIsNone(route.local_address("192.0.2.1"))

    def test_soft_limit_is_raised(self) -> None:
        """The limit that needs no privilege is raised to the one that does."""
        script = "import resource, sys; from llama.process import raise_open_files\n"
        script += "resource.setrlimit(resource.RLIMIT_NOFILE, (80, 500)); raise_open_files()\n"
        script += "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        self.assertEqual(said.stdout.strip(), "(500, 500)", said.stderr)
