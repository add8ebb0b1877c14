"""Names looked up in threads of their own: those that nobody answers for hold up nothing else.

The system's resolver, getaddrinfo(3), blocks for as long as the servers of a name keep silent: 20 s
and more. Twisted's own resolver lets it do so in the one pool of threads that files, databases and
large answers need as well, and works off what is left of it before the reactor ends. Caches are the
system's business: a name is asked for whenever somebody wants it.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from threading import Thread
from typing import Any, TypeVar

from attrs import Factory, define, frozen
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

T = TypeVar("T")

#: Look-ups at a time, and those among them of names that were slow or failed when last asked for.
AT_ONCE, DOUBTFUL_AT_ONCE = 8, 4
#: Who takes longer, s, keeps its thread but no longer its place; names are doubted for so long.
SLOW_S, LATELY_S = 2.0, 600.0
#: Threads at most, with those that have no place.
MOST_THREADS = 64
#: Who has waited for so long, s, is told that there is no address when the next asks for that name.
LONGEST_S = 60.0

_FAMILIES = {
    frozenset({IPv4Address}): socket.AF_INET,
    frozenset({IPv6Address}): socket.AF_INET6,
    frozenset({IPv4Address, IPv6Address}): socket.AF_UNSPEC,
}
_TYPES = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}

Found = Sequence[tuple[Any, ...]]  # what getaddrinfo() returns
Question = tuple[str, int]  # host, family


def look_up_apart(reactor: Any) -> None:
    """Let all that uses ``reactor`` look names up by a `Resolver`; may be called again."""
    if not isinstance(reactor.nameResolver, Resolver):
        reactor.installNameResolver(Resolver(reactor))


def apart(reactor: Any, work: Callable[..., T], *args: Any) -> Deferred[T]:
    """Call ``work`` in a thread of its own, which nobody waits for when the process ends."""
    done: Deferred[T] = Deferred()

    def run() -> None:
        try:
            result = work(*args)
        except BaseException:
            reactor.callFromThread(done.errback, Failure())
        else:
            reactor.callFromThread(done.callback, result)

    try:
        Thread(target=run, daemon=True).start()
    except RuntimeError:  # the system has no thread to spare
        reactor.callLater(0, done.errback, Failure())
    return done


@implementer(IHostResolution)
@frozen
class _Resolution:
    """What Twisted wants to have of a look-up."""

    name: str

    def cancel(self) -> None:
        """Do what Twisted's own resolver does: it cannot be."""
        raise NotImplementedError


@define(eq=False)
class _Asker:
    """Who waits for an answer."""

    receiver: Any  #: an `IResolutionReceiver`
    resolution: _Resolution
    port: int
    transport: Any  #: "TCP" or "UDP"
    since_s: float
    begun: bool = False

    log = Logger()

    def begin(self) -> None:
        """Tell that the look-up has got a thread."""
        if not self.begun:
            self.begun = True
            self._call(self.receiver.resolutionBegan, self.resolution)

    def tell(self, found: Found) -> None:
        """Tell the addresses, the best first, and that these are all."""
        self.begin()
        for family, _, _, _, address in found:
            host, _, *rest = address
            if family == socket.AF_INET:
                made: Any = IPv4Address(self.transport, host, self.port)
            else:
                made = IPv6Address(self.transport, host, self.port, *rest)
            self._call(self.receiver.addressResolved, made)
        self._call(self.receiver.resolutionComplete)

    def _call(self, told: Callable[..., object], *args: object) -> None:
        try:
            told(*args)
        except Exception:  # others wait for the same answer
            self.log.failure("{name} was looked up in vain", name=self.resolution.name)


@define(eq=False)
class _Lane:
    """Look-ups that have a thread, and those that wait for one in the order in which they came."""

    places: int
    running: int = 0
    waiting: deque[_LookUp] = Factory(deque)


@define(eq=False)
class _LookUp:
    """One question for all who ask it before it is answered."""

    question: Question
    socket_type: int
    lane: _Lane
    askers: deque[_Asker] = Factory(deque)
    begun: bool = False
    slow: Any = None  # the call that takes its place away


