"""A UDP relay that harms what passes: the network between two hosts, on one machine.

A client probes the relay as if it were the reflector. Every client flow (source address and port)
gets a socket of its own towards the reflector, so the reflector sees as many flows as the client
sends, and `Impairment` says what happens to the packets of each direction. Delays are kept to
about a millisecond, which is what the reactor's timers give.

The relay rewrites addresses and ports and knows nothing of what the packets say. A received
DSCP is not seen: packets leave as best effort.
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Protocol

from attrs import define, field, frozen, validators
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

Address = tuple[str, int]

_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_seconds = validators.ge(0.0)


def _frozenset(numbers: Iterable[int]) -> frozenset[int]:
    return frozenset(numbers)


@frozen(kw_only=True)
class Impairment:
    """What happens to the packets of one direction; as it comes, nothing does.

    Shares are from 0 to 1. Flows are dealt to ``paths`` equal-cost paths in the order they appear,
    not hashed, so that a handful of flows covers every path; packets on one of ``bad_paths``
    (0 to ``paths`` - 1) are lost with ``path_loss``. Raises `ValueError` for what cannot be.
    """

    paths: int = field(default=1, validator=validators.ge(1))
    bad_paths: frozenset[int] = field(default=frozenset(), converter=_frozenset)
    path_loss: float = field(default=1.0, validator=_share)
    delay_s: float = field(default=0.0, validator=_seconds)
    jitter_s: float = field(default=0.0, validator=_seconds)  # uniform, on top; order is kept


@define
class Passage:
    """How the packets of one direction fared."""

    carried: int = 0  # handed on
    lost: int = 0  # dropped on purpose
    failed: int = 0  # the kernel would not take them


class ReactorUDP(Protocol):
    """What the relay needs of a reactor: UDP ports, time and timers."""

    def listenUDP(self, port: int, protocol: DatagramProtocol, interface: str) -> Any:
        """Listen on a UDP port."""

    def callLater(self, delay: float, call: Callable[[], None], /) -> Any:
        """Call once, later, and return the call so that it can be cancelled."""

    def seconds(self) -> float:
        """Return the time, in seconds."""


class DelayLine:
    """Calls one after the other, with one timer pending however many wait."""

    def __init__(self, reactor: ReactorUDP) -> None:
        self._reactor = reactor
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: Any = None

    def add(self, due_s: float, deliver: Callable[[], None]) -> None:
        """Call ``deliver`` when the reactor's clock reads ``due_s``, no earlier than the last's."""
        self._waiting.append((due_s, deliver))
        if len(self._waiting) == 1:
            self._arm()

    def clear(self) -> None:
        """Forget all that waits."""
        self._waiting.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            wait_s = max(0.0, self._waiting[0][0] - self._reactor.seconds())
            self._timer = self._reactor.callLater(wait_s, self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        while self._waiting and self._waiting[0][0] <= now:
            self._waiting.popleft()[1]()
        if self._timer is None:
            self._arm()


class Direction:
    """One direction of a relay: lets packets through, late, or not at all."""

    def __init__(self, impairment: Impairment, reactor: ReactorUDP, random: Random) -> None:
        self.impairment = impairment
        self.passage = Passage()
        self._reactor = reactor
        self._random = random
        self._line = DelayLine(reactor)
        self._last_due_s = 0.0

    def carry(self, flow: int, send: Callable[[], None]) -> None:
        """Pass one packet of the flow of this number; ``send`` hands it on, may raise `OSError`."""
        what, chance = self.impairment, self._random.random
        if flow % what.paths in what.bad_paths and chance() < what.path_loss:
            self.passage.lost += 1
            return
        now = self._reactor.seconds()
        due = now + what.delay_s
        if what.jitter_s:
            due += self._random.uniform(0.0, what.jitter_s)
        # A link is first in, first out, however much its delay varies.
        due = self._last_due_s = max(due, self._last_due_s)
        if due <= now:
            self._send(send)
        else:
            self._line.add(due, lambda: self._send(send))

    def stop(self) -> None:
        """Forget the packets that are still on their way."""
        self._line.clear()

    def _send(self, send: Callable[[], None]) -> None:
        try:
            send()
        except OSError:
            self.passage.failed += 1
        else:
            self.passage.carried += 1


class Upstream(DatagramProtocol):
    """The socket that one client flow has towards the reflector."""

    noisy = False
    transport: Any  # IUDPTransport, or None while closed

    def __init__(self, relay: Relay, client: Address, flow: int) -> None:
        self.relay = relay
        self.client = client
        self.flow = flow

    def startProtocol(self) -> None:
        """Talk to the reflector alone."""
        self.transport.connect(*self.relay.reflector)

    def send(self, data: bytes) -> None:
        """Hand a client's packet to the reflector; raises `OSError`."""
        if self.transport is None:
            raise OSError(errno.ENOTCONN, "the flow's socket is closed")
        self.transport.write(data)

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        """Pass a reply back to the client."""
        relay, client = self.relay, self.client
        relay.reverse.carry(self.flow, lambda: relay.reply(data, client))


