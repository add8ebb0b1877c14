"""The flows of a pair, asked of the collector that probes it: the store only has their number."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from twisted.internet.defer import Deferred, DeferredList

from llama.http.bounded_json import read_json
from llama.http.client import (
    TooLargeError,
    agent_of,
    authorization,
    connection_pool,
    explain,
    request,
)
from llama.rfc3339 import time_s
from llama.web.store import StoreError, TooMuchError

#: What one answer of a collector may weigh: 10,000 flows are some 8 MB.
MAX_ANSWER = 32 * 1024 * 1024
MOST_FLOWS = 10_000
#: And of how many values it may be; a flow has some forty.
MOST_VALUES = 100 * MOST_FLOWS
#: Collectors asked for their name at once.
AT_ONCE = 16
#: Seconds after which they are asked again: a host may have another name by then.
NAMES_HOLD_S = 60.0


class UnknownCollectorError(Exception):
    """No collector is known for a source, or it does not have what is asked; says what to do."""


class FlowSource(Protocol):
    """Something that knows the flows of a pair."""

    #: Whether there is any use in asking.
    configured: bool

    async def flows(
        self, src: str, dst: str, where: Mapping[str, str], at_s: float | None
    ) -> dict[str, Any]:
        """Return the flows of a pair in the interval that ends at ``at_s`` (None: the newest).

        Raises `UnknownCollectorError` or `StoreError`.
        """

    def stop(self) -> Deferred[Any] | None:
        """Let go of connections."""


class CollectorFlows:
    """Asks collectors over HTTP. Raises `StoreError` if the CA file is none.

    ``urls`` are their base URLs. Which of them probes from where is learned by asking, beginning
    with those whose URL looks like it.
    """

    def __init__(
        self,
        reactor: Any,
        urls: Sequence[str],
        *,
        token: str | None = None,
        ca_file: str | None = None,
        timeout_s: float = 5.0,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        self.configured = bool(urls)
        self._reactor = reactor
        self._unix_time_s = unix_time_s
        self._urls = tuple(urls)
        self._timeout_s = timeout_s
        self._headers = authorization(token)
        self._names: dict[str, str] = {}  # URL: the source it probes from
        self._names_since_s = reactor.seconds()  # when all of them were forgotten
        self._pool = connection_pool(reactor)
        try:
            self._agent = agent_of(reactor, self._pool, timeout_s, ca_file)
        except ValueError as error:
            raise StoreError(str(error)) from None

    def stop(self) -> Deferred[None]:
        """Close the connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def flows(
        self, src: str, dst: str, where: Mapping[str, str], at_s: float | None
    ) -> dict[str, Any]:
        """See `FlowSource`."""
        url = await self._url_of(src)
        try:
            return await self._flows_of(url, src, dst, where, at_s)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise StoreError(f"{url}: answered what no collector of ours would") from None

    async def _flows_of(
        self, url: str, src: str, dst: str, where: Mapping[str, str], at_s: float | None
    ) -> dict[str, Any]:
        query = {"target": dst, "limit": str(MOST_FLOWS)}
        if "class" in where:
            query["class"] = where["class"]
        past_s = None if at_s is None or at_s >= self._unix_time_s() else at_s
        if past_s is not None:
            query["at"] = f"{past_s:.6f}"
        answer = await self._get(url, query)
        if answer["src_hostname"] != src:
            self._names.clear()  # somebody else has taken the address
            raise UnknownCollectorError(f"{url}: probes from {answer['src_hostname']!r} by now")
        starts = [time_s(each["start"]) for each in answer["intervals"]]
        if past_s is not None and any(start_s >= past_s for start_s in starts):
            raise UnknownCollectorError(f"{url}: is too old to tell of flows of a past time")
        wanted = where.get("probe")
        rows = [row for row in answer["flows"] if wanted in (None, row.get("probe"))]
        ends = [row["interval_end"] for row in rows]
        ends = ends or [each["end"] for each in answer["intervals"]]
        return {
            "src": src,
            "dst": dst,
            "time": max(map(time_s, ends), default=None),
            "total": len(rows),
            "all_flows": all(each.get("all_flows", True) for each in answer["intervals"]),
            "next": None if answer.get("next_offset") is None else str(answer["next_offset"]),
            "flows": [_flow(row) for row in rows],
        }

    async def _url_of(self, src: str) -> str:
        """Return the URL of the collector that probes from ``src``; raises if there is none."""
        now_s = self._reactor.seconds()
        if now_s - self._names_since_s >= NAMES_HOLD_S:
            self._names.clear()
            self._names_since_s = now_s
        for url, name in self._names.items():
            if name == src:
                return url
        short = src.partition(".")[0]
        likely = sorted(
            self._urls,
            key=lambda url: (urlsplit(url).hostname or "").partition(".")[0] != short,
        )
        todo = [url for url in likely if url not in self._names]
        problem = ""
        while todo:
            some, todo = todo[:AT_ONCE], todo[AT_ONCE:]
            told: list[tuple[bool, Any]] = await DeferredList(
                [Deferred.fromCoroutine(self._learn(url)) for url in some], consumeErrors=True
            )
            for url, (answered, name) in zip(some, told, strict=True):
                if answered and name == src:
                    return url
                if not answered and not problem and name.check(StoreError):
                    problem = f"; {name.value}"
        raise UnknownCollectorError(
            f"no collector that answers probes from {src!r}: see `collectors` in the web "
            f"configuration{problem}"
        )

    async def _learn(self, url: str) -> str:
        """Return the source that a collector probes from, and know it from now on."""
        answer = await self._get(url, {"limit": "1"})
        name: str = answer["src_hostname"]
        self._names[url] = name
        return name

    async def _get(self, url: str, query: Mapping[str, str]) -> dict[str, Any]:
        try:
            reply = await request(
                self._agent,
                self._reactor,
                "GET",
                f"{url}/flows?{urlencode(query)}",
                timeout_s=self._timeout_s,
                max_octets=MAX_ANSWER,
                headers=self._headers,
            )
        except TooLargeError as error:
            raise TooMuchError(f"{url}: its answer has {error}") from None
        except Exception as error:
            raise StoreError(f"{url}: {explain(error, self._timeout_s)}") from None
        if reply.status == 404:
            raise UnknownCollectorError(f"{url}: does not hold flows of that time any more")
        if reply.status != 200:
            raise StoreError(f"{url}: HTTP {reply.status}: {reply.excerpt()}")
        try:
            answer = read_json(reply.body, MOST_VALUES)
            if isinstance(answer["flows"], list) and isinstance(answer["intervals"], list):
                found: dict[str, Any] = answer
                return found
        except TooLargeError as error:
            raise TooMuchError(f"{url}: its answer has {error}") from None
        except (KeyError, TypeError, ValueError):
            pass
        raise StoreError(f"{url}: answered what no collector of ours would")


def _flow(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a flow; raises `LookupError` or `TypeError` for what is none."""
    flow = {
        "class": row["class"],
        "probe": row["probe"],
        "source_port": row["source_port"],
        "sent": row["sent"],
        "received": row["received"],
        "lost": row["lost"],
        "lost_forward": row["lost_forward"],
        "lost_reverse": row["lost_reverse"],
        "loss": row["loss_percent"],
        "rtt_p50_ms": row["rtt_p50_ms"],
    }
    for name, value in flow.items():
        wanted = str | None if name in ("class", "probe") else int | float | None
        if not isinstance(value, wanted):
            raise TypeError(f"{name} is a {type(value).__name__}")
    return flow
