"""``llama reflect``: a reflector in the foreground."""

from __future__ import annotations

import sys
from typing import Any

import click

from llama.config import ReflectorConfig


@click.command()
@click.option("--port", "-p", type=click.IntRange(0, 65535), default=8100, show_default=True)
@click.option("--interface", "-i", metavar="ADDRESS", help="Address to answer on.  [default: all]")
@click.option(
    "--api", metavar="HOST:PORT", default="127.0.0.1:0", show_default="any free port of localhost",
    help="Where /status and /metrics are served.",
)  # fmt: skip
def reflect(port: int, interface: str | None, api: str) -> None:
    """Answer STAMP and earlier LLAMA probes until interrupted, and say what was answered."""
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner, textFileLogObserver

    from llama.net.reactor import prepare
    from llama.reflector.service import ReflectorService

    prepare(reactor)
    addresses = (interface,) if interface else ReflectorConfig().addresses
    config = ReflectorConfig(port=port, addresses=addresses, api=api)
    observer: Any = textFileLogObserver(sys.stderr)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    service = ReflectorService(reactor, config)
    service.startService()
    hosts = ", ".join(p.getHost().host for p in service.ports.ports)
    click.echo(f"answering on UDP port {service.ports.port_number} of {hosts}; Ctrl-C ends")
    running: Any = reactor
    running.addSystemEventTrigger("before", "shutdown", service.stopService)
    running.run()
    tally = service.ports.tally
    answered = ", ".join(f"{n} {name}" for name, n in sorted(tally.answered.items())) or "nothing"
    dropped = ", ".join(f"{n} {name}" for name, n in sorted(tally.dropped.items())) or "nothing"
    click.echo(f"{tally.received} received; answered {answered}; dropped {dropped}")
