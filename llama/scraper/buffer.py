"""Where points wait for the databases: what a spool is, and the one that keeps them in memory.

Points wait in *chunks*: what one collector answered, or a part of it when that was much. A chunk
is let go once every writer has acknowledged it. `llama.scraper.spool` keeps chunks on disk; here
they stay in memory, compressed, and are lost with the process.

How long a chunk has waited is counted by a clock that nobody sets, `time.monotonic` for one: the wall
clock may be wrong by years for a while, and what waits for a database would be gone for it.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed

from llama.interfaces import Point
from llama.scraper.points import pack, unpack

#: Points in a chunk, at most.
CHUNK_POINTS = 2500
#: Octets counted for a chunk beside its payload: names, indices, free space in pages.
CHUNK_OVERHEAD = 512
#: Points that stand ready for writing without being unpacked again.
READY_POINTS = 50_000
#: Seconds that chunks of an earlier run are kept at least, however old they seem to be: the clock may
#: be wrong, and a database that was away for as long as they waited may be back.
GRACE_S = 3600.0

#: Called with the reason and the chunk whenever one is let go before all writers had it.
Dropped = Callable[[str, "Chunk"], None]


@define(eq=False)
class Chunk:
    """One chunk as it is known in memory; its points are wherever the spool keeps them."""

    number: int  # in the order of taking
    collector: str
    taken_s: float  # Unix time
    points: int
    octets: int  # of payload
    newest_ns: int  # Unix time of its newest point
    waiting: set[str]  # names of the writers that have not acknowledged it
    since_s: float = 0.0  # it waits since then, by the spool's own clock


@frozen
class Batch:
    """Points that are ready to be put into a spool, as one chunk."""

    count: int
    newest_ns: int  # Unix time of the newest of them
    payload: bytes = field(repr=False)
    points: Sequence[Point] = field(default=(), repr=False)  # for writing without unpacking


@frozen
class Taken:
    """How far one collector has been read: what the next question to it says."""

    cursor: str | None = None  # as its ``Llama-Cursor`` header gave it
    newest_ns: int | None = None  # Unix time of the newest point ever taken from it


class NotStoredError(Exception):
    """Points could not be kept: the disk is full, or refuses. The text says which.

    Nothing of them was kept and the collector's cursor stands where it stood.
    """


class LargerThanSpoolError(Exception):
    """One answer takes more than a spool may hold. Nothing of it was kept, nothing else was dropped."""


class Spool(Protocol):
    """What poller, delivery and API know of a spool.

    Bounded: a chunk too many or too old makes the oldest go, each with a call of ``dropped``.
    """

    #: Set before `open`.
    dropped: Dropped
    #: Set before `open`; called with chunks that were in a file which took the place of another.
    found: Callable[[Sequence[Chunk]], None]
    #: Why points cannot be kept at present, or None.
    trouble: str | None

    @property
    def max_octets(self) -> int:
        """What `octets` never exceeds."""

    @property
    def max_age_s(self) -> float:
        """For how many seconds a chunk may wait."""

    @property
    def chunks(self) -> Mapping[int, Chunk]:
        """All chunks held by their numbers, oldest first."""

    @property
    def octets(self) -> int:
        """Sum of payload and overhead of all chunks held."""

    @property
    def age_s(self) -> float:
        """How long the oldest chunk has waited, in seconds; 0 when there is none."""

    def open(self, writers: Collection[str]) -> Deferred[None]:
        """Open; chunks left from an earlier run wait for those of ``writers`` that lack them."""

    def taken(self, collector: str) -> Taken:
        """Say how far a collector has been read, which survives with the points themselves."""

    def pack(self, points: Sequence[Point], ready: bool = True) -> Deferred[Sequence[Batch]]:
        """Make batches of points, of a fair size. With ``ready`` the points stay at hand, too.

        Fails with `NotStoredError` when they could not be kept.
        """

    def put(
        self, collector: str, taken: Taken, batches: Sequence[Batch], now_s: float
    ) -> Deferred[Sequence[Chunk]]:
        """Keep points and the new state of their collector, both or neither, then fire.

        Fails with `NotStoredError` when it cannot, and with `LargerThanSpoolError` when it never could.
        """

    def read(self, chunk: Chunk) -> Deferred[Sequence[Point] | None]:
        """Fire with a chunk's points, or None if it has been let go meanwhile."""

    def acknowledge(self, writer: str, chunks: Sequence[Chunk]) -> Deferred[None]:
        """Note that a writer has these chunks; those that every writer has are let go."""

    def set_writers(self, writers: Collection[str]) -> Deferred[None]:
        """Change the writers that new chunks wait for; what only others lacked is dropped."""

    def expire(self) -> Deferred[None]:
        """Drop the chunks that have waited for too long."""

    def close(self) -> Deferred[None]:
        """Close. Chunks on disk stay."""


