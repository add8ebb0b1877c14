"""Answers that arrive on this host and that hping3 misses are not lost."""

from __future__ import annotations

import os
import socket

from hping3_case import ProbeCase, require_hping3
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import reasons
from llama.collector.probing.hping3.witness import Seen, Witness

SUMMARY = (
    "printf '\\n--- 127.0.0.1 hping statistic ---\\n3 packets transmitted, 0 packets received,"
    " 100%% packet loss\\nround-trip min/avg/max = 0.0/0.0/0.0 ms\\n' >&2\n"
)


class MissedTests(ProbeCase):
    """A program that sends as hping3 does, and is deaf."""

    async def test_deaf(self) -> None:
        """What it does not hear counts as received, without a round trip."""
        program = self.script(
            "echo 'HPING 127.0.0.1 (lo 127.0.0.1): S set, 40 headers + 0 data bytes'\n"
            f'hping3 "$@" >/dev/null 2>&1; sleep 1\n{SUMMARY}'
        )
        group = self.group(["127.0.0.1"], 0, program=program, dscps=(46,))
        (row,) = (await self.measure(group, 1)).pair_stats
        self.assertEqual((row["sent"], row["received"], row["samples"]), (3, 3, 0))
        self.assertEqual((row["dscp_at_collector"], row["ttl_at_collector"]), (46, 64))
        self.assertNotIn("send_failed", reasons(int(row["suspect"])))
        self.assertEqual((self.prober.receive_drops, self.prober.received), (3, 3))

    async def test_closed_with_the_prober(self) -> None:
        """The socket goes with the prober."""
        before = len(os.listdir("/proc/self/fd"))
        self.prober.open(self.group(["127.0.0.1"], 0, ports=1).sources[0])
        self.prober.close()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class WitnessTests(SynchronousTestCase):
    """The raw socket."""

    def setUp(self) -> None:
        """Open one."""
        require_hping3()
        self.witness = Witness()
        self.addCleanup(self.witness.close)

    def refused(self, *others: int) -> tuple[int, int]:
        """Watch a port of ours, and others, and be refused a connection; return both its ports."""
        with socket.socket() as nobody, socket.socket() as ours:
            nobody.bind(("127.0.0.1", 0))
            ours.bind(("127.0.0.1", 0))
            port, own = (int(sock.getsockname()[1]) for sock in (nobody, ours))
            self.witness.watch([*others, own])
            self.assertRaises(ConnectionRefusedError, ours.connect, ("127.0.0.1", port))
        return port, own

    def test_answers(self) -> None:
        """An answer to a watched port is seen, from whom and to what."""
        port, own = self.refused()
        (seen,) = self.witness.seen()
        self.assertIsInstance(seen, Seen)
        self.assertEqual((seen.address, seen.port, seen.own_port), ("127.0.0.1", port, own))
        self.assertEqual(seen.ttl, 64)

    def test_only_watched_ports(self) -> None:
        """The kernel gives what is for watched ports, however many there are, and nothing else."""
        for others in ((1, 2, 3), range(1, 400, 2), (65535,)):
            _, own = self.refused(*others)
            self.assertEqual([seen.own_port for seen in self.witness.seen()], [own])
        self.witness.watch([1, 2])
        with socket.socket() as ours:
            ours.bind(("127.0.0.1", 0))
            self.assertRaises(ConnectionRefusedError, ours.connect, ("127.0.0.1", 1))
        self.assertEqual(list(self.witness.seen()), [])
