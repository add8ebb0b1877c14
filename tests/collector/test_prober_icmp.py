"""Forged ICMP errors at the sockets that probe, from a real kernel; see docs/security.rst."""

from __future__ import annotations

import errno
import socket
import time

import numpy as np
from attrs import evolve
from icmp_flood import flood, unreachable
from network import alone, ip
from scapy.layers.inet import ICMP, IP, UDP
from timekeeper_case import TimekeeperCase, pair
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.cell import RECEIVED, STAMPED
from llama.collector.probing.plan import Source
from llama.collector.probing.sockets import ProbeSocket
from llama.collector.probing.udp import UdpProber
from llama.collector.slices import at_once
from llama.collector.tracing import Tracing
from llama.net import errors, mmsg
from llama.net.port import transmit_ids_supported
from llama.wire import stamp


class FloodTests(TimekeeperCase):
    """A healthy target, and somebody who says of another that it is none."""

    interval_s = 1
    timeout_s = 2.0

    def probe(self, *, hearing: bool) -> None:
        """Probe under a flood, for some thousand probes."""
        self.answer_everywhere()
        self.timekeeper.use([self.group(ports=1, rate=500)])
        (sock,) = self.prober.sockets.values()
        if hearing:
            sock.hear_errors()
        read = self.prober._read_stamps
        heard = 0

        def reading(inbox, fd):  # type: ignore[no-untyped-def]
            nonlocal heard
            count = read(inbox, fd)
            heard += inbox.stamp_layout.odd_rows(inbox.stamps, 0, count).size
            return count

        self.patch(self.prober, "_read_stamps", reading)
        with flood(unreachable(sock.number)):
            self.run_until(lambda: self.prober.sent > 2000)
        self.bring_in_all()
        self.assertEqual(self.prober.failed_sends, {})
        self.prober.check_drops()
        if not self.prober.receive_drops:  # the machine stalled, and the buffer was full
            self.assertEqual(self.prober.received, self.prober.sent)
            flags = self.prober.tracks[0].ledger.flags
            self.assertEqual(np.count_nonzero(flags & STAMPED), np.count_nonzero(flags & RECEIVED))
        for interval in self.closed:
            self.assertNotIn("send_failed", self.reasons(interval))
        if hearing:
            self.assertGreater(heard, 1000)
        else:
            self.assertEqual(heard, 0)

    @alone
    def test_while_errors_are_heard(self) -> None:
        """As during traces: every probe leaves, and none is taken for one that cannot."""
        self.probe(hearing=True)

    @alone
    def test_while_none_are_heard(self) -> None:
        """As between traces: the kernel does not even tell of them."""
        self.probe(hearing=False)


class TraceTests(TimekeeperCase):
    """A dead target, and somebody who knows it and our source port, but no octet of a packet."""

    interval_s = 1
    ours, dead = "10.9.0.1", "10.9.0.2"

    def forged(self, source_port: int) -> list[bytes]:
        """All kinds of answers to a trace, with quotes of all lengths."""
        udp = UDP(sport=source_port, dport=8100, len=8 + 96, chksum=0)
        now = stamp.ntp_from_unix_ns(time.time_ns())
        octets = stamp.SENDER_STRUCT.pack(1, now, stamp.error_estimate(None), self.tracing.ssid)
        return [
            bytes(
                ICMP(type=kind, code=code) / IP(src=self.ours, dst=self.dead) / udp / octets[:count]
            )
            for count in (0, 4, 8, 12, 44)
            for kind, code in ((11, 0), (3, 13))
        ]

    @alone
    def test_a_spray(self) -> None:
        """No path is invented, and no refusal; what was forged is counted."""
        for command in (
            "link add v0 type veth peer name v1",
            f"addr add {self.ours}/24 dev v0",
            "link set v0 up",
            "link set v1 up",
            f"neigh add {self.dead} lladdr 02:00:00:00:00:99 dev v0",
        ):
            ip(command)
        source = Source(version=4, address=self.ours, interface=None, number=0, owner="", df=False)
        group = evolve(self.group(pair(self.dead, 8100), ports=1), sources=(source,))
        self.timekeeper.use([group])
        self.tracing = Tracing(self.prober)
        seen = 0

        def traced() -> bool:
            nonlocal seen
            for closed in self.closed[seen:]:
                self.tracing.closed(closed)
                at_once(self.tracing.line_up(closed))
            seen = len(self.closed)
            self.tracing.tick()
            return self.tracing.finished > 0

        (sock,) = self.prober.sockets.values()
        with flood(*self.forged(sock.number), victim=self.ours):
            self.run_until(traced, answering=False)
        known = [(one.hops, one.refusal) for _, one in self.tracing.table.since(0)]
        self.assertEqual(known, [])
        self.assertGreater(self.tracing.health()["trace_answers_mismatched_total"], 100)
        self.assertFalse(sock.hears_errors)


