"""The pages that say what services tell of themselves, held against what running services tell."""

from __future__ import annotations

import json
import re
import urllib.request

from attrs import fields
from manual import ROOT, first_table
from servers import free_port, free_udp_port
from services import Collector, Service, configuration, until
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.answers import encode
from llama.collector.answers.exposition import HEALTH_HELP
from llama.collector.intervals.summary import SUSPECT_REASONS
from llama.lab.faults import KINDS, Fault
from llama.reflector.guard import REASONS


def told(api: str, path: str) -> str:
    """Return what is served at ``path``; nothing while nobody is there."""
    try:
        with urllib.request.urlopen(f"http://{api}{path}", timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def metrics(api: str, prefix: str) -> set[str]:
    """Return the names of all metrics that begin with ``prefix``, without it."""
    text = until(lambda: told(api, "/metrics"), f"metrics of {api}")
    return set(re.findall(rf"(?m)^# TYPE {prefix}(\w+) ", text))


class MeasurementTests(SynchronousTestCase):
    def test_suspect(self) -> None:
        """The reasons for doubt stand by their numbers, which are those in databases."""
        rows = first_table("measurement.rst", "Suspect")
        said = [(name, int(row.split()[0])) for name, row in rows.items()]
        self.assertEqual(said, [(name, 1 << n) for n, name in enumerate(SUSPECT_REASONS)])

    def test_fields(self) -> None:
        """Every field of a point of a pair is in the table of fields, and no other."""
        fields = {"loss", "rtt", "suspect", "flows", "flows_lossy"}
        fields.update(encode.COUNTS, encode.TIMES, encode.LAST_VALUES)
        self.assertEqual(set(first_table("http.rst", "Points")), fields)


class LabTests(SynchronousTestCase):
    def test_faults(self) -> None:
        """Every kind of fault has its options on the page, and these what they are unless told."""
        rows = first_table("lab.rst", "Faults")
        said = {name: tuple(re.findall(r"``(\w+)=``", row)) for name, row in rows.items()}
        self.assertEqual(said, {name: kind.options for name, kind in KINDS.items()})
        page = (ROOT / "docs" / "lab.rst").read_text(encoding="utf-8")
        paragraph = page.partition("\nWhat is not said: ")[2].partition("\n\n")[0]
        usual = {a.name: a.default for a in fields(Fault) if a.default is not None}
        self.assertEqual(
            dict(re.findall(r"``(\w+)=([\w.]+)``", paragraph)),
            {
                name: f"{usual[name]:g}" if isinstance(usual[name], float) else str(usual[name])
                for kind in KINDS.values()
                for name in kind.options
                if name in usual
            },
        )


class ServiceTests(SynchronousTestCase):
    """Each service in a process of its own."""

    def start(self, service: Service) -> None:
        """Start one, to be ended with the test."""
        service.start()
        self.addCleanup(service.stop)

    def test_collector(self) -> None:
        """A collector's metrics, and the fields of its own point, are in the tables."""
        collector = Collector(configuration(free_udp_port()))
        self.start(collector)
        closed = until(
            lambda: json.loads(told(collector.api, "/influxdata") or "[]"), "an interval"
        )
        (own,) = [point for point in closed if point["measurement"] == "collector_stats"]
        health = set(first_table("http.rst", "How the collector itself is doing"))
        self.assertEqual(set(own["fields"]) - health, set())
        self.assertEqual(metrics(collector.api, "llama_collector_"), health)
        self.assertEqual(set(HEALTH_HELP), health)
        pairs = {f"llama_{name}" for name in metrics(collector.api, "llama_(?!collector_)")}
        self.assertEqual(pairs, set(first_table("http.rst", "Metrics")))

    def test_reflector(self) -> None:
        """So are a reflector's metrics, and why its guard drops a probe."""
        api = f"127.0.0.1:{free_port()}"
        self.start(Service("llama-reflector", "--interface", "127.0.0.1",
                           "--port", str(free_udp_port()), "--api", api))  # fmt: skip
        said = metrics(api, "llama_reflector_")
        self.assertEqual(said, set(first_table("http.rst", "The reflector")))
        page = (ROOT / "docs" / "http.rst").read_text(encoding="utf-8")
        for reason in REASONS[1:]:
            self.assertIn(f"``{reason}``", page)

    def test_scraper(self) -> None:
        """And a scraper's metrics."""
        api = f"127.0.0.1:{free_port()}"
        scraper = Service("llama-scraper", "--config", "scraper.yaml")
        (scraper.directory / "scraper.yaml").write_text(
            f"collectors: ['127.0.0.1:{free_port()}']\nwriters: [{{type: file, path: points}}]\n"
            f"api: {{bind: '{api}'}}\n"
        )
        self.start(scraper)
        said = {name for name in metrics(api, "llama_scraper_") if not name.endswith("_created")}
        rows = first_table("scraper.rst", "What it says about itself")
        self.assertEqual(said, set(rows))
