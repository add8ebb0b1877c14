"""Traces the collector's own flows, out of the very sockets that probe them.

A packet with a small TTL leaves with the source port, class and size of a flow's probes, under an
SSID of its own, so reflectors count it apart and the ledger never hears of it. What the network
answers lands in the socket's error queue, which the prober empties; it hands over what is not a
transmit stamp. Which flows are traced is told by `llama.collector.trace_picks`.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger

from llama.collector.intervals.summary import ClosedInterval
from llama.collector.probing.sockets import ProbeSocket
from llama.collector.probing.udp import UdpProber
from llama.collector.slices import Job
from llama.collector.trace_picks import Picks
from llama.collector.trace_proof import Proof
from llama.config import class_name
from llama.net import errors, mmsg
from llama.paths.table import FlowKey, PathTable
from llama.paths.trace import HEAD, FlowTrace, Packet, drawn_numbers, judged
from llama.wire import stamp

#: Packets a second in all, at most: as many as the slowest router on the way answers gladly.
RATE_PPS = 200
#: And at once: the first hops of as many flows as `IDLE_A_TURN`. With those alone that is all.
BURST = 30
HEADERS: dict[int, int] = {socket.AF_INET: 28, socket.AF_INET6: 48}  # octets of IP and UDP
PERIOD_S = 0.05
#: With only flows to trace that lose nothing a turn comes so seldom, and begins this many at most: one
#: costs as much as twenty probes, and much more if it must be woken up for alone.
IDLE_PERIOD_S, IDLE_A_TURN = 0.25, 5
AFTER_FAILURE_S = 60.0
#: Flows being traced at a time.
AT_ONCE = 256
#: Destinations of which is remembered how far they are.
DISTANCES = 65_536
MOST_HOPS = 24
ATTEMPTS = 2
#: Packets that are remembered: all of what goes on, and for late answers those of the last so many s.
NUMBERS, LATE_S = 8192, 60.0
#: Mismatches are told of so often at most, s.
TELL_S = 300.0
#: Paths that changed, or were refused, that are told of one by one in an interval.
MOST_TOLD = 20

#: No transmit stamp for this message, whatever the socket is set to.
_NO_STAMP = (mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, bytes(4))


class _Going:
    """A flow being traced, for what it lost or because it was its turn (``idle``)."""

    def __init__(self, key: FlowKey, sock: ProbeSocket, trace: FlowTrace, *, idle: bool) -> None:
        self.key = key
        self.sock = sock
        self.idle = idle
        self.trace = trace
        self.sent_s = 0.0  # when its last packet was, on the monotonic clock
        #: Where its packets go: what answers and errors name.
        self.target = (key.dst_ip.partition("%")[0], key.dst_port)


class Tracing:
    """Traces the flows of a `UdpProber`, and keeps what was found in `table`.

    Call `closed` with every closed interval: it says which flows suffer; `line_up` which there are.
    """

    log = Logger()

    def __init__(
        self,
        prober: UdpProber,
        table: PathTable | None = None,
        unix_time_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = PathTable() if table is None else table
        self.sent = 0
        self.finished = 0
        self.failures = 0
        self.mismatched = 0  # ICMP errors about traces that no packet explains
        self.ssid = prober.reserve_ssid()
        self._prober = prober
        self._monotonic_s = monotonic_s
        self._unix_time_s = unix_time_s
        self._picks = Picks(self.table, unix_time_s)
        self._urgent: OrderedDict[FlowKey, float] = OrderedDict()  # and the timeout of their tests
        self._going: dict[FlowKey, _Going] = {}
        self._by_target: dict[tuple[ProbeSocket, tuple[str, int]], list[_Going]] = {}
        self._numbers: OrderedDict[int, _Going] = OrderedDict()  # whose packets they are, or were
        self._drawn = drawn_numbers()
        self._proof = Proof(MOST_HOPS)
        self._told_s = -math.inf
        self._untold = 0  # mismatches since
        self._news: Counter[str] = Counter()  # of paths in this interval, by what it is
        self._hops: dict[str, int] = {}  # how many there were to a destination, last seen
        self._budget = 0.0
        self.keep_within(None, None)
        # On the monotonic clock: when there last was a turn, when one for flows that lose nothing, and
        # until when there is none after a failure.
        self._turned_s = self._idle_s = self._resumes_s = -math.inf
        self._hurried = False  # whether what lost something waits for a turn
        prober.tracing = self

    def keep_within(self, pps: float | None, bps: float | None) -> None:
        """Send no more in any second than so many packets, and bits of IP packets; None: no such cap."""
        room = math.inf if pps is None else pps
        self._most = min(BURST, room / 4)  # that may have been saved up
        self._rate_pps = min(RATE_PPS, room - self._most)
        self._bps = math.inf if bps is None else max(1.0, bps)
        self._budget = min(self._budget, self._most)

    def _cost(self, key: FlowKey, family: int) -> float:
        """Return how many packets one that traces a flow counts for: more if it has many bits."""
        bits = 8 * (HEADERS[family] + max(key.size, stamp.BASE_SIZE))
        return max(1.0, bits * (self._rate_pps + self._most) / self._bps)

    def tick(self) -> None:
        """Trace what was picked, once a period: to be called more often, when awake anyway."""
        now = self._monotonic_s()
        period_s = PERIOD_S if self._hurried else IDLE_PERIOD_S
        since_s = now - self._turned_s
        if since_s < period_s or now < self._resumes_s:
            return
        self._turned_s = now
        try:
            self._turn(now, since_s)
        except Exception:
            self._failed(now)
        idle = all(going.idle for going in self._going.values())
        self._hurried = bool(self._urgent) or not idle

    def _failed(self, now: float) -> None:
        """Have probing go on after an exception, and tracing as well, anew and after a while."""
        self.failures += 1
        self.log.failure("tracing failed: what was being traced is forgotten")
        socks = {going.sock for going in self._going.values()}
        self._going.clear()
        self._by_target.clear()
        self._hear_no_errors(socks)
        self._resumes_s = now + AFTER_FAILURE_S

    def health(self) -> dict[str, Any]:
        """Return figures for the collector's own health."""
        return {
            "trace_packets_total": self.sent,
            "traces_total": self.finished,
            "trace_failures_total": self.failures,
            "trace_answers_mismatched_total": self.mismatched,
            "paths_known": len(self.table),
            "path_changes_total": self.table.changes,
        }

    # What to trace

    def closed(self, closed: ClosedInterval) -> None:
        """Pick flows of an interval that has just closed."""
        for what, count in self._news.items():
            if count > MOST_TOLD:
                more = count - MOST_TOLD
                self.log.info("{count} more {what}, in the same interval", count=more, what=what)
        self._news.clear()
        if not closed.all_flows or not len(closed.flows):
            return
        try:
            # Tests of other timeouts close for themselves: what waits of them goes on waiting.
            timeout_s = closed.timeout_s
            for key in [key for key, of_s in self._urgent.items() if of_s == timeout_s]:
                del self._urgent[key]
            self._urgent.update((key, timeout_s) for key in self._picks.suffering(closed))
            self._hurried |= bool(self._urgent)
        except Exception:
            self._failed(self._monotonic_s())

    def line_up(self, closed: ClosedInterval) -> Job[None]:
        """Line up flows of an interval of which nothing is the matter."""
        try:
            yield from self._picks.line_up(closed)
        except Exception:
            self._failed(self._monotonic_s())

    def _by_port(self) -> Mapping[tuple[int, int], list[ProbeSocket]]:
        """Return the prober's sockets by IP version and number."""
        sockets: defaultdict[tuple[int, int], list[ProbeSocket]] = defaultdict(list)
        for source, sock in self._prober.sockets.items():
            sockets[source.version, sock.number].append(sock)
        return sockets

    def _socket(
        self, key: FlowKey, by_port: Mapping[tuple[int, int], list[ProbeSocket]]
    ) -> ProbeSocket | None:
        """Return the socket that a flow's probes leave from; None if it is gone, or not clear."""
        found = by_port.get((6 if ":" in key.dst_ip else 4, key.source_port), [])
        if len(found) > 1:  # as of two interfaces: it is that of the test that probes this target
            target = key.dst_ip, key.dst_port, key.dscp, key.size
            tests = [track for track in self._prober.tracks if target in track.targets]
            found = [sock for sock in found if any(sock in track.sockets for track in tests)]
        return found[0] if len(found) == 1 else None

    # Sending

    def _turn(self, now: float, since_s: float) -> None:
        """Send what the rate allows ``since_s`` seconds after the last turn, and finish what is done."""
        self._budget = min(self._budget + self._rate_pps * since_s, self._most)
        self._begin(now)
        for going in list(self._going.values()):
            cost = self._cost(going.key, going.sock.family)
            # What costs more than can be saved up is paid for afterwards.
            least = min(cost, self._most)
            while self._budget >= least > 0 and (packet := going.trace.next(now)) is not None:
                self._budget -= cost
                going.sent_s = now
                if not self._send(going, packet):
                    break
            if going.trace.finished:
                self._finish(going)
        while self._numbers and now - next(iter(self._numbers.values())).sent_s > LATE_S:
            self._numbers.popitem(last=False)

    def _begin(self, now: float) -> None:
        """Begin to trace what is urgent, and of the rest what is due."""
        by_port: Mapping[tuple[int, int], list[ProbeSocket]] = {}
        idle = 0
        if now - self._idle_s >= IDLE_PERIOD_S - PERIOD_S / 2:
            self._idle_s, idle = now, IDLE_A_TURN
        while len(self._going) < AT_ONCE and self._budget > 0:
            expected = 0  # a destination that may be dead never says how far it is
            urgent = bool(self._urgent)
            if urgent:
                key, _ = self._urgent.popitem(last=False)
            elif not idle or len(self._going) >= AT_ONCE // 8:
                return
            elif (due := self._picks.next_due()) is not None:
                idle -= 1
                key = due
                expected = self._hops.get(key.dst_ip, 0)
            else:
                return
            if key in self._going:
                self._going[key].idle &= not urgent
                continue
            by_port = by_port or self._by_port()
            sock = self._socket(key, by_port)
            if sock is None:
                continue
            proven = self._proof.needed(key.dst_ip, self.table.get(key), now)
            trace = FlowTrace(self._draw, MOST_HOPS, ATTEMPTS, expected, proven)
            going = self._going[key] = _Going(key, sock, trace, idle=not urgent)
            self._by_target.setdefault((sock, going.target), []).append(going)

    def _draw(self) -> int:
        """Return a number that no packet of late has, and that nobody can guess."""
        return next(number for number in self._drawn if number not in self._numbers)

    def _send(self, going: _Going, packet: Packet) -> bool:
        key, sock = going.key, going.sock
        v4 = sock.family == socket.AF_INET
        tos = (mmsg.SOL_IP, mmsg.IP_TOS) if v4 else (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS)
        ttl = (mmsg.SOL_IP, mmsg.IP_TTL) if v4 else (mmsg.SOL_IPV6, mmsg.IPV6_HOPLIMIT)
        control = [
            _NO_STAMP,
            (*tos, struct.pack("=i", key.dscp << 2)),
            (*ttl, struct.pack("=i", packet.ttl)),
        ]
        time_stamp = stamp.ntp_from_unix_ns(time.time_ns())
        payload = stamp.SENDER_STRUCT.pack(
            packet.number, time_stamp, stamp.error_estimate(None), self.ssid
        )
        payload += bytes(max(0, key.size - len(payload)))
        going.trace.sent(packet.number, payload)
        self._numbers[packet.number] = going
        if len(self._numbers) > NUMBERS:
            self._numbers.popitem(last=False)
        try:
            sock.hear_errors()
            errors.send(sock.sock, payload, control, (key.dst_ip, key.dst_port))
        except OSError:
            # No route, no buffer, or the socket is gone: the probes themselves tell about it.
            return False
        self._prober.note_traced(sock, key.dst_ip, key.dst_port)
        self.sent += 1
        return True

    def _finish(self, going: _Going) -> None:
        del self._going[going.key]
        mine = self._by_target[going.sock, going.target]
        mine.remove(going)
        if not mine:
            del self._by_target[going.sock, going.target]
        self._hear_no_errors({going.sock})
        self.finished += 1
        path = going.trace.path()
        if path.complete:
            if len(self._hops) >= DISTANCES:
                self._hops.clear()
            self._hops[going.key.dst_ip] = len(path.hops)
        if not path.sent:
            return
        before = self.table.get(going.key)
        refused = ("", "") if before is None else (before.refused_by, before.refusal)
        changed = self.table.enter(going.key, path, self._unix_time_s())
        if path.refusal and refused != (path.refused_by, path.refusal):
            self._say_refusal("refuses", going.key, path.refused_by, path.refusal)
        elif path.complete and any(refused):
            self._say_refusal("no longer refuses", going.key, *refused)
        if changed:
            known = self.table.get(going.key)
            assert known is not None
            self._picks.note_left(known.left)
            self._tell(
                "paths are others",
                "the path of {source_port} to {dst_ip} is another: {hops}",
                source_port=going.key.source_port,
                dst_ip=going.key.dst_ip,
                hops=" ".join(hop or "*" for hop in known.hops),
            )

    def _say_refusal(self, what: str, key: FlowKey, router: str, refusal: str) -> None:
        self._tell(
            "flows are refused, or no longer refused",
            "{router} {what} {source_port} to {dst_ip}, {class_name}, {size} octets: {refusal}",
            what=what,
            router=router,
            class_name=class_name(key.dscp),
            size=key.size,
            source_port=key.source_port,
            dst_ip=key.dst_ip,
            refusal=refusal,
        )

    def _tell(self, news: str, text: str, **found: object) -> None:
        """Log what was found, unless much of its kind was in this interval: it may be of every flow."""
        self._news[news] += 1
        if self._news[news] <= MOST_TOLD:
            self.log.info(text, **found)

    def _hear_no_errors(self, socks: set[ProbeSocket]) -> None:
        """Close the ears of sockets of which no flow is being traced: whoever forges ICMP finds none."""
        for sock in socks.difference(going.sock for going in self._going.values()):
            self._prober.hear_no_errors(sock)

    # What the prober hands over

    def error(self, sock: ProbeSocket, error: errors.IcmpError) -> None:
        """Take an ICMP error about a packet of one of the prober's sockets."""
        target = error.destination.partition("%")[0], error.port
        said = judged(error, target[0])
        if said is None:
            return
        if said.number is None:
            if not self._bare(sock, target, said.quote, error):
                self._mismatch(error)
            return
        if len(said.quote) == HEAD and said.quote[14:16] != self.ssid.to_bytes(2, "big"):
            return  # of a probe: its target refuses it
        going = self._numbers.get(said.number)
        if (
            going is None
            or going.sock is not sock
            or going.target != target
            or not going.trace.quoted(said.number, said.quote)
        ):
            self._mismatch(error)
            return
        if not said.final:
            self._proof.proved(error.offender)
        now = self._monotonic_s()
        going.trace.heard(said.number, error.offender, now, final=said.final, refusal=said.refusal)

    def _bare(
        self, sock: ProbeSocket, target: tuple[str, int], quote: bytes, error: errors.IcmpError
    ) -> bool:
        """Take an error that quotes too little to prove anything; return whether it can be true.

        IPv6 routers always quote more (RFC 4443 section 3.3), and so does who ever did.
        """
        if error.version == 6 or self._proof.has_proved(error.offender):
            return False
        now = self._monotonic_s()
        mine = self._by_target.get((sock, target), [])
        if len(mine) > 1:  # classes or sizes of one flow: whose it is cannot be told
            return True
        if mine and mine[0].trace.heard_bare(error.offender, now, quote):
            return True
        self._proof.forged(mine[0].key.dst_ip if mine else error.destination, now)
        return False

    def _mismatch(self, error: errors.IcmpError) -> None:
        """Count an error that no packet explains, and tell of such once in a while."""
        self.mismatched += 1
        self._untold += 1
        now = self._monotonic_s()
        if now - self._told_s < TELL_S:
            return
        self.log.warn(
            "{count} ICMP errors fit no packet of a trace, the last in the name of {offender} about"
            " {destination}: unless probes go in circles, somebody forges them; none is believed",
            count=self._untold, offender=error.offender, destination=error.destination,
        )  # fmt: skip
        self._told_s, self._untold = now, 0

    def reply(
        self, sock: ProbeSocket, sender: tuple[str, int], number: int, time_stamp: int, ttl: int
    ) -> bool:
        """Take a reflector's reply to a packet that came all the way, with this TTL left there.

        ``time_stamp`` is what it repeats (64 bits). Returns whether it is one, of a flow that is
        being traced or was lately.
        """
        going = self._numbers.get(number)
        if (
            going is None
            or going.sock is not sock
            or going.target != (sender[0].partition("%")[0], sender[1])
            or not going.trace.echoed(number, time_stamp)
        ):
            return False
        now = self._monotonic_s()
        going.trace.heard(number, going.target[0], now, final=True, ttl_there=ttl)
        return True
