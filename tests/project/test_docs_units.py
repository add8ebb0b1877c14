"""The units in etc/systemd/, and what docs/deployment.rst says of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import confined
from servers import free_port
from services import BIN, Collector, Service, configuration, until
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.config import CollectorConfig, ScraperConfig, WebConfig, load

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "deployment.rst"
SYSTEMD = ROOT / "etc" / "systemd"
UNITS = {path.stem: path.read_text() for path in sorted(SYSTEMD.glob("*.service"))}
DROPINS = sorted(SYSTEMD.glob("*.service.d/*.conf"))
#: What is each unit's own.
OWN = ("Description", "ExecStart", "ExecReload", "EnvironmentFile", "StateDirectory")


def settings(unit: str, name: str) -> list[str]:
    """Return what a unit gives a setting, line by line."""
    return re.findall(rf"(?m)^{name}=(.*)$", unit)


def analyse(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``systemd-analyze``."""
    return subprocess.run(
        ["systemd-analyze", *words],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


class ConfinedTests(SynchronousTestCase):
    """What the units forbid, done to the programs: they do without."""

    def setUp(self) -> None:
        """Take the reflector's, which forbids what the others do."""
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("needs systemd-analyze: apt install systemd")
        self.unit = UNITS["llama-reflector"]
        self.file = Path(self.mktemp()).absolute().with_suffix(".service")
        self.file.write_text(self.unit)

    def confined(self, *command: str) -> list[str]:
        """Return the command that runs another as the unit does."""
        try:
            confined.seccomp()
        except OSError:
            raise SkipTest("needs libseccomp: apt install libseccomp2") from None
        return [sys.executable, confined.__file__, str(self.file), *command]

    def test_exposure(self) -> None:
        """To systemd every unit leaves little open: 2.5 of 10 at most."""
        for name in UNITS:
            unit = SYSTEMD / f"{name}.service"
            done = analyse("security", "--offline=yes", "--threshold=25", unit)
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
        for unit, known in ((self.unit, "True"), (self.without_clock(), "False")):
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
        return self.unit.replace(" adjtimex clock_adjtime\n", "\n")


class FileTests(SynchronousTestCase):
    """The files that the page has are right."""

    def setUp(self) -> None:
        """Write them, and the token that one of them names."""
        page = PAGE.read_text(encoding="utf-8")
        directory = Path(self.mktemp())
        directory.mkdir()
        token = directory / "api.token"
        token.touch(mode=0o600)
        token.write_text("secret\n")
        self.paths = []
        for text in re.findall(r"::\n\n((?:    [\w-]+:.*\n(?:    .*\n)*))", page):
            self.paths.append(directory / f"{len(self.paths)}.yaml")
            text = re.sub("(?m)^    ", "", text).replace("/path/to/llama", str(ROOT))
            self.paths[-1].write_text(text)

    def test_load(self) -> None:
        """Ours are what they are to be."""
        kinds = [type(load(str(path))) for path in self.paths[:-1]]
        self.assertEqual(kinds, [CollectorConfig, ScraperConfig, WebConfig, CollectorConfig])

    def test_prometheus(self) -> None:
        """Prometheus takes its own, and asks for all that the rules look at, as they expect it."""
        if shutil.which("promtool") is None:
            raise SkipTest("needs promtool: apt install prometheus")
        path = self.paths[-1]
        done = subprocess.run(
            ["promtool", "check", "config", path], capture_output=True, text=True, timeout=60
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        rules = (ROOT / "etc" / "prometheus-alerts.yaml").read_text()
        asked = re.findall(r"llama_(collector|reflector|scraper)_", rules)
        expected = {*re.findall(r'job="([\w-]+)"', rules), *(f"llama-{name}" for name in asked)}
        self.assertEqual(set(re.findall(r"job_name: (\S+)", path.read_text())), expected)


class UnitTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Read the page."""
        self.page = PAGE.read_text(encoding="utf-8")

    def test_one_for_each_program(self) -> None:
        """Each runs its program, once, with what stands in the file of its name besides."""
        programs = ("reflector", "collector", "scraper", "web", "pinpoint")
        self.assertEqual(set(UNITS), {f"llama-{program}" for program in programs})
        for name, unit in UNITS.items():
            [command] = settings(unit, "ExecStart")
            self.assertRegex(command, rf" {name}|llama {name.partition('-')[2]} ")
            self.assertTrue(command.endswith(" $ARGS"), command)
            self.assertEqual(settings(unit, "EnvironmentFile"), [f"-/etc/default/{name}"])

    def test_alike(self) -> None:
        """But for what is their own, they say the same."""
        alike = {
            "".join(line for line in unit.splitlines(keepends=True) if not line.startswith(OWN))
            for unit in UNITS.values()
        }
        self.assertEqual(len(alike), 1)

    def test_started_again_for_ever(self) -> None:
        """What ends is started again, not at once and however often."""
        for unit in UNITS.values():
            for line in ("Restart=always", "RestartSec=5", "StartLimitIntervalSec=0"):
                self.assertIn(f"{line}\n", unit)
            self.assertIn("StartLimitIntervalSec", unit.partition("[Service]")[0])

    def test_copied(self) -> None:
        """The page has every file copied, and none that is not there."""
        copied = re.findall(
            r"cp (?:-r )?/path/to/llama/(etc/systemd/\S+) /etc/systemd/system/\n", self.page
        )
        there = [SYSTEMD / f"{name}.service" for name in UNITS] + [path.parent for path in DROPINS]
        self.assertEqual(sorted(copied), sorted(str(path.relative_to(ROOT)) for path in there))

    def test_arguments(self) -> None:
        """What the page writes for a unit is where that looks for it."""
        written = re.findall(r"echo 'ARGS=\"[^\"']+\"' >/etc/default/(\S+)", self.page)
        self.assertEqual(set(written), {"llama-reflector", "llama-collector", "llama-pinpoint"})

    def test_explained(self) -> None:
        """What the page explains stands in every unit."""
        explained = re.findall(r"(?m)^``(\w+=[^`]+)``(?:, with ``(\w+=[^`]+)``)?\n    ", self.page)
        lines = {line for both in explained for line in both if line}
        self.assertEqual(len(lines), 4)
        for unit in UNITS.values():
            self.assertEqual(lines - set(unit.splitlines()), set())

    def test_reloaded_or_restarted(self) -> None:
        """Taking a host out reaches every program that names it, in the way it can be reached."""
        text = self.page.partition("\nTaking a host out\n")[2].partition("\nUpgrading\n")[0]
        done = {
            how: set(" ".join(re.findall(rf"(?m)^ +systemctl {how} ([-a-z ]+)", text)).split())
            for how in ("reload", "restart")
        }
        self.assertEqual(done["reload"], {"llama-collector", "llama-scraper"})
        self.assertEqual(done["restart"], {"llama-web", "llama-pinpoint"})
        reloaded = {name for name, unit in UNITS.items() if settings(unit, "ExecReload")}
        self.assertEqual(reloaded, done["reload"] | {"llama-reflector"})

    def test_plugins_noted(self) -> None:
        """Whoever installs or upgrades lets twistd note its plugins, which its users cannot."""
        for title, end in (("\nInstalling\n", "\nUnits\n"), ("\nUpgrading\n", "\nLogs\n")):
            text = self.page.partition(title)[2].partition(end)[0]
            self.assertRegex(
                text, r"pip install .*\n +/opt/llama/bin/twistd --help >/dev/null", title
            )

    def test_verified(self) -> None:
        """To systemd nothing is wrong, with the drop-ins and without."""
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("needs systemd-analyze: apt install systemd")
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        for name, unit in UNITS.items():
            (directory / f"{name}.service").write_text(unit.replace("/opt/llama/bin", str(BIN)))
        units = sorted(directory.iterdir())
        for _ in range(2):
            done = analyse("verify", "--man=no", *units, SYSTEMD_UNIT_PATH=f"{directory}:")
            said = [line for line in done.stderr.splitlines() if "llama" in line]
            self.assertEqual((done.returncode, said), (0, []), done.stderr)
            for path in DROPINS:
                shutil.copytree(path.parent, directory / path.parent.name, dirs_exist_ok=True)
