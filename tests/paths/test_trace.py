"""Traces: what is sent when, what answers mean, the graph they make; and on real namespaces."""

import errno
import json
import math
import os
import random
import select
import shutil
import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path

import click
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llama.cli._tracer import Tracer
from llama.cli.send import send
from llama.cli.trace import trace
from llama.collector.probing.reflectors import LIMITED
from llama.lab import faults
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.lab.hosts import write_names
from llama.lab.namespaces import Lab, LabError, clear
from llama.net import errors, mmsg
from llama.paths import multipath
from llama.paths.table import SILENT, FlowKey, PathTable, agree
from llama.paths.trace import (
    AHEAD,
    BARE_S,
    HEAD,
    LOOP,
    PROOF,
    SILENT_HOPS,
    TIMEOUT_S,
    FlowTrace,
    Judged,
    Packet,
    in_turn,
    judged,
    meaning,
)
from llama.paths.trace import Path as Trace
from llama.wire import tlv

NEEDS = (
    None
    if os.geteuid() == 0 and all(map(shutil.which, ("ip", "nft", "sysctl")))
    else "needs root, iproute2, procps and nftables"
)


class Network:
    """A path of routers, and a clock; `lost` decides which packets get no answer."""

    def __init__(self, hops, lost=lambda ttl, nth: False, quote=True, rtt=0.01):
        self.hops, self.lost, self.quote, self.rtt = hops, lost, quote, rtt
        self.now = 0.0
        self.sent = []

    def run(self, trace):
        """Run a trace to its end and return its path."""
        coming = []
        while not trace.finished:
            for _, packet in in_turn([trace], lambda: self.now):
                nth = sum(ttl == packet.ttl for ttl, _ in self.sent)
                self.sent.append((packet.ttl, packet.number))
                if not self.lost(packet.ttl, nth):
                    coming.append((self.now + self.rtt, packet))
            until = trace.wait_until()
            if coming and (until is None or coming[0][0] <= until):
                self.now, packet = coming.pop(0)
                place = min(packet.ttl, len(self.hops))
                final = place == len(self.hops)
                if self.quote or final:
                    left, hop = 1 + packet.ttl - place, self.hops[place - 1]
                    trace.heard(packet.number, hop, self.now, final=final, ttl_there=left)
                elif not trace.heard_bare(self.hops[place - 1], self.now):
                    raise AssertionError("a router's own answer was taken for a forgery")
            elif until is not None:
                self.now = until
        return trace.path()


