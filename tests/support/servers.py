"""Real databases for tests: each on a free loopback port, in a directory of its own, ended by pid."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """Return a TCP port, or one of another kind, that nothing is bound to just now.

    None that the system gives to whoever asks for any: who is meant to have it is not there yet.
    """
    while True:
        number = random.randrange(10_000, 32_000)
        with socket.socket(socket.AF_INET, kind) as probe, contextlib.suppress(OSError):
            probe.bind(("", number))
            return number


def free_udp_port() -> int:
    """Return a UDP port that nothing is bound to just now."""
    return free_port(socket.SOCK_DGRAM)


def die_with_parent() -> None:
    """Let the kernel end a child when the tests are killed; for ``preexec_fn``."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    """A program that serves HTTP. Its data outlives `kill`, so that it can be started again."""

    program = ""
    ready_path = "/"

    def __init__(self) -> None:
        if shutil.which(self.program) is None:
            raise unittest.SkipTest(f"{self.program} is not installed; try: make system")
        self.directory = Path(tempfile.mkdtemp(prefix="llama-test-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and return once it answers."""
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )
        give_up = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(self.url + self.ready_path, timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    log_text = (self.directory / "log").read_text(errors="replace")
                    raise RuntimeError(
                        f"{self.program} did not start:\n{log_text[-2000:]}"
                    ) from None
                time.sleep(0.05)

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End it at once, as a crash would; its data stay."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def get(self, path: str, query: dict[str, str], authorization: str = "") -> bytes:
        """Return what it answers to a query, blocking."""
        request = urllib.request.Request(f"{self.url}{path}?{urllib.parse.urlencode(query)}")
        if authorization:
            request.add_header("Authorization", authorization)
        with urllib.request.urlopen(request, timeout=20) as response:
            answer: bytes = response.read()
        return answer


class Influx(Server):
    """InfluxDB 1.x; with ``user``, it wants that user (an admin) and password.

    ``max_rows``: answers that are not asked for in chunks are cut off there; 0: never.
    """

    program = "influxd"
    ready_path = "/ping"

    def __init__(self, user: str = "", password: str = "", max_rows: int = 0) -> None:
        super().__init__()
        self.user, self.password = user, password
        self.max_rows = max_rows
        self._configure(auth=False)

    def _configure(self, *, auth: bool) -> None:
        (self.directory / "influxdb.conf").write_text(
            f"""
reporting-disabled = true
bind-address = "127.0.0.1:{free_port()}"
[meta]
  dir = "{self.directory}/meta"
[data]
  dir = "{self.directory}/data"
  wal-dir = "{self.directory}/wal"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:{self.port}"
  log-enabled = false
  max-row-limit = {self.max_rows}
  auth-enabled = {str(auth).lower()}
[monitor]
  store-enabled = false
[retention]
  enabled = false
"""
        )

    def command(self) -> list[str]:
        """Return the command line."""
        return [self.program, "run", "-config", str(self.directory / "influxdb.conf")]

    def start(self) -> None:
        """Start it; the first time, make the user."""
        super().start()
        if self.user and not (self.directory / "user").exists():
            self.run(f"CREATE USER {self.user} WITH PASSWORD '{self.password}' WITH ALL PRIVILEGES")
            (self.directory / "user").touch()
            self.kill(signal.SIGTERM)
            self._configure(auth=True)
            super().start()

    def _post(self, path: str, body: str) -> bytes:
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=body.encode(),
            headers={"Authorization": f"Basic {pair}"} if self.user else {},
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            answer: bytes = response.read()
        return answer

    def write(self, database: str, lines: str) -> None:
        """Write line protocol, as someone else would."""
        self._post(f"/write?{urllib.parse.urlencode({'db': database})}", lines)

    def run(self, query: str, database: str = "") -> list[dict[str, Any]]:
        """Run a query and return its rows as dicts, times in nanoseconds."""
        form = urllib.parse.urlencode({"q": query, "db": database, "epoch": "ns"})
        result = json.loads(self._post("/query", form))["results"][0]
        if "error" in result:
            raise RuntimeError(result["error"])
        return [
            dict(zip(series["columns"], row, strict=True)) | series.get("tags", {})
            for series in result.get("series", [])
            for row in series["values"]
        ]


class Victoria(Server):
    """VictoriaMetrics, removing samples that were written twice."""

    program = "victoria-metrics"
    ready_path = "/health"
    arguments: Sequence[str] = ()  # further ones

    def command(self) -> list[str]:
        """Return the command line."""
        return [
            self.program,
            f"-storageDataPath={self.directory}/data",
            f"-httpListenAddr=127.0.0.1:{self.port}",
            "-dedup.minScrapeInterval=1ms",
            "-search.latencyOffset=0s",
            "-retentionPeriod=100y",
            *self.arguments,
        ]

    def export(self, match: str) -> list[dict[str, Any]]:
        """Return all series that match: ``metric`` (labels), ``values``, ``timestamps`` (ms)."""
        self.get("/internal/force_flush", {})
        answer = self.get(
            "/api/v1/export", {"match[]": match, "start": "0", "reduce_mem_usage": "0"}
        )
        return [json.loads(line) for line in answer.splitlines()]
