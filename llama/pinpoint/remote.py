"""Incidents for the web page, asked of a pinpointing service over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson
from twisted.web.client import HTTPConnectionPool

from llama.scraper.fetch import client_of, explain, request
from llama.web.store import StoreError

TIMEOUT_S = 5.0
MOST_OCTETS = 16 << 20


class RemoteIncidents:
    """An `llama.web.incidents.IncidentSource` that asks ``llama pinpoint`` at a base URL."""

    def __init__(
        self, reactor: Any, url: str, token: str | None = None, ca_file: str | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._reactor = reactor
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._client = client_of(reactor, HTTPConnectionPool(reactor), TIMEOUT_S, ca_file)

    async def incidents(self, at_s: float | None, cursor: str | None, limit: int) -> dict[str, Any]:
        """Return what the service says; raises `llama.web.store.StoreError` when it says nothing."""
        wanted = {"limit": str(limit)}
        if at_s is not None:
            wanted["at"] = str(int(at_s))
        if cursor is not None:
            wanted["cursor"] = cursor
        url = f"{self._url}/incidents"
        try:
            reply = await request(
                self._client,
                self._reactor,
                "GET",
                f"{url}?{urlencode(wanted)}",
                timeout_s=TIMEOUT_S,
                max_octets=MOST_OCTETS,
                headers=self._headers,
            )
        except Exception as problem:
            raise StoreError(f"{url}: {explain(problem, TIMEOUT_S)}") from problem
        if reply.status != 200:
            raise StoreError(f"{url} answered {reply.status}: {reply.excerpt()}")
        try:
            answer = orjson.loads(reply.body)
            return {name: answer[name] for name in ("configured", "incidents", "total", "next")}
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise StoreError(f"{url} is no list of incidents: is llama pinpoint there?") from None
