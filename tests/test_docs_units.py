"""The unit files in docs/deployment.rst: systemd takes them, and they start their service again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

PAGE = Path(__file__).parent.parent / "docs" / "deployment.rst"
PROGRAM = Path(sys.executable).parent / "twistd"


def blocks() -> list[str]:
    """Return the indented blocks of the page that are units, or parts of them."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"::\n\n((?:    .*\n|\n)+)", page)
    return [re.sub("(?m)^    ", "", block) for block in found if "ExecStart=" in block]


class UnitTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Take the reflector's unit and its drop-in from the page."""
        self.unit, self.dropin, self.collector = blocks()

    def test_one_command(self) -> None:
        """A unit has one command; a drop-in forgets the one before its own."""
        commands = re.findall("(?m)^ExecStart=(.*)$", self.unit)
        self.assertEqual(len(commands), 1)
        self.assertEqual(
            [bool(text) for text in re.findall("(?m)^ExecStart=(.*)$", self.dropin)], [False, True]
        )
        self.assertEqual(len(re.findall("(?m)^ExecStart=", self.collector)), 1)

    def test_started_again_for_ever(self) -> None:
        """What ends is started again, not at once and however often."""
        for line in ("Restart=always", "RestartSec=5", "StartLimitIntervalSec=0"):
            self.assertIn(f"{line}\n", self.unit)
        self.assertIn("StartLimitIntervalSec", self.unit.partition("[Service]")[0])

    def test_reloaded_or_restarted(self) -> None:
        """Taking a host out reaches every program that names it, in the way it can be reached."""
        page = PAGE.read_text(encoding="utf-8")
        text = page.partition("\nTaking a host out\n")[2].partition("\nUpgrading\n")[0]
        done = {
            how: set(" ".join(re.findall(rf"(?m)^ +systemctl {how} ([-a-z ]+)", text)).split())
            for how in ("reload", "restart")
        }
        self.assertEqual(done["reload"], {"llama-collector", "llama-scraper"})
        self.assertEqual(done["restart"], {"llama-web", "llama-pinpoint"})

    def test_plugins_noted(self) -> None:
        """Whoever installs or upgrades lets twistd note its plugins, which its users cannot."""
        page = PAGE.read_text(encoding="utf-8")
        for title, end in (("\nInstalling\n", "\nUnits\n"), ("\nUpgrading\n", "\nLogs\n")):
            text = page.partition(title)[2].partition(end)[0]
            self.assertRegex(
                text, r"pip install .*\n +/opt/llama/bin/twistd --help >/dev/null", title
            )

    def test_verified(self) -> None:
        """To systemd nothing is wrong, with the drop-in and without."""
        analyse = shutil.which("systemd-analyze")
        if analyse is None:
            raise SkipTest("needs systemd-analyze: apt install systemd")
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        unit = directory / "llama-reflector.service"
        unit.write_text(self.unit.replace("/opt/llama/bin/twistd", str(PROGRAM)))
        for _ in range(2):
            done = subprocess.run(
                [analyse, "verify", "--man=no", str(unit)],
                env={**os.environ, "SYSTEMD_UNIT_PATH": f"{directory}:"},
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            said = [line for line in done.stderr.splitlines() if "llama" in line]
            self.assertEqual((done.returncode, said), (0, []), done.stderr)
            (directory / "llama-reflector.service.d").mkdir(exist_ok=True)
            (directory / "llama-reflector.service.d/local.conf").write_text(
                self.dropin.replace("/opt/llama/bin/twistd", str(PROGRAM))
            )
