"""Finds the flow that a reply belongs to: a hash table over columns.

A flow is known by the address it probes, the socket it is sent from and its SSID. A batch of replies
is looked up in a few column operations, whatever the number of flows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
_A, _B, _C = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0x165667B19E3779F9),
)
NO_FLOW = -1


def flow_keys(names: npt.NDArray[np.uint8], ends: U64) -> U64:
    """Return the keys of flows or replies.

    ``names`` is (N, 32) uint8: the other end as ``struct sockaddr_in`` or ``sockaddr_in6``, what is
    behind it zero; ``ends`` (N,) is ``socket number << 16 | SSID``.
    """
    words = names[:, :24].view("<u8")
    key: U64 = (words[:, 0] ^ ends * _B) * _A
    key ^= key >> np.uint64(31)
    if names[0, 0] == 10:  # AF_INET6: the address is in words 1 and 2
        key += words[:, 1] * _B
        key ^= key >> np.uint64(29)
        key += words[:, 2] * _C
    key *= _C
    key ^= key >> np.uint64(32)
    return key


class FlowIndex:
    """A table from `flow_keys` to flow numbers 0, 1, 2, … in the order of ``keys``."""

    def __init__(self, keys: U64) -> None:
        # As sparse as 4 MB allow: few places then hold another flow than the one looked for.
        size = 1 << max(4, min(20, (16 * len(keys)).bit_length()), (4 * len(keys)).bit_length())
        self._last = size - 1
        self._mask = np.uint64(self._last)
        self._keys = keys
        self._table = np.full(size, NO_FLOW, np.int32)
        flows = np.arange(len(keys), dtype=np.int32)
        place = keys & self._mask
        while flows.size:
            free = self._table[place] == NO_FLOW
            self._table[place[free]] = flows[free]
            left = self._table[place] != flows
            flows, place = flows[left], (place[left] + np.uint64(1)) & self._mask

    def find(self, keys: U64) -> npt.NDArray[np.int64]:
        """Return the flow of each key, `NO_FLOW` where there is none: (N,)."""
        if not len(self._keys):
            return np.full(len(keys), NO_FLOW, np.int64)
        place = (keys & self._mask).view(np.int64)  # numpy takes signed indices as they are
        found: npt.NDArray[np.int64] = self._table[place].astype(np.int64)
        rows = np.flatnonzero((self._keys[found] != keys) & (found != NO_FLOW))
        place = place[rows]
        while rows.size:  # another flow's place: look at the next one
            place = place + 1 & self._last
            flow = self._table[place]
            found[rows] = flow
            other = (self._keys[flow] != keys[rows]) & (flow != NO_FLOW)
            rows, place = rows[other], place[other]
        return found
