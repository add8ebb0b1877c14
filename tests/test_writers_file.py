"""The writer of files, and what a rotated or torn file does to it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from llama.interfaces import NotWrittenError, Point
from llama.scraper.writers import file

POINTS = [Point("m", {"a": "x y"}, {"rtt": 0.25}, 5), Point("m", {}, {"loss": 100.0}, 6)]
JSON = (
    b'{"measurement":"m","tags":{"a":"x y"},"fields":{"rtt":0.25},"time_ns":5}\n'
    b'{"measurement":"m","tags":{},"fields":{"loss":100.0},"time_ns":6}\n'
)


class FileTests(TestCase):
    """One file each."""

    def setUp(self) -> None:
        """Make a directory for it."""
        self.directory = Path(tempfile.mkdtemp(prefix="llama-file-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "points"

    def writer(self, **options: Any) -> Any:
        """Make a writer."""
        return file.make(reactor, {"path": str(self.path)} | options)

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
        self.assertEqual(self.path.read_bytes(), b"m,a=x\\ y rtt=0.25 5\nm loss=100.0 6\n")

    async def test_rotated(self) -> None:
        """After renaming, the next points go into a new file."""
        writer = self.writer()
        await writer.write(POINTS)
        self.path.rename(self.directory / "points.1")
        await writer.write(POINTS)
        self.assertEqual(self.path.read_bytes(), JSON)

    async def test_torn_line(self) -> None:
        """A line that a killed process left unfinished is cut off, whatever its length."""
        for torn in (b'{"measure', b"x" * 900_000):
            self.path.write_bytes(JSON + torn)
            await self.writer().write(POINTS)
            self.assertEqual(self.path.read_bytes(), JSON + JSON)
        self.path.write_bytes(b"torn from the start")
        await self.writer().write(POINTS)
        self.assertEqual(self.path.read_bytes(), JSON)

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
