"""Run benchmarks: ``python -m benchmarks [NAMES]``, all of them without names."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from . import machine, reflector
from .figures import Report
from .programs import BenchmarkError, build

NAMES = ("reflector",)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAMES]...")
@click.option("--seconds", default=1.0, show_default=True, help="Length of one measurement.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each program.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here."
)
def main(names: tuple[str, ...], seconds: float, rounds: int, json_file: Path | None) -> None:
    """Measure NAMES: reflector."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    result: dict[str, Any] = {"machine": machine.describe(), "reports": {}}
    console.print(
        "{cpu}, {cores} cores, {memory_mb} MB; {kernel}; Python {python}, numpy {numpy}, Twisted"
        " {twisted}; load average {load_average:.2f}\n".format(**result["machine"]),
        highlight=False,
    )
    failed = False
    with tempfile.TemporaryDirectory(prefix="llama-benchmarks-") as work:
        directory = Path(work)
        try:
            programs = build(directory)
        except BenchmarkError as e:
            raise click.ClickException(str(e)) from None
        for name in names or NAMES:
            try:
                report: Report = reflector.run(programs, directory, seconds, rounds)
            except BenchmarkError as e:
                console.print(f"{name}: {e}", style="red", highlight=False)
                failed = True
                continue
            report.show(console)
            result["reports"][name] = report.as_json()
    if json_file:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
