"""Peers that return no SSID count traces with the probes, whether their answers come or not."""

from __future__ import annotations

import random
import socket
import time
from typing import Any

from plain_stamp import REPLY
from timekeeper_case import TimekeeperCase, pair

from llama.collector.slices import at_once
from llama.collector.tracing import Tracing
from llama.wire import stamp


class BareTests(TimekeeperCase):
    """A peer that counts all that comes from an address and port, behind a lossy network."""

    def setUp(self) -> None:
        """Open the peer's socket."""
        super().setUp()
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.peer.close)
        self.peer.bind(("127.0.0.1", 0))
        self.peer.setblocking(False)
        self.chance = random.Random(2)
        self.came: dict[Any, int] = {}
        self.traces = 0

    def answer(self, share: float, ssid: int = 0) -> None:
        """See but a share of what comes, and all traces, and have no answer to these come back."""
        while True:
            try:
                probe, whence = self.peer.recvfrom(999)
            except BlockingIOError:
                return
            traced = ssid != 0 and probe[14:16] == ssid.to_bytes(2, "big")
            self.traces += traced
            if not traced and self.chance.random() >= share:
                continue
            number = self.came[whence] = self.came.get(whence, 6) + 1
            if traced:
                continue
            now = stamp.ntp_from_unix_ns(time.time_ns())
            sequence, sent, error, _ = stamp.SENDER_STRUCT.unpack_from(probe)
            self.peer.sendto(
                REPLY.pack(number, now, 0x3FFF, 0, now, sequence, sent, error, 64), whence
            )

    def lost(self, way: str = "") -> int:
        """Return how many probes were lost, all or one way."""
        return sum(int(closed.pair_stats[f"lost{way}"].sum()) for closed in self.closed)

    def test_answers_to_traces_are_lost(self) -> None:
        """What a trace made it count is not taken for probes that were lost on their way back."""
        tracing = Tracing(self.prober)

        def more() -> bool:
            self.answer(0.2, tracing.ssid)
            tracing.tick()
            if self.closed and self.closed[-1].close_number > told[-1]:
                told.append(self.closed[-1].close_number)
                tracing.closed(self.closed[-1])
                at_once(tracing.line_up(self.closed[-1]))
            return len(self.closed) >= 6

        told = [0]
        self.timekeeper.use(
            [self.group(pair("127.0.0.1", self.peer.getsockname()[1]), ports=4, rate=40)]
        )
        self.run_until(more, answering=False)
        self.assertGreater(self.traces, 3)
        self.assertGreater(self.lost(), 50)
        self.assertEqual(self.lost("_reverse"), 0)

    def test_classes_that_share_a_port(self) -> None:
        """What it counted of one class is not taken for probes of the other lost on their way back."""

        def more() -> bool:
            self.answer(0.1)
            return len(self.closed) >= 3

        port = self.peer.getsockname()[1]
        self.timekeeper.use(
            [self.group(*(pair("127.0.0.1", port, dscp) for dscp in (0, 46)), ports=4, rate=40)]
        )
        self.run_until(more, answering=False)
        self.assertGreater(self.lost(), 50)
        self.assertEqual((self.lost("_forward"), self.lost("_reverse")), (0, 0))
