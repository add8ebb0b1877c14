"""Sections such as ``{type: influxdb, url: …}``, whose other keys are those of the type.

What ``password_file`` and ``token_file`` hold is read with them: ``password`` and ``token``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from attrs import frozen

from llama.config import values
from llama.config.frozen import FrozenMapping
from llama.config.tree import Document, Entry, KeySpec, Node, WrongError, is_null, line_of

#: More values than this in one section are no options; aliases can make many out of little.
MOST_VALUES = 10_000
_SECRETS = {"password_file": "password", "token_file": "token"}


@frozen
class Typed:
    """A section's type, its options, and the line it begins in."""

    type: str
    options: FrozenMapping[str, Any]
    line: int


def _type_of(doc: Document, node: Node, what: str, types: Iterable[str]) -> Entry:
    for entry in doc.entries(node, what):
        if entry.key == "type":
            return entry
    raise WrongError(node, f"{what} has no 'type', expected one of {', '.join(types)}")


def typed(
    doc: Document, node: Node, what: str, types: Mapping[str, Mapping[str, KeySpec]]
) -> Typed:
    """Read a section whose type and whose type's options are all known."""
    name = _type_of(doc, node, what, types).value
    kind = values.choice(f"type of {what}", tuple(types))(doc, name)
    keys = {"type": KeySpec(values.text("a type")), **types[kind]}
    given = doc.mapping(node, f"{what} of type {kind}", keys)
    del given["type"]
    options = {_SECRETS.get(name, name): value for name, value in given.items()}
    return Typed(kind, FrozenMapping(options), line_of(node))


def untyped(doc: Document, node: Node, what: str, examples: Iterable[str]) -> Typed:
    """Read a section whose type is a plugin's, which alone knows its options.

    They are text as written, None where nothing is, tuples and mappings of such.
    """
    kind = values.text("the name of a type")(doc, _type_of(doc, node, what, examples).value)
    options: dict[str, Any] = {}
    budget = [MOST_VALUES]
    for entry in doc.entries(node, what):
        if name := _SECRETS.get(entry.key):
            if any(other.key == name for other in doc.entries(node, what)):
                doc.wrong(
                    entry.key_node, f"both {name} and {entry.key} are given, expected one of them"
                )
            options[name] = doc.attempt(values.secret_line, entry.value, "")
        elif entry.key != "type":
            options.setdefault(entry.key, _plain(doc, entry.value, budget, 4))
    return Typed(kind, FrozenMapping(options), line_of(node))


def _plain(doc: Document, node: Node, budget: list[int], depth: int) -> Any:
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise WrongError(node, "too many or too deeply nested values, expected a few options")
    if isinstance(node, yaml.SequenceNode):
        return tuple(_plain(doc, item, budget, depth - 1) for item in node.value)
    if isinstance(node, yaml.MappingNode):
        return FrozenMapping(
            {e.key: _plain(doc, e.value, budget, depth - 1) for e in doc.entries(node, "an option")}
        )
    return None if is_null(node) else str(node.value)
