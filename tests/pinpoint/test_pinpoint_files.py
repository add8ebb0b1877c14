"""Files of ``llama pinpoint``: a record of whole lines, and a state that nobody else may lose."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest

from click.testing import CliRunner, Result
from services import BIN
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from llama.cli import main
from llama.pinpoint.files import append_line, locked
from llama.pinpoint.incidents import Silence
from llama.pinpoint.service import PinpointService, Settings

NOBODY = 65534


class RecordTests(SynchronousTestCase):
    def setUp(self) -> None:
        """A record with one line in it."""
        self.path = Path(self.mktemp())
        append_line(self.path, b"one\n")

    def full(self, octets: int, line: bytes) -> int:
        """Append a line where there is room for so many octets more; returns why that failed."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        room = self.path.stat().st_size + octets
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            number = self.assertRaises(OSError, append_line, self.path, line).errno
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert number is not None
        return number

    def test_no_room(self) -> None:
        """Of a line for which there is no room nothing stays, however much of it there was room for."""
        for octets in (0, 1, 5):
            self.assertEqual(self.full(octets, b"two two\n"), errno.EFBIG)
            self.assertEqual(self.path.read_bytes(), b"one\n")
        append_line(self.path, b"two two\n")
        self.assertEqual(self.path.read_bytes(), b"one\ntwo two\n")

    def test_after_half_a_line(self) -> None:
        """A line begins one, whatever was left there by whoever was killed."""
        self.path.write_bytes(b"one\ntw")
        self.assertEqual(self.full(3, b"three\n"), errno.EFBIG)
        self.assertEqual(self.path.read_bytes(), b"one\ntw")
        append_line(self.path, b"three\n")
        append_line(self.path, b"four\n")
        self.assertEqual(self.path.read_bytes(), b"one\ntw\nthree\nfour\n")

    def test_no_regular_file(self) -> None:
        """What is no file of lines takes them, too."""
        append_line(Path(os.devnull), b"one\n")

    def test_judgements(self) -> None:
        """What a service records goes the same way."""
        self.path.write_bytes(b'{"time": 1.0, "e')
        service = PinpointService(
            Clock(), Settings(collectors=("http://c1",), api=None, record=self.path)
        )
        verdict = SimpleNamespace(flows=1, judged=1, lossy=0, unexplained=0, excluded=())
        judgement: Any = SimpleNamespace(end_s=60.0, verdict=verdict, sightings=())
        service._write_record(judgement, [])
        last = self.path.read_text().splitlines()[-1]
        self.assertEqual(json.loads(last)["end"], 60.0)


class FullDiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        """A service that keeps a record and a state."""
        there = Path(self.mktemp())
        there.mkdir()
        self.record, self.state = there / "record", there / "state"
        settings = Settings(
            collectors=("http://c1",), api=None, record=self.record, state=self.state
        )
        self.service = PinpointService(Clock(), settings)
        self.end_s = 0.0

    def judged(self) -> None:
        """Have one more judgement recorded, and what changed with it saved."""
        self.end_s += 60.0
        verdict = SimpleNamespace(flows=1, judged=1, lossy=0, unexplained=0, excluded=())
        judgement: Any = SimpleNamespace(end_s=self.end_s, verdict=verdict, sightings=())
        self.service.incidents.silences = [
            Silence(tag="rack", value="r1", begin=0.0, end=1e9 + self.end_s)
        ]
        self.service.save()
        self.service._write_record(judgement, [])

    def test_said_once(self) -> None:
        """However long the disk is full, that is said once of each file, and its end as well."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        with capturedLogs() as events:
            self.judged()
            for _ in range(2):
                resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
                try:
                    for _ in range(3):
                        self.judged()
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, before)
                for _ in range(3):
                    self.judged()
        full, ended = "{}: cannot be written: File too large", "{} is written again"
        self.assertEqual(
            [formatEvent(event) for event in events],
            2 * [text.format(path) for text in (full, ended) for path in (self.state, self.record)],
        )
        ends = [json.loads(line)["end"] for line in self.record.read_text().splitlines()]
        self.assertEqual(ends, [60.0, *(300.0, 360.0, 420.0), *(660.0, 720.0, 780.0)])
        self.assertEqual(
            json.loads(self.state.read_text()),
            {**json.loads(self.service._saved), "judged_s": 0.0},
        )


class LockTests(SynchronousTestCase):
    def setUp(self) -> None:
        """A state that is being written."""
        self.there = Path(self.mktemp())
        self.there.mkdir()
        self.path = self.there / "state"
        self.new = self.there / "state.new"

    def start(self) -> Result:
        """Start ``llama pinpoint``, which if it may have the state is refused for its collector."""
        return CliRunner().invoke(main, ["pinpoint", "ftp://c1", "--state", str(self.path)])

    def test_two_processes(self) -> None:
        """The second is refused and touches nothing; a killed one keeps nobody out."""
        words = [BIN / "llama", "pinpoint", "c1:5000", "--listen", "127.0.0.1:0"]
        first = subprocess.Popen([*words, "--state", self.path], stderr=subprocess.PIPE)
        self.addCleanup(first.wait)
        self.addCleanup(first.kill)
        assert first.stderr is not None
        self.addCleanup(first.stderr.close)
        first.stderr.readline()  # then it listens
        self.new.write_text("half a st")
        done = self.start()
        self.assertEqual(done.exit_code, 1)
        said = (
            f"Error: --state {self.path}: another llama pinpoint is keeping its incidents there; end"
            " that one, or choose another file"
        )
        self.assertEqual(done.output.splitlines(), [said])
        self.assertEqual(self.new.read_text(), "half a st")
        first.kill()
        first.wait()
        self.assertIn("'ftp://c1' is no http:// or https://", self.start().output)
        self.assertEqual(os.listdir(self.there), [])

    def test_ended(self) -> None:
        """One that ends leaves no lock behind."""
        with locked(self.path):
            self.assertEqual(os.listdir(self.there), ["state.lock"])
            self.assertIn("another llama pinpoint", self.start().output)
        self.assertEqual(os.listdir(self.there), [])

    def test_removed_meanwhile(self) -> None:
        """Who opens a lock that is removed before it is taken has it not, but takes the next one."""
        flock, removed = fcntl.flock, []

        def late(descriptor: int, how: int) -> None:
            if not removed:
                removed.append(os.listdir(self.there))
                (self.there / "state.lock").unlink()
            flock(descriptor, how)

        self.patch(fcntl, "flock", late)
        with locked(self.path):
            self.assertEqual((removed, os.listdir(self.there)), ([["state.lock"]], ["state.lock"]))
            self.assertIn("another llama pinpoint", self.start().output)

    def test_links_that_others_made(self) -> None:
        """What a link beside the state leads to is neither emptied nor made."""
        precious, absent = self.there / "precious", self.there / "absent"
        precious.write_text("of somebody else")
        self.new.symlink_to(precious)
        self.assertIn("'ftp://c1' is no http:// or https://", self.start().output)
        self.assertEqual(precious.read_text(), "of somebody else")
        lock = self.there / "state.lock"
        lock.symlink_to(absent)
        self.assertIn(f"Error: --state {self.path}: cannot be written (", self.start().output)
        self.assertFalse(absent.exists())


class StateTests(SynchronousTestCase):
    def setUp(self) -> None:
        """A state that only root may read, in a directory of nobody's."""
        if os.geteuid():
            raise SkipTest("needs root, to be somebody else")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.there = Path(directory.name)
        self.path = self.there / "state"
        self.path.write_text('{"version": 1, "incidents": {}, "waiting": {}}')
        self.path.chmod(0o600)
        os.chown(self.there, NOBODY, NOBODY)

    def service(self) -> PinpointService:
        """Return a service with that state, and what it logs in ``logged``."""
        service = PinpointService(
            Clock(), Settings(collectors=("http://c1",), api=None, state=self.path)
        )
        self.logged: list[str] = []
        service.log = SimpleNamespace(  # type: ignore[assignment]
            error=lambda text, **values: self.logged.append(text.format(**values))
        )
        return service

    def as_nobody(self, do: Any, *words: Any) -> Any:
        """Do something as another user."""
        os.seteuid(NOBODY)
        try:
            return do(*words)
        finally:
            os.seteuid(0)

    def test_may_not_be_read(self) -> None:
        """A state that this user may not read is refused with what to do, and stays where it is."""
        words = ["pinpoint", "c1:5000", "--state", str(self.path)]
        CliRunner().invoke(main, ["pinpoint", "--help"])  # imported while we may read all of Python
        done = self.as_nobody(CliRunner().invoke, main, words)
        self.assertEqual(done.exit_code, 1)
        said = f"Error: --state {self.path}: this user may not read it; give it to them (chown)"
        self.assertIn(said, done.output.splitlines()[-1])
        service = self.service()
        self.assertRaises(PermissionError, self.as_nobody, service.startService)
        self.assertFalse(service.running)
        self.assertEqual(os.listdir(self.there), ["state"])

    def test_lock_of_another_user(self) -> None:
        """A lock that this user may not open is named, with what to do."""
        lock = self.there / "state.lock"
        lock.touch(0o600)
        words = ["pinpoint", "c1:5000", "--state", str(self.path)]
        CliRunner().invoke(main, ["pinpoint", "--help"])
        done = self.as_nobody(CliRunner().invoke, main, words)
        said = (
            f"Error: --state {self.path}: this user may not write {lock}; give it to them (chown)"
        )
        self.assertIn(said, done.output.splitlines()[-1])

    def test_put_aside(self) -> None:
        """One that makes no sense and is another user's is put aside, and stays as open as it was."""
        self.path.write_text("[]")
        self.path.chmod(0o644)
        service = self.service()
        self.as_nobody(service.startService)
        self.addCleanup(service.stopService)
        self.assertIn("the old file is now", self.logged[0])
        self.assertEqual((self.there / "state.unreadable").stat().st_mode & 0o777, 0o644)

    def test_cannot_be_put_aside(self) -> None:
        """Where it cannot be renamed that is said, and the service begins anew."""
        (self.there / "state.unreadable").mkdir()
        self.path.write_text("[]")
        service = self.service()
        service.startService()
        self.addCleanup(service.stopService)
        self.assertIn("begun anew, and the old file cannot be renamed to ", self.logged[0])
