"""``llama check FILE``: what is wrong with a configuration, or else what it would do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from llama import config
from llama.cli._host import Host
from llama.cli._plan import plan
from llama.cli._plan_text import lines
from llama.cli._resolved import problems, wanted
from llama.printable import printable


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--service",
    type=click.Choice(config.SERVICES),
    help="Whose file it is, where its keys do not tell.",
)
@click.option(
    "--sysctl-root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="/proc/sys",
    show_default=True,
    help="Compare with the settings below this directory, such as a copy of another machine's.",
)
@click.option(
    "--resolve",
    is_flag=True,
    help="Look up the names of all that would be probed, asked or written to, too, and warn of those"
    " unknown here, or without an address of the family that a test is for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(
    ctx: click.Context,
    file: str,
    service: str | None,
    sysctl_root: Path,
    resolve: bool,
    as_json: bool,
) -> None:
    """Validate the configuration FILE of any LLAMA service and say what it would do.

    For a collector: what it would probe and how fast, how many equal-cost paths its flows cover,
    and what this machine would have to allow. Mistakes go to standard error, all at once, and the
    exit status is 1.
    """
    try:
        read = config.load(file, service)
        if isinstance(read, config.ScraperConfig):
            _check_writers(read)
    except config.ConfigErrors as errors:
        if as_json:
            mistakes = [{"line": m.line, "message": m.message} for m in errors.mistakes]
            click.echo(json.dumps({"file": file, "ok": False, "mistakes": mistakes}, indent=2))
        click.echo("\n".join(map(printable, str(errors).splitlines())), err=True)
        ctx.exit(1)
    if isinstance(read, config.CollectorConfig):
        answer = plan(read, Host(root=sysctl_root))
    else:
        answer = _describe(read, Host(root=sysctl_root))
    answer = {"file": file, "ok": True, **answer, "warnings": answer.get("warnings", [])}
    if resolve:
        answer["warnings"] += problems(wanted(read))
    click.echo(
        json.dumps(answer, indent=2) if as_json else "\n".join(map(printable, lines(answer)))
    )


def _check_writers(read: config.ScraperConfig) -> None:
    """Let every writer look at its own options. Raises `ConfigErrors`."""
    from twisted.internet import reactor

    from llama.scraper.writers import WriterConfigError, make_writer

    mistakes = []
    for writer in read.writers:
        try:
            make_writer(reactor, writer)
        except WriterConfigError as error:
            message = str(error).removeprefix(f"{writer.file}:{writer.line}: ")
            mistakes.append(config.Mistake(writer.file, writer.line, message))
    if mistakes:
        raise config.ConfigErrors(mistakes)


def _reflector_warnings(read: config.ReflectorConfig, host: Host) -> Iterator[str]:
    """Yield what is legal, but open to strangers or more than an ordinary user may do."""
    anyone = read.allow_unauthenticated or not read.keys
    local = all(ip_address(each.partition("%")[0]).is_loopback for each in read.addresses)
    if anyone and not read.allow and not read.sessions and not local:
        yield (
            f"{read.path}: answers everyone who can reach it; give `allow` the prefixes of those who"
            " probe, or `keys`, wherever strangers can"
        )
    first = (host.numbers("net.ipv4.ip_unprivileged_port_start") or (1024,))[0]
    if 0 < read.port < first:
        yield (
            f"{read.path}: port {read.port} is below {first}: any user but root needs"
            " CAP_NET_BIND_SERVICE to bind it (AmbientCapabilities= in a unit file)"
        )


def _describe(
    read: config.ReflectorConfig | config.ScraperConfig | config.WebConfig, host: Host
) -> dict[str, Any]:
    """Return what another service than a collector would do, ready for JSON."""
    notes = [str(note) for note in read.notes]
    if isinstance(read, config.ReflectorConfig):
        return {
            "service": "reflector",
            "addresses": list(read.addresses),
            "port": read.port,
            "api": read.api,
            "answers": [str(prefix) for prefix in read.allow] or ["everyone"],
            "formats": ["stamp", "llama-go", "llama-python"] if read.legacy else ["stamp"],
            "keys": [key.key.id for key in read.keys],
            "answers_unauthenticated": read.allow_unauthenticated or not read.keys,
            "sessions": len(read.sessions),
            "max_pps": read.max_pps,
            "max_pps_per_source": read.max_pps_per_source,
            "burst": read.burst,
            "burst_per_source": read.burst_per_source,
            "warnings": [*notes, *_reflector_warnings(read, host)],
        }
    if isinstance(read, config.ScraperConfig):
        return {
            "service": "scraper",
            "interval_s": read.interval_s,
            "timeout_s": read.timeout_s,
            "concurrency": read.concurrency,
            "collectors": list(read.collectors),
            "writers": [writer.type for writer in read.writers],
            "spool": None if read.spool is None else read.spool.path,
            "api": read.api,
            "warnings": notes,
        }
    return {
        "service": "web",
        "listen": read.listen,
        "store": read.store.type,
        "collectors": list(read.collectors),
        "pinpoint": read.pinpoint,
        "remember_s": read.remember_s,
        "forget": list(read.forget),
        "warnings": notes,
    }
