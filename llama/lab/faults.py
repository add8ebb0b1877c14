"""Faults by name: broken into a fabric, and taken back.

Loss is made where the receiver of a direction takes packets in (nftables' ``netdev`` ingress
hook), so that a sender never hears of it: exactly what a bad cable or line card does. Every fault
owns one nftables table of its name, hence any number of them overlap, and taking one back leaves
the others alone.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import asdict, define, field, fields, frozen

from llama.config.dscp import dscp_number
from llama.lab.delay import MARK
from llama.lab.fabric import End
from llama.lab.namespaces import Lab, LabError, command

_NOTICED_S = 10.0  # until a cable's far end has noticed what happened to this one
#: Bounds of a fault's numbers: of shares the least that a rule can be of, of times an hour.
_BOUNDS = (
    ("percent", 0.001, 100),
    ("share", 0.0001, 1),
    ("ms", 0, 3_600_000),
    ("jitter_ms", 0, 3_600_000),
    ("octets", 1, 65_535),
    ("per_second", 1, 10**9),
)
Place = Literal["direction", "router", "node", "host"]


@frozen
class Kind:
    """One kind of fault: where it is put, which options it takes, what it does."""

    place: Place
    options: tuple[str, ...]
    does: str


KINDS: dict[str, Kind] = {
    "loss": Kind(
        "direction", ("percent", "dscp", "family"), "drops a share of the packets, at random"
    ),
    "flows": Kind("direction", ("share", "family"), "drops all packets of a share of the flows"),
    "class": Kind("direction", ("dscp", "percent", "family"), "drops one traffic class"),
    "bleach": Kind("direction", ("dscp", "to"), "re-marks a class (all, unless named) to another"),
    "mtu": Kind("direction", ("octets", "family"), "drops packets above a size, and says nothing"),
    "delay": Kind("direction", ("ms", "jitter_ms"), "holds every packet"),
    "silent": Kind(
        "router", ("percent", "family"), "drops what it should forward, while its links stay up"
    ),
    "down": Kind("node", (), "takes all cables of a node down; a host's processes end"),
    "frozen": Kind("host", (), "stops (SIGSTOP) the processes of a host; its kernel lives on"),
    "icmp-limit": Kind("router", ("per_second",), "limits the time-exceeded messages of a router"),
    "icmp-silent": Kind("router", (), "sends no ICMP errors at all"),
}


@define
class Fault:
    """One fault. `on` is a direction ``A -> B`` or a node, as its kind demands.

    Options that the kind does not take, and values out of range, raise `ValueError`.
    """

    kind: str
    on: str
    name: str = ""
    percent: float = 100.0  # of packets
    share: float = 0.25  # of flows; which ones is chosen by a hash of addresses and ports
    dscp: str | None = None  # a class by name; None: all
    family: str | None = None  # "4" or "6", of IP; None: both
    to: str = "BE"
    octets: int = 1280  # the largest IP packet that still passes
    ms: float = 10.0
    jitter_ms: float = 0.0
    per_second: int = 1
    given: tuple[str, ...] = field(default=(), eq=False)

    def __attrs_post_init__(self) -> None:
        """Check what was given against the kind."""
        if self.kind not in KINDS:
            raise ValueError(f"no fault {self.kind!r}; there are {', '.join(KINDS)}")
        kind = KINDS[self.kind]
        for option in self.given:
            if option not in kind.options:
                takes = ", ".join(kind.options) or "no options"
                raise ValueError(f"fault {self.kind!r} does not take {option!r}, it takes {takes}")
        for name, least, most in _BOUNDS:
            if not least <= getattr(self, name) <= most:  # nor nan
                raise ValueError(f"{name}: {getattr(self, name)} is not within {least} and {most}")
        if self.kind == "class" and self.dscp is None:
            raise ValueError("fault 'class' needs the class: dscp, by name, such as EF")
        for text in (self.dscp, self.to):
            if text is not None:
                dscp_number(text)
        if self.family not in (None, "4", "6"):
            raise ValueError(f"family: {self.family!r} is not 4 or 6")
        self.name = self.name or f"{self.kind} {self.on}"

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Fault:
        """Make one from what a person wrote; `ValueError` says what is wrong with it."""
        known = {a.name: a for a in fields(cls) if a.name != "given"}
        values: dict[str, Any] = {}
        for key, value in options.items():
            if key not in known:
                raise ValueError(f"no option {key!r}; there are {', '.join(known)}")
            convert: Callable[[Any], Any] = {"float": float, "int": int}.get(known[key].type, str)
            try:
                values[key] = convert(value)
            except (TypeError, ValueError):
                raise ValueError(f"{key}: {value!r} is no {known[key].type}") from None
        if "kind" not in values or "on" not in values:
            raise ValueError("a fault needs 'kind' and 'on'")
        given = tuple(set(values) - {"kind", "on", "name"})
        return cls(**values, given=given)

    def record(self) -> dict[str, Any]:
        """Return what `from_mapping` makes the same fault of: kind, place, name and its options."""
        keep = ("kind", "on", "name", *KINDS[self.kind].options)
        return {k: v for k, v in asdict(self).items() if k in keep and v is not None}

    @property
    def table(self) -> str:
        """The nftables table, and TAP device and relay, that belong to this fault alone."""
        return "llama-" + "".join(f"{byte:02x}" for byte in _digest(self.name))


def _digest(text: str) -> bytes:
    """Return four octets that tell names apart."""
    return hashlib.blake2b(text.encode(), digest_size=4).digest()


class NoFaultError(LabError):
    """There is no fault of that name."""


def inject(lab: Lab, fault: Fault) -> None:
    """Break the fabric. Raises `LabError` when a fault of that name is there already."""
    with lab.locked():
        if any(other["name"] == fault.name for other in lab.faults):
            raise LabError(f"fault {fault.name!r} is there already; heal it, or give another name")
        check_place(lab, fault)
        # Recorded first: what was half done when we were killed can still be healed.
        lab.faults.append(fault.record())
        lab.save()
        try:
            _APPLY.get(fault.kind, _add_rules)(lab, fault)
        except LabError:
            heal(lab, fault.name)
            raise


def heal(lab: Lab, name: str) -> None:
    """Take one fault back. Raises `NoFaultError` when there is none of that name."""
    with lab.locked():
        for record in lab.faults:
            if record["name"] == name:
                fault = Fault.from_mapping(record)
                _TAKE_BACK.get(fault.kind, _remove_rules)(lab, fault)
                lab.faults.remove(record)
                lab.save()
                return
        there = ", ".join(repr(other["name"]) for other in lab.faults) or "none"
    raise NoFaultError(f"no fault {name!r} here; there are: {there}")


def heal_all(lab: Lab) -> list[str]:
    """Take all faults back, the last one first, and return their names."""
    with lab.locked():
        names = [record["name"] for record in reversed(lab.faults)]
        for name in names:
            heal(lab, name)
    return names


def check_place(lab: Lab, fault: Fault) -> None:
    """Raise `LabError` unless the fault's place exists and fits its kind."""
    place = KINDS[fault.kind].place
    routers = (*lab.fabric.leaf_names, *lab.fabric.spine_names)
    known = {
        "router": routers,
        "host": tuple(lab.fabric.hosts),
        "node": (*routers, *lab.fabric.hosts),
    }
    try:
        if place == "direction":
            lab.fabric.direction(fault.on)
        elif fault.on not in known[place]:
            raise ValueError(
                f"{fault.on!r} is no {place} here; there are {', '.join(known[place])}"
            )
    except ValueError as e:
        raise LabError(f"fault {fault.kind!r}: {e}") from None


