"""Files of secrets: shared keys for authenticated probes, tokens and passwords, addresses of webhooks.

Of keys there is one ``ID HEX`` a line, of addresses one URL, and ``#`` begins a comment; of the others
one, in the first line.
What everyone on the host can read is no secret, and is refused.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import Any

from llama.config.mistakes import CUT_SHORT, Mistake
from llama.config.model import Key
from llama.config.urls import http_url

#: RFC 2104 section 3 discourages keys shorter than the hash; half of SHA-256 is our least.
LEAST_OCTETS = 16
MOST_CHARACTERS = 4096  # of a token or a password
MOST_OCTETS = 1 << 20  # of a file of keys or URLs
_COMMENT = re.compile(r"(^|\s)#.*")
#: Takes what is suspicious about a file, before what is wrong in it is raised. It may raise itself.
Doubt = Callable[[Mistake], Any]


def _trust(_: Mistake) -> None:
    """Think nothing of what is suspicious."""


def read_keys(path: str, doubt: Doubt = _trust) -> tuple[Key, ...]:
    """Return the keys of a file in its order. One that ends amid a line is given to ``doubt``.

    Raises `ValueError`, with a message for people that never holds a secret, when the file cannot
    be read, when everyone can read it, and when a line of it is no key.
    """
    lines = _lines(path, "lines of ID HEX", doubt)
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, secret = words[0], bytes.fromhex(words[1])
        except (IndexError, ValueError):
            raise ValueError(f"{path} line {number} is not: ID HEX") from None
        if len(words) > 2:
            raise ValueError(f"{path} line {number} is not: ID HEX")
        if not LEAST_OCTETS <= len(secret) <= 128:
            raise ValueError(
                f"{path} line {number}: a key of {len(secret)} octets, expected {LEAST_OCTETS}-128"
            )
        if name in keys:
            raise ValueError(f"{path} line {number}: key {name!r} is given twice")
        keys[name] = Key(id=name, secret=secret)
    if not keys:
        raise ValueError(f"{path} has no key in it, expected lines of ID HEX")
    return tuple(keys.values())


def read_secret(path: str) -> str:
    """Return the first line of a file, without blanks at its ends: a token or a password.

    Such a file often is one line without an end. Raises `ValueError` as `read_keys` does, and when the
    line is empty or too long to be one.
    """
    try:
        with open(path, encoding="utf-8") as file:
            _refuse_open(file.fileno(), path)
            line = file.readline(MOST_CHARACTERS + 1).strip()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} cannot be read: not UTF-8 text") from None
    if not line or len(line) > MOST_CHARACTERS:
        raise ValueError(f"{path} has no secret in its first line")
    return line


def read_urls(path: str, doubt: Doubt = _trust) -> tuple[str, ...]:
    """Return the addresses in a file, in its order. Who knows that of a webhook may post to it.

    A ``#`` within one is part of it. A file that ends amid a line is given to ``doubt``. Raises
    `ValueError` as `read_keys` does, and when a line is no `http_url`, or none is.
    """
    lines = _lines(path, "a URL a line", doubt)
    urls: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        url = _COMMENT.sub("", line).strip()
        if not url:
            continue
        try:
            urls[http_url(url)] = None
        except ValueError as error:
            raise ValueError(f"{path} line {number} {error}") from None
    if not urls:
        raise ValueError(f"{path} has no URL in it, expected one a line")
    return tuple(urls)


def _lines(path: str, expected: str, doubt: Doubt) -> list[str]:
    """Return the lines of a file of secrets; raises `ValueError` as `read_keys` does."""
    try:
        with open(path, encoding="ascii") as file:
            _refuse_open(file.fileno(), path)
            text = file.read(MOST_OCTETS + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not ASCII text, expected {expected}") from None
    if len(text) > MOST_OCTETS:
        raise ValueError(f"{path} is larger than {MOST_OCTETS >> 20} MiB, expected {expected}")
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        doubt(Mistake(path, len(lines), CUT_SHORT))
    return lines


def said_if_open(path: str) -> str:
    """Return what to say of a file that everyone on this host can read, write or run; else nothing."""
    try:
        return _said_of(os.stat(path), path)
    except OSError:
        return ""


def _said_of(found: os.stat_result, path: str) -> str:
    if not stat.S_IMODE(found.st_mode) & 0o007:
        return ""
    return f"{path} is open to everyone on this host; run: chmod o= {path}"


def _refuse_open(descriptor: int, path: str) -> None:
    """Raise `ValueError` if everyone on this host can read, write or run an open file."""
    if said := _said_of(os.fstat(descriptor), path):
        raise ValueError(said)
