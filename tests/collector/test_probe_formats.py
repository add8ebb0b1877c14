"""The prober's formats besides STAMP: what is taken for a reply to a probe of ours, and what is not."""

from __future__ import annotations

import itertools

import numpy as np
from plain_stamp import auth_probe
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import KEY

from llama.collector.intervals.ledger import Ledger
from llama.collector.probing import formats
from llama.collector.probing.inbox import HEAD
from llama.collector.probing.plan import Group
from llama.collector.probing.schedule import BURST
from llama.wire import auth, scalar, tlv, tlv_rules

T1 = 1_700_000_000_123_456_789
SIZES = {"stamp-auth": 184, "llama-go": 200, "llama-python": 36}


def group(probe: str) -> Group:
    """Return a group of one kind of probe."""
    return Group(
        test="t", probe=probe, version=4, sources=(), rate_pps=1.0, timeout_s=1.0, pairs=(), key=KEY
    )


def arrived(count: int) -> formats.Arrived:
    """Return what the kernel said of some replies."""
    return formats.Arrived(
        np.full(count, T1 + 5000), np.ones(count, np.bool_), np.zeros(count, np.uint8),
        np.full(count, 64, np.uint8),
    )  # fmt: skip


class FormatCase(SynchronousTestCase):
    def probes(self, probe: str) -> tuple[formats.Format, np.ndarray, Ledger]:
        """Return the first probes of three flows, as sent, and the ledger that knows of them."""
        which = formats.format_of(group(probe))
        assert which is not None
        octets = np.zeros((3, HEAD), np.uint8)
        packet = which.template(group(probe), 46, SIZES[probe], 7)[:HEAD]
        octets[:, : len(packet)] = np.frombuffer(packet, np.uint8)
        book = Ledger(np.zeros(3, np.uint8), 1, 1.0, 1.0, 10.0)
        _, sequence = book.send(np.arange(3), T1)
        which.write(octets, np.full(3, 7, np.uint16), sequence, np.full(3, T1))
        return which, octets, book

    def read(self, which: formats.Format, octets: np.ndarray, book: Ledger, size: int) -> list[int]:
        """Return the flows of the replies that are believed."""
        rows, ssid = which.candidates(octets, np.full(len(octets), size))
        self.assertTrue((ssid == 7).all() or not len(rows))
        if not len(rows):
            return []
        _, replies, _ = which.read(
            octets[rows], np.full(len(rows), size), rows, arrived(len(rows)), book
        )
        flows = replies.flow.tolist()
        self.assertEqual(len(flows), book.reply(replies))
        return list(flows)

    def names(
        self, which: formats.Format, octets: np.ndarray, size: int
    ) -> tuple[list[int], set[int], set[int]]:
        """Return which rows are taken for probes, and what SSIDs and numbers they bear."""
        rows, ssid, sequence = which.probes(octets, np.full(len(octets), size))
        return rows.tolist(), set(ssid.tolist()), set(sequence.tolist())


class ProbeTests(FormatCase):
    def test_names(self) -> None:
        """What was sent says whose it is; what is cut or another's says nothing."""
        for probe in ("stamp-auth", "llama-go", "llama-python"):
            which, octets, _ = self.probes(probe)
            self.assertEqual(([0, 1, 2], {7}, {1}), self.names(which, octets, SIZES[probe]))
            self.assertEqual(([], set(), set()), self.names(which, octets, 35))
        octets[1, 0] ^= 1
        self.assertEqual([0, 2], self.names(which, octets, 36)[0])

    def test_times_of_a_burst_differ(self) -> None:
        """No two times of a burst are written alike, for as long as these formats may live."""
        for probe, first_ns in itertools.product(
            ("llama-go", "llama-python"), (T1, 2_300_000_000 * 10**9 + 777, 4_390_000_000 * 10**9)
        ):
            which = formats.format_of(group(probe))
            assert which is not None
            times = which.sent(first_ns - np.arange(BURST) * which.apart_ns)
            self.assertEqual(BURST, len(set(times.tolist())), (probe, first_ns))


class StrangerTests(FormatCase):
    def test_echoes_must_be_of_the_probe_to_the_last_bit(self) -> None:
        """A token of ours with another time, a number not sent, or another length: not ours."""
        for probe in ("llama-go", "llama-python"):
            which, octets, book = self.probes(probe)
            size, sent_at = SIZES[probe], {"llama-go": 16, "llama-python": 11}[probe]
            self.assertEqual([], self.read(which, octets, book, size + 1))
            forged = octets.copy()
            forged[0, sent_at] ^= 1
            forged[2, {"llama-go": 11, "llama-python": 20}[probe]] ^= 1
            self.assertEqual([1], self.read(which, forged, book, size), probe)
            which, octets, book = self.probes(probe)
            self.assertEqual([0, 1, 2], self.read(which, octets, book, size))

    def test_replies_must_be_signed_with_the_key(self) -> None:
        """One wrong bit, or another's key, and it is a stranger's; its neighbours do not suffer."""
        which, probes, book = self.probes("stamp-auth")
        replies = probes.copy()
        for row in replies:
            auth.answer(row.data, 0, 1 << 63, 0x8001, 1 << 63, 64, KEY)
        replies[0, 40] ^= 1
        auth.sign(replies[2].data, b"another key, not ours")
        self.assertEqual([1], self.read(which, replies, book, 184))

    def test_signed_probes_are_as_the_rfc_has_them(self) -> None:
        """Base packet and HMAC TLV verify, under the key and no other, time after time."""
        which, probes, book = self.probes("stamp-auth")
        for turn in range(1, 4):
            for number, row in enumerate(probes):
                packet = row[:184].tobytes()
                self.assertEqual(KEY, auth.verify(packet, (b"x" * 16, KEY)))
                said = auth_probe(packet)
                assert said is not None
                self.assertEqual((turn, 7), (said.sequence, said.ssid), number)
                area = packet[auth.BASE_SIZE :]
                good = tlv_rules.verify(area, scalar.tlvs(area), said.sequence, (KEY,), True)
                self.assertEqual((True, KEY, tlv.SIZE), good)
            self.assertEqual(([0, 1, 2], {7}, {turn}), self.names(which, probes, 184))
            _, sequence = book.send(np.arange(3), T1 + turn + 1)
            which.write(probes, np.full(3, 7, np.uint16), sequence, np.full(3, T1 + turn + 1))
