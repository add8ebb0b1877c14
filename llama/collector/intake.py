"""Finds out which probes the packets that came belong to, and enters them into the ledgers.

Replies in STAMP's own format are read here, those in others by `llama.collector.formats`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.collector import formats
from llama.collector.flow_index import NO_FLOW, FlowIndex, flow_keys
from llama.collector.lane import Lane
from llama.collector.ledger import UNKNOWN_DSCP, Ints, Replies
from llama.collector.sockets import ProbeSocket, endpoint, sockaddr
from llama.collector.summary import suspect_bit
from llama.collector.track import Track
from llama.net import mmsg
from llama.wire import stamp, tlv

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

SHORTEST = 38  # octets of a reply: some TWAMP-Light responders end before the TTL


class Intake:
    """Takes replies and transmit stamps for the tracks of one prober; see `arrange` and `take`.

    ``sockets`` are the prober's, by the numbers that its lanes know them by; ``wall_ns`` is the
    clock (Unix ns).
    """

    def __init__(self, sockets: Mapping[int, ProbeSocket], wall_ns: Callable[[], int]) -> None:
        self._sockets = sockets
        self._wall_ns = wall_ns
        self.tracks: list[Track] = []
        self._index = FlowIndex(np.zeros(0, np.uint64))
        self._first_flows = np.zeros(1, np.int64)
        self._first_cells = np.zeros(1, np.int64)
        self._base, self._cells = 0, 0  # the numbers of cells begin here; how many there are
        self._formatted: list[Track] = []  # the tracks whose probes are not plain STAMP
        self.received = 0
        self.strangers = 0
        #: Who traces flows, if anybody does: takes what is not a probe's.
        self.tracing: Any = None

    def arrange(self, tracks: Sequence[Track]) -> None:
        """Take what belongs to these tracks from now on; lines their flows and cells up.

        Cells get numbers that the ones before did not have, lest a transmit stamp that comes late
        is taken for another probe's.
        """
        self._base = (self._base + self._cells) & 0xFFFFFFFF
        self.tracks = list(tracks)
        self._formatted = [track for track in self.tracks if track.format is not None]
        flows = cells = 0
        for track in self.tracks:
            track.first_flow, track.first_cell = flows, self._base + cells
            flows += track.ledger.flows
            cells += track.ledger.flows * track.ledger.depth
        self._first_flows = np.array([track.first_flow for track in self.tracks], np.int64)
        self._first_cells = np.array(
            [track.first_cell - self._base for track in self.tracks], np.int64
        )
        self._cells = cells
        keys = [track.flow_keys() for track in self.tracks if len(track.pairs)]
        self._index = FlowIndex(np.concatenate(keys) if keys else np.zeros(0, np.uint64))

    # Transmit stamps

    def enter_stamps(self, lane: Lane, count: int, odd: npt.NDArray[np.intp]) -> None:
        """Enter stamps that carry the number of their cell, all but the ``odd`` rows."""
        words = lane.stamps.words[:count]
        if odd.size:
            words = np.delete(words, odd, axis=0)
        cells = (words[:, lane.id_word] >> np.uint64(32)).astype(np.int64)
        cells -= self._base
        cells &= 0xFFFFFFFF
        known = cells < self._cells
        if np.count_nonzero(known) < len(known):  # of probes before a reload
            words, cells = words[known], cells[known]
        when = (words[:, 2] * np.uint64(1_000_000_000) + words[:, 3]).astype(np.int64)
        if len(self.tracks) == 1:
            self.tracks[0].ledger.transmitted(cells, when)
            return
        owner = np.searchsorted(self._first_cells, cells, side="right") - 1
        for n in np.unique(owner).tolist():
            mine = owner == n
            track = self.tracks[n]
            track.ledger.transmitted(cells[mine] - self._first_cells[n], when[mine])

    def match_stamps(self, lane: Lane, count: int, sock: ProbeSocket) -> None:
        """Enter stamps by the packets they came with: the probe is at the end of each."""
        stamps = lane.stamps
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
                ends = np.array([sock.ordinal << 16 | ssid], np.uint64)
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

    # Replies

    def _circumstances(self, lane: Lane, count: int) -> tuple[Ints, Mask, Words, Words]:
        """Return T4, whether it is the kernel's, TOS and TTL of what lies in an arena: (N,) each."""
        words = lane.back.words[:count]
        t4_ns = (words[:, 2] * np.uint64(1_000_000_000) + words[:, 3]).astype(np.int64)
        tos, ttl = words[:, lane.tos_word], words[:, lane.ttl_word]
        stamped = np.ones(count, np.bool_)
        odd = lane.layout.odd_rows(lane.back, 0, count)
        if odd.size:
            t4_ns[odd] = self._wall_ns()
            stamped[odd] = False
            tos[odd], ttl[odd] = UNKNOWN_DSCP << 2, 0
        return t4_ns, stamped, tos, ttl

    def take(self, lane: Lane, count: int) -> None:
        """Enter the first ``count`` datagrams of a lane's arena into the ledgers."""
        back = lane.back
        length = back.length[:count]
        t4_ns, stamped, tos, ttl = self._circumstances(lane, count)
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
        octets = back.octets[:count]
        if lost.any():
            strange = lost if taken is None else lost & ~taken
            self.strangers += int(np.count_nonzero(strange))
            if self.tracing is not None:
                traced = np.flatnonzero(strange & (ssid == self.tracing.ssid))
                self.strangers -= len(traced)
                self._hand_over_replies(lane, traced)
            # The rest is packed together, so that there are whole columns to work on.
            rows = np.flatnonzero(~lost)
            if not rows.size:
                return
            octets = octets[rows]
            replies = stamp.reflector_view(octets)
            length, flow, numbered = length[rows], flow[rows], numbered[rows]
            t4_ns, stamped, tos, ttl = t4_ns[rows], stamped[rows], tos[rows], ttl[rows]
        count = len(flow)
        tlvs = tlv.read(octets, length)
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
        if len(self.tracks) == 1:
            self._enter(self.tracks[0], arrived, tlvs)
            return
        owner = np.searchsorted(self._first_flows, flow, side="right") - 1
        for n in np.unique(owner).tolist():
            mine = owner == n
            track = self.tracks[n]
            columns: Any = [column[mine] for column in arrived]
            own = Replies(*columns)._replace(flow=flow[mine] - track.first_flow)
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
        for row in rows.tolist():
            sock = self._sockets[int(lane.socket_of[row])]
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
        for bit, note, changed in (
            ("reflector_restart", "a reflector was started anew", tlvs.started_ns != known),
            (
                "reflector_drops",
                "a reflector's receive buffer overflowed",
                _grown(tlvs.receive_drops, drops),
            ),
            (
                "reflector_limit",
                "a reflector's rate limit refused probes",
                _grown(tlvs.guard_drops, limited),
            ),
        ):
            changed &= ~first
            if changed.any():
                track.ledger.mark(suspect_bit(bit), note, pairs=pairs[changed])
        track.started[pairs] = tlvs.started_ns
        track.reflector_drops[pairs] = tlvs.receive_drops
        track.reflector_limited[pairs] = tlvs.guard_drops


def _grown(now: npt.NDArray[np.uint32], before: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Tell which counters, modulo 2**32, have grown; one that went back was begun anew."""
    grown: npt.NDArray[np.bool_] = (now - before).view(np.int32) > 0
    return grown


def _ptp_column(stamps: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return Unix nanoseconds of truncated PTPv2 time stamps: seconds and nanoseconds since 1970."""
    seconds, ns = stamps >> np.uint64(32), stamps & np.uint64(0xFFFFFFFF)
    return (seconds * np.uint64(1_000_000_000) + ns).astype(np.int64)
