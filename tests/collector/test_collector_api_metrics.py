"""/metrics: valid for Prometheus, true to the intervals, and never falling."""

from __future__ import annotations

import os
import shutil
import subprocess
import unittest

import numpy as np
from collector_served import Served
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.answers import exposition
from llama.collector.answers.series import label_name, label_text
from llama.collector.intervals import histogram
from llama.collector.intervals.summary import suspect_bit
from llama.testing import pair

NASTY = {
    "rack": 'quo"te',
    "back\\slash": "a\\b",
    "line": "one\ntwo",
    "le": "reserved",
    "direction": "reserved",
    "a-b": "1",
    "a.b": "2",
    "7th": "digit",
    "__name__": "double",
    "größe": "ü",
    "": "nameless",
}


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample by name and labels, as Prometheus's own parser reads them."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def of(found, name, **labels):
    """Return the values of the samples of that name with at least these labels."""
    wanted = {(key.removesuffix("_"), value) for key, value in labels.items()}
    return [value for (told, have), value in found.items() if told == name and wanted <= have]


class Metrics(SynchronousTestCase):
    def get(self, served):
        """Return the samples of /metrics."""
        answer = served.get("/metrics", Accept_Encoding="gzip")
        self.assertEqual(answer.header("Content-Type"), exposition_type())
        return samples(answer.body)

    def test_counters(self):
        """Counters are the sums of all intervals so far, a pair and class each."""
        served = Served()
        names = {
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
        members = [pair(0), pair(0, dscp=46), pair(1)]
        sums = {name: np.zeros(3, int) for name in names}
        for number in range(8):
            closed = served.close(members, loss=0.2, work=False)
            closed.pair_stats["late"] = closed.pair_stats["duplicate"] = number
            closed.pair_stats["reordered"] = [1, 2, 3]
            closed.pair_stats["remarked_forward"] = 5
            served.work()
            for name in names:
                sums[name] += closed.pair_stats[name]
        found = self.get(served)
        for name, (metric, labels) in names.items():
            for member, expected in zip(members, sums[name].tolist(), strict=True):
                told = of(found, metric, **labels, dst_ip=member.dst_ip, class_=member.class_name)
                self.assertEqual(told, [expected], name)

    def test_histogram(self):
        """The histogram's buckets are exact counts of the round-trip times within their bounds."""
        served = Served()
        closes = [served.close(3, loss=0.1, probes_per_flow=50) for _ in range(3)]
        found = self.get(served)
        for number in range(3):
            edges = []
            for closed in closes:
                start, end = closed.histogram_start[number : number + 2]
                tops = histogram.lower_bound_ns(closed.histogram_bin[start:end].astype(int) + 1)
                edges += np.repeat(tops, closed.histogram_count[start:end]).tolist()
            address = f"10.0.0.{number}"
            for bound in exposition.BOUNDS_S.tolist():
                told = of(found, "llama_rtt_seconds_bucket", dst_ip=address, le=repr(bound))
                expected = sum(edge <= bound * 1e9 * (1 + 1e-12) for edge in edges)
                self.assertEqual(told, [expected], bound)
            for name, le in (("bucket", {"le": "+Inf"}), ("count", {})):
                told = of(found, f"llama_rtt_seconds_{name}", dst_ip=address, **le)
                self.assertEqual(told, [len(edges)])
            total = sum(closed.pair_stats["rtt_sum_ns"][number] for closed in closes)
            told = of(found, "llama_rtt_seconds_sum", dst_ip=address)
            self.assertAlmostEqual(told[0], total / 1e9)

    def test_bounds(self):
        """Bucket bounds are edges of fine bins, near to the round numbers that people expect."""
        edges = set((histogram.lower_bound_ns(np.arange(histogram.BINS)) / 1e9).tolist())
        round_s = [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
        self.assertEqual(len(exposition.BOUNDS_S), len(round_s))
        for bound, near in zip(exposition.BOUNDS_S.tolist(), round_s, strict=True):
            self.assertIn(bound, edges)
            self.assertLess(abs(bound - near) / near, 1 / 32)

    def test_gauges(self):
        """Flows, those that lose, and what makes the newest interval suspect are gauges."""
        served = Served()
        loss = np.zeros(8)
        loss[[4, 6]] = 1.0
        served.close(2, loss=1.0)
        served.close(2, loss=loss, suspect=suspect_bit("clock_step") | suspect_bit("late_ticks"))
        found = self.get(served)
        self.assertEqual(of(found, "llama_flows", dst_ip="10.0.0.1"), [4])
        self.assertEqual(of(found, "llama_flows_lossy", dst_ip="10.0.0.1"), [2])
        self.assertEqual(of(found, "llama_flows_lossy", dst_ip="10.0.0.0"), [0])
        for reason in ("clock_step", "late_ticks"):
            self.assertEqual(of(found, "llama_suspect", reason=reason), [1, 1])
        self.assertEqual(len(of(found, "llama_suspect")), 4)
        served.close(2)
        self.assertEqual(of(self.get(served), "llama_suspect"), [])

    def test_reload(self):
        """Through a reload a series goes on counting; one that was removed ends."""
        served = Served()
        served.close([pair(0), pair(1)])
        for _ in range(5):
            served.clock.advance(30)
            served.close([pair(2), pair(0)])
        found = self.get(served)
        self.assertEqual(of(found, "llama_probes_sent_total", dst_ip="10.0.0.0"), [240])
        self.assertEqual(of(found, "llama_probes_sent_total", dst_ip="10.0.0.1"), [])
        self.assertEqual(of(found, "llama_probes_sent_total", dst_ip="10.0.0.2"), [200])
        served.close([pair(1), pair(3), pair(4)])
        found = self.get(served)
        for address in ("10.0.0.1", "10.0.0.3", "10.0.0.4"):
            self.assertEqual(of(found, "llama_probes_sent_total", dst_ip=address), [40], address)
            count = of(found, "llama_rtt_seconds_count", dst_ip=address)
            self.assertEqual(count, [40], address)

    def test_health(self):
        """The collector's own health is there as it is now, with reasons as labels."""
        health = {
            "probes_per_second": 812.5,
            "send_failures_total": {"EPERM": 3, "ENOBUFS": 0},
            "flows": 16,
            "tick_lag_seconds": float("nan"),
        }
        served = Served(health=lambda: health)
        served.close(1)
        served.get("/metrics")
        health["flows"] = 17
        found = self.get(served)
        self.assertEqual(of(found, "llama_collector_flows"), [17])
        self.assertEqual(of(found, "llama_collector_probes_per_second"), [812.5])
        self.assertEqual(of(found, "llama_collector_send_failures_total", reason="EPERM"), [3])
        self.assertEqual(of(found, "llama_collector_intervals_held"), [1])
        self.assertEqual(of(found, "llama_collector_series"), [1])

    def test_health_as_points(self):
        """The same health is a point a window, however many tests close in it, and has no NaN."""
        health = {"send_failures_total": {"EPERM": 3}, "tick_lag_seconds": float("nan")}
        served = Served(health=lambda: health)
        served.close([pair(0)], start_s=30)
        served.close([pair(1)], start_s=30)
        served.close([pair(0)], start_s=60)
        points = served.get("/influxdata?since=").json()
        own = [p for p in points if p["measurement"] == "collector_stats"]
        self.assertEqual([p["time"] for p in own], ["1970-01-01T00:01:00Z", "1970-01-01T00:01:30Z"])
        for point in own:
            self.assertEqual(point["tags"], {"src_hostname": "collector01.example.net"})
            self.assertEqual(point["fields"]["send_failures_total_EPERM"], 3.0)
            self.assertNotIn("tick_lag_seconds", point["fields"])

    def test_before_the_first_close(self):
        """Before anything has closed there is health, and no pair."""
        found = self.get(Served(health=lambda: {"flows": 1}))
        self.assertEqual(of(found, "llama_collector_flows"), [1])
        self.assertEqual(of(found, "llama_probes_sent_total"), [])

    def test_nasty_tags(self):
        """Any tag can be a label: no two become one, and Prometheus reads the values back."""
        served = Served()
        served.close([pair(0, tags=NASTY)])
        (labels,) = [
            dict(have) for (name, have) in self.get(served) if name == "llama_probes_sent_total"
        ]
        for value in NASTY.values():
            self.assertIn(value, labels.values())
        self.assertEqual(labels["a_b"], "1")
        self.assertEqual(labels["a_b_2"], "2")

    def test_label_names(self):
        """Label names are what Prometheus allows, and leave its own alone."""
        for tag, expected in (
            ("rack", "rack"),
            ("le", "tag_le"),
            ("__name__", "tag_name__"),
            ("7th", "tag_7th"),
            ("", "tag_"),
            ("größe", "gr__e"),
        ):
            self.assertEqual(label_name(tag), expected)

    def test_label_order(self):
        """The order in which tags were written makes no other series."""
        one = label_text(pair(0, tags={"a": "1", "b": "2"}))
        other = label_text(pair(0, tags={"b": "2", "a": "1"}))
        self.assertEqual(one, other)

    def test_promtool(self):
        """Prometheus's own tool finds nothing wrong, whatever the tags and the health."""
        if shutil.which("promtool") is None:
            raise unittest.SkipTest("promtool (Debian's prometheus) is not installed")
        served = Served(health=lambda: {"flows": 2, "send_failures_total": {"EPERM": 1}})
        served.close(
            [pair(0, tags=NASTY), pair(1), pair(2, dscp=46)],
            loss=[0.0] * 4 + [1.0] * 8,
            suspect=suspect_bit("clock_step"),
        )
        text = served.get("/metrics").body
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=text,
            capture_output=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        )
        self.assertEqual((checked.returncode, checked.stdout, checked.stderr), (0, b"", b""))


def exposition_type() -> str:
    """Return the content type of Prometheus's text format."""
    return "text/plain; version=0.0.4; charset=utf-8"
