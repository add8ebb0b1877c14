"""Our collector's prober asking reflectors that are not ours, over loopback."""

from __future__ import annotations

from collections import Counter
from typing import Any

from peers_case import PeersCase
from servers import free_udp_port
from wire_packets import KEY

from llama.config import CollectorConfig, Key, ReflectorKey, SourcePort, Target, Test

UNKNOWN = 255
SIGNING = {"key": Key(id="k", secret=KEY)}
TIMEOUT_S = 2.0  # scapy takes milliseconds for a packet, and more on a busy machine


class ForeignReflectorTests(PeersCase):
    async def probe(
        self,
        port: int,
        probe: str = "stamp",
        dscps: tuple[int, ...] = (0,),
        beside: tuple[Test, ...] = (),
        traced: bool = True,
        **more: Any,
    ) -> tuple[Counter[str], list[Any]]:
        """Probe a port of 127.0.0.1 for some intervals of one second, ``beside`` other tests.

        Returns the counts of all its pairs and intervals together, and the figures themselves.
        """
        ports = tuple(
            SourcePort(name=f"p{n}", address="127.0.0.1", dscps=dscps, timeout_s=TIMEOUT_S)
            for n in range(2)
        )
        config = CollectorConfig(
            path="", interval_s=1,
            tests=(Test(name="t", targets=(Target(name="peer", host="127.0.0.1", port=port),),
                        probe=probe, source_ports=ports, rate_pps=5.0, timeout_s=TIMEOUT_S,
                        **more), *beside),
        )  # fmt: skip
        intervals, service, enough = self.collector(config)
        if not traced:
            service.tracing.tick = lambda: None
        await enough
        counts: Counter[str] = Counter()
        rows = []
        for interval in intervals:
            for pair, row in zip(interval.pairs, interval.pair_stats, strict=True):
                if pair.target != "peer":
                    continue
                if not row["sent"]:  # the first window may have ended before the first probe
                    continue
                rows.append(row)
                for name in ("sent", "received", "lost", "lost_forward", "lost_reverse",
                             "lost_unknown", "late", "duplicate", "samples", "remarked_forward",
                             "remarked_reverse"):  # fmt: skip
                    counts[name] += int(row[name])
        return counts, rows

    def assert_all_received(self, counts: Counter[str], rows: list[Any]) -> None:
        """Fail unless many probes were sent and every one came back once, with an RTT."""
        self.assertGreater(counts["sent"], 15)
        self.assertEqual(counts["sent"], counts["received"], counts)
        self.assertEqual((0, 0, 0), (counts["lost"], counts["late"], counts["duplicate"]))
        self.assertEqual(counts["received"], counts["samples"])
        for row in rows:
            self.assertTrue(0 < row["rtt_min_ns"] < TIMEOUT_S * 1e9)

    async def test_rfc8762_alone(self) -> None:
        """A stateless reflector that returns no SSID and copies TLVs is measured, class unknown."""
        port = await self.peer_reflector("rfc8762")
        counts, rows = await self.probe(port)
        self.assert_all_received(counts, rows)
        self.assertEqual({UNKNOWN}, {int(row["dscp_at_reflector"]) for row in rows})
        self.assertEqual({64}, {int(row["ttl_at_reflector"]) for row in rows})

    async def test_stateless_and_lossy(self) -> None:
        """Numbers that are our own sent back say nothing of where probes were lost."""
        port = await self.peer_reflector("rfc8762", lose=4)
        counts, _ = await self.probe(port)
        self.assertGreater(counts["lost"], 3)
        self.assertEqual(counts["lost"], counts["lost_unknown"])

    async def test_direction_without_ssid(self) -> None:
        """A peer that counts by address and port is believed where a port is one flow's alone.

        What else the collector probes from other ports is no matter; traces from this port, which
        the peer counts with the probes, are.
        """
        port = await self.peer_reflector("rfc8762-6", lose=4)
        other = Test(
            name="other", probe="stamp", rate_pps=5.0, timeout_s=TIMEOUT_S,
            targets=(Target(name="ours", host="127.0.0.1", port=self.reflector().port_number),),
            source_ports=(SourcePort(name="o", address="127.0.0.1", timeout_s=TIMEOUT_S),),
        )  # fmt: skip
        counts, _ = await self.probe(port, beside=(other,), traced=False)
        self.assertGreater(counts["lost_forward"], 3)
        self.assertEqual(counts["lost_reverse"], 0)
        for more in ({"beside": (other,)}, {"dscps": (0, 46), "traced": False}):
            port = await self.peer_reflector("rfc8762-6", lose=4)
            counts, _ = await self.probe(port, **more)
            self.assertGreater(counts["lost"], 3, counts)
            self.assertEqual(counts["lost_reverse"], 0)
        self.assertEqual(counts["lost"], counts["lost_unknown"])

    async def test_two_kinds_from_one_port(self) -> None:
        """TWAMP-Light and STAMP from one source port to a peer without SSIDs: each has its replies."""
        port = await self.peer_reflector("rfc8762-6")
        source = SourcePort(
            name="p", address="127.0.0.1", number=free_udp_port(), timeout_s=TIMEOUT_S
        )
        target = Target(name="peer", host="127.0.0.1", port=port)
        config = CollectorConfig(
            path="", interval_s=1,
            tests=tuple(Test(name=kind, targets=(target,), probe=kind, source_ports=(source,),
                             rate_pps=20.0, timeout_s=TIMEOUT_S)
                        for kind in ("stamp", "twamp-light")),
        )  # fmt: skip
        intervals, service, enough = self.collector(config)
        await enough
        for interval in intervals:
            for row in interval.pair_stats:
                self.assertEqual(row["sent"], row["received"])
        self.assertEqual(service.prober.strangers, 0)
        kinds = {pair.probe for interval in intervals for pair in interval.pairs}
        self.assertEqual(kinds, {"stamp", "twamp-light"})

    async def test_rfc8972(self) -> None:
        """A reflector with SSID and Class of Service says which class arrived, and is believed."""
        port = await self.peer_reflector("rfc8972")
        counts, rows = await self.probe(port, dscps=(0, 46), sizes=(200,))
        self.assert_all_received(counts, rows)
        self.assertEqual({0, 46}, {int(row["dscp_at_reflector"]) for row in rows})
        self.assertEqual({0, 46}, {int(row["dscp_at_collector"]) for row in rows})
        self.assertEqual((0, 0), (counts["remarked_forward"], counts["remarked_reverse"]))

    async def test_twamp_light(self) -> None:
        """A TWAMP-Light responder of 38 octets, with T2 = T3 and no TTL, is measured all the same."""
        port = await self.peer_reflector("twamp-light")
        counts, rows = await self.probe(port, probe="twamp-light")
        self.assert_all_received(counts, rows)
        self.assertEqual({0}, {int(row["ttl_at_reflector"]) for row in rows})
        counts, rows = await self.probe(port, probe="twamp-light", dscps=(0, 46), sizes=(44, 60))
        self.assert_all_received(counts, rows)
        self.assertEqual({UNKNOWN}, {int(row["dscp_at_reflector"]) for row in rows})

    async def test_ours(self) -> None:
        """The same through our own reflector, which leaves nothing unknown."""
        port = self.reflector().port_number
        counts, rows = await self.probe(port, dscps=(0, 46), sizes=(200, 1400))
        self.assert_all_received(counts, rows)
        self.assertEqual({0, 46}, {int(row["dscp_at_reflector"]) for row in rows})
        self.assertEqual({64}, {int(row["ttl_at_reflector"]) for row in rows})

    def assert_nothing_known_of_one_way(self, rows: list[Any]) -> None:
        """Fail if anything is stated that only a peer with time stamps could tell."""
        for row in rows:
            self.assertEqual(UNKNOWN, row["dscp_at_reflector"])
            for name in ("ipdv_forward_ns", "ipdv_reverse_ns", "owd_forward_ns"):
                self.assertNotEqual(row[name], row[name], name)  # not a number

    async def test_earlier_fleets(self) -> None:
        """LLAMA Go's reflector and the archived Python one are measured, there and back together."""
        for probe in ("llama-go", "llama-python"):
            port = await self.peer_reflector(probe)
            counts, rows = await self.probe(port, probe=probe, dscps=(0, 46))
            self.assert_all_received(counts, rows)
            self.assert_nothing_known_of_one_way(rows)
            self.assertEqual({0, 46}, {int(row["dscp_at_collector"]) for row in rows})
            self.assertEqual(0, counts["remarked_reverse"])

    async def test_authenticated(self) -> None:
        """A reflector that answers only what is signed is measured like any, class and all."""
        port = await self.peer_reflector("stamp-auth", KEY.hex())
        counts, rows = await self.probe(port, probe="stamp-auth", dscps=(0, 46), options=SIGNING)
        self.assert_all_received(counts, rows)
        self.assertEqual({0, 46}, {int(row["dscp_at_reflector"]) for row in rows})

    async def test_every_format_with_ours(self) -> None:
        """All kinds at once, from the same source ports to the same port of our own reflector."""
        ours = self.reflector(
            keys=(ReflectorKey(key=SIGNING["key"]),), allow_unauthenticated=True
        ).port_number
        ports = tuple(
            SourcePort(name=f"p{n}", address="127.0.0.1", number=free_udp_port(), dscps=(0, 46),
                       timeout_s=TIMEOUT_S)
            for n in range(2)
        )  # fmt: skip
        target = Target(name="peer", host="127.0.0.1", port=ours)
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("stamp", {}), ("stamp-auth", {"options": SIGNING, "sizes": (112, 113, 184, 300, 1400)}),
            ("twamp-light", {}), ("llama-go", {"sizes": (28, 44, 1028)}), ("llama-python", {}),
        ]  # fmt: skip
        config = CollectorConfig(
            path="", interval_s=1,
            tests=tuple(Test(name=kind, targets=(target,), probe=kind, source_ports=ports,
                             rate_pps=5.0, timeout_s=TIMEOUT_S, **more) for kind, more in kinds),
        )  # fmt: skip
        intervals, service, enough = self.collector(config)
        await enough
        seen = set()
        for interval in intervals:
            for pair, row in zip(interval.pairs, interval.pair_stats, strict=True):
                seen.add(pair.probe)
                told = f"{pair.probe} {pair.size} {pair.dscp} {row}"
                self.assertEqual(row["sent"], row["received"], told)
                self.assertEqual(row["sent"], row["samples"], told)
                self.assertEqual(0, row["duplicate"], told)
        self.assertEqual({kind for kind, _ in kinds}, seen)
        self.assertEqual(0, service.prober.strangers)
