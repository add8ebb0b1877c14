"""What is odd about a collector's answers: counted each time, said once."""

from __future__ import annotations

from twisted.logger import Logger

from llama.scraper.counts import Counts
from llama.scraper.points import Answer


class Remarks:
    """What there was to be said about one collector. It is named by its ``url``."""

    _log = Logger()

    def __init__(self, url: str, counts: Counts) -> None:
        self._url = url
        self._counts = counts
        self._said: set[str] = set()

    def reject(self, reason: str, count: int) -> None:
        """Count points that are not taken."""
        if count:
            self._counts.rejected.labels(self._url, reason).inc(count)

    def missed(self, count: int) -> None:
        """Count and say what the collector had to forget because we were away for too long."""
        if count:
            self._counts.missed.labels(self._url).inc(count)
            self._log.error(
                "collector {url}: {count} closed intervals were forgotten before they could be"
                " asked for: let it hold more, or see why this scraper was away",
                url=self._url,
                count=count,
            )

    def passed_over(self) -> None:
        """Count, as one since it is not known how many, and say what was too large to be taken."""
        self._counts.missed.labels(self._url).inc()
        self._log.error(
            "collector {url}: an interval alone was too large, in its answer or for the spool"
            " (max_bytes): of what it closed since the last answer only the newest was taken",
            url=self._url,
        )

    def odd(self, answer: Answer) -> None:
        """Count what was left out or repaired, and say each kind once."""
        self.reject("malformed", answer.malformed)
        self.reject("empty", answer.empty)
        for count, what in (
            (answer.malformed, f"some of its points are none and left out: {answer.oddity}"),
            (answer.undated, "its points have no time and get that of the scrape"),
            (answer.zero_rtt, "total loss comes with an rtt of zero, which is left out"),
        ):
            if count:
                self.once(what)

    def once(self, what: str) -> None:
        """Say what is odd about it, but not again; after a colon may follow what differs."""
        kind = what.partition(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            self._log.warn("collector {url}: {what}", url=self._url, what=what)
