"""Sessions that were provisioned: the strict reading of RFC 8972 section 3.

With such a list a reflector drops every STAMP probe that belongs to none of its sessions; without
one, LLAMA's default, it serves whoever the guard admits.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from llama.reflector.allow import AllowList, Network


class Provisioned:
    """Sessions, each (source prefix, source port or None, SSID or None); None is any."""

    def __init__(self, sessions: Iterable[tuple[Network, int | None, int | None]]) -> None:
        prefixes: dict[tuple[int | None, int | None], list[Network]] = {}
        for prefix, port, ssid in sessions:
            prefixes.setdefault((port, ssid), []).append(prefix)
        self._sources = {ends: AllowList(some) for ends, some in prefixes.items()}
        self._any_source = AllowList(prefix for some in prefixes.values() for prefix in some)

    def knows(self, high: int, low: int, port: int, ssid: int) -> bool:
        """Tell whether a probe belongs to a session: source address in two halves, port, SSID."""
        for ends in ((port, ssid), (None, ssid), (port, None), (None, None)):
            sources = self._sources.get(ends)
            if sources is not None and (high, low) in sources:
                return True
        return False

    def known(
        self,
        high: npt.NDArray[np.uint64] | None,
        low: npt.NDArray[np.uint64],
        port: npt.NDArray[np.integer],
        ssid: npt.NDArray[np.integer],
    ) -> npt.NDArray[np.bool_]:
        """Tell which probes of a batch belong to a session: (N,) of (N,) columns as of `knows`.

        ``high`` None says that it is zero throughout, as of IPv4. Foreign sources are told by column.
        """
        known = self._any_source.admits(high, low)
        for row in np.flatnonzero(known).tolist():
            upper = 0 if high is None else int(high[row])
            known[row] = self.knows(upper, int(low[row]), int(port[row]), int(ssid[row]))
        return known