class Flows(SynchronousTestCase):
    def test_a_healthy_path(self):
        """Every hop is asked once and named, and the destination ends the trace."""
        network = Network(["r1", "r2", "r3", "host"])
        path = network.run(FlowTrace())
        self.assertEqual(path.hops, ("r1", "r2", "r3", "host"))
        self.assertEqual((path.complete, path.reach), (True, 4))
        self.assertEqual(path.answered, (1, 1, 1, 1))
        self.assertLessEqual(len(network.sent), 8)

    def test_an_expected_distance(self):
        """Nothing goes past a destination where it is known to be; where it moved, it is found."""
        hops = ("r1", "r2", "r3", "r4", "host")
        for expected, packets in ((5, 5), (3, 9), (8, 9)):
            network = Network(list(hops))
            path = network.run(FlowTrace(expected=expected))
            self.assertEqual((path.hops, path.complete), (hops, True), expected)
            self.assertLessEqual(len(network.sent), packets, expected)

    def test_a_silent_router(self):
        """A router that never answers is a gap in the path, not its end."""
        path = Network(["r1", "r2", "host"], lambda ttl, nth: ttl == 2).run(FlowTrace())
        self.assertEqual((path.hops, path.complete), (("r1", None, "host"), True))
        self.assertTrue(math.isnan(path.rtts_s[1]))

    def test_a_router_that_answers_sometimes(self):
        """One that limits its ICMP is asked again until it answers."""
        network = Network(["r1", "r2", "host"], lambda ttl, nth: ttl == 2 and nth < 2)
        path = network.run(FlowTrace())
        self.assertEqual((path.hops, path.sent[1]), (("r1", "r2", "host"), 3))

    def test_a_dead_flow(self):
        """A flow that dies on the way shows how far it comes, and the trace gives up in time."""
        network = Network(["r1", "r2", "r3", "host"], lambda ttl, nth: ttl > 2)
        path = network.run(FlowTrace())
        self.assertEqual((path.hops, path.complete, path.reach), (("r1", "r2"), False, 2))
        self.assertLessEqual(max(ttl for ttl, _ in network.sent), 2 + SILENT_HOPS)
        self.assertLess(network.now, 10 * TIMEOUT_S)

    def test_a_loop(self):
        """A trace that goes in circles ends where the second round begins."""
        for before, circle in (
            (["r1"], ["r2", "r3"]),
            ([], ["r1", "r2"]),
            (["r1"], ["a", "b", "c"]),
        ):
            network = Network([*before, *circle * 12])
            network.hops.append("host")
            path = network.run(FlowTrace())
            self.assertEqual(path.hops, (*before, *circle, circle[0]))
            self.assertEqual((path.complete, path.reach), (False, len(path.hops)))
            self.assertEqual((path.refusal, path.refused_by), (LOOP, circle[0]))
            self.assertLess(len(network.sent), 20)

    def test_what_is_no_loop(self):
        """One address behind which all hops hide, and a router that is met twice, end no trace."""
        for hops in (["nat"] * 9, ["r1", "r2", "r1", "r2", "r3"], ["r1", "r2", "r3", "r2"]):
            path = Network([*hops, "host"]).run(FlowTrace())
            self.assertEqual((path.hops, path.complete), ((*hops, "host"), True))

    def refused(self, hops, by, at, answered=()):
        """Return the path of a trace that somebody refuses from a TTL on; some get no answer."""
        trace, now = FlowTrace(), 0.0
        while not trace.finished:
            now += 0.01
            while (packet := trace.next(now)) is not None:
                if packet.ttl < at:
                    trace.heard(packet.number, hops[packet.ttl - 1], now)
                elif packet.ttl not in answered:
                    trace.heard(packet.number, by, now, final=True, refusal="packet too big")
            now = trace.wait_until() or now
        return trace.path()

    def test_a_router_that_refuses(self):
        """It is one hop, be it that it refuses what has a greater TTL than what died there."""
        for at, silent in ((3, ()), (3, (3,)), (3, (3, 4))):
            path = self.refused(["10.0.0.1", "10.0.0.2"], "10.0.0.2", at, silent)
            self.assertEqual(path.hops, ("10.0.0.1", "10.0.0.2"))
            self.assertEqual(list(map(len, (path.rtts_s, path.sent, path.answered))), [2] * 3)
            self.assertEqual((path.reach, path.complete), (2, False))
            self.assertEqual((path.refusal, path.refused_by), ("packet too big", "10.0.0.2"))

    def test_a_router_that_refuses_at_once(self):
        """Whoever refuses before it looks at the TTL is the hop there."""
        path = self.refused(["10.0.0.1"], "10.0.0.2", 2)
        self.assertEqual((path.hops, path.reach), (("10.0.0.1", "10.0.0.2"), 2))
        self.assertEqual(path.refused_by, "10.0.0.2")

    def test_nothing_at_all(self):
        """A flow of which nothing answers has an empty path."""
        path = Network(["r1"], lambda ttl, nth: True).run(FlowTrace())
        self.assertEqual((path.hops, path.reach, path.complete), ((), 0, False))

    def test_routers_that_quote_eight_octets(self):
        """Without quoted payload one packet is under way at a time, and hops keep their places."""
        network = Network(["r1", "r2", "r3", "host"], quote=False)
        path = network.run(FlowTrace())
        self.assertEqual((path.hops, path.complete), (("r1", "r2", "r3", "host"), True))

    def test_a_late_answer(self):
        """An answer after its timeout still names the hop."""
        trace = FlowTrace()
        first = trace.next(0.0)
        trace.next(5.0)
        trace.heard(first.number, "r1", 5.1)
        self.assertEqual(trace.path().hops[0], "r1")

    def test_another_address_of_the_same_hop(self):
        """Several addresses at one TTL are all kept, the first one names the hop."""
        trace = FlowTrace()
        one, two = trace.next(0.0), None
        trace.heard(one.number, "r1a", 0.1)
        trace.hops[0].rtts.clear()  # as if it had to be asked again
        while (packet := trace.next(0.2)) is not None:
            two = packet if packet.ttl == 1 else two
        trace.heard(two.number, "r1b", 0.3)
        self.assertEqual(trace.hops[0].addresses, ["r1a", "r1b"])
        self.assertEqual(trace.path().hops[0], "r1a")

    def test_numbers_of_others(self):
        """Answers to numbers that were never sent change nothing."""
        trace = FlowTrace(iter(range(1000, 1010)).__next__)
        trace.next(0.0)
        trace.heard(999, "x", 0.1)
        self.assertEqual(trace.path().hops, ())

    def test_what_proves_an_answer(self):
        """It repeats what the packet began with, as far as it goes; a reply repeats the time stamp."""
        trace = FlowTrace(iter(range(7, 10)).__next__)
        payload = bytes(range(44))
        trace.sent(trace.next(0.0).number, payload)
        for octets in range(44):
            self.assertTrue(trace.quoted(7, payload[:octets]))
            for wrong in range(min(octets, HEAD)):
                quote = bytearray(payload[:octets])
                quote[wrong] ^= 1
                self.assertFalse(trace.quoted(7, bytes(quote)))
        self.assertFalse(trace.quoted(8, payload))
        time_stamp = int.from_bytes(payload[4:12], "big")
        self.assertTrue(trace.echoed(7, time_stamp))
        self.assertFalse(trace.echoed(7, time_stamp + 1))
        self.assertFalse(trace.echoed(8, time_stamp))

    def test_numbers_cannot_be_guessed(self):
        """They are drawn by chance."""
        traces = [FlowTrace() for _ in range(50)]
        numbers = {trace.next(0.0).number for trace in traces}
        self.assertGreater(max(numbers) - min(numbers), 1 << 31)
        self.assertEqual(len(numbers), 50)

    def alone(self, **options):
        """Return a trace that has one packet under way, of TTL 1: routers on its way prove nothing."""
        trace = FlowTrace(**options)
        while trace.next(0.0) is not None:
            pass
        self.assertTrue(trace.heard_bare("r1", 0.1))
        self.assertIsNone(trace.next(0.2))
        self.assertEqual(trace.next(1.0).ttl, 1)
        return trace

    def test_a_hop_without_proof(self):
        """It takes two answers to two packets, by the same router."""
        trace = self.alone()
        self.assertTrue(trace.heard_bare("r1", 1.1))
        self.assertEqual(trace.path().hops, ())
        for now_s in range(2, 9):
            if trace.next(float(now_s)).ttl == 1:
                break
        self.assertTrue(trace.heard_bare("r1", now_s + 0.1))
        self.assertEqual(trace.path().hops, ("r1",))
        self.assertFalse(trace.forged)

    def test_nothing_under_way(self):
        """An answer without proof that nobody asked for: from then on none of them is believed."""
        trace = self.alone()
        self.assertTrue(trace.heard_bare("x", 1.1))
        self.assertFalse(trace.heard_bare("x", 1.2))
        ttls = set()
        for now_s in range(2, 30):
            while (packet := trace.next(float(now_s))) is not None:
                ttls.add(packet.ttl)
                self.assertFalse(trace.heard_bare("x", now_s + 0.1))
        self.assertEqual((trace.path().hops, trace.forged), ((), True))
        self.assertEqual(ttls, {1, 2, 3, 4})

    def test_too_late_for_its_packet(self):
        """Without proof an answer has to be prompt."""
        trace = self.alone()
        self.assertFalse(trace.heard_bare("x", 1.0 + BARE_S))

    def test_more_than_there_are_packets(self):
        """While several packets are under way, that many answers may not be clear."""
        trace = FlowTrace()
        while trace.next(0.0) is not None:
            pass
        self.assertEqual({trace.heard_bare("x", 0.1) for _ in range(AHEAD)}, {True})
        self.assertFalse(trace.heard_bare("x", 0.1))

    def test_a_hop_that_proved_itself(self):
        """It is never overridden without proof, and what was said without proof is forgotten."""
        trace = FlowTrace(iter(range(100)).__next__)
        first = trace.next(0.0)
        trace.heard_bare("x", 0.1)
        trace.heard(first.number, "r1", 0.2)
        self.assertEqual((trace.hops[0].addresses, trace.hops[0].bare), (["r1"], ""))
        trace.hops[0].rtts.clear()  # as if it had to be asked again
        trace.hops[0].sent = 0
        self.assertEqual(trace.next(0.3).ttl, 1)
        self.assertFalse(trace.heard_bare("x", 0.4))
        self.assertEqual(trace.hops[0].addresses, ["r1"])

    def test_hops_that_are_known_to_prove_themselves(self):
        """At these TTLs nothing else is believed."""
        trace = FlowTrace(proven=range(1, 9))
        trace.next(0.0)
        self.assertFalse(trace.heard_bare("x", 0.1))

    def test_too_little_quoted(self):
        """Some octets are no proof, but they must be the right ones, and say which packet is meant."""
        trace = FlowTrace(iter(range(1 << 20, 1 << 21)).__next__)
        numbers = {}
        for _ in range(4):
            packet = trace.next(0.0)
            numbers[packet.ttl] = packet.number.to_bytes(4, "big")
            trace.sent(packet.number, numbers[packet.ttl] + bytes(40))
        self.assertTrue(trace.heard_bare("r2", 0.1, numbers[2]))
        self.assertEqual([hop.bare for hop in trace.hops], ["", "r2", "", ""])
        self.assertFalse(trace.heard_bare("r3", 0.1, b"none"))

    @given(
        st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 0.9), st.booleans(),
        st.integers(0, 14),
    )  # fmt: skip
    def test_ends_and_is_true(self, length, seed, silence, quote, expected):
        """Whatever is lost, a trace ends, and never names a hop in a wrong place."""
        chance = random.Random(seed)
        hops = [f"r{n}" for n in range(1, length)] + ["host"]
        network = Network(hops, lambda ttl, nth: chance.random() < silence, quote)
        path = network.run(FlowTrace(expected=expected))
        for n, hop in enumerate(path.hops):
            self.assertIn(hop, (None, hops[n]))
        if path.complete:
            self.assertEqual(path.hops[-1], "host")

    def test_meaning_of_errors(self):
        """Time exceeded is a hop, port unreachable the end, others the end with their reason."""
        self.assertEqual(meaning(4, 11, 0), (False, ""))
        self.assertEqual(meaning(4, 3, 3), (True, ""))
        self.assertEqual(meaning(4, 3, 13), (True, "administratively prohibited"))
        self.assertEqual(meaning(6, 3, 0), (False, ""))
        self.assertEqual(meaning(6, 1, 4), (True, ""))
        self.assertEqual(meaning(6, 2, 0), (True, "packet too big"))
        self.assertEqual(meaning(6, 1, 0), (True, "no route"))
        self.assertIsNone(meaning(4, 11, 1))
        self.assertIsNone(meaning(4, 5, 0))

    def test_judgement_of_errors(self):
        """The end is what the target itself says, and without proof nothing but a hop is named."""
        head = bytes(range(HEAD))
        for kind, code, offender, payload, expected in (
            (11, 0, "r1", head + b"more", Judged(0x00010203, head)),
            (11, 0, "r1", head[:PROOF], Judged(0x00010203, head[:PROOF])),
            (3, 3, "host", head, Judged(0x00010203, head, final=True)),
            (3, 3, "r1", head, Judged(0x00010203, head, final=True, refusal="port unreachable")),
            (3, 10, "r1", head, Judged(0x00010203, head, final=True, refusal="host prohibited")),
            (11, 0, "r1", b"\1\2\0\0", Judged(None, b"\1\2")),
            (11, 0, "r1", bytes(128), Judged(None, b"")),
            (3, 3, "host", bytes(128), None),
            (3, 10, "r1", head[: PROOF - 1], None),
            (11, 1, "host", head, None),
        ):
            error = errors.IcmpError(4, kind, code, offender, "host", 8100, payload)
            self.assertEqual(judged(error, "host"), expected)


