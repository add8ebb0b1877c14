"""How many equal-cost paths some flows cover when each flow hashes onto one of them by chance.

That is the coupon collector's problem; the figures are computed exactly, in whole numbers.
"""

from __future__ import annotations

from functools import cache

#: How many equal-cost paths `llama check` speaks of.
PATHS = (2, 4, 8, 16, 32, 64)


def expected_share(paths: int, flows: int) -> float:
    """Return the expected share (0-1) of so many paths that so many flows cover."""
    return 1.0 - (1.0 - 1.0 / paths) ** flows


@cache
def flows_to_cover(paths: int, percent: int = 90) -> int:
    """Return the least number of flows that cover every path with at least this probability.

    ``percent`` is from 1 to 99.
    """
    # ways[k]: in how many ways the flows so far can fall onto exactly k of the paths.
    ways = [1] + [0] * paths
    flows, total = 0, 1
    while 100 * ways[paths] < percent * total:
        for covered in range(paths, 0, -1):
            ways[covered] = ways[covered] * covered + ways[covered - 1] * (paths - covered + 1)
        ways[0] = 0
        flows += 1
        total *= paths
    return flows
