"""Columns of time stamps."""

from __future__ import annotations

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from llama.wire import stamp

TIME_NS = 1_700_000_000_123_456_789


class TimeColumnTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Make the same time in both formats, and Error Estimates that tell which is which."""
        seconds, ns = divmod(TIME_NS, 10**9)
        self.ntp, self.ptp = stamp.ntp_from_unix_ns(TIME_NS), seconds << 32 | ns
        z = stamp.ERROR_PTP_FORMAT
        self.estimate = np.array([0x8001, 0x8001 | z, z], np.uint16)

    def test_each_in_its_format(self) -> None:
        """NTP's and truncated PTPv2's are told apart row by row."""
        stamps = np.array([self.ntp, self.ptp, self.ptp], np.uint64)
        times = stamp.time_column(stamps, self.estimate)
        self.assertEqual(times.tolist(), [TIME_NS] * 3)

    def test_several_of_a_packet(self) -> None:
        """All stamps of a packet are in its format but those that its sender made."""
        own = [self.ntp, self.ptp, self.ptp]
        stamps = np.array([[self.ntp] * 3, own, own], np.uint64)
        times = stamp.time_column(stamps, self.estimate, echoed=1)
        self.assertEqual(times.tolist(), [[TIME_NS] * 3] * 3)
        self.assertEqual(times.dtype, np.int64)
