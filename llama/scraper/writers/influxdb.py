"""InfluxDB 1.x: ``POST /write`` with a database, and a user and password where it wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from llama.http.client import Reply, authorization
from llama.interfaces import NotPermittedError, NotWrittenError
from llama.scraper.writers.http import LineProtocolWriter, not_a_database, reason_of
from llama.scraper.writers.options import Options


class InfluxDBWriter(LineProtocolWriter):
    """Writes to one database and, if asked to, creates it (with the server's defaults)."""

    def __init__(self, reactor: Any, options: Options) -> None:
        url = options.url("url", "http://localhost:8086")
        self._database = options.text("database")
        if not self._database:
            raise ValueError("'database' is empty, expected its name")
        username, password = options.text("username", ""), options.text("password", "")
        policy = options.maybe("retention_policy")
        self._create_it = options.flag("create", False)
        query = {"db": self._database, "precision": "ns"} | ({"rp": policy} if policy else {})
        self._query_url = f"{url}/query"
        super().__init__(
            reactor,
            options,
            name=f"influxdb {url}/{self._database}" + (f"/{policy}" if policy else ""),
            write_url=f"{url}/write?{urlencode(query)}",
            headers=authorization(username=username, password=password),
        )

    async def _create(self) -> None:
        if not self._create_it:
            return
        escaped = self._database.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        body = urlencode({"q": f'CREATE DATABASE "{escaped}"'}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", **self._headers}
        reply = await self._request("POST", self._query_url, headers, body)
        said = reason_of(reply)
        if reply.status in (401, 403):
            raise NotPermittedError(f"not permitted to create {self._database!r}: {said}")
        if reply.status < 400 and (reply.status != 200 or b'"results"' not in reply.body):
            raise NotWrittenError(not_a_database(self._query_url, reply, "200 and results"))
        if reply.status != 200 or b'"error"' in reply.body:
            raise NotWrittenError(f"cannot create {self._database!r}: {said}")

    async def _post(self, body: bytes) -> Reply:
        """Post lines; a database that was dropped while we wrote to it is created once more."""
        reply = await super()._post(body)
        if reply.status == 404 and self._create_it:
            await self._create()
            reply = await super()._post(body)
        return reply


def make(reactor: Any, options: Mapping[str, Any]) -> Any:
    """Make a writer from the keys of docs/writers.rst; raises `ValueError`."""
    read = Options(options)
    writer = InfluxDBWriter(reactor, read)
    read.end()
    return writer
