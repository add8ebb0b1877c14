"""A llama-web service over a store in memory, asked over real HTTP."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent
from web_data import standard_fleet
from web_memory import MemoryStore

from llama import config
from llama.web.service import WebService

END_S = 1_750_000_200.0
LISTEN = "tcp:0:interface=127.0.0.1"


class Answer:
    """A complete answer."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.code = response.code
        self.headers = response.headers
        self.body = body

    def header(self, name: str) -> str:
        """Return a header, or nothing."""
        return ", ".join(self.headers.getRawHeaders(name) or [])

    def json(self) -> Any:
        """Return the body as JSON, without constants that JSON does not have."""
        assert self.header("content-type") == "application/json", self.body[:200]
        return json.loads(self.body, parse_constant=lambda name: 1 / 0)


class ApiCase(TestCase):
    """A service over the standard fleet in memory."""

    timeout = 60

    def start(self, store: Any, **options: Any) -> WebService:
        """Start a service that ends with the test."""
        given = {"path": "", "listen": LISTEN, "store": config.StoreConfig(type="memory")}
        parts = {name: options.pop(name) for name in ("incidents", "flows") if name in options}
        service = WebService(
            reactor, config.WebConfig(**{**given, **options}), store=store, **parts
        )
        service.startService()
        self.addCleanup(service.stopService)
        self.base = service.url.rstrip("/")
        self.client = HTTPClient(Agent(reactor))
        return service

    def setUp(self) -> None:
        """Start it."""
        self.fleet = standard_fleet(END_S)
        self.store = MemoryStore(self.fleet.points(END_S - 1800, END_S))
        self.service = self.start(self.store)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Return the answer to a request."""
        response = await self.client.request(method, self.base + path, headers=headers)
        return Answer(response, await response.content())

    async def api(self, path: str, **query: object) -> Any:
        """Return the JSON of an answer that is no error; it is about the end of the fleet."""
        answer = await self.get(f"/api/v1/{path}?{urlencode({'at': END_S, **query})}")
        self.assertEqual(answer.code, 200, answer.body[:300])
        return answer.json()
