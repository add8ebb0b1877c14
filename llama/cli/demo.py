"""``llama demo``: a network on this machine with a fault in it, and the matrix that shows it."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater
from twisted.logger import (
    LogEvent,
    LogLevel,
    formatEvent,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python.failure import Failure

from llama.cli._matrix import LEGEND, matrix
from llama.lab.demo import Addresses, Demo
from llama.lab.history import History, Interval, to_show
from llama.lab.places import Block, NoPlaceError
from llama.lab.readings import delay_sentence, loss_sentence, suspect_sentence, worst_pair
from llama.lab.scene import SITES, Scene, address, hosts, scene
from llama.net.reactor import prepare

#: ``--once`` ends after so many whole intervals ...
INTERVALS = 2
#: ... and gives up after so many more, and so many seconds, without them.
_PATIENCE = 4
_PATIENCE_S = 20
_LOOK_S = 0.25


@click.command()
@click.option("--once", is_flag=True, help=f"End after {INTERVALS} intervals.")
@click.option("--seed", type=click.IntRange(0), help="Picks the fault. [random, and printed]")
@click.option(
    "--interval",
    "interval_s",
    type=click.IntRange(1, 300),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="How long an interval is.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Leave configuration, log and database there. [a temporary one]",
)
@click.option(
    "--fabric", is_flag=True, help="In a Clos fabric of network namespaces instead (root)."
)
def demo(
    once: bool, seed: int | None, interval_s: int, directory: Path | None, fabric: bool
) -> None:
    """Run a small network on this machine, with a fault to find.

    Six hosts in three sites, each with a reflector and a collector, and a scraper into an embedded
    database, all on loopback addresses, without root. Some flows of one pair lose packets and one
    site is far; the matrix says which. Ctrl-C ends it.
    """
    from twisted.internet import reactor

    prepare(reactor)
    if seed is None:
        seed = random.randrange(10_000)
    if fabric:
        from llama.cli._fabric_demo import FabricDemo

        raise SystemExit(run(reactor, FabricDemo(reactor, seed, interval_s, once).play))
    with ExitStack() as stack:
        try:
            block = Block()
        except NoPlaceError as error:
            raise click.ClickException(str(error)) from None
        stack.callback(block.release)
        if directory is None:
            temporary = tempfile.TemporaryDirectory(prefix="llama-demo-")
            directory = Path(stack.enter_context(temporary))
        directory = directory.resolve()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context((directory / "demo.log").open("w"))
        except OSError as error:
            raise click.ClickException(f"--directory {directory}: {error.strerror}") from None
        picked = scene(seed, hosts(block.number))
        warnings = _Warnings(log)
        demo = Demo(reactor, picked, interval_s, directory, home=address(block.number, 0, 1))
        stage = Stage(reactor, picked, demo, interval_s, once, warnings.end)
        status = run(reactor, stage.play)
    raise SystemExit(status)


class Stage:
    """The demo before its audience: a terminal, or a file that gets every interval's matrix."""

    def __init__(
        self,
        reactor: Any,
        scene: Scene,
        demo: Demo,
        interval_s: int,
        once: bool,
        ending: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._scene = scene
        self._demo = demo
        self._interval_s = interval_s
        self._once = once
        self._ending = ending  # called before what there is ends
        self._console = Console(highlight=False)
        self._urls: Mapping[str, str] = {}
        if not self._console.is_terminal:
            self._console.width = 120

    async def play(self) -> int:
        """Run the demo until it is cancelled or, with ``--once``, done; return the exit status."""
        began_s = time.time()
        try:
            addresses = await self._demo.start()
            self._urls = addresses.collectors
            self._introduce(addresses)
            history = History(
                self._reactor,
                addresses.store,
                interval_s=self._interval_s,
                pairs=len(self._scene.pairs),
                since_s=began_s,
            )
            try:
                return await (self._play_once(history) if self._once else self._play_on(history))
            finally:
                await history.close()
        except (CannotListenError, NoPlaceError) as error:
            click.echo(f"llama demo: {error}", err=True)
            return 1
        finally:
            self._ending()
            await self._demo.stop()

    async def _play_once(self, history: History) -> int:
        """Show the last of `INTERVALS` whole intervals, and end."""
        deadline_s = self._reactor.seconds() + _PATIENCE_S + _PATIENCE * self._interval_s
        while True:
            newest = await history.newest(INTERVALS)
            if len(newest) == INTERVALS and all(interval.whole for interval in newest):
                self._print(self._picture(newest[0]))
                return 0
            if self._reactor.seconds() > deadline_s:
                break
            await self._pause()
        if newest:
            self._print(self._picture(newest[0]))
        click.echo(
            "llama demo: pairs are still missing from the database;"
            " run again with --directory DIR and read DIR/demo.log",
            err=True,
        )
        return 1

    async def _play_on(self, history: History) -> int:
        """Show the newest interval for ever: in place on a terminal, one by one in a file."""
        shown_s = None
        with ExitStack() as stack:
            live = None
            if self._console.is_terminal:
                live = Live(self._waiting(), console=self._console, auto_refresh=False)
                stack.enter_context(live)
                live.refresh()
            while True:
                interval = to_show(await history.newest(INTERVALS))
                if interval is not None and interval.end_s != shown_s:
                    shown_s = interval.end_s
                    if live is not None:
                        live.update(self._picture(interval), refresh=True)
                    else:
                        self._print(self._picture(interval))
                await self._pause()

    def _introduce(self, addresses: Addresses) -> None:
        """Say what runs and where to look."""
        host, url = next(iter(addresses.collectors.items()))
        seed = self._scene.seed
        lines = (
            f"{len(self._scene.hosts)} hosts in {len(SITES)} sites: some flows of one pair lose"
            " packets, and one site is far.",
            f"Seed {seed} picked which; --seed {seed} plays it again.",
            f"Matrix     {addresses.web}/",
            f"Collector  {url}/ ({host}); curl {url}/latency",
            f"Database   {addresses.store}",
        )
        self._print(Text("\n".join(lines)))

    def _waiting(self) -> Text:
        until_s = 2 * self._interval_s + 1
        return Text(f"the first interval closes within {until_s} s; Ctrl-C ends", style="dim")

    def _picture(self, interval: Interval) -> RenderableType:
        """Return the matrix of an interval, with what it says in words."""
        until = datetime.fromtimestamp(interval.end_s).strftime("%H:%M:%S")
        readings = interval.readings
        words = Table.grid(padding=(0, 1))
        words.add_row(Text("Loss", style="bold"), loss_sentence(readings))
        worst = worst_pair(readings)
        if worst is not None:
            url = f"{self._urls[worst.source]}/flows?target={worst.destination}&lossy=1"
            words.add_row("", Text(f"curl '{url}'", style="dim"))
        words.add_row(Text("Delay", style="bold"), delay_sentence(readings))
        if suspect := suspect_sentence(readings):
            words.add_row(Text("Suspect", style="bold"), suspect)
        return Group(
            Text.assemble((f"{self._interval_s} s until {until}", "bold"), (f" · {LEGEND}", "dim")),
            matrix([(host.site, host.name) for host in self._scene.hosts], readings),
            Text(),
            words,
        )

    def _print(self, what: RenderableType) -> None:
        self._console.print(what)

    def _pause(self) -> Deferred[None]:
        return deferLater(self._reactor, _LOOK_S, lambda: None)


def run(reactor: Any, main: Callable[[], Coroutine[Deferred[Any], Any, int]]) -> int:
    """Run a coroutine in the reactor and return its result, or 0 if a signal ended it.

    SIGINT, SIGTERM and a terminal that is closed cancel it and wait until it has cleaned up. Raises
    what it raises.
    """
    playing: Deferred[Any] | None = None
    stopping = False
    results: list[int | Failure] = []
    over: Deferred[None] = Deferred()

    def end(result: int | Failure) -> None:
        results.append(result)
        over.callback(None)
        if not stopping:
            reactor.stop()

    def begin() -> None:
        nonlocal playing
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(reactor.stop))
        playing = ensureDeferred(main())
        playing.addBoth(end)

    def stop() -> Deferred[None]:
        nonlocal stopping
        stopping = True
        if playing is not None:
            playing.cancel()
        return over

    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.run()
    result = results[0]
    if isinstance(result, Failure):
        if result.check(CancelledError):
            return 0
        result.raiseException()
    return result


class _Warnings:
    """Logs to a file, and to standard error as well, a line each, what is worth it.

    That is warnings and errors, and errors alone once all is to `end`: what that takes with it was to
    be shown, and nothing more.
    """

    def __init__(self, file: TextIO) -> None:
        self._write: Any = textFileLogObserver(file)
        self._least = LogLevel.warn
        observers: list[Any] = [self._observe]
        globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False, discardBuffer=True)

    def end(self) -> None:
        """Tell of errors alone from now on."""
        self._least = LogLevel.error

    def _observe(self, event: LogEvent) -> None:
        self._write(event)
        if event["log_level"] >= self._least:
            click.echo(f"llama demo: {formatEvent(event)}", err=True)
