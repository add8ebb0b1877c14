"""Look-ups that hang, in real threads: what they may not hold up, and that each has one thread."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from textwrap import dedent
from typing import Any

from twisted.internet import reactor
from twisted.internet._resolver import GAIResolver
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama import threads
from llama.collector.names import Names
from llama.http import client
from llama.net import lookup
from llama.net.lookup import (
    AT_ONCE,
    DOUBTFUL_AT_ONCE,
    LATELY_S,
    LONGEST_S,
    MOST_ASKERS,
    MOST_DOUBTFUL_HANGING,
    MOST_HANGING,
    SLOW_S,
    Resolver,
)
from llama.net.reactor import prepare

DEAD = [f"db{n}.dead.example" for n in range(40)]
GOOD = [f"web{n}.good.example" for n in range(30)]


class Receiver:
    """Takes the addresses of a name."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.begun = 0
        self.done: Deferred[list[Any]] = Deferred()

    def resolutionBegan(self, _: Any) -> None:
        """Count the beginnings."""
        self.begun += 1

    def addressResolved(self, address: Any) -> None:
        """Take an address."""
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        """Note that these were all."""
        self.done.callback(self.addresses)


class Timed(Clock):
    """The reactor's threads with timers of the test's own."""

    callFromThread = staticmethod(reactor.callFromThread)

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = Resolver(self)


class Case(TestCase):
    """A system that answers for good names at once, and for dead ones when the test lets it."""

    timeout = 60

    def setUp(self) -> None:
        """Let all dead names hang."""
        self.asked: Counter[str] = Counter()
        self.awake = threading.Event()
        self.late: list[Any] = []  # what is known in the end of those that hang
        self.system = socket.getaddrinfo
        self.patch(socket, "getaddrinfo", self.getaddrinfo)
        self.reactor = Timed()
        self.resolver: Any = self.reactor.nameResolver
        self.addCleanup(self.wake)

    async def wake(self) -> None:
        """Let all that hang come back, and wait for that."""
        self.awake.set()
        await self.until(lambda: not self.resolver._under_way)

    def getaddrinfo(self, host: str, port: Any, *args: Any) -> Any:
        """Be the system."""
        if not host.endswith(".example"):
            return self.system(host, port, *args)
        self.asked[host] += 1
        if host.endswith(".dead.example"):
            self.awake.wait()
            if self.late:
                return self.late
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self.system("127.0.0.1", port, *args)

    async def until(self, wanted: Callable[[], Any]) -> None:
        """Wait in real time for what threads do."""
        while not wanted():
            await deferLater(reactor, 0.005)

    def ask(self, name: str, *args: Any) -> Receiver:
        """Have a name looked up."""
        receiver = Receiver()
        self.resolver.resolveHostName(receiver, name, *args)
        return receiver


