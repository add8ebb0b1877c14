"""The writer of files, and what a rotated or torn file does to it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from scraper_case import fill, small_disk, until
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from llama.interfaces import NotWrittenError, Point
from llama.scraper.writers import file

POINTS = [Point("m", {"a": "x y"}, {"rtt": 0.25}, 5), Point("m", {}, {"loss": 100.0}, 6)]
JSON = (
    b'{"measurement":"m","tags":{"a":"x y"},"fields":{"rtt":0.25},"time_ns":5}\n'
    b'{"measurement":"m","tags":{},"fields":{"loss":100.0},"time_ns":6}\n'
)
LINES = b"m,a=x\\ y rtt=0.25 5\nm loss=100.0 6\n"


class FileCase(TestCase):
    """One file each."""

    def setUp(self) -> None:
        """Make a directory for it."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-file-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "points"

    def writer(self, **options: Any) -> Any:
        """Make a writer."""
        return file.make(reactor, {"path": str(self.path)} | options)

    def lines(self) -> list[str]:
        """Return the name in every line, in their order; each line must be whole."""
        return [json.loads(row)["tags"]["n"] for row in self.path.read_bytes().splitlines()]


def some(name: str, count: int = 3000) -> list[Point]:
    """Return points that take more than one call of the system to write."""
    return [Point("m", {"n": name, "pad": "x" * 300}, {"x": 1.0}, n) for n in range(count)]


class FileTests(FileCase):
    """What is written, and what cannot be."""

    async def test_json_lines(self) -> None:
        """Points are appended, one JSON object a line."""
        writer = self.writer()
        await writer.open()
        self.assertEqual(await writer.write(POINTS), [])
        self.assertEqual(self.path.read_bytes(), JSON)
        await writer.write(POINTS[:1])
        self.assertEqual(len([json.loads(x) for x in self.path.read_bytes().splitlines()]), 3)
        await writer.close()

    async def test_line_protocol(self) -> None:
        """Likewise as line protocol."""
        await self.writer(format="line-protocol").write(POINTS)
        self.assertEqual(self.path.read_bytes(), LINES)

    async def test_rotated(self) -> None:
        """After renaming, the next points go into a new file."""
        writer = self.writer()
        await writer.write(POINTS)
        self.path.rename(self.directory / "points.1")
        await writer.write(POINTS)
        self.assertEqual(self.path.read_bytes(), JSON)

    async def test_torn_line(self) -> None:
        """A line that a killed process left unfinished is cut off, whatever its length."""
        for torn in (b'{"measure', b"x" * 900_000, b"x" * 3_000_000):
            self.path.write_bytes(JSON + torn)
            await self.writer().write(POINTS)
            self.assertEqual(self.path.read_bytes(), JSON + JSON)
        for format_, whole in (("json", JSON), ("line-protocol", LINES)):
            least = 1 if format_ == "json" else whole.index(b"=") + 1
            for octets in range(least, whole.index(b"\n")):
                self.path.write_bytes(whole[:octets])
                await self.writer(format=format_).write(POINTS)
                self.assertEqual(self.path.read_bytes(), whole)

    async def test_another_programs(self) -> None:
        """What does not begin with a line of ours is left alone, whether or not its end is torn."""
        for text in (
            b"s3cret",
            b"s3cret\n",
            b"# one\n# two",
            b"[main]\nkey = 1\n",
            b"SQLite format 3\0\n\0",
            b"\0" * 99,
        ):
            self.path.write_bytes(text)
            with self.assertRaises(NotWrittenError) as raised:
                await self.writer().open()
            said = f"{self.path}: begins with no line of ours: is it another program's?"
            self.assertEqual(str(raised.exception), said)
            self.assertEqual(self.path.read_bytes(), text)
        for text in (
            b"\n",
            b"# of 7\n\n# and 8\n" + LINES,
            b"# of 7\n",
            JSON,
            LINES,
        ):  # whatever its format was before
            self.path.write_bytes(text)
            await self.writer().write(POINTS)
            self.assertEqual(self.path.read_bytes(), text + JSON)

    async def test_no_line(self) -> None:
        """What ends in far more than a line can have is another program's, and left alone."""
        self.patch(file, "LONGEST_LINE", 2 * 2**20)
        self.path.write_bytes(JSON + b"x" * 4 * 2**20)
        with self.assertRaises(NotWrittenError) as raised:
            await self.writer().open()
        said = f"{self.path}: ends in no line of ours: is it another program's?"
        self.assertEqual(str(raised.exception), said)
        self.assertEqual(self.path.stat().st_size, len(JSON) + 4 * 2**20)

    async def test_cannot(self) -> None:
        """A path that cannot be written, and a full disk, are said in one line."""
        self.path.mkdir()
        with self.assertRaises(NotWrittenError) as raised:
            await self.writer().open()
        self.assertEqual(str(raised.exception), f"{self.path}: Is a directory")
        if os.path.exists("/dev/full"):
            writer = file.make(reactor, {"path": "/dev/full"})
            with self.assertRaises(NotWrittenError) as raised:
                await writer.write(POINTS)
            self.assertEqual(str(raised.exception), "/dev/full: No space left on device")

    def test_options(self) -> None:
        """Mistakes in its options are said."""
        for options, message in (
            ({"format": "csv"}, "'format' is 'csv', expected json or line-protocol"),
            ({"rotate": "1"}, "unknown key 'rotate'"),
        ):
            with self.assertRaises(ValueError) as raised:
                self.writer(**options)
            self.assertEqual(str(raised.exception), message)


