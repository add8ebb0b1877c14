"""Our collector's prober asking reflectors that are not ours, over loopback."""

from __future__ import annotations

from collections import Counter
from typing import Any

from peers_case import PeersCase

from llama.config import CollectorConfig, SourcePort, Target, Test

UNKNOWN = 255
TIMEOUT_S = 2.0  # scapy takes milliseconds for a packet, and more on a busy machine


class ForeignReflectorTests(PeersCase):
    async def probe(
        self, port: int, probe: str = "stamp", dscps: tuple[int, ...] = (0,), **more: Any
    ) -> tuple[Counter[str], list[Any]]:
        """Probe a port of 127.0.0.1 for some intervals of one second.

        Returns the counts of all pairs and intervals together, and the figures themselves.
        """
        ports = tuple(
            SourcePort(name=f"p{n}", address="127.0.0.1", dscps=dscps, timeout_s=TIMEOUT_S)
            for n in range(2)
        )
        config = CollectorConfig(
            path="", interval_s=1,
            tests=(Test(name="t", targets=(Target(name="peer", host="127.0.0.1", port=port),),
                        probe=probe, source_ports=ports, rate_pps=5.0, timeout_s=TIMEOUT_S,
                        **more),),
        )  # fmt: skip
        intervals, _service, enough = self.collector(config)
        await enough
        counts: Counter[str] = Counter()
        rows = []
        for interval in intervals:
            for row in interval.pair_stats:
                rows.append(row)
                for name in ("sent", "received", "lost", "lost_unknown", "late", "duplicate",
                             "samples", "remarked_forward", "remarked_reverse"):  # fmt: skip
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
        self.assertEqual({UNKNOWN}, {int(row["dscp_at_reflector"]) for row in rows})

    async def test_ours(self) -> None:
        """The same through our own reflector, which leaves nothing unknown."""
        port = self.reflector().port_number
        counts, rows = await self.probe(port, dscps=(0, 46), sizes=(200, 1400))
        self.assert_all_received(counts, rows)
        self.assertEqual({0, 46}, {int(row["dscp_at_reflector"]) for row in rows})
        self.assertEqual({64}, {int(row["ttl_at_reflector"]) for row in rows})
