"""The made-up fleet as its collectors' own ``/metrics`` would tell it, through their real code."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence

import numpy as np
from servers import Server
from web_data import Fleet

from llama.collector.answers.exposition import Totals
from llama.collector.answers.series import Series, label_text
from llama.collector.intervals import histogram
from llama.collector.intervals.summary import FLOW, STATS, ClosedInterval, Pair
from llama.collector.slices import at_once
from llama.interfaces import Point

_OWN = ("src_ip", "dst_ip", "dst_port", "class", "probe", "size", "port_group")


class Prometheus(Server):
    """Prometheus over blocks that are already there."""

    program = "prometheus"
    ready_path = "/-/ready"

    def command(self) -> list[str]:
        """Return the command line."""
        (self.directory / "prometheus.yml").write_text("scrape_configs: []\n")
        return [
            self.program,
            f"--config.file={self.directory}/prometheus.yml",
            f"--storage.tsdb.path={self.directory}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--storage.tsdb.retention.time=100y",
            "--log.level=warn",
        ]

    def fill(self, texts: Sequence[tuple[float, str]]) -> None:
        """Make blocks of what was exposed at some times, before it starts."""
        path = self.directory / "openmetrics"
        with open(path, "w") as file:
            for time_s, text in texts:
                file.writelines(
                    f"{line} {time_s:.3f}\n"
                    for line in text.splitlines()
                    if line[:1] not in ("", "#")
                )
            file.write("# EOF\n")
        subprocess.run(
            [
                "promtool",
                "tsdb",
                "create-blocks-from",
                "openmetrics",
                path,
                self.directory / "data",
            ],
            check=True,
            capture_output=True,
        )
        path.unlink()


def exposed(fleet: Fleet, start_s: float, end_s: float) -> Iterator[tuple[float, str]]:
    """Yield what all collectors together expose after each interval, for those that speak."""
    series = Series()
    totals = Totals(series)
    pairs: dict[tuple[str, str, str], Pair] = {}
    by_time: dict[int, list[Point]] = {}
    for point in fleet.points(start_s, end_s):
        by_time.setdefault(point.time_ns, []).append(point)
    for number, (time_ns, points) in enumerate(sorted(by_time.items()), 1):
        spoke = set()
        members = []
        for point in points:
            key = (point.tags["src_hostname"], point.tags["dst_hostname"], point.tags["class"])
            if key not in pairs:
                pairs[key] = _pair(point)
            spoke.add(key)
            members.append(pairs[key])
        closed = _closed(number, time_ns, fleet.interval_s, members, points)
        rows = at_once(series.rows_of(members, number * fleet.interval_s))
        flows = np.array([point.fields["flows"] for point in points]).astype(np.int64)
        lossy = np.array([point.fields["flows_lossy"] for point in points]).astype(np.int64)
        at_once(totals.add(closed, rows, flows, lossy))
        packed = at_once(totals.text())
        text = b"".join(packed.plain()).decode()
        absent = [label_text(pair) for key, pair in pairs.items() if key not in spoke]
        if absent:  # a collector that is gone exposes nothing
            text = "\n".join(
                line for line in text.splitlines() if not any(label in line for label in absent)
            )
        yield time_ns / 1e9, text


def _pair(point: Point) -> Pair:
    tags = dict(point.tags)
    own = {name: tags.pop(name) for name in _OWN}
    return Pair(
        target=tags["dst_hostname"],
        src_ip=own["src_ip"],
        dst_ip=own["dst_ip"],
        dst_port=int(own["dst_port"]),
        dscp=0,
        class_name=own["class"],
        probe=own["probe"],
        size=int(own["size"]),
        port_group=own["port_group"],
        tags=tags,
    )


def _closed(
    number: int, time_ns: int, interval_s: int, members: list[Pair], points: Sequence[Point]
) -> ClosedInterval:
    stats = np.zeros(len(points), dtype=STATS)
    starts, bins, counts = [0], [], []
    for row, point in zip(stats, points, strict=True):
        for name in STATS.names or ():
            if name in point.fields:
                row[name] = point.fields[name]
        received = int(point.fields["received"])
        if received:
            half, rest = received // 2 + 1, received - received // 2 - 1
            middle, high = point.fields["rtt_p50"] * 1e6, point.fields["rtt_p99"] * 1e6
            row["rtt_sum_ns"] = half * middle + rest * high
            bins += [int(histogram.bin_of(middle)), int(histogram.bin_of(high))]
            counts += [half, rest]
        starts.append(len(bins))
    return ClosedInterval(
        close_number=number,
        start_ns=time_ns - interval_s * 10**9,
        end_ns=time_ns,
        pairs=members,
        pair_stats=stats,
        flows=np.zeros(0, dtype=FLOW),
        flow_stats=np.zeros(0, dtype=STATS),
        histogram_start=np.array(starts, dtype=np.uint32),
        histogram_bin=np.array(bins, dtype=np.uint16),
        histogram_count=np.array(counts, dtype=np.uint32),
    )
