"""PromQL for each column: what a database has it in, and how it is put together over time.

Two kinds of names are known. *Points*: what VictoriaMetrics makes of the scraper's line protocol,
a metric a field, ``raw_stats_sent``. *Counters*: the collectors' own ``/metrics``, scraped by
Prometheus. Counters have no intervals: there a moment is what the counters rose by over the
window, and what they do not have (jitter, least RTT) is not known. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from llama.web.store import AGGREGATE, LOSSY_PERCENT, Tags

#: Labels that are not tags of the series.
NO_TAGS = frozenset({"__name__", "db", "job", "instance", "le", "direction", "reason"})
#: Sources that are named in one selector; so many destinations of one source, since Prometheus and
#: VictoriaMetrics limit how long a question may be.
FEW_SOURCES, MOST_NAMES = 50, 200


def quoted(text: str) -> str:
    r"""Return text as a PromQL string, in which ``\`` and the quote are escaped."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def selector(name: str, where: Tags, **labels: str) -> str:
    """Return a selector of a metric. Names of tags are ours; values are quoted."""
    inside = ",".join(f"{tag}={quoted(value)}" for tag, value in {**where, **labels}.items())
    return f"{name}{{{inside}}}"


def portions(presence: str, sources: Mapping[str, Mapping[str, int]], most: int) -> Iterator[str]:
    """Yield selectors that together name all series, each at most ``most`` if that can be.

    ``sources`` says how many series each has to each destination.
    """
    some: list[str] = []
    number = 0
    for source, destinations in sources.items():
        size = sum(destinations.values())
        if size > most:
            yield from _parts(presence, source, destinations, most)
            continue
        if some and (number + size > most or len(some) >= FEW_SOURCES):
            yield of_sources(presence, some)
            some, number = [], 0
        some.append(source)
        number += size
    if some:
        yield of_sources(presence, some)


def _parts(presence: str, source: str, destinations: Mapping[str, int], most: int) -> Iterator[str]:
    """Yield selectors of the series of a source that has too many for one."""
    some: list[str] = []
    number = 0
    for name, size in destinations.items():
        if some and (number + size > most or len(some) >= MOST_NAMES):
            yield _between(presence, source, some)
            some, number = [], 0
        some.append(name)
        number += size
    yield _between(presence, source, some)


def _between(presence: str, source: str, destinations: Sequence[str]) -> str:
    names = quoted("|".join(map(_literally, destinations)))
    return f"{presence}{{src_hostname={quoted(source)},dst_hostname=~{names}}}"


def of_sources(presence: str, sources: Sequence[str]) -> str:
    """Return the selector of the series of some sources."""
    return f"{presence}{{src_hostname=~{quoted('|'.join(map(_literally, sources)))}}}"


def _literally(text: str) -> str:
    """Return a regular expression (RE2) that matches this text alone."""
    return "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{{{ord(c):x}}}" for c in text)


def duration(seconds: float) -> str:
    """Return a range that reaches back to just after ``seconds`` ago: ends belong, starts not."""
    return f"{max(1, round(seconds * 1000) - 1):d}ms"


@frozen
class Points:
    """Metrics with one sample an interval, as the scraper wrote them."""

    prefix: str = "raw_stats_"

    @property
    def presence(self) -> str:
        """The metric that every series has in every interval."""
        return f"{self.prefix}sent"

    def columns(self, wanted: Sequence[str]) -> list[str]:
        """Return those of the columns that there can be."""
        return [name for name in wanted if name in AGGREGATE]

    def raw(self, column: str, where: Tags) -> str:
        """Return the selector of a column's samples."""
        return selector(self.prefix + column, where)

    def over(self, column: str, span_s: float, where: Tags) -> str:
        """Return a column put together over the ``span_s`` seconds before each step."""
        # PromQL has no union of bits: `doubts` are asked for besides.
        how = AGGREGATE[column].replace("or", "max")
        return f"{how}_over_time({self.raw(column, where)}[{duration(span_s)}])"

    def every(self, span_s: float) -> str:
        """Return the time between samples in seconds, of series with two or more (MetricsQL)."""
        samples = f"{self.presence}[{duration(span_s)}]"
        took = f"(tlast_over_time({samples})-tfirst_over_time({samples}))"
        return f"{took}/((count_over_time({samples})-1)>0)"

    def doubts(self, interval_s: float, where: Tags) -> str:
        """Return the suspect bits of the interval before each step, of series that have any."""
        return f"{self.over('suspect', interval_s, where)}>0"

    def usual(self, span_s: float) -> str:
        """Return the median of the series' median RTT, in ms."""
        middle = f"quantile_over_time(0.5,{self.prefix}rtt_p50[{duration(span_s)}])"
        mean = f"quantile_over_time(0.5,{self.prefix}rtt[{duration(span_s)}])"
        return f"{middle} or {mean}"

    def loss(self, span_s: float, where: Tags) -> str:
        """Return the loss of each series in percent."""
        return f"100*{self.over('lost', span_s, where)}/{self.over('sent', span_s, where)}"


