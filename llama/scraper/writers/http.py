"""Line protocol over HTTP: what the writers for InfluxDB 1.x, 2.x and VictoriaMetrics share.

InfluxDB answers 400 (2.x also 422) when *some* points of a request are bad, having written the
others. Which ones it does not say, so the request is halved until they stand alone; writing the
good ones again changes nothing. Only the bad ones are refused. It also answers so when no point is at
fault (2.x: "Please provide either orgID or org"): where it takes none, and speaks of none, all are kept.

A write is acknowledged with 204, which is what every one of these databases says, and nothing else:
a login page, a proxy or another program answers 200 to anything, and the points would be gone.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from twisted.internet.defer import Deferred
from zope.interface import implementer

from llama.http.client import Reply, agent_of, connection_pool, explain, request
from llama.interfaces import (
    ITimeSeriesWriter,
    NotPermittedError,
    NotWrittenError,
    Point,
    Refusal,
)
from llama.printable import printable
from llama.scraper.writers.line_protocol import line, lines
from llama.scraper.writers.options import Options

#: Octets of an answer that are read: databases answer little, whatever else listens there may not.
MAX_ANSWER = 1024 * 1024
#: Requests that one write may take to find bad points among those of a partial write.
MAX_REQUESTS = 200
_DROPPED = re.compile(r"dropped=(\d+)")
#: Found in what any InfluxDB says of bad points.
_OF_POINTS = re.compile(r"partial write|unable to parse|dropped=\d")


@implementer(ITimeSeriesWriter)
class LineProtocolWriter:
    """Posts gzipped line protocol, with a deadline, and makes sense of the answers."""

    def __init__(
        self,
        reactor: Any,
        options: Options,
        *,
        name: str,
        write_url: str,
        headers: Mapping[str, str],
    ) -> None:
        self.name = options.text("name", name)
        self._timeout_s = options.seconds("timeout", 10.0, lowest=0.1)
        self._gzip = options.flag("gzip", True)
        self._reactor = reactor
        self._write_url = write_url
        self._headers = headers
        self._pool = connection_pool(reactor)
        self._agent = agent_of(reactor, self._pool, self._timeout_s, options.maybe("ca_file"))

    def open(self) -> Deferred[None]:
        """Create what must be there before the first write."""
        return Deferred.fromCoroutine(self._create())

    async def _create(self) -> None:
        """Create the database where one was asked for; nothing else needs it."""

    def write(self, points: Sequence[Point]) -> Deferred[Sequence[Refusal]]:
        """Write points; fires with those that the database refuses."""
        return Deferred.fromCoroutine(self._write(points))

    async def _write(self, points: Sequence[Point]) -> Sequence[Refusal]:
        refusals: list[Refusal] = []
        requests = 0
        told = False  # it took some, or spoke of points
        todo = [points]
        while todo:
            part = todo.pop()
            body = lines(part)
            if not body:
                continue
            reply = await self._post(body)
            requests += 1
            problem = self._problem(reply)
            if problem is None:
                told = True
                continue
            told = told or _OF_POINTS.search(problem) is not None
            all_bad = (found := _DROPPED.search(problem)) and int(found[1]) >= len(part)
            if len(part) == 1 and reply.status == 413:
                raise NotWrittenError(f"HTTP 413 for a single point: {problem}")
            if len(part) == 1 or all_bad:
                refusals += [Refusal(point, _general(problem, point)) for point in part]
            elif found and requests >= MAX_REQUESTS:
                # The others were written. Which ones were not is no longer worth the asking.
                bad = part[: int(found[1])]
                refusals += [Refusal(point, _general(problem, point)) for point in bad]
            else:
                middle = len(part) // 2
                todo += [part[middle:], part[:middle]]
            if not told and (requests >= MAX_REQUESTS or not todo):
                raise NotWrittenError(
                    f"HTTP {reply.status}: {problem}; this is said of every point, so that all are kept"
                )
        return refusals

    async def _post(self, body: bytes) -> Reply:
        headers = {"Content-Type": "text/plain; charset=utf-8", **self._headers}
        if self._gzip:
            body = gzip.compress(body, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return await self._request("POST", self._write_url, headers, body)

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Reply:
        """Make a request; raises `NotWrittenError` when there is no answer."""
        try:
            return await request(
                self._agent,
                self._reactor,
                method,
                url,
                timeout_s=self._timeout_s,
                max_octets=MAX_ANSWER,
                headers=headers,
                body=body,
            )
        except Exception as error:
            raise NotWrittenError(explain(error, self._timeout_s)) from None

    def _problem(self, reply: Reply) -> str | None:
        """Return what is wrong with the points, or None when they are written.

        Raises `NotPermittedError` or `NotWrittenError` when it is not the points' fault.
        """
        if reply.status == 204:
            return None
        said = reason_of(reply)
        # A proxy says 400 too, in its own words: that is not the points' fault.
        if reply.status == 413 or (reply.status in (400, 422) and _error(reply) is not None):
            return said
        if reply.status in (401, 403):
            raise NotPermittedError(f"not permitted (HTTP {reply.status}): {said}")
        if reply.status < 400:
            raise NotWrittenError(not_a_database(self._write_url, reply, "204"))
        raise NotWrittenError(f"HTTP {reply.status}: {said}")

    def close(self) -> Deferred[None]:
        """Close the connections."""
        return self._pool.closeCachedConnections()  # type: ignore[no-any-return]


def reason_of(reply: Reply) -> str:
    """Return what an error answer says, in one line."""
    return _error(reply) or reply.excerpt() or "no reason given"


def not_a_database(url: str, reply: Reply, expected: str) -> str:
    """Say that what answers at ``url`` is something else, a redirect perhaps, and what to do."""
    where = reply.header("Location")
    found = (
        f"a redirect to {printable(where[:200])}"
        if where
        else f"with {reply.excerpt() or 'no text'!r}"
    )
    return (
        f"{url.partition('?')[0]} answers HTTP {reply.status}, {found}, expected {expected}:"
        " is 'url' the database itself, without a login page or another program before it?"
    )


def _error(reply: Reply) -> str | None:
    """Return the message of an error in JSON, as InfluxDB has it; None if it is anything else."""
    try:
        said = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return None
    text = (said.get("error") or said.get("message")) if isinstance(said, dict) else None
    return printable(" ".join(text.split()))[:500] if isinstance(text, str) else None


def _general(problem: str, point: Point) -> str:
    """Return a reason without what is particular to one point, so that it is named once."""
    text = problem.replace(line(point), "the line").removeprefix("partial write: ")
    return re.sub(r"unable to parse '.*?': ", "unable to parse: ", _DROPPED.sub("", text)).strip()
