"""The prober of the kind hping3, with the real program on loopback."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import struct
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve
from hping3_case import ProbeCase, require_hping3
from tcp_listeners import listener, silent_port
from twisted.internet import reactor
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import reasons
from llama.collector.probing.hping3 import process
from llama.collector.probing.hping3.process import Hping3, Order, unusable
from llama.collector.probing.plan import Group, make_plan
from llama.collector.rearranging import rearranged
from llama.config import CollectorConfig, SourcePort, Target, Test
from llama.config.probes import default_options
from llama.net.route import way_to


class LoopbackTests(ProbeCase):
    """What comes of probes on loopback."""

    async def test_closed_port(self) -> None:
        """RST is an answer: with times, TTL and class, labelled as user-space times."""
        figures = await self.measure(self.group(["127.0.0.1", "127.0.0.2"], 0, dscps=(46, 0)))
        for row, dscp in zip(figures.pair_stats, (46, 0, 46, 0), strict=True):
            self.assertEqual((row["sent"], row["lost"]), (6, 0))
            self.assertGreater(row["samples"], 0)
            self.assertEqual((row["ttl_at_collector"], row["dscp_at_collector"]), (64, dscp))
            self.assertEqual((row["ttl_at_reflector"], row["dscp_at_reflector"]), (0, 255))
            self.assertEqual(reasons(int(row["suspect"])), ("user_timestamps",))
            self.assertTrue(np.isnan(row["ipdv_forward_ns"]))
        self.assertEqual(figures.flow_stats["sent"].tolist(), [2] * 12)
        self.assertEqual((self.prober.sent, self.prober.received), (24, 24))
        self.assertEqual((self.prober.unread, self.prober.strangers), (0, 0))

    async def test_open_port(self) -> None:
        """SYN+ACK is an answer as well, and no connection stays behind."""
        port = listener(self).getsockname()[1]
        (row,) = (await self.measure(self.group(["127.0.0.1"], port, ports=5))).pair_stats
        self.assertEqual((row["sent"], row["lost"]), (10, 0))
        self.assertNotIn(f":{port:04X} ", "".join(self.half_open()))

    @staticmethod
    def half_open() -> list[str]:
        """Connections that the kernel knows of and that are not listening, as lines."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return [line for line in lines if line.split()[3] != "0A"]

    async def test_silent_port(self) -> None:
        """Without an answer all is lost, which direction nobody knows."""
        (row,) = (await self.measure(self.group(["127.0.0.1"], silent_port(self)), 1)).pair_stats
        self.assertEqual((row["sent"], row["lost"], row["lost_unknown"]), (3, 3, 3))
        self.assertEqual(reasons(int(row["suspect"])), ())

    async def test_own_address(self) -> None:
        """Where an address of this host is probed the answers are heard on loopback."""
        source = way_to("127.0.0.1").source
        self.assertEqual(way_to(source), ("lo", source))

    async def test_killed(self) -> None:
        """What a killed hping3 did not tell of is neither sent nor lost; the interval is marked."""
        track = self.begin(self.group(["127.0.0.1"], silent_port(self)), 1)
        await self.until(lambda: self.prober.sent == 3)
        os.kill(self.pids()[0], signal.SIGKILL)
        await self.run_through(track)
        (row,) = self.closed(track).pair_stats
        self.assertEqual((row["sent"], row["lost"]), (0, 0))
        self.assertIn("send_failed", reasons(int(row["suspect"])))
        self.assertEqual(self.prober.failed_sends, {"ECANCELED": 3})
        self.assertEqual(self.prober.sent, 0)

    async def test_stopped(self) -> None:
        """A stopped hping3 is ended at its deadline, and the network is not blamed."""
        track = self.begin(self.group(["127.0.0.1"], silent_port(self)), 1)
        await self.until(lambda: self.prober.sent == 3)
        os.kill(self.pids()[0], signal.SIGSTOP)
        await self.run_through(track)
        (row,) = self.closed(track).pair_stats
        self.assertEqual((row["sent"], row["lost"]), (0, 0))
        self.assertEqual(set(reasons(int(row["suspect"]))), {"send_failed", "late_ticks"})
        self.assertEqual(self.prober.failed_sends, {"ETIME": 3})

    async def test_stopped_for_a_while(self) -> None:
        """hping3 that goes on too late has missed answers: they are not counted as lost."""
        track = self.begin(self.group(["127.0.0.1"], silent_port(self)), 1)
        await self.until(lambda: self.prober.sent == 3)
        (pid,) = self.pids()
        os.kill(pid, signal.SIGSTOP)
        since = time.monotonic()
        await self.until(lambda: time.monotonic() > since + 1.5)
        os.kill(pid, signal.SIGCONT)
        await self.run_through(track)
        (row,) = self.closed(track).pair_stats
        self.assertEqual((row["sent"], row["lost"]), (0, 0))
        self.assertIn("late_ticks", reasons(int(row["suspect"])))

    async def test_interrupted(self) -> None:
        """hping3 that is told to end tells what it sent, but has not waited for answers."""
        track = self.begin(self.group(["127.0.0.1"], silent_port(self)), 1)
        await self.until(lambda: self.prober.sent == 3)
        os.kill(self.pids()[0], signal.SIGINT)
        await self.run_through(track)
        self.assertEqual(self.closed(track).pair_stats[0]["sent"], 0)
        self.assertEqual(self.prober.failed_sends, {"ECANCELED": 3})

    async def test_answers_to_others(self) -> None:
        """What hping3 takes for answers, and is none of ours, ends it: nothing is lost thereby."""
        port = silent_port(self)
        track = self.begin(self.group(["127.0.0.1"], port), 1)
        await self.until(lambda: self.prober.sent == 3)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as forger:
            for _ in range(3):
                reset = struct.pack("!HHIIBBHHH", port, 9, 0, 7, 5 << 4, 0x14, 0, 0, 0)
                forger.sendto(reset, ("127.0.0.1", 0))
        await self.run_through(track)
        self.assertEqual(self.closed(track).pair_stats[0]["sent"], 0)
        self.assertEqual(self.prober.strangers, 3)
        self.assertEqual(self.prober.failed_sends, {"ECANCELED": 3})

    async def test_garbage(self) -> None:
        """A program that says anything at all makes no results."""
        begun = "echo 'HPING 127.0.0.1 (lo 127.0.0.1): S set, 40 headers + 0 data bytes'\n"
        noise = "head -c 20000 /dev/urandom; sleep 0.2\n"
        program = self.script(begun + noise + "echo 'len=40 ip=127.0.0.1 ttl'\n")
        (row,) = (await self.measure(self.group(["127.0.0.1"], 0, program=program), 1)).pair_stats
        self.assertEqual(row["sent"], 0)
        self.assertIn("send_failed", reasons(int(row["suspect"])))
        self.assertGreater(self.prober.unread, 0)
        self.assertEqual(self.prober.failed_sends, {"EPROTO": 3})

    async def test_one_line_not_understood(self) -> None:
        """Answers count that are understood; with one line that is not, nothing is called lost."""
        program = self.script('hping3 "$@" | sed "s/seq=1 win/seq=1 won/"\n')
        (row,) = (await self.measure(self.group(["127.0.0.1"], 0, program=program), 1)).pair_stats
        self.assertEqual((row["sent"], row["received"], row["lost"]), (2, 2, 0))
        self.assertEqual(self.prober.failed_sends, {"EPROTO": 1})

    async def test_another_device(self) -> None:
        """hping3 that listens elsewhere than it was told to would hear nothing: it is ended.

        A child of the program that goes on for a while does not keep the run from ending.
        """
        program = self.script(
            "echo 'HPING 127.0.0.1 (eth9 127.0.0.1): S set, 40 headers + 0 data bytes'; sleep 3\n"
        )
        (row,) = (await self.measure(self.group(["127.0.0.1"], 0, program=program), 1)).pair_stats
        self.assertEqual((row["sent"], self.prober.failed_sends), (0, {"ETIME": 3}))

    async def test_absent(self) -> None:
        """A program that has gone away is said once, and no probe counts as sent."""
        group = self.group(["127.0.0.1"], 0, program="no-such-program")
        (row,) = (await self.measure(group)).pair_stats
        self.assertEqual((row["sent"], self.prober.failed_sends), (0, {"ENOENT": 6}))

    async def test_bounded(self) -> None:
        """So many runs at once as the test says, and one to a port of an address."""
        hosts = [f"127.0.0.{n}" for n in range(1, 7)]
        track = self.begin(self.group(hosts, 0, processes=2, dscps=(0, 46)))
        await self.run_through(track)
        self.assertEqual(self.most, 2)
        self.assertEqual(self.closed(track).pair_stats["lost"].sum(), 0)
        self.assertEqual(self.prober.unread, 0)

    async def test_nothing_is_left_behind(self) -> None:
        """A run that is not wanted any more is ended; one that still is goes on where it was."""
        port = silent_port(self)
        group = self.group(["127.0.0.1", "127.0.0.2"], port)
        self.begin(group, 1)
        await self.until(lambda: self.prober.sent == 3 and len(self.prober._runs) == 2 - 1)
        old = self.prober.tracks[0]
        pids = self.pids()
        (run,) = self.prober._runs.values()
        goes_on = run.number
        more = group.with_pairs([*self.group(["127.0.0.3"], port).pairs, group.pairs[goes_on]])
        ledger = rearranged(old.ledger, np.zeros(2, np.uint8), np.array([1]), np.array([goes_on]))
        track = self.prober.track(more, ledger, np.ones(2, np.bool_), time.monotonic())
        track.schedule.limit = 0
        self.prober.arrange([track])
        self.assertEqual(self.pids(), pids)
        await self.until(lambda: not self.prober._runs)
        self.assertEqual(self.closed(track).pair_stats["lost"].tolist(), [0, 3])
        self.begin(group, 1)
        await self.until(lambda: len(self.prober._runs) == 1)
        (pid,) = self.pids()
        self.prober.arrange([])
        await self.until(lambda: not self.prober._runs)
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)
        self.assertEqual(self.prober.sockets, {})

    async def test_descriptors(self) -> None:
        """Runs leave no descriptor open."""
        group = self.group(["127.0.0.1"], 0)
        await self.measure(group, 1)
        before = len(os.listdir("/proc/self/fd"))
        track = self.begin(group, 3)
        await self.run_through(track)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class NotStartedTests(SynchronousTestCase):
    """A run that cannot be started."""

    def test_descriptors(self) -> None:
        """It leaves no descriptor open, whichever was one too many."""
        order = Order(
            program="/bin/true", address="127.0.0.1", port=0, device="lo", source="127.0.0.1",
            first_port=50000, count=1, spacing_us=1000, dscp=0, sequence=1,
        )  # fmt: skip
        for what in ("open", "openpty", "pipe"):

            def fails(*_: Any, **__: Any) -> Any:
                raise OSError(errno.EMFILE, "too many")

            before = len(os.listdir("/proc/self/fd"))
            patched = self.patch(os, what, fails)
            self.assertRaises(OSError, Hping3(reactor, order, None).start)  # type: ignore[arg-type]
            patched.restore()
            self.assertEqual(len(os.listdir("/proc/self/fd")), before, what)

    def test_terminal_that_cannot_be_set(self) -> None:
        """A terminal that cannot be set up is none, and is closed."""

        def fails(*_: Any) -> Any:
            raise termios.error(errno.EIO, "no")

        before = len(os.listdir("/proc/self/fd"))
        self.patch(termios, "tcsetattr", fails)
        wrong = self.assertRaises(OSError, process._open_terminal)
        self.assertEqual(wrong.errno, errno.EIO)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_terminal_is_not_inherited(self) -> None:
        """No other program that is begun has either end of a terminal."""
        for fd in process._open_terminal():
            self.addCleanup(os.close, fd)
            self.assertFalse(os.get_inheritable(fd))


