"""Who may ask the reflector and how often, and what a reply looks like that comes as a probe."""

from __future__ import annotations

import ipaddress
import struct
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import PROPERTIES, arena, batches, golden

from llama.reflector import guard as guards
from llama.reflector.allow import AllowList
from llama.reflector.arrival import packed_address
from llama.reflector.guard import REASONS, Guard
from llama.reflector.loops import Echoes, looks_like_stamp_reply, looks_like_stamp_reply_one
from llama.wire.source_ports import REFUSED_PORTS

HERE = packed_address("192.0.2.1")
NOW_NTP = 0xE98AF040_80000000  # of the golden packets


def judge(
    guard: Guard, sources: list[tuple[int, int]], now_s: float, port: int = 40000
) -> list[int]:
    """Return what the guard says of a batch from ``sources``, all from one port."""
    high = np.array([source[0] for source in sources], np.uint64)
    low = np.array([source[1] for source in sources], np.uint64)
    return guard.admit(high, low, np.full(len(sources), port, np.uint16), now_s).tolist()


class PortTests(SynchronousTestCase):
    def reasons(self, guard: Guard, ports: list[int]) -> list[str]:
        """Return the guard's reasons for packets from these ports, both ways alike."""
        column = np.array(ports, np.uint16)
        low = np.full(len(ports), HERE[1], np.uint64)
        batch = guard.admit(None, low, column, 0.0).tolist()
        self.assertEqual(batch, [guard.admit_one(*HERE, port, 0.0) for port in ports])
        return [REASONS[code] for code in batch]

    def test_ports_that_answer_are_refused(self) -> None:
        """Nothing is sent to a port that may send something back, or that cannot be answered."""
        ports = [0, 7, 13, 17, 19, 53, 123, 862, 1900, 5353, 8100, 11211]
        self.assertEqual(["source_port"] * len(ports), self.reasons(Guard(), ports))
        self.assertEqual(["admitted"] * 3, self.reasons(Guard(), [1024, 40000, 65535]))
        self.assertTrue(all(REFUSED_PORTS.values()))

    def test_own_and_configured_ports_are_refused(self) -> None:
        """The reflector's own ports, and those of its neighbours, can be added."""
        guard = Guard(own_ports=[9000], refuse=[9001])
        self.assertEqual(["source_port", "source_port", "admitted"],
                         self.reasons(guard, [9000, 9001, 9002]))  # fmt: skip

    def test_a_permitted_port_is_admitted(self) -> None:
        """Routers that probe from port 862 can be let in, to it as well; port 0 never."""
        guard = Guard(own_ports=[862], permit=[862, 0])
        self.assertEqual(["admitted", "source_port", "source_port"],
                         self.reasons(guard, [862, 0, 7]))  # fmt: skip


def allowing(*prefixes: str) -> AllowList:
    """Return the list of these prefixes."""
    return AllowList(map(ipaddress.ip_network, prefixes))


prefixes = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda p: ipaddress.IPv4Network(p, strict=False)
    ),
    st.tuples(
        st.one_of(st.integers(0, 2**128 - 1), st.integers(0xFFFE << 32, 0x10000 << 32)),
        st.integers(0, 128),
    ).map(lambda p: ipaddress.IPv6Network(p, strict=False)),
)


