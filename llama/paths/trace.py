"""The hops of flows: which packets of which TTL to send next, and what the answers say. Pure.

A trace belongs to one flow. Packets with TTL 1, 2, 3, ... leave with the flow's own addresses, ports
and class, so every router hashes them as it hashes the flow's probes. What answers is remembered
by TTL; silence is never called loss: routers limit their ICMP or send none. Sending and receiving
is somebody else's business (`llama.cli.trace`, `llama.collector.tracing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from attrs import define, field, frozen

MOST_HOPS = 32
#: A flow has at most this many packets under way, while routers quote enough to tell them apart.
AHEAD = 6
ATTEMPTS = 3
TIMEOUT_S = 1.0
#: After so many silent hops in a row nothing further is tried.
SILENT_HOPS = 4


@define
class Hop:
    """What answered at one TTL. RTTs are seconds, from the same flow, the router's slowness included."""

    sent: int = 0
    addresses: list[str] = field(factory=list)  # each once, in the order of their first answer
    rtts: list[float] = field(factory=list)

    @property
    def answered(self) -> int:
        """How many packets were answered, late ones included."""
        return len(self.rtts)

    @property
    def rtt_s(self) -> float:
        """The smallest RTT; NaN without any."""
        return min(self.rtts, default=math.nan)


@frozen
class Path:
    """What a trace found: the addresses of hops, None where none answered, the last one included."""

    hops: tuple[str | None, ...]
    rtts_s: tuple[float, ...]  # the smallest of each hop; NaN where none answered
    sent: tuple[int, ...]
    answered: tuple[int, ...]
    #: Whether the destination itself answered; it is the last hop then.
    complete: bool
    #: Why it ended before: an ICMP code in words, from the last hop; "" if nothing was said.
    refusal: str = ""

    @property
    def reach(self) -> int:
        """The last hop that answered, counted from 1; 0 if none did."""
        return max((n for n, hop in enumerate(self.hops, 1) if hop is not None), default=0)


@frozen
class Packet:
    """A packet to send: with this TTL, under this number, which answers should quote."""

    ttl: int
    number: int


@define
class _UnderWay:
    ttl: int
    sent_s: float


