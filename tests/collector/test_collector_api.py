"""What the collector answers over HTTP, compared with figures computed from what it was given."""

from __future__ import annotations

import json
import math
import re

import attrs
import numpy as np
from collector_served import Served
from hypothesis import given, settings
from hypothesis import strategies as st
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent

from llama.collector.answers import encode
from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.collector.intervals.summary import STATS, suspect_bit
from llama.collector.slices import Pace
from llama.http.server import Guard, HttpService, HttpSite
from llama.testing import FIRST_START_S, closed_interval, pair

COUNTS = [
    name
    for name in STATS.names
    if np.issubdtype(STATS[name], np.uint32) and name not in ("samples", "suspect")
]


def expected_point(closed, number):
    """Return the fields of a point as the contract states them, computed one by one."""
    row = {name: closed.pair_stats[number][name].item() for name in STATS.names}
    fields = {name: float(row[name]) for name in COUNTS}
    fields["suspect"] = float(row["suspect"])
    lost = closed.flow_stats["lost"][closed.flows["pair"] == number]
    fields["flows"] = float(len(lost))
    fields["flows_lossy"] = float(np.count_nonzero(lost))
    if row["sent"]:
        fields["loss"] = 100 * row["lost"] / row["sent"]
    if row["samples"]:
        fields["rtt"] = row["rtt_sum_ns"] / row["samples"] / 1e6
    for name, value in row.items():
        if name.endswith("_ns") and name != "rtt_sum_ns" and not math.isnan(value):
            fields[name.removesuffix("_ns")] = value / 1e6
        elif (name.startswith("dscp_at") and value != 255) or (name.startswith("ttl_at") and value):
            fields[name] = float(value)
    return fields


