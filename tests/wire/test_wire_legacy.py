"""The formats of earlier LLAMA fleets, against golden octets and the scalar decoders."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import PROPERTIES, arena, batches, golden

from llama.wire import llama_go, llama_python, scalar

TOKEN = 0x0102030405060708
SENT_NS = 1709208000_500_000_000


def go_upstream(signature: bytes = b"0123456789", tos: int = 0, sent: int = SENT_NS) -> bytes:
    """Return a probe as a LLAMA Go collector marshals it: 1000 octets of padding."""
    varint = b""
    while sent > 127:
        varint += bytes([sent & 127 | 128])
        sent >>= 7
    varint += bytes([sent])
    head = b"\x0a\x0a" + signature + b"\x12\x01" + bytes([tos]) + b"\x18" + varint
    return head + b"\x3a\xe8\x07" + bytes(1000)


class LlamaGoTests(SynchronousTestCase):
    def test_packing_writes_the_golden_octets(self) -> None:
        """What is sent is what LLAMA Go would marshal of the same fields."""
        octets = np.full((1, 512), 0xEE, np.uint8)
        llama_go.pack(octets, np.array([TOKEN], np.uint64), np.array([0xB8], np.uint8),
                      np.array([SENT_NS], np.uint64), 156)  # fmt: skip
        self.assertEqual(golden("llama-go"), octets[0, :156].tobytes())
        self.assertTrue((octets[0, 156:] == 0xEE).all())

    def test_what_is_packed_is_unpacked(self) -> None:
        """Token, TOS and time of every row come back, in every size there is."""
        for size in (28, 29, 28 + 127, 28 + 128, 1028, 2048):
            token = np.array([0, TOKEN, 2**64 - 1], np.uint64)
            tos = np.array([0, 0xB8, 255], np.uint8)
            sent = np.array([1 << 56, SENT_NS, (1 << 63) - 1], np.uint64)
            octets = np.full((3, 2048), 0xFF, np.uint8)
            llama_go.pack(octets, token, tos, sent, size)
            length = np.full(3, size)
            replies = llama_go.unpack(octets, length)
            self.assertTrue(replies.ok.all())
            self.assertEqual(token.tolist(), replies.token.tolist())
            self.assertEqual(tos.tolist(), replies.tos.tolist())
            self.assertEqual(sent.tolist(), replies.sent_ns.tolist())
            for row in range(3):
                probe = scalar.go_probe(octets[row, :size].tobytes())
                assert probe is not None
                self.assertEqual((tos[row], sent[row]), (probe.tos, probe.sent))

    def test_stamp_is_stamp_by_whatever_chance(self) -> None:
        """Number, error estimate and SSID of a STAMP probe may read as fields around its zeros."""
        packet = bytearray(96)
        packet[:2] = b"\x0a\x0a"  # number 0x0a0a....: a signature of ten octets
        packet[12:16] = b"\x92\x80\x00\x50"  # an error of 8 ms, and 80 octets of an unknown field
        self.assertIsNone(scalar.go_probe(bytes(packet)))
        octets, length = arena([bytes(packet)])
        self.assertEqual(llama_go.recognise(octets, length).tolist(), [False])
        packet[40] = 1  # the zeros are what tells
        self.assertIsNotNone(scalar.go_probe(bytes(packet)))

    def test_what_cannot_be_packed_is_refused(self) -> None:
        """A size without room for the head, or a time of fewer octets, is an error at once."""
        octets = np.zeros((1, 512), np.uint8)
        one = np.array([1], np.uint64)
        tos = np.zeros(1, np.uint8)
        self.assertRaises(ValueError, llama_go.pack, octets, one, tos, one * SENT_NS, 27)
        self.assertRaises(ValueError, llama_go.pack, octets, one, tos, one * SENT_NS, 513)
        self.assertRaises(ValueError, llama_go.pack, octets, one, tos, one, 28)

    def test_probes_of_upstream_are_recognised(self) -> None:
        """Collectors of LLAMA Go are answered, in the class that they name."""
        packets = [go_upstream(tos=0x28), golden("llama-go")]
        octets, length = arena(packets, 1100)
        self.assertEqual([True, True], llama_go.recognise(octets, length).tolist())
        self.assertEqual(
            [0x28, 0xB8], [probe.tos for probe in map(scalar.go_probe, packets) if probe]
        )

    def test_tos_may_be_absent_or_empty(self) -> None:
        """The probe that killed LLAMA Go's reflector is a probe, and asks for no class."""
        packets = [golden("llama-go-no-tos"), golden("llama-go-empty-tos")]
        octets, length = arena(packets)
        self.assertEqual([True, True], llama_go.recognise(octets, length).tolist())
        asked = [probe.tos for probe in map(scalar.go_probe, packets) if probe]
        self.assertEqual([None, None], asked)

    def test_stamp_is_never_taken_for_a_probe(self) -> None:
        """Sequence numbers that look like protobuf tags do not make a protobuf of a packet."""
        packets = []
        for first in (0x0A, 0x12, 0x18, 0x20, 0x28, 0x30, 0x3A):
            for estimate in (0x0001, 0x1201, 0x8E01, 0x3FFF):
                for ssid in (0, 0x18, 0x1800, 0x3A00, 0xB818):
                    head = struct.pack(">BBHQHH", first, 0x0A, 0, 1 << 62, estimate, ssid)
                    packets.append(head + bytes(28))
        octets, length = arena(packets)
        self.assertFalse(llama_go.recognise(octets, length).any())

    def test_the_beginning_of_a_long_probe_is_enough(self) -> None:
        """Where only the first octets of long packets are at hand they are still recognised."""
        probe = go_upstream()
        reordered = probe[12:25] + probe[:12] + probe[25:]
        octets, length = arena([probe, reordered, probe[:-1]], 64)
        self.assertEqual([True, True, False], llama_go.recognise(octets, length).tolist())

    def test_a_walk_is_bounded(self) -> None:
        """A packet of hundreds of tiny fields is given up on, not walked to its end."""
        packet = golden("llama-go-no-tos")
        few = packet + b"\x78\x01" * (scalar.MAX_FIELDS - 2)
        self.assertIsNotNone(scalar.go_probe(few))
        self.assertIsNone(scalar.go_probe(few + b"\x78\x01"))

    def test_illegal_protobuf_is_refused(self) -> None:
        """Wrong wire types, field 0, groups, overlong numbers and cut fields are no probe."""
        good = golden("llama-go-no-tos")
        for bad in (
            b"\x02\x00", b"\x08\x00", b"\x1a\x00", b"\x7b\x7c", b"\x7c", b"\x18", b"\x78",
            b"\x3a\x05abcd", b"\x18" + b"\xff" * 10, b"\x79" + bytes(7), b"\x7d" + bytes(3),
            b"\x0a\x09123456789", b"\x7e", b"\x7f", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x00",
        ):  # fmt: skip
            self.assertIsNone(scalar.go_probe(good + bad), bad)
        for fine in (b"", b"\x79" + bytes(8), b"\x7d" + bytes(4), b"\x7a\x01x", b"\x30\x02"):
            self.assertIsNotNone(scalar.go_probe(good + fine), fine)

    @PROPERTIES
    @given(batches)
    def test_batches_are_decoded_as_single_packets_are(self, packets: list[bytes]) -> None:
        """Whatever its neighbours are, a row is what the scalar decoder says."""
        octets, length = arena(packets)
        before = octets.copy()
        mask = llama_go.recognise(octets, length)
        replies = llama_go.unpack(octets, length)
        for row, packet in enumerate(packets):
            probe = scalar.go_probe(packet)
            self.assertEqual(probe is not None, mask[row])
            if replies.ok[row]:
                assert probe is not None
                self.assertEqual(b"LL" + int(replies.token[row]).to_bytes(8, "big"),
                                 probe.signature)  # fmt: skip
                self.assertEqual((probe.tos, probe.sent),
                                 (replies.tos[row], replies.sent_ns[row]))  # fmt: skip
        self.assertTrue((octets == before).all())


