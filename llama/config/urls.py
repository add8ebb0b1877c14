"""Addresses of HTTP servers: what one is, wherever people write it."""

from __future__ import annotations

from collections.abc import Iterable

from llama.printable import printable

#: What to do where Twisted lacks the packages that https and ``ssl:`` take.
NO_TLS = "TLS is not installed: pip install pyOpenSSL service-identity"


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


def lacks_tls(urls: Iterable[object]) -> bool:
    """Tell whether any is of https, which cannot be asked here since TLS is not installed."""
    if not any(isinstance(url, str) and url.lower().startswith("https://") for url in urls):
        return False
    try:
        import OpenSSL  # noqa: F401
        import service_identity  # noqa: F401
    except ImportError:
        return True
    return False
