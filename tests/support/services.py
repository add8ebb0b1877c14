"""LLAMA's own services as tests run them: real twistd processes, ended by pid."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import free_port

BIN = Path(sys.executable).parent


def until(wanted: Callable[[], Any], what: str, within_s: float = 60) -> Any:
    """Return what ``wanted`` returns once that is true; fail if it does not become so in time."""
    give_up = time.monotonic() + within_s
    last: Any = None
    while time.monotonic() < give_up:
        try:
            last = wanted()
        except (OSError, RuntimeError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.1)
    raise AssertionError(f"waited {within_s} s in vain for {what}; at last: {last!r}")


class Service:
    """One twistd plugin, running from `start` to `stop`; its log stands in ``log``."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self.arguments = arguments
        self.directory = Path(tempfile.mkdtemp(prefix="llama-test-"))
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return [str(BIN / "twistd"), "-n", "--pidfile=", self.name, *self.arguments]

    def start(self) -> Service:
        """Start it; it may not answer yet."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        return self

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, how: int = signal.SIGTERM) -> int | None:
        """End it, if it runs, and return its exit status."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        try:
            status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        return status

    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")


class Collector(Service):
    """A collector of a configuration that is given as text, with its HTTP on a free port."""

    def __init__(self, configuration: str) -> None:
        self.api = f"127.0.0.1:{free_port()}"
        super().__init__("llama-collector", "--config", "collector.yaml", "--api", self.api)
        self.configure(configuration)

    def configure(self, configuration: str) -> None:
        """Write the configuration file."""
        (self.directory / "collector.yaml").write_text(configuration)

    def get(self, path: str) -> Any:
        """Return the JSON at ``path``."""
        with urllib.request.urlopen(f"http://{self.api}{path}", timeout=10) as answer:
            return json.load(answer)

    def points(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the newest fields of every pair, by target's name and class."""
        return {
            (p["tags"]["dst_hostname"], p["tags"]["class"]): {**p["fields"], "time": p["time"]}
            for p in self.get("/influxdata")
            if p["measurement"] == "raw_stats"
        }

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], Any], what: str, name: str = "a", cls: str = "BE"
    ) -> dict[str, Any]:
        """Return the newest fields of a pair once ``wanted`` holds for them."""

        def look() -> Any:
            fields = self.points().get((name, cls))
            return fields if fields is not None and wanted(fields) else None

        found: dict[str, Any] = until(look, what)
        return found


def configuration(port: int, *, interval_s: int = 1, cps: float = 20, **extra: Any) -> str:
    """A collector's configuration: hosts a and b on loopback, four source ports."""
    targets = extra.pop("targets", {"a": "127.0.0.1", "b": "127.0.0.2"})
    lines = [
        f"summarization: {{interval: {interval_s}}}",
        f"ports: {{default: {{ip: 0.0.0.0, port: 0, tos: 0, timeout: {extra.pop('timeout', 300)}}}}}",
        "port_groups: {default: [{port: default, count: 4}]}",
        f"rate_limits: {{default: {{cps: {cps}}}}}",
        f"tests: [{{targets: default, port_group: default, rate_limit: default{_more(extra)}}}]",
        "targets:",
        "  default:",
    ]
    lines += [
        f"    - {{ip: '{ip}', port: {port}, tags: {{dst_hostname: {name}, rack: 01}}}}"
        for name, ip in targets.items()
    ]
    return "\n".join(lines) + "\n"


def _more(extra: dict[str, Any]) -> str:
    return "".join(f", {key}: {json.dumps(value)}" for key, value in extra.items())
