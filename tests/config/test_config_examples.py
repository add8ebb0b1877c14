"""The examples in ``etc/`` and the page about configuration: complete, and right."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from attrs import evolve
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from llama import config
from llama.config import collector, full, ports, reflector, scraper, sections, web
from llama.config.probes import KINDS
from llama.config.tree import Document, KeySpec, WrongError
from llama.scraper.writers import make_writer, makers

ROOT = Path(__file__).parent.parent.parent
ETC = ROOT / "etc"

#: What a file of each service can have, section by section.
SECTIONS: dict[str, list[Mapping[str, KeySpec]]] = {
    "collector": [
        full.FULL, full.SUMMARIZATION, sections.API, full.LIMITS, ports.PORT, ports.PORT_GROUP,
        full.RATE_LIMIT, full.TEST, full.TARGET, *(kind.options for kind in KINDS.values()),
    ],
    "reflector": [
        reflector.REFLECTOR, sections.API, reflector.LIMITS, reflector.KEY, reflector.SESSION,
        reflector.STATS,
    ],
    "scraper": [scraper.SCRAPER, sections.API, scraper.SPOOL],
    "web": [web.WEB, *web.STORES.values()],
}  # fmt: skip
#: Every key of each.
KEYS = {service: {key for keys in all_ for key in keys} for service, all_ in SECTIONS.items()}
KEYS["scraper"].add("type")
KEYS["web"].add("type")
#: Bounds that the pages write in another way than mistakes do.
OTHERWISE = {
    "1 to 9216": "to 9216", "60 to 315360000": "60 to 3650d", "3600 to 7776000": "1h to 90d",
}  # fmt: skip


def bounds(spec: KeySpec) -> str | None:
    """Return ``LOW to HIGH`` of a key that has bounds, as whoever gives it nonsense is told."""
    doc = Document("-", yaml.ScalarNode("tag:yaml.org,2002:str", "nonsense"))
    try:
        spec.read(doc, doc.root)
    except WrongError as error:
        found = re.search(r"(?:number|time) from (\S+) to (\S+)", error.message)
        return f"{found[1]} to {found[2]}" if found else None
    return None


def unbounded(text: str, mark: str, all_: Iterable[Mapping[str, KeySpec]]) -> list[str]:
    """Return the keys that no mention, ``mark`` with it for KEY, is soon followed by their bounds."""
    text = text.replace("`", "")
    left = []
    for key, spec in (item for keys in all_ for item in keys.items()):
        wanted = bounds(spec)
        if wanted is None or key == "sizes":  # told of with `size`
            continue
        wanted = r"\s+(?:#\s+)?".join(map(re.escape, OTHERWISE.get(wanted, wanted).split()))
        if not re.search(rf"{mark.replace('KEY', key)}[\s\S]{{1,400}}?\b{wanted}\b", text, re.M):
            left.append(f"{key}: {bounds(spec)}")
    return left


def missing(keys: Iterable[str], text: str, pattern: str) -> list[str]:
    """Return the keys for which the pattern, with the key for ``KEY``, is not in the text."""
    return [key for key in keys if not re.search(pattern.replace("KEY", key), text, re.MULTILINE)]


class ExampleTests(SynchronousTestCase):
    """The files in ``etc/``."""

    def test_load(self) -> None:
        """Every example loads as what its name says, without a remark."""
        for name, kind in (
            ("collector.simple", config.CollectorConfig),
            ("collector", config.CollectorConfig),
            ("reflector", config.ReflectorConfig),
            ("scraper", config.ScraperConfig),
            ("web", config.WebConfig),
        ):
            read = config.load(str(ETC / f"{name}.yaml"))
            self.assertIsInstance(read, kind)
            self.assertEqual(read.notes, ())

    def test_every_key(self) -> None:
        """Every key there is stands in its example, if only as a comment."""
        for service, keys in KEYS.items():
            text = (ETC / f"{service}.yaml").read_text()
            self.assertEqual(missing(keys - {"size"}, text, r"^[ #-]*KEY:"), [], service)
        self.assertIn("`size`", (ETC / "collector.yaml").read_text())

    def test_bounds(self) -> None:
        """Where a key has bounds, they are those that are written behind it."""
        for service, all_ in SECTIONS.items():
            text = (ETC / f"{service}.yaml").read_text()
            self.assertEqual(unbounded(text, r"^[ #-]*KEY:", all_), [], service)

    def test_every_probe(self) -> None:
        """Every kind of probe is named in the collector's example."""
        text = (ETC / "collector.yaml").read_text()
        self.assertEqual(missing(config.PROBES, text, r"\bKEY\b"), [])

    def test_commented_parts(self) -> None:
        """What stands in comments as an alternative is right as well."""
        text = (ETC / "web.yaml").read_text()
        _head, *stores = re.split(r"^(?:# )?store:.*\n", text, flags=re.MULTILINE)
        self.assertEqual(len(stores), len(web.STORES))
        for number, store in enumerate(stores):
            lines = [line.removeprefix("# ") for line in store.splitlines()]
            kept = [line for line in lines if "_file" not in line]
            path = Path(self.mktemp())
            path.write_text("store:\n" + "\n".join(kept))
            self.assertEqual(config.load_web(str(path)).store.type, list(web.STORES)[number])

    def test_commented_writers(self) -> None:
        """So are the writers in comments: each takes the options that are shown for it."""
        text = (ETC / "scraper.yaml").read_text()
        shown = re.sub(r"^  # (- type| {2}\w+:)", r"  \1", text, flags=re.MULTILINE)
        shown = re.sub(r"^    # (\w+:)", r"    \1", shown, flags=re.MULTILINE)
        path = Path(self.mktemp())
        path.write_text(re.sub(r"^.*_file:.*\n", "", shown, flags=re.MULTILINE))
        read = config.load_scraper(str(path))
        self.assertEqual({writer.type for writer in read.writers}, set(scraper.WRITERS))
        self.assertEqual(set(makers()), set(scraper.WRITERS))
        for writer in read.writers:
            options = dict(writer.options)
            if writer.type == "influxdb":
                self.assertEqual(len(options), 8)
            if "path" in options:
                options["path"] = self.mktemp()
            made = make_writer(MemoryReactorClock(), evolve(writer, options=options))
            self.assertTrue(made.name)

    def test_defaults(self) -> None:
        """What the examples and the page call defaults are the defaults."""
        (test,) = config.load_collector(str(ETC / "collector.simple.yaml")).tests
        self.assertEqual((test.rate_pps, len(test.source_ports)), (4.0, 4))
        self.assertEqual(collector.default_keep(30), 33)


class PageTests(SynchronousTestCase):
    """``docs/configuration.rst``."""

    def test_every_key(self) -> None:
        """Every key and every kind of probe is on the page."""
        text = (ROOT / "docs" / "configuration.rst").read_text()
        for service, keys in KEYS.items():
            self.assertEqual(missing(keys, text, r"``KEY``"), [], service)
        self.assertEqual(missing(config.PROBES, text, r"``KEY``"), [])

    def test_bounds(self) -> None:
        """Where a key has bounds, they are those on the page."""
        text = (ROOT / "docs" / "configuration.rst").read_text()
        for service, all_ in SECTIONS.items():
            self.assertEqual(unbounded(text, r"\bKEY\b", all_), [], service)
