"""``llama pinpoint``: name what loses, from what collectors measure."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner

from llama import systemd
from llama.cli._names import namer
from llama.cli._options import HttpUrl, Seconds
from llama.config import Mistake, endpoint
from llama.config.keys import read_secret, read_urls
from llama.config.scraper import collector_server
from llama.config.urls import shown_url
from llama.net.reactor import prepare
from llama.paths.names import ReverseNames, read_names
from llama.pinpoint.api import sighting_json
from llama.pinpoint.files import locked, private
from llama.pinpoint.judgement import Judgement, judge
from llama.pinpoint.service import PinpointService, Settings
from llama.printable import printable


@click.command()
@click.argument("collectors", nargs=-1, required=True, metavar="URL...")
@click.option(
    "--interval",
    type=Seconds(1, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Of the collectors.",
)
@click.option("--once", is_flag=True, help="Judge the newest interval, print, end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: for programs.")
@click.option(
    "--names",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Names of router addresses, one 'ADDRESS NAME' a line like /etc/hosts.",
)
@click.option("--dns", is_flag=True, help="Name the other addresses by reverse DNS.")
@click.option(
    "--listen",
    default="127.0.0.1:5004",
    show_default=True,
    metavar="HOST:PORT",
    help="Where /suspects and /incidents are served.",
)
@click.option(
    "--webhook",
    "webhooks",
    multiple=True,
    type=HttpUrl(),
    metavar="URL",
    help="Where incidents are posted; may be repeated. Everyone on this host can see it.",
)
@click.option(
    "--webhook-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of such URLs, one a line, that not everyone can read.",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),  # `_check_state` says more
    help="File that keeps incidents over a restart.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that every judgement is appended to.",
)
@click.option(
    "--settle",
    type=Seconds(0, 3600),
    default=4.0,
    show_default=True,
    metavar="SECONDS",
    help="Judge so long after an interval's end.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Bearer token to show the collectors.",
)
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False),
    help="Authorities (PEM) that vouch for collectors behind TLS.  [default: the system's]",
)
@click.option(
    "--api-token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Bearer token that whoever asks us must show.",
)
def pinpoint(
    collectors: tuple[str, ...],
    interval: float,
    once: bool,
    as_json: bool,
    names: Path | None,
    dns: bool,
    listen: str,
    webhooks: tuple[str, ...],
    webhook_file: Path | None,
    state: Path | None,
    record: Path | None,
    settle: float,
    token_file: Path | None,
    ca_file: str | None,
    api_token_file: Path | None,
) -> None:
    """Say where the network loses, by name and with evidence.

    Reads the collectors (such as http://db1:5000, which db1 stands for) after every interval, and serves
    suspects and incidents until interrupted. With --once it judges what they hold now.
    """
    from twisted.internet import reactor

    prepare(reactor)
    if as_json and not once:
        raise click.UsageError("--json goes with --once; else ask /suspects, or give --record")
    if state is not None and not once:  # before what it holds is read
        _lock_state(state)
        _check_state(state)
    running: Any = reactor
    try:
        endpoint(listen)
        posted = () if webhook_file is None else read_urls(str(webhook_file), _doubt)
        settings = Settings(
            collectors=tuple(dict.fromkeys(_url(text).rstrip("/") for text in collectors)),
            interval_s=interval,
            settle_s=settle,
            api=None if once else listen,
            collector_token=_token(token_file),
            ca_file=ca_file,
            api_token=_token(api_token_file),
            webhooks=tuple(dict.fromkeys([*webhooks, *posted])),
            state=state,
            record=record,
        )
        name = namer(names, resolve=dns)
        if dns and not once:
            # Nothing waits for the DNS: addresses are their own names until it answered.
            name = ReverseNames(running, {} if names is None else read_names(names))
        service = PinpointService(running, settings, name)
    except ValueError as e:
        raise click.ClickException(str(e)) from None
    if once:
        failed: list[Any] = []
        running.callWhenRunning(_once, running, service, as_json, failed)
        running.run()
        if failed:
            raise click.ClickException(printable(failed[0]))
        return
    if record is not None:  # last of all: what is refused for another reason leaves no file behind
        _check_record(record)
    globalLogBeginner.beginLoggingTo([systemd.journal(sys.stderr)], redirectStandardIO=False)
    service.startService()
    running.addSystemEventTrigger("before", "shutdown", service.stopService)
    running.callWhenRunning(systemd.ready)
    running.run()


def _doubt(mistake: Mistake) -> None:
    """Say what is suspicious about a file."""
    click.echo(printable(str(mistake)), err=True)


def _url(text: str) -> str:
    """Return the base URL of a collector, given as files have it; `ValueError` for what is none."""
    try:
        return collector_server(text)
    except ValueError as error:
        raise ValueError(f"{shown_url(text)} {error}") from None


def _token(path: Path | None) -> str | None:
    """Return the token in a file; `ValueError` as of `llama.config.keys.read_secret`."""
    return None if path is None else read_secret(str(path))


def _lock_state(path: Path) -> None:
    """Keep a file until this command ends; refuse one that another process keeps."""
    try:
        click.get_current_context().with_resource(locked(path))
    except BlockingIOError:
        raise click.ClickException(
            f"--state {path}: another llama pinpoint is keeping its incidents there; end that one,"
            " or choose another file"
        ) from None
    except OSError as error:
        raise _unwritable("--state", path, error) from None


def _check_state(path: Path) -> None:
    """Refuse a file that cannot be read, or could not be replaced, which its directory must allow."""
    try:
        path.read_bytes()
    except OSError as error:
        if os.access(path, os.F_OK):
            raise _unreadable(path, error) from None
    trial = path.with_name(path.name + ".new")  # as `PinpointService.save` does
    try:
        trial.unlink(missing_ok=True)
        open(trial, "x", opener=private).close()  # what a link leads to is somebody else's
        trial.unlink()
    except OSError as error:
        raise _unwritable("--state", path, error) from None


def _check_record(path: Path) -> None:
    """Refuse a file that could not be appended to."""
    try:
        open(path, "a", opener=private).close()
    except OSError as error:
        raise _unwritable("--record", path, error) from None


def _unreadable(state: Path, error: OSError) -> click.ClickException:
    """Say what is to be done that a state can be read."""
    if isinstance(error, PermissionError):
        reason = (
            "this user may not read it; give it to them (chown), and let its owner read and write it"
            " (chmod u+rw)"
        )
    else:
        reason = f"cannot be read ({error.strerror}); choose another, or move it away to begin anew"
    return click.ClickException(f"--state {state}: {reason}")


def _unwritable(option: str, path: Path, error: OSError) -> click.ClickException:
    """Say what is to be done that a file can be written."""
    directory = path.parent
    where = f"the directory {directory}"
    if isinstance(error, FileNotFoundError):
        reason = f"there is no directory {directory}; make it"
    elif isinstance(error, PermissionError) and os.access(error.filename, os.F_OK):
        what = "it" if error.filename == str(path) else error.filename
        reason = f"this user may not write {what}; give it to them (chown), or choose another"
    elif isinstance(error, PermissionError):
        reason = (
            f"this user may not make files in {where}; give it to them (chown), or choose another"
        )
    elif error.errno == errno.EROFS:
        reason = f"{where} cannot be written (read-only file system); choose another"
    else:
        reason = f"cannot be written ({error.strerror}); choose another"
    return click.ClickException(f"{option} {path}: {reason}")


def _once(running: Any, service: PinpointService, as_json: bool, failed: list[Any]) -> None:
    """Read, judge, print, end."""

    async def work() -> None:
        await service.fleet.read()
        problems = [f"{s.url}: {s.told}" for s in service.fleet.sources if s.told]
        end_s = service.newest_s()
        if end_s is None:
            failed.append("; ".join(problems) or "the collectors hold no closed interval yet")
            return
        found = judge(service.measured, end_s)
        if as_json:
            click.echo(json.dumps([sighting_json(one) for one in found.sightings], indent=1))
            return
        tell(Console(highlight=False), found, problems, len(service.measured.paths))

    def done(result: Any) -> None:
        if result is not None:
            failed.append(f"{result.type.__name__}: {result.getErrorMessage()}")
        stopping = Deferred.fromCoroutine(service.fleet.stop())
        stopping.addBoth(lambda _: running.stop())

    Deferred.fromCoroutine(work()).addBoth(done)


def tell(console: Console, found: Judgement, problems: list[str], paths: int) -> None:
    """Print a judgement for people, with what was wrong with collectors and how many paths are known.

    Names and addresses are printed as they are, if they can be printed: a bracket in them is no
    markup of ours.
    """
    for problem in problems:
        console.print(Text(printable(problem), style="yellow"))
    for number, one in enumerate(found.sightings, 1):
        words = f"  {one.evidence}; confidence {one.confidence:.2f}"
        console.print(Text.assemble((str(number), "bold"), printable(words)))
    verdict = found.verdict
    if not found.sightings:
        console.print(
            f"no suspects: {verdict.lossy} of {verdict.judged} flows are lossy,"
            f" {paths} paths are known"
        )
    for excluded in verdict.excluded:
        console.print(Text(printable(f"left out: {excluded}"), style="dim"))
