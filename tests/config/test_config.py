"""Configurations that are right: what they mean."""

import os
import shutil
import socket
from pathlib import Path

from self_signed import self_signed
from twisted.internet import endpoints
from twisted.trial.unittest import SynchronousTestCase

from llama import config
from llama.config import detect
from llama.config.offered_load import offered, offered_to, share_of_rate

TESTDATA = Path(__file__).parent.parent / "testdata"


class ConfigCase(SynchronousTestCase):
    """Loads files of ``testdata`` and texts."""

    def copy(self, name: str) -> str:
        """Return the path of a copy of a test file beside copies of the key files, kept secret."""
        directory = Path(self.mktemp())
        directory.mkdir()
        for source in (TESTDATA / name, *TESTDATA.glob("*.keys")):
            shutil.copy(source, directory)
            os.chmod(directory / source.name, 0o600)
        return str(directory / name)

    def write(self, text: str) -> str:
        """Return the path of a new file with this text."""
        path = self.mktemp()
        Path(path).write_text(text)
        return path

    def one_test(self, *lines: str, target: str = "192.0.2.1", rest: str = "") -> config.Test:
        """Return the test of a full file in which the test has these further lines."""
        options = "".join(f"    {line}\n" for line in lines)
        text = f"tests:\n  - targets: lab\n{options}targets:\n  lab:\n    - ip: {target}\n{rest}"
        (test,) = config.load_collector(self.write(text)).tests
        return test


class AnchorTests(ConfigCase):
    def test_a_place_for_anchors(self) -> None:
        """What is only there to be referred to stands under a key that begins with x-."""
        text = (
            "x-iad: &iad {datacenter: iad}\ntests: [{targets: web}]\n"
            "targets: {web: [{ip: 192.0.2.1, tags: {<<: *iad, rack: 01}}]}\n"
        )
        (test,) = config.load_collector(self.write(text)).tests
        tags = test.targets[0].tags
        self.assertEqual((tags["datacenter"], tags["rack"]), ("iad", "01"))
        text = "x-hosts: &hosts [a, b]\ncollectors: *hosts\nwriters: [{type: file, path: x}]\n"
        read = detect.load(self.write(text))
        self.assertIsInstance(read, config.ScraperConfig)
        read = detect.load(self.write("x-sw1: {rack: 01}\nx-sw2: {rack: 02}\n"))
        assert isinstance(read, config.CollectorConfig)
        self.assertEqual([t.host for t in read.tests[0].targets], ["x-sw1", "x-sw2"])
        text = text.replace("collectors:", "limits: {x-pps: 3}\ncollectors:")
        self.assertRaises(config.ConfigErrors, detect.load, self.write(text))


