"""``llama trace``: the equal-cost paths to a target, flow by flow, without root."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path as File
from typing import Any

import click
from attrs import define, field
from rich.console import Console
from rich.text import Text

from llama.config.dscp import dscp_number
from llama.net import errors, mmsg
from llama.paths import multipath
from llama.paths.names import ask, read_names
from llama.paths.trace import (
    HEAD,
    MOST_HOPS,
    PROOF,
    FlowTrace,
    Packet,
    Path,
    drawn_number,
    in_turn,
    meaning,
)
from llama.printable import printable
from llama.wire import stamp

#: Packets a second in all, so that routers that limit their ICMP still answer most.
RATE_PPS = 200
#: Flows at most, whatever the stopping rule wants.
MOST_FLOWS = 1024
LAST_PORT = 65535
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

    def __init__(self, info: tuple[Any, ...], dscp: int, size: int, source: str | None) -> None:
        self.family, _, _, _, self.to = info
        self.version = 4 if self.family == socket.AF_INET else 6
        self.size = max(size, stamp.BASE_SIZE)
        self.flows: list[Flow] = []
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

    def close(self) -> None:
        """Close all sockets."""
        for flow in self.flows:
            flow.sock.close()
        self._epoll.close()

    def add(self, count: int, first_port: int | None = None, most_hops: int = MOST_HOPS) -> None:
        """Add flows from further source ports; raises `OSError` if a port cannot be had."""
        for n in range(count):
            sock = socket.socket(self.family, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.bind((self._source, 0 if first_port is None else first_port + n))
            errors.enable(sock)
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
        said = meaning(error.version, error.kind, error.code)
        if said is None:
            return
        quote = error.payload[:HEAD]
        if len(quote) < PROOF or not any(quote):  # zeros are padding (RFC 4884 section 3)
            if said == (False, "") and self.version == 4:
                flow.trace.heard_bare(error.offender, now, quote.rstrip(b"\0"))
            return
        number = int.from_bytes(quote[:4], "big")
        if not flow.trace.quoted(number, quote):
            return
        final, refusal = said
        if not refusal and final and error.offender != self.to[0].partition("%")[0]:
            refusal = "port unreachable"  # said by somebody else, in the target's name
        flow.trace.heard(number, error.offender, now, final=final, refusal=refusal)

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
            elif flow.trace.echoed(number, time_stamp):
                flow.trace.heard(
                    number,
                    sender[0].partition("%")[0],
                    now,
                    final=True,
                    ttl_there=reply[40] if len(reply) > 40 else 1,
                )


def namer(names: File | None, resolve: bool) -> Callable[[str], str]:
    """Return what names addresses: a file like /etc/hosts, then reverse DNS if wanted.

    Raises `click.ClickException` for a file that cannot be read.
    """
    try:
        known = {} if names is None else read_names(names)
    except UnicodeDecodeError:
        raise click.ClickException(
            f"{names}: not UTF-8; expected one 'ADDRESS NAME' a line, like /etc/hosts"
        ) from None
    except OSError as e:
        raise click.ClickException(f"{names}: {e.strerror}") from None

    def name(address: str) -> str:
        if address not in known:
            known[address] = ask(address) if resolve else address
        return known[address]

    return name


def _as_json(tracer: Tracer, target: str, made: multipath.Graph, name: Callable[[str], str]) -> str:
    flows = []
    for flow in tracer.flows:
        path = flow.trace.path()
        flows.append(
            {
                "source_port": flow.port,
                "complete": path.complete,
                "refusal": path.refusal or None,
                "refused_by": path.refused_by or None,
                "sent": flow.sent,
                "received": flow.received,
                "hops": [
                    {
                        "ttl": ttl,
                        "address": address,
                        "name": None if address is None else name(address),
                        "addresses": flow.trace.hops[ttl - 1].addresses,
                        "rtt_ms": None if math.isnan(rtt_s) else round(rtt_s * 1e3, 3),
                        "sent": sent,
                        "answered": answered,
                    }
                    for ttl, (address, rtt_s, sent, answered) in enumerate(
                        zip(path.hops, path.rtts_s, path.sent, path.answered, strict=True), 1
                    )
                ],
            }
        )
    return json.dumps(
        {
            "target": target,
            "address": tracer.to[0],
            "port": tracer.to[1],
            "paths": made.paths,
            "confidence": round(made.confidence(), 4),
            "flows": flows,
        },
        indent=1,
    )


def draw(made: multipath.Graph, console: Console) -> None:
    """Draw the graph from left to right, or, where it is too wide, as a list."""

    def label(node: multipath.Node) -> str:
        if node.ttl == 0:
            return f" {node.name} "
        rtt = "" if math.isnan(node.rtt_s) else f" {node.rtt_s * 1e3:.2f} ms"
        loss = f" ■{node.lossy}" if node.lossy else ""
        return f" {node.name} ×{node.flows}{loss}{rtt} "  # noqa: RUF001 - a multiplication sign

    lines = multipath.picture(made, label)
    if max(map(len, lines)) <= console.width:
        for line in lines:
            text = Text(printable(line), no_wrap=True)
            text.highlight_regex("■[0-9]+", "bold red")
            console.print(text)
        return
    for ttl in range(made.depth + 1):
        for node in made.layer(ttl):
            nexts = ", ".join(f"{name} ×{flows}" for name, flows in sorted(node.next.items()))  # noqa: RUF001
            line = f"{ttl:2} {label(node)}" + (f"→ {nexts}" if nexts else "")
            console.print(printable(line), markup=False, highlight=False)


def _verdicts(flows: Iterable[Flow]) -> list[tuple[Path, bool]]:
    return [(flow.trace.path(), flow.received < flow.sent) for flow in flows]


@click.command()
@click.argument("target", metavar="TARGET[:PORT]")
@click.option(
    "--port",
    "-p",
    type=click.IntRange(1, LAST_PORT),
    default=8100,
    show_default=True,
    help="UDP port of the target.",
)
@click.option(
    "--flows",
    "-n",
    type=click.IntRange(1, MOST_FLOWS),
    help="Flows to trace.  [default: as many as it takes]",
)
@click.option("--class", "class_name", default="BE", show_default=True, help="Traffic class.")
@click.option(
    "--size",
    default=44,
    show_default=True,
    type=click.IntRange(44, 9000),
    help="Octets of UDP payload.",
)
@click.option(
    "--from-port",
    type=click.IntRange(1, LAST_PORT),
    help="First source port.  [default: the system's choice]",
)
@click.option("--source", help="Address to send from.")
@click.option("-4", "version", flag_value=4, type=int, help="IPv4 only.")
@click.option("-6", "version", flag_value=6, type=int, help="IPv6 only.")
@click.option(
    "--probes",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Sent over each flow to see loss; 0: none.",
)
@click.option(
    "--names",
    type=click.Path(exists=True, dir_okay=False, path_type=File),
    help="File of names, like /etc/hosts.",
)
@click.option("--no-dns", is_flag=True, help="Do not ask the DNS for names.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def trace(
    target: str,
    port: int,
    flows: int | None,
    class_name: str,
    size: int,
    from_port: int | None,
    source: str | None,
    version: int | None,
    probes: int,
    names: File | None,
    no_dns: bool,
    as_json: bool,
) -> None:
    """Show the paths that the flows to TARGET take, with loss and round trip of every hop.

    Without --flows it goes on until every branching has shown all of its next hops with 95 %
    confidence. A hop that does not answer is drawn as *; that is not loss. Loss (■) is counted
    from end to end, of flows. Ctrl-C ends it and shows what was found so far. The exit status is
    1 if no flow reached TARGET.
    """
    if not mmsg.AVAILABLE:
        raise click.ClickException("traces need 64-bit Linux (IP_RECVERR)")
    from llama.cli.send import parse_target

    try:
        dscp = dscp_number(class_name)
        host, port = parse_target(target, port)
    except ValueError as e:
        raise click.ClickException(str(e)) from None
    try:
        family = {4: socket.AF_INET, 6: socket.AF_INET6, None: socket.AF_UNSPEC}[version]
        info = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)[0]
    except (OSError, UnicodeError):
        wanted = "" if version is None else f" to an IPv{version} address"
        raise click.ClickException(f"{host} does not resolve{wanted}") from None
    if from_port is not None and from_port + (flows or 1) - 1 > LAST_PORT:
        most = LAST_PORT - from_port + 1
        raise click.ClickException(
            f"--from-port {from_port} leaves {most} ports up to {LAST_PORT}; give --flows {most} or"
            " less, or a lower port"
        )
    tracer = Tracer(info, dscp, size, source)
    try:
        console = Console()
        name = namer(names, not no_dns)
        with console.status(f"tracing {target}", spinner="dots"):
            made = _trace(tracer, flows, from_port, probes, name)
        if as_json:
            click.echo(_as_json(tracer, target, made, name))
        else:
            draw(made, console)
            _summary(tracer, made, probes)
        if not any(flow.trace.path().complete for flow in tracer.flows):
            raise click.exceptions.Exit(1)
    except OSError as e:
        raise click.ClickException(f"{e.strerror}; {_advice(e)}") from None
    finally:
        tracer.close()


def _advice(problem: OSError) -> str:
    """Return what to do about sockets that cannot be had."""
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        return "every flow has a socket: give fewer --flows, or allow more with: ulimit -n 2048"
    return "choose other --source or --from-port"


def _trace(
    tracer: Tracer,
    flows: int | None,
    from_port: int | None,
    probes: int,
    name: Callable[[str], str],
) -> multipath.Graph:
    """Trace as many flows as were asked for, or as it takes, and return their graph."""
    room = MOST_FLOWS if from_port is None else min(MOST_FLOWS, LAST_PORT - from_port + 1)
    more = flows or min(room, multipath.enough(1))
    try:
        while more > 0:
            first = None if from_port is None else from_port + len(tracer.flows)
            tracer.add(more, first)
            new = tracer.flows[-more:]
            tracer.run(new)
            if probes:
                tracer.measure(new, probes)
            wanting = multipath.graph(_verdicts(tracer.flows), "here", name).wanting()
            more = 0 if flows is not None else min(wanting, room - len(tracer.flows))
    except KeyboardInterrupt:
        tracer.drop_untouched()
        if not tracer.flows:
            raise
        click.echo("interrupted: this is what was found so far", err=True)
        tracer.wait_for_replies(tracer.flows)  # or they would count as lost
    return multipath.graph(_verdicts(tracer.flows), "here", name)


def _summary(tracer: Tracer, made: multipath.Graph, probes: int) -> None:
    """Say in words what was found."""
    count = len(tracer.flows)
    complete = sum(flow.trace.path().complete for flow in tracer.flows)
    click.echo(
        f"{count} flows, {made.paths} paths; no other with {100 * made.confidence():.0f} %"
        f" confidence; {complete} flows reached {tracer.to[0]}"
    )
    for refusal in sorted({flow.trace.path().refusal for flow in tracer.flows} - {""}):
        who = {
            flow.trace.path().refused_by
            for flow in tracer.flows
            if flow.trace.path().refusal == refusal
        }
        click.echo(f"{refusal}, says {', '.join(sorted(who))}")
    lossy = [flow for flow in tracer.flows if flow.received < flow.sent]
    refused = all(flow.trace.path().refusal for flow in tracer.flows)
    none_received = len(lossy) == count and not any(flow.received for flow in tracer.flows)
    if probes and none_received and not refused:
        click.echo(f"no reply from port {tracer.to[1]} at all: is a reflector running there?")
    elif lossy:
        ports = ", ".join(
            f"{flow.port} ({100 * (1 - flow.received / flow.sent):.0f} %)" for flow in lossy[:16]
        )
        click.echo(f"{len(lossy)} flows lose probes, by source port: {ports}")
