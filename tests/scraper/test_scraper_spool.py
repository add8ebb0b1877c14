"""The spool: what it keeps, and what it lets go of."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any

from spool_case import NOW, DiskCase, SpoolCase, failing, put, some_points
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from llama.scraper import buffer, spool_file
from llama.scraper.buffer import MemorySpool, Taken


class Contract(SpoolCase):
    """What every spool does."""

    async def test_kept_until_all_have_it(self) -> None:
        """A chunk stays until the last of its writers has acknowledged it."""
        spool = await self.opened()
        [chunk] = await put(spool, "http://c", Taken("c1", 5), some_points(), NOW)
        self.assertEqual(await spool.read(chunk), some_points())
        await spool.acknowledge("a", [chunk])
        self.assertEqual(list(spool.chunks.values()), [chunk])
        self.assertEqual(chunk.waiting, {"b"})
        await spool.acknowledge("b", [chunk])
        self.assertEqual((len(spool.chunks), spool.octets), (0, 0))
        self.assertIsNone(await spool.read(chunk))
        self.assertEqual(self.dropped, [])

    async def test_cursor(self) -> None:
        """The cursor moves with the points, also when there were none."""
        spool = await self.opened()
        self.assertEqual(spool.taken("http://c"), Taken())
        await put(spool, "http://c", Taken("c1", 5), some_points(), NOW)
        await put(spool, "http://c", Taken("c2", 5), [], NOW)
        self.assertEqual(spool.taken("http://c"), Taken("c2", 5))
        self.assertEqual(spool.taken("http://d"), Taken())
        self.assertEqual(len(spool.chunks), 1)

    async def test_large_answers_are_cut(self) -> None:
        """A large answer becomes chunks that a writer can be given."""
        spool = await self.opened()
        points = some_points(2 * buffer.CHUNK_POINTS + 1)
        chunks = await put(spool, "http://c", Taken("c1"), points, NOW)
        self.assertEqual([chunk.points for chunk in chunks], [2500, 2500, 1])
        self.assertEqual([p for c in chunks for p in await spool.read(c)], points)

    async def test_size(self) -> None:
        """Over its size it drops the oldest, and says which."""
        spool = await self.opened(max_octets=3 * (buffer.CHUNK_OVERHEAD + 200))
        chunks = []
        for n in range(10):
            chunks += await put(spool, "http://c", Taken(str(n)), some_points(), NOW + n)
            self.assertLessEqual(spool.octets, 3 * (buffer.CHUNK_OVERHEAD + 200))
        kept = list(spool.chunks.values())
        self.assertEqual(kept, chunks[-len(kept) :])
        self.assertEqual(self.dropped, [("full", chunk) for chunk in chunks[: -len(kept)]])
        self.assertIsNone(await spool.read(chunks[0]))

    async def test_one_that_says_too_much(self) -> None:
        """Who has more than half of the room gives up its own oldest before anything of the others."""
        spool = await self.opened(max_octets=5 * (buffer.CHUNK_OVERHEAD + 200))
        [others] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
        chunks = []
        for n in range(20):
            chunks += await put(spool, "http://d", Taken(str(n)), some_points(), NOW + n)
        kept = list(spool.chunks.values())
        self.assertEqual(kept[0], others)
        self.assertEqual(kept[1:], chunks[1 - len(kept) :])
        self.assertEqual(self.dropped, [("full", chunk) for chunk in chunks[: 1 - len(kept)]])

    async def test_one_that_says_much_at_once(self) -> None:
        """What it is about to say counts, too: in large pieces it gets no more than half either."""
        [batch] = buffer.pack_all(some_points(), ready=False)
        unit = len(batch.payload) + buffer.CHUNK_OVERHEAD
        spool = await self.opened(max_octets=10 * unit)
        others = []
        for n in range(5):
            others += await spool.put(f"http://c{n}", Taken("1"), [batch], NOW)
        for n in range(5):
            await spool.put("http://d", Taken(str(n)), [batch] * 4, NOW + 1)
            self.assertLessEqual(spool.octets, 10 * unit)
        self.assertEqual(list(spool.chunks.values())[:5], others)
        self.assertEqual({chunk.collector for _, chunk in self.dropped}, {"http://d"})

    async def test_more_than_there_is_room_for(self) -> None:
        """An answer larger than the spool is refused, and nobody's points are dropped for it."""
        [batch] = buffer.pack_all(some_points(), ready=False)
        unit = len(batch.payload) + buffer.CHUNK_OVERHEAD
        spool = await self.opened(max_octets=4 * unit)
        [kept] = await spool.put("http://c", Taken("1"), [batch], NOW)
        with self.assertRaises(buffer.LargerThanSpoolError):
            await spool.put("http://d", Taken("1"), [batch] * 5, NOW)
        self.assertEqual((list(spool.chunks.values()), self.dropped), ([kept], []))
        self.assertEqual(spool.taken("http://d"), Taken())
        await spool.put("http://d", Taken("1"), [batch] * 4, NOW)
        self.assertEqual(spool.octets, 4 * unit)

    async def test_age(self) -> None:
        """What has waited too long is dropped."""
        spool = await self.opened(max_age_s=60)
        self.assertEqual(spool.age_s, 0)
        [old] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
        self.passed_s += 30
        [new] = await put(spool, "http://c", Taken("2"), some_points(), NOW + 30)
        self.passed_s += 30
        await spool.expire()
        self.assertEqual(self.dropped, [])
        self.assertEqual(spool.age_s, 60)
        self.passed_s += 1
        await spool.expire()
        self.assertEqual(self.dropped, [("too_old", old)])
        self.assertEqual(spool.age_s, 31)
        self.assertEqual(list(spool.chunks.values()), [new])

    async def test_wall_clock_is_wrong(self) -> None:
        """What waits is as old as it is, whatever the wall clock says when it is taken."""
        spool = await self.opened(max_age_s=60)
        [first] = await put(spool, "http://c", Taken("1"), some_points(), 0.0)
        [second] = await put(spool, "http://c", Taken("2"), some_points(), NOW + 10**9)
        self.passed_s += 60
        await spool.expire()
        self.assertEqual(self.dropped, [])
        self.passed_s += 1
        await spool.expire()
        self.assertEqual(self.dropped, [("too_old", first), ("too_old", second)])

    async def test_late_acknowledgement(self) -> None:
        """Acknowledging what was dropped meanwhile changes nothing."""
        spool = await self.opened(max_age_s=60)
        [old] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
        self.passed_s += 61
        await spool.expire()
        [new] = await put(spool, "http://c", Taken("2"), some_points(), NOW + 61)
        await spool.acknowledge("a", [old])
        await spool.acknowledge("b", [old])
        self.assertEqual(list(spool.chunks.values()), [new])

    async def test_a_writer_less(self) -> None:
        """Chunks that only a removed writer lacked are dropped, the others stay."""
        spool = await self.opened()
        [theirs] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
        [both] = await put(spool, "http://c", Taken("2"), some_points(), NOW)
        await spool.acknowledge("a", [theirs])
        await spool.set_writers(["a"])
        self.assertEqual(self.dropped, [("writer_removed", theirs)])
        self.assertEqual(both.waiting, {"a"})
        await spool.acknowledge("a", [both])
        self.assertEqual(len(spool.chunks), 0)


