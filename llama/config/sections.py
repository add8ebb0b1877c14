"""Sections that several configurations have in common: the HTTP interface, tags, files of keys."""

from __future__ import annotations

import yaml

from llama.config import values
from llama.config.endpoints import listen
from llama.config.frozen import FrozenMapping
from llama.config.keys import read_keys
from llama.config.mistakes import Mistake
from llama.config.model import Key
from llama.config.tree import Document, KeySpec, Node, WrongError, is_null, kind, shown

#: The file of the token that requests must show.
TOKEN_FILE = KeySpec(values.secret_line, deleted="answer requests without a token")
API = {
    "bind": KeySpec(listen),
    "token_file": TOKEN_FILE,
}

#: Tag names that every series has anyway; a user's tag of the same name never shows.
RESERVED_TAGS = frozenset(("src_ip", "dst_ip", "dst_port", "class", "probe", "size", "port_group"))

#: Tags in one place, of a target say. With ``source_tags`` and the names of both ends a target then has
#: 130 at most, of which nothing is left out by what reads a collector's answers.
MOST_TAGS = 64
MOST_CHARACTERS = values.LONGEST_NAME  # of the name of a tag and of its text


def api(doc: Document, node: Node) -> tuple[str | None, str | None]:
    """Read ``api: {bind, token_file}`` as the endpoint (None: the default) and the bearer token."""
    given = doc.mapping(node, "api", API)
    return given["bind"], given["token_file"]


def key_file(doc: Document, node: Node) -> tuple[Key, ...]:
    """Read the path of a file of keys and return the keys in it.

    One that ends amid a line is noted, or refused, as the configuration itself is.
    """

    def doubt(mistake: Mistake) -> None:
        if doc.again:
            raise WrongError(node, str(mistake))
        doc.notes.add(mistake)

    try:
        return read_keys(values.path(doc, node), doubt)
    except ValueError as error:
        raise WrongError(node, str(error)) from None


def tags(doc: Document, node: Node) -> FrozenMapping[str, str]:
    """Read tags: text as written, whatever YAML would make of it."""
    if is_null(node):
        return FrozenMapping()
    found: dict[str, str] = {}
    for entry in doc.entries(node, "tags"):
        if not isinstance(entry.value, yaml.ScalarNode):
            doc.wrong(entry.value, f"tag {entry.key!r} is {kind(entry.value)}, expected text")
        elif not entry.key.strip():
            doc.wrong(entry.key_node, "a tag has no name, expected `name: value`")
        elif max(len(entry.key), len(entry.value.value)) > MOST_CHARACTERS:
            doc.wrong(
                entry.value,
                f"tag {shown(entry.key)} has a name or a text of more than {MOST_CHARACTERS:,}"
                " characters",
            )
        elif "\n" in entry.key + entry.value.value:
            doc.wrong(entry.value, f"tag {entry.key!r} has several lines, expected text on one")
        else:
            if entry.key in RESERVED_TAGS:
                doc.note(
                    entry.key_node,
                    f"tag {entry.key!r} does not show: every series has one of that name",
                )
            found[entry.key] = entry.value.value
    if len(found) > MOST_TAGS:
        doc.wrong(node, f"{len(found)} tags here, expected at most {MOST_TAGS}")
    return FrozenMapping(found)
