"""TLVs behind STAMP base packets (RFC 8972 section 4) of whole batches, on both sides.

What our sender writes behind the base packet, always in this order and so at fixed offsets:

::

     0  flags 04 0004   Class of Service: DSCP1 6 bits, DSCP2 6 bits, ECN 2 bits, RP 2 bits,
                        reserved u16
     8  flags 07 0010   Follow-Up Telemetry: sequence u32, timestamp NTP 64, method u8, reserved 3
    28  flags f0 0014   reflector state: "LLMA", start u64, receive drops u32, guard drops u32
    52  flags 01 ....   Extra Padding up to the size of the packet, if there is room for it

Packets of this layout are worked on by column, all others, and those with an HMAC, one by one in
`llama.wire.tlv_rules`. This file does not know where DSCPs, stamps and keys come from.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.wire.rows import records
from llama.wire.stamp import BASE_SIZE
from llama.wire.tlv_rules import (
    CLASS_OF_SERVICE,
    EXTRA_PADDING,
    FOLLOW_UP,
    INTEGRITY,
    MALFORMED,
    MARK,
    SIZE,
    STATE,
    STATE_SIZE,
    SW_LOCAL,
    UNKNOWN,
    UNRECOGNISED,
    Answer,
    FollowUp,
    Keys,
    Permitted,
    State,
    read_one,
    reflect_one,
    request,
)

__all__ = [
    "FOLLOW_UP", "INTEGRITY", "MALFORMED", "ROOM", "SIZE", "STATE", "SW_LOCAL", "UNKNOWN",
    "UNRECOGNISED", "Answer", "FollowUp", "State", "beginning_suffices", "read", "read_one",
    "reflect", "reflect_one", "reflect_usual_one", "request", "usual", "usual_one",
]  # fmt: skip

ROOM = 56  # octets that a row must have behind its base packet, whatever the packet's length

_LAYOUT = np.dtype(
    {
        "names": [
            "cos_flags", "cos_head", "cos", "follow_flags", "follow_head", "follow_sequence",
            "follow_stamp", "follow_method", "state_flags", "state_head", "mark", "started",
            "receive_drops", "guard_drops", "padding_flags", "padding_type", "padding_length",
        ],
        "formats": [
            "u1", ">u4", ">u4", "u1", ">u4", ">u4",
            ">u8", ">u4", "u1", ">u4", ">u4", ">u8",
            ">u4", ">u4", "u1", "u1", ">u2",
        ],
        "offsets": [0, 0, 4, 8, 8, 12, 16, 24, 28, 28, 32, 36, 44, 48, 52, 53, 54],
        "itemsize": ROOM,
    }
)  # fmt: skip
_NO_FLAGS = np.uint32(0x00FFFFFF)  # of a TLV's first four octets
_COS_HEAD = CLASS_OF_SERVICE << 16 | 4
_FOLLOW_HEAD = FOLLOW_UP << 16 | 16
_STATE_HEAD = STATE << 16 | STATE_SIZE
_HEADS = ("cos_head", _COS_HEAD), ("follow_head", _FOLLOW_HEAD), ("state_head", _STATE_HEAD)
_MARK = int.from_bytes(MARK, "big")

# The same for a single packet: its TLVs without the flags, and its reply's.
_USUAL = struct.Struct(">x3s4xx3s16xx3s4s16x")
_USUAL_HEADS = (
    _COS_HEAD.to_bytes(3, "big"),
    _FOLLOW_HEAD.to_bytes(3, "big"),
    _STATE_HEAD.to_bytes(3, "big"),
    MARK,
)
_USUAL_REPLY = struct.Struct(">IIIIQB3xI4sQII")
_NO_FOLLOW_UP = FollowUp()

#: What the columns of a batch's `Answer` hold.
_KINDS = Answer("u1", "?", "u4", "u8", "u8", "u4", "u4")

Octets = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def _view(octets: Octets, start: int) -> npt.NDArray[Any]:
    """View what follows the base packets as our sender's layout: (N,), no copy."""
    return records(octets, _LAYOUT, start)


def usual(octets: Octets, length: npt.NDArray[np.integer], start: int = BASE_SIZE) -> Mask:
    """Tell which rows have the layout of our own sender behind a base of ``start`` octets: (N,).

    ``octets`` is (N, >= start + ROOM). What the flags say makes no difference.
    """
    tlvs = _view(octets, start)
    mask: Mask = (tlvs["cos_head"] & _NO_FLAGS) == _COS_HEAD
    if not mask.any():
        return mask
    mask &= (tlvs["follow_head"] & _NO_FLAGS) == _FOLLOW_HEAD
    mask &= (tlvs["state_head"] & _NO_FLAGS) == _STATE_HEAD
    mask &= tlvs["mark"] == _MARK
    padded = tlvs["padding_type"] == EXTRA_PADDING
    padded &= tlvs["padding_length"] + np.int64(start + ROOM) == length
    padded |= length == start + SIZE
    mask &= padded
    return mask


def usual_one(area: bytearray | memoryview) -> bool:
    """Tell whether the TLVs of one probe are what our sender writes, without padding."""
    return len(area) == SIZE and _USUAL.unpack_from(area) == _USUAL_HEADS


