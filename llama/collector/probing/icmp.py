"""Probes by ICMP echo: no reflector is needed, the other end's network stack answers.

In batches and with kernel stamps, as UDP is probed. What makes one flow differ from the next is the
identifier, where UDP has its source port. Sockets are unprivileged ones where the system allows
them (``net.ipv4.ping_group_range``), raw ones otherwise. An echo request is, in octets::

     0 type, code     8 token: the time it was sent, xor a secret of this process
     2 checksum      16 sequence number, whole
     4 identifier    20 SSID: tells the classes and sizes of a source apart
     6 number        22 zero, then padding

A reply counts if it brings all of it back, undamaged. Raw sockets of IPv4 are given messages whose
checksum the kernel has not looked at, so there it is looked at here; all others are given good ones
alone. Nobody stamps anything at the other end, so the time spent there is in the RTT, and no direction
of a loss or a delay is known. RFC 792, RFC 4443 section 4.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Ints, Replies
from llama.collector.probing.flow_index import NO_FLOW, flow_keys
from llama.collector.probing.inbox import HEAD, Inbox
from llama.collector.probing.intake import Intake
from llama.collector.probing.outbox import Outbox
from llama.collector.probing.plan import Group, Source
from llama.collector.probing.sockets import ProbeSocket
from llama.collector.probing.track import Track
from llama.collector.probing.udp import DAMAGED, UdpProber
from llama.net import bpf
from llama.net.bpf import Step
from llama.net.drops import Causes
from llama.net.errors import IcmpError
from llama.net.lookup import socket_address
from llama.net.mmsg import Messages
from llama.net.port import LONGEST
from llama.wire.rows import records

ECHO = np.dtype(
    [
        ("type", "u1"), ("code", "u1"), ("checksum", ">u2"), ("identifier", ">u2"),
        ("number", ">u2"), ("token", ">u8"), ("sequence", ">u4"), ("ssid", ">u2"), ("zero", ">u2"),
    ]
)  # fmt: skip
HEADER = 8  # octets of an ICMP header
IPV4_HEADER = 20
REQUEST: dict[int, int] = {socket.AF_INET: 8, socket.AF_INET6: 128}
REPLY: dict[int, int] = {socket.AF_INET: 0, socket.AF_INET6: 129}

_SOL_RAW, _ICMP_FILTER = 255, 1
_SOL_ICMPV6, _ICMPV6_FILTER = 58, 1


class EchoSocket(ProbeSocket):
    """A socket whose ``number`` is the identifier of its echo requests."""

    raw = False

    def _create(self, family: int) -> socket.socket:
        protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        try:
            return socket.socket(family, socket.SOCK_DGRAM, protocol)
        except PermissionError:
            self.raw = True
        try:
            return socket.socket(family, socket.SOCK_RAW, protocol)
        except PermissionError:
            raise PermissionError(
                errno.EPERM,
                "ICMP needs one of the user's groups in net.ipv4.ping_group_range, or CAP_NET_RAW",
            ) from None

    def _bind(self, sock: socket.socket, address: str, number: int) -> int:
        if not self.raw:
            return super()._bind(sock, address, number)
        number = number or random.SystemRandom().randrange(1, 65536)
        if sock.family == socket.AF_INET:
            others = ~(1 << REPLY[socket.AF_INET]) & 0xFFFFFFFF
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", others))
        else:
            blocked = [0xFFFFFFFF] * 8
            word, bit = divmod(REPLY[socket.AF_INET6], 32)
            blocked[word] &= ~(1 << bit)
            sock.setsockopt(_SOL_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *blocked))
        _only_identifier(sock, number)
        sock.bind(socket_address(address, 0))
        return number


def _only_identifier(sock: socket.socket, number: int) -> None:
    """Have the kernel give a raw socket only messages of one identifier."""
    identifier = [Step(bpf.LOAD_U16, 4)]
    if sock.family == socket.AF_INET:  # which comes with its IP header
        identifier = [Step(bpf.LOAD_IP_HEADER_SIZE), Step(bpf.LOAD_U16_AT_X, 4)]
    ours = Step(bpf.IF_EQUAL, number, otherwise=1)
    bpf.attach(sock, [*identifier, ours, bpf.PASS, bpf.DROP])


class _EchoInbox(Inbox):
    """The message rooms of one address family, seen as echo replies, whole where that is needed."""

    def __init__(self, family: int, *, ids: bool) -> None:
        rest = IPV4_HEADER + HEADER + LONGEST - HEAD
        super().__init__(family, ids=ids, tail=rest if family == socket.AF_INET else 0)

    def answers(self, before: int) -> npt.NDArray[Any]:
        """Return what was received as ECHO rows, ``before`` octets into each message."""
        return records(self.back.octets, ECHO, before)


class _EchoTrack(Track):
    """A track of echo requests; ``secret`` is what their tokens are mixed with."""

    def __init__(self, secret: np.uint64, *given: Any) -> None:
        super().__init__(*given)
        self._secret = secret

    def left_as(self, flow: int, sequence: int, t1_ns: Ints, quote: bytes) -> bool:
        """Tell whether a request of ours began with ``quote``, all of it but the padding."""
        pair, port = divmod(flow, self.ports)
        sock = self.sockets[port]
        (echo,) = np.frombuffer(quote, ECHO)
        ours = np.zeros(1, ECHO)
        ours["type"], ours["identifier"] = REQUEST[sock.family], sock.number
        ours["number"], ours["sequence"] = sequence & 0xFFFF, sequence
        ours["token"] = t1_ns.astype(np.uint64) ^ self._secret
        ours["ssid"] = self.ssids[self.variant[pair]]
        ours["checksum"] = echo["checksum"]  # the kernel's, where it writes it
        return bool(ours[0] == echo)


class _EchoOutbox(Outbox):
    """Echo requests made ready; ``secret`` is what their tokens are mixed with."""

    def __init__(
        self, track: Track, *, ids: bool, padding: npt.NDArray[np.uint8], secret: np.uint64
    ) -> None:
        super().__init__(track, ids=ids, padding=padding)
        self._secret = secret
        self._numbers = np.array([sock.number for sock in track.sockets], np.uint16)
        self._echo = records(self.out.octets, ECHO)
        self._checked = track.sockets[0].family == socket.AF_INET

    def _number(self) -> None:
        self._echo["identifier"] = self._numbers[self.probes.flows % len(self._numbers)]
        self._echo["number"] = self.probes.sequence & np.uint32(0xFFFF)
        self._echo["sequence"] = self.probes.sequence

    def stamp(self, rows: slice, t1_ns: int) -> int | Ints:
        """Write the tokens of requests that are about to be sent; return T1."""
        echo = self._echo[rows]
        echo["token"] = np.uint64(t1_ns) ^ self._secret
        if self._checked:  # the kernel would do so for unprivileged sockets only
            echo["checksum"] = 0
            echo["checksum"] = checksums(self.out.octets[rows, : ECHO.itemsize])
        return t1_ns


class _EchoIntake(Intake):
    """Takes echo replies; ``secret`` is what their tokens are mixed with.

    ``count_damaged`` is told how many more of them arrived with a wrong checksum.
    """

    def __init__(
        self,
        sockets: Mapping[int, ProbeSocket],
        wall_ns: Callable[[], int],
        secret: np.uint64,
        count_damaged: Callable[[int], object],
    ) -> None:
        super().__init__(sockets, wall_ns)
        self._secret = secret
        self._count_damaged = count_damaged

    def take(self, inbox: Inbox, count: int) -> None:
        """Enter the first ``count`` messages of an inbox's arena into the ledgers."""
        assert isinstance(inbox, _EchoInbox)
        back = inbox.back
        t4_ns, stamped, dscp, ttl = self._circumstances(inbox, count)
        # Raw sockets of IPv4, and they alone, give the IP header as well.
        with_header = np.zeros(count, np.bool_)
        if inbox.family == socket.AF_INET:
            raw = [n for n, sock in self._sockets.items() if _is_raw(sock)]
            with_header = np.isin(inbox.socket_of[:count], np.array(raw, np.uint64))
        answers = np.where(
            with_header, inbox.answers(IPV4_HEADER)[:count], inbox.answers(0)[:count]
        )
        before = np.where(with_header, IPV4_HEADER, 0)
        ends = inbox.socket_of[:count] << np.uint64(16) | answers["ssid"]
        flow = self._index.find(flow_keys(back.names[:count], ends))
        sequence = answers["sequence"].astype(np.uint32)
        lost = (flow == NO_FLOW) | (back.length[:count] < before + ECHO.itemsize)
        damaged = ~lost & with_header
        lost |= (answers["type"] != REPLY[inbox.family]) | (answers["code"] != 0)
        lost |= answers["number"] != sequence & np.uint32(0xFFFF)
        # An IP header with options is longer: nobody sends such replies.
        lost |= with_header & (back.octets[:count, 0] != 0x45)
        damaged &= back.octets[:count, 0] == 0x45
        damaged[damaged] = are_damaged(back, np.flatnonzero(damaged))
        self._note_damaged(flow[damaged])
        lost |= damaged
        self.strangers += int(np.count_nonzero(lost & ~damaged))
        sent_ns = (answers["token"].astype(np.uint64) ^ self._secret).astype(np.int64)
        # A stack answers in the class of the request, or in none.
        arrived = Replies.bare(flow, sequence, sent_ns, t4_ns, stamped, dscp, ttl)
        owner = np.searchsorted(self._first_flows, flow, side="right") - 1
        owner[lost] = -1
        for n in np.unique(owner[owner >= 0]).tolist():
            track = self.tracks[n]
            own = arrived.rows(owner == n)
            strangers = track.ledger.strangers
            self.received += track.ledger.reply(own._replace(flow=own.flow - track.first_flow))
            self.strangers += track.ledger.strangers - strangers

    def _note_damaged(self, flow: Ints) -> None:
        """Count replies to these flows that arrived damaged: it is loss, and no fault of ours."""
        self._count_damaged(len(flow))
        owner = np.searchsorted(self._first_flows, flow, side="right") - 1
        for n, count in zip(*np.unique(owner, return_counts=True), strict=True):
            self.tracks[n].ledger.note_more(int(count), DAMAGED.format(protocol="ICMP"))


