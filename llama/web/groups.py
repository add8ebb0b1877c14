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


#: More hosts or groups than this side by side stand in ranges,
CROWD = 300
#: of so many at most (a full hundred is never near it), or of ten times as many where names would make
#: more ranges than this; and then in further ones.
_IN_RANGE, _RANGES = (200, 2000, 20_000), 100
#: Of a name so much counts, its numbers written with so many digits, to tell where it belongs.
_LETTERS, _DIGITS = 100, 9


def in_ranges(hosts: Sequence[str], paths: Sequence[Path]) -> list[Path]:
    """Return the paths of hosts, with ranges in them wherever too many would stand side by side.

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
            ranges = _ranges(sorted(members, key=natural))
            for name, numbers in members.items():
                for n in numbers:
                    ranged[n] += ranges[name]
                    ranged[n] += (name,) if level < len(paths[n]) else ()
    return ranged


def _ranges(names: list[str]) -> dict[str, Path]:
    """Return which range each of some sorted names is in, and which within it.

    Names that begin alike are in one, numbers in tens, hundreds or thousands: these stay what they
    are, and are called the same, when a host comes or goes. Addresses of the page name them.
    """
    if len(names) <= CROWD:
        return dict.fromkeys(names, ())
    for most in _IN_RANGE:
        parts = _alike(names, most)
        if 1 < len(parts) <= _RANGES:
            break
    else:  # as many as there are in each, whatever their names
        size = math.isqrt(len(names) - 1) + 1
        cuts = [names[start : start + size] for start in range(0, len(names), size)]
        parts = {f"{some[0]} … {some[-1]}": some for some in cuts}
    found: dict[str, Path] = {}
    for called, some in parts.items():
        found |= {name: (called, *within) for name, within in _ranges(some).items()}
    return found


def _alike(names: list[str], most: int) -> dict[str, list[str]]:
    """Return names by how they begin, at most so many together that can be told apart."""
    keys = {
        name: re.sub("[0-9]+", lambda m: m[0].zfill(_DIGITS), name[:_LETTERS]) for name in names
    }
    found: dict[str, list[str]] = {}
    todo = [("", names)]
    while todo:
        begin, some = todo.pop()
        parts: dict[str, list[str]] = {}
        if len(some) > most:
            written = [keys[name] for name in some]
            low, high = min(written), max(written)
            shared = 0
            while shared < len(low) and low[shared] == high[shared]:
                shared += 1
            for name, key in zip(some, written, strict=True):
                parts.setdefault(key[: shared + 1], []).append(name)
        if len(parts) > 1:
            todo += parts.items()
        else:
            found[_called(begin, some[0])] = some
    return found


def _called(begin: str, name: str) -> str:
    """Return what a range is called whose keys begin so, by any name in it."""
    head = ""
    for part in re.split("([0-9]+)", name[:_LETTERS]):
        number = "0" <= part[:1] <= "9"
        key = part.zfill(_DIGITS) if number else part
        if len(begin) <= len(key):
            break
        head += part
        begin = begin[len(key) :]
    if not number or len(part) > _DIGITS:
        return f"{head}{begin}…"
    width = len(part) if part.startswith("0") else 1
    ends = [str(int(begin.ljust(_DIGITS, digit))).zfill(width) for digit in "09"]
    return " … ".join(f"{head}{end}" for end in dict.fromkeys(ends))


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
