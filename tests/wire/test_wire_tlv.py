"""STAMP's TLVs, against golden octets, the rules of RFC 8972 section 4 and the scalar decoder."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import KEY, PROPERTIES, arena, batches, golden

from llama.wire import scalar, tlv, tlv_rules

STATE = tlv.State(1709200000 * 10**9, 3, 9)
FOLLOW = tlv.FollowUp(4, 0xE98AF040_80000000, tlv.SW_LOCAL)
NONE = np.zeros(64, np.bool_)
ALL = np.ones(64, np.bool_)
U, M, I = tlv.UNRECOGNISED, tlv.MALFORMED, tlv.INTEGRITY  # noqa: E741


def one(kind: int, value: bytes, flags: int = U, length: int | None = None) -> bytes:
    """Return the octets of a TLV."""
    size = len(value) if length is None else length
    return bytes((flags, kind)) + size.to_bytes(2, "big") + value


def reflect(area: bytes, tos: int = 0, permitted: np.ndarray = NONE, **more) -> tuple[bytes, int]:
    """Return the TLVs of the reply to a probe with the TLVs ``area``, and the reply's TOS."""
    octets = bytearray(area)
    reply_tos = tlv.reflect_one(octets, tos, FOLLOW, STATE, permitted, **more)
    return bytes(octets), reply_tos


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """Return HMAC-SHA-256 as RFC 2104 section 2 defines it, for keys of up to 64 octets."""
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in key) + text).digest()
    return hashlib.sha256(bytes(octet ^ 0x5C for octet in key) + inner).digest()


class SenderTests(SynchronousTestCase):
    def test_requests_are_the_golden_octets(self) -> None:
        """Our sender writes U=1, M=I=0, the class it asks for, and zeros to be filled in."""
        self.assertEqual(golden("stamp-probe-tlvs")[44:], tlv.request(46, 60))

    def test_authenticated_requests_are_the_golden_octets(self) -> None:
        """The HMAC TLV stands behind all TLVs but the padding and covers the sequence number."""
        self.assertEqual(golden("auth-probe-tlvs")[112:], tlv.request(46, 80, KEY, 7))
        area = golden("auth-probe-tlvs")[112:]
        digest = hmac_sha256(KEY, b"\0\0\0\7" + area[:52])[:16]
        self.assertEqual(digest, area[56:72])

    def test_sizes_without_room_are_refused(self) -> None:
        """A packet size that would need a cut TLV is an error when the test is set up."""
        for size in (0, 51, 53, 54, 55):
            self.assertRaises(ValueError, tlv.request, 0, size)
        for size in (52, 56, 57, 1400):
            self.assertEqual(size, len(tlv.request(0, size)))
        self.assertRaises(ValueError, tlv.request, 0, 71, KEY)
        self.assertEqual(72, len(tlv.request(0, 72, KEY)))

    def test_replies_are_read(self) -> None:
        """The golden reply says which class, ECN, stamp and state the reflector had."""
        octets, length = arena([golden("stamp-reply-tlvs")])
        answer = tlv.read(octets, length)
        self.assertEqual(
            (46, False, 4, FOLLOW.stamp, STATE.started_ns, 3, 9),
            tuple(column[0].item() for column in answer),
        )

    def test_unrecognised_tlvs_are_passed_over(self) -> None:
        """A reflector that only copies TLVs is not taken to have answered them."""
        packet = golden("stamp-reply")[:44] + tlv.request(46, 60)
        octets, length = arena([packet])
        answer = tlv.read(octets, length)
        self.assertEqual((tlv.UNKNOWN, 0, 0), (answer.dscp[0], answer.follow_stamp[0],
                                               answer.started_ns[0]))  # fmt: skip

    def test_each_tlv_is_passed_over_by_itself(self) -> None:
        """A peer that knows the standard's TLVs, but not ours, is read as far as it goes."""
        packet = bytearray(golden("stamp-reply-tlvs"))
        packet[44 + 28] = U
        octets, length = arena([bytes(packet)])
        answer = tlv.read(octets, length)
        self.assertEqual((46, FOLLOW.stamp, 0),
                         (answer.dscp[0], answer.follow_stamp[0], answer.started_ns[0]))  # fmt: skip

    def test_nothing_is_read_behind_a_malformed_tlv(self) -> None:
        """An M flag ends the reading, by column as in the walk."""
        packet = bytearray(golden("stamp-reply-tlvs"))
        packet[44 + 8] = M
        octets, length = arena([bytes(packet)])
        answer = tlv.read(octets, length)
        self.assertEqual((46, 0, 0),
                         (answer.dscp[0], answer.follow_stamp[0], answer.started_ns[0]))  # fmt: skip

    def test_nothing_is_read_where_integrity_failed(self) -> None:
        """One I flag anywhere and no TLV of the reply is believed."""
        for at in (0, 8, 28, 52):
            packet = bytearray(golden("stamp-reply-tlvs"))
            packet[44 + at] = I
            octets, length = arena([bytes(packet)])
            self.assertEqual(tlv.UNKNOWN, tlv.read(octets, length).dscp[0], at)

    def test_forged_tlvs_of_authenticated_replies_are_not_read(self) -> None:
        """With a key, TLVs count only under the right HMAC over the right sequence number."""
        packet = golden("auth-reply-tlvs")
        area = packet[112:]
        self.assertEqual(46, tlv.read_one(area, 5, (KEY,), True).dscp)
        self.assertEqual(46, tlv.read_one(area, 5, (b"old" * 8, KEY), True).dscp)
        self.assertEqual(tlv.UNKNOWN, tlv.read_one(area, 6, (KEY,), True).dscp)
        self.assertEqual(tlv.UNKNOWN, tlv.read_one(area, 5, (b"old" * 8,), True).dscp)
        self.assertEqual(tlv.UNKNOWN, tlv.read_one(area, 5, (), True).dscp)
        self.assertEqual(tlv.UNKNOWN, tlv.read_one(area[:52], 5, (KEY,), True).dscp)
        octets, length = arena([packet])
        answer = tlv.read(octets, length, 112, lambda row: (KEY,), True)
        self.assertEqual(46, answer.dscp[0])


