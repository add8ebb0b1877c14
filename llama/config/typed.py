"""Sections such as ``{type: influxdb, url: …}``, whose other keys are those of the type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from attrs import frozen

from . import values
from .frozen import FrozenMapping
from .tree import Document, KeySpec, Node, WrongError, is_null, line_of, unknown

#: Values in the options of a plugin's type, which are read without knowing what they mean.
MOST_VALUES = 10_000


@frozen
class Typed:
    """The type's name, and its options as the type's keys or, for a plugin's, as plain data."""

    type: str
    options: FrozenMapping[str, Any]
    line: int


def typed(
    doc: Document,
    node: Node,
    what: str,
    types: Mapping[str, Mapping[str, KeySpec]],
    plugins: bool,
) -> Typed:
    """Read a section with a ``type``. With ``plugins`` a type not in ``types`` is no mistake."""
    entries = doc.entries(node, what)
    for entry in entries:
        if entry.key == "type":
            name = values.text("the name of a type")(doc, entry.value)
            break
    else:
        raise WrongError(node, f"{what} has no 'type', expected one of {', '.join(types)}")
    if name in types:
        keys = {"type": KeySpec(values.text("a type")), **types[name]}
        given = doc.mapping(node, f"{what} of type {name}", keys)
        del given["type"]
        return Typed(name, FrozenMapping(given), line_of(node))
    if not plugins:
        raise WrongError(entry.value, unknown(f"type of {what}", name, types))
    doc.note(entry.value, f"type {name!r} is not LLAMA's own: a plugin must provide it")
    budget = [MOST_VALUES]
    options = {e.key: _plain(e.value, budget, 4) for e in entries if e.key != "type"}
    return Typed(name, FrozenMapping(options), line_of(node))


def _plain(node: Node, budget: list[int], depth: int) -> Any:
    """Return a node as plain data: text, numbers, booleans, None, tuples and mappings of such."""
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise WrongError(node, "too many or too deeply nested options for a plugin")
    if isinstance(node, yaml.SequenceNode):
        return tuple(_plain(item, budget, depth - 1) for item in node.value)
    if isinstance(node, yaml.MappingNode):
        return FrozenMapping(
            {str(key.value): _plain(value, budget, depth - 1) for key, value in node.value}
        )
    if is_null(node):
        return None
    written = str(node.value)
    if getattr(node, "style", None) is not None:
        return written
    if written.lower() in ("true", "false"):
        return written.lower() == "true"
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]{0,17})", written):
        return int(written)
    if re.fullmatch(r"[+-]?[0-9]{1,17}\.[0-9]{0,17}", written):
        return float(written)
    return written
