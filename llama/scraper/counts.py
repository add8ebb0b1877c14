"""What the scraper counts about itself, as Prometheus metrics in a registry of its own."""

from __future__ import annotations

from collections.abc import Container

from prometheus_client import CollectorRegistry, Counter

#: Why points are let go without being written.
DROPPED = ("refused", "full", "too_old", "damaged", "writer_removed")


class Counts:
    """Every counter of one scraper. Counters only rise; what can fall is asked for when shown.

    What alerts look at is there from the start, at zero: to Prometheus a series that begins with a
    value has not increased.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"llama_scraper_{name}", text, labels, registry=self.registry)

        self.polls = counter(
            "polls", "Times a collector was asked, by how it went.", "collector", "result"
        )
        self.taken = counter(
            "points_taken", "Points that were safely put into the spool.", "collector"
        )
        self.rejected = counter(
            "points_rejected",
            "Items in collectors' answers that were not taken, by reason.",
            "collector",
            "reason",
        )
        self.missed = counter(
            "intervals_missed",
            "Closed intervals that a collector had to forget before they were asked for.",
            "collector",
        )
        self.written = counter("points_written", "Points that the database acknowledged.", "writer")
        self.dropped = counter(
            "points_dropped", "Points let go without being written, by reason.", "writer", "reason"
        )
        self.failures = counter(
            "write_failures", "Writes that failed and were kept for later.", "writer"
        )

    def begin_collector(self, url: str) -> None:
        """Show the counters of a collector."""
        self.taken.labels(url)
        self.missed.labels(url)

    def end_collectors(self, urls: Container[str]) -> None:
        """Show the counters of collectors no more: in years a fleet has any number of them."""
        for counter in (self.polls, self.taken, self.rejected, self.missed):
            (family,) = counter.collect()
            for labels in {tuple(sample.labels.values()) for sample in family.samples}:
                if labels[0] in urls:
                    counter.remove(*labels)

    def begin_writer(self, name: str) -> None:
        """Show the counters of a writer."""
        self.written.labels(name)
        self.failures.labels(name)
        for reason in DROPPED:
            self.dropped.labels(name, reason)
