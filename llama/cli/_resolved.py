"""Which of the names in a configuration this machine does not know, or not as they are needed."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from urllib.parse import urlsplit

from attrs import frozen

from llama import config
from llama.net.lookup import is_address

#: Names that are asked for at once: one that nobody answers takes its time.
_AT_ONCE = 64
#: No more are asked for when nothing was known of any for so long, s: their servers do not answer.
SILENCE_S = 15.0
_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}


@frozen
class Wanted:
    """A host that a service would ask or probe."""

    host: str  #: name or address
    where: str  #: file, and line if it is known: ``FILE`` or ``FILE:LINE``
    key: str  #: for people: what in the file names it
    versions: tuple[int, ...] = ()  #: of IP that it must have, each; (): any


@frozen
class _Found:
    """What this machine knows of a name."""

    versions: frozenset[int] = frozenset()  #: of IP that it has addresses of
    loopback: str | None = None  #: one of its addresses, if none leads to another machine
    answered: bool = True  #: somebody said so; else the servers of the DNS kept silent


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

    Of several places that name one host for the same purpose the first is told, and of all names one if
    the DNS answers for none. A collector is told of, too, whose name leads to this machine's
    loopback, as Debian has its own name do.
    """
    names = [each for each in hosts if not is_address(each.host)]
    known = _look_up(list(dict.fromkeys(each.host for each in names)))
    told: set[tuple[str, int]] = set()
    silent: dict[str, Wanted] = {}
    for each in names:
        found = known.get(each.host)
        if found is None or not found.answered:
            silent.setdefault(each.host, each)
            continue
        lacking = [version for version in each.versions if version not in found.versions]
        for version in lacking if found.versions else [0]:
            if (each.host, version) in told:
                continue
            told.add((each.host, version))
            lacks = f"has no IPv{version} address" if version else "does not resolve"
            yield f"{each.where}: {each.host!r} {lacks} on this machine ({each.key})"
        if found.loopback and each.key == "collectors" and not _is_local(each.host):
            yield (
                f"{each.where}: {each.host!r} is {found.loopback} on this machine, which is loopback:"
                " a collector that listens on its own address alone is not found there; mend"
                " /etc/hosts, or give that address instead"
            )
    if any(found.answered for found in known.values()):
        for each in silent.values():
            yield (
                f"{each.where}: {each.host!r} is not known on this machine: its servers of the DNS"
                f" do not answer, or fail ({each.key})"
            )
    elif silent:
        first, more = next(iter(silent.values())), len(silent) - 1
        yield (
            f"{first.where}: {first.host!r}{f' and {more:,} more names' if more else ''}: no server of"
            f" the DNS answers on this machine ({first.key})"
        )


def _look_up(names: Sequence[str]) -> dict[str, _Found]:
    """Look names up, many at once, in threads that nobody waits for; given up when all is silent."""
    waiting: SimpleQueue[str] = SimpleQueue()
    done: SimpleQueue[tuple[str, _Found]] = SimpleQueue()
    for name in names:
        waiting.put(name)

    def work() -> None:
        with suppress(Empty):
            while True:
                name = waiting.get_nowait()
                done.put((name, _resolved(name)))

    for _ in range(min(_AT_ONCE, len(names))):
        Thread(target=work, daemon=True).start()
    known: dict[str, _Found] = {}
    last_s = monotonic()
    while len(known) < len(names):
        left_s = last_s + SILENCE_S - monotonic()
        try:
            name, found = done.get(timeout=max(left_s, 0.0))
        except Empty:
            break
        known[name] = found
        if found.answered:
            last_s = monotonic()
        elif left_s <= 0:
            break
    with suppress(Empty):
        while True:  # so that no thread begins with another
            waiting.get_nowait()
    return known


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


def _is_local(host: str) -> bool:
    """Tell whether a name is meant to be this machine's loopback (RFC 6761 section 6.3)."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def _resolved(name: str) -> _Found:
    """Return what getaddrinfo(3) knows of a name."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as problem:
        silent = isinstance(problem, socket.gaierror) and problem.errno == socket.EAI_AGAIN
        return _Found(answered=not silent)
    addresses = [str(place[0]) for family, _, _, _, place in found if family in _VERSIONS]
    own = [a for a in addresses if ipaddress.ip_address(a.partition("%")[0]).is_loopback]
    return _Found(
        frozenset(_VERSIONS[family] for family, *_ in found if family in _VERSIONS),
        own[0] if own and len(own) == len(addresses) else None,
    )
