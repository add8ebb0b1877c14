"""Authenticated probes at the reflector, against golden octets and the peers' own reading of the RFC."""

from __future__ import annotations

from ipaddress import ip_network

import numpy as np
from peers import formats
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import KEY, golden

from llama.reflector import signed
from llama.reflector.arrival import packed_address
from llama.reflector.keyring import KeyRing
from llama.wire import auth, tlv

HERE = packed_address("192.0.2.1")
T2, T3 = 0xE98AF040_80418938, 0xE98AF040_8083126F
STATE = tlv.State(1709200000 * 10**9, 3, 9)
FOLLOW = tlv.FollowUp(4, 0xE98AF040_80000000, tlv.SW_LOCAL)
NONE = np.zeros(64, np.bool_)


def reply_to(packet: bytes, key: bytes = KEY) -> bytes:
    """Return the reply to a genuine probe that came with DSCP 46, ECN 1 and TTL 64."""
    octets = memoryview(bytearray(packet))
    signed.answer(octets, len(packet), key, 5, 0x9001, T2, 64, 0xB9, FOLLOW, STATE, NONE)
    signed.depart(octets, T3, key)
    return bytes(octets)


class SignedTests(SynchronousTestCase):
    def key_of(self, packet: bytes, ring: KeyRing) -> bytes | None:
        """Return the key that a probe from 192.0.2.1 is found to be signed with."""
        room = memoryview(bytearray(packet.ljust(300, b"\xee")))
        return signed.key_of(ring, room, len(packet), *HERE)

    def test_golden_probes_get_golden_replies(self) -> None:
        """With TLVs and without, what goes back is what the RFCs say."""
        self.assertEqual(golden("auth-reply"), reply_to(golden("auth-probe")))
        self.assertEqual(golden("auth-reply-tlvs"), reply_to(golden("auth-probe-tlvs")))

    def test_a_reply_is_signed_once(self) -> None:
        """A probe costs two digests, one to verify it and one to sign the reply as it leaves."""
        digests: list[int] = []
        digest = auth.digest
        self.patch(auth, "digest", lambda key, packet: digests.append(1) or digest(key, packet))
        probe = golden("auth-probe")
        self.assertEqual(KEY, self.key_of(probe, KeyRing([(KEY, (), ())])))
        self.assertEqual(golden("auth-reply"), reply_to(probe))
        self.assertEqual(2, len(digests))

    def test_the_key_is_found_by_prefix_and_ssid(self) -> None:
        """The ring says which two keys are tried; a probe signed with another is nobody's."""
        probe = golden("auth-probe")
        self.assertEqual(101, signed.ssid_of(memoryview(probe)))
        for ring, found in (
            ([(KEY, (), ())], True),
            ([(b"x" * 16, (), ()), (KEY, (), ())], True),
            ([(KEY, [ip_network("192.0.2.0/24")], ())], True),
            ([(KEY, [ip_network("198.51.100.0/24")], ())], False),
            ([(KEY, (), (101,))], True),
            ([(KEY, (), (102,))], False),
            ([(b"x" * 16, (), ()), (b"y" * 16, (), ()), (KEY, (), ())], False),
        ):
            self.assertEqual(KEY if found else None, self.key_of(probe, KeyRing(ring)), ring)

    def test_forged_and_short_probes_have_no_key(self) -> None:
        """One wrong bit, one octet too few, or no authentication at all."""
        ring = KeyRing([(KEY, (), ())])
        probe = golden("auth-probe")
        self.assertIsNone(self.key_of(probe[:111], ring))
        self.assertIsNone(self.key_of(probe[:50] + b"\1" + probe[51:], ring))
        self.assertIsNone(self.key_of(golden("stamp-probe-tlvs") + bytes(100), ring))

    def test_replies_are_known_for_replies(self) -> None:
        """Two reflectors with one key do not answer each other: a genuine reply is no probe."""
        self.assertTrue(signed.is_reply(memoryview(golden("auth-reply")), T3))
        self.assertFalse(signed.is_reply(memoryview(golden("auth-probe")), T3))

    def test_unsigned_tlvs_are_not_acted_upon(self) -> None:
        """Who can add octets to a genuine probe gets them back with the I flag."""
        cos = bytes.fromhex("80040004b8000000")
        reply = reply_to(golden("auth-probe") + cos)
        self.assertEqual(bytes.fromhex("20040004b8000000"), reply[112:])

    def test_peers_find_our_replies_genuine(self) -> None:
        """An implementation of the RFC that is not ours verifies both HMACs."""
        for name in ("auth-probe", "auth-probe-tlvs"):
            self.assertTrue(formats.is_signed(golden(name), KEY))
            reply = reply_to(golden(name))
            self.assertTrue(formats.is_signed(reply, KEY))
            self.assertEqual((5, 101, 7, 64, T2, T3), tuple(
                getattr(formats.AuthReply(reply), field)
                for field in ("seq", "ssid", "seq_sender", "ttl_sender", "ts_rx", "ts")
            ))  # fmt: skip

    def test_we_find_probes_of_peers_genuine(self) -> None:
        """A probe made by an implementation that is not ours is answered, its TLVs as well."""
        tlvs = [formats.Tlv(flags=0x80, type=4, len=4, value=bytes(4)),
                formats.Tlv(flags=0x80, type=8, len=16, value=bytes(16))]  # fmt: skip
        probe = formats.AuthProbe(seq=7, ts=T2, err_estimate=1, ssid=9, tlv_objects=tlvs)
        packet = formats.signed(bytes(probe), KEY)
        self.assertEqual(KEY, self.key_of(packet, KeyRing([(KEY, (), ())])))
        reply = reply_to(packet)
        self.assertTrue(formats.is_signed(reply, KEY))
        self.assertEqual([0, 0], [int(each.flags) for each in formats.AuthReply(reply).tlv_objects])
