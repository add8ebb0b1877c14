"""What the probers of all kinds have in common: tracks, source ports, and counts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from twisted.logger import Logger

from llama.collector.intervals.summary import suspect_bit
from llama.collector.probing.complaints import Complaints
from llama.collector.probing.plan import Source
from llama.collector.probing.sockets import HeldPort
from llama.collector.probing.track import Track

P = TypeVar("P", bound=HeldPort)


class Prober(Generic[P]):
    """The tracks that are probed, the sockets that hold their source ports, and the counts."""

    log: Logger
    #: What is logged of failures beyond those that were told of, with their ``count``.
    untold: ClassVar[str]
    tracks: Sequence[Track]

    def __init__(self, chance: random.Random | None) -> None:
        self.chance = random.Random() if chance is None else chance
        self.sockets: dict[Source, P] = {}
        self.tracks = []
        self.sent = 0
        self.skipped = 0
        self.receive_drops = 0
        self.damaged = 0
        self.failed_sends: Counter[str] = Counter()
        self._complaints = Complaints()

    def let_go(self, source: Source) -> None:
        """Close the socket of a source."""
        self.sockets.pop(source).sock.close()

    def _let_go_unused(self) -> None:
        """Close the sockets that none of the tracks probes from."""
        used = {source for track in self.tracks for source in track.group.sources}
        for source in [source for source in self.sockets if source not in used]:
            self.let_go(source)

    def _let_all_go(self) -> None:
        for source in list(self.sockets):
            self.let_go(source)

    @property
    def probes_per_s(self) -> float:
        """How many probes are sent a second, when all goes well."""
        return sum(track.schedule.probes_per_s for track in self.tracks)

    def next_interval(self) -> None:
        """Take note that another interval begins: failures are told of again after a good one."""
        untold = self._complaints.next_interval()
        if untold:
            self.log.warn(self.untold + ", in the same interval", count=untold)

    def _note_skipped(self, track: Track, before: int) -> None:
        """Count, and mark, the probes that a track's schedule has skipped since it said ``before``."""
        new = track.schedule.skipped - before
        if new:
            self.skipped += new
            track.ledger.mark_current(
                suspect_bit("late_ticks"), "probes were skipped: too late to send"
            )
