"""What hping3 prints is read strictly: real output, output cut anywhere, and any octets at all."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.probing.hping3.output import (
    LONGEST_LINE,
    Answer,
    Begun,
    Event,
    Reader,
    Stranger,
    Summary,
    Unreachable,
    read_summary,
)

SEQUENCE = 305419896

#: Recorded from hping3 3.0.0-alpha-2 of Debian: `-V -n -Z -S -p 777 -M 305419896`.
BEGUN = b"""\
using lo, addr: 127.0.0.1, MTU: 65536
HPING 127.0.0.1 (lo 127.0.0.1): S set, 40 headers + 0 data bytes
"""
OPEN = b"""\
len=44 ip=127.0.0.1 ttl=64 DF id=0 tos=0 iplen=44
sport=777 flags=SA seq=0 win=65495 rtt=0.8 ms
seq=4070048568 ack=305419897 sum=20fe urp=0

"""
CLOSED = b"""\
len=40 ip=127.0.0.1 ttl=61 DF id=0 tos=b8 iplen=40
sport=777 flags=RA seq=1 win=0 rtt=1001.4 ms
seq=0 ack=305419897 sum=cf85 urp=0

"""
REPEATED = b"DUP! " + OPEN
OTHERS = OPEN.replace(b"ack=305419897", b"ack=5")
REFUSED = b"ICMP Host Unreachable from ip=127.0.0.8\n"
EXPIRED = b"TTL 0 during transit from ip=10.0.0.1\n"

SUMMARY = b"""
--- 127.0.0.1 hping statistic ---
3 packets transmitted, 2 packets received, 34% packet loss
round-trip min/avg/max = 0.4/0.6/0.8 ms
"""

FIRST = Answer(number=0, rtt_ms=0.8, dscp=0, ttl=64, again=False)
SECOND = Answer(number=1, rtt_ms=1001.4, dscp=46, ttl=61, again=False)
WHOLE = BEGUN + OPEN + CLOSED + REPEATED + OTHERS + REFUSED + EXPIRED
EVENTS: list[Event] = [
    Begun("lo", "127.0.0.1"), FIRST, SECOND, Answer(0, 0.8, 0, 64, again=True), Stranger(),
    Unreachable(), Unreachable(),
]  # fmt: skip


def read(*parts: bytes) -> tuple[list[Event], Reader]:
    """Everything that a reader makes of some output."""
    reader = Reader("127.0.0.1", 777, SEQUENCE)
    events = [event for part in parts for event in reader.feed(part)]
    reader.end()
    return events, reader


class ReaderTests(SynchronousTestCase):
    """Standard output."""

    def test_recorded(self) -> None:
        """Real lines say what they say."""
        events, reader = read(WHOLE)
        self.assertEqual((events, reader.unread), (EVENTS, 0))

    def test_terminal(self) -> None:
        """A terminal that adds carriage returns changes nothing."""
        events, reader = read(WHOLE.replace(b"\n", b"\r\n"))
        self.assertEqual((events, reader.unread), (EVENTS, 0))

    @given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
    def test_cut_anywhere(self, cuts: list[int]) -> None:
        """Where the output is cut into readings does not matter."""
        places = [0, *sorted(cuts), len(WHOLE)]
        parts = [WHOLE[a:b] for a, b in itertools.pairwise(places)]
        events, reader = read(*parts)
        self.assertEqual((events, reader.unread), (EVENTS, 0))

    def test_not_ours(self) -> None:
        """Another address, port or acknowledgement, or flags no SYN is answered with: strangers."""
        for old, new in (
            (b"ip=127.0.0.1", b"ip=127.0.0.2"), (b"sport=777", b"sport=778"),
            (b"ack=305419897", b"ack=305419896"), (b"flags=SA", b"flags=A"),
            (b"flags=SA", b"flags=none"), (b"ttl=64", b"ttl=999"),
        ):  # fmt: skip
            events, reader = read(OPEN.replace(old, new))
            self.assertEqual((events, reader.unread), ([Stranger()], 0), new)

    def test_last_sequence_number(self) -> None:
        """The acknowledgement of the greatest sequence number is 0."""
        reader = Reader("127.0.0.1", 777, 2**32 - 1)
        self.assertEqual(list(reader.feed(OPEN.replace(b"ack=305419897", b"ack=0"))), [FIRST])

    def test_unfinished(self) -> None:
        """An answer without its end is no answer, whatever comes instead of it."""
        lines = OPEN.splitlines(keepends=True)
        for kept in (lines[:1], lines[:2], [*lines[:2], lines[2][:-4]]):
            for after in (b"", CLOSED):
                events, reader = read(b"".join(kept), b"\n" * bool(after), after)
                self.assertEqual(events, [SECOND] if after else [])
                self.assertGreater(reader.unread, 0, kept)

    def test_out_of_order(self) -> None:
        """Lines that belong to an answer count for nothing alone."""
        for line in OPEN.splitlines(keepends=True)[1:3]:
            events, reader = read(line, CLOSED)
            self.assertEqual((events, reader.unread), ([SECOND], 1))
            self.assertEqual(reader.puzzle, line.decode().strip())

    def test_endless_line(self) -> None:
        """A line without an end costs no memory, and is counted once."""
        reader = Reader("127.0.0.1", 777, SEQUENCE)
        for _ in range(1000):
            self.assertEqual(list(reader.feed(b"x" * 1000)), [])
            self.assertLessEqual(len(reader._partial), LONGEST_LINE)
        self.assertEqual(list(reader.feed(b"\n" + OPEN)), [FIRST])
        self.assertEqual(reader.unread, 1)

    @given(st.lists(st.binary(max_size=60), max_size=8))
    def test_any_octets(self, parts: list[bytes]) -> None:
        """No octets break the reader, and none make up an answer."""
        events, reader = read(*parts)
        self.assertFalse([event for event in events if isinstance(event, Answer)])
        meant = b"".join(parts).replace(b"\r", b"").replace(b"\n", b"")
        if not events and meant and not meant.startswith(b"using"):
            self.assertGreater(reader.unread, 0)

    @given(st.data())
    def test_damaged(self, data: st.DataObject) -> None:
        """One octet changed: what is read is what it says still, or it is not read."""
        place = data.draw(st.integers(0, len(OPEN) - 2))
        octet = data.draw(st.integers(0, 255))
        damaged = OPEN[:place] + bytes([octet]) + OPEN[place + 1 :]
        events, reader = read(damaged, CLOSED)
        self.assertEqual(events[-1:], [SECOND])
        if len(events) == 1:
            self.assertGreater(reader.unread, 0)
        elif isinstance(events[0], Answer):
            told = events[0]
            self.assertIn(f"seq={told.number} ".encode(), damaged)
            self.assertIn(f"rtt={told.rtt_ms:.1f} ms".encode(), damaged)
            self.assertIn(b"ack=305419897", damaged)


class SummaryTests(SynchronousTestCase):
    """Standard error."""

    def test_recorded(self) -> None:
        """The summary says what was sent and what came, in both spellings."""
        self.assertEqual(read_summary(SUMMARY), Summary(3, 2))
        self.assertEqual(read_summary(SUMMARY.replace(b"transmi", b"trami")), Summary(3, 2))

    def test_nothing_sent(self) -> None:
        """A run that was ended before it began lost nothing."""
        text = SUMMARY.replace(b"3 packets", b"0 packets").replace(b"2 packets", b"0 packets")
        self.assertEqual(read_summary(text.replace(b"34%", b"0%")), Summary(0, 0))

    def test_anything_else(self) -> None:
        """Figures that do not fit, or any word more or less, and there is no summary."""
        for text in (
            b"", SUMMARY[:-1], SUMMARY.replace(b"34%", b"33%"), SUMMARY + b"x\n",
            b"[send_ip] sendto: Operation not permitted\n", b"Warning: x\n" + SUMMARY,
            SUMMARY.replace(b"3 packets", b"-3 packets"),
        ):  # fmt: skip
            self.assertIsNone(read_summary(text), text)

    @given(st.binary(max_size=200))
    def test_any_octets(self, octets: bytes) -> None:
        """No octets break it."""
        self.assertIsNone(read_summary(octets))
