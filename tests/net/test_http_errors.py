"""What every service answers that cannot answer, whatever it is built on."""

from __future__ import annotations

from typing import Any

from collector_served import Served
from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama.config import ReflectorConfig, ScraperConfig
from llama.http.server import Guard
from llama.pinpoint.api import PinpointApi
from llama.reflector.service import ReflectorService
from llama.scraper.service import ScraperService
from llama.web.api import WebApi


def roots() -> dict[str, Any]:
    """Return what every service serves, none of which runs."""
    nothing: Any = None
    clock = Clock()
    scraper = ScraperService(
        clock, ScraperConfig(path="", collectors=(), writers=(), api="127.0.0.1:0")
    )
    return {
        "reflector": ReflectorService(clock, ReflectorConfig()).http.site.resource,
        "collector": Guard(Served().api.app.resource()),
        "scraper": scraper.http.site.resource,
        "web": Guard(WebApi(nothing, nothing, nothing).resource()),
        "pinpoint": Guard(PinpointApi(nothing, guarded=False).app.resource()),
    }


class ErrorTests(SynchronousTestCase):
    def ask(self, root: Any, path: str, method: str = "GET") -> tuple[int, str | None, str]:
        """Return status, ``Allow`` and error of an answer."""
        client = HTTPClient(RequestTraversalAgent(root))
        answer = self.successResultOf(client.request(method, f"http://x{path}"))
        allowed = answer.headers.getRawHeaders("Allow", [None])
        self.assertEqual(len(allowed), 1)
        return answer.code, allowed[0], self.successResultOf(answer.json())["error"]

    def test_methods(self) -> None:
        """A method that a path does not take is 405, with those that it takes."""
        reading = (405, "GET, HEAD", "expected the method GET or HEAD")
        served = roots()
        for service, root in served.items():
            for method in ("POST", "DELETE", "OPTIONS"):
                self.assertEqual(self.ask(root, "/status", method), reading, service)
        for path, method, allowed in (
            ("/silences", "PUT", "GET, HEAD, POST"),
            ("/silences/1", "GET", "DELETE"),
        ):
            code, named, _ = self.ask(served["pinpoint"], path, method)
            self.assertEqual((code, named), (405, allowed))

    def test_paths(self) -> None:
        """A path that is not served is 404, also where one that is begins so."""
        for service, root in roots().items():
            for path in ("/nowhere", "/status/", "/metrics/x/y", "/api//v1/status"):
                said = (404, None, f"nothing is served at {path}")
                self.assertEqual(self.ask(root, path), said, service)
