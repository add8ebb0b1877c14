"""Services that go on when the wall clock is set: timers by another clock, stamps by Unix time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

from servers import free_udp_port
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, LoopingCall
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.slices import Job, Slices
from llama.net.steady import count_steadily
from llama.scraper.buffer import MemorySpool
from llama.scraper.counts import Counts
from llama.scraper.delivery import Delivery
from llama.scraper.phase import Phase
from llama.scraper.poll import CollectorPoll, Poller
from llama.scraper.spool import DiskSpool
from llama.scraper.writers.options import Options
from llama.scraper.writers.sqlite import SQLiteWriter
from llama.web.answers import Answers
from llama.web.flows import CollectorFlows
from llama.web.shared import SharedAnswers
from llama.web.stores.influxdb import InfluxDBStore
from llama.web.stores.prometheus import PrometheusStore
from llama.web.stores.sqlite import SQLiteStore

HOUR_S = 3600.0
BEGIN_S = 1_700_000_010.0


class Timers(ReactorBase):
    """Twisted's own timers, without sockets, and with a wall clock that the test sets."""

    def __init__(self, began_s: float = BEGIN_S, booted_s: float = 1000.0) -> None:
        super().__init__()
        self.monotonic = Clock()
        self.monotonic.advance(booted_s)
        self.wall_s = began_s
        self.seconds = lambda: self.wall_s  # type: ignore[method-assign]

    def installWaker(self) -> None:
        """Have none: nothing sleeps."""

    def keep_steady(self) -> None:
        """Do what all our programs do."""
        count_steadily(self, self.monotonic.seconds)

    def pass_time(self, seconds: float) -> None:
        """Let time pass on both clocks, and run what is due."""
        for _ in range(round(seconds * 100)):
            self.monotonic.advance(0.01)
            self.wall_s += 0.01
            self.runUntilCurrent()


class TimersTests(SynchronousTestCase):
    """What happens to a reactor's calls."""

    def setUp(self) -> None:
        """Begin with nothing called."""
        self.called: list[Any] = []

    def test_what_waits_already_comes_when_it_would(self) -> None:
        """Calls made before keep their order and their wait, wherever either clock stands."""
        for began_s in (BEGIN_S, 0.0):  # 0: a host that does not know the time when it boots
            reactor = Timers(began_s)
            called: list[Any] = []
            calls = [reactor.callLater(n, called.append, n) for n in (3, 1, 2, 4, 5)]
            reactor.runUntilCurrent()  # which sorts them
            reactor.callLater(2.5, called.append, 2.5)
            calls[0].cancel()
            calls[3].delay(3)
            calls[4].reset(1.5)
            reactor.keep_steady()
            reactor.wall_s -= HOUR_S
            reactor.runUntilCurrent()
            timeout = reactor.timeout()
            assert timeout is not None
            self.assertAlmostEqual(timeout, 1.0)
            reactor.pass_time(2.2)
            self.assertEqual(called, [1, 5, 2])
            calls[3].reset(0.1)
            reactor.pass_time(1)
            self.assertEqual(called, [1, 5, 2, 4, 2.5])
            self.assertEqual(reactor.getDelayedCalls(), [])

    def test_again_changes_nothing(self) -> None:
        """Two services in one process both ask for it."""
        reactor = Timers()
        reactor.keep_steady()
        reactor.callLater(1, self.called.append, 1)
        reactor.keep_steady()
        reactor.pass_time(0.9)
        self.assertEqual(self.called, [])
        reactor.pass_time(0.2)
        self.assertEqual(self.called, [1])

    def test_set_forward_calls_nothing_early(self) -> None:
        """An hour that did not pass does not make everything due at once."""
        reactor = Timers()
        reactor.keep_steady()
        reactor.callLater(HOUR_S, self.called.append, 1)
        reactor.wall_s += HOUR_S
        reactor.pass_time(1)
        self.assertEqual(self.called, [])