class Points(SynchronousTestCase):
    def assert_points(self, points, closed):
        """Compare points with the interval that they are of."""
        self.assertEqual(len(points), len(closed.pairs))
        for number, point in enumerate(points):
            self.assertEqual(set(point), {"measurement", "tags", "fields", "time"})
            self.assertEqual(point["measurement"], "raw_stats")
            self.assertEqual(point["tags"], closed.pairs[number].series_tags())
            expected = expected_point(closed, number)
            self.assertEqual(set(point["fields"]), set(expected))
            for name, value in point["fields"].items():
                self.assertIsInstance(value, float, name)
                self.assertLess(abs(value - expected[name]), 6e-7, name)

    def test_points(self):
        """Every pair is a point with its whole tag set and every figure that is known."""
        served = Served()
        closed = served.close(5, loss=0.2, suspect=suspect_bit("late_ticks"))
        points = served.get("/influxdata").json()
        own = points.pop()
        self.assertEqual(own["measurement"], "collector_stats")
        self.assert_points(points, closed)
        self.assertEqual({point["time"] for point in points}, {"2023-11-14T22:14:00Z"})

    def test_whatever_is_unknown(self):
        """Each pair has the figures that are known of it, however many lack those of others."""
        chance = np.random.default_rng(3)
        self.patch(encode, "_MADE", 50)
        for share in (0.0, 0.02, 0.5, 1.0):
            served = Served()
            closed = closed_interval(700)
            stats = closed.pair_stats
            for name in STATS.names:
                if name.endswith("_ns") and name != "rtt_sum_ns":
                    stats[name][chance.random(700) < share] = math.nan
                elif "_at_" in name:
                    unknown = 255 if name.startswith("dscp") else 0
                    stats[name][chance.random(700) < share] = unknown
            for name in ("samples", "sent", "received", "lost"):
                stats[name][chance.random(700) < share / 3] = 0
            if share:  # nothing at all is known of these times
                for name in STATS.names:
                    if name.endswith("_ns"):
                        stats[name][::10] = math.nan
                stats["samples"][::10] = stats["rtt_sum_ns"][::10] = 0
            stats["duplicate"] = chance.integers(0, 2 + int(share * 2000), 700)
            served.history.append(closed)
            served.work()
            self.assert_points(served.get("/influxdata").json()[:-1], closed)

    def test_everything_lost(self):
        """All lost is loss 100 and no round-trip time at all, not a zero."""
        served = Served()
        served.close(1, loss=1.0)
        fields = served.get("/influxdata").json()[0]["fields"]
        self.assertEqual(fields["loss"], 100.0)
        self.assertEqual([name for name in fields if name.startswith(("rtt", "ipdv", "owd"))], [])

    def test_nothing_sent(self):
        """Nothing sent is no loss value, neither 0 nor 100."""
        served = Served()
        served.close(1, probes_per_flow=0)
        fields = served.get("/influxdata").json()[0]["fields"]
        self.assertNotIn("loss", fields)
        self.assertNotIn("rtt", fields)
        self.assertEqual(fields["sent"], 0.0)

    def test_numbers_are_written_as_floats(self):
        """A whole number is written with its point: InfluxDB takes the type from the text."""
        served = Served()
        served.close(1)
        fields = re.search(rb'"fields":\{([^}]*)\}', served.get("/influxdata").body)[1]
        for item in fields.split(b","):
            self.assertRegex(item.decode(), r'^"[a-z_0-9]+":-?[0-9]+(\.[0-9]+|\.?[0-9]*e-?[0-9]+)$')

    def test_nothing_closed_yet(self):
        """Before the first interval has closed the list is empty, and the cursor good."""
        served = Served()
        answer = served.get("/influxdata")
        self.assertEqual(answer.json(), [])
        served.close(1)
        cursor = answer.header("Llama-Cursor")
        self.assertEqual(len(served.get(f"/influxdata?since={cursor}").json()), 2)

    def test_fraction_of_a_second(self):
        """The end of an interval is told to the nanosecond if it must be."""
        served = Served()
        closed = attrs.evolve(closed_interval(1), end_ns=1_700_000_040_250_000_000)
        served.history.append(closed)
        served.work()
        point = served.get("/influxdata").json()[0]
        self.assertEqual(point["time"], "2023-11-14T22:14:00.25Z")

    def test_as_dropbox_llama_reads_it(self):
        """The list decodes into dropbox/llama's DataPoint: numbers, texts and an RFC 3339 time."""
        served = Served()
        served.close(2, loss=0.1)
        for point in served.get("/influxdata").json():
            self.assertTrue(all(type(value) is float for value in point["fields"].values()))
            self.assertTrue(all(type(value) is str for value in point["tags"].values()))
            self.assertRegex(point["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")

    def test_no_pairs(self):
        """An interval without pairs closes all the same, and its answer is JSON."""
        served = Served()
        served.close(0)
        self.assertEqual(len(served.get("/influxdata?since=").json()), 1)
        self.assertEqual(served.get("/latency").json()["pairs"], [])


class Cursors(SynchronousTestCase):
    def numbers(self, answer):
        """Return the ends of the intervals of an answer, as how many windows after the first."""
        times = {p["time"] for p in answer.json() if p["measurement"] == "raw_stats"}
        return sorted(
            int((np.datetime64(t[:-1]).astype("datetime64[s]").astype(int) - 1_700_000_010) // 30)
            for t in times
        )

    def setUp(self):
        """Close seven intervals where five are held."""
        self.served = Served(keep=5)
        for _ in range(7):
            self.served.close(2)

    def test_without(self):
        """Without a cursor the newest closed interval is answered, and the cursor after it."""
        answer = self.served.get("/influxdata")
        self.assertEqual(self.numbers(answer), [7])
        again = self.served.get(f"/influxdata?since={answer.header('Llama-Cursor')}")
        self.assertEqual(again.json(), [])
        self.assertEqual(again.header("Llama-Cursor"), answer.header("Llama-Cursor"))

    def test_empty(self):
        """With an empty cursor everything that is held is answered."""
        self.assertEqual(self.numbers(self.served.get("/influxdata?since=")), [3, 4, 5, 6, 7])

    def test_limit(self):
        """With a limit so many intervals come at once, oldest first, and it is said how many more."""
        cursor, seen = "", []
        for numbers, more in (([3, 4], "3"), ([5, 6], "1"), ([7], None), ([], None)):
            answer = self.served.get(f"/influxdata?since={cursor}&limit=2")
            self.assertEqual((self.numbers(answer), answer.header("Llama-More")), (numbers, more))
            cursor = answer.header("Llama-Cursor")
            seen.append(cursor)
        self.assertEqual(seen, [self.served.history.cursor(n) for n in (4, 6, 7, 7)])
        self.assertEqual(self.served.get("/influxdata?since=&limit=0").code, 400)

    def test_following(self):
        """A cursor gives what closed after it, each interval once."""
        cursor = self.served.get("/influxdata").header("Llama-Cursor")
        self.served.close(2)
        self.served.close(2)
        answer = self.served.get(f"/influxdata?since={cursor}")
        self.assertEqual(self.numbers(answer), [8, 9])
        self.assertIsNone(answer.header("Llama-Missed"))

    def test_garbage(self):
        """A cursor that is none, of the future, or of another incarnation gives all still held."""
        good = self.served.history.cursor(6)
        self.assertEqual(self.numbers(self.served.get(f"/influxdata?since={good}")), [7])
        for bad in ("x", "%00", good + "0", "0123456789abcdef-6", "%F0%9F%A6%99", "-", good[:-1]):
            answer = self.served.get(f"/influxdata?since={bad}")
            self.assertEqual(self.numbers(answer), [3, 4, 5, 6, 7], bad)

    def test_not_utf8(self):
        """A cursor that is no text is refused with one line."""
        answer = self.served.get("/influxdata?since=%ff")
        self.assertEqual((answer.code, answer.json()), (400, {"error": "since: not UTF-8"}))

    def test_missed(self):
        """Who was away for too long is told how many intervals are gone."""
        answer = self.served.get(f"/influxdata?since={self.served.history.cursor(1)}")
        self.assertEqual(answer.header("Llama-Missed"), "1")
        self.assertEqual(self.numbers(answer), [3, 4, 5, 6, 7])

    def test_same_octets(self):
        """An interval asked for again is answered with the same octets."""
        cursor = self.served.history.cursor(6)
        first = self.served.get(f"/influxdata?since={cursor}").body
        self.served.close(2)
        second = self.served.get(f"/influxdata?since={cursor}").body
        self.assertTrue(second.startswith(first[:-1] + b","))

    def test_longer_timeouts(self):
        """A window that closes in two parts is answered in two parts, and wholly without cursor."""
        served = Served()
        quick, slow = [pair(0)], [pair(1), pair(2)]
        served.close(quick, start_s=1_700_000_010)
        cursor = served.get("/influxdata").header("Llama-Cursor")
        served.close(slow, start_s=1_700_000_010)
        answer = served.get(f"/influxdata?since={cursor}")
        hosts = [p["tags"]["dst_hostname"] for p in answer.json()]
        self.assertEqual(hosts, [p.target for p in slow])
        served.close(quick, start_s=1_700_000_040)
        newest = [p for p in served.get("/influxdata").json() if "dst_hostname" in p["tags"]]
        self.assertEqual(
            [(p["tags"]["dst_hostname"], p["time"]) for p in newest],
            [
                ("reflector00001.example.net", "2023-11-14T22:14:00Z"),
                ("reflector00002.example.net", "2023-11-14T22:14:00Z"),
                ("reflector00000.example.net", "2023-11-14T22:14:30Z"),
            ],
        )

    def test_while_encoding(self):
        """While an interval is being encoded the finished ones are answered, without waiting."""
        self.served.close(2, work=False)
        response = self.successResultOf(self.served.ask("/influxdata"))
        cursor = response.headers.getRawHeaders("Llama-Cursor")[0]
        self.assertEqual(cursor, self.served.history.cursor(7))
        after = self.served.get(f"/influxdata?since={cursor}")
        self.assertEqual(self.numbers(after), [8])

    def test_waiting_for_the_only_one(self):
        """Who has everything but what is being encoded waits for it, rather than get nothing."""
        cursor = self.served.get("/influxdata").header("Llama-Cursor")
        self.served.close(2, work=False)
        asked = self.served.ask(f"/influxdata?since={cursor}")
        self.assertNoResult(asked)
        self.served.work()
        self.served.agent.flush()
        response = self.successResultOf(asked)
        self.assertEqual(
            response.headers.getRawHeaders("Llama-Cursor"), [self.served.history.cursor(8)]
        )


class Programs(SynchronousTestCase):
    def test_latency(self):
        """/latency has every pair's figures with units in their names, and null for unknown."""
        served = Served()
        closed = served.close(
            [pair(0), pair(1, dscp=46), pair(2)],
            loss=[0.0] * 4 + [0.3] * 4 + [1.0] * 4,
            suspect=suspect_bit("late_ticks") | suspect_bit("clock_step"),
            notes=("late by 12 ms",),
        )
        answer = served.get("/latency").json()
        self.assertEqual(
            answer["intervals"],
            [
                {
                    "close_number": 1,
                    "start": "2023-11-14T22:13:30Z",
                    "end": "2023-11-14T22:14:00Z",
                    "timeout_ms": closed.timeout_s * 1000,
                    "all_flows": True,
                    "notes": ["late by 12 ms"],
                }
            ],
        )
        for number, told in enumerate(answer["pairs"]):
            stats = closed.pair_stats[number]
            self.assertEqual(told["target"], closed.pairs[number].target)
            self.assertEqual(told["class"], ("BE", "EF", "BE")[number])
            self.assertEqual(told["tags"], closed.pairs[number].tags)
            self.assertEqual(told["suspect"], ["late_ticks", "clock_step"])
            for name in COUNTS:
                self.assertEqual(told[name], stats[name])
                self.assertIs(type(told[name]), int)
            self.assertAlmostEqual(told["loss_percent"], 100 * stats["lost"] / stats["sent"])
        dead = answer["pairs"][2]
        for name in (
            "rtt_mean_ms",
            "rtt_p99_ms",
            "jitter_ms",
            "owd_forward_ms",
            "ttl_at_reflector",
        ):
            self.assertIsNone(dead[name], name)
        self.assertEqual((dead["loss_percent"], dead["flows"], dead["flows_lossy"]), (100.0, 4, 4))

    def test_latency_filters(self):
        """/latency can be narrowed to a target, by name or address, and to a class."""
        served = Served()
        served.close([pair(0), pair(0, dscp=46), pair(1)])
        for query, expected in (
            ("target=reflector00000.example.net", 2),
            ("target=10.0.0.1", 1),
            ("class=EF", 1),
            ("class=BE", 2),
            ("target=10.0.0.0&class=EF", 1),
            ("target=elsewhere", 0),
            ("unheard=of", 3),
        ):
            self.assertEqual(len(served.get(f"/latency?{query}").json()["pairs"]), expected, query)

    def test_latency_of_all_pairs_once(self):
        """With timeouts of different length each pair appears once, with its newest interval."""
        served = Served()
        quick, slow = [pair(0)], [pair(1)]
        served.close(quick, start_s=1_700_000_010)
        served.close(slow, start_s=1_700_000_010)
        served.close(quick, start_s=1_700_000_040)
        told = served.get("/latency").json()["pairs"]
        self.assertEqual(
            [(p["target"], p["close_number"]) for p in told],
            [("reflector00000.example.net", 3), ("reflector00001.example.net", 2)],
        )

    def test_removed_pair(self):
        """After a reload without it a pair goes from the newest figures, but not from history."""
        served = Served(keep=20)
        served.close([pair(0), pair(1)])
        for _ in range(6):
            served.clock.advance(30)
            served.close([pair(0)])
        self.assertEqual(len(served.get("/latency").json()["pairs"]), 1)
        hosts = [p["tags"].get("dst_hostname") for p in served.get("/influxdata?since=").json()]
        self.assertEqual(hosts.count("reflector00001.example.net"), 1)

    def test_flows(self):
        """/flows has every flow with its own figures."""
        served = Served()
        closed = served.close(3, loss=0.2)
        answer = served.get("/flows").json()
        self.assertEqual(answer["count"], 12)
        self.assertIsNone(answer["next_offset"])
        for told, flow, stats in zip(answer["flows"], closed.flows, closed.flow_stats, strict=True):
            self.assertEqual(told["target"], closed.pairs[flow["pair"]].target)
            self.assertEqual(told["source_port"], flow["source_port"])
            self.assertEqual(told["ssid"], flow["ssid"])
            for name in COUNTS:
                self.assertEqual(told[name], stats[name], name)

    def test_flow_filters(self):
        """/flows can be narrowed to a target, a class, a source port and to those that lose."""
        served = Served()
        loss = np.zeros(12)
        loss[[1, 2, 9]] = 1.0
        served.close([pair(0), pair(0, dscp=46), pair(1)], loss=loss)
        for query, expected in (
            ("lossy=1", 3),
            ("lossy=0", 12),
            ("lossy=1&target=10.0.0.0", 2),
            ("class=EF", 4),
            ("source_port=50001", 3),
            ("source_port=50001&lossy=1", 2),
            ("target=elsewhere", 0),
        ):
            answer = served.get(f"/flows?{query}").json()
            self.assertEqual((answer["count"], len(answer["flows"])), (expected, expected), query)

    def test_flow_pages(self):
        """Pages of flows follow each other without gap or overlap."""
        served = Served()
        served.close(10, flows_per_pair=7)
        everything = served.get("/flows").json()["flows"]
        offset, paged = 0, []
        while offset is not None:
            answer = served.get(f"/flows?limit=9&offset={offset}&close_number=1").json()
            paged += answer["flows"]
            offset = answer["next_offset"]
        self.assertEqual(paged, everything)
        self.assertEqual(len(paged), 70)

    def test_flows_of_an_older_interval(self):
        """Of older intervals those flows are held that lost something, and it is said."""
        served = Served(keep=5)
        loss = np.zeros(8)
        loss[3] = 1.0
        for _ in range(4):
            served.close(2, loss=loss)
        for number, all_flows, count in ((4, True, 8), (3, True, 8), (2, False, 1), (1, False, 1)):
            answer = served.get(f"/flows?close_number={number}").json()
            self.assertEqual(answer["intervals"][0]["all_flows"], all_flows, number)
            self.assertEqual(len(answer["flows"]), count)
            self.assertEqual(answer["flows"][-1 if count == 1 else 3]["loss_percent"], 100.0)

    def test_flows_of_a_time(self):
        """All intervals of the window that a time lies in, or the newest, whatever their numbers are."""
        served = Served(keep=3)
        self.assertEqual(
            served.get("/flows?at=1750000000").json(),
            {"error": "no interval of that time is held; none is"},
        )
        start_s = FIRST_START_S
        for window in range(4):
            for n in range(2):
                served.close([pair(n)], loss=1.0, start_s=start_s + 30 * window)
        for after_s, numbers in (
            (30.001, [3, 4]), (60, [3, 4]), (60.5, [5, 6]), (119.999999, [7, 8]), (1000, [8, 7]),
        ):  # fmt: skip
            answer = served.get(f"/flows?at={start_s + after_s:.6f}").json()
            self.assertEqual([one["close_number"] for one in answer["intervals"]], numbers)
            self.assertEqual({row["close_number"] for row in answer["flows"]}, {*numbers})
        answer = served.get(f"/flows?at={start_s + 30}")
        self.assertEqual(answer.code, 404)
        self.assertEqual(
            answer.json(),
            {"error": "no interval of that time is held; those since 2023-11-14T22:14:00Z are"},
        )

    def test_flows_of_a_window_begun_twice(self):
        """Of two windows that overlap, since the clock was set back, it is the later one."""
        served = Served()
        closed = closed_interval(1, close_number=1, start_s=FIRST_START_S)
        served.history.append(closed)
        served.history.append(
            attrs.evolve(closed, close_number=2, end_ns=closed.end_ns + 1_000_000)
        )
        served.work()
        for end_ns in (closed.end_ns, closed.end_ns + 1_000_000):
            answer = served.get(f"/flows?at={end_ns / 1e9:.6f}").json()
            self.assertEqual([one["close_number"] for one in answer["intervals"]], [2])

    def test_interval_not_held(self):
        """An interval that is not held is 404, and the answer says which are."""
        served = Served(keep=2)
        self.assertEqual(
            served.get("/flows?close_number=1").json(),
            {"error": "interval 1 is not held; none is"},
        )
        for _ in range(4):
            served.close(1)
        answer = served.get("/flows?close_number=1")
        self.assertEqual(answer.code, 404)
        self.assertEqual(answer.json(), {"error": "interval 1 is not held; 3 to 4 are"})

    def test_bad_values(self):
        """A bad value is 400 with one line."""
        served = Served()
        for query in (
            "limit=0", "limit=10001", "offset=-1", "lossy=maybe", "source_port=65536", "at=nan",
            "at=-1", "at=1&close_number=1",
        ):  # fmt: skip
            answer = served.get(f"/flows?{query}")
            self.assertEqual(answer.code, 400, query)
            self.assertIn(query.partition("=")[0], answer.json()["error"])

    @settings(max_examples=25)
    @given(
        pairs=st.integers(1, 6),
        flows=st.integers(1, 5),
        probes=st.integers(0, 12),
        loss=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        seed=st.integers(0, 1000),
    )
    def test_sums(self, pairs, flows, probes, loss, seed):
        """Whatever happened, the flows of a pair add up to its figures, in every answer."""
        served = Served()
        served.close(pairs, flows_per_pair=flows, probes_per_flow=probes, loss=loss, seed=seed)
        by_flow: dict[tuple[str, str], int] = {}
        lossy: dict[str, int] = {}
        for flow in served.get("/flows?limit=10000").json()["flows"]:
            self.assertEqual(flow["sent"], flow["received"] + flow["lost"])
            for name in COUNTS:
                key = flow["target"], name
                by_flow[key] = by_flow.get(key, 0) + flow[name]
            lossy[flow["target"]] = lossy.get(flow["target"], 0) + (flow["lost"] > 0)
        points = {p["tags"].get("dst_hostname"): p for p in served.get("/influxdata").json()}
        told = served.get("/latency").json()["pairs"]
        self.assertEqual(len(told), pairs)
        for row in told:
            fields = points[row["target"]]["fields"]
            for name in COUNTS:
                self.assertEqual(row[name], by_flow[row["target"], name], name)
                self.assertEqual(fields[name], row[name], name)
            self.assertEqual(row["flows_lossy"], lossy[row["target"]])
            self.assertEqual(fields.get("loss"), row["loss_percent"])
            self.assertEqual(fields.get("rtt"), row["rtt_mean_ms"])


class FullTransport(StringTransport):
    """Has no room for more as soon as something is written, as where a client does not read."""

    def write(self, data):
        """Keep what is written, and ask for no more."""
        super().write(data)
        self.producer.pauseProducing()


class Transfer(SynchronousTestCase):
    def test_gzip(self):
        """Who takes gzip gets it, and the same content as who does not."""
        served = Served()
        for _ in range(3):
            served.close(50)
        for path in ("/influxdata?since=", "/latency", "/flows", "/"):
            packed = served.get(path, Accept_Encoding="br;q=1.0, gzip;q=0.8, *;q=0.1")
            plain = served.get(path)
            self.assertEqual(packed.header("Content-Encoding"), "gzip")
            self.assertIsNone(plain.header("Content-Encoding"))
            self.assertEqual(packed.body, plain.body)
            self.assertLess(packed.sent_octets, plain.sent_octets / 2)
            self.assertEqual(plain.header("Vary"), "Accept-Encoding")

    def test_no_gzip(self):
        """Who refuses gzip, or does not name it, does not get it."""
        served = Served()
        for accepted in ("gzip;q=0", "identity", "", "gzip;q=0.000, *", "*;q=0"):
            answer = served.get("/latency", Accept_Encoding=accepted)
            self.assertIsNone(answer.header("Content-Encoding"), accepted)
        self.assertEqual(served.get("/latency", Accept_Encoding="*").json()["pairs"], [])

    def test_lengths(self):
        """The stated length is that of the body, packed or not; HEAD states it without a body."""
        # What is packed at a time depends on how long it took, and the packed length on that.
        self.patch(Pace, "took", lambda *_: None)
        served = Served()
        served.close(50)
        site = HttpSite(Guard(served.api.app.resource()), reactor=served.clock)
        for path in ("/influxdata", "/latency", "/flows", "/metrics", "/"):
            for coding in ("identity", "gzip"):
                stated, sent = [], []
                for method in ("GET", "HEAD"):
                    transport = StringTransport()
                    channel = site.buildProtocol(None)
                    channel.makeConnection(transport)
                    channel.dataReceived(
                        f"{method} {path} HTTP/1.1\r\nHost: x\r\n"
                        f"Accept-Encoding: {coding}\r\n\r\n".encode()
                    )
                    while not served.slices_idle():
                        served.clock.advance(0.01)
                    served.clock.pump([0.01] * 10)
                    head, body = transport.value().split(b"\r\n\r\n", 1)
                    self.assertTrue(head.startswith(b"HTTP/1.1 200 OK"))
                    stated.append(int(re.search(rb"Content-Length: ([0-9]+)", head)[1]))
                    sent.append(len(body))
                    channel.connectionLost(Failure(ConnectionDone()))
                self.assertEqual(stated[0], sent[0], path)
                self.assertEqual(sent[1], 0)
                moment = 100 if path == "/metrics" else 0  # it tells of the moment
                self.assertLessEqual(abs(stated[1] - stated[0]), moment, path)

    def test_client_that_leaves(self):
        """A client that goes away while an answer is being made or sent leaves nothing behind."""
        served = Served()
        served.close(2000)
        for path in ("/latency", "/flows?limit=10000", "/", "/influxdata"):
            asked = served.ask(path)
            served.clock.advance(0)
            for pump in served.agent._pumps:
                pump.server.connectionLost(Failure(ConnectionDone()))
            served.agent._pumps.clear()
            served.work()
            asked.addErrback(lambda _: None)
            asked.cancel()
        self.assertEqual(served.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(served.get("/latency").code, 200)

    def test_client_that_leaves_amid_an_answer(self):
        """A client that hangs up while its answer is on the way stops it, and nothing goes wrong."""
        served = Served()
        served.close(2000)
        site = HttpSite(Guard(served.api.app.resource()), reactor=served.clock)
        for path in ("/latency", "/flows?limit=10000", "/influxdata"):
            transport = FullTransport()
            channel = site.buildProtocol(None)
            channel.makeConnection(transport)
            channel.dataReceived(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            while not transport.value():
                served.clock.advance(0.01)
            stated = int(re.search(rb"Content-Length: ([0-9]+)", transport.value())[1])
            self.assertLess(len(transport.value()), stated, path)  # it is on the way
            channel.connectionLost(Failure(ConnectionDone()))
            sent = len(transport.value())
            served.clock.pump([0.01] * 10)
            self.assertEqual(len(transport.value()), sent, path)
        served.work()
        self.assertEqual(served.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_too_many_wait(self):
        """When many wait already, the next is told to ask again instead of piling up."""
        served = Served()
        served.close(10)
        asked = [served.ask("/flows") for _ in range(33)]
        response = self.successResultOf(asked[-1])
        self.assertEqual(response.code, 503)
        self.assertEqual(response.headers.getRawHeaders("Retry-After"), ["1"])
        served.work()
        served.agent.flush()
        for one in asked[:-1]:
            self.assertEqual(self.successResultOf(one).code, 200)

    def test_own_health_after_the_clock_was_ahead(self):
        """Once a window the collector tells of itself, also after a clock years ahead was put right."""
        served = Served(health=lambda: {"probes_sent_total": 1})
        told = []
        starts = (1_900_000_020, *(1_700_000_000 + s for s in (10, 10, 40, 10, 70, 40)))
        for start_s in starts:  # some with timeouts longer than a window
            served.close(1, start_s=start_s)
            told.append(served.history.held[-1].health is not None)
        self.assertEqual(told, [True, True, False, True, False, True, False])

    def test_status_tells_of_trouble(self):
        """While something is the matter the status is 503 and says what."""
        served = Served()
        self.assertEqual((served.get("/status").code, served.get("/status").body), (200, b"ok"))
        served.trouble = "no probe was sent for 9 s"
        answer = served.get("/status")
        self.assertEqual((answer.code, answer.body), (503, b"no probe was sent for 9 s"))

    def test_status_tells_of_old_answers(self):
        """So it does when intervals close faster than they are encoded."""
        served = Served(keep=10)
        for window in range(6):
            served.close(1, start_s=30 * window, work=False)
        answer = served.get("/status")
        self.assertEqual(answer.code, 503)
        self.assertIn(b"closed intervals wait to be encoded", answer.body)
        served.work()
        self.assertEqual(served.get("/status").body, b"ok")

    def test_errors(self):
        """Wrong paths and methods are JSON errors; nothing takes anything but GET and HEAD."""
        served = Served()
        for path in ("/nowhere", "/status/", "/latency/x", "/quitquit", "/%ff"):
            answer = served.get(path)
            self.assertIn(answer.code, (400, 404), path)
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            for path in ("/", "/status", "/influxdata", "/latency", "/flows", "/metrics"):
                answer = served.get(path, method)
                self.assertEqual(answer.code, 405, (method, path))
                self.assertEqual(answer.header("Allow"), "GET, HEAD")
                self.assertIn("error", answer.json())

    def test_own_mistake(self):
        """A mistake of ours is 500 without a trace of it, and the log has the trace."""

        def broken():
            raise ZeroDivisionError("secret")

        served = Served()
        served.close(1)
        served.api._health = broken
        answer = served.get("/metrics")
        self.assertEqual(answer.code, 500)
        self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_encoding_fails(self):
        """An interval that cannot be encoded is logged and skipped; later ones are served."""
        served = Served()
        served.close([attrs.evolve(pair(0), tags={"bad": "\udc80"})])
        served.close([pair(1)])
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        points = served.get("/influxdata?since=").json()
        self.assertEqual(points[0]["tags"]["dst_hostname"], "reflector00001.example.net")

    def test_stop(self):
        """Stopping drops the work that is not finished, without a word."""
        served = Served()
        served.close(5000, work=False)
        served.clock.advance(0)
        served.api.stop()
        self.assertEqual(served.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])


class TenThousandPairs(SynchronousTestCase):
    def test_everything(self):
        """At 10,000 pairs every endpoint answers, wholly, and figures still agree."""
        served = Served(keep=3)
        members = [pair(n) for n in range(10_000)]
        for _ in range(4):
            closed = served.close(members, flows_per_pair=2, probes_per_flow=3, loss=0.02)
        points = served.get("/influxdata?since=", Accept_Encoding="gzip")
        told = [p for p in points.json() if p["measurement"] == "raw_stats"]
        self.assertEqual(len(told), 30_000)
        lost = int(closed.pair_stats["lost"].sum())
        self.assertEqual(sum(p["fields"]["lost"] for p in told[-10_000:]), lost)
        self.assertEqual(len({json.dumps(p["tags"]) for p in told}), 10_000)
        latency = served.get("/latency", Accept_Encoding="gzip").json()["pairs"]
        self.assertEqual(sum(p["lost"] for p in latency), lost)
        self.assertEqual(served.get("/flows?limit=1").json()["count"], 20_000)
        metrics = served.get("/metrics", Accept_Encoding="gzip").body
        self.assertEqual(metrics.count(b"\nllama_probes_sent_total{"), 10_000)
        page = served.get("/").body
        self.assertEqual(page.count(b"<tr class="), 200)


class OverLoopback(TestCase):
    """The real thing on a real socket, with a real reactor."""

    def test_real_client(self):
        """A real client gets big answers whole, packed and plain, one after the other."""
        history = History(3)
        api = CollectorApi(reactor, history, src_hostname="here")
        service = HttpService(reactor, "127.0.0.1:0", api.app.resource(), what="collector")
        service.startService()
        self.addCleanup(service.stopService)
        self.addCleanup(api.stop)

        async def run():
            history.append(closed_interval(2000))
            client = HTTPClient(Agent(reactor))
            for accept in (["gzip"], ["identity"]):
                response = await client.get(
                    service.url + "influxdata", headers={"Accept-Encoding": accept}
                )
                points = json.loads(await response.content())
                self.assertEqual(len(points), 2001)

        return Deferred.fromCoroutine(run())
