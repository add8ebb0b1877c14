"""Line protocol: golden lines, InfluxData's own serialiser, and a reader written from the manual."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from influxdb_client import Point as InfluxPoint
from twisted.trial.unittest import SynchronousTestCase

from llama.interfaces import Point
from llama.scraper.writers.line_protocol import escape, line, lines

TIME = 1_700_000_010 * 10**9
NASTY = st.text(alphabet=st.sampled_from(" ,=\\\"'\n\r\t\0aé\u2028☃#"), max_size=8) | st.text(
    max_size=8
)
TAGS = st.dictionaries(NASTY, NASTY, max_size=5)
FIELDS = st.dictionaries(NASTY, st.floats(), max_size=5)


def split(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash precedes, as the manual defines it."""
    parts = [""]
    escaped = False
    for character in text:
        if character == separator and not escaped:
            parts.append("")
        else:
            parts[-1] += character
        escaped = character == "\\"
    return parts


def unescape(text: str) -> str:
    """Undo escapes: a backslash before a comma, a space or an equals sign."""
    for character in ", =":
        text = text.replace("\\" + character, character)
    return text


def parse(text: str) -> tuple[str, dict[str, str], dict[str, float], int]:
    """Read one line."""
    head, fields, time = split(text, " ")
    measurement, *tags = split(head, ",")
    pairs = [split(tag, "=") for tag in tags]
    figures = [split(field, "=") for field in split(fields, ",")]
    return (
        unescape(measurement),
        {unescape(name): unescape(value) for name, value in pairs},
        {unescape(name): float(value) for name, value in figures},
        int(time),
    )


def sayable(text: str) -> str:
    """Return what of a text line protocol can say: see the module's own words."""
    text = "".join(" " if c in "\n\r\0" else c for c in text)
    shown = ""
    for index, character in enumerate(text):
        following = text[index:].lstrip("\\")[:1]
        shown += "/" if character == "\\" and following in ("", ",", " ", "=") else character
    return shown


class LineTests(SynchronousTestCase):
    """One point a line."""

    def test_golden(self) -> None:
        """A point as InfluxDB's manual would write it, tags in order."""
        point = Point("raw_stats", {"rack": "01", "dst": "b"}, {"rtt": 0.25, "loss": 0.0}, TIME)
        self.assertEqual(line(point), f"raw_stats,dst=b,rack=01 rtt=0.25,loss=0.0 {TIME}")
        self.assertEqual(lines([point, point]), (line(point) + "\n").encode() * 2)

    def test_escapes(self) -> None:
        """Each of the characters that mean something."""
        for text, expected in {
            "a b": r"a\ b", "a,b": r"a\,b", "a=b": r"a\=b", "a\nb": r"a\ b", '"q"': '"q"',
            "C:\\": "C:/", "a\\b": "a\\b", "a\\ b": r"a/\ b", "\\\\": "//", "☃": "☃",
        }.items():  # fmt: skip
            self.assertEqual(escape(text), expected)

    def test_left_out(self) -> None:
        """Empty tags and figures that are no numbers are left out; without any there is no line."""
        point = Point(
            "m", {"a": "", "": "x", "b": "1"}, {"x": math.nan, "y": math.inf, "z": 1.0}, 5
        )
        self.assertEqual(line(point), "m,b=1 z=1.0 5")
        nothing = Point("m", {}, {"x": math.nan}, 5)
        self.assertEqual(line(nothing), "")
        self.assertEqual(lines([nothing]), b"")

    def test_no_comment(self) -> None:
        """A measurement that begins like a comment is not one."""
        self.assertEqual(line(Point("#m", {}, {"x": 1.0}, 5)), "_#m x=1.0 5")

    @given(NASTY.filter(bool), TAGS, FIELDS)
    def test_round_trip(self, name: str, tags: dict[str, str], fields: dict[str, float]) -> None:
        """Whatever tags are called, a reader gets back what can be said of them."""
        written = line(Point(name, tags, fields, TIME))
        finite = {sayable(n): v for n, v in fields.items() if n and math.isfinite(v)}
        self.assertNotIn("\n", written)
        if not finite:
            self.assertEqual(written, "")
            return
        _, read_tags, read_fields, time = parse(written)
        self.assertEqual(time, TIME)
        self.assertEqual(read_tags.keys(), {sayable(n) for n, v in tags.items() if n and v})
        self.assertEqual(
            set(read_tags.values()) - {sayable(v) for n, v in tags.items() if n and v}, set()
        )
        self.assertEqual(read_fields.keys(), finite.keys())

    @given(
        st.dictionaries(st.text("ab ,=é", min_size=1), st.text("ab ,=é"), max_size=4),
        st.dictionaries(st.text("ab ,=é", min_size=1), st.floats(), min_size=1, max_size=4),
    )
    def test_like_influxdatas(self, tags: dict[str, str], fields: dict[str, float]) -> None:
        """Where both can say a point, InfluxData's own serialiser says the same."""
        theirs = InfluxPoint("m x").time(TIME)
        for name, text in tags.items():
            theirs.tag(name, text)
        for name, value in fields.items():
            theirs.field(name, value)
        expected = theirs.to_line_protocol()
        ours = line(Point("m x", tags, fields, TIME))
        if not expected:
            self.assertEqual(ours, "")
        else:
            self.assertEqual(parse(ours), parse(expected))
