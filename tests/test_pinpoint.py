"""From collectors over HTTP to incidents: windows, judgements, the service and what survives."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from simulated_collectors import INTERVAL_S, Collectors
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llama.http import BadRequestError
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.pinpoint.api import incidents_at, read_silence
from llama.pinpoint.incidents import Incidents
from llama.pinpoint.judgement import judge
from llama.pinpoint.remote import RemoteIncidents
from llama.pinpoint.service import PinpointService, Settings
from llama.pinpoint.windows import Measured
from llama.web.store import StoreError

FABRIC = Fabric(3, 4, 2)


def fault(**options):
    """Return a fault."""
    return Fault.from_mapping(options)


class Fed(SynchronousTestCase):
    """`Measured` fed with rows of simulated collectors, without HTTP."""

    def setUp(self):
        """Make collectors that serve nobody."""
        self.fleet = Collectors.__new__(Collectors)
        self.fleet.fabric, self.fleet.number, self.fleet.window = FABRIC, 0, None
        self.measured = Measured()

    def begin(self, **traffic):
        """Make the simulation."""
        from llama.lab.simulation import Simulation

        self.fleet.simulation = Simulation(FABRIC, np.random.default_rng(1), **traffic)
        self.fleet.names = self.fleet.simulation.hosts.names

    def step(self, *faults, sent=25, paths=True):
        """Close an interval, feed it, judge it."""
        end = self.fleet.step(*faults, sent=sent)
        racks = FABRIC.hosts
        for host, name in enumerate(self.fleet.names):
            rows = [row for _, row in self.fleet.rows(host)]
            pairs = [
                {**row, "tags": {
                    "src_hostname": name, "dst_hostname": row["target"],
                    "src_rack": racks[name], "dst_rack": racks[row["target"]],
                }}
                for row in rows
            ]  # fmt: skip
            self.measured.add_pairs(name, pairs)
            self.measured.add_flows(name, rows)
            if paths:
                self.measured.add_paths(name, list(self.fleet.paths(host)))
        return judge(self.measured, end)

    def test_a_link(self):
        """A bad link is named, with the pairs it hits, their common tags and their paths."""
        self.begin()
        self.step()
        judgement = self.step(fault(kind="loss", on="spine3 -> leaf2", percent=30))
        (sighting,) = judgement.sightings
        self.assertEqual(sighting.key, "link spine3 -> leaf2")
        self.assertTrue(all(there.startswith("h2-") for _, there in sighting.pairs))
        self.assertEqual(sighting.tags, {"rack": "leaf2"})
        for path in sighting.paths:
            self.assertIn(("spine3", "leaf2"), list(pairwise(path)))

    def test_late(self):
        """Flows out of their own ordinary are late; what was always slow is not."""
        self.begin()
        slow = fault(kind="delay", on="spine1 -> leaf1")
        for _ in range(3):
            self.assertEqual(self.step(slow).sightings, ())
        self.measured = Measured()
        self.step()
        judgement = self.step(slow)
        self.assertEqual([s.key for s in judgement.sightings], ["link spine1 -> leaf1"])
        self.assertEqual(judgement.sightings[0].symptom, "late")

    def test_faint_loss_needs_several_intervals(self):
        """A tenth of a percent shows once six intervals are judged together, and says so."""
        self.begin()
        gray = fault(kind="loss", on="leaf1 -> spine2", percent=0.1)
        said = [self.step(gray, sent=150).sightings for _ in range(6)]
        self.assertEqual([s.key for s in said[-1]], ["link leaf1 -> spine2"])
        self.assertIn(f"over {6 * INTERVAL_S} s", said[-1][0].evidence)

    def test_an_interval_that_lost_replies_by_chance(self):
        """A link that several intervals show is not blurred to a rack by one that lost replies."""
        self.begin(per_pair=12)
        self.step()
        gray = fault(kind="loss", on="spine2 -> leaf3", percent=3)
        for _ in range(2):
            self.step(gray)

        whole = self.fleet.simulation.window

        def mostly_replies(faults, sent):
            window = whole(faults, sent)
            flows = window.flows
            # All that crossed the link and was lost, but for one flow's, were replies.
            forward = np.flatnonzero(flows["lost_forward"])[1:]
            flows["lost_forward"][forward] = 0
            return window

        for _ in range(4):
            for window in (mostly_replies, whole):
                self.fleet.simulation.window = window
                (sighting,) = self.step(gray).sightings
                self.assertEqual(sighting.key, "link spine2 -> leaf3")

    def test_what_is_over_is_not_named(self):
        """One judgement after a fault has gone, the intervals that saw it name it no more."""
        self.begin()
        for _ in range(3):
            self.step(fault(kind="loss", on="leaf1 -> spine2", percent=3))
        self.assertEqual([self.step().sightings for _ in range(4)][1:], [()] * 3)

    def test_one_burst_is_no_gray_loss(self):
        """Loss in a single interval is not found again in the long window."""
        self.begin()
        self.step()
        self.step(fault(kind="loss", on="leaf1 -> spine2", percent=2))
        self.assertEqual(self.step().sightings, ())

    def test_no_data(self):
        """An interval in which nobody measured is no judgement."""
        self.begin()
        self.step()
        self.assertFalse(judge(self.measured, self.fleet.end_s + INTERVAL_S).data)
        self.assertFalse(judge(Measured(), 1.0).data)

    def test_silent_hops_are_found_between_neighbours(self):
        """A hop that did not answer is the one known between its neighbours, if there is one."""
        self.begin()
        self.step()
        window = self.measured.window(self.fleet.end_s)
        whole = [self.measured.hops_of(window, n) for n in range(len(window.flows))]
        row = next(p for p in self.fleet.paths(0) if len(p["hops"]) == 4)
        hidden = {**row, "hops": [row["hops"][0], None, *row["hops"][2:]]}
        self.measured._between[row["hops"][0], row["hops"][2]] = {row["hops"][1]}
        self.measured.add_paths(self.fleet.names[0], [hidden])
        after = [self.measured.hops_of(window, n) for n in range(len(window.flows))]
        self.assertEqual(whole, after)
        self.measured._between[row["hops"][0], row["hops"][2]].add("another")
        window = self.measured.window(self.fleet.end_s)
        names = {hop for n in range(len(window.flows)) for hop in self.measured.hops_of(window, n)}
        self.assertIn(f"(silent after {row['hops'][0]})", names)

    def test_destinations_that_answer_no_trace(self):
        """A trace that only routers answered is a path if the flow lived on after it."""
        self.begin()
        self.step(paths=False)
        for host, name in enumerate(self.fleet.names):
            rows = [
                {**row, "hops": row["hops"][:-1], "complete": False, "reach": len(row["hops"]) - 1}
                for row in self.fleet.paths(host)
            ]
            self.measured.add_paths(name, rows)
        bad = fault(kind="loss", on="spine3 -> leaf2", percent=100)
        window = self.measured.window(self.fleet.end_s)
        self.assertEqual(len(window.paths.link), 0)
        dead = self.step(bad, paths=False)
        self.assertFalse(any("link" in one.key for one in dead.sightings))
        self.step(paths=False)
        before = self.measured.window(self.fleet.end_s)
        for host, name in enumerate(self.fleet.names):
            self.fleet.window = self.fleet.simulation.window([bad], 25)
            met = [
                {**row, "hops": row["hops"][: row["reach"]], "complete": False}
                for row in self.fleet.paths(host)
                if row["reach"] is not None
            ]
            self.measured.add_paths(name, met)
        judgement = self.step(bad, paths=False)
        self.assertEqual([one.key for one in judgement.sightings], ["link spine3 -> leaf2"])
        self.assertGreater(len(before.paths.link), 0)

    def test_sizes_that_were_dead_when_first_traced(self):
        """A flow never traced while it lived has the path of its like, and how far its own trace came."""
        self.begin(per_pair=8, sizes=(96, 1400))
        self.step(paths=False)
        small = {}
        for host, name in enumerate(self.fleet.names):
            rows = self.fleet.paths(host)
            small[name] = [row for row in rows if row["size_octets"] == 96]
            self.measured.add_paths(name, small[name])
        window = self.measured.window(self.fleet.end_s)
        large = np.flatnonzero(window.flows["size"] == 1400)
        self.assertEqual(np.diff(window.paths.start)[large].max(), 0)
        name = self.fleet.names[0]
        like = next(row for row in small[name] if len(row["hops"]) == 4)
        key = next(
            key
            for source, key in self.measured._rows
            if source == 0 and key.size == 1400 and key.dst_ip == like["dst_ip"]
        )
        # Both sizes of a flow leave from one port; in the simulation each has its own.
        self.measured._by_tuple[0, key.tuple5] = tuple(like["hops"])
        dead = {**like, "source_port": key.source_port, "size_octets": 1400, "reach": 1}
        self.measured.add_paths(name, [{**dead, "hops": like["hops"][:1], "complete": False}])
        window = self.measured.window(self.fleet.end_s)
        self.assertEqual(window.paths.answered.max(), 1)

    def test_a_trace_that_only_missed_the_destination(self):
        """If all routers answered, a dead flow may be dead on the way back: it votes on no link."""
        self.begin()
        self.step()
        row = next(iter(self.fleet.paths(0)))
        self.measured.add_paths(self.fleet.names[0], [{**row, "reach": len(row["hops"]) - 1}])
        window = self.measured.window(self.fleet.end_s)
        self.assertEqual(window.paths.answered.max(), -1)

    def test_a_last_router_that_never_answers(self):
        """Its silence is no proof that packets were lost before it; that of one that did answer is."""
        self.begin()
        self.step()
        row = next(p for p in self.fleet.paths(0) if len(p["hops"]) == 4)
        mute = {**row, "hops": [*row["hops"][:2], None, row["hops"][3]]}
        for came_to, answered in ((2, -1), (1, 1)):
            self.measured.add_paths(self.fleet.names[0], [{**mute, "reach": came_to}])
            window = self.measured.window(self.fleet.end_s)
            self.assertEqual(window.paths.answered.max(), answered)

    def test_forgets(self):
        """Flows that are measured no more are forgotten, and their rows used again."""
        self.begin(per_pair=2)
        self.step()
        count = len(self.measured.window(self.fleet.end_s).flows)
        self.assertEqual(self.measured.forget(self.fleet.end_s), 0)
        self.assertEqual(self.measured.forget(self.fleet.end_s + 10_000), count)
        self.step()
        self.assertEqual(len(self.measured.window(self.fleet.end_s).flows), count)

    def test_lasting_numbers(self):
        """A flow has the same number in every window and after a restart, below 2**53."""
        self.begin(per_pair=2)
        self.step()
        before = self.measured.window(self.fleet.end_s).numbers
        self.measured = Measured()
        self.step()
        after = self.measured.window(self.fleet.end_s).numbers
        self.assertEqual(sorted(before.tolist()), sorted(after.tolist()))
        self.assertEqual(len(set(before.tolist())), len(before))
        self.assertLess(before.max(), 2**53)


class Service(TestCase):
    timeout = 60

    @inlineCallbacks
    def service(self, **settings):
        """Return a running service for new collectors; its interval never comes by itself."""
        self.fleet = Collectors(FABRIC, per_pair=12)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.fleet.stop()))
        yield None
        return self.again(**settings)

    def again(self, **settings):
        """Return another service for the same collectors."""
        chosen = Settings(
            collectors=self.fleet.urls, interval_s=3600, api="tcp:0:interface=127.0.0.1", **settings
        )
        service = PinpointService(reactor, chosen, unix_time_s=lambda: self.fleet.end_s + 1.0)
        service.startService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        return service

    def judged(self, service, *faults):
        """Close an interval and have it judged."""
        return Deferred.fromCoroutine(service._judge(self.fleet.step(*faults)))

    @inlineCallbacks
    def get(self, service, path, method="GET", **options):
        """Return status and JSON of an answer of the service."""
        import treq

        url = service.http.url.rstrip("/") + path
        response = yield treq.request(method, url, persistent=False, **options)
        body = yield response.content()
        return response.code, json.loads(body)

    @inlineCallbacks
    def test_from_fault_to_incident_to_recovery(self):
        """A fault becomes a suspect, an incident that is served and recorded, and ends."""
        record = Path(self.mktemp())
        service = yield self.service(record=record)
        bad = fault(kind="silent", on="spine2", percent=40)
        yield self.judged(service)
        yield self.judged(service, bad)
        _, suspects = yield self.get(service, "/suspects")
        self.assertEqual([s["key"] for s in suspects["suspects"]], ["node spine2"])
        self.assertEqual(suspects["flows"], 30 * 12)
        yield self.judged(service, bad)
        _, listed = yield self.get(service, "/incidents")
        (incident,) = listed["incidents"]
        self.assertIsNone(incident["end"])
        self.assertIn("node spine2 loses", incident["title"])
        for _ in range(3):
            yield self.judged(service)
        _, listed = yield self.get(service, "/incidents?limit=1")
        self.assertIsNotNone(listed["incidents"][0]["end"])
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        events = [event["event"] for line in lines for event in line["events"]]
        self.assertEqual(events, ["opened", "recovered"])

    @inlineCallbacks
    def test_intervals_that_close_late(self):
        """Where timeouts are longer than the time to settle, the interval before is judged, once."""
        record = Path(self.mktemp())
        service = yield self.service(record=record)
        for _ in range(3):
            end = self.fleet.step()
            yield Deferred.fromCoroutine(service._judge(end + INTERVAL_S))
            self.assertEqual((service.judgement.end_s, service.judgement.data), (end, True))
        yield Deferred.fromCoroutine(service._judge(end + 2 * INTERVAL_S))
        self.assertFalse(service.judgement.data)

    @inlineCallbacks
    def test_survives_a_restart(self):
        """Incidents, silences and what no webhook took are there again after a restart."""
        state = Path(self.mktemp())
        service = yield self.service(state=state, webhooks=("http://127.0.0.1:9/",))
        bad = fault(kind="loss", on="leaf1 -> spine2", percent=40)
        for _ in range(2):
            yield self.judged(service, bad)
        self.assertEqual(len(service.incidents.open), 1)
        yield service.stopService()
        another = self.again(state=state, webhooks=("http://127.0.0.1:9/",))
        self.assertEqual(len(another.incidents.open), 1)
        self.assertEqual([e["event"] for e in another.webhooks[0].waiting], ["opened"])
        yield self.judged(another, bad)
        self.assertEqual(len(another.incidents.open), 1)

    @inlineCallbacks
    def test_a_damaged_state(self):
        """A state that cannot be read is put aside, and the service begins anew."""
        state = Path(self.mktemp())
        state.write_text('{"version": 1, "incidents": {}}')
        service = yield self.service(state=state)
        self.assertEqual(service.incidents.open, [])
        self.assertTrue(state.with_name(state.name + ".unreadable").exists())
        yield self.judged(service)

    @inlineCallbacks
    def test_collectors_that_fail(self):
        """A collector that does not answer is said, and the others are judged."""
        service = yield self.service()
        yield self.judged(service)
        self.fleet.down.add(0)
        yield self.judged(service)
        _, said = yield self.get(service, "/suspects")
        self.assertIn("answered 503", said["collectors"][0]["problem"])
        self.assertIsNone(said["collectors"][1]["problem"])
        self.assertEqual(said["flows"], 25 * 12)
        self.fleet.down.clear()
        yield self.judged(service)
        _, said = yield self.get(service, "/suspects")
        self.assertIsNone(said["collectors"][0]["problem"])

    @inlineCallbacks
    def test_pages_and_no_more_than_needed(self):
        """Flows come page by page; pairs are asked for once only."""
        self.patch(__import__("llama.pinpoint.fleet", fromlist=["PAGE"]), "PAGE", 25)
        service = yield self.service()
        yield self.judged(service)
        yield self.judged(service)
        self.assertEqual(sum("/latency" in uri for uri in self.fleet.asked), 6)
        _, said = yield self.get(service, "/suspects")
        self.assertEqual(said["flows"], 30 * 12)

    @inlineCallbacks
    def test_silences(self):
        """A silence can be added, is listed, holds, and can be taken back."""
        service = yield self.service()
        code, made = yield self.get(
            service, "/silences", "POST", json={"tag": "rack", "value": "leaf1", "seconds": 900}
        )
        self.assertEqual(code, 201)
        bad = fault(kind="loss", on="leaf1 -> spine2", percent=40)
        for _ in range(2):
            yield self.judged(service, bad)
        self.assertEqual([i.silenced for i in service.incidents.open], ["silenced"])
        _, listed = yield self.get(service, "/silences")
        self.assertEqual([silence["id"] for silence in listed["silences"]], [made["id"]])
        code, _ = yield self.get(service, f"/silences/{made['id']}", "DELETE")
        self.assertEqual((code, service.incidents.silences), (200, []))
        code, said = yield self.get(service, "/silences/none", "DELETE")
        self.assertEqual((code, said), (404, {"error": "no silence none"}))

    @inlineCallbacks
    def test_token(self):
        """With a token nobody reads, silences or speaks without showing it."""
        service = yield self.service(api_token="secret")
        for method, path in (
            ("GET", "/suspects"),
            ("POST", "/silences"),
            ("DELETE", "/silences/1"),
        ):
            code, _ = yield self.get(service, path, method)
            self.assertEqual(code, 401)
        headers = {"Authorization": "Bearer secret"}
        code, _ = yield self.get(service, "/suspects", headers=headers)
        self.assertEqual(code, 200)
        source = RemoteIncidents(reactor, service.http.url, token="secret")
        listed = yield Deferred.fromCoroutine(source.incidents(None, None, 10))
        self.assertTrue(listed["configured"])
        yield service.stopService()
        with self.assertRaises(StoreError):
            yield Deferred.fromCoroutine(source.incidents(None, None, 10))

    @inlineCallbacks
    def test_refusals(self):
        """What cannot be answered is refused as JSON with a reason."""
        service = yield self.service()
        for path, method, options, code in (
            ("/nothing", "GET", {}, 404),
            ("/suspects", "POST", {}, 405),
            ("/incidents?limit=x", "GET", {}, 400),
            ("/incidents?cursor=x", "GET", {}, 400),
            ("/silences", "POST", {"data": b"tag=rack"}, 400),
        ):
            said = yield self.get(service, path, method, **options)
            self.assertEqual(said[0], code, path)
            self.assertIn("error", said[1])

    @inlineCallbacks
    def test_for_the_web_page(self):
        """The page's source of incidents asks the service, and says what is wrong when it cannot."""
        service = yield self.service()
        bad = fault(kind="loss", on="leaf1 -> spine2", percent=40)
        for _ in range(2):
            yield self.judged(service, bad)
        source = RemoteIncidents(reactor, service.http.url)
        answer = yield Deferred.fromCoroutine(source.incidents(None, None, 10))
        self.assertEqual((answer["configured"], answer["total"]), (True, 1))
        before = yield Deferred.fromCoroutine(source.incidents(10.0, None, 10))
        self.assertEqual(before["total"], 0)
        yield service.stopService()
        with self.assertRaisesRegex(StoreError, "connection refused"):
            yield Deferred.fromCoroutine(source.incidents(None, None, 10))


