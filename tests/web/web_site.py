"""A llama-web process over a store that is filled for a test, and a real browser to look at it."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from llama.interfaces import Point
from llama.scraper.writers import sqlite as writer
from llama.scraper.writers import sqlite_schema as schema

OUTPUT = Path(__file__).parent.parent.parent / "test-output"
CHROMIUM = "/usr/bin/chromium"
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def fill(path: Path, points: Iterable[Point]) -> None:
    """Put points into an embedded store, in the scraper's own schema."""
    db = sqlite3.connect(path, timeout=10)
    writer.prepare(db)
    db.execute("PRAGMA synchronous=OFF")
    ids: dict[tuple[str, str], int] = {}
    rows, windows = [], set()
    with db:
        for point in points:
            tags = orjson.dumps(dict(point.tags), option=orjson.OPT_SORT_KEYS).decode()
            key = point.measurement, tags
            if key not in ids:
                db.execute("INSERT OR IGNORE INTO series (measurement, tags) VALUES (?, ?)", key)
                query = "SELECT id FROM series WHERE measurement = ? AND tags = ?"
                ids[key] = db.execute(query, key).fetchone()[0]
            time_ms = point.time_ns // 1_000_000
            windows.add(-(-time_ms // schema.WINDOW_MS) * schema.WINDOW_MS)
            rows.append((time_ms, ids[key], *map(point.fields.get, schema.FIELDS), None))
        db.executemany(schema.UPSERT, rows)
        db.executemany("INSERT OR IGNORE INTO unrolled VALUES (?)", [(w,) for w in windows])
    db.close()


class Site:
    """``twistd llama-web`` on a free port of localhost."""

    def __init__(self, **more: object) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="llama-test-"))
        self.store = self.directory / "store.sqlite"
        self.config = {"listen": "tcp:0:interface=127.0.0.1",
                       "store": {"type": "sqlite", "path": str(self.store)}, **more}  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        atexit.register(self.stop)

    def start(self) -> None:
        """Start it and return once it listens."""
        path = self.directory / "web.yaml"
        path.write_text(json.dumps(self.config))  # JSON is YAML
        twistd = str(Path(sys.executable).with_name("twistd"))
        self._process = subprocess.Popen(
            [twistd, "-n", "--pidfile=", "llama-web", "--config", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.directory,
        )
        lines: list[str] = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            lines.append(line)
            if found := re.search(r"llama-web: (http://[0-9.:]+)/", line):
                self.url = found[1]
                break
        else:
            raise RuntimeError("llama-web did not start:\n" + "".join(lines))
        stream = self._process.stdout
        # Somebody must read, else it stops at a full pipe.
        self.log = lines
        threading.Thread(target=lambda: lines.extend(stream), daemon=True).start()

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the process; the store stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Feed:
    """Writes a fleet's points as they fall due, in a thread of its own."""

    def __init__(self, path: Path, fleet: Any, since_s: float) -> None:
        self.fleet = fleet
        self._path = path
        self._written_s = since_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            now_s = time.time()
            points = list(self.fleet.points(self._written_s, now_s))
            self._written_s = now_s
            if points:
                fill(self._path, points)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join()


class Chromium:
    """One real Chromium for all tests of a process, started when it is first wanted."""

    _browser: Any = None

    @classmethod
    def page(cls, **context: Any) -> Any:
        """Return a new page in a context of its own; its ``mistakes`` are to stay empty."""
        if cls._browser is None:
            if shutil.which(CHROMIUM) is None:
                raise unittest.SkipTest("chromium is not installed; try: make system")
            from playwright.sync_api import sync_playwright

            playwright = sync_playwright().start()
            cls._browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=list(_ARGUMENTS)
            )
            atexit.register(cls._close, playwright)
        made = cls._browser.new_context(
            **{"viewport": {"width": 1440, "height": 900}, "timezone_id": "UTC", **context}
        )
        page = made.new_page()
        page.set_default_timeout(60_000)
        return page

    @classmethod
    def _close(cls, playwright: Any) -> None:
        cls._browser.close()
        playwright.stop()
