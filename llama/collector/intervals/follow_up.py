"""Corrects when earlier replies left, by their reflector's own transmit stamps: Follow-Up Telemetry.

It names a reply by its number. Which probe that answered is looked for here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.cell import FOLLOWED, RECEIVED
from llama.collector.intervals.replies import Ints, Replies

if TYPE_CHECKING:
    from llama.collector.intervals.ledger import Ledger

#: So many places are looked at for the probe whose reply's transmit stamp is told.
MOST_BEHIND = 15


def follow_up(book: Ledger, replies: Replies) -> None:
    """Correct T3 of earlier replies by the reflector's own transmit stamps (RFC 8972 section 4.7)."""
    told = np.flatnonzero(replies.follow_ns)
    if not told.size:
        return
    flows = replies.flow[told]
    sequence = replies.sequence[told]
    number = replies.follow_number[told]
    stamp = replies.follow_ns[told]
    newest = replies.number[told]
    # As many probes ago as replies, and more if probes were lost on their way; where numbers
    # count others, too, one of the last few; none, where a probe came twice.
    counted = (replies.number[told] - number).astype(np.int64)
    for more in range(MOST_BEHIND):
        back = counted + more if more < MOST_BEHIND // 2 else more - MOST_BEHIND // 2
        match = _correct(book, flows, sequence, number, stamp, back, newest)
        if match.all():
            return
        left = ~match
        flows, sequence, number, stamp = flows[left], sequence[left], number[left], stamp[left]
        counted, newest = counted[left], newest[left]


def _correct(
    book: Ledger,
    flows: Ints,
    sequence: npt.NDArray[np.uint32],
    number: npt.NDArray[np.uint32],
    stamp: Ints,
    back: Ints | int,
    newest: npt.NDArray[np.uint32],
) -> npt.NDArray[np.bool_]:
    """Correct the replies so many probes ``back`` if they are those numbered so: which are, (N,).

    A session that is begun anew has the same numbers again. At ``newest`` it reaches that many
    probes back, at the least; what is further back must be linked to these by numbers without a
    gap, or have left well before the next probe can have come.
    """
    cells = book.cells(flows, sequence - np.asarray(back).astype(np.uint32))
    match: npt.NDArray[np.bool_] = (book.number[cells] == number) & (
        (book.flags[cells] & RECEIVED) != 0
    )
    match &= (np.asarray(back) >= 0) & (np.asarray(back) < book.depth)
    found = cells[match]
    residence = stamp[match] - (book.t1[found] + book.forward[found])
    sane = (residence >= 0) & (residence < 2**31) & (residence <= book.elapsed[found])
    further = (back - newest.astype(np.int64))[match]
    if (further > 0).any():
        flows, sequence, behind = (
            flows[match],
            sequence[match],
            np.broadcast_to(back, match.shape),
        )
        first = book.cells(flows, sequence - newest[match])
        linked = (book.flags[first] & RECEIVED) != 0
        linked &= book.number[first] - number[match] == further
        following = sequence - (behind[match] - 1).astype(np.uint32)
        soon = 2 * residence < book.t1[book.cells(flows, following)] - book.t1[found]
        sane &= (further <= 0) | linked | soon
    if not sane.all():
        found, residence = found[sane], residence[sane]
        match[match] = sane
    book.residence[found] = residence
    book.flags[found] |= FOLLOWED
    return match
