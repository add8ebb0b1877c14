"""Looks names up, and again while running, through Twisted's resolver.

A name that stops resolving keeps its last good addresses, and that is said; a changed address is told
to whoever asked. How many are looked up at a time is the resolver's business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IResolutionReceiver
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

SECOND = 1.0
MINUTE = 60 * SECOND
#: Names are asked for again so many at a time, s apart: no probe is to wait for thousands of them.
AT_A_TIME, APART_S = 20, 0.02


@implementer(IResolutionReceiver)
class _Receiver:
    """Gathers the addresses of one look-up; ``late`` is called if it begins and is not over in time."""

    def __init__(self, reactor: Any, timeout_s: float, late: Callable[[], None]) -> None:
        self._reactor = reactor
        self._timeout_s = timeout_s
        self._late = late
        self._timer: Any = None
        self._found: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Count the time from now on: who waits in the resolver's queue does not fail to resolve."""
        self._timer = self._reactor.callLater(self._timeout_s, self._late)

    def addressResolved(self, address: Any) -> None:
        """Take one address, the best come first."""
        if isinstance(address, IPv4Address | IPv6Address) and address.host not in self._found:
            self._found.append(address.host)

    def resolutionComplete(self) -> None:
        """Give what was found; nothing is a failure."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.done.callback(self._found)


class Names:
    """The addresses of hosts, asked for again every ``period_s``.

    ``changed`` is called, without arguments, when other addresses than before were found, unless
    `look_up` waits for them. ``addresses`` maps every host that ever resolved to its addresses, best
    first.
    """

    log = Logger()
    #: Bounds the waiting alone: an answer that comes later is taken as well.
    timeout_s = 5 * SECOND
    #: What is found within so long is told at once.
    together_s = 5 * SECOND

    def __init__(self, reactor: Any, changed: Callable[[], None], period_s: float = MINUTE) -> None:
        self._reactor = reactor
        self._changed = changed
        self._period_s = period_s
        self._hosts: set[str] = set()
        self._loop = LoopingCall(self._again)
        self._loop.clock = reactor
        self._looking_up = 0  # calls of look_up() that wait
        self._told: dict[str, tuple[str, ...]] = {}
        self._telling: Any = None
        self._asking: Any = None
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.failing: set[str] = set()

    def look_up(self, hosts: Iterable[str], besides: Iterable[str] = ()) -> Deferred[Any]:
        """Keep these hosts' addresses from now on, and what is known of others ``besides``.

        The Deferred fires when each has been asked for once, after ``timeout_s`` at the latest.
        """
        wanted = set(hosts)
        self.keep(wanted.union(besides))
        for host in wanted - self._hosts - self.addresses.keys():
            try:
                self.addresses[host] = (str(ipaddress.ip_address(host)),)
            except ValueError:
                self._hosts.add(host)
        if not self._hosts:
            return succeed(None)
        new = (wanted & self._hosts) - self.addresses.keys()
        if not self._loop.running:
            self._loop.start(self._period_s, now=False).addErrback(
                lambda failure: self.log.failure("names are looked up no more", failure=failure)
            )
        waiting: Deferred[Any] = Deferred()
        gatherResults([self._one(host) for host in sorted(new)]).chainDeferred(waiting)
        self._looking_up += 1

        def over(result: Any) -> Any:
            self._looking_up -= 1
            self._told = dict(self.addresses)
            return result

        waiting.addTimeout(
            self.timeout_s, self._reactor, onTimeoutCancel=lambda _result, _timeout: None
        )
        return waiting.addBoth(over)

    def keep(self, hosts: Iterable[str]) -> None:
        """Forget all other hosts than these."""
        kept = set(hosts)
        self._hosts &= kept
        self.failing &= kept
        self.addresses = {h: a for h, a in self.addresses.items() if h in kept}
        self._told = {h: a for h, a in self._told.items() if h in kept}

    def stop(self) -> None:
        """Look nothing up any more."""
        self._hosts = set()
        if self._loop.running:
            self._loop.stop()
        for call in (self._telling, self._asking):
            if call is not None and call.active():
                call.cancel()

    def _again(self) -> None:
        if self._asking is None or not self._asking.active():
            self._ask(sorted(self._hosts))

    def _ask(self, hosts: Sequence[str]) -> None:
        """Ask for some of them now and for the others in a moment."""
        for host in hosts[:AT_A_TIME]:
            self._one(host).addErrback(
                lambda failure: self.log.failure("an answer could not be taken", failure=failure)
            )
        if hosts[AT_A_TIME:]:
            self._asking = self._reactor.callLater(APART_S, self._ask, hosts[AT_A_TIME:])

    def _one(self, host: str) -> Deferred[None]:
        receiver = _Receiver(self._reactor, self.timeout_s, lambda: self._late(host))
        self._reactor.nameResolver.resolveHostName(
            receiver, host, addressTypes=[IPv4Address, IPv6Address], transportSemantics="UDP"
        )
        return receiver.done.addCallback(self._found, host)

    def _tell(self) -> None:
        if self._looking_up or self.addresses == self._told:
            return
        self._told = dict(self.addresses)
        try:
            self._changed()
        except Exception:  # the next look-up must come all the same
            self.log.failure("new addresses could not be taken up")

    def _late(self, host: str) -> None:
        """Say so of a name of which nothing is known; of others the answer does, whenever it comes."""
        if host not in self.addresses:
            self._found([], host)

    def _found(self, found: list[str], host: str) -> None:
        if host not in self._hosts:
            return
        if not found:
            if host not in self.failing:
                self.failing.add(host)
                last = self.addresses.get(host)
                self.log.warn(
                    "{host} does not resolve: {what}",
                    host=host,
                    what=f"going on with {_first(last)}" if last else "not probed until it does",
                )
            return
        # A server may give its addresses in turn: what is probed stays while it is among them.
        before = self.addresses.get(host, ())
        kept = [a for a in before if a in found]
        self.addresses[host] = tuple(kept + [a for a in found if a not in kept])
        was, now = _first(before), _first(self.addresses[host])
        if host in self.failing:
            self.failing.discard(host)
            self.log.info("{host} resolves again: {now}", host=host, now=now)
        elif was and was != now:
            # Who wonders why its paths and round trips are others finds it in the log.
            self.log.info("{host} is now {now}, and was {was}", host=host, now=now, was=was)
        changed = now != _first(self._told.get(host, ()))
        if changed and (self._telling is None or not self._telling.active()):
            self._telling = self._reactor.callLater(self.together_s, self._tell)


def _first(addresses: Sequence[str]) -> str:
    """Return the first address of each family, which are those that may be probed; "" if none."""
    first: dict[bool, str] = {}
    for address in addresses:
        first.setdefault(":" in address, address)
    return ", ".join(first.values())
