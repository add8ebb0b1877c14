"""Columns of time stamps, and what they may be off by."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import PROPERTIES

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


class ErrorEstimateTests(SynchronousTestCase):
    @PROPERTIES
    @given(st.floats(0, 1e12))
    def test_no_better_than_the_clock_is(self, error_ns: float) -> None:
        """What is told is the clock's error, or up to a hundredth more, and never none at all."""
        told = stamp.error_ns(stamp.error_estimate(error_ns))
        assert told is not None
        unit = 1e9 / 2**32
        self.assertGreater(told, max(error_ns - unit, 0))
        self.assertLessEqual(told, max(error_ns * 1.01, unit))

    def test_not_synchronised(self) -> None:
        """No error is told of a clock that is not in sync, nor by a multiplier of 0."""
        for estimate in (stamp.error_estimate(None), 0x3F01, 0x8100):
            self.assertIsNone(stamp.error_ns(estimate))

    @PROPERTIES
    @given(st.lists(st.integers(0, 0xFFFF), max_size=20))
    def test_columns_are_read_as_single_ones_are(self, estimates: list[int]) -> None:
        """Whether they are all alike or not; NaN stands for none."""
        for column in (estimates, estimates[:1] * 5):
            told = stamp.error_column(np.array(column, np.uint16))
            expected = [np.nan if (one := stamp.error_ns(e)) is None else one for e in column]
            np.testing.assert_allclose(told, expected, rtol=1e-6)
