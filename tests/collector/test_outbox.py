"""Probes that are made ready ahead of time, and what becomes of them."""

from __future__ import annotations

import contextlib
import errno
import gc
import random
import socket
import time
import weakref
from collections import Counter

import numpy as np
from attrs import evolve
from plain_stamp import REPLY
from timekeeper_case import TimekeeperCase, pair

from llama.collector import memory
from llama.collector.intervals.cell import RECEIVED, STAMPED
from llama.collector.intervals.summary import Pair
from llama.collector.probing import outbox
from llama.net import errors
from llama.wire import auth, stamp


class OutboxTests(TimekeeperCase):
    """Probes that are made ready before they are due."""

    def check(self, *pairs: Pair, ports: int, rate: float) -> Counter[int]:
        """Send for a while, with pauses and failures; return how often each flow was sent."""
        self.timekeeper.use([self.group(*pairs, ports=ports, rate=rate)])
        (track,) = self.prober.tracks
        box, book = self.prober._outboxes[track], track.ledger
        begin = book.next_sequence.tolist()
        probes = stamp.sender_view(box.out.octets)
        chance = random.Random(5)
        now_s, t1_ns, skips = time.monotonic(), time.time_ns(), 0
        track.schedule.begin(now_s)
        sent: Counter[int] = Counter()
        for _ in range(3000):
            pause_s = 0.2 if chance.random() < 0.02 else 0.004
            now_s += pause_s
            for burst in track.schedule.bursts(now_s, 32, pause_s):
                t1_ns += 1000
                flows, due = burst.flows, book.upcoming(burst.flows)
                rows = box.ready(burst)
                for ready, column in zip(box.probes[:3], due[:3], strict=True):
                    self.assertEqual(ready[rows].tolist(), column.tolist())
                self.assertEqual({flow % ports for flow in flows.tolist()}, {burst.port})
                times = np.broadcast_to(box.stamp(rows, t1_ns), len(flows))
                for row, flow, t1 in zip(
                    range(*rows.indices(9999)), flows.tolist(), times, strict=True
                ):
                    number, variant = flow // ports, track.variant[flow // ports]
                    self.assertEqual(box.out.names[row].tolist(), track.names[number].tolist())
                    self.assertEqual(probes["ssid"][row], track.ssids[variant])
                    self.assertEqual(probes["sequence"][row], begin[flow] + sent[flow])
                    self.assertEqual(probes["timestamp"][row], stamp.ntp_from_unix_ns(int(t1)))
                    self.assertEqual(
                        box.out.iov_length[row] + box.out.tail_length[row], track.pairs[number].size
                    )
                    self.assertEqual(box.out.controllen[row] > 24, track.pairs[number].dscp > 0)
                    sent[flow] += 1
                book.sent(box.probes, rows, times)
                if chance.random() < 0.05:  # the kernel would not have them
                    book.unsend(flows, due.cells)
                    sent.subtract(flows.tolist())
            skips += track.schedule.skipped > 0
        self.assertGreater(skips, 0)
        return sent

    def test_many_flows(self) -> None:
        """Each row holds the probe that it should, wherever the schedule goes on."""
        pairs = [pair(f"127.0.1.{n}", self.number) for n in range(1, 200)]
        sent = self.check(*pairs, ports=3, rate=15)
        self.assertEqual(len(sent), 597)

    def test_few_flows(self) -> None:
        """A burst begins anew at the first flow, and goes on from one source port to the next."""
        pairs = [pair(f"127.0.1.{n}", self.number) for n in range(1, 4)]
        sent = self.check(*pairs, ports=2, rate=40)
        self.assertEqual(len(sent), 6)
        self.assertLessEqual(max(sent.values()) - min(sent.values()), 60)

    def test_classes_and_sizes(self) -> None:
        """Each row has the class and the size of its pair."""
        pairs = [
            pair(f"127.0.1.{n}", self.number, dscp=46 * (n % 2), size=(96, 1400)[n % 3 == 0])
            for n in range(1, 60)
        ]
        self.check(*pairs, ports=2, rate=30)

    def test_what_the_clock_may_be_off_by(self) -> None:
        """Probes say it as long as the kernel knows it, signed ones under their signature."""
        key, places = bytes(32), {"stamp": 12, "twamp-light": 12, "stamp-auth": 24}
        error_ns: float | None = 2**-9 * 1e9
        self.patch(outbox, "clock_error_ns", lambda: error_ns)
        self.patch(outbox, "ESTIMATED_NS", 0)
        peers, groups = {}, []
        for probe in places:
            peers[probe] = peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.addCleanup(peer.close)
            peer.bind(("127.0.0.1", 0))
            peer.setblocking(False)
            whom = pair("127.0.0.1", peer.getsockname()[1], size=112)
            groups.append(evolve(self.group(whom), test=probe, probe=probe, key=key))
        self.timekeeper.use(groups)
        missing = {(probe, wanted) for probe in places for wanted in (error_ns, None)}

        def heard() -> bool:
            nonlocal error_ns
            for probe, at in places.items():
                with contextlib.suppress(BlockingIOError):
                    said = peers[probe].recv(999)
                    told = stamp.error_ns(int.from_bytes(said[at : at + 2], "big"))
                    missing.discard((probe, told))
                    self.assertTrue(probe != "stamp-auth" or auth.verify(said, (key,)))
            if len(missing) == len(places):
                error_ns = None  # its clock is not in sync any more
            return not missing

        self.run_until(heard, answering=False)


