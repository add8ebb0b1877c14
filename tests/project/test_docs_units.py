"""The unit files in docs/deployment.rst: systemd takes them, and they start their service again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import confined
from servers import free_port
from services import Collector, Service, configuration, until
from twisted.trial.unittest import SkipTest, SynchronousTestCase

PAGE = Path(__file__).parent.parent.parent / "docs" / "deployment.rst"
PROGRAM = Path(sys.executable).parent / "twistd"


def blocks() -> list[str]:
    """Return the indented blocks of the page that are units, or parts of them."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"::\n\n((?:    .*\n|\n)+)", page)
    return [re.sub("(?m)^    ", "", block) for block in found if "ExecStart=" in block]


class ConfinedTests(SynchronousTestCase):
    """What the unit forbids, done to the programs: they do without."""

    def setUp(self) -> None:
        """Take the unit from the page."""
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("needs systemd-analyze: apt install systemd")
        self.file = Path(self.mktemp()).absolute().with_suffix(".service")
        self.file.write_text(blocks()[0])

    def confined(self, *command: str) -> list[str]:
        """Return the command that runs another as the unit does."""
        try:
            confined.seccomp()
        except OSError:
            raise SkipTest("needs libseccomp: apt install libseccomp2") from None
        return [sys.executable, confined.__file__, str(self.file), *command]

    def test_exposure(self) -> None:
        """To systemd the unit leaves little open: 2.5 of 10 at most."""
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(self.file)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_programs_work(self) -> None:
        """A collector probes a reflector over both families, and traces, both confined so."""
        port = free_port()
        reflector = Service("llama-reflector", "--port", str(port), "--api", "127.0.0.1:0")
        collector = Collector(configuration(port, targets={"a": "127.0.0.1", "b": "::1"}))
        for service in (reflector, collector):
            command = self.confined(*service.command())
            service.command = lambda command=command: command  # type: ignore[method-assign]
            service.start()
            self.addCleanup(service.stop)
        for name in ("a", "b"):
            collector.wait_for(lambda fields: fields["received"] > 0, f"replies of {name}", name)
        until(lambda: collector.get("/paths")["paths"], "paths")
        for service in (reflector, collector):
            self.assertNotIn("not permitted", service.text())

    def test_the_clock_is_known(self) -> None:
        """How exact the clock is can still be asked for, by what the unit allows for that alone."""
        code = "import ctypes; print(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) >= 0)"
        for unit, known in ((blocks()[0], "True"), (self.without_clock(), "False")):
            self.file.write_text(unit)
            done = subprocess.run(
                self.confined(sys.executable, "-c", code),
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.stdout.strip(), known, done.stderr)

    def without_clock(self) -> str:
        """The unit without the system calls that are allowed for the clock."""
        return blocks()[0].replace(" adjtimex clock_adjtime\n", "\n")


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
