"""What the programs tell systemd."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import tempfile
import urllib.request

from servers import die_with_parent, free_port
from services import BIN, Service, until
from twisted.logger import (
    FileLogObserver,
    Logger,
    LogLevel,
    LogPublisher,
    capturedLogs,
    formatEvent,
)
from twisted.trial.unittest import SynchronousTestCase

from llama import systemd

CLASSIC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S+ \[")


class ObserverTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Log as the programs do, to a text."""
        self.stream = io.StringIO()
        self.log = Logger(observer=LogPublisher(systemd.JournalObserver(self.stream)))

    def test_levels(self) -> None:
        """Every level has the number that syslog(3) gives it, and no time stands before the text."""
        for level in LogLevel.iterconstants():
            self.log.emit(level, "{what} is said", what=level.name)
        self.assertEqual(
            self.stream.getvalue().splitlines(),
            [
                "<7>debug is said",
                "<6>info is said",
                "<4>warn is said",
                "<3>error is said",
                "<2>critical is said",
            ],
        )

    def test_tracebacks(self) -> None:
        """Of what has several lines each is as grave as the whole."""
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            self.log.failure("it failed")
        lines = self.stream.getvalue().splitlines()
        self.assertEqual(lines[0], "<2>it failed")
        self.assertEqual(lines[-1], "<2>second")
        self.assertEqual([line for line in lines if not line.startswith("<2>")], [])

    def test_nothing_to_say(self) -> None:
        """What has no text leaves no line."""
        self.log.emit(LogLevel.info)
        self.assertEqual(self.stream.getvalue(), "")

    def test_without_a_file(self) -> None:
        """What no file is behind is not the journal."""
        self.assertIsInstance(systemd.journal(io.StringIO()), FileLogObserver)


class ReadyTests(SynchronousTestCase):
    def listen(self, address: str | bytes) -> socket.socket:
        """Take what programs tell at an address."""
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(told.close)
        told.bind(address)
        told.settimeout(60)
        return told

    def test_abstract(self) -> None:
        """It may be asked for at an address that is no file."""
        name = f"llama-test-{os.getpid()}"
        told = self.listen(f"\0{name}")
        self.patch(os, "environ", {"NOTIFY_SOCKET": f"@{name}"})
        systemd.ready()
        self.assertEqual(told.recv(100), b"READY=1")

    def test_nobody_asks(self) -> None:
        """It is not told where nobody asks, nor where that is beyond us, nor is it a fault."""
        for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
            self.patch(os, "environ", environment)
            systemd.ready()

    def test_nobody_listens(self) -> None:
        """Where nobody hears it, the log says so."""
        self.patch(os, "environ", {"NOTIFY_SOCKET": "/nowhere/notify"})
        with capturedLogs() as events:
            systemd.ready()
        [event] = events
        self.assertEqual(event["log_level"], LogLevel.warn)
        self.assertIn("No such file", formatEvent(event))

    def test_programs(self) -> None:
        """Once a program says so, it answers."""
        for command in ([BIN / "twistd", "-n", "--pidfile=", "llama-reflector", "--port=0", "--api"],
                        [BIN / "llama", "pinpoint", "http://127.0.0.1:9", "--listen"]):  # fmt: skip
            with tempfile.TemporaryDirectory() as directory:
                told, place = self.listen(f"{directory}/notify"), f"127.0.0.1:{free_port()}"
                program = subprocess.Popen(
                    [*command, place], cwd=directory, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, preexec_fn=die_with_parent,
                    env={**os.environ, "NOTIFY_SOCKET": f"{directory}/notify"},
                )  # fmt: skip
                try:
                    self.assertEqual(told.recv(100), b"READY=1")
                    with urllib.request.urlopen(f"http://{place}/status", timeout=60) as answer:
                        self.assertEqual(answer.read(), b"ok")
                finally:
                    program.terminate()
                    program.wait()


class JournalTests(SynchronousTestCase):
    """The programs, where standard output and standard error are as in a unit."""

    def said(self, service: Service, wanted: str, *, journal: bool) -> list[str]:
        """Start a service; return what it has logged once ``wanted`` is among that."""
        service.log.touch()
        status = service.log.stat()
        stream = f"{status.st_dev}:{status.st_ino}" if journal else "1:2"
        command = ["/usr/bin/env", f"JOURNAL_STREAM={stream}", *service.command()]
        service.command = lambda: command  # type: ignore[method-assign]
        service.start()
        self.addCleanup(service.stop)
        until(lambda: wanted in service.text(), wanted)
        return service.text().splitlines()

    def test_twistd(self) -> None:
        """In the journal lines have priorities; elsewhere, with the same option, times."""

        class Logging(Service):
            def command(self) -> list[str]:
                start, *rest = super().command()
                return [start, "--logger=llama.systemd.journal", *rest]

        for there, pattern in ((True, re.compile("<[46]>")), (False, CLASSIC)):
            service = Logging("llama-reflector", "--port", "0", "--api", "127.0.0.1:0")
            lines = self.said(service, "answering", journal=there)
            self.assertEqual([line for line in lines if not pattern.match(line)], [])

    def test_pinpoint(self) -> None:
        """So has ``llama pinpoint``, without an option."""

        class Pinpoint(Service):
            def command(self) -> list[str]:
                return [str(BIN / "llama"), "pinpoint", *self.arguments]

        for there, pattern in ((True, re.compile("<[46]>")), (False, CLASSIC)):
            service = Pinpoint("pinpoint", "--listen", "127.0.0.1:0", "http://127.0.0.1:9")
            lines = self.said(service, "127.0.0.1", journal=there)
            self.assertEqual([line for line in lines if not pattern.match(line)], [])
