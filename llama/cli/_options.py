"""Kinds of values that click's own take too loosely, and what is to be said of some."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from llama.config.urls import http_url
from llama.wire.source_ports import REFUSED_PORTS, named

if TYPE_CHECKING:
    _TextType = click.ParamType[str]
else:
    _TextType = click.ParamType  # a class that takes no parameter before click 8.4


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
            self.fail(f"{text!r} {error}", param, ctx)


def warn_of_refused(source_ports: Iterable[int]) -> None:
    """Say on standard error which source ports our reflectors refuse, if any."""
    refused = REFUSED_PORTS.keys() & set(source_ports)
    if refused:
        click.echo(
            f"LLAMA's reflectors refuse probes from port {named(refused)}, as a guard against loops:"
            " what is sent from there seems to be lost; choose other source ports",
            err=True,
        )
