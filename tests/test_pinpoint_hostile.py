"""Collectors that answer pinpoint whatever they like: that is their own trouble, and ends."""

import copy
import json
from urllib.parse import parse_qs, urlsplit

import numpy as np
from simulated_collectors import FIRST_END_S, Collectors, utc
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from llama.lab.fabric import Fabric
from llama.lab.simulation import Simulation
from llama.pinpoint import fleet as fleet_module
from llama.pinpoint.answers import (
    AnswerError,
    all_flows,
    read_flows,
    read_head,
    read_pairs,
    read_paths,
)
from llama.pinpoint.fleet import Fleet
from llama.pinpoint.judgement import judge
from llama.pinpoint.windows import Measured

FABRIC = Fabric(2, 2, 2)
#: In place of a member: what JSON can say and no collector of ours does.
STRANGE = (
    None, True, False, -1, 0, 1, 64, 255, 256, 65_536, 2**32, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 0.5,
    1e308, -1e308, 1e19, "", "?", "x", "x" * 1001, "9" * 5000, "\0", "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z", "2023-11-14", "2023-02-30T00:00:00Z", [], [1], [None], ["x", "x"],
    ["x"] * 65, [[]], [{}], {}, {"a": 1}, {"": None}, {"src_hostname": 5},
)  # fmt: skip
_MISSING = object()


def _at(answer, where):
    """Return what is in a place of an answer."""
    for key in where:
        answer = answer[key]
    return answer


class Rows(SynchronousTestCase):
    """Answers with one member of another kind."""

    def setUp(self):
        """Make what a sound collector answers."""
        fleet = Collectors.__new__(Collectors)
        fleet.fabric, fleet.number, fleet.window = FABRIC, 0, None
        fleet.simulation = Simulation(FABRIC, np.random.default_rng(1))
        fleet.names = fleet.simulation.hosts.names
        self.end_s = fleet.step()
        rows = [row for _, row in fleet.rows(0)][:4]
        tags = {"src_hostname": "here", "dst_hostname": "there", "dst_rack": "r1"}
        interval = {"close_number": 1, "end": utc(self.end_s), "all_flows": True}
        head = {"incarnation": "a", "intervals": [interval]}
        self.flows = {**head, "flows": rows, "next_offset": None}
        self.latency = {**head, "pairs": [{**row, "tags": dict(tags)} for row in rows]}
        self.paths = {"time": self.end_s, "paths": list(fleet.paths(0))[:4]}

    def take(self):
        """Read all, and judge what was read."""
        measured = Measured()
        measured.due_s = self.end_s
        read_head(self.flows)
        if not all_flows(self.flows):
            return
        pairs = read_pairs(self.latency)
        flows, _ = read_flows(self.flows, 0, 100)
        paths, _ = read_paths(self.paths)
        measured.pairs.add("c", pairs)
        measured.add_flows("c", flows)
        measured.add_paths("c", paths)
        judge(measured, self.end_s)
        for end in measured.ends:
            judge(measured, end)
        measured.forget(self.end_s)

    def strangely(self, name, *where):
        """Put something strange in every place there, or nothing; what is read can be judged.

        Returns how much was refused.
        """
        sound = getattr(self, name)
        refused = 0
        place = _at(sound, where)
        for member in list(place) if isinstance(place, dict) else range(len(place)):
            for value in (*STRANGE, _MISSING):
                changed = copy.deepcopy(sound)
                if value is _MISSING:
                    del _at(changed, where)[member]
                else:
                    _at(changed, where)[member] = value
                setattr(self, name, changed)
                try:
                    self.take()
                except AnswerError as problem:
                    refused += 1
                    self.assertLess(len(str(problem)), 250)
                    self.assertIn("is it a LLAMA collector of this version?", str(problem))
                except Exception as problem:
                    raise AssertionError(f"{where} {member}={value!r}: {problem!r}") from problem
        setattr(self, name, sound)
        return refused

    def test_sound(self):
        """What a collector of ours says is taken."""
        self.take()

    def test_flows(self):
        """Whatever stands in /flows is refused, or can be judged."""
        self.assertGreater(self.strangely("flows"), 50)
        self.assertGreater(self.strangely("flows", "intervals", 0), 50)
        self.assertGreater(self.strangely("flows", "flows", 1), 400)

    def test_latency(self):
        """So it is with /latency."""
        self.assertGreater(self.strangely("latency", "pairs", 1), 200)
        self.assertGreater(self.strangely("latency", "pairs", 1, "tags"), 50)

    def test_paths(self):
        """So it is with /paths."""
        self.assertGreater(self.strangely("paths"), 30)
        self.assertGreater(self.strangely("paths", "paths", 1), 200)
        self.assertGreater(self.strangely("paths", "paths", 1, "hops"), 50)

    def test_words(self):
        """It is said which member is wrong, how, and what to look for."""
        self.flows["flows"][2]["dscp"] = 300
        with self.assertRaises(AnswerError) as raised:
            self.take()
        self.assertEqual(
            str(raised.exception),
            "'dscp' is 300, expected 0 to 63: is it a LLAMA collector of this version?",
        )
        del self.flows["flows"][2]["dscp"]
        with self.assertRaises(AnswerError) as raised:
            self.take()
        self.assertIn("'dscp' is missing, expected 0 to 63", str(raised.exception))

    def test_rows_of_several_intervals(self):
        """An interval has one end: rows with others would push out those that are held."""
        row = self.flows["flows"][1]
        row["interval_start"], row["interval_end"] = utc(self.end_s), utc(self.end_s + 1)
        with self.assertRaises(AnswerError):
            self.take()


