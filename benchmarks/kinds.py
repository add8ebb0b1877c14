"""What packets of different kinds cost our reflector: its own format, older ones, bad ones."""

from __future__ import annotations

import secrets
import statistics
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from benchmarks import machine
from benchmarks.figures import Report
from benchmarks.programs import free_port, running, twistd, wait_for_reflector
from benchmarks.reflector import OURS, Contender, measure, reflector_config
from llama.wire import auth, llama_go, llama_python, stamp, tlv

RATE = 50_000  # packets/s of each kind
COLUMNS = ("packets", "load", "µs CPU/packet", "packets/s", "answered %")


@frozen
class Kind:
    """One kind of packet: some of them, which are sent in turn."""

    name: str
    datagrams: tuple[bytes, ...]
    answered: bool = True  #: otherwise it is to be dropped


def _probe(sequence: int = 0, mbz: bytes = b"") -> bytes:
    now = stamp.ntp_from_unix_ns(time.time_ns())
    return struct.pack(">IQHH", sequence, now, 0x8001, 7) + mbz.ljust(28, b"\0")


def _older(pack: Any, size: int, sent: float) -> tuple[bytes, ...]:
    # More than a reflector remembers: it takes the same octets again and again for a loop.
    rows = np.zeros((10_000, size), np.uint8)
    times = np.full(len(rows), sent, np.uint64 if pack is llama_go.pack else np.float64)
    pack(rows, np.arange(len(rows), dtype=np.uint64), np.zeros(len(rows), np.uint8), times)
    return tuple(row.tobytes() for row in rows)


def kinds() -> tuple[Kind, ...]:
    """Return the kinds of packet that an unauthenticated reflector is asked with."""
    now_ns = time.time_ns()
    reply = _probe(0, struct.pack(">QIQHHB", stamp.ntp_from_unix_ns(now_ns), 0, 1, 1, 0, 64))
    return (
        Kind("STAMP, 44 octets", tuple(_probe(i) for i in range(64))),
        Kind("STAMP, our TLVs", tuple(_probe(i) + tlv.request(0, 56) for i in range(64))),
        Kind("STAMP, 1,400 octets", (_probe() + bytes(1356),)),
        Kind("LLAMA Go", _older(llama_go.pack, 1028, now_ns)),
        Kind("archived Python LLAMA", _older(llama_python.pack, 36, 1e12)),
        Kind("too short, 20 octets", (bytes(20),), answered=False),
        Kind("STAMP reply (a loop)", (reply,), answered=False),
        Kind("half good, half loops", (*[_probe()] * 32, *[reply] * 32)),
    )


def written(directory: Path, kind: Kind) -> Path:
    """Write a kind's datagrams into a file for load.c to replay; return where."""
    path = directory / "replay"
    path.write_bytes(b"".join(struct.pack(">H", len(d)) + d for d in kind.datagrams))
    return path


def _rows(
    programs: Mapping[str, Path],
    directory: Path,
    contender: Contender,
    asked: Sequence[tuple[Kind, str]],
    seconds: float,
    rounds: int,
) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for kind, mode in asked:
            more = ("--replay", str(written(directory, kind)), "--rate", str(RATE))
            row = measure(programs["load"], contender, mode, seconds, seconds / 4, *more)
            found.setdefault((kind.name, mode), []).append(row)
    return [
        {
            "packets": name,
            "load": "saturation" if mode == "window" else f"{RATE:,}/s",
            "µs CPU/packet": statistics.median(row["µs CPU/sent"] for row in rows),
            "packets/s": statistics.median(row["sent/s"] for row in rows),
            "answered %": statistics.median(100 - row["loss %"] for row in rows),
        }
        for (name, mode), rows in found.items()
    ]


def run(
    programs: Mapping[str, Path], directory: Path, seconds: float = 1.0, rounds: int = 3
) -> Report:
    """Measure every kind at one rate, and STAMP with and without authentication at saturation."""
    core, load_core = machine.cores()
    secret = secrets.token_bytes(32)
    keys = directory / "keys"
    keys.touch(0o600)
    keys.write_text(f"benchmark {secret.hex()}\n")
    signed = []
    for sequence in range(64):
        packet = bytearray(auth.BASE_SIZE)
        auth.pack_probe(packet, sequence, stamp.ntp_from_unix_ns(time.time_ns()), 1, 7, secret)
        signed.append(bytes(packet))
    authenticated = Kind("STAMP, authenticated", tuple(signed))
    unsigned = kinds()
    asked = [(kind, "paced") for kind in unsigned] + [(kind, "window") for kind in unsigned[:2]]
    signed_asked = [(authenticated, "paced"), (authenticated, "window")]
    rows, notes = [], []
    for further, work in (("", asked), (f"keys: [{{file: {keys}}}]\n", signed_asked)):
        port = free_port()
        command = twistd(OURS, "--config", str(reflector_config(directory, port, further)))
        with running(command, directory / "kinds.log", core) as program:
            reply = wait_for_reflector(program, port, probe=work[0][0].datagrams[0])
            if further and not auth.verify(reply, [secret]):
                notes.append("Authenticated: not measured, its replies are not signed.")
                continue
            contender = Contender(OURS, program, port)
            rows += _rows(programs, directory, contender, work, seconds, rounds)
    return Report(
        "Reflector, by kind of packet",
        COLUMNS,
        tuple(rows),
        (),
        (
            f"Reflector on core {core}, load on core {load_core}; medians of {rounds} rounds of"
            f" {seconds:g} s; CPU per packet received, answered or not.",
            *notes,
        ),
    )