class SimpleTests(ConfigCase):
    """The simple format."""

    def setUp(self) -> None:
        """Load the file."""
        self.config = config.load_collector(str(TESTDATA / "simple.yaml"))
        (self.test,) = self.config.tests

    def test_defaults(self) -> None:
        """It means STAMP in best effort from four ports of the system's choice, 4/s of each."""
        self.assertEqual([t.port for t in self.test.targets], [8100] * 4)
        self.assertEqual(self.test.probe, "stamp")
        self.assertEqual(len(self.test.source_ports), 4)
        for port in self.test.source_ports:
            self.assertEqual((port.address, port.number), (None, 0))
            self.assertEqual((port.dscps, port.timeout_s), ((0,), 1.0))
        self.assertEqual((self.test.rate_pps, self.test.timeout_s), (4.0, 1.0))
        self.assertEqual(self.config.interval_s, 30)
        self.assertEqual(self.config.api, "tcp:5000:interface=127.0.0.1")

    def test_values_as_written(self) -> None:
        """Tags are the text in the file, whatever YAML 1.1 would make of it."""
        tags = dict(self.test.targets[1].tags)
        del tags["src_hostname"], tags["dst_hostname"]
        self.assertEqual(
            tags,
            {
                "rack": "1_000",
                "powered": "on",
                "since": "2019-01-02",
                "window": "12:30",
                "nothing": "~",
                "none": "null",
                "empty": "",
                "quoted": "01 ",
                "octal": "0o17",
                "float": "1.50",
                "true": "yes",
            },
        )
        self.assertEqual(self.test.targets[0].tags["rack"], "01")

    def test_hostnames(self) -> None:
        """Both hostnames are added unless the tags set them, which also names the target."""
        tags = self.test.targets[0].tags
        self.assertEqual(tags["src_hostname"], socket.gethostname())
        self.assertEqual(tags["dst_hostname"], "reflector01")
        named = self.test.targets[2]
        self.assertEqual((named.name, named.host), ("db1", "2001:db8::1"))
        self.assertEqual((named.tags["src_hostname"], named.tags["dst_hostname"]), ("web1", "db1"))

    def test_port(self) -> None:
        """The reflectors' port, which the format has no place for, can be given beside it."""
        given = config.load_collector(str(TESTDATA / "simple.yaml"), port=9100)
        self.assertEqual(given.tests[0].targets[0].port, 9100)

    def test_hosts_named_like_sections(self) -> None:
        """Hosts called ``api`` or ``tests`` do not make a simple file a full one."""
        text = "api:\n  rack: 01\ntests:\n  rack: 02\nreflector01:\n  rack: 03\n"
        read = config.load_collector(self.write(text))
        (test,) = read.tests
        self.assertEqual([t.host for t in test.targets], ["api", "tests", "reflector01"])
        said = "is probed as a host: this file has the simple format, without sections"
        noted = [(note.line, note.message) for note in read.notes]
        self.assertEqual(noted, [(1, f"'api' {said}"), (3, f"'tests' {said}")])

    def test_sections_among_hosts(self) -> None:
        """A section of the full format among hosts is refused, not probed; empty ones are hosts."""
        for section, keys in (
            ("source_tags", "src_hostname: web1"),
            ("source_tags", "site: iad"),
            ("api", "bind: 0.0.0.0:5000"),
            ("limits", "pps: 1000"),
            ("summarization", "interval: 10, keep: 5"),
        ):
            path = self.write(f"web2: {{rack: 01}}\n{section}: {{{keys}}}\n")
            with self.assertRaises(config.ConfigErrors) as raised:
                config.load(path)
            (mistake,) = raised.exception.mistakes
            self.assertEqual(mistake.line, 2)
            self.assertIn(f"'{section}' is a section of the full format", mistake.message)
        for tags in ("{}", "", "{bind: 0.0.0.0:5000, rack: 01}"):
            (note,) = config.load_collector(self.write(f"web2: {{}}\napi: {tags}\n")).notes
            self.assertEqual(note.line, 2)


class FullTests(ConfigCase):
    """The full format as dropbox/llama has it."""

    def setUp(self) -> None:
        """Load the file."""
        self.config = config.load_collector(str(TESTDATA / "full.yaml"))

    def test_sections(self) -> None:
        """Interval, HTTP address and tests come from their sections."""
        self.assertEqual(self.config.interval_s, 30)
        self.assertEqual(self.config.api, "tcp:5000:interface=0.0.0.0")
        self.assertEqual(
            [test.name for test in self.config.tests],
            ["west/default/default", "east/mixed/slow"],
        )
        self.assertEqual([test.rate_pps for test in self.config.tests], [4.0, 0.2])

    def test_port_group(self) -> None:
        """Fixed ports count up from their base; a wildcard address leaves the choice open."""
        ports = self.config.tests[1].source_ports
        self.assertEqual(
            [(p.name, p.address, p.number, p.dscps, p.timeout_s) for p in ports],
            [
                ("default", None, 0, (0,), 1.0),
                ("default", None, 0, (0,), 1.0),
                ("voice", "192.0.2.9", 41000, (46,), 0.25),
                ("voice", "192.0.2.9", 41001, (46,), 0.25),
                ("voice", "192.0.2.9", 41002, (46,), 0.25),
            ],
        )
        self.assertEqual(self.config.tests[1].timeout_s, 1.0)

    def test_targets(self) -> None:
        """Targets keep their ports and their tags as written."""
        second = self.config.tests[0].targets[1]
        self.assertEqual((second.host, second.port), ("127.0.0.2", 8101))
        self.assertEqual((second.tags["rack"], second.tags["up"]), ("01", "on"))
        self.assertEqual(second.tags["dst_hostname"], "127.0.0.2")

    def test_defaults(self) -> None:
        """Without its sections, "default" is four ports, best effort, one second, 4/s of each."""
        test = self.one_test()
        self.assertEqual(test.source_ports, (config.SourcePort(name="default"),) * 4)
        self.assertEqual((test.rate_pps, test.timeout_s), (4.0, 1.0))

    def test_port_default_in_the_group_that_is_not_defined(self) -> None:
        """A port of that name is the one that the group "default" has four of."""
        port = "{ip: 127.0.0.1, port: 9000, dscp: EF, timeout: 300}"
        rest = "tests: [{targets: lab}]\ntargets: {lab: [{ip: 127.0.0.2}]}\n"
        (test,) = config.load_collector(self.write(f"ports: {{default: {port}}}\n{rest}")).tests
        self.assertEqual(
            [(p.address, p.number, p.dscps, p.timeout_s) for p in test.source_ports],
            [("127.0.0.1", 9000 + n, (46,), 0.3) for n in range(4)],
        )
        path = self.write(f"ports: {{default: {{port: 65534}}}}\n{rest}")
        with self.assertRaises(config.ConfigErrors) as refused:
            config.load_collector(path)
        self.assertIn(":2: port 'default' counts from 65534 to 65537", str(refused.exception))

    def test_ecn_bits_are_noted(self) -> None:
        """A TOS with ECN bits, most likely a DSCP by mistake, is read as TOS and remarked on."""
        rest = "ports:\n  default: {tos: 46}\nport_groups:\n  default: [{port: default}]\n"
        text = "tests: [{targets: lab}]\ntargets: {lab: [{ip: 192.0.2.1}]}\n" + rest
        read = config.load_collector(self.write(text))
        self.assertEqual(read.tests[0].source_ports[0].dscps, (11,))
        (note,) = read.notes
        self.assertEqual(note.line, 4)
        self.assertIn("write `dscp: 46`", note.message)


