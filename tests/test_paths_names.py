"""Names of router addresses: from a file, and from a DNS that takes its time."""

import threading
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from llama.paths.names import ReverseNames, ask, read_names


class Names(TestCase):
    timeout = 30

    def test_a_file_like_hosts(self):
        """Address and first name of a line are read; comments and other lines are not."""
        path = Path(self.mktemp())
        path.write_text("10.0.0.1 spine1 other\n# 10.0.0.2 x\n\nfd00::1\tleaf1 # here\n10.0.0.3\n")
        self.assertEqual(read_names(path), {"10.0.0.1": "spine1", "fd00::1": "leaf1"})

    def test_no_name(self):
        """What the resolver does not know is called by its address."""
        self.assertEqual(ask("not an address"), "not an address")
        self.assertEqual(ask("localhost"), "localhost")
        self.assertEqual(ask("x" * 70 + "." + "\xe9" * 70), "x" * 70 + "." + "\xe9" * 70)

    @inlineCallbacks
    def test_nobody_waits(self):
        """An address is its own name until the answer came; each is asked for once."""
        asked, answer = [], threading.Event()

        def slow(address):
            asked.append(address)
            answer.wait(20)
            return "spine1"

        names = ReverseNames(reactor, {"10.0.0.9": "leaf1"}, slow)
        self.assertEqual([names("10.0.0.1"), names("10.0.0.1")], ["10.0.0.1"] * 2)
        self.assertEqual(names("10.0.0.9"), "leaf1")
        answer.set()
        while names("10.0.0.1") != "spine1":
            yield deferLater(reactor, 0.01, lambda: None)
        self.assertEqual(asked, ["10.0.0.1"])

    @inlineCallbacks
    def test_a_resolver_that_fails(self):
        """Whatever goes wrong with the question, the address stays the name, and is not asked again."""
        asked = []

        def broken(address):
            asked.append(address)
            raise RuntimeError("no resolver")

        names = ReverseNames(reactor, {}, broken)
        names("10.0.0.1")
        while names._waiting:
            yield deferLater(reactor, 0.01, lambda: None)
        self.assertEqual((names("10.0.0.1"), asked), ("10.0.0.1", ["10.0.0.1"]))
