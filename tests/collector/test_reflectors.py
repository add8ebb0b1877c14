"""What reflectors say of themselves, one or several behind an address."""

from __future__ import annotations

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.summary import reasons
from llama.collector.probing.reflectors import MOST_OTHERS, SEVERAL, Reflectors
from llama.wire import tlv

EPOCH = 1_700_000_000 * 1_000_000_000
SECOND = 1_000_000_000


class ReflectorsTests(SynchronousTestCase):
    """Two pairs in one interval, and whoever answers for them."""

    def setUp(self) -> None:
        """Begin an interval ten seconds ago."""
        self.ledger = Ledger(np.zeros(2, np.uint8), 1, 10.0, 1.0, 30.0)
        self.ledger.roll(EPOCH, EPOCH + 30 * SECOND, 0.0)
        self.reflectors = Reflectors(range(2))

    def hear(
        self, *said: tuple[int, int, int], pairs: tuple[int, ...] = (), clock_s: float = 0.0
    ) -> tuple[str, ...]:
        """Hear (start, drops, refused) in one batch; return what pair 0 is suspect for since.

        Reflectors are started at seconds of an hour that begins long before the interval; their
        clock is ``clock_s`` ahead of ours.
        """
        current = self.ledger.current
        assert current is not None
        current.pair_suspect[:] = 0
        current.notes.clear()
        count = len(said)
        ahead = int(clock_s * SECOND)
        columns = {
            "started_ns": np.array(
                [start and EPOCH + ahead + (start - 3600) * SECOND for start, _, _ in said],
                np.uint64,
            ),
            "receive_drops": np.array([drops for _, drops, _ in said], np.uint32),
            "guard_drops": np.array([refused for _, _, refused in said], np.uint32),
        }
        of = np.array(pairs or (0,) * count, np.int64)
        now = np.full(count, EPOCH + 10 * SECOND, np.int64)
        news = self.reflectors.news(of, tlv.Answer(**columns))
        told = tlv.Answer(**{name: column[news] for name, column in columns.items()})
        for doubt in self.reflectors.hear(
            self.ledger, of[news], told, now[news] + ahead, now[news]
        ):
            self.ledger.mark(doubt.bits, doubt.note, pairs=sorted(doubt.rows))
        self.assertEqual(current.pair_suspect[1], 0)
        return reasons(int(current.pair_suspect[0]))

    def noted(self) -> set[str]:
        """Return the notes of the interval since something was last heard."""
        current = self.ledger.current
        assert current is not None
        return current.notes

    def test_started_anew(self) -> None:
        """One that has been up for less than the interval is new, by its own clock."""
        for clock_s in (0.0, -86400.0, 86400.0):
            self.reflectors = Reflectors(range(2))
            self.assertEqual(self.hear((3605, 0, 0), clock_s=clock_s), ())  # as new as we are
            self.reflectors = Reflectors(range(2))
            self.assertEqual(self.hear((5, 7, 7), clock_s=clock_s), ())
            self.assertEqual(self.hear((3608, 0, 0), clock_s=clock_s), ("reflector_restart",))
            self.assertEqual(self.hear((3608, 0, 0), clock_s=clock_s), ())

    def test_drops(self) -> None:
        """Counts that grow mark what is open, those that were there before do not."""
        self.assertEqual(self.hear((5, 7, 9)), ())
        self.assertEqual(self.hear((5, 8, 9)), ("reflector_drops",))
        self.assertEqual(self.hear((5, 8, 2**32 - 1)), ())  # fewer, by the way that counts go
        self.assertEqual(self.hear((5, 8, 0)), ("reflector_limit",))
        self.assertEqual(self.hear((5, 8, 0)), ())
        self.assertEqual(self.hear((0, 0, 0)), ())  # says nothing, and nothing is forgotten
        self.assertEqual(self.hear((5, 99, 99)), ("reflector_drops", "reflector_limit"))

    def test_several(self) -> None:
        """Several that take turns are none of them new, and each has counts of its own."""
        one, two, three = (5, 100, 0), (9, 3, 50), (7, 0, 0)
        self.assertEqual(self.hear(one), ())
        for _ in range(3):
            self.assertEqual(self.hear(two, one, two, three, two, one), ())
        self.assertEqual(self.noted(), {SEVERAL})
        self.assertEqual(self.hear(two, one, (9, 4, 50), one), ("reflector_drops",))
        self.assertEqual(self.hear(one, (9, 4, 50), (7, 0, 1), one), ("reflector_limit",))
        self.assertEqual(self.hear((3605, 0, 0), one, (9, 4, 50)), ("reflector_restart",))
        self.assertEqual(self.hear((3605, 0, 0), one, (9, 4, 50)), ())

    def test_of_each_end(self) -> None:
        """What is heard at one end is not taken for another's."""
        self.hear((5, 1, 1), (6, 2, 2), pairs=(0, 1))
        self.assertEqual(self.hear((5, 1, 1), (6, 2, 2), pairs=(0, 1)), ())
        self.assertEqual(self.hear((6, 1, 1), (6, 2, 2), pairs=(0, 1)), ())
        self.assertEqual(self.hear((6, 2, 1), (6, 1, 2), pairs=(0, 1)), ("reflector_drops",))

    def test_no_end_of_them(self) -> None:
        """However many answer, a few are remembered."""
        for start in range(1, 1000):
            self.hear((start, 0, 0))
        self.assertLessEqual(len(self.reflectors._others[0]), MOST_OTHERS)

    def test_followed(self) -> None:
        """After a reload the reflectors at an end are known by its new row."""
        self.hear((5, 1, 1))
        self.hear((9, 1, 1))
        before, self.reflectors = self.reflectors, Reflectors((7, 0))
        self.reflectors.follow(before)
        self.assertEqual(self.reflectors.started[0], 0)
        before, self.reflectors = self.reflectors, Reflectors((0,))
        self.reflectors.follow(before)
        self.assertEqual(self.hear((9, 1, 1)), ())
        self.assertEqual(self.noted(), set())
        self.assertEqual(self.hear((5, 1, 1)), ())
        self.assertEqual(self.noted(), {SEVERAL})
