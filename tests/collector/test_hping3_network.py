"""Probes of kind hping3 in a network that drops, by users who may not, and in a whole collector."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from hping3_case import require_hping3
from services import BIN, Collector, configuration, until
from twisted.trial.unittest import SkipTest, SynchronousTestCase

NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all"


def require_namespaces() -> None:
    """Skip where no network can be made."""
    require_hping3()
    if not all(map(shutil.which, ("unshare", "setpriv", "ip", "nft"))):
        raise SkipTest("needs util-linux, iproute2 and nftables")


class SendCase(SynchronousTestCase):
    """Runs ``llama send --probe hping3`` in a network of its own."""

    def send(self, commands: dict[str, str], prepare: str = "", after: str = "") -> None:
        """Run commands, each as its value says, all at once, and wait for them."""
        require_namespaces()
        llama = shlex.quote(str(BIN / "llama"))
        here = Path(self.mktemp())
        here.mkdir()
        lines = ["set -e", "ip link set lo up", prepare]
        lines += [
            f"({how} {llama} send --json --probe hping3 {what} >{here}/{n}.out 2>{here}/{n}.err;"
            f' echo $? >{here}/{n}.status) || true & sent="$sent $!"'
            for n, (what, how) in enumerate(commands.items())
        ]
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", "\n".join([*lines, "wait $sent", after])],
            capture_output=True, text=True, timeout=120, cwd="/",
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        self.outputs, self.errors, self.status = (
            [(here / f"{n}.{what}").read_text() for n in range(len(commands))]
            for what in ("out", "err", "status")
        )

    def summaries(self) -> list[dict[str, Any]]:
        """The last line that each command printed."""
        return [json.loads(output.splitlines()[-1]) for output in self.outputs]


class LossTests(SendCase):
    """A firewall between us and the target."""

    RULES = (
        "add table inet t; "
        "add chain inet t in { type filter hook input priority 0; }; "
        "add chain inet t out { type filter hook output priority 0; }; "
        "add rule inet t in ip daddr 127.0.0.2 drop; "
        "add rule inet t out ip saddr 127.0.0.3 tcp flags & rst == rst drop; "
        "add rule inet t in ip daddr 127.0.0.4 tcp sport { 50001, 50006 } drop; "
        "add rule inet t in ip daddr 127.0.0.5 reject with icmp type host-unreachable; "
        "add rule inet t out ip daddr 127.0.0.6 drop; "
    )

    def test_what_is_dropped_is_lost(self) -> None:
        """SYNs and answers dropped, or refused by ICMP, are lost: so many as that, and no more."""
        often = "-c 2 -i 0.3 --flows 8"
        commands = {f"{often} 127.0.0.{n}": "" for n in (1, 2, 3)}
        commands[f"{often} --source-port 50000 127.0.0.4"] = ""
        commands |= {f"{often} 127.0.0.{n}": "" for n in (5, 6)} | {"-c 1 192.0.2.77": ""}
        self.send(commands, prepare=f"nft '{self.RULES}'")
        heard, gone, unheard, some, refused, kept, nowhere = self.summaries()
        self.assertEqual(heard["total"]["lost"], 0)
        self.assertGreater(heard["total"]["received"], 0)
        for silent in (gone, unheard, refused):
            total = silent["total"]
            self.assertGreater(total["sent"], 0)
            self.assertEqual((total["lost_unknown"], total["received"]), (total["sent"], 0))
        lossy = {flow["source_port"] for flow in some["flows"] if flow["lost"]}
        self.assertEqual(lossy, {50001, 50006})
        for flow in some["flows"]:
            self.assertIn(flow["received"], (0,) if flow["lost"] else (1, 2))
        # What our own firewall keeps in, and what has no route, was never sent.
        self.assertEqual((kept["total"]["sent"], nowhere["total"]["sent"]), (0, 0))
        self.assertEqual(set(kept["failed_sends"]), {"EPERM"})
        self.assertEqual(nowhere["failed_sends"], {"ENETUNREACH": 1})
        for failed in (kept, nowhere):
            self.assertIn("send_failed", failed["pairs"][0]["suspect"])
        self.assertEqual([s.strip() for s in self.status], list("0110111"))


class RouteTests(SendCase):
    """Where hping3 listens."""

    PEER = """
