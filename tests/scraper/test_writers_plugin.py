"""Writers as plugins: the built-in ones are found, and the documentation's example works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from fake_collector import FakeCollector
from scraper_case import NOW, until
from servers import Victoria, free_port
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from llama.config import ScraperConfig, WriterConfig
from llama.interfaces import ITimeSeriesWriter, ITimeSeriesWriterMaker
from llama.scraper.writers import WriterConfigError, make_writers, makers

ROOT = Path(__file__).resolve().parent.parent.parent
OPTIONS = {
    "influxdb": {"database": "x"}, "influxdb2": {"bucket": "x"}, "victoriametrics": {},
    "sqlite": {"path": "x"}, "file": {"path": "x"},
}  # fmt: skip


def writers_of(*sections: WriterConfig) -> list[ITimeSeriesWriter]:
    """Make the writers of these sections."""
    return make_writers(reactor, ScraperConfig(path="x", collectors=(), writers=sections))


class BuiltInTests(SynchronousTestCase):
    """What comes with LLAMA."""

    def test_found(self) -> None:
        """All five are plugins and provide the public interface."""
        self.assertLessEqual(set(OPTIONS), set(makers()))
        for kind, options in OPTIONS.items():
            verifyObject(ITimeSeriesWriterMaker, makers()[kind])
            [writer] = writers_of(WriterConfig(type=kind, options=options))
            verifyObject(ITimeSeriesWriter, writer)

    def test_nothing_heavy(self) -> None:
        """Listing them imports no writer and no HTTP client."""
        code = (
            "import sys; from twisted.plugin import getPlugins;"
            "from llama.interfaces import ITimeSeriesWriterMaker as I;"
            "print(len(list(getPlugins(I))) >= 5,"
            " [m for m in ('treq', 'numpy', 'llama.scraper') if m in sys.modules])"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        self.assertEqual(shown.stdout, b"True []\n", shown.stderr)

    def test_mistakes(self) -> None:
        """All sections with a mistake are named, with file and line."""
        with self.assertRaises(WriterConfigError) as raised:
            writers_of(
                WriterConfig(type="influx", file="s.yaml", line=3),
                WriterConfig(type="file", options={"path": "a"}, file="s.yaml", line=4),
                WriterConfig(type="file", options={"path": "a"}, file="s.yaml", line=5),
                WriterConfig(type="sqlite", file="s.yaml", line=6),
            )
        lines = str(raised.exception).splitlines()
        self.assertRegex(
            lines[0], r"\As.yaml:3: no writer of type 'influx', expected file, influxdb,"
        )
        self.assertRegex(
            lines[1], r"\As.yaml:5: a second writer named 'file /.*/a', expected a 'name'"
        )
        self.assertEqual(lines[2], "s.yaml:6: writer sqlite: 'path' is missing")

    def test_paths(self) -> None:
        """A relative path is taken from the configuration's directory."""
        [writer] = writers_of(
            WriterConfig(type="file", options={"path": "out/points"}, file="/etc/llama/s.yaml")
        )
        self.assertEqual(writer.name, "file /etc/llama/out/points")


class ExampleTests(TestCase):
    """The example of docs/writers.rst."""

    async def test_it_works(self) -> None:
        """Put into a directory of plugins, it writes what a collector closed into a real database."""
        text = (ROOT / "docs" / "writers.rst").read_text()
        block = re.search(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
        assert block is not None
        directory = Path(tempfile.mkdtemp(prefix="llama-plugin-"))
        self.addCleanup(shutil.rmtree, directory)
        plugins = directory / "path" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "opentsdb_writer.py").write_text(textwrap.dedent(block[1]))
        server = Victoria()
        opentsdb = free_port()
        server.arguments = [f"-opentsdbHTTPListenAddr=127.0.0.1:{opentsdb}"]
        server.start()
        self.addCleanup(server.stop)
        collector = FakeCollector("one")
        url = collector.listen(reactor)
        self.addCleanup(collector.stop)
        collector.close(NOW, pairs=2)
        (directory / "scraper.yaml").write_text(
            f"interval: 0.2\ncollectors: ['{url}']\napi: {{bind: '127.0.0.1:{free_port()}'}}\n"
            f"writers: [{{type: opentsdb, url: 'http://127.0.0.1:{opentsdb}'}}]\n"
        )
        scraper = subprocess.Popen(
            [sys.executable, "-m", "twisted", "llama-scraper", "--config", "scraper.yaml"],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": f"{directory / 'path'}:{ROOT}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await until(lambda: len(server.export('{dst_hostname="dst1"}')) == 7, "all fields")
        finally:
            scraper.kill()
            scraper.wait()
        [series] = server.export('{__name__="raw_stats.rtt",dst_hostname="dst1"}')
        self.assertEqual(series["timestamps"], [NOW * 1000])
        self.assertEqual(series["values"], [collector.ledger["dst1", NOW]["rtt"]])
