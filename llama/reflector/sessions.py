"""The reflector's memory of sessions: a counter each, bounded, the oldest forgotten first.

A session is (4-tuple, SSID), RFC 8972 section 3. It is kept under a secret 64-bit hash, a sum of products
of halves that secrets were added to (NH, RFC 4418 section 5.2): only by chance, one in 2**32, does any
other that somebody makes up share its counter. The table is set-associative: the hash chooses a set of
eight places, and a new session takes the free or the longest unused place of its set. Looking up a
whole batch is a few column operations, memory is allotted once, and a flood of spoofed sources costs
the sessions it displaces their direction of loss, which their collectors then report as unknown, and
nothing else.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

WAYS = 8
_MASK, _HALF = 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF
_NEVER = 1 << 40  # later than any time of use
_MIX = 0x9E3779B97F4A7C15  # spreads sums that are close

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
        size = sets * WAYS
        # One place more than there is room for: that of sessions for which a batch leaves none.
        self._nowhere = size  # `capacity`
        self._flat_keys = np.zeros(size + 1, np.uint64)
        self._flat_used = np.zeros(size + 1, np.uint32)
        self._keys = self._flat_keys[:size].reshape(sets, WAYS)
        self._used = self._flat_used[:size].reshape(sets, WAYS)
        self.sent = np.zeros(size + 1, np.uint32)
        self.follow_sequence = np.zeros(size + 1, np.uint32)
        self.follow_stamp = np.zeros(size + 1, np.uint64)
        self.evicted = 0
        self.crowded = False  # the last batch had sessions for which there was no place
        self._batch = 0  # the number of the last batch that was not hinted throughout
        self._taken = np.zeros(size + 1, np.uint32)  # the last such batch with a packet of it
        #: Where a key was last seen to be: looked at first, believed if the key is there.
        self._hints = np.zeros(2 * size, np.int32)
        self._hint_mask = np.uint64(2 * size - 1)
        self._last_turn = np.zeros(size + 1, np.uint32)
        # Plain Python reads single elements through these four times faster than through numpy.
        self._key_view = self._flat_keys.data
        self._used_view = self._flat_used.data
        self.sent_view = self.sent.data
        self._secret = [secrets.randbits(32) for _ in range(8)]
        self._secrets = np.array(self._secret, np.uint32).reshape(-1, 2)
        self._no_high = np.uint64(self._secret[6] * self._secret[7])

    def __len__(self) -> int:
        return int(np.count_nonzero(self._keys))

    @property
    def capacity(self) -> int:
        """How many sessions there is room for."""
        return self._sets * WAYS

    def keys(self, high: U64 | None, low: U64, ends: U64, local: U64) -> U64:
        """Return the hash of each session of a batch, never 0.

        ``low`` and ``high`` are the source address (None: all IPv4), ``ends`` packs source port, local
        port and SSID, ``local`` is the address asked, folded to 64 bits. All are (N,) uint64.
        """
        columns = (low, ends, local) if high is None else (low, ends, local, high)
        halves = np.array(columns, "<u8").view("<u4")
        lower = halves[:, 0::2] + self._secrets[: len(columns), :1]
        upper = halves[:, 1::2] + self._secrets[: len(columns), 1:]
        h: U64 = np.multiply(lower, upper, dtype=np.uint64).sum(axis=0)
        if high is None:
            h += self._no_high
        h ^= h >> np.uint64(32)
        h *= np.uint64(_MIX)
        h ^= h >> np.uint64(32)
        return h | np.uint64(1)

    def key(self, high: int, low: int, ends: int, local: int) -> int:
        """Return what `keys` returns, for one session; ``high`` is 0 for IPv4."""
        k = self._secret
        h = (low + k[0] & _HALF) * ((low >> 32) + k[1] & _HALF)
        h += (ends + k[2] & _HALF) * ((ends >> 32) + k[3] & _HALF)
        h += (local + k[4] & _HALF) * ((local >> 32) + k[5] & _HALF)
        h += (high + k[6] & _HALF) * ((high >> 32) + k[7] & _HALF)
        h &= _MASK
        h ^= h >> 32
        h = h * _MIX & _MASK
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
        """Return the place of each session of a batch, made if need be: (N,) of (N,) `keys`.

        Where more of them meet in a set than have room there, the batch is ``crowded``, and some
        share the place `capacity`, which remembers nothing and numbers every packet 0.
        """
        self.crowded = False
        guess = keys >> np.uint64(8) & self._hint_mask
        hinted = self._hints[guess]
        if (self._flat_keys[hinted] == keys).all():
            self._flat_used[hinted] = now
            found: npt.NDArray[np.intp] = hinted.astype(np.intp)
            return found
        sets = (keys >> np.uint64(40)).astype(np.intp) & self._sets - 1
        way = (self._keys[sets] == keys[:, None]).argmax(axis=1)
        places: npt.NDArray[np.intp] = sets * WAYS + way
        known: npt.NDArray[np.bool_] = self._flat_keys[places] == keys
        if not known.all():
            self._make(places, known, sets, keys)
        self._flat_used[places] = now
        self._hints[guess] = places
        return places

    def _make(
        self,
        places: npt.NDArray[np.intp],
        known: npt.NDArray[np.bool_],
        sets: npt.NDArray[np.intp],
        keys: U64,
    ) -> None:
        """Fill in the places of the sessions that are not ``known``, in place.

        One of each set is made by column, the others singly: a flood of spoofed sources is nothing but
        new sessions, and must not cost more than others. None takes the place of a session that
        has a packet in the same batch, lest two share a counter.
        """
        self._batch = self._batch + 1 & 0xFFFFFFFF
        self._taken[places[known]] = self._batch
        self.sent[self._nowhere] = 0
        rows = np.flatnonzero(~known)
        _, first = np.unique(sets[rows], return_index=True)
        alone = rows[first]
        places[alone] = self._places_for(sets[alone], keys[alone])
        if len(alone) == len(rows):
            return
        for row in np.delete(rows, first).tolist():
            here = self._keys[sets[row]] == keys[row]
            if here.any():  # it came twice
                places[row] = sets[row] * WAYS + int(here.argmax())
            else:
                places[row] = self._places_for(sets[row : row + 1], keys[row : row + 1])[0]

    def _places_for(self, sets: npt.NDArray[np.intp], keys: U64) -> npt.NDArray[np.intp]:
        """Take a free or the longest unused place of each of ``sets``, all different, for a session."""
        age = self._used[sets].astype(np.int64)
        age[self._keys[sets] == 0] = -1
        age[self._taken[: self._nowhere].reshape(-1, WAYS)[sets] == self._batch] = _NEVER
        way = age.argmin(axis=1)
        oldest = age[np.arange(len(sets)), way]
        places: npt.NDArray[np.intp] = sets * WAYS + way
        made = places[oldest < _NEVER]
        self.evicted += int(np.count_nonzero((oldest >= 0) & (oldest < _NEVER)))
        self._flat_keys[made] = keys[oldest < _NEVER]
        self._taken[made] = self._batch
        self.sent[made] = 0
        self.follow_sequence[made] = 0
        self.follow_stamp[made] = 0
        if len(made) < len(places):
            self.crowded = True
            places[oldest == _NEVER] = self._nowhere
        return places

    def number(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
        """Return the next number of each session and count it: (N,), repeats within a batch in order."""
        numbers = self.sent[places]
        rows = np.arange(len(places), dtype=np.uint32)
        if self.repeated(places, rows):
            ordered = np.sort(places << 32 | rows)
            begins = np.empty(len(places), np.bool_)
            begins[0] = True
            np.not_equal(ordered[1:] >> 32, ordered[:-1] >> 32, out=begins[1:])
            numbers[ordered & _HALF] += rows - np.maximum.accumulate(rows * begins)
            if self.crowded:
                numbers[places == self._nowhere] = 0  # each of these begins anew, every time
            last = (ordered & _HALF)[np.append(begins[1:], True)]  # of each session in this batch
            self.sent[places[last]] = numbers[last] + np.uint32(1)
        else:
            self.sent[places] = numbers + np.uint32(1)
        return numbers

    def repeated(self, places: npt.NDArray[np.intp], rows: npt.NDArray[np.uint32]) -> bool:
        """Tell whether some place comes more than once; ``rows`` are 0, 1, 2, …: (N,) each."""
        self._last_turn[places] = rows
        return bool((self._last_turn[places] != rows).any())
