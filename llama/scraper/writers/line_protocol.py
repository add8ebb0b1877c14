r"""InfluxDB's line protocol: ``measurement,tag=value field=1.5 1700000000000000000``.

Written here because InfluxData's own serialiser takes four times as long (``benchmarks``; the
tests hold the two against each other). What the format cannot say is said as nearly as can be:

- Escapable: comma, space and equals sign. There is no escape for the backslash: one before any of
  those, or at the end of a name or value, would swallow what follows, so it becomes a slash
  (``C:\`` is written ``C:/``). Elsewhere it stands as it is.
- Line ends become spaces. An empty name or value is refused by databases and left out.
- Numbers are floats; NaN and infinities do not exist in it and are left out.

Source: InfluxDB 1.x documentation, "Line protocol reference"; and what InfluxDB 1.6 does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from llama.interfaces import Point

_SPECIAL = re.compile(r"[, =\\\n\r\0]")
_DEAD_BACKSLASH = re.compile(r"\\(?=[\\]*(?:[, =]|\Z))")
_ESCAPED = str.maketrans(
    {",": r"\,", " ": r"\ ", "=": r"\=", "\n": r"\ ", "\r": r"\ ", "\0": r"\ "}
)
_LINE_ENDS = str.maketrans("\n\r\0", "   ")


@lru_cache(maxsize=65536)
def escape(text: str) -> str:
    """Return a tag's or field's name, or a tag's value, as it stands in a line."""
    if not _SPECIAL.search(text):
        return text
    return _DEAD_BACKSLASH.sub("/", text.translate(_LINE_ENDS)).translate(_ESCAPED)


@lru_cache(maxsize=1024)
def _escape_measurement(text: str) -> str:
    """Return a measurement's name; one that would make the line a comment gets a ``_``."""
    escaped = escape(text).replace(r"\=", "=")
    return "_" + escaped if escaped.startswith("#") else escaped


def line(point: Point) -> str:
    """Return the line of one point; it is empty if the point has no finite figure.

    Tags stand in the order of their names, which spares InfluxDB the sorting.
    """
    fields = ",".join(
        [
            f"{escape(name)}={value!r}"
            for name, value in point.fields.items()
            if name and math.isfinite(value)
        ]
    )
    if not fields:
        return ""
    return f"{_escape_measurement(point.measurement)}{_tags(point.tags)} {fields} {point.time_ns}"


def _tags(tags: Mapping[str, str]) -> str:
    return "".join(
        [f",{escape(name)}={escape(tags[name])}" for name in sorted(tags) if name and tags[name]]
    )


def lines(points: Sequence[Point]) -> bytes:
    """Return the lines of many points, each ended, as UTF-8; lone surrogates become ``?``."""
    text = "\n".join([written for point in points if (written := line(point))])
    return (text + "\n").encode("utf-8", "replace") if text else b""
