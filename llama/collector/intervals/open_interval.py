"""A window of a ledger that is not closed yet, and what makes it suspect."""

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
    suspect: int = 0  # bits of SUSPECT_REASONS that hold for all pairs
    pair_suspect: npt.NDArray[np.uint32] = field(factory=lambda: np.zeros(0, np.uint32))
    notes: set[str] = field(factory=set)
    #: Of this whole host, meanwhile: see the ledger's methods that note them.
    refused: OwnDrops = field(factory=OwnDrops)
    dropped_later: OwnDrops = field(factory=OwnDrops)
    undelivered: OwnDrops = field(factory=OwnDrops)
    #: What the pairs were called then, if not as they are now: the ledger's owner knows.
    called: Any = None

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
