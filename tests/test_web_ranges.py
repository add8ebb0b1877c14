"""More hosts than can be drawn side by side, in ranges."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llama.web.answers import MAX_ENTRIES
from llama.web.fold import lay_out
from llama.web.groups import CROWD, in_ranges


class RangesTest(SynchronousTestCase):
    """Where hosts stand of which there are many."""

    def test_crowds(self) -> None:
        """However many hosts, and whatever their tags say, all can be drawn, and each is reached."""
        for racks, sites, number in ((1, 1, 10_000), (5000, 1, 10_000), (1, 8, 8000), (7, 2, 301)):
            hosts = [f"h{n}.example.net" for n in range(number)]
            tags = [(f"d{n % sites}", f"r{n % racks}") for n in range(number)]
            for depth in range(3):
                paths = in_ranges(hosts, [path[:depth] for path in tags])
                for opened in ("none", "auto"):
                    self.assertLessEqual(len(lay_out(hosts, paths, opened).entries), MAX_ENTRIES)
                last = frozenset(paths[-1][: n + 1] for n in range(len(paths[-1])))
                entries = lay_out(hosts, paths, last).entries
                self.assertIn(hosts[-1], [entry.host for entry in entries])
                self.assertLessEqual(len(entries), MAX_ENTRIES)
                self.assertEqual(sum(entry.hosts for entry in entries), number)

    def test_no_crowd(self) -> None:
        """What has room stands where its tags say."""
        hosts = [f"h{n}" for n in range(CROWD)]
        paths = [(f"d{n % 3}",) for n in range(CROWD)]
        self.assertEqual(in_ranges(hosts, paths), paths)
        self.assertEqual(in_ranges(hosts, [()] * CROWD), [()] * CROWD)
        self.assertEqual(in_ranges([], []), [])

    def test_some_crowd(self) -> None:
        """A group that is too large has ranges, and those beside it have none."""
        hosts = [f"h{n}" for n in range(500)]
        paths = in_ranges(hosts, [("a",)] * 400 + [("b",)] * 100)
        self.assertEqual(paths[0], ("a", "h0 … h19"))
        self.assertEqual(paths[499], ("b",))
        shown = [(each.path, each.host) for each in lay_out(hosts, paths, "auto").entries]
        self.assertEqual(shown, [(("a",), None), (("b",), None)])

    def test_names(self) -> None:
        """A range is named by its ends, without the domain that all are in."""
        names = [f"h{n}.x.net" for n in range(1, 401)]
        self.assertEqual(in_ranges(names, [()] * 400)[0], ("h1 … h20",))
        addresses = [f"10.0.{n // 200}.{n % 200}" for n in range(400)]
        self.assertEqual(in_ranges(addresses, [()] * 400)[399], ("10.0.1.180 … 10.0.1.199",))
