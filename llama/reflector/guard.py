"""Who may ask the reflector, and how often: by source port, address and rate.

A packet is admitted or it is not, and then there is a reason; nothing here ever waits, so that a
limit costs nobody else any time. Whole batches are judged by column, single packets in plain
Python, both with the same state. Time is passed in. What is in the packets is not looked at.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from llama.reflector.allow import AllowList
from llama.wire.source_ports import REFUSED_PORTS

#: What the numbers that `Guard.admit` returns mean.
REASONS = ("admitted", "source_port", "not_allowed", "source_rate", "total_rate")
ADMITTED, SOURCE_PORT, NOT_ALLOWED, SOURCE_RATE, TOTAL_RATE = range(len(REASONS))

#: A burst is no smaller unless it is said to be: probes come several at a time.
LEAST_BURST = 10
_WAYS = 8
_ROUNDING = 1e-6  # of a packet, so that a period's wait is a packet whatever the clock reads


class Guard:
    """The rules of one reflector and their state, whose size is fixed.

    ``own_ports`` are those that this reflector listens on; ``refuse`` adds to `REFUSED_PORTS`, and
    ``permit`` takes away from all of these. ``allow`` None admits every address. A rate is in
    packets per second with a burst in packets, of each source (an IPv4 address or an IPv6 /64) and
    of all together; a rate of None is no limit, a burst of None is a second's worth, or `LEAST_BURST`
    if that is more. ``sources`` bounds how many are remembered: a power of two, at
    least 64. The least busy goes first, at no cost once its bucket is full again.
    """

    def __init__(
        self,
        own_ports: Iterable[int] = (),
        refuse: Iterable[int] = (),
        permit: Iterable[int] = (),
        allow: AllowList | None = None,
        source_rate_pps: float | None = None,
        source_burst: int | None = None,
        total_rate_pps: float | None = None,
        total_burst: int | None = None,
        sources: int = 1 << 16,
    ) -> None:
        if sources < 64 or sources & sources - 1:
            raise ValueError(f"sources must be a power of two from 64, not {sources}")
        source_burst = _burst(source_rate_pps) if source_burst is None else source_burst
        total_burst = _burst(total_rate_pps) if total_burst is None else total_burst
        if min(source_burst, total_burst) < 1:
            raise ValueError("a burst is at least one packet")
        self.allow = allow
        ports = ({*REFUSED_PORTS, *own_ports, *refuse}) - set(permit) | {0}
        self._refused = np.zeros(65536, np.bool_)
        self._refused[sorted(ports)] = True
        self._refused_octets = self._refused.tobytes()
        # Each bucket is the time at which it will be full again (a virtual scheduling GCRA), so a
        # whole bucket is one number: an admitted packet moves it on by one period, and a packet is
        # admitted while that keeps it within a burst's worth of periods from now.
        self._source_period_s = 0.0 if source_rate_pps is None else 1 / source_rate_pps
        self._source_burst = source_burst
        self._total_period_s = 0.0 if total_rate_pps is None else 1 / total_rate_pps
        self._total_burst = total_burst
        self._total_full_s = 0.0
        sets = sources // _WAYS
        self._shift = np.uint64(64 - sets.bit_length() + 1)
        self._salt = np.uint64(secrets.randbits(64) | 1)
        self._veil = np.uint64(secrets.randbits(64))
        self._sources = np.zeros((sets, _WAYS), np.uint64)
        self._full_s = np.zeros((sets, _WAYS), np.float64)
        self._refused_counts = np.zeros((sets, _WAYS), np.uint32)

    def go_on_from(self, before: Guard, now_s: float) -> None:
        """Take over what ``before`` knew of its sources: what each had used, and was refused.

        So neither does a new rate forget refusals that collectors were told of, nor refill buckets.
        ``now_s`` is of the clock of `admit`. Nothing is taken over unless both limit each source.
        """
        same_size = self._sources.shape == before._sources.shape
        if not (self._source_period_s and before._source_period_s and same_size):
            return
        self._salt, self._veil = before._salt, before._veil
        self._sources = before._sources.copy()
        self._refused_counts = before._refused_counts.copy()
        used = np.maximum(before._full_s - now_s, 0) / before._source_period_s
        np.minimum(used, self._source_burst, out=used)
        self._full_s = np.where(used > 0, now_s + used * self._source_period_s, before._full_s)

    def may_amplify(self, high: int, low: int) -> bool:
        """Tell whether a source may be sent more octets than it sent: only one that is listed."""
        return self.allow is not None and (high, low) in self.allow

    @property
    def limits_sources(self) -> bool:
        """Whether there is a rate for each source."""
        return bool(self._source_period_s)

    def refusals(
        self, high: npt.NDArray[np.uint64] | None, low: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint32] | None:
        """Return how many packets of each source its own rate refused: (N,); None without a rate.

        Counted while the source is remembered. It is each source's own business, lest one of
        them cast doubt on what the others measure.
        """
        if not self._source_period_s:
            return None
        key = self._keys(high, low)
        place = (key * self._salt >> self._shift).astype(np.intp)
        here = self._sources[place] == key[:, None]
        counts: npt.NDArray[np.uint32] = np.where(here, self._refused_counts[place], 0).sum(
            axis=1, dtype=np.uint32
        )
        return counts

    def admit(
        self,
        high: npt.NDArray[np.uint64] | None,
        low: npt.NDArray[np.uint64],
        port: npt.NDArray[np.uint16],
        now_s: float,
    ) -> npt.NDArray[np.uint8]:
        """Judge a batch: the reason of each packet, (N,) uint8, 0 where it is admitted.

        ``high`` (None: zero) and ``low`` (N,) are the halves of the source addresses, IPv4 mapped,
        ``port`` (N,) the source ports, ``now_s`` a clock that never goes back.
        """
        reason = self._refused[port].view(np.uint8)  # SOURCE_PORT is 1
        if self.allow is not None:
            reason[(reason == 0) & ~self.allow.admits(high, low)] = NOT_ALLOWED
        if self._source_period_s:
            self._limit_sources(high, low, reason, now_s)
        if self._total_period_s:
            self._limit_total(reason, now_s)
        return reason

    def admit_one(self, high: int, low: int, port: int, now_s: float) -> int:
        """Judge one packet as `admit` does; the address and port are plain numbers."""
        if self._refused_octets[port]:
            return SOURCE_PORT
        if self.allow is not None and (high, low) not in self.allow:
            return NOT_ALLOWED
        if self._source_period_s and not self._take_one(high, low, now_s):
            return SOURCE_RATE
        if self._total_period_s and not self._take_total(1, now_s):
            return TOTAL_RATE
        return ADMITTED

    def _keys(
        self, high: npt.NDArray[np.uint64] | None, low: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """Return what each source is known by: (N,); no /64 can be made up to be an IPv4 address."""
        v4 = low ^ self._veil
        return v4 if high is None else np.where(high == 0, v4, high)

    def _take_total(self, packets: int, now_s: float) -> int:
        """Take up to ``packets`` from the bucket of all; return how many there were."""
        full_s = max(self._total_full_s, now_s)
        room = int(self._total_burst - (full_s - now_s) / self._total_period_s + _ROUNDING)
        taken = min(packets, max(room, 0))
        self._total_full_s = full_s + taken * self._total_period_s
        return taken

    def _limit_total(self, reason: npt.NDArray[np.uint8], now_s: float) -> None:
        """Refuse what the bucket of all has no room for, the later packets of the batch."""
        rows = np.flatnonzero(reason == 0)
        taken = self._take_total(len(rows), now_s)
        reason[rows[taken:]] = TOTAL_RATE

    def _limit_sources(
        self,
        high: npt.NDArray[np.uint64] | None,
        low: npt.NDArray[np.uint64],
        reason: npt.NDArray[np.uint8],
        now_s: float,
    ) -> None:
        """Refuse what a source's bucket has no room for, the later packets of the batch."""
        rows = np.flatnonzero(reason == 0)
        key = self._keys(high, low)[rows]
        source, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        place = (source * self._salt >> self._shift).astype(np.intp)
        here = self._sources[place] == source[:, None]
        known = here.any(axis=1)
        full_s = self._full_s[place]
        way = np.where(known, here.argmax(axis=1), full_s.argmin(axis=1))
        until_s = np.where(known, full_s[np.arange(len(source)), way], now_s)
        np.maximum(until_s, now_s, out=until_s)
        room = self._source_burst - (until_s - now_s) / self._source_period_s + _ROUNDING
        taken = np.minimum(counts, np.maximum(room, 0).astype(np.intp))
        self._refused_counts[place, way] = np.where(known, self._refused_counts[place, way], 0) + (
            counts - taken
        ).astype(np.uint32)
        self._sources[place, way] = source
        self._full_s[place, way] = until_s + taken * self._source_period_s
        if (taken < counts).any():
            order = np.argsort(inverse, kind="stable")
            turn = np.empty(len(rows), np.intp)
            turn[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            reason[rows[turn >= taken[inverse]]] = SOURCE_RATE

    def _take_one(self, high: int, low: int, now_s: float) -> bool:
        """Take one packet from the bucket of its source; return whether there was one."""
        key = high or low ^ int(self._veil)
        place = (key * int(self._salt) & 0xFFFFFFFFFFFFFFFF) >> int(self._shift)
        sources = self._sources[place].tolist()
        full_s = self._full_s[place].tolist()
        if key in sources:
            way = sources.index(key)
            until_s = max(full_s[way], now_s)
        else:
            way = full_s.index(min(full_s))
            until_s = now_s
            self._sources[place, way] = key
            self._refused_counts[place, way] = 0
        room = self._source_burst - (until_s - now_s) / self._source_period_s + _ROUNDING
        if room < 1:
            self._refused_counts[place, way] += 1
            return False
        self._full_s[place, way] = until_s + self._source_period_s
        return True


def _burst(rate_pps: float | None) -> int:
    """Return how many packets of a rate, or of none, may come at once if nothing else is said."""
    return max(math.ceil(rate_pps or 0), LEAST_BURST)
