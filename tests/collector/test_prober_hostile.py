"""Forged replies at a prober, over loopback; see docs/security.rst."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from typing import Any

import numpy as np
from forged import need_root, send, spoof
from peers_case import PeersCase
from plain_stamp import REPLY, auth_probe
from timekeeper_case import TimekeeperCase, pair
from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase
from wire_packets import KEY

from llama.collector import oneshot
from llama.collector.intervals import closing
from llama.collector.intervals.ledger import FORGED
from llama.collector.intervals.replies import Replies
from llama.collector.intervals.summary import reasons
from llama.collector.oneshot import OneShot, Wanted
from llama.collector.probing import inbox, udp
from llama.config import CollectorConfig, SourcePort, Target, Test
from llama.wire import auth, stamp, tlv


class ForgedReplyTests(PeersCase):
    async def test_forged_replies_change_nothing(self) -> None:
        """Replies from elsewhere, or that repeat no time stamp of ours, are strangers'.

        Nor is what they say of the reflector believed: that it was started just now, and drops probes.
        """
        need_root()
        port = self.reflector().port_number
        source = SourcePort(name="p", address="127.0.0.1", timeout_s=2.0)
        target = Target(name="peer", host="127.0.0.1", port=port)
        config = CollectorConfig(
            path="", interval_s=1,
            tests=(Test(name="t", targets=(target,), source_ports=(source,), rate_pps=20.0,
                        timeout_s=2.0),),
        )  # fmt: skip
        intervals, service, enough = self.collector(config)
        forged = 0

        def forge() -> None:
            nonlocal forged
            if not service.prober.tracks:
                return
            [track] = service.prober.tracks
            [sock] = service.prober.udp.sockets.values()
            now_ns = time.time_ns()
            now = stamp.ntp_from_unix_ns(now_ns)
            tlvs = bytearray(tlv.request(0, tlv.SIZE))
            state = tlv.State(now_ns, forged, forged)
            tlv.reflect_one(tlvs, 0, tlv.FollowUp(), state, [True] * 64)
            for sequence in range(40):
                base = REPLY.pack(
                    sequence, now, 0x8001, int(track.ssids[0]), now, sequence, now, 0x8001, 64
                )
                reply = base + bytes(tlvs)
                spoof(reply, port, sock.number)
                send(reply, sock.number)
                forged += 2

        forging = LoopingCall(forge)
        done = forging.start(0.05)
        try:
            await enough
        finally:
            forging.stop()
            await done
        self.assertGreater(forged, 1000)
        self.assertGreater(service.prober.strangers, 1000)
        for interval in intervals:
            for row in interval.pair_stats:
                if not row["sent"]:  # the first window may have ended before the first probe
                    continue
                self.assertEqual(row["sent"], row["received"])
                self.assertEqual((0, 0, 0), (row["lost"], row["duplicate"], row["late"]))
                self.assertGreater(row["rtt_min_ns"], 0)
                told = [reason for reason in reasons(int(row["suspect"])) if "reflector" in reason]
                self.assertEqual(told, [])


class WithoutKey(DatagramProtocol):
    """Answers authenticated probes in every way that takes no key, and, if ``honest``, as it should."""

    honest = False

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Send the replies: plain ones, badly signed ones, and well signed ones that are cut."""
        probe = auth_probe(datagram)
        assert probe is not None
        now = stamp.ntp_from_unix_ns(time.time_ns())
        plain = REPLY.pack(
            probe.sequence, now, 0x8001, probe.ssid, now,
            probe.sequence, probe.timestamp, probe.error_estimate, 64,
        )  # fmt: skip
        signed = []
        for key in (b"another key, not ours", KEY):
            packet = bytearray(datagram)
            auth.answer(packet, probe.sequence, now, 0x8001, now, 64, key)
            signed.append(bytes(packet))
        bad, good = signed
        unsigned = good[: auth.BASE_SIZE - 16] + bytes(16)
        replies = [plain, plain + bytes(200), bad, unsigned, good[: auth.BASE_SIZE - 1], bytes(44)]
        for reply in [*replies, good] if self.honest else replies:
            self.transport.write(reply, addr)


