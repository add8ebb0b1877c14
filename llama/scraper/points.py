"""From a collector's answer to points: what ``/influxdata`` says, read strictly and repaired.

Pure. The collectors of dropbox/llama date every point ``0001-01-01T00:00:00Z`` and report total
loss with a round-trip time of zero; both are put right here, and counted so that it can be said.
Those of the archived Python LLAMA write times as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import orjson
from attrs import define, field

from llama.interfaces import Point
from llama.rfc3339 import time_ns

#: Times before 1971 are no measurements but clocks or fields that nobody set.
_EARLIEST_NS = 365 * 86400 * 10**9
#: What signed 64-bit nanoseconds hold, which is what databases keep.
_LATEST_NS = 2**63 - 1

#: Octets that are read at one go, at most. In memory JSON can take thirty times as many.
MOST_OCTETS = 16 * 1024 * 1024
#: Tags, and fields, of a point. Ours have some dozens.
MOST_NAMES = 250
#: Between two points of our collectors. Inside of a JSON text the quotes would be escaped.
_NEXT_POINT = b'},{"measurement":'


class BadAnswerError(Exception):
    """A collector answered something that is not measurements. The text says what."""


@define
class Answer:
    """What one answer held."""

    points: list[Point] = field(factory=list)
    malformed: int = 0  #: items that are no points
    empty: int = 0  #: points without a single usable figure
    undated: int = 0  #: points dated by us, for want of a time
    zero_rtt: int = 0  #: points of total loss whose ``rtt`` of zero was taken away
    oddity: str = ""  #: what was wrong with the first malformed one


def not_yet_taken(
    points: Sequence[Point], newest_ns: int | None, last_ns: Collection[int] | None
) -> Sequence[Point]:
    """Return the points newer than the newest taken, Unix ns; all, if that is None.

    So it is where time alone can tell, for want of a cursor. ``last_ns`` are the times in the answer
    before: where those taken lie in the future, all that were not in it are new. Else it is None.
    """
    if newest_ns is None:
        return points
    if last_ns is None:
        return [point for point in points if point.time_ns > newest_ns]
    return [p for p in points if p.time_ns not in last_ns and p.time_ns != newest_ns]


def portions(body: bytes, octets: int = 1024 * 1024) -> Iterator[bytes]:
    """Return the body of ``/influxdata`` as one or more JSON lists of about that many octets.

    What a collector held for ten minutes can be hundreds of megabytes: in portions it is never all
    in memory as points, nor read at one go. A body of another form comes out as one portion; raises
    `BadAnswerError` when that is larger than any collector of another form has.
    """
    start, opening = 0, b""
    while True:
        cut = body.find(_NEXT_POINT, start + octets, start + MOST_OCTETS)
        if cut < 0:
            if len(body) - start > MOST_OCTETS:
                raise BadAnswerError(f"no list of points: {MOST_OCTETS:,} octets without a new one")
            yield opening + body[start:]
            return
        yield opening + body[start : cut + 1] + b"]"
        start, opening = cut + 2, b"["


def read_answer(body: bytes, scrape_ns: int) -> Answer:
    """Read the body of ``/influxdata``. Raises `BadAnswerError` when it is no JSON list.

    ``scrape_ns`` is the time, Unix ns, of points that have none. Items that are no points are
    left out and counted; the others are taken.
    """
    try:
        items = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadAnswerError(f"no JSON: {error}") from None
    if not isinstance(items, list):
        raise BadAnswerError(f"JSON of type {type(items).__name__}, expected a list of points")
    answer = Answer()
    times: dict[str, int] = {}  # all points of an interval share one time
    for item in items:
        try:
            point = _read_point(item, times, scrape_ns, answer)
        except ValueError as error:
            answer.malformed += 1
            answer.oddity = answer.oddity or str(error)
        else:
            if point is not None:
                answer.points.append(point)
    return answer


def _read_point(item: Any, times: dict[str, int], scrape_ns: int, answer: Answer) -> Point | None:
    """Return the point of one item, or None if it has no figures; raises `ValueError`."""
    if not isinstance(item, dict):
        raise ValueError(f"an item is a {type(item).__name__}, expected an object")
    measurement, given, figures = item.get("measurement"), item.get("tags"), item.get("fields")
    if not isinstance(measurement, str) or not measurement:
        raise ValueError("a point without a measurement")
    if not isinstance(given, dict | None) or not isinstance(figures, dict):
        raise ValueError("a point whose tags or fields are no object")
    if max(len(given or ()), len(figures)) > MOST_NAMES:
        raise ValueError(f"a point with more than {MOST_NAMES} tags or fields")
    stamp = item.get("time")
    if stamp is None:
        when = 0
    elif type(stamp) is int:  # Unix ns, as the archived Python LLAMA has it
        when = stamp
    elif not isinstance(stamp, str):
        raise ValueError("a point whose time is neither text nor a whole number")
    elif (known := times.get(stamp)) is not None:
        when = known
    else:
        when = times[stamp] = time_ns(stamp)
    if when > _LATEST_NS:
        raise ValueError(f"a point dated {str(stamp)[:40]}, which no database can keep")
    tags = {
        name: value if isinstance(value, str) else _plain(value)
        for name, value in (given or {}).items()
        if name and value != "" and value is not None
    }
    fields = _figures(figures)
    if when < _EARLIEST_NS:
        when = scrape_ns
        answer.undated += 1
    if fields.get("rtt") == 0.0 and _lost_all(fields):
        del fields["rtt"]
        answer.zero_rtt += 1
    if not fields:
        answer.empty += 1
        return None
    return Point(measurement, tags, fields, when)


def _plain(value: Any) -> str:
    """Return a tag's value as text; raises `ValueError` for a list or an object."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise ValueError(f"a tag is a {type(value).__name__}, expected text")


def _figures(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the fields that are numbers, as floats; null is a figure that is not known."""
    fields = {}
    for name, value in figures.items():
        if type(value) is float:
            number = value
        elif type(value) is int:
            number = float(value)
        elif value is None:
            continue
        else:
            raise ValueError(f"field {name[:40]!r} is a {type(value).__name__}, expected a number")
        if name and math.isfinite(number):
            fields[name] = number
    return fields


def _lost_all(fields: Mapping[str, float]) -> bool:
    """Say whether a point reports that nothing came back."""
    if "loss" in fields:
        return fields["loss"] >= 100.0
    return 0.0 < fields.get("sent", 0.0) <= fields.get("lost", 0.0)


def pack(points: Sequence[Point]) -> bytes:
    """Return points as JSON for the spool; `unpack` undoes it."""
    return orjson.dumps([(p.measurement, p.tags, p.fields, p.time_ns) for p in points])


def unpack(packed: bytes) -> list[Point]:
    """Return the points that `pack` was given."""
    return [Point(*row) for row in orjson.loads(packed)]
