"""The fabric: its plan, its namespaces, and every fault in them."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from ipaddress import ip_network
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llama.lab import faults, hosts, scenario
from llama.lab.fabric import MANAGEMENT, Fabric
from llama.lab.faults import KINDS, Fault
from llama.lab.hosts import Traffic
from llama.lab.namespaces import NAMESPACES, Lab, LabError, clear, end, started_at

NEEDS = (
    None
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "sysctl")))
    else "needs root, iproute2, procps and nftables"
)
#: One small fabric for all tests of this process, named so that parallel runs do not meet.
NAME = f"test{os.getpid()}"

#: Sends `count` datagrams per flow, answers what came back by source port; DSCP in and out.
ASK = """
import json, socket, sys, time
host, count, flows, size, tos = sys.argv[1], *map(int, sys.argv[2:6])
sockets = []
for n in range(flows):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: don't fragment
    s.bind(("", 20000 + n)); s.setblocking(False); sockets.append(s)
for k in range(count):
    for s in sockets:
        try: s.sendto(b"x" * size, (host, 7777))
        except OSError: pass
    time.sleep(0.005)
time.sleep(0.3)
back, marks = [], set()
for s in sockets:
    got = 0
    while True:
        try: marks.add(s.recv(2000)[0]); got += 1
        except OSError: break
    back.append(got)
print(json.dumps([back, sorted(marks)]))
"""
#: Answers every datagram with the TOS octet it came with.
ANSWER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
s.bind(("", 7777))
print("ready", flush=True)
while True:
    data, cmsgs, _, who = s.recvmsg(2000, 100)
    s.sendto(bytes([cmsgs[0][2][0]]), who)
"""
#: The hop that answers a datagram of one flow with a given TTL, by the socket's error queue.
HOP = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, int(sys.argv[2])); s.setblocking(False)
s.bind(("", int(sys.argv[3]))); s.sendto(b"", (sys.argv[1], 7777))
for _ in range(50):
    try: c = s.recvmsg(100, 500, 0x2000)[1]
    except OSError: time.sleep(0.01); continue
    print(socket.inet_ntoa(c[0][2][20:24])); break
"""


class Plan(SynchronousTestCase):
    def test_addresses_are_unique(self):
        """No two interfaces have an address in common, and both ends of a cable share a subnet."""
        fabric = Fabric(9, 12, 11)
        seen = set()
        for link in (*fabric.links, *fabric.management_links):
            self.assertEqual(
                ip_network(f"{link.a.ipv4}/31", strict=False),
                ip_network(f"{link.b.ipv4}/31", strict=False),
            )
            seen |= {link.a.ipv4, link.b.ipv4, link.a.ipv6, link.b.ipv6}
        self.assertEqual(len(seen), 4 * (9 * 12 + 2 * 9 * 11))

    def test_interface_names_fit(self):
        """Interface names stay within the kernel's 15 characters in the largest fabric."""
        fabric = Fabric(99, 99, 1)
        self.assertTrue(
            all(len(e.interface) < 16 for link in fabric.links for e in (link.a, link.b))
        )

    def test_sizes_are_checked(self):
        """A fabric that cannot be numbered, or without anybody in it, is refused."""
        for size in ((0, 1, 1), (1, 100, 1), (1, 1, -1)):
            with self.assertRaises(ValueError):
                Fabric(*size)

    def test_hash_seeds_differ_by_router_and_repeat(self):
        """Every router hashes with a seed of its own, which the fabric's seed fixes."""
        key = "net.ipv4.fib_multipath_hash_seed"
        one, two = Fabric(seed=1), Fabric(seed=2)
        seeds = {one.sysctls(n)[key] for n in (*one.leaf_names, *one.spine_names)}
        self.assertEqual(len(seeds), 7)
        self.assertEqual(one.sysctls("leaf1"), Fabric(seed=1).sysctls("leaf1"))
        self.assertNotEqual(one.sysctls("leaf1")[key], two.sysctls("leaf1")[key])

    def test_direction_as_written(self):
        """A direction is found as people write it; what is no link is refused with neighbours."""
        fabric = Fabric(2, 2, 1)
        self.assertEqual(str(fabric.direction("leaf1->spine2")), "leaf1 -> spine2")
        with self.assertRaisesRegex(ValueError, "leaf1 is linked to spine1, spine2, h1-1"):
            fabric.direction("leaf1 -> leaf2")
        with self.assertRaisesRegex(ValueError, "write it like"):
            fabric.direction("leaf1")

    def test_names_cover_every_router_address(self):
        """Whatever address a router answers from has the router's name."""
        fabric = Fabric(2, 2, 1)
        self.assertEqual(fabric.names()["10.0.2.3"], "spine2")
        self.assertEqual(fabric.names()["10.1.2.1"], "h2-1")


