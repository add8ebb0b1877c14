"""Addresses of HTTP servers: what one is, wherever people write it."""

from __future__ import annotations

from llama.printable import printable


def http_url(text: str) -> str:
    """Return a URL as given.

    Raises `ValueError` if it is none of http or https that can be asked for. The message goes on after
    what names the URL, and does not show it: it may be a secret.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise ValueError("is no http:// or https:// address")
    if " " in text or printable(text) != text:
        raise ValueError("has blanks or control characters in it: blanks are written as %20")
    if not text.isascii():
        raise ValueError(
            "has letters beyond ASCII in it: they are written as xn-- in a host's name, as %XX after it"
        )
    return text
