"""The timekeeper and the prober over real loopback sockets, ticked by hand."""

from __future__ import annotations

import itertools
import socket
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import evolve
from timekeeper_case import TimekeeperCase, pair
from twisted.logger import capturedLogs, formatEvent

from llama.collector import joining
from llama.collector.closer import MOST_TRIES
from llama.collector.intervals import cell, closing
from llama.collector.intervals.cell import RECEIVED, STAMPED
from llama.collector.intervals.ledger import FORGED
from llama.collector.intervals.replies import UNKNOWN_DSCP
from llama.collector.intervals.summary import ClosedInterval, reasons, suspect_bit
from llama.collector.probing import sockets
from llama.collector.probing.inbox import ARENA, Inbox
from llama.collector.probing.intake import ELSEWHERE, MOST_ELSEWHERE
from llama.collector.probing.plan import Group
from llama.collector.probing.probers import Probers
from llama.collector.probing.sockets import SMALLEST_ROOM
from llama.reflector.guard import ADMITTED, TOTAL_RATE, Guard
from llama.wire.stamp import NTP_UNIX_SECONDS

SECOND = 1_000_000_000


class OneRefused(Guard):
    """A limit on all that happens to refuse the probes from one source port."""

    port = -1

    def admit_one(self, high: int, low: int, port: int, now_s: float) -> int:
        """Refuse those."""
        return TOTAL_RATE if port == self.port else ADMITTED

    def admit(
        self, high: Any, low: Any, port: npt.NDArray[np.uint16], now_s: float
    ) -> npt.NDArray[np.uint8]:
        """Likewise."""
        return np.where(port == self.port, TOTAL_RATE, ADMITTED).astype(np.uint8)


