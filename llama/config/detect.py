"""Which service a configuration file is for, told from its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import yaml

from llama.config import full
from llama.config.collector import has_hosts, read_collector
from llama.config.model import CollectorConfig, ReflectorConfig, ScraperConfig, WebConfig
from llama.config.reflector import REFLECTOR, read_reflector
from llama.config.scraper import SCRAPER, read_scraper
from llama.config.tree import ANCHORS, Document, KeySpec, read_document
from llama.config.web import WEB, read_web

AnyConfig = CollectorConfig | ReflectorConfig | ScraperConfig | WebConfig

_READ: dict[str, Callable[[Document], AnyConfig]] = {
    "collector": read_collector,
    "reflector": read_reflector,
    "scraper": read_scraper,
    "web": read_web,
}
_KEYS: dict[str, Mapping[str, KeySpec]] = {
    "collector": full.FULL,
    "reflector": REFLECTOR,
    "scraper": SCRAPER,
    "web": WEB,
}
SERVICES = tuple(_READ)


def load(path: str, service: str | None = None) -> AnyConfig:
    """Read any service's configuration. Raises `ConfigErrors` with every mistake in the file.

    Without the name of a service, the file's keys tell which it is.
    """
    doc = read_document(path)
    config = _READ[service or detect(doc)](doc)
    doc.finish()
    return config


def detect(doc: Document) -> str:
    """Return the service whose keys a file has; a collector's simple format has hosts instead."""
    if not isinstance(doc.root, yaml.MappingNode):
        return "collector"
    given = {
        key.value
        for key, _ in doc.root.value
        if isinstance(key, yaml.ScalarNode) and not key.value.startswith(ANCHORS)
    }
    if not given:
        return "collector"  # of hosts that are called so

    def likeness(service: str) -> tuple[bool, int]:
        keys = _KEYS[service]
        required = {name for name, spec in keys.items() if spec.required}
        return given <= keys.keys() and given >= required, len(given & keys.keys())

    likeliest = max(SERVICES, key=likeness)
    whole, known = likeness(likeliest)
    return likeliest if whole or (known and not has_hosts(doc)) else "collector"
