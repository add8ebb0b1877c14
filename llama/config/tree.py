"""From a YAML file to a tree of nodes that know their lines, and the reading of mappings in it.

Every mistake is noted with its line and reading goes on, so that all come out at once. What a
single value may be is said in `llama.config.values`; what a section holds, in the service's file.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from attrs import Factory, define, frozen
from yaml.reader import Reader as _YamlReader

from llama.config.mistakes import CUT_SHORT, ConfigErrors, Mistake

T = TypeVar("T")
Node = yaml.Node

#: More octets than this are no configuration.
MAX_OCTETS = 64 * 1024 * 1024
#: Up to so many characters a file with wrong YAML is parsed again for a better message.
MOST_PARSED_TWICE = 200_000
#: Deeper than this nests nothing that is one; it also keeps YAML parsers off the stack's end.
MAX_DEPTH = 40
#: Merge keys (``<<``) follow one another no further than this.
MAX_MERGES = 100
#: More values than this are read from no file: aliases unfold into more.
MAX_VALUES = 2_000_000
#: Names that what is misspelt is compared with, of more those that begin or end most like it: where there
#: are thousands of both, it would take minutes.
MOST_COMPARED = 50
#: How keys begin that mean nothing by themselves, as Compose files have them.
ANCHORS = "x-"
_MERGE = "tag:yaml.org,2002:merge"
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class WrongError(Exception):
    """A value is not what was expected; the mapping or list it stands in notes it and goes on."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.node = node
        self.message = message


Read = Callable[["Document", Node], Any]


@frozen
class KeySpec:
    """How one key of a mapping is read, and its value when it is not given.

    Nothing behind a key is as good as no key, unless ``deleted`` says what its absence does: then it
    is a mistake, lest a line that was left empty open what it was to close.
    """

    read: Read
    default: Any = None
    required: bool = False
    deleted: str = ""


@frozen
class Entry:
    """One key of a mapping, as text, and its value."""

    key: str
    key_node: Node
    value: Node