class TimekeeperTests(TimekeeperCase):
    """Intervals, changes, and what marks them."""

    def test_intervals_are_aligned_and_complete(self) -> None:
        """Windows start at multiples of their length, follow one another and add up."""
        self.timekeeper.use([self.group()])
        self.newest(3)
        ends = [interval.end_ns for interval in self.closed]
        self.assertEqual([end % SECOND for end in ends], [0, 0, 0])
        self.assertEqual([b - a for a, b in itertools.pairwise(ends)], [SECOND, SECOND])
        self.assertEqual([i.close_number for i in self.closed], [1, 2, 3])
        for interval in self.closed:
            row = interval.pair_stats[0]
            self.assertEqual(row["sent"], row["received"] + row["lost"])
            self.assertEqual(row["lost"], 0)

    def test_rate_is_kept(self) -> None:
        """A full interval has the configured number of probes, from all source ports alike."""
        self.timekeeper.use([self.group(rate=50)])
        self.newest(2)
        interval = self.newest(1)
        skipped = sum(track.schedule.skipped for track in self.prober.tracks)
        sent = int(interval.pair_stats[0]["sent"])
        self.assertLessEqual(sent, 102)
        self.assertGreaterEqual(sent + skipped, 98)
        spread = interval.flow_stats["sent"]
        self.assertLessEqual(int(spread.max()) - int(spread.min()), 2)

    def test_two_names_of_one_host(self) -> None:
        """Targets that are one address and port are series of their own, with probes of their own."""
        one = pair("127.0.0.1", self.number)
        other = evolve(one, target="alias", tags={"dst_hostname": "alias"})
        self.timekeeper.use([self.group(one, other)])
        for interval in (self.newest(2), self.newest(1)):
            for row in interval.pair_stats:
                self.assertGreater(row["sent"], 0)
                self.assertEqual(row["lost"], 0)
        self.assertEqual(len(set(interval.flows["ssid"].tolist())), 2)

    def test_names_of_one_host_come_and_go(self) -> None:
        """Those that stay are told apart as before: what is under way is theirs, and no forgery."""
        one = pair("127.0.0.1", self.number)
        two, three = (
            evolve(one, target=name, tags={"dst_hostname": name}) for name in ("two", "three")
        )
        numbers: dict[str, set[int]] = {}
        for pairs in ((one, two), (two,), (two, one), (three, one, two), (three, two)):
            self.timekeeper.use([self.group(*pairs)])
            closed = self.newest(3)
            self.assertEqual({p.target for p in closed.pairs}, {p.target for p in pairs})
            for row in closed.flows:
                numbers.setdefault(closed.pairs[row["pair"]].target, set()).add(int(row["ssid"]))
        self.assertEqual(
            {name: len(some) for name, some in numbers.items()},
            {one.target: 1, "two": 1, "three": 1},
        )
        self.assertEqual(len(set.union(*numbers.values())), 3)
        for interval in self.closed:
            self.assertNotIn(FORGED, interval.notes)
            self.assertEqual(int(interval.pair_stats["lost"].sum()), 0)
        self.assertEqual(self.prober.strangers, 0)

    def test_replies_that_do_not_say_their_class(self) -> None:
        """Where the kernel does not tell the class of a reply, it is unknown, and not re-marked."""
        self.timekeeper.use([self.group()])
        for sock in self.prober.sockets.values():
            sock.sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 0)
        closed = self.newest(3)
        row = closed.pair_stats[0]
        self.assertEqual((row["lost"], row["remarked_reverse"]), (0, 0))
        self.assertEqual(set(closed.flow_stats["dscp_at_collector"].tolist()), {UNKNOWN_DSCP})
        self.assertIn("user_timestamps", reasons(int(row["suspect"])))

    def test_change_takes_effect_where_an_interval_begins(self) -> None:
        """Every series has one whole figure for each window, before and after a change."""
        one, two, three = (pair(f"127.0.0.{n}", self.number) for n in (1, 2, 3))
        self.answer_everywhere()
        one, two, three = (evolve(p, dst_port=self.number) for p in (one, two, three))
        self.timekeeper.use([self.group(one, two)])
        self.newest(2)
        ports = [sock.number for sock in self.prober.sockets.values()]
        self.timekeeper.use([self.group(one, three)])
        self.newest(3)
        self.assertEqual([sock.number for sock in self.prober.sockets.values()], ports)
        seen: dict[str, list[int]] = {}
        for interval in self.closed:
            for p, row in zip(interval.pairs, interval.pair_stats, strict=True):
                seen.setdefault(p.target, []).append(interval.end_ns)
                self.assertEqual(row["lost"], 0, p.target)
        for name, ends in seen.items():
            self.assertEqual(len(ends), len(set(ends)), name)
        whole = [
            seen["127.0.0.1"],
        ]
        self.assertEqual(whole[0], sorted(whole[0]))
        self.assertEqual(len(seen["127.0.0.1"]), len(self.closed))
        self.assertLess(max(seen["127.0.0.2"]), self.closed[-1].end_ns)
        self.assertIn(self.closed[-1].end_ns, seen["127.0.0.3"])

    def test_reload_after_reload(self) -> None:
        """Whole tests may be replaced, several at once and again and again: all goes on closing."""
        for rate in (40, 50, 60):
            first = self.group(rate=rate)
            second = evolve(self.group(rate=rate + 1), test="other")
            self.timekeeper.use([first, second])
            self.newest(3)
            self.assertEqual([len(i.pairs) for i in self.closed[-1:]], [2])
        self.newest(2)
        self.assertEqual(len(self.prober.tracks), 2)
        self.assertEqual(len(self.prober.sockets), 2)  # both tests have the same source ports
        self.assertEqual(
            [int(i.pair_stats["lost"].sum()) for i in self.closed], [0] * len(self.closed)
        )

    def test_changing_address_leaves_nothing_behind(self) -> None:
        """A target whose address changes again and again is one pair, not more and more."""
        self.answer_everywhere()
        for n in range(1, 5):
            self.timekeeper.use([self.group(pair(f"127.0.0.{n}", self.number))])
            self.newest(2)
        self.newest(2)
        self.assertEqual([len(track.pairs) for track in self.prober.tracks], [1])

    def test_step_of_the_clock_is_marked(self) -> None:
        """A stepped wall clock marks the interval."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        self.run_until(lambda: self.prober.sent % 7 == 3)
        self.step_ns = 300_000_000
        self.run_until(lambda: any("clock_step" in self.reasons(i) for i in self.closed))
        self.step_ns = 0

    def test_step_of_the_clock_before_a_change(self) -> None:
        """What was answered before the step that a change of what is probed begins with is not late."""
        intake = self.prober._intake
        before = intake._circumstances

        def stepped(inbox: Inbox, count: int) -> Any:
            t4_ns, *others = before(inbox, count)
            return t4_ns + self.step_ns, *others

        self.patch(intake, "_circumstances", stepped)
        self.timekeeper.use([self.group()])
        self.newest(1)
        self.timekeeper.use([self.group(), evolve(self.group(), test="another")])
        sent = self.prober.sent
        self.run_until(lambda: self.prober.sent > sent + 3, answering=False)
        self.port.doRead()
        self.step_ns = 5 * SECOND
        self.newest(2)
        self.assertEqual(sum(int(closed.pair_stats["lost"].sum()) for closed in self.closed), 0)
        self.assertIn("clock_step", self.reasons(self.closed[1]))

    def test_a_clock_set_back_makes_no_longer_window(self) -> None:
        """The window ends before cells would have to be used again: no probe is missing from counts."""
        self.timekeeper.interval_ns = 30 * SECOND
        into = (time.time_ns() % (30 * SECOND)) / SECOND
        self.step_ns = round((20 - into) * SECOND)  # twenty seconds into a window
        self.timekeeper.use([self.group()])
        begin = self.prober.tracks[0].ledger.next_sequence.copy()
        self.timekeeper._began_s -= 20
        self.run_until(lambda: self.prober.sent > 20)
        self.step_ns -= 3 * SECOND  # for a while the slack is enough
        sent = self.prober.sent
        self.run_until(lambda: self.prober.sent > sent + 5)
        (track,) = self.prober.tracks
        self.assertEqual(track.ledger.over, [])
        self.step_ns -= 3 * SECOND
        self.run_until(lambda: track.ledger.over)
        sent = int((track.ledger.next_sequence - begin).sum())
        closed = self.newest(1)
        self.assertEqual(int(closed.pair_stats["sent"].sum()), sent)
        self.assertIn("clock_step", self.reasons(closed))
        assert track.ledger.current is not None
        self.assertEqual(
            track.ledger.current.end_ns, closed.end_ns + SECOND // 1000
        )  # another point
        self.assertTrue(track.ledger.current.suspect & suspect_bit("clock_step"))

    def test_full_receive_buffer_is_marked(self) -> None:
        """Replies dropped at our own socket are loss of our own, and are called so."""
        self.patch(sockets, "SOCKET_BUFFER", 2304)
        self.timekeeper.use([self.group(rate=400, ports=1)])
        self.newest(1)
        # The replies of a while come while nobody reads: the buffer is too small for them.
        for _ in range(20):
            self.timekeeper.tick()
            time.sleep(0.005)
        for sock in self.prober.sockets.values():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
                for _ in range(200):
                    flood.sendto(bytes(100), ("127.0.0.1", sock.number))
        self.run_until(lambda: any("receive_drops" in self.reasons(i) for i in self.closed))
        self.assertGreater(self.prober.receive_drops, 0)

    def test_reflector_limit_is_marked(self) -> None:
        """Loss by the reflector's own rate limit comes back in its TLV and marks the interval."""
        self.protocol.guard = Guard(total_rate_pps=40, total_burst=4)
        self.protocol._seconds = time.monotonic  # the guard's buckets fill with time
        self.timekeeper.use([self.group(rate=100, ports=1)])
        self.run_until(lambda: any("reflector_limit" in self.reasons(i) for i in self.closed))
        lossy = next(i for i in self.closed if "reflector_limit" in self.reasons(i))
        self.assertGreater(lossy.pair_stats[0]["lost"], 0)

    def test_reflector_limit_is_marked_where_nothing_was_heard(self) -> None:
        """A pair that loses all its probes to the limit is marked with those that hear of it."""
        self.protocol.guard = guard = OneRefused()
        elsewhere = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # nobody answers there
        self.addCleanup(elsewhere.close)
        elsewhere.bind(("127.0.0.1", 0))
        dead = pair("127.0.0.1", elsewhere.getsockname()[1])
        lossy = pair("127.0.0.1", self.number, dscp=46)
        other = evolve(
            self.group(rate=45, ports=1), test="other", sources=self.group(ports=3).sources[2:]
        )
        self.timekeeper.use([self.group(rate=50, ports=1), other.with_pairs([lossy, dead])])
        self.newest(1)
        (refused,) = (s for s in self.prober.sockets.values() if s.source.owner == "2")
        guard.port = refused.number
        interval = self.newest(3)
        rows = dict(zip(interval.pairs, interval.pair_stats, strict=True))
        self.assertEqual(rows[lossy]["received"], 0)
        marked = {p for p, row in rows.items() if "reflector_limit" in reasons(int(row["suspect"]))}
        self.assertEqual(marked, set(interval.pairs) - {dead})
        guard.port = -1
        self.newest(2)  # whoever could not hear it for so long is told old news now
        interval = self.newest(1)
        answered = [p is not dead for p in interval.pairs]
        self.assertEqual(interval.pair_stats["lost"][answered].tolist(), [0, 0])
        self.assertNotIn("reflector_limit", self.reasons(interval))

    def test_reflector_restart_is_marked(self) -> None:
        """A reflector started anew is noticed by its start time."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        self.protocol.started_ns = time.time_ns()
        self.run_until(lambda: any("reflector_restart" in self.reasons(i) for i in self.closed))

    def test_strangers_do_not_count(self) -> None:
        """Packets that are no replies to probes of ours are counted and change nothing."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        sock = next(iter(self.prober.sockets.values()))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for size in (0, 5, 44, 96, 2000):
                stranger.sendto(bytes(size), ("127.0.0.1", sock.number))
        interval = self.newest(2)
        self.assertEqual(interval.pair_stats[0]["lost"], 0)
        self.assertEqual(interval.pair_stats[0]["duplicate"], 0)
        self.assertGreaterEqual(self.prober.strangers, 5)

    def test_answers_from_elsewhere_are_noted(self) -> None:
        """A responder that answers from another of its addresses is no reflector, but is named."""
        responder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(responder.close)
        responder.setblocking(False)
        responder.bind(("0.0.0.0", 0))  # the kernel chooses where replies come from
        number = responder.getsockname()[1]
        echoes = 0

        def answer() -> bool:
            nonlocal echoes
            while True:
                try:
                    packet, whom = responder.recvfrom(2048)
                except BlockingIOError:
                    return len(self.closed) > 2
                reply = bytearray(packet)
                reply[24:38] = packet[:14]
                reply[24 + echoes % 14] ^= echoes % 3  # most of them repeat what was never sent
                responder.sendto(reply, whom)
                echoes += 1

        self.timekeeper.use([self.group(pair("127.0.0.2", number), pair("127.0.0.1", 9))])
        self.run_until(answer)
        row = self.closed[-1].pair_stats[0]
        self.assertEqual(row["received"], 0)
        self.assertIn(
            f"127.0.0.1 port {number} answered probes that were sent to another address or port",
            self.closed[-1].notes,
        )
        self.prober.drain()
        self.assertEqual(self.prober.strangers, echoes)

    def test_answers_to_probes_that_never_were(self) -> None:
        """A probe that never left has no time, not even the beginning of 1970."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        (track,) = self.prober.tracks
        reply = bytearray(44)
        reply[24:28] = (int(track.ledger.next_sequence.max()) + 100).to_bytes(4, "big")
        reply[28:36] = (NTP_UNIX_SECONDS << 32).to_bytes(8, "big")
        whom = "127.0.0.1", track.sockets[0].number
        self.port._socket.sendto(reply, whom)  # in the reflector's own name, without an SSID
        reply[14:16] = b"\xff\xff"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(reply, whom)
        closed = self.newest(2)
        self.assertEqual(self.prober.strangers, 2)
        self.assertFalse(track.bare.any())
        self.assertFalse([note for i in self.closed for note in i.notes if ELSEWHERE in note])
        self.assertEqual(int(closed.pair_stats["lost"].sum()), 0)

    def test_traces_hide_no_answers_from_elsewhere(self) -> None:
        """Only so many strangers are looked at in one go, and the answers to traces are none."""

        class Traces:
            ssid = self.prober.reserve_ssid()
            heard = 0

            def reply(self, *_: object) -> bool:
                self.heard += 1
                return True

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
            responder.bind(("0.0.0.0", 0))  # answers from 127.0.0.1, wherever it was asked
            number = responder.getsockname()[1]
            self.timekeeper.use([self.group(pair("127.0.0.2", number), ports=1)])
            self.prober.tracing = traces = Traces()
            (track,) = self.prober.tracks
            track.schedule.begin(time.monotonic() - 0.02)
            self.prober.tick(time.monotonic(), 0.02)
            packet, whom = responder.recvfrom(2048)
            answer = bytearray(packet)
            answer[24:38] = packet[:14]
            of_a_trace = bytearray(answer)
            of_a_trace[14:16] = traces.ssid.to_bytes(2, "big")
            of_a_trace[24:28] = b"\xaa" * 4  # a number of its own
            for reply in (*[of_a_trace] * 2 * MOST_ELSEWHERE, answer):
                responder.sendto(reply, whom)
        self.prober.drain()
        current = track.ledger.current
        assert current is not None
        self.assertEqual(
            current.notes,
            {f"127.0.0.1 port {number} answered probes that were sent to another address or port"},
        )
        self.assertEqual((traces.heard, self.prober.strangers), (2 * MOST_ELSEWHERE, 1))

    def test_strangers_take_no_ones_place(self) -> None:
        """What is read together with a stranger's packets keeps its own times."""
        self.timekeeper.use([self.group(ports=1)])
        (track,) = self.prober.tracks
        (sock,) = self.prober.sockets.values()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(3):
                stranger.sendto(bytes(96), ("127.0.0.1", sock.number))
        time.sleep(0.02)
        track.schedule.begin(time.monotonic() - 0.02)
        self.prober.tick(time.monotonic(), 0.02)
        self.port.doRead()
        time.sleep(0.02)
        self.prober.drain()
        self.assertEqual((self.prober.received, self.prober.strangers), (1, 3))
        elapsed = track.ledger.elapsed[track.ledger.flags & RECEIVED != 0]
        self.assertTrue(0 < elapsed[0] < 15_000_000, elapsed)

    def test_silence_is_loss(self) -> None:
        """Without a reflector everything is lost, of unknown direction."""
        self.timekeeper.use([self.group()])
        self.run_until(lambda: len(self.closed) >= 2, answering=False)
        row = self.closed[-1].pair_stats[0]
        self.assertEqual(row["lost"], row["sent"])
        self.assertEqual(row["lost_unknown"], row["lost"])

    def test_stale_reply_is_late(self) -> None:
        """A reply that the reflector gave too late is late, not received."""
        self.timekeeper.use([self.group(rate=20, ports=1)])
        self.run_until(lambda: self.prober.sent >= 3, answering=False)
        give_up = time.monotonic() + 2 * self.timeout_s
        self.run_until(lambda: time.monotonic() > give_up, answering=False)
        self.newest(2)
        self.assertGreater(sum(int(i.pair_stats[0]["late"]) for i in self.closed), 0)


