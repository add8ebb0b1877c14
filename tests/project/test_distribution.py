"""What is handed out: a source distribution has all that README.rst speaks of, and can be tested."""

from __future__ import annotations

import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent
#: What setuptools takes along unasked, and what is of use in a repository alone.
UNASKED = {"LICENSE", "MANIFEST.in", "README.rst", "pyproject.toml", "setup.py"}
OF_THE_REPOSITORY = {".gitignore"}


class SourceTests(SynchronousTestCase):
    def test_all_goes_along(self) -> None:
        """Every file of the repository is in a package, or in MANIFEST.in, alone or by its folder."""
        if not (ROOT / ".git").exists():
            raise SkipTest("needs the repository")
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        files, folders = set(UNASKED | OF_THE_REPOSITORY), {"llama", "twisted"}
        for line in (ROOT / "MANIFEST.in").read_text("utf-8").splitlines():
            word, *names = line.split()
            if word in ("include", "graft"):
                (files if word == "include" else folders).update(names)
        left = [name for name in listed if name not in files and name.split("/")[0] not in folders]
        self.assertEqual(left, [])
        self.assertGreater(len(listed), 500)
