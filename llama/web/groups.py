"""Hosts and the groups they stand in: a hierarchy made from the tags of the series themselves.

A group key ``K`` says where a *destination* stands by the tag ``dst_K`` or, failing that, ``K``
(targets carry the user's tags as they are written). A *source* stands where its ``src_K`` says or,
failing that, where it stands when others probe it. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from llama.web.store import Tags

#: From the outermost to the innermost, the names that people give to the levels of a network.
HIERARCHY = (
    "continent",
    "region",
    "country",
    "metro",
    "site",
    "datacenter",
    "dc",
    "pop",
    "building",
    "room",
    "az",
    "zone",
    "pod",
    "cluster",
    "row",
    "rack",
)

#: Tags that name the series, not a place.
_NO_GROUPS = frozenset(
    {"hostname", "ip", "port", "dst_port", "class", "probe", "size", "port_group", "job", "le"}
)

Path = tuple[str, ...]


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key by which ``r2`` comes before ``r10``, and nothing (no group) comes last."""
    if not text:
        return ((2, 0, ""),)
    return tuple(_natural(part) for part in re.split(r"([0-9]+)", text) if part)


def _natural(part: str) -> tuple[int, int, str]:
    if not (part.isdecimal() and part.isascii()):
        return 1, 0, part
    # By length and digits: a number as such may have no more of them than Python cares to read.
    digits = part.lstrip("0")
    return 0, len(digits), f"{digits} {part}"


def natural_path(path: Path) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Return the same for a path of groups."""
    return tuple(natural(part) for part in path)


@frozen
class Places:
    """Where every host stands: values by group key."""

    sources: Mapping[str, Mapping[str, str]]
    destinations: Mapping[str, Mapping[str, str]]

    def source_path(self, host: str, keys: Sequence[str]) -> Path:
        """Return the groups of a source from the outermost in; "" where it has none."""
        own, other = self.sources.get(host, {}), self.destinations.get(host, {})
        return tuple(own.get(key, other.get(key, "")) for key in keys)

    def destination_path(self, host: str, keys: Sequence[str]) -> Path:
        """Return the groups of a destination from the outermost in; "" where it has none."""
        own, other = self.destinations.get(host, {}), self.sources.get(host, {})
        return tuple(own.get(key, other.get(key, "")) for key in keys)

    def keys(self) -> list[str]:
        """Return the tags that tell hosts apart into groups, outermost first.

        Known names come in the order of `HIERARCHY`, then others, the fewest groups first.
        """
        values: dict[str, set[str]] = {}
        bearers: dict[str, set[str]] = {}
        for places in (self.sources, self.destinations):
            for host, tags in places.items():
                for key, value in tags.items():
                    values.setdefault(key, set()).add(value)
                    bearers.setdefault(key, set()).add(host)
        # One value for each host groups nothing, unless its name says that it is meant to.
        useful = [
            key
            for key, found in values.items()
            if len(found) > 1 and (key in HIERARCHY or len(found) < len(bearers[key]))
        ]
        known = {key: n for n, key in enumerate(HIERARCHY)}
        return sorted(useful, key=lambda key: (known.get(key, 99), len(values[key]), key))

    def hierarchy(self) -> list[str]:
        """Return the keys to group by when nobody chose: the known ones, at most three."""
        return [key for key in self.keys() if key in HIERARCHY][:3]


def find_places(series: Iterable[Tags]) -> Places:
    """Return where each host of ``series`` stands; the first series that says so is believed."""
    sources: dict[str, dict[str, str]] = {}
    destinations: dict[str, dict[str, str]] = {}
    for tags in series:
        source, destination = tags.get("src_hostname"), tags.get("dst_hostname")
        if source is not None and source not in sources:
            sources[source] = {
                key[4:]: value
                for key, value in tags.items()
                if key.startswith("src_") and key[4:] not in _NO_GROUPS
            }
        if destination is not None and destination not in destinations:
            plain = {
                key: value
                for key, value in tags.items()
                if key not in _NO_GROUPS and not key.startswith(("src_", "dst_"))
            }
            prefixed = {
                key[4:]: value
                for key, value in tags.items()
                if key.startswith("dst_") and key[4:] not in _NO_GROUPS
            }
            destinations[destination] = {**plain, **prefixed}
    return Places(sources, destinations)


#: More hosts or groups than this side by side stand in ranges.
CROWD = 300


def in_ranges(hosts: Sequence[str], paths: Sequence[Path]) -> list[Path]:
    """Return the paths of hosts, with a range in them wherever too many would stand side by side.

    Tags need not group anything: ten thousand hosts without any are a hundred ranges, by name.
    """
    ranged: list[Path] = [()] * len(hosts)
    for level in range(max(map(len, paths), default=0) + 1):
        beside: dict[Path, dict[str, list[int]]] = {}  # hosts by where they are and go on to
        for n, path in enumerate(paths):
            if level <= len(path):
                name = path[level] if level < len(path) else hosts[n]
                beside.setdefault(ranged[n], {}).setdefault(name, []).append(n)
        for members in beside.values():
            names = _ranges(list(members)) if len(members) > CROWD else {}
            for name, numbers in members.items():
                for n in numbers:
                    ranged[n] += (names[name],) if names else ()
                    ranged[n] += (name,) if level < len(paths[n]) else ()
    return ranged


def _ranges(names: list[str]) -> dict[str, str]:
    """Return which range each name is in; as many as there are names in each."""
    names.sort(key=natural)
    size = math.isqrt(len(names) - 1) + 1
    one_domain = len({name.partition(".")[2] for name in names}) == 1
    found: dict[str, str] = {}
    for start in range(0, len(names), size):
        some = names[start : start + size]
        ends = [name.partition(".")[0] if one_domain else name for name in (some[0], some[-1])]
        found |= dict.fromkeys(some, " … ".join(ends))
    return found


# --- group paths in a URL ---------------------------------------------------------------------
#
# "iad/aa,lax" opens the groups (iad, aa) and (lax,). A tilde escapes what would be mistaken; the
# page writes them (static/model.js).

_UNESCAPE = {"~": "~", "s": "/", "c": ",", "a": "*"}


def read_paths(text: str) -> frozenset[Path]:
    """Return the paths in ``text``; raises `ValueError` for an escape that there is not."""
    paths = set()
    for written in text.split(","):
        if written:
            paths.add(tuple(_unescape(part) for part in written.split("/")))
    return frozenset(paths)


def _unescape(text: str) -> str:
    if text == "~0":
        return ""

    def plain(match: re.Match[str]) -> str:
        if match[1] not in _UNESCAPE:
            raise ValueError(f"{match[0]!r} is no escape, expected ~~ ~s ~c ~a or ~0")
        return _UNESCAPE[match[1]]

    return re.sub(r"~(.?)", plain, text, flags=re.DOTALL)
