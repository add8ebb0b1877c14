"""What collectors call themselves, and which of them have one name.

One entry for each collector, whatever it was called before. A name that passes from one host to
another is not taken for two of them: that two share one is known when the first, asked after the
second took it, still has it.
"""

from __future__ import annotations


class Names:
    """The names of collectors, by URL, as they were heard last."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._doubted: dict[str, str] = {}  # one that took a name: one that had it when last heard
        self._told: dict[str, str] = {}  # the name that one was last found to share

    def __len__(self) -> int:
        return len(self._of)

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
