"""What others may implement: the contract between the scraper and a time-series database.

A writer is a Twisted plugin. ``docs/writers.rst`` shows a complete one; the built-in ones stand in
``llama/scraper/writers/`` and are announced by ``twisted/plugins/llama_writers.py``.
"""

# An interface's methods have no self, which mypy and ruff (N805) do not know.
# mypy: disable-error-code="misc,empty-body"

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import Attribute, Interface, implementer


@frozen
class Point:
    """One row of a time series: the figures of one series at one moment.

    Measurement, tags and time together name the point: written twice, it is there once.
    """

    measurement: str
    #: Never empty names or values; values are text as the user wrote it, of any characters.
    tags: Mapping[str, str]
    #: At least one; always finite floats. A figure that is not known is absent, never zero.
    fields: Mapping[str, float]
    time_ns: int  #: Unix time, nanoseconds


@frozen
class Refusal:
    """A point that a database will never take, and why, in its own words."""

    point: Point
    reason: str


class NotPermittedError(Exception):
    """The database turned us away: a wrong password or token, or no right to write there.

    A writer fails with this so that it is tried again only slowly: hammering on a server with a
    wrong password locks accounts, and only a person can mend it.
    """


class NotWrittenError(Exception):
    """Points were not written this time. The text tells a person why, and goes into the log."""


class ITimeSeriesWriter(Interface):
    """A way into one database.

    Its methods are called in the reactor thread and must not block. At most two writes are under
    way at once: one of new points, and one of points that failed before.
    """

    name = Attribute(
        """Text that names it in the log, in metrics and in the spool. The same after a restart
        with the same configuration, different from that of any other writer, without secrets."""
    )

    def open() -> Deferred[None]:
        """Make ready to write: create a database, open a file.

        Called before the first write, and again, later and later, for as long as it fails.
        """

    def write(points: Sequence[Point]) -> Deferred[Sequence[Refusal]]:  # noqa: N805
        """Write points, at least one. Writing a point twice must change nothing.

        Fires when the database has acknowledged them, so that losing power loses none, with those
        it will never take (mostly an empty list): they are counted, said and let go. Fails in any
        other case, with any exception: all the points are then kept, and written again later.
        It is cancelled when it takes more than a minute.
        """

    def close() -> Deferred[None]:
        """Let go of everything. No write is under way, and none will follow."""


class ITimeSeriesWriterMaker(Interface):
    """What a plugin provides: it makes writers of one ``type``."""

    type = Attribute("The word after ``type:`` in the scraper's configuration.")
    description = Attribute("One line for people.")

    def make(reactor: Any, options: Mapping[str, Any]) -> ITimeSeriesWriter:  # noqa: N805
        """Make a writer. Nothing is opened or connected yet.

        ``options`` is what stands beside ``type`` in the configuration; a relative ``path`` in it
        has been made absolute. Raises `ValueError` with one line for a person when something in it
        is missing, wrong or unknown.
        """


@implementer(IPlugin, ITimeSeriesWriterMaker)
@frozen
class WriterMaker:
    """A plugin that imports its module only when a writer of its type is asked for.

    The module has a function ``make(reactor, options)``, as in `ITimeSeriesWriterMaker`.
    """

    type: str
    module: str
    description: str = field(default="")

    def make(self, reactor: Any, options: Mapping[str, Any]) -> Any:
        """Import the module and let it make the writer."""
        return importlib.import_module(self.module).make(reactor, options)
