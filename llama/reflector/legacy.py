"""The packets of earlier LLAMA fleets, which a reflector echoes unchanged.

They name the class that they want the echo to have; whether they get it is not decided here.
"""

from __future__ import annotations

from llama.wire import llama_python, scalar


def echo_class(octets: memoryview, length: int) -> tuple[str, int | None] | None:
    """Return (format, TOS octet asked for or None) of a legacy probe; None if it is not one.

    ``octets`` holds the whole datagram, of ``length`` octets, and perhaps more behind it.
    """
    if length == llama_python.SIZE:
        python = scalar.python_probe(octets[:length])
        if python is not None:
            return "llama-python", python.tos
    if length >= 12 and octets[0] in scalar.GO_TAGS:
        go = scalar.go_probe(octets[:length])
        if go is not None:
            return "llama-go", go.tos
    return None
