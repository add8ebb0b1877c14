"""Watches what the kernel counts of this whole host and tells no socket: packets that it dropped here.

- *Fragments.* The kernel gives them up when they take more memory than it may use
  (``ipfrag_high_thresh``), or do not fit together. A packet of which one never came is the network's
  loss, and counted apart.
- *Silent refusals.* A datagram that the queue of an interface has no room for, or that a firewall behind
  it drops, counts as sent unless its socket hears of ICMP errors: only ``SndbufErrors`` tells. Of what
  such a queue drops later to make room, as CoDel does, only its own counter tells.
- *Backlogs.* What comes by a virtual interface, as in a container, or is spread over processors waits for
  one in a line of its own (``netdev_max_backlog``). What finds no room there comes to no socket. Nor does
  what leaves a container in that way come to the host's own network.

Nobody knows whose packets they were, so a mark says that loss *may* be ours, and there is none where so
few were dropped of so many that they cannot be what was lost.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from llama.collector.intervals.summary import suspect_bit
from llama.collector.probing.track import Track
from llama.net import queues
from llama.net.drops import counters, read_text
from llama.net.queues import Line

#: Probes of more octets may come in fragments: links of IPv6 have an MTU of 1,280 or more (RFC 8200).
LARGE = 1280 - 40 - 8
NOTE = "the kernel could not put together packets that came in fragments"

# Of each version of IP: the file, and the beginnings of the names of its counters.
_PLACES = {4: ("snmp", "Ip", "Udp"), 6: ("snmp6", "Ip6", "Udp6")}


class _Dropped(NamedTuple):
    """How many packets the host has dropped since boot, of one version of IP."""

    fragments: int
    refused: int


class HostWatch:
    """Watches the counters in the network namespace of the thread that asks.

    ``read`` returns the text of ``snmp``, ``snmp6`` or ``softnet_stat``, and ``read_queues`` the counters
    of queues, in a thread; both may raise `OSError`.
    """

    def __init__(
        self,
        read: Callable[[str], str] = read_text,
        read_queues: Callable[[], Mapping[Any, Line]] = queues.counts,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_text = read
        self._read_queues = read_queues
        self._seconds = seconds
        self._last, self._checked_s = self._read(), seconds()
        self._backlogs = self._look(self._read_backlogs)
        self._queues: _Look | None = None
        # What is asked now is looked at when asked again. Who changes interfaces has the kernel hold up
        # the answer, and probes would wait for it.
        self._asked: Future[_Look | None] | None = None
        self._threads = self._new_threads()

    def _read(self) -> dict[int, _Dropped]:
        """Return what is counted so far, by version of IP; what is not known is left out."""
        found = {}
        for version, (file, ip, udp) in _PLACES.items():
            try:
                counts = counters(self._read_text(file))
            except (OSError, ValueError):  # without IPv6 there is no such file
                continue
            failed = counts.get(f"{ip}ReasmFails", 0) - counts.get(f"{ip}ReasmTimeout", 0)
            found[version] = _Dropped(failed, counts.get(f"{udp}SndbufErrors", 0))
        return found

    def _read_backlogs(self) -> Mapping[Any, Line]:
        """Return what each processor has taken out of its backlog, and what found no room there."""
        lines = [line.split() for line in self._read_text("softnet_stat").splitlines()]
        return {n: Line(int(line[0], 16), int(line[1], 16)) for n, line in enumerate(lines)}

    def _look(self, read: Callable[[], Mapping[Any, Line]]) -> _Look | None:
        """Return what is counted now; None if that is not known."""
        try:
            return _Look(self._seconds(), read())
        except (OSError, ValueError, LookupError, struct.error):
            return None

    def _ask_for_queues(self) -> _Look | None:
        """Return the last answer, if it has come, and ask again."""
        if self._asked is not None and not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        answer = None if asked is None else asked.result()
        try:
            self._asked = self._threads.submit(self._look, self._read_queues)
        except RuntimeError:  # no thread can be had: what would wait for one is forgotten
            self._threads = self._new_threads()
        return answer

    @staticmethod
    def _new_threads() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "host-watch")  # none until it has something to do

    def check(self, tracks: Sequence[Track]) -> None:
        """Mark the probes of those tracks that may have been among what was dropped since last asked."""
        now, before = self._read(), self._last
        elapsed_s = self._seconds() - self._checked_s
        self._last, self._checked_s = now, self._checked_s + elapsed_s
        look = self._look(self._read_backlogs)
        undelivered, self._backlogs = _growth(self._backlogs, look), look
        dropped_later = _NONE
        if (queued := self._ask_for_queues()) is not None:
            dropped_later, self._queues = _growth(self._queues, queued), queued
        for track in tracks:
            book, version = track.ledger, track.group.version
            if undelivered.many:
                book.note_undelivered(*undelivered)
            if dropped_later.many:
                book.note_dropped_later(*dropped_later)
            if version not in now or version not in before:
                continue
            refused = now[version].refused - before[version].refused
            if refused > 0:
                book.note_refused(refused, elapsed_s)
            large = (track.head + track.tail)[track.variant] > LARGE
            if now[version].fragments > before[version].fragments and large.any():
                book.mark(suspect_bit("receive_drops"), NOTE, pairs=large)


class _Look(NamedTuple):
    """What the lines of packets of one kind have counted, and when, on the monotonic clock."""

    when_s: float
    lines: Mapping[Any, Line]


class _Growth(NamedTuple):
    """How many packets were dropped, and for how long all would have been to be the same share."""

    many: int
    seconds: float


_NONE = _Growth(0, 0.0)


def _growth(before: _Look | None, now: _Look | None) -> _Growth:
    """Return what was dropped between two looks; the share is the worst line's of those in both."""
    if before is None or now is None:
        return _NONE
    many, share = 0, 0.0
    for key in before.lines.keys() & now.lines.keys():
        old, new = before.lines[key], now.lines[key]
        dropped = new.dropped - old.dropped
        if dropped > 0:  # less: it is a new one
            many += dropped
            share = max(share, dropped / ((new.passed - old.passed & 0xFFFFFFFF) + dropped))
    return _Growth(many, share * (now.when_s - before.when_s))
