"""What a single value in a configuration may be, and what is said when it is something else.

Each reader takes a document and a node and returns the value or raises `WrongError`. Text is read
as written: YAML's own ideas of what ``01``, ``on`` or ``12:30`` mean do not apply.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import yaml

from llama.config.dscp import class_name, dscp_number
from llama.config.keys import read_secret
from llama.config.model import Prefix
from llama.config.tree import Document, Node, WrongError, is_null, kind, unknown

T = TypeVar("T")
Read = Callable[[Document, Node], T]

LONGEST_NAME = 1024  # characters of what is named in results, which their readers take

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MULTIPLES: dict[str, float] = {
    "": 1.0,
    **{letter: 1000.0**n for n, letter in enumerate("kMGT", 1)},
    **{f"{letter}i": 1024.0**n for n, letter in enumerate("KMGT", 1)},
}


def written(node: Node, expected: str) -> str:
    """Return a scalar as written. Raises `WrongError`, naming what was ``expected``, for others."""
    if not isinstance(node, yaml.ScalarNode):
        raise WrongError(node, f"{kind(node)} here, expected {expected}")
    return str(node.value)


def text(what: str, most: int | None = None) -> Read[str]:
    """Read text that is not empty, stands on one line and has no more than ``most`` characters."""

    def read(doc: Document, node: Node) -> str:
        value = written(node, what)
        if is_null(node) or not value.strip():
            raise WrongError(node, f"nothing here, expected {what}")
        if "\n" in value or "\r" in value:
            raise WrongError(node, f"several lines of text, expected {what} on one line")
        if most is not None and len(value) > most:
            raise WrongError(
                node, f"{len(value):,} characters here, expected {what} of at most {most:,}"
            )
        return value

    return read


def flag(doc: Document, node: Node) -> bool:
    """Read yes or no."""
    value = written(node, "true or false").lower()
    if value not in _TRUE + _FALSE:
        raise WrongError(node, f"{kind(node)} is neither true nor false")
    return value in _TRUE


def whole(low: int, high: int, unit: str) -> Read[int]:
    """Read a whole number between two bounds, in decimal or as 0x hexadecimal."""
    expected = f"a whole number from {low} to {high}" + (f" ({unit})" if unit else "")

    def read(doc: Document, node: Node) -> int:
        value = written(node, expected)
        if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", value):
            number = int(value, 16)
        elif _WHOLE.fullmatch(value) and len(value) <= 20:
            number = int(value)
        else:
            raise WrongError(node, f"{kind(node)} is not {expected}")
        if not low <= number <= high:
            raise WrongError(node, f"{number} is out of range, expected {expected}")
        return number

    return read


def number(low: float, high: float, unit: str) -> Read[float]:
    """Read a number between two bounds."""
    expected = f"a number from {low:g} to {high:g}" + (f" ({unit})" if unit else "")

    def read(doc: Document, node: Node) -> float:
        value = written(node, expected)
        if not _NUMBER.fullmatch(value) or not math.isfinite(float(value)):
            raise WrongError(node, f"{kind(node)} is not {expected}")
        if not low <= float(value) <= high:
            raise WrongError(node, f"{value} is out of range, expected {expected}")
        return float(value)

    return read


def duration(low_s: float, high_s: float, unit: str) -> Read[float]:
    """Read a time as seconds: a number in ``unit`` ("s" or "ms"), or with a unit of its own."""
    scale = _SECONDS[unit]
    bounds = " to ".join(f"{bound / scale:.12g}" for bound in (low_s, high_s))
    expected = f"a time from {bounds} {unit}, or with a unit (ms, s, m, h, d)"

    def read(doc: Document, node: Node) -> float:
        value = written(node, expected)
        match = re.fullmatch(rf"({_NUMBER.pattern})\s*(ms|s|m|h|d|)", value)
        if not match:
            raise WrongError(node, f"{kind(node)} is not {expected}")
        # Division keeps 0.1 s at 100 ms, where 100 * 0.001 does not.
        factor = _SECONDS[match[4] or unit]
        amount = float(match[1])
        seconds = amount / 1000 if factor == 0.001 else amount * factor
        if not low_s <= seconds <= high_s:
            raise WrongError(node, f"{value} is out of range, expected {expected}")
        return seconds

    return read


def whole_seconds(low: int, high: int) -> Read[int]:
    """Read a time of whole seconds: their number, or with a unit of its own."""
    plain, timed = whole(low, high, "s"), duration(low, high, "s")

    def read(doc: Document, node: Node) -> int:
        value = written(node, "a time")
        if not value.endswith(tuple(_SECONDS)):
            return plain(doc, node)
        seconds = timed(doc, node)
        if not seconds.is_integer():
            raise WrongError(node, f"{value} is {seconds:g} s, expected whole seconds")
        return int(seconds)

    return read


def _short(amount: float) -> str:
    for letter in "TGMk":
        if amount >= _MULTIPLES[letter]:
            return f"{amount / _MULTIPLES[letter]:g}{letter}"
    return f"{amount:g}"


def quantity(low: float, high: float, unit: str) -> Read[float]:
    """Read a number that may carry a multiple: k, M, G, T or Ki, Mi, Gi, Ti."""
    expected = f"a number from {_short(low)} to {_short(high)} {unit} (k, M, G, T for multiples)"

    def read(doc: Document, node: Node) -> float:
        value = written(node, expected)
        match = re.fullmatch(rf"({_NUMBER.pattern})\s*([kMGT]|[KMGT]i|)", value)
        if not match:
            raise WrongError(node, f"{kind(node)} is not {expected}")
        amount = float(match[1]) * _MULTIPLES[match[4]]
        if not low <= amount <= high:
            raise WrongError(node, f"{value} is out of range, expected {expected}")
        return amount

    return read


def choice(what: str, names: Sequence[str]) -> Read[Any]:
    """Read one of several names."""

    def read(doc: Document, node: Node) -> str:
        value = written(node, f"one of {', '.join(names)}")
        if value not in names:
            raise WrongError(node, unknown(what, value, names))
        return value

    return read


def one_or_more(what: str, read_one: Read[T]) -> Read[tuple[T, ...]]:
    """Read one value or a list of different ones."""

    def read(doc: Document, node: Node) -> tuple[T, ...]:
        if not isinstance(node, yaml.SequenceNode):
            return (read_one(doc, node),)
        if not node.value:
            raise WrongError(node, f"an empty list, expected {what}")
        values: dict[T, Node] = {}
        for item in node.value:
            try:
                value = read_one(doc, item)
            except WrongError as error:
                doc.wrong(error.node, error.message)
                continue
            if value in values:
                doc.wrong(item, f"{kind(item)} is in this list twice, expected different values")
            values.setdefault(value, item)
        return tuple(values)

    return read


def dscp(doc: Document, node: Node) -> int:
    """Read a traffic class, by name or number."""
    try:
        return dscp_number(written(node, "a traffic class such as EF, or a DSCP 0-63"))
    except ValueError as error:
        raise WrongError(node, str(error)) from None


def tos(doc: Document, node: Node) -> int:
    """Read a TOS octet (0-255) as the DSCP in it (0-63); the ECN bits are never sent."""
    value = whole(0, 255, "the TOS octet; its DSCP is the upper six bits")(doc, node)
    if value & 3:
        meant = f"; for the class {class_name(value)} write `dscp: {value}`" if value < 64 else ""
        doc.note(
            node,
            f"tos {value} has ECN bits set, which are sent as zero: its class is"
            f" {class_name(value >> 2)}{meant}",
        )
    return value >> 2


def address(doc: Document, node: Node) -> str:
    """Read an IPv4 or IPv6 address, written back in its canonical form."""
    value = written(node, "an IP address")
    try:
        ip = ipaddress.ip_address(value)
    except ValueError:
        raise WrongError(node, f"{kind(node)} is not an IPv4 or IPv6 address") from None
    if problem := mapped(ip):
        raise WrongError(node, f"{kind(node)} {problem}")
    return str(ip)


def mapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    """Return what is wrong with an IPv4 address that is written as one of IPv6; None for any other."""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return f"is an IPv4 address, expected {ip.ipv4_mapped}"
    return None


def not_one_host(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    """Return what is wrong with an address that no single host is probed at; None for any other."""
    if ip.is_multicast or ip.is_unspecified or str(ip) == "255.255.255.255":
        return "is no address of one host, expected a unicast one"
    return mapped(ip)


def is_hostname(value: str) -> bool:
    """Say whether text can be a hostname: labels of letters, digits, ``-`` and ``_``."""
    labels = value.removesuffix(".").split(".")
    return (
        len(value) <= 254
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()
    )


def is_host(value: str) -> bool:
    """Say whether text is an IP address or can be a hostname."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return is_hostname(value)
    return True


