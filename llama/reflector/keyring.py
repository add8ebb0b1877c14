"""Which keys an authenticated probe may be signed with: nothing in the probe says.

Keys are for source prefixes, for SSIDs, or for everyone. To change one, the new key stands beside
the old one for a while: at most two are tried, so that a hostile packet costs two digests and no
more. Reading keys from files is `llama.config`'s business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

MAX_FIT = 2

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAPPED = 0xFFFF << 32


class KeyRing:
    """Secrets by whom they are for, found in a few look-ups however many there are.

    Each of ``keys`` is (secret, prefixes, SSIDs): it is for probes from any of the prefixes, and for
    those with any of the SSIDs, as far as given; with neither it is for all. What fits best comes
    first: an SSID, then the longest prefix, then the keys for all; equals in the order given.
    """

    def __init__(
        self, keys: Iterable[tuple[bytes, Sequence[Network | str], Sequence[int]]]
    ) -> None:
        self._by_ssid: dict[int, list[bytes]] = {}
        by_prefix: dict[int, dict[int, list[bytes]]] = {}
        self._for_all: list[bytes] = []
        self._count = 0
        for secret, prefixes, ssids in keys:
            self._count += 1
            for ssid in ssids:
                self._by_ssid.setdefault(ssid, []).append(secret)
            for prefix in prefixes:
                network = ipaddress.ip_network(prefix) if isinstance(prefix, str) else prefix
                v4 = network.version == 4
                bits = network.prefixlen + (96 if v4 else 0)
                first = int(network.network_address) | (_MAPPED if v4 else 0)
                by_prefix.setdefault(bits, {}).setdefault(first >> 128 - bits, []).append(secret)
            if not prefixes and not ssids:
                self._for_all.append(secret)
        self._by_prefix = sorted(by_prefix.items(), reverse=True)
        #: (high, low, SSID) -> the secrets, at most `MAX_FIT`, best first. The address is the
        #: prober's, as two halves of 64 bits, IPv4 mapped (``::ffff:a.b.c.d``).
        self.fitting = lru_cache(maxsize=1 << 14)(self._fitting)  # 5 MB, whoever asks

    def __len__(self) -> int:
        """Return how many keys there are."""
        return self._count

    def _fitting(self, high: int, low: int, ssid: int) -> tuple[bytes, ...]:
        found = dict.fromkeys(self._by_ssid.get(ssid, ()))
        address = high << 64 | low
        for bits, prefixes in self._by_prefix:
            found.update(dict.fromkeys(prefixes.get(address >> 128 - bits, ())))
        found.update(dict.fromkeys(self._for_all))
        return tuple(found)[:MAX_FIT]
