"""The README and the pages in ``docs/``, as tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.rst", ROOT / "CHANGELOG.rst", *sorted((ROOT / "docs").glob("*.rst"))]


def table_rows(text: str) -> Iterator[tuple[list[tuple[int, int]], str]]:
    """Yield every row of every table with a line of ``=`` above, and where its columns begin and end."""
    columns: list[tuple[int, int]] = []
    for line, after in pairwise([*text.splitlines(), ""]):
        if re.fullmatch(r" *=+( +=+)+", line):
            columns = [match.span() for match in re.finditer("=+", line)] if after else []
        elif columns:
            yield columns, line


def first_table(page: str, title: str) -> dict[str, str]:
    """Return the first table below a title: what is in ``literal`` in a row's first column, and the rest.

    Several names in one row share its rest; ``{labels}`` behind a name are left out.
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    below = re.split(rf"(?m)^{re.escape(title)}\n[=~-]+$", text)[1]
    found: dict[str, str] = {}
    for columns, row in table_rows(below[: re.search(r"=\n\n", below).end()]):
        names = re.findall(r"``([\w-]+)[`{]", row[: columns[0][1]])
        found.update(dict.fromkeys(names, row[columns[1][0] :]))
    return found
