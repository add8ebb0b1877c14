"""``llama send``: a one-shot test against a reflector, as people expect of ping and irtt."""

from __future__ import annotations

import ipaddress
import math
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import click
import orjson

from llama.cli import _output, _report
from llama.cli._options import MOST_FLOWS, Seconds, parse_target, require_ends, warn_of_refused
from llama.collector.names import Names
from llama.collector.oneshot import MOST_PROBES, OneShot, Outcome, Result, Wanted
from llama.collector.probing.hping3.process import unusable
from llama.collector.probing.plan import chosen_addresses
from llama.config import dscp_number
from llama.config.keys import read_keys
from llama.config.probes import KINDS
from llama.config.refused_ports import ANSWERED_BY_OURS
from llama.net.port import LONGEST
from llama.net.reactor import prepare

REPLIES, NO_REPLIES, USAGE = 0, 1, 2  # exit statuses, as ping's


def _listed(convert: Callable[[str], int]) -> Callable[[Any, Any, str | None], tuple[int, ...]]:
    """Return a click callback for a comma-separated list, each part once."""

    def callback(_ctx: Any, _param: Any, text: str | None) -> tuple[int, ...]:
        if text is None:
            return ()
        try:
            return tuple(dict.fromkeys(convert(part.strip()) for part in text.split(",")))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _size(text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number of octets") from None
    if not 0 < size <= LONGEST:
        raise ValueError(f"a probe has at most {LONGEST} octets of UDP payload")
    return size


def _fit(probe: str, sizes: Iterable[int]) -> None:
    """Refuse sizes that a kind of probe cannot have."""
    least, natural = KINDS[probe].least_size, KINDS[probe].natural_size
    for size in sizes:
        if least is None and size != natural:
            raise click.UsageError(f"a {probe} probe has {natural} octets, not {size}")
        if least is not None and size < least:
            raise click.UsageError(f"a {probe} probe has {least} to {LONGEST} octets, not {size}")


def _family(wanted: Wanted, family: str) -> str:
    """Return the address family; refuse what a kind of probe cannot do."""
    kind = KINDS[wanted.probe]
    if wanted.interface is not None and not kind.binds:
        raise click.UsageError(f"{wanted.probe} probes cannot be bound to a device")
    if wanted.df and not kind.fragments:
        raise click.UsageError(f"--df has no meaning for {wanted.probe} probes")
    if kind.families != "4":
        return family
    addresses = [a for a in (wanted.address, wanted.source) if a is not None and ":" in a]
    if family == "6" or addresses:
        raise click.UsageError(f"{wanted.probe} probes are IPv4 only")
    return "4"


def _key(probe: str, path: str | None, name: str | None) -> bytes | None:
    """Return the key to sign probes with, the first of the file unless another is named."""
    if (probe == "stamp-auth") != (path is not None) or (name is not None and path is None):
        raise click.UsageError("--probe stamp-auth needs --key-file, and no other kind takes it")
    if path is None:
        return None
    try:
        keys = read_keys(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for key in keys:
        if name in (None, key.id):
            return key.secret
    raise click.UsageError(f"{path} has no key {name}; it has: {', '.join(k.id for k in keys)}")


@click.command()
@click.argument("target", metavar="TARGET[:PORT]")
@click.option(
    "--count",
    "-c",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Probes of each flow.",
)
@click.option(
    "--interval",
    "-i",
    type=Seconds(0.0005),
    default=0.2,
    show_default=True,
    metavar="SECONDS",
    help="Time between two probes of a flow.",
)
@click.option(
    "--flows",
    "-f",
    type=click.IntRange(1, MOST_FLOWS),
    default=1,
    show_default=True,
    help="Source ports to probe from: ECMP sends each its own way.",
)
@click.option(
    "--dscp",
    "-q",
    metavar="CLASS,...",
    callback=_listed(dscp_number),
    default="BE",
    show_default=True,
    help="Traffic classes, by name (EF, AF11, CS6 ...) or number.",
)
@click.option(
    "--size",
    "-s",
    metavar="OCTETS,...",
    callback=_listed(_size),
    help="UDP payload sizes.  [default: "
    + ", ".join(f"{kind.natural_size} for {name}" for name, kind in KINDS.items())
    + "]",
)
@click.option(
    "--df", is_flag=True, help="Forbid fragmentation, and ignore what the MTU is said to be."
)
@click.option(
    "--timeout",
    "-W",
    type=Seconds(0.001, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a reply may take.",
)
@click.option(
    "--probe",
    type=click.Choice(sorted(KINDS)),
    default="stamp",
    show_default=True,
    help="Kind of probe.",
)
@click.option(
    "--key-file", metavar="FILE", help="Keys to sign stamp-auth probes with: lines of ID HEX."
)
@click.option("--key", metavar="ID", help="Which key of the file.  [default: the first]")
@click.option("--family", type=click.Choice(["any", "4", "6"]), default="any", show_default=True)
@click.option("--source", metavar="ADDRESS", help="Local address to send from.")
@click.option(
    "--source-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="First source port; further flows count up.  [default: any]",
)
@click.option("--interface", metavar="NAME", help="Bind to this device or VRF.")
@click.option(
    "--timestamps",
    type=click.Choice(["kernel", "user"]),
    default="kernel",
    show_default=True,
    help="Where T1 is taken; the receive stamp is always the kernel's.",
)
@click.option(
    "--program",
    metavar="PATH",
    default="hping3",
    show_default=True,
    help="The program of --probe hping3.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One line of JSON for each probe, then a summary."
)
def send(target: str, as_json: bool, **options: Any) -> None:
    """Probe TARGET, a LLAMA reflector or any other that speaks STAMP, and say what became of it.

    Reflectors of earlier LLAMA fleets are asked with --probe llama-go or llama-python. They tell no
    times of their own: round trips contain what they took, and loss has no direction. Hosts without
    any are asked with --probe icmp, tcp (port 8100 unless given) or hping3 (port 0).

    Exit status: 0 if anything came back in time, 1 if nothing did, 2 for wrong usage.
    """
    from twisted.internet import reactor
    from twisted.internet.task import react

    prepare(reactor)
    try:
        host, port = parse_target(target, 0 if options["probe"] == "hping3" else 8100)
        require_ends(host, options["source"], options["interface"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    wanted = Wanted(
        address=host, port=port, flows=options["flows"], dscps=options["dscp"],
        sizes=options["size"], probe=options["probe"], count=options["count"],
        interval_s=options["interval"], timeout_s=options["timeout"], source=options["source"],
        source_port=options["source_port"] or 0, interface=options["interface"], df=options["df"],
        kernel_stamps=options["timestamps"] == "kernel",
        key=_key(options["probe"], options["key_file"], options["key"]),
        program=options["program"],
    )  # fmt: skip
    _fit(wanted.probe, wanted.sizes)
    family = _family(wanted, options["family"])
    variants = len(wanted.dscps) * max(1, len(wanted.sizes))
    if wanted.count * wanted.flows * variants > MOST_PROBES:
        raise click.UsageError(
            f"{wanted.count} probes x {wanted.flows} flows x {variants} classes and sizes are more"
            f" than {MOST_PROBES:,}: ask for fewer, or run a collector"
        )
    if wanted.source_port + wanted.flows > 65536:
        raise click.UsageError("the source ports go beyond 65535")
    if wanted.probe == "hping3" and (why := unusable(wanted.program)) is not None:
        _fail(why)
    react(_main, [wanted, family, as_json])


async def _main(reactor: Any, wanted: Wanted, family: str, as_json: bool) -> None:
    address = await _resolve(reactor, wanted.address, family, wanted.source)
    named = wanted.address
    wanted = attrs.evolve(wanted, address=address)
    report = _JsonReport() if as_json else _report.Report(named, wanted, sys.stdout)
    try:
        test = OneShot(reactor, wanted, report.told)
    except OSError as error:
        _fail(f"cannot open a socket to send from: {error.strerror}")
    if wanted.probe in ANSWERED_BY_OURS:
        warn_of_refused(test.ports)
    # The reactor has taken SIGINT for its own; the first Ctrl-C ends the test, with its summary.
    signal.signal(signal.SIGINT, lambda _number, _frame: reactor.callFromThread(test.finish))
    try:
        report.begin(test.ports)
        result = await test.run()
        report.end(result)
    except BrokenPipeError:  # whoever read our output (head, less) has seen enough
        _output.give_up()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as problem:
        why = _output.unwritten(problem)
        if why is None:
            raise
        _output.give_up()
        _fail(why)
    received = int(result.pair_stats["received"].sum())
    if not received:
        raise SystemExit(NO_REPLIES)


async def _resolve(reactor: Any, host: str, family: str, source: str | None) -> str:
    """Return the address to probe; ends the program if there is none."""
    names = Names(reactor, lambda: None)
    await names.look_up([host])
    names.stop()
    if family == "any" and source is not None:
        family = str(ipaddress.ip_address(source).version)
    chosen = chosen_addresses(family, names.addresses.get(host, ()))
    if not chosen:
        _fail(
            f"{host} does not resolve" + (f" to an IPv{family} address" if family != "any" else "")
        )
    return chosen[0]


def _fail(message: str) -> Any:
    click.echo(f"llama send: {message}", err=True)
    raise SystemExit(USAGE)


class _JsonReport:
    """Prints one JSON object a line."""

    def begin(self, ports: Any) -> None:
        """Print nothing: the probes tell their ports."""

    def told(self, outcome: Outcome) -> None:
        """Print one probe."""
        self._print({"type": "probe", **attrs.asdict(outcome)})

    def end(self, result: Result) -> None:
        """Print the summary."""
        self._print({"type": "summary", **_report.summary(result)})

    @staticmethod
    def _print(line: dict[str, Any]) -> None:
        clean = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in line.items()
        }
        sys.stdout.buffer.write(orjson.dumps(clean, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()
