"""Probes of the archived Python LLAMA: 36 octets, little-endian, echoed unchanged.

::

     0  signature   10   "__llama__" and a zero
    10  tos         u8   what the reflector sets on its reply
    11  sent        f64  milliseconds since the Unix epoch
    19  rcvd        f64  zero on the wire
    27  rtt         f64  zero on the wire, milliseconds
    35  lost        bool zero on the wire

The reflector looks at nothing but the length and the TOS, so our own probes carry a token, by
which their replies are matched, as a whole number in ``rcvd``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llama.wire.rows import records

SIZE = 36
SIGNATURE = b"__llama__\0"
MAX_TOKEN = (1 << 53) - 1  # the largest whole number up to which a float64 knows every one

PROBE = np.dtype(
    [
        ("signature", "V10"),
        ("tos", "u1"),
        ("sent", "<f8"),
        ("rcvd", "<f8"),
        ("rtt", "<f8"),
        ("lost", "u1"),
    ]
)
_SIGNATURE = np.frombuffer(SIGNATURE, np.uint8)

Octets = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Replies(NamedTuple):
    """Columns of (N,) echoed probes of ours; elsewhere than under ``ok`` they mean nothing."""

    ok: Mask
    token: npt.NDArray[np.uint64]
    tos: Octets
    sent_ms: npt.NDArray[np.float64]


def _view(octets: Octets) -> npt.NDArray[Any]:
    """View rows of octets, (N, >= 36), as probes: (N,) of dtype PROBE, no copy."""
    return records(octets, PROBE)


def recognise(octets: Octets, length: npt.NDArray[np.integer]) -> Mask:
    """Tell which rows are probes of the archived Python LLAMA: (N,) of octets (N, >= 36)."""
    mask: Mask = length == SIZE
    if mask.any():
        mask &= (octets[:, : len(SIGNATURE)] == _SIGNATURE).all(axis=1)
    return mask


def pack(
    octets: Octets,
    token: npt.NDArray[np.uint64],
    tos: Octets,
    sent_ms: npt.NDArray[np.float64],
) -> None:
    """Write probes into the first 36 octets of each row of ``octets``, (N, >= 36).

    ``token`` (N,), at most `MAX_TOKEN` (else `ValueError`), comes back unchanged; ``tos`` (N,) is
    what the reflector sets on the reply.
    """
    if (np.asarray(token) > MAX_TOKEN).any():
        raise ValueError(f"a token of a llama-python probe is at most {MAX_TOKEN}")
    octets[:, :SIZE] = 0
    octets[:, : len(SIGNATURE)] = _SIGNATURE
    view = _view(octets)
    view["tos"] = tos
    write(octets, token, sent_ms)


def write(octets: Octets, token: npt.NDArray[np.uint64], sent_ms: npt.NDArray[np.float64]) -> None:
    """Write tokens and times into rows that hold probes of `pack`, of (N,) or (1,) each."""
    view = _view(octets)
    view["sent"] = sent_ms
    view["rcvd"] = token


def unpack(octets: Octets, length: npt.NDArray[np.integer]) -> Replies:
    """Read back echoes of what `pack` wrote; anything else is not ``ok``."""
    view = _view(octets)
    rcvd = view["rcvd"]
    ok = recognise(octets, length)
    ok &= (rcvd >= 0) & (rcvd <= MAX_TOKEN)  # false for what is no number, too
    whole = np.where(ok, rcvd, 0.0)
    token = whole.astype(np.uint64)
    ok &= token == whole
    return Replies(ok, token, view["tos"].copy(), view["sent"].astype(np.float64))
