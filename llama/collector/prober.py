"""Sends probes over UDP and hands what comes back to the ledgers, in batches.

STAMP's own format is written and read here, the others are in `llama.collector.formats`.

Nothing here is done when a packet comes: every tick the probes that are due are sent, in bursts of
at most `BURST`, and every few ticks the sockets are drained into one arena, which is looked at by column.
Kernel stamps make late reading harmless. A prober does not know where its results go.

Sockets are watched by an epoll object of the prober's own, not by the reactor: it is asked once per
drain which of them have something, in their receive or error queues.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from twisted.logger import Logger

from llama.collector import formats
from llama.collector.flow_index import NO_FLOW, FlowIndex, flow_keys
from llama.collector.lane import ARENA, BURST, LONGEST, Lane
from llama.collector.ledger import UNKNOWN_DSCP, Ints, Ledger, Replies
from llama.collector.plan import Group, Source
from llama.collector.schedule import Burst
from llama.collector.sockets import ProbeSocket, endpoint, sockaddr
from llama.collector.summary import suspect_bit
from llama.collector.track import Track
from llama.net import errors, mmsg
from llama.net.mmsg import Messages
from llama.wire import stamp, tlv

SHORTEST = 38  # octets of a reply: some TWAMP-Light responders end before the TTL
SHORTEST_DRAIN_S, LONGEST_DRAIN_S = 0.025, 0.1
_STOCK_PACKETS = 256 / 212_992  # small packets that fit into an octet of receive buffer


class UdpProber:
    """Probes the groups it is given; see `arrange`, `tick` and `drain`.

    ``wall_ns`` and ``monotonic`` are the clocks (Unix ns, seconds). ``kernel_stamps`` false takes T1
    in user space. ``ids`` says whether the kernel lets a datagram carry an identifier for its
    transmit stamp; without it stamps are matched by the packet they come back with.
    """

    log = Logger()

    def __init__(
        self,
        *,
        ids: bool,
        kernel_stamps: bool = True,
        wall_ns: Any = time.time_ns,
        chance: random.Random | None = None,
    ) -> None:
        self._wall_ns = wall_ns
        self._ids = ids
        self._kernel_stamps = kernel_stamps
        self.chance = random.Random() if chance is None else chance
        self._padding = np.zeros(LONGEST, np.uint8)
        self._lanes: dict[int, Lane] = {}
        self.sockets: dict[Source, ProbeSocket] = {}
        self._ordinals: dict[Source, int] = {}
        self._by_fd: dict[int, ProbeSocket] = {}
        self._epoll = select.epoll()
        self._ssid = self.chance.randrange(1, 65536)
        self.tracks: list[Track] = []
        self._index = FlowIndex(np.zeros(0, np.uint64))
        self._first_flows = np.zeros(1, np.int64)
        self._first_cells = np.zeros(1, np.int64)
        self._formatted: list[Track] = []  # the tracks whose probes are not plain STAMP
        self._ssids: dict[tuple[object, ...], dict[tuple[int, int], int]] = {}
        self.sent = 0
        self.received = 0
        self.strangers = 0
        self.receive_drops = 0
        self.failed_sends: Counter[str] = Counter()
        #: Who traces flows out of these sockets, if anybody does: takes what is not a probe's.
        self.tracing: Any = None

    # What to probe

    def open(self, source: Source) -> ProbeSocket:
        """Return the socket of a source, opened if need be; raises `OSError` if it cannot be."""
        sock = self.sockets.get(source)
        if sock is None:
            sock = self._new_socket(source)
            self.sockets[source] = sock
            self._ordinals[source] = max(self._ordinals.values(), default=-1) + 1
            self._by_fd[sock.fd] = sock
            self._epoll.register(sock.fd, select.EPOLLIN)
            family = sock.sock.family
            if family not in self._lanes:
                self._lanes[family] = self._new_lane(family)
        return sock

    def _new_socket(self, source: Source) -> ProbeSocket:
        return ProbeSocket(source, kernel_stamps=self._kernel_stamps, ids=self._ids)

    def _new_lane(self, family: int) -> Lane:
        return Lane(family, ids=self._ids, padding=self._padding)

    def track(
        self, group: Group, ledger: Ledger, live: npt.NDArray[np.bool_], now_s: float
    ) -> Track:
        """Return a track for a group, with sockets and SSIDs, to be handed to `arrange`.

        A group of the same identity gets the SSIDs it had.
        """
        sockets = [self.open(source) for source in group.sources]
        ordinals = [self._ordinals[source] for source in group.sources]
        ssids = self._ssids.setdefault(group.identity, {})
        variants = dict.fromkeys((pair.dscp, pair.size) for pair in group.pairs)
        for variant in variants:
            if variant not in ssids:
                ssids[variant] = self.reserve_ssid()
        if group.probe == "twamp-light" and len(variants) == 1:
            # Its replies have no SSID; of several variants `_find_bare` tells by their times.
            ssids = dict.fromkeys(variants, 0)
        return Track(group, ledger, live, sockets, ordinals, ssids, self.chance, now_s)

    def reserve_ssid(self) -> int:
        """Return an SSID that no probe bears."""
        taken = {ssid for ssids in self._ssids.values() for ssid in ssids.values()}
        if self.tracing is not None:
            taken.add(self.tracing.ssid)
        for _ in range(65535):
            ssid, self._ssid = self._ssid, self._ssid % 65535 + 1
            if ssid not in taken:
                return ssid
        raise ValueError("tests, classes and sizes come to more than 65,535 sessions")

    def arrange(self, tracks: Sequence[Track]) -> None:
        """Probe these tracks, and only these, from now on."""
        self.tracks = list(tracks)
        self._formatted = [track for track in self.tracks if track.format is not None]
        kept = {track.group.identity for track in self.tracks}
        self._ssids = {group: ssids for group, ssids in self._ssids.items() if group in kept}
        flows = cells = 0
        for track in self.tracks:
            track.first_flow, track.first_cell = flows, cells
            flows += track.ledger.flows
            cells += track.ledger.flows * track.ledger.depth
        self._first_flows = np.array([track.first_flow for track in self.tracks], np.int64)
        self._first_cells = np.array([track.first_cell for track in self.tracks], np.int64)
        keys = [track.flow_keys() for track in self.tracks if len(track.pairs)]
        self._index = FlowIndex(np.concatenate(keys) if keys else np.zeros(0, np.uint64))
        used = {source for track in self.tracks for source in track.group.sources}
        for source in [source for source in self.sockets if source not in used]:
            self._close(source)

    def _close(self, source: Source) -> None:
        sock = self.sockets.pop(source)
        del self._ordinals[source], self._by_fd[sock.fd]
        self._epoll.unregister(sock.fd)
        sock.sock.close()

    def close(self) -> None:
        """Close all sockets."""
        for source in list(self.sockets):
            self._close(source)
        self._epoll.close()

    @property
    def probes_per_s(self) -> float:
        """How many probes are sent a second, when all goes well."""
        return sum(track.schedule.probes_per_s for track in self.tracks)

    def drain_every_s(self) -> float:
        """Return how often to `drain`: seldom, but so that no receive buffer fills by a quarter.

        What is read together costs least, up to an arena full; one that waits costs nothing.
        """
        busiest = 0.0
        for source, sock in self.sockets.items():
            rate = sum(
                track.schedule.probes_per_s / track.ports
                for track in self.tracks
                if source in track.group.sources
            )
            # Each probe puts a transmit stamp and a reply into the buffer.
            busiest = max(busiest, 2 * rate / (sock.buffer * _STOCK_PACKETS))
        if not busiest:
            return LONGEST_DRAIN_S
        filled_s = min(LONGEST_DRAIN_S, max(SHORTEST_DRAIN_S, 0.9 * ARENA / self.probes_per_s))
        return min(filled_s, 0.25 / busiest)

    # Probes out

    def tick(self, now_s: float) -> None:
        """Send what is due at ``now_s``, on the monotonic clock."""
        for track in self.tracks:
            schedule = track.schedule
            skipped = schedule.skipped
            for burst in schedule.bursts(now_s, BURST):
                self._send(track, burst)
            if schedule.skipped != skipped:
                track.ledger.mark(
                    suspect_bit("late_ticks"), "probes were skipped: too late to send"
                )

    def _send(self, track: Track, burst: Burst) -> None:
        """Send one probe to each flow of a burst."""
        flows = burst.flows
        count = len(flows)
        sock = track.sockets[burst.port]
        lane = self._lanes[sock.family]
        out = lane.out
        out.names[:count] = track.names_in_order[burst.turns]
        several = len(track.ssids) > 1
        if several:
            pairs = track.schedule.order[burst.turns]
            variant = track.variant[pairs]
            out.octets[:count] = track.templates[variant]
            out.iov_length[:count] = track.head[variant]
            out.tail_length[:count] = track.tail[variant]
            out.iovlen[:count] = 2
            lane.tos[:count] = track.tos[pairs]
            lane.filled_for = None
        elif lane.filled_for is not track:
            # With one class and size all probes are alike but for what is written below.
            out.octets[:] = track.templates[0]
            out.iov_length[:] = track.head[0]
            out.tail_length[:] = track.tail[0]
            out.iovlen[:] = 2 if track.tail[0] else 1
            lane.tos[:] = track.tos[0]
            lane.filled_for = track
        t1_ns = self._wall_ns()
        # Peers that return no SSID return the time: let no two variants of a burst have the same.
        apart = t1_ns + variant if several else None
        cells, sequence = track.ledger.send(flows, t1_ns if apart is None else apart)
        if lane.id is not None:
            lane.id[:count] = cells + track.first_cell
        if track.format is None:
            lane.sequence[:count] = sequence
            lane.timestamp[:count] = (
                stamp.ntp_from_unix_ns(t1_ns) if apart is None else stamp.ntp_column(apart)
            )
        else:
            ssids = track.ssids[variant if several else np.zeros(count, np.intp)]
            times = np.full(count, t1_ns) if apart is None else apart
            track.format.write(out.octets[:count], ssids, sequence, times)
        self._hand_over(track, sock, out, flows, cells)

    def _hand_over(
        self, track: Track, sock: ProbeSocket, out: Messages, flows: Ints, cells: Ints
    ) -> None:
        """Hand a burst to the kernel, and take back what it will not send."""
        count = len(flows)
        done, retried = 0, -1
        while done < count:
            try:
                done += out.send(sock.fd, done, count - done)
            except OSError as reason:
                if reason.errno in errors.PASSING and retried != done:
                    retried = done  # an ICMP error about another packet may have left it here
                    continue
                done = self._failed(track, flows, cells, done, reason)
        self.sent += count

    def _failed(self, track: Track, flows: Ints, cells: Ints, at: int, reason: OSError) -> int:
        """Take back what the kernel would not send; return where to go on."""
        name = errno.errorcode.get(reason.errno or 0, str(reason.errno))
        # A full buffer refuses the rest as well; other errors are of this one destination.
        end = len(flows) if reason.errno in (errno.EAGAIN, errno.ENOBUFS) else at + 1
        failed = flows[at:end]
        track.ledger.unsend(failed, cells[at:end])
        pairs = failed // track.ports
        track.ledger.mark(
            suspect_bit("send_failed"), f"probes could not be sent: {name}", pairs=pairs
        )
        if not self.failed_sends[name]:
            self.log.warn(
                "cannot send to {target} ({ip}): {error}; such probes are not counted as sent",
                target=track.pairs[int(pairs[0])].target,
                ip=track.pairs[int(pairs[0])].dst_ip,
                error=reason.strerror,
            )
        self.failed_sends[name] += end - at
        self.sent -= end - at
        return end

    # Replies in

    def drain(self) -> bool:
        """Read what waits at the sockets, at most an arena full; return whether that was all.

        So it takes a few milliseconds at most, and even a flood to one of our ports does not keep
        us from sending.
        """
        empty = True
        filled = dict.fromkeys(self._lanes, 0)
        for fd, event in self._epoll.poll(0, max(1, len(self.sockets))):
            sock = self._by_fd[fd]
            lane = self._lanes[sock.family]
            if event & select.EPOLLERR:
                stamps = self._read_stamps(lane, fd)
                empty &= stamps < ARENA
                if stamps and not event & select.EPOLLIN:
                    continue
            first = filled[lane.family]
            count = self._receive(lane, fd, first) if first < ARENA else 0
            lane.socket_of[first : first + count] = self._ordinals[sock.source]
            filled[lane.family] = first + count
            empty &= first + count < ARENA
        for family, count in filled.items():
            if count:
                self._take(self._lanes[family], count)
        return empty

    def _receive(self, lane: Lane, fd: int, first: int) -> int:
        try:
            return lane.back.receive(fd, first, mmsg.MSG_DONTWAIT | mmsg.MSG_TRUNC)
        except OSError:
            # What another's ICMP error left at the socket: reading it has cleared it.
            pass
        try:
            return lane.back.receive(fd, first, mmsg.MSG_DONTWAIT | mmsg.MSG_TRUNC)
        except OSError:  # and another: what waits behind it is read next time
            return 0

    def _read_stamps(self, lane: Lane, fd: int) -> int:
        """Enter the transmit stamps in an error queue; return how many messages were there."""
        stamps = lane.stamps
        count = stamps.receive(fd, 0, mmsg.MSG_DONTWAIT | mmsg.MSG_ERRQUEUE)
        odd = lane.stamp_layout.odd_rows(stamps, 0, count)
        if self.tracing is not None and odd.size:
            self._hand_over_errors(lane, fd, odd)
        if self._ids:
            self._enter_stamps(lane, count, odd)
        else:
            self._match_stamps(lane, count, fd)
        return count

    def _hand_over_errors(self, lane: Lane, fd: int, rows: npt.NDArray[np.intp]) -> None:
        """Give ICMP errors to whoever traces; they lie among the transmit stamps."""
        stamps = lane.stamps
        for row in rows.tolist():
            data = stamps.control[row].data
            control = [
                (level, kind, bytes(part))
                for level, kind, part in mmsg.walk_control(data, int(stamps.controllen[row]))
            ]
            payload = stamps.octets[row, : int(stamps.length[row])].tobytes()
            error = errors.from_control(control, endpoint(stamps.names[row].tobytes()), payload)
            if error is not None:
                self.tracing.error(self._by_fd[fd], error)

    def _enter_stamps(self, lane: Lane, count: int, odd: npt.NDArray[np.intp]) -> None:
        """Enter stamps that carry the number of their cell, all but the ``odd`` rows."""
        words = lane.stamps.words[:count]
        if odd.size:
            words = np.delete(words, odd, axis=0)
        cells = (words[:, lane.id_word] >> np.uint64(32)).astype(np.int64)
        when = (words[:, 2] * np.uint64(1_000_000_000) + words[:, 3]).astype(np.int64)
        if len(self.tracks) == 1:
            self.tracks[0].ledger.transmitted(cells, when)
            return
        owner = np.searchsorted(self._first_cells, cells, side="right") - 1
        for n in np.unique(owner).tolist():
            mine = owner == n
            track = self.tracks[n]
            track.ledger.transmitted(cells[mine] - track.first_cell, when[mine])

    def _match_stamps(self, lane: Lane, count: int, fd: int) -> None:
        """Enter stamps by the packets they came with: the probe is at the end of each."""
        stamps = lane.stamps
        sock = self._by_fd[fd]
        ip, destination = (20, (16, 20)) if lane.family == socket.AF_INET else (40, (24, 40))
        for row in range(count):
            seconds = ns = 0
            control = stamps.control[row].data
            for level, kind, data in mmsg.walk_control(control, int(stamps.controllen[row])):
                if (level, kind) == (mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING):
                    seconds, ns = (
                        int.from_bytes(data[:8], "little"),
                        int.from_bytes(data[8:16], "little"),
                    )
            packet = stamps.octets[row, : int(stamps.length[row])].tobytes()
            # The packet comes with its link-layer header, of unknown length, so the UDP header is
            # found by what it must say: our port, and a length that ends with the packet.
            for link in (14, 0, 18):
                udp = link + ip
                if (
                    len(packet) >= udp + 8
                    and int.from_bytes(packet[udp : udp + 2], "big") == sock.number
                    and int.from_bytes(packet[udp + 4 : udp + 6], "big") == len(packet) - udp
                ):
                    break
            else:
                continue
            name = np.zeros((1, mmsg.NAME_ROOM), np.uint8)
            address = socket.inet_ntop(
                lane.family, packet[link + destination[0] : link + destination[1]]
            )
            port = int.from_bytes(packet[udp + 2 : udp + 4], "big")
            whole = sockaddr(4 if lane.family == socket.AF_INET else 6, address, port)
            name[0, : len(whole)] = np.frombuffer(whole, np.uint8)
            when = np.array([seconds * 1_000_000_000 + ns], np.int64)
            for said in self._probes_in(packet[udp + 8 :]) if seconds else ():
                format_, (ssid, sequence) = said
                ends = np.array([self._ordinals[sock.source] << 16 | ssid], np.uint64)
                flow = self._index.find(flow_keys(name, ends))
                if flow[0] == NO_FLOW:
                    continue
                owner = int(np.searchsorted(self._first_flows, flow[0], side="right")) - 1
                track = self.tracks[owner]
                if track.format is format_:
                    cells = track.ledger.cells(
                        flow - track.first_flow, np.array([sequence], np.uint32)
                    )
                    track.ledger.transmitted(cells, when)

    def _probes_in(self, payload: bytes) -> Iterator[tuple[formats.Format | None, tuple[int, int]]]:
        """Yield as what a datagram of ours can be read: format, and SSID and sequence number."""
        if len(payload) >= stamp.BASE_SIZE:
            sequence, _, _, ssid = stamp.SENDER_STRUCT.unpack_from(payload)
            yield None, (ssid, sequence)
        for track in self._formatted:
            assert track.format is not None
            said = track.format.probe_of(payload)
            if said is not None:
                yield track.format, said

    def _take(self, lane: Lane, count: int) -> None:
        """Enter the first ``count`` datagrams of a lane's arena into the ledgers."""
        back = lane.back
        length = back.length[:count]
        words = back.words[:count]
        t4_ns = (words[:, 2] * np.uint64(1_000_000_000) + words[:, 3]).astype(np.int64)
        tos, ttl = words[:, lane.tos_word], words[:, lane.ttl_word]
        stamped = np.ones(count, np.bool_)
        odd = lane.layout.odd_rows(back, 0, count)
        if odd.size:
            t4_ns[odd] = self._wall_ns()
            stamped[odd] = False
            tos[odd], ttl[odd] = UNKNOWN_DSCP << 2, 0
        replies = lane.replies[:count]
        ssid = replies["ssid"]
        ends = lane.socket_of[:count] << np.uint64(16) | ssid
        flow = self._index.find(flow_keys(back.names[:count], ends))
        numbered = np.ones(count, np.bool_)
        taken = None
        if self._formatted:
            dscp = (tos >> np.uint64(2)).astype(np.uint8) & np.uint8(0x3F)
            arrivals = formats.Arrived(t4_ns, stamped, dscp, ttl.astype(np.uint8))
            taken = self._take_formatted(lane, count, arrivals)
            flow[taken] = NO_FLOW
        lost = flow == NO_FLOW
        if lost.any():
            self._find_bare(lane, count, flow, numbered, taken)
            lost = flow == NO_FLOW
        lost |= length < SHORTEST
        if lost.any():
            strange = lost if taken is None else lost & ~taken
            self.strangers += int(np.count_nonzero(strange))
            if self.tracing is not None:
                traced = np.flatnonzero(strange & (ssid == self.tracing.ssid))
                self.strangers -= len(traced)
                self._hand_over_replies(lane, traced)
        tlvs = tlv.read(back.octets[:count], length)
        estimate = replies["error_estimate"].astype(np.uint16)
        stamps = np.empty((4, count), np.uint64)
        stamps[0] = replies["sender_timestamp"]
        stamps[1] = replies["receive_timestamp"]
        stamps[2] = replies["timestamp"]
        stamps[3] = tlvs.follow_stamp
        times = stamp.unix_ns_column(stamps)
        ptp = np.flatnonzero(estimate & stamp.ERROR_PTP_FORMAT)
        if ptp.size:
            times[1:, ptp] = _ptp_column(stamps[1:, ptp])
        times[3][tlvs.follow_stamp == 0] = 0
        arrived = Replies(
            flow=flow,
            sequence=replies["sender_sequence"].astype(np.uint32),
            echoed_ns=times[0],
            number=replies["sequence"].astype(np.uint32),
            t2_ns=times[1],
            t3_ns=times[2],
            t4_ns=t4_ns,
            kernel_t4=stamped,
            dscp_there=tlvs.dscp,
            dscp_asked=tlvs.dscp,
            dscp_here=(tos >> np.uint64(2)).astype(np.uint8) & np.uint8(0x3F),
            ttl_there=np.where(length > 40, replies["sender_ttl"], np.uint8(0)),
            ttl_here=ttl.astype(np.uint8),
            numbered=numbered,
            follow_number=tlvs.follow_sequence,
            follow_ns=times[3],
            clock_error_ns=stamp.error_column(estimate),
        )
        if len(self.tracks) == 1 and not lost.any():
            self._enter(self.tracks[0], arrived, tlvs)
            return
        owner = np.searchsorted(self._first_flows, flow, side="right") - 1
        owner[lost] = -1
        for n in np.unique(owner[owner >= 0]).tolist():
            mine = owner == n
            track = self.tracks[n]
            rows: Any = [column[mine] for column in arrived]
            own = Replies(*rows)._replace(flow=flow[mine] - track.first_flow)
            self._enter(track, own, tlv.Answer(*(column[mine] for column in tlvs)))

    def _take_formatted(
        self, lane: Lane, count: int, arrived: formats.Arrived
    ) -> npt.NDArray[np.bool_]:
        """Enter replies in other formats than plain STAMP's; return which datagrams are such: (N,)."""
        taken = np.zeros(count, np.bool_)
        octets, length = lane.back.octets[:count], lane.back.length[:count]
        for track in self._formatted:
            assert track.format is not None
            rows, ssid = track.format.candidates(octets, length)
            ends = lane.socket_of[rows] << np.uint64(16) | ssid
            if not rows.size:
                continue
            flow = self._index.find(flow_keys(lane.back.names[rows], ends)) - track.first_flow
            mine = (flow >= 0) & (flow < track.ledger.flows) & ~taken[rows]
            rows, flow = rows[mine], flow[mine]
            if not rows.size:
                continue
            genuine, replies, tlvs = track.format.read(
                octets[rows], length[rows], flow, formats.rows_of(arrived, rows), track.ledger
            )
            taken[rows[genuine]] = True
            if genuine.any():
                self._enter(track, replies, tlvs)
        return taken

    def _hand_over_replies(self, lane: Lane, rows: npt.NDArray[np.intp]) -> None:
        """Give replies to packets of traces to whoever traces."""
        numbered = {self._ordinals[source]: sock for source, sock in self.sockets.items()}
        for row in rows.tolist():
            sock = numbered[int(lane.socket_of[row])]
            address, _ = endpoint(lane.back.names[row].tobytes())
            reply = lane.replies[row]
            ttl = int(reply["sender_ttl"]) if lane.back.length[row] > 40 else 1
            self.tracing.reply(sock, address, int(reply["sender_sequence"]), ttl)

    def _find_bare(
        self,
        lane: Lane,
        count: int,
        flow: Ints,
        numbered: npt.NDArray[np.bool_],
        taken: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Find the flows of replies without an SSID, from peers that know RFC 8762 alone.

        Each SSID of ours is tried; the time stamp that the reply echoes decides. Their numbers
        count all classes of a source port together, so they say nothing unless there is but one.
        """
        unknown = (flow == NO_FLOW) & (lane.replies["ssid"][:count] == 0)
        bare = np.flatnonzero(unknown if taken is None else unknown & ~taken)
        if not bare.size:
            return
        names = lane.back.names[bare]
        echoed = stamp.unix_ns_column(lane.replies["sender_timestamp"][bare].astype(np.uint64))
        sequence = lane.replies["sender_sequence"][bare].astype(np.uint32)
        for track in self.tracks:
            for ssid in track.ssids.tolist() if track.format is None else ():
                ends = lane.socket_of[bare] << np.uint64(16) | np.uint64(ssid)
                candidate = self._index.find(flow_keys(names, ends))
                inside = candidate - track.first_flow
                mine = (inside >= 0) & (inside < track.ledger.flows) & (candidate != NO_FLOW)
                if not mine.any():
                    continue
                cells = track.ledger.cells(np.where(mine, inside, 0), sequence)
                mine &= track.ledger.t1[cells] == echoed
                flow[bare[mine]] = candidate[mine]
                numbered[bare[mine]] = len(track.ssids) == 1 and len(self.tracks) == 1

    def _enter(self, track: Track, replies: Replies, tlvs: tlv.Answer) -> None:
        """Enter replies that belong to one track, and what their reflectors say of themselves."""
        pairs = replies.flow // track.ports
        asked = np.where(tlvs.refused, tlvs.dscp, track.asked[pairs])
        asked[tlvs.dscp == tlv.UNKNOWN] = UNKNOWN_DSCP
        strangers = track.ledger.strangers
        self.received += track.ledger.reply(replies._replace(dscp_asked=asked))
        self.strangers += track.ledger.strangers - strangers
        telling = tlvs.started_ns != 0
        if not telling.all():
            if not telling.any():
                return
            pairs = pairs[telling]
            tlvs = tlv.Answer(*(column[telling] for column in tlvs))
        known = track.started[pairs]
        drops, limited = track.reflector_drops[pairs], track.reflector_limited[pairs]
        as_before = (tlvs.started_ns == known) & (tlvs.receive_drops == drops)
        if (as_before & (tlvs.guard_drops == limited)).all():
            return
        first = known == 0
        for bit, note, now, before in (
            ("reflector_restart", "a reflector was started anew", tlvs.started_ns, known),
            ("reflector_drops", "a reflector's receive buffer overflowed", tlvs.receive_drops,
             drops),
            ("reflector_limit", "a reflector's rate limit refused probes", tlvs.guard_drops,
             limited),
        ):  # fmt: skip
            changed = (now != before) & ~first
            if changed.any():
                track.ledger.mark(suspect_bit(bit), note, pairs=pairs[changed])
        track.started[pairs] = tlvs.started_ns
        track.reflector_drops[pairs] = tlvs.receive_drops
        track.reflector_limited[pairs] = tlvs.guard_drops

    def check_drops(self) -> int:
        """Ask the kernel for packets dropped at full buffers; mark what they may have touched.

        Returns how many there were since this was last called.
        """
        total = 0
        for source, sock in self.sockets.items():
            new = sock.new_drops()
            if not new:
                continue
            total += new
            for track in self.tracks:
                if source in track.group.sources:
                    track.ledger.mark(
                        suspect_bit("receive_drops"),
                        "the kernel dropped packets at a full receive buffer of ours",
                    )
        self.receive_drops += total
        return total


def _ptp_column(stamps: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return Unix nanoseconds of truncated PTPv2 time stamps: seconds and nanoseconds since 1970."""
    seconds, ns = stamps >> np.uint64(32), stamps & np.uint64(0xFFFFFFFF)
    return (seconds * np.uint64(1_000_000_000) + ns).astype(np.int64)
