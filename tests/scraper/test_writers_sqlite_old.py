"""Embedded stores that an older scraper made: what is in them counts as before, and only once."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from sqlite_case import DAY_MS, START, WINDOW_MS, StoreCase, point

from llama.interfaces import NotWrittenError
from llama.scraper.writers import sqlite_old

_FIELDS = (
    "loss REAL, lost REAL, sent REAL, received REAL, lost_forward REAL, lost_reverse REAL, "
    "lost_unknown REAL, late REAL, duplicate REAL, reordered REAL, remarked_forward REAL, "
    "remarked_reverse REAL, rtt REAL, owd_forward REAL, owd_reverse REAL, rtt_min REAL, "
    "rtt_max REAL, rtt_p50 REAL, rtt_p90 REAL, rtt_p99 REAL, rtt_p999 REAL, jitter REAL, "
    "ipdv REAL, ipdv_forward REAL, ipdv_reverse REAL, owd_error REAL, flows REAL, "
    "flows_lossy REAL, dscp_at_reflector REAL, dscp_at_collector REAL, ttl_at_reflector REAL, "
    "ttl_at_collector REAL, suspect REAL"
)
#: As the first scrapers made it, to the letter.
OLD_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, measurement TEXT NOT NULL, tags TEXT NOT NULL,
    UNIQUE (measurement, tags));
CREATE TABLE IF NOT EXISTS samples (time_ms INTEGER NOT NULL, series_id INTEGER NOT NULL, {_FIELDS}, more TEXT, PRIMARY KEY (time_ms, series_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples_5m (time_ms INTEGER NOT NULL, series_id INTEGER NOT NULL, {_FIELDS}, more TEXT, PRIMARY KEY (time_ms, series_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unrolled (time_ms INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
PRAGMA application_id=1280070484;
PRAGMA user_version=1;
"""  # noqa: E501
#: Up to here raw rows were removed, in the middle of the window that ends at `END`.
END = START + 10 * DAY_MS
REMOVED_TO = END - 100_000
NOW = REMOVED_TO + 2 * DAY_MS
HOUR_MS = 12 * WINDOW_MS


