"""The allow-list: which source addresses may ask at all, out of thousands of prefixes, by batch.

An address is two 64-bit halves; IPv4 is mapped into IPv6 (``::ffff:a.b.c.d``), which no shorter prefix
of IPv6 has a part in: ``::/0`` is all of IPv6 and nothing of IPv4. The prefixes become disjoint
intervals, sorted by their first address, and looking one up is a binary search.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What IPv4 addresses are mapped with, ::ffff:0:0/96, and the length of that prefix.
MAPPED = 0xFFFF << 32
MAPPED_BITS = 96
_HALF = 0xFFFFFFFFFFFFFFFF


def _mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    """Return an address as one number of 128 bits, IPv4 mapped."""
    return int(address) | (MAPPED if address.version == 4 else 0)


def _spans(network: Network) -> Iterator[tuple[int, int]]:
    """Yield the first and last addresses of a network; one of IPv6 has those of IPv4 in no span."""
    first, last = _mapped(network.network_address), _mapped(network.broadcast_address)
    if network.version == 6 and network.prefixlen < MAPPED_BITS and first < MAPPED < last:
        yield first, MAPPED - 1
        first = MAPPED + (1 << 32)
    if first <= last:
        yield first, last


def _sortable(
    high: npt.NDArray[np.uint64] | None, low: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bytes_]:
    """Return addresses as 16 octets each, which sort as the numbers do: (N,) dtype S16."""
    pairs = np.empty((len(low), 2), ">u8")
    pairs[:, 0] = 0 if high is None else high
    pairs[:, 1] = low
    return pairs.view("S16")[:, 0]


class AllowList:
    """The addresses within any of ``prefixes``."""

    def __init__(self, prefixes: Iterable[Network]) -> None:
        spans = sorted(span for network in prefixes for span in _spans(network))
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in spans:
            if self._first and first <= self._last[-1] + 1:
                self._last[-1] = max(self._last[-1], last)
            else:
                self._first.append(first)
                self._last.append(last)
        self._firsts = self._column(self._first)
        self._lasts = self._column(self._last)

    @staticmethod
    def _column(numbers: Sequence[int]) -> npt.NDArray[np.bytes_]:
        high = np.array([number >> 64 for number in numbers], np.uint64)
        low = np.array([number & _HALF for number in numbers], np.uint64)
        return _sortable(high, low)

    def __contains__(self, address: tuple[int, int]) -> bool:
        """Tell whether an address, its two halves, is on the list."""
        number = address[0] << 64 | address[1]
        place = bisect_right(self._first, number) - 1
        return place >= 0 and number <= self._last[place]

    def admits(
        self, high: npt.NDArray[np.uint64] | None, low: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.bool_]:
        """Tell which addresses, given as their halves (N,), are on the list: (N,).

        ``high`` None says that it is zero throughout, as of IPv4.
        """
        if not self._first:
            return np.zeros(len(low), np.bool_)
        addresses = _sortable(high, low)
        place = np.searchsorted(self._firsts, addresses, "right") - 1
        admitted: npt.NDArray[np.bool_] = addresses <= self._lasts[place]
        admitted &= place >= 0
        return admitted
