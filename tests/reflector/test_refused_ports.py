"""Source ports that reflectors refuse: nobody probes from one unknowingly."""

from __future__ import annotations

import subprocess
from pathlib import Path

from click.testing import CliRunner
from services import BIN
from twisted.trial.unittest import SynchronousTestCase

from llama import config
from llama.cli import main
from llama.collector.probing import sockets
from llama.collector.probing.plan import Source
from llama.wire.source_ports import REFUSED_PORTS, named

FILE = """\
ports: {{default: {{port: {port}}}}}
port_groups: {{default: [{{port: default, count: {count}}}]}}
tests:
  - {{targets: lab, probe: {probe}}}
targets: {{lab: [{{ip: 192.0.2.1}}]}}
"""


class ConfiguredTests(SynchronousTestCase):
    """Those that a configuration names."""

    def file(self, port: int, count: int, probe: str = "stamp") -> str:
        """Return the path of a collector's file."""
        path = Path(self.mktemp())
        path.write_text(FILE.format(port=port, count=count, probe=probe))
        return str(path)

    def test_noted(self) -> None:
        """``llama check`` and the log tell which they are, of kinds that our reflectors answer."""
        path = self.file(5350, 8)
        (note,) = config.load_collector(path).notes
        self.assertEqual(note.line, 4)
        self.assertIn("probes from port 5353 (multicast DNS), which LLAMA's", note.message)
        done = CliRunner().invoke(main, ["check", path])
        self.assertIn("choose other ports", done.output.partition("\nwarnings\n")[2])
        for port, count, probe, noted in (
            (5350, 3, "stamp", 0),
            (0, 8, "stamp", 0),
            (5350, 8, "llama-go", 1),
            (5350, 8, "twamp-light", 0),  # such responders answer it
            (5350, 8, "icmp", 0),
            (862, 1, "stamp", 1),
        ):
            notes = config.load_collector(self.file(port, count, probe)).notes
            self.assertEqual(len(notes), noted, (port, count, probe))

    def test_many(self) -> None:
        """However many there are, a line tells of them."""
        self.assertEqual(named([19, 7]), "7 (echo), 19 (character generator)")
        self.assertIn(" and 5 more", named(list(REFUSED_PORTS)[1:9]))


class ChosenTests(SynchronousTestCase):
    def test_by_the_system(self) -> None:
        """The system chooses one now and then, where it may choose from all; another is taken."""
        odd = dict.fromkeys(range(1, 65536, 2), "refused")
        self.patch(sockets, "REFUSED_PORTS", odd)
        source = Source(
            version=4, address="127.0.0.1", interface=None, number=0, owner="here", df=False
        )
        made = [sockets.ProbeSocket(source, kernel_stamps=False, ids=False) for _ in range(40)]
        for each in made:
            self.addCleanup(each.sock.close)
            self.assertEqual(each.number, each.sock.getsockname()[1])
            self.assertEqual(each.number % 2, 0)

    def test_by_people(self) -> None:
        """Who gives one on the command line is told, on standard error, before it seems a fault."""
        words = ("127.0.0.1:9", "--source-port", "5353", "--count", "1", "--timeout", "0.01")
        done = subprocess.run(
            [BIN / "llama", "send", *words], capture_output=True, text=True, timeout=60
        )
        self.assertIn("refuse probes from port 5353 (multicast DNS)", done.stderr)
        self.assertEqual(done.returncode, 1)
        done = subprocess.run(
            [BIN / "llama", "send", *words, "--probe", "twamp-light"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual((done.stderr, done.returncode), ("", 1))
