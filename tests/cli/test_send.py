"""``llama send`` and ``llama reflect``, run as people run them."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from network import alone
from plain_stamp import REPLY
from servers import free_udp_port
from services import BIN, Service, until
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from llama.cli._options import parse_target
from llama.cli._report import Report, summary
from llama.collector import oneshot
from llama.collector.intervals.summary import reasons
from llama.collector.oneshot import OneShot, Outcome, Result, Wanted
from llama.wire import stamp

pytestmark = pytest.mark.quiet


def send(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``llama send`` to its end."""
    return subprocess.run(
        [BIN / "llama", "send", *arguments], capture_output=True, text=True, timeout=120
    )


class Peer(DatagramProtocol):
    """A reflector that takes its time, and says that its clock is right within a millisecond."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.calls: list[Any] = []

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer a probe of a session that it counts, after a while."""
        now = stamp.ntp_from_unix_ns(time.time_ns())
        sequence, sent, error, ssid = stamp.SENDER_STRUCT.unpack_from(datagram)
        mine = stamp.error_estimate(1e6)
        reply = REPLY.pack(sequence - 1, now, mine, ssid, now, sequence, sent, error, 64)
        self.calls.append(reactor.callLater(self.takes_s, self.transport.write, reply, addr))

    def stopProtocol(self) -> None:
        """Answer nothing more."""
        for call in self.calls:
            if call.active():
                call.cancel()


class TargetTests(TestCase):
    """What a target may look like."""

    def test_forms(self) -> None:
        """Host, host and port, IPv6 with and without brackets."""
        self.assertEqual(parse_target("db1"), ("db1", 8100))
        self.assertEqual(parse_target("db1:862"), ("db1", 862))
        self.assertEqual(parse_target("::1"), ("::1", 8100))
        self.assertEqual(parse_target("[fe80::1%eth0]:862"), ("fe80::1%eth0", 862))

    def test_mistakes(self) -> None:
        """Anything else is refused."""
        for text in ("db1:", "db1:0", "db1:x", ":8100", "[::1", "[::1]8100", "db1:65536", ""):
            self.assertRaises(ValueError, parse_target, text)
        refused = self.assertRaises(ValueError, parse_target, "::1:18233")
        self.assertIn("is no IPv6 address; one with a port is written [ADDRESS]:PORT", str(refused))