class Errors(SynchronousTestCase):
    def test_control_of_both_families(self):
        """The kernel's struct sock_extended_err and offender are read for IPv4 and IPv6."""
        four = struct.pack("=IBBBxII", 113, 2, 11, 0, 0, 0) + struct.pack(
            "=H2x4s8x", socket.AF_INET, socket.inet_aton("192.0.2.9")
        )
        error = errors.from_control([(0, 11, four)], ("198.51.100.1", 8100), b"abcd")
        self.assertEqual(
            (error.version, error.kind, error.code, error.offender, error.payload),
            (4, 11, 0, "192.0.2.9", b"abcd"),
        )
        six = struct.pack("=IBBBxII", 113, 3, 1, 4, 0, 0) + struct.pack(
            "=H2x4x16s4x", socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "2001:db8::9")
        )
        error = errors.from_control([(41, 25, six)], ("2001:db8::1", 8100), b"")
        self.assertEqual((error.version, error.kind, error.offender), (6, 1, "2001:db8::9"))

    def test_what_is_no_icmp(self):
        """Transmit stamps, local errors and truncated data are no ICMP errors."""
        stamp = struct.pack("=IBBBxII", 42, 4, 0, 0, 0, 7) + bytes(16)
        for control in ([(0, 11, stamp)], [(0, 11, b"short")], [(1, 37, bytes(48))], []):
            self.assertIsNone(errors.from_control(control, ("192.0.2.1", 1), b""))

    def test_port_unreachable_on_loopback(self):
        """A real ICMP error about a real packet names port, offender and our own octets."""
        if not mmsg.AVAILABLE:
            self.skipTest("needs 64-bit Linux")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            errors.enable(sock)
            errors.send(sock, b"hello", [], ("127.0.0.1", port))
            (error,) = errors.read(sock)
            # The error is pending, too; sending gets over that once.
            errors.send(sock, b"again", [], ("127.0.0.1", port))
        self.assertEqual((error.kind, error.code, error.port), (3, 3, port))
        self.assertEqual((error.offender, error.payload), ("127.0.0.1", b"hello"))