#: Columns of counters: metric and labels.
_COUNTERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sent": ("llama_probes_sent_total", {}),
    "received": ("llama_probes_received_total", {}),
    "lost_forward": ("llama_probes_lost_total", {"direction": "forward"}),
    "lost_reverse": ("llama_probes_lost_total", {"direction": "reverse"}),
    "lost_unknown": ("llama_probes_lost_total", {"direction": "unknown"}),
    "late": ("llama_replies_late_total", {}),
    "duplicate": ("llama_replies_duplicate_total", {}),
    "reordered": ("llama_replies_reordered_total", {}),
    "remarked_forward": ("llama_probes_remarked_total", {"direction": "forward"}),
    "remarked_reverse": ("llama_probes_remarked_total", {"direction": "reverse"}),
}
_GAUGES = {"flows": "llama_flows", "flows_lossy": "llama_flows_lossy"}
_QUANTILES = {"rtt_p50": 0.5, "rtt_p90": 0.9, "rtt_p99": 0.99}
BUCKETS = "llama_rtt_seconds_bucket"
SUSPECT = "llama_suspect"


@frozen
class Counters:
    """Counters and histograms that add up since the collector's start."""

    presence: str = "llama_probes_sent_total"

    def columns(self, wanted: Sequence[str]) -> list[str]:
        """Return those of the columns that there can be; ``suspect`` is asked for separately."""
        known = {*_COUNTERS, *_GAUGES, *_QUANTILES, "lost", "rtt"}
        return [name for name in wanted if name in known]

    def over(self, column: str, span_s: float, where: Tags) -> str:
        """Return a column over the ``span_s`` seconds before each step."""
        window = f"[{round(span_s * 1000):d}ms]"
        if column == "lost":
            lost = selector("llama_probes_lost_total", where)
            return f"sum without(direction)(increase({lost}{window}))"
        if column in _COUNTERS:
            name, labels = _COUNTERS[column]
            rise = f"increase({selector(name, where, **labels)}{window})"
            return f"sum without(direction)({rise})" if labels else rise
        if column in _GAUGES:
            return f"max_over_time({selector(_GAUGES[column], where)}{window})"
        if column in _QUANTILES:
            return f"1000*histogram_quantile({_QUANTILES[column]},{self.buckets(span_s, where)})"
        total = f"increase({selector('llama_rtt_seconds_sum', where)}{window})"
        number = f"increase({selector('llama_rtt_seconds_count', where)}{window})"
        return f"1000*{total}/({number}>0)"

    def buckets(self, span_s: float, where: Tags) -> str:
        """Return how many replies there were in each bucket, cumulatively."""
        return f"increase({selector(BUCKETS, where)}[{round(span_s * 1000):d}ms])"

    def every(self, span_s: float) -> str:
        """Return the time between scrapes in seconds, of series with two or more."""
        return f"{span_s:g}/(count_over_time({self.presence}[{duration(span_s)}])>1)"

    def usual(self, span_s: float) -> str:
        """Return the median RTT of the whole time, in ms."""
        return self.over("rtt_p50", span_s, {})

    def loss(self, span_s: float, where: Tags) -> str:
        """Return the loss of each series in percent."""
        return f"100*{self.over('lost', span_s, where)}/{self.over('sent', span_s, where)}"


Names = Points | Counters


def lossy(names: Names, span_s: float, where: Tags) -> str:
    """Return how many series lost LOSSY_PERCENT of their probes or more."""
    return f"count({names.loss(span_s, where)}>={LOSSY_PERCENT})"