def new_chunk(collector: str, batch: Batch, now_s: float, writers: Iterable[str]) -> Chunk:
    """Return the chunk that a batch becomes; it has no number yet."""
    return Chunk(
        number=0,
        collector=collector,
        taken_s=now_s,
        points=batch.count,
        octets=len(batch.payload),
        newest_ns=batch.newest_ns,
        waiting=set(writers),
    )


def pack_all(points: Sequence[Point], ready: bool) -> list[Batch]:
    """Return points as batches: JSON, about a tenth of its size by the fastest deflate."""
    batches = []
    for first in range(0, len(points), CHUNK_POINTS):
        part = points[first : first + CHUNK_POINTS]
        newest_ns = max(point.time_ns for point in part)
        payload = zlib.compress(pack(part), 1)
        batches.append(Batch(len(part), newest_ns, payload, part if ready else ()))
    return batches


def expand(payload: bytes) -> list[Point]:
    """Return the points of a payload. Raises `zlib.error` or `ValueError` if it is damaged."""
    return unpack(zlib.decompress(payload))


@define(eq=False)
class Held:
    """The chunks held, in memory: their order, their sum and which must go to keep the bounds."""

    max_octets: int
    max_age_s: float
    seconds: Callable[[], float]  # a clock that nobody sets
    chunks: OrderedDict[int, Chunk] = field(factory=OrderedDict)
    octets: int = 0
    _octets_of: Counter[str] = field(factory=Counter)  # those of each collector
    _ready: OrderedDict[int, Sequence[Point]] = field(factory=OrderedDict)
    _ready_points: int = 0

    def add(self, chunk: Chunk, points: Sequence[Point] = (), age_s: float = 0.0) -> None:
        """Hold a chunk, newest; its points stand ready for a while.

        ``age_s`` is how long it has waited already. It is kept for `GRACE_S` all the same.
        """
        most_s = max(0.0, self.max_age_s - GRACE_S)
        chunk.since_s = self.seconds() - min(max(0.0, age_s), most_s)
        # Those that were taken before, by a clock that was ahead perhaps, have waited for longer.
        for before in reversed(self.chunks.values()):
            if before.since_s <= chunk.since_s:
                break
            before.since_s = chunk.since_s
        self.chunks[chunk.number] = chunk
        self._count(chunk, chunk.octets + CHUNK_OVERHEAD)
        if points:
            self._ready[chunk.number] = points
            self._ready_points += len(points)
        while self._ready_points > READY_POINTS:
            _, old = self._ready.popitem(last=False)
            self._ready_points -= len(old)

    def remove(self, chunk: Chunk) -> bool:
        """Let a chunk go; says whether it was held."""
        self._ready_points -= len(self._ready.pop(chunk.number, ()))
        if self.chunks.pop(chunk.number, None) is None:
            return False
        self._count(chunk, -chunk.octets - CHUNK_OVERHEAD)
        return True

    def _count(self, chunk: Chunk, octets: int) -> None:
        self.octets += octets
        self._octets_of[chunk.collector] += octets
        if not self._octets_of[chunk.collector]:
            del self._octets_of[chunk.collector]

    def ready(self, chunk: Chunk) -> Sequence[Point] | None:
        """Return the points of a chunk if they stand ready."""
        return self._ready.get(chunk.number)

    def excess(self, collector: str, octets: int) -> list[Chunk]:
        """Return the oldest chunks that must go before ``octets`` more of a collector's fit in.

        Whoever has more than half of the room, counting these, makes room first, down to that half:
        the other half is left to the others, however much and in however large pieces it speaks, as
        long as none of them is itself more than half. Two that fill half of the room each are not
        held back: between them the oldest go, whosever they are.
        """
        leave: dict[int, Chunk] = {}
        room = self.max_octets - self.octets - octets
        if room >= 0:
            return []
        octets_of = self._octets_of.copy()
        octets_of[collector] += octets
        whose = max(octets_of, key=octets_of.__getitem__)
        over_half = octets_of[whose] - self.max_octets // 2
        for chunk in self.chunks.values():
            if room >= 0 or over_half <= 0:
                break
            if chunk.collector == whose:
                leave[chunk.number] = chunk
                room += chunk.octets + CHUNK_OVERHEAD
                over_half -= chunk.octets + CHUNK_OVERHEAD
        for chunk in self.chunks.values():
            if room >= 0:
                break
            if chunk.number not in leave:
                leave[chunk.number] = chunk
                room += chunk.octets + CHUNK_OVERHEAD
        return list(leave.values())

    def age_s(self) -> float:
        """Return how long the oldest has waited, in seconds; 0 when there is none."""
        oldest = next(iter(self.chunks.values()), None)
        return 0.0 if oldest is None else self.seconds() - oldest.since_s

    def old(self) -> list[Chunk]:
        """Return the chunks that have waited for longer than they may."""
        leave = []
        for chunk in self.chunks.values():
            if self.seconds() - chunk.since_s <= self.max_age_s:
                break
            leave.append(chunk)
        return leave