class ExtendedTests(ConfigCase):
    """What LLAMA adds to the full format."""

    def setUp(self) -> None:
        """Load the file."""
        self.config = config.load_collector(self.copy("extended.yaml"))
        self.tests = {test.name: test for test in self.config.tests}

    def test_collector(self) -> None:
        """Caps take multiples, intervals held are set, a bare port is served on localhost."""
        self.assertEqual((self.config.max_pps, self.config.max_bps), (1500.0, 2e6))
        self.assertEqual((self.config.interval_s, self.config.keep_intervals), (10, 100))
        self.assertEqual(self.config.api, "tcp:5000:interface=127.0.0.1")

    def test_source_tags(self) -> None:
        """Tags of the source are added to every target, whose own tags win."""
        tags = self.tests["ping"].targets[0].tags
        self.assertEqual((tags["rack"], tags["src_hostname"]), ("07", "probe7"))
        self.assertEqual(self.tests["classes"].targets[0].tags["rack"], "01")
        self.assertEqual(self.config.src_hostname, "probe7")

    def test_classes(self) -> None:
        """Classes are names in any case or numbers, and a test's own replace its ports'."""
        self.assertEqual(self.tests["classes"].source_ports[7].dscps, (0, 46, 10))
        self.assertEqual({p.dscps for p in self.tests["sizes"].source_ports}, {(34,)})

    def test_test_keys(self) -> None:
        """Family, source, interface, sizes, DF and timeout are the test's."""
        classes, sizes = self.tests["classes"], self.tests["sizes"]
        self.assertEqual(
            (classes.family, classes.source, classes.interface, classes.rate_pps),
            ("both", "192.0.2.1", "vrf-blue", 0.05),
        )
        self.assertEqual((sizes.sizes, sizes.df), ((100, 1472, 8972), True))
        self.assertEqual((sizes.timeout_s, sizes.source_ports[0].timeout_s), (2.0, 2.0))

    def test_options(self) -> None:
        """Every kind of probe has its own options, with their defaults."""
        self.assertEqual(self.tests["classes"].options, {"reply_dscp": 8, "tlvs": True})
        self.assertEqual(self.tests["ping"].options, {})
        self.assertEqual(self.tests["syn"].options, {"in_flight": 32})
        self.assertEqual(
            self.tests["original"].options,
            {"tcp_port": 0, "program": "hping3", "processes": 8, "spacing": 0.01},
        )
        self.assertEqual(self.tests["original"].family, "4")

    def test_key(self) -> None:
        """A key comes from its file, and neither it nor a token is ever printed."""
        key = self.tests["secret"].options["key"]
        self.assertEqual((key.id, key.secret[:4]), ("b2", b"\x1f\x1e\x1d\x1c"))
        self.assertNotIn("1f1e", repr(self.config).replace("\\x", ""))

    def test_first_key(self) -> None:
        """Without an id the first key of the file is used."""
        path = Path(self.copy("extended.yaml"))
        path.write_text(path.read_text().replace("    key: b2\n", ""))
        (key,) = [t.options["key"] for t in config.load(str(path)).tests if t.name == "secret"]
        self.assertEqual(key.id, "a1")

    def test_merge_keys_and_names(self) -> None:
        """Anchors and merge keys work; a target can be named otherwise than its host."""
        second = self.tests["classes"].targets[1]
        self.assertEqual((second.tags["rack"], second.tags["row"]), ("01", "b"))
        self.assertEqual((second.name, second.host, second.port), ("two", "reflector02", 9000))
        self.assertEqual(second.tags["dst_hostname"], "two")

    def test_equal_and_hashable(self) -> None:
        """The same file read twice is equal, so that a reload finds what changed."""
        again = config.load_collector(self.config.path)
        self.assertEqual(again, self.config)
        self.assertEqual(hash(again), hash(self.config))
        self.assertEqual(len({again, self.config}), 1)

    def test_same_target_told_apart(self) -> None:
        """One host may be probed twice where class, size, port group or a tag tells them apart."""
        text = (
            "port_groups: {a: [{port: default}], b: [{port: default}]}\n"
            "tests:\n"
            "  - {targets: one, dscp: EF}\n"
            "  - {targets: one, dscp: BE}\n"
            "  - {targets: one, size: 200}\n"
            "  - {targets: one, port_group: a}\n"
            "  - {targets: one, port_group: b}\n"
            "  - {targets: one, probe: icmp}\n"
            "  - {targets: two}\n"
            "targets:\n"
            "  one: [{ip: 192.0.2.1}, {ip: 192.0.2.1, port: 8101}]\n"
            "  two: [{ip: 192.0.2.1, tags: {path: b}}]\n"
        )
        error = self.assertRaises(
            config.ConfigErrors, config.load_collector, self.write(text)
        )  # ICMP has no port: its two targets are one
        self.assertEqual([m.line for m in error.mistakes], [11])
        fixed = text.replace("  - {targets: one, probe: icmp}\n", "")
        self.assertEqual(len(config.load_collector(self.write(fixed)).tests), 6)