class RestartTests(TimekeeperCase):
    """A reflector that is gone while one interval ends, and back while the next one runs."""

    timeout_s = 0.9

    def killed(self, *, until_closed: bool) -> ClosedInterval:
        """Return the interval that it was killed in; it is back when that is over, or has closed."""
        self.timekeeper.use([self.group()])
        self.newest(2)
        (track,) = self.prober.tracks
        before = track.ledger.current
        self.run_until(lambda: track.ledger.current is not before)
        killed_in = track.ledger.current  # all of it is left
        assert killed_in is not None
        self.run_until(lambda: track.ledger.current is not killed_in, answering=False)
        if until_closed:
            self.run_until(lambda: self.closed[-1].start_ns == killed_in.start_ns, answering=False)
        while self.port.inbound.receive(self.port.fd):  # what came while it was gone is gone
            pass
        self.protocol.started_ns = time.time_ns()
        self.run_until(lambda: self.closed[-1].start_ns > killed_in.start_ns)
        self.assertIn("reflector_restart", self.reasons(self.closed[-1]))
        (found,) = (i for i in self.closed if i.start_ns == killed_in.start_ns)
        self.assertGreater(found.pair_stats[0]["lost"], 0)
        return found

    def test_while_it_is_held_open(self) -> None:
        """An interval that waits for its last replies when the start is learnt is marked as well."""
        interval = self.killed(until_closed=False)
        self.assertIn("reflector_restart", self.reasons(interval))

    def test_once_it_has_closed(self) -> None:
        """One that has been told already is not, whatever is learnt later."""
        self.timeout_s = 0.3  # so that most of the next one is left for the reflector to be back in
        interval = self.killed(until_closed=True)
        self.assertNotIn("reflector_restart", self.reasons(interval))