class SendTests(TestCase):
    """Against a real reflector."""

    def setUp(self) -> None:
        """Start a reflector."""
        self.port = free_udp_port()
        self.target = f"127.0.0.1:{self.port}"
        reflector = Service("llama-reflector", "--port", str(self.port), "--api", "127.0.0.1:0")
        reflector.start()
        self.addCleanup(reflector.stop)
        until(lambda: "answering" in reflector.text(), "the reflector")

    def test_summary_for_people(self) -> None:
        """One line a probe, then loss and percentiles, and exit status 0."""
        done = send(self.target, "--count", "5", "--interval", "0.02")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("seq="), 5)
        self.assertIn("5 sent, 5 received, 0 lost (0 %)", done.stdout)
        self.assertIn("rtt min/mean/p50/p90/p99/max = ", done.stdout)

    def test_flows_and_classes(self) -> None:
        """Every flow and class is told of, and adds up."""
        done = send(
            self.target, "-c", "4", "-i", "0.05", "--flows", "4", "--dscp", "EF,BE", "--json"
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        probes, summary = lines[:-1], lines[-1]
        self.assertEqual(summary["type"], "summary")
        self.assertEqual(len({(p["source_port"], p["class_name"]) for p in probes}), 8)
        self.assertEqual(len(probes), summary["total"]["sent"])
        self.assertEqual(summary["total"]["lost"], 0)
        for probe in probes:
            dscp = {"EF": 46, "BE": 0}[probe["class_name"]]
            self.assertEqual(probe["dscp_at_reflector"], dscp)
            self.assertEqual(probe["dscp_at_collector"], dscp)
            self.assertGreater(probe["rtt_ns"], 0)
            self.assertTrue(probe["kernel_sent"])

    def test_kinds_of_probe(self) -> None:
        """Each kind is answered; what the earlier formats cannot tell is not told."""
        for kind, size in (("stamp", 96), ("twamp-light", 44), ("llama-go", 1028),
                           ("llama-python", 36)):  # fmt: skip
            done = send(self.target, "--probe", kind, "-c", "3", "-i", "0.02")
            self.assertIn(f"{kind} probes of {size} octets", done.stdout)
            self.assertIn("3 sent, 3 received, 0 lost (0 %)", done.stdout)
            legacy = kind.startswith("llama-")
            self.assertEqual(legacy, "contain what it took itself" in done.stdout)
            self.assertEqual(legacy, "(forward —, reverse —)" in done.stdout)

    def test_timed_in_user_space(self) -> None:
        """Who is told round trips of answers that the kernel does not time is told so."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))  # and nobody listens
            closed = f"127.0.0.1:{sock.getsockname()[1]}"
            for target, kind, marked in ((closed, "tcp", True), (self.target, "stamp", False)):
                done = send(target, "--probe", kind, "-c", "3", "-i", "0.02")
                self.assertIn("3 sent, 3 received", done.stdout)
                self.assertEqual("suspect: answers were timed in user space" in done.stdout, marked)

    def test_authenticated(self) -> None:
        """With the reflector's key everything comes back, with another nothing."""
        folder = Path(self.mktemp())
        folder.mkdir()
        keys, port = folder / "keys", free_udp_port()
        keys.write_text(f"old {'11' * 32}\nnew {'22' * 32}\nother {'33' * 32}\n")
        keys.chmod(0o600)
        config = folder / "reflector.yaml"
        config.write_text(
            f"port: {port}\napi: {{bind: 127.0.0.1:0}}\nkeys: [{{file: {keys.absolute()}, key: old}},"
            f" {{file: {keys.absolute()}, key: new}}]\n"
        )
        reflector = Service("llama-reflector", "--config", str(config.absolute()))
        reflector.start()
        self.addCleanup(reflector.stop)
        until(lambda: "answering" in reflector.text(), "the reflector")
        how = ("--probe", "stamp-auth", "-c", "3", "-i", "0.02", "-W", "0.5", "-q", "BE,EF")
        for key, arguments, received in (("old", (), 6), ("new", ("-s", "112,1400"), 12),
                                         ("other", (), 0)):  # fmt: skip
            done = send(f"127.0.0.1:{port}", *how, "--key-file", str(keys), "--key", key, "--json",
                        *arguments)  # fmt: skip
            total = json.loads(done.stdout.splitlines()[-1])["total"]
            self.assertEqual(received, total["received"], done.stderr)
        self.assertEqual(0, send(f"127.0.0.1:{port}", "-c", "1", "-W", "0.2").stdout.count("rtt="))

    def test_nothing_comes_back(self) -> None:
        """Without a reflector: all lost, no RTT, a hint, and exit status 1."""
        done = send(f"127.0.0.1:{free_udp_port()}", "-c", "3", "-i", "0.05", "-W", "0.2")
        self.assertEqual(done.returncode, 1)
        self.assertIn("3 sent, 0 received, 3 lost (100 %)", done.stdout)
        self.assertIn("does a reflector run there", done.stdout)
        self.assertNotIn("rtt min", done.stdout)

    @alone
    def test_what_does_not_leave(self) -> None:
        """What this host itself keeps from leaving is said so, in words; nothing of it is loss."""
        rules = (
            "table inet t { chain c { type filter hook output priority 0; udp dport 9 drop; }; }"
        )
        subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)
        for words, said in (
            (("192.0.2.1",), "ENETUNREACH: this host has no route there"),
            (("127.0.0.1:9",), "EPERM: a firewall of this host forbids them"),
        ):
            done = send(*words, "-c", "1", "-f", "2", "-W", "0.1")
            self.assertIn(f"not sent: 2 probes ({said}); they are not counted", done.stdout)
            self.assertNotIn("flows loses", done.stdout)
            self.assertEqual((done.returncode, done.stderr), (1, ""))

    def test_wrong_usage(self) -> None:
        """Bad arguments, and names that do not resolve, give one line and exit status 2."""
        for arguments in (
            [self.target, "--dscp", "EFF"],
            [self.target, "--size", "12"],
            [self.target, "--count", "0"],
            ["127.0.0.1:99999"],
            ["no.such.host.invalid"],
            [self.target, "--source", "256.1.1.1"],
            [self.target, "--probe", "llama-python", "--size", "44"],
            [self.target, "--probe", "stamp-auth"],
            [self.target, "--probe", "stamp-auth", "--key-file", "/nonexistent"],
            [self.target, "--key-file", "/etc/hostname"],
        ):
            done = send(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertNotIn("Traceback", done.stderr)
            self.assertTrue(done.stderr.strip())

    def test_interrupt_gives_the_summary(self) -> None:
        """Ctrl-C ends the test with what is known by then; nothing in flight is called lost."""
        running = subprocess.Popen(
            [BIN / "llama", "send", self.target, "-c", "100000", "-i", "0.05"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert running.stdout is not None
        told = 0
        while told < 5:
            told += running.stdout.readline().startswith("seq=")
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        self.assertEqual(running.wait(20), 0)
        self.assertIn(" 0 lost (0 %)", rest)
        running.stdout.close()

    def test_reader_that_has_seen_enough(self) -> None:
        """When whoever reads the output goes away, the test ends, quietly."""
        for more in ([], ["--json"]):
            words = [BIN / "llama", "send", self.target, "-c", "1000", "-i", "0.01", *more]
            with subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as running:
                assert running.stdout is not None
                assert running.stderr is not None
                running.stdout.readline()
                running.stdout.close()
                self.assertEqual(running.wait(60), 128 + signal.SIGPIPE)
                self.assertEqual(running.stderr.read(), "")

    def test_sizes(self) -> None:
        """Any size from the plain 44 octets up is sent and comes back whole."""
        done = send(
            self.target, "-c", "2", "-i", "0.02", "--size", "44,45,96,97,1400,9000", "--json"
        )
        summary = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual([p["lost"] for p in summary["pairs"]], [0] * 6)

    def run_one(self, **options: Any) -> Deferred[tuple[Result, list[Outcome]]]:
        """Run a test in this process."""
        told: list[Outcome] = []
        wanted = Wanted(address="127.0.0.1", port=self.port, count=5, interval_s=0.02, **options)
        shot = OneShot(reactor, wanted, told.append)
        return shot.run().addCallback(lambda result: (result, told))

    def test_kernels_without_identifiers(self) -> None:
        """Before Linux 6.13 transmit stamps are matched by the packet they come back with."""
        self.patch(oneshot, "transmit_ids_supported", lambda: False)

        def check(outcome: tuple[Result, list[Outcome]]) -> None:
            result, told = outcome
            self.assertEqual(int(result.pair_stats["received"].sum()), 20)
            self.assertEqual([o.kernel_sent for o in told], [True] * 20)

        return self.run_one(flows=2, dscps=(0, 46)).addCallback(check)

    async def test_few_dropped_of_very_many(self) -> None:
        """What this host drops of very many packets does not excuse a target that answers nothing."""
        wanted = Wanted(
            address="127.0.0.1", port=free_udp_port(), count=20, interval_s=0.02, timeout_s=0.2
        )
        shot = OneShot(reactor, wanted, lambda _: None)
        running = shot.run()
        # 60 of six million, all the time.
        shot._track.ledger.note_undelivered(60, 1e-5)
        result = await running
        [row] = result.pair_stats
        self.assertEqual(int(row["lost"]), 20)
        self.assertNotIn("receive_drops", reasons(int(row["suspect"])))

    def stepped(
        self, step_s: int, port: int, **options: Any
    ) -> Deferred[tuple[Result, list[Outcome]]]:
        """Run a test in this process, the wall clock being stepped after some probes."""
        told: list[Outcome] = []
        step_ns = 0

        def wall_ns() -> int:
            return time.time_ns() + step_ns

        def step() -> None:
            nonlocal step_ns
            step_ns = step_s * 10**9

        wanted = Wanted(address="127.0.0.1", port=port, count=8, interval_s=0.05, **options)
        shot = OneShot(reactor, wanted, told.append, wall_ns=wall_ns)
        reactor.callLater(0.175, step)
        running = shot.run().addCallback(lambda result: (result, told))
        return running.addTimeout(30, reactor)

    async def test_clock_that_is_set_back(self) -> None:
        """A test whose probes are lost ends as soon as ever, and is marked; whichever way it is set."""
        for step_s in (-3600, 3600):
            for kind in ("stamp", "twamp-light"):
                result, told = await self.stepped(
                    step_s, free_udp_port(), probe=kind, timeout_s=0.3
                )
                self.assertEqual([o.seq for o in told], list(range(1, 9)))
                self.assertEqual([o.lost for o in told], [True] * 8)
                self.assertEqual(int(result.pair_stats["lost"].sum()), 8)
                self.marked(result, step_s)

    async def test_clock_that_is_set_forward(self) -> None:
        """What is answered is not lost, and no round trip is as long as the step."""
        result, told = await self.stepped(
            3600, self.port, timeout_s=0.3
        )  # the kernel's stamps stay
        self.assertEqual([o.lost for o in told], [False] * 8)
        self.assertLess(max(o.rtt_ns or 0 for o in told), 3600e9 / 2)
        self.assertEqual(int(result.pair_stats["lost"].sum()), 0)
        self.marked(result, 3600)

    def marked(self, result: Result, step_s: int) -> None:
        """See that a step is told, to people and programs."""
        text = io.StringIO()
        Report("it", Wanted(address="127.0.0.1", port=1), text).end(result)
        found = re.search(r"suspect: the wall clock was stepped by (\S+) s\n", text.getvalue())
        assert found is not None
        self.assertAlmostEqual(float(found[1]), step_s, places=2)
        told = summary(result)
        self.assertIn("clock_step", told["pairs"][0]["suspect"])
        self.assertIn("the wall clock was stepped by", told["notes"][0])

    async def ask_peer(self, takes_s: float, **options: Any) -> tuple[Result, str]:
        """Run a test against a `Peer`; return its result, and what people are told of it."""
        port = reactor.listenUDP(0, Peer(takes_s), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port
        result, _ = await self.run_one(**options)
        text = io.StringIO()
        Report("it", Wanted(address="127.0.0.1", port=self.port, **options), text).end(result)
        return result, text.getvalue()

    async def test_all_of_it_late(self) -> None:
        """Where replies come after their time there is a reflector, and its name is not asked for."""
        result, told = await self.ask_peer(0.15, timeout_s=0.12, sizes=(44, 1400))
        self.assertGreater(int(result.pair_stats["late"].sum()), 0)
        self.assertIn("nothing came back within 0.12 s, but later: see --timeout", told)
        self.assertNotIn("does a reflector run there", told)
        self.assertNotIn("too small", told)

    async def test_one_way(self) -> None:
        """Where both clocks say that they are right, delays of each way are told, and their error."""
        for error_ns, stated in ((2e6, True), (None, False)):
            self.patch(oneshot, "clock_error_ns", lambda error_ns=error_ns: error_ns)
            result, told = await self.ask_peer(0.05, timeout_s=1.0)
            (row,) = summary(result)["pairs"]
            self.assertEqual(row["rtt_samples"], 5)
            self.assertEqual((row["dscp_at_collector"], row["ttl_at_reflector"]), (0, 64))
            self.assertEqual("one way, by both clocks: forward " in told, stated)
            if not stated:
                self.assertEqual([row[f"owd_{n}_ns"] for n in ("forward", "error")], [None] * 2)
                continue
            self.assertIn(" ms, give or take 3.0", told)
            both = row["owd_forward_ns"] + row["owd_reverse_ns"]
            self.assertAlmostEqual(both / row["rtt_mean_ns"], 1, 3)
            self.assertGreater(row["owd_reverse_ns"], 40e6)  # it sends late what it says has left

    def test_user_time_stamps(self) -> None:
        """T1 in user space is told as such."""

        def check(outcome: tuple[Result, list[Outcome]]) -> None:
            self.assertEqual([o.kernel_sent for o in outcome[1]], [False] * 5)

        return self.run_one(kernel_stamps=False).addCallback(check)

    def test_follow_up(self) -> None:
        """All samples but the last have the reflector's own transmit stamp in them."""

        def check(outcome: tuple[Result, list[Outcome]]) -> None:
            followed = [o.followed_up for o in outcome[1]]
            self.assertEqual(followed, [True] * 4 + [False])

        return self.run_one().addCallback(check)
