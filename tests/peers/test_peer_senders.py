"""Our reflector asked by senders that are not ours, over loopback."""

from __future__ import annotations

import ipaddress
from typing import Any

from peers_case import PeersCase
from servers import free_udp_port
from twisted.trial.unittest import SkipTest

COS_EF = [0x80, 4, "b8000000"]
FOLLOW_UP = [0x80, 7, "00" * 16]
SECOND = 1 << 32


class StampSenderTests(PeersCase):
    """RFC 8762 and RFC 8972 senders, by scapy."""

    def assert_stateful_replies(self, said: dict[str, Any], count: int, ssid: int) -> None:
        """Fail unless every probe has its reply, numbered, timed and symmetrical in size."""
        replies = said["replies"]
        self.assertEqual(count, len(replies))
        self.assertEqual(list(range(count)), [reply["seq"] for reply in replies])
        self.assertEqual(list(range(count)), [reply["seq_sender"] for reply in replies])
        for sent, reply in zip(said["sent"], replies, strict=True):
            self.assertEqual((ssid, 64, 0), (reply["ssid"], reply["ttl_sender"], reply["mbz"]))
            self.assertEqual(len(sent), len(reply["octets"]))
            t1, t2, t3 = reply["times"]
            self.assertEqual(sent[8:24], f"{t1:016x}")
            self.assertLessEqual(t2, t3)
            self.assertLess(abs(t2 - said["now"]), 60 * SECOND)

    async def test_base_packets(self) -> None:
        """A sender without extensions gets numbered replies of 44 octets, one at a time or not."""
        port = self.reflector().port_number
        wants = [{"port": port, "kind": "stamp", "ssid": 0, "count": 9, "burst": burst}
                 for burst in (False, True)]  # fmt: skip
        for said in await self.peer_senders(wants):
            self.assert_stateful_replies(said, 9, 0)

    async def test_plain_padding(self) -> None:
        """What is behind the base packet and no TLV comes back as it was."""
        port = self.reflector().port_number
        wants = [{"port": port, "kind": "stamp", "ssid": 3, "count": 5, "burst": burst,
                  "size": size} for burst in (False, True) for size in (1, 100, 1400)]  # fmt: skip
        for want, said in zip(wants, await self.peer_senders(wants), strict=True):
            self.assert_stateful_replies(said, 5, 3)
            for reply in said["replies"]:
                self.assertEqual("00" * want["size"], reply["octets"][88:])

    async def test_sessions_have_their_own_numbers(self) -> None:
        """Every SSID on one source port is counted by itself."""
        port = self.reflector().port_number
        source_port = free_udp_port()
        wants = [{"port": port, "kind": "stamp", "ssid": ssid, "count": 2,
                  "source_port": source_port} for ssid in (1, 2, 1)]  # fmt: skip
        one, two, one_again = await self.peer_senders(wants)
        self.assert_stateful_replies(one, 2, 1)
        self.assert_stateful_replies(two, 2, 2)
        self.assertEqual([2, 3], [reply["seq"] for reply in one_again["replies"]])

    async def test_tlvs(self) -> None:
        """Known TLVs are answered, unknown ones marked, malformed ones end it, sizes are kept."""
        port = self.reflector(reply_dscps=(46,)).port_number
        wants = [{"port": port, "kind": "stamp", "ssid": 7, "count": 6, "burst": burst,
                  "tos": 0x29, "tlvs": [COS_EF, [0x80, 9, "abcd"], FOLLOW_UP, [0x80, 1, "0102"]]}
                 for burst in (False, True)]  # fmt: skip
        for said in await self.peer_senders(wants):
            self.assert_stateful_replies(said, 6, 7)
            for reply in said["replies"]:
                self.assertEqual(0xB8, reply["tos"])
                cos, unknown, follow, padding = reply["tlvs"]
                self.assertEqual([0, 4, "b8a40000"], cos)
                self.assertEqual([0x80, 9, "abcd"], unknown)
                self.assertEqual([0, 7], follow[:2])
                self.assertEqual([0, 1, "0102"], padding)

    async def test_malformed_tlvs(self) -> None:
        """A TLV with a wrong length gets the M flag, and what is behind it is only copied."""
        port = self.reflector().port_number
        said = await self.peer_sender(port=port, kind="stamp", ssid=7, count=6, burst=True,
                                      tlvs=[[0x80, 4, "b80000"], COS_EF])  # fmt: skip
        self.assert_stateful_replies(said, 6, 7)
        for reply in said["replies"]:
            self.assertEqual([[0x40, 4, "b80000"], COS_EF], reply["tlvs"])

    async def test_a_class_that_is_not_permitted(self) -> None:
        """A class the configuration does not name is refused: RP=1, and the class it came in."""
        port = self.reflector().port_number
        said = await self.peer_sender(port=port, kind="stamp", ssid=7, tos=0x28, tlvs=[COS_EF])
        for reply in said["replies"]:
            self.assertEqual((0x28, [0, 4, "b8a10000"]), (reply["tos"], reply["tlvs"][0]))

    async def test_follow_up_telemetry(self) -> None:
        """Each reply carries when the one before it really left, not before its own T3."""
        service = self.reflector()
        if not service.batched or not service.ports[0].stamped:
            raise SkipTest("this kernel does not let a sender choose the ids of its stamps (6.13)")
        said = await self.peer_sender(port=service.port_number, kind="stamp", ssid=7, count=5,
                                      tlvs=[FOLLOW_UP])  # fmt: skip
        self.assert_stateful_replies(said, 5, 7)
        before = None
        for reply in said["replies"]:
            follow = bytes.fromhex(reply["tlvs"][0][2])
            if before is None:
                self.assertEqual(bytes(16), follow)
            else:
                self.assertEqual(before["seq"], int.from_bytes(follow[:4], "big"))
                stamp = int.from_bytes(follow[4:12], "big")
                self.assertLess(abs(stamp - before["times"][2]), SECOND)
                self.assertEqual(b"\x02\0\0\0", follow[12:])
            before = reply

    async def test_ipv6(self) -> None:
        """Hop limit and traffic class are those of IPv6, and replies come from the address asked."""
        port = self.reflector(addresses=("::1",)).port_number
        said = await self.peer_sender(host="::1", port=port, kind="stamp", ssid=7, count=5,
                                      tos=0xB9, tlvs=[COS_EF], burst=True)  # fmt: skip
        self.assert_stateful_replies(said, 5, 7)
        for reply in said["replies"]:
            self.assertEqual((0xB8, [0, 4, "bae40000"]), (reply["tos"], reply["tlvs"][0]))

    async def test_without_recvmmsg(self) -> None:
        """On Twisted's own port the same probes get the same replies, but for what it cannot see."""
        port = self.reflector(batched=False).port_number
        said = await self.peer_sender(port=port, kind="stamp", ssid=7, count=4,
                                      tlvs=[[0x80, 9, "ab"], FOLLOW_UP])  # fmt: skip
        self.assertEqual(list(range(4)), [reply["seq"] for reply in said["replies"]])
        for reply in said["replies"]:
            self.assertEqual([[0x80, 9, "ab"], [0, 7, "00" * 16]], reply["tlvs"])


