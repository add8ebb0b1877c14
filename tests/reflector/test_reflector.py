"""The reflector, asked with real datagrams, on both of its ports."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import attrs
import numpy as np
from forged import spoof6, spoof_nobody
from network import alone, ip
from plain_stamp import stamp_probe, stamp_reply
from reflector_case import (
    FAILURES,
    FailingTransport,
    ReflectorCase,
    RefusingSends,
    StillReactor,
    probe,
)
from twisted.internet.error import CannotListenError
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llama.config import ReflectorConfig
from llama.net import mmsg
from llama.net.port import SLOTS, transmit_ids_supported
from llama.reflector.allow import AllowList
from llama.reflector.arrival import packed_address
from llama.reflector.guard import Guard
from llama.reflector.service import PortService
from llama.reflector.tally import Tally
from llama.wire import stamp, tlv


class ProtocolTests:
    """What holds on both ports."""

    def test_reply_by_the_standard(self: Any) -> None:
        """A reply numbers itself, echoes the probe's fields, and its stamps lie in order."""
        before = time.time_ns()
        asked = probe(41, ssid=9)
        self.ask(asked)
        reply = stamp_reply(self.answer())
        sent = stamp_probe(asked)
        self.assertEqual(reply.sequence, 0)
        self.assertEqual(reply.ssid, 9)
        self.assertEqual(reply.sender_sequence, 41)
        self.assertEqual(reply.sender_timestamp, sent.timestamp)
        self.assertEqual(reply.sender_error_estimate, sent.error_estimate)
        t2, t3 = map(stamp.unix_ns_from_ntp, (reply.receive_timestamp, reply.timestamp))
        self.assertTrue(before <= t2 <= t3 <= time.time_ns())

    def test_reply_is_as_long_as_the_probe(self: Any) -> None:
        """Whatever is behind the base packet comes back, to the octet."""
        padding = bytes(range(1, 201))
        self.ask(probe(0) + bytes(4) + padding)
        reply = self.answer()
        self.assertEqual(len(reply), 44 + 204)
        self.assertEqual(reply[48:], padding)

    def test_jumbo_probe(self: Any) -> None:
        """A probe that needs jumbo frames is answered whole."""
        tail = bytes(9000 - 48)
        self.ask(probe(0) + bytes(4) + tail)
        self.assertEqual(len(self.answer()), 9000)

    def test_probes_of_many_sizes(self: Any) -> None:
        """Among probes of other sizes, too, each has its own octets back, and no more."""
        sizes = (0, 207, 208, 209, 1400, 1, 8000)
        probes = [probe(n) + bytes(4) + bytes([n + 1]) * size for n, size in enumerate(sizes)]
        self.ask(*probes)
        for _ in probes:
            self.port.doRead()
        for _ in probes:
            reply = self.answer()
            self.assertEqual(reply[48:], probes[stamp_reply(reply).sender_sequence][48:])

    def test_sessions_are_numbered_apart(self: Any) -> None:
        """Each SSID of a flow has a counter of its own."""
        self.ask(probe(0, 1), probe(1, 1), probe(0, 2), probe(2, 1))
        for _ in range(4):
            self.port.doRead()
        found = [stamp_reply(self.answer()) for _ in range(4)]
        self.assertEqual(
            sorted((r.ssid, r.sender_sequence, r.sequence) for r in found),
            [(1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 0, 0)],
        )

    def test_many_at_once(self: Any) -> None:
        """A batch is answered like single probes, in order and without a gap."""
        for n in range(100):
            self.client.sendto(probe(n), self.address)
        for _ in range(100):
            self.port.doRead()
        replies = [stamp_reply(self.answer()) for _ in range(100)]
        self.assertEqual([r.sequence for r in replies], list(range(100)))
        self.assertEqual([r.sender_sequence for r in replies], list(range(100)))

    def test_one_odd_packet_changes_no_neighbour(self: Any) -> None:
        """Garbage, legacy probes and short ones among many probes leave these as they are."""
        python = [struct.pack("<10sBddd?", b"__llama__", 0, n, 0.0, 0.0, False) for n in range(10)]
        go = [b"\x0a\x0a012345678%d\x12\x01\x00\x18\x05" % n for n in range(10)]
        for n in range(60):
            self.client.sendto(probe(n), self.address)
            odd = [b"", b"x", bytes(43), python[n // 6], go[n // 6], b"\xfe" * 15 + b"\1" * 45]
            self.client.sendto(odd[n % len(odd)], self.address)
        for _ in range(130):
            self.port.doRead()
        if not self.batched:  # where no TTL is known, legacy probes of strangers are refused
            self.assertEqual(self.protocol.tally.dropped["no_ttl"], len(python + go))
            python, go = [], []
        answers = [self.answer() for _ in range(60 + 10 + len(python) + len(go))]
        self.assertEqual([a for a in answers if a in python], python)
        self.assertEqual([a for a in answers if a in go], go)
        replies = [stamp_reply(a) for a in answers if a not in python + go]
        mine = [r for r in replies if r.ssid == 7]
        self.assertEqual([r.sequence for r in mine], list(range(60)))
        self.assertTrue(self.silent())

    def test_what_is_not_understood_is_counted(self: Any) -> None:
        """A packet of no known format is dropped, counted by reason, and logged once."""
        logged: list[Any] = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        for _ in range(50):
            self.ask(b"what is this?")
        self.assertEqual(self.protocol.tally.dropped["short"], 50)
        self.assertTrue(self.silent())
        self.assertEqual(len([e for e in logged if e.get("reason") == "short"]), 1)
        self.reactor.advance(11)
        self.ask(b"again")
        told = [e for e in logged if e.get("reason") == "short"]
        self.assertEqual([e["mute"] for e in told], [0, 49])

    def test_follow_up_is_offered_where_the_kernel_stamps(self: Any) -> None:
        """A Follow-Up TLV brings the last reply's true departure, or zero where it is unknown."""
        stamped = self.batched and transmit_ids_supported()
        t3 = 0
        for n in range(3):
            self.ask(probe(n, tlvs=tlv.request(0, tlv.SIZE)))
            self.port.doRead()
            packet = self.answer()
            told = tlv.read_one(memoryview(packet)[44:])
            if n and stamped:
                self.assertEqual(told.follow_sequence, n - 1)
                real = stamp.unix_ns_from_ntp(told.follow_stamp)
                self.assertGreaterEqual(real, t3)
                self.assertLess(real - t3, 50_000_000)
            else:
                self.assertEqual(told.follow_stamp, 0)
            t3 = stamp.unix_ns_from_ntp(stamp_reply(packet).timestamp)

    def test_reflector_tells_its_own_drops(self: Any) -> None:
        """The state TLV says when the reflector started and what its limits refused."""
        self.protocol.tally.limited = 17
        self.ask(probe(0, tlvs=tlv.request(0, tlv.SIZE)))
        told = tlv.read_one(memoryview(self.answer())[44:])
        self.assertEqual(told.guard_drops, 17)
        self.assertEqual(told.started_ns, self.protocol.started_ns)

    def test_rate_limit_drops_and_counts(self: Any) -> None:
        """What is over the limit is dropped at once and counted, the rest is answered at once."""
        guard = Guard(total_rate_pps=10, total_burst=5)
        self.protocol.guard = guard
        for n in range(20):
            self.ask(probe(n))
        self.assertEqual(self.protocol.tally.dropped["total_rate"], 15)
        self.assertEqual(self.protocol.tally.limited, 15)
        for _ in range(5):
            self.answer()
        self.assertTrue(self.silent())

    def test_refused_source_ports(self: Any) -> None:
        """A probe that seems to come from a reflector's port is not answered."""
        self.protocol.guard = Guard(refuse=[self.client.getsockname()[1]])
        self.ask(*(probe(n) for n in range(10)))
        for _ in range(10):
            self.port.doRead()
        self.assertEqual(self.protocol.tally.dropped["source_port"], 10)
        self.assertTrue(self.silent())

    def test_stamp_reply_is_not_answered(self: Any) -> None:
        """Two reflectors that are made to talk to each other end at the first reply."""
        self.ask(probe(0))
        reply = self.answer()
        self.ask(reply)
        self.ask(*[reply] * 8)
        for _ in range(8):
            self.port.doRead()
        self.assertEqual(self.protocol.tally.dropped["loop"], 9)
        self.assertTrue(self.silent())

    def test_every_drop_is_counted_once(self: Any) -> None:
        """Replies that come as probes, and that the guard refuses as well, are counted as it says."""
        self.ask(probe(0))
        reply = self.answer()
        tally = self.protocol.tally
        for guard, dropped in (
            (Guard(refuse=[self.client.getsockname()[1]]), {"source_port": 9}),
            (Guard(total_rate_pps=0.001, total_burst=4), {"loop": 4, "total_rate": 5}),
        ):
            self.protocol.guard = guard
            tally.dropped.clear()
            before = tally.received - tally.answered.total()
            self.ask(*[reply] * 9)
            for _ in range(9):
                self.port.doRead()
            self.assertEqual(dict(tally.dropped), dropped)
            self.assertEqual(tally.received - tally.answered.total() - before, 9)
        self.assertEqual(tally.limited, 5)

    def test_stamp_reply_of_another_time_is_not_answered(self: Any) -> None:
        """So do two whose clocks differ by hours, or by years."""
        self.ask(probe(0))
        answer = bytearray(self.answer())
        sent_s, received_s = (struct.unpack_from(">I", answer, at)[0] for at in (4, 16))
        for skew_s in (7200, -7200, 10**9):
            struct.pack_into(">I", answer, 4, (sent_s + skew_s) & 0xFFFFFFFF)
            struct.pack_into(">I", answer, 16, (received_s + skew_s) & 0xFFFFFFFF)
            self.ask(bytes(answer))
            self.ask(*[bytes(answer)] * 8)
            for _ in range(8):
                self.port.doRead()
        self.assertEqual(self.protocol.tally.dropped["loop"], 27)
        self.assertTrue(self.silent())

    def test_port_in_use(self: Any) -> None:
        """A port that is taken is an error with the address in it."""
        with self.assertRaises(CannotListenError) as caught:
            self.listen(self.reflector(), self.server, self.address[1])
        self.assertIn(str(self.address[1]), str(caught.exception))


class UserSpaceTests(ProtocolTests, ReflectorCase):
    """Twisted's ordinary UDP port: user-space stamps, no TTL, no class."""

    batched = False

    def test_unknown_is_null(self) -> None:
        """The TTL is zero: unknown."""
        self.ask(probe(0))
        reply = stamp_reply(self.answer())
        assert reply is not None
        self.assertEqual(reply.sender_ttl, 0)

    def test_legacy_probes_of_listed_sources_are_answered(self) -> None:
        """Whom the operator has listed is echoed also where an echo cannot lose a hop."""
        python = struct.pack("<10sBddd?", b"__llama__", 0, 1.0, 0.0, 0.0, False)
        self.ask(python)
        self.assertTrue(self.silent())
        self.protocol.guard = Guard(allow=AllowList([ip_network("127.0.0.1")]))
        self.ask(python)
        self.assertEqual(self.answer(), python)
        self.assertEqual(dict(self.protocol.tally.answered), {"llama-python": 1})
        self.assertEqual(dict(self.protocol.tally.dropped), {"no_ttl": 1})

    def test_replies_that_cannot_leave_are_not_answers(self) -> None:
        """What the kernel does not take is counted by its reason, and is no answer."""
        for code, reason in FAILURES:
            self.protocol.transport = FailingTransport(code)
            self.ask(probe(0))
            self.assertEqual(self.protocol.tally.dropped.pop(reason), 1)
        self.assertEqual(self.protocol.tally.answered.total(), 0)


class BatchTests(ProtocolTests, ReflectorCase):
    """Batches, with all that the kernel tells."""

    def told(self) -> tuple[bytes, int, int, str]:
        """The next reply with the TTL and TOS it came with, and from where."""
        octets, ancillary, _, source = self.client.recvmsg(65536, 1024)
        data = {kind: value for _, kind, value in ancillary}
        if self.client.family == socket.AF_INET:
            ttl, tos = data[mmsg.IP_TTL], data[mmsg.IP_TOS]
        else:
            ttl, tos = data[mmsg.IPV6_HOPLIMIT], data[mmsg.IPV6_TCLASS]
        return octets, ttl[0], tos[0], str(source[0])

    def mark(self, tos: int, ttl: int) -> None:
        """Send with this class and TTL from now on, and ask for those of replies."""
        mmsg.enable_receive_options(self.client)
        if self.client.family == socket.AF_INET:
            self.client.setsockopt(mmsg.SOL_IP, mmsg.IP_TOS, tos)
            self.client.setsockopt(mmsg.SOL_IP, mmsg.IP_TTL, ttl)
        else:
            self.client.setsockopt(mmsg.SOL_IPV6, mmsg.IPV6_TCLASS, tos)
            self.client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)

    def test_class_and_ttl(self) -> None:
        """The reply has the probe's DSCP without its ECN, and says the TTL the probe came with."""
        self.mark(tos=46 << 2 | 1, ttl=33)
        for count in (1, 20):  # one by one, and by column
            self.ask(*(probe(n) for n in range(count)))
            for _ in range(count):
                octets, _ttl, tos, _ = self.told()
                reply = stamp_reply(octets)
                assert reply is not None
                self.assertEqual(reply.sender_ttl, 33)
                self.assertEqual(tos, 46 << 2)

    def test_receive_stamp_is_the_kernels(self) -> None:
        """T2 is when the packet came, not when it was read."""
        for count in (1, 20):
            for n in range(count):
                self.client.sendto(probe(n), self.address)
            arrived = time.time_ns()
            time.sleep(0.05)  # the reflector is busy elsewhere
            self.port.doRead()
            for _ in range(count):
                reply = stamp_reply(self.answer())
                assert reply is not None
                self.assertLessEqual(stamp.unix_ns_from_ntp(reply.receive_timestamp), arrived)

    def test_legacy_echo_loses_a_hop(self) -> None:
        """A legacy packet leaves with the TTL it came with less one, and dies when there is none."""
        python = struct.pack("<10sBddd?", b"__llama__", 34 << 2, 1.0, 0.0, 0.0, False)
        self.mark(tos=0, ttl=9)
        self.ask(python)
        octets, ttl, tos, _ = self.told()
        self.assertEqual((octets, ttl, tos), (python, 8, 0))
        self.mark(tos=0, ttl=1)
        self.ask(python)
        self.assertTrue(self.silent())
        self.assertEqual(self.protocol.tally.dropped["loop"], 1)

    def test_requested_class_of_legacy_probes(self) -> None:
        """A legacy probe gets the class it came with, or one it names that the configuration allows."""
        python = struct.pack("<10sBddd?", b"__llama__", 34 << 2 | 1, 1.0, 0.0, 0.0, False)
        go = b"\x0a\x0a0123456789\x12\x01\x89\x18\x05"
        for allowed, sent, granted in (
            ((), 0, 0), ((), 34 << 2, 34), ((), 8 << 2, 8), ((34,), 8 << 2, 34), ((46,), 8 << 2, 8),
        ):  # fmt: skip
            self.mark(tos=sent, ttl=64)
            self.protocol = self.reflector(reply_dscps=allowed)
            self.port = self.listen(self.protocol, self.server)
            self.address = (self.server, self.port.getHost().port)
            for packet in (python, go):
                self.ask(packet)
                octets, _, tos, _ = self.told()
                self.assertEqual((octets, tos), (packet, granted << 2), (allowed, sent))

    def test_requested_class(self) -> None:
        """A Class of Service TLV is granted where the configuration allows it, else refused."""
        self.mark(tos=0, ttl=64)
        for allowed, granted in (((), 0), ((46,), 46)):
            self.protocol = self.reflector(reply_dscps=allowed)
            self.port = self.listen(self.protocol, self.server)
            self.address = (self.server, self.port.getHost().port)
            for count in (1, 20):
                self.ask(*(probe(n, tlvs=tlv.request(46, tlv.SIZE)) for n in range(count)))
                for _ in range(count):
                    octets, _, tos, _ = self.told()
                    told = tlv.read_one(memoryview(octets)[44:])
                    self.assertEqual(tos >> 2, granted)
                    self.assertEqual(told.refused, not allowed)
                    self.assertEqual(told.dscp, 0)

    def test_oversized_is_dropped(self) -> None:
        """More than a jumbo frame's worth is dropped and counted, alone or among others."""
        self.ask(probe(0) + bytes(20_000))
        self.assertEqual(self.protocol.tally.dropped["oversize"], 1)
        self.ask(*[probe(n) + bytes(20_000) for n in range(8)])
        self.assertEqual(self.protocol.tally.dropped["oversize"], 9)
        self.assertTrue(self.silent())

    def test_own_rate_is_told_to_its_source_alone(self) -> None:
        """What a source's own rate refused is told to it, and casts no doubt on others."""
        self.protocol.guard = Guard(source_rate_pps=0.001, source_burst=12)
        asked = [probe(n, tlvs=tlv.request(0, tlv.SIZE)) for n in range(20)]
        self.ask(*asked)
        for _ in range(12):
            self.answer()
        self.assertEqual(self.protocol.tally.dropped["source_rate"], 8)
        high, low = packed_address(self.server)
        columns = np.array([[high], [low]], np.uint64)
        refused = self.protocol.guard.refusals(columns[0], columns[1])
        assert refused is not None
        self.assertEqual(refused.tolist(), [8])
        self.reactor.advance(20_000)  # the bucket has filled again
        for count in (1, 10):
            self.ask(*asked[:count])
            for _ in range(count):
                told = tlv.read_one(memoryview(self.answer())[44:])
                self.assertEqual(told.guard_drops, 8)
        other = np.array([[0], [0xFFFF0A000001]], np.uint64)
        refused = self.protocol.guard.refusals(other[0], other[1])
        assert refused is not None
        self.assertEqual(refused.tolist(), [0])

    def test_only_what_the_kernel_took_is_answered(self) -> None:
        """Of a batch some of which cannot be sent, the rest is, and each is counted for what it is."""
        python = struct.pack("<10sBddd?", b"__llama__", 0, 1.0, 0.0, 0.0, False)
        for count in (1, 20, 200):
            for code, reason in FAILURES:
                tally = self.protocol.tally = Tally()
                outbound = RefusingSends(self.port.outbound, every=7, code=code)
                self.port.outbound = outbound
                self.ask(*(probe(n) for n in range(count)))
                self.port.outbound = outbound.real
                refused = tally.dropped[reason]
                self.assertGreater(refused, 0)
                self.assertEqual(tally.answered["stamp"], outbound.taken)
                self.assertEqual(tally.answered["stamp"] + refused, count)
                full = reason == "send_buffer_full"  # our own doing: collectors are told
                self.assertEqual(tally.limited, refused if full else 0)
                own = reason in ("send_forbidden", "send_no_route")  # its source is told
                source = packed_address(self.server)
                self.assertEqual(tally.unsent.count(*source), refused if own else 0)
                for _ in range(outbound.taken):
                    self.answer()
        self.port.send_row = RefusingSends(self.port.outbound, every=1, code=errno.EPERM).send_row
        tally = self.protocol.tally = Tally()
        self.ask(python)
        self.assertEqual((dict(tally.answered), tally.dropped["send_forbidden"]), ({}, 1))

    def test_failed_batch_is_not_the_last(self) -> None:
        """Whatever goes wrong with one batch, the next one is answered."""
        reflect, self.protocol.batchReceived = self.protocol.batchReceived, None  # type: ignore
        self.ask(probe(0))
        self.flushLoggedErrors(TypeError)
        self.protocol.batchReceived = reflect  # type: ignore[method-assign]
        self.ask(probe(1))
        self.answer()

    def test_failed_stamps_are_not_the_last(self) -> None:
        """Nor does what goes wrong with transmit stamps close the port: what waits is read next time."""
        broken = self.patch(self.port, "read_transmit_stamps", lambda: 1 // 0)
        self.port.stamps_due = 1
        self.ask(probe(0))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        broken.restore()
        self.ask(probe(1))
        self.answer()
        self.answer()

    def test_stopped_twice(self) -> None:
        """All who wait for the end are told of it."""
        stopped = [self.port.stopListening() for _ in range(2)]
        self.reactor.advance(0)
        self.assertEqual([self.successResultOf(each) for each in stopped], [None, None])

    def test_flood_leaves_the_reactor_its_turn(self) -> None:
        """However much waits, one reading takes one batch."""
        for n in range(2 * SLOTS):
            self.client.sendto(b"", self.address)
            if n % 2:
                self.client.sendto(probe(n), self.address)
        self.port.doRead()
        self.assertEqual(self.protocol.tally.received, SLOTS)


class BatchTests6(BatchTests):
    """The same over IPv6."""

    server = "::1"


class MultiHomedTests(ReflectorCase):
    """A reflector on the wildcard address."""

    def test_broadcast_is_not_answered(self) -> None:
        """A probe to everybody is answered by nobody: its source may be a victim's address."""
        port = self.listen(self.reflector(), "0.0.0.0")
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for count in (1, 9):
            for n in range(count):
                self.client.sendto(probe(n), ("127.255.255.255", port.getHost().port))
            port.doRead()
        self.assertEqual(port.protocol.tally.dropped["not_unicast"], 10)
        self.assertTrue(self.silent())

    def test_ipv4_addresses_over_ipv6_are_not_answered(self) -> None:
        """Who says over IPv6 to be a host of IPv4 passes for none, and uses up nothing of its rate."""
        for batched in (True, False):
            self.batched = batched
            allow = AllowList([ip_network("192.0.2.1")])
            guard = Guard(allow=allow, source_rate_pps=1, source_burst=1)
            port = self.listen(self.reflector(guard=guard), "::")
            for count in (1, 9):
                for n in range(count):
                    spoof6(probe(n), "::ffff:192.0.2.1", port.getHost().port)
                port.doRead()
            self.assertEqual(dict(port.protocol.tally.dropped), {"not_unicast": 10})
            self.assertEqual(guard.admit_one(*packed_address("192.0.2.1"), 40000, 0.0), 0)

    def not_answered(self, address: str, send: Callable[[bytes, int], None]) -> None:
        """See that what ``send`` sends to a port of ours is dropped, one by one and in a batch."""
        for batched in (True, False):
            self.batched = batched
            port = self.listen(self.reflector(), address)
            for count in (1, 9):
                for n in range(count):
                    send(probe(n), port.getHost().port)
                port.doRead()
            self.assertEqual(dict(port.protocol.tally.dropped), {"not_unicast": 10})
            self.assertEqual(port.protocol.tally.answered.total(), 0)

    def test_nobody_is_not_answered(self) -> None:
        """Who says to have no address has nothing sent to what only this machine can reach."""
        self.not_answered("::", lambda octets, port: spoof6(octets, "::", port))

    def test_nobody_of_ipv4_is_not_answered(self) -> None:
        """As Linux takes it, that comes by broadcast alone; the reply went to loopback all the same."""
        self.not_answered("0.0.0.0", spoof_nobody)

    def test_reply_from_the_address_that_was_asked(self) -> None:
        """Whichever of the host's addresses is asked, the answer comes from it."""
        port = self.listen(self.reflector(), "0.0.0.0")
        for address in ("127.0.0.1", "127.0.0.9", "127.8.7.6"):
            for count in (1, 9):
                for n in range(count):
                    self.client.sendto(probe(n), (address, port.getHost().port))
                port.doRead()
                for _ in range(count):
                    _, source = self.client.recvfrom(100)
                    self.assertEqual(source[0], address)


class ServiceTests(SynchronousTestCase):
    """The sockets of a whole reflector."""

    def test_both_families_on_one_port(self) -> None:
        """By default IPv4 and IPv6 are answered, on the same port."""
        service = PortService(StillReactor(), ReflectorConfig(port=0))
        service.startService()
        self.addCleanup(service.stopService)
        self.assertEqual({p.getHost().port for p in service.ports}, {service.port_number})

    def test_taken_port_is_one_line(self) -> None:
        """A port in use ends the program with what, where and what to do."""
        config = ReflectorConfig(port=0, addresses=("127.0.0.1",))
        first = PortService(StillReactor(), config)
        first.startService()
        self.addCleanup(first.stopService)
        second = PortService(StillReactor(), attrs.evolve(config, port=first.port_number))
        with self.assertRaises(SystemExit) as caught:
            second.startService()
        message = str(caught.exception)
        self.assertIn(str(first.port_number), message)
        self.assertIn("--port", message)
        self.assertNotIn("\n", message)

    @alone
    def test_address_that_is_not_there_yet(self) -> None:
        """One of IPv6 that others may have, as it has just been given, is told as that, in one line."""
        ip("link add v0 type veth peer name v1")
        ip("link set v0 up")
        ip("link set v1 up")
        ip("addr add 2001:db8::1/64 dev v0")
        service = PortService(StillReactor(), ReflectorConfig(port=0, addresses=("2001:db8::1",)))
        message = str(self.assertRaises(SystemExit, service.startService))
        self.assertIn("none of this machine's, or not yet", message)
        self.assertNotIn("\n", message)
        self.assertEqual(service.ports, [])
        ip("addr del 2001:db8::1/64 dev v0")
        ip("addr add 2001:db8::1/64 dev v0 nodad")
        service.startService()
        self.addCleanup(service.stopService)
        self.assertEqual([port.getHost().host for port in service.ports], ["2001:db8::1"])

    def test_a_clock_that_is_set_back_changes_nothing(self) -> None:
        """Limits and sessions go by a clock that never goes back, even where a reactor's does."""
        reactor = StillReactor()
        reactor.advance(1e6)
        service = PortService(
            reactor, ReflectorConfig(port=0, addresses=("127.0.0.1",), max_pps=1000.0)
        )
        service.startService()
        self.addCleanup(service.stopService)
        for count in (1, 20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                for n in range(count):
                    client.sendto(probe(n), ("127.0.0.1", service.port_number))
            service.ports[0].doRead()
            reactor.rightNow -= 5e5
        self.assertEqual(dict(service.tally.answered), {"stamp": 21})