class KeepTests(ConfigCase):
    """How many closed intervals are held."""

    def test_ten_minutes_and_more(self) -> None:
        """Unless told, a collector holds what a scraper misses in ten minutes, with a margin."""
        for interval in (1, 7, 30, 60, 600, 3600):
            text = f"summarization: {{interval: {interval}}}\ntests: [{{targets: lab}}]\n"
            read = config.load_collector(self.write(text + "targets: {lab: [{ip: 192.0.2.1}]}\n"))
            self.assertGreaterEqual(read.keep_intervals * interval, 600 + 3 * interval)


class IntervalTests(ConfigCase):
    """How long an interval is."""

    def test_units(self) -> None:
        """A collector's is a time like any other, of whole seconds."""
        for written, seconds in (("30", 30), ("10s", 10), ("5000ms", 5), ("2m", 120), ("1h", 3600)):
            text = f"summarization: {{interval: {written}}}\ntests: [{{targets: lab}}]\n"
            read = config.load_collector(self.write(text + "targets: {lab: [{ip: 192.0.2.1}]}\n"))
            self.assertEqual(read.interval_s, seconds)


class OfferedTests(ConfigCase):
    """What a configuration would send."""

    def test_sums(self) -> None:
        """Flows are targets by ports, classes and sizes; bits are those of IP packets."""
        test = self.one_test("dscp: [BE, EF]", "sizes: [100, 200]")
        figures = offered_to(test, test.targets[0])
        self.assertEqual((figures.series, figures.flows, figures.pps), (4, 16, 64.0))
        self.assertEqual(figures.bps, 32 * 8 * (128 + 228))

    def test_families(self) -> None:
        """An IPv6 target has the larger header; "both" counts a hostname twice."""
        test = self.one_test("size: 100", target="2001:db8::1")
        self.assertEqual(offered_to(test, test.targets[0]).bps, 16 * 8 * 148)
        test = self.one_test("size: 100", "family: both", target="reflector01")
        self.assertEqual(offered_to(test, test.targets[0]).bps, 16 * 8 * (128 + 148))

    def test_total_and_caps(self) -> None:
        """The total is that of all tests, and the tighter cap says what is left of the rate."""
        read = config.load_collector(self.copy("extended.yaml"))
        total = offered(read)
        one_by_one = [offered_to(test, target) for test in read.tests for target in test.targets]
        self.assertAlmostEqual(total.pps, sum(figures.pps for figures in one_by_one))
        self.assertAlmostEqual(total.bps, sum(figures.bps for figures in one_by_one))
        share = share_of_rate(read, total)
        self.assertAlmostEqual(share, min(1.0, 0.9 * 1500 / total.pps, 0.9 * 2e6 / total.bps))

    def test_no_caps(self) -> None:
        """Without caps everything is sent."""
        read = config.load_collector(str(TESTDATA / "full.yaml"))
        self.assertEqual(share_of_rate(read, offered(read)), 1.0)


