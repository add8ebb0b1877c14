"""Corrects when earlier replies left, by their reflector's own transmit stamps: Follow-Up Telemetry.

It names a reply by its number. Which probe that answered is looked for here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.cell import FOLLOWED, RECEIVED
from llama.collector.intervals.replies import Ints, Replies

if TYPE_CHECKING:
    from llama.collector.intervals.ledger import Ledger

#: So many places are looked at for the probe whose reply's transmit stamp is told.
MOST_BEHIND = 15


class _Told(NamedTuple):
    """What replies tell of earlier ones, a row each: (N,) columns."""

    flow: Ints
    sequence: npt.NDArray[np.uint32]  # of the probe that the telling reply answers
    newest: npt.NDArray[np.uint32]  # that reply's own number
    number: npt.NDArray[np.uint32]  # of the reply that is told of
    stamp_ns: Ints  # when that one left, by the reflector's clock

    def rows(self, some: npt.NDArray[Any]) -> _Told:
        """Return some of them."""
        return _Told(*(column[some] for column in self))


def follow_up(book: Ledger, replies: Replies) -> None:
    """Correct T3 of earlier replies by the reflector's own transmit stamps (RFC 8972 section 4.7)."""
    telling = np.flatnonzero(replies.follow_ns)
    if not telling.size:
        return
    told = _Told(
        replies.flow, replies.sequence, replies.number, replies.follow_number, replies.follow_ns
    ).rows(telling)
    # As many probes ago as replies, and more if probes were lost on their way; where numbers
    # count others, too, one of the last few; none, where a probe came twice.
    for more in range(MOST_BEHIND):
        back = (told.newest - told.number).astype(np.int64) + more
        if more == MOST_BEHIND // 2 + 1:  # for those that tell of the one before all was tried
            left = told.newest - told.number > 1
            told, back = told.rows(left), back[left]
        if more >= MOST_BEHIND // 2:
            back[:] = more - MOST_BEHIND // 2
        match = _correct(book, told, back)
        if match.all():
            return
        told = told.rows(~match)


def _correct(book: Ledger, told: _Told, back: Ints) -> npt.NDArray[np.bool_]:
    """Correct the replies so many probes ``back`` if they are those numbered so: which are, (N,).

    A session that is begun anew has the same numbers again. At the telling reply's own number it
    reaches that many probes back, at the least; what is further back must be linked to these by numbers
    without a gap, or have left well before the next probe can have come.
    """
    cells = book.cells(told.flow, told.sequence - back.astype(np.uint32))
    match: npt.NDArray[np.bool_] = (book.number[cells] == told.number) & (
        (book.flags[cells] & RECEIVED) != 0
    )
    match &= (back >= 0) & (back < book.depth)
    found = cells[match]
    residence = told.stamp_ns[match] - (book.t1[found] + book.forward[found])
    sane = (residence >= 0) & (residence < 2**31) & (residence <= book.elapsed[found])
    further = (back - told.newest.astype(np.int64))[match]
    if (further > 0).any():
        flow, sequence, newest, number, _ = told.rows(match)
        first = book.cells(flow, sequence - newest)
        linked = (book.flags[first] & RECEIVED) != 0
        linked &= book.number[first] - number == further
        following = sequence - (back[match] - 1).astype(np.uint32)
        soon = 2 * residence < book.t1[book.cells(flow, following)] - book.t1[found]
        sane &= (further <= 0) | linked | soon
    if not sane.all():
        found, residence = found[sane], residence[sane]
        match[match] = sane
    book.residence[found] = residence
    book.flags[found] |= FOLLOWED
    return match
