"""The collector's full format: its sections' keys, and the tests that they make together."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from llama.config import sections, values
from llama.config.frozen import FrozenMapping
from llama.config.model import PROBES, Family, SourcePort, Target, Test
from llama.config.ports import (
    CLASSES,
    DEFAULT_COUNT,
    DEFAULT_SOURCE_PORTS,
    MAX_PORTS,
    TIMEOUT,
    Placed,
    one_timeout_a_class,
    placed,
    read_port,
    read_port_group,
    source_ports,
)
from llama.config.probes import KINDS, default_options, options_of
from llama.config.tree import Document, KeySpec, Node, Read, WrongError, line_of, undefined

DEFAULT_PORT = 8100
DEFAULT_INTERVAL_S = 30
#: Of every flow: with four source ports and 30 s intervals a pair sends 480 probes an interval.
DEFAULT_RATE_PPS = 4.0
#: More flows than this in one collector are a mistake in its file, not a plan.
MAX_FLOWS = 4_000_000


@frozen
class PlacedTest:
    """A test and where it and each of its targets stand, in step with its targets."""

    test: Test
    node: Node
    target_nodes: Sequence[Node]


#: The largest that our reflector answers, a jumbo frame.
LARGEST_SIZE = 9216
_SIZE = values.whole(1, LARGEST_SIZE, "octets of UDP payload")

SUMMARIZATION = {
    "interval": KeySpec(values.whole_seconds(1, 3600), DEFAULT_INTERVAL_S),
    "handlers": KeySpec(values.whole(1, 1024, "read for compatibility, not used")),
    "keep": KeySpec(values.whole(2, 100_000, "closed intervals")),
}
LIMITS = {
    "pps": KeySpec(values.quantity(1, 1e9, "packets/s"), deleted="set no cap"),
    "bps": KeySpec(values.quantity(1000, 1e12, "bit/s"), deleted="set no cap"),
}
RATE_LIMIT = {
    "cps": KeySpec(
        values.number(0.001, 10_000, "probes/s of each target and source port"), required=True
    ),
}
TARGET = {
    "ip": KeySpec(placed(values.host)),
    "host": KeySpec(placed(values.host)),
    "port": KeySpec(values.whole(1, 65535, "UDP or TCP port"), DEFAULT_PORT),
    "tags": KeySpec(sections.tags, FrozenMapping()),
    "name": KeySpec(values.text("a name for results", values.LONGEST_NAME)),
}
TEST = {
    "targets": KeySpec(placed(values.text("the name of a target set")), required=True),
    "port_group": KeySpec(placed(values.text("the name of a port group"))),
    "rate_limit": KeySpec(placed(values.text("the name of a rate limit"))),
    "name": KeySpec(placed(values.text("a name"))),
    "probe": KeySpec(values.choice("probe", PROBES), "stamp"),
    "dscp": KeySpec(CLASSES),
    "size": KeySpec(placed(_SIZE)),
    "sizes": KeySpec(placed(values.one_or_more("sizes", _SIZE))),
    "timeout": KeySpec(TIMEOUT),
    "family": KeySpec(placed(values.choice("family", ("any", "4", "6", "both")))),
    "source": KeySpec(placed(values.address)),
    "interface": KeySpec(placed(values.interface)),
    "df": KeySpec(placed(values.flag)),
}
#: Every option of any kind of probe; which kinds take it is checked once the kind is known.
OPTIONS = {
    name: KeySpec(lambda doc, node: node) for kind in KINDS.values() for name in kind.options
}


def _named(what: str, read: values.Read[Any]) -> Read:
    def read_all(doc: Document, node: Node) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in doc.entries(node, what):
            if not entry.key.strip():
                doc.wrong(entry.key_node, f"{what} has an entry without a name")
            elif len(entry.key) > values.LONGEST_NAME:
                doc.wrong(
                    entry.key_node,
                    f"{what} has a name of more than {values.LONGEST_NAME:,} characters",
                )
            found[entry.key] = doc.attempt(read, entry.value, None)
        return found

    return read_all


def _rate_limit(doc: Document, node: Node) -> float | None:
    cps: float | None = doc.mapping(node, "a rate limit", RATE_LIMIT)["cps"]
    return cps


def _target(doc: Document, node: Node) -> Placed | None:
    given = doc.mapping(node, "a target", TARGET)
    if given["ip"] and given["host"]:
        raise WrongError(given["host"].node, "both ip and host name the target, expected one")
    host = given["ip"] or given["host"]
    if host is None:
        if not any(entry.key in ("ip", "host") for entry in doc.entries(node, "a target")):
            raise WrongError(node, "a target has no 'ip', expected an address or a hostname")
        return None
    name = given["name"] or given["tags"].get("dst_hostname") or host.value
    target = Target(name=name, host=host.value, port=given["port"], tags=given["tags"])
    return Placed(target, host.node)


def _target_set(doc: Document, node: Node) -> Sequence[Placed]:
    targets = doc.sequence(node, "a target set", _target, "ip: ADDRESS")
    return [target for target in targets if target is not None]


def _test(doc: Document, node: Node) -> Placed:
    return Placed(doc.mapping(node, "a test", TEST | OPTIONS), node)


def _tests(doc: Document, node: Node) -> Sequence[Placed]:
    return doc.sequence(node, "tests", _test, "targets: NAME")


def _section(what: str, keys: Mapping[str, KeySpec]) -> Read:
    return lambda doc, node: doc.mapping(node, what, keys)


FULL = {
    "summarization": KeySpec(
        _section("summarization", SUMMARIZATION),
        {name: spec.default for name, spec in SUMMARIZATION.items()},
    ),
    "api": KeySpec(sections.api, (None, None)),
    "limits": KeySpec(_section("limits", LIMITS), {"pps": None, "bps": None}),
    "source_tags": KeySpec(sections.tags, FrozenMapping()),
    "ports": KeySpec(_named("ports", read_port), {}),
    "port_groups": KeySpec(_named("port_groups", read_port_group), {}),
    "rate_limits": KeySpec(_named("rate_limits", _rate_limit), {}),
    "tests": KeySpec(_tests, (), required=True),
    "targets": KeySpec(_named("targets", _target_set), None, required=True),
}


def _refer(
    doc: Document, ref: Placed | None, what: str, known: Mapping[str, Any] | None, default: Any
) -> Any:
    """Return what a test's reference names, or None when a mistake spoils it."""
    name = ref.value if ref else "default"
    if known is None:
        return None
    if name in known:
        return known[name]
    if name == "default" and default is not None:
        return default
    if ref:
        doc.wrong(
            ref.node, undefined(what, name, known if default is None else ["default", *known])
        )
    return None


