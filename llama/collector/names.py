"""Looks names up, and again while running, through Twisted's resolver.

A name that stops resolving keeps its last good addresses, and that is said; a changed address is told
to whoever asked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults, succeed
from twisted.internet.interfaces import IResolutionReceiver
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

SECOND = 1.0
MINUTE = 60 * SECOND


@implementer(IResolutionReceiver)
class _Receiver:
    """Gathers the addresses of one look-up."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Take note that the look-up runs; it is not cancelled from here."""

    def addressResolved(self, address: Any) -> None:
        """Take one address, the best come first."""
        if isinstance(address, (IPv4Address, IPv6Address)) and address.host not in self.found:
            self.found.append(address.host)

    def resolutionComplete(self) -> None:
        """Give what was found; nothing is a failure."""
        if not self.done.called:
            self.done.callback(self.found)


class Names:
    """The addresses of hosts, kept up to date every ``period_s``.

    ``changed`` is called, without arguments, after a round that found other addresses than before.
    ``addresses`` maps every host that ever resolved to its addresses, best first.
    """

    log = Logger()
    timeout_s = 5 * SECOND

    def __init__(self, reactor: Any, changed: Callable[[], None], period_s: float = MINUTE) -> None:
        self._reactor = reactor
        self._changed = changed
        self._period_s = period_s
        self._hosts: set[str] = set()
        # As many as the resolver has threads for: who waits in its queue seems not to resolve.
        self._slots = DeferredSemaphore(8)
        self._loop = LoopingCall(self._again)
        self._loop.clock = reactor
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.failing: set[str] = set()

    def look_up(self, hosts: Iterable[str]) -> Deferred[Any]:
        """Keep these hosts' addresses from now on; the Deferred fires when each was asked for once."""
        self._hosts = set()
        wanted = set(hosts)
        self.addresses = {h: a for h, a in self.addresses.items() if h in wanted}
        for host in wanted:
            try:
                self.addresses[host] = (str(ipaddress.ip_address(host)),)
            except ValueError:
                self._hosts.add(host)
        self.failing &= self._hosts
        if not self._hosts:
            return succeed(None)
        new = [host for host in self._hosts if host not in self.addresses]
        if not self._loop.running:
            self._loop.start(self._period_s, now=False).addErrback(
                lambda failure: self.log.failure("names are looked up no more", failure=failure)
            )
        return gatherResults([self._slots.run(self._one, host) for host in sorted(new)])

    def stop(self) -> None:
        """Look nothing up any more."""
        self._hosts = set()
        if self._loop.running:
            self._loop.stop()

    def _again(self) -> Deferred[Any]:
        before = dict(self.addresses)

        def done(_: Any) -> None:
            if self.addresses != before and self._loop.running:
                try:
                    self._changed()
                except Exception:  # the next look-up must come all the same
                    self.log.failure("new addresses could not be taken up")

        return gatherResults(
            [self._slots.run(self._one, host) for host in sorted(self._hosts)]
        ).addCallback(done)

    def _one(self, host: str) -> Deferred[None]:
        receiver = _Receiver()
        self._reactor.nameResolver.resolveHostName(
            receiver, host, addressTypes=[IPv4Address, IPv6Address], transportSemantics="UDP"
        )
        receiver.done.addTimeout(
            self.timeout_s, self._reactor, onTimeoutCancel=lambda _result, _timeout: []
        )
        return receiver.done.addCallback(self._found, host)

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
                    what=f"going on with {last[0]}" if last else "not probed until it does",
                )
            return
        if host in self.failing:
            self.failing.discard(host)
            self.log.info("{host} resolves again: {address}", host=host, address=found[0])
        # A server may give its addresses in turn: what is probed stays while it is among them.
        kept = [a for a in self.addresses.get(host, ()) if a in found]
        self.addresses[host] = tuple(kept + [a for a in found if a not in kept])
