"""Everything that fuzzing ever found worth keeping, replayed against every packet format."""

from __future__ import annotations

import corpus
from targets import TARGETS
from twisted.trial.unittest import SynchronousTestCase
from wire_packets import NAMES, golden


class CorpusTests(SynchronousTestCase):
    def test_kept_inputs_break_nothing(self) -> None:
        """The inputs that reached some code first, and all that once broke it, are survived."""
        for name, target in TARGETS.items():
            inputs = corpus.load(name)
            self.assertTrue(inputs, name)
            for octets in inputs:
                target(octets)

    def test_golden_packets_break_nothing(self) -> None:
        """Packets by the book hold in every target, of whatever format they are."""
        for name in NAMES:
            for target in TARGETS.values():
                target(golden(name))
