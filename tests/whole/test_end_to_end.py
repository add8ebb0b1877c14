"""Everything together, for real: twistd reflectors, collectors, scraper and a database."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from servers import Influx, free_udp_port
from services import BIN, Collector, Service, configuration, until
from twisted.trial.unittest import TestCase

from llama.collector.intervals.summary import reasons


class PluginTests(TestCase):
    """What twistd finds."""

    def test_services_are_listed_from_anywhere(self) -> None:
        """``twistd --help`` lists the services from a directory that has nothing to do with LLAMA."""
        listed = subprocess.run(
            [BIN / "twistd", "--help"], cwd=tempfile.mkdtemp(), capture_output=True, text=True
        ).stdout
        for name in ("llama-collector", "llama-reflector", "llama-scraper", "llama-web"):
            self.assertIn(name, listed)

    def test_mistakes_end_the_program_in_one_line_each(self) -> None:
        """A bad configuration is refused with file and line, without a traceback."""
        file = Path(tempfile.mkdtemp()) / "bad.yaml"
        for service, text, line in (
            ("collector", "tests: []\nrate_limits: {default: {cps: fast}}\n", 2),
            ("reflector", "port: 8100\nstats: 3\n", 2),
            ("scraper", "collectors: [a]\nwriters: 3\n", 2),
            ("web", "store: 3\n", 1),
        ):
            file.write_text(text)
            done = subprocess.run(
                [BIN / "twistd", "-n", "--pidfile=", f"llama-{service}", "--config", file],
                cwd=tempfile.mkdtemp(), capture_output=True, text=True,
            )  # fmt: skip
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            told = done.stderr.splitlines()
            self.assertTrue(all(each.startswith(f"{file}:") for each in told), told)
            self.assertIn(f"{file}:{line}:", told[-1])


class CollectorTests(TestCase):
    """A reflector and a collector."""

    def setUp(self) -> None:
        """Start a reflector."""
        self.port = free_udp_port()
        self.reflector = Service(
            "llama-reflector", "--port", str(self.port), "--api", "127.0.0.1:0"
        ).start()
        self.addCleanup(self.reflector.stop)
        until(lambda: "answering" in self.reflector.text(), "the reflector")

    def collector(self, text: str) -> Collector:
        """Start a collector."""
        collector = Collector(text)
        collector.start()
        self.addCleanup(collector.stop)
        return collector

    def test_loss_follows_the_reflector(self) -> None:
        """All is well; then the reflector dies: loss 100 and no RTT; it comes back: loss 0."""
        collector = self.collector(configuration(self.port))
        well = collector.wait_for(lambda p: p["sent"] >= 20 and p["loss"] == 0, "no loss")
        self.assertEqual(well["sent"], well["received"])
        self.assertIn("rtt", well)
        self.reflector.stop(signal.SIGKILL)
        dead = collector.wait_for(lambda p: p["loss"] == 100, "total loss")
        for name in dead:
            self.assertFalse(name.startswith("rtt"), name)
        self.reflector.start()
        collector.wait_for(lambda p: p["sent"] and p["loss"] == 0, "no loss again")

    def test_frozen_reflector(self) -> None:
        """A reflector that is stopped answers late, which is loss, and marked; after it, all is well."""
        collector = self.collector(configuration(self.port))
        collector.wait_for(lambda p: p["sent"] and p["loss"] == 0, "no loss")
        self.reflector.send_signal(signal.SIGSTOP)
        collector.wait_for(lambda p: p["loss"] == 100, "total loss")
        self.reflector.send_signal(signal.SIGCONT)
        late = collector.wait_for(lambda p: p["late"] > 0, "late replies")
        self.assertGreaterEqual(late["sent"], late["received"])
        self.assertIn("reflector_late", reasons(int(late["suspect"])))
        collector.wait_for(lambda p: p["sent"] and p["loss"] == 0 and not p["suspect"], "all well")

    def test_frozen_collector_blames_nobody(self) -> None:
        """A collector that is stopped for a second marks the interval and reports no false loss."""
        collector = self.collector(configuration(self.port, cps=50))
        collector.wait_for(lambda p: p["sent"] and p["loss"] == 0, "no loss")
        collector.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        collector.send_signal(signal.SIGCONT)
        late_ticks = 1 << 2

        def marked() -> Any:
            answer = collector.get("/influxdata?since=")
            fields = [p["fields"] for p in answer if p["measurement"] == "raw_stats"]
            self.assertEqual([f for f in fields if f["lost"]], [])
            return [f for f in fields if int(f["suspect"]) & late_ticks]

        until(marked, "an interval marked for late ticks")

    def test_classes_are_flows_of_their_own(self) -> None:
        """Two classes from one source port have figures of their own and reach the reflector."""
        collector = self.collector(configuration(self.port, dscp=["BE", "EF"]))
        collector.wait_for(lambda p: p["sent"] >= 20, "probes in EF", cls="EF")
        points = collector.points()
        self.assertEqual(points["a", "EF"]["dscp_at_reflector"], 46)
        self.assertEqual(points["a", "BE"]["dscp_at_reflector"], 0)
        flows = collector.get("/flows?target=a&class=EF")["flows"]
        self.assertEqual(len({flow["source_port"] for flow in flows}), 4)

    def test_both_families(self) -> None:
        """A target that is an IPv6 address is probed over IPv6."""
        collector = self.collector(
            configuration(self.port, targets={"a": "127.0.0.1", "six": "::1"})
        )
        collector.wait_for(lambda p: p["sent"] and p["loss"] == 0, "IPv6", name="six")

    def test_names_are_resolved(self) -> None:
        """A target may be a name."""
        collector = self.collector(configuration(self.port, targets={"a": "localhost"}))
        collector.wait_for(lambda p: p["sent"] and p["loss"] == 0, "localhost")

    def test_unroutable_target_is_not_lost(self) -> None:
        """Probes that the kernel refuses to send are neither sent nor lost, and are told."""
        collector = self.collector(
            configuration(self.port, targets={"a": "127.0.0.1", "nowhere": "127.255.255.255"})
        )
        fields = collector.wait_for(
            lambda p: int(p["suspect"]) & 2, "a mark for failed sends", name="nowhere"
        )
        self.assertEqual((fields["sent"], fields["lost"]), (0, 0))
        self.assertNotIn("loss", fields)
        well = collector.wait_for(lambda p: p["sent"], "the healthy target")
        self.assertEqual((well["loss"], int(well["suspect"]) & 2), (0, 0))

    def test_reload_leaves_untouched_flows_counting(self) -> None:
        """SIGHUP adds and removes targets; those that stay keep their ports and lose nothing."""
        collector = self.collector(configuration(self.port))
        collector.wait_for(lambda p: p["sent"] >= 20, "probes")

        def ports() -> Any:
            return {flow["source_port"] for flow in collector.get("/flows?target=a")["flows"]}

        before = ports()
        collector.configure(configuration(self.port, targets={"a": "127.0.0.1", "c": "127.0.0.3"}))
        collector.send_signal(signal.SIGHUP)
        collector.wait_for(lambda p: p["sent"] >= 20, "the new target", name="c")
        self.assertEqual(ports(), before)
        answer = collector.get("/influxdata?since=")
        stays = [p["fields"] for p in answer if p["tags"].get("dst_hostname") == "a"]
        self.assertEqual([f for f in stays if f["lost"]], [])
        times = [p["time"] for p in answer if p["tags"].get("dst_hostname") == "a"]
        self.assertEqual(len(times), len(set(times)))
        collector.configure("targets: {default: [{ip: 127.0.0.1, prot: 1}]}\n")
        collector.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded" in collector.text(), "the refusal")
        newest = collector.points()["c", "BE"]["time"]
        collector.wait_for(lambda p: p["time"] > newest and p["sent"], "it goes on", name="c")


class PipelineTests(TestCase):
    """Down to the database."""

    def test_original_configuration_to_influxdb(self) -> None:
        """The original's simple file, a reflector and a scraper: rows with text tags and no loss."""
        influx = Influx()
        influx.start()
        self.addCleanup(influx.stop)
        port = free_udp_port()
        reflector = Service("llama-reflector", "--port", str(port), "--api", "127.0.0.1:0").start()
        self.addCleanup(reflector.stop)
        collector = Collector(configuration(port))
        collector.start()
        self.addCleanup(collector.stop)
        scraper = Service("llama-scraper", "--config", "scraper.yaml")
        (scraper.directory / "scraper.yaml").write_text(
            f"interval: 1\ncollectors: ['http://{collector.api}']\napi: {{bind: '127.0.0.1:0'}}\n"
            f"writers: [{{type: influxdb, url: '{influx.url}', database: llama, create: true}}]\n"
        )
        scraper.start()
        self.addCleanup(scraper.stop)

        def newest(wanted: str) -> Any:
            query = "SELECT * FROM raw_stats WHERE dst_hostname = 'a' ORDER BY time DESC LIMIT 1"
            for row in influx.run(query, "llama"):
                if row.get("loss") == {"all": 100, "none": 0}[wanted]:
                    return row
            return None

        row = until(lambda: newest("none"), "rows without loss")
        self.assertEqual(row["rack"], "01")
        self.assertTrue(row["src_hostname"])
        self.assertEqual(row["dst_hostname"], "a")
        self.assertGreater(row["rtt"], 0)
        reflector.stop(signal.SIGKILL)
        row = until(lambda: newest("all"), "rows with total loss")
        self.assertIsNone(row["rtt"])
        reflector.start()
        until(lambda: newest("none"), "rows without loss again")
