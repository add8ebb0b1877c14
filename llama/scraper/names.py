"""What collectors call themselves, and which of them have one name.

One entry for each collector, whatever it was called before. A name that passes from one host to
another is not taken for two of them: that two share one is known when the first, asked after the
second took it, still has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from llama.interfaces import Point
from llama.printable import MOST_TOLD

#: Of what is measured and what reflected, by its measurement: that two do it by one name.
_SHARED = {
    "raw_stats": (
        "collectors {url} and {other} both measure as {name!r}: they are one host on the page,"
        " and what they tell of the same pair may overwrite each other; unless they are meant"
        " to, give one another hostname, or source_tags: {{src_hostname: ...}}, which takes a"
        " file of the full format"
    ),
    "reflector_stats": (
        "reflectors {url} and {other} both are {name!r}: their figures overwrite each other;"
        " unless they are meant to, give one another hostname,"
        " or stats: {{tags: {{src_hostname: ...}}}}"
    ),
}


def _name_in(points: Sequence[Point]) -> tuple[str, str] | None:
    """Return what names who made these points, by the newest, and the measurement that this is of."""
    told = [point for point in points if point.measurement in _SHARED]
    newest = max(told, key=lambda point: point.time_ns, default=None)
    if newest is None:
        return None
    if newest.measurement == "reflector_stats":  # its series is named by all tags
        name = ", ".join(f"{tag}={text}" for tag, text in sorted(newest.tags.items()))
        return name, newest.measurement
    host = newest.tags.get("src_hostname")
    return None if host is None else (host, newest.measurement)


class Names:
    """The names of collectors, by URL, as they were heard last."""

    _log = Logger()

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._doubted: dict[str, str] = {}  # one that took a name: one that had it when last heard
        self._told: dict[str, str] = {}  # the name that one was last found to share

    def __len__(self) -> int:
        return len(self._of)

    def hear(self, url: str, points: Sequence[Point]) -> None:
        """Say, once, which others measure, or reflect, by the name in a collector's points.

        They would be one.
        """
        found = _name_in(points)
        if found is None:
            return
        name, measurement = found
        for other in self.heard(url, name):
            self._log.warn(_SHARED[measurement], url=url, other=other, name=name[:MOST_TOLD])

    def heard(self, url: str, name: str) -> list[str]:
        """Note a collector's name; returns those that took it and share it.

        Each is told only once of a name, however often it is heard.
        """
        if self._of.get(url) != name:
            self._of[url] = name
            self._doubt(url)
        sharing = []
        for other in [other for other, first in self._doubted.items() if first == url]:
            if self._of[other] == name:
                del self._doubted[other]
                self._told[other] = name
                sharing.append(other)
            else:
                self._doubt(other)  # a third may have it, too
        return sharing

    def forget(self, url: str) -> None:
        """Know nothing of a collector any more."""
        self._of.pop(url, None)
        self._doubted.pop(url, None)
        self._told.pop(url, None)
        for other in [other for other, first in self._doubted.items() if first == url]:
            self._doubt(other)

    def _doubt(self, url: str) -> None:
        """Find out who else has the name of ``url``."""
        self._doubted.pop(url, None)
        mine = self._of[url]
        if self._told.get(url) == mine:
            return
        for other, name in self._of.items():
            if name == mine and other != url and self._doubted.get(other) != url:
                self._doubted[url] = other
                return