class AllowTests(SynchronousTestCase):
    def test_only_listed_addresses_are_admitted(self) -> None:
        """Both families, both ways of asking, and the reason is said."""
        guard = Guard(allow=allowing("192.0.2.0/25", "2001:db8::/32", "203.0.113.7"))
        sources = [
            packed_address(address)
            for address in ("192.0.2.1", "192.0.2.128", "2001:db8:ffff::1", "2001:db9::",
                            "203.0.113.7", "203.0.113.8", "::1", "::192.0.2.1")
        ]  # fmt: skip
        expected = [0, 2, 0, 2, 0, 2, 2, 2]
        self.assertEqual(expected, judge(guard, sources, 0.0))
        self.assertEqual(expected, [guard.admit_one(*source, 40000, 0.0) for source in sources])
        self.assertEqual("not_allowed", REASONS[2])

    def test_all_of_one_family_is_nothing_of_the_other(self) -> None:
        """A prefix of IPv6 that has the mapped addresses within lists no IPv4; they alone do."""
        sources = [packed_address(a) for a in ("192.0.2.1", "2001:db8::1", "::1", "::fffe:0:1")]
        for prefixes, expected in (
            (["::/0"], [2, 0, 0, 0]), (["::/80"], [2, 2, 0, 0]), (["::fffe:0:0/95"], [2, 2, 2, 0]),
            (["0.0.0.0/0"], [0, 2, 2, 2]), (["::ffff:192.0.2.0/120"], [0, 2, 2, 2]),
            (["192.0.2.0/24", "::/0"], [0, 0, 0, 0]), (["0.0.0.0/0", "::/0"], [0, 0, 0, 0]),
        ):  # fmt: skip
            guard = Guard(allow=allowing(*prefixes))
            self.assertEqual(expected, judge(guard, sources, 0.0), prefixes)
            self.assertEqual(expected, [guard.admit_one(*s, 40000, 0.0) for s in sources], prefixes)

    def test_an_empty_list_admits_nobody(self) -> None:
        """A list that lists nobody is not the same as no list."""
        guard = Guard(allow=AllowList([]))
        self.assertEqual([guards.NOT_ALLOWED], judge(guard, [HERE], 0.0))
        self.assertEqual(guards.NOT_ALLOWED, guard.admit_one(*HERE, 40000, 0.0))

    def test_only_listed_sources_may_be_sent_more_than_they_sent(self) -> None:
        """A short TWAMP-Light request is answered to those on the list, and without one to nobody."""
        self.assertFalse(Guard().may_amplify(*HERE))
        guard = Guard(allow=allowing("192.0.2.0/24"))
        self.assertTrue(guard.may_amplify(*HERE))
        self.assertFalse(guard.may_amplify(*packed_address("198.51.100.1")))

    def test_prefixes_join(self) -> None:
        """Neighbours and nested prefixes are one interval."""
        allow = allowing("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "10.1.2.3")
        self.assertEqual(1, len(allow._first))

    @PROPERTIES
    @given(st.lists(prefixes, max_size=12), st.data())
    def test_membership_is_that_of_ipaddress(self, networks: list, data: st.DataObject) -> None:
        """Edges of every prefix, and the addresses beside them, are where they belong."""
        allow = AllowList(networks)
        numbers = [data.draw(st.integers(0, 2**128 - 1)), 0, 2**128 - 1]
        for network in networks:
            offset = 0xFFFF << 32 if network.version == 4 else 0
            first = int(network.network_address) | offset
            last = int(network.broadcast_address) | offset
            numbers += [first, last, max(first - 1, 0), min(last + 1, 2**128 - 1)]
        high = np.array([number >> 64 for number in numbers], np.uint64)
        low = np.array([number & 2**64 - 1 for number in numbers], np.uint64)
        admitted = allow.admits(high, low)
        for row, number in enumerate(numbers):
            address = ipaddress.IPv6Address(number)
            mapped = address.ipv4_mapped
            inside = any(
                (mapped if network.version == 4 else address) in network
                for network in networks
                if mapped is None or network.version == 4 or network.prefixlen >= 96
                if mapped or network.version == 6
            )
            self.assertEqual(inside, admitted[row])
            self.assertEqual(inside, (number >> 64, number & 2**64 - 1) in allow)

    def test_thousands_of_prefixes(self) -> None:
        """A list as long as a provider's is looked up as a short one is."""
        allow = allowing(*(f"10.{n >> 7}.{n << 1 & 255}.0/24" for n in range(5000)))
        self.assertEqual(5000, len(allow._first))
        low = np.arange(2**16, dtype=np.uint64) * np.uint64(251) + np.uint64(0xFFFF_0A000000)
        inside = (low >> np.uint64(8) & np.uint64(1)) == 0
        inside &= (low >> np.uint64(9) & np.uint64(0x7FFF)) < 5000
        self.assertTrue((allow.admits(None, low) == inside).all())


class RateTests(SynchronousTestCase):
    def test_a_source_has_its_burst_and_then_its_rate(self) -> None:
        """What is over the limit is refused at once, the rest of the second goes on being served."""
        guard = Guard(source_rate_pps=10, source_burst=5)
        self.assertEqual([0] * 5 + [guards.SOURCE_RATE] * 3, judge(guard, [HERE] * 8, 100.0))
        self.assertEqual([guards.SOURCE_RATE], judge(guard, [HERE], 100.05))
        self.assertEqual([0, guards.SOURCE_RATE], judge(guard, [HERE] * 2, 100.1))
        self.assertEqual([0] * 5 + [guards.SOURCE_RATE], judge(guard, [HERE] * 6, 200.0))

    def test_a_burst_is_about_a_second(self) -> None:
        """A burst that is not given is a second's worth of its rate, and no smaller than a few probes."""
        many = [packed_address(f"192.0.2.{n}") for n in range(250)]
        for rate, burst in ((0.1, 10), (1, 10), (25.5, 26), (200, 200)):
            guard = Guard(source_rate_pps=rate)
            self.assertEqual(burst, judge(guard, [HERE] * 250, 100.0).count(0))
            guard = Guard(total_rate_pps=rate)
            self.assertEqual(burst, judge(guard, many, 100.0).count(0))

    def test_single_packets_share_the_buckets(self) -> None:
        """It makes no difference whether packets come in batches or alone."""
        guard = Guard(source_rate_pps=10, source_burst=4, total_rate_pps=1000, total_burst=100)
        self.assertEqual(0, guard.admit_one(*HERE, 40000, 1.0))
        self.assertEqual([0, 0], judge(guard, [HERE] * 2, 1.0))
        self.assertEqual(0, guard.admit_one(*HERE, 40000, 1.0))
        self.assertEqual(guards.SOURCE_RATE, guard.admit_one(*HERE, 40000, 1.0))
        self.assertEqual([guards.SOURCE_RATE], judge(guard, [HERE], 1.0))
        self.assertEqual(0, guard.admit_one(*HERE, 40000, 1.1))

    def test_one_source_does_not_use_up_another(self) -> None:
        """A flood from one address leaves its neighbours in the batch alone."""
        guard = Guard(source_rate_pps=1, source_burst=2)
        other = packed_address("192.0.2.2")
        sources = [HERE, HERE, HERE, other, HERE, other, other]
        self.assertEqual([0, 0, 3, 0, 3, 0, 3], judge(guard, sources, 5.0))

    def test_ipv6_sources_are_networks_of_64_bits(self) -> None:
        """Who has a /64 has one bucket, whichever of its addresses are used."""
        guard = Guard(source_rate_pps=1, source_burst=2)
        sources = [packed_address(f"2001:db8::{n}") for n in range(1, 4)]
        self.assertEqual([0, 0, 3], judge(guard, sources, 5.0))
        self.assertEqual([0], judge(guard, [packed_address("2001:db8:0:1::1")], 5.0))

    def test_no_ipv6_source_is_made_up_that_is_an_ipv4_one(self) -> None:
        """A /64 whose octets are those of a mapped IPv4 address has a bucket of its own."""
        guard = Guard(source_rate_pps=1, source_burst=1)
        forged = packed_address("0:ffff:c000:201::1")
        self.assertEqual(HERE[1], forged[0])
        self.assertEqual([0, 3, 0], judge(guard, [forged, forged, HERE], 5.0))
        self.assertEqual(0, guard.admit_one(*forged, 40000, 6.0))
        self.assertEqual(0, guard.admit_one(*HERE, 40000, 6.0))
        self.assertEqual(3, guard.admit_one(*forged, 40000, 6.0))
        refusals = guard.refusals(
            np.array([forged[0], 0], np.uint64), np.array([1, HERE[1]], np.uint64)
        )
        assert refusals is not None
        self.assertEqual([2, 0], refusals.tolist())

    def test_the_total_is_limited_too(self) -> None:
        """All together get no more than the total, and what a source was refused costs nobody."""
        guard = Guard(source_rate_pps=1, source_burst=2, total_rate_pps=10, total_burst=4)
        others = [packed_address(f"192.0.2.{n}") for n in range(10, 16)]
        self.assertEqual([0, 0, 3, 3, 0, 0, 4, 4], judge(guard, [HERE] * 4 + others[:4], 5.0))
        self.assertEqual([0, 4], judge(guard, others[4:], 5.1))
        self.assertEqual(guards.TOTAL_RATE, guard.admit_one(*others[0], 40000, 5.1))

    def test_refused_ports_and_addresses_use_up_nothing(self) -> None:
        """A packet that is refused for what it is takes no token."""
        guard = Guard(allow=allowing("192.0.2.0/24"), source_rate_pps=1, source_burst=1)
        self.assertEqual([1, 1], judge(guard, [HERE] * 2, 5.0, port=7))
        self.assertEqual([2], judge(guard, [packed_address("198.51.100.1")], 5.0))
        self.assertEqual([0, 3], judge(guard, [HERE] * 2, 5.0))

    def test_memory_is_bounded_and_the_idle_go_first(self) -> None:
        """Millions of spoofed sources take no more room, and leave a busy source its limit."""
        guard = Guard(source_rate_pps=1, source_burst=100, sources=64)
        guard_size = sum(array.nbytes for array in vars(guard).values()
                         if isinstance(array, np.ndarray))  # fmt: skip
        self.assertEqual([0] * 100 + [3], judge(guard, [HERE] * 101, 5.0))
        random = np.random.default_rng(3)
        for _ in range(100):
            low = random.integers(0, 2**32, 256, np.uint64) | np.uint64(0xFFFF << 32)
            guard.admit(None, low, np.full(256, 40000, np.uint16), 5.0)
        self.assertEqual([3], judge(guard, [HERE], 5.0))
        after = sum(array.nbytes for array in vars(guard).values()
                    if isinstance(array, np.ndarray))  # fmt: skip
        self.assertEqual(guard_size, after)

    def test_refusals_are_each_sources_own(self) -> None:
        """They are counted while it is remembered, and are not told of who takes its place."""
        prefix = [packed_address(f"2001:db8::{n}") for n in (1, 2)]
        others = [packed_address(f"198.51.{n // 250}.{n % 250}") for n in range(1000)]
        for single in (False, True):
            guard = Guard(source_rate_pps=1, source_burst=2, sources=64)
            for sources, now_s, refused in (
                ([HERE] * 5, 5.0, 3),
                (prefix * 4, 5.0, 6),
                *(([other], 100.0, 0) for other in others),
            ):
                if single:
                    for source in sources:
                        guard.admit_one(*source, 40000, now_s)
                else:
                    judge(guard, sources, now_s)
                high, low = np.array(sources[-1:], np.uint64).T
                self.assertEqual([refused], guard.refusals(high, low).tolist())

    def test_another_limit_goes_on_from_the_last(self) -> None:
        """What was used stays so, up to the new burst; a memory of another size begins anew."""
        idle, *others = (packed_address(f"192.0.2.{n}") for n in range(2, 100))
        before = Guard(source_rate_pps=10, source_burst=100)
        judge(before, [idle], 1.0)
        judge(before, [HERE] * 100, 5.0)
        guard = Guard(source_rate_pps=1, source_burst=4)
        guard.go_on_from(before, 5.0)
        self.assertEqual([0] * 4 + [3, 3], judge(guard, [idle] * 5 + [HERE], 5.0))
        self.assertEqual([0, 3], judge(guard, [HERE] * 2, 6.0))
        for before in (Guard(), Guard(source_rate_pps=1, source_burst=4, sources=64)):
            guard = Guard(source_rate_pps=1, source_burst=4)
            guard.go_on_from(before, 5.0)
            self.assertEqual({0}, {*judge(guard, others, 5.0)})

    def test_impossible_settings_are_refused(self) -> None:
        """A table or a burst of no size is an error at once."""
        self.assertRaises(ValueError, Guard, sources=100)
        self.assertRaises(ValueError, Guard, sources=32)
        self.assertRaises(ValueError, Guard, source_burst=0)

    @PROPERTIES
    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 30), st.integers(0, 20)),
                    min_size=1, max_size=25))  # fmt: skip
    def test_nobody_gets_more_than_burst_and_rate(self, arrivals: list) -> None:
        """Over any stretch of time a source is admitted its burst and its rate, and never less."""
        guard = Guard(source_rate_pps=10, source_burst=8, sources=1024)
        tokens: dict[int, float] = defaultdict(lambda: 8.0)
        filled: dict[int, float] = {}
        now_s = 1000.0
        for source, packets, wait in arrivals:
            now_s += wait / 100
            admitted = judge(guard, [packed_address(f"192.0.2.{source}")] * packets, now_s).count(0)
            since_s = now_s - filled.get(source, now_s)
            filled[source] = now_s
            tokens[source] = min(8.0, tokens[source] + since_s * 10)
            expected = min(packets, int(tokens[source] + 1e-6))
            self.assertEqual(expected, admitted)
            tokens[source] -= admitted


