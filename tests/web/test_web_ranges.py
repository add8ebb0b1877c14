"""More hosts than can be drawn side by side, in ranges."""

from __future__ import annotations

from itertools import product
from string import ascii_lowercase

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
        self.assertEqual(paths[0], ("a", "h0 … h99"))
        self.assertEqual(paths[499], ("b",))
        shown = [(each.path, each.host) for each in lay_out(hosts, paths, "auto").entries]
        self.assertEqual(shown, [(("a",), None), (("b",), None)])

    def test_names(self) -> None:
        """A range is named by how the names in it begin, or by where its numbers may end."""
        for names, first, last in (
            ([f"h{n}.x.net" for n in range(1, 401)], "h0 … h99", "h400 … h499"),
            ([f"web{n:03}" for n in range(1, 401)], "web000 … web099", "web400 … web499"),
            ([f"r01-h{n}" for n in range(400)], "r01-h0 … r01-h99", "r01-h300 … r01-h399"),
            ([f"10.{n // 90}.0.{n % 90}" for n in range(400)], "10.0", "10.4"),
            (["".join(two) for two in product(ascii_lowercase, repeat=2)], "a…", "z…"),
        ):
            paths = in_ranges(names, [()] * len(names))
            self.assertEqual((paths[0], paths[-1]), ((first,), (last,)))

    def test_steady(self) -> None:
        """Who joins or goes changes the name of no range: pages have them open, and addresses too."""
        for hosts in (
            [f"h{n}" for n in range(400)],
            [f"{site}-{n:04}.x.net" for site in ("fra", "iad") for n in range(1200)],
            [f"10.0.{n // 250}.{n % 250}" for n in range(2000)],
        ):
            before = dict(zip(hosts, in_ranges(hosts, [()] * len(hosts)), strict=True))
            for joins in ("a-new", "h", "zz", f"{hosts[7]}b", "h99999", "10.0.3.255", "10.1.0.1"):
                more = [joins, *hosts]
                after = dict(zip(more, in_ranges(more, [()] * len(more)), strict=True))
                self.assertEqual({host: after[host] for host in hosts}, before, joins)
            for goes in (0, 99, 100, 399):
                rest = [host for n, host in enumerate(hosts) if n != goes]
                after = dict(zip(rest, in_ranges(rest, [()] * len(rest)), strict=True))
                self.assertEqual(after, {host: before[host] for host in rest}, hosts[goes])

    def test_strange(self) -> None:
        """Names by which nothing can be cut are in ranges all the same, and soon."""
        alike = ["x" * 200 + str(n) for n in range(2000)]
        for hosts in (
            alike,
            ["a" * n for n in range(2000)],
            ["9" * n for n in range(1, 2000)],
            [chr(0x4E00 + n) for n in range(9000)],
        ):
            paths = in_ranges(hosts, [()] * len(hosts))
            for opened in ("none", frozenset(paths[-1][: n + 1] for n in range(len(paths[-1])))):
                entries = lay_out(hosts, paths, opened).entries
                self.assertLessEqual(len(entries), MAX_ENTRIES)
                self.assertEqual(sum(entry.hosts for entry in entries), len(hosts))