class OldStoreTests(StoreCase):
    """A store of four series: b and e speak, c fell silent a week ago, d longer than rows are kept."""

    def setUp(self) -> None:
        """Leave it as an older scraper did that was stopped when a late batch had just come."""
        super().setUp()
        self.run_sql(OLD_SCHEMA)
        for dst in "bcde":
            self.run_sql("INSERT INTO series (measurement, tags) VALUES ('raw_stats', ?)",
                         f'{{"dst":"{dst}","src":"a"}}')  # fmt: skip
        self.put("samples_5m", END - 7 * DAY_MS, 2, sent=10.0)
        for window in (END - HOUR_MS, END, END + HOUR_MS):
            self.put("samples_5m", window, 1, sent=10.0, lost=0.0)
        for n in range(3):
            self.put("samples", END - 90_000 + n * 30_000, 1, sent=1.0, lost=0.0)
        for n in range(10):
            self.put("samples", END + HOUR_MS - n * 30_000, 1, sent=1.0, lost=0.0)
        self.put("samples", END - HOUR_MS - 1, 1, sent=1.0, lost=1.0)  # came late
        self.put("samples", END - HOUR_MS - 1, 4, sent=2.0, lost=0.0)
        self.run_sql("INSERT INTO unrolled VALUES (?)", END - HOUR_MS)
        self.run_sql("INSERT INTO facts VALUES ('removed_to_ms', ?)", REMOVED_TO)

    def run_sql(self, sql: str, *values: Any) -> None:
        """Change the file."""
        db = sqlite3.connect(self.path)
        with db:
            if values:
                db.execute(sql, values)
            else:
                db.executescript(sql)
        db.close()

    def put(self, table: str, time_ms: int, series: int, **fields: float) -> None:
        """Put a row there."""
        self.run_sql(
            f"INSERT INTO {table} (time_ms, series_id, {', '.join(fields)})"
            f" VALUES (?, ?{', ?' * len(fields)})",
            *(time_ms, series, *fields.values()),
        )

    async def upkeep(self, writer: Any, now_ms: int) -> None:
        """Do what a minute's upkeep does, as if it were ``now_ms``."""
        while await writer._pool.runInteraction(writer._roll_up, now_ms):
            pass
        while await writer._pool.runInteraction(sqlite_old.look_back):
            pass
        while await writer._pool.runInteraction(writer._remove, now_ms):
            pass

    def sent(self) -> dict[tuple[int, int], float]:
        """Return how many probes the five-minute rows have, by window and series."""
        rows = self.rows("SELECT time_ms, series_id, sent FROM samples_5m")
        return {(row["time_ms"], row["series_id"]): row["sent"] for row in rows}

    WANTED = {
        (END - 7 * DAY_MS, 2): 10.0,
        (END - HOUR_MS, 1): 10.0,
        (END - HOUR_MS, 4): 2.0,
        (END, 1): 10.0,
        (END + HOUR_MS, 1): 10.0,
    }

    async def test_rows_stay_complete(self) -> None:
        """Late fragments replace no row made of all; they are one where there is none."""
        writer = await self.opened()
        await self.upkeep(writer, NOW)
        self.assertEqual(self.sent(), self.WANTED)
        await self.upkeep(writer, NOW + DAY_MS)
        self.assertEqual(self.sent(), self.WANTED)
        self.assertEqual(self.rows("SELECT * FROM samples"), [])

    async def test_backlog_again(self) -> None:
        """What is older than the removal of old counts as written; what is newer is known."""
        backlog = [
            point(end - n * 30_000, sent=1.0, lost=0.0)
            for end in (END - HOUR_MS, END, END + HOUR_MS)
            for n in range(10)
        ]
        writer = await self.opened()
        for now in (NOW, NOW, NOW + DAY_MS, NOW + DAY_MS):
            await writer.write(backlog)
            await self.upkeep(writer, now)
            self.assertEqual(self.sent(), self.WANTED)
            writer = await self.opened()
        await writer.write([point(END + 1, sent=1.0, lost=0.0)])  # in truth late
        self.assertEqual(self.sent(), self.WANTED | {(END + WINDOW_MS, 1): 1.0})

    async def test_silent_series(self) -> None:
        """Series that fell silent before are known for that, and forgotten with their last row."""
        writer = await self.opened()
        for _ in range(3):
            await writer._pool.runInteraction(sqlite_old.look_back)
            await writer._pool.runInteraction(writer._remove, NOW)
            self.assertEqual(len(self.rows("SELECT * FROM series")), 4)
        writer = await self.opened()  # which goes on where the other was killed
        while await writer._pool.runInteraction(sqlite_old.look_back):
            pass
        self.assertEqual(
            {row["series_id"]: row["time_ms"] for row in self.rows("SELECT * FROM heard")},
            {1: END + HOUR_MS, 2: END - 7 * DAY_MS, 3: 0, 4: END - HOUR_MS},
        )
        await self.upkeep(writer, NOW)
        self.assertEqual([row["id"] for row in self.rows("SELECT id FROM series")], [1, 2, 4])
        await self.upkeep(writer, END + 24 * DAY_MS)
        self.assertEqual([row["id"] for row in self.rows("SELECT id FROM series")], [1, 4])

    async def test_killed_meanwhile(self) -> None:
        """Whatever ends it, the next scraper brings all of it up to date."""
        patched = self.patch(sqlite_old, "_removed", lambda db: db.execute("no SQL"))
        with self.assertRaises(NotWrittenError):
            await self.opened()
        patched.restore()
        await self.test_backlog_again()

    async def test_clock_was_ahead(self) -> None:
        """A removal in the future refuses nothing that comes after the newest row."""
        self.run_sql("UPDATE facts SET value = ?", NOW + 300 * DAY_MS)
        writer = await self.opened()
        await writer.write([point(END + HOUR_MS + 1, sent=1.0, lost=0.0)])
        await self.upkeep(writer, NOW)
        self.assertEqual(self.sent()[END + HOUR_MS + WINDOW_MS, 1], 1.0)

    async def test_by_itself(self) -> None:
        """The upkeep that a running writer does every minute does all of it."""
        writer = await self.opened()
        await writer.write([point(int(time.time() * 1000), "new", sent=1.0)])
        await writer._keep_up()
        self.assertEqual(self.rows("SELECT * FROM facts WHERE name = 'heard_from_ms'"), [])
        self.assertEqual([row["id"] for row in self.rows("SELECT id FROM series")], [5])

    async def test_only_once(self) -> None:
        """A store that was brought up to date, or needs only a part of it, keeps what it knows."""
        writer = await self.opened()
        await self.upkeep(writer, NOW + DAY_MS)
        await writer.close()
        facts = self.rows("SELECT * FROM facts")
        heard = self.rows("SELECT * FROM heard")
        bits = self.rows("SELECT * FROM removed")
        self.run_sql("DROP TABLE heard")
        writer = await self.opened()
        await self.upkeep(writer, NOW + DAY_MS)
        self.assertEqual(self.rows("SELECT * FROM facts"), facts)
        self.assertEqual(self.rows("SELECT * FROM removed"), bits)
        self.assertEqual(self.rows("SELECT * FROM heard"), heard)
