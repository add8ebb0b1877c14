"""Which of its flows a collector traces, when, and what it makes of the answers."""

import errno
from collections import Counter

import numpy as np
from attrs import evolve
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llama import testing
from llama.collector import trace_proof
from llama.collector import tracing as module
from llama.collector.slices import at_once
from llama.collector.trace_picks import (
    AGAIN_S,
    AT_A_TIME,
    DEAD_FRESH_S,
    FRESH_S,
    LEFT,
    LOOKED_AT,
    LOOKED_THROUGH,
    OF_DEAD_PAIR,
    PICKED,
    SIBLINGS,
    SOON_S,
    TRIES,
    Picks,
    keys,
)
from llama.collector.trace_proof import WARY_S
from llama.collector.tracing import (
    AFTER_FAILURE_S,
    BURST,
    IDLE_A_TURN,
    IDLE_PERIOD_S,
    LATE_S,
    PERIOD_S,
    RATE_PPS,
    TELL_S,
    Tracing,
)
from llama.config import class_name
from llama.net.errors import IcmpError
from llama.paths.table import FlowKey, PathTable, as_json
from llama.paths.trace import Path
from llama.wire import stamp


class Kernel:
    """Sockets whose packets are kept, and answered by a path of routers."""

    def __init__(self, numbers):
        self.sent = []
        self.tracing = None
        self.sockets = {}
        for number in numbers:
            source = type("Source", (), {"version": 4})()
            self.sockets[source] = Socket(number, self)

    def reserve_ssid(self):
        """Return the SSID of traces."""
        return 77

    def note_traced(self, sock, address, port):
        """Pass over that one leaves."""

    def hear_no_errors(self, sock):
        """Note that errors are wanted no more."""
        sock.hears_errors = False


class Socket:
    """One source port."""

    family = 2  # AF_INET
    hears_errors = False

    def __init__(self, number, kernel):
        self.number, self.kernel, self.sock = number, kernel, self

    def hear_errors(self):
        """Note that errors are wanted."""
        self.hears_errors = True

    def sendmsg(self, parts, control, _flags, to):
        """Keep a packet: its TTL, TOS, number, SSID and size."""
        payload = b"".join(parts)
        options = {kind: int.from_bytes(data[:4], "little") for _, kind, data in control}
        number, _, _, ssid = stamp.SENDER_STRUCT.unpack_from(payload)
        self.kernel.sent.append((self, to, options[2], options[1], number, ssid, payload))


