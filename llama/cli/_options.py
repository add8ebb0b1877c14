"""What commands take: values that click's own kinds take too loosely, and what is to be said of some."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from llama.config.link_local import without_interface
from llama.config.urls import http_url, shown_url
from llama.config.values import not_one_host
from llama.net.lookup import is_address
from llama.wire.source_ports import REFUSED_PORTS, named

if TYPE_CHECKING:
    _TextType = click.ParamType[str]
else:
    _TextType = click.ParamType  # a class that takes no parameter before click 8.4

#: Flows at most that one command sends.
MOST_FLOWS = 1024


class Seconds(click.FloatRange):
    """A time in seconds, which ``nan`` and ``inf`` are not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a finite number within the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no time in seconds", param, ctx)
        return number


class HttpUrl(_TextType):
    """An address that begins with ``http://`` or ``https://``."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as given."""
        text = str(value)
        try:
            return http_url(text)
        except ValueError as error:
            self.fail(f"{shown_url(text)} {error}", param, ctx)


def parse_target(text: str, usual: int = 8100) -> tuple[str, int]:
    """Return host and port of ``HOST``, ``HOST:PORT``, an IPv6 address, or ``[IPv6]:PORT``.

    The port is ``usual`` where none is given. Raises `ValueError`, with a message for people.
    """
    port = str(usual)
    host = text
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: expected [ADDRESS]:PORT")
        port = rest[1:] or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    elif ":" in text and not is_address(text):
        raise ValueError(f"{text!r} is no IPv6 address; one with a port is written [ADDRESS]:PORT")
    if not host:
        raise ValueError(f"{text!r}: expected HOST or HOST:PORT")
    if not (port.isascii() and port.isdigit() and min(usual, 1) <= int(port) <= 65535):
        raise ValueError(f"{text!r}: {port!r} is no port, expected {min(usual, 1)}-65535")
    return host, int(port)


def require_ends(host: str, source: str | None, interface: str | None = None) -> None:
    """Raise `ValueError`, with a message for people, for addresses that nothing is probed at, or from."""
    target = ipaddress.ip_address(host) if is_address(host) else None
    own = None if source is None else ipaddress.ip_address(source)
    if target is not None and (problem := not_one_host(target)):
        raise ValueError(f"{host!r} {problem}")
    for address in (target, own) if interface is None else ():
        if problem := without_interface(str(address)):
            raise ValueError(problem)


def warn_of_refused(source_ports: Iterable[int]) -> None:
    """Say on standard error which source ports our reflectors refuse, if any."""
    refused = REFUSED_PORTS.keys() & set(source_ports)
    if refused:
        click.echo(
            f"LLAMA's reflectors refuse probes from port {named(refused)}, as a guard against loops:"
            " what is sent from there seems to be lost; choose other source ports",
            err=True,
        )
