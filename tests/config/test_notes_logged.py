"""What is suspicious about a configuration stands in the log of the service that has it."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from servers import free_port
from services import Collector, Service, configuration, until
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llama.cli import main
from llama.config import Mistake, StoreConfig, WebConfig
from llama.web.service import WebService


class NotesTests(SynchronousTestCase):
    def check(self, name: str, text: str, said: str) -> Service:
        """Start a service, and have it read its configuration again: each time it must say so."""
        service = Service(name, "--config", "service.yaml", "--api", f"127.0.0.1:{free_port()}")
        self.addCleanup(shutil.rmtree, service.directory)
        (service.directory / "service.yaml").write_text(text)
        self.addCleanup(service.stop)
        service.start()
        until(lambda: service.text().count(said) == 1, f"a note at the start: {said}")
        service.send_signal(signal.SIGHUP)
        until(lambda: service.text().count(said) == 2, f"a note at the reload: {said}")
        self.assertNotIn("Traceback", service.text())
        return service

    def test_reflector(self) -> None:
        """A reflector says it when it starts and when it reloads."""
        text = "port: 0\naddresses: 127.0.0.1\nallow_unauthenticated: true\n"
        self.check("llama-reflector", text, "service.yaml:1: allow_unauthenticated says nothing")

    def test_collector(self) -> None:
        """So does a collector."""
        text = "127.0.0.1:\n  class: gold\n"
        service = self.check("llama-collector", text, "service.yaml:2: tag 'class' does not show")
        # It listens where --api says, before and after: nothing waits for a restart.
        self.assertNotIn("only when the collector is restarted", service.text())

    def test_another_token(self) -> None:
        """A token that changed is of no effect until the collector is restarted, which it says."""
        collector = Collector(f"api: {{token_file: token}}\n{configuration(9)}")
        self.addCleanup(shutil.rmtree, collector.directory)
        token = collector.directory / "token"
        token.write_text("old\n")
        token.chmod(0o600)
        self.addCleanup(collector.stop)
        collector.start()
        until(lambda: "probing" in collector.text(), "its start")
        token.write_text("new\n")
        collector.send_signal(signal.SIGHUP)
        said = "interval, keep and api take effect only when the collector is restarted"
        until(lambda: said in collector.text(), said)

    def test_cut_short(self) -> None:
        """A file that ends amid a line is taken at the start, which says so, and never at a reload."""
        said = "service.yaml:2: ends amid a line: is it still being written? end the last line"
        text = "port: 0\naddresses: 127.0.0.1"
        reflector = self.check("llama-reflector", text, said)
        self.assertEqual(reflector.text().count(f"not reloaded: {said}"), 1)
        collector = self.check("llama-collector", "127.0.0.1: {}\n127.0.0.2: {}", said)
        self.assertEqual(collector.text().count(f"not reloaded: {said}"), 1)

    def test_web(self) -> None:
        """A web page, which does not reload, says it when it starts."""
        note = Mistake("web.yaml", 3, "is odd")
        store: Any = object()
        config = WebConfig(path="web.yaml", store=StoreConfig(type="none"), notes=(note,))
        service = WebService(Clock(), config, store=store)
        service.http.disownServiceParent()
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        service.startService()
        self.assertIn("web.yaml:3: is odd", [event.get("note") for event in events])


class PinpointTests(SynchronousTestCase):
    def test_open_token(self) -> None:
        """``llama pinpoint`` takes no token that everyone can read, as no service does."""
        path = Path(self.mktemp())
        path.write_text("secret\n")
        path.chmod(0o644)
        for option in ("--token-file", "--api-token-file"):
            done = CliRunner().invoke(main, ["pinpoint", "c1:5000", option, str(path)])
            self.assertEqual(done.exit_code, 1)
            self.assertIn(f"{path} is open to everyone on this host; run: chmod o=", done.output)