def trace_of(*hops, complete=True):
    """Return a finished trace."""
    return Trace(hops, (0.001,) * len(hops), (1,) * len(hops), (1,) * len(hops), complete)


class Multipath(SynchronousTestCase):
    def test_published_numbers(self):
        """The stopping rule gives the numbers that were published for 95 %: 6, 11, 16, 21, 27."""
        self.assertEqual([multipath.enough(k) for k in range(1, 6)], [6, 11, 16, 21, 27])

    def test_missed_by_simulation(self):
        """The chance of having missed a next hop is what trying it out gives."""
        chance = random.Random(1)
        for hops, flows in ((2, 4), (4, 10), (5, 20)):
            missed = sum(
                len({chance.randrange(hops) for _ in range(flows)}) < hops for _ in range(20_000)
            )
            self.assertApproximates(multipath.missed(hops, flows), missed / 20_000, 0.015)

    def test_graph_of_a_clos(self):
        """Flows over four spines make four paths; lossy flows are counted where they pass."""
        paths = [(trace_of("leaf1", f"spine{n % 4}", "leaf2", "host"), n == 0) for n in range(40)]
        made = multipath.graph(paths, "here")
        self.assertEqual((made.paths, made.depth), (4, 4))
        self.assertEqual(made.nodes[2, "spine0"].flows, 10)
        self.assertEqual([node.lossy for node in made.layer(2)], [1, 0, 0, 0])
        self.assertGreater(made.confidence(), 0.95)
        self.assertEqual(made.wanting(), 0)

    def test_wanting_more_flows(self):
        """Too few flows are said to be too few; silent hops ask for no more."""
        few = multipath.graph([(trace_of("r", f"s{n}", "h"), False) for n in range(2)], "here")
        self.assertGreater(few.wanting(), 0)
        self.assertLess(few.confidence(), 0.5)
        silent = multipath.graph([(trace_of(None, "h"), False)] * 8, "here")
        self.assertEqual((silent.wanting(), silent.paths), (0, 1))

    def test_a_silent_hop_is_no_further_path(self):
        """A hop that limits its ICMP is silent to some flows: that makes no path of its own."""
        traces = [trace_of("leaf1", hop, "leaf2", "h") for hop in ("s1", None, "s2", None)]
        made = multipath.graph([(one, False) for one in traces], "here")
        self.assertEqual(made.paths, 2)
        traces.append(trace_of("leaf1", None, "leaf3", "h"))
        made = multipath.graph([(one, False) for one in traces], "here")
        self.assertEqual(made.paths, 4)  # what is silent leads elsewhere, too

    def test_names_make_one_router(self):
        """Several addresses of one name are one node."""
        made = multipath.graph(
            [(trace_of("10.0.0.1", "h"), False), (trace_of("10.0.0.2", "h"), False)],
            "here",
            lambda address: "r" if address.startswith("10.") else address,
        )
        self.assertEqual(len(made.layer(1)), 1)

    def test_picture(self):
        """The picture of a fabric is drawn with one line between two layers in full mesh."""
        made = multipath.graph(
            [(trace_of("leaf1", f"spine{n}", "leaf2"), False) for n in range(3)], "me"
        )
        self.assertEqual(
            multipath.picture(made, lambda node: f" {node.name} "),
            [
                "               ┌─ spine0 ─┐",
                "               │          │",
                " me ─── leaf1 ─┼─ spine1 ─┼─ leaf2",
                "               │          │",
                "               └─ spine2 ─┘",
            ],
        )


