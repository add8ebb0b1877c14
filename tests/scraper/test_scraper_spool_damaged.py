"""The spool whose file is damaged, foreign, forbidden, locked, removed or replaced."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scraper_case import left_by_kills, until
from spool_case import NOW, DiskCase, damage, failing, put, some_points
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llama.scraper import spool_file
from llama.scraper.buffer import Chunk, NotStoredError, Taken
from llama.scraper.spool import DiskSpool
from llama.scraper.spool_file import ForeignFileError, see_whose
from llama.scraper.whereabouts import forbidden
from llama.scraper.writers import sqlite as store


class DamagedTests(DiskCase):
    """Files that are not, or no longer, what they were."""

    async def test_no_database(self) -> None:
        """A file that is no database is set aside, whole, and a new one begun."""
        self.path.write_bytes(b"not a database " * 1000)
        spool = await self.opened()
        await put(spool, "http://c", Taken("c1"), some_points(), NOW)
        [aside] = self.directory.glob("spool.db.corrupt-*")
        self.assertEqual(aside.read_bytes(), b"not a database " * 1000)
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    async def left_alone(self, message: str) -> None:
        """See a file refused at once, and waited for when it turns up later, but never touched."""
        before = self.path.read_bytes()
        with self.assertRaises(ForeignFileError) as raised:
            see_whose(self.path)
        self.assertEqual(str(raised.exception), f"{self.path} {message}")
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        spool = self.spool()
        opening = spool.open(["a"])
        await until(lambda: any(message in formatEvent(event) for event in events), "the log")
        self.assertFalse(opening.called)
        await spool.close()
        await opening
        self.assertEqual(os.listdir(self.directory), [self.path.name])
        self.assertEqual(self.path.read_bytes(), before)

    async def test_another_programs_database(self) -> None:
        """Another program's database is neither used nor renamed."""
        with sqlite3.connect(self.path) as db:
            db.execute("CREATE TABLE precious (x)")
        db.close()
        await self.left_alone("is another program's database: give the spool a path of its own")

    async def test_embedded_store(self) -> None:
        """Nor is the embedded store, even while it is open and has told its file nothing yet."""
        db = sqlite3.connect(self.path)
        store.prepare(db)
        db.commit()
        spool = self.spool()
        opening = spool.open(["a"])
        await deferLater(reactor, 1.5)
        self.assertFalse(opening.called)
        await spool.close()
        await opening
        db.close()
        await self.left_alone("is the embedded store: give the spool a path of its own")

    async def test_killed_while_begun(self) -> None:
        """A process killed at any moment while it makes a spool leaves what the next one takes."""
        left = left_by_kills(self.path, lambda db: spool_file.load(db, self.path))
        self.assertGreater(len(left), 10)
        for self.path in left:
            spool = await self.opened()
            await put(spool, "http://c", Taken("c1"), some_points(), NOW)
            await spool.close()

    async def test_another_version(self) -> None:
        """Nor is a spool of another version, which has points in it."""
        spool = await self.opened()
        await put(spool, "http://c", Taken("c1"), some_points(), NOW)
        await spool.close()
        with sqlite3.connect(self.path) as db:
            db.execute("PRAGMA user_version=2")
        db.close()
        await self.left_alone(
            "is a spool of schema 2, expected 1: let the LLAMA that wrote it empty it, or move it"
            " away, which gives up what waits in it"
        )

    def test_may_be_ours(self) -> None:
        """What is not there, empty, ours or unreadable is no other program's."""
        see_whose(self.path)
        self.assertEqual(os.listdir(self.directory), [])
        self.path.touch()
        see_whose(self.path)
        self.path.write_bytes(b"not a database " * 1000)
        see_whose(self.path)
        self.assertEqual(os.listdir(self.directory), [self.path.name])

    async def test_damaged_at_start(self) -> None:
        """A spool with garbage in its middle is set aside at the start."""
        spool = await self.opened()
        for n in range(20):
            points = some_points(50, filler=os.urandom(2000).hex())
            await put(spool, "http://c", Taken(str(n)), points, NOW)
        await spool.close()
        with open(self.path, "r+b") as file:
            file.seek(4096)
            file.write(os.urandom(4096 * 8))
        again = await self.opened()
        self.assertEqual(len(again.chunks), 0)
        self.assertEqual(again.taken("http://c"), Taken())
        self.assertEqual(len(list(self.directory.glob("*.corrupt-*"))), 1)

    async def test_damaged_names(self) -> None:
        """Names that are no text any more keep nobody from what is sound."""
        spool = await self.opened()
        chunks = []
        for n in range(3):
            chunks += await put(spool, f"http://{n}", Taken(str(n)), some_points(), NOW)
        await spool.close()
        db = sqlite3.connect(self.path)
        db.execute(
            "UPDATE chunks SET collector = CAST(x'ff' AS TEXT), taken_s = 'x' WHERE number = 1"
        )
        db.execute("UPDATE waiting SET writer = CAST(x'ff' || writer AS TEXT) WHERE chunk = 2")
        db.execute("UPDATE cursors SET cursor = CAST(x'ff' AS TEXT) WHERE collector = 'http://0'")
        db.execute("UPDATE cursors SET newest_ns = x'ff' WHERE collector = 'http://1'")
        db.commit()
        db.close()
        see_whose(self.path)
        again = await self.opened()
        self.assertEqual([chunk.number for chunk in again.chunks.values()], [1, 3])
        self.assertEqual([(reason, chunk.number) for reason, chunk in self.dropped],
                         [("writer_removed", 2)])  # fmt: skip
        for chunk in again.chunks.values():
            self.assertEqual(await again.read(chunk), some_points())
        self.assertEqual(again.taken("http://2"), Taken("2"))
        self.assertNotEqual(again.taken("http://0").cursor, "0")

    async def test_damaged_schema(self) -> None:
        """One whose tables have names that are no text is damaged, and set aside."""
        spool = await self.opened()
        await put(spool, "http://c", Taken("1"), some_points(), NOW)
        await spool.close()
        octets = self.path.read_bytes()
        self.path.write_bytes(octets.replace(b"CREATE TABLE", b"CREATE \xf2ABLE"))
        see_whose(self.path)
        again = await self.opened()
        self.assertEqual(len(again.chunks), 0)
        self.assertEqual(len(list(self.directory.glob("*.corrupt-*"))), 1)

    async def test_damaged_while_running(self) -> None:
        """Damage that shows up later costs what was there, is counted, and nothing else."""
        spool = await self.opened()
        chunks = []
        for n in range(120):
            points = some_points(1, filler=os.urandom(30_000).hex())
            chunks += await put(spool, "http://c", Taken(str(n)), points, NOW)
        spool._held._ready.clear()
        spool._held._ready_points = 0
        size = self.path.stat().st_size
        with open(self.path, "r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        for chunk in chunks:
            await spool.read(chunk)
        self.assertEqual({r for r, _ in self.dropped}, {"damaged"})
        self.assertEqual(len(self.dropped) + len(spool.chunks), 120)
        [new] = await put(spool, "http://c", Taken("n"), some_points(), NOW)
        self.assertEqual(await spool.read(new), some_points())
        await spool.acknowledge("a", [new])
        await spool.acknowledge("b", [new])

    async def test_damage_amid_all(self) -> None:
        """What is under way when damage shows ends well, and what is held then is on disk."""
        spool = await self.opened()
        old = []
        for n in range(6):
            old += await put(spool, "http://c", Taken(str(n)), some_points(), NOW)
        spool._held._ready.clear()
        batches = await spool.pack(some_points())
        with failing(spool_file, "payload", damage()):
            under_way = [
                spool.acknowledge("a", old[:1]),
                spool.read(old[1]),
                spool.put("http://d", Taken("d1"), batches, NOW),
                spool.acknowledge("a", old[2:3]),
                spool.set_writers(["a", "b"]),
                spool.put("http://e", Taken("e1"), batches, NOW),
            ]
            for each in under_way:
                each.addErrback(lambda failure: failure.trap(NotStoredError))
            await gatherResults(under_way)
        self.assertEqual({reason for reason, _ in self.dropped}, {"damaged"})
        self.assertEqual(len(list(self.directory.glob("*.corrupt-*"))), 1)
        [new] = await put(spool, "http://c", Taken("n"), some_points(), NOW)
        self.assertGreater(new.number, max(chunk.number for chunk in old))
        held = list(spool.chunks)
        cursors = {name: spool.taken(f"http://{name}").cursor for name in "cde"}
        await spool.close()
        chunks, waiting = self.on_disk()
        self.assertEqual(chunks, held)
        self.assertEqual(waiting, [(n, writer) for n in held for writer in "ab"])
        self.assertEqual(cursors, {"c": "n", "d": None, "e": None})

    async def test_damage_found_by_putting(self) -> None:
        """Points that follow on what was lost are not kept: their collector is asked for all."""
        spool = await self.opened()
        await put(spool, "http://c", Taken("1"), some_points(), NOW)
        with failing(spool_file, "insert", damage()), self.assertRaises(NotStoredError) as raised:
            await put(spool, "http://c", Taken("2"), some_points(), NOW)
        self.assertEqual(str(raised.exception), "it was damaged, and a new one is begun")
        self.assertEqual(spool.taken("http://c"), Taken())
        self.assertIsNone(spool.trouble)
        [new] = await put(spool, "http://c", Taken("2"), some_points(), NOW)
        self.assertEqual(list(spool.chunks.values()), [new])

    async def test_renewal_survives_who_asked(self) -> None:
        """A new file is begun though the reader that found the damage was given up meanwhile."""
        spool = await self.opened()
        [chunk] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
        spool._held._ready.clear()
        with failing(spool_file, "payload", damage()):
            lock = None

            def locked(db: Any, path: Path, last: int = 0) -> Any:
                nonlocal lock
                lock = threading.Event()
                lock.wait(20)
                return load(db, path, last)

            load = spool_file.load
            self.patch(spool_file, "load", locked)
            reading = spool.read(chunk)
            await until(lambda: lock, "a new file being opened")
            reading.cancel()
            await self.assertFailure(reading, CancelledError)
            assert lock is not None
            lock.set()
        [new] = await put(spool, "http://c", Taken("2"), some_points(), NOW)
        self.assertEqual(list(spool.chunks.values()), [new])

    def in_the_way(self) -> Path:
        """Put something where a damaged file would be set aside."""
        there = self.directory / f"{self.path.name}.corrupt-20231114T221320Z"
        there.mkdir()
        return there

    async def test_not_set_aside_at_start(self) -> None:
        """A damaged file that cannot be set aside is said, and tried again until it can."""
        self.path.write_bytes(b"not a database " * 1000)
        there = self.in_the_way()
        spool = self.spool()
        opening = spool.open(["a"])
        await until(lambda: opening.called or spool.trouble, "trouble")
        self.assertFalse(opening.called)
        self.assertEqual(
            spool.trouble,
            "it cannot be opened: damaged (file is not a database), and it cannot be set aside:"
            " Is a directory",
        )
        there.rmdir()
        spool._pause.cancel()  # instead of waiting for the next attempt
        await opening
        self.addCleanup(spool.close)
        self.assertIsNone(spool.trouble)
        await put(spool, "http://c", Taken("c1"), some_points(), NOW)
        self.assertEqual(there.read_bytes(), b"not a database " * 1000)

    async def test_not_set_aside_while_running(self) -> None:
        """Meanwhile nothing is taken, nobody waits for it, and it can be closed; then it goes on."""
        spool = await self.opened()
        [lost] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
        spool._held._ready.clear()
        batches = await spool.pack(some_points())
        there = self.in_the_way()
        with failing(spool_file, "payload", damage()):
            reading = spool.read(lost)
            await until(lambda: spool.trouble, "trouble")
        said = (
            "it cannot be opened: damaged (database disk image is malformed), and it cannot be set"
            " aside: Is a directory"
        )
        self.assertEqual(spool.trouble, said)
        self.assertIsNone(await reading)
        for ask in (
            lambda: spool.pack([]),
            lambda: spool.put("http://c", Taken("2"), batches, NOW),
        ):
            with self.assertRaises(NotStoredError) as raised:
                await ask()
            self.assertEqual(str(raised.exception), said)
        await spool.acknowledge("a", [lost])
        await spool.set_writers(["a"])
        await spool.expire()
        self.assertEqual(self.dropped, [("damaged", lost)])
        there.rmdir()
        spool._pause.cancel()
        await until(lambda: spool.trouble is None, "no trouble")
        [new] = await put(spool, "http://c", Taken("4"), some_points(), NOW)
        await spool.close()
        self.assertEqual(self.on_disk(), ([new.number], [(new.number, "a")]))

    async def test_closed_while_not_open(self) -> None:
        """A spool that cannot be opened anew can be closed at any time."""
        spool = await self.opened()
        self.in_the_way()
        with failing(spool_file, "insert", damage()), self.assertRaises(NotStoredError):
            await put(spool, "http://c", Taken("1"), some_points(), NOW)
        await spool.close()
        with self.assertRaises(NotStoredError):
            await spool.pack([])

    async def test_closed_while_it_fails_to_open(self) -> None:
        """An attempt to open that fails once the spool is being closed is followed by no pause."""
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def full(*_: Any) -> None:
            go_on.wait(20)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(spool_file, "load", full)
        spool = self.spool()
        pause = spool._pause
        opening = spool.open(["a"])
        closing = spool.close()
        go_on.set()
        await gatherResults([opening, closing])
        self.assertIs(spool._pause, pause)

    async def lost(self, spool: DiskSpool, chunk: Chunk, reason: str) -> None:
        """See that a spool finds its file gone with the next points, and goes on in another."""
        with self.assertRaises(NotStoredError) as raised:
            await put(spool, "http://c", Taken("2"), some_points(), NOW)
        said = "its file was removed or replaced, and a new one is begun"
        self.assertEqual(str(raised.exception), said)
        self.assertEqual(self.dropped, [("damaged", chunk)])
        self.assertIn(f"{reason} while it was in use", self.said[0])
        self.assertIsNone(spool.trouble)

    async def test_removed_while_running(self) -> None:
        """What was in a removed file is counted; a new one is begun, its collectors asked for all."""
        self.path = self.directory / "below" / "spool.db"
        for remove in (
            lambda: [file.unlink() for file in self.path.parent.iterdir()],
            self.path.unlink,
            lambda: shutil.rmtree(self.path.parent),
        ):
            spool = await self.opened()
            self.said = self.log()
            [old] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
            remove()
            await self.lost(spool, old, f"{self.path} was removed")
            self.assertEqual(spool.taken("http://c"), Taken())
            [new] = await put(spool, "http://c", Taken("3"), some_points(), NOW)
            self.assertGreater(new.number, old.number)
            await spool.close()
            self.assertEqual(self.on_disk(), ([new.number], [(new.number, w) for w in "ab"]))
            self.assertEqual(os.listdir(self.path.parent), [self.path.name])
            self.path.unlink()

    def log(self) -> list[str]:
        """Return a list to which all that is logged from now on is added."""
        said: list[str] = []

        def add(event: Any) -> None:
            said.append(formatEvent(event))

        globalLogPublisher.addObserver(add)
        self.addCleanup(globalLogPublisher.removeObserver, add)
        return said

    async def another(self) -> tuple[Path, list[int]]:
        """Return the file of another spool, and the numbers of its chunks."""
        path, self.path = self.path, self.directory / "other.db"
        spool = await self.opened()
        chunks = [
            *await put(spool, "http://d", Taken("d1"), some_points(), NOW),
            *await put(spool, "http://d", Taken("d2"), some_points(2), NOW),
        ]
        await spool.close()
        other, self.path = self.path, path
        return other, [chunk.number for chunk in chunks]

    async def put_right(self, spool: Any, there: Path, other: Path) -> None:
        """Put another file where one is damaged that cannot be set aside; wait until it is in use."""
        found: list[Chunk] = []
        spool.found = found.extend
        self.assertIn("cannot be set aside", spool.trouble or "")
        os.replace(other, self.path)
        there.rmdir()
        spool._pause.cancel()
        await until(lambda: found, "what the other holds")

    async def test_replaced_while_running(self) -> None:
        """What is in a spool that takes the place of another is delivered; nothing of it is mixed up."""
        other, theirs = await self.another()
        spool = await self.opened()
        found: list[Chunk] = []
        spool.found = found.extend
        self.said = self.log()
        [old] = await put(spool, "http://c", Taken("1"), some_points(4), NOW)
        self.assertEqual(old.number, theirs[0])
        os.replace(other, self.path)
        batches = await spool.pack(some_points())
        putting = spool.put("http://c", Taken("2"), batches, NOW)
        with self.assertRaises(NotStoredError):
            await putting
        await spool.acknowledge("a", [old])
        self.assertIn(f"another file has taken the place of {self.path}", self.said[0])
        self.assertEqual(self.dropped, [("damaged", old)])
        self.assertEqual([chunk.number for chunk in found], theirs)
        self.assertEqual(found, list(spool.chunks.values()))
        self.assertEqual(
            [await spool.read(chunk) for chunk in found], [some_points(), some_points(2)]
        )
        self.assertEqual((spool.taken("http://c"), spool.taken("http://d")), (Taken(), Taken("d2")))
        await spool.close()
        self.assertEqual(self.on_disk(), (theirs, [(n, w) for n in theirs for w in "ab"]))

    async def test_replaced_by_one_for_others(self) -> None:
        """Of what is in a spool that takes the place of another, no removed writer is waited for."""
        other, theirs = await self.another()
        with sqlite3.connect(other) as db:
            db.execute("UPDATE waiting SET writer = 'gone' WHERE writer = 'b'")
            db.execute("DELETE FROM waiting WHERE writer = 'a' AND chunk = ?", theirs[:1])
        db.close()
        spool = await self.opened()
        found: list[Chunk] = []
        spool.found = found.extend
        os.replace(other, self.path)
        with self.assertRaises(NotStoredError):
            await put(spool, "http://c", Taken("1"), some_points(), NOW)
        self.assertEqual([(chunk.number, chunk.waiting) for chunk in found], [(theirs[1], {"a"})])
        self.assertEqual(found, list(spool.chunks.values()))
        [(reason, chunk)] = self.dropped
        self.assertEqual((reason, chunk.number), ("writer_removed", theirs[0]))
        await spool.close()
        self.assertEqual(self.on_disk(), (theirs[1:], [(theirs[1], "a")]))

    async def test_damaged_by_replacing(self) -> None:
        """Where a file seems damaged since another has taken its place, that one is not touched."""
        other, theirs = await self.another()
        spool = await self.opened()
        [old] = await put(spool, "http://c", Taken("1"), some_points(4), NOW)
        self.assertEqual(old.number, theirs[0])
        os.replace(other, self.path)
        with failing(spool_file, "acknowledge", damage()):
            await spool.acknowledge("a", [old])
        self.assertEqual([chunk.waiting for chunk in spool.chunks.values()], [{"a", "b"}] * 2)
        await spool.close()
        self.assertEqual(os.listdir(self.directory), [self.path.name])
        self.assertEqual(self.on_disk(), (theirs, [(n, w) for n in theirs for w in "ab"]))

    async def test_put_right_by_hand(self) -> None:
        """Whatever stands where a damaged file was that could not be set aside is no longer that file."""
        other, theirs = await self.another()
        spool = await self.opened()
        [old] = await put(spool, "http://c", Taken("1"), some_points(4), NOW)
        self.assertEqual(old.number, theirs[0])
        there = self.in_the_way()
        with failing(spool_file, "acknowledge", damage()):
            await spool.acknowledge("a", [old])
        await self.put_right(spool, there, other)
        await spool.acknowledge("b", [old])
        await spool.close()
        self.assertEqual(os.listdir(self.directory), [self.path.name])
        self.assertEqual(self.on_disk(), (theirs, [(n, w) for n in theirs for w in "ab"]))

    async def test_too_old_while_damaged(self) -> None:
        """What is dropped as too old from a damaged file is not dropped from the one in its place."""
        other, theirs = await self.another()
        spool = await self.opened()
        [old] = await put(spool, "http://c", Taken("1"), some_points(4), NOW)
        self.assertEqual(old.number, theirs[0])
        self.passed_s += 3601
        there = self.in_the_way()
        with failing(spool_file, "delete", damage()):
            await spool.expire()
        await self.put_right(spool, there, other)
        await spool.close()
        self.assertEqual(self.on_disk(), (theirs, [(n, w) for n in theirs for w in "ab"]))

    async def test_locked(self) -> None:
        """A file that another scraper has is waited for, not shared and not set aside."""
        first = await self.opened()
        await put(first, "http://c", Taken("c1"), some_points(), NOW)
        second = self.spool()
        opening = second.open(["a", "b"])
        await deferLater(reactor, 1.5)
        self.assertFalse(opening.called)
        await first.close()
        second._pause.cancel()  # instead of waiting for the next attempt
        await opening
        self.addCleanup(second.close)
        self.assertEqual(len(second.chunks), 1)

    async def test_cannot_open(self) -> None:
        """Where no file can be, it keeps trying, and can be closed meanwhile."""
        self.path.mkdir()
        spool = self.spool()
        opening = spool.open(["a"])
        await deferLater(reactor, 0.3)
        self.assertFalse(opening.called)
        self.assertIn("cannot be opened: unable to open database file", spool.trouble or "")
        with self.assertRaises(sqlite3.OperationalError) as caught:
            sqlite3.connect(self.path).execute("SELECT 1")
        self.assertIn("user able to write in it", spool_file.explain(caught.exception, self.path))
        await spool.close()
        await opening


class ForbiddenTests(SynchronousTestCase):
    """Files that another user has made."""

    def said_by_another(self, path: Path, open_it: Callable[[], object]) -> str:
        """Return what a process of another user, or one like it, is told that cannot write a file."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                open_it()
            except sqlite3.Error as error:
                os.write(writing, f"{error}: {spool_file.explain(error, path)}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return said

    def test_another_has_it(self) -> None:
        """A lock is told as what has it, not as SQLite does."""
        busy = sqlite3.OperationalError("database is locked")
        busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
        said = spool_file.explain(busy, Path("/none"))
        self.assertEqual(said, "another process has it, a second scraper perhaps")

    def test_said(self) -> None:
        """Both stores name the file and its owner; SQLite says something about the disk."""
        directory = Path(tempfile.mkdtemp(prefix="llama-spool-"))
        self.addCleanup(shutil.rmtree, directory)
        directory.chmod(0o777)
        for name, prepare in (
            ("spool.db", lambda path: spool_file.load(sqlite3.connect(path), path)),
            ("store.db", lambda path: store.prepare(sqlite3.connect(path))),
        ):
            path = directory / name
            prepare(path)
            gc.collect()  # its connection
            path.chmod(0o444)
            said = self.said_by_another(path, lambda do=prepare, path=path: do(path))
            self.assertRegex(said, f"{path} is .+'s, and may not be written by this user$")
        with self.assertRaises(sqlite3.OperationalError) as caught:
            sqlite3.connect(directory / "none" / "x").execute("SELECT 1")
        self.assertIsNone(forbidden(caught.exception, directory / "none" / "x"))
