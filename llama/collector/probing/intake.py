"""Finds out which probes the packets that came belong to, and enters them into the ledgers.

Replies in STAMP's own format are read here, those in others by `llama.collector.probing.formats`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.replies import UNKNOWN_DSCP, Ints, Replies
from llama.collector.probing import formats
from llama.collector.probing.flow_index import NO_FLOW, FlowIndex, flow_keys
from llama.collector.probing.inbox import HEAD, Inbox
from llama.collector.probing.reflectors import Doubt, Reflectors
from llama.collector.probing.sockets import ProbeSocket, endpoint
from llama.collector.probing.track import Track
from llama.net import mmsg
from llama.wire import stamp, tlv
from llama.wire.rows import records

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Octets = npt.NDArray[np.uint8]

_UDP = np.dtype([("source", ">u2"), ("to", ">u2"), ("length", ">u2"), ("checksum", ">u2")])
_REACH = 18 + 40 + _UDP.itemsize + HEAD  # octets of a packet with its headers that are looked at
#: Noted of an interval with replies from another place than was asked, behind that place.
ELSEWHERE = "answered probes that were sent to another address or port"
MOST_ELSEWHERE = 4  # strangers looked at for that at a time, and places noted of an interval
SHORTEST = 38  # octets of a reply: some TWAMP-Light responders end before the TTL


class Intake:
    """Takes replies and transmit stamps for the tracks of one prober; see `arrange` and `take`.

    ``sockets`` are the prober's, by the numbers that its inboxes know them by; ``wall_ns`` is the
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
        self._has_format = np.ones(1, np.bool_)  # of each flow, and of `NO_FLOW`
        self._reflectors = Reflectors()
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
        has_format = [track.format is not None for track in self.tracks]
        flows_of = [track.ledger.flows for track in self.tracks]
        self._has_format = np.append(np.repeat(has_format, flows_of), True).astype(np.bool_)
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
        before = self._reflectors
        self._reflectors = Reflectors(end for track in self.tracks for end in track.ends)
        self._reflectors.follow(before)
        for track in self.tracks:
            track.reflector = np.array([self._reflectors.rows[end] for end in track.ends], np.intp)
        keys = [track.flow_keys() for track in self.tracks if len(track.pairs)]
        self._index = FlowIndex(np.concatenate(keys) if keys else np.zeros(0, np.uint64))

    # Transmit stamps

    def enter_stamps(self, inbox: Inbox, count: int, odd: npt.NDArray[np.intp]) -> None:
        """Enter stamps that carry the number of their cell, all but the ``odd`` rows."""
        words = inbox.stamps.words[:count]
        if odd.size:
            words = np.delete(words, odd, axis=0)
        cells = (words[:, inbox.id_word] >> np.uint64(32)).astype(np.int64)
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

    def match_stamps(
        self, inbox: Inbox, count: int, odd: npt.NDArray[np.intp], sock: ProbeSocket
    ) -> None:
        """Enter stamps by the packets that they came with, all but the ``odd`` rows."""
        rows = np.delete(np.arange(count), odd)
        octets, words = inbox.stamps.octets[:, :_REACH][rows], inbox.stamps.words[rows]
        length = inbox.stamps.length[rows].astype(np.int64)
        when = (words[:, 2] * np.uint64(1_000_000_000) + words[:, 3]).astype(np.int64)
        v4 = inbox.family == socket.AF_INET
        ip, address = (20, 16) if v4 else (40, 24)
        # A packet comes with its link-layer header, of unknown length, so the UDP header is found by
        # what it must say: our port, and a length that ends with the packet, or later if it was cut.
        for link in (14, 0, 18):
            udp = records(octets, _UDP, link + ip)
            said = udp["length"].astype(np.int64)
            there = length - (link + ip)
            ours = (udp["source"] == sock.number) & (there >= _UDP.itemsize) & (said >= there)
            if not ours.any():
                continue
            names = np.zeros((np.count_nonzero(ours), mmsg.NAME_ROOM), np.uint8)
            names[:, 0] = inbox.family
            names[:, 2:4] = octets[ours, link + ip + 2 : link + ip + 4]
            to, size = (4, 4) if v4 else (8, 16)
            names[:, to : to + size] = octets[ours, link + address : link + address + size]
            payload = octets[ours, link + ip + _UDP.itemsize : link + ip + _UDP.itemsize + HEAD]
            self._match_probes(payload, said[ours] - _UDP.itemsize, names, sock, when[ours])
            octets, length, when = octets[~ours], length[~ours], when[~ours]
            if not len(octets):
                return

    def _match_probes(
        self, payload: Octets, length: Ints, names: Octets, sock: ProbeSocket, when: Ints
    ) -> None:
        """Enter the stamps of probes, whose first octets and destinations these are: one a row."""
        probes = stamp.sender_view(payload)
        plain = np.flatnonzero(length >= stamp.BASE_SIZE)
        readings: list[tuple[formats.Format | None, Ints, Any, Any]] = [
            (None, plain, probes["ssid"][plain], probes["sequence"][plain])
        ]
        for format_ in {track.format for track in self._formatted}:
            assert format_ is not None
            readings.append((format_, *format_.probes(payload, length)))
        for format_, rows, ssid, sequence in readings:
            if not len(rows):
                continue
            ends = np.uint64(sock.ordinal << 16) | ssid.astype(np.uint64)
            flow = self._index.find(flow_keys(names[rows], ends))
            owner = np.searchsorted(self._first_flows, flow, side="right") - 1
            owner[flow == NO_FLOW] = -1
            for n in np.unique(owner[owner >= 0]).tolist():
                track, mine = self.tracks[n], owner == n
                if track.format is format_:
                    numbers = sequence[mine].astype(np.uint32)
                    cells = track.ledger.cells(flow[mine] - track.first_flow, numbers)
                    track.ledger.transmitted(cells, when[rows[mine]])
        bare = plain[probes["ssid"][plain] == 0]
        if not len(bare):
            return
        numbers = probes["sequence"][bare].astype(np.uint32)
        sent_ns = stamp.unix_ns_column(probes["timestamp"][bare].astype(np.uint64))
        ordinal = np.full(len(bare), sock.ordinal, np.uint64)
        for track, flow, _, mine in self._bare(names[bare], ordinal, numbers, sent_ns):
            cells = track.ledger.cells(flow[mine] - track.first_flow, numbers[mine])
            track.ledger.transmitted(cells, when[bare[mine]])

    def _bare(
        self, names: Octets, ordinal: Words, sequence: npt.NDArray[np.uint32], t1_ns: Ints
    ) -> Iterator[tuple[Track, Ints, Mask, Mask]]:
        """Tell whose probes are meant where no SSID is told: each SSID is tried, the time decides.

        ``names`` are the other ends, (N, 32); ``ordinal`` (N,) are the numbers of our sockets.
        Yields a track, flows (N,), which of them there are and which are the right ones, as often
        as some may be. Tracks in other formats have nothing to do with it.
        """
        for track in self.tracks:
            if track.format is not None:
                continue
            for ssid in track.ssids.tolist():
                ends = ordinal << np.uint64(16) | np.uint64(ssid)
                flow = self._index.find(flow_keys(names, ends))
                inside = flow - track.first_flow
                there = (inside >= 0) & (inside < track.ledger.flows) & (flow != NO_FLOW)
                if there.any():
                    cells = track.ledger.cells(np.where(there, inside, 0), sequence)
                    right = there & (track.ledger.t1[cells] == t1_ns) & (t1_ns != 0)
                    right &= track.ledger.on_record(np.where(there, inside, 0), sequence)
                    yield track, flow, there, right

    # Replies

    def _circumstances(self, inbox: Inbox, count: int) -> tuple[Ints, Mask, Octets, Octets]:
        """Return T4, whether it is the kernel's, DSCP and TTL of what lies in an arena: (N,) each."""
        words = inbox.back.words[:count]
        t4_ns = (words[:, 2] * np.uint64(1_000_000_000) + words[:, 3]).astype(np.int64)
        dscp = (words[:, inbox.tos_word] >> np.uint64(2)).astype(np.uint8) & np.uint8(0x3F)
        ttl = words[:, inbox.ttl_word].astype(np.uint8)
        stamped = np.ones(count, np.bool_)
        odd = inbox.layout.odd_rows(inbox.back, 0, count)
        if odd.size:
            t4_ns[odd] = self._wall_ns()
            stamped[odd] = False
            dscp[odd], ttl[odd] = UNKNOWN_DSCP, 0
        return t4_ns, stamped, dscp, ttl

    def take(self, inbox: Inbox, count: int) -> None:
        """Enter the first ``count`` datagrams of an inbox's arena into the ledgers."""
        back = inbox.back
        length = back.length[:count]
        t4_ns, stamped, dscp, ttl = self._circumstances(inbox, count)
        replies = inbox.replies[:count]
        ssid = replies["ssid"]
        ends = inbox.socket_of[:count] << np.uint64(16) | ssid
        flow = self._index.find(flow_keys(back.names[:count], ends))
        numbered = np.ones(count, np.bool_)
        taken = None
        if self._formatted:
            arrivals = formats.Arrived(t4_ns, stamped, dscp, ttl)
            taken = self._take_formatted(inbox, count, arrivals)
            # Of a flow in another format nothing else is a reply: who cannot sign is a stranger.
            flow[taken | self._has_format[flow]] = NO_FLOW
        lost = flow == NO_FLOW
        # Whose they are is known, though they are no replies in STAMP's own format.
        known = np.zeros(count, np.bool_) if taken is None else taken
        if lost.any():
            known[self._find_bare(inbox, count, flow, numbered, taken)] = True
            lost = flow == NO_FLOW
        lost |= length < SHORTEST
        octets = back.octets[:count]
        if lost.any():
            if self.tracing is not None:
                traced = np.flatnonzero(lost & ~known & (ssid == self.tracing.ssid))
                known[traced] = self._hand_over_replies(inbox, traced)
            strange = lost & ~known
            self.strangers += int(np.count_nonzero(strange))
            self._look_elsewhere(inbox, np.flatnonzero(strange & (length >= SHORTEST)))
            # The rest is packed together, so that there are whole columns to work on.
            rows = np.flatnonzero(~lost)
            if not rows.size:
                return
            octets = octets[rows]
            replies = stamp.reflector_view(octets)
            length, flow, numbered = length[rows], flow[rows], numbered[rows]
            t4_ns, stamped, dscp, ttl = t4_ns[rows], stamped[rows], dscp[rows], ttl[rows]
        count = len(flow)
        tlvs = tlv.read(octets, length)
        estimate = replies["error_estimate"].astype(np.uint16)
        stamps = np.empty((4, count), np.uint64)
        stamps[0] = replies["sender_timestamp"]
        stamps[1] = replies["receive_timestamp"]
        stamps[2] = replies["timestamp"]
        stamps[3] = tlvs.follow_stamp
        echoed_ns, t2_ns, t3_ns, follow_ns = stamp.time_column(stamps, estimate, echoed=1)
        follow_ns[tlvs.follow_stamp == 0] = 0
        arrived = Replies(
            flow=flow,
            sequence=replies["sender_sequence"].astype(np.uint32),
            echoed_ns=echoed_ns,
            number=replies["sequence"].astype(np.uint32),
            t2_ns=t2_ns,
            t3_ns=t3_ns,
            t4_ns=t4_ns,
            kernel_t4=stamped,
            dscp_there=tlvs.dscp,
            dscp_asked=tlvs.dscp,
            dscp_here=dscp,
            ttl_there=np.where(length > 40, replies["sender_ttl"], np.uint8(0)),
            ttl_here=ttl,
            numbered=numbered,
            follow_number=tlvs.follow_sequence,
            follow_ns=follow_ns,
            clock_error_ns=stamp.error_column(estimate),
        )
        if len(self.tracks) == 1:
            self._enter(self.tracks[0], arrived, tlvs)
            return
        owner = np.searchsorted(self._first_flows, flow, side="right") - 1
        for n in np.unique(owner).tolist():
            mine = owner == n
            track = self.tracks[n]
            own = arrived.rows(mine)
            own = own._replace(flow=own.flow - track.first_flow)
            self._enter(track, own, tlvs.rows(mine))

    def _take_formatted(
        self, inbox: Inbox, count: int, arrived: formats.Arrived
    ) -> npt.NDArray[np.bool_]:
        """Enter replies in other formats than plain STAMP's; return which datagrams are such: (N,)."""
        taken = np.zeros(count, np.bool_)
        octets, length = inbox.back.octets[:count], inbox.back.length[:count]
        for track in self._formatted:
            assert track.format is not None
            rows, ssid = track.format.candidates(octets, length)
            ends = inbox.socket_of[rows] << np.uint64(16) | ssid
            if not rows.size:
                continue
            flow = self._index.find(flow_keys(inbox.back.names[rows], ends)) - track.first_flow
            mine = (flow >= 0) & (flow < track.ledger.flows) & ~taken[rows]
            rows, flow = rows[mine], flow[mine]
            if not rows.size:
                continue
            genuine, replies, tlvs = track.format.read(
                octets[rows], length[rows], flow, arrived.rows(rows), track.ledger
            )
            taken[rows[genuine]] = True
            if genuine.any():
                self._enter(track, replies, tlvs)
        return taken

    def _hand_over_replies(self, inbox: Inbox, rows: npt.NDArray[np.intp]) -> list[bool]:
        """Give replies to packets of traces to whoever traces; return which he takes for such."""
        taken = []
        for row in rows.tolist():
            sock = self._sockets[int(inbox.socket_of[row])]
            sender = endpoint(inbox.back.names[row].tobytes())
            reply = inbox.replies[row]
            number, time_stamp = int(reply["sender_sequence"]), int(reply["sender_timestamp"])
            ttl = int(reply["sender_ttl"]) if inbox.back.length[row] > 40 else 1
            taken.append(self.tracing.reply(sock, sender, number, time_stamp, ttl))
        return taken

    def _find_bare(
        self,
        inbox: Inbox,
        count: int,
        flow: Ints,
        numbered: npt.NDArray[np.bool_],
        taken: npt.NDArray[np.bool_] | None,
    ) -> Ints:
        """Find the flows of replies without an SSID, from peers that know RFC 8762 alone.

        Their numbers count all that comes from a source port together, so they say nothing unless
        that is one flow. Returns which rows answer traces.
        """
        unknown = (flow == NO_FLOW) & (inbox.replies["ssid"][:count] == 0)
        bare = np.flatnonzero(unknown if taken is None else unknown & ~taken)
        if not bare.size:
            return bare
        names = inbox.back.names[bare]
        echoed = stamp.unix_ns_column(inbox.replies["sender_timestamp"][bare].astype(np.uint64))
        sequence = inbox.replies["sender_sequence"][bare].astype(np.uint32)
        candidates: list[tuple[Track, Ints, Mask]] = []
        sharing = np.zeros(len(bare), np.int64)  # how many flows leave that port for that peer
        for track, found, there, mine in self._bare(names, inbox.socket_of[bare], sequence, echoed):
            flow[bare[mine]] = found[mine]
            track.bare[(found[mine] - track.first_flow) // track.ports] = True
            sharing += there
            candidates.append((track, found, there))
        numbered[bare] = sharing == 1
        strange = flow[bare] == NO_FLOW
        traced = np.zeros(len(bare), np.bool_)
        if not strange.any():
            return bare[traced]
        # Traces are counted with the probes by such a peer, and what others send in our name.
        if self.tracing is not None:
            traced[strange] = self._hand_over_replies(inbox, bare[strange])
        for track, found, there in candidates:
            flows = found - track.first_flow
            # Who returns SSIDs does not count what comes without one with the probes.
            ours = there & strange & track.bare[np.where(there, flows, 0) // track.ports]
            if (ours & traced).any():
                track.ledger.doubt(flows[ours & traced], "")
            others = ours & ~traced
            if others.any():
                track.ledger.doubt_strange(flows[others], sequence[others])
        return bare[traced]

    def _look_elsewhere(self, inbox: Inbox, rows: npt.NDArray[np.intp]) -> None:
        """Note of strangers who repeat number and time of a probe of ours: its answer, from elsewhere.

        Only a few ``rows`` are looked at, since anybody can send any number of packets, and each is
        compared with all probes of its number. They stay strangers.
        """
        for row in rows[:MOST_ELSEWHERE].tolist():
            reply = inbox.replies[row]
            sent_ns = stamp.unix_ns_from_ntp(int(reply["sender_timestamp"]))
            place = endpoint(inbox.back.names[row].tobytes())
            for track in self.tracks:
                (port,) = np.nonzero(track.ordinal == inbox.socket_of[row])
                if not sent_ns or not port.size or track.format is not None:
                    continue
                flows = np.arange(len(track.pairs)) * track.ports + port[0]
                number = np.full(len(flows), reply["sender_sequence"], np.uint32)
                same = track.ledger.t1[track.ledger.cells(flows, number)] == sent_ns
                meant = np.flatnonzero(same & track.ledger.on_record(flows, number))
                asked = {endpoint(track.names[pair].tobytes()) for pair in meant.tolist()}
                current = track.ledger.current
                if not asked or place in asked or current is None:
                    continue
                if sum(note.endswith(ELSEWHERE) for note in current.notes) < MOST_ELSEWHERE:
                    track.ledger.mark(0, f"{place[0]} port {place[1]} {ELSEWHERE}")

    def _enter(self, track: Track, replies: Replies, tlvs: tlv.Answer) -> None:
        """Enter replies that belong to one track, and what their reflectors say of themselves."""
        pairs = replies.flow // track.ports
        asked = np.where(tlvs.refused, tlvs.dscp, track.asked[pairs])
        asked[tlvs.dscp == tlv.UNKNOWN] = UNKNOWN_DSCP
        strangers = track.ledger.strangers
        self.received += track.ledger.reply(replies._replace(dscp_asked=asked))
        self.strangers += track.ledger.strangers - strangers
        counting = tlvs.started_ns != 0
        news = self._reflectors.news(track.reflector[pairs], tlvs)
        news |= track.ledger.counting[pairs] != counting
        if not news.any():
            return
        news &= track.ledger.genuine(replies)
        track.ledger.counting[pairs[news]] = counting[news]
        news &= counting
        told = tlvs.rows(news)
        for doubt in self._reflectors.hear(
            track.ledger, track.reflector[pairs[news]], told,
            replies.t2_ns[news], replies.t4_ns[news],
        ):  # fmt: skip
            self._mark(doubt)

    def _mark(self, doubt: Doubt) -> None:
        """Mark the open windows of all pairs that a doubt concerns, whoever of them has heard of it."""
        for track in self.tracks:
            pairs = np.flatnonzero(np.isin(track.reflector, list(doubt.rows)))
            if pairs.size:
                track.ledger.mark(doubt.bits, doubt.note, pairs=pairs)
