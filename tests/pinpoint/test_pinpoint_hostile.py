"""Collectors that answer anything at all, over HTTP, beside honest ones: nobody else suffers from it."""

from types import SimpleNamespace

import orjson
from collector_served import Served
from hypothesis import given
from hypothesis import strategies as st
from simulated_collectors import INTERVAL_S, Collectors, utc
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, FirstError, inlineCallbacks
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llama import rfc3339
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.paths.names import ask
from llama.paths.table import FlowKey, Known, as_json
from llama.pinpoint import answers, fleet, traced, windows
from llama.pinpoint.answers import AnswerError
from llama.pinpoint.flow_table import flow_key
from llama.pinpoint.service import PinpointService, Settings
from llama.pinpoint.traced import MOST_WAYS, TracedPaths

FABRIC = Fabric(3, 4, 2)
ALL, HONEST = 30 * 12, 25 * 12
ESC = "h\x1b]0;x\x07\x9b31m\u202e\n2"


def on(path, change):
    """Return what changes the documents at a path in place, or replaces them if it returns any."""

    def twist(request, document):
        if request.path.decode() == path:
            return change(request, document) or document
        return document

    return twist


def every(key, **members):
    """Return what gives all rows of a list these members."""
    return lambda _, document: [row.update(members) for row in document[key]] and None


def without(key, name):
    """Return what takes a member from all rows of a list."""
    return lambda _, document: [row.pop(name) for row in document[key]] and None


def tagged(**tags):
    """Return what gives all pairs these tags besides."""
    return lambda _, document: [pair["tags"].update(tags) for pair in document["pairs"]] and None


