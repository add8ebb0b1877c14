"""Writing over https, checked against an authority of one's own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from self_signed import self_signed_pem
from twisted.internet import reactor
from twisted.internet.ssl import PrivateCertificate
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama.interfaces import NotWrittenError, Point
from llama.scraper.writers import influxdb2

POINTS = [Point("m", {"n": n}, {"x": 1.0}, 10**18) for n in "ab"]


class Database(Resource):
    """Takes everything, and keeps it."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    def render_POST(self, request: Any) -> bytes:
        """Acknowledge."""
        self.bodies.append(request.content.read())
        request.setResponseCode(204)
        return b""


class TlsTests(TestCase):
    """https, checked against an authority of one's own."""

    def setUp(self) -> None:
        """Listen with a certificate for localhost that nobody knows."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-tls-"))
        self.addCleanup(shutil.rmtree, self.directory)
        certificate, key = self_signed_pem("localhost")
        self.ca_file = self.directory / "ca.pem"
        self.ca_file.write_bytes(certificate)
        pair = PrivateCertificate.loadPEM(certificate + key)
        self.database = Database()
        self.port = reactor.listenSSL(
            0, Site(self.database, reactor=reactor), pair.options(), interface="127.0.0.1"
        )
        self.addCleanup(self.port.stopListening)
        self.url = f"https://localhost:{self.port.getHost().port}"

    async def test_known_authority(self) -> None:
        """With the authority's file points are written."""
        options = {"url": self.url, "bucket": "b", "ca_file": str(self.ca_file), "gzip": "false"}
        writer = influxdb2.make(reactor, options)
        self.addCleanup(writer.close)
        self.assertEqual(await writer.write(POINTS), [])
        self.assertEqual(len(self.database.bodies[0].splitlines()), 2)

    async def test_unknown_authority(self) -> None:
        """Without it nothing is sent, and the reason said."""
        writer = influxdb2.make(reactor, {"url": self.url, "bucket": "b", "token": "secret"})
        self.addCleanup(writer.close)
        with self.assertRaises(NotWrittenError) as raised:
            await writer.write(POINTS)
        self.assertEqual(str(raised.exception), "TLS: certificate verify failed")
        self.assertEqual(self.database.bodies, [])

    def test_no_certificate(self) -> None:
        """A file without a certificate is refused at once."""
        self.ca_file.write_text("hello")
        for text, message in (
            ("hello", "holds no PEM"),
            ("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "damaged"),
        ):
            self.ca_file.write_text(text)
            with self.assertRaises(ValueError) as raised:
                influxdb2.make(
                    reactor, {"url": self.url, "bucket": "b", "ca_file": str(self.ca_file)}
                )
            self.assertIn(message, str(raised.exception))
