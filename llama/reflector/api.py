"""What a reflector says over HTTP about itself: ``/status``, ``/metrics`` and ``/influxdata``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.web.resource import Resource

from llama.http.metrics import MetricsPage
from llama.http.server import BadRequestError, JsonRoot, Query, json_error, set_json
from llama.reflector.stats import Stats, Watched, figures
from llama.reflector.windows import Windows

#: Of `figures`, what stands in ``/metrics`` as it is, and its help. Counters end in ``_total``.
_PLAIN = {
    "received_total": "Datagrams received",
    "limited_total": "Probes that its limit of all sources together or its full send buffer cost",
    "receive_drops_total": "Datagrams that the kernel dropped at a full socket buffer",
    "damaged_total": "Datagrams of more than 76 octets that arrived with a wrong checksum",
    "sessions": "Sessions remembered",
    "sessions_evicted_total": "Sessions forgotten to make room for others",
    "config_generation": "How many configurations were in use so far",
    "resident_bytes": "Memory resident",
    "cpu_seconds_total": "Processor time used, user and system",
}


class Metrics(Collector):
    """What a reflector has done, for Prometheus."""

    def __init__(self, ports: Watched, stats: Stats) -> None:
        self._ports = ports
        self._stats = stats

    def describe(self) -> list[Metric]:
        """Return nothing: there are no metrics to check for duplicates."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        tally, now = self._ports.tally, figures(self._ports)
        for name, text in _PLAIN.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield kind(f"llama_reflector_{name}", text, value=now[name])
        answered = CounterMetricFamily(
            "llama_reflector_answered", "Replies sent, by packet format", labels=["format"]
        )
        for name, count in sorted({"stamp": 0, **tally.answered}.items()):
            answered.add_metric([name], count)
        yield answered
        dropped = CounterMetricFamily(
            "llama_reflector_dropped", "Datagrams not answered, by reason", labels=["reason"]
        )
        for name, count in sorted(tally.dropped.items()):
            dropped.add_metric([name], count)
        yield dropped
        yield GaugeMetricFamily(
            "llama_reflector_tick_lag_seconds",
            "By how much a tick came late at worst, lately",
            value=self._stats.tick_lag_s,
        )


class _InfluxData(Resource):
    """The closed windows, as a collector serves its intervals."""

    isLeaf = True

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self._windows = windows

    def render_GET(self, request: Any) -> bytes:
        """Answer with points, and where to go on."""
        try:
            since = Query(request).text("since")
        except BadRequestError as error:
            return json_error(request, 400, str(error))
        set_json(request)
        request.setHeader("Llama-Cursor", self._windows.cursor)
        body, missed = self._windows.answer(since)
        if missed:
            request.setHeader("Llama-Missed", str(missed))
        return body


def root(ports: Watched, stats: Stats) -> JsonRoot:
    """Return the root of a reflector's HTTP."""
    registry = CollectorRegistry()
    registry.register(Metrics(ports, stats))
    found = JsonRoot()
    pages: tuple[tuple[bytes, Any], ...] = (
        (b"metrics", MetricsPage(registry)),
        (b"influxdata", _InfluxData(stats.windows)),
    )
    for name, page in pages:
        found.putChild(name, page)
    return found
