"""A row number for every series that is being measured, so that arrays can hold what it adds up to.

A series is a pair's whole tag set. It keeps its row through reloads for as long as intervals of it
go on closing; afterwards the row is free for another. With it are kept the two texts that name it
in every answer, since making them takes longer than everything else about a point.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import orjson

from llama.collector.intervals.summary import Pair
from llama.collector.slices import Job, Pace

Rows = npt.NDArray[np.int64]

_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
#: Label names that are ours within a metric, or Prometheus's.
_RESERVED = frozenset(("le", "quantile", "direction", "reason", "job", "instance"))

_NEVER = -np.inf

_pace_of_known = Pace()
_pace_of_new = Pace()


def label_name(tag: str) -> str:
    """Return a tag's name as Prometheus takes it: ``[a-zA-Z_][a-zA-Z0-9_]*``, none of its own."""
    name = _NOT_IN_NAME.sub("_", tag)
    if name in _RESERVED or name[:1].isdigit() or not name or name.startswith("__"):
        return f"tag_{name.lstrip('_')}"
    return name


def label_text(pair: Pair) -> str:
    """Return the labels of a pair's metrics, without braces: ``src_ip="192.0.2.1",...``.

    Two tags whose names become the same label keep apart: the second gets a number.
    """
    labels: dict[str, str] = {}
    for tag, value in sorted(pair.series_tags().items()):
        name = plain = label_name(tag)
        number = 2
        while name in labels:
            name, number = f"{plain}_{number}", number + 1
        labels[name] = value.translate(_ESCAPES)
    return ",".join([f'{name}="{value}"' for name, value in labels.items()])


class Series:
    """Gives out rows. ``labels`` and ``tags`` have an item for each, None where a row is free."""

    def __init__(self) -> None:
        self.labels: list[str | None] = []  # as `label_text`
        self.tags: list[bytes | None] = []  # the tag set as JSON
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._seen_s = np.zeros(0)
        #: The rows of pairs that have come before, as they do until a reload makes new ones.
        self._known: WeakKeyDictionary[Pair, int] = WeakKeyDictionary()

    def __len__(self) -> int:
        """How many rows there are, free ones among them."""
        return len(self.labels)

    def live(self) -> npt.NDArray[np.bool_]:
        """Return, for every row, whether a series has it."""
        return self._seen_s[: len(self.labels)] > _NEVER

    def rows_of(self, pairs: Sequence[Pair], now_s: float) -> Job[Rows]:
        """Return the rows of ``pairs``, which are being measured ``now_s`` (any clock)."""
        rows = np.zeros(len(pairs), np.int64)
        new: list[int] = []
        for part in _pace_of_known.slices(len(pairs)):
            for number, member in enumerate(pairs[part], part.start):
                row = self._known.get(member)
                if row is None:
                    new.append(number)
                else:
                    rows[number] = row
            yield _pace_of_known
        for part in _pace_of_new.slices(len(new)):
            for number in new[part]:
                rows[number] = self._known[pairs[number]] = self._row_of(pairs[number])
            yield _pace_of_new
        if len(self._seen_s) < len(self.labels):
            more = 2 * len(self.labels) - len(self._seen_s)
            self._seen_s = np.pad(self._seen_s, (0, more), constant_values=_NEVER)
        self._seen_s[rows] = now_s
        return rows

    def end(self, before_s: float) -> Rows:
        """End every series that was last measured before ``before_s``; return their rows."""
        seen_s = self._seen_s[: len(self.labels)]
        ended = np.flatnonzero((seen_s > _NEVER) & (seen_s < before_s))
        self._seen_s[ended] = _NEVER
        for row in ended.tolist():
            text = self.labels[row]
            assert text is not None
            del self._row[text]
            self.labels[row] = self.tags[row] = None
        self._free.extend(ended.tolist())
        if len(ended):
            self._known.clear()
        return ended

    def _row_of(self, member: Pair) -> int:
        text = label_text(member)
        row = self._row.get(text)
        if row is None:
            # A copy, since what orjson returns keeps 4 KiB to itself however short it is.
            tags = bytes(memoryview(orjson.dumps(member.series_tags())))
            if self._free:
                row = self._free.pop()
                self.labels[row], self.tags[row] = text, tags
            else:
                row = len(self.labels)
                self.labels.append(text)
                self.tags.append(tags)
            self._row[text] = row
        return row
