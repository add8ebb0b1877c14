"""The tick where the kernel has no timer that is a descriptor."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama.net import ticker
from llama.net.ticker import Ticker


class TickerTests(SynchronousTestCase):
    def test_a_tick_that_fails_is_not_the_last(self) -> None:
        """What goes wrong at one tick is logged, and the next ones come all the same."""
        self.patch(ticker, "_TIMERFD", False)
        ticks: list[float] = []
        clock = Clock()

        def tick() -> None:
            ticks.append(clock.seconds())
            if len(ticks) == 2:
                raise ArithmeticError

        ticking = Ticker(clock, tick)
        ticking.start(1.0)
        clock.pump([1.0] * 3)
        ticking.stop()
        clock.advance(5)
        self.assertEqual(ticks, [0.0, 1.0, 2.0, 3.0])
        self.assertEqual(len(self.flushLoggedErrors(ArithmeticError)), 1)
        self.assertEqual(clock.getDelayedCalls(), [])