class Holder:
    """What every `Spool` knows in memory: what it holds, for whom, and how far all was read."""

    def __init__(self, held: Held) -> None:
        self.dropped: Dropped = lambda reason, chunk: None
        self.found: Callable[[Sequence[Chunk]], None] = lambda chunks: None
        self.trouble: str | None = None
        self._held = held
        self._taken: dict[str, Taken] = {}
        self._writers: set[str] = set()
        self._last = 0  # the highest number of a chunk; those of another file go on from there

    @property
    def max_octets(self) -> int:
        """The most that it holds."""
        return self._held.max_octets

    @property
    def max_age_s(self) -> float:
        """For how long at most."""
        return self._held.max_age_s

    @property
    def chunks(self) -> OrderedDict[int, Chunk]:
        """All chunks held."""
        return self._held.chunks

    @property
    def octets(self) -> int:
        """What they take."""
        return self._held.octets

    @property
    def age_s(self) -> float:
        """How long the oldest has waited."""
        return self._held.age_s()

    def taken(self, collector: str) -> Taken:
        """Say how far a collector has been read."""
        return self._taken.get(collector, Taken())

    def _require_room(self, batches: Sequence[Batch]) -> int:
        """Return what batches of one answer take; raises `LargerThanSpoolError` if that is too much."""
        octets = sum(len(batch.payload) + CHUNK_OVERHEAD for batch in batches)
        if octets > self.max_octets:
            raise LargerThanSpoolError(
                f"its points take {octets} octets, and the spool may have {self.max_octets} (max_bytes)"
            )
        return octets


class MemorySpool(Holder):
    """A spool without a disk, for a scraper whose configuration names none."""

    def __init__(
        self,
        max_octets: int = 64 * 1024 * 1024,
        max_age_s: float = 3600.0,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(Held(max_octets, max_age_s, seconds))
        self._payloads: dict[int, bytes] = {}

    def open(self, writers: Collection[str]) -> Deferred[None]:
        """Remember the writers."""
        self._writers = set(writers)
        return succeed(None)

    def pack(self, points: Sequence[Point], ready: bool = True) -> Deferred[Sequence[Batch]]:
        """Make batches of points."""
        return succeed(pack_all(points, ready))

    def put(
        self, collector: str, taken: Taken, batches: Sequence[Batch], now_s: float
    ) -> Deferred[Sequence[Chunk]]:
        """Keep points; succeeds at the cost of the oldest."""
        new = []
        self._require_room(batches)
        for batch in batches:
            octets = len(batch.payload) + CHUNK_OVERHEAD
            self._drop("full", self._held.excess(collector, octets))
            self._last += 1
            chunk = new_chunk(collector, batch, now_s, self._writers)
            chunk.number = self._last
            self._payloads[chunk.number] = batch.payload
            self._held.add(chunk, batch.points)
            new.append(chunk)
        self._taken[collector] = taken
        return succeed(new)

    def read(self, chunk: Chunk) -> Deferred[Sequence[Point] | None]:
        """Fire with a chunk's points."""
        points = self._held.ready(chunk)
        if points is None and (payload := self._payloads.get(chunk.number)) is not None:
            points = expand(payload)
        return succeed(points)

    def acknowledge(self, writer: str, chunks: Sequence[Chunk]) -> Deferred[None]:
        """Note that a writer has these chunks."""
        for chunk in chunks:
            chunk.waiting.discard(writer)
            if not chunk.waiting:
                self._remove(chunk)
        return succeed(None)

    def set_writers(self, writers: Collection[str]) -> Deferred[None]:
        """Change the writers that chunks wait for."""
        self._writers = set(writers)
        for chunk in list(self.chunks.values()):
            if not chunk.waiting & self._writers:
                self._drop("writer_removed", [chunk])
            chunk.waiting &= self._writers
        return succeed(None)

    def expire(self) -> Deferred[None]:
        """Drop what has waited for too long."""
        self._drop("too_old", self._held.old())
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Forget everything."""
        return succeed(None)

    def _drop(self, reason: str, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            if self._remove(chunk):
                self.dropped(reason, chunk)

    def _remove(self, chunk: Chunk) -> bool:
        self._payloads.pop(chunk.number, None)
        return self._held.remove(chunk)