class LlamaPythonTests(SynchronousTestCase):
    def test_packing_writes_the_golden_octets(self) -> None:
        """What is sent is what the archived LLAMA packs of the same fields."""
        octets = np.full((1, 64), 0xEE, np.uint8)
        llama_python.pack(octets, np.array([0x01020304050607], np.uint64),
                          np.array([0xB8], np.uint8), np.array([SENT_NS / 1e6]))  # fmt: skip
        self.assertEqual(golden("llama-python"), octets[0, :36].tobytes())
        self.assertTrue((octets[0, 36:] == 0xEE).all())

    def test_what_is_packed_is_unpacked(self) -> None:
        """Token, TOS and time of every row come back."""
        token = np.array([0, 1, llama_python.MAX_TOKEN], np.uint64)
        tos = np.array([0, 0x28, 255], np.uint8)
        sent = np.array([0.0, 1.5, SENT_NS / 1e6])
        octets = np.zeros((3, 64), np.uint8)
        llama_python.pack(octets, token, tos, sent)
        length = np.full(3, 36)
        replies = llama_python.unpack(octets, length)
        self.assertTrue(replies.ok.all())
        self.assertEqual(token.tolist(), replies.token.tolist())
        self.assertEqual(tos.tolist(), replies.tos.tolist())
        self.assertEqual(sent.tolist(), replies.sent_ms.tolist())
        self.assertTrue(llama_python.recognise(octets, length).all())

    def test_a_token_that_a_float_does_not_hold_is_refused(self) -> None:
        """Two tokens can never become the same number."""
        octets = np.zeros((1, 64), np.uint8)
        zero = np.zeros(1, np.uint8)
        self.assertRaises(ValueError, llama_python.pack, octets,
                          np.array([1 << 53], np.uint64), zero, np.zeros(1))  # fmt: skip

    @PROPERTIES
    @given(batches)
    def test_batches_are_decoded_as_single_packets_are(self, packets: list[bytes]) -> None:
        """Whatever its neighbours are, a row is what the scalar decoder says."""
        octets, length = arena(packets)
        mask = llama_python.recognise(octets, length)
        for row, packet in enumerate(packets):
            self.assertEqual(scalar.python_probe(packet) is not None, mask[row])

    @PROPERTIES
    @given(st.lists(st.floats(), min_size=1, max_size=8))
    def test_forged_tokens_are_no_tokens(self, values: list[float]) -> None:
        """A number that `pack` cannot have written is not matched, be it NaN or infinite."""
        packets = [
            struct.pack("<10sBddd?", b"__llama__", 0, 1.0, value, 0.0, False) for value in values
        ]
        octets, length = arena(packets)
        replies = llama_python.unpack(octets, length)
        for row, value in enumerate(values):
            ours = 0 <= value < 1 << 53 and value == int(value)
            self.assertEqual(ours, bool(replies.ok[row]), value)
            if ours:
                self.assertEqual(int(value), int(replies.token[row]))
