"""The reflector's memory of sessions: a counter each, bounded, the oldest forgotten first.

A session is (4-tuple, SSID), RFC 8972 section 3. It is kept under a 64-bit hash with a secret salt, in
a set-associative table: the hash chooses a set of eight places, and a new session takes the free or
the longest unused place of its set. Looking up a whole batch is a few column operations, memory is
allotted once, and a flood of spoofed sources costs the sessions it displaces their direction of
loss, which their collectors then report as unknown, and nothing else.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

WAYS = 8
_MASK = 0xFFFFFFFFFFFFFFFF
_A, _B, _C, _D = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93

U64 = npt.NDArray[np.uint64]


class Sessions:
    """Counters of at most ``capacity`` sessions (rounded up to a power of two, at least 64).

    A session is named by ``place``, its index in the columns ``sent`` (replies numbered so far),
    ``follow_sequence`` and ``follow_stamp`` (the last reply whose transmit stamp is known).
    ``evicted`` counts sessions forgotten to make room.
    """

    def __init__(self, capacity: int = 1 << 19) -> None:
        sets = 1 << max(3, (max(capacity, 1) - 1).bit_length() - 3)
        self._sets = sets
        self._keys = np.zeros((sets, WAYS), np.uint64)
        self._used = np.zeros((sets, WAYS), np.uint32)
        size = sets * WAYS
        self.sent = np.zeros(size, np.uint32)
        self.follow_sequence = np.zeros(size, np.uint32)
        self.follow_stamp = np.zeros(size, np.uint64)
        self.evicted = 0
        self._flat_keys = self._keys.reshape(-1)
        self._flat_used = self._used.reshape(-1)
        #: Where a key was last seen to be: looked at first, believed if the key is there.
        self._hints = np.zeros(2 * size, np.int32)
        self._hint_mask = np.uint64(2 * size - 1)
        self._last_turn = np.zeros(size, np.uint32)
        # Plain Python reads single elements through these four times faster than through numpy.
        self._key_view = self._flat_keys.data
        self._used_view = self._flat_used.data
        self.sent_view = self.sent.data
        self._salt = secrets.randbits(64)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._flat_keys))

    @property
    def capacity(self) -> int:
        """How many sessions there is room for."""
        return self._sets * WAYS

    def keys(self, high: U64 | None, low: U64, ends: U64, local: U64) -> U64:
        """Return the hash of each session of a batch, never 0.

        ``low`` and ``high`` are the source address (None: all IPv4), ``ends`` packs source port, local
        port and SSID, ``local`` is the address asked, folded to 64 bits. All are (N,) uint64.
        """
        h = (low ^ np.uint64(self._salt)) * np.uint64(_A)
        if high is not None:
            h ^= high * np.uint64(_D)
        h ^= h >> np.uint64(32)
        h += ends * np.uint64(_B)
        h ^= h >> np.uint64(29)
        h += local
        h *= np.uint64(_C)
        h ^= h >> np.uint64(32)
        return h | np.uint64(1)

    def key(self, high: int, low: int, ends: int, local: int) -> int:
        """Return what `keys` returns, for one session."""
        h = (low ^ self._salt) * _A & _MASK
        if high:
            h ^= high * _D & _MASK
        h ^= h >> 32
        h = h + ends * _B & _MASK
        h ^= h >> 29
        h = (h + local) * _C & _MASK
        h ^= h >> 32
        return h | 1

    def place_of(self, key: int, now: int) -> int:
        """Return the place of one session, made if need be. ``now`` is a coarse clock, in seconds."""
        first = (key >> 40 & self._sets - 1) * WAYS
        keys = self._key_view
        for place in range(first, first + WAYS):
            if keys[place] == key:
                self._used_view[place] = now
                return place
        used = self._used_view
        place = min(range(first, first + WAYS), key=lambda way: used[way] if keys[way] else -1)
        if keys[place]:
            self.evicted += 1
        keys[place] = key
        used[place] = now
        self.sent[place] = 0
        self.follow_sequence[place] = 0
        self.follow_stamp[place] = 0
        return place

    def places(self, keys: U64, now: int) -> npt.NDArray[np.intp]:
        """Return the place of each session of a batch, made if need be: (N,) of (N,) `keys`."""
        guess = keys >> np.uint64(8) & self._hint_mask
        hinted = self._hints[guess]
        if (self._flat_keys[hinted] == keys).all():
            self._flat_used[hinted] = now
            known: npt.NDArray[np.intp] = hinted.astype(np.intp)
            return known
        sets = (keys >> np.uint64(40)).astype(np.intp) & self._sets - 1
        found = self._keys[sets] == keys[:, None]
        way = found.argmax(axis=1)
        places: npt.NDArray[np.intp] = sets * WAYS + way
        known = self._flat_keys[places] == keys
        if not known.all():
            self._flat_used[places[known]] = now  # the newest, so the last ones to go
            self._make(places, np.flatnonzero(~known), sets, keys, now)
            # A session made later in the batch may have taken the place of one found earlier.
            if (self._flat_keys[places] != keys).any():
                for row in np.flatnonzero(self._flat_keys[places] != keys).tolist():
                    places[row] = self.place_of(int(keys[row]), now)
        self._flat_used[places] = now
        self._hints[guess] = places
        return places

    def _make(
        self,
        places: npt.NDArray[np.intp],
        rows: npt.NDArray[np.intp],
        sets: npt.NDArray[np.intp],
        keys: U64,
        now: int,
    ) -> None:
        """Make the sessions of ``rows``, unknown so far: one of each set by column, the rest singly.

        A flood of spoofed sources is nothing but new sessions, and must not cost more than others.
        """
        _, first = np.unique(sets[rows], return_index=True)
        alone = rows[first]
        ways = self._keys[sets[alone]]
        free = ways == 0
        used = np.where(free, -1, self._used[sets[alone]].astype(np.int64))
        made = sets[alone] * WAYS + used.argmin(axis=1)
        self.evicted += len(made) - int(np.count_nonzero(free.any(axis=1)))
        self._flat_keys[made] = keys[alone]
        self._flat_used[made] = now
        self.sent[made] = 0
        self.follow_sequence[made] = 0
        self.follow_stamp[made] = 0
        places[alone] = made
        if len(alone) < len(rows):
            for row in np.delete(rows, first).tolist():
                places[row] = self.place_of(int(keys[row]), now)

    def number(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
        """Return the next number of each session and count it: (N,), repeats within a batch in order."""
        numbers = self.sent[places]
        rows = np.arange(len(places), dtype=np.uint32)
        self._last_turn[places] = rows
        if (self._last_turn[places] == rows).all():  # no session twice
            self.sent[places] = numbers + np.uint32(1)
            return numbers
        order = np.argsort(places, kind="stable")
        ordered = places[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        turn = np.arange(len(places)) - np.repeat(starts, np.diff(np.r_[starts, len(places)]))
        numbers[order] += turn.astype(np.uint32)
        np.add.at(self.sent, places, np.uint32(1))
        return numbers