def reflect_usual_one(
    area: bytearray | memoryview, tos: int, follow: FollowUp, state: State, permitted: Permitted
) -> int:
    """Do what `reflect_one` does for an ``area`` that is `usual_one`, in a quarter of the time."""
    dscp = area[4] >> 2
    granted = dscp << 2 == tos & 0xFC or bool(permitted[dscp])
    drops = state.receive_drops & 0xFFFFFFFF, state.guard_drops & 0xFFFFFFFF
    _USUAL_REPLY.pack_into(
        area, 0, _COS_HEAD, dscp << 26 | tos << 18 | (not granted) << 16,
        _FOLLOW_HEAD, *(follow if follow.stamp else _NO_FOLLOW_UP),
        _STATE_HEAD, MARK, state.started_ns, *drops,
    )  # fmt: skip
    return dscp << 2 if granted else tos & 0xFC


def beginning_suffices(octets: Octets, length: npt.NDArray[np.integer]) -> Mask:
    """Tell which rows `reflect` can answer, though ``octets`` is narrower than they are long: (N,).

    They fit, or have the layout of our sender, or plain padding (zeros) and no TLV.
    """
    mask: Mask = length <= octets.shape[1]
    if not mask.all():
        mask |= octets[:, BASE_SIZE : BASE_SIZE + 4].view("<u4")[:, 0] == 0
        mask |= usual(octets, length)
    return mask


def reflect(
    octets: Octets,
    length: npt.NDArray[np.integer],
    tos: Octets,
    follow_sequence: npt.NDArray[np.uint32],
    follow_stamp: npt.NDArray[np.uint64],
    state: State,
    permitted: Mask,
) -> Octets:
    """Answer the TLVs of a batch in place and return the TOS octet for each reply: (N,) uint8.

    To be called when the base packets, unauthenticated ones, are replies already. ``octets`` is
    (N, >= 44 + ROOM); ``tos`` (N,) is the TOS or traffic class octet each probe came with,
    ``follow_sequence`` and ``follow_stamp`` (N,) the last reply of its session whose transmit stamp
    is known (stamp 0: none). A probe without TLVs is answered in the class it came in, as is, and
    is told so, one that asks for a class that is neither that nor, by its DSCP, in ``permitted``
    (64,). ECN never comes back in the reply's own header. No key is known here: what comes with an
    HMAC TLV gets the I flag.

    Rows may be longer than ``octets`` is wide where `beginning_suffices`; of others only the TLVs
    that are wholly within are answered.
    """
    reply_tos = tos & np.uint8(0xFC)
    odd = length > BASE_SIZE
    if not odd.any():
        return reply_tos
    by_column = usual(octets, length)
    if by_column.all():
        tlvs = _view(octets, BASE_SIZE)
        _reflect_columns(tlvs, tos, reply_tos, follow_sequence, follow_stamp, state, permitted)
        return reply_tos
    rows = np.flatnonzero(by_column)
    if len(rows):
        odd &= ~by_column
        some = octets[rows, BASE_SIZE : BASE_SIZE + ROOM]
        some_tos = reply_tos[rows]
        _reflect_columns(
            _view(some, 0), tos[rows], some_tos, follow_sequence[rows], follow_stamp[rows],
            state, permitted,
        )  # fmt: skip
        octets[rows, BASE_SIZE : BASE_SIZE + ROOM] = some
        reply_tos[rows] = some_tos
    for row in np.flatnonzero(odd).tolist():
        reply_tos[row] = reflect_one(
            octets[row].data[BASE_SIZE : int(length[row])],
            int(tos[row]),
            FollowUp(int(follow_sequence[row]), int(follow_stamp[row]), SW_LOCAL),
            state,
            permitted,
            size=int(length[row]) - BASE_SIZE,
        )
    return reply_tos


def _reflect_columns(
    tlvs: npt.NDArray[Any],
    tos: Octets,
    reply_tos: Octets,
    follow_sequence: npt.NDArray[np.uint32],
    follow_stamp: npt.NDArray[np.uint64],
    state: State,
    permitted: Mask,
) -> None:
    """Answer rows that have our sender's layout; writes into ``tlvs`` and ``reply_tos``."""
    value = tlvs["cos"].astype(np.uint32)
    dscp = (value >> np.uint32(26)).astype(np.uint8)
    asked = dscp << np.uint8(2)
    granted = permitted[dscp]
    granted |= asked == reply_tos
    np.copyto(reply_tos, asked, where=granted)
    value &= np.uint32(0x3F << 26)
    value |= tos.astype(np.uint32) << np.uint32(18)
    value |= (~granted).astype(np.uint32) << np.uint32(16)
    tlvs["cos_head"] = _COS_HEAD
    tlvs["cos"] = value
    stamped = follow_stamp != 0
    tlvs["follow_head"] = _FOLLOW_HEAD
    tlvs["follow_sequence"] = follow_sequence * stamped
    tlvs["follow_stamp"] = follow_stamp
    tlvs["follow_method"] = stamped * np.uint32(SW_LOCAL << 24)
    tlvs["state_head"] = _STATE_HEAD
    tlvs["started"] = state.started_ns
    tlvs["receive_drops"] = state.receive_drops & 0xFFFFFFFF
    tlvs["guard_drops"] = state.guard_drops & 0xFFFFFFFF
    # Behind the shortest packets this octet is nobody's.
    tlvs["padding_flags"] = 0


