"""The file that a spool on disk keeps: its tables, and every statement that reads or changes them.

SQLite in WAL mode::

    cursors (collector, cursor, newest_ns)    how far each collector has been read
    chunks  (number, collector, taken_s, points, newest_ns, payload)
    waiting (chunk, writer)                   who has not acknowledged which chunk

Functions of a connection or a cursor, for the thread that has it. What is held in memory, when to
write and what to do when that fails is `llama.scraper.spool`'s part.
"""

from __future__ import annotations

import errno
import math
import os
import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from llama.scraper.buffer import Batch, Chunk, Taken
from llama.scraper.whereabouts import forbidden
from llama.scraper.writers import sqlite_schema as store

MIB = 1024 * 1024
#: Free space, octets, that is left alone on the disk: acknowledging needs a little room, too.
RESERVE = 4 * MIB
_FULL = "the disk is full"
#: Free pages, of 4 KiB, that the file may hold before it is made smaller.
FREE_PAGES = 4096

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cursors (
    collector TEXT PRIMARY KEY, cursor TEXT, newest_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (
    number INTEGER PRIMARY KEY AUTOINCREMENT, collector TEXT NOT NULL, taken_s REAL NOT NULL,
    points INTEGER NOT NULL, newest_ns INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS waiting (
    chunk INTEGER NOT NULL, writer TEXT NOT NULL, PRIMARY KEY (chunk, writer)) WITHOUT ROWID;
"""
_APPLICATION_ID = 0x4C4C5350  # "LLSP"
_VERSION = 1


class DamagedError(Exception):
    """The file is broken. The text says how."""


class ForeignFileError(Exception):
    """The file is sound, but no spool of ours. The text names it and says what to do."""


def see_whose(path: str | Path) -> None:
    """Raise `ForeignFileError` if the file is another program's or another version's.

    Only looks, and only at what SQLite has put into the file itself: neither a lock nor a file,
    there or beside it, comes of that. What cannot be read is left to `load`.
    """
    try:
        # mode=ro: else one that is not there is made, and belongs to whoever looks.
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    except sqlite3.Error:
        return
    try:
        _check_ours(db, path)
    except (sqlite3.Error, UnicodeDecodeError):  # the latter of what SQLite says of a broken schema
        return
    finally:
        db.close()


def _check_ours(db: Any, path: str | Path) -> None:
    application, version, tables = (
        db.execute(query).fetchone()[0]
        for query in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT count(*) FROM sqlite_master",
        )
    )
    if tables and application == store.APPLICATION_ID:
        raise ForeignFileError(f"{path} is the embedded store: give the spool a path of its own")
    if tables and application != _APPLICATION_ID:
        raise ForeignFileError(
            f"{path} is another program's database: give the spool a path of its own"
        )
    if tables and version != _VERSION:
        raise ForeignFileError(
            f"{path} is a spool of schema {version}, expected {_VERSION}: let the LLAMA that wrote"
            " it empty it, or move it away, which gives up what waits in it"
        )


def load(db: Any, path: str | Path, last: int = 0) -> tuple[dict[str, Taken], list[Chunk]]:
    """Prepare the file and read everything but the payloads.

    New chunks get numbers above ``last``, and above all that the file ever gave.
    Raises `ForeignFileError`, having changed nothing, `DamagedError` or `sqlite3.Error`.
    """
    try:
        # Before WAL: then there is no shared memory beside the file.
        db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        _check_ours(db, path)
        for pragma in (
            "auto_vacuum=INCREMENTAL",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "wal_autocheckpoint=256",
            "journal_size_limit=1048576",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if check != "ok":
            raise DamagedError(check)
        db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={_VERSION}")
        db.executescript(_SCHEMA)
        if last:
            _number_from(db, last)
        taken = db.execute(
            "SELECT CAST(collector AS BLOB), CAST(cursor AS BLOB), CAST(newest_ns AS INTEGER)"
            " FROM cursors"
        ).fetchall()
        chunks = {
            row[0]: Chunk(row[0], _text(row[1]), row[2], row[3], row[4], row[5], set())
            for row in db.execute(
                "SELECT number, CAST(collector AS BLOB), CAST(taken_s AS REAL),"
                " CAST(points AS INTEGER), length(payload), CAST(newest_ns AS INTEGER)"
                " FROM chunks ORDER BY number"
            )
        }
        for writer, number in db.execute("SELECT CAST(writer AS BLOB), chunk FROM waiting"):
            if number in chunks:
                chunks[number].waiting.add(_text(writer))
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise DamagedError(str(error)) from None
        raise
    except UnicodeDecodeError as error:
        raise DamagedError(f"what SQLite says of it is no text: {error}") from None
    return (
        {
            _text(collector): Taken(None if cursor is None else _text(cursor), newest)
            for collector, cursor, newest in taken
        },
        list(chunks.values()),
    )


def _text(octets: bytes) -> str:
    """Return a name; one that is damaged must not keep all the rest from being read."""
    return octets.decode(errors="replace")


def _number_from(db: Any, last: int) -> None:
    given = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'chunks'").fetchone()[0]
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'chunks'")
    db.execute("INSERT INTO sqlite_sequence VALUES ('chunks', ?)", (max(last, given or 0),))


def insert(cursor: Any, chunks: Sequence[Chunk], batches: Sequence[Batch]) -> None:
    """Keep what a collector answered, and give the chunks their numbers."""
    for chunk, batch in zip(chunks, batches, strict=True):
        cursor.execute(
            "INSERT INTO chunks (collector, taken_s, points, newest_ns, payload)"
            " VALUES (?, ?, ?, ?, ?)",
            (chunk.collector, chunk.taken_s, chunk.points, chunk.newest_ns, batch.payload),
        )
        chunk.number = cursor.lastrowid
        cursor.executemany(
            "INSERT INTO waiting (chunk, writer) VALUES (?, ?)",
            [(chunk.number, writer) for writer in sorted(chunk.waiting)],
        )


def set_taken(cursor: Any, collector: str, taken: Taken) -> None:
    """Note how far a collector has been read."""
    cursor.execute(
        "INSERT OR REPLACE INTO cursors (collector, cursor, newest_ns) VALUES (?, ?, ?)",
        (collector, taken.cursor, taken.newest_ns),
    )


def payload(cursor: Any, number: int) -> bytes | None:
    """Return a chunk's payload, or None if it is not there."""
    row = cursor.execute("SELECT payload FROM chunks WHERE number = ?", (number,)).fetchone()
    return row[0] if row else None


def acknowledge(cursor: Any, pairs: Sequence[tuple[int, str]], shrink: bool) -> None:
    """Note that chunks (by number) have been written by writers; let go of those all have."""
    cursor.executemany("DELETE FROM waiting WHERE chunk = ? AND writer = ?", pairs)
    cursor.executemany(
        "DELETE FROM chunks WHERE number = ?1"
        " AND NOT EXISTS (SELECT 1 FROM waiting WHERE chunk = ?1)",
        [(number,) for number in {number for number, _ in pairs}],
    )
    if shrink or cursor.execute("PRAGMA freelist_count").fetchone()[0] > FREE_PAGES:
        cursor.execute("PRAGMA incremental_vacuum(1024)").fetchall()


def keep_writers(cursor: Any, writers: Collection[str]) -> None:
    """Let no chunk wait for any other writer."""
    marks = ",".join("?" * len(writers))
    cursor.execute(f"DELETE FROM waiting WHERE writer NOT IN ({marks})", sorted(writers))  # noqa: S608


def delete(cursor: Any, numbers: Sequence[int]) -> None:
    """Let go of chunks, whoever waits for them."""
    cursor.executemany("DELETE FROM waiting WHERE chunk = ?", [(number,) for number in numbers])
    cursor.executemany("DELETE FROM chunks WHERE number = ?", [(number,) for number in numbers])


def check_room(path: Path, octets: int) -> None:
    """Raise `OSError` (ENOSPC) when keeping ``octets`` more would use up the reserve."""
    disk = os.statvfs(path.parent)
    least = RESERVE + octets
    if disk.f_bavail * disk.f_frsize < least:
        wanted = math.ceil(least / MIB * 10) / 10
        said = f"{_FULL}: less than {wanted} MiB are free in {path.parent}"
        raise OSError(errno.ENOSPC, said)


def set_aside(path: Path, stamp: str) -> str:
    """Rename a damaged file, and SQLite's beside it; returns the new name."""
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in ("", "-wal", "-shm", "-journal"):
        try:
            os.replace(f"{path}{suffix}", f"{aside}{suffix}")
        except FileNotFoundError:
            continue
    return aside.name


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether an error means that the file is broken."""
    return _is(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is(error: sqlite3.Error, *codes: int) -> bool:
    """Say whether an error is one of SQLite's primary result codes."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in codes


def explain(error: Exception, path: Path) -> str:
    """Say why storing in ``path`` failed, for a person."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        said = str(error.strerror)
        return said if said.startswith(_FULL) else _FULL
    if isinstance(error, sqlite3.Error) and _is(error, sqlite3.SQLITE_FULL):
        return _FULL
    if isinstance(error, sqlite3.Error) and _is(error, sqlite3.SQLITE_BUSY):
        return "another process has it, a second scraper perhaps"
    if not_ours := forbidden(error, path):
        return not_ours
    if isinstance(error, sqlite3.Error) and _is(error, sqlite3.SQLITE_CANTOPEN):
        return f"{error}; its directory must be there, and the scraper's user able to write in it"
    return str(error)