class FaultText(SynchronousTestCase):
    def test_record_round_trip(self):
        """What is recorded of a fault makes the same fault again, for every kind."""
        for kind in KINDS:
            options = {"dscp": "EF"} if kind == "class" else {}
            fault = Fault.from_mapping({"kind": kind, "on": "x", **options})
            self.assertEqual(Fault.from_mapping(fault.record()), fault)

    def test_mistakes(self):
        """Unknown kinds, options of other kinds and impossible numbers are refused, and why."""
        for options, message in (
            ({"kind": "fire", "on": "x"}, "no fault 'fire'; there are loss"),
            ({"kind": "loss", "on": "x", "octets": 9}, "does not take 'octets', it takes percent"),
            ({"kind": "loss", "on": "x", "percent": 0}, "percent"),
            ({"kind": "loss", "on": "x", "percent": "much"}, "'much' is no float"),
            ({"kind": "delay", "on": "x", "ms": "nan"}, "ms: nan is not within 0 and 3600000"),
            ({"kind": "delay", "on": "x", "jitter_ms": "inf"}, "jitter_ms: inf is not within 0"),
            ({"kind": "delay", "on": "x", "ms": -1}, "ms: -1.0 is not within 0"),
            ({"kind": "loss", "on": "x", "percent": 0.0004}, "percent: 0.0004 is not within 0.001"),
            ({"kind": "flows", "on": "x", "share": 0.00004}, "share: 4e-05 is not within 0.0001"),
            ({"kind": "mtu", "on": "x", "octets": 0}, "octets: 0 is not within 1 and 65535"),
            ({"kind": "mtu", "on": "x", "octets": 65_536}, "octets: 65536 is not within 1"),
            ({"kind": "class", "on": "x"}, "needs the class"),
            ({"kind": "loss", "on": "x", "dscp": "GOLD"}, "no traffic class"),
            ({"kind": "loss", "on": "x", "family": "both"}, "family: 'both' is not 4 or 6"),
            ({"kind": "delay", "on": "x", "family": 6}, "does not take 'family', it takes ms"),
            ({"kind": "loss"}, "needs 'kind' and 'on'"),
            ({"kind": "loss", "on": "x", "where": 1}, "no option 'where'"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                Fault.from_mapping(options)


class Configurations(SynchronousTestCase):
    def test_collector_configuration_is_valid(self):
        """What is generated for a host loads, with every other host as its target."""
        from llama import config

        traffic = Traffic(flows=8, rate_pps=2.0, classes=("BE", "EF"), sizes=(64, 1400))
        directory = Path(self.mktemp())
        directory.mkdir()
        path = directory / "c.yaml"
        path.write_text(json.dumps(hosts.collector_configuration(Fabric(2, 2, 2), "h1-2", traffic)))
        loaded = config.load_collector(str(path))
        self.assertEqual([t.name for t in loaded.tests[0].targets], ["h1-1", "h2-1", "h2-2"])
        self.assertEqual(loaded.tests[0].targets[2].tags["src_rack"], "leaf1")

    def test_by_both_ip_versions(self):
        """Hosts are probed by the IP version that is wanted, or by both, from an address of it."""
        from llama import config

        for family, ends in (
            ("4", [("10.1.1.3", "10.1.2.1")]),
            ("6", [("fd00:0:0:101::3", "fd00:0:0:102::1")]),
            ("both", [("10.1.1.3", "10.1.2.1"), ("fd00:0:0:101::3", "fd00:0:0:102::1")]),
        ):
            path = Path(self.mktemp())
            traffic = Traffic(family=family)
            made = hosts.collector_configuration(Fabric(2, 2, 2), "h1-2", traffic)
            path.write_text(json.dumps(made))
            tests = config.load_collector(str(path)).tests
            self.assertEqual([(test.source, test.targets[1].host) for test in tests], ends)
            self.assertEqual({test.targets[1].name for test in tests}, {"h2-1"})

    def test_traffic_that_collectors_refuse(self):
        """No lab is built whose collectors would end at once: what they refuse is refused before."""
        for options, message in (
            ({"rate_pps": float("inf")}, "'.inf' is not a number from 0.001 to 10000"),
            ({"rate_pps": 0.0}, "0.0 is out of range"),
            ({"flows": 100_000}, "100000 is out of range, expected a whole number from 1 to"),
            ({"interval_s": 5000}, "5000 is out of range, expected a whole number from 1 to 3600"),
            ({"sizes": (10,)}, "10 octets are too few for a stamp probe"),
            ({"classes": ("GOLD",)}, "GOLD"),
            ({"family": "any"}, "family 'any' is not one of 4, 6, both"),
        ):
            with self.assertRaisesRegex(
                ValueError, f"no collector takes such traffic: .*{message}"
            ):
                hosts.Traffic(**options)


class Scenarios(SynchronousTestCase):
    def write(self, text):
        """Return the path of a new file with this text."""
        path = Path(self.mktemp())
        path.write_text(text)
        return path

    def test_steps_in_order_of_time(self):
        """A fault with a duration becomes two steps, and all steps are sorted by time."""
        read = scenario.read(
            self.write(
                "steps:\n- {at: 9, kind: silent, on: spine1, for: 3}\n"
                "- {at: 1, kind: frozen, on: h1-1, name: f}\n- {at: 10, heal: f}\n"
            )
        )
        self.assertEqual([s.at_s for s in read.steps], [1, 9, 10, 12])
        self.assertEqual([s.heal for s in read.steps], [None, None, "f", "silent spine1"])
        self.assertEqual(read.end_s, 12)

    def test_mistakes_name_file_and_step(self):
        """A mistake in a scenario is told with its file and step."""
        for text, message in (
            ("[", "no YAML"),
            ("- 1", "expected keys"),
            ("faults: []", "unknown"),
            ("steps: [{kind: loss, on: x}]", "step 1: expected a mapping with 'at'"),
            ("steps: [{at: 1, heal: x, on: y}]", r"step 1: unknown \['on'\]"),
            ("fabric: {leaves: 0}", "leaves"),
            ("fabric: [1]", "fabric has other keys than leaves, spines"),
            ("fabric: {colour: 1}", "fabric has other keys than leaves, spines"),
            ("traffic: fast", "traffic has other keys than interval_s, flows"),
            ("traffic: {family: any}", "fabric or traffic: .*'any' is not one of 4, 6, both"),
            ("traffic: {rate_pps: inf}", "fabric or traffic: no collector takes such traffic"),
            ("end: soon", "end: 'soon' is no number of seconds"),
            ("end: nan", "end: 'nan' is no number of seconds, 0 or more"),
            ("steps: [{at: inf, heal: x}]", "step 1: at: 'inf' is no number of seconds"),
            ("steps: [{at: -1, heal: x}]", "step 1: at: '-1' is no number of seconds, 0 or more"),
            (
                "steps: [{at: 1, for: nan, kind: silent, on: x}]",
                "step 1: for: 'nan' is no number of seconds",
            ),
        ):
            with self.assertRaisesRegex(ValueError, message):
                scenario.read(self.write(text))


class Records(SynchronousTestCase):
    def test_a_used_again_pid_is_another_process(self):
        """A process is known by its id and its start: another one with its id is left alone."""
        from llama.lab.namespaces import Process

        other = Process("h", "x", (), os.getpid(), 1)
        self.assertFalse(other.alive)
        other.send(signal.SIGKILL)

    def test_no_lab(self):
        """Asking for a lab that is not up says how to start one; a broken record how to end it."""
        run = Path(self.mktemp())
        with self.assertRaisesRegex(LabError, "llama lab up"):
            Lab.open("nothing", run)
        (run / "broken").mkdir(parents=True)
        (run / "broken" / "state.json").write_text("{")
        with self.assertRaisesRegex(LabError, "llama lab down"):
            Lab.open("broken", run)

    def test_name(self):
        """A name that could mean other namespaces, or a path, is refused."""
        for name in ("a-b", "../x", "*", ""):
            with self.assertRaisesRegex(LabError, "letters and digits"):
                clear(name)


class OnNamespaces(SynchronousTestCase):
    """What needs the kernel; one fabric of two leaves and two spines for all."""

    skip = NEEDS
    lab = None

    @classmethod
    def setUpClass(cls):
        """Build the fabric, with a program on h2-1 that answers."""
        if NEEDS is None:
            cls.run_directory = tempfile.TemporaryDirectory()
            cls.lab = Lab.build(NAME, Fabric(2, 2, 1), Path(cls.run_directory.name))
            process = cls.lab.start("h2-1", "answer", [sys.executable, "-c", ANSWER])
            log = cls.lab.directory / "h2-1-answer.log"
            while process.alive and "ready" not in log.read_text():
                pass

    @classmethod
    def tearDownClass(cls):
        """Remove it."""
        if cls.lab is not None:
            clear(NAME, Path(cls.run_directory.name))
            cls.run_directory.cleanup()

    def ask(self, count=1, flows=16, size=64, tos=0):
        """Return replies by flow, and the TOS octets with which h2-1 was reached from h1-1."""
        words = (str(self.lab.fabric.address("h2-1")), *map(str, (count, flows, size, tos)))
        return json.loads(self.lab.run("h1-1", sys.executable, "-c", ASK, *words))

    def hop(self, ttl, port):
        """Return the address that answers a datagram from h1-1 with this TTL and source port."""
        words = (str(self.lab.fabric.address("h2-1")), str(ttl), str(port))
        return self.lab.run("h1-1", sys.executable, "-c", HOP, *words).strip()

    def broken(self, **options):
        """Inject a fault that is healed at the end of the test."""
        fault = Fault.from_mapping(options)
        faults.inject(self.lab, fault)
        self.addCleanup(faults.heal_all, self.lab)
        return fault

    def test_healthy(self):
        """A healthy fabric delivers everything, marks and all, in both families."""
        self.assertEqual(self.ask(3, tos=46 << 2), [[3] * 16, [46 << 2]])
        self.lab.run("h1-1", "ping", "-6", "-c1", str(self.lab.fabric.ipv6_address("h2-1")))

    def test_management_reaches_every_host(self):
        """The management node reaches hosts beside the fabric."""
        for host in self.lab.fabric.hosts:
            self.lab.run(MANAGEMENT, "ping", "-c1", str(self.lab.fabric.management_address(host)))

    def test_hops_and_ecmp(self):
        """TTL-limited datagrams name leaf, spine and leaf; flows spread over both spines."""
        names = self.lab.fabric.names()
        self.assertEqual(names[self.hop(1, 20000)], "leaf1")
        spines = {names[self.hop(2, port)] for port in range(20000, 20012)}
        self.assertEqual(spines, {"spine1", "spine2"})
        self.assertEqual(names[self.hop(3, 20000)], "leaf2")

    def test_loss_hits_the_flows_of_one_spine(self):
        """Total loss on one direction silences exactly the flows that are hashed onto it."""
        names = self.lab.fabric.names()
        over = [names[self.hop(2, 20000 + n)] == "spine1" for n in range(8)]
        fault = self.broken(kind="loss", on="spine1 -> leaf2", percent=100)
        back, _ = self.ask(2, flows=8)
        self.assertEqual([got == 0 for got in back], over)
        faults.heal(self.lab, fault.name)
        self.assertEqual(self.ask(1)[0], [1] * 16)

    def test_partial_loss(self):
        """Half of the packets lost is about half, and the sender is not told."""
        self.broken(kind="loss", on="leaf1 -> h1-1", percent=50)
        back, _ = self.ask(20)
        self.assertTrue(90 < sum(back) < 230, back)  # 160 expected, 8 standard deviations

    def test_some_flows_only(self):
        """A black hole of some flows takes them whole and leaves the others whole."""
        self.broken(kind="flows", on="leaf2 -> h2-1", share=0.5)
        back, _ = self.ask(3, flows=32)
        self.assertEqual(set(back), {0, 3})

    def test_nearly_all_and_hardly_any(self):
        """The largest and the smallest share that there can be are rules that the kernel takes."""
        for options, least, most in (
            ({"kind": "flows", "share": 1}, 0, 0),
            ({"kind": "flows", "share": 0.0001}, 47, 48),
            ({"kind": "loss", "percent": 99.9999}, 0, 0),
            ({"kind": "loss", "percent": 0.001}, 47, 48),
        ):
            fault = self.broken(on="leaf2 -> h2-1", **options)
            self.assertNotIn("< 0 ", self.lab.run("h2-1", "nft", "list", "ruleset"))
            came = sum(self.ask(3)[0])
            self.assertTrue(least <= came <= most, (options, came))
            faults.heal(self.lab, fault.name)

    def test_silent_router(self):
        """A router that drops silently takes its flows, though it still answers for itself."""
        self.broken(kind="silent", on="spine2")
        back, _ = self.ask(2, flows=32)
        self.assertEqual(set(back), {0, 2})
        self.lab.run("leaf1", "ping", "-c1", "10.0.2.1")

    def test_bleached(self):
        """A class that is bleached arrives as best effort; others keep their marks."""
        for spine in ("spine1", "spine2"):
            self.broken(kind="bleach", on=f"{spine} -> leaf2", dscp="EF")
        self.assertEqual(self.ask(1, tos=46 << 2)[1], [0])
        self.assertEqual(self.ask(1, tos=34 << 2)[1], [34 << 2])

    def test_one_class_dropped(self):
        """A class that is dropped is lost, and only that class."""
        self.broken(kind="class", on="leaf2 -> h2-1", dscp="EF")
        self.assertEqual(sum(self.ask(1, tos=46 << 2)[0]), 0)
        self.assertEqual(sum(self.ask(1)[0]), 16)

    def test_mtu(self):
        """Packets above the size vanish without a word, smaller ones pass."""
        self.broken(kind="mtu", on="leaf2 -> h2-1", octets=1000)
        self.assertEqual(sum(self.ask(1, size=1000)[0]), 0)
        self.assertEqual(sum(self.ask(1, size=900)[0]), 16)

    def test_one_ip_version_dropped(self):
        """What drops packets of one IP version lets those of the other pass."""
        address = str(self.lab.fabric.ipv6_address("h2-1"))
        ping = ("ping", "-6", "-c1", "-W1", address)
        self.assertIn("1 received", self.lab.run("h1-1", *ping, check=False))
        for options in (
            {"kind": "loss"},
            {"kind": "class", "dscp": "BE"},
            {"kind": "mtu", "octets": 50},
        ):
            for family in ("4", "6"):
                fault = self.broken(on="leaf2 -> h2-1", family=family, **options)
                self.assertEqual(sum(self.ask(1)[0]), 0 if family == "4" else 16, options)
                said = self.lab.run("h1-1", *ping, check=False)
                self.assertIn(f"{int(family == '4')} received", said, options)
                faults.heal(self.lab, fault.name)
        self.broken(kind="silent", on="leaf2", family=6)
        self.assertEqual(sum(self.ask(1)[0]), 16)
        self.assertIn("0 received", self.lab.run("h1-1", *ping, check=False))
        # The rules of a share of flows are taken, too.
        self.broken(kind="flows", on="leaf2 -> h2-1", share=1, family=6)
        self.assertEqual(sum(self.ask(1)[0]), 16)

    def test_delay(self):
        """A delayed direction delivers everything, later; healing ends the relay."""
        fault = self.broken(kind="delay", on="leaf2 -> h2-1", ms=40)
        address = str(self.lab.fabric.address("h2-1"))
        said = self.lab.run("h1-1", "ping", "-c2", "-i0.1", address)
        self.assertGreater(float(said.rpartition("= ")[2].split("/")[0]), 40.0)
        self.assertEqual(self.ask(5)[0], [5] * 16)
        (relay,) = [p for p in self.lab.processes if p.name == fault.table]
        faults.heal(self.lab, fault.name)
        self.assertFalse(relay.alive)
        said = self.lab.run("h1-1", "ping", "-c1", address)
        self.assertLess(float(said.rpartition("= ")[2].split("/")[0]), 40.0)

    def test_leaf_down_and_up(self):
        """A leaf that is down cuts its hosts off; taken back, its routes are there again."""
        fault = self.broken(kind="down", on="leaf2")
        self.assertEqual(sum(self.ask(1)[0]), 0)
        faults.heal(self.lab, fault.name)
        self.assertEqual(sum(self.ask(1)[0]), 16)

    def test_spine_down_is_routed_around(self):
        """A spine whose links are visibly down costs nothing: ECMP goes round it."""
        self.broken(kind="down", on="spine1")
        self.assertEqual(self.ask(1)[0], [1] * 16)

    def test_host_down_and_up(self):
        """A host that is down has no processes; taken back, they are started again."""
        fault = self.broken(kind="down", on="h2-1")
        (answer,) = [p for p in self.lab.processes if p.name == "answer"]
        self.assertFalse(answer.alive)
        faults.heal(self.lab, fault.name)
        (again,) = [p for p in self.lab.processes if p.name == "answer"]
        self.assertTrue(again.alive)
        log = self.lab.directory / "h2-1-answer.log"
        while again.alive and log.read_text().count("ready") < 2:
            pass
        self.assertEqual(sum(self.ask(1)[0]), 16)

    def test_frozen(self):
        """A frozen host answers ping, but its programs answer nothing until it is thawed."""
        fault = self.broken(kind="frozen", on="h2-1")
        self.assertEqual(sum(self.ask(1)[0]), 0)
        self.lab.run("h1-1", "ping", "-c1", str(self.lab.fabric.address("h2-1")))
        faults.heal(self.lab, fault.name)
        self.assertEqual(sum(self.ask(1)[0]), 16)

    def test_icmp_silent(self):
        """A router without ICMP forwards, but names itself to nobody."""
        self.broken(kind="icmp-silent", on="leaf1")
        self.assertEqual(self.hop(1, 20000), "")
        self.assertNotEqual(self.hop(2, 20000), "")
        self.assertEqual(self.ask(1)[0], [1] * 16)

    def test_icmp_limited(self):
        """A router with limited ICMP answers the first time-exceeded and not the flood after."""
        self.broken(kind="icmp-limit", on="leaf1", per_second=1)
        answers = [self.hop(1, 20000 + n) for n in range(4)]
        self.assertIn("10.1.1.0", answers)

    def test_overlapping_faults(self):
        """Two faults at one place are told apart by name and taken back one by one."""
        self.broken(kind="loss", on="leaf2 -> h2-1", percent=100, name="one")
        self.broken(kind="loss", on="leaf2 -> h2-1", percent=100, name="two")
        faults.heal(self.lab, "one")
        self.assertEqual(sum(self.ask(1)[0]), 0)
        faults.heal(self.lab, "two")
        self.assertEqual(sum(self.ask(1)[0]), 16)

    def test_refused(self):
        """Places that are not there, names taken and names unknown are refused with a reason."""
        self.broken(kind="silent", on="spine1")
        for options, message in (
            ({"kind": "silent", "on": "spine1"}, "there already"),
            ({"kind": "silent", "on": "h1-1"}, "no router here"),
            ({"kind": "frozen", "on": "leaf1"}, "no host here"),
            ({"kind": "loss", "on": "leaf1 -> leaf2"}, "is linked to"),
        ):
            with self.assertRaisesRegex(LabError, message):
                faults.inject(self.lab, Fault.from_mapping(options))
        with self.assertRaisesRegex(LabError, "there are: 'silent spine1'"):
            faults.heal(self.lab, "fire")

    def test_scenario_is_played_and_recorded(self):
        """A scenario breaks and heals by the clock; the record has the truth and what was said."""

        class Clock(scenario.Clock):
            time = 1000.0

            def now(self):
                return self.time

            def wait(self, seconds):
                self.time += seconds

        steps = tuple(
            scenario._steps({"at": 2, "for": 3, "kind": "silent", "on": "spine1"})
        ) + tuple(scenario._steps({"at": 4, "kind": "loss", "on": "leaf1 -> h1-1"}))
        output, clock = io.StringIO(), Clock()
        played = scenario.Scenario(Fabric(2, 2, 1), Traffic(), steps, 8.0)
        active = []

        def said():
            active.append(tuple(fault["kind"] for fault in self.lab.faults))
            return [{"faults": len(self.lab.faults)}] if clock.time == 1004.5 else []

        scenario.play(self.lab, played, output, said, clock)
        lines = [json.loads(line) for line in output.getvalue().splitlines()]
        told = [(line["at"], line.get("truth"), line.get("said")) for line in lines]
        self.assertEqual(
            told,
            [
                (2.5, "injected", None),
                (4.5, "injected", None),
                (4.5, None, {"faults": 2}),
                (5.5, "healed", None),
                (8.0, "healed", None),
            ],
        )
        self.assertEqual(self.lab.faults, [])

    def test_two_commands_at_once(self):
        """What another command broke or started meanwhile stays in the record and can be healed."""
        other = Lab.open(NAME, self.lab.directory.parent)
        mine = Fault.from_mapping({"kind": "loss", "on": "spine1 -> leaf1", "name": "mine"})
        faults.inject(other, mine)
        relay = self.broken(kind="delay", on="leaf1 -> spine1").table
        faults.inject(other, Fault.from_mapping({"kind": "silent", "on": "spine2"}))
        later = Lab.open(NAME, self.lab.directory.parent)
        names = ["mine", "delay leaf1 -> spine1", "silent spine2"]
        self.assertEqual([fault["name"] for fault in later.faults], names)
        self.assertLessEqual({"answer", relay}, {process.name for process in later.processes})
        faults.heal(later, "mine")
        with self.assertRaisesRegex(LabError, "is there already"):
            faults.inject(other, Fault.from_mapping({"kind": "delay", "on": "leaf1 -> spine1"}))
        self.assertEqual(faults.heal_all(self.lab), ["silent spine2", "delay leaf1 -> spine1"])
        self.assertEqual(faults.heal_all(other), [])
        self.assertEqual(self.lab.run("leaf1", "nft", "list", "tables"), "")

    def test_changed_by_one_at_a_time(self):
        """Who wants to change a lab waits for whoever does so, and finds what that one left."""
        count = """
import sys
from pathlib import Path
from llama.lab.namespaces import Lab
lab = Lab.open(sys.argv[1], Path(sys.argv[2]))
for n in range(40):
    with lab.locked():
        lab.faults.append({"name": f"{sys.argv[3]} {n}"})
        lab.save()
"""
        run = self.lab.directory.parent
        self.addCleanup(self.forget_faults)
        both = [
            subprocess.Popen([sys.executable, "-c", count, NAME, str(run), who]) for who in "ab"
        ]
        self.assertEqual([one.wait() for one in both], [0, 0])
        self.assertEqual(len(Lab.open(NAME, run).faults), 80)

    def forget_faults(self):
        """Take what was no fault out of the record."""
        with self.lab.locked():
            self.lab.faults.clear()
            self.lab.save()

    def test_what_was_healed_meanwhile(self):
        """A scenario whose fault somebody else took back heals its others."""
        output, clock = io.StringIO(), scenario.Clock()
        played = scenario.Scenario(
            Fabric(2, 2, 1),
            Traffic(),
            tuple(scenario._steps({"at": 0, "kind": "silent", "on": "spine1"}))
            + tuple(scenario._steps({"at": 0, "kind": "silent", "on": "spine2"})),
            0.0,
        )

        def said():
            other = Lab.open(NAME, self.lab.directory.parent)
            if any(fault["name"] == "silent spine1" for fault in other.faults):
                faults.heal(other, "silent spine1")
            return []

        scenario.play(self.lab, played, output, said, clock)
        told = [json.loads(line)["truth"] for line in output.getvalue().splitlines()]
        self.assertEqual(told, ["injected", "injected", "healed", "healed"])
        self.assertEqual(Lab.open(NAME, self.lab.directory.parent).faults, [])

    def test_a_record_that_cannot_be_written(self):
        """Where the record's reader is gone or its disk full, all faults are healed all the same."""

        class Full(io.StringIO):
            def write(self, text):
                if "healed" in text:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(text)

        steps = tuple(
            step
            for place in ("spine1", "spine2")
            for step in scenario._steps({"at": 0, "kind": "silent", "on": place})
        )
        self.addCleanup(faults.heal_all, self.lab)
        with self.assertRaises(OSError):
            scenario.play(self.lab, scenario.Scenario(steps=steps), Full(), list)
        self.assertEqual(Lab.open(NAME, self.lab.directory.parent).faults, [])

    def test_a_place_that_is_not_there(self):
        """A fault that cannot be injected when its time has come is refused before anything is broken."""
        steps = tuple(
            step
            for at, place in ((0, "spine1"), (900, "spine9"))
            for step in scenario._steps({"at": at, "kind": "silent", "on": place})
        )
        output, played = io.StringIO(), scenario.Scenario(steps=steps, end_s=901.0)
        with self.assertRaisesRegex(LabError, "'spine9' is no router here"):
            scenario.play(self.lab, played, output, list)
        self.assertEqual(output.getvalue(), "")

    def test_a_lab_that_is_gone(self):
        """What is to be changed in a lab that was removed is refused, and leaves no record."""
        run = Path(self.run_directory.name)
        gone = Lab.build(NAME + "d", Fabric(1, 1, 1), run)
        clear(NAME + "d", run)
        with self.assertRaisesRegex(LabError, "no lab .* is up"):
            faults.inject(gone, Fault.from_mapping({"kind": "silent", "on": "spine1"}))
        self.assertFalse((run / (NAME + "d")).exists())

    def test_a_second_lab_leaves_the_first_alone(self):
        """Removing one lab removes its own namespaces only."""
        run = Path(self.run_directory.name)
        Lab.build(NAME + "b", Fabric(1, 1, 1), run)
        self.assertEqual(len(clear(NAME + "b", run)), 4)
        self.assertEqual(self.ask(1)[0], [1] * 16)

    def test_what_a_killed_run_left_is_removed(self):
        """Namespaces and processes without any record are found by their prefix and removed."""
        run = Path(self.run_directory.name)
        left = Lab.build(NAME + "c", Fabric(1, 1, 1), run)
        sleeper = left.start("h1-1", "sleep", ["sleep", "1000"])
        frozen = left.start("h1-1", "frozen", ["sleep", "1000"])
        frozen.send(signal.SIGSTOP)
        (left.directory / "state.json").unlink()
        Lab.build(NAME + "c", Fabric(1, 1, 1), run)
        self.assertFalse(sleeper.alive)
        self.assertFalse(frozen.alive)
        clear(NAME + "c", run)
        self.assertEqual(list(NAMESPACES.glob(f"llama-{NAME}c-*")), [])
        self.assertFalse((run / (NAME + "c")).exists())

    def test_end_is_for_certain(self):
        """A process that ignores the polite signal is ended all the same."""
        words = [sys.executable, "-c", "import signal,time; signal.signal(15, 1)\ntime.sleep(99)"]
        stubborn = self.lab.start("h1-1", "stubborn", words)
        self.addCleanup(self.lab.processes.remove, stubborn)
        end([stubborn.pid], patience_s=0.2)
        self.assertIsNone(started_at(stubborn.pid))