class SetBackTests(SynchronousTestCase):
    """What has no thought of clocks of its own goes on when the wall clock is set back by an hour."""

    def setUp(self) -> None:
        """Begin at some time of day."""
        self.reactor = Timers()
        self.reactor.keep_steady()

    def set_back(self) -> None:
        """Set the wall clock back."""
        self.reactor.wall_s -= HOUR_S

    def test_slices(self) -> None:
        """A job that was begun comes to its end, and another after it."""
        slices = Slices(self.reactor)

        def job() -> Job[str]:
            for _ in range(5):
                yield None
            return "done"

        begun = slices.background(job())
        self.reactor.pass_time(0.02)
        self.set_back()
        self.reactor.pass_time(0.2)
        self.assertEqual(self.successResultOf(begun), "done")
        asked = slices.asked(job())
        self.reactor.pass_time(0.2)
        self.assertEqual(self.successResultOf(asked), "done")

    def test_periods(self) -> None:
        """What is done every second is, and none counts as missed."""
        counts: list[int] = []
        call = LoopingCall.withCount(counts.append)
        call.clock = self.reactor
        call.start(1.0)
        self.reactor.pass_time(2.5)
        self.set_back()
        self.reactor.pass_time(3.0)
        self.assertEqual(counts, [1] * 6)

    def test_answers_that_are_shared(self) -> None:
        """What is good for a second is asked for again after one."""
        shared, asked = SharedAnswers(self.reactor, 6), []

        def ask() -> Deferred[int]:
            asked.append(1)
            return succeed(len(asked))

        self.successResultOf(shared.get("newest", 1.0, ask))
        self.set_back()
        self.assertEqual(self.successResultOf(shared.get("newest", 1.0, ask)), 1)
        self.reactor.pass_time(1.1)
        self.assertEqual(self.successResultOf(shared.get("newest", 1.0, ask)), 2)

    def test_a_writer_that_waits(self) -> None:
        """A database that was away is tried again after seconds, not after an hour."""
        opened: list[int] = []

        class Away:
            name = "db"

            def open(self) -> Deferred[None]:
                opened.append(1)
                raise OSError("it is away")

        spool = MemorySpool()
        spool.open(["db"])
        delivery = Delivery(Away(), self.reactor, spool, Counts())
        delivery.start([])
        self.reactor.pass_time(0.1)
        self.set_back()
        before = len(opened)
        self.reactor.pass_time(30)
        self.assertGreater(len(opened), before)


class UnixTimeTests(SynchronousTestCase):
    """Stamps are of Unix time, whatever the reactor counts by."""

    def setUp(self) -> None:
        """Begin at some time of day, long after 1970, with a reactor that counts from 0."""
        self.now_s, self.clock = BEGIN_S, Clock()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def unix_time_s(self) -> float:
        """The time of day."""
        return self.now_s

    def poll(self, phase_s: float) -> CollectorPoll:
        """Return what asks a collector every 30 seconds."""
        poller = Poller(
            self.clock, None, MemorySpool(), Counts(), lambda _: None,
            interval_s=30.0, timeout_s=1.0, concurrency=1, unix_time_s=self.unix_time_s,
        )  # fmt: skip
        return CollectorPoll("http://c", poller, phase_s)

    def test_points_without_a_time(self) -> None:
        """They get that of the turn; one turn after the other, however the wall clock is stepped."""
        self.now_s += 12.0
        phase = Phase(30.0, 12.0)
        before = phase.slot_ns(self.now_s)
        for step_s in (0, -14.9, 0, 0, 14.9, 0, -HOUR_S, 0):
            self.now_s += 30.0 + step_s
            phase.keep(self.now_s)
            # A turn is never quite on time.
            slots = [phase.slot_ns(self.now_s + late_s) for late_s in (-0.5, 0.5)]
            self.assertEqual(slots[0], slots[1])
            self.assertLess(abs(slots[0] / 1e9 - self.now_s), 30.0)
            if not step_s:
                self.assertEqual(slots[0] - before, 30 * 10**9)
            before = slots[0]

    def test_first_turn(self) -> None:
        """It waits for the phase of the time of day."""
        poll = self.poll(12.0)
        self.now_s += 7.0  # BEGIN_S itself is a whole number of intervals
        poll.start()
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [5.0])

    def test_damaged_spool(self) -> None:
        """It is set aside with the date in its name."""
        spool = DiskSpool(
            self.clock, str(self.directory / "spool.db"), 10**6, HOUR_S, self.unix_time_s
        )
        (self.directory / "spool.db").write_text("no database")
        spool._set_aside("no database")
        self.flushLoggedErrors()
        (aside,) = self.directory.iterdir()
        self.assertIn("20231114T221330Z", aside.name)

    def test_the_page(self) -> None:
        """What is asked for now, and what lies ahead of it, is told by the time of day."""
        store = SQLiteStore(self.clock, path="/none", unix_time_s=self.unix_time_s)
        self.assertEqual(Answers(self.clock, store, unix_time_s=self.unix_time_s).now_s(), BEGIN_S)
        flows = CollectorFlows(self.clock, ["http://c"], unix_time_s=self.unix_time_s)
        flows._names["http://c"] = "a"
        asked: list[dict[str, str]] = []

        async def get(url: str, query: dict[str, str]) -> dict[str, Any]:
            asked.append(query)
            return {"src_hostname": "a", "flows": [], "intervals": []}

        self.patch(flows, "_get", get)
        self.successResultOf(Deferred.fromCoroutine(flows.flows("a", "b", {}, BEGIN_S + 1)))
        self.assertNotIn("at", asked[-1])  # the newest
        self.successResultOf(Deferred.fromCoroutine(flows.flows("a", "b", {}, BEGIN_S - 1)))
        self.assertEqual(float(asked[-1]["at"]), BEGIN_S - 1)

    def test_newest(self) -> None:
        """Databases are asked what is the newest by the time of day."""
        asked: list[Any] = []

        async def instant(query: str, at_s: float | None = None) -> Any:
            asked.append(at_s)
            return SimpleNamespace(tags=[{}], values=[BEGIN_S])

        prometheus = PrometheusStore(self.clock, url="http://p", unix_time_s=self.unix_time_s)
        self.patch(prometheus, "_database", SimpleNamespace(instant=instant))
        self.assertEqual(self.successResultOf(prometheus.newest()), BEGIN_S)
        self.assertEqual(asked[-1], BEGIN_S)

        async def select(query: str) -> Any:
            asked.append(query)
            return [[({}, [], [[BEGIN_S * 1000]])]]

        influxdb = InfluxDBStore(self.clock, url="http://i", unix_time_s=self.unix_time_s)
        self.patch(influxdb, "_select", select)
        self.assertEqual(self.successResultOf(influxdb.newest()), BEGIN_S)
        self.assertIn(str(round(BEGIN_S)), asked[-1])

    def test_embedded_store(self) -> None:
        """What is over, and what is old, is so by the time of day."""
        writer = SQLiteWriter(
            self.clock, Options({"path": str(self.directory / "store.db")}), self.unix_time_s
        )
        asked: list[int] = []

        def interaction(_: Any, *args: int) -> Deferred[bool]:
            asked.extend(args)
            return succeed(False)

        self.patch(writer, "_pool", SimpleNamespace(runInteraction=interaction))
        writer._middles_ms.append(round(BEGIN_S * 1000) + 10**6)  # what was written is ahead of it
        writer._upkeep.start(60.0)
        writer._upkeep.stop()
        self.assertEqual(asked, [round(BEGIN_S * 1000)] * 2)


