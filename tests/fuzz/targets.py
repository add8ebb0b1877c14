"""What must hold of every packet format whatever the octets, one function a format.

Each takes any octets and raises `AssertionError` if something does not hold; nothing else may be
raised at all. The fuzzer (``python tests/fuzz``) looks for octets that break them; ``make test``
replays what it found worth keeping.
"""

from __future__ import annotations

import hmac

import numpy as np
import plain_stamp

from llama.reflector.loops import looks_like_stamp_reply, looks_like_stamp_reply_one
from llama.wire import auth, llama_go, llama_python, scalar, stamp, tlv, tlv_rules

NOW_NTP = 0xE98AF040_80000000
KEYS = (b"0123456789abcdef", b"fedcba9876543210")


def _rows(*packets: bytes, least: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return packets as rows, zeros behind them, and their lengths."""
    width = max(least, *map(len, packets))
    octets = np.zeros((len(packets), width), np.uint8)
    for row, packet in zip(octets, packets, strict=True):
        row[: len(packet)] = np.frombuffer(packet, np.uint8)
    return octets, np.array([len(packet) for packet in packets])


def _varint(number: int) -> bytes:
    octets = b""
    while number > 127:
        octets += bytes((number & 127 | 128,))
        number >>= 7
    return octets + bytes((number,))


def fuzz_llama_go(data: bytes) -> None:
    """A probe of LLAMA Go: what is decoded, encoded anew, is decoded to the same."""
    probe = scalar.go_probe(data)
    octets, length = _rows(data, b"\x0a\x0a", data)
    mask = llama_go.recognise(octets, length)
    assert mask.tolist() == [probe is not None, False, probe is not None]
    replies = llama_go.unpack(octets, length)
    scalar.go_probe(data[:40], len(data))
    if probe is None:
        assert not replies.ok.any()
        return
    encoded = b"\x0a\x0a" + probe.signature
    if probe.tos is not None:
        encoded += b"\x12\x01" + bytes((probe.tos,))
    for tag, number in ((0x18, probe.sent), (0x20, probe.rcvd), (0x28, probe.rtt)):
        encoded += bytes((tag,)) + _varint(number)
    assert scalar.go_probe(encoded + bytes((0x30, probe.lost))) == probe


def fuzz_llama_python(data: bytes) -> None:
    """A probe of the archived LLAMA: 36 octets with its signature, and nothing else."""
    probe = scalar.python_probe(data)
    octets, length = _rows(data, b"__llama__\0", data)
    mask = llama_python.recognise(octets, length)
    assert mask.tolist() == [probe is not None, False, probe is not None]
    assert (probe is not None) == (len(data) == 36 and data[:10] == b"__llama__\0")
    replies = llama_python.unpack(octets, length)
    if replies.ok[0]:
        assert probe is not None
        assert probe.rcvd == int(replies.token[0])


def fuzz_stamp(data: bytes) -> None:
    """Base packets, both roles and modes: columns, plain decoders and the rule against loops."""
    octets, length = _rows(data, bytes(44), data, least=128)
    for decode, view in (
        (plain_stamp.stamp_probe, stamp.sender_view),
        (plain_stamp.stamp_reply, stamp.reflector_view),
        (plain_stamp.auth_probe, auth.sender_view),
        (plain_stamp.auth_reply, auth.reflector_view),
    ):
        packet = decode(data)
        if packet is not None:
            columns = view(octets)[2]
            assert all(columns[name] == value for name, value in packet._asdict().items())
    for authenticated in (False, True):
        one = looks_like_stamp_reply_one(memoryview(data), NOW_NTP, authenticated)
        if not authenticated:
            batch = looks_like_stamp_reply(octets, length, NOW_NTP).tolist()
            assert batch == [one, False, one]


def fuzz_auth(data: bytes) -> None:
    """An authenticated packet passes only with the digest of its first 96 octets."""
    key = auth.verify(data, KEYS)
    if key is not None:
        assert data[96:112] == hmac.digest(key, data[:96], "sha256")[:16]
    packet = bytearray(data.ljust(112, b"\0"))
    auth.answer(packet, 1, 2, 3, 4, 64, KEYS[0])
    assert len(packet) == max(112, len(data))
    assert packet[112:] == data[112:]
    assert auth.verify(packet, KEYS) == KEYS[0]


def fuzz_tlv(data: bytes) -> None:
    """TLVs: the first octet says how they are asked for, the rest are they."""
    if not data:
        return
    how, area = data[0], data[1:]
    permitted = np.full(64, how & 1 != 0)
    keys = KEYS[: how >> 1 & 3]
    must = how & 8 != 0
    answered = bytearray(area)
    follow = tlv.FollowUp(5, how << 40, tlv.SW_LOCAL)
    state = tlv.State(1 << 60, 7, 2**33 + 8)
    tos = how & 0xF3
    asked = tlv_rules.reflect_one(answered, tos, follow, state, permitted, keys, must, 3, 4)
    assert len(answered) == len(area)
    assert asked & 3 == 0
    found, again = scalar.tlvs(area), scalar.tlvs(answered)
    assert len(found) <= scalar.MAX_TLVS + 1
    shape = [(each.offset, each.type, each.length, each.malformed) for each in found]
    assert shape == [(each.offset, each.type, each.length, each.malformed) for each in again]
    end = found[-1].offset + 4 + found[-1].length if found else 0
    assert answered[end:] == area[end:]
    for each in again:
        assert each.flags & 0x1F == 0
        assert bool(each.flags & tlv.MALFORMED) == each.malformed
    tlv_rules.read_one(area, 3, keys, must)
    tlv_rules.read_one(area[:40], 3, keys, must, len(area))
    beginning = bytearray(area[:40])
    tlv_rules.reflect_one(beginning, tos, follow, state, permitted, keys, must, 3, 4, len(area))
    assert len(beginning) == min(40, len(area))
    scalar.tlvs(memoryview(beginning), len(area))

    base = bytes(24) + b"\0\0\0\3" + bytes(16)
    octets, length = _rows(base + area, base, base + area, least=44 + tlv.ROOM)
    octets[:, 3] = 4
    some = np.full(3, follow.sequence, np.uint32), np.full(3, follow.stamp, np.uint64)
    keyless = bytearray(area)
    asked = tlv_rules.reflect_one(keyless, tos, follow, state, permitted)
    reply_tos = tlv.reflect(octets, length, np.full(3, tos, np.uint8), *some, state, permitted)
    assert reply_tos.tolist() == [asked, tos & 0xFC, asked]
    for row in (0, 2):
        assert octets[row, 44 : length[row]].tobytes() == keyless
        octets[row, 44 : length[row]] = answered
    columns = tlv.read(octets, length, 44, lambda row: keys, must)
    one = tlv_rules.read_one(answered, 4, keys, must)
    assert tuple(one) == tuple(column[2].item() for column in columns)


TARGETS = {
    "llama-go": fuzz_llama_go,
    "llama-python": fuzz_llama_python,
    "stamp": fuzz_stamp,
    "auth": fuzz_auth,
    "tlv": fuzz_tlv,
}
