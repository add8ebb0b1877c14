"""What ``llama pinpoint --once`` prints for people."""

import subprocess
from io import StringIO

import numpy as np
from rich.console import Console
from services import BIN
from sightings import seen
from twisted.trial.unittest import SynchronousTestCase

from llama.cli.pinpoint import tell
from llama.pinpoint.evidence import Verdict
from llama.pinpoint.judgement import Judgement


class Told(SynchronousTestCase):
    def told(self, *sightings, excluded=(), problems=()):
        """Return what is printed."""
        verdict = Verdict(suspects=(), flows=9, judged=8, lossy=2, unexplained=0, excluded=excluded)
        none = np.zeros(0, np.int64)
        found = Judgement(end_s=1.0, verdict=verdict, sightings=sightings, data=True, measured=none)
        out = StringIO()
        tell(Console(file=out, width=120), found, list(problems), paths=7)
        return out.getvalue()

    def test_brackets_are_printed(self):
        """Addresses of IPv6 in URLs, and names with brackets, stand there whole."""
        told = self.told(
            seen(evidence="rack [r1] -> rack [/r2]: explains 3 of 3 lossy flows"),
            excluded=("1 lossy flows of [h1]: the hosts themselves lost probes",),
            problems=("http://[fd00::1]:5000: connection refused",),
        )
        for words in (
            "1  rack [r1] -> rack [/r2]: explains 3 of 3 lossy flows; confidence",
            "left out: 1 lossy flows of [h1]: the hosts",
            "http://[fd00::1]:5000: connection refused",
        ):
            self.assertIn(words, told)

    def test_nothing_to_name(self):
        """Without suspects it says how much was looked at."""
        self.assertEqual(self.told(), "no suspects: 2 of 8 flows are lossy, 7 paths are known\n")

    def test_control_characters(self):
        """What others call themselves moves no cursor, begins no line and turns no text around."""
        bad = "h\x1b[2J\x9b31m\u202e\r\nh2"
        told = self.told(seen(evidence=f"host {bad} down"), excluded=(bad,), problems=(bad,))
        self.assertEqual(len(told.splitlines()), 3, told)
        self.assertTrue(told.replace("\n", "").isprintable(), told)

    def test_usual_port(self):
        """A host without a port is asked where collectors listen, as files have it; a URL says all."""
        for collector, url in (
            ("127.93.1.7", "http://127.93.1.7:5000"),
            ("127.93.1.7:81", "http://127.93.1.7:81"),
            ("http://127.93.1.7", "http://127.93.1.7"),
            ("::ffff:127.93.1.7", "http://[::ffff:7f5d:107]:5000"),
            ("127.93.1.7/", "'127.93.1.7/' is no collector, expected HOST, HOST:PORT or a URL"),
        ):
            done = subprocess.run(
                [BIN / "llama", "pinpoint", "--once", collector],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            self.assertTrue(done.stderr.startswith(f"Error: {url}"), done.stderr)