mkfifo {0}/ready
unshare --net sh -c 'echo >{0}/ready; read x <{0}/over' &
peer=$!
read x <{0}/ready
in_peer() {{ nsenter --net=/proc/$peer/ns/net "$@"; }}
ip link add v0 type veth peer name v1 netns $peer
ip addr add 10.9.0.1/24 dev v0; ip addr add 10.9.0.7/24 dev v0; ip addr add 10.8.0.1/32 dev lo
ip link set v0 up
in_peer ip addr add 10.9.0.2/24 dev v1; in_peer ip link set v1 up
in_peer ip route add 10.8.0.1/32 via 10.9.0.1
"""

    def test_where_the_route_says(self) -> None:
        """It hears answers to any address of ours, over any device, and from ourselves."""
        here = Path(self.mktemp())
        here.mkdir()
        os.mkfifo(here / "over")
        commands = {
            f"-c 2 -i 0.1 --flows 2 {what}": ""
            for what in (
                "10.9.0.2", "--source 10.9.0.7 10.9.0.2", "--source 10.8.0.1 10.9.0.2",
                "10.9.0.1", "--source 10.8.0.1 10.9.0.7",
            )
        }  # fmt: skip
        self.send(commands, prepare=self.PEER.format(here), after=f"echo >{here}/over\nwait")
        for what, said in zip(commands, self.summaries(), strict=True):
            self.assertGreater(said["total"]["received"], 0, what)
            self.assertEqual(said["total"]["lost"], 0, what)


class UserTests(SendCase):
    """Who may not, or cannot, is told so in one line."""

    def test_refused(self) -> None:
        """Without privilege, without the program, over IPv6, from a device: exit status 2."""
        self.send(
            {
                "127.0.0.1": NOBODY, "--program /no/such 127.0.0.1": "", "::1": "",
                "--interface lo 127.0.0.1": "", "--family 6 localhost": "",
            }
        )  # fmt: skip
        self.assertEqual([s.strip() for s in self.status], ["2"] * 5)
        for text, said in zip(
            self.errors,
            ("may not open raw sockets", "there is no program /no/such", "are IPv4 only",
             "cannot be bound to a device", "are IPv4 only"),
            strict=True,
        ):  # fmt: skip
            self.assertIn(said, text)
            self.assertNotIn("Traceback", text)
            self.assertEqual(len([line for line in text.splitlines() if said in line]), 1)


class CollectorTests(SynchronousTestCase):
    """A whole collector."""

    def collector(self, **extra: Any) -> Collector:
        """One that probes two addresses by hping3, not started."""
        require_hping3()
        targets = {"a": "127.77.0.1", "b": "127.77.0.2"}
        extra = {"probe": "hping3", "targets": targets, "cps": 2, **extra}
        collector = Collector(configuration(8100, **extra))
        self.addCleanup(collector.stop)
        return collector

    @staticmethod
    def programs() -> list[int]:
        """The processes of hping3 that probe our addresses."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"hping3" in words[0] and any(word.startswith(b"127.77.") for word in words):
                found.append(int(path.parent.name))
        return found

    def test_collector(self) -> None:
        """It measures, takes up another configuration, and leaves no process behind."""
        collector = self.collector().start()
        fields = collector.wait_for(lambda f: f.get("received", 0) >= 4, "answers")
        self.assertEqual(fields["lost"], 0)
        self.assertEqual(fields["sent"], fields["received"])
        self.assertEqual(fields["ttl_at_collector"], 64)
        self.assertGreater(fields["rtt"], 0)
        tags = next(p["tags"] for p in collector.get("/influxdata") if "probe" in p["tags"])
        self.assertEqual((tags["probe"], tags["dst_port"]), ("hping3", "0"))
        other: dict[str, Any] = {"probe": "hping3", "targets": {"c": "127.77.0.3"}, "cps": 2}
        collector.configure(configuration(8100, program="/no/such", **other))
        collector.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: " in collector.text(), "the refusal")
        self.assertIn("there is no program /no/such", collector.text())
        collector.configure(configuration(8100, **other))
        collector.send_signal(signal.SIGHUP)
        collector.wait_for(lambda f: f.get("received", 0) >= 4, "the new target", name="c")
        until(self.programs, "a program that runs")
        self.assertIn(collector.stop(), (0, -signal.SIGTERM))
        self.assertEqual(self.programs(), [])
        self.assertNotIn("Traceback", collector.text())

    def test_refused_at_start(self) -> None:
        """Absent or without privilege: one line that names the test, and no start."""
        self.collector()
        for program, how, said in (
            ("/no/such", "", "there is no program /no/such"),
            ("hping3", NOBODY, "may not open raw sockets"),
        ):
            if how and not shutil.which("setpriv"):
                raise SkipTest("needs util-linux")
            collector = self.collector(program=program)
            os.chmod(collector.directory, 0o755)
            command = [*how.split(), str(BIN / "twistd"), "-n", "--pidfile=", collector.name]
            done = subprocess.run(
                [*command, *collector.arguments], cwd=collector.directory, timeout=60,
                capture_output=True, text=True,
            )  # fmt: skip
            self.assertNotEqual(done.returncode, 0)
            everything = done.stdout + done.stderr
            self.assertNotIn("Traceback", everything)
            (line,) = [line for line in everything.splitlines() if said in line]
            self.assertIn("collector.yaml: test default/default/default: ", line)
