"""Gzip undone up to a bound (RFC 1952): the room there is decides what is allocated, not the sender.

A thousand octets of gzip can hold a million. What comes is unpacked a piece at a time, and never more
of it than may still be taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

#: Octets that are unpacked at one go.
_PIECE = 256 * 1024
_GZIP = 31  # zlib's number for gzip, with its header and checksum


class DamagedError(Exception):
    """What came is no gzip, or not all of it. The text says which."""


class Gunzip:
    """Undoes one gzip coding, of one member or several in a row."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self._begun = False

    def pieces(self, data: bytes, room: int) -> Iterator[bytes]:
        """Yield what these octets add, ``room + 1`` octets of it at most: who sees one more may stop.

        Raises `DamagedError`.
        """
        while data or not self._member.eof:
            most = min(_PIECE, room + 1)
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP)
            self._begun = True
            try:
                piece = self._member.decompress(data, most)
            except zlib.error as error:
                raise DamagedError(f"its gzip is damaged ({error})") from None
            if piece:
                yield piece
            room -= len(piece)
            if room < 0:
                return
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if not data and len(piece) < most:
                return

    def end(self) -> None:
        """Say that no more comes. Raises `DamagedError` when more had to come."""
        if not (self._begun and self._member.eof):
            raise DamagedError("its gzip breaks off")
