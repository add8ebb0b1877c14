"""Takes what a ledger knows over into one of other pairs, at a reload. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import evolve

from llama.collector.intervals.cell import CELL, SLACK_S, depth_needed
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.open_interval import OpenInterval
from llama.collector.intervals.replies import Ints
from llama.collector.intervals.summary import Pair
from llama.collector.probing.track import Track


def rearranged(
    book: Ledger,
    dscp_sent: npt.NDArray[np.uint8],
    new: Ints,
    old: Ints,
    rate_pps: float | None = None,
) -> Ledger:
    """Return a ledger of other pairs, in which pair ``new[i]`` goes on where ``old[i]`` was.

    At another rate, if one is given. Pairs in neither list begin anew. Everything known of the
    ones carried over stays, open intervals included. Only if the rate falls to less than half, and
    memory would be wasted on what a few have on record, some of that may be forgotten: it counts
    as not sent then, and is marked (see `llama.collector.intervals.closing`).
    """
    book.settle()
    to, start = _flows_of(new, book.ports), _flows_of(old, book.ports)
    rate_pps = book.rate_pps if rate_pps is None else rate_pps
    needed = depth_needed(rate_pps, book.timeout_s, book.interval_s)
    depth = book.depth  # which sufficed, and with the same copying is quick
    if rate_pps != book.rate_pps or depth > 2 * needed:
        held = 0
        for interval in book.open_intervals()[:1]:
            held = int((book.next_sequence - interval.first)[start].max(initial=0))
        held += math.ceil(rate_pps * (book.timeout_s + SLACK_S)) + 2
        depth = min(held, 2 * needed)
    ledger = Ledger(dscp_sent, book.ports, rate_pps, book.timeout_s, book.interval_s, depth)
    ledger.fastest_pps = max(ledger.rate_pps, book.fastest_pps)
    ledger.begin_by_chance()
    for name in (
        "next_sequence", "first_sequence", "anchor_sequence", "anchor_number", "anchored",
        "clock_error_there", "doubt_sequence", "doubted",
    ):  # fmt: skip
        getattr(ledger, name)[to] = getattr(book, name)[start]
    ledger.counting[new] = book.counting[old]
    ledger.stamping[new] = book.stamping[old]
    _carry_cells(book, ledger, to, start)
    moved = np.full(book.flows, -1, np.int64)
    moved[start] = to

    def carried(interval: OpenInterval) -> OpenInterval:
        def moved_to(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
            there = ledger.next_sequence.copy()
            there[to] = numbers[start]
            return there

        duplicates = np.zeros(ledger.flows, np.uint32)
        duplicates[to] = interval.duplicates[start]
        suspect = np.zeros(ledger.pairs, np.uint32)
        suspect[new] = interval.pair_suspect[old]
        return evolve(
            interval,
            first=moved_to(interval.first),
            end=None if interval.end is None else moved_to(interval.end),
            steps=[moved_to(step) for step in interval.steps],
            pair_suspect=suspect,
            called=None,
            told=0,
            duplicates=duplicates,
            late_since_told=[],
        )

    ledger.over = [carried(interval) for interval in book.over]
    ledger.current = None if book.current is None else carried(book.current)
    ledger.late_after_close = [moved[f][moved[f] >= 0] for f in book.late_after_close]
    ledger.strangers = book.strangers
    return ledger


def call_as_before(
    track: Track, ledger: Ledger, pairs: Sequence[Pair], new: Ints, old: Ints
) -> None:
    """Keep what pairs were called in intervals of before, where that is not what they are called now.

    Pair ``new[i]`` of ``ledger`` is pair ``old[i]`` of ``track``.
    """
    for interval, before in zip(ledger.over, track.ledger.over, strict=True):
        called = track.pairs if before.called is None else before.called
        names = list(pairs)
        for to, start in zip(new.tolist(), old.tolist(), strict=True):
            names[to] = called[start]
        interval.called = names


def _carry_cells(book: Ledger, ledger: Ledger, to: Ints, start: Ints) -> None:
    """Copy the cells of flows ``start`` to another ledger, where they are flows ``to``."""
    if ledger.depth == book.depth:
        if not len(to):
            return
        # Most stay side by side. A stretch of them is copied as octets: no probe leaves meanwhile.
        octets = CELL.itemsize
        rows = ledger._cells.view(np.uint8).reshape(book.depth, -1)
        before = book._cells.view(np.uint8).reshape(book.depth, -1)
        ends = np.flatnonzero((np.diff(to) != 1) | (np.diff(start) != 1)) + 1
        for first, end in itertools.pairwise([0, *ends.tolist(), len(to)]):
            there, here = octets * int(to[first]), octets * int(start[first])
            length = octets * (end - first)
            rows[:, there : there + length] = before[:, here : here + length]
        return
    for back in range(1, min(book.depth, ledger.depth) + 1):
        sequence = book.next_sequence[start] - np.uint32(back)
        cells = book.cells(start, sequence)
        sent = (book.t1[cells] != 0) & (book.next_sequence[start] >= back)
        ledger._cells[ledger.cells(to, sequence)[sent]] = book._cells[cells[sent]]


def _flows_of(rows: Ints, width: int) -> Ints:
    """Return the numbers of all parts of ``rows`` that have ``width`` parts each."""
    numbers: Ints = (rows[:, None] * width + np.arange(width)).reshape(-1)
    return numbers
