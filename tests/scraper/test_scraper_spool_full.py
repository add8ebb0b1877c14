"""The spool on a disk that is full."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from scraper_case import fill, small_disk
from spool_case import NOW, put, some_points
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llama.scraper import spool_file
from llama.scraper.buffer import NotStoredError, Taken
from llama.scraper.spool import DiskSpool


class RoomTests(SynchronousTestCase):
    """Whether something may be kept."""

    def test_what_it_takes(self) -> None:
        """The room that is said to be missing is the reserve and what is to be kept, together."""
        path = Path("/some/where/spool.db")
        free = SimpleNamespace(f_bavail=2048, f_frsize=4096)  # 8 MiB
        self.patch(spool_file.os, "statvfs", lambda _: free)
        spool_file.check_room(path, 4 * 2**20)
        with self.assertRaises(OSError) as raised:
            spool_file.check_room(path, 5 * 2**20)
        said = "the disk is full: less than 9.0 MiB are free in /some/where"
        self.assertEqual(raised.exception.strerror, said)
        with self.assertRaises(OSError) as raised:  # never a number that is not more than is free
            spool_file.check_room(path, 4 * 2**20 + 1)
        self.assertIn("less than 8.1 MiB", str(raised.exception))


class FullDiskTests(TestCase):
    """On a tmpfs of a few megabytes, which needs root."""

    def setUp(self) -> None:
        """Mount it."""
        self.directory = small_disk(self)
        self.others = self.directory / "others"

    async def opened(self, max_octets: int = 10**9) -> DiskSpool:
        """Return a spool on it."""
        spool = DiskSpool(reactor, str(self.directory / "spool.db"), max_octets, 3600)
        await spool.open(["a"])
        self.addCleanup(spool.close)
        return spool

    async def test_full_by_others(self) -> None:
        """On a full disk nothing is taken and nothing lost; with room again, it goes on."""
        spool = await self.opened()
        [kept] = await put(spool, "http://c", Taken("c1"), some_points(), NOW)
        fill(self.directory)
        with self.assertRaises(NotStoredError) as raised:
            await put(spool, "http://c", Taken("c2"), some_points(), NOW)
        said = f"the disk is full: less than 4.1 MiB are free in {self.directory}"
        self.assertEqual(str(raised.exception), said)
        self.assertEqual(spool.trouble, said)
        self.assertEqual(spool.taken("http://c"), Taken("c1"))
        self.assertEqual(await spool.read(kept), some_points())
        await spool.acknowledge("a", [kept])  # remembered, if it cannot be noted
        self.others.unlink()
        [new] = await put(spool, "http://c", Taken("c2"), some_points(), NOW)
        self.assertIsNone(spool.trouble)
        await spool.acknowledge("a", [new])
        await spool.close()
        again = await self.opened()
        self.assertEqual(len(again.chunks), 0)
        self.assertEqual(again.taken("http://c"), Taken("c2"))

    async def test_full_by_itself(self) -> None:
        """It stops before the last megabytes, can still acknowledge there, and gives room back."""
        spool = await self.opened()
        number = 0
        with self.assertRaises(NotStoredError):
            while True:
                points = some_points(20, filler=os.urandom(8000).hex())
                await put(spool, "http://c", Taken(str(number)), points, NOW)
                number += 1
        self.assertGreater(number, 10)
        self.assertEqual(spool.taken("http://c"), Taken(str(number - 1)))
        for chunk in list(spool.chunks.values()):
            self.assertIsNotNone(await spool.read(chunk))
            await spool.acknowledge("a", [chunk])
        self.assertEqual(spool._unnoted, [])
        await put(spool, "http://c", Taken("more"), some_points(), NOW)
        self.assertIsNone(spool.trouble)

    async def test_full_in_both_ways(self) -> None:
        """On a full disk nothing is dropped to make room for what cannot be kept."""
        spool = await self.opened(max_octets=3000)
        for n in range(4):
            await put(spool, "http://c", Taken(str(n)), some_points(), NOW)
        held = list(spool.chunks.values())
        fill(self.directory)
        with self.assertRaises(NotStoredError):
            await put(spool, "http://c", Taken("c2"), some_points(), NOW)
        self.assertEqual(list(spool.chunks.values()), held)
        self.assertEqual([await spool.read(chunk) for chunk in held], [some_points()] * len(held))

    async def test_full_at_the_start(self) -> None:
        """A full disk at the start is waited out."""
        fill(self.directory)
        spool = DiskSpool(reactor, str(self.directory / "spool.db"), 10**9, 3600)
        opening = spool.open(["a"])
        await deferLater(reactor, 0.3)
        self.assertFalse(opening.called)
        self.others.unlink()
        spool._pause.cancel()
        await opening
        self.addCleanup(spool.close)
        await put(spool, "http://c", Taken("c1"), some_points(), NOW)
