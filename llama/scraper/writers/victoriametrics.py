"""VictoriaMetrics, single or cluster, through its InfluxDB-compatible ``/write``.

A field becomes a metric named ``MEASUREMENT_FIELD``, such as ``raw_stats_loss``; times are kept
to the millisecond. VictoriaMetrics stores a point that is written twice as two equal samples; it
removes the second when started with ``-dedup.minScrapeInterval=1ms``, which its documentation
asks of everyone whose writers repeat what was not acknowledged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama.http.client import authorization
from llama.scraper.writers.http import LineProtocolWriter
from llama.scraper.writers.options import Options


def make(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Make a writer from the keys of docs/writers.rst; raises `ValueError`."""
    read = Options(options)
    url = read.url("url", "http://localhost:8428")
    username, password = read.text("username", ""), read.text("password", "")
    token = read.text("token", "")
    writer = LineProtocolWriter(
        reactor,
        read,
        name=f"victoriametrics {url}",
        write_url=f"{url}/write?precision=ns",
        headers=authorization(token, username, password),
    )
    read.end()
    return writer
