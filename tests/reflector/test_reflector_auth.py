"""Keys and provisioned sessions at a real reflector, on both of its ports, asked by a foreign sender."""

from __future__ import annotations

import ipaddress
import time
from typing import Any

from forged import need_root, send, settle, spoof, stamp_probe
from peers_case import PeersCase
from servers import free_udp_port
from twisted.trial.unittest import SkipTest
from wire_packets import golden

from llama.config.model import Key, ReflectorKey, ReflectorSession
from llama.reflector.service import PortService
from llama.wire import auth, stamp

OLD, NEW, WRONG = b"the key that was" * 2, b"the key that is!" * 2, b"nobody's key at all"
COS_EF, FOLLOW_UP, HMAC = [0x80, 4, "b8000000"], [0x80, 7, "00" * 16], [0x80, 8, "00" * 16]
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


def key(secret: bytes, **whom: Any) -> ReflectorKey:
    """Return a key as the configuration has it."""
    return ReflectorKey(key=Key(id="k", secret=secret), **whom)


def auth_probe(secret: bytes, ssid: int = 1, size: int = auth.BASE_SIZE) -> bytes:
    """Return an authenticated probe sent now."""
    packet = bytearray(size)
    auth.pack_probe(packet, 1, stamp.ntp_from_unix_ns(time.time_ns()), 0x8001, ssid, secret)
    return bytes(packet)


class KeyCase(PeersCase):
    def both(self, **config: Any) -> list[PortService]:
        """Start a reflector on each kind of port."""
        return [self.reflector(batched, **config) for batched in (True, False)]

    async def ask(self, service: PortService, secret: bytes, **want: Any) -> list[dict[str, Any]]:
        """Return the replies to three authenticated probes of a foreign sender."""
        want = {"kind": "stamp-auth", "key": secret.hex(), "wait_s": 0.3, **want}
        said = await self.peer_sender(port=service.port_number, **want)
        replies: list[dict[str, Any]] = said["replies"]
        return replies