class FlowTrace:
    """The trace of one flow, from its first packet to its `path`.

    `first_number` begins the numbers of its packets; nothing else is numbered so. Where the
    destination is known to have been ``expected`` hops away, nothing is sent beyond before that.
    """

    def __init__(
        self,
        first_number: int = 0,
        most_hops: int = MOST_HOPS,
        attempts: int = ATTEMPTS,
        expected: int = 0,
    ) -> None:
        self.hops: list[Hop] = []
        self._next_number = first_number
        self._most = most_hops
        self._attempts = attempts
        self._expected = expected
        self._destination = 0  # the TTL at which it answered; 0: not yet
        self._under_way: dict[int, _UnderWay] = {}
        self._ever: dict[int, _UnderWay] = {}  # late answers count, too
        self._one_by_one = False
        self._refusal = ""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be sent or waited for."""
        return not self._under_way and self._wanted() is None

    def next(self, now_s: float) -> Packet | None:
        """Return the packet to send now, or None: for good, or until `wait_until`."""
        self._time_out(now_s)
        room = 1 if self._one_by_one else AHEAD
        if len(self._under_way) >= room:
            return None
        ttl = self._wanted()
        if ttl is None:
            return None
        while len(self.hops) < ttl:
            self.hops.append(Hop())
        self.hops[ttl - 1].sent += 1
        number = self._next_number
        self._next_number += 1
        self._under_way[number] = self._ever[number] = _UnderWay(ttl, now_s)
        return Packet(ttl, number)

    def wait_until(self) -> float | None:
        """Return when the oldest packet under way is given up; None if there is none."""
        oldest = min((packet.sent_s for packet in self._under_way.values()), default=None)
        return None if oldest is None else oldest + TIMEOUT_S

    def owns(self, number: int) -> bool:
        """Return whether a packet of this number was sent by this trace."""
        return number in self._ever

    def unquoted(self) -> int | None:
        """Return the number of the packet that an answer without our octets must mean.

        A router that quotes only 8 octets of UDP does not say which packet it means. With one
        under way it is clear; with several it is not, so from now on there will be one only.
        """
        self._one_by_one = True
        return next(iter(self._under_way)) if len(self._under_way) == 1 else None

    def heard(
        self,
        number: int,
        address: str,
        now_s: float,
        *,
        final: bool = False,
        refusal: str = "",
        ttl_there: int = 1,
    ) -> None:
        """Take an answer to a packet. `final`: from the destination itself, or ended by `refusal`.

        `ttl_there` is what was left of the packet's TTL at the destination, where that is known:
        more than 1, and it is nearer than the packet could have gone.
        """
        self._under_way.pop(number, None)
        packet = self._ever.get(number)
        if packet is None:
            return
        place = max(1, packet.ttl - max(0, ttl_there - 1)) if final else packet.ttl
        hop = self.hops[place - 1]
        hop.rtts.append(now_s - packet.sent_s)
        if address not in hop.addresses:
            hop.addresses.append(address)
        if final and (not self._destination or place < self._destination):
            self._destination, self._refusal = place, refusal
            # What was sent beyond it would only come back from there again.
            self._under_way = {
                n: p for n, p in self._under_way.items() if p.ttl <= self._destination
            }

    def _time_out(self, now_s: float) -> None:
        gone = [n for n, p in self._under_way.items() if now_s >= p.sent_s + TIMEOUT_S]
        for number in gone:
            del self._under_way[number]

    def _wanted(self) -> int | None:
        """Return the TTL that should be sent next: every one once, then those that were silent."""
        reach = max((n for n, hop in enumerate(self.hops, 1) if hop.rtts), default=0)
        end = self._destination or min(self._most, reach + SILENT_HOPS)
        waiting = {packet.ttl for packet in self._under_way.values()}
        if len(self.hops) < self._expected or self._expected in waiting:
            end = min(end, self._expected)
        for attempt in range(self._attempts):
            for ttl in range(1, end + 1):
                hop = self.hops[ttl - 1] if ttl <= len(self.hops) else None
                if hop is None or (hop.sent <= attempt and not hop.rtts and ttl not in waiting):
                    return ttl
        return None

    def path(self) -> Path:
        """Return what was found so far, without the silent hops after the last that answered."""
        reach = max((n for n, hop in enumerate(self.hops, 1) if hop.rtts), default=0)
        hops = self.hops[: self._destination or reach]
        return Path(
            hops=tuple(hop.addresses[0] if hop.addresses else None for hop in hops),
            rtts_s=tuple(hop.rtt_s for hop in hops),
            sent=tuple(hop.sent for hop in hops),
            answered=tuple(hop.answered for hop in hops),
            complete=bool(self._destination) and not self._refusal,
            refusal=self._refusal,
        )


#: ICMP destination unreachable, by code, in words (RFC 792, RFC 1812 section 5.2.7.1).
UNREACHABLE = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    4: "packet too big",
    5: "source route failed",
    9: "network prohibited",
    10: "host prohibited",
    13: "administratively prohibited",
}
#: Likewise for ICMPv6 (RFC 4443 section 3.1).
UNREACHABLE6 = {
    0: "no route",
    1: "administratively prohibited",
    2: "beyond scope",
    3: "address unreachable",
    5: "source address refused",
    6: "route rejected",
}


def meaning(version: int, kind: int, code: int) -> tuple[bool, str] | None:
    """Return what an ICMP error says about a trace: (final, refusal); None if nothing.

    Time exceeded is a hop. Port unreachable is the destination. Other unreachables end the trace
    before it.
    """
    if version == 4:
        exceeded, unreachable, port, words = 11, 3, 3, UNREACHABLE
    else:
        exceeded, unreachable, port, words = 3, 1, 4, UNREACHABLE6
        if kind == 2:
            return True, UNREACHABLE[4]
    if kind == exceeded:
        # Code 1 is a failed reassembly at the destination.
        return (False, "") if code == 0 else None
    if kind != unreachable:
        return None
    return (True, "") if code == port else (True, words.get(code, f"unreachable, code {code}"))


def in_turn(
    traces: list[FlowTrace], now_s: Callable[[], float]
) -> Iterator[tuple[FlowTrace, Packet]]:
    """Yield packets to send at once, one of each trace in turn, until none has any."""
    going = list(traces)
    while going:
        still = []
        for trace in going:
            packet = trace.next(now_s())
            if packet is not None:
                yield trace, packet
                still.append(trace)
        going = still