class MemorySpoolTests(Contract, TestCase):
    """The contract, in memory."""

    def spool(self, max_octets: int = 10**7, max_age_s: float = 3600) -> MemorySpool:
        """Make one."""
        return MemorySpool(max_octets, max_age_s, lambda: self.passed_s)


class DiskSpoolTests(Contract, DiskCase):
    """The contract on disk, and what a disk brings with it."""

    async def test_left_for_long(self) -> None:
        """What an earlier run left has an hour more, however old it is or seems to be."""
        for off_s in (8 * 86400, 10**9, -(10**9)):
            spool = await self.opened(max_age_s=7 * 86400)
            await put(spool, "http://c", Taken("1"), some_points(), self.now_s)
            await spool.close()
            self.now_s += off_s
            spool = await self.opened(max_age_s=7 * 86400)
            self.passed_s += 3600
            await spool.expire()
            self.assertEqual(self.dropped, [])
            self.passed_s += 7 * 86400
            await spool.expire()
            [(reason, _)] = self.dropped
            self.assertEqual(reason, "too_old")
            await spool.close()

    async def test_age_over_a_restart(self) -> None:
        """What waited before a restart counts."""
        spool = await self.opened(max_age_s=7 * 86400)
        await put(spool, "http://c", Taken("1"), some_points(), self.now_s)
        await spool.close()
        self.now_s += 5 * 86400
        spool = await self.opened(max_age_s=7 * 86400)
        self.passed_s += 2 * 86400
        await spool.expire()
        self.assertEqual((self.dropped, spool.age_s), ([], 7 * 86400))
        self.passed_s += 1
        await spool.expire()
        self.assertEqual(len(self.dropped), 1)

    async def test_taken_while_the_clock_was_ahead(self) -> None:
        """What was taken before others has waited for as long, whatever the clock said then."""
        spool = await self.opened(max_age_s=7 * 86400)
        for ahead_s in (10 * 86400, 0):
            await put(spool, "http://c", Taken("1"), some_points(), self.now_s + ahead_s)
        await spool.close()
        self.now_s += 5 * 86400
        spool = await self.opened(max_age_s=7 * 86400)
        self.assertEqual(spool.age_s, 5 * 86400)
        self.passed_s += 2 * 86400 + 1
        await spool.expire()
        self.assertEqual(len(self.dropped), 2)

    async def test_a_writer_less_amid_puts(self) -> None:
        """Chunks that are being put wait for no removed writer either, in memory nor on disk."""
        spool = await self.opened("old", "kept")
        batches = await spool.pack(some_points())
        before, changed, after = (
            spool.put("http://c", Taken("1"), batches, NOW),
            spool.set_writers(["kept"]),
            spool.put("http://d", Taken("2"), batches, NOW),
        )
        chunks = [*await before, *await after]
        await changed
        self.assertEqual([chunk.waiting for chunk in chunks], [{"kept"}] * 2)
        self.assertEqual(self.dropped, [])
        await spool.acknowledge("kept", chunks[:1])
        self.assertEqual(list(spool.chunks.values()), chunks[1:])
        await spool.close()
        self.assertEqual(self.on_disk(), ([chunks[1].number], [(chunks[1].number, "kept")]))

    async def test_another_writer_amid_puts(self) -> None:
        """Of chunks that are being put, what only a removed writer was to have is dropped."""
        spool = await self.opened("old")
        batches = await spool.pack(some_points())
        before, changed, after = (
            spool.put("http://c", Taken("1"), batches, NOW),
            spool.set_writers(["new"]),
            spool.put("http://c", Taken("2"), batches, NOW),
        )
        [old], [new] = await before, await after
        await changed
        self.assertEqual(self.dropped, [("writer_removed", old)])
        self.assertEqual(list(spool.chunks.values()), [new])
        self.assertEqual(new.waiting, {"new"})
        await spool.close()
        self.assertEqual(self.on_disk(), ([new.number], [(new.number, "new")]))

    async def test_size_amid_puts(self) -> None:
        """However many put at once, together they stay below its size."""
        most = 3 * (buffer.CHUNK_OVERHEAD + 200)
        spool = await self.opened(max_octets=most)
        batches = await spool.pack(some_points())
        await gatherResults([spool.put(f"http://{n}", Taken("1"), batches, NOW) for n in range(9)])
        self.assertLessEqual(spool.octets, most)
        self.assertEqual(len(self.dropped) + len(spool.chunks), 9)

    async def test_removed_writer_noted_later(self) -> None:
        """Where the disk refuses to note that a writer was removed, it is noted when it can be."""
        spool = await self.opened("old", "kept")
        chunks = [*await put(spool, "http://c", Taken("1"), some_points(), NOW)]
        with failing(spool_file, "keep_writers", sqlite3.OperationalError("disk I/O error")):
            await spool.set_writers(["kept"])
        await spool.acknowledge("kept", chunks)
        await spool.close()
        self.assertEqual(self.on_disk(), ([], []))

    async def test_noting_given_up(self) -> None:
        """An acknowledgement that nobody waits for any more is noted, at the latest when closing."""
        spool = await self.opened("a")
        [chunk] = await put(spool, "http://c", Taken("1"), some_points(), NOW)
        with failing(spool_file, "acknowledge", sqlite3.OperationalError("disk I/O error")):
            noting = spool.acknowledge("a", [chunk])
            noting.cancel()
            await self.assertFailure(noting, CancelledError)
            await spool.pack([])  # which the thread does after it
        await spool.close()
        self.assertEqual(self.on_disk(), ([], []))

    async def test_close_beside_a_slow_disk(self) -> None:
        """Closing waits for what the disk is still at, and holds up nothing else."""
        spool = await self.opened("a")
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        insert = spool_file.insert

        def slow(*args: Any) -> None:
            go_on.wait(20)
            insert(*args)

        self.patch(spool_file, "insert", slow)
        batches = await spool.pack(some_points())
        putting = spool.put("http://c", Taken("c1"), batches, NOW)
        closing = spool.close()
        await deferLater(reactor, 0.1)  # or the thread holds all of this up
        self.assertFalse(closing.called)
        go_on.set()
        [chunk] = await putting
        await closing
        self.assertEqual(self.on_disk(), ([chunk.number], [(chunk.number, "a")]))

    async def test_survives(self) -> None:
        """After closing and opening it holds chunks, cursors and who has what."""
        spool = await self.opened()
        [one] = await put(spool, "http://c", Taken("c1", 7), some_points(), NOW)
        [two] = await put(spool, "http://d", Taken(None, 8), some_points(2), NOW)
        await spool.acknowledge("a", [one])
        await spool.close()
        again = await self.opened()
        self.assertEqual([c.waiting for c in again.chunks.values()], [{"b"}, {"a", "b"}])
        self.assertEqual(again.taken("http://c"), Taken("c1", 7))
        self.assertEqual(again.taken("http://d"), Taken(None, 8))
        self.assertEqual(await again.read(again.chunks[two.number]), some_points(2))
        self.assertEqual(again.octets, spool.octets)
        await again.acknowledge("b", [again.chunks[one.number]])
        await again.close()
        last = await self.opened()
        self.assertEqual(list(last.chunks), [two.number])

    async def test_writers_change_while_away(self) -> None:
        """A writer that is gone at the next start is waited for no more; a new one gets what is new."""
        spool = await self.opened("a", "gone")
        await put(spool, "http://c", Taken("c1"), some_points(), NOW)
        [orphan] = await put(spool, "http://c", Taken("c2"), some_points(), NOW)
        await spool.acknowledge("a", [orphan])
        await spool.close()
        again = await self.opened("a", "new")
        self.assertEqual([r for r, _ in self.dropped], ["writer_removed"])
        self.assertEqual([c.waiting for c in again.chunks.values()], [{"a"}])
        await again.close()
        back = await self.opened("a", "gone")
        self.assertEqual([c.waiting for c in back.chunks.values()], [{"a"}])