class Table(SynchronousTestCase):
    key = FlowKey("192.0.2.1", 8100, 40000, 0, 96)

    def test_what_did_not_come_through(self):
        """A trace that died says how far it came and leaves the path as it was known."""
        table = PathTable()
        table.enter(self.key, trace_of("a", "b", "h"), 100.0)
        self.assertFalse(table.enter(self.key, trace_of("a", complete=False), 200.0))
        known = table.get(self.key)
        self.assertEqual((known.hops, known.reach), (("a", "b", "h"), 1))
        self.assertEqual((known.traced, known.confirmed), (200.0, 100.0))
        table.enter(self.key, trace_of("a", "b", "h"), 300.0)
        self.assertIsNone(table.get(self.key).reach)

    def test_a_change_is_noticed(self):
        """Other hops are a change, with the time and the path before."""
        table = PathTable()
        table.enter(self.key, trace_of("a", "b", "h"), 100.0)
        self.assertTrue(table.enter(self.key, trace_of("a", "c", "h"), 200.0))
        known = table.get(self.key)
        self.assertEqual((known.changed, known.earlier), (200.0, [(100.0, ("a", "b", "h"))]))
        self.assertEqual(table.changes, 1)

    def test_silence_is_no_change(self):
        """A hop that was silent in one trace is not another path, and its name is kept."""
        table = PathTable()
        table.enter(self.key, trace_of("a", "b", "h"), 100.0)
        self.assertFalse(table.enter(self.key, trace_of("a", None, "h"), 200.0))
        self.assertEqual(table.get(self.key).hops, ("a", "b", "h"))
        table.enter(self.key, trace_of(None, "b", "h"), 300.0)
        self.assertEqual(table.get(self.key).hops, ("a", "b", "h"))
        self.assertTrue(agree(("a", None), (None, "b")))
        self.assertFalse(agree(("a", "b"), ("a", "c", "d")))

    def test_silence_that_lasts(self):
        """A hop that is silent in several traces in a row is another router, as far as is known."""
        table = PathTable()
        table.enter(self.key, trace_of("a", "b", "h"), 100.0)
        table.enter(self.key, trace_of("a", None, "h"), 200.0)
        table.enter(self.key, trace_of("a", "b", "h"), 300.0)
        for n in range(SILENT):
            self.assertEqual(table.get(self.key).hops, ("a", "b", "h"))
            self.assertFalse(table.enter(self.key, trace_of("a", None, "h"), 400.0 + n))
        self.assertEqual(table.get(self.key).hops, ("a", None, "h"))

    def test_a_dead_flow_on_another_way(self):
        """A trace that died off the known path leaves of it what it met itself, and is a change."""
        table = PathTable()
        table.enter(self.key, trace_of("a", "b", "c", "h"), 100.0)
        self.assertTrue(table.enter(self.key, trace_of("a", "x", complete=False), 200.0))
        known = table.get(self.key)
        self.assertEqual((known.hops, known.complete, known.reach), (("a", "x"), False, 2))
        self.assertEqual(known.earlier, [(100.0, ("a", "b", "c", "h"))])
        self.assertEqual(known.left, {"b"})  # of c nothing is known
        self.assertFalse(table.enter(self.key, trace_of("a", "x", complete=False), 300.0))
        self.assertFalse(table.enter(self.key, trace_of("a", "x", "c", "h"), 400.0))
        self.assertEqual((known.hops, known.complete), (("a", "x", "c", "h"), True))
        self.assertTrue(table.enter(self.key, trace_of(*"axcdefg", complete=False), 500.0))

    def test_bounded(self):
        """More flows than there is room for push out those traced longest ago."""
        table = PathTable(most=2)
        for n in range(3):
            table.enter(FlowKey("192.0.2.1", 8100, n, 0, 96), trace_of("h"), float(n))
        self.assertEqual([key.source_port for key, _ in table.since(0)], [2, 1])
        self.assertEqual([key.source_port for key, _ in table.since(2)], [2])


