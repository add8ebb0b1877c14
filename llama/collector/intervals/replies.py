"""Replies to probes, by column, as every prober hands them to a ledger."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Octets = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.uint32]

UNKNOWN_DSCP = 255


class Replies(NamedTuple):
    """Columns of replies, one row each: (N,) arrays. Times are Unix nanoseconds."""

    flow: Ints
    sequence: npt.NDArray[np.uint32]  # Session-Sender Sequence Number, as echoed
    echoed_ns: Ints  # Session-Sender Timestamp, as echoed
    number: npt.NDArray[np.uint32]  # the reflector's own Sequence Number
    t2_ns: Ints
    t3_ns: Ints
    t4_ns: Ints
    kernel_t4: npt.NDArray[np.bool_]
    dscp_there: npt.NDArray[np.uint8]  # DSCP the reflector received, 255 unknown
    dscp_asked: npt.NDArray[np.uint8]  # DSCP the reflector gave its reply, 255 unknown
    dscp_here: npt.NDArray[np.uint8]  # DSCP the reply came with, 255 unknown
    ttl_there: npt.NDArray[np.uint8]
    ttl_here: npt.NDArray[np.uint8]
    numbered: npt.NDArray[np.bool_]  # whether ``number`` counts this flow and class alone
    follow_number: npt.NDArray[np.uint32]  # Follow-Up Telemetry; its stamp 0: none
    follow_ns: Ints
    clock_error_ns: npt.NDArray[np.float32]  # the reflector's, NaN if it is not in sync

    @classmethod
    def bare(
        cls,
        flow: Ints,
        sequence: Numbers,
        echoed_ns: Ints,
        t4_ns: Ints,
        kernel_t4: Mask,
        dscp_here: Octets | None = None,
        ttl_here: Octets | None = None,
    ) -> Replies:
        """Return answers of a peer that stamps and counts nothing: an echo, a stack, an older reflector.

        It is taken to have answered at once. Without ``dscp_here`` the class of the answers is unknown,
        without ``ttl_here`` their TTL.
        """
        count = len(flow)
        none, nothing = np.zeros(count, np.uint32), np.zeros(count, np.uint8)
        unknown = np.full(count, UNKNOWN_DSCP, np.uint8)
        return cls(
            flow=flow,
            sequence=sequence,
            echoed_ns=echoed_ns,
            number=none,
            t2_ns=echoed_ns,
            t3_ns=echoed_ns,
            t4_ns=t4_ns,
            kernel_t4=kernel_t4,
            dscp_there=unknown,
            dscp_asked=unknown,
            dscp_here=unknown if dscp_here is None else dscp_here,
            ttl_there=nothing,
            ttl_here=nothing if ttl_here is None else ttl_here,
            numbered=np.zeros(count, np.bool_),
            follow_number=none,
            follow_ns=np.zeros(count, np.int64),
            clock_error_ns=np.full(count, np.nan, np.float32),
        )

    def rows(self, keep: Mask) -> Replies:
        """Return the rows that ``keep`` (N,) says."""
        columns: list[npt.NDArray[np.generic]] = [column[keep] for column in self]
        return Replies(*columns)  # type: ignore[arg-type]
