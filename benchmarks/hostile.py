"""A reflector under attack: ten million forged sources, floods of twice what it can answer, and its end.

Real packets through a veth pair into the network namespace of a real ``twistd llama-reflector``. Memory,
answers, drops and how soon ``/metrics`` answers are taken from outside; replies are counted on the wire.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from benchmarks import kinds, machine
from benchmarks.figures import Claim, Report
from benchmarks.programs import READY_S, BenchmarkError, Program, run_json, running, twistd
from benchmarks.veth import FAR, NEAR, Cable, cable
from llama.wire import tlv

PORT = 8100
SOURCES = 10_000_000
WARM = 300_000  # sources after which every table has been full: memory is flat from there on
SHARE = 0.6  # of what the reflector can answer, at which the forged sources come
TIMES = 2.0  # what it can answer, at which the floods come
LIMIT = 20_000  # replies/s with the limits on
BURST = 10_000  # packets beyond the limit that its bucket holds
LIMITS = f"limits: {{pps: {LIMIT}, burst: {BURST}, pps_per_source: 100, burst_per_source: 1000}}\n"
ANSWERED = 'answered_total{format="stamp"}'
COLUMNS = (
    "what comes", "without/s", "offered/s", "answered/s", "µs CPU each", "limits refused %",
    "buffer dropped %", "MB before", "after", "/metrics ms", "worst",
)  # fmt: skip


class _Local(http.client.HTTPConnection):
    """HTTP over a Unix socket, which leads out of a network namespace."""

    def __init__(self, path: Path, patience_s: float) -> None:
        super().__init__("localhost", timeout=patience_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def configure(directory: Path, further: str) -> Path:
    """Write the reflector's configuration; return where."""
    path = directory / "reflector.yaml"
    path.write_text(
        f"addresses: [{FAR}]\nport: {PORT}\napi: {{bind: 'unix:{directory}/api.sock'}}\n" + further
    )
    return path


