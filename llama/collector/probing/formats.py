"""Probe formats besides plain STAMP: what `llama.collector.probing.udp` writes for them, and reads back.

A format fills in bursts of probes by column and tells of a batch of datagrams which are replies to
its probes: of which SSID and sequence number, echoing which time stamp. A packet that does not
repeat the octets of a probe of ours, or whose HMAC is wrong, is no reply. Sockets are not known here.

Legacy reflectors echo a probe unchanged and add nothing. So what their formats give is the time
there and back with the reflector's own in it, no direction of loss, and no one-way delay.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Ints, Replies
from llama.collector.probing.plan import Group
from llama.wire import auth, llama_go, llama_python, stamp, tlv, tlv_rules

Octets = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.integer]
Numbers = npt.NDArray[np.uint32]
Ssids = npt.NDArray[np.uint16]


class Arrived(NamedTuple):
    """What the kernel said of datagrams that may be replies: columns (N,)."""

    t4_ns: Ints
    kernel_t4: npt.NDArray[np.bool_]
    dscp: Octets
    ttl: Octets

    def rows(self, keep: npt.NDArray[np.bool_] | Ints) -> Arrived:
        """Return the rows that ``keep``, a mask (N,) or their numbers, says."""
        columns: Any = [column[keep] for column in self]
        return Arrived(*columns)


class Format(Protocol):
    """How one track's probes look.

    ``tells_times`` says whether replies tell when their probe came and when they left; times
    ``apart_ns`` from one another differ as they are written. ``estimate_at`` is the octet at which
    probes have their Error Estimate; None: they have none.
    """

    tells_times: bool
    apart_ns: int
    estimate_at: int | None

    def template(self, group: Group, dscp: int, size: int, ssid: int) -> bytes:
        """Return a probe of ``size`` octets but for what `write` fills in."""

    def write(self, octets: Octets, ssid: Ssids, sequence: Numbers, t1_ns: Ints) -> None:
        """Fill in rows of ``octets``, (N, HEAD), that hold templates."""

    def probes(self, octets: Octets, length: Lengths) -> tuple[Ints, Ssids, Numbers]:
        """Return which rows may be probes of ours, their SSIDs and sequence numbers."""

    def candidates(self, octets: Octets, length: Lengths) -> tuple[Ints, Ssids]:
        """Return which rows may be replies, and their SSIDs."""

    def read(
        self, octets: Octets, length: Lengths, flow: Ints, arrived: Arrived, book: Ledger
    ) -> tuple[npt.NDArray[np.bool_], Replies, tlv.Answer]:
        """Read candidates from the peers of ``flow``: which are genuine, and those of them."""


def format_of(group: Group) -> Format | None:
    """Return the format of a group's probes; None for STAMP without authentication."""
    if group.probe == "stamp-auth":
        if group.key is None:
            raise ValueError(f"test {group.test}: stamp-auth without a key")
        return Signed(group.key)
    if group.probe == "llama-go":
        return LlamaGo()
    if group.probe == "llama-python":
        return LlamaPython()
    return None


def stamp_template(group: Group, dscp: int, size: int, ssid: int) -> bytes:
    """Return a STAMP probe without authentication, sequence number and time stamp."""
    said = 0 if group.probe == "twamp-light" else ssid  # where TWAMP-Light has it, must be zero
    base = stamp.SENDER_STRUCT.pack(0, 0, stamp.error_estimate(None), said)
    return base + _tlvs(group, dscp, size - len(base), None)


def _tlvs(group: Group, dscp: int, room: int, key: bytes | None) -> bytes:
    """Return the ``room`` octets behind a base packet: TLVs if they are wanted and have room."""
    least = tlv.SIZE + (tlv_rules.HMAC_SIZE if key is not None else 0)
    if group.probe not in ("stamp", "stamp-auth") or not group.tlvs or room < least:
        return bytes(max(room, 0))
    asked = dscp if group.reply_dscp is None else group.reply_dscp
    # Fewer than four octets hold no padding TLV; left at zero they are plain padding.
    whole = room if room == least or room >= least + 4 else least
    return tlv.request(asked, whole, key) + bytes(room - whole)