@implementer(IHostnameResolver)
class Resolver:
    """Asks the system for names, each once at a time, in threads that no other work needs.

    Names that hang cost the others little: after `SLOW_S` the next gets the place. Those that were
    slow or failed lately have places of their own, fewer than the others. A literal address takes no
    thread.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._under_way: dict[Question, _LookUp] = {}
        self._doubted: dict[Question, float] = {}  # since when, by reactor.seconds()
        self._usual, self._doubtful = _Lane(AT_ONCE), _Lane(DOUBTFUL_AT_ONCE)

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        """Tell the receiver what the system knows, as `IHostnameResolver` says; nothing is a failure."""
        wanted = (IPv4Address, IPv6Address) if addressTypes is None else addressTypes
        question = hostName, _FAMILIES[frozenset(wanted)]
        socket_type = _TYPES[transportSemantics]
        now_s = self._reactor.seconds()
        resolution = _Resolution(hostName)
        asker = _Asker(resolutionReceiver, resolution, portNumber, transportSemantics, now_s)
        if _is_address(hostName):
            asker.tell(_read(question, socket_type))
            return resolution
        look_up = self._under_way.get(question)
        if look_up is None:
            doubted = now_s - self._doubted.get(question, float("-inf")) < LATELY_S
            look_up = _LookUp(question, socket_type, self._doubtful if doubted else self._usual)
            self._under_way[question] = look_up
            look_up.lane.waiting.append(look_up)
        look_up.askers.append(asker)
        if look_up.begun:
            asker.begin()
        while now_s - look_up.askers[0].since_s > LONGEST_S:
            look_up.askers.popleft().tell(())
        self._begin()
        return resolution

    def _begin(self) -> None:
        """Begin what there are threads for."""
        for lane in (self._usual, self._doubtful):
            while (
                lane.waiting
                and lane.running < lane.places
                and self._usual.running + self._doubtful.running < MOST_THREADS
            ):
                look_up = lane.waiting.popleft()
                lane.running += 1
                look_up.begun = True
                look_up.slow = self._reactor.callLater(SLOW_S, self._slow, look_up)
                apart(self._reactor, _ask, look_up.question, look_up.socket_type).addBoth(
                    self._answered, look_up
                )
                for asker in look_up.askers:
                    asker.begin()

    def _slow(self, look_up: _LookUp) -> None:
        """Give the place of one that takes long to the next, and doubt it from now on."""
        self._doubt(look_up.question)
        look_up.lane.running -= 1
        look_up.lane = self._doubtful
        look_up.lane.running += 1
        self._begin()

    def _answered(self, found: Any, look_up: _LookUp) -> None:
        if isinstance(found, Failure):
            if found.check(OSError, ValueError) is None:  # these say that there is no such name
                self.log.error(
                    "{name} was not looked up: {reason}",
                    name=look_up.question[0], reason=found.getErrorMessage(),
                )  # fmt: skip
            found = ()
        look_up.lane.running -= 1
        del self._under_way[look_up.question]
        if look_up.slow.active():
            look_up.slow.cancel()
            self._doubted.pop(look_up.question, None)
            if not found:
                self._doubt(look_up.question)
        else:
            self._doubt(look_up.question)
        self._begin()
        for asker in look_up.askers:
            asker.tell(found)

    def _doubt(self, question: Question) -> None:
        now_s = self._reactor.seconds()
        self._doubted = {q: s for q, s in self._doubted.items() if now_s - s < LATELY_S}
        self._doubted[question] = now_s


def _ask(question: Question, socket_type: int, flags: int = 0) -> Found:
    """Ask the system, for any port; blocks."""
    return socket.getaddrinfo(question[0], 0, question[1], socket_type, 0, flags)


def _read(address: Question, socket_type: int) -> Found:
    """Return a literal address as `_ask` would, without asking anybody."""
    try:
        return _ask(address, socket_type, socket.AI_NUMERICHOST)
    except OSError:  # of the other family, or on an interface that there is not
        return ()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