class Hostile(Resource):
    """A collector that answers as ``answer`` does, by path and query; None: never."""

    isLeaf = True

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.asked = []

    def render_GET(self, request):
        """Answer."""
        uri = urlsplit(request.uri.decode())
        self.asked.append(request.uri.decode())
        said = self.answer(uri.path, {k: v[0] for k, v in parse_qs(uri.query).items()})
        if said is None:
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET
        if said == 404:
            request.setResponseCode(404)
            return b"{}"
        return said if isinstance(said, bytes) else json.dumps(said).encode()


def head(*numbers):
    """Return the head of ``/flows`` with these newest intervals."""
    return {
        "incarnation": "a",
        "intervals": [
            {"close_number": n, "end": utc(FIRST_END_S), "all_flows": True} for n in numbers
        ],
    }


class Reading(TestCase):
    """A `Fleet` with one hostile collector."""

    timeout = 60

    @inlineCallbacks
    def read(self, answer):
        """Let a fleet read once; return the server and what is said of it."""
        server = Hostile(answer)
        port = reactor.listenTCP(0, Site(server), interface="127.0.0.1")
        fleet = Fleet(reactor, [f"http://127.0.0.1:{port.getHost().port}"], Measured(), timeout_s=2)
        try:
            yield Deferred.fromCoroutine(fleet.read())
        finally:
            yield Deferred.fromCoroutine(fleet.stop())
            yield port.stopListening()
        return server, fleet.sources[0].problem

    @inlineCallbacks
    def test_numbers_without_end(self):
        """Close numbers that are far apart are not asked for one by one."""

        def answer(path, query):
            if path == "/flows":
                return 404 if "close_number" in query else head(1, 2**40)
            return {"time": 0, "paths": [], "pairs": []}

        server, problem = yield self.read(answer)
        self.assertEqual(problem, "")
        self.assertLessEqual(len(server.asked), fleet_module.MOST_NUMBERS + 3)

    @inlineCallbacks
    def test_pages_without_end(self):
        """Pages that lead nowhere, or back, are refused at the first."""
        for following in (0, 1, -5, 2**63, "10", True, 1.5, [1]):

            def answer(path, query, following=following):
                if path == "/flows":
                    return {**head(1), "flows": [], "next_offset": following}
                return {"time": 0, "paths": [], "pairs": []}

            server, problem = yield self.read(answer)
            self.assertIn("'next_offset' is ", problem)
            self.assertEqual(len(server.asked), 3)

    @inlineCallbacks
    def test_answers_that_take_long_together(self):
        """All that one collector answers has a time in which it must be there."""
        self.patch(fleet_module, "MOST_TIMEOUTS", 0.1)
        _, problem = yield self.read(lambda path, query: None)
        self.assertEqual(problem, "not all answered within 0.2 s; the rest is asked for again")

    @inlineCallbacks
    def test_no_answers(self):
        """Whatever is no answer is told as that collector's problem, and nothing is logged as ours."""
        for said in (
            b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000, b"NaN", b"1e999", b"[]", b"5",
            b'"\\ud800"', b"{}", b'{"incarnation": 5, "intervals": []}',
            b'{"incarnation": "a", "intervals": [' + b'{"close_number": 1' + b"0" * 5000 + b"}]}",
        ):  # fmt: skip
            _, problem = yield self.read(lambda path, query, said=said: said)
            self.assertRegex(problem, "is (that|it) a LLAMA collector")
        self.assertEqual(self.flushLoggedErrors(), [])