class Mistakes(SynchronousTestCase):
    def said(self, *words, status=2):
        """Return what the command says in its last line, which is one of refusal."""
        done = CliRunner().invoke(trace, ["127.0.0.1", "--no-dns", *words])
        self.assertEqual(done.exit_code, status, done.output)
        return done.output.splitlines()[-1].removeprefix("Error: ")

    def test_more_flows_than_ports(self):
        """Source ports end at 65535: more flows than that are refused, and fewer traced unasked."""
        self.assertEqual(
            self.said("--source-port", "65530", "--flows", "10"),
            "--source-port 65530 leaves 6 ports up to 65535; give --flows 6 or less, or a lower port",
        )
        words = ["127.0.0.1", "--no-dns", "--probes", "0", "--source-port", "65534"]
        done = CliRunner().invoke(trace, words)
        self.assertIn("2 flows", done.output)

    def test_options_of_send(self):
        """What ``llama send`` can be told, too, has the same names; those of before go on working."""
        ours = {param.name: set(param.opts) for param in trace.params}
        for param in send.params:
            self.assertLessEqual(set(param.opts), ours.get(param.name, set(param.opts)))
        for words in (("--family", "6"), ("-6",)):
            self.assertEqual(self.said(*words), "127.0.0.1 does not resolve to an IPv6 address")
        done = CliRunner().invoke(trace, ["127.0.0.1", "--family", "6", "-4"])
        self.assertIn("-4 and --family 6 are given, expected one of them", done.output)
        for name in ("--dscp", "--class"):
            self.assertIn("XY", self.said(name, "XY"))
        for words in (
            ("--family", "4", "-f", "10", "--source-port", "65530"),
            ("-4", "-n", "10", "--from-port", "65530"),
        ):
            self.assertIn("leaves 6 ports", self.said(*words))

    def test_names_that_are_no_text(self):
        """A file of names that is not UTF-8 is refused by its name."""
        path = Path(self.mktemp())
        path.write_bytes(b"\xff\xfe bad")
        said = self.said("--names", str(path), status=1)
        self.assertEqual(
            said, f"{path}: not UTF-8; expected one 'ADDRESS NAME' a line, like /etc/hosts"
        )

    def test_too_many_open_files(self):
        """Where no socket can be had for want of descriptors, the advice is about these."""

        def refuse(*_):
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(Tracer, "add", refuse)
        self.assertIn("ulimit -n", self.said(status=1))


class Ports(SynchronousTestCase):
    """The source ports of ``llama trace``."""

    def test_taken(self):
        """One that somebody else has leaves no socket open."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            info = (socket.AF_INET, socket.SOCK_DGRAM, 17, "", taken.getsockname())
            tracer = Tracer(info, 0, 44, "127.0.0.1")
            self.addCleanup(tracer.close)
            before = len(os.listdir("/proc/self/fd"))
            try:
                tracer.add(1, taken.getsockname()[1])
            except OSError as reason:  # what it leaves is kept as long as this is
                self.assertEqual(reason.errno, errno.EADDRINUSE)
                self.assertEqual(len(os.listdir("/proc/self/fd")), before)
            else:
                self.fail("the port was had twice")


class Forgeries(SynchronousTestCase):
    """What others send to the sockets of ``llama trace``."""

    def setUp(self):
        """Have a target on loopback, and one flow to it."""
        self.target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.target.close)
        self.target.bind(("127.0.0.1", 0))
        self.target.settimeout(5)
        to = self.target.getsockname()
        self.tracer = Tracer((socket.AF_INET, socket.SOCK_DGRAM, 17, "", to), 0, 44, "127.0.0.1")
        self.addCleanup(self.tracer.close)
        self.tracer.add(1)
        (self.flow,) = self.tracer.flows

    def sent(self, packet):
        """Send a packet; return it as it arrives."""
        self.tracer._send(self.flow, packet)
        return self.target.recv(2048)

    def reply(self, probe):
        """Send what repeats a probe from the target, and have it read."""
        octets = bytes(24) + probe[:14] + bytes(2) + b"\x01" + bytes(3)
        self.target.sendto(octets, ("127.0.0.1", self.flow.port))
        select.select([self.flow.sock], [], [], 5)
        self.tracer._replies(self.flow, 0.1)

    def test_errors(self):
        """They quote number and time of a packet, or name no hop."""
        packet = self.flow.trace.next(0.0)
        probe = self.sent(packet)
        for quote in (
            bytes(3) + b"\1" + probe[4:],
            probe[:4] + bytes(7) + b"\1" + probe[12:],
            b"\1" * 4,
        ):
            for kind, code in ((11, 0), (3, 13), (3, 3)):
                forged = errors.IcmpError(4, kind, code, "10.66.66.66", *self.tracer.to, quote)
                self.tracer._error(self.flow, forged, 0.1)
        self.assertEqual(
            (self.flow.trace.hops[0].addresses, self.flow.trace.path().refusal), ([], "")
        )
        true = errors.IcmpError(4, 3, 13, "10.0.0.1", *self.tracer.to, probe[:12])
        self.tracer._error(self.flow, true, 0.1)
        self.assertEqual(self.flow.trace.path().refusal, "administratively prohibited")

    def test_replies(self):
        """They repeat the time, or the target was not reached."""
        probe = self.sent(self.flow.trace.next(0.0))
        self.reply(probe[:4] + bytes(8) + probe[12:])
        self.reply(bytes(4) + probe[4:])
        self.assertFalse(self.flow.trace.path().complete)
        self.reply(probe)
        self.assertTrue(self.flow.trace.path().complete)

    def test_replies_from_end_to_end(self):
        """They hide no loss, and each counts once."""
        probe = self.sent(Packet(64, 1 << 31))
        self.reply(probe[:4] + bytes(8) + probe[12:])
        self.assertEqual(self.flow.received, 0)
        for _ in range(2):
            self.reply(probe)
        self.assertEqual(self.flow.received, 1)

    def test_what_the_reflector_drops_itself(self):
        """It tells so in its replies; without TLVs, or of what it dropped before, nothing is said."""
        self.tracer = Tracer(
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", self.tracer.to), 0, 96, "127.0.0.1"
        )
        self.addCleanup(self.tracer.close)
        self.tracer.add(1)
        (self.flow,) = self.tracer.flows
        for n, (drops, doubts) in enumerate((((3, 5), []), ((3, 5), []), ((3, 6), [LIMITED]))):
            probe = self.sent(Packet(64, 1 << 31 | n))
            reply = bytearray(bytes(24) + probe[:14] + bytes(2) + b"\x01" + bytes(3) + probe[44:])
            tlv.reflect_one(
                memoryview(reply)[44:], 0, tlv.FollowUp(), tlv.State(1, *drops), [False] * 64
            )
            self.target.sendto(reply, ("127.0.0.1", self.flow.port))
            select.select([self.flow.sock], [], [], 5)
            self.tracer._replies(self.flow, 0.1)
            self.assertEqual((self.flow.received, self.tracer.doubts()), (n + 1, doubts))

    def test_errors_of_others(self):
        """However many are pending one after the other, only what is the target's own ends it."""
        real, self.flow.sock = self.flow.sock, Refusing(self.flow.sock, errors.PATIENCE + 1)
        self.addCleanup(real.close)
        self.assertEqual(len(self.sent(self.flow.trace.next(0.0))), 44)
        self.flow.sock.left = errors.PATIENCE + 2
        why = self.assertRaises(click.ClickException, self.sent, self.flow.trace.next(0.0))
        self.assertIn("No route to host", why.message)
        self.assertEqual(real.getsockopt(mmsg.SOL_IP, mmsg.IP_RECVERR), 1)


