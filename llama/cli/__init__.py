"""The command ``llama``: a table of subcommands, each imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

import click

from llama.cli import _output

#: Name -> (``module:function`` of its click command, one line for ``llama --help``).
COMMANDS = {
    "check": ("llama.cli.check:check", "Validate a configuration and say what it would do."),
    "demo": ("llama.cli.demo:demo", "A small network on this machine with a fault to find."),
    "lab": ("llama.cli.lab:lab", "A Clos fabric in network namespaces, to break on purpose."),
    "pinpoint": ("llama.cli.pinpoint:pinpoint", "Say where the network loses, by name."),
    "reflect": ("llama.cli.reflect:reflect", "Answer probes in the foreground."),
    "send": ("llama.cli.send:send", "Probe a reflector once and print loss and latency."),
    "trace": ("llama.cli.trace:trace", "Show the paths that flows to a target take."),
}


class _Table(click.Group):
    """A group that lists its commands without importing them."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; output that cannot be written ends it with a line and status 2."""
        _output.prepare()
        try:
            return super().main(*args, **kwargs)
        except OSError as problem:
            why = _output.unwritten(problem)
            if why is None:
                raise
            _output.give_up()
            click.echo(f"llama: {why}", err=True)
            raise SystemExit(2) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None for a name that is not in the table."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), function)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{function} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, from its own lines of help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llama-mesh", prog_name="llama")
def main() -> None:
    """Measure loss and latency of a network, flow by flow, and say where it loses."""
