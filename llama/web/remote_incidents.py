"""Incidents for the web page, asked of a pinpointing service over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.web.client import Agent
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from llama.http.bounded_json import read_json
from llama.http.client import (
    TooLargeError,
    agent_of,
    authorization,
    connection_pool,
    explain,
    request,
)
from llama.web.store import StoreError

TIMEOUT_S = 5.0
MOST_OCTETS = 16 << 20
MOST_VALUES = 1_000_000
#: Of an answer, and what each of them is.
_MEMBERS = {"configured": bool, "incidents": list, "total": int, "next": str | None}


@implementer(IAgentEndpointFactory)
class _UnixSocket:
    """Connects to one socket, whatever the URL says."""

    def __init__(self, reactor: Any, path: str) -> None:
        self._reactor = reactor
        self._path = path

    def endpointForURI(self, uri: Any) -> UNIXClientEndpoint:
        """Return the way to the socket."""
        return UNIXClientEndpoint(self._reactor, self._path, timeout=TIMEOUT_S)


class RemoteIncidents:
    """An `llama.web.incidents.IncidentSource` that asks ``llama pinpoint`` at a base URL.

    ``unix:PATH`` is its socket on this machine, which no network namespace hides.
    """

    def __init__(
        self, reactor: Any, url: str, token: str | None = None, ca_file: str | None = None
    ) -> None:
        self._reactor = reactor
        self._headers = authorization(token)
        self._pool = connection_pool(reactor)
        if url.startswith("unix:"):
            self._url, self._said = "http://localhost/incidents", url
            endpoints = _UnixSocket(reactor, url[5:])
            self._agent = Agent.usingEndpointFactory(reactor, endpoints, self._pool)
        else:
            self._url = self._said = f"{url.rstrip('/')}/incidents"
            self._agent = agent_of(reactor, self._pool, TIMEOUT_S, ca_file)

    def stop(self) -> Deferred[None]:
        """Close the connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def incidents(self, at_s: float | None, cursor: str | None, limit: int) -> dict[str, Any]:
        """Return what the service says; raises `llama.web.store.StoreError` when it says nothing."""
        wanted = {"limit": str(limit)}
        if at_s is not None:
            wanted["at"] = str(int(at_s))
        if cursor is not None:
            wanted["cursor"] = cursor
        url = self._said
        try:
            reply = await request(
                self._agent,
                self._reactor,
                "GET",
                f"{self._url}?{urlencode(wanted)}",
                timeout_s=TIMEOUT_S,
                max_octets=MOST_OCTETS,
                headers=self._headers,
            )
        except Exception as problem:
            raise StoreError(f"{url}: {explain(problem, TIMEOUT_S)}") from problem
        if reply.status != 200:
            raise StoreError(f"{url} answered {reply.status}: {reply.excerpt()}")
        try:
            return _read(reply.body)
        except TooLargeError as problem:
            raise StoreError(f"{url}: its answer has {problem}") from None
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise StoreError(f"{url} is no list of incidents: is llama pinpoint there?") from None


def _read(body: bytes) -> dict[str, Any]:
    """Return what is sent on of an answer.

    Raises `orjson.JSONDecodeError`, `KeyError`, `TypeError` or `TooLargeError` for what is none.
    """
    answer = read_json(body, MOST_VALUES)
    found = {name: answer[name] for name in _MEMBERS}
    for name, kind in _MEMBERS.items():
        if not isinstance(found[name], kind):
            raise TypeError(name)
    if not all(isinstance(incident, dict) for incident in found["incidents"]):
        raise TypeError("incidents")
    orjson.dumps(found)  # what can be read may nest too deeply to be sent on
    return found
