"""Reading a writer's options: typed, with a default, and complete about what is unknown.

Values arrive as text, numbers or booleans, as the configuration's reader leaves them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llama.config.urls import server_url, shown_url

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


class Options:
    """The options of one writer. Every reader raises `ValueError` with one line for a person."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._left = dict(options)

    def text(self, key: str, default: str | None = None) -> str:
        """Return an option that is text; without a default it must be given."""
        value = self._left.pop(key, None)
        if value is None:
            if default is None:
                raise ValueError(f"{key!r} is missing")
            return default
        if isinstance(value, Mapping | list | tuple):
            raise ValueError(f"{key!r} is a {type(value).__name__}, expected text")
        return str(value)

    def maybe(self, key: str) -> str | None:
        """Return an option that is text, or None when it is not given or empty."""
        return self.text(key, "") or None

    def url(self, key: str, default: str | None = None) -> str:
        """Return an ``http`` or ``https`` URL without credentials and without a final slash."""
        value = self.text(key, default)
        try:
            return server_url(value)
        except ValueError as error:
            raise ValueError(f"{key!r}: {shown_url(value)} {error}") from None

    def flag(self, key: str, default: bool) -> bool:
        """Return a yes or no."""
        given = self._left.pop(key, None)
        value = str(default if given is None else given).lower()
        if value not in _TRUE | _FALSE:
            raise ValueError(f"{key!r} is {value!r}, expected true or false")
        return value in _TRUE

    def seconds(self, key: str, default: float, lowest: float = 0.0) -> float:
        """Return a length of time: a number of seconds, or one with s, m, h, d or w."""
        given = self._left.pop(key, None)
        value = str(default if given is None else given).strip()
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", value)
        if match is None or float(match[1]) * _UNITS_S[match[2]] < lowest:
            least = f" of at least {lowest:g} s" if lowest else ""
            raise ValueError(f"{key!r} is {value!r}, expected a time{least} such as 30, 30s or 2d")
        return float(match[1]) * _UNITS_S[match[2]]

    def choice(self, key: str, *choices: str) -> str:
        """Return one of the choices, of which the first is the default."""
        value = self.text(key, choices[0])
        if value not in choices:
            raise ValueError(f"{key!r} is {value!r}, expected {' or '.join(choices)}")
        return value

    def end(self) -> None:
        """Raise `ValueError` if any option was never asked for."""
        if self._left:
            raise ValueError(f"unknown key {', '.join(map(repr, sorted(self._left)))}")
