"""The collector's configuration, in both formats.

They are told apart by shape: the simple one maps hosts to tags, the full one has dropbox/llama's
sections, which `llama.config.full` reads.
"""

from __future__ import annotations

import math
import socket
from typing import Any

import yaml
from attrs import evolve

from llama.config import full, sections, values
from llama.config.frozen import FrozenMapping
from llama.config.link_local import without_interface
from llama.config.model import CollectorConfig, Target, Test
from llama.config.ports import DEFAULT_SOURCE_PORTS
from llama.config.probes import default_options
from llama.config.refused_ports import note_refused_ports
from llama.config.series import refuse_collisions
from llama.config.sessions import refuse_too_many_sessions
from llama.config.shared_ports import refuse_both_ways, refuse_shared_ports
from llama.config.tree import Document, Entry, Node, WrongError, is_null, kind, read_document

_SIMPLE_NAME = "simple"
#: Sections of the full format that look like a host's tags, and their keys.
_SECTION_KEYS = {"summarization": full.SUMMARIZATION, "api": sections.API, "limits": full.LIMITS}


def load_collector(
    path: str, *, port: int = full.DEFAULT_PORT, again: bool = False
) -> CollectorConfig:
    """Read a collector's configuration of either format.

    ``port`` is the reflectors' UDP port for the simple format, which names none. With
    ``again`` that is to take the place of one that is in use: see `read_document`. Raises
    `ConfigErrors` with every mistake in the file.
    """
    doc = read_document(path, again=again)
    config = read_collector(doc, port)
    doc.finish()
    return config


def default_keep(interval_s: int) -> int:
    """Return how many closed intervals are held: 15 minutes of them, and three."""
    return math.ceil(900 / interval_s) + 3


def has_hosts(doc: Document) -> bool:
    """Say whether a file maps names to nothing but tags, as the simple format does."""
    return isinstance(doc.root, yaml.MappingNode) and all(
        _is_tags(value) for _, value in doc.root.value
    )


def is_simple(doc: Document) -> bool:
    """Say whether a collector's file has the simple format, from its shape alone."""
    if not isinstance(doc.root, yaml.MappingNode):
        return False
    keys = {key.value for key, _ in doc.root.value if isinstance(key, yaml.ScalarNode)}
    if has_hosts(doc):
        # A full file without its tests and targets looks the same; so does a host named "api".
        return not keys <= full.FULL.keys()
    return not keys & full.FULL.keys()


def _is_tags(node: Node) -> bool:
    if isinstance(node, yaml.MappingNode):
        return all(isinstance(value, yaml.ScalarNode) for _, value in node.value)
    return is_null(node)


def read_collector(doc: Document, port: int = full.DEFAULT_PORT) -> CollectorConfig:
    """Make what it can of a document; its mistakes are noted there."""
    hostname = socket.gethostname()
    if is_simple(doc):
        tests = _simple(doc, port)
        given: dict[str, Any] = {name: spec.default for name, spec in full.FULL.items()}
    else:
        given = doc.top(full.FULL)
        if not given:
            return CollectorConfig(path=doc.path, tests=())
        tests = full.read_tests(doc, given)
    source_tags: FrozenMapping[str, str] = given["source_tags"]
    hostname = source_tags.get("src_hostname", hostname)
    tests = [evolve(placed, test=_tagged(placed.test, source_tags, hostname)) for placed in tests]
    if not doc.mistakes:
        refuse_collisions(doc, tests)
        refuse_shared_ports(doc, tests)
        refuse_both_ways(doc, tests)
        refuse_too_many_sessions(doc, tests)
        _refuse_without_interface(doc, tests)
        note_refused_ports(doc, tests)
    bind, token = given["api"]
    interval_s = given["summarization"]["interval"]
    defaults = CollectorConfig(path=doc.path, tests=())
    return CollectorConfig(
        path=doc.path,
        tests=tuple(placed.test for placed in tests),
        interval_s=interval_s,
        keep_intervals=given["summarization"]["keep"] or default_keep(interval_s),
        api=bind or defaults.api,
        api_token=token,
        max_pps=given["limits"]["pps"],
        max_bps=given["limits"]["bps"],
        src_hostname=hostname,
        notes=tuple(sorted(doc.notes)),
    )


def _simple(doc: Document, port: int) -> list[full.PlacedTest]:
    targets: list[Target] = []
    nodes: list[Node] = []
    for entry in doc.entries(doc.root, "this file"):
        try:
            host = values.host(doc, entry.key_node)
            tags = sections.tags(doc, entry.value)
        except WrongError as error:
            if error.node is entry.value:
                doc.wrong(
                    error.node,
                    f"the tags of {entry.key!r} are {kind(error.node)},"
                    " expected a mapping (tag: value)",
                )
            else:
                doc.wrong(error.node, error.message)
            continue
        name = tags.get("dst_hostname") or entry.key
        _see_section(doc, entry)
        targets.append(Target(name=name, host=host, port=port, tags=tags))
        nodes.append(entry.key_node)
    if not targets:
        return []
    test = Test(
        name=_SIMPLE_NAME,
        targets=tuple(targets),
        source_ports=DEFAULT_SOURCE_PORTS,
        options=default_options("stamp"),
    )
    return [full.PlacedTest(test, doc.root, nodes)]


def _see_section(doc: Document, entry: Entry) -> None:
    """Refuse a host that is a section of the full format; note one that is merely named like it."""
    if entry.key not in full.FULL:
        return
    empty = is_null(entry.value)
    tags = set() if empty else {each.key for each in doc.entries(entry.value, "tags")}
    keys = _SECTION_KEYS.get(entry.key, {})
    if tags and (entry.key == "source_tags" or keys.keys() >= tags):
        doc.wrong(
            entry.key_node,
            f"{entry.key!r} is a section of the full format, but this file has the simple one, in"
            " which it would be a host; give the file tests and targets (docs/configuration.rst)",
        )
    else:
        doc.note(
            entry.key_node,
            f"{entry.key!r} is probed as a host: this file has the simple format, without sections",
        )


def _tagged(test: Test, source_tags: FrozenMapping[str, str], hostname: str) -> Test:
    """Return the test with every target's tags complete."""
    targets = []
    for target in test.targets:
        names = {"src_hostname": hostname, "dst_hostname": target.name}
        tags = FrozenMapping({**source_tags, **names, **target.tags})
        targets.append(evolve(target, tags=tags))
    return evolve(test, targets=tuple(targets))


def _refuse_without_interface(doc: Document, tests: list[full.PlacedTest]) -> None:
    """Refuse link-local targets, and addresses to probe from, without an interface."""
    for placed in tests:
        test = placed.test
        if test.interface is not None:
            continue
        sources = {port.address or test.source or "" for port in test.source_ports}
        hosts = [*sorted(sources), *(target.host for target in test.targets)]
        nodes = [*(placed.node for _ in sources), *placed.target_nodes]
        for host, node in zip(hosts, nodes, strict=True):
            if problem := without_interface(host):
                doc.wrong(node, problem)
