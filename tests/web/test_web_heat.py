"""The heat map of RTTs, and answers that several people share."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama.web.heat import from_percentiles, heat_map
from llama.web.shared import SharedAnswers
from llama.web.store import History


class HeatTest(SynchronousTestCase):
    """RTT over time."""

    def history(self, **columns: list[list[float]]) -> History:
        """Return a history of one series."""
        names = ("received", "rtt_min", "rtt_p50", "rtt_p90", "rtt_p99", "rtt_max")
        shape = np.array(columns["received"]).shape
        filled = {name: np.array(columns.get(name, np.full(shape, np.nan))) for name in names}
        return History([{}], 30.0, np.arange(1.0, shape[1] + 1) * 30, filled)

    def test_percentiles(self) -> None:
        """All replies are in the picture, half of them up to the median."""
        heat = from_percentiles(
            self.history(
                received=[[1000.0]], rtt_min=[[1.0]], rtt_p50=[[2.0]], rtt_p90=[[4.0]],
                rtt_p99=[[8.0]], rtt_max=[[16.0]],
            )
        )  # fmt: skip
        assert heat is not None
        self.assertAlmostEqual(heat.counts.sum(), 1000.0, 6)
        low = sum(
            count * min(1.0, max(0.0, (math.log(2.0) - math.log(low)) / math.log(high / low)))
            for low, high, count in zip(
                heat.edges_ms, heat.edges_ms[1:], heat.counts[0], strict=False
            )
        )
        self.assertTrue(abs(low - 500.0) < 5.0, low)  # bins are as wide as that

    def test_constant(self) -> None:
        """An RTT that never varies is a line, not a failure."""
        same = [[5.0, math.nan]]
        heat = from_percentiles(
            self.history(received=[[10.0, 0.0]], rtt_min=same, rtt_p50=same, rtt_max=same)
        )
        assert heat is not None
        self.assertAlmostEqual(heat.counts[0].sum(), 10.0, 6)
        self.assertEqual(heat.counts[1].sum(), 0.0)
        self.assertEqual(np.count_nonzero(heat.counts[0] > 0.01), 1)

    def test_nothing(self) -> None:
        """Without any RTT there is no picture."""
        self.assertIsNone(heat_map(self.history(received=[[0.0, 0.0]])))

    @settings(max_examples=60)
    @given(st.lists(st.floats(1e-4, 1e4), min_size=5, max_size=5), st.integers(1, 10**6))
    def test_any(self, times: list[float], received: int) -> None:
        """However odd the percentiles, no reply is lost or made up."""
        columns = dict(
            zip(("rtt_min", "rtt_p50", "rtt_p90", "rtt_p99", "rtt_max"), times, strict=True)
        )
        heat = from_percentiles(
            self.history(received=[[float(received)]], **{n: [[v]] for n, v in columns.items()})
        )
        assert heat is not None
        self.assertTrue((heat.counts >= 0).all())
        self.assertLessEqual(heat.counts.sum(), received * (1 + 1e-9))


class SharedAnswersTest(SynchronousTestCase):
    """The same question asked again soon."""

    def setUp(self) -> None:
        """Keep two answers."""
        self.clock = Clock()
        self.shared = SharedAnswers(self.clock, 2)
        self.asked: list[Deferred[str]] = []

    def ask(self) -> Deferred[str]:
        """Note that somebody asks."""
        self.asked.append(Deferred())
        return self.asked[-1]

    def test_waiting(self) -> None:
        """Who asks meanwhile waits for the first answer."""
        first, second = (self.shared.get("a", 1.0, self.ask) for _ in range(2))
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback("x")
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), ("x", "x"))

    def test_remembered(self) -> None:
        """An answer stays good for its time, which it may tell itself."""
        self.shared.get("a", lambda answer: 5.0, self.ask)
        self.asked[0].callback("x")
        self.clock.advance(4.9)
        self.assertEqual(self.successResultOf(self.shared.get("a", 1.0, self.ask)), "x")
        self.clock.advance(0.2)
        self.assertNoResult(self.shared.get("a", 1.0, self.ask))

    def test_no_time_told(self) -> None:
        """An answer that cannot say how long it stays good is a failure, and is asked for again."""
        first = self.shared.get("a", lambda answer: 1 / 0, self.ask)
        self.asked[0].callback("x")
        self.failureResultOf(first, ZeroDivisionError)
        self.shared.get("a", 1.0, self.ask)
        self.assertEqual(len(self.asked), 2)

    def test_failure(self) -> None:
        """A failure goes to all who wait and is not remembered."""
        waiting = [self.shared.get("a", 9.0, self.ask) for _ in range(2)]
        self.asked[0].errback(ValueError())
        for each in waiting:
            self.failureResultOf(each, ValueError)
        self.assertNoResult(self.shared.get("a", 9.0, self.ask))

    def test_given_up(self) -> None:
        """A question that nobody waits for any more is given up, and asked anew when somebody does."""
        first, second = (self.shared.get("a", 9.0, self.ask) for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertNoResult(self.asked[0])
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertTrue(self.asked[0].called)
        third = self.shared.get("a", 9.0, self.ask)
        self.assertEqual(len(self.asked), 2)
        self.asked[1].callback("x")
        self.assertEqual(self.successResultOf(third), "x")

    def test_given_up_within(self) -> None:
        """So is what is asked for the sake of it alone, but not what others wait for as well."""
        inner: list[Deferred[str]] = []

        def ask_inner() -> Deferred[str]:
            inner.append(Deferred())
            return inner[-1]

        async def ask() -> str:
            return await self.shared.get("inner", 9.0, ask_inner)

        outer = [self.shared.get(n, 9.0, lambda: Deferred.fromCoroutine(ask())) for n in range(2)]
        outer[0].cancel()
        self.failureResultOf(outer[0], CancelledError)
        self.assertFalse(inner[0].called)
        inner[0].callback("x")
        self.assertEqual(self.successResultOf(outer[1]), "x")
        self.clock.advance(9.0)
        outer = [self.shared.get(n, 9.0, lambda: Deferred.fromCoroutine(ask())) for n in (3, 4)]
        for each in outer:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertTrue(inner[1].called)

    def test_given_up_too_late(self) -> None:
        """A question that goes on all the same answers nobody twice, and its answer is kept."""
        stubborn: Deferred[str] = Deferred()
        shielded: Deferred[str] = Deferred(lambda _: shielded.callback("late"))
        first = self.shared.get("a", 9.0, lambda: shielded)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.successResultOf(self.shared.get("a", 9.0, lambda: stubborn)), "late")

    def test_to_its_end(self) -> None:
        """A question that is not to be given up runs on, and who asks next has its answer."""
        first = self.shared.get("a", 9.0, self.ask, give_up=False)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        second = self.shared.get("a", 9.0, self.ask, give_up=False)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.asked[0].callback("x")
        self.assertEqual(self.successResultOf(self.shared.get("a", 9.0, self.ask)), "x")
        self.assertEqual(len(self.asked), 1)

    def test_left_meanwhile(self) -> None:
        """One who has the answer may let another go that is about to have it."""
        first, second = (self.shared.get("a", 9.0, self.ask) for _ in range(2))
        first.addCallback(lambda _: second.cancel())
        self.asked[0].callback("x")
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)

    def test_bounded(self) -> None:
        """The answers least recently wanted are let go."""
        for key in ("a", "b", "c"):
            self.shared.get(key, 99.0, self.ask)
            self.asked[-1].callback(key)
        self.assertNoResult(self.shared.get("a", 99.0, self.ask))
        self.assertEqual(self.successResultOf(self.shared.get("c", 99.0, self.ask)), "c")

    def test_out_of_date(self) -> None:
        """What is no good any more takes no memory, however much there would be room for."""

        class Mesh:
            """As large as one likes."""

        shared = SharedAnswers(self.clock, 64)
        meshes = []
        for minute in range(60):
            mesh = Mesh()
            meshes.append(weakref.ref(mesh))
            shared.get(("activity", minute), 60.0, lambda mesh=mesh: succeed(mesh))
            del mesh
            self.clock.advance(60.0)
        gc.collect()
        self.assertLessEqual(sum(mesh() is not None for mesh in meshes), 2)