@define
class Siege:
    """A reflector in the far namespace; whoever attacks it is in the near one."""

    programs: Mapping[str, Path]
    directory: Path
    cable: Cable
    reflector: Program
    took_s: list[float] = field(factory=list)  #: what ``/metrics`` took, each time
    patience_s: float = 30.0  #: after which ``/metrics`` is said to hang

    def counts(self) -> dict[str, float]:
        """Return the reflector's own counts, by metric and label: ``dropped_total{reason="loop"}``.

        Raises OSError or `http.client.HTTPException` where it does not answer; that took its time, too.
        """
        begin = time.monotonic()
        connection = _Local(self.directory / "api.sock", self.patience_s)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
            self.took_s.append(time.monotonic() - begin)
        lines = re.findall(r"^llama_reflector_(\S+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in lines}

    def reload(self, further: str) -> None:
        """Have it go on with another configuration."""
        before = self.counts()["config_generation"]
        configure(self.directory, further)
        self.reflector.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + READY_S
        while self.counts()["config_generation"] == before:
            if time.monotonic() > until:
                raise BenchmarkError(self.reflector.obituary())
            time.sleep(0.05)

    def memory_mb(self) -> float:
        """Return what the reflector has resident, in units of 2**20 octets."""
        return machine.resident_mb(self.reflector.pid)

    def replies(self) -> int:
        """Return how many packets have come back over the cable, ARP's few among them."""
        said = subprocess.run(
            self.cable.inside(self.cable.near, "cat", "/sys/class/net/cable/statistics/rx_packets"),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(said.stdout)

    def spoof(self, *options: object) -> list[str]:
        """Return the command that sends forged probes; see ``spoof.c`` for its options."""
        command = [str(self.programs["spoof"]), "--host", FAR, "--port", str(PORT)]
        command += ["--behind", tlv.request(0, tlv.SIZE).hex()]
        return self.cable.inside(self.cable.near, *command, *map(str, options))

    def calm(self, seconds: float) -> tuple[float, float]:
        """Return how many probes/s it answers when no more come than that, and µs of CPU for each."""
        _, core = machine.cores()
        (ours,) = (kind for kind in kinds.kinds() if kind.name == "STAMP, our TLVs")
        command = [str(self.programs["load"]), "--host", FAR, "--port", str(PORT)]
        command += ["--replay", str(kinds.written(self.directory, ours))]
        command += ["--sockets", "64", "--window", "512", "--seconds", str(seconds)]
        command += ["--watch", str(self.reflector.pid)]
        found = run_json(self.cable.inside(self.cable.near, *command), core)
        return found["received"] / found["seconds"], found["cpu_ns"] / 1000 / found["received"]

    def attack(self, what: str, *options: object, ask_every_s: float = 0.1) -> dict[str, Any]:
        """Send forged probes, ask for ``/metrics`` meanwhile, and return a row of figures."""
        _, core = machine.cores()
        before, memory, replies = self.counts(), self.memory_mb(), self.replies()
        self.took_s = []
        with self.asking(ask_every_s):
            sent = run_json(self.spoof(*options), core)
        took_s = sorted(self.took_s)
        after = self._settled()
        came = {name: after[name] - before.get(name, 0.0) for name in after}
        answered = came[ANSWERED]
        limited = sum(n for name, n in came.items() if re.search("_rate|not_allowed", name))
        return {
            "what comes": what,
            "sent": sent["sent"],
            "sources": sent["sources"],
            "offered/s": sent["sent"] / sent["seconds"],
            "answered/s": answered / sent["seconds"],
            "µs CPU each": 1e6 * came["cpu_seconds_total"] / max(1.0, answered),
            "limits refused %": 100 * limited / sent["sent"],
            "buffer dropped %": 100 * came["receive_drops_total"] / sent["sent"],
            "MB before": memory,
            "after": self.memory_mb(),
            "/metrics ms": 1000 * statistics.median(took_s),
            "worst": 1000 * took_s[-1],
            "asked": len(took_s),
            "seconds": sent["seconds"],
            "counts": came,
            "replies": self.replies() - replies,
        }

    @contextlib.contextmanager
    def asking(self, every_s: float) -> Iterator[None]:
        """Ask for ``/metrics`` all the while; raises `BenchmarkError` at the end if once in vain."""
        over = threading.Event()
        failed: list[Exception] = []

        def ask() -> None:
            while True:
                try:
                    self.counts()
                except (OSError, http.client.HTTPException) as error:
                    failed.append(error)
                    return
                if over.wait(every_s):
                    return

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failed:
            raise BenchmarkError(
                f"/metrics did not answer under attack, within {self.took_s[-1]:.1f} s: {failed[0]!r}"
            )

    def _settled(self) -> dict[str, float]:
        """Return the counts once the reflector has read all that waits for it."""
        before = self.counts()
        while True:
            time.sleep(0.2)
            after = self.counts()
            if after["received_total"] == before["received_total"]:
                return after
            before = after

    def stop_under(self, *options: object) -> tuple[float, int]:
        """Send forged probes without end, end the reflector, and return how long that took, and how."""
        _, core = machine.cores()
        with running(self.spoof(*options), self.directory / "spoof.log", core):
            received = self.counts()["received_total"]
            time.sleep(1.0)
            if self.counts()["received_total"] == received:
                raise BenchmarkError("no forged probe arrives")
            begin = time.monotonic()
            self.reflector.process.send_signal(signal.SIGTERM)
            status = self.reflector.process.wait(60)
            return time.monotonic() - begin, status


@contextlib.contextmanager
def siege(programs: Mapping[str, Path], directory: Path, further: str = "") -> Iterator[Siege]:
    """Start a reflector behind a cable, with ``further`` in its configuration, and end it afterwards."""
    core, _ = machine.cores()
    with cable() as made:
        for setting in ("all", "default", "cable"):  # sources that are behind no route of theirs
            _in(made, "sysctl", "-qw", f"net.ipv4.conf.{setting}.rp_filter=0")
        _in(made, "ip", "route", "add", "10.0.0.0/8", "via", NEAR)
        config = configure(directory, further)
        command = made.inside(made.far, *twistd("llama-reflector", "--config", str(config)))
        with running(command, directory / "reflector.log", core) as program:
            found = Siege(programs, directory, made, program)
            until = time.monotonic() + READY_S
            while True:
                try:
                    found.counts()
                    break
                except OSError:
                    if time.monotonic() > until or program.process.poll() is not None:
                        raise BenchmarkError(program.obituary()) from None
                    time.sleep(0.05)
            yield found


def _in(made: Cable, *command: str) -> None:
    done = subprocess.run(made.inside(made.far, *command), capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip()}")


def run(
    programs: Mapping[str, Path],
    directory: Path,
    seconds: float = 10.0,
    sources: int = SOURCES,
) -> Report:
    """Attack a reflector with ``sources`` forged addresses and floods of ``seconds``, then end it."""
    rows = []
    with siege(programs, directory) as attacked:

        def flood(what: str, *options: object) -> tuple[float, float]:
            """Add a row for a flood; return its share of answers, and of CPU for each, of the calm."""
            rate, cpu_us = attacked.calm(seconds / 4)
            row = attacked.attack(what, "--rate", TIMES * rate, "--seconds", seconds, *options)
            rows.append({**row, "without/s": rate})
            return row["answered/s"] / rate, row["µs CPU each"] / cpu_us

        rate, _ = attacked.calm(seconds / 4)
        fill = ("--count", WARM, "--rate", SHARE * rate)
        attacked.attack("to fill the tables", *fill)
        million = attacked.attack(
            f"{sources:,} sources", "--count", sources, "--rate", SHARE * rate,
            "--first", "10.100.0.0",
        )  # fmt: skip
        rows.append({**million, "without/s": rate})
        known = flood("flood, 64 sources", "--sources", 64)
        forged = flood("flood, forged")
        attacked.reload(LIMITS)
        attacked.attack("to fill the tables of the limits", *fill)
        limited = attacked.attack("flood, limits", "--rate", TIMES * rate, "--seconds", seconds)
        rows.append(limited)
        attacked.reload("")
        stopped_s, status = attacked.stop_under("--rate", TIMES * rate)
    if status not in (0, -signal.SIGTERM):
        raise BenchmarkError(f"the reflector ended with status {status}")
    unaccounted = million["sent"] - million["counts"]["received_total"]
    unaccounted -= million["counts"]["receive_drops_total"]
    growth = [row["after"] - row["MB before"] for row in rows]
    held = (limited["counts"][ANSWERED] - BURST) / limited["seconds"] / LIMIT
    offered = min(row["offered/s"] / row["answered/s"] for row in rows[1:3])
    return Report(
        "Reflector, under attack",
        COLUMNS,
        tuple(rows),
        (
            Claim("forged sources neither received nor dropped by the kernel", unaccounted, "== 0"),
            Claim("memory that they take, MB", growth[0], "<= 2"),
            Claim("memory that a flood takes, MB", max(growth[1:]), "<= 2"),
            Claim("offered / answered, in floods", offered, ">= 1.9"),
            Claim("answered, flood of 64 sources / without", known[0], ">= 0.9"),
            Claim("the same, CPU for each", known[1], "<= 1.1"),
            Claim("answered, flood of forged sources / without", forged[0], ">= 0.8"),
            Claim("the same, CPU for each", forged[1], "<= 1.3"),
            Claim("answered with limits / the limit, at most", held, "<= 1.02"),
            Claim("the same, at least", held, ">= 0.9"),
            Claim("/metrics at worst, ms", max(row["worst"] for row in rows), "<= 250"),
            Claim("SIGTERM in the flood to its end, s", stopped_s, "<= 2"),
        ),
        (
            f"Reflector on core {machine.cores()[0]}, attacker on core {machine.cores()[1]}, a veth pair"
            f" between them. Without: what it answers just before, from 64 source ports (load.c, 512"
            f" outstanding). Forged sources come at {SHARE:g} times that, floods at {TIMES:g} times, for"
            f" {seconds:g} s; limits are {LIMIT:,} replies/s. MB before: after {WARM:,} other sources.",
            f"Replies seen on the wire / counted as answered, forged sources:"
            f" {million['replies']:,} / {million['counts'][ANSWERED]:,.0f}.",
        ),
    )