class ReflectorTests(SynchronousTestCase):
    def test_replies_are_the_golden_octets(self) -> None:
        """A probe of ours is answered by column as the standard has it."""
        packet = golden("stamp-reply")[:44] + golden("stamp-probe-tlvs")[44:]
        octets, length = arena([packet, packet[:-8], packet])
        behind = octets[1, 104:].copy()
        stamp = np.full(3, FOLLOW.stamp, np.uint64)
        tos = np.array([0xB9] * 3, np.uint8)
        reply_tos = tlv.reflect(octets, length, tos, np.full(3, 4, np.uint32), stamp, STATE, NONE)
        self.assertEqual([0xB8] * 3, reply_tos.tolist())
        self.assertEqual(golden("stamp-reply-tlvs"), octets[0, :104].tobytes())
        self.assertEqual(golden("stamp-reply-tlvs")[:96], octets[1, :96].tobytes())
        self.assertEqual(golden("stamp-reply-tlvs"), octets[2, :104].tobytes())
        self.assertTrue((octets[1, 104:] == behind).all())

    def test_one_packet_is_answered_as_a_batch_is(self) -> None:
        """The path for single packets writes the golden octets, too."""
        area, tos = reflect(golden("stamp-probe-tlvs")[44:], 0xB9)
        self.assertEqual((golden("stamp-reply-tlvs")[44:], 0xB8), (area, tos))
        usual = bytearray(golden("stamp-probe-tlvs")[44:96])
        self.assertEqual(0xB8, tlv.reflect_usual_one(usual, 0xB9, FOLLOW, STATE, NONE))
        self.assertEqual(golden("stamp-reply-tlvs")[44:96], bytes(usual))

    def test_authenticated_replies_are_the_golden_octets(self) -> None:
        """The reply's HMAC TLV covers its own sequence number and its own TLVs."""
        area, _ = reflect(
            golden("auth-probe-tlvs")[112:], 0xB9, must_authenticate=True,
            keys=(b"another key that is tried first", KEY), probe_sequence=7, reply_sequence=5,
        )  # fmt: skip
        self.assertEqual(golden("auth-reply-tlvs")[112:], area)
        digest = hmac_sha256(KEY, b"\0\0\0\5" + area[:52])[:16]
        self.assertEqual(digest, area[56:72])

    def test_class_of_service_follows_the_policy(self) -> None:
        """DSCP1 is used where the configuration allows it, or where it is the probe's own class."""
        for dscp, tos, permitted, reply_tos, rp in (
            (46, 0x28, ALL, 0xB8, 0),
            (46, 0x28, NONE, 0x28, 1),
            (10, 0x2B, NONE, 0x28, 0),
            (0, 0x28, NONE, 0x28, 1),
        ):
            area, tos_out = reflect(
                one(4, (dscp << 10).to_bytes(2, "big") + b"\0\0"), tos, permitted
            )
            self.assertEqual(reply_tos, tos_out)
            value = dscp << 10 | tos << 2 | rp
            self.assertEqual(one(4, value.to_bytes(2, "big") + b"\0\0", 0), area)

    def test_reserved_bits_are_zeroed(self) -> None:
        """Reserved flags, fields and whatever the sender left in RP do not come back."""
        area, _ = reflect(one(4, b"\xb8\x03\xff\xff", 0xFF) + one(7, b"\xff" * 16, 0xFF), 0)
        follow = b"\0\0\0\4" + FOLLOW.stamp.to_bytes(8, "big") + b"\2\0\0\0"
        self.assertEqual(one(4, b"\xb8\x01\0\0", 0) + one(7, follow, 0), area)

    def test_without_an_earlier_stamp_follow_up_is_zero(self) -> None:
        """The first reply of a session has no reply before it to speak of."""
        octets = bytearray(one(7, b"\xff" * 16))
        tlv.reflect_one(octets, 0, tlv.FollowUp(9, 0, 2), STATE, NONE)
        self.assertEqual(one(7, bytes(16), 0), bytes(octets))

    def test_unrecognised_types_are_copied_with_the_u_flag(self) -> None:
        """Types we do not know, reserved ones, and another's type 240 come back with U=1 alone."""
        for kind in (0, 2, 3, 5, 6, 9, 239, 240, 241, 252, 255):
            area, _ = reflect(one(kind, b"abcd", 0x60) + one(4, bytes(4)))
            self.assertEqual(one(kind, b"abcd", U) + one(4, b"\0\0\0\0", 0), area)
        foreign = one(240, b"MARK" + bytes(16))
        self.assertEqual(foreign, reflect(foreign)[0])

    def test_behind_a_malformed_tlv_all_is_copied(self) -> None:
        """M=1 on it, nothing behind it is processed, what was before it is answered."""
        rest = one(4, b"\xb8\0\0\0", 0xE0) + one(1, b"xy")
        for bad, answer in (
            (one(4, b"abc", 0xA0), one(4, b"abc", M)),
            (one(8, b"abcd"), one(8, b"abcd", M | I)),
            (one(7, b"abcdefghijklmnop!"), one(7, bytes(12) + b"mnop!", M)),
            (one(7, b"abcd"), one(7, bytes(4), M)),
        ):
            area, _ = reflect(one(1, b"", 0xFF) + bad + rest)
            flags = answer[0] & I
            self.assertEqual(one(1, b"", flags) + answer + rest, area)

    def test_a_tlv_longer_than_the_packet_is_malformed(self) -> None:
        """A length that leads out of the packet sets M, whatever the type."""
        self.assertEqual(one(1, b"ab", M, 3), reflect(one(1, b"ab", U, 3))[0])
        self.assertEqual(one(99, b"ab", U | M, 65535), reflect(one(99, b"ab", U, 65535))[0])
        for cut in (b"\x80", b"\x80\x01", b"\x80\x01\x00"):
            area, _ = reflect(one(1, b"", U) + cut)
            flags = M if len(cut) > 1 else U | M
            self.assertEqual(one(1, b"", 0) + bytes([flags]) + cut[1:], area)

    def test_plain_padding_is_copied(self) -> None:
        """Zeros behind the base packet of a TWAMP-Light sender are padding, not TLVs."""
        for size in (1, 3, 4, 5, 300):
            self.assertEqual((bytes(size), 0x28), reflect(bytes(size), 0x2A))
        self.assertEqual(one(4, b"\0\0\0\0", 0) + bytes(6), reflect(one(4, bytes(4)) + bytes(6))[0])

    def test_a_walk_is_bounded(self) -> None:
        """Of hundreds of tiny TLVs the first are answered, one is called malformed, all come back."""
        area, _ = reflect(one(9, b"") * 100)
        limit = scalar.MAX_TLVS
        expected = one(9, b"") * limit + one(9, b"", U | M) + one(9, b"") * (99 - limit)
        self.assertEqual(expected, area)

    def test_padding_of_any_number_is_answered(self) -> None:
        """Extra Padding may come more than once, and is returned as it came."""
        area, _ = reflect(one(1, b"a") + one(1, b"") + one(1, b"bcd"))
        self.assertEqual(one(1, b"a", 0) + one(1, b"", 0) + one(1, b"bcd", 0), area)


