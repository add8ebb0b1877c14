"""Incidents: when they open, change and end, what is announced, and what survives."""

import json
from types import SimpleNamespace

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from klein import Klein
from sightings import seen
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Site

from llama.pinpoint.incidents import (
    CHANGES,
    REMEMBERED,
    REMEMBERED_ONCE,
    UNMEASURED,
    Event,
    Hysteresis,
    Incidents,
    Silence,
)
from llama.pinpoint.webhook import FIRST_PAUSE_S, TIMEOUT_S, Webhook


def play(incidents, rounds, begin=100.0, length=5.0):
    """Judge round after round; return the events of each as (event, title)."""
    told = []
    for n, sightings in enumerate(rounds):
        events = incidents.judged(sightings, begin + n * length)
        told.append([(event.event, event.incident["title"]) for event in events])
    return told


class Titles(SynchronousTestCase):
    def test_nearly_all_is_not_all(self):
        """Only what loses all of its probes is said to."""
        rates = {
            0.0012: "0.12 %", 0.3: "30 %", 0.97: "97 %", 0.996: "99.6 %", 0.9999: "99.9 %",
            1.0: "everything",
        }  # fmt: skip
        for rate, told in rates.items():
            title = seen("spine3", "node", rate=rate).title
            self.assertEqual(title, f"node spine3 loses {told}")

    def test_all_that_it_may_be(self):
        """What cannot be told apart is all in the headline, a host with its cable, up to four names."""
        for kind, name, also, told in (
            ("link", "a -> b", ("link b -> c",), "link a -> b or link b -> c"),
            ("host", "h1 sending", ("link h1 -> a",), "host h1 sending or link h1 -> a"),
            ("host", "h1", ("node a",), "host h1 or its cable or node a"),
            ("node", "a", tuple("bcdef"), "node a or b or c or 3 others"),
        ):
            title = evolve(seen(name, kind, rate=1.0), also=also).title
            self.assertEqual(title, f"{told} loses everything")


