"""``llama trace``: the equal-cost paths to a target, flow by flow, without root."""

from __future__ import annotations

import errno
import json
import math
import socket
from collections.abc import Callable, Iterable
from pathlib import Path as File

import click
from rich.console import Console
from rich.text import Text

from llama.cli._names import namer
from llama.cli._options import MOST_FLOWS, parse_target, require_ends, warn_of_refused
from llama.cli._output import unwritten
from llama.cli._tracer import Flow, Tracer
from llama.config.dscp import dscp_number
from llama.net import mmsg
from llama.paths import multipath
from llama.paths.trace import LOOP, Path
from llama.printable import printable

LAST_PORT = 65535


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
            "suspect": tracer.doubts(),
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
@click.option("--port", "-p", type=click.IntRange(1, LAST_PORT), default=8100, hidden=True)
@click.option(
    "--flows",
    "-f",
    "-n",
    type=click.IntRange(1, MOST_FLOWS),
    help="Flows to trace.  [default: as many as it takes]",
)
@click.option(
    "--dscp",
    "-q",
    "--class",
    metavar="CLASS",
    default="BE",
    show_default=True,
    help="Traffic class, by name (EF, AF11, CS6 ...) or number.",
)
@click.option(
    "--size",
    "-s",
    default=96,
    show_default=True,
    type=click.IntRange(44, 9000),
    help="Octets of UDP payload; with less than 96 the reflector cannot say what it dropped itself.",
)
@click.option(
    "--source-port",
    "--from-port",
    type=click.IntRange(1, LAST_PORT),
    metavar="PORT",
    help="First source port; further flows count up.  [default: any]",
)
@click.option(
    "--df", is_flag=True, help="Forbid fragmentation, and ignore what the MTU is said to be."
)
@click.option("--family", type=click.Choice(["any", "4", "6"]), default="any", show_default=True)
@click.option("-4", "version", flag_value="4", hidden=True)
@click.option("-6", "version", flag_value="6", hidden=True)
@click.option("--source", metavar="ADDRESS", help="Local address to send from.")
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
    dscp: str,
    size: int,
    df: bool,
    source_port: int | None,
    family: str,
    version: str | None,
    source: str | None,
    probes: int,
    names: File | None,
    no_dns: bool,
    as_json: bool,
) -> None:
    """Show the paths that the flows to TARGET take, with loss and round trip of every hop.

    Without --flows it goes on until every branching has shown all of its next hops with 95 %
    confidence. A hop that does not answer is drawn as *; that is not loss. Loss (■) is counted
    from end to end, of flows. Ctrl-C ends it and shows what was found so far. The exit status is
    1 if no flow reached TARGET, 2 for wrong usage.
    """
    if not mmsg.AVAILABLE:
        raise click.ClickException("traces need 64-bit Linux (IP_RECVERR)")
    try:
        number = dscp_number(dscp)
        host, port = parse_target(target, port)
        require_ends(host, source)
    except ValueError as e:
        raise click.UsageError(str(e)) from None
    if version is not None and family not in ("any", version):
        raise click.UsageError(f"-{version} and --family {family} are given, expected one of them")
    family = version or family
    try:
        kind = {"4": socket.AF_INET, "6": socket.AF_INET6, "any": socket.AF_UNSPEC}[family]
        info = socket.getaddrinfo(host, port, kind, socket.SOCK_DGRAM)[0]
    except (OSError, UnicodeError):
        wanted = "" if family == "any" else f" to an IPv{family} address"
        raise click.UsageError(f"{host} does not resolve{wanted}") from None
    if source_port is not None and source_port + (flows or 1) - 1 > LAST_PORT:
        most = LAST_PORT - source_port + 1
        raise click.UsageError(
            f"--source-port {source_port} leaves {most} ports up to {LAST_PORT}; give --flows {most} or"
            " less, or a lower port"
        )
    tracer = Tracer(info, number, size, source, whole=df)
    try:
        console = Console()
        name = namer(names, not no_dns)
        with console.status(f"tracing {target}", spinner="dots"):
            made = _trace(tracer, flows, source_port, probes, name)
        if as_json:
            click.echo(_as_json(tracer, target, made, name))
        else:
            draw(made, console)
            _summary(tracer, made, probes)
        if not any(flow.trace.path().complete for flow in tracer.flows):
            raise click.exceptions.Exit(1)
    except OSError as e:
        if unwritten(e):
            raise
        raise click.ClickException(f"{e.strerror}; {_advice(e)}") from None
    finally:
        tracer.close()


def _advice(problem: OSError) -> str:
    """Return what to do about sockets that cannot be had."""
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        return "every flow has a socket: give fewer --flows, or allow more with: ulimit -n 2048"
    return "choose other --source or --source-port"


def _trace(
    tracer: Tracer,
    flows: int | None,
    source_port: int | None,
    probes: int,
    name: Callable[[str], str],
) -> multipath.Graph:
    """Trace as many flows as were asked for, or as it takes, and return their graph."""
    room = MOST_FLOWS if source_port is None else min(MOST_FLOWS, LAST_PORT - source_port + 1)
    more = flows or min(room, multipath.enough(1))
    try:
        while more > 0:
            first = None if source_port is None else source_port + len(tracer.flows)
            tracer.add(more, first)
            new = tracer.flows[-more:]
            warn_of_refused(flow.port for flow in new)
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


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _summary(tracer: Tracer, made: multipath.Graph, probes: int) -> None:
    """Say in words what was found."""
    count = len(tracer.flows)
    complete = sum(flow.trace.path().complete for flow in tracer.flows)
    click.echo(
        f"{_some(count, 'flow')}, {_some(made.paths, 'path')}; no other with"
        f" {100 * made.confidence():.0f} % confidence;"
        f" {_some(complete, 'flow')} reached {tracer.to[0]}"
    )
    for refusal in sorted({flow.trace.path().refusal for flow in tracer.flows} - {""}):
        who = {
            flow.trace.path().refused_by
            for flow in tracer.flows
            if flow.trace.path().refusal == refusal
        }
        says = "by way of" if refusal == LOOP else "says"
        click.echo(f"{refusal}, {says} {', '.join(sorted(who))}")
    lossy = [flow for flow in tracer.flows if flow.received < flow.sent]
    refused = all(flow.trace.path().refusal for flow in tracer.flows)
    none_received = len(lossy) == count and not any(flow.received for flow in tracer.flows)
    if probes and none_received and not refused:
        click.echo(f"no reply from port {tracer.to[1]} at all: is a reflector running there?")
    elif lossy:
        ports = ", ".join(
            f"{flow.port} ({100 * (1 - flow.received / flow.sent):.0f} %)" for flow in lossy[:16]
        )
        lose = "loses" if len(lossy) == 1 else "lose"
        click.echo(f"{_some(len(lossy), 'flow')} {lose} probes, by source port: {ports}")
        for doubt in tracer.doubts():
            click.echo(f"suspect, for that may not be the network's doing: {doubt}")
