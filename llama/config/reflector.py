"""The reflector's configuration: where it answers, whom, how often, and with which keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import yaml

from llama.config import sections, values
from llama.config.collector import default_keep
from llama.config.frozen import FrozenMapping
from llama.config.link_local import without_interface
from llama.config.model import Key, ReflectorConfig, ReflectorKey, ReflectorSession
from llama.config.tree import Document, KeySpec, Node, WrongError, read_document, shown

DEFAULTS = ReflectorConfig()
_SSID = values.whole(1, 65535, "SSID, RFC 8972 section 3")
_PREFIXES = values.one_or_more("prefixes", values.prefix)
#: So many pairs of prefix and SSID at most have a key: each is remembered on its own.
MOST_COMBINATIONS = 1_000_000


KEY = {
    "file": KeySpec(sections.key_file, required=True),
    "key": KeySpec(values.text("the id of a key"), deleted="take every key of the file"),
    "prefixes": KeySpec(_PREFIXES, (), deleted="take the key from any source"),
    "ssids": KeySpec(values.one_or_more("SSIDs", _SSID), (), deleted="take the key for any SSID"),
}
SESSION = {
    "source": KeySpec(values.prefix, required=True),
    "source_port": KeySpec(values.whole(1, 65535, "UDP port"), deleted="serve any source port"),
    "ssid": KeySpec(_SSID, deleted="serve any SSID"),
}
_BURST = values.quantity(1, 1e9, "replies at once")
LIMITS = {
    "pps": KeySpec(values.quantity(1, 1e9, "replies/s"), deleted="set no limit"),
    "pps_per_source": KeySpec(values.quantity(0.1, 1e9, "replies/s"), deleted="set no limit"),
    "burst": KeySpec(_BURST),
    "burst_per_source": KeySpec(_BURST),
    "sessions": KeySpec(values.whole(16, 4_194_304, "sessions"), DEFAULTS.max_sessions),
}
STATS = {
    "interval": KeySpec(values.whole_seconds(1, 3600), DEFAULTS.interval_s),
    "keep": KeySpec(values.whole(2, 100_000, "closed intervals")),
    "tags": KeySpec(sections.tags, FrozenMapping()),
}


def _keys(doc: Document, node: Node) -> list[ReflectorKey]:
    def read(doc: Document, node: Node) -> list[ReflectorKey]:
        given = doc.mapping(node, "a key", KEY)
        keys: tuple[Key, ...] = given["file"] or ()
        wanted = given["key"]
        chosen = [key for key in keys if wanted in (None, key.id)]
        if keys and not chosen:
            names = ", ".join(key.id for key in keys)
            doc.wrong(node, f"its file has no key {shown(wanted)}; it has: {names}")
        return [
            ReflectorKey(key=key, prefixes=given["prefixes"], ssids=given["ssids"])
            for key in chosen
        ]

    found = [key for keys in doc.sequence(node, "keys", read, "file: PATH") for key in keys]
    if sum(max(len(k.prefixes), 1) * max(len(k.ssids), 1) for k in found) > MOST_COMBINATIONS:
        raise WrongError(
            node, f"more than {MOST_COMBINATIONS:,} combinations of prefix and SSID, expected fewer"
        )
    counts: dict[tuple[Any, Any], int] = {}
    for key in found:
        for selector in product(key.prefixes or (None,), key.ssids or (None,)):
            counts[selector] = counts.get(selector, 0) + 1
    for (prefix, ssid), count in counts.items():
        if count > 2:
            what = "all probes" if ssid is None else f"SSID {ssid}"
            if prefix is not None:
                what = str(prefix) if ssid is None else f"{what} from {prefix}"
            doc.wrong(
                node,
                f"{count} keys are for {what}, expected at most two: the current one and the one"
                " it replaces",
            )
    return found


def _sessions(doc: Document, node: Node) -> list[ReflectorSession]:
    return doc.sequence(
        node,
        "sessions",
        lambda doc, node: ReflectorSession(**doc.mapping(node, "a session", SESSION)),
        "source: PREFIX",
    )


def _limits(doc: Document, node: Node) -> Mapping[str, Any]:
    return doc.mapping(node, "limits", LIMITS)


def _whole(amount: float | None) -> int | None:
    return None if amount is None else int(amount)


def _stats(doc: Document, node: Node) -> Mapping[str, Any]:
    return doc.mapping(node, "stats", STATS)


REFLECTOR = {
    "addresses": KeySpec(
        values.one_or_more("addresses to answer on", values.address), DEFAULTS.addresses
    ),
    "port": KeySpec(values.whole(0, 65535, "UDP port, 0: the system chooses"), DEFAULTS.port),
    "interface": KeySpec(values.interface),
    "api": KeySpec(sections.api, (None, None)),
    "allow": KeySpec(_PREFIXES, (), deleted="answer everyone"),
    "legacy": KeySpec(values.flag, DEFAULTS.legacy),
    "limits": KeySpec(_limits, {name: spec.default for name, spec in LIMITS.items()}),
    "refuse_source_ports": KeySpec(
        values.one_or_more("UDP ports", values.whole(0, 65535, "UDP port")), ()
    ),
    "permit_source_ports": KeySpec(
        values.one_or_more("UDP ports", values.whole(1, 65535, "UDP port")), ()
    ),
    "reply_dscps": KeySpec(values.one_or_more("traffic classes", values.dscp), ()),
    "keys": KeySpec(_keys, (), deleted="answer unauthenticated probes"),
    "allow_unauthenticated": KeySpec(values.flag, DEFAULTS.allow_unauthenticated),
    "sessions": KeySpec(_sessions, (), deleted="answer everyone who may ask"),
    "stats": KeySpec(_stats, {name: spec.default for name, spec in STATS.items()}),
}


def load_reflector(path: str, *, again: bool = False) -> ReflectorConfig:
    """Read a reflector's configuration. Raises `ConfigErrors` with every mistake in the file.

    With ``again`` that is to take the place of one that is in use: see `read_document`.
    """
    doc = read_document(path, again=again)
    config = read_reflector(doc)
    doc.finish()
    return config


def read_reflector(doc: Document) -> ReflectorConfig:
    """Make what it can of a document; its mistakes are noted there."""
    given = doc.top(REFLECTOR)
    if not given:
        return ReflectorConfig(path=doc.path)
    bind, token = given["api"]
    limits = given["limits"]
    if given["allow_unauthenticated"] and not given["keys"]:
        doc.note(doc.root, "allow_unauthenticated says nothing without keys: all probes are so")
    _look_at_permitted(doc, given)
    if not given["interface"]:
        _refuse_without_interface(doc, given["addresses"])
    stats = given["stats"]
    return ReflectorConfig(
        path=doc.path,
        addresses=given["addresses"],
        port=given["port"],
        interface=given["interface"],
        api=bind or DEFAULTS.api,
        api_token=token,
        allow=given["allow"],
        legacy=given["legacy"],
        max_pps=limits["pps"],
        max_pps_per_source=limits["pps_per_source"],
        burst=_whole(limits["burst"]),
        burst_per_source=_whole(limits["burst_per_source"]),
        max_sessions=limits["sessions"],
        refuse_source_ports=given["refuse_source_ports"],
        permit_source_ports=given["permit_source_ports"],
        reply_dscps=given["reply_dscps"],
        keys=tuple(given["keys"]),
        allow_unauthenticated=given["allow_unauthenticated"],
        sessions=tuple(given["sessions"]),
        interval_s=stats["interval"],
        keep_intervals=stats["keep"] or default_keep(stats["interval"]),
        src_hostname=stats["tags"].get("src_hostname", ""),
        stats_tags=stats["tags"],
        notes=tuple(sorted(doc.notes)),
    )


def _refuse_without_interface(doc: Document, addresses: Sequence[str]) -> None:
    """Refuse link-local addresses of which nothing says behind which interface they are."""
    nodes = {entry.key: entry.value for entry in doc.entries(doc.root, "this file")}
    for problem in filter(None, map(without_interface, addresses)):
        doc.wrong(nodes["addresses"], problem)


def _look_at_permitted(doc: Document, given: Mapping[str, Any]) -> None:
    """Refuse ports that are permitted and refused, and permitted ones that strangers may name."""
    permitted = given["permit_source_ports"]
    if not permitted:
        return
    nodes = {entry.key: entry.value for entry in doc.entries(doc.root, "this file")}
    node = nodes["permit_source_ports"]
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    lines = {item.value: item for item in items}
    for port in permitted:
        if port in given["refuse_source_ports"]:
            doc.wrong(
                lines.get(str(port), node),
                f"{port} is in refuse_source_ports as well, expected in one of them",
            )
    if not given["allow"] and (given["allow_unauthenticated"] or not given["keys"]):
        doc.wrong(
            node,
            "permit_source_ports lets one forged packet set this reflector and a service on such a"
            " port on each other, expected allow with the prefixes of those who probe from there, or"
            " keys without allow_unauthenticated",
        )
