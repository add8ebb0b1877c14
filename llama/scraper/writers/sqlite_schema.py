"""The embedded store: what stands in its SQLite file, and how five-minute rows are made of raw.

The scraper writes it (`llama.scraper.writers.sqlite`) and the matrix reads it, each with a
connection of its own; WAL mode lets them do so at the same time. ::

    series      id, measurement, tags          one row a series; tags: JSON, names sorted
    samples     time_ms, series_id, FIELDS…    every point, for two days
    samples_5m  time_ms, series_id, FIELDS…    one row for each five minutes, for thirty days
    unrolled    time_ms                        five-minute windows with points not yet rolled up
    removed     time_ms, series                which series had a sample then, now removed: bits
    heard       series_id, time_ms             each series' newest point, of those in windows that
                                               were rolled up
    facts       name, value                    ``removed_to_ms``: up to then, the end of a window,
                                               raw rows are being removed or were;
                                               ``unknown_to_ms``: up to then, it is not known
                                               which there were, and ``heard_from_ms``: before,
                                               not yet who was heard (`sqlite_old`);
                                               ``series_removed``: how many series were, so that who
                                               remembers their tags can forget them

``time_ms`` is the END of the interval, or of the five minutes, in Unix milliseconds: the row of
12:05 holds what came after 12:00 up to and including 12:05. FIELDS are the figures of
``/influxdata`` by the same names (`FIELDS`), NULL where not known; figures of other names stand
together in ``more`` as a JSON object, which is how measurements such as ``collector_stats`` are
kept; those are not rolled up.

Rows are clustered by time first, then series (``WITHOUT ROWID``). Points arrive in the order of
time, so writing appends; reading the whole matrix at one moment is one short scan; removing what
is old takes whole pages off the front. The history of one series needs a look-up per interval,
through the times that exist, at some microseconds each.

Five-minute rows: counts are summed and ``loss`` is computed from the sums; ``rtt`` and the one-way
delays are means weighted by the replies received; ``rtt_min`` is the lowest. Percentiles cannot be
averaged, and a peak must not vanish from the history: of those, of jitter and delay variation and
of the number of flows the *highest* of the intervals' stands. ``dscp_…`` and ``ttl_…`` are the
last known, ``suspect`` the union of the reasons. The same arithmetic merges what comes late into
a row whose samples are gone (`llama.scraper.writers.sqlite_late`), for which it stands in ``late``,
a temporary table: there the means are weighted by all replies of the row. Where a collector says no
counts, ``more`` has the number of intervals that the row is made of, which is then its weight.
"""

from __future__ import annotations

from typing import Any

APPLICATION_ID = 0x4C4C5354  # "LLST"
VERSION = 1
#: Length of a rolled-up row, milliseconds.
WINDOW_MS = 300_000

_SUMS = (
    "lost", "sent", "received", "lost_forward", "lost_reverse", "lost_unknown", "late",
    "duplicate", "reordered", "remarked_forward", "remarked_reverse",
)  # fmt: skip
_HIGHEST = (
    "rtt_max", "rtt_p50", "rtt_p90", "rtt_p99", "rtt_p999", "jitter", "ipdv", "ipdv_forward",
    "ipdv_reverse", "owd_error", "flows", "flows_lossy",
)  # fmt: skip
_MEANS = ("rtt", "owd_forward", "owd_reverse")
_LAST = ("dscp_at_reflector", "dscp_at_collector", "ttl_at_reflector", "ttl_at_collector")

#: Figures with a column of their own, in the order of the columns.
FIELDS = ("loss", *_SUMS, *_MEANS, "rtt_min", *_HIGHEST, *_LAST, "suspect")

