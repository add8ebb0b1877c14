"""The hops of flows: which packets of which TTL to send next, and what the answers say. Pure.

A trace belongs to one flow. Packets with TTL 1, 2, 3, ... leave with the flow's own addresses, ports
and class, so every router hashes them as it hashes the flow's probes. What answers is remembered
by TTL; silence is never called loss: routers limit their ICMP or send none. Sending and receiving
is somebody else's business (`llama.cli.trace`, `llama.collector.tracing`).

Anybody can send ICMP errors. What an answer quotes of a packet, a number that was drawn by chance and the
time, shows that it comes from the packet's way; what quotes less, as old routers do (RFC 792 asks for the
UDP header alone), shows nothing, and is believed only where nothing speaks against it: see `heard_bare`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from attrs import define, field, frozen

if TYPE_CHECKING:
    from llama.net.errors import IcmpError

MOST_HOPS = 32
#: A flow has at most this many packets under way, while routers quote enough to tell them apart.
AHEAD = 6
ATTEMPTS = 3
TIMEOUT_S = 1.0
#: After so many silent hops in a row nothing further is tried.
SILENT_HOPS = 4
#: Octets of our payload that prove where an answer comes from: number and time stamp.
PROOF = 12
#: Octets of each packet that are remembered: those, the error estimate and the SSID.
HEAD = 16
#: What is said of a trace that comes through the same routers again and again.
LOOP = "routing loop"
#: An answer that quotes less than that comes so soon, s, or counts as somebody else's.
BARE_S = 0.5


@define
class Hop:
    """What answered at one TTL. RTTs are seconds, from the same flow, the router's slowness included."""

    sent: int = 0
    addresses: list[str] = field(factory=list)  # each once, in the order of their first answer
    rtts: list[float] = field(factory=list)
    #: Whether an answer proved where it comes from; if so, none of the others is among these.
    proven: bool = False
    bare: str = ""  # who answered last without proof

    @property
    def answered(self) -> int:
        """How many packets were answered, late ones included."""
        return len(self.rtts)

    @property
    def rtt_s(self) -> float:
        """The smallest RTT; NaN without any."""
        return min(self.rtts, default=math.nan)

    def forget(self) -> None:
        """Forget all answers."""
        self.addresses.clear()
        self.rtts.clear()
        self.bare = ""


@frozen
class Path:
    """What a trace found: the addresses of hops, None where none answered, the last one included."""

    hops: tuple[str | None, ...]
    rtts_s: tuple[float, ...]  # the smallest of each hop; NaN where none answered
    sent: tuple[int, ...]
    answered: tuple[int, ...]
    #: Whether the destination itself answered; it is the last hop then.
    complete: bool
    #: Why it ended before: an ICMP code in words; "" if nothing was said. And who said it, the last hop.
    refusal: str = ""
    refused_by: str = ""

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
    head: bytes = b""


def drawn_number() -> int:
    """Return a number for a packet that nobody can guess."""
    return secrets.randbits(32)


def drawn_numbers() -> Iterator[int]:
    """Yield such numbers for ever: it is to ask for chance that costs, not how much of it."""
    while True:
        yield from memoryview(secrets.token_bytes(1024)).cast("I")