class OwnErrorTests(TimekeeperCase):
    """What truly is of a destination is booked on it, whether or not errors are heard."""

    @alone
    def test_no_route(self) -> None:
        """A target beyond every route fails, at each probe; its neighbour does not."""
        self.answer_everywhere()
        ip("route add unreachable 198.51.100.0/24")
        for hearing in (False, True):
            self.prober.failed_sends.clear()
            group = self.group(
                pair("127.0.0.1", self.number), pair("198.51.100.1", self.number), ports=1
            )
            self.timekeeper.use([group])
            begin = self.prober.tracks[0].ledger.next_sequence.copy()
            (sock,) = self.prober.sockets.values()
            if hearing:
                sock.hear_errors()
            self.run_until(lambda: sum(self.prober.failed_sends.values()) > 20)
            self.bring_in_all()
            self.assertEqual(set(self.prober.failed_sends), {"EHOSTUNREACH"})
            sent = self.prober.tracks[0].ledger.next_sequence - begin
            self.assertEqual(int(sent[1]), 0)
            self.assertGreater(int(sent[0]), 10)

    def refusing(self, *, hearing: bool, times: int) -> int:
        """Have the kernel refuse the same probe so often; return how many failed."""
        self.timekeeper.use([self.group(ports=1)])
        (track,) = self.prober.tracks
        (sock,) = self.prober.sockets.values()
        if hearing:
            sock.hear_errors()
        out = self.prober._outboxes[track].out
        send, left = out.send, times

        def refuse(fd: int, first: int, count: int) -> int:
            nonlocal left
            left -= 1
            if left >= 0:
                raise OSError(errno.EHOSTUNREACH, "No route to host")
            return send(fd, first, count)

        self.patch(out, "send", refuse)
        self.run_until(lambda: self.prober.sent > 2)
        return self.prober.failed_sends["EHOSTUNREACH"]

    def test_patience_while_errors_are_heard(self) -> None:
        """So many errors in a row may be of others; they are heard of again afterwards."""
        self.assertEqual(self.refusing(hearing=True, times=errors.PATIENCE), 0)
        (sock,) = self.prober.sockets.values()
        self.assertTrue(sock.hears_errors)

    def test_patience_ends(self) -> None:
        """What is refused though no errors are heard any more is refused for good."""
        self.assertEqual(self.refusing(hearing=True, times=errors.PATIENCE + 1), 1)
        (sock,) = self.prober.sockets.values()
        self.assertTrue(sock.hears_errors)

    def test_little_patience_while_none_are_heard(self) -> None:
        """Nobody else's error can be there; a dead route costs no more than it must."""
        self.assertEqual(self.refusing(hearing=False, times=2), 1)


class EarTests(SynchronousTestCase):
    """Errors are switched on and off without harm to what else is in their queue."""

    def forge(self, number: int) -> None:
        """Send a forged error about a packet from that port."""
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.sendto(unreachable(number), ("127.0.0.1", 0))

    @alone
    def test_off(self) -> None:
        """What is pending goes, transmit stamps are read before, and nothing comes any more."""
        prober = UdpProber(ids=transmit_ids_supported())
        self.addCleanup(prober.close)
        source = Source(
            version=4, address="127.0.0.1", interface=None, number=0, owner="", df=False
        )
        sock = prober.open(source)
        read: list[int] = []
        real = prober._read_stamps
        self.patch(prober, "_read_stamps", lambda *to: read.append(real(*to)))
        sock.hear_errors()
        self.forge(sock.number)
        prober.hear_no_errors(sock)
        self.assertEqual((read, sock.hears_errors), ([1], False))
        self.assertEqual(sock.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.forge(sock.number)
        self.assertEqual(sock.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        prober.hear_no_errors(sock)  # twice is as good as once
        self.assertEqual(len(read), 1)

    def test_closed_meanwhile(self) -> None:
        """The socket that has its descriptor now is left alone."""
        prober = UdpProber(ids=False)
        self.addCleanup(prober.close)
        source = Source(
            version=4, address="127.0.0.1", interface=None, number=0, owner="", df=False
        )
        gone = prober.open(source)
        gone.hear_errors()
        prober.let_go(source)
        heir = prober.open(source)
        self.assertEqual(heir.fd, gone.fd)
        heir.hear_errors()
        prober.hear_no_errors(gone)
        level = (mmsg.SOL_IP, mmsg.IP_RECVERR)
        self.assertEqual(heir.sock.getsockopt(*level), 1)

    def test_both_families(self) -> None:
        """The option is switched for IPv4 and IPv6."""
        for version, option in (
            (4, (mmsg.SOL_IP, mmsg.IP_RECVERR)),
            (6, (mmsg.SOL_IPV6, mmsg.IPV6_RECVERR)),
        ):
            source = Source(
                version=version, address=None, interface=None, number=0, owner="", df=False
            )
            sock = ProbeSocket(source, kernel_stamps=True, ids=False)
            self.addCleanup(sock.sock.close)
            self.assertEqual(sock.sock.getsockopt(*option), 0)
            sock.hear_errors()
            self.assertEqual(sock.sock.getsockopt(*option), 1)
            sock.hear_no_errors()
            self.assertEqual(sock.sock.getsockopt(*option), 0)
