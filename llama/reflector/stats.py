"""The reflector's eye on itself: what it has done and how it is, summed up once a window of wall time.

A window ends at a whole multiple of its length since 1970, as the collectors' intervals do. Counts are
those since the start, so that nothing is lost with a window that nobody fetched; rates are of the window.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import Service

from llama.config import ReflectorConfig
from llama.net.ticker import Ticker
from llama.process import processor_s, resident_octets
from llama.reflector.sessions import Sessions
from llama.reflector.tally import Tally
from llama.reflector.windows import Windows
from llama.rfc3339 import utc_text

MEASUREMENT = "reflector_stats"
TICK_S = 0.1


class Watched(Protocol):
    """The sockets of a reflector, as far as their figures go."""

    tally: Tally
    sessions: Sessions
    generation: int

    @property
    def port_number(self) -> int:
        """The UDP port that is answered on."""

    def receive_drops(self) -> int:
        """Return how many datagrams the kernel dropped at a full receive buffer."""

    def damaged(self) -> int:
        """Return how many datagrams it dropped since their checksum was wrong."""


class Stats(Service):
    """Closes a window after the other of what ``ports`` do, into ``windows``.

    ``config`` says how long a window is, how many are held and how the points are tagged. The clocks
    are passed in: ``wall_ns`` since 1970, ``monotonic_s`` never going back.
    """

    def __init__(
        self,
        reactor: Any,
        config: ReflectorConfig,
        ports: Watched,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.windows = Windows(config.keep_intervals)
        self.src_hostname = config.src_hostname or socket.gethostname()
        self._tags = dict(config.stats_tags)
        self._ports = ports
        self._length_ns = config.interval_s * 1_000_000_000
        self._wall_ns, self._monotonic_s = wall_ns, monotonic_s
        self._ticker = Ticker(reactor, self.tick)
        self._due_s = 0.0  # when the next tick is to come
        self._window = 0  # the number since 1970 of the one that is open
        self._newest_ended = 0  # the highest number of one that a point was made of
        self._set_back = 0  # how often the clock was
        self._lag_s = self._last_lag_s = 0.0
        self._before = (0.0, 0, 0, 0)

    def startService(self) -> None:
        """Open the first window."""
        super().startService()
        self.begin()
        self._ticker.start(TICK_S)

    def stopService(self) -> None:
        """Close no more windows."""
        super().stopService()
        self._ticker.stop()

    def begin(self) -> None:
        """Count from now on."""
        now_s = self._monotonic_s()
        self._due_s = now_s + TICK_S
        self._window = self._wall_ns() // self._length_ns
        self._before = self._counts(now_s)

    def tick(self) -> None:
        """Take note of how late this comes, and close the window if its time is over."""
        now_s = self._monotonic_s()
        self._lag_s = max(self._lag_s, now_s - self._due_s)
        self._due_s = now_s + TICK_S
        window = self._wall_ns() // self._length_ns
        if window == self._window:
            return
        before, self._window = self._window, window
        if window < before:
            self._set_back += 1
            return
        end_ns = window * self._length_ns
        if window <= self._newest_ended:
            # There was one of the same end: this point would overwrite the other's.
            end_ns += self._set_back * 1_000_000
        self._newest_ended = max(self._newest_ended, window)
        self._close(end_ns, now_s)

    @property
    def tick_lag_s(self) -> float:
        """By how much a tick came late at worst, in this window and the one before it."""
        return max(self._lag_s, self._last_lag_s)

    def _counts(self, now_s: float) -> tuple[float, int, int, int]:
        tally = self._ports.tally
        return now_s, tally.received, tally.answered.total(), tally.dropped.total()

    def _close(self, end_ns: int, now_s: float) -> None:
        counts = self._counts(now_s)
        elapsed_s, *done = (new - old for new, old in zip(counts, self._before, strict=True))
        names = ("received_per_second", "answered_per_second", "dropped_per_second")
        rates = {name: n / max(elapsed_s, TICK_S) for name, n in zip(names, done, strict=True)}
        self._before = counts
        self._last_lag_s, self._lag_s = self._lag_s, 0.0
        self.windows.append(
            {
                "measurement": MEASUREMENT,
                "tags": {
                    **self._tags,
                    "src_hostname": self.src_hostname,
                    "port": str(self._ports.port_number),
                },
                "fields": {**figures(self._ports), **rates, "tick_lag_seconds": self._last_lag_s},
                "time": utc_text(end_ns),
            }
        )


def figures(ports: Watched) -> dict[str, float]:
    """Return what a reflector has done since its start and how it is, by the names of fields."""
    tally, sessions = ports.tally, ports.sessions
    found = {
        "received_total": tally.received,
        "answered_total": tally.answered.total(),
        "dropped_total": tally.dropped.total(),
        "limited_total": tally.limited,
        "receive_drops_total": ports.receive_drops(),
        "damaged_total": ports.damaged(),
        "sessions": len(sessions),
        "sessions_evicted_total": sessions.evicted,
        "config_generation": ports.generation,
        "resident_bytes": resident_octets(),
        "cpu_seconds_total": processor_s(),
    }
    for name, counts in (("answered_total", tally.answered), ("dropped_total", tally.dropped)):
        found |= {f"{name}_{which.replace('-', '_')}": n for which, n in counts.items()}
    return {name: float(value) for name, value in found.items()}
