"""From collectors over HTTP to incidents: the service, when it judges, and what survives."""

import json
import os
import threading
from pathlib import Path
from urllib.parse import urlsplit

from attrs import evolve
from self_signed import self_signed
from sightings import seen
from simulated_collectors import INTERVAL_S, Collectors, utc
from twisted.internet import endpoints, reactor
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogLevel, capturedLogs, formatEvent, globalLogPublisher
from twisted.protocols.portforward import ProxyFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llama.http.server import BadRequestError
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.pinpoint import service as service_module
from llama.pinpoint.api import AMONG, incidents_at, read_silence
from llama.pinpoint.evidence import Verdict
from llama.pinpoint.fleet import PAIRS_AGAIN, Fleet
from llama.pinpoint.incidents import Incidents, Silence
from llama.pinpoint.judgement import Judgement, judge
from llama.pinpoint.service import PinpointService, Settings
from llama.pinpoint.windows import KEEP, Measured
from llama.web.remote_incidents import RemoteIncidents
from llama.web.store import StoreError

FABRIC = Fabric(3, 4, 2)


def fault(**options):
    """Return a fault."""
    return Fault.from_mapping(options)


class Service(TestCase):
    timeout = 60

    @inlineCallbacks
    def service(self, classes=("BE",), **settings):
        """Return a running service for new collectors; its interval never comes by itself."""
        self.fleet = Collectors(FABRIC, per_pair=12, classes=classes)
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
        """A fault becomes a suspect, an incident that is served and recorded, and ends.

        The log warns of it, and tells its end.
        """
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        record = Path(self.mktemp())
        service = yield self.service(record=record)
        bad = fault(kind="silent", on="spine2", percent=40)
        yield self.judged(service)
        yield self.judged(service, bad)
        _, suspects = yield self.get(service, "/suspects")
        self.assertEqual([s["key"] for s in suspects["suspects"]], ["node spine2"])
        self.assertEqual(suspects["flows"], 30 * 12)
        page = (Path(__file__).parent.parent.parent / "docs" / "pinpointing.rst").read_text("utf-8")
        for name in {*suspects, *suspects["suspects"][0]}:
            self.assertIn(f"``{name}``", page)
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
        told = [(line["event"], line["log_level"]) for line in logged if "event" in line]
        self.assertEqual(told, [("opened", LogLevel.warn), ("recovered", LogLevel.info)])

    @inlineCallbacks
    def judging(self):
        """Return a service in the midst of a judgement, which goes on when the event with it is set."""
        begun, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def slow(*given):
            begun.set()
            go_on.wait(30)
            return judge(*given)

        service = yield self.service()
        self.patch(service_module, "judge", slow)
        self.fleet.step()
        service._call.reset(0)
        while not begun.is_set():
            yield deferLater(reactor, 0.01, lambda: None)
        return service, go_on

    @inlineCallbacks
    def test_answers_while_it_judges(self):
        """However long a judgement takes, who asks meanwhile is told the one before."""
        service, go_on = yield self.judging()
        code, found = yield self.get(service, "/suspects")
        self.assertEqual((code, found["end"]), (200, None))
        go_on.set()
        while service._reading:
            yield deferLater(reactor, 0.01, lambda: None)
        code, found = yield self.get(service, "/suspects")
        self.assertEqual((code, found["end"]), (200, service.judgement.end_s))

    @inlineCallbacks
    def test_stopped_while_it_judges(self):
        """Stopping waits for no judgement, and what comes of it then is not taken."""
        service, go_on = yield self.judging()
        threads = service._threads
        yield service.stopService()
        self.assertEqual((threads._busy, service._reading), (1, None))
        go_on.set()
        while threads._busy:
            yield deferLater(reactor, 0.01, lambda: None)
        self.assertIsNone(service.judgement)
        self.assertEqual(self.flushLoggedErrors(), [])

    @inlineCallbacks
    def test_collectors_behind_tls(self):
        """They are read if the authority in the file vouches for them, and only then."""
        directory = Path(self.mktemp())
        directory.mkdir()
        key, certificate = directory / "key.pem", directory / "cert.pem"
        self_signed(key, certificate)
        self.fleet = Collectors(FABRIC, per_pair=12)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.fleet.stop()))
        urls = []
        for url in self.fleet.urls:
            behind = ProxyFactory("127.0.0.1", urlsplit(url).port)
            behind.noisy = False
            where = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
            port = yield endpoints.serverFromString(reactor, where).listen(behind)
            self.addCleanup(port.stopListening)
            urls.append(f"https://127.0.0.1:{port.getHost().port}")
        self.fleet.step()
        for ca_file, silent in (None, set(urls)), (str(certificate), set()):
            fleet = Fleet(reactor, urls, Measured(3), ca_file=ca_file)
            yield Deferred.fromCoroutine(fleet.read())
            yield Deferred.fromCoroutine(fleet.stop())
            self.assertEqual(fleet.measured.silent, silent)

    @inlineCallbacks
    def test_intervals_that_close_late(self):
        """Where the interval is not there yet, the one before is judged, each once."""
        service = yield self.service()
        for _ in range(3):
            end = self.fleet.step()
            for _ in range(2):
                yield Deferred.fromCoroutine(service._judge(end + INTERVAL_S))
            self.assertEqual((service.judgement.end_s, service.judgement.data), (end, True))
        judgement = service.judgement
        yield Deferred.fromCoroutine(service._judge(end + 2 * INTERVAL_S))
        self.assertIs(service.judgement, judgement)
        service._now_s = lambda: end + 1000.0
        for _ in range(2):
            yield Deferred.fromCoroutine(service._judge(end + 2 * INTERVAL_S))
        self.assertEqual((service.judgement.end_s, service.judgement.data), (end + 20, False))

    @inlineCallbacks
    def test_classes_that_close_late(self):
        """An interval is judged when its last group is there, so a dead slow class is named."""
        service = yield self.service(classes=("BE", "EF"))
        self.fleet.late = ("BE",)
        bad = fault(kind="class", on="spine2 -> leaf1", dscp="BE", percent=100)
        end = self.fleet.step()
        self.fleet.close_late()
        yield Deferred.fromCoroutine(service._judge(end))
        for faults in ((), (bad,)):
            end = self.fleet.step(*faults)
            service.judgement = None
            yield Deferred.fromCoroutine(service._judge(end))
            self.assertIsNone(service.judgement)
            self.fleet.close_late()
            yield Deferred.fromCoroutine(service._judge(end))
            self.assertIsNone(service.judgement)  # what died is being traced
            yield Deferred.fromCoroutine(service._judge(end))
            self.assertEqual(service.judgement.end_s, end)
            self.assertEqual(service.judgement.verdict.flows, 30 * 24)
        self.assertEqual([one.name for one in service.judgement.sightings], ["spine2 -> leaf1"])

    @inlineCallbacks
    def test_pairs_that_are_gone(self):
        """Pairs that a reload took away are waited for no longer than what closes after them."""
        service = yield self.service()
        yield self.judged(service)
        gone_s, timeouts_ms = self.fleet.end_s, [1000.0, 1000.0]

        def reloaded(request, document):
            (newest,) = document.get("intervals", ({},))
            document["intervals"] = [
                {**newest, "timeout_ms": timeouts_ms[0]},
                {**newest, "timeout_ms": timeouts_ms[1], "close_number": 1, "end": utc(gone_s)},
            ]
            return document

        self.fleet.twists[0] = reloaded
        yield self.judged(service)
        self.assertEqual(service.judgement.end_s, self.fleet.end_s)
        before_s, timeouts_ms[1] = self.fleet.end_s, 5000.0
        yield self.judged(service)
        self.assertEqual(service.judgement.end_s, before_s)
        yield self.judged(service)  # until what closes after them is there
        yield Deferred.fromCoroutine(service._judge(self.fleet.end_s))
        self.assertEqual(service.judgement.end_s, before_s + INTERVAL_S)

    @inlineCallbacks
    def test_classes_that_never_close(self):
        """A group that does not come is waited for as long as timeouts can be, and once only."""
        service = yield self.service(classes=("BE", "EF"))
        self.fleet.late = ("BE",)
        end = self.fleet.step()
        self.fleet.close_late()
        yield Deferred.fromCoroutine(service._judge(end))
        end = self.fleet.step()
        yield Deferred.fromCoroutine(service._judge(end))
        self.assertEqual(service.judgement.end_s, end - INTERVAL_S)
        service._now_s = lambda: end + 100.0
        for _ in range(2):
            yield Deferred.fromCoroutine(service._judge(end))
        self.assertEqual(service.judgement.end_s, end)
        self.assertEqual(service.judgement.verdict.flows, 30 * 12)
        excluded = service.judgement.verdict.excluded
        missing = sorted(line for line in excluded if "not measured" in line)
        self.assertEqual(len(missing), 6)
        self.assertEqual(missing[0], "60 known flows of h1-1: not measured in this interval")
        end = self.fleet.step()
        service._now_s = lambda: end + 91.0
        yield Deferred.fromCoroutine(service._judge(end))
        self.assertEqual(service.judgement.end_s, end)

    @inlineCallbacks
    def looked(self, service, rounds):
        """Let intervals pass, with looks as they are scheduled; return those judged and when, by end."""
        judged = []
        take = service.take
        self.patch(
            service, "take", lambda j: judged.append((j.end_s, service.now_s, j.verdict)) or take(j)
        )
        for _ in range(rounds):
            end = self.fleet.step()
            now_s, service._pause_s = end + 4.0, 0.0
            while now_s < end + INTERVAL_S:
                service._now_s = lambda now_s=now_s: now_s
                yield Deferred.fromCoroutine(service._judge(end))
                if not service._pause_s:
                    break
                now_s += service._pause_s
        return judged

    @inlineCallbacks
    def test_a_clock_that_is_behind(self):
        """It is waited for once, no interval is left out, and its flows are said to be too late."""
        service = yield self.service()
        yield from self.looked(service, 3)
        begin, self.fleet.slow_host, self.fleet.slow_s = self.fleet.end_s, 0, 120
        judged = yield from self.looked(service, 20)
        ends = [end for end, _, _ in judged]
        self.assertEqual(ends, [begin + INTERVAL_S * (n + 1) for n in range(20)])
        waited = [now_s - end for end, now_s, _ in judged]
        self.assertLess(max(waited), 70)
        self.assertEqual(waited[8:], [4.0] * 12)
        verdict = judged[-1][2]
        self.assertEqual(verdict.flows, 25 * 12)
        self.assertEqual(
            [line for line in verdict.excluded if "h1-1" in line],
            [
                "h1-1: 120 s behind, not waited for",
                "60 flows of h1-1: came after their interval was judged",
            ],
        )
        self.fleet.slow_s = 0
        *_, (_, _, verdict) = yield from self.looked(service, 2)
        self.assertEqual((verdict.flows, verdict.excluded), (30 * 12, ()))

    @inlineCallbacks
    def test_a_clock_that_is_ahead(self):
        """What a collector measures in a far future is said not to be judged, and pushes nothing out."""
        service = yield self.service()
        self.fleet.slow_host, self.fleet.slow_s = 0, -3600
        judged = yield from self.looked(service, 16)
        self.assertEqual([verdict.flows for _, _, verdict in judged], [25 * 12] * 16)
        self.assertIn("h1-1: 3600 s ahead, not judged", judged[-1][2].excluded)
        self.fleet.slow_s = 0
        *_, (_, _, verdict) = yield from self.looked(service, 1)
        self.assertEqual((verdict.flows, verdict.excluded), (30 * 12, ()))

    @inlineCallbacks
    def test_a_clock_that_is_behind_from_the_start(self):
        """What is read first is judged as of the others' newest interval, by `newest_s` as well."""
        service = yield self.service()
        self.fleet.slow_host, self.fleet.slow_s = 0, 120
        end = self.fleet.step()
        yield Deferred.fromCoroutine(service.fleet.read())
        self.assertEqual(service.newest_s(), end)
        service.fleet.sources[0].given_up = 0
        yield Deferred.fromCoroutine(service._judge(end))
        self.assertEqual((service.judgement.end_s, service.judgement.verdict.flows), (end, 25 * 12))

    @inlineCallbacks
    def test_nothing_to_judge(self):
        """Where our own clock is ahead of all others that is said once, and that it is over."""
        service = yield self.service()
        yield self.judged(service)
        with capturedLogs() as events:
            for _ in range(2):
                for _ in range(3):
                    end_s = self.fleet.step() + 7200.0
                    service._now_s = lambda end_s=end_s: end_s + 4.0
                    yield Deferred.fromCoroutine(service._judge(end_s))
                    self.assertFalse(service.judgement.data)
                service._now_s = lambda: self.fleet.end_s + 4.0
                for _ in range(4):
                    yield self.judged(service)
        texts = [formatEvent(event) for event in events]
        said = [text.partition(";")[0] for text in texts if "to judge" in text]
        nothing = "there is nothing to judge: h1-1: 7200 s behind, not waited for"
        self.assertEqual(said, 2 * [nothing, "there is something to judge again"])
        behind = [f"{name}: 7200 s behind, not waited for" for name in self.fleet.names]
        self.assertIn("; ".join(behind), " ".join(texts))

    @inlineCallbacks
    def test_why_there_is_nothing_to_judge(self):
        """Another reason is told while there still is nothing: after a start nobody has answered yet."""
        service = yield self.service()
        with capturedLogs() as events:
            for why in ((), ("db1: 3600 s ahead, not judged",), ("db1: 3630 s ahead, not judged",)):
                verdict = Verdict(
                    suspects=(), flows=0, judged=0, lossy=0, unexplained=0, excluded=why
                )
                service._say_data(
                    Judgement(end_s=0.0, verdict=verdict, sightings=(), data=False, measured=None)
                )
        self.assertEqual(
            [formatEvent(event) for event in events],
            ["there is nothing to judge: no collector has handed in anything",
             "there is nothing to judge: db1: 3600 s ahead, not judged"],
        )  # fmt: skip

    @inlineCallbacks
    def test_a_group_that_hangs(self):
        """It is waited for once, and every interval is judged nevertheless, in order."""
        service = yield self.service(classes=("BE", "EF"))
        self.fleet.late = ("BE",)
        end = self.fleet.step()
        self.fleet.close_late()
        yield Deferred.fromCoroutine(service._judge(end))
        judged = yield from self.looked(service, 14)
        self.assertEqual([one for one, _, _ in judged], [end + 10 * (n + 1) for n in range(14)])
        self.assertEqual([now_s - one for one, now_s, _ in judged][8:], [4.0] * 6)
        self.assertIn("h1-1: 140 s behind, not waited for", judged[-1][2].excluded)
        self.fleet.step()
        self.fleet.close_late()
        yield Deferred.fromCoroutine(service._judge(self.fleet.end_s))
        self.assertFalse(any("behind" in one for one in service.judgement.verdict.excluded))

    @inlineCallbacks
    def test_the_first_look_takes_all_groups(self):
        """What is read first has all groups of the newest interval that is whole."""
        service = yield self.service(classes=("BE", "EF"))
        self.fleet.late = ("BE",)
        end = self.fleet.step()
        self.fleet.close_late()
        yield Deferred.fromCoroutine(service.fleet.read())
        self.assertEqual(service.newest_s(), end)
        self.assertEqual(len(service.measured.window(end).flows), 30 * 24)

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
    def test_judged_once_over_a_restart(self):
        """An interval that was judged before a restart is not again: one bad one opens nothing."""
        state = Path(self.mktemp())
        service = yield self.service(state=state)
        yield self.judged(service, fault(kind="loss", on="leaf1 -> spine2", percent=40))
        yield service.stopService()
        another = self.again(state=state)
        yield Deferred.fromCoroutine(another._judge(self.fleet.end_s))
        self.assertEqual(another.incidents.open, [])
        yield self.judged(another, fault(kind="loss", on="leaf1 -> spine2", percent=40))
        self.assertEqual(len(another.incidents.open), 1)

    @inlineCallbacks
    def test_a_clock_that_was_ahead(self):
        """A clock that is a day ahead for one turn ends no silence, and nothing is forgotten."""
        service = yield self.service()
        for _ in range(2):
            yield self.judged(service)
        silence = read_silence(b'{"tag": "rack", "value": "leaf1", "seconds": 60}', service.now_s)
        service.incidents.silences.append(silence)
        flows, paths = len(service.measured._flows.rows), len(service.measured.paths)
        service._now_s = lambda: self.fleet.end_s + 86400.0
        yield Deferred.fromCoroutine(service._judge(self.fleet.end_s + 86400.0))
        _, told = yield self.get(service, "/silences")
        self.assertEqual(told, {"silences": []})
        service._now_s = lambda: self.fleet.end_s + 1.0
        yield self.judged(service)
        self.assertEqual(service.incidents.silences, [silence])
        self.assertEqual(
            (len(service.measured._flows.rows), len(service.measured.paths)), (flows, paths)
        )

    @inlineCallbacks
    def test_one_collector_by_two_names(self):
        """Its flows count once, and who looks is told which names mean the same."""
        service = yield self.service()
        self.fleet.incarnation = "one"
        first, port = self.fleet.urls[0], urlsplit(self.fleet.urls[0]).port
        settings = evolve(service.settings, collectors=(first, f"http://localhost:{port}"))
        another = PinpointService(reactor, settings, unix_time_s=service._now_s)
        another.startService()
        self.addCleanup(another.stopService)
        for _ in range(2):
            end = self.fleet.step()
            yield Deferred.fromCoroutine(another._judge(end))
            window = another.measured.window(end)
            self.assertEqual(set(window.flows["sent"].tolist()), {25})
        told = [source.told for source in another.fleet.sources]
        self.assertEqual(told[0] + told[1], f"the same collector as {first}, by another name")
        self.assertEqual(another.measured.silent, set())
        # The one that was read cannot be any more: then the other is, and goes on.
        read, other = sorted(another.fleet.sources, key=lambda source: source.told)
        url, read.url = read.url, "http://127.0.0.1:1"
        yield Deferred.fromCoroutine(another._judge(self.fleet.step()))
        for _ in range(3):
            end = self.fleet.step()
            yield Deferred.fromCoroutine(another._judge(end))
            self.assertEqual(set(another.measured.window(end).flows["sent"].tolist()), {25})
            self.assertEqual(other.told, "")
            read.url = url
        self.assertEqual(read.told, f"the same collector as {other.url}, by another name")

    @inlineCallbacks
    def test_files_of_its_owner(self):
        """State and record are made for their owner alone, and no webhook's URL is in them."""
        self.addCleanup(os.umask, os.umask(0))
        there = Path(self.mktemp())
        there.mkdir()
        state, record = there / "state", there / "record"
        left = there / "state.new"
        left.touch(0o666)
        url = "http://127.0.0.1:9/services/s3cret"
        service = yield self.service(state=state, record=record, webhooks=(url,))
        self.assertNotIn("s3cret", repr(service.settings))
        bad = fault(kind="loss", on="leaf1 -> spine2", percent=40)
        for _ in range(2):
            yield self.judged(service, bad)
        self.assertEqual({path.name: path.stat().st_mode & 0o777 for path in there.iterdir()},
                         {"state": 0o600, "record": 0o600})  # fmt: skip
        yield service.stopService()
        for path in (state, record):
            self.assertNotIn("s3cret", path.read_text())
        # Earlier versions wrote the URL, to a file that everyone could read.
        held = json.loads(state.read_text())
        held["waiting"] = {url: next(iter(held["waiting"].values()))}
        state.write_text(json.dumps(held))
        for path in (state, record):
            path.chmod(0o640)
        another = self.again(state=state, record=record, webhooks=(url,))
        self.assertEqual([e["event"] for e in another.webhooks[0].waiting], ["opened"])
        yield self.judged(another, bad)
        self.assertEqual([path.stat().st_mode & 0o777 for path in (state, record)], [0o600, 0o640])

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
    def test_a_state_without_its_end(self):
        """Of a state that is put aside nothing is taken: to begin anew is to know no incident."""
        state = Path(self.mktemp())
        service = yield self.service(state=state, webhooks=("http://127.0.0.1:9/",))
        for _ in range(2):
            yield self.judged(service, fault(kind="loss", on="leaf1 -> spine2", percent=40))
        yield service.stopService()
        held = json.loads(state.read_text())
        del held["waiting"]
        state.write_text(json.dumps(held))
        another = self.again(state=state, webhooks=("http://127.0.0.1:9/",))
        self.assertTrue(state.with_name(state.name + ".unreadable").exists())
        self.assertEqual(another.incidents.open, [])

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
    def test_trouble_is_said_once(self):
        """Of a collector that fails each reason is said once, also if two take turns; and its end."""
        service = yield self.service()
        yield self.judged(service)
        with capturedLogs() as events:
            for _ in range(2):
                for _ in range(3):
                    self.fleet.down.add(0)
                    yield self.judged(service)
                    self.fleet.down.clear()
                    self.fleet.twists[0] = lambda request, document: b"[]"
                    yield self.judged(service)
                self.fleet.twists.clear()
                for _ in range(2):
                    yield self.judged(service)
        texts = [formatEvent(event) for event in events]
        said = [text for text in texts if text.startswith(self.fleet.urls[0])]
        for text, words in zip(said, 2 * ["503", "no JSON object", "answers again"], strict=True):
            self.assertIn(words, text)

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
    def test_pages_that_are_read_twice(self):
        """Flows of an interval whose last page failed once count once, read again."""
        self.patch(__import__("llama.pinpoint.fleet", fromlist=["PAGE"]), "PAGE", 25)
        service = yield self.service()
        yield self.judged(service)
        self.fleet.failing = "offset=50"
        end = self.fleet.step()
        yield Deferred.fromCoroutine(service.fleet.read())
        self.assertIn("answered 503", service.fleet.sources[0].problem)
        self.fleet.failing = ""
        yield Deferred.fromCoroutine(service.fleet.read())
        flows = service.measured.window(end).flows
        self.assertEqual((len(flows), flows["sent"].max()), (30 * 12, 25))

    @inlineCallbacks
    def test_tags_are_read_again(self):
        """A host that moved has its new rack after a while, and at once when collectors restart."""
        service = yield self.service()

        def rack():
            hosts = service.measured.window(self.fleet.end_s).hosts
            return dict(zip(hosts.names, hosts.tags, strict=True))["h1-2"]["rack"]

        yield self.judged(service)
        self.fleet.racks["h1-2"] = "leaf3"
        seen = []
        for _ in range(PAIRS_AGAIN):
            yield self.judged(service)
            seen.append(rack())
        self.assertEqual(seen, [*["leaf1"] * (PAIRS_AGAIN - 1), "leaf3"])
        self.fleet.racks["h1-2"] = "leaf2"
        self.fleet.incarnation = "again"
        yield self.judged(service)
        self.assertEqual(rack(), "leaf2")

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
        for kind in ("text/plain", b"\xff"):
            code, said = yield self.get(
                service, "/silences", "POST", data=b"{}", headers={"Content-Type": kind}
            )
            self.assertEqual(
                (code, said), (400, {"error": "expected Content-Type: application/json"})
            )
        code, said = yield self.get(service, "/silences/none", "DELETE")
        self.assertEqual((code, said), (404, {"error": "no silence none"}))

    @inlineCallbacks
    def test_changes_from_elsewhere(self):
        """Without a token only this machine's own programs add or delete silences."""
        service = yield self.service()
        silence = {"json": {"tag": "rack", "value": "leaf1"}}
        _, made = yield self.get(service, "/silences", "POST", **silence)
        port = service.http.port.getHost().port
        for headers, code in (
            ({"Host": f"evil.example:{port}"}, 421),
            ({"Host": "10.0.0.1"}, 403),
            ({"Origin": f"http://evil.example:{port}"}, 403),
            ({"Origin": "null"}, 403),
        ):
            for method, path in (("POST", "/silences"), ("DELETE", f"/silences/{made['id']}")):
                found, said = yield self.get(service, path, method, headers=headers, **silence)
                self.assertEqual(found, code, (method, headers, said))
        self.assertEqual([one.id for one in service.incidents.silences], [made["id"]])

    @inlineCallbacks
    def test_silences_are_bounded(self):
        """There is an end to how many silences are kept, of those that are not over."""
        service = yield self.service()
        now = service.now_s
        old = [Silence(tag="rack", value="r1", begin=0, end=1) for _ in range(1000)]
        service.incidents.silences = old
        silence = {"json": {"tag": "rack", "value": "leaf1"}}
        code, _ = yield self.get(service, "/silences", "POST", **silence)
        self.assertEqual((code, len(service.incidents.silences)), (201, 1))
        held = [Silence(tag="rack", value="r1", begin=0, end=now + 10) for _ in range(1000)]
        service.incidents.silences = held
        code, said = yield self.get(service, "/silences", "POST", **silence)
        self.assertEqual((code, len(service.incidents.silences)), (400, 1000))
        self.assertIn("1,000 silences", said["error"])

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
        self.assertTrue(source._pool._connections)
        yield source.stop()
        self.assertFalse(source._pool._connections)
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

    def test_stopped_while_it_reads(self):
        """A reading that stopping breaks off is no failure, nothing is judged, and no other follows."""
        clock = Clock()
        clock.advance(1003.0)
        settings = Settings(collectors=(), interval_s=10, settle_s=4, api=None)
        service = PinpointService(clock, settings, unix_time_s=clock.seconds)
        judged = []
        service.take = judged.append
        for end in (None, lambda reading: reading.callback(None)):  # to the end, just then
            reading = Deferred(end)

            async def read(reading=reading):
                await reading

            service.fleet.read = read
            service.startService()
            clock.pump([1.0] * 10)
            self.assertIsNotNone(service._reading)
            self.successResultOf(service.stopService())
            self.assertEqual(clock.getDelayedCalls(), [])
            self.assertEqual(judged, [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_goes_on_when_the_wall_clock_is_set_back(self):
        """Intervals are judged as before, and what was measured in the time to come is let go."""
        clock, begin_s = Clock(), 1_700_000_003.0
        step_s = 0.0
        settings = Settings(collectors=(), interval_s=10, settle_s=4, api=None)
        service = PinpointService(
            clock, settings, unix_time_s=lambda: begin_s + step_s + clock.seconds()
        )
        judged = []

        async def read():
            measured = service.measured
            measured.length_s = 10.0
            measured._intervals[measured.due_s] = {}

        service.fleet.read = read
        service._judgement = lambda end_s: succeed(judge(service.measured, end_s))
        service.take = lambda judgement: judged.append(round(judgement.end_s - begin_s))
        service.startService()
        self.addCleanup(service.stopService)
        clock.pump([1.0] * 30)
        self.assertEqual(judged, [-3, 7, 17])
        step_s = -3600.0
        clock.pump([1.0] * 40)
        # The one that was waited for when the clock was set, then what ends by the clock as it is.
        self.assertEqual(judged[3:], [27, -3563, -3553, -3543])
        self.assertEqual(
            [round(end - begin_s) for end in service.measured.ends], [-3563, -3553, -3543]
        )
        step_s -= 30.0  # so little that some intervals held end before that: they are judged
        clock.pump([1.0] * 40)
        self.assertEqual(judged[7:], [-3533, -3543, -3533])

    def test_holds_what_has_to_wait(self):
        """However short intervals are, those that may have to wait for others are not let go."""
        for interval_s, waiting in ((30, 3), (2, 32), (1, 64)):
            settings = Settings(collectors=(), interval_s=interval_s, settle_s=4, api=None)
            service = PinpointService(Clock(), settings)
            self.assertEqual(service.measured.keep, KEEP + waiting)

    def test_looks_again_for_what_is_missing(self):
        """While something is waited for it is looked again before the next interval, ever later."""
        clock = Clock()
        clock.advance(1003.0)
        settings = Settings(collectors=(), interval_s=30, settle_s=4, api=None)
        service = PinpointService(clock, settings, unix_time_s=clock.seconds)
        looked = []
        service.fleet.whole = lambda end: False

        async def nothing():
            looked.append(clock.seconds())

        service.fleet.read = nothing
        service.startService()
        clock.pump([1.0] * 60)
        self.assertEqual(looked, [1024, 1026, 1030, 1038, 1054])


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
            (b'{"tag": "a", "value": "b", "begin": 1e308, "seconds": 1e308}', "never be over"),
            (b'{"tag": "a", "value": "b", "comment": 1}', "comment"),
            (b'"' + b"x" * 10_000 + b'"', "shorter"),
        ):
            with self.assertRaisesRegex(BadRequestError, message):
                read_silence(body, 100.0)
        silence = read_silence(b'{"tag": "a", "value": "b", "begin": 50, "end": 150}', 100.0)
        self.assertEqual((silence.begin, silence.end), (50.0, 150.0))

    def test_reroutes_among_incidents(self):
        """However many paths change, incidents are on the first page, and the newest of those changes."""
        incidents = Incidents()
        for n in range(6):
            for _ in range(2):
                incidents.judged([seen(f"leaf1 -> spine{n}")], 10.0 * n)
            for _ in range(3):
                incidents.judged([], 10.0 * n)
        for n in range(40):
            reroute = seen(f"wan{n} instead of spine1", "path", symptom="rerouted")
            incidents.told(reroute, 100.0 + n)
        incidents.told(reroute, 200.0)
        listed = incidents_at(incidents, None, None, 10)
        kinds = [row["kind"] for row in listed["incidents"]]
        self.assertEqual(kinds, ["path"] * AMONG + ["link"] * 6)
        self.assertEqual(listed["total"], 46)
        (newest, *_) = incidents_at(incidents, 150.0, None, 10)["incidents"]
        self.assertEqual((newest["times"], newest["end"]), (2, 200.0))
        self.assertEqual(incidents_at(incidents, 99.0, None, 10)["total"], 6)

    def test_no_incidents(self):
        """Without incidents the answer has none, and no next page."""
        self.assertEqual(
            incidents_at(Incidents(), None, None, 5),
            {"configured": True, "incidents": [], "total": 0, "next": None},
        )
