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
        size = 1 << max(4, (4 * len(keys)).bit_length())
        self._mask = np.uint64(size - 1)
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
        place = keys & self._mask
        flow = self._table[place]
        wrong = (self._keys[flow] != keys) & (flow != NO_FLOW)
        while wrong.any():
            rows = np.flatnonzero(wrong)
            place[rows] = (place[rows] + np.uint64(1)) & self._mask
            flow[rows] = self._table[place[rows]]
            wrong = np.zeros(len(keys), np.bool_)
            wrong[rows] = (self._keys[flow[rows]] != keys[rows]) & (flow[rows] != NO_FLOW)
        found: npt.NDArray[np.int64] = flow.astype(np.int64)
        return found
