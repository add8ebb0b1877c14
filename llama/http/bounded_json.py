"""JSON of others, read up to a bound: in memory it takes many times its size, and all time to be read.

Thirty million octets of ``{}`` are a gigabyte, and seven seconds in which nothing else is answered.
"""

from __future__ import annotations

from typing import Any

import orjson

from llama.http.client import TooLargeError


def read_json(body: bytes, most: int) -> Any:
    """Return what is in ``body``.

    Raises `TooLargeError` if it may be more than ``most`` values, and `orjson.JSONDecodeError`.
    """
    see_size(body, most)
    return orjson.loads(body)


def see_size(body: bytes, most: int) -> None:
    """Raise `TooLargeError` if ``body``, of one or more lines, may have more than ``most`` values."""
    # Every value but the first has one of these before it, so what is short has no need of counting.
    if len(body) > most and sum(map(body.count, (b",", b"[", b"{", b"\n"))) > most:
        raise TooLargeError(f"more than {most:,} values")
