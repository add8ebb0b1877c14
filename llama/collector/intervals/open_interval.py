"""The windows of a ledger that are not closed yet, and what makes them suspect."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import define, field

from llama.collector.intervals.own_drops import OwnDrops


@define(eq=False)
class OpenInterval:
    """A window not closed yet: its bounds in wall time and, flow by flow, in sequence numbers."""

    start_ns: int
    end_ns: int
    first: npt.NDArray[np.uint32]  # (flows,) sequence number of the first probe
    end: npt.NDArray[np.uint32] | None = None  # one past the last, once the window is over
    due: float = math.inf  # when it may be closed, on the monotonic clock
    waited_ns: int = 0  # what `due` was put off for: see `put_off`
    told: int = 0  # the figures of so many flows, the first of them, are made
    #: (flows,) further replies to probes of it, or of those closed before it.
    duplicates: npt.NDArray[np.uint32] = field(factory=lambda: np.zeros(0, np.uint32))
    #: Flows of late replies that came after that: of the next interval once this one is closed.
    late_since_told: list[npt.NDArray[np.int64]] = field(factory=list)
    #: Of each step of the clock: flow by flow the sequence number of the first probe after it.
    steps: list[npt.NDArray[np.uint32]] = field(factory=list)
    suspect: int = 0  # bits of SUSPECT_REASONS that hold for all pairs
    pair_suspect: npt.NDArray[np.uint32] = field(factory=lambda: np.zeros(0, np.uint32))
    notes: set[str] = field(factory=set)
    #: Of this whole host, meanwhile: see the ledger's methods that note them.
    refused: OwnDrops = field(factory=OwnDrops)
    dropped_later: OwnDrops = field(factory=OwnDrops)
    undelivered: OwnDrops = field(factory=OwnDrops)
    #: What the pairs were called then, if not as they are now: the ledger's owner knows.
    called: Any = None

    def put_off(self, waited_ns: int) -> None:
        """Close later by what a probe waited in this host's own queue: its reply may, too."""
        if waited_ns > self.waited_ns:
            self.due += (waited_ns - self.waited_ns) / 1e9
            self.waited_ns = waited_ns

    def mark(self, bits: int, note: str = "", pairs: Any = None) -> None:
        """Mark it as suspect for ``bits``: for some ``pairs`` (any index), or for all."""
        if pairs is None:
            self.suspect |= bits
        else:
            self.pair_suspect[pairs] |= np.uint32(bits)
        if note:
            self.notes.add(note)

    def note_more(self, count: int, what: str) -> None:
        """Note ``count`` more of something, in one note that begins with the sum."""
        before = next((note for note in self.notes if note.endswith(what)), "0")
        self.notes.discard(before)
        self.notes.add(f"{int(before.split()[0]) + count} {what}")


class Windows:
    """The one in which probes are sent, ``current``, and those that are ``over``, the oldest first."""

    def __init__(self) -> None:
        self.current: OpenInterval | None = None
        self.over: list[OpenInterval] = []

    def open_intervals(self) -> list[OpenInterval]:
        """Return the windows that are not closed, oldest first."""
        return [*self.over, *([self.current] if self.current is not None else [])]

    def mark(self, bits: int, note: str = "", pairs: Any = None) -> None:
        """Mark all open windows as suspect for ``bits``: for some ``pairs`` (any index), or for all."""
        for interval in self.open_intervals():
            interval.mark(bits, note, pairs)

    def mark_current(self, bits: int, note: str = "", pairs: Any = None) -> None:
        """Mark only the window that probes are sent in: what befell sending concerns no other."""
        if self.current is not None:
            self.current.mark(bits, note, pairs)

    def note_more(self, count: int, what: str) -> None:
        """Note ``count`` more of something in all open windows."""
        for interval in self.open_intervals():
            interval.note_more(count, what)

    def note_refused(self, many: int, seconds: float) -> None:
        """Note that the kernel dropped datagrams of this host, anybody's, that it calls sent.

        It was in the current window, or at the end of the one before. ``many`` and ``seconds`` are
        those of `OwnDrops`, here and below.
        """
        for interval in self.open_intervals()[-2:]:
            interval.refused.add(many, seconds)

    def note_dropped_later(self, many: int, seconds: float) -> None:
        """Note that queues of this host dropped packets, likewise, that they may have accepted before."""
        for interval in self.open_intervals()[-2:]:
            interval.dropped_later.add(many, seconds)

    def note_undelivered(self, many: int, seconds: float) -> None:
        """Note that the kernel dropped packets before it looked whose they are."""
        for interval in self.open_intervals():
            interval.undelivered.add(many, seconds)