class ShortProbeTests(PeersCase):
    """TWAMP-Light senders, which ask with 14 octets and more."""

    async def test_listed_senders_get_the_base_packet(self) -> None:
        """From a listed source 14 octets are enough, and all of the standard's 44 come back."""
        allow = (ipaddress.ip_network("127.0.0.0/8"),)
        port = self.reflector(allow=allow).port_number
        wants = [{"port": port, "kind": "twamp-light", "size": size, "burst": True, "count": 5}
                 for size in (0, 10, 29, 30, 100)]  # fmt: skip
        for want, said in zip(wants, await self.peer_senders(wants), strict=True):
            self.assertEqual(list(range(5)), [reply["seq"] for reply in said["replies"]])
            lengths = {len(reply["octets"]) // 2 for reply in said["replies"]}
            self.assertEqual({max(44, 14 + want["size"])}, lengths)

    async def test_others_get_nothing(self) -> None:
        """Nobody can make us send more octets to a spoofed source than were sent to us."""
        service = self.reflector()
        wants = [{"port": service.port_number, "kind": "twamp-light", "size": size, "wait_s": 0.1}
                 for size in (0, 29, 30)]  # fmt: skip
        said = await self.peer_senders(wants)
        self.assertEqual([0, 0, 3], [len(each["replies"]) for each in said])
        self.assertEqual(6, service.tally.dropped["short"])


class LegacySenderTests(PeersCase):
    """Collectors of earlier LLAMA fleets."""

    async def test_llama_go(self) -> None:
        """Probes of LLAMA Go come back octet for octet, in the class they name and came with."""
        port = self.reflector().port_number
        wants = [{"port": port, "kind": "llama-go", "count": 5, "tos_field": 0x28, "tos": 0x28,
                  "burst": burst} for burst in (False, True)]  # fmt: skip
        for said in await self.peer_senders(wants):
            self.assertEqual(said["sent"], [reply["octets"] for reply in said["replies"]])
            self.assertEqual({0x28}, {reply["tos"] for reply in said["replies"]})

    async def test_llama_go_without_tos(self) -> None:
        """The probe that killed the reflector of LLAMA Go is echoed, and the next one, too."""
        port = self.reflector().port_number
        wants = [{"port": port, "kind": "llama-go", "tos_field": field, "tos": 0x48}
                 for field in (None, [])]  # fmt: skip
        for said in await self.peer_senders(wants):
            self.assertEqual(said["sent"], [reply["octets"] for reply in said["replies"]])
            self.assertEqual({0x48}, {reply["tos"] for reply in said["replies"]})

    async def test_llama_python(self) -> None:
        """Probes of the archived Python LLAMA come back octet for octet, in their class."""
        port = self.reflector().port_number
        wants = [{"port": port, "kind": "llama-python", "count": 5, "tos": 0x68, "burst": burst}
                 for burst in (False, True)]  # fmt: skip
        for said in await self.peer_senders(wants):
            self.assertEqual(said["sent"], [reply["octets"] for reply in said["replies"]])
            self.assertEqual({0x68}, {reply["tos"] for reply in said["replies"]})

    async def test_echoes_leave_with_one_hop_less(self) -> None:
        """A reply's TTL is the probe's less one, so that a loop nobody recognises dies."""
        port = self.reflector().port_number
        said = await self.peer_sender(port=port, kind="llama-python")
        self.assertEqual({63}, {reply["ttl"] for reply in said["replies"]})

    async def test_they_can_be_switched_off(self) -> None:
        """Where no earlier fleet is left, its packets are STAMP probes like others, or too short."""
        port = self.reflector(legacy=False).port_number
        said = await self.peer_sender(port=port, kind="llama-python", wait_s=0.1)
        self.assertEqual([], said["replies"])
