"""Lanes: who gets in when."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama.scraper.lane import Lane, Place


class LaneTests(SynchronousTestCase):
    """A lane with two places, each held for ten seconds at most."""

    def setUp(self) -> None:
        """Let four come to it."""
        self.clock = Clock()
        lane = Lane(self.clock, 2, 10.0)
        self.entered = [Deferred.fromCoroutine(lane.enter()) for _ in range(4)]

    def inside(self) -> int:
        """Return how many got in so far, which are always the first."""
        got_in = [entered.called for entered in self.entered]
        self.assertEqual(got_in, sorted(got_in, reverse=True))
        return sum(got_in)

    def place(self, n: int) -> Place:
        """Return the place that somebody got."""
        return self.successResultOf(self.entered[n])

    def test_in_the_order_of_coming(self) -> None:
        """The next gets in when one leaves; leaving twice lets in no other."""
        self.assertEqual(self.inside(), 2)
        place = self.place(1)
        place.leave()
        place.leave()
        self.assertEqual(self.inside(), 3)
        self.clock.advance(9.9)
        self.assertEqual(self.inside(), 3)

    def test_not_for_long(self) -> None:
        """Who stays for too long goes on beside the lane, and makes no room when it is done."""
        place = self.place(0)
        self.clock.advance(10.0)
        self.assertEqual(self.inside(), 4)
        place.keep()
        place.leave()
        self.assertEqual(len(self.clock.getDelayedCalls()), 2)

    def test_not_too_many(self) -> None:
        """Those beside the lane count, too, until they are done."""
        lane = Lane(self.clock, 2, 10.0, 3)
        self.entered = [Deferred.fromCoroutine(lane.enter()) for _ in range(6)]
        self.clock.advance(10.0)
        self.assertEqual(self.inside(), 3)
        self.clock.advance(10.0)
        self.assertEqual(self.inside(), 3)
        self.place(0).leave()
        self.assertEqual(self.inside(), 4)
        self.place(3).leave()
        self.place(1).leave()
        self.assertEqual(self.inside(), 6)

    def test_thousands_leave_at_once(self) -> None:
        """Those who get in only to leave, as when a scraper stops, are as many as they are."""
        lane = Lane(self.clock, 2, 10.0)
        left = []

        async def pass_through() -> None:
            place = await lane.enter()
            left.append(place)
            place.leave()

        places = [self.successResultOf(Deferred.fromCoroutine(lane.enter())) for _ in range(2)]
        passing = [Deferred.fromCoroutine(pass_through()) for _ in range(5000)]
        places[0].leave()
        for one in passing:
            self.successResultOf(one)
        self.assertEqual(len(left), 5000)
        places[1].leave()

    def test_given_up(self) -> None:
        """Who no longer waits takes no place."""
        self.entered[2].cancel()
        self.failureResultOf(self.entered[2])
        self.place(0).leave()
        self.successResultOf(self.entered[3])

    def test_kept(self) -> None:
        """A place that is kept is held until it is left."""
        place = self.place(0)
        place.keep()
        self.clock.advance(10.0)
        self.assertEqual(self.inside(), 3)
        place.leave()
        self.assertEqual(self.inside(), 4)