class RefusedTests(TimekeeperCase):
    """Probes that the kernel would not send, in the middle of what was made ready."""

    timeout_s = 5.0  # a machine may stall

    def check(self, probe: str, size: int) -> None:
        """Refuse some of a burst now and then; whatever did leave is known by its own name."""
        self.answer_everywhere()
        pairs = [pair(f"127.0.1.{n}", self.number, size=size) for n in range(1, 201)]
        self.timekeeper.use([evolve(self.group(*pairs, rate=20), probe=probe)])
        (track,) = self.prober.tracks
        out = self.prober._outboxes[track].out
        begin = track.ledger.next_sequence.copy()
        chance, send, taken = random.Random(7), out.send, 0
        refused: Counter[int] = Counter()

        def refusing(fd: int, first: int, count: int) -> int:
            """As sendmmsg(2) does: an error if the first is not taken, else how many were."""
            nonlocal taken
            if chance.random() < 0.2:
                code = chance.choice([errno.EPERM, errno.EAGAIN, errno.EHOSTUNREACH])
                refused[code] += 1
                raise OSError(code, "refused")
            done = send(fd, first, chance.randrange(1, count + 1))
            taken += done
            return done

        self.patch(out, "send", refusing)
        self.run_until(lambda: taken > 6000)
        self.bring_in_all()
        self.assertEqual(len(refused), 3)
        self.assertIn(errno.EHOSTUNREACH, errors.PASSING)
        failed = self.prober.failed_sends
        self.assertEqual(failed["EPERM"], refused[errno.EPERM])
        self.assertGreater(failed["EAGAIN"], refused[errno.EAGAIN])  # the rest of its burst, too
        self.assertLess(failed["EHOSTUNREACH"], refused[errno.EHOSTUNREACH])  # tried again
        flags = track.ledger.flags
        self.assertEqual(self.prober.sent, taken)
        self.assertEqual(int((track.ledger.next_sequence - begin).sum()), taken)
        self.assertEqual((self.prober.received, self.prober.strangers), (taken, 0))
        self.assertEqual(np.count_nonzero(flags & RECEIVED), taken)
        self.assertEqual(np.count_nonzero(flags & STAMPED), taken)

    def test_stamp(self) -> None:
        """Probes of STAMP."""
        self.check("stamp", 96)

    def test_llama_go(self) -> None:
        """Probes that are echoed; no two of them are the same, whatever their targets."""
        self.check("llama-go", 156)

    def test_llama_python(self) -> None:
        """Echoed likewise, and telling no times closer than half a microsecond."""
        self.check("llama-python", 36)


class UnsettledTests(TimekeeperCase):
    """Replies that come before their probes were entered into the ledger."""

    kernel_stamps = False  # which would have them entered

    def check(self, probe: str, size: int, ssid: bool = True) -> None:
        """Send a burst, have it answered, drain once: it is all known."""
        pairs = [pair("127.0.0.1", self.number, dscp=dscp, size=size) for dscp in (0, 46)]
        self.timekeeper.use([evolve(self.group(*pairs, ports=1), probe=probe)])
        (track,) = self.prober.tracks
        now_s = time.monotonic()
        track.schedule.begin(now_s)
        self.prober.tick(now_s + 0.02, 0.02)
        self.assertEqual(self.prober.sent, 2)
        if ssid:
            self.port.doRead()
        else:
            for _ in range(2):
                self.answer_without_ssid()
        self.prober.drain()
        self.assertEqual((self.prober.received, self.prober.strangers), (2, 0))

    def answer_without_ssid(self) -> None:
        """Answer a probe as reflectors did before RFC 8972."""
        sock = self.port._socket
        assert sock is not None
        probe, whence = sock.recvfrom(2048)
        sequence, t1, error, _ = stamp.SENDER_STRUCT.unpack_from(probe)
        now = stamp.ntp_from_unix_ns(time.time_ns())
        reply = REPLY.pack(sequence, now, error, 0, now, sequence, t1, error, 64)
        sock.sendto(reply, whence)

    def test_stamp(self) -> None:
        """By SSID."""
        self.check("stamp", 96)

    def test_no_ssid(self) -> None:
        """By the time alone, since the reflector returns no SSID."""
        self.check("stamp", 44, ssid=False)

    def test_earlier_fleets(self) -> None:
        """By number and time."""
        self.check("llama-go", 156)

    def test_archived_python(self) -> None:
        """By number and time, in milliseconds."""
        self.check("llama-python", 36)


class ReplacedTests(TimekeeperCase):
    """What a change of the configuration does away with."""

    def test_nothing_is_left_of_it(self) -> None:
        """Its ledger and its rooms are freed, though the collector of garbage passes them by."""
        pairs = [pair("127.0.0.1", self.number, dscp=dscp) for dscp in (0, 46)]
        self.timekeeper.use([self.group(*pairs)])
        self.run_until(lambda: self.prober.received > 4)
        memory.settle()
        self.addCleanup(gc.unfreeze)
        (track,) = self.prober.tracks
        old = [weakref.ref(x) for x in (track, track.ledger, self.prober._outboxes[track])]
        del track
        self.timekeeper.use([self.group(pairs[0])])
        self.run_until(lambda: self.timekeeper.generation > 1)
        self.newest(3)
        self.assertEqual([ref() for ref in old], [None] * 3)
        self.assertEqual(list(self.prober._outboxes), self.prober.tracks)
