"""Sends probes over UDP and has what comes back entered into the ledgers, in batches.

Probes in STAMP's own format are written here, others by `llama.collector.probing.formats`; what comes
back is read by `llama.collector.probing.intake`.

Nothing here is done when a packet comes: every tick the probes that are due are sent, in bursts of
at most `BURST`, and every few ticks the sockets are drained into one arena, which is looked
at by column. Kernel stamps make late reading harmless. A prober does not know where its results go.

The reactor does not watch the sockets: once per drain the kernel is asked which of them have
something, in their receive or error queues. Nor does an epoll object, which would be woken up for
every single packet and stamp.
"""

from __future__ import annotations

import errno
import itertools
import random
import select
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from twisted.logger import Logger

from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Ints
from llama.collector.intervals.summary import suspect_bit
from llama.collector.probing.inbox import ARENA, Inbox
from llama.collector.probing.intake import Intake
from llama.collector.probing.outbox import Outbox
from llama.collector.probing.plan import Group, Source, Variant
from llama.collector.probing.prober import Prober
from llama.collector.probing.schedule import BURST, Burst
from llama.collector.probing.sockets import SMALLEST_ROOM, ProbeSocket, endpoint, interface_number
from llama.collector.probing.track import Track
from llama.net import errors, mmsg
from llama.net.drops import Causes
from llama.net.port import LONGEST

SHORTEST_DRAIN_S, LONGEST_DRAIN_S = 0.025, 0.1
DAMAGED = "packets of {protocol} arrived damaged: their checksums are wrong"


