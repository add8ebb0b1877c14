"""The README and the pages in ``docs/``: what they point to is there."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llama.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.rst", ROOT / "CHANGELOG.rst", *sorted((ROOT / "docs").glob("*.rst"))]


class PageTests(SynchronousTestCase):
    def test_links_lead_somewhere(self) -> None:
        """Every link to a file of the project leads to one that exists."""
        for page in PAGES:
            for link in re.findall(r"<([^<>\s:]+\.rst)>`_", page.read_text(encoding="utf-8")):
                self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")

    def test_every_page_is_in_the_index(self) -> None:
        """The index names every page beside it."""
        index = (ROOT / "docs" / "index.rst").read_text(encoding="utf-8")
        linked = set(re.findall(r"<([^<>\s/]+\.rst)>`_", index))
        self.assertEqual(linked, {page.name for page in PAGES[2:]} - {"index.rst"})

    def test_readme_names_every_command(self) -> None:
        """The README's list of commands is that of ``llama --help``."""
        readme = (ROOT / "README.rst").read_text(encoding="utf-8")
        self.assertEqual(set(re.findall(r"``llama (\w+)``", readme)), set(COMMANDS))
