"""Embedded stores made before it was noted when each series was heard and which samples were removed.

They get what they lack when they are opened, in one transaction: killed meanwhile, the next one does
it. When their series were heard is then read from the rows, a moment at a time, the newest first.
"""

from __future__ import annotations

from typing import Any

from llama.scraper.writers import sqlite_schema as schema

#: The newest moment before ``:before`` (ms) at which there are rows.
_MOMENT = """
SELECT max(coalesce((SELECT max(time_ms) FROM samples WHERE time_ms < :before), 0),
    coalesce((SELECT max(time_ms) FROM samples_5m WHERE time_ms < :before), 0))
"""
#: The series heard at that moment, unless they were heard later.
_HEARD = """
INSERT OR IGNORE INTO heard
SELECT series_id, time_ms FROM samples WHERE time_ms = :moment
UNION ALL SELECT series_id, time_ms FROM samples_5m WHERE time_ms = :moment
"""
_ALWAYS = 2**62


def bring_up_to_date(db: Any) -> None:
    """Add what such a store lacks; does nothing to others, nor to a new file."""
    if not _lacks(db, "heard"):
        return
    db.execute("BEGIN IMMEDIATE")  # and see whether another process was faster
    try:
        if _lacks(db, "heard"):
            db.execute(schema.HEARD_TABLE)
            schema.set_fact(db, "heard_from_ms", _ALWAYS)
            if _lacks(db, "removed"):
                db.execute(schema.REMOVED_TABLE)
                _removed(db)
        db.commit()
    except BaseException:
        db.rollback()
        raise


def look_back(db: Any) -> bool:
    """Note of one more moment which series were heard; says whether there may be more to note."""
    before = schema.fact(db, "heard_from_ms")
    if before is None:
        return False
    [moment] = db.execute(_MOMENT, {"before": before}).fetchone()
    if moment:
        db.execute(_HEARD, {"moment": moment})
        schema.set_fact(db, "heard_from_ms", moment)
    else:  # the others have no row left
        db.execute("INSERT OR IGNORE INTO heard SELECT id, 0 FROM series")
        db.execute("DELETE FROM facts WHERE name = 'heard_from_ms'")
    return True


def _lacks(db: Any, table: str) -> bool:
    """Say whether there is a store in the file, but not this table."""
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    return "samples" in names and table not in names


def _removed(db: Any) -> None:
    """Let what was removed end with a window, and end what waits to be rolled up there.

    Of samples in there it is not known which were removed: all count as written already.
    """
    removed_to = schema.fact(db, "removed_to_ms")
    # No further than there is anything: the clock may have been wrong at the time.
    [newest] = db.execute(_MOMENT, {"before": _ALWAYS}).fetchone()
    end = 0 if removed_to is None else schema.window_end(min(removed_to, newest))
    # Rows made of all samples of a window must not give way to such of the few that came late.
    for window in db.execute("SELECT time_ms FROM unrolled WHERE time_ms <= ?", (end,)).fetchall():
        db.execute(schema.FILL_UP, {"end": window[0]})
    db.execute("DELETE FROM unrolled WHERE time_ms <= ?", (end,))
    schema.set_fact(db, "removed_to_ms", end)
    schema.set_fact(db, "unknown_to_ms", end)
