"""What a reflected packet costs: ours, the echo in C, and the plain Twisted one.

All of them wait on one core, each in turn is asked by the load generator on the other. A round asks
every one once, and the ratios are taken within a round.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from benchmarks import machine
from benchmarks.figures import Claim, Report, ratio
from benchmarks.programs import Program, free_port, run_json, running, twistd, wait_for_reflector

SOURCES = 64  # source ports that the load comes from
WINDOW = 1024  # probes on their way at saturation: two of the largest batches
SINGLE_RATE = 2000  # probes/s where each one wakes the reflector up
BUFFER = 4 << 20

OURS = "llama-reflector"
C_64 = "C, same options, batches of 64"
C_256 = "C, same options, batches of 256"
C_PLAIN = "C, no options"
TWISTED = "Twisted DatagramProtocol"
COLUMNS = ("reflector", "load", "µs CPU/packet", "packets/s", "loss %", "core busy %")


@frozen
class Contender:
    """A reflector that runs."""

    name: str
    program: Program
    port: int


def reflector_config(directory: Path, port: int, further: str = "") -> Path:
    """Write a configuration for our reflector: where it listens, and what ``further`` says."""
    path = directory / "reflector.yaml"
    api = free_port(socket.SOCK_STREAM)
    path.write_text(
        f"addresses: [127.0.0.1]\nport: {port}\napi: {{bind: '127.0.0.1:{api}'}}\n{further}"
    )
    return path


@contextlib.contextmanager
def contenders(
    programs: Mapping[str, Path], directory: Path, names: Sequence[str]
) -> Iterator[list[Contender]]:
    """Start the reflectors of ``names``, wait until each answers, and end them afterwards."""
    core, _ = machine.cores()
    echo = [str(programs["echo"]), "--buffer", str(BUFFER)]
    commands = {
        C_64: [*echo, "--batch", "64"],
        C_256: [*echo, "--batch", "256"],
        C_PLAIN: [*echo, "--plain"],
        TWISTED: [sys.executable, str(Path(__file__).with_name("twisted_echo.py"))],
    }
    with contextlib.ExitStack() as stack:
        started = []
        for number, name in enumerate(names):
            log = directory / f"reflector-{number}.log"
            if name == OURS:
                port = free_port()
                command = twistd(OURS, "--config", str(reflector_config(directory, port)))
                program = stack.enter_context(running(command, log, core))
            else:
                program = stack.enter_context(running(commands[name], log, core))
                port = program.wait_line()["port"]
            wait_for_reflector(program, port)
            started.append(Contender(name, program, port))
        yield started


def measure(
    load: Path,
    contender: Contender,
    mode: str,
    seconds: float,
    warmup: float,
    *further: str,
) -> dict[str, Any]:
    """Ask ``contender`` for ``seconds`` in one of load.c's modes and return a row of figures.

    ``further`` are more of load.c's options.
    """
    _, core = machine.cores()
    answer = run_json(
        [
            str(load),
            *("--port", str(contender.port)),
            *("--watch", str(contender.program.pid)),
            *("--mode", mode),
            *("--sockets", str(SOURCES)),
            *("--window", str(WINDOW)),
            *("--rate", str(SINGLE_RATE)),
            *("--seconds", str(seconds)),
            *("--warmup", str(warmup)),
            *further,
        ],
        core,
    )
    lost = answer["total_sent"] - answer["total_received"]
    return {
        "reflector": contender.name,
        "load": {"window": "saturation", "single": "one a wake-up"}.get(mode, mode),
        "µs CPU/packet": answer["cpu_ns"] / 1000 / max(1, answer["received"]),
        "packets/s": answer["received"] / answer["seconds"],
        "loss %": 100 * lost / max(1, answer["total_sent"]),
        "core busy %": answer["cpu_ns"] / answer["seconds"] / 1e7,
        "wrong": answer["wrong"],
        "sent/s": answer["sent"] / answer["seconds"],
        "µs CPU/sent": answer["cpu_ns"] / 1000 / max(1, answer["sent"]),
    }


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the medians of the numbers in the same row of every round."""
    return {
        key: statistics.median(row[key] for row in rounds) if isinstance(value, float) else value
        for key, value in rounds[0].items()
    }


def run(
    programs: Mapping[str, Path],
    directory: Path,
    seconds: float = 1.0,
    rounds: int = 5,
    names: Sequence[str] = (OURS, C_64, C_256, C_PLAIN, TWISTED),
) -> Report:
    """Measure the reflectors of ``names`` and return the table with the ratios wanted of ours."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with contenders(programs, directory, names) as started:
        for _ in range(rounds):
            for mode in ("window", "single"):
                for contender in started:
                    row = measure(programs["load"], contender, mode, seconds, seconds / 4)
                    rows.setdefault((contender.name, mode), []).append(row)
    cost = {key: [row["µs CPU/packet"] for row in found] for key, found in rows.items()}
    claims: tuple[Claim, ...] = ()
    if OURS in names:
        ours, single = cost[OURS, "window"], cost[OURS, "single"]
        claims = (
            ratio("at saturation, ours / C, same options", ours, cost[C_64, "window"], "<= 1.3"),
            ratio("at saturation, ours / plain Twisted", ours, cost[TWISTED, "window"], "<= 0.55"),
            ratio("one a wake-up, ours / plain Twisted", single, cost[TWISTED, "single"], "<= 1.5"),
        )
    core, load_core = machine.cores()
    return Report(
        "Reflector",
        COLUMNS,
        tuple(medians(found) for found in rows.values()),
        claims,
        (
            f"Reflectors on core {core}, load on core {load_core}; medians of {rounds} rounds of"
            f" {seconds:g} s each; {SOURCES} source ports, {WINDOW} probes outstanding at"
            f" saturation, {SINGLE_RATE} probes/s one at a time.",
        ),
    )