class TerminalTests(SynchronousTestCase):
    """What is read of a program at once."""

    def setUp(self) -> None:
        """Have a terminal that a program may write to."""
        ours, self.its = process._open_terminal()
        self.pieces: list[bytes] = []
        reader: Any = self
        self.terminal = process._Terminal(MemoryReactor(), ours, reader, reader)
        self.addCleanup(self.terminal.close)

    def feed(self, octets: bytes) -> Sequence[Any]:
        """Read a piece, one of a few."""
        self.pieces.append(octets)
        assert len(self.pieces) < 1000, "the reactor is kept for ever"
        return ()

    def test_some(self) -> None:
        """A piece at a time, so that the reactor gets to its other duties; at the end all of it."""
        said = bytes(range(32, 127)) * 60
        os.write(self.its, said)
        os.close(self.its)
        self.terminal.doRead()
        self.assertEqual(len(self.pieces), 1)
        self.terminal.finish()
        self.assertEqual(b"".join(self.pieces), said)
        self.assertGreater(len(self.pieces), 1)

    def test_endless(self) -> None:
        """What somebody goes on to write after the program's end is not waited for."""
        os.close(self.its)
        patched = self.patch(os, "read", lambda *_: b"more")
        self.terminal.finish()
        patched.restore()
        self.assertEqual(self.terminal.fileno(), -1)