@define
class Document:
    """One file being read: its tree, and the mistakes and notes found so far."""

    path: str
    root: Node
    mistakes: set[Mistake] = Factory(set)  # aliases make the same mistake come up again
    notes: set[Mistake] = Factory(set)
    #: Whether it is to take the place of what is in use. Then nothing may be that looks unfinished.
    again: bool = False
    _entries: dict[int, list[Entry]] = Factory(dict)
    _values_read: int = 0
    _merging: int = 0

    def wrong(self, node: Node, message: str) -> None:
        """Note a mistake at ``node``."""
        self.mistakes.add(Mistake(self.path, line_of(node), message))

    def note(self, node: Node, message: str) -> None:
        """Note what is legal but suspicious."""
        self.notes.add(Mistake(self.path, line_of(node), message))

    def attempt(self, read: Callable[[Document, Node], T], node: Node, default: T) -> T:
        """Return what ``read`` makes of ``node``, or ``default`` once its mistake is noted."""
        try:
            return read(self, node)
        except WrongError as error:
            self.wrong(error.node, error.message)
            return default

    def finish(self) -> None:
        """Raise `ConfigErrors` if there was any mistake."""
        if self.mistakes:
            raise ConfigErrors(self.mistakes)

    def near(self, node: Node, path: str) -> Path:
        """Return a path of the configuration: relative ones start at the file's directory.

        Raises `WrongError` at ``node`` for one in the home directory of nobody.
        """
        try:
            return Path(self.path).parent / Path(path).expanduser()
        except RuntimeError:
            raise WrongError(
                node, f"{shown(path)} is in no user's home directory, expected a path"
            ) from None

    def entries(self, node: Node, what: str) -> list[Entry]:
        """Return the keys of a mapping, merge keys resolved, duplicates noted and left out.

        Raises `WrongError` when ``node`` is no mapping. ``what`` names it for people.
        """
        if not isinstance(node, yaml.MappingNode):
            raise WrongError(node, f"{what} is {kind(node)}, expected a mapping (key: value)")
        if id(node) not in self._entries:
            if self._merging > MAX_MERGES:
                raise WrongError(node, f"a chain of more than {MAX_MERGES} merges (<<)")
            self._entries[id(node)] = []  # what a mapping that merges itself sees
            self._merging += 1
            self._entries[id(node)] = self._resolve(node)
            self._merging -= 1
        entries = self._entries[id(node)]
        self._count(node, len(entries))
        return entries

    def _count(self, node: Node, values: int) -> None:
        self._values_read += values
        if self._values_read > MAX_VALUES:
            self.wrong(node, f"aliases unfold this file into more than {MAX_VALUES:,} values")
            raise ConfigErrors(self.mistakes)

    def _resolve(self, node: yaml.MappingNode) -> list[Entry]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key_node, value in node.value:
            if key_node.tag == _MERGE:
                many = isinstance(value, yaml.SequenceNode)
                for source in value.value if many else (value,):
                    nothing: list[Entry] = []
                    entries = self.attempt(
                        lambda doc, node: doc.entries(node, "what << merges"), source, nothing
                    )
                    for entry in entries:
                        merged.setdefault(entry.key, entry)
            elif not isinstance(key_node, yaml.ScalarNode):
                self.wrong(key_node, f"a key is {kind(key_node)}, expected plain text")
            elif key_node.value in own:
                first = line_of(own[key_node.value].key_node)
                self.wrong(key_node, f"{key_node.value!r} is given twice, first in line {first}")
            else:
                own[key_node.value] = Entry(key_node.value, key_node, value)
        return list((merged | own).values())

    def mapping(self, node: Node, what: str, keys: Mapping[str, KeySpec]) -> dict[str, Any]:
        """Return the values of a mapping with known ``keys``, each with its default.

        Unknown and missing keys and wrong values are noted. Raises `WrongError` when ``node`` is
        no mapping. At the top of a file, keys that begin with ``x-`` are left alone: what is only
        there to be referred to (``*``) needs a place.
        """
        values = {name: spec.default for name, spec in keys.items()}
        given: set[str] = set()
        for entry in self.entries(node, what):
            spec = keys.get(entry.key)
            if spec is None and node is self.root and entry.key.startswith(ANCHORS):
                continue
            if spec is None:
                self.wrong(entry.key_node, unknown("key", entry.key, keys, f" in {what}"))
                given.update(_nearest(entry.key, keys))  # no more about a key that is misspelt
                continue
            if not is_null(entry.value) or spec.required:
                values[entry.key] = self.attempt(spec.read, entry.value, spec.default)
            elif spec.deleted:
                message = f"`{entry.key}` is empty; delete the key to {spec.deleted}"
                self.wrong(entry.key_node, message)
            given.add(entry.key)
        for name, spec in keys.items():
            if spec.required and name not in given:
                self.wrong(node, f"{what} has no {name!r}, expected one")
        return values

    def top(self, keys: Mapping[str, KeySpec]) -> dict[str, Any]:
        """Return the values of the whole file's mapping: nothing when it is no mapping."""
        try:
            return self.mapping(self.root, "this file", keys)
        except WrongError as error:
            self.wrong(error.node, error.message)
            return {}

    def sequence(
        self, node: Node, what: str, read: Callable[[Document, Node], T], item: str
    ) -> list[T]:
        """Return what ``read`` makes of each item of a list; wrong items are noted, left out.

        Raises `WrongError` when ``node`` is no list or has no items; ``item`` shows one.
        """
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            found = "an empty list" if isinstance(node, yaml.SequenceNode) else kind(node)
            raise WrongError(node, f"{what} is {found}, expected a list of `- {item}`")
        self._count(node, len(node.value))
        items: list[T] = []
        for each in node.value:
            try:
                items.append(read(self, each))
            except WrongError as error:
                self.wrong(error.node, error.message)
        return items


def line_of(node: Node) -> int:
    """Return the line, from 1, that a node starts in."""
    return int(node.start_mark.line) + 1


def is_null(node: Node) -> bool:
    """Say whether a node is nothing: empty, ``~`` or ``null``, unquoted."""
    return (
        isinstance(node, yaml.ScalarNode)
        and not node.style
        and node.value in ("", "~", "null", "Null", "NULL")
    )


def kind(node: Node) -> str:
    """Say what a node is, with its text when it is short."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_null(node):
        return "empty"
    return shown(str(node.value))


def shown(text: str) -> str:
    """Return text in quotes, cut when it is long, on one line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    names = list(known)
    if len(names) > MOST_COMPARED:
        backwards = _beside(name[::-1], [each[::-1] for each in names])
        names = [*_beside(name, names), *(each[::-1] for each in backwards)]
    return difflib.get_close_matches(name, names, 1, 0.6)


