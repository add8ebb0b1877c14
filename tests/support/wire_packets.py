"""Packets for the tests of the wire formats: golden ones, and batches of hostile ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent.parent / "golden"
KEY = b"0123456789abcdef0123456789abcdef"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.hex"))
SLOT = 512  # octets of an arena's rows

PROPERTIES = settings(max_examples=60)


def golden(name: str) -> bytes:
    """Return the octets that ``golden/NAME.hex`` writes out, comments left away."""
    lines = (GOLDEN / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex(" ".join(line.partition("#")[0] for line in lines))


def arena(packets: list[bytes], width: int = SLOT) -> tuple[np.ndarray, np.ndarray]:
    """Return packets as rows of octets, with remains of others behind them, and their lengths."""
    octets = np.random.default_rng(1).integers(0, 256, (len(packets), width), np.uint8)
    for row, packet in zip(octets, packets, strict=True):
        row[: len(packet)] = np.frombuffer(packet, np.uint8)[:width]
    return octets, np.array([len(packet) for packet in packets], np.int64)


@st.composite
def _mutants(draw: st.DrawFn) -> bytes:
    """Draw a golden packet with a few octets changed, cut short or with octets behind it."""
    packet = bytearray(golden(draw(st.sampled_from(NAMES))))
    places = st.integers(0, len(packet) - 1)
    for place, octet in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        packet[place] = octet
    if draw(st.booleans()):
        del packet[draw(places) :]
    return bytes(packet) + draw(st.binary(max_size=48))


hostile = st.one_of(_mutants(), st.binary(max_size=SLOT), st.sampled_from(NAMES).map(golden))
batches = st.lists(hostile, min_size=1, max_size=12)
