"""What tests of ledgers have in common: replies, a ledger, and the end of its intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from llama.collector.intervals import closing
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Replies
from llama.collector.slices import at_once

SECOND = 1_000_000_000
MS = 1_000_000
EPOCH = 1_700_000_000 * SECOND


def replies(flow: Any, sequence: Any, echoed: Any, number: Any, t4: Any, **other: Any) -> Replies:
    """Columns of replies whose other figures are unremarkable."""
    flow = np.asarray(flow, np.int64)
    count = len(flow)
    echoed = np.asarray(echoed, np.int64)
    columns: dict[str, Any] = {
        "flow": flow,
        "sequence": np.asarray(sequence, np.uint32),
        "echoed_ns": echoed,
        "number": np.asarray(number, np.uint32),
        "t2_ns": echoed + 10_000,
        "t3_ns": echoed + 15_000,
        "t4_ns": np.asarray(t4, np.int64),
        "kernel_t4": np.ones(count, np.bool_),
        "dscp_there": np.zeros(count, np.uint8),
        "dscp_asked": np.zeros(count, np.uint8),
        "dscp_here": np.zeros(count, np.uint8),
        "ttl_there": np.full(count, 63, np.uint8),
        "ttl_here": np.full(count, 62, np.uint8),
        "numbered": np.ones(count, np.bool_),
        "follow_number": np.zeros(count, np.uint32),
        "follow_ns": np.zeros(count, np.int64),
        "clock_error_ns": np.full(count, np.nan, np.float32),
    }
    columns.update({name: np.asarray(value) for name, value in other.items()})
    return Replies(**columns)


def ledger(
    pairs: int = 1, ports: int = 1, rate: float = 10, timeout: float = 1, interval: float = 10
) -> Ledger:
    """A ledger in its first interval."""
    book = Ledger(np.zeros(pairs, np.uint8), ports, rate, timeout, interval)
    book.next_sequence[:] = 0
    book.roll(EPOCH, EPOCH + round(interval * SECOND), 0.0)
    return book


def end_of(book: Ledger) -> None:
    """Begin the next interval."""
    assert book.current is not None
    length = book.current.end_ns - book.current.start_ns
    book.roll(book.current.end_ns, book.current.end_ns + length, 10.0)


def close(book: Ledger, clock_error_ns: float | None = None) -> closing.Figures:
    """Close the oldest window that is over, all slices at once."""
    figures = at_once(closing.close(book, book.over[0], clock_error_ns))
    figures.take_off()
    return figures