class FlowTrace:
    """The trace of one flow, from its first packet to its `path`.

    `draw` gives its packets their numbers; nothing else is numbered so. Where the
    destination is known to have been ``expected`` hops away, nothing is sent beyond before that.
    At the TTLs in ``proven`` only answers count that prove where they come from.
    """

    def __init__(
        self,
        draw: Callable[[], int] = drawn_number,
        most_hops: int = MOST_HOPS,
        attempts: int = ATTEMPTS,
        expected: int = 0,
        proven: Collection[int] = (),
    ) -> None:
        self.hops: list[Hop] = []
        self.forged = False  # whether there were answers that no packet explains
        self._draw = draw
        self._proven = proven
        self._most = most_hops
        self._attempts = attempts
        self._expected = expected
        self._destination = 0  # the TTL at which it answered; 0: not yet
        self._under_way: dict[int, _UnderWay] = {}
        self._ever: dict[int, _UnderWay] = {}  # late answers count, too
        self._one_by_one = False
        self._unclear = 0  # bare answers while several packets were under way
        self._refusal = self._refused_by = ""

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
        number = self._draw()
        self._under_way[number] = self._ever[number] = _UnderWay(ttl, now_s)
        return Packet(ttl, number)

    def wait_until(self) -> float | None:
        """Return when the oldest packet under way is given up; None if there is none."""
        oldest = min((packet.sent_s for packet in self._under_way.values()), default=None)
        return None if oldest is None else oldest + TIMEOUT_S

    def sent(self, number: int, payload: bytes) -> None:
        """Remember how the packet of this number began; what answers must repeat it."""
        self._ever[number].head = payload[:HEAD]

    def quoted(self, number: int, quote: bytes) -> bool:
        """Return whether the packet of this number begins with what an answer quotes of it."""
        packet = self._ever.get(number)
        quote = quote[:HEAD]
        return packet is not None and packet.head[: len(quote)] == quote

    def echoed(self, number: int, time_stamp: int) -> bool:
        """Return whether the packet of this number left under this time stamp (64 bits)."""
        packet = self._ever.get(number)
        return packet is not None and packet.head[4:12] == time_stamp.to_bytes(8, "big")

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
        if not hop.proven:
            hop.forget()
            hop.proven = True
        self._enter(hop, address, now_s - packet.sent_s)
        if final and (not self._destination or place < self._destination):
            self._destination, self._refusal = place, refusal
            self._refused_by = address if refusal else ""
            # What was sent beyond it would only come back from there again.
            self._under_way = {
                n: p for n, p in self._under_way.items() if p.ttl <= self._destination
            }
        elif not final and not self._destination:
            self._look_for_loop()

    def _look_for_loop(self) -> None:
        """End the trace where the second round of a loop begins, if it has come to the third."""
        hops = [hop.addresses[0] if hop.addresses else None for hop in self.hops]
        for length in range(2, (len(hops) - 1) // 2 + 1):
            for first in range(len(hops) - 2 * length):
                one, two, again = (hops[first + n * length :][:length] for n in range(3))
                if None not in one and len(set(one)) > 1 and one == two and one[0] == again[0]:
                    self._destination, self._refusal = first + length + 1, LOOP
                    self._refused_by = one[0] or ""
                    self._under_way.clear()
                    return

    def heard_bare(self, address: str, now_s: float, quote: bytes = b"") -> bool:
        """Take an answer that quotes too little to prove anything; return whether it can be true.

        It names a hop and nothing else, and means the one packet that is under way, while that is
        fresh; with several it is not clear which, so from now on there will be one only. It takes two
        such answers to two packets, from a hop that never proved who it is. One that no packet
        explains is forged, so others may be: then this trace believes none of them.
        """
        meant = {n: packet for n, packet in self._under_way.items() if self.quoted(n, quote)}
        fresh = any(
            now_s < packet.sent_s + BARE_S
            and packet.ttl not in self._proven
            and not self.hops[packet.ttl - 1].proven
            for packet in meant.values()
        )
        self._unclear += len(meant) > 1
        if self.forged or not fresh or self._unclear > AHEAD:
            self._believe_no_bare()
            return False
        if len(meant) > 1:
            self._one_by_one = True
        else:
            ((number, packet),) = meant.items()
            del self._under_way[number]
            hop = self.hops[packet.ttl - 1]
            if address == hop.bare:
                self._enter(hop, address, now_s - packet.sent_s)
            hop.bare = address
        return True

    def _believe_no_bare(self) -> None:
        self.forged = True
        self._one_by_one = False
        for hop in self.hops:
            if not hop.proven:
                hop.forget()

    @staticmethod
    def _enter(hop: Hop, address: str, rtt_s: float) -> None:
        hop.rtts.append(rtt_s)
        if address not in hop.addresses:
            hop.addresses.append(address)

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
        for attempt in range(self._attempts + 1):
            for ttl in range(1, end + 1):
                hop = self.hops[ttl - 1] if ttl <= len(self.hops) else None
                if hop is None:
                    return ttl
                # Once more where the first answer asks for a second.
                left = attempt < self._attempts or bool(hop.bare)
                if left and hop.sent <= attempt and not hop.rtts and ttl not in waiting:
                    return ttl
        return None

    def path(self) -> Path:
        """Return what was found so far, without the silent hops after the last that answered.

        A router refuses what it should forward, so it was a hop before, at a smaller TTL: it counts
        where it answered first.
        """
        reach = max((n for n, hop in enumerate(self.hops, 1) if hop.rtts), default=0)
        hops = self.hops[: self._destination or reach]
        for n, hop in enumerate(hops, 1):
            if self._refusal not in ("", LOOP) and self._refused_by in hop.addresses:
                hops = hops[:n]
                break
        return Path(
            hops=tuple(hop.addresses[0] if hop.addresses else None for hop in hops),
            rtts_s=tuple(hop.rtt_s for hop in hops),
            sent=tuple(hop.sent for hop in hops),
            answered=tuple(hop.answered for hop in hops),
            complete=bool(self._destination) and not self._refusal,
            refusal=self._refusal,
            refused_by=self._refused_by,
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


@frozen
class Judged:
    """What an ICMP error says about a trace, if it is true."""

    #: Of the packet that it quotes; None: it quotes too little to prove that it comes from its way.
    number: int | None
    quote: bytes  #: of our payload, `HEAD` octets at most
    final: bool = False
    refusal: str = ""


def judged(error: IcmpError, target: str) -> Judged | None:
    """Return what an error says about a trace to an address; None if nothing.

    Whether it is true is for `FlowTrace.quoted` to tell or, without a number, for
    `FlowTrace.heard_bare`: without proof it can only name a hop.
    """
    said = meaning(error.version, error.kind, error.code)
    if said is None:
        return None
    final, refusal = said
    quote = error.payload[:HEAD]
    if len(quote) < PROOF or not any(quote):  # zeros are padding (RFC 4884 section 3)
        return None if final else Judged(None, quote.rstrip(b"\0"))
    if final and not refusal and error.offender != target:
        refusal = "port unreachable"  # said by somebody else, in the target's name
    return Judged(int.from_bytes(quote[:4], "big"), quote, final, refusal)


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
