"""What tests of spools have in common: points, spools to put them in, and disks that fail."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from llama.interfaces import Point
from llama.scraper import spool_file
from llama.scraper.buffer import Chunk, Taken
from llama.scraper.spool import DiskSpool

NOW = 1_700_000_000.0


def some_points(count: int = 3, time_s: int = 1_700_000_010, filler: str = "") -> list[Point]:
    """Return points of one interval."""
    return [
        Point("raw_stats", {"dst": f"d{n}"} | ({"f": filler} if filler else {}), {"rtt": n + 0.5},
              time_s * 10**9)
        for n in range(count)
    ]  # fmt: skip


async def put(
    spool: Any, collector: str, taken: Taken, points: list[Point], now_s: float
) -> Sequence[Chunk]:
    """Pack points and put them."""
    chunks: Sequence[Chunk] = await spool.put(collector, taken, await spool.pack(points), now_s)
    return chunks


@contextmanager
def failing(module: Any, name: str, error: Exception) -> Iterator[None]:
    """Let a function of a module fail, for as long as the file is the one that is there now."""
    real = getattr(module, name)
    failed = False

    def fails(*args: Any) -> Any:
        nonlocal failed
        if failed and isinstance(error, sqlite3.DatabaseError) and spool_file.is_damage(error):
            return real(*args)  # there is a new file
        failed = True
        raise error

    setattr(module, name, fails)
    try:
        yield
    finally:
        setattr(module, name, real)


def damage() -> sqlite3.DatabaseError:
    """Return what SQLite says of a damaged file."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


class SpoolCase:
    """Spools under test. ``spool()`` makes one that is not open."""

    dropped: list[tuple[str, Chunk]]
    passed_s = 0.0  # of the clock that nobody sets

    def spool(self, max_octets: int = 10**7, max_age_s: float = 3600) -> Any:
        """Make one."""
        raise NotImplementedError

    async def opened(self, *writers: str, **bounds: Any) -> Any:
        """Return one that is open and records what it drops."""
        spool = self.spool(**bounds)
        self.dropped = []
        spool.dropped = lambda reason, chunk: self.dropped.append((reason, chunk))
        await spool.open(writers or ("a", "b"))
        self.addCleanup(spool.close)
        return spool


class DiskCase(SpoolCase, TestCase):
    """Spools on disk."""

    now_s = NOW  # of the wall clock

    def setUp(self) -> None:
        """Make a directory for the file."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-spool-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "spool.db"

    def spool(self, max_octets: int = 10**7, max_age_s: float = 3600) -> DiskSpool:
        """Make one on the same file each time."""
        return DiskSpool(
            reactor,
            str(self.path),
            max_octets,
            max_age_s,
            lambda: self.now_s,
            lambda: self.passed_s,
        )

    def on_disk(self) -> tuple[list[int], list[tuple[int, str]]]:
        """Return the numbers of the chunks in the file, and who waits for which; it must be closed."""
        db = sqlite3.connect(self.path)
        chunks = [number for (number,) in db.execute("SELECT number FROM chunks ORDER BY number")]
        waiting = db.execute("SELECT chunk, writer FROM waiting ORDER BY chunk, writer").fetchall()
        db.close()
        return chunks, waiting
