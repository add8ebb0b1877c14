"""How long to wait before trying again: exponential, with full jitter, bounded.

Full jitter (a wait drawn evenly between nothing and the exponential bound) keeps many scrapers
from returning to a database in step after it was away; see Marc Brooker, "Exponential Backoff And
Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random

#: Bounds in seconds of the wait after the first failure, and after ever so many.
FIRST_S = 1.0
LONGEST_S = 60.0
#: A server that turns us away needs a person, and is asked only this often.
NOT_PERMITTED_S = 60.0


def wait_s(failures: int, draw: random.Random) -> float:
    """Return seconds to wait after ``failures`` (from 1) failures in a row."""
    bound = min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 16))
    # Never quite nothing: a tenth of the bound spares a struggling server the unlucky draws.
    return draw.uniform(bound / 10, bound)