def _port_groups(
    doc: Document, given: Mapping[str, Any]
) -> dict[str, tuple[SourcePort, ...] | None] | None:
    """Return the source ports of every port group, None of one that a mistake spoils.

    None for all of them, if they are too many.
    """
    groups: dict[str, tuple[SourcePort, ...] | None] = {}
    room = MAX_PORTS
    for name, entries in given["port_groups"].items():
        room -= sum(entry["count"] for _, entry in entries or ())
        if room < 0:
            doc.wrong(
                entries[0][0], f"the port groups up to {name!r} have more than {MAX_PORTS:,} ports"
            )
            return None
        groups[name] = entries and source_ports(doc, entries, given["ports"])
    if "default" not in groups and "default" in given["ports"]:
        refs = [(test.node, test.value["port_group"]) for test in given["tests"]]
        for node in [node for node, ref in refs if ref is None or ref.value == "default"][:1]:
            item = {"port": Placed("default", node), "count": DEFAULT_COUNT}
            groups["default"] = source_ports(doc, [(node, item)], given["ports"])
    return groups


def read_tests(doc: Document, given: Mapping[str, Any]) -> list[PlacedTest]:
    """Return the tests of a full file whose sections were read; mistakes are noted in ``doc``."""
    groups = _port_groups(doc, given)
    if groups is None:
        return []
    made: list[PlacedTest] = []
    used: dict[str, Node] = {}
    flows = 0
    for each in given["tests"]:
        test = each.value
        targets = _refer(doc, test["targets"], "target set", given["targets"], None)
        ports = _refer(doc, test["port_group"], "port group", groups, DEFAULT_SOURCE_PORTS)
        rate = _refer(doc, test["rate_limit"], "rate limit", given["rate_limits"], DEFAULT_RATE_PPS)
        options = _options(doc, each.node, test)
        sizes = _sizes(doc, test)
        family = _family(doc, test)
        if not targets or not ports or rate is None:
            continue
        names = [
            test[key].value if test[key] else "default"
            for key in ("targets", "port_group", "rate_limit")
        ]
        source = test["source"].value if test["source"] else None
        device = test["interface"]
        if device and not KINDS[test["probe"]].binds:
            doc.wrong(device.node, f"{test['probe']} probes cannot be bound to a device")
        classes = sum(len(test["dscp"] or port.dscps) for port in ports)
        flows += len(targets) * classes * max(1, len(sizes))
        if flows > MAX_FLOWS:
            doc.wrong(
                each.node,
                f"the tests up to this one have {flows:,} flows, expected at most {MAX_FLOWS:,}",
            )
            break
        for address in {port.address or source for port in ports}:
            _agree(doc, each.node, family, address, targets)
        if test["dscp"] or test["timeout"]:
            ports = tuple(
                evolve(
                    port,
                    dscps=test["dscp"] or port.dscps,
                    timeout_s=test["timeout"] or port.timeout_s,
                )
                for port in ports
            )
        one_timeout_a_class(doc, each.node, ports)
        made.append(
            PlacedTest(
                Test(
                    name=_name_of(doc, each.node, test["name"], "/".join(names), used),
                    targets=tuple(target.value for target in targets),
                    probe=test["probe"],
                    port_group=names[1],
                    source_ports=ports,
                    sizes=sizes,
                    rate_pps=rate,
                    timeout_s=max(port.timeout_s for port in ports),
                    family=family,
                    source=source,
                    interface=device.value if device else None,
                    df=bool(test["df"] and test["df"].value),
                    options=options,
                ),
                each.node,
                [target.node for target in targets],
            )
        )
    return made


