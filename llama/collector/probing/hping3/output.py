r"""What hping3 prints, read strictly: what is not exactly as expected is counted, never guessed at.

With ``-V`` it prints, a line each, on standard output::

    using lo, addr: 127.0.0.1, MTU: 65536
    HPING 127.0.0.1 (lo 127.0.0.1): S set, 40 headers + 0 data bytes

and for every answer three lines and an empty one::

    len=40 ip=127.0.0.1 ttl=64 DF id=0 tos=b8 iplen=40
    sport=0 flags=RA seq=0 win=0 rtt=0.4 ms
    seq=0 ack=305419897 sum=d085 urp=0

and for an ICMP error, whichever probe it is about, one. On standard error, at the end::

    --- 127.0.0.1 hping statistic ---
    2 packets transmitted, 2 packets received, 0% packet loss
    round-trip min/avg/max = 0.2/0.3/0.4 ms

It takes any TCP segment from the target's address and port for an answer. What tells ours is the
acknowledgement number: the sequence number that the run was given, which is random, and one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import frozen

#: Octets of a line that is read to its end.
LONGEST_LINE = 400

_ADDRESS = rb"(?P<ip>[0-9]{1,3}(?:\.[0-9]{1,3}){3})"
_USING = re.compile(rb"using [^ ]{1,15}, addr: [0-9.]{7,15}, MTU: [0-9]{1,10}")
_BEGUN = re.compile(
    rb"HPING [0-9.]{7,15} \((?P<device>[^ ]{1,15}) " + _ADDRESS + rb"\): S set, 40 headers"
    rb" \+ 0 data bytes"
)
_FIRST = re.compile(
    rb"(?P<again>DUP! )?len=[0-9]{1,5} ip=" + _ADDRESS + rb" ttl=(?P<ttl>[0-9]{1,3}) (?:DF )?"
    rb"id=[0-9]{1,5} tos=(?P<tos>[0-9a-f]{1,2}) iplen=[0-9]{1,5}"
)
_SECOND = re.compile(
    rb"sport=(?P<port>[0-9]{1,5}) flags=(?P<flags>[RSAFPUXY]{1,8}|none) seq=(?P<seq>[0-9]{1,9})"
    rb" win=[0-9]{1,5} rtt=(?P<rtt>[0-9]{1,9}\.[0-9]) ms"
)
_THIRD = re.compile(rb"seq=[0-9]{1,10} ack=(?P<ack>[0-9]{1,10}) sum=[0-9a-f]{1,4} urp=[0-9]{1,5}")
_UNREACHABLE = re.compile(
    rb"(?:ICMP [A-Za-z][A-Za-z /]{2,40}(?: type=[0-9]{1,3})? from|TTL 0 during [a-z]{2,20} from)"
    rb" ip=[0-9.]{7,15}"
)
_SUMMARY = re.compile(
    rb"\n--- [0-9.]{7,15} hping statistic ---\n"
    # Debian has mended the word.
    rb"(?P<sent>[0-9]{1,9}) packets tran?s?mitted, (?P<received>[0-9]{1,9}) packets received,"
    rb" (?P<loss>-?[0-9]{1,12})% packet loss\n"
    rb"(?:[0-9]{1,9} out of sequence packets received\n)?"
    rb"round-trip min/avg/max = [0-9.]{1,16}/[0-9.]{1,16}/[0-9.]{1,16} ms\n"
)
#: A SYN is answered with one of these (RFC 9293 section 3.10.7).
_ANSWERS = (b"SA", b"RA")


@frozen
class Begun:
    """The program is ready, and sends its first probe."""

    device: str  # where it listens
    address: str  # whom it probes


@frozen
class Answer:
    """An answer to one of the run's probes."""

    number: int  # of the probe in the run, from 0
    rtt_ms: float  # in steps of a tenth; 0.0 is less than a twentieth
    dscp: int
    ttl: int
    again: bool  # the probe was answered before


