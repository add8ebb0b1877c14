"""What tests of the embedded store have in common: a file, and a second look at it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from llama.interfaces import Point
from llama.scraper.writers import sqlite, sqlite_schema

DAY_MS = 86_400_000


WINDOW_MS = sqlite_schema.WINDOW_MS


#: A time, ms, at which a five-minute window begins.
START = 1_700_000_000_000 // WINDOW_MS * WINDOW_MS


def point(time_ms: int, dst: str = "b", **fields: float) -> Point:
    """Return a point of one series."""
    return Point("raw_stats", {"src": "a", "dst": dst}, fields, time_ms * 1_000_000)


class StoreCase(TestCase):
    """A store in a file, and a second connection that looks at it."""

    def setUp(self) -> None:
        """Make a directory for it."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-store-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "store.db"

    async def opened(self, **options: Any) -> sqlite.SQLiteWriter:
        """Return an open writer that does nothing by itself."""
        writer: sqlite.SQLiteWriter = sqlite.make(reactor, {"path": str(self.path)} | options)
        await writer.open()
        self.addCleanup(writer.close)
        return writer

    def rows(self, query: str, values: Any = ()) -> list[dict[str, Any]]:
        """Return rows without what is NULL, read as the web page would: from a connection of its own."""
        db = sqlite3.connect(self.path)
        cursor = db.execute(query, values)
        names = [column[0] for column in cursor.description]
        found = [
            {n: v for n, v in zip(names, row, strict=True) if v is not None}
            for row in cursor.fetchall()
        ]
        db.close()
        return found
