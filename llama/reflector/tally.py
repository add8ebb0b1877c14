"""What a reflector has done so far, in monotonic counters."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from llama.reflector.unsent import Unsent


@define(eq=False)
class Tally:
    """Counts since the start: datagrams in, replies out by format, drops by reason."""

    received: int = 0
    answered: Counter[str] = field(factory=Counter)
    dropped: Counter[str] = field(factory=Counter)
    #: Packets refused by a rate limit: told to collectors, since this loss is not the network's.
    limited: int = 0
    #: Replies that this host would not send: each source is told of its own, likewise.
    unsent: Unsent = field(factory=Unsent)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count ``count`` datagrams dropped for ``reason``."""
        self.dropped[reason] += count
