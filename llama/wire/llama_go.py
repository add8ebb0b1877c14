"""Probes of LLAMA Go (github.com/dropbox/llama): a protobuf, echoed unchanged by its reflector.

::

     0  0a 0a                field 1, signature, ten octets: what the sender matches replies by
     2  signature            10
    12  12 01                field 2, tos, one octet: what the reflector sets on its reply
    14  tos                  u8
    15  18                   field 3, sent: nanoseconds since the Unix epoch
    16  sent                 varint, nine octets for any time between 1972 and 2262
    25  3a                   field 7, padding
    26  length of padding    varint, two octets
    28  padding              1000 octets of zero from a LLAMA Go collector

Fields 4 (rcvd), 5 (rtt) and 6 (lost) are never on the wire. This is the one layout that senders
write and so what is looked for by column; a row that begins like a probe and has another layout
is walked by `scalar.go_probe`. Our own probes carry ``LL`` and a 64-bit token as signature.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llama.wire import scalar

HEAD_SIZE = 28  # octets before the padding
NATURAL_SIZE = HEAD_SIZE + 1000  # of a probe of a LLAMA Go collector
MAX_SIZE = HEAD_SIZE + (1 << 14) - 1

_TEMPLATE = np.zeros(HEAD_SIZE, np.uint8)
_TEMPLATE[[0, 1, 12, 13, 15, 25]] = 0x0A, 0x0A, 0x12, 0x01, 0x18, 0x3A
_TEMPLATE[16:24] = _TEMPLATE[26] = 0x80  # all octets of a varint but its last have this bit
_FIXED = np.zeros(HEAD_SIZE, np.uint8)  # the bits that the template decides
_FIXED[[0, 1, 12, 13, 15, 25]] = 0xFF
_FIXED[16:25] = _FIXED[26:28] = 0x80

_FIRST = np.zeros(256, np.bool_)  # octets that a probe can begin with
_FIRST[sorted(scalar.GO_TAGS)] = True
_SHIFTS = np.arange(0, 63, 7, dtype=np.uint64)
_MARK = np.frombuffer(b"LL", np.uint8)

Octets = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Replies(NamedTuple):
    """Columns of (N,) echoed probes of ours; elsewhere than under ``ok`` they mean nothing."""

    ok: Mask
    token: npt.NDArray[np.uint64]
    tos: Octets
    sent_ns: npt.NDArray[np.uint64]


def _usual(octets: Octets, length: npt.NDArray[np.integer]) -> Mask:
    """Tell which rows have the layout of this file's map, all of it: (N,)."""
    usual: Mask = ((octets[:, :HEAD_SIZE] & _FIXED) == _TEMPLATE).all(axis=1)
    padding = (octets[:, 26] & 0x7F).astype(np.int64) | octets[:, 27].astype(np.int64) << 7
    usual &= length == padding + HEAD_SIZE
    return usual


def recognise(octets: Octets, length: npt.NDArray[np.integer]) -> Mask:
    """Tell which rows are probes of LLAMA Go: (N,) of octets (N, >= 28) and their lengths (N,).

    ``octets`` may hold only the beginning of longer packets; what is not there is taken to be
    legal. A STAMP packet is none whatever its sequence number (see `scalar.go_probe`).
    """
    candidate = _FIRST[octets[:, 0]]
    candidate &= length >= 12
    if not candidate.any():
        return candidate
    mask = _usual(octets, length)
    for row in np.flatnonzero(candidate & ~mask).tolist():
        size = int(length[row])
        mask[row] = scalar.go_probe(octets[row, :size].data, size) is not None
    return mask


def pack(
    octets: Octets,
    token: npt.NDArray[np.uint64],
    tos: Octets,
    sent_ns: npt.NDArray[np.uint64],
    size: int = NATURAL_SIZE,
) -> None:
    """Write probes of ``size`` octets into the rows of ``octets``, (N, >= size).

    ``token`` (N,) comes back unchanged; ``tos`` (N,) is what the reflector sets on the reply.
    `ValueError` for a size that the layout does not have or a time outside 1972 to 2262.
    """
    if not HEAD_SIZE <= size <= min(MAX_SIZE, octets.shape[1]):
        raise ValueError(f"a llama-go probe has {HEAD_SIZE} to {MAX_SIZE} octets, not {size}")
    sent = np.asarray(sent_ns, np.uint64)
    if ((sent >> np.uint64(56) == 0) | (sent >> np.uint64(63) != 0)).any():
        raise ValueError("a llama-go probe is sent between 1972 and 2262")
    octets[:, :HEAD_SIZE] = _TEMPLATE
    octets[:, HEAD_SIZE:size] = 0
    octets[:, 2:4] = _MARK
    octets[:, 14] = tos
    write(octets, token, sent)
    padding = size - HEAD_SIZE
    octets[:, 26] |= padding & 0x7F
    octets[:, 27] = padding >> 7


def write(octets: Octets, token: npt.NDArray[np.uint64], sent_ns: npt.NDArray[np.uint64]) -> None:
    """Write tokens and times into rows that hold probes of `pack`, of (N,) or (1,) each."""
    octets[:, 4:12].view(">u8")[:, 0] = token
    octets[:, 16:25] = (sent_ns[:, None] >> _SHIFTS & np.uint64(0x7F)).astype(np.uint8)
    octets[:, 16:24] |= 0x80


def unpack(octets: Octets, length: npt.NDArray[np.integer]) -> Replies:
    """Read back echoes of what `pack` wrote; anything else is not ``ok``."""
    ok = _usual(octets, length)
    ok &= (octets[:, 2:4] == _MARK).all(axis=1)
    sent = ((octets[:, 16:25] & 0x7F).astype(np.uint64) << _SHIFTS).sum(axis=1, dtype=np.uint64)
    token = octets[:, 4:12].view(">u8")[:, 0].astype(np.uint64)
    return Replies(ok, token, octets[:, 14].copy(), sent)
