"""Bodies packed once, and the slices in which they are made."""

from __future__ import annotations

import gzip
import zlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.answers.cached_body import CachedBody
from llama.collector.answers.packed import Packer, join, pack
from llama.collector.slices import Pace, Slices

_parts = st.lists(st.lists(st.binary(max_size=300), max_size=4), max_size=6)


class Packing(SynchronousTestCase):
    @given(_parts)
    def test_joined(self, parts):
        """However a body was cut and joined, both forms give it back, and gzip's checks hold."""
        bodies = []
        for pieces in parts:
            packer = Packer()
            for piece in pieces:
                packer.add(piece)
            bodies.append(packer.packed())
        whole = b"".join(b"".join(pieces) for pieces in parts)
        body = join(bodies)
        packed = b"".join(body.gzip())
        self.assertEqual(gzip.decompress(packed), whole)
        self.assertEqual(len(packed), body.gzip_size)
        self.assertEqual(body.octets(), whole)
        self.assertEqual((body.size, body.crc), (len(whole), zlib.crc32(whole)))
        # Joining what was joined is the same once more.
        twice = join([body, pack(b"-"), body])
        self.assertEqual(gzip.decompress(b"".join(twice.gzip())), whole + b"-" + whole)

    def test_one_member(self):
        """A joined body is one gzip member: clients need not know of several."""
        body = join([pack(b"first"), pack(b"second" * 1000)])
        stream = zlib.decompressobj(31)
        unpacked = stream.decompress(b"".join(body.gzip()))
        self.assertTrue(stream.eof)
        self.assertEqual(stream.unused_data, b"")
        self.assertEqual(unpacked, b"first" + b"second" * 1000)

    def test_small(self):
        """What repeats takes a small part of its size while it is held."""
        body = pack(b'{"measurement":"raw_stats"}' * 10_000)
        self.assertLess(body.held_octets, body.size / 50)


class Paces(SynchronousTestCase):
    def test_learning(self):
        """A slice that took too long makes the next smaller, a short one makes it larger."""
        pace = Pace(100)
        slices = pace.slices(1000)
        for took_s, rows in ((10 * Pace.aim_s, 50), (Pace.aim_s / 10, 75), (Pace.aim_s, 75)):
            next(slices)
            pace.took(took_s)
            self.assertEqual(pace.rows, rows)

    def test_slices(self):
        """Every row is in one slice, each as long as the one before it taught."""
        pace = Pace(4)
        found = []
        for part in pace.slices(11):
            found.append((part.start, part.stop))
            pace.took(Pace.aim_s / 2)
        self.assertEqual(found, [(0, 4), (4, 10), (10, 11)])
        self.assertEqual(list(pace.slices(0)), [])

    def test_bounds(self):
        """It never falls to nothing, and never grows beyond what one turn may hold."""
        pace = Pace(1)
        next(pace.slices(1))
        pace.took(1.0)
        self.assertEqual(pace.rows, 1)
        for _ in range(100):
            next(pace.slices(Pace.most))
            pace.took(0.0)
        self.assertEqual(pace.rows, Pace.most)

    def test_last_slice(self):
        """A short last slice, quickly done, does not show that more rows would fit."""
        pace = Pace(100)
        next(pace.slices(3))
        pace.took(Pace.aim_s / 100)
        self.assertEqual(pace.rows, 100)
        pace.took(Pace.aim_s * 10)
        self.assertEqual(pace.rows, 50)


