"""Which keys and which provisioned sessions a probe has."""

from __future__ import annotations

from ipaddress import ip_network

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import PROPERTIES

from llama.reflector.arrival import packed_address
from llama.reflector.keyring import KeyRing
from llama.reflector.provisioned import Provisioned


def key_ring(*keys: tuple[bytes, tuple[str, ...], tuple[int, ...]]) -> KeyRing:
    """Return the ring of keys, each with its prefixes and SSIDs."""
    return KeyRing((key, [*map(ip_network, prefixes)], ssids) for key, prefixes, ssids in keys)


def provisioned(*sessions: tuple[str, int | None, int | None]) -> Provisioned:
    """Return the sessions, each a prefix, a source port and an SSID."""
    return Provisioned((ip_network(prefix), *rest) for prefix, *rest in sessions)


class KeyRingTests(SynchronousTestCase):
    def fitting(self, ring: KeyRing, address: str, ssid: int = 0) -> bytes:
        """Return the keys that fit, one letter each, in order."""
        return b"".join(ring.fitting(*packed_address(address), ssid))

    def test_while_keys_are_changed_both_fit(self) -> None:
        """Of keys for the same probes the first two are tried, in the order of the configuration."""
        ring = key_ring((b"a", (), ()), (b"b", (), ()), (b"c", (), ()))
        self.assertEqual(b"ab", self.fitting(ring, "10.0.0.1"))

    def test_the_closest_fit_comes_first(self) -> None:
        """SSID before prefix, longer prefix before shorter, everyone's last."""
        ring = key_ring(
            (b"a", (), ()), (b"b", ("10.0.0.0/8",), ()), (b"c", ("10.1.0.0/16", "2001:db8::/32"), ()),
            (b"d", (), (5, 6)), (b"e", ("10.1.0.0/16",), (5,)),
        )  # fmt: skip
        self.assertEqual(b"cb", self.fitting(ring, "10.1.2.3"))
        self.assertEqual(b"ba", self.fitting(ring, "10.2.2.3"))
        self.assertEqual(b"a", self.fitting(ring, "11.2.2.3"))
        self.assertEqual(b"ca", self.fitting(ring, "2001:db8::1"))
        self.assertEqual(b"ed", self.fitting(ring, "10.1.2.3", 5))
        self.assertEqual(b"da", self.fitting(ring, "11.1.2.3", 5))
        self.assertEqual(b"da", self.fitting(ring, "11.1.2.3", 6))

    def test_prefix_and_ssid_must_both_fit(self) -> None:
        """A key for a prefix and an SSID is for no probe that has but one of them."""
        ring = key_ring((b"a", ("192.0.2.0/25",), (7,)))
        for address, ssid, expected in (
            ("192.0.2.1", 7, b"a"), ("192.0.2.1", 9, b""), ("203.0.113.66", 7, b""),
            ("203.0.113.66", 9, b""), ("::c000:201", 7, b""),
        ):  # fmt: skip
            self.assertEqual(expected, self.fitting(ring, address, ssid), (address, ssid))

    def test_where_no_key_fits_there_is_none(self) -> None:
        """An address of another prefix, or of the other family, has no key."""
        ring = key_ring((b"a", ("192.0.2.1/32",), ()), (b"b", ("2001:db8::/32",), ()))
        self.assertEqual(b"a", self.fitting(ring, "192.0.2.1"))
        self.assertEqual(b"", self.fitting(ring, "192.0.2.2"))
        self.assertEqual(b"", self.fitting(ring, "::192.0.2.1"))

    def test_all_of_one_family(self) -> None:
        """A key for all of IPv6 is for no probe over IPv4, and the other way round; one for all is."""
        ring = key_ring((b"a", ("::/0",), ()), (b"b", ("0.0.0.0/0",), ()), (b"c", (), (7,)))
        self.assertEqual(b"a", self.fitting(ring, "2001:db8::1"))
        self.assertEqual(b"b", self.fitting(ring, "192.0.2.1"))
        self.assertEqual(b"ca", self.fitting(ring, "2001:db8::1", 7))
        self.assertEqual(b"cb", self.fitting(ring, "192.0.2.1", 7))


class ProvisionedTests(SynchronousTestCase):
    def test_only_provisioned_sessions_are_known(self) -> None:
        """Address, port and SSID must all be those of one session, as far as it names them."""
        sessions = provisioned(
            ("192.0.2.0/24", None, None), ("198.51.100.1/32", 5000, None),
            ("198.51.100.2/32", None, 7), ("2001:db8::/32", 5000, 7),
        )  # fmt: skip
        for address, port, ssid, known in (
            ("192.0.2.9", 1, 0, True), ("192.0.3.9", 1, 0, False),
            ("198.51.100.1", 5000, 9, True), ("198.51.100.1", 5001, 9, False),
            ("198.51.100.2", 1, 7, True), ("198.51.100.2", 1, 8, False),
            ("2001:db8::1", 5000, 7, True), ("2001:db8::1", 5000, 8, False),
            ("2001:db8::1", 5001, 7, False), ("198.51.100.3", 5000, 7, False),
        ):  # fmt: skip
            self.assertEqual(known, sessions.knows(*packed_address(address), port, ssid), address)

    @PROPERTIES
    @given(st.lists(st.tuples(st.sampled_from(["192.0.2.1", "192.0.2.2", "::1", "10.0.0.1"]),
                              st.integers(1, 3), st.integers(0, 2)), min_size=1))  # fmt: skip
    def test_batches_are_judged_as_single_probes_are(self, probes: list) -> None:
        """Whatever its neighbours are, a row is judged as if it were alone."""
        sessions = provisioned(("192.0.2.1", 1, None), ("192.0.2.0/24", None, 1), ("::1", 2, 2))
        sources = [packed_address(address) for address, _, _ in probes]
        high, low = (np.array(column, np.uint64) for column in zip(*sources, strict=True))
        port, ssid = (np.array(column, np.uint16) for column in list(zip(*probes, strict=True))[1:])
        expected = [sessions.knows(*packed_address(address), *rest) for address, *rest in probes]
        self.assertEqual(expected, sessions.known(high, low, port, ssid).tolist())
