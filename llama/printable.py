"""Texts of others, as they may stand on a terminal and in a log."""

from __future__ import annotations

#: Characters that a line of the log tells of one that may have any length.
MOST_TOLD = 500


def printable(text: str) -> str:
    """Return a text in which nothing moves a cursor, begins a line or turns the direction of writing.

    What is no letter, mark, number, sign or plain blank (ESC and the other control characters, line
    ends, overrides of direction, what is invisible) is U+FFFD in it.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