class KeyTests(KeyCase):
    async def test_signed_probes_get_signed_replies(self) -> None:
        """Alone and in bursts, with and without TLVs: numbered, timed, and genuine to another's eye."""
        for service in self.both(keys=(key(NEW),), reply_dscps=(46,)):
            port = service.port_number
            wants = [{"port": port, "kind": "stamp-auth", "key": NEW.hex(), "count": 9, "ssid": n,
                      "burst": burst, "tlvs": tlvs, "tos": 0x28}
                     for n, (burst, tlvs) in enumerate(((False, []), (True, []),
                         (False, [COS_EF, FOLLOW_UP, HMAC]), (True, [COS_EF, HMAC])))]  # fmt: skip
            for want, said in zip(wants, await self.peer_senders(wants), strict=True):
                replies = said["replies"]
                self.assertEqual(list(range(9)), [reply["seq"] for reply in replies])
                for sent, reply in zip(said["sent"], replies, strict=True):
                    self.assertTrue(reply["genuine"])
                    self.assertEqual(len(sent), len(reply["octets"]))
                    self.assertEqual((want["ssid"], 0), (reply["ssid"], reply["mbz"]))
                    t1, t2, t3 = reply["times"]
                    self.assertEqual(sent[32:48], f"{t1:016x}")
                    self.assertLessEqual(t2, t3)
                    if want["tlvs"]:
                        self.assertEqual(0, sum(flags for flags, _, _ in reply["tlvs"]))
                        if service.batched:
                            self.assertEqual(0xB8, reply["tos"])
            self.assertEqual({"stamp-auth": 36}, dict(service.tally.answered))

    async def test_follow_up_telemetry_is_signed_for(self) -> None:
        """A session that asks is told when its last reply really left, under HMAC."""
        service = self.reflector(keys=(key(NEW),))
        if not service.ports[0].stamped:
            raise SkipTest("the kernel gives datagrams no identifiers, so no transmit stamps")
        replies = await self.ask(service, NEW, tlvs=[FOLLOW_UP, HMAC], count=4)
        for number, reply in enumerate(replies[1:]):
            value = reply["tlvs"][0][2]
            self.assertEqual(number, int(value[:8], 16))
            self.assertLess(replies[number]["times"][2] - int(value[8:24], 16), 1 << 31)

    async def test_tlvs_that_nobody_signed_are_not_acted_upon(self) -> None:
        """Behind an authenticated base packet they come back with the I flag."""
        for service in self.both(keys=(key(NEW),), reply_dscps=(46,)):
            for reply in await self.ask(service, NEW, tlvs=[COS_EF], tos=0x28):
                self.assertEqual([[0x20, 4, "b8000000"]], reply["tlvs"])

    async def test_old_and_new_key_during_a_change(self) -> None:
        """Both are good while both are listed, each reply signed as its probe was."""
        for service in self.both(keys=(key(NEW), key(OLD))):
            for secret in (OLD, NEW):
                replies = await self.ask(service, secret)
                self.assertEqual([True] * 3, [reply["genuine"] for reply in replies])
            self.assertEqual([], await self.ask(service, WRONG, count=2))
            self.assertEqual({"bad_hmac": 2}, dict(service.tally.dropped))

    async def test_whose_key_it_is(self) -> None:
        """Keys are for prefixes and SSIDs; for other probes they are none, and that is counted."""
        elsewhere = ipaddress.ip_network("192.0.2.0/24")
        for service in self.both(keys=(key(OLD, ssids=(7,)), key(NEW, prefixes=(elsewhere,)))):
            self.assertEqual(3, len(await self.ask(service, OLD, ssid=7)))
            self.assertEqual([], await self.ask(service, NEW, ssid=7, count=1))
            self.assertEqual([], await self.ask(service, NEW, ssid=8, count=2))
            self.assertEqual({"bad_hmac": 1, "no_key": 2}, dict(service.tally.dropped))

    async def test_others_are_not_answered(self) -> None:
        """With keys, neither plain STAMP nor the formats of earlier fleets are served."""
        for service in self.both(keys=(key(NEW),)):
            for packet in (stamp_probe(), golden("llama-go"), golden("llama-python"), b"x" * 200):
                send(packet, service.port_number)
            self.assertEqual(4, await settle(service))
            self.assertEqual({}, dict(service.tally.answered))
            self.assertEqual({"unauthenticated": 2, "bad_hmac": 2}, dict(service.tally.dropped))

    async def test_others_are_answered_where_that_is_allowed(self) -> None:
        """``allow_unauthenticated`` serves both modes; a plain probe's HMAC TLV is checked, too."""
        for service in self.both(keys=(key(NEW),), allow_unauthenticated=True):
            self.assertEqual(3, len(await self.ask(service, NEW)))
            port = service.port_number
            expected = {"stamp-auth": 3, "stamp": 4}
            if service.batched:  # earlier formats are echoed to strangers where the TTL is known
                expected |= {"llama-go": 3, "llama-python": 3}
            for kind in ("stamp", "llama-go", "llama-python"):
                said = await self.peer_sender(port=port, kind=kind)
                self.assertEqual(3 if kind in expected else 0, len(said["replies"]), kind)
            said = await self.peer_sender(port=port, kind="stamp", tlvs=[COS_EF, HMAC], count=1)
            self.assertEqual([0x20, 0x20], [each[0] for each in said["replies"][0]["tlvs"]])
            self.assertEqual(expected, dict(service.tally.answered))

    async def test_a_signed_loop_ends_at_once(self) -> None:
        """One forged probe sets two reflectors that share a key on each other, for one reply."""
        need_root()
        one, other = (self.reflector(keys=(key(NEW),)) for _ in range(2))
        spoof(auth_probe(NEW), other.port_number, one.port_number)
        self.assertEqual(2, await settle(one, other))
        self.assertEqual({"loop": 1}, dict(other.tally.dropped))

    async def test_large_signed_probes(self) -> None:
        """What is longer than the part that batches look at is verified and answered as a whole."""
        for service in self.both(keys=(key(NEW),)):
            for reply in await self.ask(service, NEW, size=1300, burst=True, count=6):
                self.assertTrue(reply["genuine"])
                self.assertEqual(112 + 1300, len(reply["octets"]) // 2)
            self.assertEqual(6, service.tally.answered["stamp-auth"])


class SessionTests(KeyCase):
    async def test_only_provisioned_sessions_are_served(self) -> None:
        """Strict RFC 8972: by source, port and SSID; one at a time or in batches, others counted."""
        port = free_udp_port()
        sessions = (ReflectorSession(source=LOOPBACK, source_port=port),
                    ReflectorSession(source=LOOPBACK, ssid=9))  # fmt: skip
        for service in self.both(sessions=sessions):
            wants = [{"port": service.port_number, "kind": "stamp", "wait_s": 0.3, "count": 8,
                      "burst": burst, **ends}
                     for burst in (False, True)
                     for ends in ({"ssid": 9}, {"ssid": 8, "source_port": port})]  # fmt: skip
            for said in await self.peer_senders(wants):
                self.assertEqual(8, len(said["replies"]))
            want = {"port": service.port_number, "kind": "stamp", "wait_s": 0.1, "count": 8,
                    "ssid": 8, "burst": True}  # fmt: skip
            for kind in ("stamp", "llama-go", "llama-python"):
                said = await self.peer_sender(**{**want, "kind": kind})
                self.assertEqual([], said["replies"])
            self.assertEqual({"no_session": 24}, dict(service.tally.dropped))
            self.assertEqual({"stamp": 32}, dict(service.tally.answered))

    async def test_with_keys(self) -> None:
        """A genuine probe of no session is dropped as well."""
        sessions = (ReflectorSession(source=LOOPBACK, ssid=9),)
        for service in self.both(keys=(key(NEW),), sessions=sessions):
            self.assertEqual(3, len(await self.ask(service, NEW, ssid=9)))
            self.assertEqual([], await self.ask(service, NEW, ssid=8))
            self.assertEqual({"no_session": 3}, dict(service.tally.dropped))