class OpeningAndClosing(SynchronousTestCase):
    def test_opens_when_it_persists(self):
        """An incident opens at the second sighting of three, and counts from the first."""
        incidents = Incidents()
        told = play(incidents, [[seen()], [], [seen()]])
        self.assertEqual(told, [[], [], [("opened", "link spine3 -> leaf2 loses 30 %")]])
        (incident,) = incidents.open
        self.assertEqual((incident.start, incident.opened), (100.0, 110.0))

    def test_a_passing_suspicion(self):
        """What was seen once is forgotten, and nobody is told."""
        incidents = Incidents()
        self.assertEqual(play(incidents, [[seen()], [], [], [seen()], [], []]), [[]] * 6)
        self.assertEqual((incidents.open, incidents.ended), ([], []))

    def test_a_suspicion_that_never_opened(self):
        """It is forgotten, not told as recovered, however long one may wait for the next sighting."""
        incidents = Incidents(hysteresis=Hysteresis(open_after=2, of=6, close_after=2))
        self.assertEqual(play(incidents, [[seen()], *[[]] * 6, [seen()]]), [[]] * 8)
        self.assertEqual((incidents.open, incidents.ended), ([], []))

    def test_what_was_seen_last(self):
        """An incident tells what was seen last, and lasts while those flows are not measured."""
        incidents = Incidents()
        last = seen(
            flows=range(20, 30), direction="reverse", evidence="more", rate=0.2, explains=9,
            confidence=0.5, only={"size": 1400}, also=("node spine3",), pairs=(("h3", "h4"),),
            tags={"rack": "r2"}, paths=(("h3", "spine3", "leaf2", "h4"),),
        )  # fmt: skip
        play(incidents, [[seen()], [seen()], [last]])
        (incident,) = incidents.open
        for name in (
            "title",
            "direction",
            "evidence",
            "rate",
            "explains",
            "confidence",
            "only",
            "tags",
        ):
            self.assertEqual(getattr(incident, name), getattr(last, name), name)
        for name in ("also", "pairs", "paths"):
            told = [one if name == "also" else tuple(one) for one in getattr(incident, name)]
            self.assertEqual(tuple(told), getattr(last, name))
        for n in range(9):
            self.assertEqual(incidents.judged([], 200.0 + n, measured=range(10)), [])
        self.assertEqual(len(incidents.open), 1)

    def test_closes_after_clean_judgements(self):
        """It ends after three clean judgements in a row, as of when it was last seen."""
        incidents = Incidents()
        told = play(incidents, [[seen()], [seen()], [], [], [seen()], [], [], []])
        self.assertEqual([len(events) for events in told], [0, 1, 0, 0, 0, 0, 0, 1])
        self.assertEqual(told[-1][0][0], "recovered")
        self.assertEqual(incidents.ended[0].end, 120.0)
        self.assertEqual(incidents.open, [])

    def test_no_data_is_not_clean(self):
        """Judgements without data neither end an incident nor count against it."""
        incidents = Incidents()
        play(incidents, [[seen()], [seen()]])
        for n in range(10):
            self.assertEqual(incidents.judged([], 200.0 + n, data=False), [])
        self.assertEqual(len(incidents.open), 1)

    def test_what_is_not_measured_is_not_clean(self):
        """An incident of which no flow was measured stays open; others are judged meanwhile."""
        incidents = Incidents()
        play(incidents, [[seen()], [seen()]])
        for n in range(10):
            self.assertEqual(incidents.judged([], 200.0 + n, measured=range(10, 90)), [])
        told = [incidents.judged([], 300.0 + n, measured=range(9, 90)) for n in range(3)]
        self.assertEqual([[event.event for event in events] for events in told][-1], ["recovered"])

    def test_what_is_measured_no_more(self):
        """An incident of flows that are probed no more ends at last."""
        incidents = Incidents()
        play(incidents, [[seen()], [seen()]])
        rounds = 0
        while incidents.open:
            incidents.judged([], 200.0 + rounds, measured=[99])
            rounds += 1
        self.assertEqual(rounds, UNMEASURED + Hysteresis().close_after - 1)

    def test_what_happens_once(self):
        """A reroute is told at once, and is over; silenced, it is kept but not announced."""
        incidents = Incidents()
        reroute = seen("wan2 instead of spine1", "path", symptom="rerouted")
        (event,) = incidents.told(reroute, 100.0)
        self.assertEqual(event.event, "rerouted")
        title = "path changed: wan2 instead of spine1"
        self.assertEqual((event.incident["title"], event.incident["end"]), (title, 100.0))
        self.assertEqual((incidents.open, incidents.ended, len(incidents.once)), ([], [], 1))
        incidents.silences.append(Silence(tag="rack", value="r1", begin=0, end=1e9))
        other = seen("wan2 instead of spine2", "path", symptom="rerouted")
        self.assertEqual(incidents.told(other, 110.0), [])
        self.assertEqual([one.silenced for one in incidents.once], ["silenced", None])

    def test_what_happens_again_and_again(self):
        """A path that flaps is one, with how often; it is announced once an hour, restarts or not."""
        incidents = Incidents()
        ways = [
            seen(name, "path", symptom="rerouted", explains=9)
            for name in ("wan2 instead of spine1", "spine1 instead of wan2")
        ]
        announced = []
        for n in range(360):
            announced += incidents.told(ways[n % 2], 1000.0 + 30 * n)
            incidents = Incidents.from_json(json.loads(incidents.octets()))
        self.assertEqual(
            [event.time - 1000 for event in announced], [0, 30, 3600, 3630, 7200, 7230]
        )
        self.assertEqual(len({event.id for event in announced}), 6)
        self.assertEqual([one.times for one in incidents.once], [180, 180])
        incident = incidents.once[0]
        self.assertEqual(incident.title, "path changed: spine1 instead of wan2, 180 times")
        self.assertEqual((incident.start, incident.end), (1030.0, 1000.0 + 30 * 359))

    def test_what_happens_once_pushes_nothing_out(self):
        """However many paths change, ended incidents are remembered, and the newest changes."""
        incidents = Incidents()
        play(incidents, [[seen()], [seen()], [], [], []])
        for n in range(REMEMBERED + 1):
            incidents.told(seen(f"wan{n} instead of x", "path", symptom="rerouted"), 200.0 + n)
        self.assertEqual([one.name for one in incidents.ended], ["spine3 -> leaf2"])
        self.assertEqual(len(incidents.once), REMEMBERED_ONCE)
        self.assertEqual(incidents.once[0].name, f"wan{REMEMBERED} instead of x")

    def test_a_guess(self):
        """What is not traced yet opens one judgement later, under the name that it has then."""
        guess = seen("h3-1", "host", range(30), untraced=True)
        incidents = Incidents()
        told = play(incidents, [[guess], [guess], [seen()], [seen()]])
        self.assertEqual(told, [[], [], [("opened", "link spine3 -> leaf2 loses 30 %")], []])
        self.assertEqual(incidents.open[0].start, 100.0)

    def test_a_guess_that_stays_one(self):
        """What never is traced opens nevertheless, one judgement later, and recovers as others do."""
        guess = seen("h3-1", "host", range(30), untraced=True)
        told = play(Incidents(), [[guess]] * 5 + [[]] * 3)
        self.assertEqual([len(events) for events in told], [0, 0, 1, 0, 0, 0, 0, 1])

    def test_a_guess_that_follows(self):
        """Traces that have become old do not rename what is open."""
        guess = seen("h3-1", "host", range(30), untraced=True)
        told = play(Incidents(), [[seen()], [seen()], [guess], [seen()], [seen()]])
        self.assertEqual([len(events) for events in told], [0, 1, 0, 0, 0])

    def test_hysteresis_is_checked(self):
        """A hysteresis that could never open or close is refused."""
        for wrong in ({"open_after": 4}, {"open_after": 0}, {"close_after": 0}):
            with self.assertRaises(ValueError):
                Hysteresis(**wrong)

    @given(st.lists(st.booleans(), max_size=60))
    def test_events_alternate(self, sightings):
        """Whatever is seen when, openings and recoveries alternate."""
        incidents = Incidents()
        told = play(incidents, [[seen()] if now else [] for now in sightings])
        kinds = [event for events in told for event, _ in events]
        self.assertEqual(kinds, (["opened", "recovered"] * 30)[: len(kinds)])


