"""Addresses behind one of this host's interfaces, of which nothing says which."""

from __future__ import annotations

BEGINNINGS = ("fe8", "fe9", "fea", "feb")  # of addresses of fe80::/10


def without_interface(host: str) -> str | None:
    """Return what is wrong with a link-local address that has no interface; None for any other host.

    Of the address as `ipaddress` writes it. The kernel would take any interface, or none.
    """
    if host[:3] not in BEGINNINGS or ":" not in host or "%" in host:
        return None
    expected = f"expected the interface that it is behind with it, as in {host}%eth0"
    return f"{host!r} is link-local, {expected}"


def through_interface(host: str) -> bool:
    """Return whether a URL with this host needs an interface: its Host header has no place for it."""
    return "%" in host or without_interface(host.lower()) is not None
