"""Many tests with many source ports: twice as much to plan is twice the work, not four times."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import evolve
from timekeeper_case import TimekeeperCase, pair
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import Pair
from llama.collector.probing import plan
from llama.collector.probing.plan import Group, places_of
from llama.collector.probing.udp import UdpProber
from llama.collector.timekeeper import Timekeeper
from llama.collector.tracing import Tracing


def calls(function: Callable[[], Any]) -> int:
    """How many calls, of C functions too, one call takes."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


class GrowthTests(TimekeeperCase):
    """A collector to which ever more is given to probe."""

    def groups(self, count: int, ports: int = 4) -> list[Group]:
        """Groups of as many tests, each with source ports and a target of its own."""
        return [
            evolve(
                group, test=f"t{n}",
                sources=tuple(evolve(s, owner=f"t{n}/{s.owner}") for s in group.sources),
            )
            for n in range(count)
            for group in (self.group(pair(f"127.0.0.{n + 1}", 9), ports=ports, rate=0.1),)
        ]  # fmt: skip

    def fresh(self) -> Timekeeper:
        """A timekeeper that probes nothing yet."""
        timekeeper = Timekeeper(self.clock, UdpProber(ids=self.ids), 1, self.closed.append)
        self.addCleanup(timekeeper.stop)
        return timekeeper

    def test_taking_up(self) -> None:
        """What it takes to begin to probe grows no faster than the tests."""
        took = []
        for count in (60, 120):
            timekeeper, groups = self.fresh(), self.groups(count)
            took.append(calls(partial(timekeeper.use, groups)))
            self.assertEqual(len(timekeeper.prober.tracks), count)
        self.assertLess(took[1], 2.5 * took[0])

    def test_pace(self) -> None:
        """Nor does what it takes to find out how often to drain, and whether a buffer was full."""
        took = []
        for count in (60, 120):
            timekeeper = self.fresh()
            timekeeper.use(self.groups(count))
            prober = timekeeper.prober
            for sock in prober.sockets.values():
                self.patch(sock, "new_drops", lambda: 1)
            took.append(calls(prober.drain_every_s) + calls(prober.check_drops))
            self.assertEqual(prober.receive_drops, 4 * count)
            self.assertTrue(all(t.ledger.open_intervals()[0].suspect for t in prober.tracks))
        self.assertLess(took[1], 2.5 * took[0])

    def test_full_buffer_is_that_of_its_tests(self) -> None:
        """Packets dropped at one test's socket are no other's."""
        self.timekeeper.use(self.groups(2))
        one, other = self.prober.tracks
        self.patch(one.sockets[1], "new_drops", lambda: 3)
        self.assertEqual(self.prober.check_drops(), 3)
        suspect = [bool(track.ledger.open_intervals()[0].suspect) for track in (one, other)]
        self.assertEqual(suspect, [True, False])


class SessionTests(TimekeeperCase):
    """What tells one test's replies from another's."""

    def give(self, prober: UdpProber, count: int, given: set[int]) -> None:
        """Give as many tests an SSID each."""
        for number in range(count):
            ssid = prober.reserve_ssid()
            prober._ssids[number,] = {(0, 96, 0): ssid}
            given.add(ssid)

    def test_ssids(self) -> None:
        """Each is given without a look at all the others; those given up are free again."""
        took = []
        for count in (500, 1000):
            prober = UdpProber(ids=False)
            given: set[int] = set()

            took.append(calls(partial(self.give, prober, count, given)))
            self.assertEqual(len(given), count)
        self.assertLess(took[1], 2.5 * took[0])

    def test_all_are_given(self) -> None:
        """There are 65,535, one of which traces have; what is not probed any more gives its own up."""
        tracing = Tracing(self.prober)
        self.timekeeper.use([self.group()])
        (track,) = self.prober.tracks
        mine = {tracing.ssid, *track.ssids.tolist()}
        given = {self.prober.reserve_ssid() for _ in range(65_533)}
        self.assertEqual(len(given | mine), 65_535)
        self.assertRaises(ValueError, self.prober.reserve_ssid)
        self.prober.arrange(self.prober.tracks)
        self.assertNotIn(self.prober.reserve_ssid(), mine)
        self.prober.arrange([])
        given = {self.prober.reserve_ssid() for _ in range(65_534)}
        self.assertNotIn(tracing.ssid, given)
        self.assertTrue(given >= set(track.ssids.tolist()))

    def test_sockets_have_numbers_of_their_own(self) -> None:
        """A socket that is opened is not taken for one that was closed."""
        first, second = self.group(ports=2).sources
        before = self.prober.open(first).ordinal
        self.prober.let_go(first)
        self.assertNotEqual(self.prober.open(second).ordinal, before)


class StayingPairsTests(SynchronousTestCase):
    """Pairs that a reload leaves as they are."""

    def test_pairs_that_stay_are_found_cheaply(self) -> None:
        """Series are told apart by all their tags only where a pair has changed."""
        present = [pair(f"127.0.0.{n}", 9) for n in range(1, 101)]
        wanted = [evolve(each) for each in present]
        wanted[7] = evolve(wanted[7], tags={"dst_hostname": "other"})
        del wanted[50]
        looked: list[Pair] = []
        identity_of = plan.identity_of

        def counted(pair: Pair) -> tuple[object, ...]:
            looked.append(pair)
            return identity_of(pair)

        self.patch(plan, "identity_of", counted)
        self.assertEqual(places_of(wanted, present), [*range(50), *range(51, 100)])
        self.assertLess(len(looked), 10)