class Turns(SynchronousTestCase):
    def setUp(self):
        """Make jobs that write down when they work."""
        self.clock = Clock()
        self.slices = Slices(self.clock)
        self.done: list[str] = []

    def job(self, name: str, steps: int = 3):
        """Work so many times, then return the name."""
        for _ in range(steps):
            self.done.append(name)
            yield None
        return name

    def run_all(self):
        """Turn until nothing is left to do."""
        while self.clock.getDelayedCalls():
            self.clock.advance(0.001)

    def test_order(self):
        """Background jobs are done one after the other, and their results given."""
        first = self.slices.background(self.job("a"))
        second = self.slices.background(self.job("b"))
        self.assertEqual(self.done, [])
        self.run_all()
        self.assertEqual(self.done, list("aaabbb"))
        self.assertEqual(self.successResultOf(first), "a")
        self.assertEqual(self.successResultOf(second), "b")

    def test_turns(self):
        """What somebody waits for takes turns with the background: neither starves the other."""
        self.slices.background(self.job("b", 5))
        for name in "xyz":
            self.slices.asked(self.job(name, 2))
        self.run_all()
        self.assertEqual(self.done[:4], list("xbxb"))
        self.assertLess(self.done.index("y"), 8)
        self.assertEqual(sorted(self.done), sorted("bbbbbxxyyzz"))

    def test_one_slice_a_turn(self):
        """Between two slices the reactor always turns, for a while at that."""
        self.slices.background(self.job("a"))
        self.clock.advance(0)
        self.assertEqual(self.done, ["a"])
        self.clock.advance(Slices.pause_s * 0.9)
        self.assertEqual(self.done, ["a"])
        self.clock.advance(Slices.pause_s * 0.2)
        self.assertEqual(self.done, ["a", "a"])

    def test_hurry(self):
        """With somebody waiting the pause is short."""
        self.slices.hurried += 1
        self.slices.background(self.job("a"))
        self.clock.advance(0)
        self.clock.advance(Slices.short_pause_s)
        self.assertEqual(self.done, ["a", "a"])

    def test_failure(self):
        """A job that fails tells who waits for it, and the others go on."""

        def broken():
            yield None
            raise KeyError("x")

        failed = self.slices.background(broken())
        good = self.slices.background(self.job("a"))
        self.run_all()
        self.failureResultOf(failed, KeyError)
        self.assertEqual(self.successResultOf(good), "a")

    def test_cancelled(self):
        """A job that nobody waits for any more is not continued."""
        asked = self.slices.asked(self.job("a", 10))
        self.clock.advance(0)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.run_all()
        self.assertEqual(self.done, ["a"])
        self.assertEqual(self.slices.waiting, 0)

    def test_stop(self):
        """Stopping drops every job."""
        self.slices.background(self.job("a"))
        self.slices.asked(self.job("b"))
        self.slices.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.done, [])


class KeptBodies(SynchronousTestCase):
    def setUp(self):
        """Keep a body that says how many times it was made."""
        self.clock = Clock()
        self.slices = Slices(self.clock)
        self.made = 0
        self.kept = CachedBody(self.slices, self.make)

    def make(self):
        """Take two slices to make a body."""
        yield None
        self.made += 1
        return pack(b"%d" % self.made)

    def turn(self):
        """Let everything be done that is due."""
        self.clock.pump([0.01] * 10)

    def get(self) -> bytes:
        """Return the body that somebody gets who waits."""
        got = self.kept.get()
        self.turn()
        return self.successResultOf(got).octets()

    def test_nobody_asks(self):
        """What nobody wants is not made."""
        for _ in range(3):
            self.kept.closed()
            self.turn()
        self.assertEqual(self.made, 0)

    def test_first(self):
        """The first who ask wait for one making together."""
        both = [self.kept.get(), self.kept.get()]
        self.turn()
        self.assertEqual([self.successResultOf(one).octets() for one in both], [b"1", b"1"])
        self.assertEqual(self.get(), b"1")
        self.assertEqual(self.slices.hurried, 0)

    def test_made_at_every_close(self):
        """Once wanted it is made at every close; meanwhile the last one is given."""
        self.get()
        self.kept.closed()
        self.assertEqual(self.successResultOf(self.kept.get()).octets(), b"1")
        self.turn()
        self.assertEqual(self.successResultOf(self.kept.get()).octets(), b"2")

    def test_several_close_at_once(self):
        """Intervals that close together are one making."""
        self.get()
        for _ in range(5):
            self.kept.closed()
        self.turn()
        self.assertEqual(self.made, 2)

    def test_closes_while_made(self):
        """An interval that closes while it is being made is in the next one."""
        self.get()
        self.kept.closed()
        self.clock.advance(0)
        self.kept.closed()
        self.turn()
        self.assertEqual(self.made, 3)

    def test_patience(self):
        """After a while without requests it is let go, and made again for the next one."""
        self.get()
        for _ in range(CachedBody.patience + 5):
            self.kept.closed()
            self.turn()
        self.assertEqual(self.made, 1 + CachedBody.patience)
        got = self.kept.get()
        self.assertNoResult(got)
        self.turn()
        self.assertEqual(self.successResultOf(got).octets(), b"%d" % (2 + CachedBody.patience))

    def test_leaving(self):
        """Who stops waiting is forgotten."""
        got = self.kept.get()
        got.cancel()
        self.failureResultOf(got, CancelledError)
        self.assertEqual(self.slices.hurried, 0)
        self.turn()

    def test_failing(self):
        """When it cannot be made, who waits is told, the log too, and the next try is a new one."""

        def broken():
            yield None
            raise OSError("no")

        self.kept._make = broken
        got = self.kept.get()
        self.turn()
        self.failureResultOf(got, OSError)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.kept._make = self.make
        self.assertEqual(self.get(), b"1")
