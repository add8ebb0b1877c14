"""Incidents asked of another program: what is no list of them is told as that program's fault."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama.web.remote_incidents import RemoteIncidents
from llama.web.store import StoreError

GOOD = b'{"configured": true, "incidents": [{"id": "1"}], "total": 1, "next": null}'


class Saying(Resource):
    """Says what it is told to."""

    isLeaf = True
    said = GOOD

    def render_GET(self, request: Any) -> bytes:
        """Answer."""
        return self.said


class StrangeTests(TestCase):
    async def test_strange_answers(self) -> None:
        """Whatever comes is what the page expects, or told; the page's own service has no mistake."""
        server: Any = Saying()
        port: Any = reactor.listenTCP(0, Site(server), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}"
        source = RemoteIncidents(reactor, url)
        self.addCleanup(source.stop)
        answer = await source.incidents(None, None, 10)
        self.assertEqual(answer["incidents"], [{"id": "1"}])
        for part, wrong in (
            (b'{"id": "1"}', b'{"id": %s}' % (b"[" * 500 + b"]" * 500)),  # read, but not written
            (b'{"id": "1"}', b"null"),
            (b'{"id": "1"}', b'["id"]'),
            (b'[{"id": "1"}]', b'"none"'),
            (b'[{"id": "1"}]', b'{"id": "1"}'),
            (b"true", b"1"),
            (b'"total": 1', b'"total": "many"'),
            (b'"next": null', b'"next": []'),
            (b', "next": null', b""),
            (GOOD, b"[]"),
            (GOOD, b"x"),
        ):
            server.said = GOOD.replace(part, wrong)
            with self.assertRaisesRegex(StoreError, "is no list of incidents"):
                await source.incidents(None, None, 10)
