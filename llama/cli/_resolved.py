"""Which of the names in a configuration this machine does not know."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from llama import config

#: Names that are asked for at once: one that nobody answers takes its time.
_AT_ONCE = 64


def hosts_of(
    read: config.CollectorConfig | config.ReflectorConfig | config.ScraperConfig | config.WebConfig,
) -> list[str]:
    """Return the hosts that a service would ask or probe, each once."""
    if isinstance(read, config.CollectorConfig):
        hosts: Iterable[str | None] = (each.host for test in read.tests for each in test.targets)
    elif isinstance(read, (config.ScraperConfig, config.WebConfig)):
        hosts = (urlsplit(url).hostname for url in read.collectors)
    else:
        hosts = ()
    return list(dict.fromkeys(host for host in hosts if host))


def unknown(hosts: Iterable[str]) -> list[str]:
    """Return those that are neither addresses nor names that resolve here."""
    names = [host for host in hosts if not _is_address(host)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [
            name
            for name, known in zip(names, threads.map(_resolves, names), strict=True)
            if not known
        ]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM))
    except (OSError, UnicodeError):
        return False