class PortTests(ProbeCase):
    """Source ports."""

    def test_follow_on_one_another(self) -> None:
        """Ports of the system's choice make one run, most of the time, and are held."""
        track = self.begin(self.group(["127.0.0.1"], 0, ports=8))
        numbers = [sock.number for sock in track.sockets]
        self.assertEqual(len(set(numbers)), 8)
        self.assertLess(len(track.stretches), 4)
        with socket.socket() as other:
            self.assertRaises(OSError, other.bind, ("127.0.0.1", numbers[3]))

    def test_taken(self) -> None:
        """A port that somebody else has cannot be had."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            (source,) = self.group(["127.0.0.1"], 0, ports=1).sources
            taken = evolve(source, number=other.getsockname()[1])
            self.assertRaises(OSError, self.prober.open, taken)


class PlanTests(SynchronousTestCase):
    """From the configuration to groups."""

    @staticmethod
    def config(**given: Any) -> CollectorConfig:
        """A test of two targets from four source ports, a probe a second from each."""
        options = {**default_options("hping3"), **given.pop("options", {})}
        test = Test(
            name="t", probe="hping3", family="4", rate_pps=1.0, options=options,
            targets=tuple(Target(name=n, host=n, port=443) for n in ("192.0.2.1", "192.0.2.2")),
            source_ports=(SourcePort(name="p", number=0),) * 4,
        )  # fmt: skip
        return CollectorConfig(path="x", tests=(test,), **given)

    @staticmethod
    def plan(config: CollectorConfig) -> Group:
        """The one group of a configuration."""
        addresses = {t.host: [t.host, "2001:db8::1"] for t in config.tests[0].targets}
        (group,) = make_plan(config, addresses, lambda _d, _s: "192.0.2.9")
        return group

    def test_what_is_sent(self) -> None:
        """IPv4, to the test's port whatever the target's, counted as any other probe."""
        group = self.plan(self.config())
        self.assertEqual({(p.dst_port, p.probe, p.size) for p in group.pairs}, {(0, "hping3", 0)})
        self.assertEqual((group.version, group.load()), (4, (2 * 8, 2 * 8 * 8 * 40)))
        self.assertEqual({source.protocol for source in group.sources}, {"hping3"})
        ported = self.plan(self.config(options={"tcp_port": 80}))
        self.assertEqual({pair.dst_port for pair in ported.pairs}, {80})

    def test_caps(self) -> None:
        """Caps lower the rate, and hold while runs last: then probes are further apart."""
        free, capped = self.plan(self.config()), self.plan(self.config(max_pps=4))
        roomy = self.plan(self.config(max_pps=400))
        self.assertEqual((free.rate_pps, capped.rate_pps, roomy.rate_pps), (1, 0.225, 1))
        spacings = [group.cycle.spacing_s for group in (free, capped, roomy) if group.cycle]
        # As wanted; four flows in a cycle; eight runs at once, of SYNs that may be answered with RST.
        for spacing, expected in zip(spacings, (0.01, 1 / 0.225 / 4, 8 / 180), strict=True):
            self.assertAlmostEqual(spacing, expected)

    def test_identity(self) -> None:
        """Another program, or spacing, is another group."""
        one, two = self.plan(self.config()), self.plan(self.config(options={"program": "x"}))
        self.assertNotEqual(one.identity, two.identity)


class UsableTests(SynchronousTestCase):
    """Whether a program can be used at all."""

    def test_real(self) -> None:
        """The real one can."""
        require_hping3()
        self.assertIsNone(unusable("hping3"))

    def test_others(self) -> None:
        """What is not there, or something else, cannot, and it is said in one line why."""
        for program, said in (
            ("no-such-program", "there is no program no-such-program"),
            (shutil.which("true") or "true", "does not do what hping3 does"),
            (shutil.which("uname") or "uname", "does not do what hping3 does"),
        ):
            why = unusable(program) or ""
            self.assertIn(said, why)
            self.assertNotIn("\n", why)
