"""Keeps the collector's time: sends and drains on the tick, begins intervals, closes them.

The timekeeper owns the tracks of its prober and gives each closed interval, complete, to whoever asked
for it. Changes of what to probe take effect where an interval begins, so that no interval is in
two parts and no flow that stays is disturbed: it has its turns as before, and goes on counting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from twisted.logger import Logger

from llama.collector.closer import Closer, Window, is_newest_due, oldest_due
from llama.collector.health import STARVED_SHARE, ClockWatch, Starvation, step_note
from llama.collector.host_watch import HostWatch
from llama.collector.intervals import closing
from llama.collector.intervals.cell import SLACK_S
from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.summary import ClosedInterval, Stats, suspect_bit
from llama.collector.probing.plan import Group, places_of, same_groups
from llama.collector.probing.probers import Probers
from llama.collector.probing.schedule import BURST, LATEST_S
from llama.collector.probing.sockets import by_zone
from llama.collector.probing.track import Track
from llama.collector.probing.udp import UdpProber
from llama.collector.rearranging import call_as_before, rearranged

MILLISECOND = 0.001
SHORTEST_TICK_S, LONGEST_TICK_S = 0.5 * MILLISECOND, 20 * MILLISECOND
#: While a change waits for the next interval, nothing is closed so shortly before it.
CALM_NS = 3_000_000_000
#: Arenas that are emptied before flows are given other places: all that buffers hold, mostly.
MOST_DRAINS = 64
#: The reactor turns, yet no tick has come to its end for so long: something is broken.
STALLED_S = 5.0
#: That closing takes too long is told of so often at most, s.
TELL_S = 300.0


class Timekeeper:
    """Probes what it is told to `use`, in intervals of ``interval_s``, when `tick` is called.

    ``clock`` is the reactor (``seconds``, ``callLater``); ``closed`` is called with every
    `ClosedInterval`; ``clock_error_ns`` tells our own clock's error or None; ``retick`` is called
    with a new period, in seconds, when the load changes; ``arranged`` when other groups than before
    are probed.
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
        arranged: Callable[[], Any] = lambda: None,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.prober = prober
        self.interval_ns = interval_s * 1_000_000_000
        self._retick = retick
        self._arranged = arranged
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self.closer = Closer(clock, closed, self._listen, clock_error_ns)
        self._watch = ClockWatch(wall_ns, monotonic_ns)
        self._starvation = Starvation()
        self._host = HostWatch()
        self._wanted: Sequence[Group] | None = None
        self.groups: Sequence[Group] = ()  #: in use
        self._start_ns = 0  # of the current window
        self._end_ns = 0
        self._named_ns = 0  # the end by which its points are known
        self._set_back = 0  # how often a window had to be begun again
        self._ended_ns = 0  # the latest end there was before that
        self._began_s = 0.0  # on the monotonic clock
        self._tick_s = LONGEST_TICK_S
        self._new: list[Track] = []  # tracks that have not begun
        self._drain_s = LONGEST_TICK_S
        self._next_drain_s = -math.inf
        self._next_watch_s = -math.inf
        self._watched_s = -math.inf
        self._last_tick_s: float | None = None
        self._well_s: float | None = None  # when a tick last came to its end
        self._tell_s = -math.inf  # from when on it is told that closing takes too long
        self.refused: Sequence[tuple[Group, OSError]] = ()  #: not in use: what cannot be, and why
        self._silent: set[tuple[object, ...]] = set()  # groups of which no probe could be sent
        self._hindered = False  # by an error, from taking up what is wanted
        self.generation = 0  # of the configuration in use
        self.lag_s = 0.0  # the longest lag of a tick in the current interval
        self.last_lag_s = 0.0  # and in the one before

    # What to probe

    def use(self, groups: Sequence[Group]) -> list[tuple[Group, OSError]]:
        """Probe these groups: at once if nothing is probed yet, else from the next interval on.

        Returns what of them cannot be probed, and why: groups of which a socket cannot be had, and
        groups of the pairs whose interface is not there. It is remembered, and told by `trouble`, until
        this is called again.
        """
        self.prober.follow_interfaces()
        usable: list[Group] = []
        refused: list[tuple[Group, OSError]] = []
        for group in groups:
            try:
                self._open(group)
            except OSError as reason:
                refused.append((group, reason))
                continue
            there, missing = by_zone(group)
            refused += missing
            if there.pairs:
                usable.append(there)
        self.refused = refused
        if self._wanted is not None or not same_groups(usable, self.groups):
            self._wanted = tuple(usable)
        if self._wanted is not None and not self.prober.tracks:
            self._begin_window(self._wall_ns(), self._now_s())
        return refused

    def _open(self, group: Group) -> None:
        """Open all sockets of a group; raises `OSError`, and then none is kept that was not open."""
        opened = []
        held = self.prober.sockets
        try:
            for source in group.sources:
                if source not in held:
                    self.prober.open(source)
                    opened.append(source)
        except OSError:
            for source in opened:
                self.prober.let_go(source)
            raise

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
        self.prober.arrange(tracks)
        self._set_pace()

    def _continued(self, track: Track | None, group: Group, now_s: float) -> Track:
        """Return a track for ``group`` in which the pairs that ``track`` has go on."""
        if track is None:
            dscps = np.array([pair.dscp for pair in group.pairs], np.uint8)
            ledger = Ledger(
                dscps, len(group.sources), group.rate_pps, group.timeout_s, self.interval_ns / 1e9
            )
            ledger.begin_by_chance()
            track = self.prober.track(group, ledger, np.ones(len(dscps), np.bool_), now_s)
            self._new.append(track)
            return track
        wanted = places_of(group.pairs, track.pairs)
        same_pairs = wanted == list(range(len(track.pairs))) and track.live.all()
        if same_pairs and same_groups([track.group], [group]):
            return track
        waiting = track.ledger.pairs_waiting()
        gone = [n for n in sorted({*range(len(track.pairs))} - {*wanted}) if waiting[n]]
        origin = np.array(wanted + gone, np.int64)
        new = np.flatnonzero(origin >= 0)
        pairs = (*group.pairs, *(track.pairs[n] for n in gone))
        dscps = np.array([pair.dscp for pair in pairs], np.uint8)
        ledger = track.ledger
        if not same_pairs or not ledger.take_rate(group.rate_pps):
            ledger = rearranged(ledger, dscps, new, origin[new], group.rate_pps)
        call_as_before(track, ledger, pairs, new, origin[new])
        live = np.arange(len(pairs)) < len(group.pairs)
        if gone:
            group = group.with_pairs(pairs)
        group = group.told_apart_as(track.group, new, origin[new])
        fresh = self.prober.track(group, ledger, live, now_s)
        fresh.follow(track, new, origin[new])
        if track in self._new:
            self._new.append(fresh)
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
            if lag > LATEST_S:  # probes are skipped; late reading is harmless, the kernel stamps
                about_s = float(f"{lag:.1g}")  # so that there are few notes, however often it was
                note = f"the collector was {about_s:g} s late"
                for track in self.prober.tracks:
                    track.ledger.mark_current(suspect_bit("late_ticks"), note)
        self._last_tick_s = now_s
        if now_s >= self._next_watch_s:
            self._look_at_ourselves(now_s)
        if self._end_ns and self._wall_ns() >= self._end_ns:
            self._look_at_the_clock(now_s)  # what is taken up now begins with reading what has come
            if self._wall_ns() >= self._end_ns:
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
        """Once a second, ask: were packets dropped or interfaces made anew, had we to wait."""
        elapsed = now_s - self._watched_s
        self._watched_s, self._next_watch_s = now_s, now_s + 1
        self._check_drops()
        self.prober.follow_interfaces()
        waited = self._starvation.waited_s()
        if math.isfinite(elapsed) and waited > STARVED_SHARE * elapsed:
            self._mark("cpu_starved", "the collector had to wait for a processor")

    def _check_drops(self) -> None:
        """Ask for packets that were dropped in this host, on their way in or out."""
        self.prober.check_drops()
        self._host.check(self.prober.tracks)

    def _look_at_the_clock(self, now_s: float) -> None:
        """Find out, before replies are read, whether the clock they are stamped by was stepped."""
        step = self._watch.step_ns()
        if not step:
            return
        note = step_note(step)
        self.log.warn("{note}", note=note)
        for track in self.prober.tracks:
            track.ledger.clock_stepped()
        self._mark("clock_step", note)
        # Set back, the clock makes a window longer than ledgers have cells for.
        lasts_s = now_s - self._began_s + (self._end_ns - self._wall_ns()) / 1e9
        if step < 0 and self._end_ns and lasts_s > self.interval_ns / 1e9 + SLACK_S / 2:
            self._begin_window(self._wall_ns(), now_s)
            self._mark("clock_step", note)

    def _mark(self, reason: str, note: str) -> None:
        for track in self.prober.tracks:
            track.ledger.mark(suspect_bit(reason), note)

    # Intervals

    def _begin_window(self, wall_ns: int, now_s: float) -> None:
        """Begin the aligned window that ``wall_ns`` lies in; what was running is over."""
        before_ns = self._end_ns
        self._start_ns = wall_ns // self.interval_ns * self.interval_ns
        self._end_ns = self._named_ns = self._start_ns + self.interval_ns
        if self._end_ns <= before_ns:
            self._set_back += 1
            self._ended_ns = max(self._ended_ns, before_ns)
        if self._end_ns <= self._ended_ns:
            # There was one of the same end: points of one series and time would replace another.
            self._named_ns += self._set_back * 1_000_000
        self._began_s = now_s
        for track in self.prober.tracks:
            track.ledger.roll(self._start_ns, self._named_ns, now_s)
        if not self.closer.busy:
            self._take_up(now_s)
            for track in self.prober.tracks:
                if track.ledger.current is None:
                    track.ledger.roll(self._start_ns, self._named_ns, now_s)
        self.prober.next_interval()
        self.last_lag_s, self.lag_s = self.lag_s, 0.0

    def _take_up(self, now_s: float) -> None:
        """Probe what is wanted from now on; if that fails, go on as before and try again."""
        try:
            if self._wanted is not None:
                self._arrange(self._wanted, now_s)
                self.groups, self._wanted = self._wanted, None
                self._silent &= {group.identity for group in self.groups}
                self.generation += 1
                self._arranged()
            elif any(track.has_done_with() for track in self.prober.tracks):
                self._arrange(self.groups, now_s)
        except Exception:
            if not self.prober.tracks:
                raise
            self.log.failure("what is to be probed could not be taken up, going on as before")
            self._hindered = True
        else:
            self._hindered = False

    def _close_what_is_due(self, now_s: float, *, empty: bool) -> None:
        """Close the oldest window whose timeouts have all run out.

        ``empty`` says that all sockets were seen empty. A flood that keeps them from it for two
        seconds does not keep intervals from closing; they are marked.
        """
        if self.closer.busy:
            return
        calm = self._end_ns - self._wall_ns() < CALM_NS
        if self._wanted is not None and calm and not self._hindered:
            return  # what is being closed cannot be rearranged
        window = self._to_close(now_s, now_s - (0 if empty else 2))
        if window is None:
            return
        self._check_drops()  # what befell the last of its probes is known by now
        if not empty:
            for _, interval in window:
                interval.suspect |= suspect_bit("late_ticks")
                interval.notes.add(closing.UNREAD)
        self.closer.close(window)

    def _to_close(self, now_s: float, latest_s: float) -> Window | None:
        """Return the oldest window that was due by ``latest_s``, if there is one.

        Where closing takes longer than an interval, its probes may be forgotten by now. Then it is given
        up, and so are those after it that would be forgotten while they are closed, but for the newest:
        else only forgotten ones would ever be closed, and ever more would wait.
        """
        before = self.closer.unclosed
        window = oldest_due(self.prober.tracks, latest_s)
        if window is not None and _forgotten(window):
            takes_s = min(self.closer.took_s, SLACK_S)
            while window is not None and _forgotten(window, takes_s):
                if is_newest_due(window, latest_s):
                    break
                self.closer.give_up(window)
                window = oldest_due(self.prober.tracks, latest_s)
        if self.closer.unclosed > before and now_s >= self._tell_s:
            self._tell_s = now_s + TELL_S
            self.log.error(
                "closing intervals takes longer than they last, {count} were given up so far: this host"
                " has too much else to do, or too much is asked of it (llama check)",
                count=self.closer.unclosed,
            )
        return window

    def _listen(self, track: Track, pair_stats: Stats) -> None:
        """Take note whether any probe of a group left in an interval, or all were refused."""
        refused = (pair_stats["suspect"] & np.uint32(suspect_bit("send_failed"))).any()
        if refused and not pair_stats["sent"].any():
            self._silent.add(track.group.identity)
        else:
            self._silent.discard(track.group.identity)

    def _silent_test(self) -> str:
        """Say of which test nothing is sent, if of any."""
        silent = {group.test: True for group, _ in self.refused}
        for track in self.prober.tracks:
            if track.live.any():
                test, mute = track.group.test, track.group.identity in self._silent
                silent[test] = silent.get(test, True) and mute
        for group, reason in self.refused:
            if silent[group.test]:
                return f"test {group.test} is not probed: {reason.strerror or reason}"
        for test, mute in silent.items():
            if mute:
                return f"no probe of test {test} could be sent for an interval"
        return ""

    def trouble(self) -> str:
        """Return what is the matter with probing or closing, if anything; else an empty text."""
        now_s = self._now_s()
        if self._well_s is not None and now_s - self._well_s > STALLED_S:
            return f"probing has not worked for {now_s - self._well_s:.0f} s; see the log"
        if silent := self._silent_test():
            return f"{silent}; see the log"
        if self._hindered:
            return "what is to be probed could not be taken up; see the log"
        due = [i.due for track in self.prober.tracks for i in track.ledger.over]
        overdue_s = now_s - min(due, default=now_s)
        if overdue_s > self.interval_ns / 1e9:
            return f"an interval should have been closed {overdue_s:.0f} s ago"
        return ""

    def stop(self) -> None:
        """Drop what is under way."""
        self.closer.stop()
        self.prober.close()


def _forgotten(window: Window, ahead_s: float = 0.0) -> bool:
    """Tell whether some probe of a window is not on record any more, or will not be in so many s."""
    return any(track.ledger.forgotten(interval, ahead_s) for track, interval in window)