class Signed:
    """STAMP with authentication (`llama.wire.auth`), under one key."""

    tells_times = True
    apart_ns = 1
    estimate_at: int | None = 24

    def __init__(self, key: bytes) -> None:
        self._key = key

    def template(self, group: Group, dscp: int, size: int, ssid: int) -> bytes:
        """Return a probe that is yet to be signed."""
        base = bytearray(auth.BASE_SIZE)
        auth.pack_probe(base, 0, 0, stamp.error_estimate(None), ssid, self._key)
        return bytes(base) + _tlvs(group, dscp, size - auth.BASE_SIZE, self._key)

    def write(self, octets: Octets, ssid: Ssids, sequence: Numbers, t1_ns: Ints) -> None:
        """Fill in number, time and HMACs: one of four microseconds a probe, two with TLVs."""
        view = auth.sender_view(octets)
        view["sequence"] = sequence
        view["timestamp"] = stamp.ntp_column(t1_ns)
        first, place = auth.BASE_SIZE, auth.BASE_SIZE + tlv.SIZE
        for row, number in zip(octets, sequence.tolist(), strict=True):
            packet = row.data
            auth.sign(packet, self._key)
            if packet[first]:  # the U flag of the first TLV, without which there are none
                mac = tlv_rules.digest(self._key, number, bytes(packet[first:place]))
                packet[place + 4 : place + 20] = mac

    def probes(self, octets: Octets, length: Lengths) -> tuple[Ints, Ssids, Numbers]:
        """Return what is long enough, by what it says, genuine or not."""
        rows, said = np.flatnonzero(length >= auth.BASE_SIZE), auth.sender_view(octets)
        return rows, said["ssid"][rows].astype(np.uint16), said["sequence"][rows].astype(np.uint32)

    def candidates(self, octets: Octets, length: Lengths) -> tuple[Ints, Ssids]:
        """Return what is long enough, by the SSIDs of authenticated packets."""
        rows = np.flatnonzero(length >= auth.BASE_SIZE)
        return rows, auth.reflector_view(octets)["ssid"][rows].astype(np.uint16)

    def read(
        self, octets: Octets, length: Lengths, flow: Ints, arrived: Arrived, book: Ledger
    ) -> tuple[npt.NDArray[np.bool_], Replies, tlv.Answer]:
        """Read what our key has signed; TLVs under no HMAC of it say nothing."""
        genuine = np.array([auth.verify(row.data, (self._key,)) is not None for row in octets])
        octets, length, flow = octets[genuine], length[genuine], flow[genuine]
        said = auth.reflector_view(octets)
        keys = (self._key,)
        tlvs = tlv.read(octets, length, auth.BASE_SIZE, lambda _row: keys, must_authenticate=True)
        estimate = said["error_estimate"].astype(np.uint16)
        t4_ns, kernel_t4, dscp, ttl = arrived.rows(genuine)
        replies = Replies(
            flow=flow,
            sequence=said["sender_sequence"].astype(np.uint32),
            echoed_ns=stamp.unix_ns_column(said["sender_timestamp"].astype(np.uint64)),
            number=said["sequence"].astype(np.uint32),
            t2_ns=stamp.time_column(said["receive_timestamp"].astype(np.uint64), estimate),
            t3_ns=stamp.time_column(said["timestamp"].astype(np.uint64), estimate),
            t4_ns=t4_ns,
            kernel_t4=kernel_t4,
            dscp_there=tlvs.dscp,
            dscp_asked=tlvs.dscp,
            dscp_here=dscp,
            ttl_there=said["sender_ttl"].astype(np.uint8),
            ttl_here=ttl,
            numbered=np.ones(len(flow), np.bool_),
            follow_number=tlvs.follow_sequence,
            follow_ns=follow_column(tlvs.follow_stamp, estimate),
            clock_error_ns=stamp.error_column(estimate),
        )
        return genuine, replies, tlvs


