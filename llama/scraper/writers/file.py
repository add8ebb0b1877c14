"""A file of JSON lines (one point a line) or of line protocol, for whatever reads such files.

The file is opened for every write, so it can be rotated by renaming it at any time. A line that a
killed process left unfinished is cut off before the next is written. A file cannot overwrite: a
process killed between writing points and noting so writes them again when it is back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

from llama.interfaces import ITimeSeriesWriter, NotWrittenError, Point, Refusal
from llama.scraper.writers.line_protocol import lines
from llama.scraper.writers.options import Options


@implementer(ITimeSeriesWriter)
class FileWriter:
    """Appends to one file, from a thread of the reactor's pool, and syncs it to disk."""

    def __init__(self, reactor: Any, options: Options) -> None:
        self._path = options.text("path")
        self._format = options.choice("format", "json", "line-protocol")
        self.name = options.text("name", f"file {self._path}")
        self._reactor = reactor

    def open(self) -> Deferred[None]:
        """See that the file can be written."""
        return self._in_thread(self._append, b"")

    def write(self, points: Sequence[Point]) -> Deferred[Sequence[Refusal]]:
        """Append points."""
        data = lines(points) if self._format == "line-protocol" else json_lines(points)
        return self._in_thread(self._append, data).addCallback(lambda _: [])

    def close(self) -> Deferred[None]:
        """Nothing is kept open."""
        return succeed(None)

    def _in_thread(self, do: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), do, *args)

    def _append(self, data: bytes) -> None:
        try:
            with open(self._path, "ab+") as file:
                end = file.seek(0, os.SEEK_END)
                _cut_torn_line(file, end)
                start = file.tell()
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), start)
                    raise
        except OSError as error:
            raise NotWrittenError(f"{self._path}: {error.strerror}") from None


def _cut_torn_line(file: Any, end: int) -> None:
    """Truncate a file after its last line end; a whole line is never this long."""
    window = min(end, 1024 * 1024)
    file.seek(end - window)
    tail = file.read(window)
    if tail and not tail.endswith(b"\n"):
        end -= window - (tail.rfind(b"\n") + 1)
        file.truncate(end)
    file.seek(end)


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
