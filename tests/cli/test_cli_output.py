"""What becomes of a command of ``llama`` whose output goes nowhere, or not all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from services import BIN
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent
NOBODY = ("send", "127.0.0.1:9", "-c", "1", "-W", "0.05")  # one sample or none is a dash
COMMANDS = (
    (NOBODY, 1),
    ((*NOBODY, "--flows", "2"), 1),
    ((*NOBODY, "--json"), 1),
    (("trace", "127.0.0.1:9", "--probes", "0", "--flows", "1", "--no-dns"), 0),
    (("check", str(ROOT / "etc" / "collector.yaml")), 0),
    (("--help",), 0),
)


class OutputTests(SynchronousTestCase):
    """Every one ends with a status, and at most a line of complaint."""

    def ended(self, redirect: str, *words: str, **variables: str) -> tuple[int, str, bytes]:
        """Run a command in a shell; returns its status, standard error and output."""
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", str(BIN / "llama"), *words],
            env={**os.environ, **variables}, capture_output=True, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stderr.decode(), done.stdout

    def test_no_room(self) -> None:
        """A full disk is said to be the reason, with a status of its own."""
        for words, _ in COMMANDS:
            status, said, _ = self.ended(">/dev/full", *words)
            self.assertRegex(said, r"\Allama.*: cannot write its output: No space .*\n\Z", words)
            self.assertEqual(status, 2, words)

    def test_closed(self) -> None:
        """With standard output closed the status tells as always, and no socket takes its place."""
        for words, usual in COMMANDS:
            self.assertEqual(self.ended(">&-", *words), (usual, "", b""), words)

    def test_charset(self) -> None:
        """What ASCII lacks, dashes and lines say, does not keep the rest from being written."""
        for words, usual in COMMANDS:
            status, said, output = self.ended("", *words, PYTHONIOENCODING="ascii")
            self.assertEqual((status, said), (usual, ""), words)
            self.assertTrue(output.isascii() and output.strip(), words)

    def test_signs_in_ascii(self) -> None:
        """Signs that ASCII lacks stay apart, and lines stay lines."""
        words = ("trace", "127.0.0.1:9", "--probes", "0", "--flows", "1", "--no-dns")
        _, _, output = self.ended("", *words, PYTHONIOENCODING="ascii")
        self.assertRegex(output, rb"here --- 127\.0\.0\.1")
        program = (
            "from llama.cli import _output; _output.prepare();"
            " print('\u25a0 loss  \u25a8 no data  \u251c\u2500\u2510 3 \xd7 2 \u2192 \xe9')"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        self.assertEqual(done.stdout, b"# loss  / no data  +-+ 3 x 2 > ?\n")
