"""What a probe costs: our collector against the bare prober in C, and what it takes to keep many.

Both probe the echo in C, which answers on every loopback address and counts in a file what it has
received, so that a collector's probes are counted without asking it. The collector has one core,
the echo the other.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import define, field, frozen

from benchmarks import machine
from benchmarks.figures import Claim, Report, ratio
from benchmarks.programs import BenchmarkError, Program, free_port, run_json, running, twistd

INTERVAL_S = 10
PORTS = 4  # source ports, of ours and of the prober in C
OURS, C = "llama-collector", "C prober"
LAG = "llama_collector_tick_lag_seconds"
DROPS = "llama_collector_receive_drops_total"
FIRST_TARGET = 0x7F010001  # 127.1.0.1, as prober.c has it


@frozen
class Load:
    """What a collector is to probe, and how often in all."""

    targets: int
    ports: int
    rate_pps: float

    def config(self, echo_port: int, api_port: int) -> str:
        """Return the collector's configuration."""
        cps = self.rate_pps / (self.targets * self.ports)
        hosts = (socket.inet_ntoa(struct.pack(">I", FIRST_TARGET + i)) for i in range(self.targets))
        places = "\n".join(f"    - {{ip: {host}, port: {echo_port}}}" for host in hosts)
        return (
            f"summarization: {{interval: {INTERVAL_S}}}\n"
            f"api: {{bind: '127.0.0.1:{api_port}'}}\n"
            "ports: {any: {port: 0, timeout: 1000}}\n"
            f"port_groups: {{all: [{{port: any, count: {self.ports}}}]}}\n"
            f"rate_limits: {{even: {{cps: {cps:.6f}}}}}\n"
            "tests: [{targets: loopback, port_group: all, rate_limit: even}]\n"
            f"targets:\n  loopback:\n{places}\n"
        )


@frozen
class Echo:
    """The echo in C, running."""

    port: int
    counters: Path

    def received(self) -> int:
        """Return how many probes have reached it since it was started."""
        count: int = struct.unpack_from("@Q", self.counters.read_bytes())[0]
        return count


