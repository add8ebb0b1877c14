"""The key file of authenticated STAMP: several keys, chosen by source prefix or SSID, in rotation.

One key a line: a name, the secret, then whom it is for, where that is not everyone::

    # name     secret                                   for
    spring-b   hex:9f0c1d3e5a7b9f0c1d3e5a7b9f0c1d3e     prefix=192.0.2.0/24
    spring-a   hex:77aa01d3e5a7b9f0c1d3e5a7b9f0c1d3     prefix=192.0.2.0/24
    core       base64:bm90IHRoaXMgb25lIGVpdGhlcg==      ssid=101,102
    rest       text:sixteen-or-more-plain-octets

Senders sign with the first key that fits a session, receivers try the first two. To rotate: write
the new key below the old one everywhere, then above it everywhere, then take the old one away. The
key that fits best comes first: an SSID before a prefix, the longer prefix before the shorter, then
the order of the file. ``prefix`` is of the prober's address, on both sides.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import stat
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from attrs import field, frozen

MIN_SECRET = 16  # octets; 32 is what HMAC-SHA-256 is made for (RFC 2104 section 3)
MAX_FILE = 1 << 20  # octets
MAX_FIT = 2  # keys tried for one session, so that a hostile packet costs two digests at most

_MAPPED = 0xFFFF << 32


class KeyFileError(Exception):
    """A key file that cannot be used: ``FILE:LINE: what is wrong, what was expected``."""


@frozen
class Key:
    """One key: its name, for messages, its secret, and whom it is for.

    ``prefix`` None is every address, ``ssids`` empty every session. The secret is in no repr.
    """

    name: str
    secret: bytes = field(repr=False)
    prefix: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    ssids: frozenset[int] = frozenset()


class KeyRing:
    """Keys by whom they are for, the best fitting first; found in a few look-ups however many."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = tuple(keys)
        # SSID (None: any) -> bits of the prefix -> prefix -> secrets, in the order of the file.
        self._index: dict[int | None, dict[int, dict[int, list[bytes]]]] = {}
        for key in self.keys:
            bits, prefix = 0, 0
            if key.prefix is not None:
                v4 = key.prefix.version == 4
                bits = key.prefix.prefixlen + (96 if v4 else 0)
                prefix = int(key.prefix.network_address) | (_MAPPED if v4 else 0)
            for ssid in sorted(key.ssids) or (None,):
                lengths = self._index.setdefault(ssid, {})
                lengths.setdefault(bits, {}).setdefault(prefix >> 128 - bits, []).append(key.secret)
        for ssid, lengths in self._index.items():
            self._index[ssid] = dict(sorted(lengths.items(), reverse=True))
        self.fitting = lru_cache(maxsize=1 << 16)(self._fitting)

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self.keys)

    def _fitting(self, high: int, low: int, ssid: int) -> tuple[bytes, ...]:
        """Return the secrets, at most `MAX_FIT`, for a prober's address and an SSID, best first.

        The address is two halves of 64 bits, IPv4 mapped (``::ffff:a.b.c.d``).
        """
        address = high << 64 | low
        found: list[bytes] = []
        for wanted in (ssid, None):
            for bits, prefixes in self._index.get(wanted, {}).items():
                found += prefixes.get(address >> 128 - bits, ())
                if len(found) >= MAX_FIT:
                    return tuple(found[:MAX_FIT])
        return tuple(found)


def read_keys(path: str | os.PathLike[str]) -> KeyRing:
    """Read a key file; raises `KeyFileError` if it, or any line of it, is not as it must be.

    It must be a regular file that others can neither read nor write and its group not write.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path}: is no regular file, expected a file of keys")
            if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                mode = stat.S_IMODE(status.st_mode)
                raise KeyFileError(
                    f"{path}: has mode {mode:04o}, which lets others at the keys;"
                    f" do: chmod 600 {path}"
                )
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise KeyFileError(f"{path}: has more than {MAX_FILE} octets, expected a file of keys")
    return KeyRing(_parse(path, data))


def _parse(path: Path, data: bytes) -> list[Key]:
    """Return the keys in the text of a key file, which must be UTF-8, hold one, and none twice."""
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: is not UTF-8 text, expected a file of keys") from None
    keys: list[Key] = []
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            key = _parse_line(words)
        except ValueError as error:
            raise KeyFileError(f"{path}:{number}: {error}") from None
        if key.name in names:
            raise KeyFileError(
                f"{path}:{number}: the name {key.name!r} is that of line {names[key.name]} already,"
                " expected one of its own"
            )
        names[key.name] = number
        keys.append(key)
    if not keys:
        raise KeyFileError(f"{path}: holds no key, expected at least one line: NAME SECRET")
    return keys


def _parse_line(words: list[str]) -> Key:
    """Return the key that the words of a line describe; `ValueError` says what is wrong."""
    if len(words) < 2:
        raise ValueError("a name alone, expected: NAME SECRET [prefix=CIDR] [ssid=N,N]")
    name, secret, *selectors = words
    prefix: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    ssids: frozenset[int] = frozenset()
    for selector in selectors:
        what, _, value = selector.partition("=")
        if what == "prefix":
            try:
                prefix = ipaddress.ip_network(value)
            except ValueError:
                raise ValueError(
                    f"prefix {value!r} is none, expected one like 192.0.2.0/24"
                ) from None
        elif what == "ssid":
            if not all(part.isdecimal() and 0 < int(part) < 65536 for part in value.split(",")):
                raise ValueError(f"ssid {value!r}, expected numbers from 1 to 65535, like 101,102")
            ssids = frozenset(int(part) for part in value.split(","))
        else:
            raise ValueError(f"{selector!r}, expected prefix=CIDR or ssid=N,N")
    return Key(name, _secret(secret), prefix, ssids)


def _secret(text: str) -> bytes:
    """Return the octets of a secret; `ValueError`, which never quotes it, says what is wrong."""
    form, colon, value = text.partition(":")
    try:
        if form == "hex" and colon:
            secret = bytes.fromhex(value)
        elif form == "base64" and colon:
            secret = base64.b64decode(value, validate=True)
        elif form == "text" and colon:
            secret = value.encode()
        else:
            raise ValueError("the secret's form is missing, expected hex:, base64: or text:")
    except ValueError as error:
        if "expected" in str(error):
            raise
        raise ValueError(f"the secret is no {form}, expected hex:, base64: or text:") from None
    if len(secret) < MIN_SECRET:
        raise ValueError(f"the secret has {len(secret)} octets, expected at least {MIN_SECRET}")
    return secret
