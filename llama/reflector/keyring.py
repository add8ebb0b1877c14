"""Which keys an authenticated probe may be signed with: nothing in the probe says.

Keys are for source prefixes, for SSIDs, for both together, or for everyone. To change one, the new
key stands beside the old one for a while: at most two are tried, so that a hostile packet costs two
digests and no more, and two for its TLVs where they have an HMAC. Reading keys from files is
`llama.config`'s business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from functools import lru_cache

from llama.reflector.allow import MAPPED, MAPPED_BITS, Network
from llama.wire.auth import MAX_TRIED

_EVERYWHERE = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")


class KeyRing:
    """Secrets by whom they are for, found in a few look-ups however many there are.

    Each of ``keys`` is (secret, prefixes, SSIDs): it is for probes from any of the prefixes with any of
    the SSIDs, as far as given; with neither it is for all. What fits best comes first: an SSID before
    none, then the longest prefix; equals in the order given.
    """

    def __init__(self, keys: Iterable[tuple[bytes, Sequence[Network], Sequence[int]]]) -> None:
        # By SSID, None where any will do, then length and leading bits of a prefix.
        found: dict[int | None, dict[int, dict[int, list[bytes]]]] = {}
        for secret, prefixes, ssids in keys:
            for ssid in ssids or (None,):
                for prefix in prefixes or _EVERYWHERE:
                    bits, leading = _bits(prefix)
                    by_length = found.setdefault(ssid, {}).setdefault(bits, {})
                    by_length.setdefault(leading, []).append(secret)
        self._by_ssid = {
            ssid: sorted(lengths.items(), reverse=True) for ssid, lengths in found.items()
        }
        #: (high, low, SSID) -> the secrets, at most `MAX_TRIED`, best first. The address is the
        #: prober's, as two halves of 64 bits, IPv4 mapped (``::ffff:a.b.c.d``).
        self.fitting = lru_cache(maxsize=1 << 14)(self._fitting)  # 5 MB, whoever asks

    def _fitting(self, high: int, low: int, ssid: int) -> tuple[bytes, ...]:
        found: dict[bytes, None] = {}
        address = high << 64 | low
        # Shorter prefixes are of IPv6, and what is mapped is IPv4.
        least_bits = MAPPED_BITS if address >> 32 == MAPPED >> 32 else 0
        for its_ssid in (ssid, None):
            for bits, prefixes in self._by_ssid.get(its_ssid, ()):
                if bits < least_bits:
                    continue
                found.update(dict.fromkeys(prefixes.get(address >> 128 - bits, ())))
        return tuple(found)[:MAX_TRIED]


def _bits(network: Network) -> tuple[int, int]:
    """Return the length of a prefix, IPv4 mapped, and so many leading bits of its addresses."""
    v4 = network.version == 4
    bits = network.prefixlen + (96 if v4 else 0)
    return bits, (int(network.network_address) | (MAPPED if v4 else 0)) >> 128 - bits