@frozen
class Stranger:
    """A segment from the target's port that answers none of the run's probes."""


@frozen
class Unreachable:
    """An ICMP error about the target's address."""


Event = Begun | Answer | Stranger | Unreachable


@frozen
class Summary:
    """What the program says of its run at the end."""

    transmitted: int
    received: int  # answers, repeated ones, strangers and ICMP errors together


class Reader:
    """Reads the standard output of one run, probes of port ``port`` at ``address``.

    ``sequence`` is the TCP sequence number of its probes. ``unread`` counts the lines, and
    answers begun and not ended, that make no sense; ``puzzle`` is the first of them.
    """

    def __init__(self, address: str, port: int, sequence: int) -> None:
        self._address, self._port = address.encode("ascii"), port
        self._acknowledged = (sequence + 1) % 2**32
        self._partial = b""
        self._overlong = False
        self._first: re.Match[bytes] | None = None
        self._second: re.Match[bytes] | None = None
        self.unread = 0
        self.puzzle = ""

    def feed(self, octets: bytes) -> Iterator[Event]:
        """Yield what ``octets``, and what was left from before, tell."""
        *lines, self._partial = (self._partial + octets).split(b"\n")
        for line in lines:
            if self._overlong:
                self._overlong = False
                continue
            yield from self._line(line.removesuffix(b"\r"))
        if len(self._partial) > LONGEST_LINE:
            if not self._overlong:
                self._puzzled(self._partial)
            self._overlong, self._partial = True, b""

    def end(self) -> None:
        """There is no more: what was begun will not be ended."""
        if self._partial or self._first is not None:
            self._puzzled(self._partial or b"an answer without an end")
        self._partial, self._first, self._second = b"", None, None

    def _puzzled(self, line: bytes) -> None:
        self.unread += 1
        self.puzzle = self.puzzle or line[:80].decode("ascii", "backslashreplace").strip()

    def _line(self, line: bytes) -> Iterator[Event]:
        if self._second is not None:
            first, second = self._first, self._second
            assert first is not None
            third = _THIRD.fullmatch(line)
            self._first = self._second = None
            if third is not None:
                yield self._event(first, second, third)
                return
            self._puzzled(second.group())
        elif self._first is not None:
            self._second = _SECOND.fullmatch(line)
            if self._second is not None:
                return
            self._puzzled(self._first.group())
            self._first = None
        if not line or _USING.fullmatch(line):
            return
        if match := _FIRST.fullmatch(line):
            self._first = match
        elif match := _BEGUN.fullmatch(line):
            yield Begun(match["device"].decode("ascii", "replace"), match["ip"].decode("ascii"))
        elif _UNREACHABLE.fullmatch(line):
            yield Unreachable()
        else:
            self._puzzled(line)

    def _event(
        self, first: re.Match[bytes], second: re.Match[bytes], third: re.Match[bytes]
    ) -> Event:
        ttl = int(first["ttl"])
        ours = int(third["ack"]) == self._acknowledged and second["flags"] in _ANSWERS
        ours = ours and first["ip"] == self._address and int(second["port"]) == self._port
        if not ours or ttl > 255:
            return Stranger()
        return Answer(
            number=int(second["seq"]), rtt_ms=float(second["rtt"]), dscp=int(first["tos"], 16) >> 2,
            ttl=ttl, again=first["again"] is not None,
        )  # fmt: skip


def read_summary(errors: bytes) -> Summary | None:
    """Return what standard error says at the end of a run; None unless it is that and no more."""
    match = _SUMMARY.fullmatch(errors.replace(b"\r\n", b"\n"))
    if match is None:
        return None
    sent, received = int(match["sent"]), int(match["received"])
    loss = 0 if not sent and not received else 100 - received * 100 // max(sent, 1)
    return Summary(sent, received) if int(match["loss"]) == loss else None
