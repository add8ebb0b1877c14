"""InfluxDB 2.x, and 3.x which answers the same: ``POST /api/v2/write`` with a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from llama.scraper.writers.http import LineProtocolWriter
from llama.scraper.writers.options import Options


def make(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Make a writer from the keys of docs/writers.rst; raises `ValueError`."""
    read = Options(options)
    url = read.url("url", "http://localhost:8086")
    org, bucket, token = read.text("org", ""), read.text("bucket"), read.text("token", "")
    if not token.isascii() or not token.isprintable():
        raise ValueError("'token' holds characters that no token has")
    query = {"org": org, "bucket": bucket, "precision": "ns"}
    writer = LineProtocolWriter(
        reactor,
        read,
        name=f"influxdb2 {url}/{org}/{bucket}",
        write_url=f"{url}/api/v2/write?{urlencode(query)}",
        headers={"Authorization": f"Token {token}"} if token else {},
    )
    read.end()
    return writer