_COLUMNS = ", ".join(f"{name} REAL" for name in FIELDS)
_TABLE = (
    "CREATE TABLE IF NOT EXISTS {} (time_ms INTEGER NOT NULL, series_id INTEGER NOT NULL, "
    f"{_COLUMNS}, more TEXT, PRIMARY KEY (time_ms, series_id)) WITHOUT ROWID;"
)
HEARD_TABLE = (
    "CREATE TABLE IF NOT EXISTS heard (series_id INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL);"
)
REMOVED_TABLE = (
    "CREATE TABLE IF NOT EXISTS removed (time_ms INTEGER PRIMARY KEY, series BLOB NOT NULL);"
)
#: All or nothing: tables without the application's id are another program's to whoever comes next.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, measurement TEXT NOT NULL, tags TEXT NOT NULL,
    UNIQUE (measurement, tags));
{_TABLE.format("samples")}
{_TABLE.format("samples_5m")}
CREATE TABLE IF NOT EXISTS unrolled (time_ms INTEGER PRIMARY KEY);
{HEARD_TABLE}
{REMOVED_TABLE}
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={VERSION};
COMMIT;
"""

#: For each connection that writes.
TEMPORARY = _TABLE.format("temp.late")

_VALUES = (
    f"(time_ms, series_id, {', '.join(FIELDS)}, more) VALUES ({', '.join('?' * (len(FIELDS) + 3))})"
)
#: Writes one sample; written twice, it is there once.
UPSERT = f"INSERT OR REPLACE INTO samples {_VALUES}"
#: Takes one late sample, to be merged.
TAKE_LATE = f"INSERT INTO late {_VALUES}"


def fact(cursor: Any, name: str) -> int | None:
    """Return a value of ``facts``; None if it is not there. ``cursor`` may be a connection."""
    row = cursor.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else None


def set_fact(cursor: Any, name: str, value: int) -> None:
    """Set a value of ``facts``."""
    cursor.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))


def window_end(time_ms: int) -> int:
    """Return the end of the five minutes that a sample belongs to, ms."""
    return -(-time_ms // WINDOW_MS) * WINDOW_MS


# Old collectors say nothing about replies received: then every interval weighs the same.
_WEIGHT = "max(coalesce(received, sent - lost, intervals), 0)"


def _mean(name: str) -> str:
    weight = f"sum(CASE WHEN {name} IS NOT NULL THEN {_WEIGHT} END)"
    return f"sum({name} * {_WEIGHT}) / nullif({weight}, 0) AS {name}"


def _last(name: str) -> str:
    # The value beside the latest time at which it is known: a time and a number up to 4095 in one.
    both = f"time_ms * 4096 + CAST({name} AS INTEGER)"
    return f"max(CASE WHEN {name} IS NOT NULL THEN {both} END) % 4096 AS {name}"


def _union(name: str) -> str:
    bits = " | ".join(f"max(CAST({name} AS INTEGER) & {1 << bit})" for bit in range(32))
    return f"({bits}) AS {name}"


_AGGREGATES = ", ".join(
    [
        "CASE WHEN sum(sent) > 0 THEN 100.0 * sum(lost) / sum(sent) ELSE"
        " sum(loss * intervals) / sum(CASE WHEN loss IS NOT NULL THEN intervals END) END AS loss",
        *(f"sum({name}) AS {name}" for name in _SUMS),
        *(_mean(name) for name in _MEANS),
        "min(rtt_min) AS rtt_min",
        *(f"max({name}) AS {name}" for name in _HIGHEST),
        *(_last(name) for name in _LAST),
        _union("suspect"),
    ]
)

_WINDOW = f"time_ms > :end - {WINDOW_MS} AND time_ms <= :end"


def _samples(table: str) -> str:
    columns = f"time_ms, series_id, 1 AS intervals, {', '.join(FIELDS)}"
    return f"SELECT {columns} FROM {table} WHERE {_WINDOW}"  # noqa: S608


_ROLLED = (
    f"SELECT time_ms, series_id, coalesce(CAST(more AS INTEGER), 1), {', '.join(FIELDS)}"  # noqa: S608
    f" FROM samples_5m WHERE time_ms = :end AND series_id IN (SELECT series_id FROM late WHERE {_WINDOW})"
)


def _roll_up(source: str, on_conflict: str = "REPLACE") -> str:
    return f"""
INSERT OR {on_conflict} INTO samples_5m (time_ms, series_id, {", ".join(FIELDS)}, more)
SELECT :end, series_id, {", ".join(FIELDS)}, CASE WHEN sent IS NULL THEN number END FROM (
    SELECT series_id, {_AGGREGATES}, sum(intervals) AS number,
        count(coalesce(sent, loss, rtt)) AS known
    FROM ({source}) GROUP BY series_id)
WHERE known > 0
"""  # noqa: S608


#: Makes the rows of the window that ends at ``:end`` (ms) anew from all its samples.
ROLL_UP = _roll_up(_samples("samples"))
#: Makes only those rows of that window that are not there.
FILL_UP = _roll_up(_samples("samples"), "IGNORE")
#: Adds the late samples of that window to its rows, where there are some.
MERGE = _roll_up(f"{_samples('late')} UNION ALL {_ROLLED}")


def _heard(table: str) -> str:
    return f"""
INSERT INTO heard SELECT series_id, max(time_ms) FROM {table}
WHERE {_WINDOW} GROUP BY series_id
ON CONFLICT (series_id) DO UPDATE SET time_ms = max(time_ms, excluded.time_ms)
"""  # noqa: S608


#: Notes what was heard in the window that ends at ``:end`` (ms).
HEARD = _heard("samples")
#: The same of late samples.
HEARD_LATE = _heard("late")

#: The oldest samples up to ``:end`` (ms), ``:rows`` of them at most; and removes up to one of them.
OLDEST = (
    "SELECT time_ms, series_id FROM samples WHERE time_ms <= :end"
    " ORDER BY time_ms, series_id LIMIT :rows"
)
REMOVE = "DELETE FROM samples WHERE (time_ms, series_id) <= (?, ?)"
#: Removes five-minute rows of one moment, ``:rows`` of them at most.
REMOVE_ROLLED = """
DELETE FROM samples_5m WHERE time_ms = :time AND series_id IN
(SELECT series_id FROM samples_5m WHERE time_ms = :time ORDER BY series_id LIMIT :rows)
"""

#: Finds series of which nothing is left, if rows up to ``:before`` (ms) were removed. One that came
#: back is in a window that was not rolled up since. The highest number stays, and so no number is
#: ever given twice.
GONE = f"""
SELECT series_id FROM heard JOIN series ON id = series_id
WHERE time_ms <= :before - {WINDOW_MS} AND id < (SELECT max(id) FROM series)
AND id NOT IN (SELECT samples.series_id FROM unrolled JOIN samples
    ON samples.time_ms > unrolled.time_ms - {WINDOW_MS} AND samples.time_ms <= unrolled.time_ms)
"""  # noqa: S608
