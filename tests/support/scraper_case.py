"""What the scraper's tests have in common: collectors, a scraper, and readers of databases."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_collector import FakeCollector
from servers import Influx, Victoria
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from llama.config import ScraperConfig, WriterConfig
from llama.scraper.service import ScraperService

Ledger = dict[tuple[str, int], dict[str, float]]

NOW = 1_700_000_010


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
    """Wait for a condition."""
    give_up = reactor.seconds() + timeout_s
    while not condition():
        if reactor.seconds() > give_up:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await deferLater(reactor, 0.02)


def influx_rows(server: Influx, source: str) -> Ledger:
    """Return what InfluxDB holds of one source in the form of a ledger."""
    rows = server.run(f"SELECT * FROM raw_stats WHERE src_hostname = '{source}'", "llama")
    names = {"dst_hostname", "src_hostname", "time", "rack", "class"}
    return {
        (row["dst_hostname"], row["time"] // 10**9): {
            name: value for name, value in row.items() if name not in names and value is not None
        }
        for row in rows
    }


def sqlite_rows(path: Path, source: str) -> Ledger:
    """Return what the embedded store holds of one source in the form of a ledger."""
    if not path.exists():
        return {}
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    try:
        rows = db.execute(
            "SELECT samples.*, tags ->> 'dst_hostname' AS dst FROM samples"
            " JOIN series ON series.id = series_id WHERE tags ->> 'src_hostname' = ?",
            (source,),
        ).fetchall()
    except sqlite3.OperationalError:
        rows = []  # not created yet
    db.close()
    names = {"dst", "time_ms", "series_id", "more"}
    return {
        (row["dst"], row["time_ms"] // 1000): {
            name: row[name] for name in set(row.keys()) - names if row[name] is not None
        }
        for row in rows
    }


def victoria_rows(server: Victoria, source: str) -> Ledger:
    """Return what VictoriaMetrics holds of one source in the form of a ledger."""
    ledger: Ledger = {}
    for series in server.export(f'{{src_hostname="{source}"}}'):
        field = series["metric"]["__name__"].removeprefix("raw_stats_")
        for time_ms, value in zip(series["timestamps"], series["values"], strict=True):
            row = ledger.setdefault((series["metric"]["dst_hostname"], time_ms // 1000), {})
            if field in row:
                raise AssertionError(f"{field} is there twice")
            row[field] = value
    return ledger


def left_by_kills(path: Path, make: Callable[[sqlite3.Connection], Any]) -> list[Path]:
    """Return what is left of a database when its process is killed before each statement of ``make``."""
    left: list[Path] = []

    def keep(_: str) -> None:
        there = path.parent / str(len(left))
        there.mkdir()
        for beside in ("", "-wal"):
            if (file := path.with_name(path.name + beside)).exists():
                shutil.copy(file, there)
        left.append(there / path.name)

    db = sqlite3.connect(path)
    db.set_trace_callback(keep)
    make(db)
    keep("")
    db.close()
    return left


def small_disk(case: TestCase) -> Path:
    """Mount a tmpfs of 12 MiB for a test and return its directory; skips the test without root."""
    if os.geteuid() != 0:
        raise unittest.SkipTest("mounting a tmpfs needs root")
    directory = Path(tempfile.mkdtemp(prefix="llama-disk-"))
    case.addCleanup(directory.rmdir)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", directory], check=True)
    case.addCleanup(subprocess.run, ["umount", directory], check=True)
    return directory


def fill(directory: Path) -> None:
    """Let something else take all that is left of a disk."""
    with open(directory / "others", "ab", buffering=0) as file:
        try:
            while True:  # whoever else writes meanwhile
                file.write(bytes(1 << 16))
        except OSError as reason:
            if reason.errno != errno.ENOSPC:
                raise


class ServiceCase(TestCase):
    """Collectors, a scraper, and whatever it writes to."""

    def setUp(self) -> None:
        """Make a directory; nothing runs yet."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-scraper-"))
        self.collectors: list[FakeCollector] = []
        self.services: list[ScraperService] = []

    async def tearDown(self) -> None:
        """Stop everything."""
        for service in self.services:
            await service.stopService()
        for collector in self.collectors:
            await collector.stop()
        shutil.rmtree(self.directory)

    def collector(self, name: str) -> tuple[FakeCollector, str]:
        """Return a collector that listens, and its URL."""
        collector = FakeCollector(name)
        self.collectors.append(collector)
        return collector, collector.listen(reactor)

    def scraper(self, urls: list[str], *writers: WriterConfig, **more: Any) -> ScraperService:
        """Start a scraper of these collectors that writes to these writers."""
        settings = {"interval_s": 0.1, "timeout_s": 2.0, "api": None} | more
        config = ScraperConfig(path="test", collectors=tuple(urls), writers=writers, **settings)
        service = ScraperService(reactor, config)
        service.startService()
        self.services.append(service)
        return service

    async def stop(self, service: ScraperService) -> None:
        """Stop one of the scrapers before the test ends."""
        self.services.remove(service)
        await service.stopService()