class IntegrityTests(SynchronousTestCase):
    """The HMAC TLV, RFC 8972 section 4.8."""

    def signed(self, *before: bytes, after: bytes = b"", sequence: int = 7) -> bytes:
        """Return TLVs with an HMAC TLV over them, and ``after`` behind it."""
        area = b"".join(before)
        text = sequence.to_bytes(4, "big") + area
        return area + one(8, hmac_sha256(KEY, text)[:16]) + after

    def assert_refused(self, area: bytes, **more) -> None:
        """Fail unless every TLV comes back as it was, but with the I flag."""
        out, reply_tos = reflect(area, 0x28, ALL, probe_sequence=7, reply_sequence=5, **more)
        self.assertEqual(0x28, reply_tos)
        for each in scalar.tlvs(out):
            self.assertTrue(each.flags & I)
        blank = bytearray(area), bytearray(out)
        for each in scalar.tlvs(area):
            blank[0][each.offset] = blank[1][each.offset] = 0
        self.assertEqual(*blank)

    def test_good_ones_are_answered_and_signed(self) -> None:
        """In unauthenticated mode, too, an HMAC TLV is verified and answered with one."""
        area = self.signed(one(4, b"\xb8\0\0\0"))
        out, tos = reflect(area, 0x28, ALL, keys=(KEY,), probe_sequence=7, reply_sequence=5)
        self.assertEqual(0xB8, tos)
        cos = one(4, b"\xb8\xa0\0\0", 0)
        self.assertEqual(cos + one(8, hmac_sha256(KEY, b"\0\0\0\5" + cos)[:16], 0), out)

    def test_wrong_keys_and_sequence_numbers_fail(self) -> None:
        """An HMAC by another key, over another number, or that no key is known for, is refused."""
        area = self.signed(one(4, b"\xb8\0\0\0"), one(9, b"unknown"))
        self.assert_refused(area, keys=(b"wrong" * 5,))
        self.assert_refused(area, keys=(b"wrong" * 5, b"other" * 5, KEY))
        self.assert_refused(area)
        self.assert_refused(self.signed(one(4, b"\xb8\0\0\0"), sequence=8), keys=(KEY,))
        self.assert_refused(area[:4] + b"\0" + area[5:], keys=(KEY,))

    def test_misplaced_ones_fail(self) -> None:
        """Nothing but Extra Padding may stand behind the HMAC TLV."""
        cos = one(4, b"\xb8\0\0\0")
        self.assert_refused(self.signed(after=cos), keys=(KEY,))
        self.assert_refused(self.signed(cos, after=one(9, b"")), keys=(KEY,))
        self.assert_refused(self.signed(cos, after=self.signed(cos)), keys=(KEY,))
        area = self.signed(cos, one(1, b"in front"), after=one(1, b"ab") + one(1, b""))
        out, tos = reflect(area, 0, ALL, keys=(KEY,), probe_sequence=7)
        self.assertEqual(0xB8, tos)
        self.assertFalse(any(each.flags for each in scalar.tlvs(out)))

    def test_missing_ones_fail_where_they_must_be(self) -> None:
        """In authenticated mode only a lone Extra Padding needs no HMAC TLV."""
        cos = one(4, b"\xb8\0\0\0")
        self.assert_refused(cos, keys=(KEY,), must_authenticate=True)
        self.assert_refused(cos + one(1, b"x"), keys=(KEY,), must_authenticate=True)
        self.assert_refused(one(1, b"x") * 2, keys=(KEY,), must_authenticate=True)
        out, _ = reflect(one(1, b"x"), keys=(KEY,), must_authenticate=True)
        self.assertEqual(one(1, b"x", 0), out)
        self.assertEqual(0xB8, reflect(cos, 0, ALL, keys=(KEY,))[1])

    def test_malformed_ones_fail(self) -> None:
        """A cut HMAC TLV is malformed, and nothing before it is believed."""
        area = self.signed(one(4, b"\xb8\0\0\0"))[:-1]
        out, tos = reflect(area, 0x28, ALL, keys=(KEY,), probe_sequence=7)
        self.assertEqual(0x28, tos)
        self.assertEqual([I, I | M], [each.flags for each in scalar.tlvs(out)])