class OneCause(SynchronousTestCase):
    def test_a_sharper_name(self):
        """The same flows under another name are the same incident, renamed once it is usual."""
        incidents = Incidents()
        node = seen("spine3", "node", range(30), range(10))
        told = play(incidents, [[seen()], [seen()], [node], [node], [node]])
        self.assertEqual([len(events) for events in told], [0, 1, 0, 1, 0])
        self.assertEqual(told[3], [("changed", "node spine3 loses 30 %")])
        (incident,) = incidents.open
        self.assertEqual(incident.changes[0]["title"], "node spine3 loses 30 %")
        self.assertEqual(incident.start, 100.0)

    def test_a_wider_name(self):
        """A link that turns out to be the whole spine goes on under its name, and has not recovered."""
        incidents = Incidents()
        link = seen("spine1 -> leaf2", flows=range(35), hit=range(35))
        other = seen("spine1 -> leaf3", flows=range(35, 70), hit=range(35, 70))
        node = seen("spine1", "node", range(200), range(106))
        rounds = [[link, other]] * 2 + [[node]] * 6
        told = [[event for event, _ in events] for events in play(incidents, rounds)]
        self.assertEqual(told, [[], ["opened"] * 2, [], ["changed"], [], [], [], []])
        titles = {incident.title for incident in incidents.open}
        self.assertEqual(titles, {"node spine1 loses 30 %", "link spine1 -> leaf3 loses 30 %"})
        told = [[event for event, _ in events] for events in play(incidents, [[]] * 3, 200.0)]
        self.assertEqual(told[-1], ["recovered"] * 2)

    def test_names_that_flap_for_days(self):
        """Of the changes of an incident only the newest are kept."""
        incidents = Incidents()
        node = seen("spine3", "node", range(30), range(10))
        play(incidents, [[seen()], [seen()], [node], [node]] * 100)
        self.assertEqual(len(incidents.open[0].changes), CHANGES)

    def test_two_causes_at_once(self):
        """Two suspects named at the same time are two incidents, though flows cross both."""
        incidents = Incidents()
        other = seen("leaf1 -> spine3", flows=range(5, 15), hit=range(5, 15))
        told = play(incidents, [[seen(), other], [seen(), other]])
        self.assertEqual(len(told[1]), 2)

    def test_another_cause_later(self):
        """Other flows are another incident, also while the first has not ended."""
        incidents = Incidents()
        other = seen("spine1 -> leaf1", flows=range(50, 60))
        play(incidents, [[seen()], [seen()], [other], [other]])
        self.assertEqual(len(incidents.open), 2)

    def test_another_symptom_is_another_cause(self):
        """Flows that are late do not continue an incident of loss."""
        incidents = Incidents()
        late = seen("x -> y", symptom="late")
        play(incidents, [[seen()], [seen()], [late], [seen()], [late]])
        self.assertEqual({i.symptom for i in incidents.open}, {"loss", "late"})

    def test_the_worst_is_kept(self):
        """An incident knows its worst rate and how much it explained at most."""
        incidents = Incidents()
        play(incidents, [[seen(rate=0.9, explains=40)], [seen(rate=0.1, explains=4)]])
        (incident,) = incidents.open
        self.assertEqual((incident.rate, incident.worst_rate), (0.1, 0.9))
        self.assertEqual((incident.explains, incident.most_explained), (4, 40))

    def test_what_is_over_is_told_by_its_worst(self):
        """What was dead is not told to have lost as little as the interval amid which it was mended."""
        rounds = [[seen(rate=rate)] for rate in (0.4, 1.0, 1.0, 0.38)]
        for stop in range(len(rounds)):
            incidents = Incidents()
            play(incidents, rounds[:stop])
            incidents = Incidents.from_json(json.loads(incidents.octets()))
            told = play(incidents, [*rounds[stop:], [], [], []])
            self.assertEqual(told[-1], [("recovered", "link spine3 -> leaf2 loses everything")])
            self.assertEqual(incidents.ended[0].rate, 0.38)
        # But it is the worst of what it turned out to be.
        node = seen("spine3", "node", range(30), range(9), rate=0.3)
        told = play(Incidents(), [[seen(rate=1.0)]] * 2 + [[node]] * 3 + [[]] * 3)
        self.assertEqual(told[-1], [("recovered", "node spine3 loses 30 %")])
        # And under that name, whatever it was called meanwhile.
        rounds = [[seen(rate=1.0)]] * 2 + [[node]] * 3 + [[seen(rate=0.05)]] * 3
        told = play(Incidents(), [*rounds, [], [], []])
        self.assertEqual(told[-1], [("recovered", "link spine3 -> leaf2 loses everything")])

    def test_a_state_that_does_not_know_the_worst(self):
        """Of one that was kept before there was a worst rate, the last stands for it."""
        incidents = Incidents()
        play(incidents, [[seen(rate=0.4)], [seen(rate=0.3)]])
        state = json.loads(incidents.octets())
        for case in state["cases"]:
            del case["worst"]
        told = play(Incidents.from_json(state), [[], [], []])
        self.assertEqual(told[-1], [("recovered", "link spine3 -> leaf2 loses 30 %")])

    def test_two_symptoms_of_one_place(self):
        """What loses and is late is two incidents; what goes on is not told in the other's words."""
        late = seen(symptom="late", rate=1.0)
        incidents = Incidents()
        told = play(incidents, [[seen(rate=0.05), late]] * 3 + [[late]] * 3 + [[]] * 3)
        self.assertEqual(
            [each for events in told for each in events],
            [
                ("opened", "link spine3 -> leaf2 loses 5 %"),
                ("opened", "link spine3 -> leaf2 is late"),
                ("recovered", "link spine3 -> leaf2 loses 5 %"),
                ("recovered", "link spine3 -> leaf2 is late"),
            ],
        )


