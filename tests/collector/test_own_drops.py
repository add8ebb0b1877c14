"""What this host may have dropped itself, of what seems lost."""

from __future__ import annotations

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.own_drops import OwnDrops


class OwnDropsTests(SynchronousTestCase):
    """What this host may have dropped itself."""

    def test_what_they_account_for(self) -> None:
        """No more probes than may be among them, nor than their share of all packets lets expect."""
        lost = np.arange(100)
        for parts, most in (
            ((), 0),
            (((2, 0.0), (7, 1.0)), 18),  # so few were dropped
            (((500, 0.25), (500, 0.75)), 43),  # of very many
            (((1000, 0.0),), 3),
        ):
            drops = OwnDrops()
            for part in parts:
                drops.add(*part)
            found = drops.account_for(lost, np.full(100, 300), 30.0)
            self.assertEqual(np.flatnonzero(found).tolist(), list(range(1, most + 1)))
