"""SIGHUP, at any moment from the start of a service on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from typing import Any

from servers import free_port
from services import Service, until
from twisted.application import service
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama import hangup
from twisted.plugins import llama_plugin

#: Has SIGHUP come before a service reads its file, and changes the file once that is read.
EARLY = """
import signal, sys
from pathlib import Path
from twisted.python import usage
from twisted.scripts.twistd import run
parse = usage.Options.parseOptions
def early(self, options=None):
    ours = type(self).__module__.startswith("llama.")
    if ours:
        signal.raise_signal(signal.SIGHUP)
    parse(self, options)
    if ours:
        Path("service.yaml").write_text("nonsense: 1\\n")
usage.Options.parseOptions = early
sys.argv[0] = "twistd"
run()
"""


class Reactor(Clock):
    """A clock that calls at once what is to be called from a thread."""

    def callFromThread(self, function: Any) -> None:
        """Call it."""
        function()


class HangUpTests(SynchronousTestCase):
    def setUp(self) -> None:
        """What was done at the signal before is done after."""
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        self.got: list[str] = []

    def hang_up(self) -> None:
        """Have the signal come."""
        os.kill(os.getpid(), signal.SIGHUP)

    def test_what_came_early(self) -> None:
        """However many come while nothing runs, they are obeyed once when it does; later ones each."""
        hangup.wait()
        self.hang_up()
        self.hang_up()
        hangup.obey(Reactor(), lambda: self.got.append("read"))
        self.assertEqual(self.got, ["read"])
        self.hang_up()
        self.assertEqual(self.got, ["read"] * 2)
        hangup.ignore()
        self.hang_up()
        hangup.obey(Reactor(), lambda: self.got.append("read"))
        self.assertEqual(self.got, ["read"] * 2)

    def test_last_of_the_children(self) -> None:
        """It obeys once the other parts of a service have started, and ignores before they stop."""

        class Part(service.Service):
            def startService(self) -> None:
                found.append(signal.getsignal(signal.SIGHUP) in (signal.SIG_DFL, signal.SIG_IGN))

            def stopService(self) -> None:
                found.append(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)

        found: list[bool] = []
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        whole = service.MultiService()
        Part().setServiceParent(whole)
        hangup.OnHangup(Reactor(), lambda: self.got.append("read")).setServiceParent(whole)
        whole.startService()
        self.hang_up()
        whole.stopService()
        self.hang_up()
        self.assertEqual((found, self.got), ([True, True], ["read"]))

    def test_plugins_wait(self) -> None:
        """Every service's plugin waits for it before it imports the service."""
        for name in ("collector", "reflector", "scraper", "web"):
            self.assertIsInstance(getattr(llama_plugin, name), hangup.ServiceMaker)
        words = "import signal, sys; from twisted.plugins.llama_plugin import reflector\n"
        words += "class Finder:\n  def find_spec(self, name, *_):\n"
        words += "    if name == 'llama.reflector': signal.raise_signal(signal.SIGHUP)\n"
        words += "sys.meta_path.insert(0, Finder()); reflector.options; print('alive')"
        done = subprocess.run([sys.executable, "-c", words], capture_output=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (0, b"alive\n"), done.stderr)


class InterruptTests(SynchronousTestCase):
    def test_while_it_starts(self) -> None:
        """Ctrl-C ends a service that is being imported, without a word; then the reactor takes it."""
        words = "import signal, sys; from twisted.plugins.llama_plugin import reflector\n"
        words += "class Finder:\n  def find_spec(self, name, *_):\n"
        words += "    if name == 'llama.reflector': signal.raise_signal(signal.SIGINT)\n"
        words += "sys.meta_path.insert(0, Finder()); reflector.options; print('alive')"
        done = subprocess.run([sys.executable, "-c", words], capture_output=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (-signal.SIGINT, b"", b""))

    def test_once_it_runs(self) -> None:
        """Then the service is stopped, by the first of all signals that end it."""
        service = Service("llama-web", "--config", "service.yaml")
        self.addCleanup(shutil.rmtree, service.directory)
        text = f"store: {{type: sqlite, path: x}}\nlisten: '127.0.0.1:{free_port()}'\n"
        (service.directory / "service.yaml").write_text(text)
        self.addCleanup(service.stop)
        service.start()
        until(lambda: "http://" in service.text(), service.text())
        for number in (signal.SIGINT, signal.SIGTERM):  # impatience changes nothing
            service.send_signal(number)
        until(lambda: "Server Shut Down" in service.text(), service.text())
        self.assertEqual(service.text().count("Received SIG"), 1)
        self.assertNotIn("Traceback", service.text())


class EarlyService(Service):
    """A service that SIGHUP comes to before it reads its file, which changes then."""

    def command(self) -> list[str]:
        """Return the command that starts it."""
        words = ["-n", "--pidfile=", self.name, *self.arguments, "--config", "service.yaml"]
        return [sys.executable, "-c", EARLY, *words]


class EarlyTests(SynchronousTestCase):
    def check(self, name: str, text: str, said: str, *arguments: str) -> Service:
        """Start a service, which must read its file again once it runs, and say this."""
        service = EarlyService(name, *arguments)
        self.addCleanup(shutil.rmtree, service.directory)
        (service.directory / "service.yaml").write_text(text)
        self.addCleanup(service.stop)
        service.start()
        until(lambda: said in service.text(), f"{said}: {service.text()}")
        self.assertNotIn("Traceback", service.text())
        return service

    def test_reflector(self) -> None:
        """A reflector lives, and reads its file again."""
        text = f"port: 0\naddresses: 127.0.0.1\napi: {{bind: '127.0.0.1:{free_port()}'}}\n"
        self.check("llama-reflector", text, "not reloaded: service.yaml:1: unknown key 'nonsense'")

    def test_collector(self) -> None:
        """So does a collector."""
        api = f"127.0.0.1:{free_port()}"
        said = "not reloaded: service.yaml:1: "
        service = self.check("llama-collector", "127.0.0.1: {}\n", said, "--api", api)
        self.assertNotIn("takes effect when the next interval begins", service.text())

    def test_scraper(self) -> None:
        """So does a scraper."""
        text = (
            f"collectors: ['127.0.0.1:9']\nwriters: [{{type: file, path: points}}]\n"
            f"spool: {{path: spool}}\napi: {{bind: '127.0.0.1:{free_port()}'}}\n"
        )
        self.check("llama-scraper", text, "not reloaded: service.yaml:1: ")

    def test_web(self) -> None:
        """A web page lives, and says what to do."""
        port = free_port()
        text = f"store: {{type: sqlite, path: x}}\nlisten: '127.0.0.1:{port}'\n"
        self.check("llama-web", text, "not reloaded: service.yaml is read when llama-web starts")
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=20).read()
        self.assertEqual(answer, b"ok")