class WithoutKeyTests(TestCase):
    async def ask(self, honest: bool) -> tuple[int, int, int]:
        """Run an authenticated test; return (probes sent, replies believed, strangers counted).

        Nobody's numbers are doubted for strangers: who cannot sign cannot hide a direction.
        """
        peer = WithoutKey()
        peer.honest = honest
        port = reactor.listenUDP(0, peer, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        wanted = Wanted(
            address="127.0.0.1", port=port.getHost().port, probe="stamp-auth", key=KEY,
            flows=2, count=5, interval_s=0.02, timeout_s=0.5,
        )  # fmt: skip
        shot = OneShot(reactor, wanted, lambda _: None)
        result = await shot.run()
        self.assertFalse(shot._track.ledger.doubted.any())
        self.assertNotIn(FORGED, result.notes)
        [pair] = result.pair_stats
        return int(pair["sent"]), int(pair["received"]), shot.prober.strangers

    async def test_who_cannot_sign_is_a_stranger(self) -> None:
        """Nothing that the key has not signed is a reply, though it repeats all that a probe says."""
        self.assertEqual((10, 0, 60), await self.ask(honest=False))
        self.assertEqual((10, 10, 60), await self.ask(honest=True))


class Flooding(DatagramProtocol):
    """Answers each probe a thousand times."""

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Send the replies."""
        sequence, sent, error, ssid = stamp.SENDER_STRUCT.unpack_from(datagram)
        reply = REPLY.pack(0, sent, 0x8001, ssid, sent, sequence, sent, error, 64)
        for _ in range(1000):
            self.transport.write(reply, addr)


class FloodingTests(TestCase):
    async def test_a_test_ends(self) -> None:
        """A target that answers without end does not keep `llama send` from its own end."""
        self.patch(oneshot, "FLOODED_S", 0.1)
        for module in (inbox, udp):  # replies are read one at a time: there are always more
            self.patch(module, "ARENA", 1)
        port = reactor.listenUDP(0, Flooding(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        wanted = Wanted(
            address="127.0.0.1", port=port.getHost().port, count=2, interval_s=0.02, timeout_s=0.05
        )
        result = await OneShot(reactor, wanted, lambda _: None).run()
        self.assertIn(closing.UNREAD, result.notes)
        [pair] = result.pair_stats
        self.assertEqual(pair["sent"], 2)
        self.assertLess(pair["received"], 2)  # the other reply is behind a thousand more


class NeighbourTests(TimekeeperCase):
    """A target in other hands, beside one that is dead: both are asked in the same bursts."""

    def receive(self, number: int) -> Counter[str]:
        """Probe both while one answers for itself and, in its name, for the other; tell what counts."""
        liar, mask = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock, address in ((liar, "127.0.0.1"), (mask, "127.0.0.2")):
            self.addCleanup(sock.close)
            sock.bind((address, number))
            sock.setblocking(False)
            number = liar.getsockname()[1]
        answered = 0

        def answer() -> bool:
            nonlocal answered
            while True:
                try:
                    probe, whom = liar.recvfrom(999)
                except BlockingIOError:
                    return len(self.closed) > 2
                now = stamp.ntp_from_unix_ns(time.time_ns())
                sequence, sent, error, ssid = stamp.SENDER_STRUCT.unpack_from(probe)
                answered += 1
                reply = REPLY.pack(answered, now, 0x8001, ssid, now, sequence, sent, error, 64)
                for each in (liar, mask):
                    each.sendto(reply, whom)

        pairs = [pair(address, number) for address in ("127.0.0.1", "127.0.0.2")]
        self.timekeeper.use([self.group(*pairs, rate=200)])
        self.run_until(answer, answering=False)
        received: Counter[str] = Counter()
        for closed in self.closed:
            for one, row in zip(closed.pairs, closed.pair_stats, strict=True):
                received[one.dst_ip] += int(row["received"])
        return received

    def test_nobody_answers_for_another(self) -> None:
        """What one target sees of its own probes is not enough to answer those of another."""
        received = self.receive(0)
        self.assertGreater(received["127.0.0.1"], 300)
        self.assertEqual(received["127.0.0.2"], 0)

    def test_numbers_of_the_same_cell(self) -> None:
        """A number that leads to the cell of a probe, by a whole turn or more, is not that probe's."""
        self.timekeeper.use([self.group(ports=1)])
        self.run_until(lambda: self.prober.received > 5)
        self.bring_in_all()
        (track,) = self.prober.tracks
        book = track.ledger
        last = book.next_sequence - np.uint32(1)
        t1_ns = book.t1[book.cells(np.zeros(1, np.int64), last)]
        for turns in (-1, 1, 2**20):
            number = last + np.uint32(turns * book.depth % 2**32)
            stray = Replies.bare(
                np.zeros(1, np.int64), number, t1_ns, t1_ns + 1, np.ones(1, np.bool_)
            )
            self.assertFalse(book.genuine(stray).any())
            self.assertEqual(book.reply(stray), 0)
        assert book.current is not None
        self.assertEqual(book.current.duplicates.tolist(), [0])


class OthersCountTests(TimekeeperCase):
    """Loss on the way there, at a reflector that returns SSIDs, and somebody who writes in its name."""

    def test_without_an_ssid(self) -> None:
        """A reply without an SSID is no sign that such a reflector counted what we did not send."""
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(peer.close)
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        chance, came = random.Random(5), Counter[Any]()
        forged = bytes(44)

        def more() -> bool:
            (track,) = self.prober.tracks
            while True:
                try:
                    probe, whom = peer.recvfrom(999)
                except BlockingIOError:
                    break
                if chance.random() < 0.3:
                    continue
                now = stamp.ntp_from_unix_ns(time.time_ns())
                sequence, sent, error, ssid = stamp.SENDER_STRUCT.unpack_from(probe)
                reply = REPLY.pack(came[whom], now, 0x8001, ssid, now, sequence, sent, error, 64)
                came[whom] += 1
                peer.sendto(reply, whom)
            for sock in track.sockets if came else ():
                peer.sendto(forged, ("127.0.0.1", sock.number))
            return len(self.closed) > 4

        self.timekeeper.use([self.group(pair("127.0.0.1", peer.getsockname()[1]), rate=100)])
        self.run_until(more, answering=False)
        self.assertGreater(self.prober.strangers, 100)
        rows = [closed.pair_stats[0] for closed in self.closed]
        lost, forward = (sum(int(row[name]) for row in rows) for name in ("lost", "lost_forward"))
        self.assertGreater(lost, 50)
        self.assertGreater(forward, 0)  # one slow probe makes a stretch unknown
        self.assertNotIn(FORGED, [note for closed in self.closed for note in closed.notes])
