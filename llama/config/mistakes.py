"""Mistakes in a configuration file: where, what, and what was expected."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

#: What is said of a file whose last line has no end.
CUT_SHORT = "ends amid a line: is it still being written? end the last line with a newline"


@frozen(order=True)
class Mistake:
    """One mistake. ``line`` counts from 1; 0 means the file as a whole."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}"


class ConfigErrors(Exception):  # noqa: N818  it holds several
    """A configuration file is refused; ``mistakes`` holds every one of them, by line."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes: tuple[Mistake, ...] = tuple(sorted(set(mistakes)))
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))
