"""An embedded store for the page, filled by the scraper's own writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from twisted.internet import reactor

from llama.interfaces import Point
from llama.scraper.writers import sqlite as writer
from llama.scraper.writers import sqlite_schema as schema

CENTURY_S = 100 * 365 * 86400.0


async def write(path: Path, points: Sequence[Point]) -> None:
    """Write points with the scraper's writer, which keeps them for ever."""
    database = writer.make(reactor, {"path": str(path), "raw": CENTURY_S, "rollup": CENTURY_S})
    await database.open()
    try:
        await database.write(points)
    finally:
        await database.close()


def roll_up(path: Path, forget_before_s: float | None = None, note: bool = False) -> None:
    """Do what the writer does every minute, and forget raw samples.

    ``note`` when each series was heard, as writers before did not.
    """
    db = sqlite3.connect(path)
    with db:
        for (end,) in db.execute("SELECT time_ms FROM unrolled").fetchall():
            db.execute(schema.ROLL_UP, {"end": end})
            if note:
                db.execute(schema.HEARD, {"end": end})
        db.execute("DELETE FROM unrolled")
        if forget_before_s is not None:
            db.execute("DELETE FROM samples WHERE time_ms <= ?", (forget_before_s * 1000,))
            db.execute(
                "INSERT OR REPLACE INTO facts VALUES ('removed_to_ms', ?)",
                (int(forget_before_s * 1000),),
            )
    db.close()
