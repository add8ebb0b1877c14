"""The flows that are measured, a row each: whose they are, and their lasting numbers. Pure.

A row belongs to one flow until that is forgotten, and then to another. A flow's number outlives
that, and restarts: it is made of what the flow is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from llama.paths.table import FlowKey
from llama.pinpoint.evidence import FLOWS, Indices

#: Stands for when the flow of a row that has none was measured: never before any time.
_FREE = np.iinfo(np.int64).max

#: The host that sends a flow, by its number, and what the flow is called there.
Flow = tuple[int, FlowKey]


def flow_key(row: Mapping[str, Any]) -> FlowKey:
    """Return what names the flow of a row of ``/paths``; of one of ``/flows`` it is `FlowRow.key`."""
    return FlowKey(
        row["dst_ip"], row["dst_port"], row["source_port"], row["dscp"], row["size_octets"]
    )


class FlowTable:
    """Flows by row, and rows by flow."""

    def __init__(self) -> None:
        self.rows: dict[Flow, int] = {}
        self.columns = np.zeros(1024, FLOWS)  # what does not change: ends, class, size, family
        self.numbers = np.zeros(1024, np.int64)  # lasting, below 2**53
        self._measured = np.zeros(1024, np.int64)  # Unix time, s, of the interval it was last in
        self._flows: list[Flow | None] = []
        self._free: list[int] = []
        #: The rows of all classes and sizes of a flow.
        self._likes: dict[tuple[int, tuple[str, int, int]], list[int]] = {}

    def row(self, flow: Flow, destination: int, host: str) -> int:
        """Return the row of a flow, maybe a new one.

        ``destination`` is the number of the host that it goes to, ``host`` the name of the one that
        sends it.
        """
        row = self.rows.get(flow)
        if row is not None:
            return row
        if self._free:
            row = self._free.pop()
            self._flows[row] = flow
            self._measured[row] = 0
        else:
            row = len(self._flows)
            self._flows.append(flow)
            if row == len(self.columns):
                self._grow()
        source, key = flow
        self.rows[flow] = row
        self._likes.setdefault((source, key.tuple5), []).append(row)
        columns = self.columns[row]
        columns["source"], columns["destination"] = source, destination
        columns["dscp"], columns["size"] = key.dscp, key.size
        columns["family"] = 6 if ":" in key.dst_ip else 4
        digest = hashlib.blake2b(f"{host} {key}".encode(), digest_size=8).digest()
        # Below 2**53, so that JSON readers keep it whole.
        self.numbers[row] = int.from_bytes(digest, "big") >> 11
        return row

    def _grow(self) -> None:
        more = len(self.columns)
        self.columns = np.concatenate([self.columns, np.zeros(more, FLOWS)])
        self.numbers = np.concatenate([self.numbers, np.zeros(more, np.int64)])
        self._measured = np.concatenate([self._measured, np.zeros(more, np.int64)])

    def flow(self, row: int) -> Flow:
        """Return the flow of a row that has one."""
        flow = self._flows[row]
        assert flow is not None
        return flow

    def flows(self, rows: Indices) -> list[Flow | None]:
        """Return the flows of these rows; None where one was forgotten."""
        return [self._flows[row] for row in rows.tolist()]

    def likes(self, source: int, key: FlowKey) -> list[int]:
        """Return the rows of all classes and sizes of a flow that are measured."""
        return self._likes.get((source, key.tuple5), [])

    def note(self, rows: Indices, end_s: float) -> None:
        """Note that these flows were measured in the interval that ended then, Unix seconds."""
        self._measured[rows] = int(end_s)

    def forget(self, before_s: float) -> list[int]:
        """Forget the flows that were last measured before that Unix time; return their rows."""
        gone: list[int] = np.flatnonzero(self._measured[: len(self._flows)] < before_s).tolist()
        self._measured[gone] = _FREE
        for row in gone:
            source, key = flow = self.flow(row)
            self._flows[row] = None
            del self.rows[flow]
            likes = self._likes[source, key.tuple5]
            likes.remove(row)
            if not likes:
                del self._likes[source, key.tuple5]
            self._free.append(row)
        return gone

    def hosts(self) -> set[int]:
        """Return the numbers of the hosts at the ends of all flows."""
        rows = list(self.rows.values())
        return {
            *self.columns["source"][rows].tolist(),
            *self.columns["destination"][rows].tolist(),
        }
