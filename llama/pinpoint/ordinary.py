"""What is ordinary for the RTT of each flow: who is late, and whose path changed it. Pure.

Flows are known here by their rows in a `llama.pinpoint.flow_table.FlowTable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.paths.table import Hops
from llama.pinpoint.evidence import Indices, Mask

#: An RTT is out of the ordinary above the ordinary one by this, and by half of it.
LATE_NS = 1_000_000.0
#: How fast the ordinary follows what is measured, and what is measured while late, a share an
#: interval: what stays late for hours becomes the ordinary.
FOLLOW, FOLLOW_LATE = 0.1, 0.002


@frozen
class Step:
    """A flow whose RTT became another when its path did."""

    row: int
    before: Hops
    after: Hops
    before_ns: float  # what was ordinary
    after_ns: float


class OrdinaryRtt:
    """The ordinary RTT of flows, by row."""

    def __init__(self) -> None:
        self._ns = np.full(1024, np.nan)
        #: Row -> what was ordinary for its RTT, and its hops then and now: until it is measured again.
        self._rerouted: dict[int, tuple[float, Hops, Hops]] = {}

    def forget(self, row: int) -> None:
        """Know nothing of a row any more."""
        self._ns[row : row + 1] = np.nan
        self._rerouted.pop(row, None)

    def late(self, rows: Indices, rtt_ns: npt.NDArray[np.float64]) -> Mask:
        """Return which RTTs are out of the ordinary, and follow the ordinary. NaN: none was measured."""
        self._make_room(rows)
        ordinary = self._ns[rows]
        ordinary = np.where(np.isnan(ordinary), rtt_ns, ordinary)
        with np.errstate(invalid="ignore"):
            late: Mask = _slower(rtt_ns, ordinary)
            step = np.where(late, FOLLOW_LATE, np.where(rtt_ns < ordinary, 1.0, FOLLOW))
            followed = ordinary + step * (rtt_ns - ordinary)
        self._ns[rows] = np.where(np.isnan(rtt_ns), ordinary, followed)
        return late

    def _make_room(self, rows: Indices) -> None:
        missing = int(rows.max(initial=-1)) + 1 - len(self._ns)
        if missing > 0:
            more = max(missing, len(self._ns))
            self._ns = np.concatenate([self._ns, np.full(more, np.nan)])

    def begin_anew(self, rows: Iterable[int], before: Hops, after: Hops) -> None:
        """Let another RTT be ordinary for flows whose path is another."""
        for row in rows:
            ordinary_ns = float(self._ns[row])
            if not np.isnan(ordinary_ns):
                self._rerouted[row] = ordinary_ns, before, after
            self._ns[row] = np.nan

    def steps(self, rows: Indices, rtt_ns: npt.NDArray[np.float64]) -> Iterator[Step]:
        """Yield those of these flows that took another path and have another RTT on it.

        Each is told once, when it is first measured again.
        """
        if not self._rerouted:
            return
        for row, after_ns in zip(rows.tolist(), rtt_ns.tolist(), strict=True):
            if row not in self._rerouted or np.isnan(after_ns):
                continue
            before_ns, before, after = self._rerouted.pop(row)
            if _slower(after_ns, before_ns) or _slower(before_ns, after_ns):
                yield Step(row, before, after, before_ns, after_ns)


def _slower(rtt_ns: Any, ordinary_ns: Any) -> Any:
    """Return whether an RTT, or which of many, is out of the ordinary."""
    return rtt_ns > 1.5 * ordinary_ns + LATE_NS