class LoopTests(SynchronousTestCase):
    def looks(self, packet: bytes, now_ntp: int = NOW_NTP, authenticated: bool = False) -> bool:
        """Return whether a packet looks like a reply, both ways alike if it is not authenticated."""
        one = looks_like_stamp_reply_one(memoryview(packet), now_ntp, authenticated)
        if not authenticated:
            octets, length = arena([packet], 128)
            self.assertEqual(looks_like_stamp_reply(octets, length, now_ntp)[0], one)
        return one

    def test_replies_are_told_from_probes(self) -> None:
        """The TTL, and a time of receipt near now, are what only replies have."""
        self.assertTrue(self.looks(golden("stamp-reply")))
        self.assertTrue(self.looks(golden("stamp-reply-tlvs")))
        self.assertFalse(self.looks(golden("stamp-probe")))
        self.assertFalse(self.looks(golden("stamp-probe-tlvs")))
        self.assertTrue(self.looks(golden("auth-reply"), authenticated=True))
        self.assertFalse(self.looks(golden("auth-probe"), authenticated=True))

    def test_an_hour_either_way_is_near(self) -> None:
        """A time of receipt within an hour of now is a reply's, whenever that says it left."""
        packet = bytearray(golden("stamp-reply"))
        packet[4:8] = bytes(4)
        for seconds, near in ((3599, True), (-3600, True), (3602, False), (-3602, False)):
            self.assertEqual(near, self.looks(bytes(packet), NOW_NTP + (seconds << 32)))

    def test_clocks_that_differ_by_hours(self) -> None:
        """A reply was received within an hour of when it left, by the clock of whoever sent it."""
        for name, sent_at, signed in (("stamp-reply", 4, False), ("auth-reply", 16, True)):
            packet = bytearray(golden(name))
            (sent_s,) = struct.unpack_from(">I", packet, sent_at)
            for seconds, near in (
                (0, True),
                (3600, True),
                (-3600, True),
                (3601, False),
                (-3601, False),
            ):
                struct.pack_into(">I", packet, sent_at, sent_s + seconds)
                for far in (7200, -7200, 10**9):
                    now_ntp = NOW_NTP + (far << 32) & 0xFFFFFFFF_FFFFFFFF
                    self.assertEqual(near, self.looks(bytes(packet), now_ntp, signed))
        packet = bytearray(golden("stamp-reply"))
        packet[4:8], packet[16:20] = b"\0\0\0\5", b"\xff\xff\xff\xff"  # across NTP's eras
        self.assertTrue(self.looks(bytes(packet)))

    def test_the_era_of_ntp_may_end(self) -> None:
        """In February 2036 NTP's seconds begin anew, and a second before is still near."""
        packet = bytearray(golden("stamp-reply"))
        packet[16:20] = b"\xff\xff\xff\xff"
        self.assertTrue(self.looks(bytes(packet), 10 << 32))
        packet[16:20] = b"\0\0\0\5"
        self.assertTrue(self.looks(bytes(packet), 0xFFFFFFFE_00000000))

    def test_stamps_may_be_those_of_ptp(self) -> None:
        """A reply of a device that stamps in PTP format is a reply, too."""
        packet = bytearray(golden("stamp-reply"))
        packet[12] |= 0x40
        packet[4:8] = bytes(4)
        self.assertFalse(self.looks(bytes(packet)))
        packet[16:20] = (0xE98AF040 - 2_208_988_800).to_bytes(4, "big")
        self.assertTrue(self.looks(bytes(packet)))

    def test_padding_is_not_taken_for_a_reply(self) -> None:
        """A TWAMP-Light probe with random padding is answered."""
        padded = golden("twamp-light-probe") + bytes(range(1, 31))
        self.assertFalse(self.looks(padded))
        self.assertFalse(self.looks(padded[:40]))

    def test_what_keeps_coming_back_is_known(self) -> None:
        """The same octets are taken a few times, since networks duplicate, and then no more."""
        echoes = Echoes(capacity=8, most=3)
        self.assertEqual([False] * 3 + [True] * 20, [echoes.too_often(b"x") for _ in range(23)])

    def test_memory_of_echoes_is_bounded(self) -> None:
        """What goes round is known among any number of others, none of which is refused."""
        echoes = Echoes(capacity=100, most=3)
        for turn in range(50):
            self.assertEqual(turn >= 3, echoes.too_often(b"loop"))
            for n in range(30):
                self.assertFalse(echoes.too_often(b"%d %d" % (turn, n)))
        self.assertLessEqual(len(echoes._new) + len(echoes._old), 200)

    def test_as_many_go_round_as_buffers_hold(self) -> None:
        """What a few full receive buffers hold meanwhile has not pushed it out when it comes back."""
        echoes = Echoes()
        for turn in range(6):
            self.assertEqual(turn >= 4, echoes.too_often(b"loop"))
            for n in range(100_000):
                echoes.too_often(b"%d %d" % (turn, n))

    @PROPERTIES
    @given(batches, st.sampled_from([NOW_NTP, 0, 2**64 - 1]))
    def test_batches_are_judged_as_single_packets_are(
        self, packets: list[bytes], now_ntp: int
    ) -> None:
        """Whatever its neighbours are, a row is judged as if it were alone."""
        octets, length = arena(packets)
        looks = looks_like_stamp_reply(octets, length, now_ntp)
        for row, packet in enumerate(packets):
            self.assertEqual(looks_like_stamp_reply_one(memoryview(packet), now_ntp), looks[row])