class UdpProber(Prober[ProbeSocket]):
    """Probes the groups it is given; see `arrange`, `tick` and `drain`.

    ``wall_ns`` is the wall clock (Unix ns). ``kernel_stamps`` false takes T1 in user space. ``ids``
    says whether the kernel lets a datagram carry an identifier for its transmit stamp; without it
    stamps are matched by the packet they come back with.
    """

    log = Logger()
    untold = "nor could probes be sent to {count} more"

    def __init__(
        self,
        *,
        ids: bool,
        kernel_stamps: bool = True,
        wall_ns: Any = time.time_ns,
        chance: random.Random | None = None,
    ) -> None:
        super().__init__(chance)
        self._wall_ns = wall_ns
        self._ids = ids and kernel_stamps
        self._kernel_stamps = kernel_stamps
        self._padding = np.zeros(LONGEST, np.uint8)
        self._inboxes: dict[int, Inbox] = {}
        self._causes: dict[int, Causes | None] = {}  # by address family, as inboxes are
        self._by_ordinal: dict[int, ProbeSocket] = {}
        self._ordinals = itertools.count()  # there is room for 48 bits of them
        self._by_fd: dict[int, ProbeSocket] = {}
        self._intake = self._new_intake(self._by_ordinal)
        self._poll = select.poll()
        self._turn = 0  # which of the sockets that have something is read first
        self._ssid = self.chance.randrange(1, 65536)
        self._outboxes: dict[Track, Outbox] = {}  # of those that are probed
        self._ssids: dict[tuple[object, ...], dict[Variant, int]] = {}
        self._taken: set[int] = set()  # SSIDs: all of these, and what was reserved beside them
        #: Who else is told of ICMP errors at sockets that hear them, besides `tracing`.
        self.told_errors: Callable[[ProbeSocket, errors.IcmpError], None] | None = None

    # What to probe

    def open(self, source: Source) -> ProbeSocket:
        """Return the socket of a source, opened if need be; raises `OSError` if it cannot be."""
        sock = self.sockets.get(source)
        if sock is None:
            sock = self._new_socket(source)
            self.sockets[source] = sock
            sock.ordinal = next(self._ordinals)
            self._by_ordinal[sock.ordinal] = sock
            self._by_fd[sock.fd] = sock
            self._poll.register(sock.fd, select.POLLIN)
            family = sock.sock.family
            if family not in self._inboxes:
                self._inboxes[family] = self._new_inbox(family)
                self._causes[family] = self._new_causes(sock)
        return sock

    def _new_socket(self, source: Source) -> ProbeSocket:
        return ProbeSocket(source, kernel_stamps=self._kernel_stamps, ids=self._ids)

    def _new_causes(self, sock: ProbeSocket) -> Causes | None:
        """Return what tells why packets are dropped at sockets like this one; None: for want of room."""
        return Causes(sock.family)

    def _new_intake(self, sockets: Mapping[int, ProbeSocket]) -> Intake:
        return Intake(sockets, self._wall_ns)

    def _new_inbox(self, family: int) -> Inbox:
        return Inbox(family, ids=self._ids)

    def _new_track(self, *given: Any) -> Track:
        return Track(*given)

    def _new_outbox(self, track: Track) -> Outbox:
        return Outbox(track, ids=self._ids, padding=self._padding)

    def track(
        self, group: Group, ledger: Ledger, live: npt.NDArray[np.bool_], now_s: float
    ) -> Track:
        """Return a track for a group, with sockets and SSIDs, to be handed to `arrange`.

        A group of the same identity gets the SSIDs it had.
        """
        sockets = [self.open(source) for source in group.sources]
        ssids = self._ssids.setdefault(group.identity, {})
        for variant in group.variants:
            if variant not in ssids:
                ssids[variant] = self.reserve_ssid()
        return self._new_track(group, ledger, live, sockets, ssids, self.chance, now_s)

    def reserve_ssid(self) -> int:
        """Return an SSID that no probe bears."""
        if len(self._taken) == 65535:
            raise ValueError("tests, classes and sizes come to more than 65,535 sessions")
        while self._ssid in self._taken:
            self._ssid = self._ssid % 65535 + 1
        ssid, self._ssid = self._ssid, self._ssid % 65535 + 1
        self._taken.add(ssid)
        return ssid

    def arrange(self, tracks: Sequence[Track]) -> None:
        """Probe these tracks, and only these, from now on."""
        self._line_up(tracks)
        self._let_go_unused()

    def _line_up(self, tracks: Sequence[Track]) -> None:
        self.tracks = list(tracks)
        kept = {track.group.identity for track in self.tracks}
        self._ssids = {group: ssids for group, ssids in self._ssids.items() if group in kept}
        self._taken = {ssid for ssids in self._ssids.values() for ssid in ssids.values()}
        if self.tracing is not None:
            self._taken.add(self.tracing.ssid)
        self._intake.arrange(self.tracks)
        before, self._outboxes = self._outboxes, {}
        for track in self.tracks:
            if track in before:
                self._outboxes[track] = before[track]
                before[track].forget()
            elif track.live.any():
                self._outboxes[track] = self._new_outbox(track)

    def follow_interfaces(self) -> None:
        """Go on through interfaces that were made anew: neither sockets nor scopes do by themselves."""
        bound = {s.source.interface for s in self.sockets.values() if s.source.interface}
        numbers = {name: interface_number(name) for name in bound}
        left_behind = [
            sock
            for sock in self.sockets.values()
            if numbers.get(sock.source.interface or "", 0) not in (0, sock.device)
        ]
        if left_behind:
            self.drain()  # what waits at them goes with the sockets of before
        moved = set()
        for sock in left_behind:
            try:
                sock.follow_interface()
            except OSError as reason:  # it is tried again; what is sent meanwhile is told of
                if not sock.cannot_follow:
                    self.log.error(
                        "{name} was made anew, and cannot be bound to yet: {error}",
                        name=sock.source.interface,
                        error=reason.strerror,
                    )
                sock.cannot_follow = True
                continue
            moved.add(sock)
            self.log.info("{name} was made anew: bound to it again", name=sock.source.interface)
        concerned = [
            track
            for track in self.tracks
            if track.follow_interfaces() or not moved.isdisjoint(track.sockets)
        ]
        if not concerned:
            return
        self.drain()  # stamps in the queues name cells by their places until now
        for track in concerned:
            track.flow_rows = None
            self._outboxes.pop(track, None)
        self._line_up(self.tracks)

    def let_go(self, source: Source) -> None:
        """Close the socket of a source."""
        sock = self.sockets.pop(source)
        del self._by_ordinal[sock.ordinal], self._by_fd[sock.fd]
        self._poll.unregister(sock.fd)
        sock.sock.close()

    def close(self) -> None:
        """Close all sockets."""
        self._let_all_go()

    @property
    def received(self) -> int:
        """How many probes were answered."""
        return self._intake.received

    @property
    def strangers(self) -> int:
        """How many packets came that answer no probe of ours."""
        return self._intake.strangers

    @property
    def tracing(self) -> Any:
        """Who traces flows out of these sockets, if anybody does: takes what is not a probe's."""
        return self._intake.tracing

    @tracing.setter
    def tracing(self, tracing: Any) -> None:
        self._intake.tracing = tracing

    def drain_every_s(self) -> float:
        """Return how often to `drain`: seldom, but so that no receive buffer fills by a quarter.

        What is read together costs least, up to an arena full; one that waits costs nothing.
        """
        with_packet = 4 if self._kernel_stamps and not self._ids else 2
        octets_per_s: defaultdict[ProbeSocket, float] = defaultdict(float)
        for track in self.tracks:
            room = 2 * SMALLEST_ROOM + with_packet * track.mean_size
            for sock in map(self.sockets.__getitem__, track.group.sources):
                # While it is a source port's turn, it sends all of its track's probes.
                octets_per_s[sock] += track.schedule.probes_per_s * room
        busiest = max((octets / sock.buffer for sock, octets in octets_per_s.items()), default=0.0)
        if not busiest:
            return LONGEST_DRAIN_S
        filled_s = min(LONGEST_DRAIN_S, max(SHORTEST_DRAIN_S, 0.9 * ARENA / self.probes_per_s))
        return min(filled_s, 0.25 / busiest)

    # Probes out

    def tick(self, now_s: float, elapsed_s: float) -> None:
        """Send what is due at ``now_s``, on the monotonic clock; after a pause, not all at once.

        ``elapsed_s`` is the time since the last tick, or less where the replies to all that fell due
        meanwhile would not find room in a receive buffer (see `Schedule.bursts`).
        """
        for track in self.tracks:
            schedule = track.schedule
            skipped = schedule.skipped
            for burst in schedule.bursts(now_s, BURST, elapsed_s):
                self._send(track, burst)
            if schedule.skipped != skipped:
                self._note_skipped(track, skipped)

    def _send(self, track: Track, burst: Burst) -> None:
        """Send one probe to each flow of a burst."""
        box = self._outboxes[track]
        rows = box.ready(burst)
        track.ledger.sent(box.probes, rows, box.stamp(rows, self._wall_ns()))
        # Hand them over to the kernel, and take back what it will not send.
        sock = self._by_ordinal[track.sockets[burst.port].ordinal]
        fd, count = sock.fd, rows.stop - rows.start
        done, refused, times, heard = 0, -1, 0, False
        while done < count:
            try:
                done += box.out.send(fd, rows.start + done, count - done)
            except OSError as reason:
                times = times + 1 if refused == done else 1
                refused = done
                if reason.errno in errors.PASSING and (times == 1 or sock.hears_errors):
                    # ICMP errors about other packets may have left it here, one after the other. Who
                    # hears none meets none: what the kernel says then is of this destination.
                    if times < errors.PATIENCE:
                        errors.clear(sock.sock)
                    else:
                        self.hear_no_errors(sock)
                        heard = True
                    continue
                cells = box.probes.cells[rows]
                done = self._failed(track, burst.flows, cells, done, reason)
        if heard:
            sock.hear_errors()
        self.sent += count

    def _failed(self, track: Track, flows: Ints, cells: Ints, at: int, reason: OSError) -> int:
        """Take back what the kernel would not send; return where to go on."""
        name = errno.errorcode.get(reason.errno or 0, str(reason.errno))
        # A full buffer refuses the rest as well; other errors are of this one destination.
        end = len(flows) if reason.errno in (errno.EAGAIN, errno.ENOBUFS) else at + 1
        failed = flows[at:end]
        track.ledger.unsend(failed, cells[at:end])
        pairs = failed // track.ports
        track.ledger.mark_current(
            suspect_bit("send_failed"), f"probes could not be sent: {name}", pairs=pairs
        )
        pair = track.pairs[int(pairs[0])]
        if self._complaints.worth_telling(pair.dst_ip, name):
            self.log.warn(
                "cannot send to {target} ({ip}): {error}; such probes are not counted as sent",
                target=pair.target, ip=pair.dst_ip, error=reason.strerror,
            )  # fmt: skip
        self.failed_sends[name] += end - at
        self.sent -= end - at
        return end

    def note_traced(self, sock: ProbeSocket, address: str, port: int) -> None:
        """Note that a trace leaves for a place."""
        for track in self.tracks:
            track.note_traced(sock, address, port)

    # Replies in

    def drain(self) -> bool:
        """Read what waits at the sockets; return whether that was all.

        At most an arena full of replies of each address family, and one of transmit stamps of each
        socket: so it takes a few milliseconds, and even a flood to one of our ports does not keep us
        from sending. The sockets take turns at being first, so none of them keeps another waiting.
        """
        for track in self.tracks:
            track.ledger.settle()  # to tell whose a reply is, its probe's cell may be looked at
        empty = True
        filled = dict.fromkeys(self._inboxes, 0)
        events = self._poll.poll(0)
        if len(events) > 1:
            events.sort()
            self._turn = (self._turn + 1) % len(events)
            events = events[self._turn :] + events[: self._turn]
        for fd, event in events:
            sock = self._by_fd[fd]
            inbox = self._inboxes[sock.family]
            if event & select.POLLERR:
                stamps = self._read_stamps(inbox, fd)
                empty &= stamps < ARENA
                if stamps and not event & select.POLLIN:
                    continue
            first = filled[inbox.family]
            count = self._receive(inbox, fd, first) if first < ARENA else 0
            inbox.socket_of[first : first + count] = sock.ordinal
            filled[inbox.family] = first + count
            empty &= first + count < ARENA
        for family, count in filled.items():
            if count:
                self._intake.take(self._inboxes[family], count)
        return empty

    def _receive(self, inbox: Inbox, fd: int, first: int) -> int:
        for _ in range(1 + errors.PATIENCE):
            try:
                return inbox.back.receive(fd, first, mmsg.MSG_DONTWAIT | mmsg.MSG_TRUNC)
            except OSError:
                # What an ICMP error left at the socket: reading it has cleared it.
                pass
        return 0  # and others: what waits behind them is read next time

    def _read_stamps(self, inbox: Inbox, fd: int) -> int:
        """Enter the transmit stamps in an error queue; return how many messages were there."""
        stamps = inbox.stamps
        count = stamps.receive(fd, 0, mmsg.MSG_DONTWAIT | mmsg.MSG_ERRQUEUE)
        odd = inbox.stamp_layout.odd_rows(stamps, 0, count)
        if odd.size and (self.tracing is not None or self.told_errors is not None):
            self._hand_over_errors(inbox, fd, odd)
        if self._ids:
            self._intake.enter_stamps(inbox, count, odd)
        else:
            self._intake.match_stamps(inbox, count, odd, self._by_fd[fd])
        return count

    def _hand_over_errors(self, inbox: Inbox, fd: int, rows: npt.NDArray[np.intp]) -> None:
        """Give ICMP errors to whoever wants them; they lie among the transmit stamps."""
        stamps = inbox.stamps
        for row in rows.tolist():
            data = stamps.control[row].data
            control = [
                (level, kind, bytes(part))
                for level, kind, part in mmsg.walk_control(data, int(stamps.controllen[row]))
            ]
            payload = stamps.octets[row, : int(stamps.length[row])].tobytes()
            error = errors.from_control(control, endpoint(stamps.names[row].tobytes()), payload)
            if error is None:
                continue
            self._hand_over(self._by_fd[fd], error)

    def _hand_over(self, sock: ProbeSocket, error: errors.IcmpError) -> None:
        """Give an ICMP error about what left a socket to whoever wants it."""
        if self.tracing is not None:
            self.tracing.error(sock, error)
        if self.told_errors is not None:
            self.told_errors(sock, error)

    def hear_no_errors(self, sock: ProbeSocket) -> None:
        """Be told of no ICMP errors at a socket any more, once the transmit stamps there are read."""
        if self._by_fd.get(sock.fd) is not sock:  # it is closed, its number may be another's
            sock.hears_errors = False
        if not sock.hears_errors:
            return
        for track in self.tracks:
            track.ledger.settle()
        self._read_stamps(self._inboxes[sock.family], sock.fd)
        sock.hear_no_errors()

    def check_drops(self) -> int:
        """Ask the kernel for packets dropped at full buffers; mark what they may have touched.

        Returns how many there were since this was last called. What was dropped since it had arrived
        damaged is noted and counted, and marks nothing: that was not our doing.
        """
        total = 0
        dropped: dict[int, dict[ProbeSocket, int]] = {}
        for sock in self.sockets.values():
            new = sock.new_drops()
            if new:
                dropped.setdefault(sock.family, {})[sock] = new
        for family, drops in dropped.items():
            causes = self._causes[family]
            if causes is not None and (damaged := causes.damaged(drops.values())):
                self.damaged += damaged
                for track in self.tracks:
                    if track.sockets[0].family == family:
                        note = DAMAGED.format(protocol=causes.protocol)
                        track.ledger.note_more(damaged, note)
                continue
            total += sum(drops.values())
            for track in self.tracks:
                if not drops.keys().isdisjoint(track.sockets):
                    track.ledger.mark(
                        suspect_bit("receive_drops"),
                        "the kernel dropped packets at a full receive buffer of ours",
                    )
        self.receive_drops += total
        return total
