"""What collectors answer, read strictly: all of an answer is as it should be, or none of it is taken.

Pure. Whatever is at a collector's address writes these. A name that is a number, or a count that no
column holds, would be found out only later, amid a judgement on what all collectors say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from llama.scraper.points import time_ns

Row = Mapping[str, Any]

#: Groups of tests whose intervals close by themselves, at most; there is one a timeout.
MOST_GROUPS = 100
#: Characters of a name, an address or a tag.
MOST_CHARACTERS = 1000
MOST_TAGS = 100
MOST_HOPS = 64
LONGEST_INTERVAL_S = 86_400.0
_LATEST_S = 1e11  # Unix time, in the year 5138
_COUNT = 2**32 - 1
_LARGEST = 2**53  # up to which JSON readers keep a number whole

_FLOW = {"dst_port": 65_535, "source_port": 65_535, "dscp": 63, "size_octets": 65_535}
_PAIR_TEXTS = ("target", "src_ip", "dst_ip", "probe", "port_group")
_PAIR_NUMBERS = {"dst_port": 65_535, "dscp": 63, "size_octets": 65_535}
_COUNTS = dict.fromkeys(
    (
        "sent",
        "lost_forward",
        "lost_reverse",
        "lost_unknown",
        "remarked_forward",
        "remarked_reverse",
    ),
    _COUNT,
)


class AnswerError(Exception):
    """A collector answered something that is no answer; the text is for people."""


@frozen
class Head:
    """What ``/flows`` says first."""

    incarnation: str
    numbers: tuple[int, ...]  # close numbers of the newest interval of each group of tests
    ends: tuple[float, ...]  # when those ended, Unix seconds


def read_head(answer: Row) -> Head:
    """Read who measured, and the newest intervals. Raises `AnswerError`."""
    groups = _list(answer, "intervals", MOST_GROUPS)
    for group in groups:
        _whole(group, "close_number", _LARGEST)
    return Head(
        incarnation=_text(answer, "incarnation"),
        numbers=tuple(group["close_number"] for group in groups),
        ends=tuple(_time_ns(group, "end") / 1e9 for group in groups),
    )


def all_flows(answer: Row) -> bool:
    """Return whether ``/flows`` has the healthy flows of its intervals, too. Raises `AnswerError`."""
    groups = _list(answer, "intervals", MOST_GROUPS)
    return all(_flag(group, "all_flows") for group in groups)


def read_flows(answer: Row, offset: int, most: int) -> tuple[Sequence[Row], int | None]:
    """Read a page of ``/flows`` from an offset on: its rows, ``most`` at most, and the next offset.

    All are of one interval. Raises `AnswerError`.
    """
    rows = _list(answer, "flows", most)
    when = None
    for row in rows:
        _pair(row)
        _whole(row, "source_port", 65_535)
        _wholes(row, _COUNTS)
        if row.get("dscp_at_reflector", 0) is not None:
            _whole(row, "dscp_at_reflector", 63)
        if row.get("rtt_p50_ms", 0) is not None:
            _number(row, "rtt_p50_ms", 1e9)
        reasons = _list(row, "suspect", 32, of=str)
        if len(set(reasons)) < len(reasons):
            raise _wrong(row, "suspect", "each once")
        here = row.get("interval_start"), row.get("interval_end")
        if here != when:
            length_s = (_time_ns(row, "interval_end") - _time_ns(row, "interval_start")) / 1e9
            if when is not None or not 0.0 < length_s <= LONGEST_INTERVAL_S:
                raise _wrong(row, "interval_end", "one for all, up to a day after its start")
            when = here
    following = answer.get("next_offset")
    if following is not None and (not rows or following != offset + len(rows)):
        raise _wrong(answer, "next_offset", "where this page ends")
    return rows, None if following is None else offset + len(rows)


def read_pairs(answer: Row) -> Sequence[Row]:
    """Read ``/latency``. Raises `AnswerError`."""
    rows = _list(answer, "pairs")
    for row in rows:
        _pair(row)
        tags = row.get("tags")
        if type(tags) is not dict or len(tags) > MOST_TAGS:
            raise _wrong(row, "tags", f"an object of {MOST_TAGS} at most")
        for name in tags:
            _text(tags, name)
    return rows


def read_paths(answer: Row) -> tuple[Sequence[Row], float]:
    """Read ``/paths``: its rows, and the collector's Unix time. Raises `AnswerError`."""
    rows = _list(answer, "paths")
    for row in rows:
        _text(row, "dst_ip")
        _wholes(row, _FLOW)
        hops = _list(row, "hops", MOST_HOPS, of=str | None)
        if any(hop is not None and not 1 < len(hop) <= MOST_CHARACTERS for hop in hops):
            raise _wrong(row, "hops", "addresses")
        if row.get("reach", 0) is not None:
            _whole(row, "reach", 255)
        if row.get("refusal") is not None:
            _text(row, "refusal")
        _flag(row, "complete")
        _number(row, "traced", _LATEST_S)
    return rows, _number(answer, "time", _LATEST_S)


def _pair(row: Row) -> None:
    for name in _PAIR_TEXTS:
        _text(row, name)
    _wholes(row, _PAIR_NUMBERS)


def _list(row: Row, name: str, most: int | None = None, of: Any = dict) -> list[Any]:
    found = row.get(name)
    if type(found) is not list or not all(isinstance(one, of) for one in found):
        raise _wrong(row, name, "a list")
    if most is not None and len(found) > most:
        raise _wrong(row, name, f"{most:,} at most")
    return found


def _text(row: Row, name: str) -> str:
    found = row.get(name)
    if type(found) is not str or len(found) > MOST_CHARACTERS:
        raise _wrong(row, name, f"text of {MOST_CHARACTERS:,} characters at most")
    return found


def _flag(row: Row, name: str) -> bool:
    found = row.get(name)
    if type(found) is not bool:
        raise _wrong(row, name, "true or false")
    return found


def _whole(row: Row, name: str, most: int) -> None:
    found = row.get(name)
    if type(found) is not int or not 0 <= found <= most:
        raise _wrong(row, name, f"0 to {most}")


def _wholes(row: Row, most: Mapping[str, int]) -> None:
    for name in most:
        _whole(row, name, most[name])


def _number(row: Row, name: str, most: float) -> float:
    found: Any = row.get(name)
    if type(found) not in (int, float) or not 0 <= found <= most:
        raise _wrong(row, name, f"0 to {most:g}")
    return float(found)


def _time_ns(row: Row, name: str) -> int:
    try:
        found = time_ns(_text(row, name))
    except ValueError:
        found = -1
    if not 0 <= found <= _LATEST_S * 1e9:
        raise _wrong(row, name, "an RFC 3339 time")
    return found


def _wrong(row: Row, name: str, expected: str) -> AnswerError:
    """Return what to say of a member that is not as it should be, or not there."""
    found = f"is {repr(row[name])[:60]}" if name in row else "is missing"
    return AnswerError(
        f"{name!r} {found}, expected {expected}: is it a LLAMA collector of this version?"
    )
