"""Incidents asked of another program: what is no list of them is told as that program's fault."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.logger import capturedLogs, formatEvent
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


class SocketTests(TestCase):
    async def test_as_over_tcp(self) -> None:
        """Over a socket, too, no question leaves a line in the log, and what fails is said of it."""
        path = tempfile.mkdtemp(prefix="llama-socket-") + "/s"  # short, as such paths must be
        self.addCleanup(shutil.rmtree, os.path.dirname(path))
        server: Any = Site(Saying())
        server.noisy, server.log = False, lambda _: None
        port: Any = reactor.listenUNIX(path, server)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        source = RemoteIncidents(reactor, f"unix:{path}")
        self.addCleanup(source.stop)
        with capturedLogs() as logged:
            answer = await source.incidents(None, None, 10)
        self.assertEqual(answer["incidents"], [{"id": "1"}])
        self.assertEqual([formatEvent(event) for event in logged], [])
        await source.stop()
        await port.stopListening()
        with self.assertRaises(StoreError) as raised:
            await source.incidents(None, None, 10)
        self.assertRegex(str(raised.exception), f"^unix:{path}: ")
