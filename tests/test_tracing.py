"""Which of its flows a collector traces, when, and what it makes of the answers."""

from collections import Counter

import numpy as np
from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama import testing
from llama.collector.tracing import (
    AFTER_FAILURE_S,
    AGAIN_S,
    BURST,
    DEAD_FRESH_S,
    FRESH_S,
    IDLE_A_TURN,
    IDLE_PERIOD_S,
    OF_DEAD_PAIR,
    PERIOD_S,
    RATE_PPS,
    SOON_S,
    Tracing,
)
from llama.net.errors import IcmpError
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

    def lossy(self, rows, lost=3, received=7):
        """Return the interval with these flows lossy."""
        stats = self.closed.flow_stats.copy()
        stats["lost"][rows], stats["received"][rows] = lost, received
        return evolve(self.closed, flow_stats=stats)

    def turn(self):
        """Let a period pass, with a tick at its end."""
        self.clock.advance(PERIOD_S)
        self.tracing.tick()

    def run_for(self, seconds, hops=("10.0.0.1", "10.0.0.2"), dead_after=None, quote=44):
        """Let time pass; answer every packet as a path of routers and the target would."""
        for _ in range(round(seconds / PERIOD_S)):
            self.turn()
            self.now += PERIOD_S
            sent, self.kernel.sent = self.kernel.sent, []
            for sock, to, ttl, _, number, _, payload in sent:
                if dead_after is not None and ttl > dead_after:
                    continue
                if ttl <= len(hops):
                    error = IcmpError(4, 11, 0, hops[ttl - 1], to[0], to[1], payload[:quote])
                    self.tracing.error(sock, error)
                else:
                    self.tracing.reply(sock, to[0], number, ttl - len(hops))

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
        self.assertEqual(len(self.tracing._going), IDLE_A_TURN)
        self.tracing.closed(self.lossy([11], lost=10, received=0))
        self.turn()
        self.assertEqual(len(self.tracing._going), IDLE_A_TURN + 4)

    def test_lossy_while_it_is_traced(self):
        """What begins to lose while it is traced for no reason has its next turn soon, too."""
        self.tracing.closed(self.closed)
        self.turn()
        self.assertEqual({going.key.dst_ip for going in self.tracing._going.values()},
                         {pair.dst_ip for pair in self.closed.pairs[:2]})  # fmt: skip
        self.tracing.closed(self.lossy([0], lost=10, received=0))
        self.turn()
        turns = []
        self.patch(self.tracing, "_turn", lambda *when: turns.append(when))
        self.turn()
        self.assertEqual(len(turns), 1)

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
        for key in self.tracing._keys(many, ways):
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
        (key,) = self.tracing._keys(self.closed, [0])
        self.assertIs(self.tracing._socket(key), second)
        self.kernel.tracks[1].targets = targets
        self.assertIsNone(self.tracing._socket(key))

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
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.now += FRESH_S
        self.tracing.closed(self.lossy([0]))
        self.run_for(5, hops=("10.0.0.1", "10.0.0.3"))
        self.assertEqual({hops[1] for hops in self.paths().values()}, {"10.0.0.2", "10.0.0.3"})
        self.now += SOON_S
        self.tracing.closed(self.closed)
        self.run_for(5, hops=("10.0.0.1", "10.0.0.3"))
        self.assertEqual({hops[1] for hops in self.paths().values()}, {"10.0.0.3"})
        sent = self.tracing.sent
        self.now += SOON_S
        self.tracing.closed(self.closed)
        self.run_for(5, hops=("10.0.0.1", "10.0.0.3"))
        self.assertEqual(self.tracing.sent, sent)

    def test_a_dead_flow_on_another_way(self):
        """What a flow left before it died is left for all; its destination is not."""
        self.tracing.closed(self.closed)
        self.run_for(5)
        self.now += FRESH_S
        self.tracing.closed(self.lossy([0], lost=10, received=0))
        self.run_for(8, hops=("10.0.0.1", "10.0.0.3", "10.0.0.4"), dead_after=2)
        self.assertEqual(set(self.tracing._left), {"10.0.0.2"})
        self.tracing.closed(self.lossy([11]))
        self.assertEqual(len(self.tracing._urgent), 4)  # though traced just now

    def test_routers_that_quote_eight_octets(self):
        """Answers without our octets are told apart by having one packet under way."""
        self.tracing.closed(self.closed)
        self.run_for(40, quote=0)
        whole = [hops for hops in self.paths().values() if None not in hops]
        self.assertEqual(len(whole), 12)

    def test_errors_about_probes(self):
        """An ICMP error that quotes a probe, of another SSID, is not taken for a trace's."""
        self.tracing.closed(self.closed)
        self.turn()
        sock, to, _, _, number, _, payload = self.kernel.sent[0]
        probe = payload[:14] + b"\x00\x01" + payload[16:]
        self.tracing.error(sock, IcmpError(4, 11, 0, "10.9.9.9", to[0], to[1], probe))
        trace = self.tracing._going[number >> 16].trace
        self.assertEqual(trace.hops[0].addresses, [])
        # Quoted too shortly to tell by, but of another target.
        self.tracing.error(sock, IcmpError(4, 11, 0, "10.9.9.9", "10.1.1.9", to[1], payload[:8]))
        self.assertEqual(trace.hops[0].addresses, [])
        self.tracing.error(sock, IcmpError(4, 11, 0, "10.9.9.9", to[0], to[1], payload[:8]))
        self.assertEqual(trace.hops[0].addresses, ["10.9.9.9"])

    def test_sockets_that_went_away(self):
        """Flows whose source port was closed meanwhile are left out."""
        self.kernel.sockets.clear()
        self.tracing.closed(self.closed)
        self.run_for(1)
        self.assertEqual((self.tracing.sent, self.paths()), (0, {}))

    def test_intervals_of_lossy_flows_only(self):
        """An interval whose healthy flows were let go is nothing to pick from."""
        self.tracing.closed(evolve(self.closed, all_flows=False))
        self.assertEqual((len(self.tracing._urgent), len(self.tracing._idle)), (0, 0))

    def test_many_flows_in_turns(self):
        """Of very many flows each interval offers another part."""
        many = testing.closed_interval(600, flows_per_pair=4)
        self.tracing.closed(many)
        first = set(self.tracing._idle)
        self.tracing._idle.clear()
        self.tracing.closed(many)
        self.assertTrue(first.isdisjoint(self.tracing._idle))
        self.assertEqual(len(np.unique([key.dst_ip for key in first])), 256)