class Silences(SynchronousTestCase):
    def test_by_tag_and_time(self):
        """A silenced incident is kept but not announced; when the silence ends it is news."""
        incidents = Incidents()
        incidents.silences.append(
            Silence(tag="rack", value="r1", begin=0, end=118, comment="maintenance")
        )
        told = play(incidents, [[seen()]] * 5)
        self.assertEqual([len(events) for events in told], [0, 0, 0, 0, 1])
        self.assertEqual(told[4][0][0], "opened")
        self.assertIsNone(incidents.open[0].silenced)

    def test_recovery_in_silence(self):
        """What was never announced does not recover aloud."""
        incidents = Incidents()
        incidents.silences.append(Silence(tag="rack", value="r1", begin=0, end=1e9))
        told = play(incidents, [[seen()], [seen()], [], [], []])
        self.assertEqual(told, [[]] * 5)
        self.assertEqual(incidents.ended[0].silenced, "silenced")

    def test_recovery_of_what_was_announced(self):
        """Who was told that an incident opened is told that it recovered, silence or not."""
        incidents = Incidents()
        play(incidents, [[seen()], [seen()]])
        incidents.silences.append(Silence(tag="rack", value="r1", begin=0, end=1e9))
        told = play(incidents, [[seen()], [], [], []], 200.0)
        self.assertEqual(
            [[event for event, _ in events] for events in told][1:], [[], [], ["recovered"]]
        )
        self.assertEqual(told[0], [])

    def test_after_a_silence(self):
        """What was announced before a silence has changed after it; it opens only once."""
        incidents = Incidents()
        play(incidents, [[seen()], [seen()]])
        incidents.silences.append(Silence(tag="rack", value="r1", begin=0, end=208))
        told = play(incidents, [[seen()]] * 3, 200.0)
        self.assertEqual([[event for event, _ in events] for events in told], [[], [], ["changed"]])

    def test_what_it_matches(self):
        """A silence holds for its tag or for the suspect itself by name, and in its time only."""

        def silence(tag, value):
            return Silence(tag=tag, value=value, begin=10, end=20)

        self.assertTrue(silence("rack", "r1").holds(seen(), 10))
        self.assertTrue(silence("link", "spine3 -> leaf2").holds(seen(), 19))
        self.assertFalse(silence("rack", "r1").holds(seen(), 20))
        self.assertFalse(silence("rack", "r1").holds(seen(), 9))
        self.assertFalse(silence("rack", "r2").holds(seen(), 10))
        self.assertFalse(silence("node", "spine3 -> leaf2").holds(seen(), 10))

    def test_pruned(self):
        """Silences that are over are forgotten."""
        incidents = Incidents()
        incidents.silences += [
            Silence(tag="a", value="b", begin=0, end=10),
            Silence(tag="a", value="b", begin=0, end=20),
        ]
        incidents.prune_silences(10)
        self.assertEqual([silence.end for silence in incidents.silences], [20])


