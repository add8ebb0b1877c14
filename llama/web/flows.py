"""The flows of a pair, asked of the collector that probes it: the store only has their number."""

from __future__ import annotations

from typing import Any, Protocol


class UnknownCollectorError(Exception):
    """No collector is known for a source; the text says how to make one known."""


class FlowSource(Protocol):
    """Something that knows the flows of a pair."""

    #: Whether there is any use in asking.
    configured: bool

    async def flows(
        self, src: str, dst: str, where: dict[str, str], at_s: float | None
    ) -> dict[str, Any]:
        """Return the flows of a pair; raises `UnknownCollectorError` or `StoreError`."""


class NoFlows:
    """Says that no collectors are configured."""

    configured = False

    async def flows(
        self, src: str, dst: str, where: dict[str, str], at_s: float | None
    ) -> dict[str, Any]:
        """Raise `UnknownCollectorError`."""
        raise UnknownCollectorError(
            f"the flows of {src!r} are known only to its collector: "
            "name it under `collectors` in the web configuration"
        )