class Schedule(SynchronousTestCase):
    def test_judges_after_every_interval_and_its_time_to_settle(self):
        """Intervals are judged at their end plus the time to settle, each once."""
        clock = Clock()
        clock.advance(1003.0)
        settings = Settings(collectors=(), interval_s=10, settle_s=4, api=None)
        service = PinpointService(clock, settings, unix_time_s=clock.seconds)
        judged = []

        async def note(end):
            judged.append((end, clock.seconds()))

        service._judge = note
        service.startService()
        clock.pump([1.0] * 30)
        self.assertEqual(judged, [(1000, 1004), (1010, 1014), (1020, 1024)])


class Requests(SynchronousTestCase):
    def test_silences_are_read_strictly(self):
        """Every mistake in a silence has its message."""
        for body, message in (
            (b"x", "no JSON"),
            (b"[]", "expected an object"),
            (b'{"tag": "a"}', "value: expected text"),
            (b'{"tag": "a", "value": "b", "until": 1}', "unknown: until"),
            (b'{"tag": "a", "value": "b", "seconds": "9"}', "seconds: expected"),
            (b'{"tag": "a", "value": "b", "seconds": true}', "seconds: expected"),
            (b'{"tag": "a", "value": "b", "seconds": -1}', "over before it begins"),
            (b'{"tag": "a", "value": "b", "comment": 1}', "comment"),
            (b'"' + b"x" * 10_000 + b'"', "shorter"),
        ):
            with self.assertRaisesRegex(BadRequestError, message):
                read_silence(body, 100.0)
        silence = read_silence(b'{"tag": "a", "value": "b", "begin": 50, "end": 150}', 100.0)
        self.assertEqual((silence.begin, silence.end), (50.0, 150.0))

    def test_no_incidents(self):
        """Without incidents the answer has none, and no next page."""
        self.assertEqual(
            incidents_at(Incidents(), None, None, 5),
            {"configured": True, "incidents": [], "total": 0, "next": None},
        )