def _seed(fault: Fault) -> int:
    """Return a hash seed that belongs to the fault's name."""
    return int.from_bytes(_digest("seed " + fault.name), "big")


def _match(number: str, share: float, parts: int, rest: str = "") -> str:
    """Return what matches a share of packets, by a number that each has, in so many parts.

    Of all of them it is nothing: nftables takes no comparison that is always true.
    """
    limit = round(share * parts)
    return "" if limit >= parts else f"{number} mod {parts}{rest} < {limit} "


def _rules(fault: Fault) -> list[str]:
    """Return the nftables statements of a fault, one a packet family where it matters."""
    often = _match("numgen random", fault.percent / 100, 100_000)
    ips = {None: ("ip", "ip6"), "4": ("ip",), "6": ("ip6",)}[fault.family]
    if fault.kind in ("loss", "class", "silent"):
        if fault.dscp is not None:
            number = dscp_number(fault.dscp)
            return [f"{ip} dscp {number} {often}counter drop" for ip in ips]
        if fault.family is not None:
            return [f"meta protocol {ip} {often}counter drop" for ip in ips]
        return [f"{often}counter drop"]
    if fault.kind == "flows":
        rules = []
        for ip in ips:
            protocol = {"ip": "ip protocol", "ip6": "ip6 nexthdr"}[ip]
            ends = f"jhash {ip} saddr . {ip} daddr . th sport . th dport"
            some = _match(ends, fault.share, 10_000, f" seed {_seed(fault)}")
            rules.append(f"{protocol} {{ tcp, udp }} {some}counter drop")
        return rules
    if fault.kind == "bleach":
        match = "" if fault.dscp is None else "{ip} dscp " + str(dscp_number(fault.dscp)) + " "
        to = dscp_number(fault.to)
        return [
            # Left as they are: packets that have the new mark already would only be counted.
            f"{match.format(ip=ip)}{ip} dscp != {to} counter {ip} dscp set {to}"
            for ip in ("ip", "ip6")
        ]
    if fault.kind == "mtu":
        most = {"ip": fault.octets, "ip6": max(0, fault.octets - 40)}  # without its header
        return [f"{ip} length > {most[ip]} counter drop" for ip in ips]
    if fault.kind == "icmp-limit":
        over = f"limit rate over {fault.per_second}/second burst {fault.per_second} packets"
        return [
            f"icmp type time-exceeded {over} counter drop",
            f"icmpv6 type time-exceeded {over} counter drop",
        ]
    assert fault.kind == "icmp-silent"
    return [
        "icmp type { time-exceeded, destination-unreachable } counter drop",
        "icmpv6 type { time-exceeded, destination-unreachable, packet-too-big } counter drop",
    ]


