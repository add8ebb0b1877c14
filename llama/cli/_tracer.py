"""Traces flows to one address, for ``llama trace``: sends, listens, and counts what comes back."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import Any

import click
from attrs import define, field

from llama.collector.probing.reflectors import LIMITED, OVERFLOWED
from llama.net import errors, mmsg
from llama.net.lookup import socket_address
from llama.paths.trace import MOST_HOPS, FlowTrace, Packet, drawn_number, in_turn, judged
from llama.wire import stamp, tlv

#: Packets a second in all, so that routers that limit their ICMP still answer most.
RATE_PPS = 200
END_TO_END_TIMEOUT_S = 1.0
#: Set in the numbers of packets that go from end to end, not in those of traces.
END_TO_END = 1 << 31


@define
class Flow:
    """One source port and its trace."""

    sock: socket.socket
    trace: FlowTrace
    sent: int = 0  # end to end
    received: int = 0
    waiting: dict[int, int] = field(factory=dict)  # number -> time stamp, of those end to end

    @property
    def port(self) -> int:
        """The source port."""
        return int(self.sock.getsockname()[1])


class Tracer:
    """Traces flows to one address, each from a socket of its own."""

    def __init__(
        self,
        info: tuple[Any, ...],
        dscp: int,
        size: int,
        source: str | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.family, _, _, _, self.to = info
        self.version = 4 if self.family == socket.AF_INET else 6
        self.size = max(size, stamp.BASE_SIZE)
        self.flows: list[Flow] = []
        self._whole = whole  # no packet may be fragmented
        self._source = source or ("0.0.0.0" if self.version == 4 else "::")  # noqa: S104
        level = (
            (mmsg.SOL_IP, mmsg.IP_TOS) if self.version == 4 else (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS)
        )
        self._tos = (*level, struct.pack("=i", dscp << 2))
        self._ttl = (
            (mmsg.SOL_IP, mmsg.IP_TTL) if self.version == 4 else (mmsg.SOL_IPV6, mmsg.IPV6_HOPLIMIT)
        )
        self._epoll = select.epoll()
        self._by_fd: dict[int, Flow] = {}
        self._numbers: set[int] = set()
        self._not_before = 0.0
        # What reflectors, by when they were started, told of their drops: full buffers, and limits.
        self._told: dict[int, set[tuple[int, int]]] = {}
        room = self.size - stamp.BASE_SIZE
        asks = room == tlv.SIZE or room >= tlv.SIZE + 4
        self._tlvs = tlv.request(dscp, room) if asks else bytes(room)

    def close(self) -> None:
        """Close all sockets."""
        for flow in self.flows:
            flow.sock.close()
        self._epoll.close()

    def add(self, count: int, first_port: int | None = None, most_hops: int = MOST_HOPS) -> None:
        """Add flows from further source ports; raises `OSError` if a port cannot be had."""
        for n in range(count):
            sock = socket.socket(self.family, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                if self._whole:
                    mmsg.forbid_fragments(sock)
                else:
                    mmsg.believe_no_path_mtu(sock)
                number = 0 if first_port is None else first_port + n
                sock.bind(socket_address(self._source, number))
                errors.enable(sock)
            except OSError:
                sock.close()
                raise
            flow = Flow(sock, FlowTrace(self._draw, most_hops))
            self.flows.append(flow)
            self._by_fd[sock.fileno()] = flow
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _draw(self) -> int:
        """Return a number that nobody can guess, and that none of our packets has yet."""
        while (number := drawn_number() & ~END_TO_END) in self._numbers:
            pass
        self._numbers.add(number)
        return number

    def drop_untouched(self) -> None:
        """Let go of the flows of which nothing was sent."""
        begun = [flow for flow in self.flows if flow.sent or flow.trace.hops]
        for flow in self.flows:
            if flow not in begun:
                flow.sock.close()
        self.flows = begun

    def _send(self, flow: Flow, packet: Packet) -> None:
        """Send a STAMP probe, in a session of its own."""
        control = [self._tos, (*self._ttl, struct.pack("=i", packet.ttl))]
        now = stamp.ntp_from_unix_ns(time.time_ns())
        probe = stamp.SENDER_STRUCT.pack(packet.number, now, stamp.error_estimate(None), 0xFFFF)
        if packet.number & END_TO_END:
            flow.waiting[packet.number] = now
            probe += self._tlvs
        else:
            flow.trace.sent(packet.number, probe)
            probe += bytes(self.size - len(probe))
        with contextlib.suppress(OSError):
            errors.send(flow.sock, probe, control, self.to)
            return
        # Whoever hears no ICMP meets no errors of others: what the kernel says now is of this target.
        errors.disable(flow.sock)
        try:
            flow.sock.sendmsg([probe], control, 0, self.to)
        except OSError as reason:
            raise click.ClickException(f"cannot send to {self.to[0]}: {reason.strerror}") from None
        finally:
            errors.enable(flow.sock)

    def run(self, flows: list[Flow]) -> None:
        """Trace these flows to their end."""
        traces = {id(flow.trace): flow for flow in flows}
        while not all(flow.trace.finished for flow in flows):
            for trace, packet in in_turn([flow.trace for flow in flows], time.monotonic):
                self._send(traces[id(trace)], packet)
                self._pace()
            ends = [end for flow in flows if (end := flow.trace.wait_until()) is not None]
            if ends:
                self._listen(min(ends))

    def measure(self, flows: list[Flow], count: int) -> None:
        """Send `count` probes over every flow from end to end, and count what comes back."""
        for n in range(count):
            for flow in flows:
                self._send(flow, Packet(64, END_TO_END | n))
                flow.sent += 1
                self._pace()
        self.wait_for_replies(flows)

    def wait_for_replies(self, flows: list[Flow]) -> None:
        """Wait for the replies to what went from end to end, but not for ever."""
        end = time.monotonic() + END_TO_END_TIMEOUT_S
        while time.monotonic() < end and any(flow.received < flow.sent for flow in flows):
            self._listen(end)

    def _pace(self) -> None:
        """Wait for the next packet's turn, reading what comes meanwhile."""
        self._not_before = max(self._not_before, time.monotonic()) + 1 / RATE_PPS
        while time.monotonic() < self._not_before:
            self._listen(self._not_before)

    def _listen(self, until: float) -> None:
        """Read what comes until then, and return after the first of it."""
        for fd, _ in self._epoll.poll(max(0.0, until - time.monotonic())):
            flow = self._by_fd[fd]
            now = time.monotonic()
            for error in errors.read(flow.sock):
                self._error(flow, error, now)
            self._replies(flow, now)

    def _error(self, flow: Flow, error: errors.IcmpError, now: float) -> None:
        said = judged(error, self.to[0].partition("%")[0])
        if said is None:
            return
        if said.number is None:
            if self.version == 4:
                flow.trace.heard_bare(error.offender, now, said.quote)
        elif flow.trace.quoted(said.number, said.quote):
            flow.trace.heard(
                said.number, error.offender, now, final=said.final, refusal=said.refusal
            )

    def _hear_state(self, told: tlv.Answer) -> None:
        if told.started_ns:
            drops = self._told.setdefault(told.started_ns, set())
            drops.add((told.receive_drops, told.guard_drops))

    def doubts(self) -> list[str]:
        """Return what of the loss the reflector itself says it caused, or may have."""
        found = []
        for which, what in enumerate((OVERFLOWED, LIMITED)):
            if any(len({drops[which] for drops in told}) > 1 for told in self._told.values()):
                found.append(what)
        return found

    def _replies(self, flow: Flow, now: float) -> None:
        while True:
            try:
                reply, sender = flow.sock.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError as reason:
                if reason.errno not in errors.PASSING:
                    raise
                continue
            if len(reply) < 38 or sender[1] != self.to[1]:
                continue
            number, time_stamp = struct.unpack_from("!IQ", reply, 24)
            if flow.waiting.get(number) == time_stamp:
                del flow.waiting[number]
                flow.received += 1
                self._hear_state(tlv.read_one(memoryview(reply)[stamp.BASE_SIZE :]))
            elif flow.trace.echoed(number, time_stamp):
                flow.trace.heard(
                    number,
                    sender[0].partition("%")[0],
                    now,
                    final=True,
                    ttl_there=reply[40] if len(reply) > 40 else 1,
                )