class Hostile(TestCase):
    timeout = 90

    def setUp(self):
        """Start honest collectors, of which the first can be twisted, and a service."""
        self.fleet = Collectors(FABRIC, per_pair=12)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.fleet.stop()))
        settings = Settings(collectors=self.fleet.urls, interval_s=3600, api=None)
        self.service = PinpointService(reactor, settings, unix_time_s=lambda: self.fleet.end_s + 1)
        self.service.startService()
        self.addCleanup(self.service.stopService)
        self.told = []
        note = lambda text, **values: self.told.append(text.format(**values))  # noqa: E731
        self.service.fleet.log = SimpleNamespace(warn=note, info=note)

    @property
    def problem(self):
        """What is wrong with the first collector."""
        return self.service.fleet.sources[0].problem

    def judged(self, *faults):
        """Close an interval and have it judged."""
        return Deferred.fromCoroutine(self.service._judge(self.fleet.step(*faults)))

    @inlineCallbacks
    def refused(self, path, change, why):
        """Twist what one collector answers: that is told once, and the others are judged."""
        self.told.clear()
        self.service.fleet.sources[0].problem = ""
        self.service.fleet.sources[0].reasons.over()
        self.fleet.incarnation = f"{self.fleet.incarnation}a"  # so that all is read again
        self.fleet.twists[0] = on(path, change)
        for _ in range(2):
            yield self.judged()
            self.assertRegex(self.problem, why)
            self.assertEqual(len(self.told), 1, self.told)
            self.assertEqual([s.problem for s in self.service.fleet.sources[1:]], [""] * 5)
            self.assertEqual(self.service.judgement.end_s, self.fleet.end_s)
            self.assertIn(self.service.judgement.verdict.flows, (HONEST, ALL))
        self.fleet.twists.clear()

    @inlineCallbacks
    def test_pages_without_end(self):
        """Pages must go on, with flows in them, to a number of flows that a collector may have."""
        self.patch(fleet, "MOST_FLOWS", 500)

        def again(offset, flows=True):
            def change(request, document):
                if b"close_number" in request.args:
                    document["next_offset"] = offset(int(request.args[b"offset"][0]))
                    document["flows"] = document["flows"] if flows else []

            return change

        for change, why in (
            (again(lambda at: 0), "next_offset is 0, expected a whole number from 1"),
            (again(lambda at: at), "next_offset is 0, expected"),
            (again(lambda at: -5), "next_offset is -5, expected"),
            (again(lambda at: 1e300), r"next_offset is 1e\+300, expected"),
            (again(lambda at: "9"), "next_offset is '9', expected"),
            (again(lambda at: True), "next_offset is True, expected"),
            (again(lambda at: at + 1, flows=False), "more follows after a page without flows"),
        ):
            yield self.refused("/flows", change, why)

        def endless(request, document):
            if b"close_number" in request.args:
                row = document["flows"][0] if document["flows"] else self.row
                self.row, at = row, int(request.args[b"offset"][0])
                document["flows"] = [{**row, "source_port": at + n} for n in range(100)]
                document["next_offset"] = at + 100

        yield self.refused("/flows", endless, "an interval has more than 500 flows")

    @inlineCallbacks
    def test_numbers_far_apart(self):
        """No more intervals are asked for than are held, whatever their numbers."""

        def change(_, document):
            (group,) = document["intervals"]
            document["intervals"] = [{**group, "close_number": n} for n in (1, 10**15)]

        self.fleet.twists[0] = on("/flows", change)
        yield self.judged()
        asked = sum("close_number=" in uri for uri in self.fleet.asked)
        self.assertEqual(self.service.fleet.sources[0].seen, 10**15)
        self.assertLess(asked, 20)
        self.assertEqual(self.service.judgement.verdict.flows, HONEST)

    @inlineCallbacks
    def test_a_turn_has_an_end(self):
        """Who is always about to tell more is given up after a turn, and comes last in the next."""
        self.service.fleet._turn_s = 1.0

        def slow(request, document):
            if b"close_number" in request.args:
                at = int(request.args[b"offset"][0])
                document["flows"] = list(document["flows"][:1]) or [self.row]
                self.row = document["flows"][0]
                document["flows"][0]["source_port"] = at
                document["next_offset"] = at + 1

        self.fleet.twists[0] = on("/flows", slow)
        for _ in range(2):
            yield self.judged()
            self.assertEqual(self.problem, "was not read to the end within 1 s")
            self.assertEqual(len(self.told), 1)
            self.assertEqual(self.service.judgement.verdict.flows, HONEST)
        self.fleet.asked.clear()
        self.fleet.twists.clear()
        self.service.fleet._turn_s = 60.0
        yield self.judged()
        self.assertEqual((self.problem, self.service.judgement.verdict.flows), ("", ALL))
        yield deferLater(reactor, 0, lambda: None)

    @inlineCallbacks
    def test_many_paths(self):
        """However many paths somebody tells, others have their turn after each part of them."""
        self.patch(fleet, "PART", 7)
        add, parts, turns = self.service.measured.add_paths, [], []

        def adding(url, rows):
            if url == self.fleet.urls[0]:
                parts.append(len(rows))
                reactor.callLater(0, lambda: turns.append(len(parts)))
            add(url, rows)

        self.patch(self.service.measured, "add_paths", adding)
        yield self.judged()
        self.assertEqual(self.problem, "")
        self.assertEqual(sum(parts), 5 * 12)
        self.assertEqual(parts, [7] * 8 + [4])
        self.assertEqual(turns[:8], list(range(1, 9)))

    @inlineCallbacks
    def test_wrong_flows(self):
        """Flows with wrong types, numbers that cannot be, or of which some come twice."""

        def twice(request, document):
            document["flows"] += document["flows"][:1]

        def several_times(request, document):
            if document["flows"][1:]:
                document["flows"][0]["interval_end"] = utc(self.fleet.end_s - 3 * INTERVAL_S)

        for change, why in (
            (every("flows", sent=-1), "sent is -1, expected a whole number"),
            (every("flows", sent=10**30), "an integer|sent is 1|is no JSON"),
            (every("flows", sent=2**32), "sent is 4294967296, expected"),
            (every("flows", sent=2.5), "sent is 2.5, expected"),
            (every("flows", sent=True), "sent is True, expected"),
            (every("flows", sent=[[]]), r"sent is \[\[\]\], expected"),
            (every("flows", sent=1, lost_unknown=2), "lost more probes than were sent"),
            (every("flows", rtt_p50_ms=-1.0), "rtt_p50_ms is -1.0, expected"),
            (every("flows", rtt_p50_ms=1e300), "rtt_p50_ms is 1e"),
            (every("flows", rtt_p50_ms=float("nan")), "is no JSON"),
            (every("flows", rtt_p50_ms="1"), "rtt_p50_ms is '1', expected"),
            (every("flows", dscp_at_reflector=64), "dscp_at_reflector is 64"),
            (every("flows", dscp={}), "dscp is {}"),
            (every("flows", dst_ip=None), "dst_ip is None"),
            (every("flows", dst_ip="x" * 5000), "dst_ip is 'x"),
            (every("flows", target=["a"]), r"target is \['a'\]"),
            (every("flows", source_port=10**6), "source_port is 1000000"),
            (every("flows", suspect=[{}]), "a reason in suspect is {}"),
            (every("flows", suspect="late"), "suspect is 'late'"),
            (every("flows", interval_end="9" * 400), "interval_end|expected a time"),
            (every("flows", interval_end="2023-11-14"), "expected a time"),
            (every("flows", interval_start=utc(0)), "an interval is 1.* s long"),
            (every("flows", interval_start="2100-01-01T00:00:00Z"), "an interval is -"),
            (without("flows", "sent"), "an answer lacks 'sent'"),
            (twice, "is there twice"),
            (several_times, "several times"),
            (lambda *_: {"flows": 1}, "an answer lacks 'incarnation'"),
            (every("intervals", close_number=-1), "close_number is -1"),
            (every("intervals", close_number=1e400), "close_number|is no JSON"),
            (every("intervals", close_number="1"), "close_number is '1'"),
            (every("intervals", end="0001-01-01T00:00:00+23:00"), "expected a time"),
            (every("intervals", all_flows="yes"), "all_flows is 'yes'"),
            (lambda _, d: d.update(intervals=[1]), "an entry of intervals is 1"),
            (lambda _, d: d.update(intervals={}), "intervals is {}"),
            (lambda _, d: d.update(flows=None), "flows is None"),
            (lambda _, d: d.update(incarnation={}), "incarnation is {}"),
            (lambda *_: b"[" * 1_000_000, "is no JSON"),
            (lambda *_: b"[" + b"[]," * 5_000_000 + b"1]", "more than 8,000,000 values"),
            (lambda *_: b"\xff", "is no JSON"),
            (lambda *_: b"[]", "is no JSON object"),
        ):
            yield self.refused("/flows", change, why)
        yield self.judged()
        self.assertEqual((self.problem, self.service.judgement.verdict.flows), ("", ALL))

    @inlineCallbacks
    def test_wrong_pairs_and_paths(self):
        """Pairs and paths that are none."""
        for path, change, why in (
            ("/latency", tagged(rack=["leaf1"]), r"the value of a tag is \['leaf1'\]"),
            ("/latency", tagged(rack=None), "the value of a tag is None"),
            ("/latency", tagged(src_hostname={}), "the value of a tag is {}"),
            ("/latency", every("pairs", tags=[]), r"tags is \[\]"),
            ("/latency", every("pairs", dst_port="80"), "dst_port is '80'"),
            ("/latency", lambda _, d: d.update(pairs="x"), "pairs is 'x'"),
            ("/latency", without("pairs", "tags"), "an answer lacks 'tags'"),
            ("/paths", every("paths", hops=["a"] * 1000), "hops is "),
            ("/paths", every("paths", hops=[1]), "a hop is 1"),
            ("/paths", every("paths", hops=[]), "has no hops"),
            ("/paths", every("paths", hops="abc"), "hops is 'abc'"),
            ("/paths", every("paths", reach="x"), "reach is 'x'"),
            ("/paths", every("paths", traced=1e300), r"traced is 1e\+300"),
            ("/paths", every("paths", complete=1), "complete is 1"),
            ("/paths", lambda _, d: d.update(time=1e308), r"time is 1e\+308"),
            ("/paths", lambda _, d: d.update(time=None), "time is None"),
        ):
            yield self.refused(path, change, why)

    @inlineCallbacks
    def test_tags_without_end(self):
        """Tags that are too many or too long are left out, which is told once; the flows are judged."""
        many = {f"t{n}": "x" for n in range(300)}
        for tags, why in (
            (many, "tag 't2..' comes after 250 others and is left out"),
            ({"note": "x" * 1025}, "tag 'note' is longer than 1,024 characters and is left out"),
            ({"x" * 1025: "y"}, "tag 'x+...x+' is longer than 1,024 characters and is left out"),
        ):
            self.told.clear()
            self.fleet.incarnation = f"{self.fleet.incarnation}a"
            self.fleet.twists[0] = on("/latency", tagged(**tags))
            for _ in range(2):
                self.service.fleet.sources[0].pairs_age = fleet.PAIRS_AGAIN
                yield self.judged()
                self.assertRegex(self.service.fleet.sources[0].told, why)
                self.assertEqual((self.problem, len(self.told)), ("", 1), self.told)
                self.assertEqual(self.service.judgement.verdict.flows, ALL)
        known = {key for tags in self.service.measured.pairs.hosts(()).tags for key in tags}
        self.assertEqual(known, {"rack"})
        self.fleet.twists.clear()
        self.service.fleet.sources[0].pairs_age = fleet.PAIRS_AGAIN
        yield self.judged()
        self.assertEqual(self.service.fleet.sources[0].told, "")

    @inlineCallbacks
    def test_times_of_one_collector(self):
        """Who tells of other times changes nothing for the others: neither lengths nor what is held."""
        yield self.judged()
        before = self.service.measured.last(self.fleet.end_s, 6)
        length_s = self.service.measured.length_s
        keep = self.service.measured.keep = 3

        def change(request, document):
            number = int(request.args.get(b"close_number", [b"0"])[0])
            group = {"all_flows": True, "close_number": self.fleet.number * 100}
            document["intervals"] = [{**group, "end": utc(self.fleet.end_s)}] * 20
            end_s = self.fleet.end_s - number / 1000
            for row in document["flows"]:
                row["interval_start"] = utc(end_s - 7777)
                row["interval_end"] = f"{utc(end_s)[:-1]}.{number % 1000:03}+00:00"

        numbered, self.fleet.numbered = self.fleet.numbered, lambda _: numbered(self.fleet.number)
        self.fleet.twists[0] = on("/flows", change)
        for _ in range(2):
            yield self.judged()
        measured = self.service.measured
        self.assertEqual(self.problem, "")
        self.assertEqual(measured.length_s, length_s)
        honest = [end for end in measured.ends if len(measured._intervals[end]) > 1]
        self.assertEqual(honest, [*before, *(before[-1] + n * INTERVAL_S for n in (1, 2))])
        self.assertLessEqual(len(measured.ends), len(honest) + keep)

    @inlineCallbacks
    def test_groups_that_vanish(self):
        """A collector that was behind, and then tells of no interval at all, ends no judgement."""
        yield self.judged()
        self.service._now_s = lambda: self.fleet.end_s + 1000.0
        late = every("intervals", end=utc(0))
        self.fleet.twists[0] = on("/flows", late)
        yield self.judged()
        self.fleet.twists[0] = on("/flows", lambda _, document: document.update(intervals=[]))
        yield Deferred.fromCoroutine(self.service._judge(self.fleet.end_s))
        yield self.judged()
        self.assertEqual(self.service.judgement.end_s, self.fleet.end_s)

    @inlineCallbacks
    def test_ever_new_flows(self):
        """A collector whose flows are others all the time has no more than it may have."""
        self.patch(windows, "MOST_FLOWS", 100)

        def change(request, document):
            for row in document["flows"]:
                row["source_port"] = (row["source_port"] + 97 * self.fleet.number) % 65536

        self.fleet.twists[0] = on("/flows", change)
        for _ in range(4):
            yield self.judged()
        self.assertIn("more than 100 flows within 120 intervals", self.problem)
        self.assertEqual(self.service.judgement.verdict.flows, HONEST)

    @inlineCallbacks
    def test_what_is_no_text(self):
        """Names, tags and hops with control characters can be printed when they were read."""
        bad = Fault.from_mapping({"kind": "loss", "on": "leaf1 -> spine2", "percent": 40})
        self.fleet.twists[0] = lambda request, document: (
            (
                tagged(src_hostname=ESC, rack=ESC, **{ESC: ESC})(request, document)
                if "pairs" in document
                else every("paths", hops=[ESC, ESC], refusal=ESC)(request, document)
                if "paths" in document
                else None
            )
            or document
        )
        for _ in range(3):
            yield self.judged(bad)
        self.assertEqual(self.problem, "")
        measured = self.service.measured
        window = measured.window(self.fleet.end_s)
        texts = [*window.hosts.names, *(node for link in window.paths.links for node in link)]
        texts += [text for tags in window.hosts.tags for item in tags.items() for text in item]
        self.assertTrue(any("\N{REPLACEMENT CHARACTER}" in text for text in texts))
        for text in [*texts, self.service.incidents.octets().decode()]:
            self.assertTrue(text.isprintable(), text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ODD = JSON | st.sampled_from(
    [-1, 0, 5, 6, 64, 65_536, 2**40, 0.5, 1e8, float("nan"), float("inf"), True]
)
ROW = {
    "target": "h2", "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2", "dst_port": 8100, "dscp": 0,
    "probe": "stamp", "size_octets": 44, "port_group": "default", "source_port": 20000,
    "interval_start": utc(0), "interval_end": utc(10), "sent": 5, "lost_forward": 0,
    "lost_reverse": 0, "lost_unknown": 0, "remarked_forward": 0, "remarked_reverse": 0,
    "dscp_at_reflector": None, "rtt_p50_ms": 0.5, "suspect": [],
}  # fmt: skip
TRACED = {
    "dst_ip": "10.0.0.2", "dst_port": 8100, "source_port": 20000, "dscp": 0, "size_octets": 44,
    "hops": ["10.0.0.2"], "complete": True, "traced": 1.0, "reach": None, "refusal": None,
}  # fmt: skip


class Turns(SynchronousTestCase):
    def test_others_take_long_to_read(self):
        """The time that others' answers take to read is added to a collector's turn, its own is not."""
        clock = Clock()
        both = fleet.Fleet(clock, ["http://c1", "http://c2"], windows.Measured(), turn_s=30.0)
        one, other = both.sources

        async def never(source):
            await Deferred()

        both._source = never
        done = Deferred.fromCoroutine(both.read())
        with both._working(other):
            clock.advance(20)
        with both._working(one):
            clock.advance(5)
        clock.advance(5)
        self.assertEqual((one.problem, other.problem), ("", ""))
        clock.advance(5)
        self.assertEqual(other.problem, "was not read to the end within 30 s")
        clock.advance(14.5)
        self.assertEqual(one.problem, "")
        clock.advance(0.5)
        self.assertEqual(one.problem, "was not read to the end within 30 s")
        self.successResultOf(done)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_cancelled(self):
        """Whatever becomes of requests that are broken off then, nothing is noted of any collector."""
        ends = {
            "http://c1": lambda _: None,
            "http://c2": lambda asked: asked.errback(ConnectionLost()),
            "http://c3": lambda asked: asked.callback(None),
        }
        clock = Clock()
        measured = windows.Measured()
        three = fleet.Fleet(clock, tuple(ends), measured)
        cancelled = []

        async def asked(source):
            try:
                await Deferred(ends[source.url])
            finally:
                cancelled.append(source)

        three._source = asked
        reading = Deferred.fromCoroutine(three.read())
        reading.cancel()
        self.failureResultOf(reading, FirstError).value.subFailure.trap(CancelledError)
        self.assertEqual(cancelled, three.sources)
        self.assertEqual([source.problem for source in three.sources], [""] * 3)
        self.assertEqual(measured.silent, set())
        self.assertEqual(clock.getDelayedCalls(), [])


class Rows(SynchronousTestCase):
    def test_probes_that_were_held_up(self):
        """Tests whose probes waited in their host for as long as is believed are waited for."""
        groups = [
            {"timeout_ms": 1000.0, "end": utc(1_000_000_030)},
            {"timeout_ms": 2000.0, "end": utc(1_000_000_060)},
        ]
        short, long = fleet._ends(groups)
        self.assertEqual(long, 1_000_000_060)
        # They close 2.1 s late, after those of the longer timeout: the window is not handed in.
        self.assertLess(short, 1_000_000_060 - 1)

    def test_what_collectors_answer(self):
        """Whatever a collector of ours answers is read, and kept as it is."""
        served = Served()
        served.close()
        head = served.get("/flows").json()
        for row in head["flows"]:
            read = answers.flow(row)
            for name in set(ROW) - {"suspect", "rtt_p50_ms", "interval_start", "interval_end"}:
                self.assertEqual(getattr(read, name), row[name], name)
            self.assertEqual(read.end_s, rfc3339.time_s(row["interval_end"]))
        rows = answers._by_column(head["flows"])
        self.assertEqual(rows, list(map(answers.flow, head["flows"])))
        answers.one_interval(rows)
        self.assertGreater(len(head["flows"]), 2)
        pairs = served.get("/latency").json()
        reader = answers.PairReader()
        self.assertEqual(
            [p["tags"] for p in reader.read(pairs["pairs"])], [p["tags"] for p in pairs["pairs"]]
        )
        self.assertEqual(reader.left_out, "")
        key = FlowKey("10.0.0.2", 8100, 20000, 0, 44)
        known = Known(("10.0.0.1", None, "10.0.0.2"), True, 5.0, 5.0, refusal="", reach=None)
        row = orjson.loads(orjson.dumps(as_json(key, known)))
        (read,) = answers.paths([row])
        self.assertEqual({name: row[name] for name in read}, read)

    @given(st.sampled_from(sorted(ROW)), JSON)
    def test_flows_are_read_or_refused(self, name, value):
        """Whatever a member of a flow is, the row is read as it must be, or refused in one line."""
        try:
            read = answers.flow({**ROW, name: value})
            answers.one_interval([read])
        except AnswerError as refused:
            self.assertTrue(str(refused).isprintable())
            return
        for value in read:
            self.assertIsInstance(value, str | int | float | tuple | None)
        hash(read.identity)

    @given(st.sampled_from([*sorted(ROW), "ssid"]), st.lists(st.none() | ODD, max_size=4))
    def test_pages_are_read_as_rows(self, name, values):
        """A page is read, or refused, as its rows are one by one, however each is wrong."""
        page = [ROW if value is None else {**ROW, name: value} for value in values]
        try:
            rows = [answers.flow(row) for row in page]
        except AnswerError as refused:
            with self.assertRaises(AnswerError) as raised:
                answers.flows(page)
            self.assertEqual(str(raised.exception), str(refused))
            with self.assertRaises((AnswerError, KeyError, TypeError)):
                answers._by_column(page)
            return
        read = answers.flows(page)
        self.assertEqual(repr(read), repr(rows))
        if all(value is None for value in values):
            self.assertEqual(answers._by_column(page), rows)

    @given(st.sampled_from(sorted(TRACED)), JSON)
    def test_paths_are_read_or_refused(self, name, value):
        """Likewise paths."""
        try:
            (read,) = answers.paths([{**TRACED, name: value}])
        except AnswerError as refused:
            self.assertTrue(str(refused).isprintable())
            return
        hash(tuple(read["hops"]))

    def test_names_are_asked_for_addresses(self):
        """A collector's hop that is no address is no question to the DNS."""
        self.patch(
            __import__("socket"), "gethostbyaddr", lambda address: (f"{address}\x1b[31m", [], [])
        )
        self.assertEqual(ask("evil.example"), "evil.example")
        self.assertEqual(ask("192.0.2.1"), "192.0.2.1\N{REPLACEMENT CHARACTER}[31m")


class Gaps(SynchronousTestCase):
    """Flows of which a hop is silent on the way that they were found on."""

    def filled(self, others):
        """Return how many links two flows may cross for a silent hop, with so many others to be seen."""
        paths, flows = TracedPaths(str), []

        def trace(port, at_s, *hops):
            row = as_json(
                FlowKey("10.0.0.2", 8100, port, 0, 44),
                Known((*hops, "10.0.0.2"), True, at_s, at_s, refusal="", reach=None),
            )
            paths.add(0, next(iter(answers.paths([orjson.loads(orjson.dumps(row))]))))
            return 0, flow_key(row)

        flows += [
            trace(1000 + n, 100.0, "leaf1", f"spine{n}", "core2", "leaf2") for n in range(others)
        ]
        for n in range(2):  # there is one answer for all that are alike
            trace(20_000 + n, 100.0, "leaf1", "before", "core1", "leaf2")
            flows.append(trace(20_000 + n, 101.0, "leaf1", None, "core2", "leaf2"))
        columns = paths.columns(flows, [1] * len(flows), ("a", "b"), 110.0)
        crossed = [[], []]
        for flow, link in columns.left.tolist():
            crossed[flow - others].append(columns.links[link])
        self.assertLessEqual({("leaf1", "before"), ("core1", "leaf2")}, set(crossed[0]))
        return [len(links) - 3 for links in crossed]

    def test_any_router_seen_there(self):
        """What was silent may be any router that others between the same ends were seen on."""
        for others in (0, 1, 3):
            self.assertEqual(self.filled(others), [2 * others] * 2)

    def test_no_more_than_a_network_has(self):
        """Who tells of ever more ways, and of ever more flows, gets no more memory for it."""
        self.assertEqual(self.filled(MOST_WAYS), [2 * MOST_WAYS] * 2)
        self.assertEqual(self.filled(MOST_WAYS + 1), [0, 0])
        self.patch(traced, "MOST_FILLED", 10)
        self.assertEqual(self.filled(3), [6, 0])
