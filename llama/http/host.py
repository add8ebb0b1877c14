"""Knows hosts, for the server: which one was asked for, and whether this machine asks."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit

#: What the Host header may say: a name, its labels no longer than the DNS has them, or an address.
HOST = re.compile(
    rb"([A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{1,5})?"
)


#: How loopback's IPv4 addresses begin, also as a socket of IPv6 that serves both families has them.
_LOOPBACK = ("127.", "::ffff:127.")


def is_local(address: Any) -> bool:
    """Tell whether only programs of this machine can reach a listening ``address``."""
    host = getattr(address, "host", None)
    return host is None or host.startswith(_LOOPBACK) or host == "::1"


def asked_by_this_machine(request: Any) -> bool:
    """Tell whether a program of this machine asks, and not for a web page from elsewhere.

    That is so over a Unix socket, or over loopback for an address or name of loopback's: a page whose
    own name was made to lead here by DNS still asks for that name, and says where it is from.
    """
    address = request.getHost()
    if not is_local(address):
        return False
    asked = HOST.fullmatch(request.getHeader(b"host") or b"")
    if hasattr(address, "host") and not (asked and _is_loopback(asked[1])):
        return False
    origin = request.getHeader(b"origin")
    return origin is None or _is_loopback(_host_of(origin))


def _host_of(url: bytes) -> bytes:
    try:
        return urlsplit(url).hostname or b""
    except ValueError:
        return b""


def _ip(host: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is, in brackets or not; None if it is a name."""
    try:
        return ipaddress.ip_address(host.strip(b"[]").decode("ascii", "replace"))
    except ValueError:
        return None


def _is_loopback(host: bytes | None) -> bool:
    """Tell whether a host, as in a URL, is this machine for every resolver (RFC 6761 section 6.3)."""
    if not host:
        return False
    address = _ip(host)
    if address is not None:
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    name = host.lower().removesuffix(b".")
    return name == b"localhost" or name.endswith(b".localhost")


def cannot_be_rebound(host: bytes | None) -> bool:
    """Tell whether a host, as in a URL, cannot be a name of others that was made to lead here.

    An address is none, nor is loopback's name or this machine's own.
    """
    if not host or _ip(host) is not None or _is_loopback(host):
        return True
    own = socket.gethostname().lower().encode()
    return host.lower().removesuffix(b".") in (own, own.partition(b".")[0])
