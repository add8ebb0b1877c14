"""The web page's configuration: where the matrix is served and which database it is drawn from."""

from __future__ import annotations

from llama.config import values
from llama.config.endpoints import listen
from llama.config.model import StoreConfig, WebConfig
from llama.config.scraper import base_url, collector_url
from llama.config.sections import TOKEN_FILE
from llama.config.tree import Document, KeySpec, Node, read_document
from llama.config.typed import typed
from llama.config.urls import NO_TLS, lacks_tls

_TEXT = values.text("text")
_USER = {
    "username": KeySpec(_TEXT),
    "password_file": KeySpec(values.secret_line),
    "ca_file": KeySpec(values.path),
}
#: The options of every type of store.
STORES: dict[str, dict[str, KeySpec]] = {
    "sqlite": {"path": KeySpec(values.path, required=True)},
    "influxdb": {
        "url": KeySpec(base_url, required=True),
        "database": KeySpec(_TEXT, "llama"),
        "retention_policy": KeySpec(_TEXT),
        **_USER,
    },
    "prometheus": {
        "url": KeySpec(base_url, required=True),
        "token_file": KeySpec(values.secret_line),
        **_USER,
    },
}


def _store(doc: Document, node: Node) -> StoreConfig:
    read = typed(doc, node, "a store", STORES)
    return StoreConfig(type=read.type, options=read.options, file=doc.path, line=read.line)


DEFAULTS = WebConfig(path="", store=StoreConfig(type="none"))
WEB = {
    "listen": KeySpec(listen, DEFAULTS.listen),
    "token_file": TOKEN_FILE,
    "store": KeySpec(_store, required=True),
    "collectors": KeySpec(values.one_or_more("collectors", collector_url), ()),
    "collector_token_file": KeySpec(values.secret_line),
    "ca_file": KeySpec(values.path),
    "pinpoint": KeySpec(base_url),
    "forget": KeySpec(values.one_or_more("hostnames", values.text("a hostname")), ()),
    "remember": KeySpec(values.duration(3600, 90 * 86400, "s"), DEFAULTS.remember_s),
}


def load_web(path: str) -> WebConfig:
    """Read the web page's configuration. Raises `ConfigErrors` with every mistake in the file."""
    doc = read_document(path)
    config = read_web(doc)
    doc.finish()
    return config


def read_web(doc: Document) -> WebConfig:
    """Make what it can of a document; its mistakes are noted there."""
    given = doc.top(WEB)
    store = given.get("store") or DEFAULTS.store
    if not given:
        return WebConfig(path=doc.path, store=store)
    if lacks_tls([*given["collectors"], given["pinpoint"], *store.options.values()]):
        doc.note(doc.root, f"https servers are not asked: {NO_TLS}")
    return WebConfig(
        path=doc.path,
        listen=given["listen"],
        api_token=given["token_file"],
        store=store,
        collectors=tuple(given["collectors"]),
        collector_token=given["collector_token_file"],
        ca_file=given["ca_file"],
        pinpoint=given["pinpoint"],
        remember_s=given["remember"],
        forget=tuple(given["forget"]),
        notes=tuple(sorted(doc.notes)),
    )
