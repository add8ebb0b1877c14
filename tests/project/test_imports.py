"""What is in ``llama/``, and in its packages, is imported in one direction: no way leads back."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent


def modules() -> dict[str, list[str]]:
    """Return what every module of ours imports, by its name."""
    found = {}
    for path in (ROOT / "llama").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = [*imported(path.read_text(encoding="utf-8"))]
    return found


def imported(source: str) -> Iterator[str]:
    """Yield whatever a module imports, wherever it does so; of ``from a import b`` it is ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{each.name}" for each in node.names)


def package(name: str, depth: int) -> str:
    """Return the package that a module is in, so many names deep, or the module if it is in none."""
    return ".".join(name.split(".")[:depth])


def graph(imports: Mapping[str, Iterable[str]], depth: int = 2) -> dict[str, set[str]]:
    """Return the packages that each package imports, so many names deep, from what modules do."""
    packages = {package(name, depth) for name in imports}
    edges: dict[str, set[str]] = defaultdict(set)
    for name, names in imports.items():
        own = package(name, depth)
        edges[own] |= {package(each, depth) for each in names} & packages - {own}
    return edges


class ImportTests(SynchronousTestCase):
    def test_no_package_imports_what_imports_it(self) -> None:
        """Packages have an order in which each imports earlier ones alone; so has what is in them."""
        imports = modules()
        for depth, first, last in (
            (2, "llama.wire", "llama.collector"),
            (3, "llama.collector.intervals", "llama.collector.probing"),
        ):
            edges = graph(imports, depth)
            try:
                order = list(TopologicalSorter(edges).static_order())
            except CycleError as error:
                self.fail(" <- ".join(error.args[1]))
            self.assertGreater(len(order), 15)
            self.assertLess(order.index(first), order.index(last))

    def test_a_cycle_is_seen(self) -> None:
        """A cycle is found through packages and single modules, and however something is imported."""
        chain = {
            "llama.a.deep.inside": "from llama.b import x",
            "llama.b": "def f():\n    import llama.c.y",
            "llama.c.y": "import os",
        }
        edges = graph({name: imported(source) for name, source in chain.items()})
        self.assertEqual(edges, {"llama.a": {"llama.b"}, "llama.b": {"llama.c"}, "llama.c": set()})
        for back in ("from llama import a", "import llama.a.z as z", "from llama.a.deep import w"):
            whole = chain | {"llama.c": "import sys", "llama.c.z": f"if sys:\n    {back}"}
            edges = graph({name: imported(source) for name, source in whole.items()})
            self.assertRaises(CycleError, TopologicalSorter(edges).prepare)
