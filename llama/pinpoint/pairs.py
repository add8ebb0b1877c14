"""Who the ends of measured pairs are: hosts by number, with the tags that collectors give them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llama.pinpoint.answers import PAIR, FlowRow
from llama.pinpoint.evidence import Hosts


class Pairs:
    """What collectors say in ``/latency``. A host keeps its number until it is forgotten."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of hosts, by number; "" where one was forgotten
        self.collectors: dict[str, int] = {}  # collector -> its host
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []
        self._tags: list[dict[str, str]] = []  # by number
        #: Collector -> its pairs, and what it said of hosts when it was asked last; who said something
        #: new last comes last.
        self._pairs: dict[str, dict[tuple[Any, ...], tuple[int, int]]] = {}
        self._said: dict[str, dict[int, dict[str, str]]] = {}
        self.changed = False  # pairs are gone since `forget`, and hosts may be

    def hosts(self, silent: Iterable[str]) -> Hosts:
        """Return all hosts as they are now. ``silent`` are collectors that gave no measurements."""
        return Hosts(
            names=tuple(self.names),
            tags=list(self._tags),
            silent=frozenset(self.collectors[name] for name in silent if name in self.collectors),
        )

    def host_of(self, collector: str) -> str:
        """Return the name of a collector's host; what it is called itself if it has told no pair."""
        host = self.collectors.get(collector)
        return collector if host is None else self.names[host]

    def knows(self, collector: str, row: FlowRow) -> bool:
        """Return whether the pair of a row of ``/flows`` was taken by `add`."""
        return row.pair in self._pairs.get(collector, ())

    def ends(self, collector: str, row: FlowRow) -> tuple[int, int]:
        """Return the hosts, source and destination, of a row of which `knows` is true."""
        return self._pairs[collector][row.pair]

    def add(self, collector: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take all pairs of a collector; what it said before is forgotten.

        Its tag ``src_X`` is tag X of the source, ``dst_X`` and every other one of the destination.
        """
        pairs: dict[tuple[Any, ...], tuple[int, int]] = {}
        said: dict[int, dict[str, str]] = {}
        for row in rows:
            tags = row["tags"]
            source = self._host(tags.get("src_hostname") or row["src_ip"])
            destination = self._host(tags.get("dst_hostname") or row["target"])
            pairs[tuple(row[name] for name in PAIR)] = source, destination
            self.collectors[collector] = source
            of_source = said.setdefault(source, {})
            of_destination = said.setdefault(destination, {})
            for key, value in tags.items():
                if key in ("src_hostname", "dst_hostname"):
                    continue
                if key.startswith("src_"):
                    of_source[key.removeprefix("src_")] = value
                else:
                    of_destination[key.removeprefix("dst_")] = value
        self.changed |= not self._pairs.get(collector, {}).items() <= pairs.items()
        self._pairs[collector] = pairs
        self._retag(collector, said)

    def _host(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._free.pop() if self._free else len(self.names)
            self._numbers[name] = number
            self.names[number : number + 1] = [name]
            self._tags[number : number + 1] = [{}]
        return number

    def _retag(self, collector: str, said: dict[int, dict[str, str]]) -> None:
        """Take what a collector says of the tags of hosts now."""
        before = self._said.get(collector, {})
        changed = [host for host in {*before, *said} if before.get(host) != said.get(host)]
        if changed:
            self._said.pop(collector, None)
            self._said[collector] = said
        for host in changed:
            merged = {**self._tags[host], **said.get(host, {})}
            if host in before:  # what it said may have been said by others, too
                merged = {k: v for one in self._said.values() for k, v in one.get(host, {}).items()}
            if merged != self._tags[host]:
                self._tags[host] = merged
            if said.get(host) == merged:
                said[host] = self._tags[host]  # once, not once a collector

    def forget(self, used: Collection[int]) -> None:
        """Forget hosts that no pair has, but for those that are ``used``; numbers are used again."""
        self.changed = False
        kept = {*used, *self.collectors.values()}
        for pairs in self._pairs.values():
            for ends in pairs.values():
                kept.update(ends)
        for name in [name for name, number in self._numbers.items() if number not in kept]:
            number = self._numbers.pop(name)
            self.names[number], self._tags[number] = "", {}
            self._free.append(number)
        for said in self._said.values():
            for number in said.keys() - kept:
                del said[number]
