"""Peers that return no SSID count traces with the probes, whether their answers come or not."""

from __future__ import annotations

import random
import socket
import time
from typing import Any

from timekeeper_case import TimekeeperCase, pair

from llama.collector.tracing import Tracing
from llama.wire import stamp


class TracedTests(TimekeeperCase):
    """A peer that counts all that comes from an address and port, behind a lossy network."""

    def test_answers_to_traces_are_lost(self) -> None:
        """What a trace made it count is not taken for probes that were lost on their way back."""
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(peer.close)
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        tracing = Tracing(self.prober)
        chance = random.Random(2)
        came: dict[Any, int] = {}
        traces = 0

        def answer() -> None:
            """Never see much of what comes, and have no answer to a trace come back."""
            nonlocal traces
            while True:
                try:
                    probe, whence = peer.recvfrom(999)
                except BlockingIOError:
                    return
                traced = probe[14:16] == tracing.ssid.to_bytes(2, "big")
                traces += traced
                if not traced and chance.random() < 0.8:
                    continue
                number = came[whence] = came.get(whence, 6) + 1
                if traced:
                    continue
                now = stamp.ntp_from_unix_ns(time.time_ns())
                sequence, sent, error, _ = stamp.SENDER_STRUCT.unpack_from(probe)
                peer.sendto(
                    stamp.REFLECTOR_STRUCT.pack(
                        number, now, 0x3FFF, 0, now, sequence, sent, error, 0, 64
                    ),
                    whence,
                )

        def more() -> bool:
            answer()
            tracing.tick()
            if self.closed and self.closed[-1].close_number > told[-1]:
                told.append(self.closed[-1].close_number)
                tracing.closed(self.closed[-1])
            return len(self.closed) >= 6

        told = [0]
        self.timekeeper.use(
            [self.group(pair("127.0.0.1", peer.getsockname()[1]), ports=4, rate=40)]
        )
        self.run_until(more, answering=False)
        self.assertGreater(traces, 3)
        self.assertGreater(sum(int(closed.pair_stats["lost"].sum()) for closed in self.closed), 50)
        reverse = sum(int(closed.pair_stats["lost_reverse"].sum()) for closed in self.closed)
        self.assertEqual(reverse, 0)
