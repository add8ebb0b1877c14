"""Rows of collectors' answers, read strictly: what is not as it must be is refused in words. Pure.

A collector may be broken, or somebody else's. Nothing that it answers may trouble more than itself,
so whatever is read here has the right type, is within its bounds and can be printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from reprlib import repr as short
from types import NoneType
from typing import Any, NamedTuple

from llama import rfc3339
from llama.paths.table import FlowKey
from llama.printable import printable

#: Flows, pairs and paths of one collector. Three times the 160,000 flows (10,000 targets, 16 source
#: ports) that docs/performance.rst measures a collector with; more could hardly be read in an interval.
MOST_FLOWS = 500_000
#: Groups of tests whose intervals close under numbers of their own.
MOST_GROUPS = 1000
#: Keys of tags that all pairs of a collector have together, each of which is looked into.
MOST_TAGS = 250
MOST_CHARACTERS = 1024  # of a name, an address or the value of a tag
MOST_HOPS = 64  # of a path
MOST_REASONS = 64  # to doubt a flow
#: Probes of a flow in an interval, 10,000/s for an hour and some: a dozen intervals still add up in
#: 32 bits.
MOST_PROBES = 100_000_000
LONGEST_INTERVAL_S = 86_400.0
LONGEST_RTT_MS = 1e7
LATEST_S = 1e11  # Unix time
LARGEST = 2**53  # of numbers that JSON readers keep whole


class AnswerError(Exception):
    """A collector answered something that is no answer; the text is for people."""


def whole(row: Mapping[str, Any], name: str, most: int, least: int = 0) -> int:
    """Return a whole number within its bounds."""
    value = row[name]
    if type(value) is not int or not least <= value <= most:
        raise _wrong(name, value, f"a whole number from {least} to {most}")
    return value


def number(row: Mapping[str, Any], name: str, most: float) -> float:
    """Return a number that is not negative and no more than `most`."""
    value = row[name]
    if type(value) not in (int, float) or not (0 <= value <= most and isfinite(value)):
        raise _wrong(name, value, f"a number from 0 to {most:g}")
    return float(value)


def flag(row: Mapping[str, Any], name: str) -> bool:
    """Return a truth."""
    value = row[name]
    if type(value) is not bool:
        raise _wrong(name, value, "true or false")
    return value


def text(row: Mapping[str, Any], name: str) -> str:
    """Return a text that is not empty, printable, as one object however often it comes."""
    return _text(name, row[name])


def _text(name: str, value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= MOST_CHARACTERS:
        raise _wrong(name, value, f"a text of at most {MOST_CHARACTERS} characters")
    return sys.intern(printable(value))


def _maybe(name: str, value: Any) -> str:
    return "" if value == "" else _text(name, value)


def time_s(row: Mapping[str, Any], name: str) -> float:
    """Return the Unix time of an RFC 3339 time."""
    value = row[name]
    try:
        if type(value) is not str or len(value) > 40:
            raise ValueError
        at_s = rfc3339.time_s(value)
        if at_s < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise _wrong(name, value, "a time of RFC 3339") from None
    return at_s


def rows(answer: Mapping[str, Any], name: str, most: int) -> list[Mapping[str, Any]]:
    """Return a list of objects."""
    value = answer[name]
    if type(value) is not list:
        raise _wrong(name, value, "a list")
    if len(value) > most:
        raise AnswerError(f"{name} has {len(value):,} entries, expected at most {most:,}")
    for row in value:
        if type(row) is not dict:
            raise _wrong(f"an entry of {name}", row, "an object")
    return value


def _wrong(name: str, value: Any, expected: str) -> AnswerError:
    return AnswerError(f"{name} is {printable(short(value))}, expected {expected}")


class FlowRow(NamedTuple):
    """A row of ``/flows``: what of it is read. The first eight name its pair, as in ``/latency``."""

    target: str
    src_ip: str
    dst_ip: str
    dst_port: int
    dscp: int
    probe: str
    size_octets: int
    port_group: str
    source_port: int
    ssid: int
    start_s: float  # Unix times of the interval
    end_s: float
    sent: int
    lost_forward: int
    lost_reverse: int
    lost_unknown: int
    remarked_forward: int
    remarked_reverse: int
    dscp_at_reflector: int | None
    rtt_p50_ms: float | None
    suspect: tuple[str, ...]

    @property
    def pair(self) -> tuple[Any, ...]:
        """What names its pair, in the order of `PAIR`."""
        return self[:8]

    @property
    def key(self) -> FlowKey:
        """What names the flow, as it does in ``/paths``."""
        return FlowKey(self.dst_ip, self.dst_port, self.source_port, self.dscp, self.size_octets)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What no two rows of one interval have in common."""
        return self[:10]