class Picking(SynchronousTestCase):
    def setUp(self):
        """Make a tracing over one interval of 3 pairs with 4 flows each."""
        self.clock = Clock()
        self.now = 1_700_000_000.0
        self.closed = testing.closed_interval(3, flows_per_pair=4)
        ports = sorted(set(self.closed.flows["source_port"].tolist()))
        self.kernel = Kernel(ports)
        self.tracing = Tracing(
            self.kernel, unix_time_s=lambda: self.now, monotonic_s=self.clock.seconds
        )
        self.picks_closed = self.tracing.closed
        self.tracing.closed = self.lined_up

    def lined_up(self, closed):
        """Hand an interval over, and line its healthy flows up at once."""
        self.picks_closed(closed)
        at_once(self.tracing.line_up(closed))

    def lossy(self, rows, lost=3, received=7):
        """Return the interval with these flows lossy."""
        stats = self.closed.flow_stats.copy()
        stats["lost"][rows], stats["received"][rows] = lost, received
        return evolve(self.closed, flow_stats=stats)

    def turn(self):
        """Let a period pass, with a tick at its end."""
        self.clock.advance(PERIOD_S)
        self.tracing.tick()

    def run_for(
        self, seconds, hops=("10.0.0.1", "10.0.0.2"), dead_after=None, quote=44, refused_by=None
    ):
        """Let time pass; answer every packet as a path of routers and the target would.

        Or as one on which a router refuses what it should forward.
        """
        for _ in range(round(seconds / PERIOD_S)):
            self.turn()
            self.now += PERIOD_S
            sent, self.kernel.sent = self.kernel.sent, []
            for sock, to, ttl, _, number, _, payload in sent:
                if dead_after is not None and ttl > dead_after:
                    continue
                if refused_by in hops[: ttl - 1]:
                    error = IcmpError(4, 3, 13, refused_by, to[0], to[1], payload[:quote])
                    self.tracing.error(sock, error)
                elif ttl <= len(hops):
                    error = IcmpError(4, 11, 0, hops[ttl - 1], to[0], to[1], payload[:quote])
                    self.tracing.error(sock, error)
                else:
                    t1 = stamp.SENDER_STRUCT.unpack_from(payload)[1]
                    self.assertTrue(self.tracing.reply(sock, to, number, t1, ttl - len(hops)))

    def paths(self):
        """Return what is known: (dst, port) -> hops."""
        return {(k.dst_ip, k.source_port): v.hops for k, v in self.tracing.table.since(0)}

    def test_every_flow_once(self):
        """With nothing the matter every flow is traced, then none for a while."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.assertEqual(len(self.paths()), 12)
        for (target, _), hops in self.paths().items():
            self.assertEqual(hops, ("10.0.0.1", "10.0.0.2", target))
        before = self.tracing.sent
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.assertEqual(self.tracing.sent, before)
        self.now += AGAIN_S
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.assertGreater(self.tracing.sent, before)

    def test_refused_no_more(self):
        """Flows that are well are traced again soon, however often a router had refused them."""
        for _ in range(TRIES + 1):
            self.tracing.closed(self.closed)
            self.run_for(5, refused_by="10.0.0.2")
            self.now += AGAIN_S
        self.assertEqual(
            {known.refused_by for _, known in self.tracing.table.since(0)}, {"10.0.0.2"}
        )
        self.now += SOON_S - AGAIN_S
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.assertEqual({known.refused_by for _, known in self.tracing.table.since(0)}, {""})

    def test_as_the_probes(self):
        """Packets bear the flow's ports, class and size, under an SSID that no probe has."""
        pairs = [evolve(pair, dscp=46, size=200) for pair in self.closed.pairs]
        self.tracing.closed(evolve(self.closed, pairs=pairs))
        self.turn()
        sock, to, ttl, tos, _, ssid, payload = self.kernel.sent[0]
        self.assertEqual((tos >> 2, ssid, len(payload), ttl), (46, 77, 200, 1))
        self.assertEqual(to, (pairs[0].dst_ip, pairs[0].dst_port))
        self.assertTrue(sock.hears_errors)

    def test_sockets_hear_errors_while_it_traces(self):
        """And no longer: a flood of forged ones finds nobody who listens."""
        self.tracing.closed(self.closed)
        self.turn()
        traced = {going.sock for going in self.tracing._going.values()}
        self.assertEqual({s for s in self.kernel.sockets.values() if s.hears_errors}, traced)
        self.run_for(5)
        self.assertEqual(self.tracing._going, {})
        self.assertFalse(any(s.hears_errors for s in self.kernel.sockets.values()))

    def test_sockets_hear_nothing_after_a_failure(self):
        """What is forgotten needs no ears."""
        self.tracing.closed(self.closed)
        self.turn()
        self.patch(self.tracing, "_send", lambda *_: 1 // 0)
        self.run_for(2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(any(s.hears_errors for s in self.kernel.sockets.values()))

    def test_paced(self):
        """However much there is to trace, no more than the rate is sent."""
        many = testing.closed_interval(30, flows_per_pair=4)
        stats = many.flow_stats.copy()
        stats["lost"], stats["received"] = 10, 0
        for seconds in range(1, 4):
            self.tracing.closed(evolve(many, flow_stats=stats))
            for _ in range(round(1 / PERIOD_S)):
                self.turn()
            most = RATE_PPS * seconds + BURST
            self.assertLessEqual(len(self.kernel.sent), most)
        self.assertGreater(len(self.kernel.sent), 1.9 * RATE_PPS)

    def test_caps(self):
        """Within what the caps leave, over any second, in packets and in bits; without any, nothing."""
        many = testing.closed_interval(30, flows_per_pair=4)
        stats = many.flow_stats.copy()
        stats["lost"], stats["received"] = 10, 0
        size = max(many.pairs[0].size, 44) + 28
        for pps, bps, most in (
            (20, None, 20),
            (None, 20 * 8 * size, 20),
            (0, None, 0),
            (0.5, None, 1),
        ):
            self.tracing.keep_within(pps, bps)
            sent = []
            for _ in range(round(20 / PERIOD_S)):
                self.tracing.closed(evolve(many, flow_stats=stats))
                before = len(self.kernel.sent)
                self.turn()
                sent.append(len(self.kernel.sent) - before)
            second = round(1 / PERIOD_S)
            busiest = max(sum(sent[n - second : n]) for n in range(second, len(sent) + 1))
            self.assertLessEqual(busiest, most, (pps, bps))
            self.assertGreaterEqual(sum(sent), min(5, 14 * most), (pps, bps))

    def test_ticks_are_no_turns(self):
        """However often it ticks, it has its turns once a period, and after a pause only one."""
        turns = []
        self.patch(self.tracing, "_turn", lambda *when: turns.append(when))
        for urgent, period_s in (False, IDLE_PERIOD_S), (True, PERIOD_S):
            if urgent:
                self.tracing.closed(self.lossy([0]))
            turns.clear()
            for _ in range(1000):
                self.clock.advance(0.004)
                self.tracing.tick()
            self.assertTrue(4 / (period_s + 0.004) - 2 < len(turns) <= 4 / period_s + 1)
        before = len(turns)
        for pause_s in (10, 0, 0.001):
            self.clock.advance(pause_s)
            self.tracing.tick()
        self.assertEqual(len(turns), before + 1)

    def test_lossy_flows_do_not_wait(self):
        """What suffers is traced at once, between two of the turns that healthy flows have."""
        self.tracing.closed(self.closed)
        self.turn()
        self.assertEqual(len(self.tracing._going), IDLE_A_TURN)
        self.turn()
        before = set(self.tracing._going)
        self.assertEqual(len(before), IDLE_A_TURN)
        self.tracing.closed(self.lossy([11], lost=10, received=0))
        self.turn()
        target = self.closed.pairs[2].dst_ip
        more = {key for key in self.tracing._going if key.dst_ip == target} - before
        self.assertEqual(len(more), 3)  # the fourth was begun without reason
        self.assertEqual(len(self.tracing._going), IDLE_A_TURN + 3)

    def test_sockets_are_looked_through_once(self):
        """However many flows a turn begins with, and there may be thousands of sockets."""
        looked = []

        class Counted(dict):
            def items(self):
                looked.append(0)
                return super().items()

        self.kernel.sockets = Counted(self.kernel.sockets)
        self.tracing.closed(self.lossy(slice(None)))
        self.turn()
        self.assertEqual((len(self.tracing._going), len(looked)), (12, 1))

    def test_lossy_while_it_is_traced(self):
        """What begins to lose while it is traced for no reason has its next turn soon, too."""
        self.tracing.closed(self.closed)
        self.turn()
        self.assertEqual({going.key.dst_ip for going in self.tracing._going.values()},
                         {pair.dst_ip for pair in self.closed.pairs})  # fmt: skip
        self.tracing.closed(self.lossy([0], lost=10, received=0))
        self.turn()
        turns = []
        self.patch(self.tracing, "_turn", lambda *when: turns.append(when))
        self.turn()
        self.assertEqual(len(turns), 1)

    def test_clock_that_is_set_back(self):
        """Paths found before are of another time: they are looked for again."""
        for _ in range(2):
            self.tracing.closed(self.closed)
            self.run_for(5)
        self.assertEqual(len(self.paths()), 12)
        self.tracing.closed(self.lossy([0]))
        self.assertFalse(self.tracing._urgent)  # it is known well enough
        self.now -= 3600
        self.tracing.closed(self.lossy([0]))
        self.assertTrue(self.tracing._urgent)
        self.run_for(15)
        traced = [known.traced <= self.now for _, known in self.tracing.table.since(0)]
        self.assertGreater(sum(traced), 6)

    def test_failure(self):
        """If it cannot go on, that is logged, its ticks are harmless, and later it begins anew."""
        self.tracing.closed(self.closed)
        self.turn()
        self.assertTrue(self.tracing._going)
        self.kernel.sent.clear()  # nobody answers
        failing = self.patch(self.tracing, "_send", lambda *_: 1 // 0)
        self.run_for(5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.tracing.health()["trace_failures_total"], 1)
        failing.restore()
        self.run_for(AFTER_FAILURE_S - 6)
        self.assertEqual(self.paths(), {})
        for _ in range(2):  # what was forgotten is picked again by a later interval
            self.tracing.closed(self.closed)
            self.run_for(5)
        self.assertEqual(len(self.paths()), 12)

    def test_dead_first_with_siblings(self):
        """A dead flow is traced at once, its healthy siblings next, before all others."""
        dead = self.lossy([9], lost=10, received=0)
        self.tracing.closed(dead)
        keys = list(self.tracing._urgent)
        self.assertEqual(keys[0].source_port, int(self.closed.flows["source_port"][9]))
        self.assertEqual({key.dst_ip for key in keys}, {self.closed.pairs[2].dst_ip})
        self.assertEqual(len(keys), 4)

    def test_what_cannot_be_traced(self):
        """Lossy flows of other kinds are left out, and keep no others from being traced."""
        pairs = [evolve(pair, probe=kind) for pair, kind in
                 zip(self.closed.pairs, ("icmp", "stamp", "llama-go"), strict=True)]  # fmt: skip
        self.tracing.closed(evolve(self.lossy(range(12), lost=10, received=0), pairs=pairs))
        self.assertEqual({key.dst_ip for key in self.tracing._urgent}, {pairs[1].dst_ip})
        self.assertEqual(self.tracing.failures, 0)

    def test_a_failure_to_pick(self):
        """It is counted and logged like any, and what closes next is picked from."""
        self.tracing.closed(evolve(self.closed, pairs=None))
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertEqual(self.tracing.health()["trace_failures_total"], 1)
        self.tracing.closed(self.lossy([0]))
        self.assertEqual(len(self.tracing._urgent), 4)

    def test_many_dead_hosts(self):
        """Hosts that have long been dead do not keep a path that begins to lose from being traced."""
        many = testing.closed_interval(200, flows_per_pair=8)
        stats = many.flow_stats.copy()
        stats["lost"][: 150 * 8], stats["received"][: 150 * 8] = 10, 0
        self.kernel.sockets = {
            type("Source", (), {"version": 4})(): Socket(number, self.kernel)
            for number in set(many.flows["source_port"].tolist())
        }
        for _ in range(4):
            self.tracing.closed(evolve(many, flow_stats=stats))
            self.run_for(30, hops=(), dead_after=0)
        ways = [150 * 8 + 1, 160 * 8 + 2, 170 * 8 + 3]
        stats["lost"][ways], stats["received"][ways] = 10, 0
        self.tracing.closed(evolve(many, flow_stats=stats))
        urgent = set(self.tracing._urgent)
        for key in keys(many, ways):
            self.assertIn(key, urgent)
        dead = {key.dst_ip for key in urgent if key.dst_ip in {p.dst_ip for p in many.pairs[:150]}}
        self.assertGreater(len(dead), 20)
        self.assertLessEqual(
            max(Counter(k.dst_ip for k in urgent if k.dst_ip in dead).values()), OF_DEAD_PAIR
        )

    def test_one_port_on_two_interfaces(self):
        """A flow is traced from the socket of the test that probes its target, or not at all."""
        other = type("Source", (), {"version": 4})()
        number = int(self.closed.flows["source_port"][0])
        (first,) = [s for s in self.kernel.sockets.values() if s.number == number]
        second = self.kernel.sockets[other] = Socket(number, self.kernel)
        track = type("Track", (), {})
        self.kernel.tracks = [track(), track()]
        targets = {(p.dst_ip, p.dst_port, p.dscp, p.size) for p in self.closed.pairs}
        self.kernel.tracks[0].sockets, self.kernel.tracks[0].targets = [second], targets
        self.kernel.tracks[1].sockets, self.kernel.tracks[1].targets = [first], set()
        (key,) = keys(self.closed, [0])
        self.assertIs(self.tracing._socket(key, self.tracing._by_port()), second)
        self.kernel.tracks[1].targets = targets
        self.assertIsNone(self.tracing._socket(key, self.tracing._by_port()))

    def test_how_far_a_dead_flow_comes(self):
        """A dead flow keeps its path and tells how far it comes; it is not asked all the time."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        dead = self.lossy([0], lost=10, received=0)
        self.tracing.closed(dead)
        self.run_for(6, dead_after=1)
        (key,) = [k for k, v in self.tracing.table.since(0) if v.reach is not None]
        known = self.tracing.table.get(key)
        self.assertEqual((known.reach, known.hops[:2]), (1, ("10.0.0.1", "10.0.0.2")))
        self.tracing.closed(dead)
        self.assertNotIn(key, self.tracing._urgent)
        self.now += DEAD_FRESH_S
        self.tracing.closed(dead)
        self.assertIn(key, self.tracing._urgent)

    def test_a_router_that_refuses(self):
        """It is told as such, once, and neither as another path nor as a link to itself."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        said = []
        log = type("Log", (), {"info": lambda _, *words, **what: said.append((*words, what))})()
        self.patch(self.tracing, "log", log)
        for _ in range(2):
            self.tracing.closed(self.lossy([0], lost=10, received=0))
            self.run_for(6, refused_by="10.0.0.1")
            self.now += DEAD_FRESH_S
        (key,) = [k for k, v in self.tracing.table.since(0) if v.reach is not None and
                  k.source_port == int(self.closed.flows["source_port"][0])]  # fmt: skip
        known = self.tracing.table.get(key)
        self.assertEqual(known.hops, ("10.0.0.1", "10.0.0.2", key.dst_ip))
        row = as_json(key, known)
        told = [row[name] for name in ("complete", "reach", "refusal", "refused_by", "changed")]
        self.assertEqual(told, [True, 1, "administratively prohibited", "10.0.0.1", None])
        refusal = {
            "what": "refuses", "router": "10.0.0.1", "source_port": key.source_port,
            "dst_ip": key.dst_ip, "class_name": class_name(key.dscp), "size": key.size,
            "refusal": "administratively prohibited",
        }  # fmt: skip

        def mine():
            return [what for _, what in said if what["source_port"] == key.source_port]

        self.assertEqual(mine(), [refusal])
        self.assertEqual(self.tracing.health()["path_changes_total"], 0)
        self.tracing.closed(self.lossy([0]))
        self.run_for(6)
        row = as_json(key, self.tracing.table.get(key))
        self.assertEqual([row[n] for n in ("reach", "refusal", "refused_by")], [None] * 3)
        self.assertEqual(mine(), [refusal, refusal | {"what": "no longer refuses"}])

    def test_many_paths_that_change(self):
        """Of many paths that change in an interval some are told one by one, and how many more."""
        self.patch(module, "MOST_TOLD", 5)
        with capturedLogs() as events:
            for router in ("10.0.0.2", "10.0.0.3"):
                self.tracing.closed(self.closed)
                self.run_for(5, hops=("10.0.0.1", router))
                self.now += AGAIN_S
            for _ in range(2):
                self.tracing.closed(self.closed)
        *each, rest = [formatEvent(event) for event in events]
        self.assertEqual(len([text for text in each if "10.0.0.1 10.0.0.3" in text]), 5)
        self.assertEqual(len(each), 5)
        self.assertTrue(rest.startswith("7 more paths are others, in the same"), rest)

    def test_a_lossy_flow_with_a_fresh_path(self):
        """A lossy flow whose path was seen just now is not traced again before long."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.tracing.closed(self.lossy([0]))
        self.assertEqual(len(self.tracing._urgent), 0)
        self.now += FRESH_S
        self.tracing.closed(self.lossy([0]))
        self.assertEqual(len(self.tracing._urgent), 4)

    def test_others_that_took_the_path_which_one_left(self):
        """When one flow is found on another path, those that shared the old one are traced soon."""
        before, after = ("10.9.0.1", "10.9.0.2"), ("10.9.0.1", "10.9.0.3")
        self.tracing.closed(self.closed)
        self.run_for(5, hops=before)
        self.now += FRESH_S
        self.tracing.closed(self.lossy([0]))
        self.run_for(5, hops=after)
        self.assertEqual({hops[1] for hops in self.paths().values()}, {before[1], after[1]})
        self.now += SOON_S
        self.tracing.closed(self.closed)
        self.run_for(5, hops=after)
        self.assertEqual({hops[1] for hops in self.paths().values()}, {after[1]})
        sent = self.tracing.sent
        self.now += SOON_S
        self.tracing.closed(self.closed)
        self.run_for(5, hops=after)
        self.assertEqual(self.tracing.sent, sent)

    def test_a_dead_flow_on_another_way(self):
        """What a flow left before it died is left for all; its destination is not."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.now += FRESH_S
        self.tracing.closed(self.lossy([0], lost=10, received=0))
        self.run_for(8, hops=("10.0.0.1", "10.0.0.3", "10.0.0.4"), dead_after=2)
        self.assertEqual(set(self.tracing._picks._left), {"10.0.0.2"})
        self.tracing.closed(self.lossy([11]))
        self.assertEqual(len(self.tracing._urgent), 4)  # though traced just now

    def test_routers_that_quote_eight_octets(self):
        """Answers without our octets are told apart by having one packet under way."""
        self.tracing.closed(self.closed)
        self.run_for(40, quote=0)
        whole = [hops for hops in self.paths().values() if None not in hops]
        self.assertEqual(len(whole), 12)

    def first_sent(self):
        """Begin to trace; return the first packet's socket, target, number, payload and trace."""
        self.tracing.closed(self.closed)
        self.turn()
        sock, to, _, _, number, _, payload = self.kernel.sent[0]
        return sock, to, number, payload, self.tracing._numbers[number].trace

    def proof_needed(self, key):
        """Return at which TTLs of a flow's path an answer must prove itself now."""
        known = self.tracing.table.get(key)
        return self.tracing._proof.needed(key.dst_ip, known, self.clock.seconds())

    def mismatched(self):
        """Return what is counted."""
        return self.tracing.health()["trace_answers_mismatched_total"]

    def test_errors_about_probes(self):
        """An ICMP error that quotes a probe, of another SSID, is not taken for a trace's, nor forged."""
        sock, to, _, payload, trace = self.first_sent()
        probe = payload[:14] + b"\x00\x01" + payload[16:]
        self.tracing.error(sock, IcmpError(4, 11, 0, "10.9.9.9", to[0], to[1], probe))
        self.assertEqual((trace.hops[0].addresses, self.mismatched()), ([], 0))

    def test_who_says_that_a_port_is_unreachable(self):
        """The target says so if the packet came all the way; anybody else refuses to forward it."""
        for refused in (False, True):
            sock, to, _, payload, trace = self.first_sent()
            by = "10.0.0.1" if refused else to[0]
            self.tracing.error(sock, IcmpError(4, 3, 3, by, to[0], to[1], payload[:44]))
            self.assertEqual(trace.path().complete, not refused)
            self.setUp()

    def test_errors_that_quote_what_was_never_sent(self):
        """Number, time stamp, SSID and target must be those of one packet; what is not is counted."""
        sock, to, _, payload, trace = self.first_sent()
        (other,) = [s for s in self.kernel.sockets.values() if s is not sock][:1]
        wrong = [
            bytes(4) + payload[4:],
            payload[:4] + bytes(8) + payload[12:],
            payload[:11] + b"\xff",
        ]
        forged = [(sock, to[0], to[1], quote) for quote in wrong]
        forged += [(sock, "10.1.1.9", to[1], payload), (sock, to[0], 9, payload)]
        forged += [(other, to[0], to[1], payload)]
        for whose, address, port, quote in forged:
            error = IcmpError(4, 3, 13, "10.9.9.9", address, port, quote)
            self.tracing.error(whose, error)
        self.assertEqual((trace.hops[0].addresses, trace.path().refusal), ([], ""))
        self.assertEqual(self.mismatched(), len(forged))
        for octets, addresses in ((11, []), (12, ["10.9.9.9"]), (16, ["10.9.9.9"])):
            error = IcmpError(4, 11, 0, "10.9.9.9", to[0], to[1], payload[:octets])
            self.tracing.error(sock, error)
            self.assertEqual(trace.hops[0].addresses, addresses)
        self.assertEqual(self.mismatched(), len(forged))

    def test_forgeries_are_told_once_in_a_while(self):
        """However many there are; and how many."""
        sock, to, _, _, _ = self.first_sent()
        said = []
        self.patch(
            self.tracing, "log", type("Log", (), {"warn": lambda _, *a, **k: said.append(k)})()
        )
        forged = IcmpError(4, 11, 0, "10.9.9.9", to[0], to[1], b"forged" * 4)
        forged = evolve(forged, payload=forged.payload[:14] + b"\0\x4d")
        for _ in range(10):
            self.tracing.error(sock, forged)
        self.assertEqual([words["count"] for words in said], [1])
        self.clock.advance(TELL_S)
        self.tracing.error(sock, forged)
        self.assertEqual([words["count"] for words in said], [1, 10])
        self.assertEqual(said[0]["offender"], "10.9.9.9")

    def spray(self, seconds, forge, hops=("10.0.0.1",), dead_after=1, every_s=PERIOD_S, **options):
        """Let time pass as `run_for` does, and have forged errors come at every period as well."""
        since_s = 0.0
        for _ in range(round(seconds / PERIOD_S)):
            self.run_for(PERIOD_S, hops=hops, dead_after=dead_after, **options)
            since_s += PERIOD_S
            if since_s < every_s:
                continue
            since_s = 0.0
            for sock in self.kernel.sockets.values():
                for pair in self.closed.pairs:
                    for error in forge(pair.dst_ip, pair.dst_port):
                        self.tracing.error(sock, error)

    def known(self):
        """Return the hops and refusals of all known paths."""
        return [(v.hops, v.refusal) for _, v in self.tracing.table.since(0)]

    def sprays(self, seconds=30, every_s=PERIOD_S, octets=(0, 4, 16)):
        """Trace dead flows while somebody who knows no octet of ours forges all kinds of answers."""

        def forge(address, port):
            for count in octets:
                quote = (bytes(3) + b"\x05" + bytes(12))[:count]
                for kind, code in ((11, 0), (3, 13), (3, 3)):
                    yield IcmpError(4, kind, code, "10.66.66.66", address, port, quote)

        self.tracing.closed(self.lossy(range(12), lost=10, received=0))
        self.spray(seconds, forge, every_s=every_s)
        self.assertGreater(len(self.known()), 6)
        self.assertGreater(self.mismatched(), 0)
        for hops, refusal in self.known():
            self.assertNotIn("10.66.66.66", hops)
            self.assertEqual(refusal, "")

    def test_a_spray(self):
        """No invented hop is believed, and no refusal."""
        self.sprays()

    def test_a_spray_without_octets(self):
        """Nor if the forger quotes nothing that could be wrong."""
        self.sprays(octets=(0,))

    def test_a_seldom_spray(self):
        """Nor if he hopes to hit the one packet under way: what hits nothing gives him away."""
        self.sprays(every_s=0.7, octets=(0,), seconds=60)

    def test_a_spray_at_old_routers(self):
        """Routers that prove nothing are gaps meanwhile; who proves himself is seen."""

        def forge(address, port):
            yield IcmpError(4, 11, 0, "10.66.66.66", address, port, b"")

        self.tracing.closed(self.lossy(range(12), lost=10, received=0))
        self.spray(30, forge, hops=("10.0.0.1", "10.0.0.2"), dead_after=None, quote=0)
        self.assertEqual({hops[:2] for hops, _ in self.known()}, {(None, None)})
        self.now += AGAIN_S
        self.clock.advance(WARY_S)
        for _ in range(3):  # it is over
            self.now += FRESH_S
            self.tracing.closed(self.lossy(range(12)))
            self.run_for(60, quote=0)
        self.assertEqual({hops[:2] for hops, _ in self.known()}, {("10.0.0.1", "10.0.0.2")})

    def test_wary_from_the_first_packet(self):
        """After a forgery the next trace of that destination believes no such answer either."""
        sock, to, _, _, trace = self.first_sent()
        error = IcmpError(4, 11, 0, "10.66.66.66", to[0], to[1], b"")
        for _ in range(20):
            self.tracing.error(sock, error)
        self.assertTrue(trace.forged)
        (key,) = [k for k, going in self.tracing._going.items() if going.trace is trace]
        self.assertIn(1, self.proof_needed(key))
        self.clock.advance(WARY_S)
        self.assertNotIn(1, self.proof_needed(key))

    def test_who_quoted_more_before(self):
        """At a hop that proved itself once nothing less is believed, nor from its router anywhere."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        (key, known) = next(iter(self.tracing.table.since(0)))
        self.assertEqual(known.hops[:2], ("10.0.0.1", "10.0.0.2"))
        self.assertEqual(set(self.proof_needed(key)), set(range(1, 25)))
        self.now += AGAIN_S
        self.tracing.closed(self.closed)
        while not self.kernel.sent:
            self.turn()
        sock, to, _, _, number, _, _ = self.kernel.sent[0]
        going = self.tracing._numbers[number]
        going.trace._proven = ()
        self.tracing.error(sock, IcmpError(4, 11, 0, "10.0.0.2", to[0], to[1], b""))
        self.assertEqual((self.mismatched(), going.trace.forged), (1, False))

    def test_ipv6_routers_prove_themselves(self):
        """They quote as much as there is room for (RFC 4443), so what quotes little is forged."""
        sock, to, _, payload, trace = self.first_sent()
        for octets in (0, 4, 8):
            self.tracing.error(sock, IcmpError(6, 3, 0, "2001:db8::9", *to, payload[:octets]))
        self.assertEqual((self.mismatched(), trace.hops[0].bare), (3, ""))
        self.tracing.error(sock, IcmpError(6, 3, 0, "2001:db8::9", *to, payload))
        self.assertEqual(trace.hops[0].addresses, ["2001:db8::9"])

    def test_padding_is_no_quote(self):
        """Routers that quote nothing may fill up with zeros, for what follows (RFC 4884)."""
        self.tracing.closed(self.closed)
        for _ in range(800):
            self.turn()
            self.now += PERIOD_S
            sent, self.kernel.sent = self.kernel.sent, []
            for sock, to, ttl, _, number, _, payload in sent:
                if ttl == 1:
                    self.tracing.error(sock, IcmpError(4, 11, 0, "10.0.0.1", *to, bytes(100)))
                else:
                    t1 = stamp.SENDER_STRUCT.unpack_from(payload)[1]
                    self.tracing.reply(sock, to, number, t1, ttl - 1)
        self.assertEqual({hops[0] for hops in self.paths().values()}, {"10.0.0.1"})
        self.assertEqual(self.mismatched(), 0)

    def test_forged_replies(self):
        """A reply comes from the target's address and port, and repeats number and time stamp."""
        sock, to, number, payload, trace = self.first_sent()
        t1 = stamp.SENDER_STRUCT.unpack_from(payload)[1]
        (other,) = [s for s in self.kernel.sockets.values() if s is not sock][:1]
        for forged in (
            (sock, to, number, t1 + 1, 1), (sock, to, (number + 1) & 0xFFFFFFFF, t1, 1),
            (sock, ("10.1.1.9", to[1]), number, t1, 1), (sock, (to[0], 9), number, t1, 1),
            (other, to, number, t1, 1),
        ):  # fmt: skip
            self.assertFalse(self.tracing.reply(*forged))
        self.assertFalse(trace.path().complete)
        self.assertTrue(self.tracing.reply(sock, to, number, t1, 1))
        self.assertTrue(trace.path().complete)

    def test_late_replies(self):
        """What was traced lately is known for it; its late replies are nobody's."""
        sock, to, number, payload, _ = self.first_sent()
        t1 = stamp.SENDER_STRUCT.unpack_from(payload)[1]
        self.run_for(10)
        self.assertEqual(self.tracing._going, {})
        self.assertTrue(self.tracing.reply(sock, to, number, t1, 1))

    def test_what_is_long_over_is_forgotten(self):
        """Once no answer can be on its way any more, nothing is remembered of a trace's packets."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.assertEqual(self.tracing._going, {})
        self.assertGreater(len(self.tracing._numbers), 12)
        self.run_for(LATE_S)
        self.assertEqual(len(self.tracing._numbers), 0)

    def test_memory_is_bounded(self):
        """Of very many packets the last are remembered, of routers and destinations, too."""
        self.patch(module, "NUMBERS", 20)
        self.patch(trace_proof, "PROVERS", 1)
        self.patch(trace_proof, "WARY_OF", 2)
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.assertEqual((len(self.tracing._numbers), len(self.tracing._proof._provers)), (20, 1))
        (sock, *_) = self.kernel.sockets.values()
        for n in range(5):
            self.tracing.error(sock, IcmpError(4, 11, 0, "10.9.9.9", f"10.1.9.{n}", 9, b""))
        self.assertEqual(list(self.tracing._proof._wary), ["10.1.9.3", "10.1.9.4"])

    def test_sockets_that_went_away(self):
        """Flows whose source port was closed meanwhile are left out."""
        self.kernel.sockets.clear()
        self.tracing.closed(self.closed)
        self.run_for(1)
        self.assertEqual((self.tracing.sent, self.paths()), (0, {}))

    def test_sockets_that_go_away(self):
        """What was to be traced from a source port that was closed before its turn holds up no others."""
        closed, *_ = self.kernel.sockets.values()

        def fail():
            raise OSError(errno.EBADF, "closed")

        closed.hear_errors = fail
        self.tracing.closed(self.lossy(slice(None)))
        self.run_for(5)
        self.assertGreater(self.tracing.sent, 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_intervals_of_lossy_flows_only(self):
        """An interval whose healthy flows were let go is nothing to pick from."""
        self.tracing.closed(evolve(self.closed, all_flows=False))
        self.assertEqual((len(self.tracing._urgent), len(self.tracing._picks._idle)), (0, 0))

    def test_many_flows_in_turns(self):
        """Of very many flows each interval offers another part."""
        many = testing.closed_interval(600, flows_per_pair=4)
        self.tracing.closed(many)
        first = set(self.tracing._picks._idle[0.0])
        self.tracing.closed(evolve(many, timeout_s=1.0))
        self.assertEqual(set(self.tracing._picks._idle[1.0]), first)  # other tests: they begin anew
        self.tracing._picks._idle.clear()
        self.tracing.closed(many)
        self.assertTrue(first.isdisjoint(self.tracing._picks._idle[0.0]))
        self.assertEqual(len(np.unique([key.dst_ip for key in first])), 256)

    def test_lined_up_bit_by_bit(self):
        """No tick waits for very many flows; what is out of order meanwhile fails no probe."""
        many = testing.closed_interval(600, flows_per_pair=4)
        job = self.tracing.line_up(many)
        self.assertEqual(sum(1 for _ in job), LOOKED_AT / AT_A_TIME)
        self.assertEqual(len(self.tracing._picks._idle[0.0]), LOOKED_AT)
        self.assertEqual(list(self.tracing.line_up(many)), [])  # these have not had their turns
        self.tracing._picks._idle.clear()
        self.patch(self.tracing._picks, "in_turn", lambda _closed: 1 // 0)
        self.assertEqual(list(self.tracing.line_up(many)), [])
        self.assertEqual((self.tracing.failures, len(self.tracing._picks._idle)), (1, 0))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_tests_of_other_timeouts(self):
        """They close for themselves, in any order: what is healthy has its turns, none is pushed out."""
        slow = [evolve(one, dst_port=9) for one in self.closed.pairs]
        slow = evolve(self.closed, pairs=slow, timeout_s=15.0)
        many = evolve(testing.closed_interval(600, flows_per_pair=4), timeout_s=1.0)
        for window in range(3):
            self.tracing.closed(many)
            self.run_for(1)
            if window != 1:  # it comes when the next one of the others does, and is behind it
                self.tracing.closed(slow)
            self.run_for(1)
        ports = Counter(key.dst_port for key, _ in self.tracing.table.since(0))
        self.assertEqual(ports[9], 12)
        self.assertGreater(ports[many.pairs[0].dst_port], 12)

    def test_tests_of_other_timeouts_suffer(self):
        """What lost something waits until it is traced, or an interval of its own says otherwise."""
        quick = evolve(self.lossy([3]), timeout_s=1.0)
        slow = [evolve(one, dst_port=9) for one in self.closed.pairs]
        slow = evolve(self.lossy([8]), pairs=slow, timeout_s=15.0)
        self.tracing.closed(quick)
        self.tracing.closed(slow)
        self.assertEqual(Counter(key.dst_port for key in self.tracing._urgent), {8100: 4, 9: 4})
        self.tracing.closed(evolve(self.closed, timeout_s=1.0))
        self.assertEqual(Counter(key.dst_port for key in self.tracing._urgent), {9: 4})

    def test_traced_meanwhile(self):
        """Flows that were traced since they were lined up are passed over, and only they."""
        self.tracing.closed(testing.closed_interval(100, flows_per_pair=4))
        keys = list(self.tracing._picks._idle[0.0])
        self.assertEqual(len(keys), 400)
        for key in keys[: LOOKED_THROUGH + 1]:
            path = Path((key.dst_ip,), (0.1,), (1,), (1,), True)
            self.tracing.table.enter(key, path, self.now)
        self.assertIsNone(self.tracing._picks.next_due())  # it does not look at all of them at once
        self.assertEqual(self.tracing._picks.next_due(), keys[LOOKED_THROUGH + 1])
        self.assertEqual(len(self.tracing._picks._idle[0.0]), 400 - LOOKED_THROUGH - 2)

    def test_one_to_each_destination_first(self):
        """Of flows never traced; what was traced comes after them, the longest ago first."""
        picks = self.tracing._picks
        flows = at_once(picks.in_turn(self.closed))
        ports = sorted({key.source_port for key in flows})
        firsts = [len({key.dst_ip for key in flows[n : n + 3]}) for n in (0, 3, 6, 9)]
        self.assertEqual(firsts, [3] * 4)
        self.assertEqual(
            [key.source_port for key in flows], [port for port in ports for _ in "123"]
        )
        for n in (0, 4):
            path = Path((flows[n].dst_ip,), (0.1,), (1,), (1,), True)
            self.tracing.table.enter(flows[n], path, self.now - n)
        again = at_once(picks.in_turn(self.closed))
        self.assertEqual(again, [*flows[1:4], *flows[5:], flows[4], flows[0]])


class Due(SynchronousTestCase):
    """When a flow is traced again, by what is known of its path."""

    key = FlowKey("10.9.9.9", 8100, 50000, 0, 44)

    def setUp(self):
        """Know nothing yet."""
        self.now = 1_700_000_000.0
        self.table = PathTable()
        self.picks = Picks(self.table, lambda: self.now)

    def knows(self, *hops, times=1, complete=True, refused_by=""):
        """Enter a path that was traced so many times."""
        count = len(hops)
        for _ in range(times):
            path = Path(hops, (0.1,) * count, (1,) * count, (1,) * count, complete, "", refused_by)
            self.table.enter(self.key, path, self.now)

    def due_after(self, seconds):
        """Check that the flow is due after so long, and not before."""
        for wait_s, due in ((seconds - 1, False), (1, True)):
            self.now += wait_s
            self.assertEqual(self.picks.is_due(self.key), due, seconds)

    def test_by_what_is_known(self):
        """Soon where a hop is missing, a few times, or while somebody refuses; else not for long."""
        self.assertTrue(self.picks.is_due(self.key))
        whole, silent, short = ("r1", "r2", "10.9.9.9"), ("r1", None, "10.9.9.9"), ("r1",)
        for hops, more, seconds in (
            (whole, {}, AGAIN_S),
            (silent, {}, SOON_S),
            (silent, {"times": TRIES}, AGAIN_S),
            (short, {"complete": False}, SOON_S),
            (short, {"complete": False, "times": TRIES}, AGAIN_S),
            (short, {"complete": False, "times": TRIES, "refused_by": "r1"}, SOON_S),
        ):
            self.setUp()
            self.knows(*hops, **more)
            self.due_after(seconds)

    def test_what_others_left(self):
        """Soon where others left a hop since; of so many hops that is remembered."""
        for before, hop, seconds in ((1, "r2", SOON_S), (1, "r3", AGAIN_S), (-1, "r2", AGAIN_S)):
            self.setUp()
            self.knows("r1", "r2", "10.9.9.9")
            self.now += before
            self.picks.note_left([*(f"h{n}" for n in range(2 * LEFT)), hop])
            self.assertEqual(len(self.picks._left), LEFT)
            self.now -= before
            self.due_after(seconds)

    def test_no_more_at_a_time(self):
        """However many lose something, one interval has so many traced, siblings and all."""
        closed = testing.closed_interval(PICKED, flows_per_pair=4)
        closed.flow_stats["lost"][::4] = 3
        picked = list(self.picks.suffering(closed))
        self.assertGreaterEqual(len(picked), PICKED)
        self.assertLess(len(picked), PICKED + 1 + SIBLINGS)
        self.assertEqual(len(set(picked)), len(picked))
