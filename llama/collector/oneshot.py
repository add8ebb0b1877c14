"""A test with an end: one target, so many probes from each flow, every probe told of. For `llama send`.

The same prober and ledger as a collector's, in one interval as long as the test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen
from twisted.internet.defer import Deferred

from llama.collector.health import STARVED_SHARE, ClockWatch, Starvation, step_note
from llama.collector.host_watch import HostWatch
from llama.collector.intervals import closing
from llama.collector.intervals.cell import (
    FOLLOWED,
    LATE,
    NO_RTT,
    RECEIVED,
    RESIDENCE_UNKNOWN,
    STAMPED,
)
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import UNKNOWN_DSCP
from llama.collector.intervals.summary import Pair, suspect_bit
from llama.collector.probing.hping3.cycle import KNOWN_AFTER_S, Cycle
from llama.collector.probing.hping3.prober import Hping3Prober
from llama.collector.probing.plan import PROTOCOLS, Group, Source
from llama.collector.probing.probers import Probers
from llama.collector.probing.refusals import Refusal, Refusals
from llama.collector.probing.sockets import require_zone
from llama.collector.probing.tcp import TcpProber
from llama.collector.slices import at_once
from llama.config import class_name
from llama.config.probes import KINDS
from llama.net.clock import clock_error_ns
from llama.net.port import transmit_ids_supported
from llama.net.ticker import Ticker

MOST_PROBES = 5_000_000  # of one test: each is kept until the end
LONGEST_TICK_S = 0.002
#: Probes are told of all the same after so long, s, in which more came than is read: who floods us does
#: not keep a test from its end.
FLOODED_S = 2.0


@frozen(kw_only=True)
class Wanted:
    """What to test. Times are seconds, sizes octets of UDP payload."""

    address: str
    port: int
    flows: int = 1
    dscps: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = ()
    probe: str = "stamp"
    count: int = 10
    interval_s: float = 0.2
    timeout_s: float = 1.0
    source: str | None = None
    source_port: int = 0
    interface: str | None = None
    df: bool = False
    kernel_stamps: bool = True
    key: bytes | None = field(default=None, repr=False)  # of "stamp-auth"
    program: str = "hping3"  # of "hping3"


@frozen(kw_only=True)
class Outcome:
    """What became of one probe."""

    seq: int
    source_port: int
    ssid: int
    class_name: str
    size: int
    sent_ns: int  # Unix time
    lost: bool
    late: bool
    rtt_ns: int | None
    followed_up: bool  # the reflector's own transmit stamp is in the RTT
    kernel_sent: bool  # T1 is the kernel's transmit stamp
    dscp_at_reflector: int | None
    dscp_at_collector: int | None
    ttl_at_reflector: int | None
    ttl_at_collector: int | None


@frozen(kw_only=True, eq=False)
class Result:
    """The figures of a finished test: `llama.collector.intervals.summary.STATS` rows."""

    pairs: Sequence[Pair]
    pair_stats: Any
    flow_stats: Any  # (pairs * flows,)
    histogram: tuple[Any, Any]  # bins and counts over all pairs
    ports: Sequence[int]
    notes: tuple[str, ...]
    failed_sends: dict[str, int]
    seconds: float
    refusals: Sequence[Refusal] = ()  # what was said by ICMP of the probes


class OneShot:
    """Runs one test; ``told`` is called with every `Outcome`, in order of each flow.

    ``wall_ns`` gives Unix time. Raises `OSError` if a socket cannot be had.
    """

    def __init__(
        self,
        reactor: Any,
        wanted: Wanted,
        told: Callable[[Outcome], Any],
        *,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._reactor = reactor
        self._wall_ns = wall_ns
        self.wanted = wanted
        self._told = told
        self.prober = Probers(
            reactor,
            ids=transmit_ids_supported(),
            kernel_stamps=wanted.kernel_stamps,
            wall_ns=wall_ns,
        )
        group = _group(wanted)
        dscps = np.array([pair.dscp for pair in group.pairs], np.uint8)
        ledger = Ledger(
            dscps, wanted.flows, group.rate_pps, group.timeout_s, wanted.count * wanted.interval_s
        )
        try:
            require_zone(wanted.address, wanted.interface)
            self._track = self.prober.track(
                group, ledger, np.ones(len(dscps), np.bool_), time.monotonic()
            )
            self._refusals = self._hear_refusals()
        except OSError:
            self.prober.close()
            raise
        self._probes = wanted.count * group.flows
        self._track.schedule.limit = self._probes
        self.prober.arrange([self._track])
        # Large probes leave a few at a time: what comes back must find room.
        self._tick_s = min(LONGEST_TICK_S, self.prober.drain_every_s())
        self.ports = [sock.number for sock in self._track.sockets]
        self._next = ledger.next_sequence.astype(np.int64)  # the next probe of each flow to tell of
        self._noted = ledger.next_sequence.copy()  # likewise, to note when it was sent
        self._sent_s = np.zeros(len(ledger.t1))  # when each was, on the monotonic clock; by cell
        self._ticker = Ticker(reactor, self._tick)
        self._starvation = Starvation()
        self._host = HostWatch()
        self._watch = ClockWatch(wall_ns, time.monotonic_ns)
        self._done: Deferred[Result] = Deferred()
        self._began_s = self._ticked_s = 0.0
        self._unread_s: float | None = None  # since when more comes than is read
        self._stopping = False

    def _hear_refusals(self) -> Refusals | None:
        """Listen to what is said by ICMP of our probes; that of hping3 is heard by hping3 alone."""
        prober = self.prober.of(self._track.group)
        if isinstance(prober, Hping3Prober):
            return None
        refusals = Refusals(self._track)
        if isinstance(prober, TcpProber):
            prober.told_errors = refusals.of_attempt
            return refusals
        prober.told_errors = refusals.error
        for sock in prober.sockets.values():
            sock.hear_errors()
        return refusals

    def run(self) -> Deferred[Result]:
        """Begin; the Deferred fires with the `Result` when every probe is told of."""
        start = self._wall_ns()
        self._began_s = time.monotonic()
        self._track.ledger.roll(start, start, self._began_s)
        self._track.schedule.begin(self._began_s)
        self._ticker.start(self._tick_s)
        return self._done

    def finish(self) -> None:
        """Send nothing more; what is in flight is waited for, a timeout at the most."""
        self._stopping = True

    def _tick(self) -> None:
        try:
            self._step()
        except Exception:  # whatever it is, whoever waits for the result is told of it
            self._ticker.stop()
            self.prober.close()
            self._done.errback()

    def _step(self) -> None:
        now = time.monotonic()
        if not self._stopping:
            elapsed_s = max(now - self._ticked_s, self._tick_s)
            self.prober.tick(now, min(elapsed_s, self.prober.drain_every_s()))
        self._ticked_s = now
        self._note_sent()
        self._look_at_the_clock()
        if self.prober.drain():
            self._unread_s = None
        else:
            if self._unread_s is None:
                self._unread_s = now
            if now - self._unread_s < FLOODED_S:
                return
            self._track.ledger.mark(suspect_bit("late_ticks"), closing.UNREAD)
        self._note_sent()
        finished = self._tell(now)
        tried = self.prober.sent + sum(self.prober.failed_sends.values())
        if finished and (self._stopping or tried >= self._probes):
            self._end()

    def _note_sent(self) -> None:
        """Note when probes were sent by a clock that nobody sets: T1 is of the one that may be."""
        book = self._track.ledger
        book.settle()
        np.minimum(self._noted, book.next_sequence, out=self._noted)  # some were taken back
        now_s = time.monotonic()
        while (flows := np.flatnonzero(self._noted < book.next_sequence)).size:
            self._sent_s[book.cells(flows, self._noted[flows])] = now_s
            self._noted[flows] += np.uint32(1)

    def _look_at_the_clock(self) -> None:
        """Find out, before replies are read, whether the clock they are stamped by was stepped."""
        step = self._watch.step_ns()
        if step:
            self._track.ledger.clock_stepped()
            self._track.ledger.mark(suspect_bit("clock_step"), step_note(step))

    def _tell(self, now_s: float) -> bool:
        """Tell of every probe whose fate is known; return whether none is waited for."""
        book = self._track.ledger
        waiting = False
        for flow in np.flatnonzero(self._next < book.next_sequence).tolist():
            sent = int(book.next_sequence[flow])
            while (seq := int(self._next[flow])) < sent and self._is_settled(flow, seq, now_s):
                self._next[flow] += 1
                self._told(self._outcome(flow, seq, book.cell(flow, seq)))
            waiting = waiting or int(self._next[flow]) < sent
        return not waiting

    def _is_settled(self, flow: int, seq: int, now_s: float) -> bool:
        """Return whether the fate of a probe that was sent does not change any more."""
        book = self._track.ledger
        cell = book.cell(flow, seq)
        flags = int(book.flags[cell])
        waited_s = book.transmit[cell] / 1e9 if flags & STAMPED else 0.0  # in this host's own queue
        if now_s - self._sent_s[cell] - waited_s > book.timeout_s:
            return True
        if not flags & RECEIVED:
            return False
        if flags & FOLLOWED or seq == self.wanted.count:
            return True
        # Its Follow-Up comes with the next reply, if at all.
        if seq + 1 >= int(book.next_sequence[flow]):
            return False
        return bool(book.flags[book.cell(flow, seq + 1)] & RECEIVED)

    def _outcome(self, flow: int, seq: int, cell: int) -> Outcome:
        book, track = self._track.ledger, self._track
        pair = track.pairs[flow // track.ports]
        if book.flags[cell] & LATE:
            book.wait_here(np.array([cell]))
        flags = int(book.flags[cell])
        residence = int(book.residence[cell])
        rtt: int | None = None
        received = bool(flags & RECEIVED)
        if received and not flags & NO_RTT and residence != RESIDENCE_UNKNOWN:
            sent = int(book.transmit[cell]) if flags & STAMPED else 0
            rtt = int(book.elapsed[cell]) - sent - residence
            rtt = rtt if rtt >= 0 else None

        def known(column: Any, none: int) -> int | None:
            value = int(column[cell])
            return value if received and value != none else None

        return Outcome(
            seq=seq, source_port=self.ports[flow % track.ports],
            ssid=int(track.ssids_sent[track.variant[flow // track.ports]]),
            class_name=pair.class_name, size=pair.size, sent_ns=int(book.t1[cell]),
            lost=not received, late=bool(flags & LATE), rtt_ns=rtt,
            followed_up=bool(flags & FOLLOWED), kernel_sent=bool(flags & STAMPED),
            dscp_at_reflector=known(book.dscp_there, UNKNOWN_DSCP),
            dscp_at_collector=known(book.dscp_here, UNKNOWN_DSCP),
            ttl_at_reflector=known(book.ttl_there, 0), ttl_at_collector=known(book.ttl_here, 0),
        )  # fmt: skip

    def _end(self) -> None:
        self._ticker.stop()
        book = self._track.ledger
        self.prober.check_drops()
        self._host.check([self._track])
        seconds = time.monotonic() - self._began_s
        if self._starvation.waited_s() > STARVED_SHARE * seconds:
            book.mark(suspect_bit("cpu_starved"), "this program had to wait for a processor")
        book.roll(self._wall_ns(), 0, 0.0)
        interval = book.over[0]
        interval.end_ns = interval.start_ns + round(seconds * 1e9)  # it was not known before
        figures = at_once(closing.close(book, interval, clock_error_ns()))
        result = Result(
            pairs=self._track.pairs, pair_stats=figures.pair_stats, flow_stats=figures.flow_stats,
            histogram=(figures.histogram_bin, figures.histogram_count), ports=self.ports,
            notes=tuple(sorted(interval.notes)), failed_sends=dict(self.prober.failed_sends),
            seconds=seconds,
            refusals=self._refusals.found() if self._refusals else (),
        )  # fmt: skip
        self.prober.close()
        self.prober.ended().addCallback(lambda _: self._done.callback(result))


def _group(wanted: Wanted) -> Group:
    """Return the flows of a test: all its classes and sizes from each source port."""
    version = 6 if ":" in wanted.address else 4
    sources = tuple(
        Source(
            version=version,
            address=wanted.source,
            interface=wanted.interface,
            number=wanted.source_port + n if wanted.source_port else 0,
            owner=str(n),
            df=wanted.df,
            protocol=PROTOCOLS.get(wanted.probe, "udp"),
        )
        for n in range(wanted.flows)
    )
    pairs = tuple(
        Pair(
            target=wanted.address, src_ip=wanted.source or "", dst_ip=wanted.address,
            dst_port=0 if wanted.probe == "icmp" else wanted.port, dscp=dscp,
            class_name=class_name(dscp), probe=wanted.probe,
            size=size, port_group="", tags={},
        )
        for dscp in wanted.dscps
        for size in wanted.sizes or (KINDS[wanted.probe].natural_size,)
    )  # fmt: skip
    cycle, timeout_s = None, wanted.timeout_s
    if wanted.probe == "hping3":
        cycle, timeout_s = _cycle(wanted), KNOWN_AFTER_S
    return Group(
        test="send", probe=wanted.probe, version=version, sources=sources,
        rate_pps=1 / wanted.interval_s,
        timeout_s=timeout_s, pairs=pairs, key=wanted.key, cycle=cycle,
    )  # fmt: skip


def _cycle(wanted: Wanted) -> Cycle:
    """Return how hping3 is run: for one class after the other, all within the interval."""
    return Cycle(
        program=wanted.program, processes=1, timeout_s=wanted.timeout_s,
        spacing_s=min(0.010, wanted.interval_s / wanted.flows / len(wanted.dscps)),
    )  # fmt: skip