#: What names a pair in ``/latency`` and ``/flows``.
PAIR = FlowRow._fields[:8]


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what names a pair in ``/latency`` and ``/flows``."""
    return {
        "target": text(row, "target"),
        "src_ip": text(row, "src_ip"),
        "dst_ip": text(row, "dst_ip"),
        "dst_port": whole(row, "dst_port", 65_535),
        "dscp": whole(row, "dscp", 63),
        "probe": text(row, "probe"),
        "size_octets": whole(row, "size_octets", 65_535),
        "port_group": _maybe("port_group", row["port_group"]),
    }


def flow(row: Mapping[str, Any]) -> FlowRow:
    """Return a row of ``/flows``; raises `AnswerError`, and `KeyError` for what it lacks."""
    suspect = row["suspect"]
    if type(suspect) is not list or len(suspect) > MOST_REASONS:
        raise _wrong("suspect", suspect, "a list of reasons")
    mark, rtt_ms = row["dscp_at_reflector"], row["rtt_p50_ms"]
    read = FlowRow(
        **_pair(row),
        source_port=whole(row, "source_port", 65_535),
        ssid=whole(row, "ssid", 65_535) if "ssid" in row else 0,
        start_s=time_s(row, "interval_start"),
        end_s=time_s(row, "interval_end"),
        sent=whole(row, "sent", MOST_PROBES),
        lost_forward=whole(row, "lost_forward", MOST_PROBES),
        lost_reverse=whole(row, "lost_reverse", MOST_PROBES),
        lost_unknown=whole(row, "lost_unknown", MOST_PROBES),
        remarked_forward=whole(row, "remarked_forward", MOST_PROBES),
        remarked_reverse=whole(row, "remarked_reverse", MOST_PROBES),
        dscp_at_reflector=None if mark is None else whole(row, "dscp_at_reflector", 63),
        rtt_p50_ms=None if rtt_ms is None else number(row, "rtt_p50_ms", LONGEST_RTT_MS),
        suspect=tuple({_text("a reason in suspect", reason): None for reason in suspect}),
    )
    if read.lost_forward + read.lost_reverse + read.lost_unknown > read.sent:
        raise AnswerError("a flow lost more probes than were sent")
    return read


def flows(page: Sequence[Mapping[str, Any]]) -> list[FlowRow]:
    """Return rows of ``/flows``, as `flow` does each, at a fraction of the time if all is well.

    They are looked at by column, and row by row only to say what is wrong.
    """
    try:
        return _by_column(page)
    except (AnswerError, KeyError, TypeError):
        return [flow(row) for row in page]


def _by_column(page: Sequence[Mapping[str, Any]]) -> list[FlowRow]:
    """Return rows of ``/flows``; raises something if they are not all as those of our collectors."""
    columns = [_READ[name](name, column) for name, column in _columns(page)]
    read = list(map(FlowRow._make, zip(*columns, strict=True)))
    for row in read:
        if row.lost_forward + row.lost_reverse + row.lost_unknown > row.sent:
            raise AnswerError("a flow lost more probes than were sent")
    return read


#: Takes a name and a column, and returns it read; raises something if a value is not as usual.
_Reader = Callable[[str, Sequence[Any]], Sequence[Any]]


def _columns(page: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Sequence[Any]]]:
    for name in _READ:
        if name == "ssid" and not any("ssid" in row for row in page):
            yield name, [0] * len(page)
        else:
            yield name, [row[name] for row in page]


def _each_once(read: Callable[[str, Any], Any]) -> _Reader:
    """Return what reads a column of texts of which most come many times."""

    def column(name: str, values: Sequence[Any]) -> Sequence[Any]:
        known = {value: read(name, value) for value in set(values)}
        return [known[value] for value in values]

    return column


def _all_whole(most: int) -> _Reader:
    """Return what reads a column of whole numbers."""

    def column(name: str, values: Sequence[Any]) -> Sequence[Any]:
        if set(map(type, values)) - {int} or (
            values and not 0 <= min(values) <= max(values) <= most
        ):
            raise AnswerError(name)
        return values

    return column


def _all_marks(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if set(map(type, values)) - {int, NoneType} or not set(values) <= {None, *range(64)}:
        raise AnswerError(name)
    return values


def _all_rtts(name: str, values: Sequence[Any]) -> Sequence[Any]:
    known = [value for value in values if value is not None]
    if set(map(type, known)) - {float}:
        raise AnswerError(name)
    # Whatever is NaN is not within bounds, and `min` and `max` may miss it.
    if known and not (0 <= min(known) <= max(known) <= LONGEST_RTT_MS and isfinite(sum(known))):
        raise AnswerError(name)
    return values


def _all_suspect(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if set(map(type, values)) - {list}:
        raise AnswerError(name)
    return [_reasons(name, value) if value else () for value in values]


def _reasons(name: str, value: list[Any]) -> tuple[str, ...]:
    if len(value) > MOST_REASONS:
        raise AnswerError(name)
    return tuple({_text(name, reason): None for reason in value})


_TEXT = _each_once(_text)
_PORT, _COUNT = _all_whole(65_535), _all_whole(MOST_PROBES)
_TIME = _each_once(lambda name, value: time_s({name: value}, name))
#: What reads each column of ``/flows``, in the order of `FlowRow`.
_READ: dict[str, _Reader] = {
    "target": _TEXT,
    "src_ip": _TEXT,
    "dst_ip": _TEXT,
    "dst_port": _PORT,
    "dscp": _all_whole(63),
    "probe": _TEXT,
    "size_octets": _PORT,
    "port_group": _each_once(_maybe),
    "source_port": _PORT,
    "ssid": _PORT,
    "interval_start": _TIME,
    "interval_end": _TIME,
    "sent": _COUNT,
    "lost_forward": _COUNT,
    "lost_reverse": _COUNT,
    "lost_unknown": _COUNT,
    "remarked_forward": _COUNT,
    "remarked_reverse": _COUNT,
    "dscp_at_reflector": _all_marks,
    "rtt_p50_ms": _all_rtts,
    "suspect": _all_suspect,
}


def one_interval(rows: Sequence[FlowRow]) -> None:
    """Raise `AnswerError` unless these are flows of one interval, each once."""
    if len({row[:10] for row in rows}) < len(rows):
        seen: set[tuple[Any, ...]] = set()
        for row in rows:
            if row.identity in seen:
                raise AnswerError(
                    f"the flow from port {row.source_port} to {row.dst_ip} is there twice"
                )
            seen.add(row.identity)
    when = {(row.start_s, row.end_s) for row in rows}
    if len(when) > 1:
        raise AnswerError("flows of one interval have several times")
    for start_s, end_s in when:
        if not 0 < end_s - start_s <= LONGEST_INTERVAL_S:
            raise AnswerError(f"an interval is {end_s - start_s:g} s long")


class PairReader:
    """Reads rows of ``/latency`` of one collector. Tags that are too many or too long it leaves out."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self.left_out = ""  # what of them, and why, for people; "": nothing

    def read(self, given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the names and tags of pairs. Raises as `flow`."""
        return [{**_pair(row), "tags": self._tags(row["tags"])} for row in given]

    def _tags(self, tags: Any) -> dict[str, str]:
        if type(tags) is not dict:
            raise _wrong("tags", tags, "an object")
        read: dict[str, str] = {}
        for key, value in tags.items():
            if type(value) is not str:
                raise _wrong("the value of a tag", value, "a text")
            if max(len(key), len(value)) > MOST_CHARACTERS:
                self._leave_out(key, f"is longer than {MOST_CHARACTERS:,} characters")
                continue
            name = _text("a tag", key)
            if name not in self._keys and len(self._keys) >= MOST_TAGS:
                self._leave_out(name, f"comes after {MOST_TAGS} others")
                continue
            self._keys.add(name)
            read[name] = _maybe("the value of a tag", value)
        return read

    def _leave_out(self, key: str, why: str) -> None:
        if not self.left_out:
            self.left_out = f"tag {printable(short(key))} {why} and is left out"


def paths(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what rows of ``/paths`` say of flows that were traced."""
    return [_path(row) for row in given]


def _path(row: Mapping[str, Any]) -> dict[str, Any]:
    hops, reach = row["hops"], row["reach"]
    refusal, refused_by = row.get("refusal"), row.get("refused_by")
    if type(hops) is not list or len(hops) > MOST_HOPS:
        raise _wrong("hops", hops, f"a list of at most {MOST_HOPS}")
    complete = flag(row, "complete")
    if complete and not hops:
        raise AnswerError("a path that came through has no hops")
    return {
        "dst_ip": text(row, "dst_ip"),
        "dst_port": whole(row, "dst_port", 65_535),
        "source_port": whole(row, "source_port", 65_535),
        "dscp": whole(row, "dscp", 63),
        "size_octets": whole(row, "size_octets", 65_535),
        "hops": [None if hop is None else _text("a hop", hop) for hop in hops],
        "complete": complete,
        "traced": number(row, "traced", LATEST_S),
        "reach": None if reach is None else whole(row, "reach", MOST_HOPS),
        "refusal": None if refusal is None else _maybe("refusal", refusal),
        "refused_by": None if refused_by is None else _maybe("refused_by", refused_by),
    }
