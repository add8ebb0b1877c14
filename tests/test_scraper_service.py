"""The whole scraper, in this process, between fake collectors and real databases."""

from __future__ import annotations

from typing import Any

from scraper_case import NOW, ServiceCase, influx_rows, until
from servers import Influx

from llama.config import WriterConfig


class InfluxTests(ServiceCase):
    """Into InfluxDB 1.x with a user and a password."""

    server: Influx

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server."""
        cls.server = Influx("admin", "secret")
        cls.server.start()

    @classmethod
    def tearDownClass(cls) -> None:
        """End it."""
        cls.server.stop()

    def writer(self, **more: Any) -> WriterConfig:
        """Return the section that writes to it."""
        options = {
            "url": self.server.url, "database": "llama", "username": "admin",
            "password": "secret", "create": "true",
        } | more  # fmt: skip
        return WriterConfig(type="influxdb", options=options)

    async def test_everything_once(self) -> None:
        """What two collectors closed is in a database that the scraper created, exactly."""
        first, first_url = self.collector("one")
        second, second_url = self.collector("two")
        first.close(NOW)
        first.close(NOW + 30)
        second.close(NOW, loss=100.0)
        self.scraper([first_url, second_url], self.writer())
        await until(lambda: first.questions and second.questions, "polls")
        first.close(NOW + 60)
        await until(
            lambda: "llama" in {row["name"] for row in self.server.run("SHOW DATABASES")},
            "the database",
        )
        await until(lambda: len(influx_rows(self.server, "one")) == 9, "nine points")
        self.assertEqual(influx_rows(self.server, "one"), first.ledger)
        self.assertEqual(influx_rows(self.server, "two"), second.ledger)
        self.assertEqual(first.questions[0], "")
        self.assertIn("a1:2", first.questions)
