"""What is waited for without a turn of the reactor, and what is never kept waiting for that."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.epollreactor import EPollReactor
from twisted.trial.unittest import SynchronousTestCase

from llama.net.alone import ALONE_S, MOST_WATCHED
from llama.net.port import BatchPort
from llama.net.reactor import prepare
from llama.net.ticker import Ticker


class Listener(FileDescriptor):
    """Something else that a reactor watches: notes in ``events`` that an octet came."""

    def __init__(self, reactor: Any, events: list[str]) -> None:
        super().__init__(reactor)
        self._ours, self.theirs = socket.socketpair()
        self._events = events

    def fileno(self) -> int:
        """Return the descriptor that octets come to."""
        return self._ours.fileno()

    def doRead(self) -> None:
        """Note it."""
        self._ours.recv(1)
        self._events.append("heard")

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self.theirs.close()


class AloneCase(SynchronousTestCase):
    """A reactor which is not the one that runs the tests; ``turns`` counts its turns."""

    def setUp(self) -> None:
        """Make it, and count."""
        self.reactor = EPollReactor()
        prepare(self.reactor)
        self.turns = 0
        turn = self.reactor.doIteration

        def counted(delay_s: float | None) -> None:
            self.turns += 1
            turn(delay_s)

        self.patch(self.reactor, "doIteration", counted)

    def run_to_the_end(self) -> None:
        """Run it until somebody stops it, or for long enough to say that nobody does."""
        self.reactor.callLater(20, self.reactor.stop)
        self.reactor.run(installSignalHandlers=False)


class TickerTests(AloneCase):
    """``events`` says in which order things happened: each ``tick``, and whatever a test does besides."""

    def setUp(self) -> None:
        """Make a ticker."""
        super().setUp()
        self.events: list[str] = []
        self.at_tick: dict[int, Callable[[], object]] = {}  # what is done in which tick
        self.ticker = Ticker(self.reactor, self.tick)
        self.addCleanup(self.ticker.stop)

    def tick(self) -> None:
        """Note a tick, and do what a test wants done in it."""
        self.events.append("tick")
        self.at_tick.get(self.events.count("tick"), lambda: None)()

    def run_to_tick(self, last: int, period_s: float = 0.002) -> None:
        """Run the reactor until a tick, after which there is none."""

        def end() -> None:
            self.ticker.stop()  # on a busy machine another is due before the reactor stops
            self.reactor.callLater(0, self.reactor.stop)

        self.at_tick[last] = end
        self.ticker.start(period_s)
        self.run_to_the_end()

    def listener(self) -> Listener:
        """Something that can be watched; its other end is ``theirs``."""
        listener = Listener(self.reactor, self.events)
        self.addCleanup(listener.close)
        return listener

    def ticks_before(self, event: str) -> int:
        """How many ticks came before something happened."""
        return self.events[: self.events.index(event)].count("tick")

    def test_turns_are_spared(self) -> None:
        """While nothing else happens, many ticks take one turn of the reactor."""
        self.run_to_tick(100)
        self.assertLess(self.turns, 50)

    def test_others_are_heard_at_once(self) -> None:
        """What the reactor watches ends the wait for the next tick."""
        listener = self.listener()
        listener.startReading()
        self.at_tick[2] = lambda: listener.theirs.send(b"x")
        self.run_to_tick(6, 0.01)
        self.assertEqual(self.ticks_before("heard"), 2)

    def test_writers_are_served_at_once(self) -> None:
        """So does room to write, where somebody waits for it."""
        listener = self.listener()
        listener.doWrite = lambda: (self.events.append("wrote"), listener.stopWriting())
        listener.startWriting()
        self.run_to_tick(6, 0.01)
        self.assertLessEqual(self.ticks_before("wrote"), 1)

    def test_timers_come_in_time(self) -> None:
        """A call that is due before the next tick comes before it, also one that a tick asked for."""
        self.at_tick[2] = lambda: self.reactor.callLater(0.001, self.events.append, "called")
        self.run_to_tick(6, 0.01)
        self.assertEqual(self.ticks_before("called"), 2)

    def test_threads_are_heard_at_once(self) -> None:
        """What a thread hands over waits for no tick."""

        def hand_over() -> None:
            self.reactor.callFromThread(self.events.append, "handed over")

        self.at_tick[2] = lambda: threading.Thread(target=hand_over).start()
        self.run_to_tick(6, 0.015)
        self.assertEqual(self.ticks_before("handed over"), 2)

    def test_new_ones_are_heard_soon(self) -> None:
        """What only a tick asks to have watched is watched before long."""
        listener = self.listener()
        listener.theirs.send(b"x")
        self.at_tick[3] = listener.startReading
        self.run_to_tick(40)
        self.assertLessEqual(self.ticks_before("heard"), 3 + ALONE_S / 0.002)

    def test_too_many_are_left_to_the_reactor(self) -> None:
        """Where it watches much, every tick is a turn: all would be looked at each time."""
        for _ in range(MOST_WATCHED):
            self.listener().startReading()
        self.run_to_tick(20)
        self.assertGreaterEqual(self.turns, 20)

    def test_one_that_was_closed_does_no_harm(self) -> None:
        """A descriptor that was closed without a word to the reactor does not end the ticks."""
        listener = self.listener()
        listener.startReading()
        self.at_tick[3] = listener.close
        self.run_to_tick(60)
        self.assertEqual(self.events.count("tick"), 60)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)  # Twisted's, as it lets go of it

    def test_one_that_the_reactor_lost_count_of_does_no_harm(self) -> None:
        """Nor does one that was closed first and taken from the reactor then, which upsets its books."""
        listener = self.listener()
        listener.startReading()

        def lose() -> None:
            listener.close()
            self.assertRaises(OSError, listener.stopReading)

        self.at_tick[3] = lose
        self.run_to_tick(60)
        self.assertEqual(self.events.count("tick"), 60)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)  # Twisted's, at its end

    def test_threads_that_were_heard_already(self) -> None:
        """What a thread handed over is done before the next tick though its wake-up call is over."""

        def hand_over() -> None:
            thread = threading.Thread(
                target=self.reactor.callFromThread, args=(self.events.append, "handed over")
            )
            thread.start()
            thread.join()
            self.reactor.waker.doRead()

        self.at_tick[2] = hand_over
        self.run_to_tick(6, 0.01)
        self.assertEqual(self.ticks_before("handed over"), 2)

    def test_stopped_in_a_tick(self) -> None:
        """None comes after a tick that stopped them."""
        self.at_tick[3] = self.ticker.stop
        self.reactor.callLater(0.05, self.reactor.stop)
        self.run_to_tick(6)
        self.assertEqual(self.events.count("tick"), 3)

    def test_failing_ticks_go_on(self) -> None:
        """One that fails is told of, and the next one comes."""
        self.at_tick[3] = lambda: 1 // 0
        self.run_to_tick(6)
        self.assertEqual(self.events.count("tick"), 6)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class PortTests(AloneCase):
    """Datagrams that come one by one, each when the one before was taken."""

    def setUp(self) -> None:
        """Bind a port, and a socket that sends to it."""
        super().setUp()
        self.left = 100
        self.taken = 0
        self.port = BatchPort(self.reactor, self, "127.0.0.1", 0)
        self.port.startListening()
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.sender.close)
        self.sender.connect(("127.0.0.1", self.port.getHost().port))

    def makeConnection(self, transport: object) -> None:
        """Take note of nothing."""

    def doStop(self) -> None:
        """Nor of this."""

    def batchReceived(self, port: BatchPort, count: int) -> None:
        """Take what came, and have the next one sent."""
        self.taken += count
        if self.taken == self.left:
            self.reactor.callLater(0, self.reactor.stop)
        else:
            self.sender.send(b"x")

    def test_turns_are_spared(self) -> None:
        """They take many fewer turns of the reactor than they are."""
        self.reactor.callWhenRunning(self.sender.send, b"x")
        self.run_to_the_end()
        self.assertEqual(self.taken, 100)
        self.assertLess(self.turns, 50)

    def test_a_flood_keeps_nobody_waiting(self) -> None:
        """While there is always a next one, whatever else there is to do is done between two."""
        self.left, at = -1, []
        self.reactor.callLater(0.01, lambda: at.append(self.taken))
        self.reactor.callLater(0.02, lambda: at.append(self.taken))
        self.reactor.callLater(0.03, self.reactor.stop)
        self.reactor.callWhenRunning(self.sender.send, b"x")
        self.run_to_the_end()
        self.assertLess(0, at[0])
        self.assertLess(at[0], at[1])
        self.assertLess(at[1], self.taken)