def _hook(lab: Lab, fault: Fault) -> tuple[str, str, str]:
    """Return the node, the table's family, and the hook of a fault's chain."""
    if KINDS[fault.kind].place == "direction":
        way = lab.fabric.direction(fault.on)
        device = f'type filter hook ingress device "{way.receiver.interface}" priority 0'
        return way.receiver.node, "netdev", device
    hook = "forward" if fault.kind == "silent" else "output"
    return fault.on, "inet", f"type filter hook {hook} priority 0"


#: Neighbours keep knowing each other: without ARP a loss in one direction would soon be one in both.
_SPARED = {
    "netdev": (
        "meta protocol arp accept",
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept",
    )
}


def _add_rules(lab: Lab, fault: Fault) -> None:
    """Add the fault's own table, in one transaction."""
    node, family, hook = _hook(lab, fault)
    rules = "\n".join(f"    {rule}" for rule in (*_SPARED.get(family, ()), *_rules(fault)))
    text = f"table {family} {fault.table} {{\n  chain fault {{\n    {hook};\n{rules}\n  }}\n}}\n"
    lab.run(node, "nft", "-f", "-", feed=text)


def _remove_rules(lab: Lab, fault: Fault) -> None:
    """Remove the fault's own table; that it is not there is no failure."""
    node, family, _ = _hook(lab, fault)
    lab.run(
        node,
        "nft",
        "-f",
        "-",
        feed=f"table {family} {fault.table}\ndelete table {family} {fault.table}\n",
    )


