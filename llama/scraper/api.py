"""What the scraper says about itself: ``/status``, ``/state`` (JSON) and ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import orjson
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from twisted.web.resource import Resource

from llama.http.metrics import MetricsPage
from llama.http.server import JsonRoot
from llama.scraper.buffer import Spool
from llama.scraper.counts import Counts
from llama.scraper.delivery import Delivery
from llama.scraper.poll import Poller


class Scraper(Protocol):
    """The parts of a running scraper that are shown."""

    counts: Counts
    spool: Spool
    poller: Poller
    deliveries: dict[str, Delivery]

    def now_s(self) -> float:
        """Return Unix time."""


class Gauges:
    """What is asked for when it is shown, as a prometheus_client collector."""

    def __init__(self, scraper: Scraper) -> None:
        self._scraper = scraper

    def collect(self) -> Iterable[Metric]:
        """Give every gauge as it stands now."""
        scraper = self._scraper
        plain = {
            "spool_chunks": ("Chunks in the spool.", len(scraper.spool.chunks)),
            "spool_bytes": ("Octets in the spool.", scraper.spool.octets),
            "spool_age_seconds": (
                "How long the oldest chunk in the spool has waited; 0 when it is empty.",
                scraper.spool.age_s,
            ),
            "spool_max_bytes": ("Beyond it the oldest are dropped.", scraper.spool.max_octets),
            "spool_max_age_seconds": ("What waited longer is dropped.", scraper.spool.max_age_s),
            "spool_ok": ("1 when the spool takes points.", scraper.spool.trouble is None),
        }
        for name, (text, value) in plain.items():
            yield GaugeMetricFamily(f"llama_scraper_{name}", text, value=float(value))
        up = _family("collector_up", "1 when the collector last answered.", "collector")
        lag = _family(
            "collector_lag_seconds", "Age of the newest point taken from it.", "collector"
        )
        for url, collector in scraper.poller.collectors.items():
            up.add_metric([url], float(collector.trouble is None))
            if collector.lag_s is not None:
                lag.add_metric([url], collector.lag_s)
        yield from (up, lag)
        writer_up = _family("writer_up", "1 when the writer last wrote.", "writer")
        chunks = _family("writer_queue_chunks", "Chunks that wait for it.", "writer")
        points = _family("writer_queue_points", "Points that wait for it.", "writer")
        behind = _family("writer_lag_seconds", "Age of the newest point written.", "writer")
        for name, delivery in scraper.deliveries.items():
            writer_up.add_metric([name], float(delivery.opened and delivery.trouble is None))
            waiting = delivery.waiting
            chunks.add_metric([name], waiting[0])
            points.add_metric([name], waiting[1])
            if delivery.newest_ns is not None:
                behind.add_metric([name], scraper.now_s() - delivery.newest_ns / 1e9)
        yield from (writer_up, chunks, points, behind)


def _family(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"llama_scraper_{name}", text, labels=[label])


def state(scraper: Scraper) -> dict[str, Any]:
    """Return what ``/state`` shows: who does not answer, who does not write, what waits."""
    return {
        "collectors": {
            url: {
                "ok": collector.trouble is None,
                "problem": collector.trouble,
                "lag_s": collector.lag_s,
                "has_cursors": not collector.plain,
            }
            for url, collector in scraper.poller.collectors.items()
        },
        "spool": {
            "ok": scraper.spool.trouble is None,
            "problem": scraper.spool.trouble,
            "chunks": len(scraper.spool.chunks),
            "bytes": scraper.spool.octets,
            "max_bytes": scraper.spool.max_octets,
            "age_s": scraper.spool.age_s,
            "max_age_s": scraper.spool.max_age_s,
        },
        "writers": {
            name: {
                "ok": delivery.opened and delivery.trouble is None,
                "problem": delivery.trouble,
                "queue_chunks": delivery.waiting[0],
                "queue_points": delivery.waiting[1],
            }
            for name, delivery in scraper.deliveries.items()
        },
    }


class _State(Resource):
    isLeaf = True

    def __init__(self, scraper: Scraper) -> None:
        super().__init__()
        self._scraper = scraper

    def render_GET(self, request: Any) -> bytes:
        """Answer with the state as JSON."""
        request.setHeader("Content-Type", "application/json")
        return orjson.dumps(
            state(self._scraper), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        )


def root(scraper: Scraper) -> Resource:
    """Return the resource that serves all of it."""
    tree = JsonRoot()
    registry = scraper.counts.registry
    registry.register(Gauges(scraper))
    children: dict[bytes, Any] = {b"state": _State(scraper), b"metrics": MetricsPage(registry)}
    for name, child in children.items():
        tree.putChild(name, child)
    return tree
