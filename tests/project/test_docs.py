"""The README and the pages in ``docs/``: what they point to is there."""

from __future__ import annotations

import re
from itertools import pairwise

import click
from manual import PAGES, ROOT, table_rows
from twisted.trial.unittest import SynchronousTestCase

from llama.cli import COMMANDS, main


def options(command: click.Command) -> set[str]:
    """Return the long options of a command and of those within it."""
    found = {name for param in command.params for name in param.opts if name.startswith("--")}
    if isinstance(command, click.Group):
        found.update(*map(options, command.commands.values()))
    return found


class PageTests(SynchronousTestCase):
    def test_links_lead_somewhere(self) -> None:
        """Every link to a file of the project leads to one that exists."""
        for page in PAGES:
            for link in re.findall(r"<([^<>\s:]+\.rst)>`_", page.read_text(encoding="utf-8")):
                self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")

    def test_anchors(self) -> None:
        """Every link to a section leads to one of that title."""
        for page in PAGES:
            for name, anchor in re.findall(
                r"<([^<>\s:#]*)#([^<>\s]+)>`_", page.read_text(encoding="utf-8")
            ):
                text = (page.parent / name if name else page).read_text(encoding="utf-8")
                titles = re.findall(r"(?m)^(.+)\n([=~-])\2+$", text)
                anchors = {re.sub(r"\W+", "-", title.lower()).strip("-") for title, _ in titles}
                self.assertIn(anchor, anchors, f"{page.name}: {name}")

    def test_titles_are_underlined(self) -> None:
        """A line under a title is no shorter than it, or the title may be shown as text."""
        for page in PAGES:
            lines = page.read_text(encoding="utf-8").splitlines()
            for before, title, line in zip(["", *lines], lines, lines[1:], strict=False):
                if not before and title and re.fullmatch(r"([=~-])\1{3,}", line):
                    self.assertGreaterEqual(len(line), len(title), f"{page.name}: {title}")

    def test_tables_keep_their_columns(self) -> None:
        """No text stands between two columns of a table, which would not be shown at all."""
        for page in PAGES:
            for columns, row in table_rows(page.read_text(encoding="utf-8")):
                for (_, end), (start, _) in pairwise(columns):
                    self.assertEqual(row[end:start].strip(), "", f"{page.name}: {row}")

    def test_every_page_is_in_the_index(self) -> None:
        """The index names every page beside it."""
        index = (ROOT / "docs" / "index.rst").read_text(encoding="utf-8")
        linked = set(re.findall(r"<([^<>\s/]+\.rst)>`_", index))
        self.assertEqual(linked, {page.name for page in PAGES[2:]} - {"index.rst"})

    def test_readme_names_every_command(self) -> None:
        """The README's list of commands is that of ``llama --help``."""
        readme = (ROOT / "README.rst").read_text(encoding="utf-8")
        self.assertEqual(set(re.findall(r"``llama (\w+)``", readme)), set(COMMANDS))

    def test_options(self) -> None:
        """Commands that have a page have all their options on it."""
        for name, page in (
            ("pinpoint", "pinpointing.rst"),
            ("lab", "lab.rst"),
            ("check", "configuration.rst"),
        ):
            text = (ROOT / "docs" / page).read_text(encoding="utf-8")
            command = main.get_command(click.Context(main), name)
            assert command is not None
            named = set(re.findall(r"--[a-z][a-z-]*", text))
            self.assertEqual(options(command) - named, set(), f"llama {name}: {page}")
