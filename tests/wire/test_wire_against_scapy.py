"""Our packets read by scapy's STAMP codec, which is not ours, and scapy's read by us.

scapy knows the unauthenticated packets with the SSID and TLVs of RFC 8972, without the meaning of
any one TLV, and not the authenticated packets. It counts the flags from the wrong end (its ``U`` is
0x01; in the standard bit 0 is the first on the wire), so flags are compared as numbers.
"""

from __future__ import annotations

import numpy as np
import plain_stamp
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.stamp import (
    ErrorEstimate,
    STAMPSessionReflectorTestUnauthenticated,
    STAMPSessionSenderTestUnauthenticated,
    STAMPTestTLV,
)
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import PROPERTIES, arena, golden

from llama.wire import scalar, stamp, tlv

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
EPOCH = 2_208_988_800  # s, of Unix' time in NTP's, which scapy counts in


def estimate(value: int) -> ErrorEstimate:
    """Return an Error Estimate as scapy has it."""
    return ErrorEstimate(S=value >> 15, Z=value >> 14 & 1, scale=value >> 8 & 63,
                         multiplier=value & 255)  # fmt: skip


def raw_stamp(packet, name: str) -> int:
    """Return the 64 bits of a time stamp that scapy dissected."""
    return packet.fields[name]


tlvs = st.lists(
    st.tuples(st.sampled_from((0, 0x80, 0x40, 0x20, 0xE0)), st.integers(1, 255),
              st.binary(max_size=40)),
    max_size=6,
)  # fmt: skip


class ScapyReadsOursTests(SynchronousTestCase):
    def test_probes(self) -> None:
        """Scapy finds in our golden probe what the RFC says is there."""
        packet = STAMPSessionSenderTestUnauthenticated(golden("stamp-probe-tlvs"))
        self.assertEqual((7, 101, 0), (packet.seq, packet.ssid, packet.mbz))
        self.assertEqual(0xE98AF040_80000000, raw_stamp(packet, "ts"))
        error = packet.err_estimate
        self.assertEqual((1, 0, 14, 1), (error.S, error.Z, error.scale, error.multiplier))
        self.assertEqual([4, 7, 240, 1], [each.type for each in packet.tlv_objects])
        self.assertEqual([0x80] * 4, [int(each.flags) for each in packet.tlv_objects])
        self.assertEqual([4, 16, 20, 4], [each.len for each in packet.tlv_objects])

    def test_replies(self) -> None:
        """Scapy finds in our golden reply what the RFC says is there."""
        packet = STAMPSessionReflectorTestUnauthenticated(golden("stamp-reply-tlvs"))
        self.assertEqual((5, 101, 7, 64), (packet.seq, packet.ssid, packet.seq_sender,
                                           packet.ttl_sender))  # fmt: skip
        self.assertEqual(0xE98AF040_8083126F, raw_stamp(packet, "ts"))
        self.assertEqual(0xE98AF040_80418938, raw_stamp(packet, "ts_rx"))
        self.assertEqual(0xE98AF040_80000000, raw_stamp(packet, "ts_sender"))
        self.assertEqual((0, 0), (packet.mbz1, packet.mbz2))
        self.assertEqual([0] * 4, [int(each.flags) for each in packet.tlv_objects])

    @PROPERTIES
    @given(u32, u64, u16.map(lambda value: value & 0xBFFF), u16, st.integers(0, 63),
           st.integers(56, 300))  # fmt: skip
    def test_whatever_we_pack(
        self, sequence: int, time: int, error: int, ssid: int, dscp: int, size: int
    ) -> None:
        """Every field of every probe that our columns hold is where scapy looks for it."""
        octets = np.zeros((1, 512), np.uint8)
        octets[0, 44 : 44 + size] = np.frombuffer(tlv.request(dscp, size), np.uint8)
        view = stamp.sender_view(octets)
        view["sequence"], view["timestamp"] = sequence, time
        view["error_estimate"], view["ssid"] = error, ssid
        packet = STAMPSessionSenderTestUnauthenticated(octets[0, : 44 + size].tobytes())
        self.assertEqual((sequence, ssid, 0), (packet.seq, packet.ssid, packet.mbz))
        self.assertEqual(time, raw_stamp(packet, "ts"))
        self.assertEqual(bytes(estimate(error)), bytes(packet.err_estimate))
        self.assertEqual(dscp << 2, packet.tlv_objects[0].value[0])
        self.assertEqual(size, sum(4 + each.len for each in packet.tlv_objects))


class WeReadScapysTests(SynchronousTestCase):
    @PROPERTIES
    @given(u32, st.integers(0, 2**62), u16.map(lambda value: value & 0xBFFF), u16, tlvs)
    def test_probes(self, sequence: int, time: int, error: int, ssid: int, some: list) -> None:
        """Sequence number, stamp, error estimate, SSID and TLVs of a scapy sender are read."""
        packet = bytes(
            STAMPSessionSenderTestUnauthenticated(
                seq=sequence, ts=time / 2**32, err_estimate=estimate(error), ssid=ssid,
                tlv_objects=[STAMPTestTLV(flags=flags, type=kind, len=len(value), value=value)
                             for flags, kind, value in some],
            )
        )  # fmt: skip
        probe = plain_stamp.stamp_probe(packet)
        assert probe is not None
        self.assertEqual(
            (sequence, error, ssid), (probe.sequence, probe.error_estimate, probe.ssid)
        )
        self.assertEqual(packet[4:12], probe.timestamp.to_bytes(8, "big"))
        octets, _ = arena([packet])
        view = stamp.sender_view(octets)[0]
        self.assertEqual(tuple(probe), tuple(view[name] for name in plain_stamp.StampProbe._fields))
        found = scalar.tlvs(packet[44:])
        for each, (flags, kind, value) in zip(found, some, strict=False):
            self.assertEqual((flags, kind, len(value)), (each.flags, each.type, each.length))
        self.assertTrue(len(found) == len(some) or found[-1].malformed)

    @PROPERTIES
    @given(u32, u32, u16.map(lambda value: value & 0xBFFF), u16, u8)
    def test_replies(self, number: int, sequence: int, error: int, ssid: int, ttl: int) -> None:
        """Every field of a scapy reflector's reply is read, in the columns and plainly."""
        packet = bytes(
            STAMPSessionReflectorTestUnauthenticated(
                seq=number, ts=EPOCH + 3.5, err_estimate=estimate(error), ssid=ssid, ts_rx=EPOCH + 2.25,
                seq_sender=sequence, ts_sender=EPOCH + 1.125, err_estimate_sender=estimate(error ^ 1),
                ttl_sender=ttl,
            )
        )  # fmt: skip
        reply = plain_stamp.stamp_reply(packet)
        assert reply is not None
        self.assertEqual(
            (number, error, ssid, sequence, error ^ 1, ttl),
            (reply.sequence, reply.error_estimate, reply.ssid, reply.sender_sequence,
             reply.sender_error_estimate, reply.sender_ttl),
        )  # fmt: skip
        self.assertEqual(
            [3_500_000_000, 2_250_000_000, 1_125_000_000],
            [stamp.unix_ns_from_ntp(time)
             for time in (reply.timestamp, reply.receive_timestamp, reply.sender_timestamp)],
        )  # fmt: skip
        octets, _ = arena([packet])
        view = stamp.reflector_view(octets)[0]
        self.assertEqual(tuple(reply), tuple(view[name] for name in plain_stamp.StampReply._fields))
