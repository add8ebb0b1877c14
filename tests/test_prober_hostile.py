"""Forged replies at a prober, over loopback; see docs/security.rst."""

from __future__ import annotations

import time

from peers_case import PeersCase
from test_reflector_hostile import need_root, send, spoof
from twisted.internet.task import LoopingCall

from llama.config import CollectorConfig, SourcePort, Target, Test
from llama.wire import stamp


class ForgedReplyTests(PeersCase):
    async def test_forged_replies_change_nothing(self) -> None:
        """Replies from elsewhere, or that repeat no time stamp of ours, are strangers'."""
        need_root()
        port = self.reflector().port_number
        source = SourcePort(name="p", address="127.0.0.1", timeout_s=2.0)
        target = Target(name="peer", host="127.0.0.1", port=port)
        config = CollectorConfig(
            path="", interval_s=1,
            tests=(Test(name="t", targets=(target,), source_ports=(source,), rate_pps=20.0,
                        timeout_s=2.0),),
        )  # fmt: skip
        intervals, service, enough = self.collector(config)
        forged = 0

        def forge() -> None:
            nonlocal forged
            if not service.prober.tracks:
                return
            [track] = service.prober.tracks
            [sock] = service.prober.udp.sockets.values()
            now = stamp.ntp_from_unix_ns(time.time_ns())
            for sequence in range(40):
                reply = stamp.REFLECTOR_STRUCT.pack(
                    sequence, now, 0x8001, int(track.ssids[0]), now, sequence, now, 0x8001, 0, 64
                )
                spoof(reply, port, sock.number)
                send(reply, sock.number)
                forged += 2

        forging = LoopingCall(forge)
        done = forging.start(0.05)
        try:
            await enough
        finally:
            forging.stop()
            await done
        self.assertGreater(forged, 1000)
        self.assertGreater(service.prober.strangers, 1000)
        for interval in intervals:
            for row in interval.pair_stats:
                if not row["sent"]:  # the first window may have ended before the first probe
                    continue
                self.assertEqual(row["sent"], row["received"])
                self.assertEqual((0, 0, 0), (row["lost"], row["duplicate"], row["late"]))
                self.assertGreater(row["rtt_min_ns"], 0)
