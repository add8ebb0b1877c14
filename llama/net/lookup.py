"""Names looked up in threads of their own: those that nobody answers for hold up nothing else.

The system's resolver, getaddrinfo(3), blocks for as long as the servers of a name keep silent: 20 s
and more. Twisted's own resolver lets it do so in the one pool of threads that files, databases and
large answers need as well, and works off what is left of it before the reactor ends. Caches are the
system's business: a name is asked for whenever somebody wants it.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from ipaddress import ip_address
from typing import Any

from attrs import Factory, define
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llama.threads import DaemonThreads

#: Look-ups at a time, and beside these, of names that hung when last asked for.
AT_ONCE, DOUBTFUL_AT_ONCE = 8, 4
#: Who takes longer, s, keeps its thread but no longer its place: so many of either at most.
SLOW_S = 2.0
MOST_HANGING, MOST_DOUBTFUL_HANGING = 56, 16
#: Names are doubted for so long, s.
LATELY_S = 600.0
#: Who has waited for an answer for so long, s, is told that there is none when the next asks.
LONGEST_S = 60.0
#: Who waits for one name, at most; then the first is told so, too.
MOST_ASKERS = 100

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


@implementer(IHostResolution)
@define(eq=False)
class _Asker:
    """Who waits for an answer."""

    name: str
    receiver: Any  #: an `IResolutionReceiver`
    port: int
    transport: Any  #: "TCP" or "UDP"
    since_s: float
    begun: bool = False
    cancelled: bool = False

    log = Logger()

    def cancel(self) -> None:
        """Be told nothing more. The look-up goes on: no thread can be taken out of the system."""
        self.cancelled = True

    def begin(self) -> None:
        """Tell that the look-up has got a thread."""
        if not self.begun:
            self.begun = True
            self._call(self.receiver.resolutionBegan, self)

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
        if self.cancelled:
            return
        try:
            told(*args)
        except Exception:  # others wait for the same answer
            self.log.failure("{name} was looked up in vain", name=self.name)


@define(eq=False)
class _LookUp:
    """One question for all who ask it before it is answered."""

    question: Question
    socket_type: int
    lane: _Lane
    askers: deque[_Asker] = Factory(deque)
    begun: bool = False
    slow: Any = None  # the call that looks whether it hangs
    hangs: bool = False  # it has given up its place


@define(eq=False)
class _Lane:
    """Look-ups that have a place, and those that wait for one."""

    places: int
    most_hanging: int
    running: int = 0
    hanging: int = 0
    #: By how often in a row each name hung, then in the order in which they came.
    waiting: list[tuple[int, int, _LookUp]] = Factory(list)

    def end(self, look_up: _LookUp) -> None:
        """Note that one has come back."""
        if look_up.hangs:
            self.hanging -= 1
        else:
            self.running -= 1


@implementer(IHostnameResolver)
class Resolver:
    """Asks the system for names, each once at a time, in threads that no other work needs.

    Names that hang cost the others little: after `SLOW_S` the next gets the place. Those that hung
    when they were last asked for, and were not answered for in the end, have places of their own, and
    who hung least often in a row comes first. A literal address takes no thread.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._threads = DaemonThreads(reactor)
        self._under_way: dict[Question, _LookUp] = {}
        #: Since when, by reactor.seconds(), and how often in a row; the oldest first.
        self._doubted: dict[Question, tuple[float, int]] = {}
        self._usual = _Lane(AT_ONCE, MOST_HANGING)
        self._doubtful = _Lane(DOUBTFUL_AT_ONCE, MOST_DOUBTFUL_HANGING)
        self._number = 0

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
        asker = _Asker(hostName, resolutionReceiver, portNumber, transportSemantics, now_s)
        if is_address(hostName):
            asker.tell(_read(question, socket_type))
            return asker
        look_up = self._under_way.get(question)
        if look_up is None:
            look_up = self._under_way[question] = self._queued(question, socket_type)
        look_up.askers.append(asker)
        if look_up.begun:
            asker.begin()
        askers = look_up.askers
        while len(askers) > MOST_ASKERS or (
            look_up.begun and now_s - askers[0].since_s > LONGEST_S
        ):
            askers.popleft().tell(())
        self._begin()
        return asker

    def _queued(self, question: Question, socket_type: int) -> _LookUp:
        since_s, hung = self._doubted.get(question, (float("-inf"), 0))
        if self._reactor.seconds() - since_s >= LATELY_S:
            hung = 0
        look_up = _LookUp(question, socket_type, self._doubtful if hung else self._usual)
        self._number += 1
        heappush(look_up.lane.waiting, (hung, self._number, look_up))
        return look_up

    def _begin(self) -> None:
        """Begin what there are places for."""
        for lane in (self._usual, self._doubtful):
            while lane.waiting and lane.running < lane.places:
                *_, look_up = heappop(lane.waiting)
                lane.running += 1
                look_up.begun = True
                look_up.slow = self._reactor.callLater(SLOW_S, self._slow, look_up)
                self._threads.call(_ask, look_up.question, look_up.socket_type).addBoth(
                    self._answered, look_up
                )
                for asker in tuple(look_up.askers):
                    asker.begin()

    def _slow(self, look_up: _LookUp) -> None:
        """Give the place of one that takes long to the next, if not too many hang already."""
        lane = look_up.lane
        if lane.hanging < lane.most_hanging:
            lane.running -= 1
            lane.hanging += 1
            look_up.hangs = True
            self._begin()

    def _answered(self, found: Any, look_up: _LookUp) -> None:
        if isinstance(found, Failure):
            if found.check(OSError, ValueError) is None:  # these say that there is no such name
                self.log.error(
                    "{name} was not looked up: {reason}",
                    name=look_up.question[0], reason=found.getErrorMessage(),
                )  # fmt: skip
            found = ()
        look_up.lane.end(look_up)
        del self._under_way[look_up.question]
        hung = not look_up.slow.active()
        if not hung:
            look_up.slow.cancel()
        self._doubt(look_up.question, hung and not found)
        for asker in tuple(look_up.askers):
            asker.tell(found)
        self._begin()

    def _doubt(self, question: Question, hung: bool) -> None:
        """Note whether a name hung, in vain."""
        now_s = self._reactor.seconds()
        _, before = self._doubted.pop(question, (0.0, 0))
        if hung:
            self._doubted[question] = now_s, before + 1
        while self._doubted:
            oldest = next(iter(self._doubted))
            if now_s - self._doubted[oldest][0] < LATELY_S:
                return
            del self._doubted[oldest]


def _ask(question: Question, socket_type: int, flags: int = 0) -> Found:
    """Ask the system, for any port; blocks."""
    return socket.getaddrinfo(question[0], 0, question[1], socket_type, 0, flags)


def _read(address: Question, socket_type: int) -> Found:
    """Return a literal address as `_ask` would, without asking anybody."""
    try:
        return _ask(address, socket_type, socket.AI_NUMERICHOST)
    except (OSError, ValueError):  # of the other family, or on an interface that there is not
        return ()


def socket_address(address: str, port: int) -> Any:
    """Return a literal address as sockets take it, a link-local one with its interface's number.

    Python's sockets forget the interface behind a ``%``. Raises `OSError` if there is none of its name.
    """
    try:
        return socket.getaddrinfo(address, port, flags=socket.AI_NUMERICHOST)[0][4]
    except socket.gaierror:
        _, _, zone = address.partition("%")
        if not zone:
            raise
        raise OSError(errno.ENODEV, f"there is no interface {zone}") from None


def is_address(host: str) -> bool:
    """Return whether that is a literal address, of IPv4 or IPv6."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
