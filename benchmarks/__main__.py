"""Run benchmarks: ``python -m benchmarks [NAMES]``, all of them without names."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from attrs import frozen
from rich.console import Console

from benchmarks import accuracy, collector, hostile, judging, kinds, machine, reflector, scraper
from benchmarks.figures import Report
from benchmarks.programs import BenchmarkError, build


@frozen
class Settings:
    """What the command line asks for, and where to work."""

    programs: Mapping[str, Path]  #: what was compiled, by name
    directory: Path  #: for configurations, logs and captures
    seconds: float
    rounds: int
    sustained_s: float


BENCHMARKS: dict[str, tuple[str, Callable[[Settings], Report]]] = {
    "reflector": (
        "CPU per packet of our reflector, of two in C and of plain Twisted",
        lambda s: reflector.run(s.programs, s.directory, s.seconds, s.rounds),
    ),
    "kinds": (
        "CPU per packet of our reflector by kind: authenticated, older formats, bad ones",
        lambda s: kinds.run(s.programs, s.directory, s.seconds, s.rounds),
    ),
    "hostile": (
        "our reflector under ten million forged sources and floods (needs root)",
        lambda s: hostile.run(s.programs, s.directory),
    ),
    "collector": (
        "CPU per probe of our collector and of a bare prober in C",
        lambda s: collector.speed(s.programs, s.directory, s.rounds),
    ),
    "growth": (
        "CPU per probe with 100, 1,000 and 10,000 targets",
        lambda s: collector.growth(s.programs, s.directory, s.rounds),
    ),
    "burden": (
        "memory and tick lag with 160,000 flows, closing intervals, being scraped",
        lambda s: collector.burden(s.programs, s.directory),
    ),
    "sustained": (
        "loss over --sustained seconds, with large and with stock socket buffers",
        lambda s: collector.sustained(s.programs, s.directory, s.sustained_s),
    ),
    "scraper": (
        "CPU per point from collectors into a database",
        lambda s: scraper.run(s.directory, s.rounds),
    ),
    "judging": (
        "CPU and memory of pinpointing by the number of flows",
        lambda s: judging.run(s.rounds),
    ),
    "accuracy": (
        "error of the RTT beside ping's and irtt's, idle and busy (needs root)",
        lambda s: accuracy.run(s.directory),
    ),
}


@click.command(
    epilog="\b\nNAMES:\n" + "\n".join(f"  {name:10} {b[0]}" for name, b in BENCHMARKS.items())
)
@click.argument("names", nargs=-1, type=click.Choice(tuple(BENCHMARKS)), metavar="[NAMES]...")
@click.option("--seconds", default=1.0, show_default=True, help="Length of one reflector's round.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each program.")
@click.option("--sustained", default=20.0, show_default=True, help="Seconds of each such run.")
@click.option("--full", is_flag=True, help="As the figures asked for: sustained for 600 s.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here."
)
def main(
    names: tuple[str, ...],
    seconds: float,
    rounds: int,
    sustained: float,
    full: bool,
    json_file: Path | None,
) -> None:
    """Measure NAMES, all of them when none is given, and say what was wanted and what was got.

    The exit status is 1 if something could not be measured. A figure that is not what was wanted
    is no failure of the run.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end what was started
    console = Console(width=None if sys.stdout.isatty() else 120)
    result: dict[str, Any] = {"machine": machine.describe(), "reports": {}, "not_measured": {}}
    console.print(
        "{cpu}, {cores} cores, {memory_mb} MB; {kernel}; Python {python}, numpy {numpy}, Twisted"
        " {twisted}; load average {load_average:.2f}\n".format(**result["machine"]),
        highlight=False,
    )
    with tempfile.TemporaryDirectory(prefix="llama-benchmarks-") as work:
        directory = Path(work)
        try:
            programs = build(directory)
        except BenchmarkError as e:
            raise click.ClickException(str(e)) from None
        settings = Settings(programs, directory, seconds, rounds, 600.0 if full else sustained)
        for name in names or BENCHMARKS:
            try:
                report = BENCHMARKS[name][1](settings)
            except BenchmarkError as e:
                console.print(f"{name}: not measured: {e}\n", style="red", highlight=False)
                result["not_measured"][name] = str(e)
                continue
            report.show(console)
            result["reports"][name] = report.as_json()
    result["machine"]["stolen_s"] = machine.stolen_s() - result["machine"]["stolen_s"]
    if json_file:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if result["not_measured"] else 0)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
