"""Probes by TCP connection attempts: no reflector is needed, the other end's stack answers.

A SYN leaves from the flow's source port; an open port answers SYN+ACK, a closed one RST: either is a
reply. Root is not needed. An attempt is ended with RST as soon as it is answered, so that nothing
stays behind here (no TIME_WAIT) and little there. The kernel tells the RTT of a SYN+ACK
(``TCP_INFO``); of a RST it tells nothing, so that one is timed in user space, is labelled so, and
is left out when we were late to look.

A SYN that had to be sent again counts as lost; so an attempt is given up before the kernel would
do that, after `GIVE_UP_S`. Before then the kernel does it only if something of an earlier attempt
arrives, which says nothing of this one: then an answer counts, without a round trip. Lest that
happens, a source port rests after a connection for as long as the answer took: what the other end
sent by then has come. Attempts are bounded: one at a time for each source port and
destination, and in all as many as the test's ``in_flight``; what is due above that is not sent,
and counted among failed sends.

``connect`` says nothing of what became of the SYN here. One that the queue of a device refused shows in
``TCP_INFO`` and counts as not sent; one that still waits in such a queue, or in the device, shows in
``SO_MEMINFO``. One that this host's own firewall dropped shows nowhere, and is lost.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import define
from twisted.internet.abstract import FileDescriptor
from twisted.logger import Logger

from llama.collector.intervals.cell import NO_RTT
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Ints, Replies
from llama.collector.intervals.summary import Pair, suspect_bit
from llama.collector.probing.attempts import (
    attempt_socket,
    times_of,
    waits_here,
    was_refused_here,
)
from llama.collector.probing.plan import Group, Source
from llama.collector.probing.port_holder import PortHolder, places_now
from llama.collector.probing.schedule import BURST
from llama.collector.probing.sockets import (
    HeldPort,
    interface_number,
    require_zone,
    zone_of,
)
from llama.collector.probing.track import Track
from llama.net import errors, flow_label, mmsg

#: Attempts end after so long, s: a second after the first SYN the kernel sends another (RFC 6298).
GIVE_UP_S = 0.95
#: A SYN that is so old, s, and still here is kept up: devices tell within a millisecond that it is sent.
KEPT_UP_S = 0.005
#: A tick that comes so long after the one before, s, was late: 5 ms beyond the longest period.
LATE_S = 0.025

_EVENTS = 256  # taken at once
#: Flows in line for a turn that are looked at for one who can have it.
_LOOKED_AT = 16


@define(eq=False)
class _Attempt:
    """One connection attempt under way."""

    sock: socket.socket
    ledger: Ledger
    group: tuple[object, ...]  # its identity
    pair: Pair
    way: tuple[object, ...]  # source and destination: there is one attempt at a time
    flow: int
    sequence: int
    t1_ns: int
    begun_s: float
    rests_s: float = 0.0  # for how long something of it may come afterwards
    over: bool = False
    kept_up: bool = False  # the SYN waited in this host


class _Wakeup(FileDescriptor):
    """Tells the reactor of the prober's epoll object, so that a RST is timed when it comes."""

    log = Logger()

    def __init__(self, reactor: Any, fd: int, look: Callable[[], object]) -> None:
        super().__init__(reactor)
        self._fd, self._look = fd, look
        self.connected = True
        self.startReading()

    def fileno(self) -> int:
        """Return the epoll object's descriptor."""
        return self._fd

    def doRead(self) -> None:
        """See what happened."""
        try:
            self._look()
        except Exception:  # the reactor would not look again
            self.log.failure("answers to connection attempts could not be taken")