def _delay(lab: Lab, fault: Fault) -> None:
    """Start the relay, and only then send packets its way."""
    way = lab.fabric.direction(fault.on)
    node, interface, tap = way.sender.node, way.sender.interface, fault.table
    lab.run(node, "ip", "tuntap", "add", "name", tap, "mode", "tap")
    # Nothing of its own shall reach the wire.
    lab.run(node, "sysctl", "-q", f"net.ipv6.conf.{tap}.disable_ipv6=1")
    mtu = str(lab.fabric.mtu)
    lab.run(node, "ip", "link", "set", "dev", tap, "mtu", mtu, "txqueuelen", "10000", "up")
    arguments = [sys.executable, "-m", "llama.lab.delay", interface, tap]
    relay = lab.start(node, tap, [*arguments, str(fault.ms), str(fault.jitter_ms)])
    while "LOWER_UP" not in lab.run(node, "ip", "link", "show", "dev", tap):
        # The device has a carrier as soon as the relay has it open.
        if not relay.alive:
            raise LabError(f"the relay of {fault.name!r} ended; see {node}-{tap}.log")
        time.sleep(0.02)
    text = (
        f"table netdev {tap} {{\n  chain fault {{\n"
        f'    type filter hook egress device "{interface}" priority 0\n'
        f'    meta mark != {MARK} counter fwd to "{tap}"\n  }}\n}}\n'
    )
    lab.run(node, "nft", "-f", "-", feed=text)


def _undelay(lab: Lab, fault: Fault) -> None:
    """Send packets the short way again, then end the relay."""
    node, tap = lab.fabric.direction(fault.on).sender.node, fault.table
    lab.run(node, "nft", "-f", "-", feed=f"table netdev {tap}\ndelete table netdev {tap}\n")
    relays = [p for p in lab.processes if (p.node, p.name) == (node, tap)]
    lab.stop(relays)
    lab.processes = [p for p in lab.processes if p not in relays]
    lab.run(node, "ip", "link", "delete", tap, check=False)


def _cables(lab: Lab, node: str, state: Literal["up", "down"]) -> None:
    """Set all cables of a node up or down, and wait until the far ends have noticed.

    The kernel tells the far end of a cable at most once a second, and until then routes lead there.
    """
    ends = lab.fabric.ends(node)
    lines = "".join(f"link set {own.interface} {state}\n" for own, _ in ends)
    lab.run(node, "ip", "-batch", "-", feed=lines)
    until = time.monotonic() + _NOTICED_S
    for _, far in ends:
        while not _noticed(lab, far, state):
            if time.monotonic() > until:
                raise LabError(
                    f"{far.node}: {far.interface} does not notice that {node} is {state}"
                )
            time.sleep(0.05)


def _noticed(lab: Lab, end: End, state: Literal["up", "down"]) -> bool:
    """Tell whether an end of a cable knows the state of the other, or is down itself."""
    words = ("ip", "-n", lab.namespace(end.node), "-j", "link", "show", "dev", end.interface)
    link = json.loads(command(*words))[0]
    return "UP" not in link["flags"] or (link["operstate"] == "UP") == (state == "up")


def _down(lab: Lab, fault: Fault) -> None:
    """Cut the node off; a host's processes die with it."""
    lab.stop([p for p in lab.processes if p.node == fault.on and fault.on in lab.fabric.hosts])
    _cables(lab, fault.on, "down")


def _up(lab: Lab, fault: Fault) -> None:
    """Connect the node again, with the routes that went with its interfaces."""
    _cables(lab, fault.on, "up")
    lab.add_routes(fault.on)
    if fault.on in lab.fabric.hosts:
        for process in [p for p in lab.processes if p.node == fault.on and not p.alive]:
            lab.restart(process)


def _signal(number: signal.Signals) -> Callable[[Lab, Fault], None]:
    """Return what sends a signal to all processes of a host."""

    def send(lab: Lab, fault: Fault) -> None:
        for process in lab.processes:
            if process.node == fault.on:
                process.send(number)

    return send


_APPLY: dict[str, Callable[[Lab, Fault], None]] = {
    "delay": _delay,
    "down": _down,
    "frozen": _signal(signal.SIGSTOP),
}
_TAKE_BACK: dict[str, Callable[[Lab, Fault], None]] = {
    "delay": _undelay,
    "down": _up,
    "frozen": _signal(signal.SIGCONT),
}