#: Sets the wall clock of a program of ours back by an hour, once its reactor runs.
_SET_BACK = """
    import sys, time
    unix_s, unix_ns, step_s = time.time, time.time_ns, 0
    time.time = lambda: unix_s() + step_s
    time.time_ns = lambda: unix_ns() + step_s * 10**9
    from twisted.internet import reactor

    def set_back():
        global step_s
        step_s = -3600

    reactor.callWhenRunning(lambda: reactor.callLater(0.05, set_back))
"""
_THEN_STOP = """
    reactor.callWhenRunning(lambda: reactor.callLater(0.5, reactor.stop))
"""


class ProgramTests(SynchronousTestCase):
    """Every program counts steadily: with its wall clock set back, its timers run on."""

    def run_program(self, *parts: str, arguments: tuple[str, ...] = ()) -> str:
        """Run a program to its end, which it comes to by a timer, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", "".join(map(dedent, parts)), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.assertIn(done.returncode, (0, 1), done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        return done.stdout

    def test_services(self) -> None:
        """All that twistd runs."""
        directory = Path(self.mktemp())
        directory.mkdir()
        texts = {
            "collector": "192.0.2.1: {rack: a}\n",
            "reflector": "port: 0\n",
            "scraper": "collectors: ['http://127.0.0.1:1']\nwriters: [{type: file, path: out}]\n",
            "web": "listen: 127.0.0.1:0\nstore: {type: sqlite, path: store.db}\n",
        }
        for name, text in texts.items():
            (directory / name).write_text(text)
            ran = self.run_program(
                _SET_BACK, _THEN_STOP,
                """
                from importlib import import_module
                tap = import_module(f"llama.{sys.argv[1]}.tap")
                options = tap.Options()
                options.parseOptions(["--config", sys.argv[2]])
                tap.makeService(options)
                reactor.run()
                print("stopped")
                """,
                arguments=(name, str(directory / name)),
            )  # fmt: skip
            self.assertEqual(ran, "stopped\n", name)

    def test_commands(self) -> None:
        """Those of ``llama`` that run until they are stopped."""
        for words in (
            ("reflect", "--port", "0", "--interface", "127.0.0.1"),
            ("pinpoint", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"),
            ("demo",),
        ):
            self.run_program(
                _SET_BACK, _THEN_STOP,
                """
                from llama.cli import main
                from llama.cli import demo

                class Stage:
                    def __init__(self, *_): pass
                    async def play(self):
                        from twisted.internet.defer import Deferred
                        await Deferred()

                demo.Stage = Stage
                main(sys.argv[1:])
                """,
                arguments=words,
            )  # fmt: skip

    def test_send(self) -> None:
        """A test ends when it should, and says what happened to it."""
        ran = self.run_program(
            _SET_BACK,
            """
                from llama.cli import main
                main(sys.argv[1:])
            """,
            arguments=(
                "send",
                f"127.0.0.1:{free_udp_port()}",
                "-c",
                "8",
                "-i",
                "0.05",
                "-W",
                "0.3",
            ),
        )
        self.assertIn("8 sent, 0 received", ran)
        self.assertRegex(ran, "suspect: the wall clock was stepped by -3(599|600)")