class Refusing:
    """A socket that refuses to send so often."""

    def __init__(self, sock, left):
        self.sock, self.left = sock, left

    def __getattr__(self, name):
        """Be as that socket otherwise."""
        return getattr(self.sock, name)

    def sendmsg(self, *words):
        """Fail, or send."""
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        return self.sock.sendmsg(*words)


class Endings(SynchronousTestCase):
    def interrupted(self, name, instead):
        """Return the flows of a trace to an echo that is slow, with Ctrl-C pressed in a method."""
        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(echo.close)
        echo.bind(("127.0.0.1", 0))
        echo.settimeout(0.2)

        def answer():
            waiting = []
            while True:
                try:
                    waiting.append(echo.recvfrom(2048))
                except OSError:  # nothing more comes
                    break
            for probe, sender in waiting:
                echo.sendto(bytes(24) + probe[:14] + bytes(2) + b"\x01" + bytes(3), sender)

        original = getattr(Tracer, name)

        def pressed(tracer, flows, *rest):
            instead(original, tracer, flows, *rest)
            answering.start()
            raise KeyboardInterrupt

        answering = threading.Thread(target=answer)
        self.patch(Tracer, name, pressed)
        port = str(echo.getsockname()[1])
        words = ["127.0.0.1", "--port", port, "--json", "--no-dns", "--flows", "8", "--probes", "3"]
        done = CliRunner().invoke(trace, words)
        answering.join()
        self.assertIn("interrupted", done.stderr)
        return json.loads(done.stdout)["flows"]

    def test_interrupted_amid_probes(self):
        """What is under way when Ctrl-C is pressed is waited for, and does not count as lost."""

        def some(_, tracer, flows, __):
            for flow in flows[:5]:
                tracer._send(flow, Packet(64, 1 << 31))
                flow.sent += 1

        self.patch(Tracer, "run", lambda tracer, flows: None)
        flows = self.interrupted("measure", some)
        self.assertEqual([(flow["sent"], flow["received"]) for flow in flows], [(1, 1)] * 5)

    def test_interrupted_amid_traces(self):
        """Flows of which nothing was sent yet are none that come nowhere."""

        def some(_, tracer, flows):
            for flow in flows[:3]:
                tracer._send(flow, flow.trace.next(0.0))

        self.assertEqual(len(self.interrupted("run", some)), 3)

    def test_exit_status(self):
        """It is 0 where the target says anything at all."""
        closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        closed.bind(("127.0.0.1", 0))
        port = str(closed.getsockname()[1])
        closed.close()
        words = ["127.0.0.1", "--port", port, "--no-dns", "--flows", "2", "--probes", "0"]
        done = CliRunner().invoke(trace, words)
        self.assertEqual(done.exit_code, 0)
        self.assertIn("2 flows, 1 path; no other", done.output)


