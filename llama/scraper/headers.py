"""What a collector says of its answer beside the points: the ``Llama-`` headers, read strictly.

Whatever is at a collector's address writes them, so nothing in them is believed that is not in the
contract: numbers are of some digits and no more, and nothing is said twice in two ways.
"""

from __future__ import annotations

import re

from attrs import frozen

from llama.http.client import Reply
from llama.scraper.points import BadAnswerError

#: Characters of a cursor; ours have a dozen or two.
MAX_CURSOR = 1024
#: As many digits as a float holds to the last one.
_NUMBER = re.compile(rb"[0-9]{1,15}")


@frozen
class Said:
    """What the headers of one answer say."""

    cursor: str | None  # to be asked with next; None: it knows no cursors
    more: bool = False  # whether it holds more than it gave
    missed: int = 0  # intervals that it had to forget before they were asked for
    oddities: tuple[str, ...] = ()  # headers that are nonsense and count as not said


def read_headers(reply: Reply) -> Said:
    """Read the headers of an answer. Raises `BadAnswerError` when its cursor is none to be kept.

    Numbers that are none are left out, and named in ``oddities``: the points are good without them.
    """
    oddities = []
    numbers = {}
    for name in ("Llama-More", "Llama-Missed"):
        values = _values(reply, name)
        number = _NUMBER.fullmatch(values[0].strip()) if len(values) == 1 else None
        if number is not None:
            numbers[name] = int(number[0])
        elif values:
            oddities.append(name)
    return Said(
        cursor=_cursor(_values(reply, "Llama-Cursor")),
        more=numbers.get("Llama-More", 0) > 0,
        missed=numbers.get("Llama-Missed", 0),
        oddities=tuple(oddities),
    )


def _values(reply: Reply, name: str) -> list[bytes]:
    """Return what a header says, once if it is repeated as it is."""
    return list(dict.fromkeys(reply.headers.getRawHeaders(name.encode("ascii"), [])))


def _cursor(values: list[bytes]) -> str | None:
    if not values:
        return None
    if len(values) > 1:
        raise BadAnswerError(f"{len(values)} cursors that differ")
    if len(values[0]) > 4 * MAX_CURSOR:
        raise BadAnswerError(f"a cursor of {len(values[0])} octets")
    try:
        cursor = values[0].decode()
    except UnicodeDecodeError:
        raise BadAnswerError("a cursor that is no UTF-8") from None
    if len(cursor) > MAX_CURSOR:
        raise BadAnswerError(f"a cursor of {len(cursor)} characters")
    if "\0" in cursor:
        raise BadAnswerError("a cursor with a NUL in it")
    return cursor
