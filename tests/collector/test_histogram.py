"""The bins of histograms."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.histogram import (
    BINS,
    bin_of,
    lower_bound_ns,
    midpoint_ns,
)


class HistogramTests(SynchronousTestCase):
    """The bins."""

    def test_error_is_as_stated(self) -> None:
        """Any time from 1 us to 68 s is read back within the stated relative error."""
        times = np.geomspace(1100, 6.8e10, 100_000)
        error = np.abs(midpoint_ns(bin_of(times)) / times - 1)
        self.assertLessEqual(error.max(), 1 / 32 * 1.0001)

    @given(st.lists(st.floats(0, 1e12), min_size=1, max_size=50))
    def test_bins_are_sixteenths_of_powers_of_two(self, times: list[float]) -> None:
        """Every time lies within the bounds of its bin."""
        bins = bin_of(times).astype(np.int64)
        inside = np.clip(times, lower_bound_ns(0), lower_bound_ns(BINS) * (1 - 1e-15))
        self.assertTrue((lower_bound_ns(bins) <= inside).all())
        self.assertTrue((inside < lower_bound_ns(bins + 1)).all())

    def test_extremes_fall_into_the_outer_bins(self) -> None:
        """Times below and above the range are counted, in the first and the last bin."""
        self.assertEqual(bin_of([0.0, 500.0, 1e12]).tolist(), [0, 0, 415])