class PausedDisk:
    """Stands between a writer and its file: holds writes up half done, or lets them fail.

    ``locked_out`` is set once a write has found the file locked by another.
    """

    def __init__(self, case: TestCase) -> None:
        self.half_done = threading.Event()  # somebody's
        self.go_on = threading.Event()
        self.locked_out = threading.Event()
        self.problem: OSError | None = None
        self.synced: list[str] = []
        case.addCleanup(self.go_on.set)
        real, real_flock = os.fsync, fcntl.flock

        def flock(descriptor: Any, operation: int) -> None:
            try:
                real_flock(descriptor, operation)
            except BlockingIOError:
                self.locked_out.set()
                raise

        def fsync(descriptor: int) -> None:
            self.synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            if not self.half_done.is_set():
                self.half_done.set()
                # As a write in parts would leave it: all but its last line end.
                size = os.fstat(descriptor).st_size
                os.ftruncate(descriptor, size - 1)
                self.go_on.wait(20)
                os.ftruncate(descriptor, max(size - 1, os.fstat(descriptor).st_size))
                os.pwrite(descriptor, b"\n", os.fstat(descriptor).st_size)
                if self.problem is not None:
                    raise self.problem
            real(descriptor)

        case.patch(file.os, "fsync", fsync)
        case.patch(file.fcntl, "flock", flock)


class ConcurrencyTests(FileCase):
    """Writes at the same time, given up, or failing."""

    async def wait(self, disk: PausedDisk, one: Any, writings: list[Deferred[Any]]) -> None:
        """See that all of these wait: for a turn of ``one``, whose write is half done, or the lock."""
        own = len(one._turn.waiting)
        self.assertGreater(own, 0)
        if own < len(writings):
            await until(disk.locked_out.is_set, "a write that finds the file locked")
        self.assertFalse(any(writing.called for writing in writings))

    async def test_lanes(self) -> None:
        """Of writes at the same time, by one writer or several, each acknowledged point stays."""
        writers = [self.writer(), self.writer()]
        for turn in range(8):
            names = [f"{turn}-{lane}" for lane in range(4)]
            for writing in [writers[n % 2].write(some(name)) for n, name in enumerate(names)]:
                await writing
            self.assertEqual(Counter(self.lines()), dict.fromkeys(names, 3000))
            self.path.unlink()

    async def beside(
        self, disk: PausedDisk, name: str
    ) -> tuple[Deferred[None], list[Deferred[None]]]:
        """Begin a write, have two others, of two writers, wait until it is half done; let all go on."""
        one, other = self.writer(), self.writer(name="other")
        first = one.write(some(name))
        await until(disk.half_done.is_set, "a write half done")
        writings = [one.write(some("one")), other.write(some("other"))]
        await self.wait(disk, one, writings)
        disk.go_on.set()
        return first, writings

    async def test_half_done(self) -> None:
        """What another write has half done is no torn line."""
        first, writings = await self.beside(PausedDisk(self), "first")
        for writing in [first, *writings]:
            await writing
        self.assertEqual(Counter(self.lines()), {"first": 3000, "one": 3000, "other": 3000})

    async def test_failing(self) -> None:
        """A write that fails takes nothing with it, and leaves nothing."""
        disk = PausedDisk(self)
        disk.problem = OSError(errno.EIO, "Input/output error")
        failing, writings = await self.beside(disk, "bad")
        with self.assertRaises(NotWrittenError) as raised:
            await failing
        self.assertEqual(str(raised.exception), f"{self.path}: Input/output error")
        for writing in writings:
            await writing
        self.assertEqual(Counter(self.lines()), {"one": 3000, "other": 3000})

    async def test_given_up(self) -> None:
        """A write that was given up ends before the next begins, and before the writer is closed."""
        disk = PausedDisk(self)
        writer = self.writer()
        given_up = [writer.write(some("first")), writer.write(some("never"))]
        await until(disk.half_done.is_set, "a write half done")
        for writing in given_up:
            writing.cancel()
            await self.assertFailure(writing, CancelledError)
        again, closing = writer.write(some("again")), writer.close()
        await self.wait(disk, writer, [again, closing])
        disk.go_on.set()
        await again
        await closing
        self.assertEqual(Counter(self.lines()), {"first": 3000, "again": 3000})

    async def test_locked(self) -> None:
        """A file that another process keeps locked is said to be, and nothing is written."""
        self.patch(file, "LOCK_WAIT_S", 0.1)
        with open(self.path, "ab") as locked:
            fcntl.flock(locked, fcntl.LOCK_EX)
            with self.assertRaises(NotWrittenError) as raised:
                await self.writer().write(POINTS)
        said = f"{self.path}: another process has it locked"
        self.assertEqual(str(raised.exception), said)
        await self.writer().write(POINTS)
        self.assertEqual(self.path.read_bytes(), JSON)

    async def test_names_are_synced(self) -> None:
        """Before points are acknowledged, so is on disk the name of a file that is new or rotated."""
        disk = PausedDisk(self)
        disk.half_done.set()
        writer = self.writer()
        for _ in range(2):
            await writer.write(POINTS)
            self.assertEqual(disk.synced, [str(self.path), str(self.directory)])
            self.path.rename(self.directory / "points.1")
            disk.synced.clear()

    async def test_full_disk(self) -> None:
        """On a full disk a file stays as it was, to the octet; what is written then is whole."""
        disk = small_disk(self)
        self.path = disk / "points"
        writer = self.writer()
        await writer.write(POINTS)
        fill(disk)
        with open(disk / "others", "r+b") as others:
            others.truncate(others.seek(0, os.SEEK_END) - 500_000)
        with self.assertRaises(NotWrittenError) as raised:
            await writer.write(some("bad", 5000))
        self.assertIn("No space left", str(raised.exception))
        self.assertEqual(self.path.read_bytes(), JSON)
        (disk / "others").unlink()
        await writer.write(POINTS)
        self.assertEqual(self.path.read_bytes(), JSON + JSON)
