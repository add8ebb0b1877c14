"""Keeps the collector's time: sends and drains on the tick, begins intervals, closes them.

The engine owns the tracks of its prober and gives each closed interval, complete, to whoever asked
for it. Changes of what to probe take effect where an interval begins, so that no interval is in
two parts and no flow that stays is disturbed.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import evolve
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from llama.collector import closing, memory
from llama.collector.health import STARVED_SHARE, ClockWatch, Starvation
from llama.collector.ledger import Ledger, OpenInterval
from llama.collector.plan import Group, identity_of
from llama.collector.prober import UdpProber
from llama.collector.probers import Probers
from llama.collector.schedule import BURST
from llama.collector.slices import Job, Slices
from llama.collector.summary import FLOW, STATS, ClosedInterval, Stats, suspect_bit
from llama.collector.track import Track

MILLISECOND = 0.001
SHORTEST_TICK_S, LONGEST_TICK_S = 0.5 * MILLISECOND, 20 * MILLISECOND
#: While a change waits for the next interval, nothing is closed so shortly before it.
CALM_NS = 3_000_000_000
ROWS_AT_ONCE = 4000  # copied in a slice: half a millisecond
#: Arenas that are emptied before flows are given other places: all that buffers hold, mostly.
MOST_DRAINS = 64
#: The reactor turns, yet no tick has come to its end for so long: something is broken.
STALLED_S = 5.0
LATE_TICK_S = 50 * MILLISECOND  # as `llama.collector.schedule.LATEST_S`: then probes are skipped


class Engine:
    """Probes what it is told to `use`, in intervals of ``interval_s``, when `tick` is called.

    ``clock`` is the reactor (``seconds``, ``callLater``); ``closed`` is called with every
    `ClosedInterval`; ``clock_error_ns`` tells our own clock's error or None; ``retick`` is called
    with a new period, in seconds, when the load changes.
    """

    log = Logger()

    def __init__(
        self,
        clock: Any,
        prober: UdpProber | Probers,
        interval_s: int,
        closed: Callable[[ClosedInterval], Any],
        *,
        clock_error_ns: Callable[[], float | None] = lambda: None,
        retick: Callable[[float], None] = lambda _period_s: None,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        chance: random.Random | None = None,
    ) -> None:
        self.prober = prober
        self.interval_ns = interval_s * 1_000_000_000
        self._clock = clock
        self._closed = closed
        self._clock_error_ns = clock_error_ns
        self._retick = retick
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self._chance = random.Random() if chance is None else chance
        self._slices = Slices(clock)
        self._watch = ClockWatch(wall_ns, monotonic_ns)
        self._starvation = Starvation()
        self._wanted: Sequence[Group] | None = None
        self._groups: Sequence[Group] = ()  # in use
        self._start_ns = 0  # of the current window
        self._end_ns = 0
        self._tick_s = LONGEST_TICK_S
        self._new: list[Track] = []  # tracks that have not begun
        self._drain_s = LONGEST_TICK_S
        self._next_drain_s = -math.inf
        self._next_watch_s = -math.inf
        self._watched_s = -math.inf
        self._last_tick_s: float | None = None
        self._well_s: float | None = None  # when a tick last came to its end
        self._closing = False
        self._notes: Counter[str] = Counter()
        self.close_number = 0
        self.generation = 0  # of the configuration in use
        self.lag_s = 0.0  # the longest lag of a tick in the current interval
        self.last_lag_s = 0.0  # and in the one before
        self.skipped = 0

    # What to probe

    def use(self, groups: Sequence[Group]) -> list[tuple[Group, OSError]]:
        """Probe these groups: at once if nothing is probed yet, else from the next interval on.

        Returns the groups that cannot be probed, since a socket of theirs cannot be had, and why.
        """
        usable, refused = [], []
        for group in groups:
            try:
                for source in group.sources:
                    self.prober.open(source)
            except OSError as reason:
                refused.append((group, reason))
            else:
                usable.append(group)
        self._wanted = tuple(usable)
        if not self.prober.tracks:
            self._begin_window(self._wall_ns(), self._now_s())
        return refused

    def _now_s(self) -> float:
        return self._monotonic_ns() / 1e9

    def _arrange(self, groups: Sequence[Group], now_s: float) -> None:
        """Take up ``groups``, with all that is known of the pairs that stay."""
        # Transmit stamps in the error queues name cells by their places until now.
        for _ in range(MOST_DRAINS):
            if self.prober.drain():
                break
        old = {track.group.identity: track for track in self.prober.tracks}
        tracks: list[Track] = []
        for group in groups:
            track = old.pop(group.identity, None)
            tracks.append(self._continued(track, group, now_s))
        tracks += [
            self._retired(track, now_s)
            for track in old.values()
            if track.ledger.pairs_waiting().any()
        ]
        self.generation += 1
        self.prober.arrange(tracks)
        self._set_pace()

    def _continued(self, track: Track | None, group: Group, now_s: float) -> Track:
        """Return a track for ``group`` in which the pairs that ``track`` has go on."""
        if track is None:
            dscps = np.array([pair.dscp for pair in group.pairs], np.uint8)
            ledger = Ledger(
                dscps, len(group.sources), group.rate_pps, group.timeout_s, self.interval_ns / 1e9
            )
            track = self.prober.track(group, ledger, np.ones(len(dscps), np.bool_), now_s)
            self._new.append(track)
            return track
        places = {identity_of(pair): n for n, pair in enumerate(track.pairs)}
        wanted = [places.pop(identity_of(pair), -1) for pair in group.pairs]
        if wanted == list(range(len(track.pairs))) and track.live.all():
            return track
        waiting = track.ledger.pairs_waiting()
        gone = [n for n in sorted(places.values()) if waiting[n]]
        origin = np.array(wanted + gone, np.int64)
        new = np.flatnonzero(origin >= 0)
        pairs = (*group.pairs, *(track.pairs[n] for n in gone))
        dscps = np.array([pair.dscp for pair in pairs], np.uint8)
        ledger = track.ledger.rearranged(dscps, new, origin[new])
        live = np.arange(len(pairs)) < len(group.pairs)
        whole = group.with_pairs(pairs)
        fresh = self.prober.track(whole, ledger, live, now_s)
        for name in ("started", "reflector_drops", "reflector_limited"):
            getattr(fresh, name)[new] = getattr(track, name)[origin[new]]
        return fresh

    def _retired(self, track: Track, now_s: float) -> Track:
        """Return a track that probes nothing and waits for its intervals to close."""
        if not track.live.any():
            return track
        live = np.zeros(len(track.pairs), np.bool_)
        return self.prober.track(track.group, track.ledger, live, now_s)

    def _set_pace(self) -> None:
        rate = self.prober.probes_per_s
        period = BURST / rate if rate else LONGEST_TICK_S
        self._drain_s = max(self.prober.drain_every_s(), SHORTEST_TICK_S)
        # Large probes are sent, too, a few at a time: what comes back must find room.
        self._tick_s = min(max(period, SHORTEST_TICK_S), self._drain_s, LONGEST_TICK_S)
        self._last_tick_s = None
        self._retick(self._tick_s)

    # Time

    def tick(self) -> None:
        """Do what is due now."""
        now_s = self._now_s()
        for track in self._new:
            track.schedule.begin(now_s)  # whatever it took to arrange all of them
        self._new = []
        elapsed_s = self._tick_s
        if self._last_tick_s is not None:
            elapsed_s = max(elapsed_s, now_s - self._last_tick_s)
            lag = now_s - self._last_tick_s - self._tick_s
            if lag > self.lag_s:
                self.lag_s = lag
            if lag > LATE_TICK_S:
                self._mark("late_ticks", f"the collector was {lag:.3f} s late")
        self._last_tick_s = now_s
        if now_s >= self._next_watch_s:
            self._look_at_ourselves(now_s)
        if self._wall_ns() >= self._end_ns and self._end_ns:
            self._begin_window(self._wall_ns(), now_s)
        # A drain's worth leaves room for the replies to twice as many.
        self.prober.tick(now_s, min(elapsed_s, self._drain_s))
        if now_s >= self._next_drain_s:
            self._look_at_the_clock(now_s)
            empty = self.prober.drain()
            self._next_drain_s = now_s + (self._drain_s if empty else 0)
            self._close_what_is_due(now_s, empty=empty)
        self._well_s = now_s

    def _look_at_ourselves(self, now_s: float) -> None:
        """Once a second, ask: were packets dropped, had we to wait for a processor."""
        elapsed = now_s - self._watched_s
        self._watched_s, self._next_watch_s = now_s, now_s + 1
        self.prober.check_drops()
        waited = self._starvation.waited_s()
        if math.isfinite(elapsed) and waited > STARVED_SHARE * elapsed:
            self._mark("cpu_starved", "the collector had to wait for a processor")

    def _look_at_the_clock(self, now_s: float) -> None:
        """Find out, before replies are read, whether the clock they are stamped by was stepped."""
        step = self._watch.step_ns()
        if step:
            self.log.warn("the wall clock was stepped by {step:.6f} s", step=step / 1e9)
            for track in self.prober.tracks:
                track.ledger.clock_stepped()
            self._mark("clock_step", f"the wall clock was stepped by {step / 1e9:.6f} s")
            if self._end_ns and self._wall_ns() < self._start_ns - self.interval_ns:
                self._begin_window(self._wall_ns(), now_s)

    def _mark(self, reason: str, note: str) -> None:
        for track in self.prober.tracks:
            track.ledger.mark(suspect_bit(reason), note)

    # Intervals

    def _begin_window(self, wall_ns: int, now_s: float) -> None:
        """Begin the aligned window that ``wall_ns`` lies in; what was running is over."""
        self._start_ns = wall_ns // self.interval_ns * self.interval_ns
        self._end_ns = self._start_ns + self.interval_ns
        for track in self.prober.tracks:
            track.ledger.roll(self._start_ns, self._end_ns, now_s)
        if not self._closing:
            if self._wanted is not None:
                self._groups, self._wanted = self._wanted, None
                self._arrange(self._groups, now_s)
            elif any(not track.live.all() for track in self.prober.tracks):
                self._arrange(self._groups, now_s)  # what was retired may be done with
            for track in self.prober.tracks:
                if track.ledger.current is None:
                    track.ledger.roll(self._start_ns, self._end_ns, now_s)
        self.last_lag_s, self.lag_s = self.lag_s, 0.0

    def _close_what_is_due(self, now_s: float, *, empty: bool) -> None:
        """Close the oldest window whose timeouts have all run out.

        ``empty`` says that all sockets were seen empty. A flood that keeps them from it for two
        seconds does not keep intervals from closing; they are marked.
        """
        if self._closing:
            return
        if self._wanted is not None and self._end_ns - self._wall_ns() < CALM_NS:
            return  # what is being closed cannot be rearranged
        due: dict[tuple[int, float], list[tuple[Track, OpenInterval]]] = defaultdict(list)
        for track in self.prober.tracks:
            for interval in track.ledger.over[:1]:
                if interval.due <= now_s - (0 if empty else 2):
                    due[interval.end_ns, track.group.timeout_s].append((track, interval))
        if not due:
            return
        self.prober.check_drops()  # what befell the last of its probes is known by now
        first = due[min(due)]
        if not empty:
            for _, interval in first:
                interval.suspect |= suspect_bit("late_ticks")
                interval.notes.add("closed before all that had come was read")
        self._closing = True
        self._slices.hurried += 1
        job = self._close(first)
        self._slices.background(job).addCallbacks(self._has_closed, self._has_not_closed)

    def _has_closed(self, closed: ClosedInterval) -> None:
        self._finished()
        self._closed(closed)

    def _has_not_closed(self, failure: Any) -> None:
        self._finished()
        if not failure.check(CancelledError):  # that is `stop`, which drops what is under way
            self.log.failure("an interval could not be closed", failure=failure)

    def _finished(self) -> None:
        self._closing = False
        self._slices.hurried -= 1

    def _close(self, due: Sequence[tuple[Track, OpenInterval]]) -> Job[ClosedInterval]:
        """Close one window of the tracks that share a timeout, bit by bit."""
        parts = []
        for track, interval in due:
            figures = yield from closing.close(track.ledger, interval, self._clock_error_ns())
            yield None
            flows = yield from _flow_rows(track)
            parts.append(_part(track, figures, flows))
            yield None
        interval = due[0][1]
        self.close_number += 1
        joined = yield from _joined(parts, self.close_number, interval, [i.notes for _, i in due])
        return joined

    def trouble(self) -> str:
        """Return what is the matter with probing or closing, if anything; else an empty text."""
        now_s = self._now_s()
        if self._well_s is not None and now_s - self._well_s > STALLED_S:
            return f"probing has not worked for {now_s - self._well_s:.0f} s; see the log"
        due = [i.due for track in self.prober.tracks for i in track.ledger.over]
        overdue_s = now_s - min(due, default=now_s)
        if overdue_s > self.interval_ns / 1e9:
            return f"an interval should have been closed {overdue_s:.0f} s ago"
        return ""

    def stop(self) -> None:
        """Drop what is under way."""
        self._slices.stop()
        self.prober.close()


def _flow_rows(track: Track) -> Job[Any]:
    """Return the FLOW rows of a track, the same at every close: made at the first, bit by bit."""
    if track.flow_rows is None:
        ports, pairs = track.ports, len(track.pairs)
        numbers = np.array([sock.number for sock in track.sockets], np.uint16)
        rows = np.zeros((pairs, ports), FLOW)
        for first in range(0, pairs, 1000):
            some = slice(first, first + 1000)
            rows["pair"][some] = np.arange(pairs, dtype=np.uint32)[some, None]
            rows["source_port"][some] = numbers
            rows["ssid"][some] = track.ssids_sent[track.variant[some]][:, None]
            yield None
        track.flow_rows = rows.reshape(-1)
    return track.flow_rows


def _part(track: Track, figures: closing.Figures, flows: Any) -> ClosedInterval:
    """Return one track's share of a closed interval; pairs that were retired idle are left out."""
    part = ClosedInterval(
        close_number=0, start_ns=0, end_ns=0, pairs=track.pairs,
        pair_stats=figures.pair_stats, flows=flows, flow_stats=figures.flow_stats,
        histogram_start=figures.histogram_start, histogram_bin=figures.histogram_bin,
        histogram_count=figures.histogram_count,
    )  # fmt: skip
    keep = track.live | (figures.pair_stats["sent"] > 0)
    return part if keep.all() else part.only(np.flatnonzero(keep))