class Memory(SynchronousTestCase):
    @given(st.lists(st.sampled_from("abu-"), max_size=30), st.integers(0, 30))
    def test_survives_a_restart(self, seen_when, stop):
        """Restarted at any moment from its record, it tells just what it would have told."""
        rounds = [
            {
                "a": [seen()],
                "b": [seen("spine3", "node", range(30), range(9))],
                "u": [seen("h3-1", "host", range(30), untraced=True)],
                "-": [],
            }[c]
            for c in seen_when
        ]
        whole = play(Incidents(), rounds)
        first = Incidents()
        told = play(first, rounds[:stop])
        second = Incidents.from_json(json.loads(first.octets()))
        told += play(second, rounds[stop:], begin=100.0 + 5 * min(stop, len(rounds)))
        self.assertEqual(told, whole)

    def test_what_is_no_record(self):
        """Anything else is refused with what is wrong."""
        for wrong in ({}, {"number": "x"}, {"number": 1, "silences": [{"what": 1}]}):
            with self.assertRaisesRegex(ValueError, "no record of incidents"):
                Incidents.from_json(wrong)


class Receiver:
    """A real web server that takes, or does not take, what is posted to it."""

    app = Klein()

    def __init__(self):
        self.got = []
        self.codes = []
        self.waiting = None

    @app.route("/hook", methods=["POST"])
    def hook(self, request):
        """Take an event and answer with the next code."""
        self.got.append((request.getHeader("Llama-Event"), json.loads(request.content.read())))
        request.setResponseCode(self.codes.pop(0) if self.codes else 204)
        if self.waiting is not None:
            waiting, self.waiting = self.waiting, None
            reactor.callLater(0, waiting.callback, None)
        return b""

    def next(self):
        """Fire when the next event has come."""
        self.waiting = Deferred()
        return self.waiting


