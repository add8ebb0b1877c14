"""Names of router addresses: from a file, and from a DNS that takes its time."""

import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks, succeed
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from llama.cli._names import namer
from llama.paths import names as names_module
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
    def test_any_thread_may_call(self):
        """Whoever wants the name, the question is the reactor's thread's, and so is what is kept."""
        names, began = ReverseNames(reactor, {}, lambda _: "spine1"), []
        begin = names._threads.call
        names._threads.call = lambda *what: began.append(threading.current_thread()) or begin(*what)
        told = yield deferToThread(names, "10.0.0.1")
        self.assertEqual(told, "10.0.0.1")
        while names("10.0.0.1") != "spine1":
            yield deferLater(reactor, 0.01, lambda: None)
        self.assertEqual(began, [threading.current_thread()])

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

    def test_many(self):
        """What is no address is not asked for; of many, that asked for the longest ago is forgotten."""
        self.patch(names_module, "MOST_NAMES", 3)
        clock, asked = Clock(), []
        clock.callFromThread = lambda call, *args: call(*args)
        names = ReverseNames(clock, {}, lambda address: asked.append(address) or f"r{address[-1]}")
        names._threads = SimpleNamespace(call=lambda ask, address: succeed(ask(address)))
        for text in ("hop-1", "10.0.0", "x" * 1000):
            self.assertEqual((names(text), asked), (text, []))
        for last in (1, 2, 3):
            names(f"10.0.0.{last}")
        clock.advance(names_module.AGAIN_S)
        names("10.0.0.1")  # is asked for again
        names("fd00::4")
        self.assertEqual([names(f"10.0.0.{last}") for last in (1, 3)], ["r1", "r3"])
        self.assertEqual(names("10.0.0.2"), "10.0.0.2")

    def test_none_to_ask(self):
        """Without DNS nothing is kept of what others say that hops are called."""

        class Hop(str):
            __slots__ = ("__weakref__",)

        hop = Hop("10.0.0.1")
        kept = weakref.ref(hop)
        name = namer(None, resolve=False)
        self.assertEqual(name(hop), "10.0.0.1")
        del hop
        self.assertIsNone(kept())
