"""Where incidents come from: the seam between the page and whatever finds them."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred


class IncidentSource(Protocol):
    """Something that knows of incidents: suspects that persist (docs/api.rst gives the shape)."""

    async def incidents(self, at_s: float | None, cursor: str | None, limit: int) -> dict[str, Any]:
        """Return ``{"configured", "incidents", "total", "next"}`` as of ``at_s`` (None: now).

        Open incidents come first, then resolved ones, the newest first. ``cursor`` is the
        ``next`` of an earlier answer. Raises `llama.web.store.StoreError` if they cannot be had.
        """

    def stop(self) -> Deferred[Any] | None:
        """Let go of connections."""


class NoIncidents:
    """Says that nobody looks for incidents."""

    async def incidents(self, at_s: float | None, cursor: str | None, limit: int) -> dict[str, Any]:
        """Return no incidents, and that none are looked for."""
        return {"configured": False, "incidents": [], "total": 0, "next": None}

    def stop(self) -> None:
        """Do nothing."""