class OnNamespaces(SynchronousTestCase):
    """`llama trace` in a real fabric, without root inside it."""

    skip = NEEDS
    lab = None

    @classmethod
    def setUpClass(cls):
        """Build a fabric with a reflector on h2-1."""
        if NEEDS is None:
            cls.run_directory = tempfile.TemporaryDirectory()
            cls.name = f"trace{os.getpid()}"
            cls.lab = Lab.build(cls.name, Fabric(2, 3, 1), Path(cls.run_directory.name))
            # Where somebody who is not root can read it.
            descriptor, cls.names = tempfile.mkstemp()
            os.write(descriptor, write_names(cls.lab).read_bytes())
            os.fchmod(descriptor, 0o644)
            os.close(descriptor)
            from llama.lab.hosts import start_reflector

            process = start_reflector(cls.lab, "h2-1")
            log = cls.lab.directory / "h2-1-reflector.log"
            while process.alive and "answering" not in log.read_text():
                pass

    @classmethod
    def tearDownClass(cls):
        """Remove it."""
        if cls.lab is not None:
            clear(cls.name, Path(cls.run_directory.name))
            os.unlink(cls.names)
            cls.run_directory.cleanup()

    def trace(self, *words, target=None):
        """Return what ``llama trace --json`` says to an unprivileged user on h1-1."""
        target = target or str(self.lab.fabric.address("h2-1"))
        llama = str(Path(sys.executable).parent / "llama")
        unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        options = ["--no-dns", "--json", "--names", self.names]
        return json.loads(
            self.lab.run("h1-1", *unprivileged, llama, "trace", target, *options, *words)
        )

    def broken(self, **options):
        """Inject a fault for the test."""
        faults.inject(self.lab, Fault.from_mapping(options))
        self.addCleanup(faults.heal_all, self.lab)

    def test_all_paths_both_families(self):
        """All three paths are found and named, over IPv4 and IPv6, with confidence."""
        for target in (None, str(self.lab.fabric.ipv6_address("h2-1"))):
            # As many as it takes would miss a path one time in twenty.
            said = self.trace("--flows", "48", target=target)
            self.assertEqual(said["paths"], 3)
            self.assertGreaterEqual(said["confidence"], 0.95)
            for flow in said["flows"]:
                hops = [hop["name"] for hop in flow["hops"]]
                self.assertEqual([hops[0], *hops[2:]], ["leaf1", "leaf2", "h2-1"])
                self.assertEqual((flow["complete"], flow["received"]), (True, flow["sent"]))

    def test_a_dead_link(self):
        """Flows over a dead link end before it; the others are whole."""
        self.broken(kind="loss", on="spine2 -> leaf2")
        said = self.trace("--flows", "32", "--probes", "2")  # all three ways, by any hash
        through = {flow["hops"][1]["name"]: flow["complete"] for flow in said["flows"]}
        self.assertEqual(through, {"spine1": True, "spine2": False, "spine3": True})

    def test_a_dead_leaf(self):
        """If no flow comes so far, the exit status says so, too."""
        for spine in (1, 2, 3):
            self.broken(kind="loss", on=f"spine{spine} -> leaf2")
        llama = str(Path(sys.executable).parent / "llama")
        target = str(self.lab.fabric.address("h2-1"))
        words = [llama, "trace", target, "--no-dns", "--flows", "2", "--probes", "0"]
        why = self.assertRaises(LabError, self.lab.run, "h1-1", *words)
        self.assertIn("0 flows reached", str(why))

    def test_a_loop(self):
        """Flows that go in circles end where they begin to, and the others are whole."""
        fabric, leaf2 = self.lab.fabric, "10.1.2.0/24"
        back = fabric.direction("spine2 -> leaf1").receiver.ipv4
        good = fabric.direction("spine2 -> leaf2").receiver.ipv4
        self.lab.run("spine2", "ip", "route", "replace", leaf2, "via", str(back))
        self.addCleanup(self.lab.run, "spine2", "ip", "route", "replace", leaf2, "via", str(good))
        said = self.trace("--flows", "32", "--probes", "0")  # all three ways, by any hash
        for flow in said["flows"]:
            names = [hop["name"] for hop in flow["hops"]]
            looped = names == ["leaf1", "spine2", "leaf1", "spine2"]
            self.assertEqual(flow["refusal"] == LOOP, looped, names)
            self.assertEqual(flow["complete"], not looped)
        self.assertTrue(any(flow["refusal"] for flow in said["flows"]))

    def test_a_silent_router_is_no_loss(self):
        """A router without ICMP is a hop without a name, and nothing is lossy for that."""
        self.broken(kind="icmp-silent", on="leaf1")
        said = self.trace("--flows", "4")
        for flow in said["flows"]:
            self.assertEqual([flow["hops"][0]["name"], flow["hops"][2]["name"]], [None, "leaf2"])
            self.assertEqual(flow["received"], flow["sent"])

    def test_nobody_there(self):
        """A port without a reflector is reached all the same: its host says unreachable."""
        said = self.trace("--flows", "2", "--port", "9", "--probes", "1")
        self.assertEqual({flow["complete"] for flow in said["flows"]}, {True})
        self.assertEqual({flow["received"] for flow in said["flows"]}, {0})
