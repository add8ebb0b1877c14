"""Times as collectors write them, in RFC 3339, from Unix time and back."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_FORM = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d{2}:\d{2})\Z",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_ns(text: str) -> int:
    """Return the Unix time in ns of an RFC 3339 time. Raises `ValueError` if it is none."""
    match = _FORM.match(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no RFC 3339 time")
    day, clock, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    seconds = (moment - _EPOCH).days * 86400 + (moment - _EPOCH).seconds
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def time_s(text: str) -> float:
    """Return the Unix time in s of an RFC 3339 time. Raises `ValueError` if it is none."""
    return time_ns(text) / 1e9


def utc_text(time_ns: int) -> str:
    """Return a time since 1970, in nanoseconds, as RFC 3339 in UTC: ``2024-01-31T12:00:30Z``."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
