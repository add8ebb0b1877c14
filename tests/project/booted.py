"""A machine that systemd has booted, with LLAMA in /opt/llama: see ``boot.sh``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from servers import die_with_parent
from services import until
from twisted.trial.unittest import SkipTest

ROOT = Path(__file__).parent.parent.parent
BOOT = Path(__file__).with_name("boot.sh")


class Machine:
    """One such machine, from `start` to `stop`."""

    def __init__(self) -> None:
        if os.geteuid() or not (Path("/lib/systemd/systemd").exists() and shutil.which("pgrep")):
            raise SkipTest("needs root, systemd and procps: make system")
        self.directory = Path(tempfile.mkdtemp(prefix="llama-test-"))
        self.log = self.directory / "log"
        self._place = self.directory / "machine"
        self._group = self.directory.name
        self._process: subprocess.Popen[bytes] | None = None
        self._first = ""

    def start(self) -> None:
        """Boot it; returns when systemd says that all is up."""
        self._place.mkdir()
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", BOOT, self._place, self._group, ROOT, sys.prefix,
                 Path(sys.executable).resolve()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent,
            )  # fmt: skip
        until(self._is_up, "systemd")

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise SkipTest(f"cannot boot here: {self.log.read_text()}")
        # Before it is systemd, it and its children see this machine's files, and its systemd.
        words = ["pgrep", "--parent", str(self._process.pid), "--exact", "systemd"]
        self._first = subprocess.run(words, capture_output=True, text=True).stdout.strip()
        up = {"running", "degraded"}  # units of the machine's are none of ours
        return bool(self._first) and self.run("systemctl is-system-running")[1] in up

    def run(self, commands: str) -> tuple[int, str]:
        """Have a shell there do as root what it is told; return its status and what it says."""
        assert self._first, "not booted"
        done = subprocess.run(
            ["nsenter", "--target", self._first, "--all", "--root", "--wd", "sh"],
            input=commands, capture_output=True, text=True, timeout=100,
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).strip()

    def stop(self) -> None:
        """End it, whatever it does, and remove what is left."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._first:  # else there may be nothing, nor leave to look
                until(self._is_gone, "the end of all its processes")
            else:
                self._is_gone()
        shutil.rmtree(self.directory)

    def _is_gone(self) -> bool:
        """Remove its control groups; return whether that is done, as when no process is in any."""
        script = 'mount -t cgroup2 none "$1" && find "$1/$2" -depth -type d -exec rmdir {} +'
        words = ["unshare", "--mount", "sh", "-c", script, "sh", self._place, self._group]
        return subprocess.run(words, capture_output=True).returncode == 0