class IcmpProber(UdpProber):
    """Probes groups of the kind ``icmp``; see `UdpProber` for how to use it.

    Where the kernel does not let a message carry an identifier for its transmit stamp, T1 is taken
    in user space.
    """

    def __init__(self, *, ids: bool, kernel_stamps: bool = True, **rest: Any) -> None:
        self._secret = np.uint64(random.SystemRandom().getrandbits(64))
        super().__init__(ids=ids, kernel_stamps=kernel_stamps and ids, **rest)

    def _new_socket(self, source: Source) -> ProbeSocket:
        return EchoSocket(source, kernel_stamps=self._kernel_stamps, ids=self._ids)

    def _new_causes(self, sock: ProbeSocket) -> Causes | None:
        # Others are given nothing that is damaged, or, raw ones of IPv4, all of it.
        raw_v6 = _is_raw(sock) and sock.family == socket.AF_INET6
        return Causes(sock.family, raw=True) if raw_v6 else None

    def _new_intake(self, sockets: Mapping[int, ProbeSocket]) -> Intake:
        return _EchoIntake(sockets, self._wall_ns, self._secret, self._count_damaged)

    def _count_damaged(self, count: int) -> None:
        self.damaged += count

    def _new_inbox(self, family: int) -> Inbox:
        return _EchoInbox(family, ids=self._ids)

    def _new_track(self, *given: Any) -> Track:
        return _EchoTrack(self._secret, *given)

    def _new_outbox(self, track: Track) -> Outbox:
        return _EchoOutbox(track, ids=self._ids, padding=self._padding, secret=self._secret)

    def track(
        self, group: Group, ledger: Ledger, live: npt.NDArray[np.bool_], now_s: float
    ) -> Track:
        """Return a track for a group, to be handed to `arrange`."""
        track = super().track(group, ledger, live, now_s)
        ledger.stamps_there = False
        whole = track.head + track.tail + np.uint64(HEADER)
        track.head = np.minimum(whole, np.uint64(HEAD))
        track.tail = whole - track.head
        for names in (track.names, track.names_in_order):
            names[:, 2:4] = 0  # there are no ports
        track.templates[:] = 0
        echo = records(track.templates, ECHO)
        echo["type"] = REQUEST[track.sockets[0].family]
        echo["ssid"] = track.ssids
        return track

    def _hand_over(self, sock: ProbeSocket, error: IcmpError) -> None:
        """Give an error to whoever wants it; raw sockets hear of the requests of others, too."""
        if int.from_bytes(error.payload[4:6], "big") == sock.number:
            super()._hand_over(sock, error)