class DrainTests(TimekeeperCase):
    """What is read when, and whose it is."""

    def test_no_socket_keeps_another_waiting(self) -> None:
        """With one source port flooded before every drain, the others are read all the same."""
        self.timekeeper.use([self.group(rate=20)])
        self.run_until(lambda: self.prober.received > 0)
        first, *others = self.prober.sockets.values()
        strangers = self.prober.strangers
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            for _ in range(4):
                for _ in range(ARENA + 16):
                    flood.sendto(b"flood", ("127.0.0.1", first.number))
                for other in others:
                    flood.sendto(b"waits", ("127.0.0.1", other.number))
                self.prober.drain()
        self.assertGreater(self.prober.strangers, strangers + ARENA)
        waiting = {fd for fd, _ in self.prober._poll.poll(0)}
        self.assertEqual(waiting & {other.fd for other in others}, set())

    def test_late_stamps_of_before_a_reload(self) -> None:
        """A transmit stamp that comes after cells were given anew is nobody's."""
        self.timekeeper.use([self.group()])
        self.run_until(lambda: self.prober.sent > 4)
        self.port.doRead()
        time.sleep(0.01)
        (track,) = self.prober.tracks
        before = track.first_cell
        self.prober.arrange([track])  # while stamps of its probes are still in the queue
        self.assertEqual(track.first_cell, before + track.ledger.flows * track.ledger.depth)
        track.ledger.transmit[:] = 0
        while not self.prober.drain():
            pass
        self.assertFalse(track.ledger.transmit.any())

    def test_stamps_find_their_probes_after_a_reload(self) -> None:
        """Probes that were ready before cells were given anew bear the new numbers."""
        first = self.group(ports=20, rate=45)
        second = evolve(self.group(ports=20, rate=50), test="other")
        self.timekeeper.use([first, second])
        self.newest(1)
        self.timekeeper.use([second])
        self.run_until(lambda: len(self.prober.tracks) == 1)
        (track,) = self.prober.tracks
        sent = track.ledger.next_sequence.copy()
        self.newest(2)
        for flow in range(track.ledger.flows):
            numbers = np.arange(sent[flow], sent[flow] + 20, dtype=np.uint32)
            cells = track.ledger.cells(np.full(20, flow), numbers)
            self.assertTrue((track.ledger.flags[cells] & STAMPED).all())

    def test_large_probes_are_drained_oftener(self) -> None:
        """No more of them come between two drains than a quarter of the buffer holds."""
        small, large = pair("127.0.0.1", self.number), pair("127.0.0.1", self.number, size=8900)
        for one, most in ((small, 60), (large, 4)):
            group = self.group(one, ports=1, rate=2000)
            self.timekeeper.use([group])
            self.newest(2)
            (sock,) = self.prober.sockets.values()
            self.patch(sock, "buffer", 212_992)
            self.assertLessEqual(2000 * self.prober.drain_every_s(), most)

    def small_buffer(self) -> None:
        """Give the one source port a stock receive buffer, and the timekeeper a pace to suit it."""
        (sock,) = self.prober.sockets.values()
        sock.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 106_496)  # it doubles that
        sock.buffer = sock.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.timekeeper._set_pace()

    def test_what_a_pause_left_over_fills_no_buffer(self) -> None:
        """What is due after a pause is sent in so many ticks that a stock buffer holds its replies."""
        self.answer_everywhere()
        pairs = [pair(f"127.0.1.{n}", self.number) for n in range(1, 201)]
        now_ns = time.monotonic_ns()
        self.patch(self.timekeeper, "_monotonic_ns", lambda: now_ns)
        self.timekeeper.use([self.group(*pairs, ports=1, rate=50)])
        self.small_buffer()
        self.timekeeper.tick()
        now_ns += 45_000_000
        for _ in range(60):
            self.timekeeper.tick()
            self.port.doRead()  # after the tick: replies are a tick under way
            now_ns += round(self.timekeeper._tick_s * 1e9)
        self.assertGreater(self.prober.sent, 1500)
        while not self.prober.drain():
            pass
        (track,) = self.prober.tracks
        self.assertEqual(track.schedule.skipped, 0)
        self.assertEqual(self.prober.check_drops(), 0)
        self.assertEqual(self.prober.received, self.prober.sent)
        self.assertEqual(np.count_nonzero(track.ledger.flags & STAMPED), self.prober.sent)

    def test_what_was_skipped_is_told(self) -> None:
        """The log tells of an interval with probes left out, and again only after a good one."""
        prober = Probers(ids=False)
        self.addCleanup(prober.close)
        told = []
        with capturedLogs() as logs:
            for sent, skipped in ((970, 30), (500, 500), (1000, 9), (990, 11)):
                prober.udp.sent += sent
                prober.udp.skipped += skipped
                prober.next_interval()
                told.append([formatEvent(event) for event in logs])
                logs.clear()
        self.assertEqual([len(lines) for lines in told], [1, 0, 0, 1])
        self.assertTrue(told[0][0].startswith("30 of 1000 probes of an interval were left out"))

    def test_what_was_skipped_stays_counted(self) -> None:
        """The count of skipped probes outlasts the schedules that skipped them."""
        now_ns = time.monotonic_ns()
        self.patch(self.timekeeper, "_monotonic_ns", lambda: now_ns)
        self.timekeeper.use([self.group()])
        self.timekeeper.tick()
        now_ns += SECOND
        self.timekeeper.tick()
        skipped = self.prober.skipped
        self.assertGreater(skipped, 50)
        self.timekeeper.use([self.group(pair("127.0.0.2", self.number))])
        self.timekeeper._end_ns = 1  # the next interval begins with the next tick
        self.timekeeper.tick()
        self.assertEqual([p.dst_ip for t in self.prober.tracks for p in t.pairs[:1]], ["127.0.0.2"])
        self.assertGreaterEqual(self.prober.skipped, skipped)

    def test_each_test_catches_up_by_itself(self) -> None:
        """After a pause a slow test of large probes does not leave all at once beside a fast one."""
        small = self.group(*(pair(f"127.0.0.{n}", 9) for n in range(1, 101)), ports=1, rate=90)
        large = self.group(pair("127.0.0.1", 9, size=8900), ports=1, rate=1000)
        now_ns = time.monotonic_ns()
        self.patch(self.timekeeper, "_monotonic_ns", lambda: now_ns)
        self.timekeeper.use([small, evolve(large, test="large")])
        self.small_buffer()
        self.timekeeper.tick()
        fast, slow = self.prober.tracks
        before, began = int(slow.ledger.next_sequence.sum()), int(fast.ledger.next_sequence.sum())
        now_ns += 45_000_000
        self.timekeeper.tick()
        sent = int(slow.ledger.next_sequence.sum()) - before
        self.assertGreater(sent, 0)
        self.assertLess(sent * (2 * SMALLEST_ROOM + 2 * 8900), 212_992 / 1.9)
        self.assertGreater(int(fast.ledger.next_sequence.sum()), began)

    def test_ticks_that_come_late_skip_nothing(self) -> None:
        """With ticks at a third of their pace all that is due is sent, nothing is skipped."""
        now_ns = time.monotonic_ns()
        self.patch(self.timekeeper, "_monotonic_ns", lambda: now_ns)
        self.timekeeper.use(
            [self.group(*(pair(f"127.0.0.{n}", 9) for n in range(1, 101)), rate=90)]
        )
        for _ in range(100):
            self.timekeeper.tick()
            now_ns += round(3 * self.timekeeper._tick_s * 1e9)
        (track,) = self.prober.tracks
        self.assertEqual(track.schedule.skipped, 0)
        self.assertGreater(self.prober.sent, 2500)

    def test_large_probes_leave_a_few_at_a_time(self) -> None:
        """So large that a burst of them would overfill a stock buffer, they have ticks of their own."""
        self.timekeeper.use(
            [self.group(pair("127.0.0.1", self.number, size=8900), rate=1600, ports=1)]
        )
        self.small_buffer()
        few = 2 * 1600 * min(self.timekeeper._tick_s, self.timekeeper._drain_s)
        self.assertLess(few * (2 * SMALLEST_ROOM + 2 * 8900), 212_992 / 1.9)

    def test_beginning_is_no_late_tick(self) -> None:
        """However long it takes to arrange what is new, none of it was due meanwhile."""
        self.timekeeper.use([self.group()])
        later_ns = time.monotonic_ns() + SECOND
        self.patch(self.timekeeper, "_monotonic_ns", lambda: later_ns)
        self.timekeeper.tick()
        (track,) = self.prober.tracks
        self.assertEqual(track.schedule.skipped, 0)
        intervals = track.ledger.open_intervals()  # two, where one has ended just now
        self.assertTrue(intervals)
        for interval in intervals:
            self.assertEqual(interval.suspect & suspect_bit("late_ticks"), 0)

    def test_few_notes_of_many_late_ticks(self) -> None:
        """However often it was late, and by whatever, an interval says so in a few notes."""
        now_ns = time.monotonic_ns()
        self.patch(self.timekeeper, "_monotonic_ns", lambda: now_ns)
        self.timekeeper.use([self.group()])
        self.timekeeper.tick()
        for ms in (*range(80, 90), 15_000):
            now_ns += ms * SECOND // 1000
            self.timekeeper.tick()
        (track,) = self.prober.tracks
        notes = {note for interval in track.ledger.open_intervals() for note in interval.notes}
        said = {note for note in notes if "late" in note}
        self.assertIn("the collector was 10 s late", said)
        self.assertLessEqual(len(said), 4)

    def test_slow_tests_begin_once(self) -> None:
        """Rearranging again and again, as for an address that is missing, puts no first probe off."""
        slow, other = self.group(rate=0.5, ports=1), evolve(self.group(), test="other")
        for rate in range(50, 54):
            self.timekeeper.use([slow, evolve(other, rate_pps=rate)])
            self.newest(1)
        self.assertGreater(sum(int(i.pair_stats[0]["sent"]) for i in self.closed), 0)

    def test_classes_beside_one_another(self) -> None:
        """Best effort, which goes out untold, is never taken for the class sent before it."""
        classes = [pair("127.0.0.1", self.number, dscp=dscp) for dscp in (0, 46, 0, 10)]
        groups = [
            evolve(self.group(classes[0], classes[1], rate=100)),
            evolve(self.group(classes[2], rate=100), test="second"),
            evolve(self.group(classes[3], rate=100), test="third"),
        ]
        self.timekeeper.use(groups)
        self.newest(2)
        closed = self.closed[-1]
        sent = [p.dscp for p in closed.pairs]
        self.assertEqual(sorted(sent), [0, 0, 10, 46])
        stats = closed.pair_stats
        self.assertEqual(stats["dscp_at_reflector"].tolist(), sent)
        self.assertEqual(stats["dscp_at_collector"].tolist(), sent)
        self.assertFalse(stats["remarked_forward"].any() or stats["remarked_reverse"].any())

    def test_tests_close_together(self) -> None:
        """Where probes of one test wait in this host, the others of its timeout close with it."""
        one, other = self.group(), evolve(self.group(), test="other")
        self.timekeeper.use([one, other])
        self.newest(1)
        before = len(self.closed)
        early = []
        close = self.timekeeper.closer.close

        def closes(window: Any) -> None:
            early.extend(i for _, i in window if i.due > time.monotonic())
            close(window)

        self.patch(self.timekeeper.closer, "close", closes)

        def waits() -> bool:
            for interval in self.prober.tracks[1].ledger.open_intervals():
                interval.put_off(150_000_000)
            return len(self.closed) >= before + 3

        self.run_until(waits)
        ends = [interval.end_ns for interval in self.closed[before:]]
        self.assertEqual(len(set(ends)), len(ends))
        self.assertEqual({len(interval.pairs) for interval in self.closed}, {2})
        self.assertEqual(early, [])

    def test_cannot_be_closed(self) -> None:
        """An interval that cannot be closed is given up after some tries; the next ones close."""
        self.timekeeper.use([self.group(pair("127.0.0.1", self.number))])
        self.newest(1)
        failing = self.patch(closing, "_close_pairs", lambda *_: 1 // 0)
        self.run_until(lambda: self.timekeeper.closer.unclosed > 0)
        failing.restore()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), MOST_TRIES)
        before = self.closed[-1]
        self.assertGreater(self.newest(1).start_ns, before.end_ns)  # there is one between
        self.assertEqual(self.timekeeper.trouble(), "")

    def test_closing_takes_too_long(self) -> None:
        """Of windows that wait until their probes are forgotten those are closed that are not yet."""
        self.patch(cell, "SLACK_S", 0.5)  # so that there are cells for 2.5 s
        self.timekeeper.use([self.group(), evolve(self.group(), test="other", timeout_s=0.1)])
        self.newest(2)
        before = len(self.closed)
        over = self.prober.tracks[0].ledger.over
        self.timekeeper.closer.busy = True
        self.run_until(lambda: len(over) == 4 and over[-1].due <= time.monotonic())
        oldest, newest = over[0].end_ns, over[-1].end_ns
        with capturedLogs() as logs:
            self.timekeeper.closer.busy = False
            self.run_until(lambda: len(self.closed) >= before + 4)
        ends = [interval.end_ns for interval in self.closed[before:]]
        self.assertGreater(min(ends), oldest)
        self.assertEqual(ends.count(newest), 2)
        for interval in self.closed[before:]:
            self.assertGreater(interval.pair_stats["sent"].min(), 60)  # of 100: most of it
        self.assertGreaterEqual(self.timekeeper.closer.unclosed, 2)
        self.assertEqual(len(logs), 1)
        self.assertIn("were given up so far", formatEvent(logs[0]))

    def test_stopped_for_long(self) -> None:
        """Whoever does nothing for minutes forgets nothing: all that waited meanwhile is told."""
        self.timeout_s = 3.0
        self.timekeeper.use([self.group()])
        self.newest(1)
        before = len(self.closed)
        over = self.prober.tracks[0].ledger.over
        self.run_until(lambda: len(over) == 3)
        self.bring_in_all()
        waiting = [interval.end_ns for interval in over]
        self.patch(self.timekeeper, "_monotonic_ns", lambda: time.monotonic_ns() + 300 * SECOND)
        self.run_until(lambda: len(self.closed) >= before + 3)
        self.assertEqual([interval.end_ns for interval in self.closed[before:]], waiting)
        for interval in self.closed[before:]:
            (stats,) = interval.pair_stats
            self.assertGreater(stats["sent"], 60)
            self.assertEqual(stats["received"], stats["sent"])
        self.assertEqual(self.timekeeper.closer.unclosed, 0)

    def test_closing_catches_up(self) -> None:
        """Windows that had to wait, but not for so long, are all closed."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        over = self.prober.tracks[0].ledger.over
        self.timekeeper.closer.busy = True
        self.run_until(lambda: len(over) == 3)
        self.timekeeper.closer.busy = False
        self.newest(4)
        ends = [interval.end_ns for interval in self.closed]
        self.assertEqual({b - a for a, b in itertools.pairwise(ends)}, {SECOND})
        self.assertEqual(self.timekeeper.closer.unclosed, 0)

    def test_fails_once(self) -> None:
        """Wherever closing fails, with some tests of a window closed already, nothing of it is lost."""
        self.timekeeper.use([self.group(), evolve(self.group(rate=20), test="second")])
        self.newest(1)
        for module, name, good in ((closing, "close", 1), (joining, "joined", 0)):
            calls = itertools.count()
            do = getattr(module, name)

            def failing(*given: Any, calls=calls, do=do, good=good) -> Any:  # type: ignore
                if next(calls) == good:
                    raise ZeroDivisionError
                return do(*given)

            patch = self.patch(module, name, failing)
            self.newest(2)
            patch.restore()
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, name)
        numbers = [interval.close_number for interval in self.closed]
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
        ends = [interval.end_ns for interval in self.closed]
        self.assertEqual({b - a for a, b in itertools.pairwise(ends)}, {SECOND})
        for interval in self.closed[1:]:
            self.assertEqual(len(interval.pairs), 2)
            self.assertGreater(interval.pair_stats["received"].min(), 0)
            self.assertEqual(interval.pair_stats["lost"].sum(), 0)
        self.assertEqual(self.timekeeper.closer.unclosed, 0)


class StayingTests(TimekeeperCase):
    """Flows that stay while others change."""

    def test_slow_flows_keep_time(self) -> None:
        """While the address of one target changes in every interval, the others keep their period."""
        self.answer_everywhere()
        sent: dict[str, list[float]] = {}
        send = self.prober._send

        def noted(track: Any, burst: Any) -> None:
            for flow in burst.flows.tolist():
                address = track.pairs[flow // track.ports].dst_ip
                sent.setdefault(address, []).append(time.monotonic())
            send(track, burst)

        self.patch(self.prober, "_send", noted)
        stay = [pair(f"127.0.0.{n}", self.number) for n in (2, 3)]
        for turn in range(6):
            flap = pair(f"127.0.0.{10 + turn % 2}", self.number)
            self.timekeeper.use([self.group(*stay, flap, ports=1, rate=1.5)])
            self.newest(1)
        for address in ("127.0.0.2", "127.0.0.3"):
            for a, b in itertools.pairwise(sent[address]):
                self.assertLess(abs(b - a - 1 / 1.5), 0.1)

    def test_another_rate_begins_nothing_anew(self) -> None:
        """Faster or slower, a flow goes on counting, and what is under way is not lost."""
        self.timekeeper.use([self.group(rate=20)])
        self.newest(1)
        numbers = [sock.number for sock in self.prober.sockets.values()]
        ssids = self.prober.tracks[0].ssids.tolist()
        for rate, least in ((300, 300), (50, 50), (1200, 1200)):
            before = int(self.prober.tracks[0].ledger.next_sequence.min())
            self.timekeeper.use([self.group(rate=rate)])
            self.run_until(lambda rate=rate: self.prober.tracks[0].group.rate_pps == rate)
            (track,) = self.prober.tracks
            self.assertGreaterEqual(int(track.ledger.next_sequence.min()), before)
            self.assertGreaterEqual(track.ledger.depth, least * (1 + 0.2 + 8))
            self.assertEqual(track.ssids.tolist(), ssids)
            self.newest(2)
        self.newest(1)
        self.assertEqual([sock.number for sock in self.prober.sockets.values()], numbers)
        self.assertEqual(
            [int(i.pair_stats["lost"].sum()) for i in self.closed], [0] * len(self.closed)
        )
        self.assertEqual(sum(int(i.pair_stats["sent"].sum()) for i in self.closed),
                         sum(int(i.pair_stats["received"].sum()) for i in self.closed))  # fmt: skip
        self.assertEqual(self.prober.strangers, 0)


class WithoutIdentifiersTests(TimekeeperCase):
    """Kernels before 6.13: a transmit stamp comes with its packet, and is matched by that."""

    ids = False
    timeout_s = 5.0

    def check(self, *groups: Group) -> None:
        """Probe; every probe's stamp is entered as its own: T1 was taken little earlier."""
        self.timekeeper.use(groups)
        self.run_until(lambda: self.prober.received > 300)
        self.bring_in_all()
        self.assertEqual(self.prober.received, self.prober.sent)
        stamped = [
            (track.ledger.flags & (STAMPED | RECEIVED)) == STAMPED | RECEIVED
            for track in self.prober.tracks
        ]
        self.assertEqual(sum(map(np.count_nonzero, stamped)), self.prober.sent)
        for track, some in zip(self.prober.tracks, stamped, strict=True):
            book = track.ledger
            self.assertTrue((book.transmit[some] < book.elapsed[some]).all())
            # Another burst's stamp would be out of order.
            order = np.argsort(book.t1[some] + book.transmit[some], kind="stable")
            self.assertTrue((np.diff(book.t1[some][order]) > -40_000).all())

    def test_stamp(self) -> None:
        """Classes and sizes, among them one so large that only its first part comes back."""
        pairs = [
            pair("127.0.0.1", self.number, dscp=dscp, size=size)
            for dscp, size in ((0, 44), (46, 96), (10, 1400), (0, 5000))
        ]
        self.check(self.group(*pairs, rate=40))

    def test_no_ssid(self) -> None:
        """Classes of a format in which probes bear none."""
        pairs = [pair("127.0.0.1", self.number, dscp=dscp, size=44) for dscp in (0, 46)]
        self.check(evolve(self.group(*pairs, rate=80), probe="twamp-light"))

    def test_formats(self) -> None:
        """Several formats from the same source ports."""
        plain = self.group(rate=40)
        groups = [
            evolve(
                self.group(pair("127.0.0.1", self.number, size=size), rate=40),
                test=probe, probe=probe, sources=plain.sources,
            )
            for probe, size in (("llama-go", 156), ("llama-python", 36))
        ]  # fmt: skip
        self.check(plain, *groups)

    def test_strangers(self) -> None:
        """Whatever else comes back with a stamp is passed over: packets of no probe of ours."""
        self.timekeeper.use([self.group()])
        self.run_until(lambda: self.prober.received > 4)
        sock = next(iter(self.prober.sockets.values()))
        for octets in (b"", b"x", b"\x00" * 44, b"\xff" * 3000):
            sock.sock.sendto(octets, ("127.0.0.1", self.number))
        self.check(self.group())