class ServiceTests(ConfigCase):
    """The other services' files."""

    def test_reflector(self) -> None:
        """A reflector's file names places, limits, keys, prefixes and sessions."""
        path = Path(self.copy("simple.yaml")).parent / "reflector.yaml"
        path.write_text(
            "addresses: [192.0.2.1, '2001:db8::1']\n"
            "port: 862\n"
            "interface: vrf-red\n"
            "api: {bind: '[::1]:5002'}\n"
            "allow: [192.0.2.0/24, 2001:db8::/32, 198.51.100.7]\n"
            "legacy: no\n"
            "limits: {pps: 50k, pps_per_source: 100, burst: 5k, burst_per_source: 300,"
            " sessions: 1000}\n"
            "refuse_source_ports: [7, 19]\n"
            "permit_source_ports: [862, 53]\n"
            "stats: {interval: 10s, tags: {src_hostname: edge, rack: 01}}\n"
            "reply_dscps: [BE, EF]\n"
            "keys:\n"
            "  - {file: good.keys, key: a1, prefixes: 192.0.2.0/25}\n"
            "  - {file: good.keys, key: b2, ssids: [7, 8]}\n"
            "allow_unauthenticated: true\n"
            "sessions:\n"
            "  - {source: 192.0.2.7, source_port: 41000, ssid: 3}\n"
        )
        read = config.load(str(path))
        assert isinstance(read, config.ReflectorConfig)
        self.assertEqual(read.addresses, ("192.0.2.1", "2001:db8::1"))
        self.assertEqual((read.port, read.interface), (862, "vrf-red"))
        self.assertEqual(read.api, r"tcp6:5002:interface=\:\:1")
        self.assertEqual([p.prefixlen for p in read.allow], [24, 32, 32])
        self.assertEqual((read.legacy, read.allow_unauthenticated), (False, True))
        self.assertEqual((read.max_pps, read.max_pps_per_source), (50_000.0, 100.0))
        self.assertEqual((read.burst, read.burst_per_source), (5000, 300))
        self.assertEqual((read.max_sessions, read.refuse_source_ports), (1000, (7, 19)))
        self.assertEqual(read.permit_source_ports, (862, 53))
        self.assertEqual((read.interval_s, read.keep_intervals), (10, 93))
        self.assertEqual(read.src_hostname, "edge")
        self.assertEqual(read.stats_tags, {"src_hostname": "edge", "rack": "01"})
        self.assertEqual(read.reply_dscps, (0, 46))
        self.assertEqual([key.key.id for key in read.keys], ["a1", "b2"])
        self.assertEqual(
            (str(read.keys[0].prefixes[0]), read.keys[1].ssids), ("192.0.2.0/25", (7, 8))
        )
        self.assertEqual((read.sessions[0].source_port, read.sessions[0].ssid), (41000, 3))
        self.assertEqual(hash(read), hash(config.load_reflector(str(path))))

    def test_permitted_ports_of_strangers(self) -> None:
        """Ports of services that answer are refused where anybody may name them."""
        path = Path(self.copy("good.keys")).parent / "reflector.yaml"
        keys, allow = "keys: [{file: good.keys}]\n", "allow: [192.0.2.0/24]\n"
        anyone = "allow_unauthenticated: true\n"
        for further, right in (
            ("", False), (keys + anyone, False), (anyone, False),
            (allow, True), (keys, True), (allow + keys + anyone, True),
        ):  # fmt: skip
            path.write_text("port: 8100\npermit_source_ports: [19]\n" + further)
            if right:
                self.assertEqual(config.load_reflector(str(path)).permit_source_ports, (19,))
                continue
            with self.assertRaises(config.ConfigErrors) as refused:
                config.load_reflector(str(path))
            [mistake] = refused.exception.mistakes
            self.assertEqual(mistake.line, 2)
            self.assertIn("expected allow with the prefixes", mistake.message)

    def test_scraper(self) -> None:
        """A scraper's collectors become base URLs, and writers get their options as written."""
        path = Path(self.copy("simple.yaml")).parent / "scraper.yaml"
        (path.parent / "token").write_text("s3cret\n")
        (path.parent / "token").chmod(0o600)
        path.write_text(
            "interval: 15\n"
            "collectors: [c1, 'c2:5100', '2001:db8::1', '[2001:db8::2]:80', 'https://c3/llama/']\n"
            "writers:\n"
            "  - {type: influxdb, url: 'http://tsdb:8086', username: 007, create: yes}\n"
            "  - {type: influxdb2, token_file: token, bucket: ~}\n"
            "spool: {path: spool, max_bytes: 2Gi, max_age: 2d}\n"
        )
        read = config.load(str(path))
        assert isinstance(read, config.ScraperConfig)
        self.assertEqual(
            read.collectors,
            (
                "http://c1:5000",
                "http://c2:5100",
                "http://[2001:db8::1]:5000",
                "http://[2001:db8::2]:80",
                "https://c3/llama",
            ),
        )
        first, second = read.writers
        self.assertEqual(
            first.options, {"url": "http://tsdb:8086", "username": "007", "create": "yes"}
        )
        self.assertEqual((first.file, first.line), (str(path), 4))
        self.assertEqual(second.options, {"token": "s3cret", "bucket": None})
        assert read.spool is not None
        self.assertEqual(read.spool.path, str(path.parent / "spool"))
        self.assertEqual((read.spool.max_bytes, read.spool.max_age_s), (2 << 30, 172800.0))
        self.assertEqual(hash(read), hash(config.load_scraper(str(path))))

    def test_secrets_that_everyone_can_read(self) -> None:
        """A token that everyone on the host can read is refused, with what to do; a kept one is not."""
        token = Path(self.mktemp())
        token.write_text("s3cret\n")
        path = self.write(f"api: {{token_file: {token.absolute()}}}\n")
        for mode in (0o644, 0o642, 0o666):
            token.chmod(mode)
            refused = self.assertRaises(config.ConfigErrors, config.load_reflector, path)
            self.assertEqual(
                str(refused),
                f"{path}:1: {token.absolute()} is open to everyone on this host; run: chmod o="
                f" {token.absolute()}",
            )
        token.chmod(0o640)
        read = config.load_reflector(path)
        self.assertEqual((read.api_token, read.notes), ("s3cret", ()))
        self.assertNotIn("s3cret", repr(read))

    def test_web(self) -> None:
        """The web page has a place to listen and one store."""
        path = self.write("listen: ':5001'\nstore: {type: prometheus, url: 'http://tsdb:9090/'}\n")
        read = config.load(path)
        assert isinstance(read, config.WebConfig)
        self.assertEqual(read.listen, "tcp:5001")
        self.assertEqual(
            (read.store.type, read.store.options["url"]), ("prometheus", "http://tsdb:9090")
        )
        self.assertEqual(read, config.load_web(path))


