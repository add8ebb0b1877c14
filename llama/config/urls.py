"""Addresses of HTTP servers: what one is, wherever people write it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from llama.config.link_local import through_interface
from llama.printable import printable

#: A name, or an IPv4 address; an IPv6 address and perhaps a port.
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?", re.ASCII)
_BRACKETED = re.compile(r"\[[^\]]*\](:[0-9]+)?")
#: What to do where Twisted lacks the packages that https and ``ssl:`` take.
NO_TLS = "TLS is not installed: pip install pyOpenSSL service-identity"


def http_url(text: str) -> str:
    """Return a URL as given.

    Raises `ValueError` if it is none of http or https that can be asked for. The message goes on after
    what names the URL, and does not show it: it may be a secret.
    """
    if " " in text or printable(text) != text:
        raise ValueError("has blanks or control characters in it: blanks are written as %20")
    if not text.isascii():
        raise ValueError(
            "has letters beyond ASCII in it: they are written as xn-- in a host's name, as %XX after it"
        )
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("has brackets round what is no IPv6 address") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("is no http:// or https:// address")
    if "@" in parts.netloc:
        raise ValueError("has a user or a password in it, which is not sent")
    bracketed = parts.netloc.startswith("[")
    if parts.netloc.count(":") > 1 and not bracketed:
        raise ValueError("has an IPv6 address without brackets, expected [ADDRESS]:PORT")
    host = parts.hostname or ""
    if not host:
        raise ValueError("names no host")
    try:
        good = parts.port != 0 and not parts.netloc.endswith(":")
    except ValueError:
        good = False
    if not good:
        raise ValueError("has a port that is not 1-65535")
    if bracketed and through_interface(host):
        raise ValueError(
            "is link-local: servers are not asked through an interface; expected another address"
        )
    if not (_BRACKETED.fullmatch(parts.netloc) if bracketed else _NAME.fullmatch(host)):
        raise ValueError("names a host that can be none")
    return text


def shown_url(text: str) -> str:
    """Return what a URL is called in a message: nothing of one that may have a secret in it."""
    return "a URL" if any(sign in text for sign in "@?#") else repr(text)


def server_url(text: str) -> str:
    """Return the URL of a server, before the paths that it is asked for: without the slash at its end.

    Raises `ValueError` as `http_url` does, and if no path can follow.
    """
    http_url(text)
    if "?" in text or "#" in text:
        raise ValueError("has a query or a fragment, expected one such as http://tsdb:8086")
    return text.rstrip("/")


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