class Relay(DatagramProtocol):
    """The client's side of the relay: listen with it, and probe where it listens.

    ``reflector`` is the address and port to relay to, ``max_flows`` bounds the sockets held: the
    flow that has been silent longest makes room. ``random`` decides every packet's fate, so that
    a seeded one repeats itself.
    """

    noisy = False
    transport: Any  # IUDPTransport, or None while closed
    _log = Logger()

    def __init__(
        self,
        reactor: ReactorUDP,
        reflector: Address,
        *,
        random: Random,
        forward: Impairment | None = None,
        reverse: Impairment | None = None,
        max_flows: int = 1024,
    ) -> None:
        self.reflector = reflector
        self.forward = Direction(forward or Impairment(), reactor, random)
        self.reverse = Direction(reverse or Impairment(), reactor, random)
        self._reactor = reactor
        self._max_flows = max_flows
        self._flows: dict[Address, Upstream] = {}
        self._dealt = itertools.count()
        self._complained = False

    @property
    def flows(self) -> int:
        """How many client flows have a socket now."""
        return len(self._flows)

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        """Pass a client's packet on to the reflector, through its flow's own socket."""
        client: Address = (addr[0], addr[1])
        upstream = self._flows.pop(client, None) or self._open(client)
        if upstream is None:
            self.forward.passage.failed += 1
            return
        self._flows[client] = upstream  # now the last to be evicted
        self.forward.carry(upstream.flow, lambda: upstream.send(data))

    def reply(self, data: bytes, client: Address) -> None:
        """Hand a reflector's packet to its client; raises `OSError`."""
        if self.transport is None:
            raise OSError(errno.ENOTCONN, "the relay is closed")
        self.transport.write(data, client)

    def stop(self) -> Deferred[Any]:
        """Close every socket; fires when they are closed."""
        self.forward.stop()
        self.reverse.stop()
        ports = [upstream.transport for upstream in self._flows.values()]
        self._flows.clear()
        if self.transport is not None:
            ports.append(self.transport)
        return DeferredList(
            [maybeDeferred(port.stopListening) for port in ports if port is not None],
            fireOnOneErrback=True,
            consumeErrors=True,
        )

    def _open(self, client: Address) -> Upstream | None:
        if len(self._flows) >= self._max_flows:
            oldest = self._flows.pop(next(iter(self._flows)))
            if oldest.transport is not None:
                oldest.transport.stopListening()
        upstream = Upstream(self, client, next(self._dealt))
        try:
            self._reactor.listenUDP(0, upstream, interface=client[0])
        except (CannotListenError, OSError) as error:
            if not self._complained:
                self._log.error(
                    "relay to {host}:{port}: no socket for a flow of {client}: {error}",
                    host=self.reflector[0],
                    port=self.reflector[1],
                    client=client[0],
                    error=error,
                )
                self._complained = True
            return None
        return upstream