#: A host as it is written where a port may follow: HOST:PORT, [IPv6], [IPv6]:PORT.
_WITH_PORT = re.compile(r"[^:\[\]/]+:\d*|\[[0-9A-Fa-f:.%]+\](:\d*)?")


def host(doc: Document, node: Node) -> str:
    """Read a hostname or a unicast IP address."""
    value = written(node, "a hostname or an IP address")
    try:
        ip = ipaddress.ip_address(value)
    except ValueError:
        if is_hostname(value):
            return value
        problem = f"{kind(node)} is neither a hostname nor an IP address"
        if _WITH_PORT.fullmatch(value):
            problem = (
                f"{kind(node)}: expected a host alone, without brackets; a port is a key of its own"
            )
        raise WrongError(node, problem) from None
    if wrong := not_one_host(ip):
        raise WrongError(node, f"{kind(node)} {wrong}")
    return str(ip)


def prefix(doc: Document, node: Node) -> Prefix:
    """Read an address or an address prefix such as 192.0.2.0/24."""
    value = written(node, "a prefix such as 192.0.2.0/24")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        problem = "its host bits are not zero" if "host bits" in str(error) else ""
        problem = problem or "expected one such as 192.0.2.0/24 or 2001:db8::/32"
        raise WrongError(node, f"{kind(node)} is not an address prefix: {problem}") from None


def interface(doc: Document, node: Node) -> str:
    """Read the name of a network device."""
    value = text("the name of a network interface")(doc, node)
    if len(value.encode()) > 15 or "/" in value or value.split() != [value]:
        raise WrongError(node, f"{kind(node)} is no name of a network interface (1-15 octets)")
    return value


def path(doc: Document, node: Node) -> str:
    """Read a path; a relative one starts at the directory of the configuration file."""
    return str(doc.near(node, text("a path")(doc, node)))


def secret_line(doc: Document, node: Node) -> str:
    """Read the path of a file and return the first line in it, a token or a password."""
    try:
        return read_secret(path(doc, node))
    except ValueError as error:
        raise WrongError(node, str(error)) from None
