"""Traffic classes by their standard names: what DSCP number each is, and back.

Sources: RFC 2474 section 4.2.2 (CS), RFC 2597 section 6 (AF), RFC 3246 (EF), RFC 5865 (VA),
RFC 8622 (LE).
"""

from __future__ import annotations

#: The number (0-63) of each class that has a name. BE is the default class, CS0.
DSCP_OF_CLASS: dict[str, int] = {
    "BE": 0,
    "LE": 1,
    **{f"CS{n}": 8 * n for n in range(1, 8)},
    **{f"AF{c}{d}": 8 * c + 2 * d for c in range(1, 5) for d in range(1, 4)},
    "VA": 44,
    "EF": 46,
}

_CLASS_OF_DSCP = {number: name for name, number in DSCP_OF_CLASS.items()}
_ALIASES = {"CS0": 0, "DF": 0, "VOICE-ADMIT": 44}


def class_name(dscp: int) -> str:
    """Return the standard name of a DSCP (0-63), or ``DSCP 3`` for a number without one."""
    return _CLASS_OF_DSCP.get(dscp, f"DSCP {dscp}")


def dscp_number(text: str) -> int:
    """Return the DSCP of a class name, in any case, or of a number 0-63 written in decimal.

    Raises `ValueError`, with a message for people, for anything else.
    """
    name = text.strip().upper().removeprefix("DSCP ")
    known = DSCP_OF_CLASS | _ALIASES
    if name in known:
        return known[name]
    if name.isascii() and name.isdigit() and len(name) <= 3 and int(name) <= 63:
        return int(name)
    raise ValueError(
        f"{text!r} is no traffic class; expected a DSCP 0-63 or one of"
        " BE, LE, CS1-CS7, AF11-AF43, VA, EF"
    )