def read(
    octets: Octets,
    length: npt.NDArray[np.integer],
    start: int = BASE_SIZE,
    keys: Callable[[int], Keys] | None = None,
    must_authenticate: bool = False,
) -> Answer:
    """Read the TLVs of a batch of replies: an `Answer` of columns (N,).

    dscp is uint8, refused is bool, follow_sequence and the drops are uint32, follow_stamp and
    started_ns uint64. ``octets`` is (N, >= start + ROOM).

    ``keys(row)`` returns the keys, at most two, that may have made an HMAC TLV. With
    ``must_authenticate``, as in authenticated mode, TLVs without one are not read.
    """
    if not must_authenticate and len(octets):
        alike = _read_alike(octets, length, start)
        if alike is not None:
            return alike
    answer = _nothing_told(len(octets))
    odd = length > start
    if odd.any():
        if not must_authenticate:
            by_column = usual(octets, length, start)
            if by_column.any():
                tlvs = _view(octets, start)
                flags = tlvs["cos_flags"] | tlvs["follow_flags"] | tlvs["state_flags"]
                # M and I decide about the TLVs behind them, too. That takes a walk.
                by_column &= (flags & np.uint8(INTEGRITY | MALFORMED)) == 0
                padded = length > start + SIZE
                by_column &= ~padded | ((tlvs["padding_flags"] & INTEGRITY) == 0)
                _read_columns(tlvs, by_column, answer)
                odd &= ~by_column
        for row in np.flatnonzero(odd).tolist():
            packet = octets[row].data[: int(length[row])]
            one = read_one(
                packet[start:],
                int.from_bytes(packet[:4], "big"),
                keys(row) if keys is not None else (),
                must_authenticate,
                int(length[row]) - start,
            )
            for column, value in zip(answer, one, strict=True):
                column[row] = value
    return answer


def _nothing_told(count: int) -> Answer:
    """Return the answer of ``count`` replies without TLVs."""
    answer = Answer(*(np.zeros(count, kind) for kind in _KINDS))
    answer.dscp[:] = UNKNOWN
    return answer


def _read_alike(octets: Octets, length: npt.NDArray[np.integer], start: int) -> Answer | None:
    """Read rows that a reflector returned to our sender all with the same flags; None if not so.

    That is nearly every batch there is: all TLVs known, as by our reflector, or none, as by one
    that copies them. Reading it so takes a quarter of the time.
    """
    tlvs = _view(octets, start)
    count = len(tlvs)
    flags = []
    for name, expected in _HEADS:
        heads = tlvs[name]
        flag = int(heads[0]) >> 24
        # M and I decide about the TLVs behind them, too. That takes a walk.
        if flag & ~UNRECOGNISED:
            return None
        if np.count_nonzero(heads == (flag << 24 | expected)) < count:
            return None
        flags.append(flag)
    if np.count_nonzero(tlvs["mark"] == _MARK) < count:
        return None
    if np.count_nonzero(length == start + SIZE) < count:
        return None
    answer = _nothing_told(count)
    if not flags[0]:
        value = tlvs["cos"].astype(np.uint32)
        answer.dscp[:] = value >> np.uint32(20) & np.uint32(0x3F)
        answer.refused[:] = (value & np.uint32(0x30000)) == 0x10000
    if not flags[1]:
        answer.follow_sequence[:] = tlvs["follow_sequence"]
        answer.follow_stamp[:] = tlvs["follow_stamp"]
    if not flags[2]:
        answer.started_ns[:] = tlvs["started"]
        answer.receive_drops[:] = tlvs["receive_drops"]
        answer.guard_drops[:] = tlvs["guard_drops"]
    return answer


def _read_columns(tlvs: npt.NDArray[Any], rows: Mask, answer: Answer) -> None:
    """Read rows that have our sender's layout and neither M nor I flags."""
    known = rows & (tlvs["cos_flags"] & UNRECOGNISED == 0)
    value = tlvs["cos"].astype(np.uint32)
    np.copyto(answer.dscp, (value >> 20 & 0x3F).astype(np.uint8), where=known)
    np.copyto(answer.refused, (value >> 16 & 3) == 1, where=known)
    known = rows & (tlvs["follow_flags"] & UNRECOGNISED == 0)
    np.copyto(answer.follow_sequence, tlvs["follow_sequence"], where=known)
    np.copyto(answer.follow_stamp, tlvs["follow_stamp"], where=known)
    known = rows & (tlvs["state_flags"] & UNRECOGNISED == 0)
    np.copyto(answer.started_ns, tlvs["started"], where=known)
    np.copyto(answer.receive_drops, tlvs["receive_drops"], where=known)
    np.copyto(answer.guard_drops, tlvs["guard_drops"], where=known)