class _Echoed:
    """What the two formats of earlier fleets have in common.

    Their probes carry SSID and sequence number together as their token. The time that they carry as
    well must be that of the probe, to the last bit: it is what a stranger cannot know.
    """

    tells_times = False
    estimate_at: int | None = None

    def unpack(self, octets: Octets, length: Lengths) -> llama_go.Replies | llama_python.Replies:
        """Return the columns of echoes."""
        raise NotImplementedError

    def sent(self, t1_ns: Ints) -> npt.NDArray[np.generic]:
        """Return how probes sent at ``t1_ns`` tell their time."""
        raise NotImplementedError

    def probes(self, octets: Octets, length: Lengths) -> tuple[Ints, Ssids, Numbers]:
        """Return what is whole, by the two halves of its token."""
        ok, token = self.unpack(octets, length)[:2]
        rows = np.flatnonzero(ok & (token < np.uint64(1 << 48)))
        token = token[rows]
        numbers = (token & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        return rows, (token >> np.uint64(32)).astype(np.uint16), numbers

    def candidates(self, octets: Octets, length: Lengths) -> tuple[Ints, Ssids]:
        """Return what looks like an echo of ours: like the probe itself."""
        return self.probes(octets, length)[:2]

    def read(
        self, octets: Octets, length: Lengths, flow: Ints, arrived: Arrived, book: Ledger
    ) -> tuple[npt.NDArray[np.bool_], Replies, tlv.Answer]:
        """Read echoes that repeat the time of their probe."""
        _, token, _, echoed = self.unpack(octets, length)
        sequence = (token & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        t1_ns = book.t1[book.cells(flow, sequence)]
        genuine: npt.NDArray[np.bool_] = (self.sent(t1_ns) == echoed) & (t1_ns != 0)
        t4_ns, kernel_t4, dscp, ttl = arrived.rows(genuine)
        replies = Replies.bare(
            flow[genuine], sequence[genuine], t1_ns[genuine], t4_ns, kernel_t4, dscp, ttl
        )
        # Zero is a class: the reply was asked for in one, which is all that an `Answer` must tell.
        said = tlv.Answer(*(np.zeros(len(t4_ns), np.uint64) for _ in tlv.Answer._fields))
        return genuine, replies, said._replace(refused=np.zeros(len(t4_ns), np.bool_))


class LlamaGo(_Echoed):
    """LLAMA Go's probes (`llama.wire.llama_go`)."""

    apart_ns = 1

    def template(self, group: Group, dscp: int, size: int, ssid: int) -> bytes:
        """Return a probe that asks for its reply in the group's class."""
        octets, now = np.zeros((1, size), np.uint8), np.full(1, 1 << 60, np.uint64)
        llama_go.pack(octets, np.zeros(1, np.uint64), _reply_tos(group, dscp), now, size)
        return octets.tobytes()

    def write(self, octets: Octets, ssid: Ssids, sequence: Numbers, t1_ns: Ints) -> None:
        """Fill in token and time."""
        llama_go.write(octets, _tokens(ssid, sequence), t1_ns.astype(np.uint64))

    def unpack(self, octets: Octets, length: Lengths) -> llama_go.Replies:
        """Return the columns of echoes."""
        return llama_go.unpack(octets, length)

    def sent(self, t1_ns: Ints) -> npt.NDArray[np.generic]:
        """Return nanoseconds since 1970."""
        return t1_ns.astype(np.uint64)


class LlamaPython(_Echoed):
    """The archived Python LLAMA's probes (`llama.wire.llama_python`)."""

    apart_ns = 512  # of a double that counts milliseconds since 1970, until 2109

    def template(self, group: Group, dscp: int, size: int, ssid: int) -> bytes:
        """Return a probe that asks for its reply in the group's class."""
        if size != llama_python.SIZE:
            raise ValueError(f"a llama-python probe has {llama_python.SIZE} octets, not {size}")
        octets, zero = np.zeros((1, size), np.uint8), np.zeros(1, np.uint64)
        llama_python.pack(octets, zero, _reply_tos(group, dscp), zero.astype(np.float64))
        return octets.tobytes()

    def write(self, octets: Octets, ssid: Ssids, sequence: Numbers, t1_ns: Ints) -> None:
        """Fill in token and time."""
        llama_python.write(octets, _tokens(ssid, sequence), self.sent(t1_ns))

    def unpack(self, octets: Octets, length: Lengths) -> llama_python.Replies:
        """Return the columns of echoes."""
        return llama_python.unpack(octets, length)

    def sent(self, t1_ns: Ints) -> npt.NDArray[np.float64]:
        """Return milliseconds since 1970, which are good for half a microsecond."""
        milliseconds: npt.NDArray[np.float64] = t1_ns / 1e6
        return milliseconds


def _reply_tos(group: Group, dscp: int) -> Octets:
    asked = dscp if group.reply_dscp is None else group.reply_dscp
    return np.array([asked << 2], np.uint8)


def _tokens(ssid: Ssids, sequence: Numbers) -> npt.NDArray[np.uint64]:
    return ssid.astype(np.uint64) << np.uint64(32) | sequence


def follow_column(
    stamps: npt.NDArray[np.uint64], estimate: npt.NDArray[np.uint16]
) -> npt.NDArray[np.int64]:
    """Return the Unix nanoseconds of follow-up stamps, 0 where there is none."""
    if not stamps.any():
        return np.zeros(len(stamps), np.int64)
    return np.where(stamps != 0, stamp.time_column(stamps, estimate), np.int64(0))
