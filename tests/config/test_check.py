"""``llama check``: what it says about right and wrong files, and about the machine."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from fractions import Fraction
from math import comb
from pathlib import Path
from threading import Event
from unittest.mock import patch

from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llama import config
from llama.cli import COMMANDS, _resolved, main
from llama.cli._coverage import PATHS, expected_share, flows_to_cover
from llama.cli._demand import demand
from llama.cli._host import Host
from llama.cli._plan import warnings
from llama.config.urls import NO_TLS
from llama.http.client import explain
from llama.pinpoint.answers import MOST_TAGS

TESTDATA = Path(__file__).parent.parent / "testdata"

#: A machine as it comes.
STOCK = {
    "net/core/rmem_max": "212992",
    "net/core/rmem_default": "212992",
    "net/netfilter/nf_conntrack_max": "262144",
    "net/netfilter/nf_conntrack_count": "1000",
    "net/ipv4/neigh/default/gc_thresh3": "1024",
    "net/ipv6/neigh/default/gc_thresh3": "1024",
    "net/ipv4/ping_group_range": "1\t0",
    "net/ipv4/ip_local_port_range": "32768\t60999",
    "net/ipv4/ip_local_reserved_ports": "",
}


class CheckCase(SynchronousTestCase):
    """Runs the command in this process, against a machine made of files."""

    def sysctl(self, **settings: str) -> Path:
        """Return a directory shaped like ``/proc/sys``; ``a__b="1"`` sets a/b, "-" removes it."""
        root = Path(self.mktemp())
        given = STOCK | {name.replace("__", "/"): value for name, value in settings.items()}
        for name, value in given.items():
            if value != "-":
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(value + "\n")
        return root

    def file(self, text: str) -> str:
        """Return the path of a file with this text."""
        path = self.mktemp()
        Path(path).write_text(text)
        return path

    def check(self, *arguments: str, root: Path | None = None) -> Result:
        """Run ``llama check`` with these arguments."""
        root = root or self.sysctl()
        return CliRunner().invoke(main, ["check", *arguments, "--sysctl-root", str(root)])

    def answer(self, path: str, root: Path | None = None) -> dict:
        """Return what ``--json`` says of a file without mistakes."""
        result = self.check("--json", path, root=root)
        self.assertEqual((result.exit_code, result.stderr), (0, ""), result.output)
        return json.loads(result.stdout)

    def finding(self, path: str, setting: str, root: Path | None = None) -> dict:
        """Return what is said about one setting."""
        (found,) = [f for f in self.answer(path, root)["host"] if f["setting"] == setting]
        return found


class CommandTests(CheckCase):
    """The command itself."""

    def test_right(self) -> None:
        """A right file gives its tests, flows, rates and paths on standard output, status 0."""
        result = self.check(str(TESTDATA / "full.yaml"))
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        self.assertIn("a collector's configuration without mistakes", result.stdout)
        self.assertIn("test west/default/default: stamp to 2 targets", result.stdout)
        self.assertIn("to each target: 4 flows, 16 packets/s, 15.87 kbit/s", result.stdout)
        self.assertIn("test east/mixed/slow: stamp to 1 target\n", result.stdout)
        self.assertIn("in total: 13 flows, 33 packets/s", result.stdout)
        self.assertIn("caps: none", result.stdout)

    def test_wrong(self) -> None:
        """A wrong file gives all its mistakes on standard error, nothing else, status 1."""
        path = str(TESTDATA / "invalid-collector-several.yaml")
        result = self.check(path)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 6)
        for line in lines:
            self.assertTrue(line.startswith(f"{path}:"), line)

    def test_wrong_json(self) -> None:
        """With ``--json`` the mistakes are on standard output, too."""
        path = str(TESTDATA / "invalid-collector-several.yaml")
        result = self.check("--json", path)
        self.assertEqual(result.exit_code, 1)
        answer = json.loads(result.stdout)
        self.assertEqual((answer["file"], answer["ok"]), (path, False))
        self.assertEqual([m["line"] for m in answer["mistakes"]], [8, 9, 12, 15, 16, 20])

    def test_missing_file(self) -> None:
        """A file that is not there is a mistake like any other."""
        result = self.check("/no/such.yaml")
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(
            result.stderr, "/no/such.yaml: cannot be read: No such file or directory\n"
        )

    def test_usage(self) -> None:
        """Wrong usage has status 2."""
        self.assertEqual(self.check().exit_code, 2)
        self.assertEqual(self.check("a", "b").exit_code, 2)
        self.assertEqual(self.check("a", "--service", "baker").exit_code, 2)

    def test_services(self) -> None:
        """The file's keys tell whose it is."""
        database = str(Path(self.mktemp()).absolute())
        for service, text, said in (
            ("reflector", "port: 8100\nallow: [192.0.2.0/24]\n", "192.0.2.0/24"),
            ("reflector", "{}", "everyone"),
            (
                "scraper",
                f"collectors: [c1]\nwriters: [{{type: sqlite, path: {database}}}]\n",
                "http://c1:5000",
            ),
            ("web", "store: {type: sqlite, path: llama.sqlite}\n", "sqlite"),
            ("collector", "store01: {rack: 01}\n", "store01"),
        ):
            result = (
                self.check(self.file(text))
                if text != "{}"
                else self.check(self.file("{}"), "--service", "reflector")
            )
            self.assertEqual((result.exit_code, result.stderr), (0, ""), text)
            whose = "a web page" if service == "web" else f"a {service}"
            self.assertIn(f"{whose}'s configuration without mistakes", result.stdout)
            if service != "collector":
                self.assertIn(said, result.stdout)

    def test_names(self) -> None:
        """With ``--resolve`` names are looked up, and those that are not known are warned of."""
        path = self.file("127.0.0.1: {}\nlocalhost: {}\nnosuch.invalid: {}\n")
        self.assertNotIn("resolve", self.check(path).stdout)
        result = self.check(path, "--resolve")
        self.assertEqual(result.exit_code, 0)
        said = f"  {path}: 'nosuch.invalid' does not resolve on this machine (test 'simple')"
        self.assertEqual(result.stdout.splitlines()[-1], said)
        self.assertEqual(result.stdout.count("does not resolve"), 1)
        path = self.file(
            "store: {type: sqlite, path: x}\ncollectors: ['http://nosuch.invalid:5000/a']\n"
        )
        self.assertIn("'nosuch.invalid' does not", self.check(path, "--resolve").stdout)

    def resolved(self, text: str) -> list[str]:
        """Return the warnings of ``--resolve``, without the file, in a world of few hosts."""
        path = self.file(text)
        known = {
            "four": ["192.0.2.4"],
            "six": ["2001:db8::6"],
            "both": ["192.0.2.5", "2001:db8::5"],
        }
        known |= {"here": ["127.0.1.1"], "localhost": ["::1", "127.0.0.1"]}
        known |= {"partly": ["127.0.1.1", "192.0.2.9"]}

        def look_up(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
            if name not in known:
                silent = name.startswith("silent")
                raise socket.gaierror(socket.EAI_AGAIN if silent else socket.EAI_NONAME, "unknown")
            families = {False: socket.AF_INET, True: socket.AF_INET6}
            return [(families[":" in place], 2, 17, "", (place, 0)) for place in known[name]]

        self.patch(socket, "getaddrinfo", look_up)
        result = self.check(path, "--resolve", "--json")
        self.assertEqual(result.exit_code, 0, result.output)
        warnings = json.loads(result.stdout)["warnings"]
        return [text.replace(path, "FILE") for text in warnings if "on this machine" in text]

    def test_names_of_databases(self) -> None:
        """The names of a page's store and locator, and of a scraper's writers, are looked up, too."""
        lost = "does not resolve on this machine"
        self.assertEqual(
            self.resolved(
                "collectors: [four, nosuch-c]\npinpoint: http://nosuch-pin:5004\n"
                "store:\n  type: influxdb\n  url: http://nosuch-db:8086\n"
            ),
            [
                f"FILE: 'nosuch-c' {lost} (collectors)",
                f"FILE:4: 'nosuch-db' {lost} (store: url)",
                f"FILE: 'nosuch-pin' {lost} (pinpoint)",
            ],
        )
        self.assertEqual(
            self.resolved(
                "collectors: [six]\nwriters:\n  - {type: victoriametrics, url: 'http://both:1'}\n"
                "  - {type: influxdb, database: d, url: 'https://nosuch-db'}\n"
            ),
            [f"FILE:4: 'nosuch-db' {lost} (writer influxdb: url)"],
        )

    def test_names_of_a_family(self) -> None:
        """A target needs an address of each family that its test is for, or of its source."""
        targets = (
            "targets:\n  t: [{ip: four}, {ip: six}, {ip: both}, {ip: 192.0.2.1}, {ip: gone}]\n"
        )
        targets += "  v6: [{ip: four}, {ip: six}, {ip: both}]\n"
        for test, lacking in (
            ("targets: v6, family: '6'", [("four", 6)]),
            ("targets: v6, family: '4'", [("six", 4)]),
            ("targets: v6, family: both", [("four", 6), ("six", 4)]),
            ("targets: v6, source: '2001:db8::1'", [("four", 6)]),
            ("targets: v6, probe: hping3", [("six", 4)]),
            ("targets: v6", []),
        ):
            said = self.resolved(f"tests:\n  - {{{test}, name: T}}\n{targets}")
            expected = [
                f"FILE: '{host}' has no IPv{version} address on this machine (test 'T')"
                for host, version in lacking
            ]
            self.assertEqual(said, expected, test)
        said = self.resolved(
            f"tests:\n  - targets: t\n  - {{targets: t, family: '4', probe: icmp}}\n{targets}"
        )
        self.assertEqual([text.split("'")[1] for text in said], ["gone", "six"])

    def test_without_tls(self) -> None:
        """Whoever asks over https is told that TLS is not installed, wherever a URL stands."""
        writers = "collectors: [c1]\nwriters: [{type: influxdb, database: d, url: "
        store = "store: {type: sqlite, path: x}\n"
        for text in (
            "collectors: ['https://c1']\nwriters: [{type: sqlite, path: x}]\n",
            f"{writers}'https://db1'}}]\n",
            "store: {type: prometheus, url: 'https://db1'}\n",
            f"{store}pinpoint: https://p1\n",
            f"{store}collectors: [c1, 'HTTPS://c2']\n",
        ):
            path = self.file(text)
            self.assertEqual(self.answer(path)["warnings"], [], text)
            with patch.dict(sys.modules, {"OpenSSL": None}):
                (said,) = self.answer(path)["warnings"]
            self.assertTrue(said.endswith(f"not asked: {NO_TLS}"), said)
        with patch.dict(sys.modules, {"OpenSSL": None}):
            self.assertEqual(self.answer(self.file(f"{writers}'http://db1'}}]\n"))["warnings"], [])
        self.assertEqual(explain(NotImplementedError("SSL support unavailable"), 1.0), NO_TLS)

    def test_own_name_that_is_loopback(self) -> None:
        """Where a host's own name is 127.0.1.1, as on Debian, its collector is asked in vain."""
        writers = "writers: [{type: sqlite, path: x}]\n"
        (said,) = self.resolved(f"collectors: [here, localhost, partly, 127.0.0.1]\n{writers}")
        self.assertTrue(said.startswith("FILE: 'here' is 127.0.1.1 on this machine, which is "))
        self.assertEqual(self.resolved("here: {}\n"), [])  # probing oneself so is as good

    def test_silent_servers(self) -> None:
        """Names that no server answers for are not called unknown; if there are no others, one line."""
        silent = "is not known on this machine: its servers of the DNS do not answer, or fail"
        self.assertEqual(
            self.resolved("silent1: {}\nfour: {}\nsilent2: {}\nnosuch: {}\n"),
            [
                "FILE: 'nosuch' does not resolve on this machine (test 'simple')",
                f"FILE: 'silent1' {silent} (test 'simple')",
                f"FILE: 'silent2' {silent} (test 'simple')",
            ],
        )
        self.assertEqual(
            self.resolved("silent1: {}\nsilent2: {}\nsilent3: {}\n"),
            [
                "FILE: 'silent1' and 2 more names: no server of the DNS answers on this machine"
                " (test 'simple')"
            ],
        )

    def test_servers_that_hang(self) -> None:
        """Thousands of names take no longer than a few when nobody answers for any, nor does the end."""
        path = self.file("".join(f"host{n}: {{}}\n" for n in range(1000)))
        hang = Event()
        self.addCleanup(hang.set)
        self.patch(_resolved, "SILENCE_S", 0.05)
        self.patch(socket, "getaddrinfo", lambda *_, **__: hang.wait() and [])
        said = self.check(path, "--resolve").stdout.splitlines()[-1]
        self.assertIn("'host0' and 999 more names: no server of the DNS answers", said)

    def test_forced_service(self) -> None:
        """``--service`` says whose file it is where the keys do not."""
        path = self.file("prot: 8100\n")
        self.assertIn("did you mean 'port'?", self.check(path, "--service", "reflector").stderr)

    def test_writers(self) -> None:
        """A scraper's writers look at their own options."""
        text = "collectors: [c1]\nwriters:\n  - type: influxdb\n    databse: llama\n"
        path = self.file(text)
        result = self.check(path)
        self.assertEqual((result.exit_code, result.stdout), (1, ""))
        self.assertTrue(result.stderr.startswith(f"{path}:3: writer influxdb: "), result.stderr)

    def test_unknown_writer(self) -> None:
        """A type of writer that no plugin provides is a mistake that names those there are."""
        text = "collectors: [c1]\nwriters:\n  - type: influxbd\n"
        path = self.file(text)
        self.assertIn(f"{path}:3: ", self.check(path).stderr)
        self.assertIn("victoriametrics", self.check(path).stderr)


class HelpTests(SynchronousTestCase):
    """The group of commands."""

    def test_help_is_light(self) -> None:
        """``llama --help`` lists every command and imports none of what they need."""
        code = (
            "import sys; from llama.cli import main; main(['--help'], standalone_mode=False);"
            "print([m for m in ('twisted', 'numpy', 'yaml', 'rich') if m in sys.modules])"
        )
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for name, (_, line) in COMMANDS.items():
            self.assertIn(f"  {name} ", said)
            self.assertIn(line.split()[0], said)
        self.assertTrue(said.endswith("[]\n"), said)

    def test_commands_are_there(self) -> None:
        """Every command of the table can be asked for help."""
        for name in COMMANDS:
            result = CliRunner().invoke(main, [name, "--help"])
            self.assertEqual(result.exit_code, 0, result.output)
            self.assertIn("Usage:", result.stdout)

    def test_unknown_command(self) -> None:
        """An unknown command is wrong usage."""
        self.assertEqual(CliRunner().invoke(main, ["chek"]).exit_code, 2)


class CoverageTests(SynchronousTestCase):
    """Flows and equal-cost paths."""

    @staticmethod
    def chance(paths: int, flows: int) -> Fraction:
        """Return the probability that every path is covered, by inclusion and exclusion."""
        return sum(
            (
                (-1) ** k * comb(paths, k) * Fraction(paths - k, paths) ** flows
                for k in range(paths + 1)
            ),
            Fraction(0),
        )

    def test_flows_for_all(self) -> None:
        """It is the least number of flows that covers all paths with the probability asked for."""
        for paths in PATHS:
            flows = flows_to_cover(paths)
            self.assertGreaterEqual(self.chance(paths, flows), Fraction(9, 10))
            self.assertLess(self.chance(paths, flows - 1), Fraction(9, 10))

    def test_small(self) -> None:
        """One path needs one flow; two paths and 90 % need five (1 - 2/2^5 > 0.9 > 1 - 2/2^4)."""
        self.assertEqual((flows_to_cover(1), flows_to_cover(2)), (1, 5))

    @given(paths=st.integers(1, 12), percent=st.integers(1, 99))
    def test_any(self, paths: int, percent: int) -> None:
        """The same holds for any number of paths and any probability."""
        flows = flows_to_cover(paths, percent)
        self.assertGreaterEqual(self.chance(paths, flows), Fraction(percent, 100))
        self.assertTrue(flows == paths or self.chance(paths, flows - 1) < Fraction(percent, 100))

    def test_share(self) -> None:
        """One flow covers one path; the share grows to one."""
        self.assertAlmostEqual(expected_share(4, 1), 0.25)
        self.assertAlmostEqual(expected_share(4, 2), 0.4375)
        self.assertGreater(expected_share(64, 1000), 0.999)

    def test_expectation(self) -> None:
        """The expected share is the mean over all ways in which flows can fall onto paths."""
        from itertools import product

        ways = list(product(range(3), repeat=4))
        mean = sum(len(set(way)) / 3 for way in ways) / len(ways)
        self.assertAlmostEqual(expected_share(3, 4), mean)


class LoadTests(CheckCase):
    """What a collector would send and need."""

    def test_json(self) -> None:
        """The same figures as JSON: tests, totals, caps, memory, sockets."""
        answer = self.answer(str(TESTDATA / "full.yaml"))
        self.assertEqual((answer["service"], answer["interval_s"]), ("collector", 30))
        west, east = answer["tests"]
        self.assertEqual(west["per_target"], {"series": 1, "flows": 4, "pps": 16.0, "bps": 15872.0})
        self.assertEqual((east["classes"], east["source_ports"]), (["BE", "EF"], 5))
        self.assertEqual(west["per_interval"], {"flow_probes": 120.0, "series_probes": 480.0})
        self.assertEqual((answer["total"]["flows"], answer["total"]["pps"]), (13, 33.0))
        self.assertEqual(answer["caps"]["share_of_rate"], 1.0)
        self.assertEqual(answer["sockets"], 4 + 2 + 3)
        self.assertEqual([row["paths"] for row in west["coverage"]], list(PATHS))

    def test_sizes(self) -> None:
        """A test without sizes has the size of its kind of probe, which is less without TLVs."""
        for test, size in (("tlvs: true", 96), ("tlvs: false", 44), ("probe: icmp", 56)):
            path = self.file(
                f"tests: [{{targets: lab, {test}}}]\ntargets: {{lab: [{{ip: 192.0.2.1}}]}}\n"
            )
            (said,) = self.answer(path)["tests"]
            figures = said["per_target"]
            self.assertEqual(said["sizes"], [size])
            self.assertEqual(figures["bps"] / figures["pps"], 8 * (20 + 8 + size))

    def test_cap(self) -> None:
        """A cap below the configured rate is shown with the rate that is left."""
        path = self.file(
            "limits: {pps: 4, bps: 10k}\ntests: [{targets: lab}]\n"
            "targets: {lab: [{ip: 192.0.2.1}]}\n"
        )
        answer = self.answer(path)
        self.assertEqual(answer["caps"]["share_of_rate"], 0.225)
        self.assertEqual(answer["caps"]["effective_pps"], 3.6)
        self.assertIn("the caps leave 22.5%", answer["warnings"][0])
        self.assertIn("4 packets/s and 10 kbit/s, which leave 22.5%", self.check(path).stdout)

    def test_least_loss(self) -> None:
        """At a lower rate less loss is seen; a probe in ten intervals shows all or nothing."""
        text = (
            "{rest}rate_limits: {{default: {{cps: {cps}}}}}\ntests: [{{targets: lab}}]\n"
            "targets: {{lab: [{{ip: 192.0.2.1}}]}}\n"
        )
        for cps, rest, said in (
            (4, "", "0.21 % of a target's 480 probes of a class and size, 0.83 % of a flow's 120"),
            (4, "limits: {pps: 8}\n", "0.46 % of a target's 216 probes of a class and size, 1.9 %"),
            (0.0033, "", "100 % of a target's 0.396 probes of a class and size, 100 % of a flow's"),
        ):
            path = self.file(text.format(cps=cps, rest=rest))
            self.assertIn(f"  least loss an interval shows: {said}", self.check(path).stdout)

    def test_more_than_was_measured(self) -> None:
        """10,000 hosts in the simple format are 160,000 packets/s, which nobody has seen sent."""
        hosts = "".join(f"10.0.{n >> 8}.{n & 255}: {{}}\n" for n in range(10_000))
        (warning,) = self.answer(self.file(hosts))["warnings"]
        self.assertIn("160,000 packets/s are more than a collector was measured with", warning)
        hosts = "".join(f"10.0.{n >> 8}.{n & 255}: {{}}\n" for n in range(3000))
        self.assertEqual(self.answer(self.file(hosts))["warnings"], [])

    def test_memory_grows(self) -> None:
        """More targets, flows or held intervals need more memory; 10,000 x 16 fit in 250 MB."""

        def memory(targets: int, count: int, keep: int) -> int:
            text = (
                f"summarization: {{keep: {keep}}}\nport_groups: {{default: [{{port: default, count:"
                f" {count}}}]}}\nrate_limits: {{default: {{cps: 0.1}}}}\ntests: [{{targets: lab}}]\n"
                "targets:\n  lab:\n"
            ) + "".join(f"  - {{ip: 10.0.{n >> 8}.{n & 255}}}\n" for n in range(targets))
            return demand(config.load_collector(self.file(text))).memory

        base = memory(100, 4, 33)
        self.assertGreater(memory(1000, 4, 33), base)
        self.assertGreater(memory(100, 64, 33), base)
        self.assertGreater(memory(100, 4, 330), base)

    def test_warnings(self) -> None:
        """Legal but suspicious things are warnings, and the status stays 0."""
        text = (
            "summarization: {interval: 5}\n"
            "ports: {slow: {timeout: 6000, tos: 46}}\n"
            "port_groups: {one: [{port: slow}]}\n"
            "rate_limits: {rare: {cps: 0.01}}\n"
            "tests:\n"
            "  - {name: a, targets: lab, port_group: one, rate_limit: rare}\n"
            "  - {name: b, targets: lab, probe: icmp}\n"
            "targets: {lab: [{ip: 192.0.2.1, tags: {class: gold}}]}\n"
        )
        path = self.file(text)
        said = "\n".join(self.answer(path)["warnings"])
        for part in (
            f"{path}:2: tos 46 has ECN bits set",
            f"{path}:8: tag 'class' does not show",
            "test 'a': one source port is one flow",
            "test 'a': its timeout of 6 s is longer than the interval of 5 s",
            "test 'a': a flow sends 0.05 probes an interval",
            "test 'b': icmp probes have no ports",
        ):
            self.assertIn(part, said)
        self.assertEqual(self.check(path).stdout.count("\n  test '"), 4)

    def test_too_few_to_judge(self) -> None:
        """It is told if flows send fewer probes an interval than it takes to say where they are lost."""
        for cps, warned in ((0.5, True), (1, False)):
            path = self.file(
                f"summarization: {{interval: 5}}\nrate_limits: {{default: {{cps: {cps}}}}}\n"
                "tests: [{targets: lab}]\ntargets: {lab: [{ip: 192.0.2.1}]}\n"
            )
            said = [line for line in self.answer(path)["warnings"] if "llama pinpoint" in line]
            self.assertEqual(len(said), warned, said)

    def test_names_of_tags(self) -> None:
        """More names of tags than are read later are warned of, however few each target has."""

        def warned(names: int) -> list[str]:
            hosts = "".join(
                f"  - {{ip: 10.0.{n >> 6}.{n & 63}, tags: {{rack: r1, serial{n}: x}}}}\n"
                for n in range(names - 4)  # besides rack, site, src_hostname and dst_hostname
            )
            text = "source_tags: {site: s1}\ntests: [{targets: lab}, {targets: lab, probe: tcp}]\n"
            path = self.file(f"{text}targets:\n  lab:\n{hosts}")
            said = self.answer(path)["warnings"]
            return [line.replace(path, "FILE") for line in said if "names of tags" in line]

        self.assertEqual(warned(MOST_TAGS), [])
        (said,) = warned(MOST_TAGS + 1)
        self.assertTrue(said.startswith("FILE: its targets have 251 names of tags together,"), said)
        self.assertIn("such as 'serial", said)
        self.assertIn("llama pinpoint leaves out all beyond 250", said)
        self.assertIn("name tags alike at every target", said)

    def test_icmp_covers_nothing(self) -> None:
        """No coverage of equal-cost paths is promised for probes that do not spread over them."""
        path = self.file(
            "tests: [{targets: lab, probe: icmp}]\ntargets: {lab: [{ip: 192.0.2.1}]}\n"
        )
        self.assertEqual(self.answer(path)["tests"][0]["coverage"], [])


class ReflectorTests(CheckCase):
    """What is said of a reflector."""

    def warnings(self, text: str, root: Path | None = None) -> list[str]:
        """Return the warnings about a reflector's file with this text."""
        result = self.check("--json", self.file(text), "--service", "reflector", root=root)
        self.assertEqual((result.exit_code, result.stderr), (0, ""), result.output)
        return json.loads(result.stdout)["warnings"]

    def test_answers_everyone(self) -> None:
        """One that answers whoever can reach it is warned of, unless only its own machine can."""
        keys = Path(self.mktemp()).absolute()
        keys.write_text(f"a1 {'11' * 32}\n")
        keys.chmod(0o600)
        for text, warned in (
            ("port: 8100\n", True),
            ("legacy: false\nlimits: {pps: 10}\n", True),
            (f"keys: [{{file: {keys}}}]\nallow_unauthenticated: true\n", True),
            ("addresses: [127.0.0.1, 192.0.2.1]\n", True),
            ("addresses: ['fe80::1%v0']\n", True),
            (f"keys: [{{file: {keys}}}]\n", False),
            ("allow: [192.0.2.0/24]\n", False),
            ("sessions: [{source: 192.0.2.1}]\n", False),
            ("addresses: [127.0.0.1, '::1']\n", False),
        ):
            said = [line for line in self.warnings(text) if "answers everyone" in line]
            self.assertEqual(len(said), warned, text)

    def test_low_port(self) -> None:
        """A port that takes a capability is named, with the capability."""
        quiet = "addresses: 127.0.0.1\nport: "
        (said,) = self.warnings(f"{quiet}862\n")
        self.assertIn("port 862 is below 1024", said)
        self.assertIn("CAP_NET_BIND_SERVICE", said)
        self.assertEqual(self.warnings(f"{quiet}8100\n"), [])
        self.assertEqual(self.warnings(f"{quiet}0\n"), [])
        low = self.sysctl(net__ipv4__ip_unprivileged_port_start="500")
        self.assertEqual(self.warnings(f"{quiet}862\n", low), [])


class HostTests(CheckCase):
    """What this machine has to allow."""

    def many(self, targets: int, rest: str = "", count: int = 4, test: str = "") -> str:
        """Return the path of a full file with so many targets and source ports."""
        return self.file(
            f"port_groups: {{default: [{{port: default, count: {count}}}]}}\n"
            f"tests: [{{targets: lab{test}}}]\n{rest}targets:\n  lab:\n"
            + "".join(
                f"  - {{ip: 10.{n >> 16}.{n >> 8 & 255}.{n & 255}}}\n" for n in range(targets)
            )
        )

    def test_small_load(self) -> None:
        """Three targets need nothing that a stock machine does not give."""
        answer = self.answer(str(TESTDATA / "full.yaml"))
        self.assertEqual(
            {f["setting"] for f in answer["host"] if not f["suffices"]},
            {
                "net.ipv4.ip_local_reserved_ports",
            },
        )

    def test_receive_buffer(self) -> None:
        """A busy socket needs a larger rmem_max, and the command to set it helps."""
        path = self.many(1000)
        found = self.finding(path, "net.core.rmem_max")
        self.assertFalse(found["suffices"])
        name, _, value = found["command"].removeprefix("sysctl -w ").partition("=")
        better = self.sysctl(**{name.replace(".", "__"): value})
        self.assertTrue(self.finding(path, "net.core.rmem_max", better)["suffices"])

    def test_receive_buffer_too_busy(self) -> None:
        """Where no buffer would do, more source ports are the advice."""
        rest = "rate_limits: {default: {cps: 100}}\n"
        found = self.finding(self.many(2000, rest), "net.core.rmem_max")
        self.assertFalse(found["suffices"])
        self.assertIn("more source ports", found["message"])

    def test_default_buffer(self) -> None:
        """A default above the maximum would shrink the buffers of those who ask."""
        root = self.sysctl(net__core__rmem_default="8388608")
        found = self.finding(self.many(1), "net.core.rmem_default", root)
        self.assertEqual(
            (found["suffices"], found["command"]), (False, "sysctl -w net.core.rmem_max=8388608")
        )

    def test_conntrack(self) -> None:
        """Flows and what is tracked already must fit into the table."""
        root = self.sysctl(net__netfilter__nf_conntrack_max="4096")
        path = self.many(1000)
        found = self.finding(path, "net.netfilter.nf_conntrack_max", root)
        self.assertEqual(
            (found["suffices"], found["command"]),
            (False, "sysctl -w net.netfilter.nf_conntrack_max=8192"),
        )

    def test_no_conntrack(self) -> None:
        """Where no connection tracking is loaded nothing is said of it."""
        root = self.sysctl(
            net__netfilter__nf_conntrack_max="-", net__netfilter__nf_conntrack_count="-"
        )
        settings = {f["setting"] for f in self.answer(self.many(1), root)["host"]}
        self.assertNotIn("net.netfilter.nf_conntrack_max", settings)

    def test_neighbours(self) -> None:
        """More targets than the neighbour table takes are told, for each address family."""
        found = self.finding(self.many(1025), "net.ipv4.neigh.default.gc_thresh3")
        self.assertEqual(
            (found["suffices"], found["command"]),
            (False, "sysctl -w net.ipv4.neigh.default.gc_thresh3=2048"),
        )
        path = self.file("tests: [{targets: lab}]\ntargets: {lab: [{ip: 2001:db8::1}]}\n")
        self.assertTrue(self.finding(path, "net.ipv6.neigh.default.gc_thresh3")["suffices"])

    def test_open_files(self) -> None:
        """Sockets must fit into the limit of open files."""
        needs = demand(config.load_collector(self.many(1, count=2000)))
        few = Host(root=self.sysctl(), open_files=1024)
        (found,) = [f for f in few.findings(needs) if f.setting == "open files"]
        self.assertEqual((found.suffices, found.command), (False, "ulimit -n 4096"))
        many = Host(root=self.sysctl(), open_files=resource.RLIM_INFINITY)
        (found,) = [f for f in many.findings(needs) if f.setting == "open files"]
        self.assertTrue(found.suffices)

    def test_ping_group(self) -> None:
        """ICMP without root needs the user's group in the range, or root."""
        needs = demand(config.load_collector(self.many(1, test=", probe: icmp")))
        for superuser, value, suffices in (
            (False, "1\t0", False),
            (False, "0\t2147483647", True),
            (False, "0\t99", False),
            (True, "1\t0", True),
        ):
            root = self.sysctl(net__ipv4__ping_group_range=value)
            host = Host(root=root, groups=frozenset((100,)), superuser=superuser)
            (found,) = [f for f in host.findings(needs) if "ping" in f.setting]
            self.assertIs(found.suffices, suffices)
            self.assertEqual(found.command is None, suffices)

    def test_udp_needs_no_ping_group(self) -> None:
        """Without ICMP nothing is said of it."""
        settings = {f["setting"] for f in self.answer(self.many(1))["host"]}
        self.assertNotIn("net.ipv4.ping_group_range", settings)

    def test_port_range(self) -> None:
        """Source ports from the system must leave room for other programs."""
        found = self.finding(self.many(1, count=20000), "net.ipv4.ip_local_port_range")
        self.assertEqual(
            (found["suffices"], found["command"]),
            (False, 'sysctl -w net.ipv4.ip_local_port_range="1024 65535"'),
        )

    def test_fixed_ports(self) -> None:
        """Fixed source ports where the system chooses from must be reserved."""
        path = str(TESTDATA / "full.yaml")
        setting = "net.ipv4.ip_local_reserved_ports"
        found = self.finding(path, setting, self.sysctl(net__ipv4__ip_local_reserved_ports="50000"))
        self.assertEqual(
            (found["suffices"], found["command"]),
            (False, f"sysctl -w {setting}=50000,41000-41002"),
        )
        for settings in (
            {"net__ipv4__ip_local_reserved_ports": "50000,41000-41099"},
            {"net__ipv4__ip_local_port_range": "50000 60000"},
        ):
            self.assertTrue(self.finding(path, setting, self.sysctl(**settings))["suffices"])

    def test_several_fixed_ports(self) -> None:
        """One command reserves all of them: each replaces what was reserved before."""
        path = self.file(
            "ports: {a: {port: 41000}, b: {port: 45000}}\n"
            "port_groups: {default: [{port: a, count: 2}, {port: b}]}\n"
            "tests: [{targets: lab}]\ntargets: {lab: [{ip: 192.0.2.1}]}\n"
        )
        setting = "net.ipv4.ip_local_reserved_ports"

        def commands(reserved: str) -> list[str | None]:
            root = self.sysctl(net__ipv4__ip_local_reserved_ports=reserved)
            found = self.answer(path, root)["host"]
            return [each["command"] for each in found if each["setting"] == setting]

        self.assertEqual(commands("50000"), [f"sysctl -w {setting}=50000,41000-41001,45000"] * 2)
        self.assertEqual(
            commands("41000-41001,50000"),
            [None, f"sysctl -w {setting}=41000-41001,50000,45000"],
        )
        self.assertEqual(commands("41000-41001,45000,50000"), [None, None])

    def test_low_ports(self) -> None:
        """A source port that only root may use is told."""
        rest = "ports: {default: {port: 500}}\n"
        needs = demand(config.load_collector(self.many(1, rest)))
        root = self.sysctl(net__ipv4__ip_unprivileged_port_start="1024")
        setting = "net.ipv4.ip_unprivileged_port_start"
        for superuser in (False, True):
            host = Host(root=root, superuser=superuser)
            (found,) = [f for f in host.findings(needs) if f.setting == setting]
            self.assertIs(found.suffices, superuser)
        self.assertEqual(
            [f for f in host.findings(demand(config.load_collector(self.many(1))))
             if f.setting == setting],
            [],
        )  # fmt: skip

    def test_asked_as_root(self) -> None:
        """What root may do is told as what root may do."""
        for user, heading in (
            (0, "this machine, for root: ask as the collector's user, if that is another"),
            (1000, "this machine"),
        ):
            self.patch(os, "geteuid", lambda user=user: user)
            self.assertIn(f"\n{heading}\n", self.check(self.many(1)).stdout)
            self.assertIs(self.answer(self.many(1))["superuser"], user == 0)

    def test_interfaces(self) -> None:
        """A device that this machine does not have is told."""
        path = self.many(1, test=", interface: vrf-blue")
        root = self.sysctl(net__ipv4__conf__lo__forwarding="0")
        self.assertFalse(self.finding(path, "interface vrf-blue", root)["suffices"])
        root = self.sysctl(**{"net__ipv4__conf__vrf-blue__forwarding": "0"})
        self.assertTrue(self.finding(path, "interface vrf-blue", root)["suffices"])
        path = self.file("tests: [{targets: t}]\ntargets: {t: [{ip: 'fe80::1%wan9'}]}\n")
        self.assertFalse(self.finding(path, "interface wan9", root)["suffices"])

    def test_programs(self) -> None:
        """A program that is not there, or is not what it should be, is told, with what to do."""
        for program, value, said in (
            ("no-such", "missing", "install hping3"),
            ("true", shutil.which("true"), "does not do what hping3 does"),
        ):
            test = f", probe: hping3, program: {program}"
            needs = demand(config.load_collector(self.many(1, test=test)))
            (found,) = [f for f in Host(root=self.sysctl()).findings(needs) if "prog" in f.setting]
            self.assertEqual((found.suffices, found.value), (False, value))
            self.assertIn(said, found.message)

    def test_runs_of_programs(self) -> None:
        """Runs that take longer than there is time, or processes, are warned of."""
        slow = warnings(config.load_collector(self.many(3, test=", probe: hping3")))
        self.assertFalse([line for line in slow if "hping3" in line])
        for test, said in (
            (", probe: hping3, spacing: 400, dscp: [BE, EF]", "follow one another"),
            (", probe: hping3, processes: 1", "`processes` is 1"),
        ):
            found = warnings(config.load_collector(self.many(30, test=test)))
            self.assertTrue([line for line in found if said in line], found)

    def test_commands_are_shown(self) -> None:
        """What to set stands in the text as the command that sets it."""
        said = self.check(self.many(2000)).stdout
        self.assertIn("  SET net.ipv4.neigh.default.gc_thresh3 = 1024: 2,000 IPv4 targets", said)
        self.assertIn("\n        sysctl -w net.ipv4.neigh.default.gc_thresh3=4096\n", said)

    def test_nothing_readable(self) -> None:
        """Where nothing can be read nothing is claimed but for the open files."""
        root = Path(self.mktemp())
        root.mkdir()
        self.assertEqual(
            [f["setting"] for f in self.answer(self.many(2000), root)["host"]], ["open files"]
        )


class InstalledTests(SynchronousTestCase):
    """The program as people run it."""

    def test_program(self) -> None:
        """``llama check`` of a wrong file ends with status 1 and no traceback."""
        program = shutil.which("llama", path=str(Path(sys.executable).parent))
        if program is None:
            self.fail("the command llama is not installed beside this Python")
        path = str(TESTDATA / "invalid-collector-tab.yaml")
        done = subprocess.run([program, "check", path], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(done.stderr, f"{path}:3: a tab indents this line, expected spaces\n")