class ResolverTests(Case):
    """Which names get a thread, and when."""

    async def test_good_names_while_dead_ones_hang(self) -> None:
        """However many hang before them, the others are known, and never asked for in vain."""
        for name in DEAD:
            self.ask(name)
        good = [self.ask(name) for name in GOOD]
        for _ in range(10):
            await deferLater(reactor, 0.02)
            self.reactor.advance(SLOW_S)
        found = await gatherResults([receiver.done for receiver in good])
        self.assertEqual(found, [[IPv4Address("TCP", "127.0.0.1", 0)]] * 30)
        self.assertFalse(self.awake.is_set())
        self.assertEqual(self.asked, Counter(DEAD + GOOD))

    async def test_one_thread_a_name(self) -> None:
        """Who asks for a name that is being looked up shares the answer, with a port of his own."""
        name = "web.dead.example"
        asked = [self.ask(name, 80), self.ask(name, 90, None, "UDP"), self.ask(name)]
        self.reactor.advance(SLOW_S)
        asked.append(self.ask(name, 70))
        await self.until(lambda: self.asked)
        self.assertEqual([receiver.begun for receiver in asked], [1] * 4)
        address = "192.0.2.1"
        self.late = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 2, 3)),
        ]
        self.awake.set()
        found = await gatherResults([receiver.done for receiver in asked])
        for each, kind, port in zip(
            found, ("TCP", "UDP", "TCP", "TCP"), (80, 90, 0, 70), strict=True
        ):
            self.assertEqual(
                each, [IPv4Address(kind, address, port), IPv6Address(kind, "::1", port, 2, 3)]
            )
        self.assertEqual(self.asked, {name: 1})

    async def hung(self, names: Sequence[str]) -> None:
        """Have asked for names that hung, and were not answered for in the end."""
        asked = [self.ask(name) for name in names]
        for _ in range(len(names) // DOUBTFUL_AT_ONCE + 1):
            self.reactor.advance(SLOW_S)
        self.awake.set()
        await gatherResults([receiver.done for receiver in asked])
        self.awake.clear()
        self.asked.clear()

    async def test_doubted_names_have_places_of_their_own(self) -> None:
        """Names that hung lately take no places of the others, and give up their own like these."""
        await self.hung(DEAD[:30])
        for name in DEAD[:30]:
            self.ask(name)
        for name in GOOD:  # no place has to become free by time
            await self.ask(name).done
        again = [name for name in DEAD if self.asked[name]]
        self.assertEqual(again, DEAD[:DOUBTFUL_AT_ONCE])
        most = DOUBTFUL_AT_ONCE + MOST_DOUBTFUL_HANGING
        for _ in range(2 * most // DOUBTFUL_AT_ONCE):
            self.reactor.advance(SLOW_S)
        await self.until(lambda: sum(self.asked[name] for name in DEAD) >= most)
        await deferLater(reactor, 0.05)
        self.assertEqual(sum(self.asked[name] for name in DEAD), most)

    async def test_one_lost_packet(self) -> None:
        """An answer that came late is an answer, and a name that fails at once holds up nobody."""
        late = "web.dead.example"
        self.late = self.system("127.0.0.1", 0)
        asked = self.ask(late)
        self.reactor.advance(SLOW_S)
        self.awake.set()
        self.assertTrue(await asked.done)
        self.late = []
        self.assertEqual(await self.ask(late).done, [])
        self.awake.clear()
        self.resolver._doubtful.places = 0
        self.ask(late)
        await self.until(lambda: self.asked[late] == 3)

    async def test_who_hung_least_often_comes_first(self) -> None:
        """When the DNS is back, names that it was away for do not wait for those that are always dead."""
        for _ in range(2):
            await self.hung(DEAD[:20])
        once = "web.dead.example"
        await self.hung([once])
        for name in [*DEAD[:20], once]:
            self.ask(name)
        self.reactor.advance(SLOW_S)
        await self.until(lambda: sum(self.asked.values()) == 2 * DOUBTFUL_AT_ONCE)
        self.assertEqual(self.asked[once], 1)

    async def test_a_good_answer_ends_the_doubt(self) -> None:
        """A name that hung is one of the others again when it was answered for, or after a while."""
        for name in GOOD[:3]:
            self.resolver._doubt((name, socket.AF_UNSPEC), True)
        await self.ask(GOOD[0]).done
        self.resolver._doubtful.places = 0
        self.assertEqual(len(await self.ask(GOOD[0]).done), 1)
        self.assertEqual(self.ask(GOOD[1]).begun, 0)
        self.reactor.advance(LATELY_S)
        self.assertEqual(len(await self.ask(GOOD[2]).done), 1)
        self.assertEqual(self.resolver._doubted, {})
        self.resolver._doubtful.places = DOUBTFUL_AT_ONCE
        await self.ask(GOOD[0]).done

    async def test_threads_are_bounded(self) -> None:
        """A thousand names that hang have so many threads."""
        for n in range(1000):
            self.ask(f"{n}.dead.example")
        for _ in range(20):
            self.reactor.advance(SLOW_S)
        await self.until(lambda: len(self.asked) >= AT_ONCE + MOST_HANGING)
        await deferLater(reactor, 0.05)
        self.assertEqual(len(self.asked), AT_ONCE + MOST_HANGING)

    async def test_threads_are_used_again(self) -> None:
        """Names that are answered for one after the other have one thread."""
        before = threading.active_count()
        for name in GOOD:
            await self.ask(name).done
        self.assertLessEqual(threading.active_count(), before + 1)

    async def test_nobody_waits_for_ever(self) -> None:
        """Who has waited long is told that there is no address, so those who wait do not add up."""
        first = self.ask(DEAD[0])
        self.reactor.advance(LONGEST_S + 1)
        second = self.ask(DEAD[0])
        self.assertEqual(self.successResultOf(first.done), [])
        self.assertNoResult(second.done)

    async def test_nobody_is_blamed_for_waiting(self) -> None:
        """A name that has not been asked for yet is not said to have no address, unless too many wait."""
        self.resolver._usual.places = 0
        asked = [self.ask(GOOD[0]) for _ in range(MOST_ASKERS)]
        self.reactor.advance(LONGEST_S + 1)
        asked.append(self.ask(GOOD[0]))
        self.assertEqual(self.successResultOf(asked[0].done), [])
        for each in asked[1:]:
            self.assertNoResult(each.done)
        self.resolver._usual.places = AT_ONCE
        await self.ask(GOOD[1]).done
        self.assertEqual(len(await asked[-1].done), 1)

    async def test_asked_again_while_told(self) -> None:
        """Who is told may ask for the same name at once."""
        again: list[Receiver] = []
        first = self.ask(DEAD[0])
        second = Receiver()
        for what in ("resolutionBegan", "addressResolved"):
            self.patch(second, what, lambda _: again.append(self.ask(DEAD[0])))
        self.resolver.resolveHostName(second, DEAD[0])
        self.late = self.system("127.0.0.1", 0)
        self.awake.set()
        self.assertTrue(await first.done)
        await second.done
        self.assertEqual(len(again), 1 + len(self.late))
        for each in again:
            self.assertTrue(await each.done)

    async def test_cancelled(self) -> None:
        """Who cancels is told nothing more, also amid an answer; others are."""
        first, second = Receiver(), self.ask(DEAD[0])
        resolution = self.resolver.resolveHostName(first, DEAD[0])
        self.assertEqual(resolution.name, DEAD[0])
        amid = Receiver()
        self.patch(amid, "resolutionBegan", lambda begun: begun.cancel())
        self.resolver.resolveHostName(amid, DEAD[0])
        resolution.cancel()
        self.late = self.system("127.0.0.1", 0)
        self.awake.set()
        self.assertTrue(await second.done)
        for cancelled in (first, amid):
            self.assertEqual(cancelled.addresses, [])
            self.assertNoResult(cancelled.done)

    async def test_addresses_take_no_thread(self) -> None:
        """A literal address is told at once, whatever hangs, as the system writes it."""
        self.resolver._usual.places = 0
        for address, types, expected in (
            ("127.0.0.1", None, [IPv4Address("TCP", "127.0.0.1", 80)]),
            ("0:0::1", None, [IPv6Address("TCP", "::1", 80, 0, 0)]),
            ("::1", [IPv4Address], []),
            ("fe80::1%nosuch0", None, []),
            ("fe80::1%" + "x" * 70, None, []),
        ):
            receiver = self.ask(address, 80, types)
            self.assertEqual(self.successResultOf(receiver.done), expected, address)

    async def test_answers_are_those_of_twisted(self) -> None:
        """Twisted's own resolver says the same, in the same order."""
        twisted = GAIResolver(reactor)
        for name in ("localhost", "127.0.0.1", "::1"):
            for types in (None, [IPv4Address], [IPv6Address]):
                for kind in ("TCP", "UDP"):
                    theirs, ours = Receiver(), self.ask(name, 80, types, kind)
                    twisted.resolveHostName(theirs, name, 80, types, kind)
                    self.assertEqual(await ours.done, await theirs.done)

    async def test_whatever_goes_wrong(self) -> None:
        """A name that cannot be one has no address, nor has one that the system fails over."""
        for error in (UnicodeError("label too long"), RuntimeError("odd")):

            def fail(*_: Any, error: Exception = error) -> Any:
                raise error

            self.patch(socket, "getaddrinfo", fail)
            self.assertEqual(await self.ask("x.good.example").done, [])
            self.assertEqual(self.resolver._usual.running, 0)

    async def test_no_thread_to_be_had(self) -> None:
        """The name counts as failed, and the next gets its chance."""
        self.patch(threads, "Thread", lambda **_: _Unstarted())
        asked = [self.ask(name) for name in GOOD]
        for _ in range(10):
            self.reactor.advance(0)
        self.assertEqual([self.successResultOf(each.done) for each in asked], [[]] * 30)

    async def test_a_receiver_that_fails(self) -> None:
        """Others who wait for the same name are told all the same."""
        first, second = self.ask(GOOD[0]), self.ask(GOOD[0])
        self.patch(first, "addressResolved", lambda _: 1 // 0)
        self.assertEqual(len(await second.done), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class _Here(Resource):
    """Answers."""

    isLeaf = True

    def render_GET(self, _: Any) -> bytes:
        """Answer."""
        return b"here"


class _Unstarted:
    """A thread for which there is no room."""

    def start(self) -> None:
        """Fail as the system does."""
        raise RuntimeError("can't start new thread")


class CollectorNamesTests(Case):
    """The names that a collector probes."""

    async def test_dead_ones_keep_no_good_one_from_being_known(self) -> None:
        """With more names that hang than there are places, all others are known and none is blamed."""
        changes: list[int] = []
        names = Names(self.reactor, lambda: changes.append(len(names.addresses)))
        self.addCleanup(names.stop)
        known = names.look_up(DEAD + GOOD)
        for _ in range(3):
            await deferLater(reactor, 0.02)
            self.reactor.advance(SLOW_S)
        self.successResultOf(known)  # after 5 s, whatever hangs
        for _ in range(6):
            await deferLater(reactor, 0.02)
            self.reactor.advance(SLOW_S)
        await self.until(lambda: len(names.addresses) == 30)
        self.reactor.advance(Names.together_s)
        self.assertEqual(set(names.addresses), set(GOOD))
        self.assertEqual(changes[-1], 30)
        self.assertLessEqual(len(changes), 3)
        self.assertEqual(names.failing & set(GOOD), set())
        self.assertIn(DEAD[0], names.failing)
        for _ in range(3):  # every minute again: no further thread for what hangs
            self.reactor.advance(60)
            await deferLater(reactor, 0.02)
        self.assertEqual([self.asked[name] for name in DEAD], [1] * 40)
        self.assertGreater(self.asked[GOOD[0]], 1)

    async def test_others_that_are_not_probed(self) -> None:
        """Of a name with many addresses, told a few at a time, nothing is news but what is probed."""
        changes: list[Any] = []
        names = Names(self.reactor, lambda: changes.append(names.addresses["web.example"][0]))
        self.addCleanup(names.stop)
        names._hosts.add("web.example")
        for found in (["192.0.2.1", "192.0.2.2"], ["192.0.2.3", "192.0.2.1"], ["192.0.2.3"]):
            names._found(found, "web.example")
            self.reactor.advance(Names.together_s)
        self.assertEqual(changes, ["192.0.2.1", "192.0.2.3"])

    async def test_late_answer(self) -> None:
        """An answer that comes after the wait is taken, and whoever wants to know is told."""
        changes: list[Any] = []
        names = Names(self.reactor, lambda: changes.append(dict(names.addresses)))
        self.addCleanup(names.stop)
        known = names.look_up(["web.dead.example"])
        self.reactor.advance(Names.timeout_s)
        self.successResultOf(known)
        self.assertEqual(names.failing, {"web.dead.example"})
        self.late = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.1", 0))]
        self.awake.set()
        await self.until(lambda: names.addresses)
        self.reactor.advance(Names.together_s)
        self.assertEqual(changes, [{"web.dead.example": ("192.0.2.1",)}])
        self.assertEqual(names.failing, set())


class InstalledTests(Case):
    """The resolver in a reactor that other work is done with."""

    def setUp(self) -> None:
        """Install it for the time of a test."""
        super().setUp()
        self.patch(lookup, "SLOW_S", 0.02)
        before = reactor.nameResolver
        prepare(reactor)
        self.resolver = reactor.nameResolver
        self.addCleanup(reactor.installNameResolver, before)

    async def test_other_work_in_threads(self) -> None:
        """The threads of files and databases have nothing to do with names."""
        for name in DEAD:
            self.ask(name)
        self.assertEqual(await deferToThread(int, 7), 7)
        self.assertEqual(reactor.getThreadPool()._team.statistics().backloggedWorkCount, 0)

    async def test_http(self) -> None:
        """Who is asked by a good name answers, whoever else is asked by names that hang."""
        port = reactor.listenTCP(0, Site(_Here()), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        pool = client.connection_pool(reactor, persistent=False)
        agent = client.agent_of(reactor, pool, 5.0, None)

        def get(host: str, timeout_s: float) -> Any:
            url = f"http://{host}:{port.getHost().port}/"
            return ensureDeferred(
                client.request(agent, reactor, "GET", url, timeout_s=timeout_s, max_octets=100)
            )

        asked = [get(host, 50.0).addErrback(lambda _: None) for host in DEAD]
        for host in GOOD:
            self.assertEqual((await get(host, 30.0)).status, 200)
        self.awake.set()
        await gatherResults(asked)

    async def test_again(self) -> None:
        """Two services in one process both ask for it, and get the same."""
        resolver = reactor.nameResolver
        prepare(reactor)
        self.assertIs(reactor.nameResolver, resolver)


class StopTests(SynchronousTestCase):
    """The end of a program that has asked for what never answers."""

    def test_nobody_waits_for_names(self) -> None:
        """It ends, though not one look-up has come back, or ever will."""
        script = """
            import socket, threading
            socket.getaddrinfo = lambda *_: threading.Event().wait()
            from twisted.internet import reactor
            from twisted.internet.endpoints import HostnameEndpoint
            from twisted.internet.protocol import Factory
            from llama.net.reactor import prepare
            from llama.paths.names import ReverseNames

            def stop():
                print(threading.active_count() > 10)
                reactor.stop()

            prepare(reactor)
            for n in range(64):
                HostnameEndpoint(reactor, f"host{n}.example", 80).connect(Factory())
            names = ReverseNames(reactor, {}, lambda _: threading.Event().wait())
            for n in range(4):
                names(f"192.0.2.{n}")
            reactor.callLater(0.1, stop)
            reactor.run()
        """
        done = subprocess.run(
            [sys.executable, "-c", dedent(script)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout), (0, "True\n"))
