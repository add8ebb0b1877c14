"""Reading a collector's answer: what is taken, repaired and refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llama.interfaces import Point
from llama.rfc3339 import time_ns
from llama.scraper.points import (
    MOST_NAMES,
    MOST_OCTETS,
    BadAnswerError,
    pack,
    portions,
    read_answer,
    unpack,
)

SCRAPE_NS = 1_700_000_030 * 10**9
TIME = "2023-11-14T22:13:30Z"
TIME_NS = 1_700_000_010 * 10**9


def item(**changes: Any) -> dict[str, Any]:
    """Return a point as a collector sends it, changed."""
    return {
        "measurement": "raw_stats", "tags": {"dst_hostname": "b", "rack": "01"},
        "fields": {"rtt": 0.25, "loss": 0.0, "sent": 30.0, "lost": 0.0}, "time": TIME,
    } | changes  # fmt: skip


def read(*items: Any) -> Any:
    """Read an answer with these items."""
    return read_answer(json.dumps(items).encode(), SCRAPE_NS)


class ReadTests(SynchronousTestCase):
    """One answer at a time."""

    def test_a_point(self) -> None:
        """A point is taken as it is."""
        answer = read(item())
        self.assertEqual(
            answer.points,
            [Point("raw_stats", {"dst_hostname": "b", "rack": "01"},
                   {"rtt": 0.25, "loss": 0.0, "sent": 30.0, "lost": 0.0}, TIME_NS)],
        )  # fmt: skip
        self.assertEqual((answer.malformed, answer.undated, answer.zero_rtt), (0, 0, 0))

    def test_numbers_become_floats(self) -> None:
        """Whole numbers become floats, so that a database never sees two types of one field."""
        [point] = read(item(fields={"sent": 30, "huge": 10**300, "rtt": None})).points
        self.assertEqual(point.fields, {"sent": 30.0, "huge": 1e300})
        self.assertEqual({type(value) for value in point.fields.values()}, {float})

    def test_no_answer(self) -> None:
        """What is no JSON list is refused with what it is instead."""
        for body in (b"", b"<html>", b"{}", b'"text"', b"[1,", b"\xff\xfe", b"[NaN]", b"1e999"):
            with self.assertRaises(BadAnswerError) as raised:
                read_answer(body, SCRAPE_NS)
            self.assertRegex(str(raised.exception), r"\A[^\n]+\Z")

    def test_bad_items_are_left_out(self) -> None:
        """Items that are no points cost themselves alone, and the first is described."""
        bad = [
            7, None, [], {}, item(measurement=""), item(measurement=5), item(tags=[]),
            item(fields=[1]), item(fields=None), item(fields={"rtt": "fast"}),
            item(fields={"rtt": True}), item(tags={"a": {"b": "c"}}), item(time=True),
            item(time=1.7e18), item(time=10**19),
            item(time="yesterday"), item(time="2023-13-01T00:00:00Z"),
            item(time="9999-01-01T00:00:00Z"),
        ]  # fmt: skip
        answer = read(item(), *bad, item())
        self.assertEqual(len(answer.points), 2)
        self.assertEqual(answer.malformed, len(bad))
        self.assertEqual(answer.oddity, "an item is a int, expected an object")
        many = {f"t{n}": "x" for n in range(MOST_NAMES + 1)}
        answer = read(item(tags=many), item(fields=dict.fromkeys(many, 1.0)), item())
        self.assertEqual((len(answer.points), answer.malformed), (1, 2))
        self.assertEqual(answer.oddity, "a point with more than 250 tags or fields")

    def test_tags(self) -> None:
        """Empty tags are no tags; numbers and truth values become text."""
        [point] = read(
            item(tags={"a": "", "": "x", "b": None, "c": 7, "d": True, "e": "é ,="})
        ).points
        self.assertEqual(point.tags, {"c": "7", "d": "true", "e": "é ,="})
        [point] = read(item(tags=None)).points
        self.assertEqual(point.tags, {})

    def test_nothing_known(self) -> None:
        """A point without any figure is none."""
        answer = read(item(fields={}), item(fields={"rtt": None}))
        self.assertEqual((answer.points, answer.empty, answer.malformed), ([], 2, 0))

    def test_undated(self) -> None:
        """The collectors of dropbox/llama give no time; then it is that of the scrape."""
        answer = read(item(time="0001-01-01T00:00:00Z"), item(time=None), item())
        self.assertEqual([p.time_ns for p in answer.points], [SCRAPE_NS, SCRAPE_NS, TIME_NS])
        self.assertEqual(answer.undated, 2)

    def test_the_archived_python_collectors(self) -> None:
        """They write Unix ns, tags as YAML read them, and null for what was not measured yet."""
        tags = {"dst_hostname": "b", "rack": 1}
        answer = read(
            {"fields": {"value": 15.625}, "tags": tags, "time": TIME_NS, "measurement": "loss"},
            {"fields": {"value": 1.5}, "tags": tags, "time": 5, "measurement": "rtt"},
            {"fields": {"value": None}, "tags": tags, "time": None, "measurement": "rtt"},
        )
        text = {"dst_hostname": "b", "rack": "1"}
        self.assertEqual(
            answer.points,
            [Point("loss", text, {"value": 15.625}, TIME_NS),
             Point("rtt", text, {"value": 1.5}, SCRAPE_NS)],
        )  # fmt: skip
        self.assertEqual((answer.malformed, answer.empty), (0, 1))

    def test_total_loss_has_no_rtt(self) -> None:
        """An rtt of zero beside total loss, as dropbox/llama reports it, is taken away."""
        answer = read(
            item(fields={"rtt": 0, "loss": 100, "lost": 30, "sent": 30}),
            item(fields={"rtt": 0.0, "lost": 30.0, "sent": 30.0}),
            item(fields={"rtt": 0.0, "loss": 99.9}),
            item(fields={"rtt": 1.5, "loss": 100.0}),
            item(fields={"rtt": 0.0, "sent": 0.0, "lost": 0.0}),
        )
        self.assertEqual(
            ["rtt" in p.fields for p in answer.points], [False, False, True, True, True]
        )
        self.assertEqual(answer.zero_rtt, 2)

    def test_portions(self) -> None:
        """A large answer is read in portions, and nothing changes by that, whatever the tags."""
        trap = '},{"measurement":'
        items = [item(tags={"n": str(n), "trap": trap * (n % 3)}) for n in range(500)]
        body = json.dumps(items, separators=(",", ":")).encode()
        for octets in (1, 100, 5000, 10**7):
            parts = list(portions(body, octets))
            self.assertEqual(
                [p for part in parts for p in read_answer(part, SCRAPE_NS).points],
                read(*items).points,
            )
            self.assertEqual(len(parts) > 400, octets <= 100)
        for body in (b"", b"[]", b"{}", b"garbage" * 10, json.dumps(items).encode()):
            self.assertEqual(list(portions(body, 5)), [body])

    def test_portions_are_bounded(self) -> None:
        """What goes on without a new point is refused before it is read: lists can fill the memory."""
        for body in (
            b"[" + b"[]," * (MOST_OCTETS // 3) + b"[]]",
            b'[{"measurement":"' + b"x" * MOST_OCTETS + b'"},{"measurement":"x"}]',
        ):
            with self.assertRaises(BadAnswerError):
                list(portions(body))
        self.assertEqual(len(list(portions(b"[" + b" " * (MOST_OCTETS - 2) + b"]"))), 1)

    def test_packing(self) -> None:
        """What the spool keeps comes back equal."""
        points = read(item(), item(tags={"ü": "\n"}, fields={"x": 1e-300})).points
        self.assertEqual(unpack(pack(points)), points)

    @settings(max_examples=40)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["measurement", "tags", "fields", "time", "x"]), inner
                )
            ),
        )
    )
    def test_whatever_comes(self, value: Any) -> None:
        """No JSON makes it fail in any other way than its own."""
        for content in (
            value,
            [value],
            [item(fields=value)],
            [item(tags=value)],
            [item(time=value)],
        ):
            try:
                answer = read_answer(json.dumps(content).encode(), SCRAPE_NS)
            except BadAnswerError:
                continue
            for point in answer.points:
                self.assertTrue(point.measurement and point.fields)
                self.assertTrue(all(name and text for name, text in point.tags.items()))


class TimeTests(SynchronousTestCase):
    """RFC 3339 times, to the nanosecond."""

    def test_golden(self) -> None:
        """Zones and fractions of any length are understood."""
        for text, expected in {
            "1970-01-01T00:00:00Z": 0,
            "2023-11-14T22:13:30Z": TIME_NS,
            "2023-11-14t22:13:30z": TIME_NS,
            "2023-11-14 23:13:30+01:00": TIME_NS,
            "2023-11-14T22:13:30.123456789Z": TIME_NS + 123_456_789,
            "2023-11-14T22:13:30.1234567891Z": TIME_NS + 123_456_789,
            "2023-11-14T22:13:30.5-00:30": TIME_NS + 1800 * 10**9 + 500_000_000,
        }.items():
            self.assertEqual(time_ns(text), expected, text)

    def test_none(self) -> None:
        """What is no such time is refused."""
        for text in ("", "now", "2023-11-14", "2023-11-14T22:13:30", "2023-02-30T00:00:00Z",
                     "2023-11-14T25:00:00Z", "2023-11-14T22:13:30Z\n", "1700000010"):  # fmt: skip
            with self.assertRaises(ValueError):
                time_ns(text)

    @given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), st.integers(-1439, 1439))
    def test_against_datetime(self, moment: datetime, minutes: int) -> None:
        """It agrees with the standard library to the microsecond."""
        moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        expected = (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000
        self.assertEqual(time_ns(moment.isoformat()), expected)