class NameTests(SynchronousTestCase):
    """Names of traffic classes and of places to listen."""

    def test_classes(self) -> None:
        """Every named class goes to its number and back; numbers without a name have their own."""
        for name, number in config.DSCP_OF_CLASS.items():
            self.assertEqual(config.dscp_number(name.lower()), number)
            self.assertEqual(config.class_name(number), name)
        self.assertEqual(config.class_name(3), "DSCP 3")
        self.assertEqual(config.dscp_number("DSCP 3"), 3)
        self.assertEqual((config.dscp_number("cs0"), config.dscp_number("63")), (0, 63))
        for wrong in ("", "64", "-1", "AF44", "CS8", "٣"):
            self.assertRaises(ValueError, config.dscp_number, wrong)

    def test_standard_values(self) -> None:
        """The numbers are those of the RFCs."""
        known = {"CS1": 8, "AF11": 10, "AF23": 22, "AF43": 38, "VA": 44, "EF": 46, "LE": 1}
        for name, number in known.items():
            self.assertEqual(config.DSCP_OF_CLASS[name], number)

    def test_endpoints(self) -> None:
        """A bare port is localhost's, an empty host is every address, endpoints pass as they are."""
        for bind, expected in (
            ("5000", "tcp:5000:interface=127.0.0.1"),
            (":5000", "tcp:5000"),
            ("localhost:5000", "tcp:5000:interface=127.0.0.1"),
            ("0.0.0.0:5000", "tcp:5000:interface=0.0.0.0"),
            ("[::]:5000", r"tcp6:5000:interface=\:\:"),
            ("[::1]:5000", r"tcp6:5000:interface=\:\:1"),
            ("tcp:5000", "tcp:5000"),
            ("tcp:5000:interface=10.0.0.1", "tcp:5000:interface=10.0.0.1"),
            ("unix:/run/llama.sock", "unix:/run/llama.sock"),
            ("ssl:443:privateKey=k.pem", "ssl:443:privateKey=k.pem"),
        ):
            self.assertEqual(config.endpoint(bind), expected)
        for wrong in (
            "", "host", "h:5000", "1.2.3.4", "1.2.3.4:http", "tcp:http", "1.2.3.4:70000", "stdio:",
        ):  # fmt: skip
            self.assertRaises(ValueError, config.endpoint, wrong)


