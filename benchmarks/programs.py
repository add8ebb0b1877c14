"""The programs that a benchmark compiles, starts, waits for and ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "c"
ROOT = Path(__file__).parent.parent
LIBRARIES = {"stock"}  # to be preloaded; all others are programs
READY_S = 15.0


class BenchmarkError(Exception):
    """Something that a benchmark needs is missing or ended; the text says what to do."""


def build(directory: Path) -> dict[str, Path]:
    """Compile what is in ``benchmarks/c`` into ``directory`` and return where each program is."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise BenchmarkError("no C compiler: install one (Debian: apt install gcc libc6-dev)")
    built = {}
    for source in sorted(SOURCES.glob("*.c")):
        program = directory / source.stem
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
        if source.stem in LIBRARIES:
            command += ["-shared", "-fPIC"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip()}")
        built[source.stem] = program
    return built


def run_json(command: Sequence[str], core: int) -> dict[str, Any]:
    """Run ``command`` on ``core`` to its end and return the JSON object that it prints."""
    done = subprocess.run(list(command), capture_output=True, text=True, preexec_fn=pinned(core))
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def pinned(*cores: int) -> Callable[[], None]:
    """Return what keeps the process that calls it on ``cores``; without any it goes anywhere."""
    return lambda: os.sched_setaffinity(0, cores or os.sched_getaffinity(0))


class Program:
    """A server started for a benchmark; `wait_line` reads what it says first."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *cores: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=log.parent,
                env={**os.environ, **(environment or {})},
                preexec_fn=pinned(*cores),
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def wait_line(self) -> dict[str, Any]:
        """Return the JSON object on the first line of its output; raises if it ends before."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError(self.obituary())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def obituary(self) -> str:
        """Return what there is to say about a program that is not doing what it should."""
        last = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        state = self.process.poll()
        how = "does not answer" if state is None else f"ended with status {state}"
        return f"{' '.join(self.command)} {how}: {' | '.join(last) or 'no message'}"

    def stop(self) -> None:
        """End it and wait until it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, *cores: int, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Start ``command`` on ``cores``, its errors going to ``log``, and end it afterwards."""
    program = Program(command, log, *cores, environment=environment)
    try:
        yield program
    finally:
        program.stop()


def twistd(*arguments: str) -> list[str]:
    """Return the command that runs one of our services in the foreground, from this environment."""
    return [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", *arguments]


def free_port(kind: int = socket.SOCK_DGRAM) -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for_reflector(program: Program, port: int, probe: bytes | None = None) -> bytes:
    """Return what ``program`` answers on ``port`` to ``probe``, by default STAMP's, once it does."""
    until = time.monotonic() + READY_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(0.1)
        now = int(time.time()) + 2_208_988_800
        octets = probe or struct.pack(">IQHH28x", 0, now << 32, 0x8001, 1)
        while time.monotonic() < until and program.process.poll() is None:
            try:
                sock.send(octets)
                return sock.recv(2048)
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.05)
    raise BenchmarkError(program.obituary())
