"""A database that is slower than the page has patience: it is not asked for ever anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase
from web_data import standard_fleet
from web_memory import MemoryStore

from llama.web.answers import Answers
from llama.web.store import Window

T = TypeVar("T")
END_S = 1_750_003_200.0
#: How long the page waits for the state of the service, and then until it asks again (static/api.js).
PATIENCE_S, AGAIN_S = 5.0, 5.0


class SlowStore(MemoryStore):
    """Takes its time to say who speaks, and what is newest."""

    activity_s = newest_s = 0.0

    def __init__(self, clock: Clock, points: Any) -> None:
        super().__init__(points)
        self.clock = clock
        self.asked: list[Deferred[Any]] = []

    def later(self, seconds: float, answer: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """Give an answer after so long."""
        self.asked.append(deferLater(self.clock, seconds, answer))
        return self.asked[-1]

    def activity(self, window: Window) -> Deferred[Any]:
        """See `Store`."""
        answer = super().activity
        return self.later(self.activity_s, lambda: answer(window))

    def newest(self) -> Deferred[Any]:
        """See `Store`."""
        return self.later(self.newest_s, super().newest)


class OneThread(Answers):
    """Works at once, without threads."""

    def in_thread(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        """See `Answers`."""
        return succeed(work(*args))


class SlowTest(SynchronousTestCase):
    """A store by a clock that the test moves."""

    def setUp(self) -> None:
        """Fill it."""
        self.clock = Clock()
        self.clock.advance(END_S)
        self.store = SlowStore(self.clock, standard_fleet(END_S).points(END_S - 300, END_S))
        self.answers = OneThread(self.clock, self.store, unix_time_s=self.clock.seconds)

    def wait(self, seconds: float, until: Deferred[Any]) -> None:
        """Let time pass, but not once there is an answer."""
        for _ in range(int(seconds * 2)):
            if not until.called:
                self.clock.advance(0.5)

    def answered(self, polls: int) -> int:
        """Return how many of so many polls of a page are answered."""
        good = 0
        for _ in range(polls):
            said = Deferred.fromCoroutine(self.answers.status())
            self.wait(PATIENCE_S, said)
            if said.called:
                self.assertEqual(self.successResultOf(said)["newest"], END_S)
                good += 1
            else:
                said.cancel()
                self.failureResultOf(said, CancelledError)
            self.clock.advance(AGAIN_S)
        return good

    def test_impatient(self) -> None:
        """What everybody needs is asked to its end: the next poll finds it."""
        for name in ("activity_s", "newest_s"):
            for seconds in (6.0, 9.0, 12.0):
                self.clock.advance(600.0)
                self.store.activity_s = self.store.newest_s = 0.0
                setattr(self.store, name, seconds)
                self.assertGreaterEqual(self.answered(12), 5, (name, seconds))

    def test_gone_on(self) -> None:
        """Of a time in the past it is asked no further once nobody waits: that may be any minute."""
        self.store.activity_s = 6.0
        said = Deferred.fromCoroutine(self.answers.dimensions(END_S - 120.0))
        said.cancel()
        self.failureResultOf(said, CancelledError)
        self.assertTrue(self.store.asked[0].called)
        said = Deferred.fromCoroutine(self.answers.dimensions(None))
        said.cancel()
        self.failureResultOf(said, CancelledError)
        self.assertFalse(self.store.asked[1].called)