@define
class Collector:
    """Our collector, running."""

    program: Program
    url: str

    def get(self, path: str) -> bytes:
        """Return what it answers to a GET."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                body: bytes = response.read()
        except (OSError, urllib.error.URLError) as e:
            raise BenchmarkError(f"GET {path}: {e}; {self.program.obituary()}") from None
        return body

    def metric(self, name: str) -> float:
        """Return the largest value of one of its metrics over all labels."""
        text = self.get("/metrics").decode()
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        if not found:
            raise BenchmarkError(f"the collector has no metric {name}")
        return max(map(float, found))

    def totals(self) -> dict[str, float]:
        """Return sums over all intervals held: sent, received, lost, and how many are suspect."""
        sums = dict.fromkeys(("sent", "received", "lost", "late"), 0.0)
        suspect = 0
        for point in json.loads(self.get("/influxdata?since=")):
            if point["measurement"] == "raw_stats":
                for name in sums:
                    sums[name] += point["fields"].get(name, 0.0)
                suspect += bool(point["fields"].get("suspect"))
        return {**sums, "suspect points": suspect}


@contextlib.contextmanager
def echo(programs: Mapping[str, Path], directory: Path, buffer: int = 8 << 20) -> Iterator[Echo]:
    """Run the echo in C on every address, in batches of 64."""
    _, core = machine.cores()
    counters = directory / "echo.counters"
    counters.unlink(missing_ok=True)
    command = [str(programs["echo"]), "--bind", "0.0.0.0", "--buffer", str(buffer)]
    command += ["--counters", str(counters)]
    with running(command, directory / "echo.log", core) as program:
        yield Echo(program.wait_line()["port"], counters)


@contextlib.contextmanager
def collector(
    load: Load, target: Echo, directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Collector]:
    """Run our collector and wait until it probes at its full rate."""
    core, _ = machine.cores()
    api_port = free_port(socket.SOCK_STREAM)
    config = directory / "collector.yaml"
    config.write_text(load.config(target.port, api_port))
    command = twistd("llama-collector", "--config", str(config))
    with running(command, directory / "collector.log", core, environment=environment) as program:
        until = time.monotonic() + 60
        reached = target.received()
        while True:
            time.sleep(0.5)
            before, reached = reached, target.received()
            if reached - before > 0.4 * load.rate_pps:
                break
            if time.monotonic() > until or program.process.poll() is not None:
                raise BenchmarkError(program.obituary())
        yield Collector(program, f"http://127.0.0.1:{api_port}")


def _next_close() -> float:
    """Return how long it takes until an aligned interval ends."""
    return INTERVAL_S - time.time() % INTERVAL_S


def _wait_until_settled() -> None:
    """Wait until the first interval has closed, which names every series once and for all."""
    time.sleep(_next_close() + INTERVAL_S / 2)


def cost(running_collector: Collector, target: Echo, seconds: float) -> dict[str, float]:
    """Return what a probe of our collector costs over ``seconds``."""
    pid = running_collector.program.pid
    cpu, reached, begin = machine.cpu_ns(pid), target.received(), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begin
    cpu, reached = machine.cpu_ns(pid) - cpu, target.received() - reached
    return {
        "µs CPU/probe": cpu / 1000 / max(1, reached),
        "probes/s": reached / took,
        "core busy %": cpu / took / 1e7,
    }


def bare_cost(
    prober: Path, load: Load, target: Echo, seconds: float, warmup: float = 1.0
) -> dict[str, float]:
    """Return what a probe of the prober in C costs over ``seconds``."""
    core, _ = machine.cores()
    answer = run_json(
        [
            str(prober),
            *("--port", str(target.port)),
            *("--rate", str(load.rate_pps)),
            *("--targets", str(load.targets)),
            *("--sockets", str(load.ports)),
            *("--seconds", str(seconds)),
            *("--warmup", str(warmup)),
        ],
        core,
    )
    return {
        "µs CPU/probe": answer["cpu_ns"] / 1000 / max(1, answer["sent"]),
        "probes/s": answer["sent"] / answer["seconds"],
        "core busy %": answer["cpu_ns"] / answer["seconds"] / 1e7,
    }


def _mean_row(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(row[key] for row in found) for key in found[0]}


def _median_row(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in found) for key in found[0]}


def speed(
    programs: Mapping[str, Path], directory: Path, rounds: int = 3, ours: bool = True
) -> Report:
    """Measure ours against the prober in C at two rates, over one whole interval at a time."""
    rows, claims = [], []
    for rate, wanted in ((8_000, "<= 1.8"), (60_000, "<= 1.6")):
        load = Load(1000, PORTS, rate)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            with echo(programs, directory) as target:
                # Before ours and after it: a machine that gets slower meanwhile slows both.
                bare = [bare_cost(programs["prober"], load, target, INTERVAL_S / 4)]
                if ours:
                    with collector(load, target, directory) as measured:
                        _wait_until_settled()
                        found.setdefault(OURS, []).append(cost(measured, target, INTERVAL_S))
                bare.append(bare_cost(programs["prober"], load, target, INTERVAL_S / 4))
                found.setdefault(C, []).append(_mean_row(bare))
        rows += [
            {"prober": name, "wanted/s": rate, **_median_row(figures)}
            for name, figures in found.items()
        ]
        if ours:
            ours_cost, bare_costs = (
                [row["µs CPU/probe"] for row in found[name]] for name in (OURS, C)
            )
            claims.append(ratio(f"at {rate:,} probes/s, ours / C", ours_cost, bare_costs, wanted))
    core, echo_core = machine.cores()
    return Report(
        "Collector",
        ("prober", "wanted/s", "µs CPU/probe", "probes/s", "core busy %"),
        tuple(rows),
        tuple(claims),
        (
            f"Probers on core {core}, echo in C on core {echo_core}; 1,000 targets x {PORTS} source"
            f" ports; medians of {rounds} rounds; ours over a whole interval of {INTERVAL_S} s, a"
            " closing included, after the first has closed.",
        ),
    )


def growth(
    programs: Mapping[str, Path], directory: Path, rounds: int = 3, rate_pps: float = 8_000
) -> Report:
    """Measure ours with 100, 1,000 and 10,000 targets at one and the same rate, in turn."""
    found: dict[int, list[dict[str, float]]] = {}
    for targets in (100, 1_000, 10_000) * rounds:
        load = Load(targets, PORTS, rate_pps)
        with echo(programs, directory) as target, collector(load, target, directory) as measured:
            _wait_until_settled()
            figures = cost(measured, target, INTERVAL_S)
            figures["RSS MB"] = machine.resident_mb(measured.program.pid)
        found.setdefault(targets, []).append(figures)
    rows = [
        {"targets": targets, "flows": targets * PORTS, **_median_row(figures)}
        for targets, figures in found.items()
    ]
    costs = [row["µs CPU/probe"] for row in rows]
    return Report(
        "Collector, growth",
        ("targets", "flows", "µs CPU/probe", "probes/s", "RSS MB"),
        tuple(rows),
        (Claim("dearest / cheapest probe", max(costs) / min(costs), "<= 1.2"),),
        (
            f"{rate_pps:,.0f} probes/s in all; medians of {rounds} rounds, each over a whole interval"
            f" of {INTERVAL_S} s after the first has closed.",
        ),
    )


@define
class Scrape:
    """Asks for ``/influxdata`` again and again in a thread, as a scraper would."""

    collector: Collector
    slowest_s: float = 0.0
    lag_s: float = 0.0  #: the longest that the collector told of meanwhile
    answers: int = 0
    octets: int = 0
    error: str = ""
    _stop: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Scrape:
        """Begin."""
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(1.0):
            begin = time.monotonic()
            try:
                self.octets = len(self.collector.get("/influxdata"))
                self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
                self.lag_s = max(self.lag_s, self.collector.metric(LAG))
            except BenchmarkError as e:
                self.error = str(e)
                return
            self.answers += 1


def burden(programs: Mapping[str, Path], directory: Path, rate_pps: float = 8_000) -> Report:
    """Measure memory and tick lag with 10,000 targets x 16 flows while it is being scraped."""
    load = Load(10_000, 16, rate_pps)
    with echo(programs, directory) as target, collector(load, target, directory) as measured:
        time.sleep(_next_close() + INTERVAL_S + 2)  # two intervals have closed: all is allocated
        quiet_ms = measured.metric(LAG) * 1000
        with Scrape(measured) as scrape:
            time.sleep(2 * INTERVAL_S)
        if scrape.error:
            raise BenchmarkError(scrape.error)
        lag_ms = scrape.lag_s * 1000
        figures = cost(measured, target, 2.0)
        memory = machine.resident_mb(measured.program.pid)
        totals = measured.totals()
    found = {
        "flows": load.targets * load.ports,
        "memory, MB resident": memory,
        "longest tick lag before, ms": quiet_ms,
        "longest tick lag while scraped, ms": lag_ms,
        "answers to /influxdata": scrape.answers,
        "size of an answer, MB": scrape.octets / 2**20,
        "slowest answer, s": scrape.slowest_s,
        **figures,
        **totals,
    }
    return Report(
        "Collector, 10,000 targets x 16 flows",
        ("what", "figure"),
        tuple({"what": what, "figure": figure} for what, figure in found.items()),
        (
            Claim("memory, MB resident", memory, "<= 250"),
            Claim("tick lag while closing and answering /influxdata, ms", lag_ms, "<= 5"),
        ),
        (
            f"{rate_pps:,.0f} probes/s, intervals of {INTERVAL_S} s, asked for /influxdata once a"
            " second; the lag is the collector's own metric, the longest of the last intervals.",
        ),
    )


def sustained(programs: Mapping[str, Path], directory: Path, seconds: float) -> Report:
    """Probe 10,000 targets for ``seconds``, with large and with stock socket buffers."""
    rows, claims = [], []
    for rate, buffers in ((10_000, "as configured"), (5_000, "stock")):
        load = Load(10_000, PORTS, rate)
        stock = buffers == "stock"
        preload = {"LD_PRELOAD": str(programs["stock"])} if stock else None
        with (
            echo(programs, directory, 0 if stock else 8 << 20) as target,
            collector(load, target, directory, preload) as measured,
        ):
            time.sleep(seconds)
            time.sleep(_next_close() + 3)  # the last interval has closed
            found = {"dropped at our sockets": measured.metric(DROPS), **measured.totals()}
            rows.append({"buffers": buffers, "wanted/s": rate, "seconds": seconds, **found})
        claims.append(Claim(f"probes lost, {buffers} buffers, {rate:,}/s", found["lost"], "== 0"))
    return Report("Collector, sustained", tuple(rows[0]), tuple(rows), tuple(claims))
