"""Whose answers to traces are believed without proof, and whose not.

One proves where it comes from by what it quotes of our packet. Old routers quote too little for that (RFC
792); anybody can send such an answer in anybody's name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import TypeVar

from llama.paths.table import Known

#: Routers of which is known that they quote enough to prove themselves.
PROVERS = 65_536
#: Answers without proof about a destination are not believed so long, s, after one that was forged; of so
#: many destinations that is remembered.
WARY_S, WARY_OF = 300.0, 4096

V = TypeVar("V")


class Proof:
    """Remembers who has proved itself, and about which destinations answers were forged.

    Paths are followed for ``most_hops``.
    """

    def __init__(self, most_hops: int) -> None:
        self._most_hops = most_hops
        self._provers: OrderedDict[str, None] = OrderedDict()
        self._wary: OrderedDict[str, float] = OrderedDict()  # destination -> until when, monotonic

    def has_proved(self, router: str) -> bool:
        """Tell whether a router is known to prove itself, as it then always does."""
        return router in self._provers

    def proved(self, router: str) -> None:
        """Note that a router has proved itself."""
        _remember(self._provers, router, None, PROVERS)

    def forged(self, destination: str, now_s: float) -> None:
        """Note that an answer about a destination was forged."""
        _remember(self._wary, destination, now_s + WARY_S, WARY_OF)

    def needed(self, destination: str, known: Known | None, now_s: float) -> Collection[int]:
        """Return at which TTLs on the way to a destination, as ``known``, an answer must prove itself.

        Those where one did that always does, or the destination; all while answers about it are forged.
        """
        if self._wary.get(destination, now_s) > now_s:
            return range(self._most_hops + 1)
        if known is None:
            return ()
        needed = {ttl for ttl, hop in enumerate(known.hops, 1) if hop in self._provers}
        if known.complete:
            needed.update(range(len(known.hops), self._most_hops + 1))
        return tuple(needed)  # which is a tenth of a set, and all that was traced lately has one


def _remember(found: OrderedDict[str, V], key: str, value: V, most: int) -> None:
    """Note something as the newest of what is found; of more than ``most`` the oldest goes."""
    found[key] = value
    found.move_to_end(key)
    if len(found) > most:
        found.popitem(last=False)
