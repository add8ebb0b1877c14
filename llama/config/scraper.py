"""The scraper's configuration: which collectors it asks and which databases it writes to."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from llama.config import sections, values
from llama.config.mistakes import Mistake
from llama.config.model import ScraperConfig, SpoolConfig, WriterConfig
from llama.config.tree import Document, KeySpec, Node, WrongError, read_document
from llama.config.typed import untyped
from llama.config.urls import NO_TLS, lacks_tls, server_url, shown_url

#: Where collectors listen, and where one of which only the host is given is asked.
COLLECTOR_PORT = 5000


def collector_server(text: str) -> str:
    """Return the URL, as of `server_url`, of a collector: of HOST, HOST:PORT or a URL.

    Raises `ValueError` as that does.
    """
    if "://" in text:
        return server_url(text)
    if "@" in text:
        raise ValueError("has a user or a password in it, which is not sent")
    host, port = text, str(COLLECTOR_PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    number = int(port[:6]) if port.isascii() and port.isdigit() else 0
    if not values.is_host(host):
        raise ValueError("is no collector, expected HOST, HOST:PORT or a URL")
    if not 1 <= number <= 65535:
        raise ValueError("has a port that is not 1-65535")
    bracketed = f"[{ip_address(host)}]" if ":" in host else host
    return server_url(f"http://{bracketed}:{port}")


def _url(what: str, read: Callable[[str], str]) -> Callable[[Document, Node], str]:
    def url(doc: Document, node: Node) -> str:
        try:
            return read(values.text(what)(doc, node))
        except ValueError as error:
            raise WrongError(node, f"{shown_url(str(node.value))} {error}") from None

    return url


#: Reads an http or https URL, without the slash at its end.
base_url = _url("a URL such as http://tsdb:8086", server_url)
#: Reads ``host``, ``host:port`` or a URL as the base URL of a collector.
collector_url = _url("a collector: HOST, HOST:PORT or a URL", collector_server)

#: The types of writers that come with LLAMA, for hints; plugins add others.
WRITERS = ("influxdb", "influxdb2", "victoriametrics", "sqlite", "file")
SPOOL = {
    "path": KeySpec(values.path, required=True),
    "max_bytes": KeySpec(values.quantity(1e6, 1e15, "octets"), SpoolConfig(path="").max_bytes),
    "max_age": KeySpec(values.duration(60, 3650 * 86400, "s"), SpoolConfig(path="").max_age_s),
}


def _collectors(doc: Document, node: Node) -> tuple[str, ...]:
    return values.one_or_more("collectors", collector_url)(doc, node)


def _writer(doc: Document, node: Node) -> WriterConfig:
    read = untyped(doc, node, "a writer", WRITERS)
    return WriterConfig(type=read.type, options=read.options, file=doc.path, line=read.line)


def _writers(doc: Document, node: Node) -> list[WriterConfig]:
    return doc.sequence(node, "writers", _writer, "type: NAME")


def _spool(doc: Document, node: Node) -> SpoolConfig | None:
    given = doc.mapping(node, "spool", SPOOL)
    if given["path"] is None:
        return None
    return SpoolConfig(
        path=given["path"], max_bytes=int(given["max_bytes"]), max_age_s=given["max_age"]
    )


def _check_paths(doc: Document, spool: SpoolConfig, writers: list[WriterConfig]) -> None:
    """Note the writers whose file is the spool's."""
    for writer in writers:
        path = writer.options.get("path")
        if not isinstance(path, str):
            continue
        whole = Path(doc.path).parent / os.path.expanduser(path)
        if whole.resolve() == Path(spool.path).resolve():
            message = f"'path' is the spool's, {path}; expected one of its own for each"
            doc.mistakes.add(Mistake(doc.path, writer.line, message))


DEFAULTS = ScraperConfig(path="", collectors=(), writers=())
SCRAPER = {
    "interval": KeySpec(values.duration(0.1, 3600, "s"), DEFAULTS.interval_s),
    "timeout": KeySpec(values.duration(0.1, 600, "s"), DEFAULTS.timeout_s),
    "concurrency": KeySpec(values.whole(1, 1024, "collectors asked at once"), DEFAULTS.concurrency),
    "collectors": KeySpec(_collectors, (), required=True),
    "collector_token_file": KeySpec(values.secret_line),
    "ca_file": KeySpec(values.path),
    "writers": KeySpec(_writers, (), required=True),
    "spool": KeySpec(_spool),
    "api": KeySpec(sections.api, (None, None)),
}


def load_scraper(path: str, *, again: bool = False) -> ScraperConfig:
    """Read a scraper's configuration. Raises `ConfigErrors` with every mistake in the file.

    With ``again`` that is to take the place of one that is in use: see `read_document`.
    """
    doc = read_document(path, again=again)
    config = read_scraper(doc)
    doc.finish()
    return config


def read_scraper(doc: Document) -> ScraperConfig:
    """Make what it can of a document; its mistakes are noted there."""
    given = doc.top(SCRAPER)
    if not given:
        return ScraperConfig(path=doc.path, collectors=(), writers=())
    if given["spool"] is not None:
        _check_paths(doc, given["spool"], given["writers"])
    options = [value for each in given["writers"] for value in each.options.values()]
    if lacks_tls([*given["collectors"], *options]):
        doc.note(doc.root, f"https servers are not asked: {NO_TLS}")
    bind, token = given["api"]
    return ScraperConfig(
        path=doc.path,
        interval_s=given["interval"],
        timeout_s=given["timeout"],
        concurrency=given["concurrency"],
        collectors=given["collectors"],
        collector_token=given["collector_token_file"],
        ca_file=given["ca_file"],
        writers=tuple(given["writers"]),
        spool=given["spool"],
        api=bind or DEFAULTS.api,
        api_token=token,
        notes=tuple(sorted(doc.notes)),
    )