class Webhooks(TestCase):
    timeout = 30

    def setUp(self):
        """Start a receiver, and a webhook whose pauses are kept by a clock of ours."""
        self.receiver = Receiver()
        self.port = reactor.listenTCP(0, Site(self.receiver.app.resource()), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.clock = Clock()
        url = f"http://127.0.0.1:{self.port.getHost().port}/hook"
        self.webhook = Webhook(reactor, url)
        self.webhook._reactor = self.clock
        self.addCleanup(self.webhook.stop)

    def event(self, number):
        """Return an event."""
        return Event(id=f"1-1/{number}", event="opened", time=1.5, incident={"title": "t"})

    @inlineCallbacks
    def until(self, condition):
        """Wait, in turns of the reactor, until the condition holds."""
        while not condition():
            turn = Deferred()
            reactor.callLater(0.001, turn.callback, None)
            yield turn

    @inlineCallbacks
    def test_taken_once_and_in_order(self):
        """Events arrive once each, in order, with their identifiers."""
        for number in (1, 2, 3):
            self.webhook.announce(self.event(number))
        yield self.until(lambda: self.webhook.taken == 3)
        self.assertEqual([name for name, _ in self.receiver.got], ["1-1/1", "1-1/2", "1-1/3"])
        self.assertEqual(
            self.receiver.got[0][1],
            {"id": "1-1/1", "event": "opened", "time": 1.5, "incident": {"title": "t"}},
        )

    @inlineCallbacks
    def test_refused_and_sent_again(self):
        """What was refused is sent again after a pause that doubles, under the same identifier."""
        self.receiver.codes = [500, 302, 200]
        self.webhook.announce(self.event(1))
        yield self.until(lambda: self.webhook.failures == 1)
        self.clock.advance(FIRST_PAUSE_S)
        yield self.until(lambda: self.webhook.failures == 2)
        self.clock.advance(FIRST_PAUSE_S)
        self.assertEqual(len(self.receiver.got), 2)
        self.clock.advance(FIRST_PAUSE_S)
        yield self.until(lambda: self.webhook.taken == 1)
        self.assertEqual({name for name, _ in self.receiver.got}, {"1-1/1"})
        self.assertEqual(len(self.webhook.waiting), 0)

    @inlineCallbacks
    def test_trouble_is_said_once(self):
        """However often an event is refused, each reason is said once, and the end of all of them."""
        self.receiver.codes = [500, 500, 503, 500, 503, 200, 200, 500, 200]
        with capturedLogs() as events:
            for number in (1, 2, 3):
                self.webhook.announce(self.event(number))
            for failures in range(1, 7):
                yield self.until(lambda wanted=failures: self.webhook.failures == wanted)
                self.clock.advance(FIRST_PAUSE_S * 2**5)
            yield self.until(lambda: self.webhook.taken == 3)
        place = f"http://127.0.0.1:{self.port.getHost().port}/…"
        said = [
            formatEvent(event) for event in events if event["log_namespace"].endswith("Webhook")
        ]
        refused = (
            place + " did not take an event: it answered {}; {} wait, and are tried again and again"
        )
        self.assertEqual(
            said,
            [
                refused.format(500, 3), refused.format(503, 3),
                f"{place} takes events again, after {5 * 64} s",
                refused.format(500, 1), f"{place} takes events again, after 64 s",
            ],
        )  # fmt: skip

    def test_what_fails_at_once(self):
        """An address that cannot even be asked is asked again and again, as any that fails."""
        webhook = Webhook(reactor, "http://127.0.0.1/\xfc")
        webhook._reactor = self.clock
        self.addCleanup(webhook.stop)
        webhook.announce(self.event(1))
        self.clock.pump([FIRST_PAUSE_S, 2 * FIRST_PAUSE_S])
        self.assertEqual((webhook.failures, len(webhook.waiting)), (3, 1))

    def test_no_secret_is_logged(self):
        """What the log tells of a receiver that fails is where it is, and nothing by which to post."""
        for url, place in (
            ("http://127.0.0.1:9/services/s3cret?k=s3cret", "http://127.0.0.1:9/…"),
            ("http://me:s3cret@127.0.0.1:9/", "http://127.0.0.1:9/…"),
            ("http://[::1]:9/s3cret", "http://[::1]:9/…"),
            ("http://h/s3cret with blanks", "http://h/…"),  # which Twisted names as it refuses it
            ("http://[s3cret/", "(a webhook)"),
        ):
            webhook = Webhook(reactor, url)
            webhook._reactor = self.clock
            self.addCleanup(webhook.stop)
            logged = []
            webhook.log = SimpleNamespace(
                warn=lambda text, to=logged, **values: to.append(text.format(**values))
            )
            webhook._did_not(Failure(ValueError(f"Invalid URI b'{url}'")))
            self.assertEqual(len(logged), 1)
            self.assertIn(f"{place} did not take an event", logged[0])
            self.assertNotIn("s3cret", logged[0])

    def answered(self, octets):
        """Return a webhook whose receiver answers each event with these octets, and no more."""

        class Answering(Protocol):
            closed = 0

            def dataReceived(self, data):
                self.got = getattr(self, "got", b"") + data
                if self.got.endswith(b"}"):
                    self.transport.write(octets)

            def connectionLost(self, reason=None):
                Answering.closed += 1

        port = reactor.listenTCP(0, Factory.forProtocol(Answering), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        webhook = Webhook(reactor, f"http://127.0.0.1:{port.getHost().port}/")
        webhook._reactor = self.clock
        webhook.closed = lambda: Answering.closed
        self.addCleanup(webhook.stop)
        return webhook

    @inlineCallbacks
    def test_only_the_status_counts(self):
        """What took an event is not sent it again, whatever it says about that, nor waited for."""
        for octets in (
            b"Content-Length: 70000\r\n\r\n" + b"x" * 70_000,
            b"Content-Length: 9\r\n\r\nok",
            b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\nok",
            b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
            b"Content-Length: 0\r\n\r\n",
        ):
            webhook = self.answered(b"HTTP/1.1 202 Accepted\r\n" + octets)
            for number in (1, 2):
                webhook.announce(self.event(number))
            yield self.until(lambda w=webhook: w.closed() == 2)
            state = webhook.taken, webhook.failures, len(webhook.waiting)
            self.assertEqual(state, (2, 0, 0), octets[:40])

    @inlineCallbacks
    def test_an_answer_that_never_ends(self):
        """A receiver that stalls in the middle of an answer's head is given up, and asked again."""
        webhook = self.answered(b"HTTP/1.1 200 OK\r\nContent-Len")
        webhook.announce(self.event(1))
        yield deferLater(reactor, 0.2, lambda: None)
        self.clock.advance(TIMEOUT_S)
        yield self.until(lambda: webhook.failures == 1)
        self.assertEqual((webhook.taken, len(webhook.waiting)), (0, 1))

    @inlineCallbacks
    def test_nobody_there(self):
        """While nobody listens events wait, and stopping leaves them waiting."""
        yield self.port.stopListening()
        self.webhook.announce(self.event(1))
        yield self.until(lambda: self.webhook.failures == 1)
        yield self.webhook.stop()
        self.assertEqual([event["id"] for event in self.webhook.waiting], ["1-1/1"])
        self.flushLoggedErrors()
