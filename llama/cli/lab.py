"""``llama lab``: a Clos fabric on this machine, to break and to heal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama.cli._options import Seconds
from llama.lab import faults, hosts, scenario
from llama.lab.fabric import Fabric
from llama.lab.faults import KINDS, Fault
from llama.lab.hosts import VERSIONS, Traffic
from llama.lab.namespaces import Lab, LabError, clear, ended_by_signals, namespaces_of
from llama.printable import printable

F = TypeVar("F", bound=Callable[..., Any])
_USUAL_NAME = "lab"


@contextmanager
def _told() -> Iterator[None]:
    """Turn what can go wrong into one line for people."""
    try:
        yield
    except (LabError, ValueError) as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:
        if e.filename is None:
            raise
        root = "; the lab needs root" if isinstance(e, PermissionError) else ""
        raise click.ClickException(f"{e.filename}: {e.strerror}{root}") from e


def _command(what: str, name: str) -> str:
    """Return a command for this lab, to be typed as it stands."""
    return f"llama lab {what}" if name == _USUAL_NAME else f"llama lab {what} --name {name}"


def _name_option(command: F) -> F:
    return click.option("--name", default=_USUAL_NAME, show_default=True, help="Which lab.")(
        command
    )


def _size_options(command: F) -> F:
    for option in (
        click.option("--seed", default=1, show_default=True, help="Chooses the ECMP hash seeds."),
        click.option("--mtu", default=1500, show_default=True, help="Of every cable, octets."),
        click.option("--hosts-per-leaf", default=2, show_default=True),
        click.option("--spines", default=4, show_default=True),
        click.option("--leaves", default=3, show_default=True),
    ):
        command = option(command)
    return command


@click.group()
def lab() -> None:
    """Break a network on purpose: a Clos fabric in network namespaces (root, Linux).

    Real kernel forwarding and ECMP, a reflector and a collector on every host. Nothing outside
    the lab's own namespaces is touched, and `down` leaves nothing behind.
    """


@lab.command()
@_name_option
@_size_options
@click.option("--bare", is_flag=True, help="Only the network: start nothing on the hosts.")
@click.option("--interval", default=5, show_default=True, help="Of the collectors, s.")
@click.option("--flows", default=16, show_default=True, help="Source ports to every other host.")
@click.option("--rate", default=5.0, show_default=True, help="Probes/s of every flow.")
@click.option("--class", "classes", multiple=True, help="Traffic class; may be repeated. [BE]")
@click.option("--size", "sizes", multiple=True, type=int, help="UDP payload; may be repeated.")
@click.option(
    "--family",
    type=click.Choice(list(VERSIONS)),
    default="4",
    show_default=True,
    help="IP version of the probes; both doubles the flows.",
)
@click.option("--again", is_flag=True, help="End the lab of this name if it is up, and build anew.")
def up(
    name: str,
    leaves: int,
    spines: int,
    hosts_per_leaf: int,
    mtu: int,
    seed: int,
    bare: bool,
    interval: int,
    flows: int,
    rate: float,
    classes: tuple[str, ...],
    sizes: tuple[int, ...],
    family: str,
    again: bool,
) -> None:
    """Build a fabric and start what runs on its hosts."""
    with _told(), ended_by_signals():
        if not again and (there := namespaces_of(name)):
            raise LabError(
                f"lab {name!r} is up already, or was not ended ({len(there)} namespaces);"
                f" end it: {_command('down', name)}, or give --again"
            )
        traffic = Traffic(interval, flows, rate, classes or ("BE",), sizes, family)
        made = Lab.build(name, Fabric(leaves, spines, hosts_per_leaf, mtu, seed))
        try:
            if not bare:
                hosts.start_all(made, traffic)
            else:
                hosts.write_names(made)
        except BaseException:
            clear(name)
            raise
    click.echo(
        f"{len(made.fabric.nodes)} nodes, {len(made.fabric.links)} links."
        f" Look: {_command('status', name)}."
        f" Break: {_command('fault', name)} loss 'spine1 -> leaf2' percent=30."
        f" End: {_command('down', name)}"
    )


@lab.command()
@_name_option
def down(name: str) -> None:
    """Remove a fabric and everything that runs on it, also after a crash."""
    with _told():
        if os.geteuid():
            raise LabError("removing a lab needs root; try: sudo llama lab down")
        found = clear(name)
    click.echo(f"removed {len(found)} namespaces" if found else f"no lab {name!r} was up")


@lab.command()
@_name_option
def status(name: str) -> None:
    """Show the processes and the faults of a fabric."""
    with _told():
        opened = Lab.open(name)
    size = opened.fabric
    console = Console()
    console.print(
        f"{size.leaves} leaves, {size.spines} spines, {len(size.hosts)} hosts in {opened.directory}"
    )
    table = Table("host", "address", "management", "rack", "processes")
    for host, leaf in size.hosts.items():
        running = [
            f"{p.name} {p.pid}" if p.alive else f"[red]{p.name} ended[/red]"
            for p in opened.processes
            if p.node == host
        ]
        addresses = str(size.address(host)), str(size.management_address(host))
        table.add_row(host, *addresses, leaf, ", ".join(running) or "none")
    console.print(table)
    pinpointing = [p for p in opened.processes if p.name == "pinpoint"]
    if pinpointing and pinpointing[0].alive:
        url = f"http://127.0.0.1:{hosts.PINPOINT_PORT}"
        enter = _command("enter", name)
        console.print(f"pinpointing: {enter} mgmt curl {url}/suspects (or /incidents)")
    for fault in opened.faults:
        rest = " ".join(f"{k}={v}" for k, v in fault.items() if k not in ("kind", "on", "name"))
        words = f": {KINDS[fault['kind']].does} {rest}"
        console.print(Text.assemble((printable(fault["name"]), "bold"), printable(words)))
    if not opened.faults:
        console.print("no faults")


def _kinds() -> str:
    """Return the help on every kind of fault."""
    places = {"direction": "'A -> B'", "router": "ROUTER", "node": "NODE", "host": "HOST"}
    lines = [
        f"  {name} {places[kind.place]} {' '.join(f'{o}=' for o in kind.options)}\n    {kind.does}"
        for name, kind in KINDS.items()
    ]
    return "\b\n" + "\n".join(lines)


@lab.command(epilog=_kinds())
@_name_option
@click.option("--as", "fault_name", default="", help="Name to heal it by; else: KIND PLACE.")
@click.argument("kind")
@click.argument("on", metavar="PLACE")
@click.argument("options", nargs=-1, metavar="[OPTION=VALUE]...")
def fault(name: str, fault_name: str, kind: str, on: str, options: tuple[str, ...]) -> None:
    """Break something, such as: llama lab fault loss 'spine1 -> leaf2' percent=30."""
    with _told():
        given: dict[str, str] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if not equals:
                raise ValueError(f"{option!r}: expected OPTION=VALUE, such as percent=30")
            given[key] = value
        broken = Fault.from_mapping({**given, "kind": kind, "on": on, "name": fault_name})
        faults.inject(Lab.open(name), broken)
    click.echo(f"{broken.name}; take it back: {_command('heal', name)} '{broken.name}'")


@lab.command()
@_name_option
@click.argument("fault_name", metavar="[FAULT]", required=False)
def heal(name: str, fault_name: str | None) -> None:
    """Take back one fault by its name, or all of them."""
    with _told():
        opened = Lab.open(name)
        if fault_name is None:
            healed = faults.heal_all(opened)
            click.echo(f"healed {', '.join(healed)}" if healed else "no faults")
        else:
            faults.heal(opened, fault_name)


@lab.command(context_settings={"ignore_unknown_options": True})
@_name_option
@click.argument("node")
@click.argument("words", nargs=-1, required=True, metavar="COMMAND...")
def enter(name: str, node: str, words: tuple[str, ...]) -> None:
    """Run a command inside a node, such as: llama lab enter h1-1 ping 10.1.2.1."""
    with _told():
        namespace = Lab.open(name).namespace(node)
    os.execvp("ip", ["ip", "netns", "exec", namespace, *words])  # noqa: S606, S607


def _open_or_build(name: str, fabric: Fabric) -> tuple[Lab, bool]:
    """Return the lab of this name, and whether it had to be built.

    What was left of a `run` that was killed is nobody's, and is built anew.
    """
    try:
        opened = Lab.open(name)
    except LabError:
        return Lab.build(name, fabric, owned=True), True
    if opened.owner is None:
        return opened, False
    return Lab.build(name, fabric, owned=True), True


@lab.command()
@_name_option
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--record", type=click.Path(path_type=Path), help="Where the truth goes. [stdout]")
@click.option("--warm-up", type=Seconds(0), default=0.0, help="Wait before the first step, s.")
def run(name: str, file: Path, record: Path | None, warm_up: float) -> None:
    """Play a SCENARIO.yaml: faults by the clock, and what LLAMA said beside the truth.

    Uses the lab of that name if it is up, else builds one and removes it at the end.
    """
    with _told(), ended_by_signals():
        played = scenario.read(file)
        with ExitStack() as stack:
            output = stack.enter_context(record.open("w")) if record else sys.stdout
            opened, ours = _open_or_build(name, played.fabric)
            if ours:
                stack.callback(clear, name)
                hosts.start_all(opened, played.traffic)
            clock = scenario.Clock()
            clock.wait(warm_up)
            scenario.play(opened, played, output, scenario.Judgements(opened), clock)
