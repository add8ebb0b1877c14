"""Kinds of values that click's own take too loosely."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from llama.config.urls import http_url

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
