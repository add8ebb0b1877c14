"""The kept corpus: for each target a file of inputs, hexadecimal, one a line."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def load(target: str) -> list[bytes]:
    """Return the kept inputs of a target."""
    return [bytes.fromhex(line) for line in (HERE / f"{target}.hex").read_text().splitlines()]


def save(target: str, inputs: list[bytes]) -> None:
    """Keep these inputs of a target, and no others."""
    ordered = sorted(set(inputs), key=lambda octets: (len(octets), octets))
    (HERE / f"{target}.hex").write_text("".join(f"{octets.hex()}\n" for octets in ordered))
