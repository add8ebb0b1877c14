"""How much of what is lost this host may have dropped itself, where it only counts that it drops."""

from __future__ import annotations

from attrs import define

from llama.collector.intervals.replies import Ints, Mask

#: Lost probes that drops account for beyond what their share of all packets lets expect.
BY_CHANCE = 3
#: Windows do not begin when counters are looked at.
COUNTED = 2
#: Probes may be hit so much more often than other packets: both ways, and by bursts.
UNEVEN = 4


@define
class OwnDrops:
    """Packets, anybody's, that this host dropped in a window: so ``many``, in a line that it has.

    ``seconds`` is for how long every packet would have been dropped to come to the same share: the share
    of all packets that were dropped in each part of the window, times how long that part was.
    """

    many: int = 0
    seconds: float = 0.0

    def add(self, many: int, seconds: float) -> None:
        """Add those of a further part of the window."""
        self.many += many
        self.seconds += seconds

    def account_for(self, lost: Ints, sent: Ints, lasts_s: float) -> Mask:
        """Return whether they may be all of what was lost: (N,) of (N,) each; False where nothing was.

        A dead link is not excused by a few packets that others lost here, nor by many of very many.
        """
        expected = UNEVEN * sent * self.seconds / lasts_s
        return (lost > 0) & (lost <= COUNTED * self.many) & (lost <= expected + BY_CHANCE)
