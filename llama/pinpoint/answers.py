"""Rows of collectors' answers, read strictly: what is not as it must be is refused in words. Pure.

A collector may be broken, or somebody else's. Nothing that it answers may trouble more than itself,
so whatever is read here has the right type, is within its bounds and can be printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from math import isfinite
from reprlib import repr as short
from typing import Any

from attrs import define

from llama.printable import printable

#: Flows, pairs and paths of one collector. Three times the 160,000 flows (10,000 targets, 16 source
#: ports) that docs/performance.rst measures a collector with; more could hardly be read in an interval.
MOST_FLOWS = 500_000
#: Groups of tests whose intervals close under numbers of their own.
MOST_GROUPS = 1000
#: Keys of tags that all pairs of a collector have together, each of which is looked into.
MOST_TAGS = 64
MOST_CHARACTERS = 1024  # of a name, an address or the value of a tag
MOST_HOPS = 64  # of a path
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
        at = datetime.fromisoformat(value)
        if at.tzinfo is None or at.timestamp() < 0:
            raise ValueError
        return at.timestamp()
    except (ValueError, OverflowError, OSError):
        raise _wrong(name, value, "a time of RFC 3339") from None


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


@define(frozen=True, slots=True, eq=False)
class FlowRow:
    """A row of ``/flows``: what of it is read. ``row["sent"]`` is ``row.sent``, as of the JSON."""

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
    interval_start: str
    interval_end: str
    sent: int
    lost_forward: int
    lost_reverse: int
    lost_unknown: int
    remarked_forward: int
    remarked_reverse: int
    dscp_at_reflector: int | None
    rtt_p50_ms: float | None
    suspect: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        """Return one figure."""
        return getattr(self, name)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What no two rows of one interval have in common."""
        return (
            self.target, self.src_ip, self.dst_ip, self.dst_port, self.dscp, self.probe,
            self.size_octets, self.port_group, self.source_port, self.ssid,
        )  # fmt: skip


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
    if type(suspect) is not list or len(suspect) > 64:
        raise _wrong("suspect", suspect, "a list of reasons")
    mark, rtt_ms = row["dscp_at_reflector"], row["rtt_p50_ms"]
    read = FlowRow(
        **_pair(row),
        source_port=whole(row, "source_port", 65_535),
        ssid=whole(row, "ssid", 65_535) if "ssid" in row else 0,
        interval_start=text(row, "interval_start"),
        interval_end=text(row, "interval_end"),
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


def one_interval(flows: Iterable[FlowRow]) -> None:
    """Raise `AnswerError` unless these are flows of one interval, each once."""
    seen: set[tuple[Any, ...]] = set()
    when: set[tuple[str, str]] = set()
    for count, row in enumerate(flows, 1):
        seen.add(row.identity)
        when.add((row.interval_start, row.interval_end))
        if len(seen) < count:
            raise AnswerError(
                f"the flow from port {row.source_port} to {row.dst_ip} is there twice"
            )
        if len(when) > 1:
            raise AnswerError("flows of one interval have several times")
    for begin, end in when:
        both = {"interval_start": begin, "interval_end": end}
        length_s = time_s(both, "interval_end") - time_s(both, "interval_start")
        if not 0 < length_s <= LONGEST_INTERVAL_S:
            raise AnswerError(f"an interval is {length_s:g} s long")


def pairs(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what ``/latency`` says of pairs: their names and tags."""
    found = []
    keys: set[str] = set()
    for row in rows(answer, "pairs", MOST_FLOWS):
        tags = row["tags"]
        if type(tags) is not dict:
            raise _wrong("tags", tags, "an object")
        read = {
            _text("a tag", key): _maybe("the value of a tag", value) for key, value in tags.items()
        }
        keys.update(read)
        if len(keys) > MOST_TAGS:
            raise AnswerError(f"pairs have more than {MOST_TAGS} tags")
        found.append({**_pair(row), "tags": read})
    return found


def paths(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what ``/paths`` says of flows that were traced."""
    return [_path(row) for row in rows(answer, "paths", MOST_FLOWS)]


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
