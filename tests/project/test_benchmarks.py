"""The benchmarks' own programs: that they build, do what they claim, and are read aright."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from benchmark_programs import compiled, directory_for
from twisted.trial.unittest import SynchronousTestCase

from benchmarks import accuracy, collector, figures, judging, kinds, machine, reflector, veth
from benchmarks.programs import BenchmarkError, running
from llama import config
from llama.reflector.loops import looks_like_stamp_reply_one
from llama.wire import scalar, stamp

pytestmark = pytest.mark.quiet

NTP_1970 = 2_208_988_800


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        """Compile the programs and make a directory."""
        self.programs = compiled()
        self.directory = directory_for(self)

    def start(self, *command: str) -> int:
        """Start a server for this test and return its port."""
        context = running(command, self.directory / "log")
        program = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        port: int = program.wait_line()["port"]
        return port

    def echo(self, *options: str) -> int:
        """Start the echo in C and return its port."""
        return self.start(str(self.programs["echo"]), *options)

    def run_program(self, name: str, *options: object) -> dict[str, Any]:
        """Run one of the C programs for a moment and return what it found."""
        command = [str(self.programs[name]), *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


class EchoTests(Case):
    def test_reply_is_stamps(self) -> None:
        """A reply has every field of RFC 8762 section 4.3.1 and the probe's TOS."""
        port = self.echo()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 77)
            begin = time.time_ns()
            sock.sendto(struct.pack(">IQHH28x", 41, 1 << 40, 0x8001, 7), ("127.0.0.1", port))
            octets, ancillary, _, _ = sock.recvmsg(2048, 64)
            end = time.time_ns()
        sequence, t3, _, ssid, t2, echoed, t1, error, _, ttl = struct.unpack(
            ">IQHHQIQHHB3x", octets
        )
        self.assertEqual((sequence, ssid, echoed, t1, error), (0, 7, 41, 1 << 40, 0x8001))
        self.assertEqual(ttl, 77)
        ends = [((at << 32) // 1_000_000_000) + (NTP_1970 << 32) for at in (begin, end)]
        self.assertTrue(ends[0] - 5 <= t2 <= t3 <= ends[1] + 5, (ends, t2, t3))
        self.assertEqual(ancillary[0][2][0], 46 << 2)

    def test_it_answers_from_the_address_asked(self) -> None:
        """On a wildcard address the reply comes from the one that the probe was sent to."""
        port = self.echo("--bind", "0.0.0.0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(bytes(44), ("127.9.8.7", port))
            self.assertEqual(sock.recvfrom(2048)[1], ("127.9.8.7", port))

    def test_counters(self) -> None:
        """What it has received can be read from a file at any time."""
        counters = self.directory / "counters"
        port = self.echo("--counters", str(counters))
        done = self.run_program("load", "--port", port, "--seconds", 0.05, "--warmup", 0)
        echo = collector.Echo(port, counters)
        self.assertEqual(echo.received(), done["total_sent"])


class LoadTests(Case):
    def test_every_mode_finds_every_reply(self) -> None:
        """Saturating, paced and one at a time: nothing is lost, wrong or made up."""
        port = self.echo("--buffer", str(4 << 20))
        for mode in ("window", "paced", "single"):
            found = self.run_program(
                *("load", "--port", port, "--mode", mode, "--seconds", 0.1, "--warmup", 0.02)
            )
            self.assertEqual((found["wrong"], found["failed"]), (0, 0), mode)
            self.assertEqual(found["total_received"], found["total_sent"], mode)
            self.assertTrue(0 < found["received"] <= found["total_received"], mode)

    def test_plain_echo(self) -> None:
        """An echo that is no STAMP reflector is measured as well."""
        for command in (
            (str(self.programs["echo"]), "--plain"),
            (sys.executable, str(Path(reflector.__file__).with_name("twisted_echo.py"))),
        ):
            port = self.start(*command)
            found = self.run_program("load", "--port", port, "--seconds", 0.05, "--window", 64)
            self.assertEqual((found["wrong"], found["failed"]), (0, 0))
            self.assertEqual(found["total_received"], found["total_sent"])

    def test_loss_is_counted(self) -> None:
        """Where nobody answers, every probe is lost and none is received."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
            found = self.run_program("load", "--port", port, "--seconds", 0.05, "--warmup", 0)
        self.assertEqual((found["total_sent"], found["total_received"]), (192, 0))

    def test_replay(self) -> None:
        """The datagrams of a file are sent in turn, whatever they are, and echoes are counted."""
        port = self.echo("--plain", "--buffer", str(4 << 20))
        replayed = self.directory / "replay"
        datagrams = b"a", b"bc" * 600, b""
        replayed.write_bytes(b"".join(struct.pack(">H", len(d)) + d for d in datagrams))
        found = self.run_program("load", "--port", port, "--replay", replayed, "--seconds", 0.05)
        self.assertEqual(found["total_received"], found["total_sent"])
        self.assertEqual((found["wrong"], found["failed"]), (0, 0))

    def test_replay_of_nothing(self) -> None:
        """A file without a datagram is refused in one line."""
        command = [str(self.programs["load"]), "--port", "9", "--replay", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (2, "/dev/null: no datagram in it\n"))


class ProberTests(Case):
    def test_every_probe_comes_back_stamped(self) -> None:
        """All replies are matched with their kernel transmit stamps over many targets."""
        port = self.echo("--bind", "0.0.0.0", "--buffer", str(4 << 20))
        found = self.run_program(
            *("prober", "--port", port, "--rate", 2000, "--targets", 50, "--sockets", 3),
            *("--seconds", 0.2, "--warmup", 0.05),
        )
        self.assertEqual((found["wrong"], found["failed"], found["unstamped"]), (0, 0, 0))
        self.assertGreater(found["total_sent"], 0)
        self.assertEqual(found["total_received"], found["total_sent"])
        self.assertEqual(found["stamped"], found["total_sent"])
        self.assertGreater(found["rtt_mean_ns"], 0)


class StockTests(Case):
    def test_buffers_stay_as_they_are(self) -> None:
        """With the library preloaded, asking for buffers changes nothing, other options work."""
        program = (
            "import socket as s; k = s.socket(s.AF_INET, s.SOCK_DGRAM);"
            "before = k.getsockopt(s.SOL_SOCKET, s.SO_RCVBUF);"
            "k.setsockopt(s.SOL_SOCKET, s.SO_RCVBUF, 9999); k.setsockopt(0, s.IP_TTL, 9);"
            "print(k.getsockopt(s.SOL_SOCKET, s.SO_RCVBUF) - before, k.getsockopt(0, s.IP_TTL))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "LD_PRELOAD": str(self.programs["stock"])},
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.stdout, "0 9\n")


class ReflectorTableTests(Case):
    def test_rows(self) -> None:
        """Every reflector has a row for each load, with figures that can be."""
        names = (reflector.C_64, reflector.C_PLAIN)
        report = reflector.run(self.programs, self.directory, 0.2, 2, names)
        self.assertEqual(len(report.rows), 4)
        for row in report.rows:
            self.assertGreater(row["µs CPU/packet"], 0)
            self.assertGreater(row["packets/s"], 0)
            self.assertEqual(row["wrong"], 0)
        json.dumps(report.as_json())


class CollectorTests(Case):
    def test_our_collector_and_the_bare_prober(self) -> None:
        """Both are measured against the echo, which sees every probe of ours that was counted."""
        load = collector.Load(targets=20, ports=2, rate_pps=400)
        with collector.echo(self.programs, self.directory) as echo:
            bare = collector.bare_cost(self.programs["prober"], load, echo, 0.2, 0.05)
            before = echo.received()
            with collector.collector(load, echo, self.directory) as running_collector:
                ours = collector.cost(running_collector, echo, 0.3)
                self.assertGreaterEqual(running_collector.metric(collector.LAG), 0)
                self.assertEqual(running_collector.totals()["lost"], 0)
        self.assertGreater(echo.received(), before)
        for found in (bare, ours):
            self.assertGreater(found["µs CPU/probe"], 0)
            self.assertGreater(found["probes/s"], 0)


class CommandTests(Case):
    def test_json(self) -> None:
        """The command writes what it measured, the ratios wanted, and the machine."""
        out = self.directory / "out.json"
        command = [sys.executable, "-m", "benchmarks", "reflector"]
        command += ["--seconds", "0.2", "--rounds", "1", "--json", str(out)]
        root = Path(reflector.__file__).parent.parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        found = json.loads(out.read_text())
        self.assertEqual(found["not_measured"], {})
        self.assertIn("kernel", found["machine"])
        (report,) = found["reports"].values()
        self.assertEqual(len(report["claims"]), 3)
        for row in report["rows"]:
            self.assertGreater(row["packets/s"], 0)
            self.assertEqual(row["wrong"], 0)
            self.assertIn(row["reflector"], done.stdout)


class KindsTests(SynchronousTestCase):
    def test_kinds_are_what_they_say(self) -> None:
        """Our own readers take each packet for what its row of the table calls it."""
        of = {kind.name: kind.datagrams for kind in kinds.kinds()}
        now = stamp.ntp_from_unix_ns(time.time_ns())
        for name, datagrams in of.items():
            for octets in datagrams:
                self.assertEqual(scalar.go_probe(octets) is not None, name == "LLAMA Go", name)
                python = scalar.python_probe(octets) is not None
                self.assertEqual(python, name == "archived Python LLAMA", name)
                loop = len(octets) >= 44 and looks_like_stamp_reply_one(memoryview(octets), now)
                if "loop" not in name:
                    self.assertFalse(loop, name)
        (reply,) = of["STAMP reply (a loop)"]
        self.assertTrue(looks_like_stamp_reply_one(memoryview(reply), now))
        self.assertEqual(len(scalar.tlvs(of["STAMP, our TLVs"][0][44:])), 4)


class CollectorLoadTests(SynchronousTestCase):
    def test_rate_is_shared_out(self) -> None:
        """The rates of all flows of the configuration add up to the rate wanted."""
        load = collector.Load(targets=300, ports=4, rate_pps=6000)
        path = directory_for(self) / "file"
        path.write_text(load.config(8100, 5000))
        (test,) = config.load_collector(path).tests
        self.assertAlmostEqual(test.rate_pps * len(test.targets) * len(test.source_ports), 6000)
        self.assertEqual(test.targets[299].host, "127.1.1.44")


class JudgingTests(SynchronousTestCase):
    def test_the_fault_is_named(self) -> None:
        """It is measured with flows that are judged for what they are, or not at all."""
        costs = judging.measure(40, 5)
        self.assertEqual(costs.pop("flows"), 40 * 5 * 16)
        self.assertTrue(all(cost > 0 for name, cost in costs.items() if name != "kB/flow"))
        self.patch(judging, "FAULT", "link spine3 -> leaf9")  # which is none of theirs
        with self.assertRaisesRegex(BenchmarkError, "leaf9 loses, and nobody is named"):
            judging.measure(40, 5)


class MachineTests(SynchronousTestCase):
    def test_cpu_time_is_the_process_s(self) -> None:
        """The CPU clock of a process id is the one that the process reads of itself."""
        before = time.process_time_ns()
        read = machine.cpu_ns(os.getpid())
        self.assertTrue(before <= read <= time.process_time_ns())

    def test_description(self) -> None:
        """The machine is described in JSON's types."""
        described = machine.describe()
        self.assertGreaterEqual(described["cores"], 1)
        json.dumps(described)
        self.assertGreater(machine.resident_mb(os.getpid()), 1)


class FiguresTests(SynchronousTestCase):
    def test_ratio_is_taken_round_by_round(self) -> None:
        """The ratio is the median of the rounds' ratios, not the ratio of medians."""
        claim = figures.ratio("r", [2.0, 30.0, 4.0], [1.0, 10.0, 4.0], "<= 1.5")
        self.assertEqual(claim.rounds, (2.0, 3.0, 1.0))
        self.assertEqual(claim.value, 2.0)
        self.assertFalse(claim.met)

    def test_what_is_wanted(self) -> None:
        """Limits from above and below and exact ones are told apart."""
        for wanted, met in (("<= 2", True), ("<= 1.9", False), (">= 2", True), ("== 0", False)):
            self.assertIs(figures.Claim("c", 2.0, wanted).met, met, wanted)


def udp(source: int, to: int, payload: bytes) -> bytes:
    """Return an Ethernet frame with that UDP payload; all that is not read is zero."""
    ip = struct.pack(">BxHxxxxBB10x", 0x45, 28 + len(payload), 64, 17)
    return bytes(14) + ip + struct.pack(">HHHH", source, to, 8 + len(payload), 0) + payload


def capture(path: Path, *packets: tuple[int, bytes]) -> Path:
    """Write a capture file with nanoseconds: when each packet passed, and its octets."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", veth.NANOSECONDS, 2, 4, 0, 0, 256, veth.ETHERNET))
        for at, octets in packets:
            seconds, ns = divmod(at, 1_000_000_000)
            file.write(struct.pack("<IIII", seconds, ns, len(octets), len(octets)) + octets)
    return path


class TruthTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Three probes of one session: one answered, one twice, one never."""
        directory = directory_for(self)
        near, far = [], []
        for sequence, replies in ((0, 1), (1, 2), (2, 0)):
            at = 10**18 + sequence * 1_000_000
            probe = udp(5000, accuracy.PORT, struct.pack(">IQHH28x", sequence, 0, 0, 3))
            reply = struct.pack(">IQHHQIQHHB3x", 99, 0, 0, 3, 0, sequence, 0, 0, 0, 64)
            back = udp(accuracy.PORT, 5000, reply)
            near += [(at, probe), *[(at + 9000, back)] * replies]
            far += [(at + 1000, probe), *[(at + 6000, back)] * replies]
        self.files = capture(directory / "near", *near), capture(directory / "far", *far)

    def passages(self, file: Path) -> dict[veth.Key, tuple[int, int]]:
        """Read one of the captures."""
        return veth.passages(file, accuracy.stamp_probe, accuracy.stamp_reply)

    def test_truth_leaves_out_the_reflector(self) -> None:
        """Only the probe with one reply has a truth: the round trip less the far end's share."""
        truth = veth.true_rtts(*map(self.passages, self.files))
        self.assertEqual(truth, {(5000, 3, 0): 9000 - 5000})

    def test_error(self) -> None:
        """The error is absolute, the bias is not, and what has no truth does not count."""
        truth = {(1,): 4000, (2,): 4000, (3,): 4000}
        found = accuracy.compare({(1,): 3000.0, (2,): 3000.0, (3,): 4500.0, (4,): 9.0}, truth)
        self.assertEqual(found["probes"], 3)
        self.assertEqual(found["error median µs"], 1.0)
        self.assertEqual(found["bias µs"], -1.0)

    def test_no_capture(self) -> None:
        """A file that is no such capture is refused in one line."""
        path = directory_for(self) / "file"
        path.write_bytes(bytes(24))
        self.assertRaises(BenchmarkError, self.passages, path)


class VethTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Leave out what needs root and tools where they are missing."""
        if os.geteuid():
            raise SkipTest("network namespaces need root")
        for tool in ("ip", "tcpdump", "ping"):
            if shutil.which(tool) is None:
                raise SkipTest(f"needs {tool}: apt install iproute2 tcpdump iputils-ping")

    def test_ping_is_compared_with_the_truth(self) -> None:
        """Every echo request is found in both captures, and nothing is left behind."""
        directory = directory_for(self)
        with veth.cable() as made:
            row = accuracy.measure(made, accuracy.ping(), directory, 5, 0.01)
            names = [made.near, made.far]
        self.assertEqual((row["probes"], row["true"]), (5, 5))
        self.assertGreater(row["true RTT µs"], 0)
        self.assertFalse(any((veth.NAMESPACES / name).exists() for name in names))

    def test_the_captures_own_error_is_measured(self) -> None:
        """Packets are captured before they are stamped, not after."""
        with veth.cable() as made:
            median, p99 = accuracy.observer(made, directory_for(self), 10, 0.001)
        self.assertTrue(0 < median <= p99)

    def test_leftovers_of_a_killed_run_are_removed(self) -> None:
        """Namespaces whose maker is gone go; those of a living one stay."""
        child = subprocess.Popen(["true"])
        child.wait()
        gone, alive = (f"{veth.PREFIX}{pid}-test" for pid in (child.pid, os.getpid()))
        for name in (gone, alive):
            subprocess.run(["ip", "netns", "add", name], check=True)
        self.addCleanup(subprocess.run, ["ip", "netns", "delete", alive], check=True)
        veth.remove_leftovers()
        self.assertFalse((veth.NAMESPACES / gone).exists())
        self.assertTrue((veth.NAMESPACES / alive).exists())
