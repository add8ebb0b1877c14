"""Who shares a name among collectors, and who only had it before another."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llama.scraper.names import Names


class NamesTests(SynchronousTestCase):
    """Names as they are heard, one collector after another."""

    def setUp(self) -> None:
        """Know nobody."""
        self.names = Names()

    def hear(self, *heard: tuple[str, str]) -> list[tuple[str, str]]:
        """Hear collectors tell their names; returns who was found to share one, with whom."""
        return [(url, other) for url, name in heard for other in self.names.heard(url, name)]

    def test_shared(self) -> None:
        """Two that keep one name are found, once, when the first of them tells it again."""
        self.assertEqual(self.hear(("a", "web1"), ("b", "web1")), [])
        self.assertEqual(self.hear(("b", "web1"), ("a", "web1")), [("a", "b")])
        self.assertEqual(self.hear(("a", "web1"), ("b", "web1"), ("a", "web1")), [])

    def test_shared_later(self) -> None:
        """Two that were found to share a name are found again with the next that they share."""
        self.hear(("a", "web1"), ("b", "web1"), ("a", "web1"))
        self.assertEqual(self.hear(("b", "web2"), ("a", "web2"), ("b", "web2")), [("b", "a")])
        self.assertEqual(self.hear(("a", "web3"), ("b", "web3"), ("a", "web3")), [("a", "b")])

    def test_renamed(self) -> None:
        """A name that was free when another host got it is nobody else's, whoever is heard first."""
        self.hear(("a", "web1"), ("b", "web2"))
        self.assertEqual(self.hear(("a", "web3"), ("b", "web1"), ("a", "web3"), ("b", "web1")), [])
        self.hear(("a", "old"), ("b", "web2"))
        self.assertEqual(self.hear(("b", "old"), ("a", "web3"), ("b", "old"), ("a", "web3")), [])

    def test_swapped(self) -> None:
        """Two that swap their names share none."""
        self.hear(("a", "web1"), ("b", "web2"))
        self.assertEqual(self.hear(("a", "web2"), ("b", "web1"), ("a", "web2"), ("b", "web1")), [])

    def test_third(self) -> None:
        """Of three that share a name the others are found when the first is given another."""
        self.hear(("a", "web1"), ("b", "web1"), ("c", "web1"))
        self.assertEqual(self.hear(("a", "web2"), ("b", "web1"), ("c", "web1")), [("c", "b")])

    def test_always_another(self) -> None:
        """A collector that keeps changing its name takes the place of one, and is told once."""
        self.hear(("a", "web0"))
        said = []
        for number in range(1000):
            said += self.hear(("b", f"web{number}"), ("a", "web0"))
        self.assertEqual(said, [("a", "b")])
        self.assertEqual(len(self.names), 2)
        said = self.hear(("b", "web0"), ("a", "web0"))
        self.assertEqual(said, [])

    def test_forgotten(self) -> None:
        """One that is asked no more has no name, also where it was about to be told of."""
        self.hear(("a", "web1"), ("b", "web1"))
        self.names.forget("a")
        self.assertEqual(self.hear(("b", "web1"), ("c", "web1"), ("b", "web1")), [("b", "c")])
        self.names.forget("c")
        self.assertEqual(self.hear(("c", "web1"), ("b", "web1")), [("b", "c")])
        self.names.forget("nobody")