class TroubleTests(TimekeeperCase):
    """What a monitor is told."""

    def test_stalled_ticks_are_told(self) -> None:
        """Without a tick for long it says so, and is well again with the next."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        self.assertEqual(self.timekeeper.trouble(), "")
        later = 10 * SECOND
        self.patch(self.timekeeper, "_monotonic_ns", lambda: time.monotonic_ns() + later)
        self.assertIn("probing has not worked for 10 s", self.timekeeper.trouble())
        self.timekeeper.tick()
        self.assertEqual(self.timekeeper.trouble(), "")

    def test_ticks_that_fail_are_told(self) -> None:
        """Ticks come, and each of them breaks: that is trouble, too."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        self.patch(self.prober, "tick", lambda *_: 1 // 0)
        self.patch(self.timekeeper, "_monotonic_ns", lambda: time.monotonic_ns() + 10 * SECOND)
        self.assertRaises(ZeroDivisionError, self.timekeeper.tick)
        self.assertIn("probing has not worked", self.timekeeper.trouble())

    def test_intervals_that_are_not_closed_are_told(self) -> None:
        """An interval overdue by a whole one is trouble."""
        self.patch(self.timekeeper, "_close_what_is_due", lambda *_, **__: None)
        self.timekeeper.use([self.group()])
        self.run_until(self.timekeeper.trouble)
        self.assertIn("an interval should have been closed", self.timekeeper.trouble())