def _name_of(
    doc: Document, node: Node, given: Placed | None, usual: str, used: dict[str, Node]
) -> str:
    """Return a test's name, which no other test has."""
    name: str = given.value if given else usual
    if given and name in used:
        doc.wrong(given.node, f"the test in line {line_of(used[name])} is named {name!r}, too")
    number = 1
    while name in used:
        number += 1
        name = f"{usual}#{number}"
    used[name] = node
    return name


def _options(doc: Document, node: Node, test: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the test's kind of probe; those of other kinds are mistakes."""
    own = KINDS[test["probe"]].options
    given = default_options(test["probe"])
    for name in OPTIONS:
        if test[name] is None:
            if name in own and own[name].required:
                doc.wrong(node, f"a {test['probe']} test has no {name!r}, expected one")
        elif name in own:
            given[name] = doc.attempt(own[name].read, test[name], own[name].default)
        else:
            takers = ", ".join(kind for kind in KINDS if name in KINDS[kind].options)
            doc.wrong(
                test[name], f"{name} has no meaning for {test['probe']} probes, only {takers}"
            )
    return options_of(doc, node, test["probe"], given)


def _sizes(doc: Document, test: Mapping[str, Any]) -> tuple[int, ...]:
    size, sizes = test["size"], test["sizes"]
    if size and sizes:
        doc.wrong(sizes.node, "both size and sizes are given, expected one of them")
    chosen = sizes or size
    kind = KINDS[test["probe"]]
    if test["df"] and test["df"].value and not kind.fragments:
        doc.wrong(test["df"].node, f"df has no meaning for {test['probe']} probes")
    if not chosen:
        return ()
    wanted: tuple[int, ...] = sizes.value if sizes else (size.value,)
    if kind.least_size is None:
        doc.wrong(chosen.node, f"the size of {test['probe']} probes cannot be chosen")
    elif wanted and min(wanted) < kind.least_size:
        doc.wrong(
            chosen.node,
            f"{min(wanted)} octets are too few for a {test['probe']} probe, expected at least"
            f" {kind.least_size} (octets of UDP payload)",
        )
    return wanted


def _family(doc: Document, test: Mapping[str, Any]) -> Family:
    given = test["family"]
    families = KINDS[test["probe"]].families
    if families == "4":
        if given and given.value in ("6", "both"):
            doc.wrong(given.node, f"{test['probe']} probes are IPv4 only, expected family 4")
        return "4"
    return given.value if given else "any"


def _agree(
    doc: Document, node: Node, family: Family, source: str | None, targets: Sequence[Placed]
) -> None:
    """Refuse targets that the test's family or source address cannot reach."""
    wanted: str | None = family if family in ("4", "6") else None
    if source is not None:
        own = str(ipaddress.ip_address(source).version)
        if wanted not in (None, own):
            doc.wrong(node, f"source {source} is IPv{own}, but the test's family is {wanted}")
            return
        wanted = own
    for target in targets:
        try:
            version = str(ipaddress.ip_address(target.value.host).version)
        except ValueError:
            continue
        if wanted not in (None, version):
            why = f"source is {source}" if source else f"family is {wanted}"
            doc.wrong(
                target.node,
                f"target {target.value.host} is IPv{version}, but the {why} in the test in line"
                f" {line_of(node)}",
            )