class EndpointFileTests(SynchronousTestCase):
    """Places to listen in a file."""

    def setUp(self) -> None:
        """Make a directory with a key, its certificate, and a configuration beside them."""
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key, self.certificate = self.directory / "key.pem", self.directory / "a:b.pem"
        self_signed(self.key, self.certificate)
        self.key.chmod(0o600)
        self.file = self.directory / "reflector.yaml"

    def load(self, bind: str) -> config.ReflectorConfig:
        """Return the configuration with this ``bind``."""
        self.file.write_text(f"api: {{bind: '{bind}'}}\n")
        return config.load_reflector(str(self.file))

    def test_not_installed(self) -> None:
        """An endpoint that this Twisted does not have takes a package."""
        self.assertEqual(self.load("haproxy:tcp:80").api, "haproxy:tcp:80")
        self.patch(config.endpoints, "_installed", set)
        wrong = self.assertRaises(config.ConfigErrors, self.load, "haproxy:tcp:80")
        self.assertIn("takes a package with endpoints of type haproxy", str(wrong))

    def test_files_are_beside_the_configuration(self) -> None:
        """Files of an endpoint are found from the configuration's directory, like any other."""
        colon = str(self.certificate).replace(":", "\\:")
        for bind in (r"ssl:443:privateKey=key.pem:certKey=a\:b.pem", r"ssl:443:key.pem:a\:b.pem"):
            read = self.load(bind)
            self.assertEqual(read.api, f"ssl:443:privateKey={self.key}:certKey={colon}")
        self.assertEqual(self.load("unix:llama.sock:mode=600").api,
                         f"unix:address={self.directory}/llama.sock:mode=600")  # fmt: skip

    def test_keys_that_everyone_can_read(self) -> None:
        """A private key that everyone on the host can read is told, with what to do about it."""
        self.key.chmod(0o644)
        (note,) = self.load(r"ssl:443:privateKey=key.pem:certKey=a\:b.pem").notes
        said = f"{self.key} is open to everyone on this host; run: chmod o= {self.key}"
        self.assertEqual(note.message, said)
        self.key.chmod(0o640)
        self.assertEqual(self.load(r"ssl:443:privateKey=key.pem:certKey=a\:b.pem").notes, ())

    def test_files_of_others(self) -> None:
        """A file that only who starts the service may read is no mistake, but told."""

        def forbidden(reactor: object, where: str) -> None:
            raise PermissionError(13, "Permission denied", str(self.key))

        self.patch(endpoints, "serverFromString", forbidden)
        (note,) = self.load(r"ssl:443:privateKey=key.pem:certKey=a\:b.pem").notes
        self.assertIn("key.pem cannot be read by this user", note.message)


class FrozenMappingTests(SynchronousTestCase):
    """The mapping that configurations are made of."""

    def test_equality_and_hash(self) -> None:
        """It equals a dict of the same items in any order, and hashes alike."""
        one = config.FrozenMapping({"a": 1, "b": 2})
        other = config.FrozenMapping({"b": 2, "a": 1})
        self.assertEqual(one, other)
        self.assertEqual(one, {"b": 2, "a": 1})
        self.assertEqual(hash(one), hash(other))
        self.assertNotEqual(one, config.FrozenMapping({"a": 1}))
        self.assertEqual((list(other), len(one), repr(one)), (["b", "a"], 2, "{'a': 1, 'b': 2}"))