def _beside(name: str, names: Iterable[str]) -> list[str]:
    """Return the names between which one would stand in the order of the alphabet."""
    ordered = sorted(names)
    place, few = bisect.bisect(ordered, name), MOST_COMPARED // 4
    return ordered[max(0, place - few) : place + few]


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> str:
    """Say that ``name`` is no known thing, and which it may have meant, or else what is known."""
    names = list(known)
    near = _nearest(name, names)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
    return f"unknown {what} {shown(name)}{where}; {hint}"


def undefined(what: str, name: str, defined: Iterable[str]) -> str:
    """Say that nothing is called ``name``, which it may have meant, and what there is."""
    names = list(defined)
    hint = "".join(f" did you mean {near!r}?" for near in _nearest(name, names))
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{what} {shown(name)} is not defined;{hint} defined: {listed or 'none'}"


def read_document(path: str, *, again: bool = False) -> Document:
    """Read a YAML file into a `Document`. Raises `ConfigErrors` when it is not one.

    What ends amid a line may be the first half of a file, which is YAML as well and says less: it lacks
    an ``allow`` that is still to come, say. Some editors leave every file so, and when a service starts
    that is noted. A file that is read ``again`` may be being written, and then it is refused.
    """

    def refuse(line: int, message: str) -> ConfigErrors:
        return ConfigErrors([Mistake(path, line, message)])

    try:
        with open(path, "rb") as file:
            data = file.read(MAX_OCTETS + 1)
    except OSError as error:
        raise refuse(0, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise refuse(0, "is no file name") from None
    if len(data) > MAX_OCTETS:
        raise refuse(0, f"is larger than {MAX_OCTETS >> 20} MiB, expected a configuration")
    cut_short: set[Mistake] = set()
    if data and not data.endswith((b"\n", b"\r")):
        cut_short.add(Mistake(path, len(data.splitlines()), CUT_SHORT))
    if again and cut_short:
        raise ConfigErrors(cut_short)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse(line, f"octet 0x{data[error.start]:02x} is not UTF-8 text") from None
    if bad := _YamlReader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise refuse(line, f"control character U+{ord(bad.group()):04X} in the text")
    try:
        if excess := _excess(text):
            raise refuse(*excess)
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        said = _better_said(text, error)
        mark = said.problem_mark or said.context_mark
        if said.context_mark and mark and mark.index >= len(text):
            mark = said.context_mark  # what never ended, rather than the end of the file
        line = mark.line + 1 if mark else 0
        raise refuse(line, _yaml_problem(said, text, line)) from None
    except yaml.YAMLError as error:
        raise refuse(0, "invalid YAML: " + " ".join(str(error).split())) from None
    if root is None or is_null(root):
        raise refuse(1, "is empty, expected a configuration")
    return Document(path, root, notes=cut_short, again=again)


def _better_said(text: str, error: yaml.MarkedYAMLError) -> yaml.MarkedYAMLError:
    """Return the error of PyYAML's own parser, which says more than libyaml's, unless it is slow."""
    if len(text) <= MOST_PARSED_TWICE:
        try:
            yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as better:
            return better
        except (yaml.YAMLError, RecursionError):
            return error
    return error


def _excess(text: str) -> tuple[int, str] | None:
    """Return where ``text`` has more of something than can be composed safely and soon, and of what."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or nodes > 2 * MAX_VALUES:  # each value may have a key
            line = int(event.start_mark.line) + 1 if event.start_mark else 0
            if depth > MAX_DEPTH:
                return line, f"nested more than {MAX_DEPTH} deep, expected a configuration"
            most = 2 * MAX_VALUES
            return line, f"more than {most:,} keys and values up to here, expected a configuration"
    return None


def _yaml_problem(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    """Say in one line what the YAML parser did not like."""
    lines = text.splitlines()
    source = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in source[: len(source) - len(source.lstrip())]:
        return "a tab indents this line, expected spaces"
    parts = [part for part in (error.context, error.problem) if part]
    return "invalid YAML: " + ", ".join(" ".join(part.split()) for part in parts)
