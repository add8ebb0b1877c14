"""What collectors say, judged without HTTP: windows, paths, and what becomes known in between."""

import itertools
import json
from functools import partial
from itertools import pairwise

import numpy as np
from simulated_collectors import INTERVAL_S, Collectors, utc
from simulated_fabric import Simulation
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import suspect_bit
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.paths.table import FlowKey
from llama.paths.trace import LOOP
from llama.pinpoint import answers, windows
from llama.pinpoint.api import sighting_json
from llama.pinpoint.evidence import NOT_TRACED
from llama.pinpoint.flow_table import FlowTable
from llama.pinpoint.incidents import Incidents, Silence
from llama.pinpoint.judgement import judge
from llama.pinpoint.traced import RETURN_S
from llama.pinpoint.windows import FORGET, Measured

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
        self.fleet.simulation = Simulation(FABRIC, np.random.default_rng(1), **traffic)
        self.fleet.names = self.fleet.simulation.hosts.names

    def step(self, *faults, sent=25, paths=True):
        """Close an interval, feed it, judge it."""
        end = self.fleet.step(*faults, sent=sent)
        for host, name in enumerate(self.fleet.names):
            self.feed(host)
            if paths:
                self.measured.add_paths(name, list(self.fleet.paths(host)))
        return judge(self.measured, end)

    def feed(self, host, rows=None):
        """Feed the pairs and flows of one host's collector."""
        name, racks = self.fleet.names[host], FABRIC.hosts
        rows = [row for _, row in self.fleet.rows(host)] if rows is None else rows
        pairs = [
            {**row, "tags": {
                "src_hostname": name, "dst_hostname": row["target"],
                "src_rack": racks[name], "dst_rack": racks[row["target"]],
            }}
            for row in rows
        ]  # fmt: skip
        self.measured.pairs.add(name, pairs)
        self.measured.add_flows(name, answers.flows(rows))

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

    def test_flows_half_taken(self):
        """Flows whose taking was broken off count once when they are taken again, in one part or many."""
        self.begin()
        self.step()
        whole = self.measured.window(self.fleet.end_s).flows
        self.measured = Measured()
        self.patch(windows, "PART", 3)
        for host, name in enumerate(self.fleet.names):
            rows = [row for _, row in self.fleet.rows(host)]
            self.measured.pairs.add(name, [{**row, "tags": {}} for row in rows])
            taking = self.measured.adding(name, answers.flows(rows))
            next(taking)
            next(taking)
            self.assertEqual(self.measured.window(self.fleet.end_s).flows["source"].tolist(), [])
            taking.close()
        for host in range(len(self.fleet.names)):
            self.feed(host)
        again = self.measured.window(self.fleet.end_s).flows
        for name in ("sent", "lost_forward"):
            self.assertEqual(again[name].tolist(), whole[name].tolist())

    def test_what_collectors_say(self):
        """Counts are summed up over intervals; the class is the newest's, and doubts those of any."""
        self.begin()
        counts = {
            "sent": 40, "lost_forward": 1, "lost_reverse": 2, "lost_unknown": 4,
            "remarked_forward": 8, "remarked_reverse": 16,
        }  # fmt: skip
        doubts = ("send_failed", "late_ticks")
        for n, (rtt_ms, mark, seen_as) in enumerate(((1.0, 46, 46), (None, None, 255))):
            end = self.fleet.step()
            row = next(row for _, row in self.fleet.rows(0))
            told = {"rtt_p50_ms": rtt_ms, "dscp_at_reflector": mark, "suspect": [doubts[n]]}
            self.feed(0, [{**row, **counts, **told}])
            window = self.measured.window(end, 2)
            (flow,) = window.flows
            self.assertEqual(flow["remarked_to"], seen_as)
            self.assertEqual(self.measured.counts(end, window.numbers), (40, 7))
            undoubted = self.measured.counts(end, window.numbers, undoubted=True)
            self.assertEqual(undoubted, ((0, 0), (40, 3))[n])
        for name, count in counts.items():
            self.assertEqual(flow[name], 2 * count, name)
        self.assertEqual(flow["suspect"], sum(map(suspect_bit, doubts)))

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

    def rerouted(self):
        """Let all flows between leaf1 and leaf3 take a longer way, 30 ms more; yield judgements."""
        self.begin()
        racks = FABRIC.hosts
        for n in range(8):
            self.fleet.step()
            for host, name in enumerate(self.fleet.names):
                rows = [row for _, row in self.fleet.rows(host)]
                far = [{racks[name], racks[row["target"]]} == {"leaf1", "leaf3"} for row in rows]
                for row, moved in zip(rows, far, strict=True):
                    row["rtt_p50_ms"] = 40.0 if moved and n >= 3 else 10.0
                self.feed(host, rows)
                if n not in (0, 4):
                    continue
                paths = list(self.fleet.paths(host))
                for path, moved in zip(paths, far, strict=True):
                    if moved and n == 4:
                        path["hops"][1] = "wan2"
                self.measured.add_paths(name, paths)
            yield judge(self.measured, self.fleet.end_s)

    def test_a_longer_way_is_no_lateness(self):
        """A path that changed begins another ordinary RTT; that it became longer is told once."""
        judgements = list(self.rerouted())
        self.assertEqual([len(one.sightings) > 0 for one in judgements], [n == 3 for n in range(8)])
        told = [one for judgement in judgements for one in judgement.reroutes]
        self.assertEqual([len(one.reroutes) for one in judgements], [0] * 5 + [4, 0, 0])
        self.assertRegex(told[0].name, r"^wan2 instead of spine[1-4]$")
        self.assertRegex(
            told[0].evidence, r"flows of \d pairs cross wan2 .* 10\.1 ms became 40 ms, \+30 ms"
        )
        left = told[0].name.split()[-1]
        for tag, value, holds in (
            ("node", "wan2", True),
            ("node", left, True),
            ("link", f"leaf1 -> {left}", True),
            ("link", "wan2 -> leaf3", True),
            ("node", "leaf1", False),
            ("link", f"leaf2 -> {left}", False),
            ("path", told[0].name, True),
        ):
            silence = Silence(tag=tag, value=value, begin=0, end=1e12)
            self.assertEqual(silence.holds(told[0], 1.0), holds, (tag, value))
        self.assertEqual(sum(one.explains for one in told), 2 * 2 * 2 * 16)
        self.assertIn(("leaf1", "wan2", "leaf3"), told[0].paths)
        slow = fault(kind="delay", on="spine1 -> leaf1")
        self.assertFalse(self.step(slow, paths=False).reroutes)

    def test_a_longer_way_beside_a_clock_that_is_ahead(self):
        """Whoever has the newest interval of all, what was late on another path is so no more."""
        self.fleet.slow_host, self.fleet.slow_s = 5, -120
        judgements = list(self.rerouted())
        self.assertEqual([len(one.sightings) > 0 for one in judgements], [n == 3 for n in range(8)])

    def test_faint_loss_needs_several_intervals(self):
        """A tenth of a percent shows once six intervals are judged together, and says so."""
        self.begin()
        gray = fault(kind="loss", on="leaf1 -> spine2", percent=0.1)
        said = [self.step(gray, sent=150).sightings for _ in range(6)]
        self.assertEqual([s.key for s in said[-1]], ["link leaf1 -> spine2"])
        self.assertIn(f"over {6 * INTERVAL_S} s", said[-1][0].evidence)

    def test_paths_are_looked_up_twice_a_judgement(self):
        """Once for the newest interval, once for the last few: that is most of what it takes."""
        self.begin()
        gray = fault(kind="loss", on="leaf1 -> spine2", percent=0.5)
        for _ in range(3):
            self.step(gray, sent=150)
        looked, whole = [], self.measured.paths.columns
        self.patch(self.measured.paths, "columns", lambda *of: looked.append(of) or whole(*of))
        self.step(gray, fault(kind="silent", on="spine4"), sent=150)
        self.assertEqual(len(looked), 2)
        for end in self.measured.last(self.fleet.end_s, 4):
            window = self.measured.window(end, alive_only=True)
            some = window.numbers[::3]
            sent = window.flows["sent"][::3].sum(), windows.lost_probes(window.flows)[::3].sum()
            self.assertEqual(self.measured.counts(end, some), sent)

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

    def test_what_is_over_is_not_kept_up_by_hosts(self):
        """What a host loses itself is no sign that a fault before it is still there."""
        self.begin()
        for _ in range(2):
            self.step(fault(kind="loss", on="spine3 -> leaf2", percent=30))
        self.step()
        whole = self.fleet.simulation.window

        def lost_there(faults, sent, mark):
            window = whole(faults, sent)
            flows = window.flows
            to = flows["destination"] == window.hosts.names.index("h2-1")
            flows["lost_unknown"][to] = flows["sent"][to] // 2
            flows["suspect"][to] |= suspect_bit(mark)
            return window

        for mark in ("reflector_late", "reflector_restart"):
            self.fleet.simulation.window = partial(lost_there, mark=mark)
            judgement = self.step()
            self.assertEqual(judgement.sightings, ())
            self.assertTrue(judgement.verdict.excluded)

    def test_one_burst_is_no_gray_loss(self):
        """Loss in a single interval is not found again in the long window."""
        self.begin()
        self.step()
        self.step(fault(kind="loss", on="leaf1 -> spine2", percent=2))
        self.assertEqual(self.step().sightings, ())

    def test_what_is_not_traced_yet(self):
        """A suspect is a guess until the flows that died are traced; a trace from before is none."""
        self.begin()
        self.step()
        bad = fault(kind="loss", on="spine3 -> leaf2", percent=100)
        judgements = [self.step(bad, paths=False), self.step(bad), self.step(bad, paths=False)]
        for judgement, untraced in zip(judgements, (True, False, False), strict=True):
            self.assertTrue(judgement.sightings)
            self.assertEqual({one.untraced for one in judgement.sightings}, {untraced})
        self.assertEqual([one.key for one in judgements[1].sightings], ["link spine3 -> leaf2"])
        answered = self.measured.window(self.fleet.end_s).paths.answered
        self.assertGreater(np.count_nonzero(answered == NOT_TRACED), 0)  # those alive
        self.assertFalse(
            self.step(fault(kind="down", on="leaf1"), paths=False).sightings[0].untraced
        )

    def test_no_data(self):
        """An interval in which nobody measured is no judgement."""
        self.begin()
        self.step()
        self.assertFalse(judge(self.measured, self.fleet.end_s + INTERVAL_S).data)
        self.assertFalse(judge(Measured(), 1.0).data)

    def test_a_router_that_never_answers(self):
        """A silent router is not taken for a healthy one beside it, however few there are."""
        self.begin()
        for faults in ((), (fault(kind="loss", on="spine1 -> leaf2", percent=30),)):
            self.fleet.step(*faults)
            for host, name in enumerate(self.fleet.names):
                self.feed(host)
                self.measured.add_paths(name, [
                    # Two spines, as it were, of which one does not answer.
                    {**row, "hops": [
                        None if hop == "spine1" else "spine2" if hop[0] == "s" else hop
                        for hop in row["hops"]
                    ]}
                    for row in self.fleet.paths(host)
                ])  # fmt: skip
        sightings = judge(self.measured, self.fleet.end_s).sightings
        names = sorted(sighting.name for sighting in sightings)
        self.assertEqual(names, ["(silent after leaf1) -> leaf2", "(silent after leaf3) -> leaf2"])

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
        port = next(
            row["source_port"]
            for row in self.fleet.paths(0)
            if row["size_octets"] == 1400 and row["dst_ip"] == like["dst_ip"]
        )
        # Both sizes of a flow leave from one port; in the simulation each has its own.
        like = {**like, "source_port": port}
        self.measured.add_paths(name, [like])
        dead = {**like, "hops": like["hops"][:1], "reach": 1, "complete": False}
        self.measured.add_paths(name, [{**dead, "size_octets": 1400}])
        window = self.measured.window(self.fleet.end_s)
        self.assertEqual(window.paths.answered.max(), 1)

    def flap(self, bad):
        """Judge an interval in which a link from spine1 lost some, until its flows took spine2."""
        end = self.fleet.step(*bad)
        for host, name in enumerate(self.fleet.names):
            self.feed(host)
            rows = list(self.fleet.paths(host))
            for row in rows if bad else ():
                if row["hops"][1:3] == ["spine1", "leaf2"]:
                    row["hops"][1] = "spine2"
            self.measured.add_paths(name, rows)
        return judge(self.measured, end)

    def test_a_way_around_in_the_middle_of_an_interval(self):
        """Flows that have another path since are no reason to suspect that, however often it changes."""
        self.begin()
        self.step()
        bad = fault(kind="loss", on="spine1 -> leaf2", percent=20)
        for faults in ((bad,), ()) * 4:
            judgement = self.flap(faults)
            keys = {sighting.key for sighting in judgement.sightings}
            self.assertLessEqual(keys, {"link spine1 -> leaf2"})
            if faults:
                (sighting,) = judgement.sightings
                for path in sighting.paths:  # the way around, where they are by now
                    self.assertEqual((len(path), path[-2]), (5, "leaf2"))
                    self.assertNotIn("spine1", path)
        # It may return unseen: even if it looks as if it had not, and has the path of before.
        for _ in range(3):
            self.fleet.step()
            for host in range(len(self.fleet.names)):
                self.feed(host)
        self.flap((bad,))
        (sighting,) = self.flap((bad,)).sightings
        self.assertEqual(sighting.key, "link spine1 -> leaf2")
        # Nothing is held against the ways of long ago.
        paths = self.measured.window(self.fleet.end_s).paths
        self.assertGreater(len(paths.left), 0)
        self.assertEqual(np.diff(paths.start).max(), 4)
        self.fleet.number += int(RETURN_S) // INTERVAL_S
        self.step(paths=False)
        self.assertEqual(len(self.measured.window(self.fleet.end_s).paths.left), 0)

    def exchange(self, one, other):
        """Judge an interval after which the flows of two spines cross the other one each."""
        forward, links = self.fleet.simulation.forward, self.fleet.simulation.links
        for sender, receiver in [link for link in links if one in link]:
            ends = sender.replace(one, other), receiver.replace(one, other)
            a, b = links.index((sender, receiver)), links.index(ends)
            on_a, on_b = forward == a, forward == b
            forward[on_a], forward[on_b] = b, a
        return self.step()

    def test_all_flows_changed_places(self):
        """Of the ways that all the same flows left and took, both are named, the newest first."""
        self.begin()
        self.step()
        self.exchange("spine1", "spine4")
        for spine, before in (("spine1", "spine4"), ("spine4", "spine1")):
            for kind in ({"kind": "loss", "percent": 30}, {"kind": "delay", "ms": 20}):
                bad = fault(on=f"{spine} -> leaf2", **kind)
                (suspect,) = self.step(bad, paths=False).verdict.suspects
                self.assertEqual(suspect.name, f"{spine} -> leaf2")
                self.assertEqual(suspect.also, (f"link {before} -> leaf2",))

    def test_all_flows_changed_places_and_met_silence(self):
        """That a lossy link swallows some traces puts nothing down to the one that its flows left."""
        self.begin()
        self.step()
        self.exchange("spine1", "spine4")
        for host, name in enumerate(self.fleet.names):
            rows = [row for row in self.fleet.paths(host) if row["hops"][1] == "spine4"]
            for row in rows[::8]:
                row["hops"][2] = None
            self.measured.add_paths(name, rows)
        bad = fault(kind="loss", on="spine4 -> leaf2", percent=30)
        (suspect,) = self.step(bad, paths=False).verdict.suspects
        self.assertEqual(suspect.name, "spine4 -> leaf2")

    def test_one_class_that_was_met_on_a_way_around(self):
        """What flows of one class alone are known to have left lately confines no fault to the other."""
        self.begin(per_pair=8, classes=("BE", "EF"))
        self.step()
        self.fleet.step()
        for host, name in enumerate(self.fleet.names):
            self.feed(host)
            rows = [row for row in self.fleet.paths(host) if row["dscp"] == 0]
            for row in rows:
                if row["hops"][1:3] == ["spine1", "leaf2"]:
                    row["hops"][1] = "spine2"
            self.measured.add_paths(name, rows)
        self.step()
        (sighting,) = self.step(fault(kind="loss", on="spine2 -> leaf2", percent=30)).sightings
        self.assertEqual((sighting.key, sighting.only), ("link spine2 -> leaf2", {}))

    def test_packets_that_are_spread_one_by_one(self):
        """A flow that is met on ever other ways votes on what these have in common, and with tags."""
        self.begin()
        chance = np.random.default_rng(4)
        for _ in range(8):
            self.fleet.step()
            flows = self.fleet.window.flows
            racks = np.array([FABRIC.hosts[name] for name in self.fleet.names])
            into = (racks[flows["destination"]] == "leaf2") & (racks[flows["source"]] != "leaf2")
            flows["lost_forward"] = np.where(into, chance.binomial(flows["sent"], 0.02), 0)
            for host, name in enumerate(self.fleet.names):
                self.feed(host)
                rows = list(self.fleet.paths(host))
                for row in rows:
                    if len(row["hops"]) == 4:
                        row["hops"][1] = f"spine{chance.integers(1, 5)}"
                self.measured.add_paths(name, rows)
        kinds = [one.kind for one in judge(self.measured, self.fleet.end_s).sightings]
        self.assertTrue(kinds)
        self.assertLessEqual(set(kinds), {"pair", "tag"})
        # The cable of a host is sure.
        bad = fault(kind="loss", on="h1-1 -> leaf1", percent=30)
        (suspect,) = self.step(bad, paths=False).verdict.suspects
        self.assertEqual(suspect.key, "host h1-1 sending")
        self.assertEqual(suspect.also, ("link h1-1 -> leaf1",))

    def on_another_way(self, bad, known_over="spine1"):
        """Judge flows over spine4 whose known paths are of when they crossed another spine."""
        self.begin()
        self.step(paths=False)
        for host, name in enumerate(self.fleet.names):
            self.measured.add_paths(name, [
                {**row, "hops": [known_over if hop == "spine4" else hop for hop in row["hops"]]}
                for row in self.fleet.paths(host)
            ])  # fmt: skip
        self.step(bad, paths=False)
        for host, name in enumerate(self.fleet.names):
            self.measured.add_paths(name, [
                {**row, "hops": row["hops"][: row["reach"]], "complete": False}
                for row in self.fleet.paths(host)
                if row["reach"] is not None
            ])  # fmt: skip
        return judge(self.measured, self.fleet.end_s)

    def test_flows_that_died_on_another_way(self):
        """Flows that crossed a healthy spine before they died on another vote on where they died."""
        (sighting,) = self.on_another_way(fault(kind="silent", on="spine4")).sightings
        self.assertEqual(sighting.key, "node spine4")
        self.assertIn("(unknown before leaf", " ".join(hop for p in sighting.paths for hop in p))

    def test_a_link_on_another_way(self):
        """What lies beyond the last hop that answered is unknown, but it lies before a known router."""
        bad = fault(kind="loss", on="spine4 -> leaf2", percent=100)
        (sighting,) = self.on_another_way(bad).sightings
        self.assertEqual(sighting.key, "link spine4 -> (unknown before leaf2)")

    def test_all_routers_of_another_way_answered(self):
        """A dead flow on another way of which all routers answered may be dead on the way back."""
        self.begin()
        self.step()
        row = next(row for row in self.fleet.paths(0) if len(row["hops"]) == 4)
        met = [row["hops"][0], "elsewhere", row["hops"][2]]
        self.measured.add_paths(
            self.fleet.names[0], [{**row, "hops": met, "reach": 3, "complete": False}]
        )
        window = self.measured.window(self.fleet.end_s)
        self.assertEqual(window.paths.answered.max(), -1)
        self.assertIn(("elsewhere", met[2]), window.paths.links)
        # Where the last router never answers, the one before it is as far as traces come.
        mute = {**row, "hops": [*row["hops"][:2], None, row["hops"][3]]}
        self.measured.add_paths(self.fleet.names[0], [mute])
        self.measured.add_paths(
            self.fleet.names[0], [{**row, "hops": met[:2], "reach": 2, "complete": False}]
        )
        links = self.measured.window(self.fleet.end_s).paths.links
        self.assertIn(("elsewhere", "(silent after elsewhere)"), links)

    def test_a_trace_that_only_missed_the_destination(self):
        """If all routers answered, a dead flow may be dead on the way back: it votes on no link."""
        self.begin()
        self.step()
        row = next(iter(self.fleet.paths(0)))
        self.measured.add_paths(self.fleet.names[0], [{**row, "reach": len(row["hops"]) - 1}])
        window = self.measured.window(self.fleet.end_s)
        self.assertEqual(window.paths.answered.max(), -1)

    def test_tags_are_replaced(self):
        """A tag that no collector speaks of any more is gone; the newest word counts."""
        self.begin(per_pair=2)
        self.step()
        pairs = [row for _, row in self.fleet.rows(0)]

        def say(host, **tags):
            ends = {"src_hostname": self.fleet.names[host]}
            self.measured.pairs.add(self.fleet.names[host], [
                {**row, "tags": {**ends, "dst_hostname": row["target"], **tags}} for row in pairs
            ])  # fmt: skip
            hosts = self.measured.window(self.fleet.end_s).hosts
            return dict(zip(hosts.names, hosts.tags, strict=True))["h3-1"]

        for host in range(6):
            say(host, rack="r1", room="east")
        self.assertEqual(say(0, rack="r2"), {"rack": "r2", "room": "east"})
        for host in range(1, 6):
            tags = say(host, rack="r2")
        self.assertEqual(tags, {"rack": "r2"})

    def too_large(self, on, refused):
        """Judge two intervals of large probes lost on a link, refused by the router before or not."""
        self.setUp()
        self.begin(per_pair=16, sizes=(96, 1400))
        bad, by = fault(kind="mtu", on=on, octets=1000), on.split()[0]
        self.step()
        for _ in range(2):
            self.step(bad, paths=False)
            for host, name in enumerate(self.fleet.names):
                rows = list(self.fleet.paths(host))
                for row in rows if refused else ():
                    if row["size_octets"] == 1400 and row["reach"] is not None:
                        told = {"refusal": "packet too big", "refused_by": by}
                        row.update(told, reach=row["hops"].index(by) + 1)
                self.measured.add_paths(name, rows)
        (sighting,) = judge(self.measured, self.fleet.end_s).sightings
        return sighting

    def test_what_a_router_refuses(self):
        """It is told beside the suspect, which is the same, and whose rate and direction are."""
        plain = self.too_large("leaf1 -> spine3", refused=False)
        told = self.too_large("leaf1 -> spine3", refused=True)
        self.assertEqual((plain.key, plain.refusals), (told.key, ()))
        self.assertEqual(told.evidence, plain.evidence + "; leaf1 refuses them: packet too big")
        refusal = {"by": "leaf1", "refusal": "packet too big", "refused": told.explains}
        self.assertEqual(sighting_json(told)["refusals"], (refusal,))
        self.assertNotIn("flows", sighting_json(told))

    def test_what_the_last_router_refuses(self):
        """Then all routers answer, but it is forward, and behind that router."""
        plain = self.too_large("leaf2 -> h2-1", refused=False)
        self.assertEqual((plain.key, plain.direction), ("host h2-1, size 1400 only", "unknown"))
        told = self.too_large("leaf2 -> h2-1", refused=True)
        self.assertEqual(told.key, "host h2-1 receiving, size 1400 only")
        self.assertEqual(told.also, ("link leaf2 -> h2-1",))
        self.assertEqual(told.direction, "forward")
        self.assertIn("; leaf2 refuses them: packet too big", told.evidence)

    def test_a_loop(self):
        """What goes in circles is dead from the first router of the loop on, and in no way back."""
        self.begin()
        self.step()
        # spine3 sends to leaf2 by way of leaf1, which sends to spine3.
        bad = fault(kind="loss", on="spine3 -> leaf2", percent=100)
        for _ in range(2):
            self.step(bad, paths=False)
            for host, name in enumerate(self.fleet.names):
                rows = list(self.fleet.paths(host))
                for row in rows:
                    if row["reach"] is not None:
                        first = row["hops"][0]
                        way = [first, "spine3", "leaf1", "spine3"]
                        told = {"refusal": LOOP, "refused_by": "spine3"}
                        row.update(told, hops=way, reach=4, complete=False)
                self.measured.add_paths(name, rows)
        (sighting,) = judge(self.measured, self.fleet.end_s).sightings
        self.assertEqual(sighting.key, "link spine3 -> leaf2")
        self.assertIn("; a routing loop has them: leaf1, spine3", sighting.evidence)

    def test_one_traced_for_all(self):
        """What a router refuses of one flow it refuses of those that are like it up to the next hop."""
        self.begin(per_pair=16, sizes=(96, 1400))
        bad = fault(kind="mtu", on="leaf1 -> spine3", octets=1000)
        self.step()
        end = self.fleet.step(bad)
        for host, name in enumerate(self.fleet.names):
            self.feed(host)
            dead = [row for row in self.fleet.paths(host) if row["reach"] is not None]
            firsts = {row["dst_ip"]: row for row in reversed(dead)}
            told = {"refusal": "packet too big", "refused_by": "leaf1", "reach": 1}
            self.measured.add_paths(name, [{**row, **told} for row in firsts.values()])
        (sighting,) = judge(self.measured, end).sightings
        self.assertEqual(sighting.key, "link leaf1 -> spine3, size 1400 only")
        self.assertEqual([one.refused for one in sighting.refusals], [sighting.explains])
        self.assertGreater(sighting.explains, 20)
        window = self.measured.window(end)
        for flow in window.paths.refusals:
            self.assertIn("spine3", window.nodes_of(flow))
            self.assertEqual(window.flows["size"][flow], 1400)

    def test_one_ip_version(self):
        """What only IPv6 meets is told as such: the address that a flow goes to says which it is."""
        self.begin(per_pair=8, families=(4, 6))
        self.step()
        end = self.fleet.step()
        bad = fault(kind="loss", on="spine3 -> leaf2", percent=100)
        self.fleet.window = self.fleet.simulation.window([bad], 25, family=6)
        for host, name in enumerate(self.fleet.names):
            self.feed(host)
            self.measured.add_paths(name, list(self.fleet.paths(host)))
        (sighting,) = judge(self.measured, end).sightings
        self.assertEqual(sighting.key, "link spine3 -> leaf2, IPv6 only")
        self.assertEqual(sighting.title, "link spine3 -> leaf2, IPv6 only loses everything")

    def test_some_are_refused(self):
        """How many of those that are hit; and nothing of a refusal that is over, or of long ago."""
        self.begin()
        bad = fault(kind="loss", on="spine3 -> leaf2", percent=100)
        self.step()
        self.step(bad)
        name = self.fleet.names[0]
        mine = [row for row in self.fleet.paths(0) if row["reach"] is not None]
        told = {"refusal": "host prohibited", "refused_by": "spine3", "reach": 2}
        self.measured.add_paths(name, [{**row, **told} for row in mine])
        (sighting,) = judge(self.measured, self.fleet.end_s).sightings
        self.assertEqual(sighting.key, "link spine3 -> leaf2")
        few = f"; spine3 refuses {len(mine)} of them: host prohibited"
        self.assertTrue(sighting.evidence.endswith(few), sighting.evidence)
        for row in ({}, {**told, "traced": self.fleet.end_s - 3600}):
            self.measured.add_paths(name, [{**one, **row} for one in mine])
            (sighting,) = judge(self.measured, self.fleet.end_s).sightings
            self.assertEqual(sighting.refusals, ())

    def test_refusals_of_incidents(self):
        """They have them, also after a restart; a state of before they did is read."""
        told = self.too_large("leaf1 -> spine3", refused=True)
        incidents = Incidents()
        for n in range(3):
            incidents.judged([told], 1000.0 + n)
        record = json.loads(incidents.octets())
        refusals = [{"by": "leaf1", "refusal": "packet too big", "refused": told.explains}]
        self.assertEqual([one.refusals for one in Incidents.from_json(record).open], [refusals])
        del record["cases"][0]["incident"]["refusals"]
        self.assertEqual([one.refusals for one in Incidents.from_json(record).open], [[]])

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

    def test_rows_that_are_used_again(self):
        """A row is let go of once, and its next flow is as new as that of a new row."""
        table = FlowTable()
        keys = [FlowKey("10.0.0.2", 8100, 20000 + n, 0, 44) for n in range(3)]
        rows = [table.row((0, key), 1, "h1") for key in keys]
        table.note(np.array(rows), 100.0)
        table.note(np.array(rows[:1]), 130.0)
        self.assertEqual(table.forget(100.0), [])
        self.assertEqual(table.forget(130.0), rows[1:])
        self.assertEqual(table.forget(130.0), [])
        again = table.row((0, keys[1]), 1, "h1")
        self.assertIn(again, rows[1:])
        self.assertEqual(table.forget(1.0), [again])
        self.assertEqual(list(table.rows), [(0, keys[0])])

    def test_hosts_that_come_and_go(self):
        """What is known of hosts, pairs and paths does not grow while hosts come and go for weeks."""
        for n in range(4 * FORGET):
            end = 1_700_000_000 + 30 * n
            rows = [{
                "target": f"pod-{k}", "src_ip": "10.0.0.1", "dst_ip": f"10.1.{k >> 8}.{k & 255}",
                "dst_port": 8100, "dscp": 0, "probe": "stamp", "size_octets": 44,
                "port_group": "d", "source_port": 20000, "interval_start": utc(end - 30),
                "interval_end": utc(end), "sent": 20, "lost_forward": 0, "lost_reverse": 0,
                "lost_unknown": 0, "remarked_forward": 0, "remarked_reverse": 0,
                "dscp_at_reflector": 0, "rtt_p50_ms": 1.0, "suspect": [],
            } for k in (n, n + 1)]  # fmt: skip
            tags = [{"src_hostname": "c", "dst_hostname": row["target"]} for row in rows]
            pairs = [{**row, "tags": {**t, "rack": "1"}} for row, t in zip(rows, tags, strict=True)]
            self.measured.pairs.add("c", pairs)
            self.measured.add_flows("c", answers.flows(rows))
            paths = [
                {**row, "hops": [f"r{n}", row["dst_ip"]], "complete": True, "reach": None,
                 "traced": end - 1}
                for row in rows
            ]  # fmt: skip
            self.measured.add_paths("c", paths)
            self.measured.forget(end)
        window = self.measured.window(end)
        names = {window.hosts.names[n] for n in window.flows["destination"].tolist()}
        self.assertEqual(names, {f"pod-{n}", f"pod-{n + 1}"})
        parts = [part for part in vars(self.measured).values() if hasattr(part, "__dict__")]
        self.assertGreaterEqual(len(parts), 4)
        for part in (self.measured, *parts):
            for one, held in vars(part).items():
                if isinstance(held, dict | list | set):
                    self.assertLess(len(held), 2 * FORGET, one)

    def test_a_gap_is_no_interval(self):
        """Intervals from before a pause are not judged together with those after it."""
        self.begin()
        gray = fault(kind="loss", on="leaf1 -> spine1", percent=3)
        for _ in range(6):
            self.step(gray)
        self.fleet.number += 360
        for n in range(6):
            self.step()
            window = self.measured.window(self.fleet.end_s, 6)
            self.assertEqual(window.flows["sent"].max(), 25 * (n + 1))
            self.assertEqual(window.flows["lost_forward"].max(), 0)

    def test_a_router_has_one_name_in_a_judgement(self):
        """However often its address is called anew by the DNS; in the next it has the new name."""
        calls = itertools.count()
        self.begin(per_pair=2)
        self.measured = Measured(name=lambda hop: f"{hop} {next(calls)}")
        self.step()

        def names():
            ends = (
                end for link in self.measured.window(self.fleet.end_s).paths.links for end in link
            )
            return {end for end in ends if " " in end}

        before = names()
        self.assertEqual(before, names())
        self.assertEqual(len({name.split()[0] for name in before}), len(before))
        judge(self.measured, self.fleet.end_s)
        self.assertTrue(before.isdisjoint(names()))

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
