"""Finds out that this host could not put replies together that came in fragments, and marks them.

The kernel gives up fragments when they take more memory than it may use (``ipfrag_high_thresh``), or do
not fit together. What it then drops was not lost in the network, but nobody tells the socket: it is
known from counters of the whole host alone, and so the mark says that loss *may* be ours. Packets
of which a fragment never came are the network's loss, and are counted apart, as timed out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama.collector.summary import suspect_bit
from llama.collector.track import Track

#: Probes of more octets may come in fragments: links of IPv6 have an MTU of 1,280 or more (RFC 8200).
LARGE = 1280 - 40 - 8
NOTE = "the kernel could not put together packets that came in fragments"


class Reassembly:
    """Watches the kernel's counters in ``directory``, of the network of the thread that asks."""

    def __init__(self, directory: str = "/proc/thread-self/net") -> None:
        self._directory = Path(directory)
        self._last = self._read()

    def _read(self) -> dict[int, int]:
        """Return how many failed so far, but for want of a fragment, by version of IP."""
        counts: dict[str, int] = {}
        try:
            names, values = (self._directory / "snmp").read_text("ascii").splitlines()[:2]
            counts.update(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
            for line in (self._directory / "snmp6").read_text("ascii").splitlines():
                if line.startswith("Ip6Reasm"):
                    name, value = line.split()
                    counts[name] = int(value)
        except (OSError, ValueError):  # without IPv6 there is no such file
            pass
        return {
            version: counts[f"{prefix}ReasmFails"] - counts[f"{prefix}ReasmTimeout"]
            for version, prefix in ((4, ""), (6, "Ip6"))
            if f"{prefix}ReasmFails" in counts and f"{prefix}ReasmTimeout" in counts
        }

    def check(self, tracks: Sequence[Track]) -> None:
        """Mark large probes of those tracks whose replies may have been dropped since last asked."""
        now, before = self._read(), self._last
        self._last = now
        failed = {version for version, count in now.items() if count > before.get(version, count)}
        for track in tracks if failed else ():
            large = (track.head + track.tail)[track.variant] > LARGE
            if track.group.version in failed and large.any():
                track.ledger.mark(suspect_bit("receive_drops"), NOTE, pairs=large)
