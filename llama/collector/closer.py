"""Closes windows of time, of all tracks with one timeout at once, bit by bit between ticks.

How one track's figures come about is `llama.collector.intervals.closing`'s part, and how they become
one `ClosedInterval` that of `llama.collector.joining`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from llama.collector import joining
from llama.collector.intervals import closing
from llama.collector.intervals.open_interval import OpenInterval
from llama.collector.intervals.summary import ClosedInterval, Stats
from llama.collector.probing.track import Track
from llama.collector.slices import Job, Slices

#: So often a window is tried to be closed: one that cannot be must not keep others from it.
MOST_TRIES = 3

#: One window: the tracks that share a timeout, each with its interval.
Window = Sequence[tuple[Track, OpenInterval]]


def oldest_due(tracks: Iterable[Track], latest_s: float) -> Window | None:
    """Return the oldest window whose timeouts had all run out by ``latest_s``, if there is one."""
    over: dict[tuple[int, float], list[tuple[Track, OpenInterval]]] = defaultdict(list)
    for track in tracks:
        for interval in track.ledger.over[:1]:
            over[interval.end_ns, track.group.timeout_s].append((track, interval))
    # Probes of one test may have waited longer in this host: the others wait with them.
    due = [which for which, all_ in over.items() if max(i.due for _, i in all_) <= latest_s]
    return over[min(due)] if due else None


def is_newest_due(window: Window, latest_s: float) -> bool:
    """Return whether of one of its tracks no later interval was due by ``latest_s``."""
    return any(all(i.due > latest_s for i in track.ledger.over[1:2]) for track, _ in window)


class Closer:
    """Closes one window at a time; while it is ``busy`` with one, tracks must stay as they are.

    ``clock`` is the reactor; ``clock_error_ns`` tells our own clock's error or None. When a window is
    closed, ``figured`` is called with each of its tracks and their pairs' figures, then ``closed``
    with all of it. One that cannot be closed is tried again when `close` is called next with it.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        closed: Callable[[ClosedInterval], Any],
        figured: Callable[[Track, Stats], Any],
        clock_error_ns: Callable[[], float | None],
    ) -> None:
        self.busy = False
        self.close_number = 0  # of the window that was closed last
        self.unclosed = 0  # windows that could not be closed
        self.took_s = 0.0  # what closing the last one took
        self._clock = clock
        self._began_s = 0.0
        self._closed = closed
        self._figured = figured
        self._clock_error_ns = clock_error_ns
        self._slices = Slices(clock)
        self._tries = 0  # at closing the same window, that failed

    def close(self, window: Window) -> None:
        """Begin to close a window; nothing must be ``busy``."""
        self.busy = True
        self._began_s = self._clock.seconds()
        self._slices.hurried += 1
        self._slices.background(self._close(window)).addCallbacks(
            self._has_closed, self._has_not_closed, errbackArgs=(window,)
        )

    def give_up(self, window: Window) -> None:
        """Have done with a window without its figures; nothing must be ``busy``."""
        self.unclosed += 1
        self._tries = 0
        for track, interval in window:
            if interval in track.ledger.over:
                closing.give_up(track.ledger, interval)

    def stop(self) -> None:
        """Drop what is under way."""
        self._slices.stop()

    def _has_closed(self, closed: ClosedInterval) -> None:
        self._finished()
        self._tries = 0
        self._closed(closed)

    def _has_not_closed(self, failure: Any, window: Window) -> None:
        self._finished()
        if failure.check(CancelledError):  # that is `stop`, which drops what is under way
            return
        self._log.failure("an interval could not be closed", failure=failure)
        self._tries += 1
        if self._tries < MOST_TRIES:
            return
        self._log.error("the interval is given up after {tries} tries", tries=MOST_TRIES)
        self.give_up(window)

    def _finished(self) -> None:
        self.busy = False
        self.took_s = self._clock.seconds() - self._began_s
        self._slices.hurried -= 1

    def _close(self, window: Window) -> Job[ClosedInterval]:
        parts, closed = [], []
        for track, interval in window:
            figures = yield from closing.close(track.ledger, interval, self._clock_error_ns())
            closed.append((track, figures))
            yield None
            flows = yield from joining.flow_rows(track)
            parts.append(joining.part_of(track, interval, figures, flows))
            yield None
        track, interval = window[0]
        number, notes = self.close_number + 1, [i.notes for _, i in window]
        timeout_s = track.group.timeout_s
        joined = yield from joining.joined(parts, number, interval, timeout_s, notes)
        self.close_number = number
        for track, figures in closed:  # all of them, or none: whatever failed is tried again
            figures.take_off()
            self._figured(track, figures.pair_stats)
        return joined