def _is_raw(sock: ProbeSocket) -> bool:
    return isinstance(sock, EchoSocket) and sock.raw


def are_damaged(back: Messages, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return which ICMP messages that came with a plain IP header have a wrong checksum: (rows,).

    What there was no room for is taken for zeros.
    """
    length = back.length[rows].astype(np.int64) - IPV4_HEADER
    total = _sums(back.octets[rows, IPV4_HEADER:], length)
    room = back.size - IPV4_HEADER
    long = np.flatnonzero(length > room)
    if long.size:
        rest = length[long] - room
        total[long] += _sums(back.tails[rows[long], : rest.max() + 1], rest)
    # All words, and the checksum, come to nothing, whatever the order of octets (RFC 1071 section 2).
    wrong: npt.NDArray[np.bool_] = _folded(total) != 0xFFFF
    return wrong


def _sums(octets: npt.NDArray[np.uint8], length: Ints) -> npt.NDArray[np.uint32]:
    """Return the sum of the 16-bit words in the first ``length`` octets of each row: (N,)."""
    reach = min(int(length.max(initial=0)) + 1, octets.shape[1]) & ~1
    ends = length.astype(np.uint16)[:, np.newaxis]
    within = octets[:, :reach] * (np.arange(reach, dtype=np.uint16) < ends)
    total: npt.NDArray[np.uint32] = within.view(np.uint16).sum(axis=1, dtype=np.uint32)
    return total


def checksums(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the Internet checksum (RFC 1071) of each row; its own two octets must be zero."""
    total: npt.NDArray[np.uint32] = octets.view(">u2").sum(axis=1, dtype=np.uint32)
    return ~_folded(total) & np.uint32(0xFFFF)


def _folded(total: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return sums of 16-bit words in 16 bits, with all that was carried added."""
    for _ in range(2):
        total = (total >> np.uint32(16)) + (total & np.uint32(0xFFFF))
    return total
