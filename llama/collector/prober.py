"""Sends STAMP probes over UDP and hands what comes back to the ledgers, in batches.

Nothing here is done when a packet comes: every tick the probes that are due are sent, in bursts of
at most `BURST`, and every few ticks all sockets are drained into one arena and looked at by column.
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
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from twisted.logger import Logger

from llama.collector.flow_index import NO_FLOW, FlowIndex, flow_keys
from llama.collector.ledger import UNKNOWN_DSCP, Ints, Ledger, Replies
from llama.collector.plan import Group, Source
from llama.collector.schedule import Schedule
from llama.collector.summary import Pair, suspect_bit
from llama.net import errors, mmsg
from llama.net.mmsg import Layout, Messages
from llama.net.port import stamp_layout
from llama.wire import stamp, tlv

BURST = 32  # probes handed to the kernel at once
ARENA = 512  # replies looked at together
HEAD = 128  # octets of a packet that are written or read by column
LONGEST = 9216  # octets of UDP payload
SHORTEST = 38  # of a reply: some TWAMP-Light responders end before the TTL
SOCKET_BUFFER = 4 << 20  # asked for; the kernel gives at most net.core.rmem_max
_STOCK_PACKETS = 256 / 212_992  # small packets that fit into an octet of receive buffer


class ProbeSocket:
    """One source port: a socket, and what is counted about it."""

    def __init__(self, source: Source, *, kernel_stamps: bool, ids: bool) -> None:
        self.source = source
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if source.interface is not None:
                device = source.interface.encode()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
            if source.df:
                level, option = (
                    (mmsg.SOL_IP, mmsg.IP_MTU_DISCOVER)
                    if family == socket.AF_INET
                    else (mmsg.SOL_IPV6, mmsg.IPV6_MTU_DISCOVER)
                )
                sock.setsockopt(level, option, mmsg.IP_PMTUDISC_PROBE)
            mmsg.enable_receive_options(sock)
            flags = mmsg.SOF_RX_SOFTWARE | mmsg.SOF_SOFTWARE
            if kernel_stamps:
                flags |= mmsg.SOF_TX_SOFTWARE
                if ids:
                    flags |= mmsg.SOF_OPT_ID | mmsg.SOF_OPT_TSONLY | mmsg.SOF_OPT_CMSG
            sock.setsockopt(mmsg.SOL_SOCKET, mmsg.SO_TIMESTAMPING, flags)
            anywhere = "0.0.0.0" if source.version == 4 else "::"  # noqa: S104
            sock.bind((source.address or anywhere, source.number))
        except OSError:
            sock.close()
            raise
        self.sock = sock
        self.fd = sock.fileno()
        self.number: int = sock.getsockname()[1]
        self.buffer: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.drops = 0

    def new_drops(self) -> int:
        """Return how many packets the kernel has dropped here since this was last asked."""
        drops = mmsg.receive_drops(self.sock)
        new = (drops - self.drops) & 0xFFFFFFFF
        self.drops = drops
        return new


class Track:
    """A group being probed: its ledger, its schedule and its columns, one row a pair or a flow.

    ``ordinals`` numbers the group's sockets within the prober. ``live`` says which pairs are
    probed; others are kept until their last interval has closed.
    """

    def __init__(
        self,
        group: Group,
        ledger: Ledger,
        live: npt.NDArray[np.bool_],
        sockets: Sequence[ProbeSocket],
        ordinals: Sequence[int],
        ssids: dict[tuple[int, int], int],
        chance: random.Random,
        now_s: float,
    ) -> None:
        self.group = group
        self.ledger = ledger
        self.live = live
        self.sockets = list(sockets)
        self.pairs: Sequence[Pair] = group.pairs
        self.ports = len(group.sources)
        self.first_flow = 0  # within the prober; set when the tracks are lined up
        self.first_cell = 0
        self.names = np.zeros((len(self.pairs), mmsg.NAME_ROOM), np.uint8)
        variants = sorted({(pair.dscp, pair.size) for pair in self.pairs})
        place = {variant: n for n, variant in enumerate(variants)}
        self.ssids = np.array([ssids[variant] for variant in variants], np.uint16)
        self.variant = np.array([place[pair.dscp, pair.size] for pair in self.pairs], np.intp)
        self.tos = np.array([pair.dscp << 2 for pair in self.pairs], np.uint64)
        sizes = np.array([variant[1] for variant in variants], np.uint64)
        self.head = np.minimum(sizes, np.uint64(HEAD))
        self.tail = sizes - self.head
        self.templates = np.zeros((len(variants), HEAD), np.uint8)
        for n, (dscp, size) in enumerate(variants):
            packet = template(group, dscp, size, int(self.ssids[n]))[:HEAD]
            self.templates[n, : len(packet)] = np.frombuffer(packet, np.uint8)
        for n, pair in enumerate(self.pairs):
            name = sockaddr(group.version, pair.dst_ip, pair.dst_port, group.sources[0].interface)
            self.names[n, : len(name)] = np.frombuffer(name, np.uint8)
        probed = np.flatnonzero(live)
        self.schedule = Schedule(len(probed), self.ports, group.rate_pps, now_s, chance)
        # The schedule knows pairs by their turn among those that are live.
        turn, port = np.divmod(self.schedule.flows, self.ports)
        self.schedule.flows = (
            probed[turn] * self.ports + port if probed.size else self.schedule.flows
        )
        self.ordinal = np.array(ordinals, np.uint64)
        #: The class each pair asks its replies to come in.
        self.asked = np.array(
            [pair.dscp if group.reply_dscp is None else group.reply_dscp for pair in self.pairs],
            np.uint8,
        )
        # What each pair's reflector last said of itself (see `llama.wire.tlv`).
        self.started = np.zeros(len(self.pairs), np.uint64)
        self.reflector_drops = np.zeros(len(self.pairs), np.uint32)
        self.reflector_limited = np.zeros(len(self.pairs), np.uint32)

    def flow_keys(self) -> npt.NDArray[np.uint64]:
        """Return the `flow_keys` of all flows, in order."""
        ends = self.ordinal[None, :] << np.uint64(16)
        ends = ends | self.ssids[self.variant].astype(np.uint64)[:, None]
        return flow_keys(np.repeat(self.names, self.ports, axis=0), ends.reshape(-1))


def template(group: Group, dscp: int, size: int, ssid: int) -> bytes:
    """Return a probe of ``size`` octets without its sequence number and time stamp."""
    base = stamp.SENDER_STRUCT.pack(0, 0, stamp.error_estimate(None), ssid)
    room = size - len(base)
    if group.probe != "stamp" or not group.tlvs or room < tlv.SIZE:
        return base + bytes(room)
    asked = dscp if group.reply_dscp is None else group.reply_dscp
    # Fewer than four octets hold no padding TLV; left at zero they are plain padding.
    whole = room if room == tlv.SIZE or room >= tlv.SIZE + 4 else tlv.SIZE
    return base + tlv.request(asked, whole) + bytes(room - whole)


def sockaddr(version: int, address: str, port: int, interface: str | None = None) -> bytes:
    """Return ``struct sockaddr_in`` or ``sockaddr_in6``; a link-local address needs its interface."""
    network_port = port.to_bytes(2, "big")
    if version == 4:
        family = socket.AF_INET.to_bytes(2, "little")
        return family + network_port + socket.inet_aton(address) + bytes(8)
    host, _, zone = address.partition("%")
    packed = socket.inet_pton(socket.AF_INET6, host)
    scope = 0
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 and (zone or interface):
        scope = socket.if_nametoindex(zone or interface or "")
    family = socket.AF_INET6.to_bytes(2, "little")
    return family + network_port + bytes(4) + packed + scope.to_bytes(4, "little")


def endpoint(octets: bytes) -> tuple[str, int]:
    """Return address and port of a ``struct sockaddr_in`` or ``sockaddr_in6``."""
    port = int.from_bytes(octets[2:4], "big")
    if int.from_bytes(octets[:2], "little") == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, octets[4:8]), port
    return socket.inet_ntop(socket.AF_INET6, octets[8:24]), port


class _Lane:
    """The message rooms of one address family."""

    def __init__(self, family: int, *, ids: bool, padding: npt.NDArray[np.uint8]) -> None:
        self.family = family
        v4 = family == socket.AF_INET
        tos = (mmsg.SOL_IP, mmsg.IP_TOS) if v4 else (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS)
        kinds = [(*tos, 4)]
        if ids:
            kinds.append((mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID, 4))
        layout = Layout(kinds)
        self.out = Messages(BURST, HEAD, layout.room, tail=LONGEST, padding=padding)
        self.out.namelen[:] = mmsg.SOCKADDR_IN.itemsize if v4 else mmsg.SOCKADDR_IN6.itemsize
        layout.write_headers(self.out)
        self.tos = self.out.words[:, layout.word(*tos)]
        self.id = self.out.words[:, layout.word(*kinds[-1][:2])] if ids else None
        probes = stamp.sender_view(self.out.octets)
        self.sequence: npt.NDArray[Any] = probes["sequence"]
        self.timestamp: npt.NDArray[Any] = probes["timestamp"]

        self.layout = mmsg.receive_layout(family, stamping=True)
        self.back = Messages(ARENA, HEAD, self.layout.room)
        self.socket_of = np.zeros(ARENA, np.uint64)
        self.replies = stamp.reflector_view(self.back.octets)
        level = mmsg.SOL_IP if v4 else mmsg.SOL_IPV6
        self.tos_word = self.layout.word(level, mmsg.IP_TOS if v4 else mmsg.IPV6_TCLASS)
        self.ttl_word = self.layout.word(level, mmsg.IP_TTL if v4 else mmsg.IPV6_HOPLIMIT)

        self.stamp_layout = stamp_layout(family)
        error = (mmsg.SOL_IP, mmsg.IP_RECVERR) if v4 else (mmsg.SOL_IPV6, mmsg.IPV6_RECVERR)
        # struct sock_extended_err: errno u32, origin type code pad, info u32, data u32 (the id).
        self.id_word = self.stamp_layout.word(*error) + 1
        # A stamp without an identifier comes with its packet, which must then fit in.
        # The few octets are what an ICMP error quotes of a packet of a trace.
        self.stamps = Messages(ARENA, 16 if ids else 2048, 256)


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
        self._lanes: dict[int, _Lane] = {}
        self.sockets: dict[Source, ProbeSocket] = {}
        self._ordinals: dict[Source, int] = {}
        self._by_fd: dict[int, ProbeSocket] = {}
        self._epoll = select.epoll()
        self._ssid = self.chance.randrange(1, 65536)
        self.tracks: list[Track] = []
        self._index = FlowIndex(np.zeros(0, np.uint64))
        self._first_flows = np.zeros(1, np.int64)
        self._first_cells = np.zeros(1, np.int64)
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
            sock = ProbeSocket(source, kernel_stamps=self._kernel_stamps, ids=self._ids)
            self.sockets[source] = sock
            self._ordinals[source] = max(self._ordinals.values(), default=-1) + 1
            self._by_fd[sock.fd] = sock
            self._epoll.register(sock.fd, select.EPOLLIN)
            family = sock.sock.family
            if family not in self._lanes:
                self._lanes[family] = _Lane(family, ids=self._ids, padding=self._padding)
        return sock

    def track(
        self, group: Group, ledger: Ledger, live: npt.NDArray[np.bool_], now_s: float
    ) -> Track:
        """Return a track for a group, with sockets and SSIDs, to be handed to `arrange`.

        A group of the same identity gets the SSIDs it had.
        """
        sockets = [self.open(source) for source in group.sources]
        ordinals = [self._ordinals[source] for source in group.sources]
        ssids = self._ssids.setdefault(group.identity, {})
        for pair in group.pairs:
            if (pair.dscp, pair.size) not in ssids:
                ssids[pair.dscp, pair.size] = 0 if group.probe == "twamp-light" else self._ssid
                self._ssid = self._ssid % 65535 + 1
        return Track(group, ledger, live, sockets, ordinals, ssids, self.chance, now_s)

    def reserve_ssid(self) -> int:
        """Return an SSID that no probe bears."""
        ssid, self._ssid = self._ssid, self._ssid % 65535 + 1
        return ssid

    def arrange(self, tracks: Sequence[Track]) -> None:
        """Probe these tracks, and only these, from now on."""
        self.tracks = list(tracks)
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
        """Return how often to `drain` so that no receive buffer fills by more than a quarter."""
        busiest = 0.0
        for source, sock in self.sockets.items():
            rate = sum(
                track.schedule.probes_per_s / track.ports
                for track in self.tracks
                if source in track.group.sources
            )
            # Each probe puts a transmit stamp and a reply into the buffer.
            busiest = max(busiest, 2 * rate / (sock.buffer * _STOCK_PACKETS))
        return min(0.010, 0.25 / busiest) if busiest else 0.010

    # Probes out

    def tick(self, now_s: float) -> None:
        """Send what is due at ``now_s``, on the monotonic clock."""
        for track in self.tracks:
            skipped = track.schedule.skipped
            more = True
            while more:
                flows, more = track.schedule.due(now_s, BURST)
                if flows.size:
                    self._send(track, flows)
            if track.schedule.skipped != skipped:
                track.ledger.mark(
                    suspect_bit("late_ticks"), "probes were skipped: too late to send"
                )

    def _send(self, track: Track, flows: Ints) -> None:
        """Send one probe to each of ``flows``, which all leave from one socket."""
        count = len(flows)
        pairs = flows // track.ports
        sock = track.sockets[int(flows[0]) - int(pairs[0]) * track.ports]
        lane = self._lanes[sock.sock.family]
        out = lane.out
        out.names[:count] = track.names[pairs]
        variant = track.variant[pairs]
        out.octets[:count] = track.templates[variant]
        out.iov_length[:count] = track.head[variant]
        out.tail_length[:count] = track.tail[variant]
        lane.tos[:count] = track.tos[pairs]
        t1_ns = self._wall_ns()
        cells, sequence = track.ledger.send(flows, t1_ns)
        if lane.id is not None:
            lane.id[:count] = cells + track.first_cell
        lane.sequence[:count] = sequence
        lane.timestamp[:count] = stamp.ntp_from_unix_ns(t1_ns)
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
        """Read all that waits at the sockets; return whether they were seen empty."""
        empty = True
        filled = dict.fromkeys(self._lanes, 0)
        for fd, event in self._epoll.poll(0, max(1, len(self.sockets))):
            sock = self._by_fd[fd]
            lane = self._lanes[sock.sock.family]
            if event & select.EPOLLERR:
                self._read_stamps(lane, fd)
            # Bounded: a flood to one of our ports must not keep us from sending.
            for _ in range(8):
                first = filled[lane.family]
                if first == ARENA:
                    self._take(lane, first)
                    first = 0
                count = self._receive(lane, fd, first)
                lane.socket_of[first : first + count] = self._ordinals[sock.source]
                filled[lane.family] = first + count
                if first + count < ARENA:
                    break
            else:
                empty = False
        for family, count in filled.items():
            if count:
                self._take(self._lanes[family], count)
        return empty

    def _receive(self, lane: _Lane, fd: int, first: int) -> int:
        try:
            return lane.back.receive(fd, first, mmsg.MSG_DONTWAIT | mmsg.MSG_TRUNC)
        except OSError:
            # What another's ICMP error left at the socket: reading it has cleared it.
            return lane.back.receive(fd, first, mmsg.MSG_DONTWAIT | mmsg.MSG_TRUNC)

    def _read_stamps(self, lane: _Lane, fd: int) -> None:
        """Empty an error queue, and enter the transmit stamps in it."""
        stamps = lane.stamps
        while count := stamps.receive(fd, 0, mmsg.MSG_DONTWAIT | mmsg.MSG_ERRQUEUE):
            if self.tracing is not None:
                self._hand_over_errors(lane, fd, count)
            if self._ids:
                self._enter_stamps(lane, count)
            else:
                self._match_stamps(lane, count, fd)
            if count < stamps.slots:
                return

    def _hand_over_errors(self, lane: _Lane, fd: int, count: int) -> None:
        """Give ICMP errors to whoever traces; they lie among the transmit stamps."""
        stamps = lane.stamps
        for row in lane.stamp_layout.odd_rows(stamps, 0, count).tolist():
            data = stamps.control[row].data
            control = [
                (level, kind, bytes(part))
                for level, kind, part in mmsg.walk_control(data, int(stamps.controllen[row]))
            ]
            payload = stamps.octets[row, : int(stamps.length[row])].tobytes()
            error = errors.from_control(control, endpoint(stamps.names[row].tobytes()), payload)
            if error is not None:
                self.tracing.error(self._by_fd[fd], error)

    def _enter_stamps(self, lane: _Lane, count: int) -> None:
        """Enter stamps that carry the number of their cell."""
        words = lane.stamps.words[:count]
        odd = lane.stamp_layout.odd_rows(lane.stamps, 0, count)
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

    def _match_stamps(self, lane: _Lane, count: int, fd: int) -> None:
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
                    len(packet) >= udp + 8 + stamp.BASE_SIZE
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
            sequence, _, _, ssid = stamp.SENDER_STRUCT.unpack_from(packet, udp + 8)
            ends = np.array([self._ordinals[sock.source] << 16 | ssid], np.uint64)
            flow = self._index.find(flow_keys(name, ends))
            if flow[0] == NO_FLOW or not seconds:
                continue
            track = self.tracks[int(np.searchsorted(self._first_flows, flow[0], side="right")) - 1]
            cells = track.ledger.cells(flow - track.first_flow, np.array([sequence], np.uint32))
            track.ledger.transmitted(cells, np.array([seconds * 1_000_000_000 + ns], np.int64))

    def _take(self, lane: _Lane, count: int) -> None:
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
        lost = flow == NO_FLOW
        if lost.any():
            self._find_bare(lane, count, flow, numbered)
            lost = flow == NO_FLOW
        lost |= length < SHORTEST
        if lost.any():
            self.strangers += int(np.count_nonzero(lost))
            if self.tracing is not None:
                traced = np.flatnonzero(lost & (ssid == self.tracing.ssid))
                self.strangers -= len(traced)
                self._hand_over_replies(lane, traced)
        tlvs = tlv.read(back.octets[:count], length)
        estimate = replies["error_estimate"].astype(np.uint16)
        arrived = Replies(
            flow=flow,
            sequence=replies["sender_sequence"].astype(np.uint32),
            echoed_ns=stamp.unix_ns_column(replies["sender_timestamp"].astype(np.uint64)),
            number=replies["sequence"].astype(np.uint32),
            t2_ns=_time_column(replies["receive_timestamp"].astype(np.uint64), estimate),
            t3_ns=_time_column(replies["timestamp"].astype(np.uint64), estimate),
            t4_ns=t4_ns,
            kernel_t4=stamped,
            dscp_there=tlvs.dscp,
            dscp_asked=tlvs.dscp,
            dscp_here=(tos >> np.uint64(2)).astype(np.uint8) & np.uint8(0x3F),
            ttl_there=np.where(length > 40, replies["sender_ttl"], np.uint8(0)),
            ttl_here=ttl.astype(np.uint8),
            numbered=numbered,
            follow_number=tlvs.follow_sequence,
            follow_ns=_follow_column(tlvs.follow_stamp, estimate),
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

    def _hand_over_replies(self, lane: _Lane, rows: npt.NDArray[np.intp]) -> None:
        """Give replies to packets of traces to whoever traces."""
        numbered = {self._ordinals[source]: sock for source, sock in self.sockets.items()}
        for row in rows.tolist():
            sock = numbered[int(lane.socket_of[row])]
            address, _ = endpoint(lane.back.names[row].tobytes())
            self.tracing.reply(sock, address, int(lane.replies["sender_sequence"][row]))

    def _find_bare(
        self, lane: _Lane, count: int, flow: Ints, numbered: npt.NDArray[np.bool_]
    ) -> None:
        """Find the flows of replies without an SSID, from peers that know RFC 8762 alone.

        Each SSID of ours is tried; the time stamp that the reply echoes decides. Their numbers
        count all classes of a source port together, so they say nothing unless there is but one.
        """
        bare = np.flatnonzero((flow == NO_FLOW) & (lane.replies["ssid"][:count] == 0))
        if not bare.size:
            return
        names = lane.back.names[bare]
        echoed = stamp.unix_ns_column(lane.replies["sender_timestamp"][bare].astype(np.uint64))
        sequence = lane.replies["sender_sequence"][bare].astype(np.uint32)
        for track in self.tracks:
            for ssid in track.ssids.tolist():
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
        first = known == 0
        for bit, note, now, before in (
            ("reflector_restart", "a reflector was started anew", tlvs.started_ns, known),
            ("reflector_drops", "a reflector's receive buffer overflowed", tlvs.receive_drops,
             track.reflector_drops[pairs]),
            ("reflector_limit", "a reflector's rate limit refused probes", tlvs.guard_drops,
             track.reflector_limited[pairs]),
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


def _time_column(
    stamps: npt.NDArray[np.uint64], estimate: npt.NDArray[np.uint16]
) -> npt.NDArray[np.int64]:
    """Return Unix nanoseconds of time stamps in NTP format, or PTP's where the Z bit says so."""
    times = stamp.unix_ns_column(stamps)
    ptp = np.flatnonzero(estimate & stamp.ERROR_PTP_FORMAT)
    if ptp.size:  # truncated PTPv2: seconds and nanoseconds, since 1970
        seconds, ns = stamps[ptp] >> np.uint64(32), stamps[ptp] & np.uint64(0xFFFFFFFF)
        times[ptp] = (seconds * np.uint64(1_000_000_000) + ns).astype(np.int64)
    return times


def _follow_column(
    stamps: npt.NDArray[np.uint64], estimate: npt.NDArray[np.uint16]
) -> npt.NDArray[np.int64]:
    """Return the Unix nanoseconds of follow-up stamps, 0 where there is none."""
    if not stamps.any():
        return np.zeros(len(stamps), np.int64)
    return np.where(stamps != 0, _time_column(stamps, estimate), np.int64(0))
