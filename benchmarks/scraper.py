"""What a point costs on its way from a collector into a database."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from benchmarks import machine
from benchmarks.figures import Claim, Report
from benchmarks.programs import BenchmarkError, Program, free_port, running, twistd

COLLECTORS, PAIRS = 100, 1000
INTERVAL_S = 30
WARM_UP_S = 180
WANTED_PER_S = COLLECTORS * PAIRS / INTERVAL_S
ROOT = str(Path(__file__).parent.parent)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def _wait(url: str, program: Program) -> None:
    """Wait until something answers at ``url``."""
    until = time.monotonic() + 30
    while time.monotonic() < until and program.process.poll() is None:
        try:
            _get(url)
            return
        except OSError:
            time.sleep(0.1)
    raise BenchmarkError(program.obituary())


def _influxd(directory: Path, port: int) -> Path:
    """Write a configuration for InfluxDB 1.x and return where it is."""
    path = directory / "influxdb.conf"
    path.write_text(
        f'reporting-disabled = true\nbind-address = "127.0.0.1:{free_port(socket.SOCK_STREAM)}"\n'
        f'[meta]\n dir = "{directory}/meta"\n'
        f'[data]\n dir = "{directory}/data"\n wal-dir = "{directory}/wal"\n'
        f'[http]\n bind-address = "127.0.0.1:{port}"\n log-enabled = false\n'
        "[monitor]\n store-enabled = false\n"
    )
    return path


def _written(api: str) -> float:
    found = re.search(r"points_written_total\{[^}]*\} ([0-9.e+]+)", _get(f"{api}/metrics"))
    return float(found[1]) if found else 0.0


def measure(directory: Path, writer: dict[str, Any], fleet: int, seconds: float) -> dict[str, Any]:
    """Run a scraper with one writer and return its figures over ``seconds``."""
    mine, _ = machine.cores()
    api = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
    config = directory / "scraper.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "interval": INTERVAL_S,
                "collectors": [f"http://127.0.0.1:{fleet}/{n}" for n in range(COLLECTORS)],
                "writers": [writer],
                "spool": {"path": str(directory / f"spool-{writer['type']}.db")},
                "api": {"bind": api},
            }
        )
    )
    command = twistd("llama-scraper", "--config", str(config))
    log = directory / f"scraper-{writer['type']}.log"
    with running(command, log, mine, environment={"PYTHONPATH": ROOT}) as program:
        _wait(f"http://{api}/status", program)
        until = time.monotonic() + WARM_UP_S
        while _written(f"http://{api}") < COLLECTORS * PAIRS:  # every series is known
            if time.monotonic() > until or program.process.poll() is not None:
                raise BenchmarkError(
                    f"{writer['type']}: too slow to begin with: {_get(f'http://{api}/state')[-300:]}"
                )
            time.sleep(0.5)
        points, cpu_ns, start = _written(f"http://{api}"), machine.cpu_ns(program.pid), time.time()
        time.sleep(seconds)
        points = _written(f"http://{api}") - points
        cpu_s, took_s = (machine.cpu_ns(program.pid) - cpu_ns) / 1e9, time.time() - start
        state = json.loads(_get(f"http://{api}/state"))
        memory = machine.resident_mb(program.pid)
    if not points:
        raise BenchmarkError(f"{writer['type']}: nothing was written: {state['writers']}")
    return {
        "database": writer["type"],
        "points/s": points / took_s,
        "µs CPU/point": cpu_s / points * 1e6,
        "core %": 100 * cpu_s / took_s,
        "core % at 3,333/s": WANTED_PER_S * cpu_s / points * 100,
        "points waiting": sum(w["queue_points"] for w in state["writers"].values()),
        "MB resident": memory,
    }


def run(directory: Path, rounds: int) -> Report:
    """Measure the scraper with a hundred collectors of a thousand pairs, into two databases."""
    if shutil.which("influxd") is None:
        raise BenchmarkError("influxd is not installed (Debian: apt install influxdb)")
    _, other = machine.cores()
    port = free_port(socket.SOCK_STREAM)
    influx = ["influxd", "run", "-config", str(_influxd(directory, port))]
    fleet = [sys.executable, "-m", "benchmarks.fleet", str(PAIRS), str(INTERVAL_S)]
    with (
        running(influx, directory / "influxd.log", other) as database,
        running(fleet, directory / "fleet.log", other, environment={"PYTHONPATH": ROOT}) as load,
    ):
        collectors = int(load.wait_line()["port"])
        _wait(f"http://127.0.0.1:{port}/ping", database)
        url = f"http://127.0.0.1:{port}"
        rows = [
            measure(directory, writer, collectors, max(1, rounds - 1) * INTERVAL_S)
            for writer in (
                {"type": "influxdb", "url": url, "database": "llama", "create": True},
                {"type": "sqlite", "path": str(directory / "store.db")},
            )
        ]
    return Report(
        "Scraper, 100 collectors x 1,000 points",
        tuple(rows[0]),
        tuple(rows),
        (
            Claim("InfluxDB, core % at 100 x 1,000 points per 30 s", rows[0]["core % at 3,333/s"],
                  "<= 50"),
            Claim("MB resident, the most", max(row["MB resident"] for row in rows), "<= 250"),
        ),
        ("Through the spool on disk; InfluxDB and the collectors share the other core.",),
    )  # fmt: skip
