"""What routers and hosts say by ICMP about the probes of one track: who, what, about how many.

Anybody can send ICMP errors. One that quotes number and time of a probe as it left here comes from that
probe's way, and is told as a fact; so is one that the kernel gives a TCP attempt. One that quotes less,
as old IPv4 routers do (RFC 792 asks for the UDP header alone), fits whoever knows ports and target: it is
told apart, and only while nothing that was heard is forged. Here nothing is sent, and no path is found:
that is `llama.collector.tracing`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.collector.probing.sockets import ProbeSocket, endpoint
from llama.collector.probing.track import Track
from llama.net.errors import IcmpError
from llama.paths.trace import meaning

#: Of so many at most is remembered what they say.
MOST = 64
EXPIRED = "time to live exceeded"
NO_PORT = "port unreachable"


@frozen
class Refusal:
    """What somebody says about probes of one class and size."""

    pair: int | None  # which of the track's pairs; None: the quotes do not tell
    by: str  # the address that it comes from
    refusal: str  # an ICMP code in words
    mtu: int  # of the link that the probes were too big for, octets; 0: not said
    probes: int  # that this was said of; without proof, how often it was said
    proven: bool


def _first_word(quote: bytes) -> int:
    return int.from_bytes(quote[:4], "big")


def _go_token(quote: bytes) -> int:
    return int.from_bytes(quote[8:12], "big")


def _python_token(quote: bytes) -> int:
    (token,) = struct.unpack_from("<d", quote, 19)
    return int(token) & 0xFFFFFFFF if 0 <= token < 1 << 48 else -1


def _echo_number(quote: bytes) -> int:
    return int.from_bytes(quote[16:20], "big")


#: By kind of probe: how many octets show number and time, and the number that a quote of so many has.
_PROOF: dict[str, tuple[int, Callable[[bytes], int]]] = {
    "stamp": (12, _first_word),
    "twamp-light": (12, _first_word),
    "stamp-auth": (24, _first_word),
    "llama-go": (25, _go_token),
    "llama-python": (27, _python_token),
    "icmp": (24, _echo_number),
}


class Refusals:
    """Counts what is said about the probes of a track, each probe once: see `error` and `found`."""

    def __init__(self, track: Track) -> None:
        self._track = track
        self._known: npt.NDArray[np.bool_] = np.zeros(len(track.ledger.t1), np.bool_)  # by cell
        self._targets = [endpoint(name.tobytes()) for name in track.names]  # by pair
        self._proven: Counter[tuple[int, str, str, int]] = Counter()
        self._bare: Counter[tuple[str, str]] = Counter()
        self.forged = 0  # errors that no probe explains

    def error(self, sock: ProbeSocket, error: IcmpError) -> None:
        """Take an ICMP error about something that left one of the prober's sockets."""
        words = _words(error)
        if words is None or sock not in self._track.sockets:
            return
        target = error.destination.partition("%")[0], error.port
        pairs = [n for n, one in enumerate(self._targets) if one == target]
        octets, number = _PROOF[self._track.group.probe]
        quote = error.payload[:octets]
        if len(quote) < octets or not any(quote):  # zeros are padding (RFC 4884 section 3)
            # IPv6 routers always quote more (RFC 4443 section 3.3).
            if pairs and error.version == 4 and _has_room(self._bare, (error.offender, words)):
                self._bare[error.offender, words] += 1
            else:
                self.forged += 1
            return
        port = self._track.sockets.index(sock)
        for pair in pairs:
            cell = self._cell(pair * self._track.ports + port, number(quote), quote)
            if cell is not None:
                self._enter(cell, (pair, error.offender, words, error.mtu))
                return
        self.forged += 1

    def of_attempt(self, flow: int, sequence: int, error: IcmpError) -> None:
        """Take an ICMP error about one of our SYNs.

        The kernel gives none that does not quote the number of that SYN, 32 bits by chance.
        """
        words = _words(error)
        if words is not None:
            cell = self._track.ledger.cell(flow, sequence)
            pair = flow // self._track.ports
            self._enter(cell, (pair, error.offender, words, error.mtu))

    def _enter(self, cell: int, key: tuple[int, str, str, int]) -> None:
        """Count what is proven to be said of a probe, if it is the first thing that is."""
        if not self._known[cell] and _has_room(self._proven, key):
            self._proven[key] += 1
            self._known[cell] = True

    def _cell(self, flow: int, sequence: int, quote: bytes) -> int | None:
        """Return the cell of the probe of a flow that begins as quoted; None if none does."""
        track = self._track
        book = track.ledger
        book.settle()
        if not 0 < sequence < int(book.next_sequence[flow]):
            return None
        cell = book.cell(flow, sequence)
        t1_ns = book.t1[cell : cell + 1]
        if not t1_ns[0]:
            return None
        return cell if track.left_as(flow, sequence, t1_ns, quote) else None

    def found(self) -> Sequence[Refusal]:
        """Return what was said, pair by pair; without proof only if nothing was forged."""
        proven = [
            Refusal(pair, by, refusal, mtu, probes, proven=True)
            for (pair, by, refusal, mtu), probes in sorted(self._proven.items())
        ]
        if self.forged:
            return proven
        known = {(one.by, one.refusal) for one in proven}
        return proven + [
            Refusal(None, by, refusal, 0, times, proven=False)
            for (by, refusal), times in sorted(self._bare.items())
            if (by, refusal) not in known
        ]


def _words(error: IcmpError) -> str | None:
    """Return what an ICMP error says of a probe in words; None if nothing."""
    said = meaning(error.version, error.kind, error.code)
    if said is None:
        return None
    final, refusal = said
    return refusal or (NO_PORT if final else EXPIRED)


def _has_room(counts: Counter[Any], key: object) -> bool:
    return key in counts or len(counts) < MOST