class TcpProber(PortHolder):
    """Probes groups of the kind ``tcp``.

    With a ``reactor``, answers are looked at as they come; without one, on every tick and drain.
    """

    log = Logger()
    untold = "nor could {count} more be connected to"

    def __init__(
        self,
        *,
        reactor: Any = None,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        super().__init__(chance)
        self._reactor = reactor
        self._wall_ns, self._monotonic_s = wall_ns, monotonic_s
        self._epoll = select.epoll()
        self._wakeup: _Wakeup | None = None
        self._attempts: dict[int, _Attempt] = {}  # by descriptor
        self._ways: set[tuple[object, ...]] = set()
        #: Of these, those that nothing is under way on: a heap, by when they may be used again.
        self._resting: list[tuple[float, int, tuple[object, ...]]] = []
        self._in_flight: Counter[tuple[object, ...]] = Counter()
        #: Flows that were refused a turn, by what they waited for: a way, or a group.
        self._lines: dict[tuple[object, ...], dict[tuple[Track, int], None]] = {}
        self._waiting: list[tuple[float, int, _Attempt]] = []  # a heap, by when to give up
        #: The sockets of the youngest, by when to look whether their SYNs have left.
        self._young: deque[tuple[float, socket.socket]] = deque()
        self._numbers = itertools.count()
        self._ticked_s: float | None = None
        #: Who is told of ICMP errors about SYNs: flow and number of the probe, and the error.
        self.told_errors: Callable[[int, int, errors.IcmpError], None] | None = None

    # What to probe

    def open(self, source: Source) -> HeldPort:
        """Return what holds a source's port; raises `OSError` if it is somebody else's."""
        if source not in self.sockets:
            sock = attempt_socket(source, source.number)
            self.sockets[source] = HeldPort(source, sock, sock.getsockname()[1])
            if self._wakeup is None and self._reactor is not None:
                self._wakeup = _Wakeup(self._reactor, self._epoll.fileno(), self._look)
        return self.sockets[source]

    def track(
        self, group: Group, ledger: Ledger, live: npt.NDArray[np.bool_], now_s: float
    ) -> Track:
        """Return a track for a group, to be handed to `arrange`."""
        ledger.stamps_there = False
        sockets = [self.open(source) for source in group.sources]
        ssids = dict.fromkeys(group.variants, 0)
        return Track(group, ledger, live, sockets, ssids, self.chance, now_s)

    def arrange(self, tracks: Sequence[Track]) -> None:
        """Probe these tracks, and only these, from now on."""
        self._carry_over({track.group.identity: track for track in tracks})
        self.tracks = list(tracks)
        self._lines.clear()
        self._let_go_unused()

    def _carry_over(self, tracks: dict[tuple[object, ...], Track]) -> None:
        """Give the attempts under way their places in the ledgers that there are now."""
        for attempt, track, place in places_now(self._attempts.values(), tracks):
            if track is None:
                self._end(attempt)
                continue
            attempt.ledger, attempt.pair = track.ledger, track.pairs[place]
            attempt.flow = place * track.ports + attempt.flow % track.ports

    def close(self) -> None:
        """End all attempts, let all ports go."""
        for attempt in list(self._attempts.values()):
            self._end(attempt)
        self._let_all_go()
        if self._wakeup is not None:
            self._wakeup.stopReading()
            self._wakeup = None
        self._epoll.close()

    def follow_interfaces(self) -> None:
        """Do nothing: every attempt is bound, and addressed, by the interface's name."""

    # Probes out

    def tick(self, now_s: float, elapsed_s: float) -> None:
        """Send what is due at ``now_s``, on the monotonic clock; after a pause, not all at once."""
        self._look()
        self._ticked_s = now_s
        for track in self.tracks:
            skipped = track.schedule.skipped
            for burst in track.schedule.bursts(now_s, BURST, elapsed_s):
                for flow in burst.flows.tolist():
                    self._attempt(track, flow)
                    self._look()
            self._note_skipped(track, skipped)

    def _attempt(self, track: Track, flow: int) -> None:
        """Begin one attempt, unless too many are under way; another's that was refused goes first."""
        way, group = _way(track, flow), track.group
        if way in self._ways:  # the one before has no answer yet
            self._refuse(track, flow, way, "EALREADY")
            return
        if self._in_flight[group.identity] >= group.in_flight:
            self._refuse(track, flow, group.identity, "EMFILE")
            return
        if self._lines:
            track, flow = self._first_in_line(track, flow)
            way, group = _way(track, flow), track.group
        number = flow // track.ports
        try:
            sock, address = self._prepared(track, flow)
        except OSError as reason:
            self._failed(track, number, reason.errno or 0)
            return
        t1_ns = self._wall_ns()
        cells, sequence = track.ledger.send(np.array([flow]), t1_ns)
        self.sent += 1
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            self._young.append((self._monotonic_s() + KEPT_UP_S, sock))
            if was_refused_here(sock):
                code = errno.ENOBUFS
        begun_s = self._monotonic_s()
        until_s = begun_s + min(group.timeout_s, GIVE_UP_S)
        attempt = _Attempt(
            sock, track.ledger, group.identity, track.pairs[number], way, flow, int(sequence[0]),
            t1_ns, begun_s,
        )  # fmt: skip
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self._attempts[sock.fileno()] = attempt
        self._ways.add(way)
        self._in_flight[group.identity] += 1
        if code == errno.EINPROGRESS:
            heapq.heappush(self._waiting, (until_s, next(self._numbers), attempt))
        elif code in (0, errno.ECONNREFUSED):
            self._answered(attempt, refused=code != 0, late=False)
            self._end(attempt)
        else:
            self._end(attempt)
            track.ledger.unsend(np.array([flow]), cells)
            self.sent -= 1
            self._failed(track, number, code)

    def _refuse(self, track: Track, flow: int, what: tuple[object, ...], name: str) -> None:
        """Do not send what is due; the flow stands in line for the next turn at ``what`` is taken."""
        self._lines.setdefault(what, {})[track, flow] = None
        self.failed_sends[name] += 1
        # No more than a note: what is sent is as good as ever, and lost SYNs make others wait.
        track.ledger.mark(0, f"connection attempts wait for one another: {name}")

    def _first_in_line(self, track: Track, flow: int) -> tuple[Track, int]:
        """Return who has the turn of a flow: who waits longest for its group, or for its way, or it.

        Who is given a turn leaves the line; whose turn it was stands in it instead.
        """
        for what in (track.group.identity, _way(track, flow)):
            line = self._lines.get(what, {})
            for first in itertools.islice(line, _LOOKED_AT):
                other, its_flow = first
                full = self._in_flight[other.group.identity] >= other.group.in_flight
                if full or _way(other, its_flow) in self._ways:
                    continue
                del line[first]
                if first != (track, flow):
                    line[track, flow] = None  # at the end, unless it is in line already
                elif not line:
                    del self._lines[what]
                return first
        return track, flow

    def _prepared(self, track: Track, flow: int) -> tuple[socket.socket, tuple[Any, ...]]:
        """Return the socket of a flow's next attempt, and where it goes; raises `OSError`."""
        number, port = divmod(flow, track.ports)
        pair, source = track.pairs[number], track.group.sources[port]
        address = self._address(source, pair.dst_ip, pair.dst_port)
        sock = attempt_socket(source, track.sockets[port].number)
        if source.version == 4:
            sock.setsockopt(mmsg.SOL_IP, mmsg.IP_TOS, pair.dscp << 2)
        else:
            sock.setsockopt(mmsg.SOL_IPV6, mmsg.IPV6_TCLASS, pair.dscp << 2)
            address = flow_label.labelled(sock, address, track.sockets[port].number)
        if self.told_errors is not None:
            errors.enable(sock)
        return sock, address

    @staticmethod
    def _address(source: Source, address: str, port: int) -> tuple[Any, ...]:
        if source.version == 4:
            return (address, port)
        require_zone(address, source.interface)
        zone = zone_of(address, source.interface)
        scope = 0 if zone is None else interface_number(zone)
        return (address.partition("%")[0], port, 0, scope)

    def _failed(self, track: Track, pair: int, code: int) -> None:
        """Say that the kernel did not send a probe; it is not counted as sent."""
        name = errno.errorcode.get(code, str(code))
        if self._complaints.worth_telling(track.pairs[pair].dst_ip, name):
            self.log.warn(
                "cannot connect to {target} ({ip}): {error}; such probes are not counted as sent",
                target=track.pairs[pair].target, ip=track.pairs[pair].dst_ip, error=name,
            )  # fmt: skip
        self.failed_sends[name] += 1
        track.ledger.mark_current(
            suspect_bit("send_failed"),
            f"probes could not be sent: {name}",
            pairs=np.array([pair]),
        )

    # Replies in

    def drain(self) -> bool:
        """Look at all that happened, give up what took too long; return True: nothing waits."""
        self._look()
        now_s = self._monotonic_s()
        while self._young and self._young[0][0] <= now_s:
            self._look_whether_kept_up(self._young.popleft()[1])
        while self._waiting and self._waiting[0][0] <= now_s:
            self._give_up(heapq.heappop(self._waiting)[2])
        return True

    def _look_whether_kept_up(self, sock: socket.socket) -> None:
        """Note it if an attempt is under way whose SYN has not left this host yet."""
        attempt = self._attempts.get(sock.fileno())
        if attempt is not None and waits_here(sock):
            attempt.kept_up = True
            attempt.ledger.mark(0, "SYNs waited in this host's own queue, and have no round trip")

    def _give_up(self, attempt: _Attempt) -> None:
        """End an attempt that was not answered; whether the SYN left in time, if at all, is told."""
        if not attempt.over and (attempt.kept_up or waits_here(attempt.sock)):
            attempt.ledger.mark(
                suspect_bit("send_failed"),
                "SYNs waited in this host's own queue, and had no answer in time",
                pairs=np.array([attempt.flow // attempt.ledger.ports]),
            )
        self._end(attempt)

    def _look(self) -> None:
        """Take the answers that have come, and let ways go that have rested."""
        while self._resting and self._resting[0][0] <= self._monotonic_s():
            self._ways.discard(heapq.heappop(self._resting)[2])
        while events := self._epoll.poll(0, _EVENTS):
            now_s = self._monotonic_s()
            late = self._ticked_s is None or now_s - self._ticked_s > LATE_S
            self._take(events, late)
            if len(events) < _EVENTS:
                return

    def _take(self, events: Sequence[tuple[int, int]], late: bool) -> None:
        for fd, _ in events:
            attempt = self._attempts.get(fd)
            if attempt is None:
                continue
            try:
                code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if self.told_errors is not None:
                    for error in errors.read(attempt.sock):
                        self.told_errors(attempt.flow, attempt.sequence, error)
                if code in (0, errno.ECONNREFUSED):
                    self._answered(attempt, refused=code != 0, late=late)
                # Anything else is an ICMP error or a SYN that had to be repeated: no answer.
            finally:  # else the reactor would be told of it again, and again
                self._end(attempt)

    def _answered(self, attempt: _Attempt, *, refused: bool, late: bool) -> None:
        """Enter a SYN+ACK, or a RST, that was ``late`` to be looked at."""
        arrived_ns = self._wall_ns()
        rtt_us, again = times_of(attempt.sock)
        if again:
            attempt.rests_s = self._monotonic_s() - attempt.begun_s
            if attempt.rests_s >= GIVE_UP_S:
                return  # to which of the two SYNs it was an answer, nobody knows
        ledger = attempt.ledger
        flow: Ints = np.array([attempt.flow])
        sequence = np.array([attempt.sequence], np.uint32)
        timed = not refused and rtt_us > 0 and not again
        if timed:
            attempt.rests_s = rtt_us / 1e6
        if attempt.kept_up or again or (not timed and late):
            ledger.flags[ledger.cells(flow, sequence)] |= NO_RTT
        t1 = np.array([attempt.t1_ns])
        t4 = t1 + rtt_us * 1000 if timed else np.array([arrived_ns])
        by_kernel = np.array([timed or again > 0])
        self.received += ledger.reply(Replies.bare(flow, sequence, t1, t4, by_kernel))

    def _end(self, attempt: _Attempt) -> None:
        """Close an attempt's socket: with RST if it is connected, without a word if it is not."""
        if attempt.over:
            return
        attempt.over = True
        fd = attempt.sock.fileno()
        del self._attempts[fd]
        if attempt.rests_s:
            until_s = self._monotonic_s() + attempt.rests_s
            heapq.heappush(self._resting, (until_s, next(self._numbers), attempt.way))
        else:
            self._ways.discard(attempt.way)
        self._in_flight[attempt.group] -= 1
        # The epoll object forgets a closed socket only when nobody has it any more: a program that is
        # about to be run has a copy. Until then it would tell of a number that is another attempt's.
        self._epoll.unregister(fd)
        attempt.sock.close()


def _way(track: Track, flow: int) -> tuple[object, ...]:
    """Return from where to where a flow's attempts go, whatever their class."""
    number, port = divmod(flow, track.ports)
    pair = track.pairs[number]
    return track.group.sources[port], pair.dst_ip, pair.dst_port