def _joined(
    parts: Sequence[ClosedInterval],
    close_number: int,
    interval: OpenInterval,
    notes: Sequence[set[str]],
) -> Job[ClosedInterval]:
    """Return one closed interval of all ``parts``, made bit by bit."""
    told: dict[str, Any] = {
        "close_number": close_number,
        "start_ns": interval.start_ns,
        "end_ns": interval.end_ns,
        "notes": tuple(sorted(set().union(*notes))),
    }
    parts = [part for part in parts if len(part.pairs)] or parts[:1]
    if len(parts) == 1:
        return evolve(parts[0], **told)
    pairs = [p for part in parts for p in part.pairs]
    first_pairs = np.cumsum([0, *(len(part.pairs) for part in parts)])
    flows = np.concatenate([part.flows for part in parts])
    flows["pair"] += np.repeat(
        first_pairs[:-1].astype(np.uint32), [len(part.flows) for part in parts]
    )
    starts = [np.zeros(1, np.uint32)]
    entries = 0
    for part in parts:
        starts.append(part.histogram_start[1:] + np.uint32(entries))
        entries += len(part.histogram_bin)
    yield None
    pair_stats = yield from _gathered([part.pair_stats for part in parts])
    flow_stats = yield from _gathered([part.flow_stats for part in parts])
    return ClosedInterval(
        **told,
        pairs=pairs,
        pair_stats=pair_stats,
        flows=flows,
        flow_stats=flow_stats,
        histogram_start=np.concatenate(starts),
        histogram_bin=np.concatenate([part.histogram_bin for part in parts]),
        histogram_count=np.concatenate([part.histogram_count for part in parts]),
    )


def _gathered(parts: Sequence[Stats]) -> Job[Stats]:
    """Return rows of STATS one after the other, copied bit by bit."""
    whole = memory.rows(sum(map(len, parts)), STATS)
    place = 0
    for part in parts:
        for first in range(0, len(part), ROWS_AT_ONCE):
            some = part[first : first + ROWS_AT_ONCE]
            whole[place : place + len(some)] = some
            place += len(some)
            yield None
    return whole
