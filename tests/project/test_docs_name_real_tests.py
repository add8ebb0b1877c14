"""The documents that say which test shows what name tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

TESTS = Path(__file__).parent.parent
DOCS = TESTS.parent / "docs"
NAME = re.compile(r"``(test_\w+)\.(\w+)\.(test_\w+)``")


@cache
def methods(path: Path) -> dict[str, set[str]]:
    """Return the methods of every class in a module."""
    return {
        node.name: {
            each.name for each in node.body
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }  # fmt: skip


class NamedTests(SynchronousTestCase):
    def test_every_test_that_a_document_names_exists(self) -> None:
        """A clause or a threat is never said to be tested by a test that was renamed or removed."""
        found = 0
        for document in DOCS.glob("*.rst"):
            for module, case, method in NAME.findall(document.read_text()):
                paths = list(TESTS.glob(f"*/{module}.py"))
                self.assertEqual(len(paths), 1, f"{document.name}: {module}")
                known = methods(paths[0]).get(case, ())
                self.assertIn(method, known, f"{document.name}: {module}.{case}")
                found += 1
        self.assertGreater(found, 40)
