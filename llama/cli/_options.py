"""Kinds of values that click's own take too loosely."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from llama.printable import printable

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
        scheme, _, rest = text.partition("://")
        if scheme not in ("http", "https") or not rest.strip("/"):
            self.fail(f"{text!r} is no http:// or https:// address", param, ctx)
        if " " in text or printable(text) != text:
            self.fail(f"{text!r}: blanks are written as %20", param, ctx)
        if not text.isascii():
            self.fail(
                f"{text!r}: letters beyond ASCII are written as xn-- in a host's name, as %XX after it",
                param,
                ctx,
            )
        return text
