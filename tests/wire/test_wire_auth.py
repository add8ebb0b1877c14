"""Authenticated STAMP packets, against golden octets and RFC 2104 worked out by hand."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from plain_stamp import StampProbe, StampReply, auth_probe, auth_reply
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import KEY, PROPERTIES, arena, golden, hostile

from llama.wire import auth

T1, T2, T3 = 0xE98AF040_80000000, 0xE98AF040_80418938, 0xE98AF040_8083126F


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """Return HMAC-SHA-256 as RFC 2104 section 2 defines it, for keys of up to 64 octets."""
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in key) + text).digest()
    return hashlib.sha256(bytes(octet ^ 0x5C for octet in key) + inner).digest()


class PackTests(SynchronousTestCase):
    def test_probes_are_the_golden_octets(self) -> None:
        """A probe has every field where figure 3 has it, zeros between, and the HMAC behind."""
        packet = bytearray(b"\xee" * 112)
        auth.pack_probe(packet, 7, T1, 0x8E01, 101, KEY)
        self.assertEqual(golden("auth-probe"), bytes(packet))
        self.assertEqual(hmac_sha256(KEY, packet[:96])[:16], bytes(packet[96:]))

    def test_replies_are_the_golden_octets(self) -> None:
        """A reply has every field where figure 4 has it, zeros between, and the HMAC behind."""
        packet = bytearray(golden("auth-probe"))
        packet[4:16], packet[28:96] = b"\xee" * 12, b"\xee" * 68
        auth.answer(packet, 5, T3, 0x9001, T2, 64, KEY)
        self.assertEqual(golden("auth-reply"), bytes(packet))
        self.assertEqual(hmac_sha256(KEY, packet[:96])[:16], bytes(packet[96:]))

    def test_probes_are_answered_in_place(self) -> None:
        """The reply to the golden probe is the golden reply; what is behind it stays."""
        packet = bytearray(golden("auth-probe-tlvs"))
        auth.answer(packet, 5, T3, 0x9001, T2, 64, KEY)
        self.assertEqual(golden("auth-reply"), bytes(packet[:112]))
        self.assertEqual(golden("auth-probe-tlvs")[112:], bytes(packet[112:]))

    def test_views_and_scalar_decoders_agree(self) -> None:
        """A batch's columns are what the plain decoder reads."""
        octets, _ = arena([golden("auth-probe"), golden("auth-reply")])
        probe = auth_probe(golden("auth-probe"))
        self.assertEqual(StampProbe(7, T1, 0x8E01, 101), probe)
        self.assertEqual(probe, tuple(auth.sender_view(octets)[0].tolist()))
        reply = auth_reply(golden("auth-reply"))
        self.assertEqual(StampReply(5, T3, 0x9001, 101, T2, 7, T1, 0x8E01, 64), reply)
        self.assertEqual(reply, tuple(auth.reflector_view(octets)[1].tolist()))
        self.assertIsNone(auth_probe(bytes(111)))
        self.assertIsNone(auth_reply(bytes(111)))


class VerifyTests(SynchronousTestCase):
    def test_the_key_that_made_it_is_returned(self) -> None:
        """While keys are changed both the old and the new one are good."""
        packet = golden("auth-probe")
        self.assertEqual(KEY, auth.verify(packet, (KEY,)))
        self.assertEqual(KEY, auth.verify(packet, (b"new" * 8, KEY)))

    def test_no_more_than_two_keys_are_tried(self) -> None:
        """A hostile packet costs two digests, however many keys there are."""
        self.assertIsNone(auth.verify(golden("auth-probe"), (b"a" * 16, b"b" * 16, KEY)))

    def test_every_octet_is_covered(self) -> None:
        """Whichever bit of the packet is changed, it is refused."""
        packet = golden("auth-probe")
        for at in range(112):
            forged = bytearray(packet)
            forged[at] ^= 1 << at % 8
            self.assertIsNone(auth.verify(forged, (KEY,)), at)

    def test_must_be_zero_is_ignored(self) -> None:
        """Octets that ought to be zero may be anything, if they are signed as they are."""
        packet = bytearray(golden("auth-probe"))
        packet[4:16] = packet[28:40] = b"not zero at!"
        self.assertIsNone(auth.verify(packet, (KEY,)))
        auth.sign(packet, KEY)
        self.assertEqual(KEY, auth.verify(packet, (KEY,)))
        self.assertEqual(auth_probe(golden("auth-probe")), auth_probe(packet))

    def test_short_and_keyless_packets_are_refused(self) -> None:
        """Without the whole HMAC, or without a key to check it by, nothing is authentic."""
        self.assertIsNone(auth.verify(golden("auth-probe")[:111], (KEY,)))
        self.assertIsNone(auth.verify(golden("auth-probe"), ()))
        self.assertIsNone(auth.verify(b"", (KEY,)))

    @PROPERTIES
    @given(hostile, st.binary(min_size=16, max_size=64))
    def test_verification_is_the_rfc(self, packet: bytes, key: bytes) -> None:
        """A packet is authentic if and only if RFC 2104, truncated, says so."""
        signed = packet[:96].ljust(96, b"\0")
        good = signed + hmac_sha256(key, signed)[:16]
        self.assertEqual(key, auth.verify(good, (key,)))
        genuine = len(packet) >= 112 and packet[96:112] == hmac_sha256(key, packet[:96])[:16]
        self.assertEqual(genuine, auth.verify(packet, (key,)) == key)
