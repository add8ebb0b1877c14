"""A file of JSON lines (one point a line) or of line protocol, for whatever reads such files.

The file is opened for every write, so it can be rotated by renaming it at any time. A line that a
killed process left unfinished is cut off before the next is written. One write at a time does so:
there is a turn for those of one writer, and a lock (``flock``) on the file against other writers and
processes. A file cannot overwrite: points that were written and not noted as such, because the
process was killed in between or the write took too long, are written again. Nothing else happens to
points that were acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

from llama.interfaces import ITimeSeriesWriter, NotWrittenError, Point, Refusal
from llama.scraper.writers.line_protocol import lines
from llama.scraper.writers.options import Options
from llama.threads import outlasting

#: Octets of an unfinished line, at most; what is longer was not written here.
LONGEST_LINE = 64 * 1024 * 1024
#: Seconds to wait for the lock of another writer, and between two looks at it.
LOCK_WAIT_S, LOCK_LOOK_S = 5.0, 0.02
_BLOCK = 1024 * 1024
#: How our lines begin, of either format, behind blank lines and comments, which may be somebody's own.
_OURS = re.compile(
    rb"(?:[ \t\r]*(?:#[^\n]*)?\n)*"
    rb'(?:\Z|\{"measurement":|(?!#)(?:[^\s,\\]|\\.)+[, ](?:[^\s,=\\]|\\.)+=)'
)
_BEGINNING = b'{"measurement":'
#: What file systems say that have no locks, and of directories that they do not sync.
_NOT_HAD = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.EPERM)


@implementer(ITimeSeriesWriter)
class FileWriter:
    """Appends to one file, from a thread of the reactor's pool, and syncs it to disk."""

    def __init__(self, reactor: Any, options: Options) -> None:
        self._path = options.text("path")
        self._format = options.choice("format", "json", "line-protocol")
        self.name = options.text("name", f"file {self._path}")
        self._reactor = reactor
        self._turn = DeferredLock()  # held until the thread has ended, whoever waits for it

    def open(self) -> Deferred[None]:
        """See that the file can be written."""
        return Deferred.fromCoroutine(self._in_thread(b""))

    def write(self, points: Sequence[Point]) -> Deferred[Sequence[Refusal]]:
        """Append points."""
        data = lines(points) if self._format == "line-protocol" else json_lines(points)
        return Deferred.fromCoroutine(self._in_thread(data)).addCallback(lambda _: [])

    def close(self) -> Deferred[None]:
        """Nothing is kept open; fires when a write that was given up has ended, too."""
        return self._turn.run(lambda: None)

    async def _in_thread(self, data: bytes) -> None:
        await self._turn.acquire()

        def ended(result: Any) -> Any:
            self._turn.release()
            return result

        pool = self._reactor.getThreadPool()
        appending = deferToThreadPool(self._reactor, pool, self._append, data).addBoth(ended)
        await outlasting(appending)

    def _append(self, data: bytes) -> None:
        try:
            # Without a buffer: it would be written out when the file is closed, failed or not.
            with open(self._path, "ab+", buffering=0) as file:
                _lock(file)
                _see_whose(file)
                start = _cut_torn_line(file)
                try:
                    left = memoryview(data)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                    # Its name as well, which this write or a rotation may have made.
                    _sync_directory(Path(os.path.realpath(self._path)).parent)
                except OSError:
                    with suppress(OSError):  # else the next write cuts it
                        file.truncate(start)
                    raise
        except OSError as error:
            raise NotWrittenError(f"{self._path}: {error.strerror}") from None


def _lock(file: Any) -> None:
    """Lock a file until it is closed; raises `OSError` when another has it for long."""
    give_up = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise OSError(errno.EAGAIN, "another process has it locked") from None
            time.sleep(LOCK_LOOK_S)
        except OSError as error:
            if error.errno not in _NOT_HAD:
                raise
            return
        else:
            return


def _see_whose(file: Any) -> None:
    """Raise `OSError` if a file is none of ours, lest points are appended to it, or its end is cut."""
    size = os.fstat(file.fileno()).st_size  # 0 of a device
    begin = os.pread(file.fileno(), min(size, 65536), 0)
    if begin and not _OURS.match(begin) and not _BEGINNING.startswith(begin):
        raise OSError(errno.EEXIST, "begins with no line of ours: is it another program's?")


def _cut_torn_line(file: Any) -> int:
    """Truncate a file after its last line end, and return where that is.

    Raises `OSError` when there is none near the end.
    """
    end = position = file.seek(0, os.SEEK_END)
    start = 0
    while position > 0 and start == 0:
        if end - position >= LONGEST_LINE:
            raise OSError(errno.EFBIG, "ends in no line of ours: is it another program's?")
        begin = max(0, position - _BLOCK)
        tail = os.pread(file.fileno(), position - begin, begin)
        if (newline := tail.rfind(b"\n")) >= 0:
            start = begin + newline + 1
        position = begin
    if start < end:
        file.truncate(start)
    return start


def _sync_directory(path: Path) -> None:
    """Sync the names in a directory; where that cannot be had, nothing more can be done."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_HAD:
            raise


def json_lines(points: Sequence[Point]) -> bytes:
    """Return one JSON object a line, with the keys of ``/influxdata`` and the time in ns."""
    return b"".join(
        orjson.dumps(
            {
                "measurement": point.measurement,
                "tags": point.tags,
                "fields": point.fields,
                "time_ns": point.time_ns,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for point in points
    )


def make(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Make a writer from the keys of docs/writers.rst; raises `ValueError`."""
    read = Options(options)
    writer = FileWriter(reactor, read)
    read.end()
    return writer
