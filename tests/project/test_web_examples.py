"""The example dashboards and alert rules in etc/: every query in them, asked of the real server."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from servers import Influx
from twisted.trial.unittest import SynchronousTestCase
from web_counters import Prometheus, exposed
from web_data import standard_fleet

from llama.interfaces import Point
from llama.scraper.writers.line_protocol import lines

ETC = Path(__file__).parent.parent.parent / "etc"
END_S = time.time() // 60 * 60 - 60
START_S = END_S - 1260
#: What belongs to the services themselves, as each of them exposes it.
OWN = """
up{job="llama-collector",instance="iad1:5000"} 1
up{job="llama-collector",instance="fra2:5000"} 0
llama_collector_tick_lag_seconds{job="llama-collector",instance="iad1:5000"} 0.2
llama_collector_groups_refused{job="llama-collector",instance="iad1:5000"} 0
llama_collector_groups_refused{job="llama-collector",instance="fra2:5000"} 2
llama_reflector_tick_lag_seconds{job="llama-reflector",instance="iad1:5001"} 2.97
llama_reflector_tick_lag_seconds{job="llama-reflector",instance="fra2:5001"} 0.01
llama_scraper_writer_lag_seconds{job="llama-scraper",instance="x:5003",writer="influxdb"} 700
llama_scraper_collector_lag_seconds{job="llama-scraper",instance="x:5003",collector="iad1"} 31
up{job="llama-scraper",instance="scraper2:5003"} 0
llama_scraper_collector_up{job="llama-scraper",instance="x:5003",collector="http://iad1:5000"} 1
llama_scraper_collector_up{job="llama-scraper",instance="x:5003",collector="http://fra2:5000"} 0
llama_scraper_spool_ok{job="llama-scraper",instance="x:5003"} 1
llama_scraper_spool_ok{job="llama-scraper",instance="scraper3:5003"} 0
llama_scraper_writer_up{job="llama-scraper",instance="x:5003",writer="influxdb"} 1
llama_scraper_writer_up{job="llama-scraper",instance="x:5003",writer="sqlite"} 0
llama_scraper_spool_bytes{job="llama-scraper",instance="x:5003"} 500
llama_scraper_spool_max_bytes{job="llama-scraper",instance="x:5003"} 1000
llama_scraper_spool_age_seconds{job="llama-scraper",instance="x:5003"} 300000
llama_scraper_spool_max_age_seconds{job="llama-scraper",instance="x:5003"} 604800
llama_scraper_spool_bytes{job="llama-scraper",instance="full:5003"} 501
llama_scraper_spool_max_bytes{job="llama-scraper",instance="full:5003"} 1000
llama_scraper_spool_age_seconds{job="llama-scraper",instance="full:5003"} 0
llama_scraper_spool_max_age_seconds{job="llama-scraper",instance="full:5003"} 604800
llama_scraper_spool_bytes{job="llama-scraper",instance="old:5003"} 0
llama_scraper_spool_max_bytes{job="llama-scraper",instance="old:5003"} 1000
llama_scraper_spool_age_seconds{job="llama-scraper",instance="old:5003"} 302401
llama_scraper_spool_max_age_seconds{job="llama-scraper",instance="old:5003"} 604800
"""
#: What was lost until then, and by when: counted by one scraper before its first answer, and by another
#: that had been asked before. A third has lost nothing.
LATE_S = 300
LOST = """
llama_collector_intervals_unclosed_total{{job="llama-collector",instance="rises:5000"}} {rises}
llama_collector_intervals_unclosed_total{{job="llama-collector",instance="stays:5000"}} 7
llama_scraper_intervals_missed_total{{job="llama-scraper",instance="x:5003",collector="rises"}} {rises}
llama_scraper_intervals_missed_total{{job="llama-scraper",instance="x:5003",collector="stays"}} 7
llama_scraper_points_dropped_total{{job="llama-scraper",instance="x:5003",reason="full"}} {rises}
llama_scraper_points_dropped_total{{job="llama-scraper",instance="x:5003",reason="too_old"}} 7
"""
LOST_WHILE_AWAY = """
llama_scraper_intervals_missed_total{job="llama-scraper",instance="back:5003",collector="missed"} 40
llama_scraper_intervals_missed_total{job="llama-scraper",instance="back:5003",collector="whole"} 0
llama_scraper_points_dropped_total{job="llama-scraper",instance="back:5003",reason="full"} 40
llama_scraper_points_dropped_total{job="llama-scraper",instance="back:5003",reason="too_old"} 0
"""


def own(time_s: float) -> str:
    """Return what the services tell of themselves at a time."""
    late = time_s > END_S - LATE_S
    return OWN + LOST.format(rises=5 * late) + (LOST_WHILE_AWAY if late else "")


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard, whose panels fit together."""
    read: dict[str, Any] = json.loads((ETC / f"grafana-{name}.json").read_text())
    numbers = [panel["id"] for panel in read["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken = set()
    for panel in read["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} overlaps"
                taken.add((x, y))
    assert {each["name"] for each in read["templating"]["list"]} >= {"datasource", "class", "src"}
    return read


def targets(read: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each panel's title with each of its queries."""
    for panel in read["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            yield panel["title"], target


class InfluxDashboardTest(SynchronousTestCase):
    """etc/grafana-influxdb.json against a real InfluxDB."""

    def test_queries(self) -> None:
        """Every query, with what Grafana puts into it, gives rows; the variables, too."""
        server = Influx()
        self.addCleanup(server.stop)
        server.start()
        server.run("CREATE DATABASE llama")
        points = list(standard_fleet(END_S).points(START_S, END_S))
        points.append(
            Point("collector_stats", {"src_hostname": "iad1"}, {"tick_lag_seconds": 0.001},
                  int(END_S) * 10**9)
        )  # fmt: skip
        url = f"{server.url}/write?db=llama"
        urllib.request.urlopen(url, data=lines(points), timeout=20).close()
        read = dashboard("influxdb")
        for title, target in targets(read):
            query = target["query"]
            for name, value in (
                ("$timeFilter", f"time > {START_S:.0f}s AND time <= {END_S:.0f}s"),
                ("$__interval", "30s"),
                ("/^$class$/", "/^(BE|EF)$/"),
                ("/^$src$/", "/^.*$/"),
                ("/^$dst$/", "/^.*$/"),
            ):
                query = query.replace(name, value)
            self.assertNotIn("$", query.replace(".*$/", "").replace(")$/", ""), title)
            self.assertTrue(server.run(query, "llama"), f"{title}: {query}")
        for variable in read["templating"]["list"][1:]:
            found = {row["value"] for row in server.run(variable["query"], "llama")}
            self.assertIn({"class": "EF", "src": "lax1", "dst": "iad2"}[variable["name"]], found)


class PrometheusExamplesTest(SynchronousTestCase):
    """etc/grafana-prometheus.json and etc/prometheus-alerts.yaml against a real Prometheus."""

    server: Any = None

    @classmethod
    def tearDownClass(cls) -> None:
        """End the server."""
        if cls.server is not None:
            cls.server.stop()
            cls.server = None
        super().tearDownClass()

    def setUp(self) -> None:
        """Start it, the first time, with the rules loaded."""
        cls = type(self)
        if cls.server is None:
            server = RulesPrometheus()
            fleet = standard_fleet(END_S)
            server.fill(
                [(time_s, text + own(time_s)) for time_s, text in exposed(fleet, START_S, END_S)]
            )
            server.start()
            cls.server = server

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives at the end of the fleet's history."""
        query = {"query": expression, "time": f"{END_S:.0f}"}
        answer = json.loads(self.server.get("/api/v1/query", query))
        self.assertEqual(answer["status"], "success")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def test_queries(self) -> None:
        """Every query, with what Grafana puts into it, gives series; the variables, too."""
        read = dashboard("prometheus")
        for title, target in targets(read):
            expression = target["expr"]
            for name, value in (
                ("$__rate_interval", "2m"), ("$class", ".*"), ("$src", ".*"), ("$dst", ".*")
            ):  # fmt: skip
                expression = expression.replace(name, value)
            self.assertNotIn("$", expression, title)
            self.assertTrue(self.ask(expression), f"{title}: {expression}")
        for variable in read["templating"]["list"][1:]:
            metric, label = re.findall(r"label_values\((\w+), (\w+)\)", variable["query"])[0]
            query = {"match[]": metric, "start": f"{START_S:.0f}", "end": f"{END_S:.0f}"}
            answer = json.loads(self.server.get(f"/api/v1/label/{label}/values", query))
            wanted = {"class": "EF", "src_hostname": "lax1", "dst_hostname": "iad2"}[label]
            self.assertIn(wanted, answer["data"])

    def rules(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the alerts and the recorded figures by name."""
        groups = yaml.safe_load((ETC / "prometheus-alerts.yaml").read_text())["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        records = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
        for rule in rules:
            if "alert" in rule:
                self.assertIn(rule["labels"]["severity"], ("page", "ticket"))
                self.assertTrue(rule["annotations"]["summary"])
        return {rule["alert"]: rule["expr"] for rule in rules if "alert" in rule}, records

    def written_out(self, expression: str, records: dict[str, str]) -> str:
        """Return an expression with the recorded figures written out."""
        while True:
            found = [name for name in records if name in expression]
            if not found:
                return expression
            for name in found:
                expression = expression.replace(name, f"({records[name]})")

    def test_alerts(self) -> None:
        """Each alert fires for its fault in the fleet, and names it; no other pair is named."""
        alerts, records = self.rules()
        fired = {
            name: self.ask(self.written_out(expression, records).replace("offset 1d", ""))
            for name, expression in alerts.items()
        }

        def names(alert: str, *labels: str) -> set[tuple[str, ...]]:
            return {
                tuple(each["metric"].get(label, "") for label in labels) for each in fired[alert]
            }

        self.assertEqual(names("LlamaHostDown", "dst_hostname"), {("fra2",)})
        self.assertEqual(names("LlamaSourceBlind", "src_hostname"), {("lax2",)})
        pairs = names("LlamaPairLoses", "src_hostname", "dst_hostname")
        self.assertEqual(len(pairs), 2)
        self.assertIn(("lax1", "iad2"), pairs)
        self.assertEqual(len(fired["LlamaManyPairsLose"]), 1)  # with two hosts sick of nine
        remarked = names("LlamaRemarked", "dst_hostname", "class", "direction")
        self.assertEqual(remarked, {("fra1", "EF", "forward")})
        self.assertEqual(names("LlamaCollectorSilent", "instance"), {("fra2:5000",)})
        self.assertEqual(names("LlamaCollectorLate", "instance"), {("iad1:5000",)})
        self.assertEqual(names("LlamaTestRefused", "instance"), {("fra2:5000",)})
        self.assertEqual(names("LlamaIntervalLost", "instance"), {("rises:5000",)})
        self.assertEqual(names("LlamaReflectorLate", "instance"), {("iad1:5001",)})
        self.assertEqual(names("LlamaDatabaseBehind", "writer"), {("influxdb",)})
        self.assertEqual(
            names("LlamaSuspect", "src_hostname", "reason"),
            {("iad10", "late_ticks"), ("iad10", "receive_drops")},
        )
        self.assertEqual(fired["LlamaNothingProbed"], [])
        self.assertEqual(names("LlamaScraperSilent", "instance"), {("scraper2:5003",)})
        self.assertEqual(names("LlamaNotScraped", "collector"), {("http://fra2:5000",)})
        self.assertEqual(names("LlamaNotWritten", "writer"), {("sqlite",)})
        self.assertEqual(names("LlamaSpoolFills", "instance"), {("full:5003",), ("old:5003",)})
        self.assertEqual(names("LlamaSpoolRefuses", "instance"), {("scraper3:5003",)})
        self.assertEqual(
            names("LlamaIntervalsMissed", "instance", "collector"),
            {("x:5003", "rises"), ("back:5003", "missed")},
        )
        self.assertEqual(
            names("LlamaPointsDropped", "instance", "reason"),
            {("x:5003", "full"), ("back:5003", "full")},
        )

    def test_slower(self) -> None:
        """The alert for an RTT that grew finds the pair, with a quarter of an hour for the day."""
        alerts, records = self.rules()
        expression = alerts["LlamaSlowerThanUsual"].replace(
            "(llama:rtt:p50_5m offset 1d)",
            "(" + records["llama:rtt:p50_5m"].replace("[5m]", "[5m] offset 12m") + ")",
        )
        found = self.ask(self.written_out(expression, records))
        self.assertEqual(
            {(each["metric"]["src_hostname"], each["metric"]["dst_hostname"]) for each in found},
            {("iad2", "lax3")},
        )

    def test_rules_load(self) -> None:
        """Prometheus itself loads the rules and evaluates each without a complaint."""
        subprocess.run(
            ["promtool", "check", "rules", str(ETC / "prometheus-alerts.yaml")],
            check=True,
            capture_output=True,
        )
        for _ in range(200):
            answer = json.loads(self.server.get("/api/v1/rules", {}))
            rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
            if all(rule["health"] != "unknown" for rule in rules):
                break
            time.sleep(0.1)
        self.assertEqual({rule["health"] for rule in rules}, {"ok"})
        alerts, records = self.rules()
        self.assertEqual(len(rules), len(alerts) + len(records))


class RulesOverTimeTest(SynchronousTestCase):
    """What the rules make of series over time, as promtool plays them."""

    def play(self, series: dict[str, str], expected: Sequence[dict[str, Any]]) -> None:
        """Check which alerts are there at some times, with values given a minute from another."""
        directory = Path(self.mktemp())
        directory.mkdir()
        test = {
            "rule_files": [str(ETC / "prometheus-alerts.yaml")],
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [
                        {"series": name, "values": values} for name, values in series.items()
                    ],
                    "alert_rule_test": list(expected),
                }
            ],
        }
        (directory / "test.yml").write_text(yaml.safe_dump(test))
        played = subprocess.run(
            ["promtool", "test", "rules", str(directory / "test.yml")],
            capture_output=True,
            text=True,
        )
        self.assertEqual(played.returncode, 0, played.stdout + played.stderr)

    def lost(self, alert: str, metric: str, other: str, summary: str) -> None:
        """Check when an alert about lost data fires; of the other label a second value loses nothing."""
        severity = {"LlamaIntervalsMissed": "ticket", "LlamaPointsDropped": "page"}[alert]

        def at(instance: str, *minutes: int, fires: bool = True) -> list[dict[str, Any]]:
            fired = {
                "exp_labels": {"severity": severity, "instance": instance, other: "one"},
                "exp_annotations": {"summary": summary.format(instance)},
            }
            return [
                {"eval_time": f"{n}m", "alertname": alert, "exp_alerts": [fired] if fires else []}
                for n in minutes
            ]

        def series(values: str) -> dict[str, str]:
            return {
                f'{metric}{{instance="x",{other}="one"}}': values,
                f'{metric}{{instance="x",{other}="none"}}': "0x100",
            }

        cases = {  # from minute 0 on: values; when the alert is there, when it is not
            "away long": ("0x20 _x40 40x40", [61, 65, 70], [20, 45, 60, 72, 90]),
            "away shortly": ("0x20 stale _x3 40x40", [25, 30, 34], [20, 36, 50]),
            "never seen before": ("_x20 3x40", [20, 25, 29], [19, 31, 45]),
            "rises": ("0x20 5x40", [21, 25, 29], [20, 32, 45]),
            "rises from its first on": ("_x20 0+1x5 5x40", [22, 30, 33], [20, 37, 50]),
            "lost some long ago, away long": ("40x20 _x40 40x40", [], [20, 45, 61, 65, 72, 90]),
            "lost some long ago, away shortly": ("40x20 stale _x3 40x40", [], [20, 25, 31, 35, 50]),
            "lost some long ago, one gap": ("40x20 stale 40x40", [], [20, 22, 31, 32, 50]),
        }
        for name, (values, fires, quiet) in cases.items():
            with self.subTest(name):
                self.play(series(values), at("x", *fires) + at("x", *quiet, fires=False))

    def test_intervals_missed(self) -> None:
        """Told also when the scraper itself was away, and over by itself after ten minutes."""
        self.lost(
            "LlamaIntervalsMissed",
            "llama_scraper_intervals_missed_total",
            "collector",
            "one forgot intervals before they were scraped",
        )

    def test_points_dropped(self) -> None:
        """Told also when they were dropped before the scraper was asked, and over by itself."""
        self.lost(
            "LlamaPointsDropped",
            "llama_scraper_points_dropped_total",
            "reason",
            "the scraper at {} had to drop points",
        )

    def test_spool_refuses(self) -> None:
        """A spool that takes nothing is told after five minutes, until it takes points again."""
        summary = "the spool of the scraper at x takes no points: nothing is fetched"
        fired = {
            "exp_labels": {"severity": "page", "instance": "x"},
            "exp_annotations": {"summary": summary},
        }
        self.play(
            {'llama_scraper_spool_ok{instance="x"}': "1x5 0x10 1x10"},
            [
                {"eval_time": time, "alertname": "LlamaSpoolRefuses", "exp_alerts": alerts}
                for time, alerts in (("5m", []), ("8m", []), ("12m", [fired]), ("18m", []))
            ],
        )

    def test_nearly_all_lost(self) -> None:
        """Only what loses all is told to lose 100 %."""
        for lost, said in (
            (55, "0.55"), (9_994, "99.94"), (9_999.2, "99.99"), (9_999.7, "more than 99.99"),
            (10_000, "100.00"),
        ):  # fmt: skip
            pair = 'src_hostname="a",dst_hostname="b",class="EF"'
            fine = 'src_hostname="c",dst_hostname="b",class="EF"'
            summary = f"a to b (EF) loses {said} %"
            fired = {
                "exp_labels": {
                    "severity": "ticket", "src_hostname": "a", "dst_hostname": "b", "class": "EF",
                },
                "exp_annotations": {"summary": summary},
            }  # fmt: skip
            with self.subTest(said):
                self.play(
                    {
                        f"llama_probes_sent_total{{{pair}}}": "0+10000x20",
                        f"llama_probes_lost_total{{{pair}}}": f"0+{lost}x20",
                        f"llama_probes_sent_total{{{fine}}}": "0+10000x20",
                        f"llama_probes_lost_total{{{fine}}}": "0x20",
                    },
                    [{"eval_time": "15m", "alertname": "LlamaPairLoses", "exp_alerts": [fired]}],
                )


class RulesPrometheus(Prometheus):
    """Prometheus with the example's rules, evaluated every second."""

    def command(self) -> list[str]:
        """Return the command line."""
        command = super().command()
        rules = yaml.safe_load((ETC / "prometheus-alerts.yaml").read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        (self.directory / "rules.yml").write_text(yaml.safe_dump(rules))
        (self.directory / "prometheus.yml").write_text(
            "global: {evaluation_interval: 1s}\nrule_files: [rules.yml]\n"
        )
        return command
