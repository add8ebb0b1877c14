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

Nobody knows whose packets they were, so a mark says that loss *may* be ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llama.collector.intervals.summary import suspect_bit
from llama.collector.probing.track import Track
from llama.net import queues
from llama.net.drops import counters, read_text

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

    ``read`` returns the text of ``snmp``, ``snmp6`` or ``softnet_stat``, and ``queues_dropped`` how many
    packets were dropped by queues; both may raise `OSError`.
    """

    def __init__(
        self,
        read: Callable[[str], str] = read_text,
        queues_dropped: Callable[[], int] = queues.dropped,
    ) -> None:
        self._read_text = read
        self._read_queues = queues_dropped
        self._last = self._read()
        self._backlogs, self._queues = self._read_backlogs(), self._read_queues_dropped()

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

    def _read_backlogs(self) -> int | None:
        """Return how many packets found no room in a processor's backlog since boot; None: not known."""
        try:
            lines = self._read_text("softnet_stat").splitlines()
            return sum(int(line.split()[1], 16) for line in lines)
        except (OSError, ValueError, IndexError):
            return None

    def _read_queues_dropped(self) -> int | None:
        """Return how many packets were dropped by the queues there are; None: not known."""
        try:
            return self._read_queues()
        except OSError:
            return None

    def check(self, tracks: Sequence[Track]) -> None:
        """Mark the probes of those tracks that may have been among what was dropped since last asked."""
        now, before = self._read(), self._last
        self._last = now
        backlogs, self._backlogs = self._backlogs, self._read_backlogs()
        undelivered = _growth(backlogs, self._backlogs)
        dropped, self._queues = self._queues, self._read_queues_dropped()
        dropped_later = _growth(dropped, self._queues)
        for track in tracks:
            if undelivered > 0:
                track.ledger.note_undelivered(undelivered)
            version = track.group.version
            fragments = refused = 0
            if version in now and version in before:
                fragments = now[version].fragments - before[version].fragments
                refused = now[version].refused - before[version].refused
            refused = max(refused, dropped_later)  # a queue counts what the kernel tells of as well
            if refused > 0:
                track.ledger.note_silent_refusals(refused)
            large = (track.head + track.tail)[track.variant] > LARGE
            if fragments > 0 and large.any():
                track.ledger.mark(suspect_bit("receive_drops"), NOTE, pairs=large)


def _growth(before: int | None, now: int | None) -> int:
    """Return by how much a counter has grown; 0 if that is not known."""
    return 0 if before is None or now is None else now - before