class BatchTests(SynchronousTestCase):
    """Batches against the rules for one packet."""

    @PROPERTIES
    @given(batches, st.integers(0, 255), st.booleans())
    def test_batches_are_reflected_as_single_packets_are(
        self, packets: list[bytes], tos: int, permit: bool
    ) -> None:
        """Whatever its neighbours are, a row is answered as if it were alone."""
        rows = [packet for packet in packets if len(packet) >= 44]
        if rows:
            self.reflected_alike(rows, tos, ALL if permit else NONE)

    def test_nearly_usual_packets_are_reflected_as_single_packets_are(self) -> None:
        """One octet that is not as our sender writes it, wherever it is, makes a row another."""
        for size in (tlv.SIZE, tlv.ROOM + 9):
            packet = golden("stamp-probe")[:44] + tlv.request(46, size)
            others = [
                packet[:at] + bytes([packet[at] ^ 1 << bit]) + packet[at + 1 :]
                for at in range(44, len(packet))
                for bit in range(8)
            ]
            for permitted in (NONE, ALL):
                self.reflected_alike([packet, *others], 0, permitted)

    def reflected_alike(self, rows: list[bytes], tos: int, permitted: np.ndarray) -> None:
        """Check what a batch is made of against what the rules make of each packet."""
        octets, length = arena(rows)
        toses = (np.arange(len(rows)) * 7 + tos & 0xFF).astype(np.uint8)
        sequences = np.arange(len(rows), dtype=np.uint32)
        stamps = sequences.astype(np.uint64) << np.uint64(33)
        reply_tos = tlv.reflect(octets, length, toses, sequences, stamps, STATE, permitted)
        for row, packet in enumerate(rows):
            alone = bytearray(packet)
            area = memoryview(alone)[44:]
            follow = tlv.FollowUp(row, row << 33, tlv.SW_LOCAL)
            expected = tlv_rules.reflect_one(area, int(toses[row]), follow, STATE, permitted)
            self.assertEqual(bytes(alone), octets[row, : length[row]].tobytes())
            self.assertEqual(expected, reply_tos[row])

    @PROPERTIES
    @given(batches, st.booleans())
    def test_batches_are_read_as_single_packets_are(self, packets: list[bytes], must: bool) -> None:
        """Whatever its neighbours are, a reply is read as if it were alone."""
        for start in (44, 112):
            octets, length = arena(packets)
            answer = tlv.read(octets, length, start, lambda row: (KEY,), must)
            for row, packet in enumerate(packets):
                expected = tlv_rules.read_one(
                    packet[start:], int.from_bytes(packet[:4], "big"), (KEY,), must
                )
                self.assertEqual(tuple(expected), tuple(column[row].item() for column in answer))

    @PROPERTIES
    @given(batches)
    def test_the_usual_layout_is_what_our_sender_writes(self, packets: list[bytes]) -> None:
        """The rows worked on by column hold the three TLVs, and padding, and nothing else."""
        octets, length = arena(packets)
        for row, usual in enumerate(tlv.usual(octets, length)):
            found = [(each.type, each.length, each.malformed)
                     for each in scalar.tlvs(packets[row][44:])]  # fmt: skip
            three = [(4, 4, False), (7, 16, False), (240, 20, False)]
            padding = length[row] - 44 - 52 - 4
            expected = (three, [*three, (1, padding, False)])
            marked = packets[row][76:80] == b"LLMA"
            self.assertEqual(found in expected and marked, usual)

    def test_our_own_packet_alone_is_answered_by_the_rules(self) -> None:
        """The class that it asks for is granted or not, and an earlier stamp is there or not."""
        area = tlv.request(46, tlv.SIZE)
        for tos in (0, 46 << 2 | 1):
            for permitted in (NONE, ALL):
                for follow in (FOLLOW, tlv.FollowUp(9, 0, 2)):
                    quick, slow = bytearray(area), bytearray(area)
                    self.assertTrue(tlv.usual_one(quick))
                    answer = tlv.reflect_usual_one(quick, tos, follow, STATE, permitted)
                    self.assertEqual(answer, tlv.reflect_one(slow, tos, follow, STATE, permitted))
                    self.assertEqual(slow, quick)

    @PROPERTIES
    @given(batches, st.integers(0, 255), st.booleans(), st.booleans())
    def test_a_usual_packet_alone_is_answered_by_the_rules(
        self, packets: list[bytes], tos: int, permit: bool, left: bool
    ) -> None:
        """The short cut for one packet takes only what `usual` takes, and changes nothing."""
        permitted = ALL if permit else NONE
        follow = FOLLOW if left else tlv.FollowUp(9, 0, 2)
        octets, length = arena(packets)
        for row, packet in enumerate(packets):
            quick, slow = bytearray(packet[44:]), bytearray(packet[44:])
            usual = bool(tlv.usual(octets, length)[row]) and length[row] == 44 + tlv.SIZE
            self.assertEqual(usual, tlv.usual_one(quick))
            if usual:
                quick_tos = tlv.reflect_usual_one(quick, tos, follow, STATE, permitted)
                self.assertEqual(quick_tos, tlv.reflect_one(slow, tos, follow, STATE, permitted))
                self.assertEqual(bytes(slow), bytes(quick))

    def test_long_packets_need_only_their_beginning(self) -> None:
        """Where rows hold only the first octets of a padded packet, its TLVs are answered."""
        packet = golden("stamp-reply")[:44] + tlv.request(46, 1400)
        octets, length = arena([packet, golden("stamp-probe") + one(9, b"x" * 1000)], 256)
        reply_tos = tlv.reflect(octets, length, np.array([0, 0], np.uint8),
                                np.zeros(2, np.uint32), np.zeros(2, np.uint64), STATE, ALL)  # fmt: skip
        self.assertEqual([0xB8, 0], reply_tos.tolist())
        self.assertEqual([0, U], octets[:, 44].tolist())
        self.assertEqual(0, octets[0, 96])
        self.assertEqual([0, tlv.UNKNOWN], tlv.read(octets, length).dscp.tolist())

    def test_which_packets_need_only_their_beginning(self) -> None:
        """Those that fit, our sender's, and plain padding; others are to be looked at whole."""
        base = golden("stamp-probe")
        packets = [base, base + tlv.request(0, 52), base + tlv.request(0, 1400),
                   base + bytes(1000), base + one(9, b"x" * 1000),
                   base + one(9, b"") + tlv.request(0, 1400), base + one(9, b"")]  # fmt: skip
        octets, length = arena(packets, 256)
        self.assertEqual([True, True, True, True, False, False, True],
                         tlv.beginning_suffices(octets, length).tolist())  # fmt: skip
