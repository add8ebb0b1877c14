"""Which of the names in a configuration this machine does not know, or not as they are needed."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from attrs import frozen

from llama import config

#: Names that are asked for at once: one that nobody answers takes its time.
_AT_ONCE = 64
_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


@frozen
class Wanted:
    """A host that a service would ask or probe."""

    host: str  #: name or address
    where: str  #: file, and line if it is known: ``FILE`` or ``FILE:LINE``
    key: str  #: for people: what in the file names it
    versions: tuple[int, ...] = ()  #: of IP that it must have, each; (): any


def wanted(
    read: config.CollectorConfig | config.ReflectorConfig | config.ScraperConfig | config.WebConfig,
) -> Iterator[Wanted]:
    """Yield the hosts that a service would ask or probe, as often as they are named."""
    if isinstance(read, config.CollectorConfig):
        for test in read.tests:
            versions = _versions(test)
            for target in test.targets:
                yield Wanted(target.host, read.path, f"test {test.name!r}", versions)
    elif isinstance(read, (config.ScraperConfig, config.WebConfig)):
        urls = [(url, read.path, "collectors") for url in read.collectors]
        if isinstance(read, config.ScraperConfig):
            urls += [url for each in read.writers for url in _urls(each, f"writer {each.type}")]
        else:
            urls += _urls(read.store, "store")
            urls += [(read.pinpoint, read.path, "pinpoint")] if read.pinpoint else []
        for url, where, key in urls:
            host = _host(url)
            if host:
                yield Wanted(host, where, key)


def problems(hosts: Iterable[Wanted]) -> Iterator[str]:
    """Yield one line for each name that does not resolve here or lacks a version that it needs.

    Of several places that name one host for the same purpose the first is told.
    """
    names = [each for each in hosts if not _is_address(each.host)]
    once = list(dict.fromkeys(each.host for each in names))
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        known = dict(zip(once, threads.map(_resolved, once), strict=True))
    told: set[tuple[str, int]] = set()
    for each in names:
        found = known[each.host]
        lacking = [version for version in each.versions if version not in found]
        for version in lacking if found else [0]:
            if (each.host, version) in told:
                continue
            told.add((each.host, version))
            lacks = f"has no IPv{version} address" if version else "does not resolve"
            yield f"{each.where}: {each.host!r} {lacks} on this machine ({each.key})"


def _versions(test: config.Test) -> tuple[int, ...]:
    """Return the versions of IP that each target of a test must have an address of."""
    if test.family == "both":
        return (4, 6)
    if test.family != "any":
        return (int(test.family),)
    sources = {port.address or test.source for port in test.source_ports} - {None}
    return tuple(sorted({ipaddress.ip_address(source).version for source in sources if source}))


def _urls(
    section: config.StoreConfig | config.WriterConfig, what: str
) -> list[tuple[str, str, str]]:
    """Return the URLs among a section's options, with where they are and what they are for."""
    return [
        (value, f"{section.file}:{section.line}", f"{what}: {name}")
        for name, value in section.options.items()
        if isinstance(value, str) and value.startswith(("http://", "https://"))
    ]


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolved(name: str) -> set[int]:
    """Return the versions of IP that a name has addresses of here."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return set()
    return {_VERSIONS[family] for family, *_ in found if family in _VERSIONS}
