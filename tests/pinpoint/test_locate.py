"""Pinpointing on fabrics in numbers, where the truth is known."""

from itertools import combinations
from math import ceil, comb, exp, fsum, lgamma, log, log1p, sqrt

import numpy as np
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st
from simulated_fabric import Simulation
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import suspect_bit
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.pinpoint import scan
from llama.pinpoint.candidates import path_families
from llama.pinpoint.ends import examine
from llama.pinpoint.evidence import FLOWS, Hosts, Paths, Thresholds
from llama.pinpoint.exposure import Exposure
from llama.pinpoint.locate import locate

FABRIC = Fabric(3, 4, 2)


def fault(**options):
    """Return a fault from its options."""
    return Fault.from_mapping(options)


def judge(
    *faults, seed=1, sent=25, fabric=FABRIC, noise=0.0, family=None, edit=None, thresholds=None,
    **traffic,
):  # fmt: skip
    """Return the verdict on a window with these faults; `edit` may change the window first."""
    simulation = Simulation(fabric, np.random.default_rng(seed), **traffic)
    window = simulation.window(faults, sent, noise, family)
    if edit:
        edit(window)
    return locate(window.flows, window.hosts, window.paths, thresholds)


def judge_unequal(what, *faults, noise=0.0, seed=1, thresholds=None):
    """Return the verdict where one class sends 120 and 6 probes, or one destination gets 300 and 30.

    `noise` may be a function of the class.
    """
    simulation = Simulation(FABRIC, np.random.default_rng(seed), per_pair=8, classes=("BE", "AF41"))
    dscp = simulation.flows["dscp"]
    if what == "class":
        sent = np.where(dscp == 0, 120, 6)
    else:
        sent = np.where(simulation.flows["destination"] == 0, 300, 30)
    window = simulation.window(faults, sent, noise(dscp) if callable(noise) else noise)
    return locate(window.flows, window.hosts, window.paths, thresholds)


@st.composite
def placements(draw):
    """Return numbers of flows, of those inside, of hits, of hits inside."""
    everything = draw(st.integers(2, 60))
    inside, all_hits = (draw(st.integers(1, everything - 1)) for _ in range(2))
    return everything, inside, all_hits, draw(st.integers(0, min(inside, all_hits)))


def keys(verdict):
    """Return what is suspected, in order."""
    return [suspect.key for suspect in verdict.suspects]


class Statistics(SynchronousTestCase):
    @given(st.integers(1, 8), st.data())
    def test_tail_by_counting(self, everything, data):
        """The tail is what counting every placement of the troubled flows gives."""
        inside = data.draw(st.integers(0, everything))
        all_hits = data.draw(st.integers(0, everything))
        hits = data.draw(st.integers(0, everything))
        placements = combinations(range(everything), all_hits)
        good = sum(sum(n < inside for n in chosen) >= hits for chosen in placements)
        self.assertAlmostEqual(
            scan.tail_probability(hits, inside, all_hits, everything),
            good / comb(everything, all_hits),
        )

    def test_tail_of_many(self):
        """Large counts neither overflow nor take part in rounding to more than certainty."""
        self.assertLess(scan.tail_probability(500, 1000, 1000, 160_000), 1e-300)
        self.assertEqual(scan.tail_probability(0, 1000, 1000, 160_000), 1.0)
        self.assertLessEqual(scan.tail_probability(1, 80_000, 80_000, 160_000), 1.0)

    def test_the_tightest_set_gains_most(self):
        """A set that leaves trouble outside, or has healthy flows inside, gains less."""
        exact, partly, wide = scan.likelihood_gain([30, 20, 30], [30, 20, 60], 30, 400)
        self.assertGreater(exact, partly)
        self.assertGreater(exact, wide)

    @given(placements())
    @example((14, 7, 2, 1))  # just as many as are expected, but for rounding
    def test_tail_of_equal_chances(self, drawn):
        """With one chance for all flows the tail is Fisher's."""
        everything, inside, all_hits, hits = drawn
        chance = np.full(everything, all_hits / everything)
        tail = scan.unequal_tail(hits, chance[:inside], chance[inside:], all_hits)
        fisher = scan.tail_probability(hits, inside, all_hits, everything)
        if hits * everything > inside * all_hits:
            self.assertAlmostEqual(tail, fisher)
        else:
            self.assertEqual(tail, 1.0)

    def test_tail_of_unequal_chances(self):
        """The tail is near what drawing flows by their chances gives."""
        random = np.random.default_rng(1)
        inside, outside = np.full(60, 0.3), np.full(200, 0.03)
        drawn_inside = (random.random((100_000, 60)) < 0.3).sum(axis=1)
        drawn = drawn_inside + random.binomial(200, 0.03, 100_000)
        those = drawn_inside[drawn == 24]
        for hits in (19, 21, 23):
            tail = scan.unequal_tail(hits, inside, outside, 24)
            self.assertApproximates(tail / (those >= hits).mean(), 1, 0.25)

    def test_chances_of_many_lost(self):
        """Chances to lose hundreds of probes, and more, are those of the binomial distribution."""
        for sent, rate in ((1800, 0.1), (18_000, 0.042), (36_000, 0.03), (100_000, 0.01)):
            mean, deviation = sent * rate, sqrt(sent * rate * (1 - rate))
            least = (mean + np.array([-3, -1, 0, 1, 2, 3, 4]) * deviation).astype(np.int64)
            exposure = Exposure(
                each=np.zeros(0), lost=np.zeros(0), kind=np.zeros(0, np.int64),
                sent=np.full(len(least), float(sent)), least=least,
            )  # fmt: skip
            for k, chance in zip(least.tolist(), exposure.chance(rate).tolist(), strict=True):
                exact = fsum(
                    exp(
                        lgamma(sent + 1) - lgamma(n + 1) - lgamma(sent - n + 1)
                        + n * log(rate) + (sent - n) * log1p(-rate)
                    )
                    for n in range(k, k + ceil(12 * deviation))
                )  # fmt: skip
                self.assertApproximates(chance / exact, 1, 0.01, (sent, rate, k))

    def test_tail_where_none_can_be_hit(self):
        """Hits among flows without any chance are no chance."""
        self.assertEqual(scan.unequal_tail(3, np.zeros(9), np.full(90, 0.1), 9), 0.0)

    def test_chances_by_how_much_was_sent(self):
        """Chances are those of the rate at which as many flows are lossy, also beyond noise."""
        random = np.random.default_rng(1)
        sent = np.repeat([6.0, 120.0, 600.0], 20_000)
        least = np.where(sent == 600, 3, 1)
        lost = random.binomial(sent.astype(int), 0.001)
        lossy = lost >= least
        exposure = Exposure.of(sent, lost.astype(float), least)
        chance = exposure.even(np.arange(len(sent)), np.count_nonzero(lossy))
        for kind in (6, 120, 600):
            mine = sent == kind
            self.assertApproximates(lossy[mine].mean() / chance[mine].mean(), 1, 0.2)

    def test_no_gain_without_contrast(self):
        """The whole, and sets that are healthier than the rest, gain nothing."""
        gains = scan.likelihood_gain([30, 0, 1], [400, 10, 100], 30, 400)
        self.assertEqual(list(gains), [0, 0, 0])


class Ranked(SynchronousTestCase):
    """Which of a few links of a thousand flows stand out."""

    def ranked(self, members, troubled):
        """Return those found; ``members`` are (link, flows, depth), links 0 to 2 are L, M and N."""
        entries = sorted((flow, link, depth) for link, flows, depth in members for flow in flows)
        owner, member, depths = np.array(entries).T
        family = scan.Family(
            kind="link",
            label="LMN".__getitem__,
            size=3,
            member=member,
            start=np.searchsorted(owner, np.arange(1001)),
            depth=depths.astype(np.int16),
            rank=1,
        )
        answered = np.full(1000, -1, np.int16)
        return list(scan.ranked([family], np.arange(1000), np.array(troubled), answered, 3))

    def test_chance_is_of_the_flows_that_it_gains_by(self):
        """A link is judged by the flows seen there last where it gains by these, and hides no other."""
        links = (
            (0, range(6), 0),
            (0, range(100, 394), -1),  # healthy, and found on another way lately
            (1, range(400, 460), 0),
            (2, [*range(6, 400), *range(460, 1000)], 0),
        )
        first, second = self.ranked(links, [*range(6), *range(400, 408)])
        self.assertEqual(("L", 6, 6, True), (*self.told(first), first.last))
        self.assertLess(first.p_value, 1e-9)
        self.assertEqual(("M", 8, 60), self.told(second))
        self.assertLess(second.p_value, 1e-5)

    def test_flows_seen_last_are_enough_of_them(self):
        """Fewer than the least flows in trouble make no suspect, by either count."""
        links = (
            (0, range(2), 0),
            (0, range(100, 394), -1),
            (1, range(400, 460), 0),
            (2, [*range(2, 400), *range(460, 1000)], 0),
        )
        (only,) = self.ranked(links, [0, 1, 100, *range(400, 408)])
        self.assertEqual(("M", 8, 60), self.told(only))

    def told(self, found):
        """Return name, hits and flows."""
        return found.family.label(found.candidate), found.hits, found.inside


class Links(SynchronousTestCase):
    def test_a_black_hole(self):
        """A link that drops everything is named, with evidence that adds up."""
        for seed in range(5):
            (suspect,) = judge(fault(kind="loss", on="spine3 -> leaf2"), seed=seed).suspects
            self.assertEqual(suspect.key, "link spine3 -> leaf2")
            self.assertEqual(suspect.direction, "forward")
            self.assertEqual((suspect.explains, suspect.crossing_healthy), (suspect.troubled, 0))
            self.assertIn(
                f"explains {suspect.explains} of {suspect.explains} lossy flows, 0 of "
                f"{suspect.healthy} healthy ones cross it",
                suspect.evidence,
            )
            self.assertGreater(suspect.confidence, 0.9)

    def test_partial_loss(self):
        """Loss of 30, 5 and, over three intervals, 1 % is put down to its link."""
        for percent, sent in ((30, 25), (5, 25), (1, 75)):
            for seed in range(5):
                verdict = judge(
                    fault(kind="loss", on="leaf1 -> spine2", percent=percent), seed=seed, sent=sent
                )
                self.assertEqual(keys(verdict), ["link leaf1 -> spine2"])
                self.assertApproximates(verdict.suspects[0].rate, percent / 100, 0.04)

    def test_gray_loss(self):
        """Half a percent, and a tenth, is found given enough probes."""
        for percent, sent in ((0.5, 150), (0.1, 600)):
            for seed in range(4):
                verdict = judge(
                    fault(kind="loss", on="leaf3 -> spine1", percent=percent), seed=seed, sent=sent
                )
                self.assertEqual(keys(verdict), ["link leaf3 -> spine1"])

    def test_some_flows_only(self):
        """A black hole of a quarter of a link's flows is put down to the link."""
        verdict = judge(fault(kind="flows", on="spine1 -> leaf3", share=0.25))
        self.assertEqual(keys(verdict), ["link spine1 -> leaf3"])
        self.assertGreater(verdict.suspects[0].crossing_healthy, 0)

    def test_a_silent_spine(self):
        """A spine that drops everywhere is one node, not its six links."""
        for percent in (100, 30, 2):
            verdict = judge(fault(kind="silent", on="spine4", percent=percent))
            self.assertEqual(keys(verdict), ["node spine4"])

    def test_one_class(self):
        """A class that one link drops is named with its link."""
        verdict = judge(
            fault(kind="class", on="spine2 -> leaf1", dscp="EF"), classes=("BE", "EF"), per_pair=8
        )
        self.assertEqual(keys(verdict), ["link spine2 -> leaf1, class EF only"])

    def test_large_packets(self):
        """An MTU black hole is named with its link and size."""
        verdict = judge(
            fault(kind="mtu", on="leaf2 -> spine4", octets=1000), sizes=(44, 1400), per_pair=8
        )
        self.assertEqual(keys(verdict), ["link leaf2 -> spine4, size 1400 only"])

    def test_one_ip_version(self):
        """What only IPv6 meets is said to be so, and is not put down to the size of its probes."""
        for percent in (100, 30):
            bad = fault(kind="loss", on="spine1 -> leaf2", percent=percent)
            for sizes in ((96,), (96, 1440)):
                verdict = judge(bad, family=6, families=(4, 6), sizes=sizes, per_pair=8)
                (suspect,) = verdict.suspects
                self.assertEqual(suspect.key, "link spine1 -> leaf2, IPv6 only")
                self.assertEqual(suspect.only, {"family": "IPv6"})
                self.assertIn("spine1 -> leaf2, IPv6 only: explains", suspect.evidence)
                self.assertLess(abs(suspect.rate - percent / 100), 0.05)

    def test_one_ip_version_of_a_router(self):
        """A router that forwards no IPv6 is the router, not its links, nor the hosts behind it."""
        for fabric in (FABRIC, Fabric(6, 4, 2)):
            for on, also in (("spine1", ()), ("leaf2", ("rack leaf2",))):
                verdict = judge(
                    fault(kind="silent", on=on),
                    family=6,
                    families=(4, 6),
                    fabric=fabric,
                    per_pair=8,
                )
                (suspect,) = verdict.suspects
                self.assertEqual(suspect.key, f"node {on}, IPv6 only")
                self.assertEqual((suspect.only, suspect.also), ({"family": "IPv6"}, also))
                self.assertEqual(suspect.crossing_healthy, 0)

    def test_one_class_of_a_router(self):
        """Likewise one that drops a class."""

        def edit(window):
            flows, paths = window.flows, window.paths
            through = [n for n, (node, _) in enumerate(paths.links) if node == "spine1"]
            owner = np.repeat(np.arange(len(flows)), np.diff(paths.start))
            hit = np.unique(owner[np.isin(paths.link, through)])
            flows["lost_forward"][hit[flows["dscp"][hit] == 46]] = 5

        verdict = judge(edit=edit, classes=("BE", "EF"), per_pair=8)
        self.assertEqual(keys(verdict), ["node spine1, class EF only"])

    def test_bleached(self):
        """A link that re-marks a class is named with what the class becomes."""
        verdict = judge(
            fault(kind="bleach", on="spine4 -> leaf2", dscp="EF"), classes=("BE", "EF"), per_pair=8
        )
        self.assertEqual(keys(verdict), ["link spine4 -> leaf2"])
        self.assertIn("class EF becomes BE", verdict.suspects[0].evidence)

    def test_delay(self):
        """A slow link is found from round trips alone, since all of its flows are late."""
        verdict = judge(fault(kind="delay", on="spine3 -> leaf1"))
        self.assertEqual(keys(verdict), ["link spine3 -> leaf1"])
        self.assertEqual(verdict.suspects[0].direction, "unknown")

    def test_the_same_flows(self):
        """Links that the same flows cross are all named: measurement cannot tell them apart."""
        verdict = judge(
            fault(kind="loss", on="leaf1 -> spine1", percent=30), fabric=Fabric(2, 4, 2)
        )
        (suspect,) = verdict.suspects
        names = {suspect.name, *(name.removeprefix("link ") for name in suspect.also)}
        self.assertLessEqual({"leaf1 -> spine1", "spine1 -> leaf2"}, names)
        self.assertLess(len(names), 5)

    def test_the_same_flows_of_one_size(self):
        """Nor can it where only one size is lost: one of the two would be a guess."""
        for seed in range(10):
            verdict = judge(
                fault(kind="mtu", on="leaf1 -> spine1", octets=1000),
                fabric=Fabric(2, 3, 3),
                seed=seed,
                sizes=(44, 1400),
                per_pair=8,
            )
            (suspect,) = verdict.suspects
            names = {suspect.name, *(name.removeprefix("link ") for name in suspect.also)}
            self.assertEqual(names, {"leaf1 -> spine1", "spine1 -> leaf2"})
            self.assertEqual(suspect.only, {"size": "1400"})
            self.assertAlmostEqual(suspect.confidence, 1.0)

    def test_two_ways(self):
        """A flow that left a way is once in what it may have crossed; one that died, on its last."""
        links = [("a", "leaf1"), ("leaf1", "s1"), ("s1", "leaf2"), ("leaf2", "b"),
                 ("leaf1", "s2"), ("s2", "leaf2"), ("s1", "leaf3"), ("leaf3", "b"),
                 ("s2", "leaf3")]  # fmt: skip
        paths = Paths(
            links=links,
            start=np.array([0, 4, 8, 12]),
            link=np.array([0, 1, 2, 3, 0, 4, 5, 3, 0, 1, 2, 3], np.int32),
            answered=np.array([-1, -1, 2], np.int16),
            left=np.array([(0, 4), (0, 5), (1, 1), (1, 6), (1, 7), (1, 8), (2, 4), (2, 5)]),
        )
        flows = np.zeros(3, FLOWS)
        every = np.arange(3)
        links_of, nodes = path_families(flows, paths, np.array([False, False, True]))
        counts = {nodes.label(n): count for n, count in enumerate(nodes.count(every).tolist())}
        self.assertEqual(
            counts, {"a": 0, "b": 0, "leaf1": 3, "leaf2": 3, "leaf3": 1, "s1": 3, "s2": 2}
        )
        self.assertEqual(links_of.count(every).tolist(), [3, 3, 2, 3, 2, 2, 1, 1, 1])
        # Of the dead one the first two links are proven alive, and nothing is known of others.
        troubled = links_of.count_troubled(np.array([2]), paths.answered)
        self.assertEqual(troubled.tolist(), [0, 0, 1, 1, 0, 0, 0, 0, 0])

    def test_two_equal_rivals(self):
        """Of two that explain as much of the trouble each has half the likelihood."""
        ends = [(a, b) for a in range(8) for b in range(8) if a != b for _ in range(8)]
        flows = np.zeros(len(ends), FLOWS)
        flows["source"], flows["destination"] = np.transpose(ends)
        flows["sent"] = 120
        flows["lost_forward"] = np.where(flows["destination"] >= 6, 24, 0)
        hosts = Hosts(names=[f"h{n}" for n in range(8)], tags=[{}] * 8)
        for alone in (False, True):
            if alone:  # as of targets that are measured in a class and size of their own
                flows["dscp"] = np.where(flows["destination"] >= 4, 46, 0)
                flows["size"] = np.where(flows["destination"] >= 4, 512, 96)
            first = locate(flows, hosts).suspects[0]
            self.assertEqual(first.key, "host h6 receiving")
            self.assertAlmostEqual(first.confidence, 0.5, delta=0.05)

    def test_with_some_paths_unknown(self):
        """Seven tenths of the paths suffice; flows of unknown path raise no suspect of their own."""
        for percent in (100, 5):
            verdict = judge(
                fault(kind="loss", on="spine2 -> leaf2", percent=percent), traced=0.7, sent=50
            )
            self.assertEqual(keys(verdict), ["link spine2 -> leaf2"])

    def test_loss_on_the_way_back_is_none_on_the_way_there(self):
        """Beside noise, a bad way back to a host does not make its own way there a suspect."""
        for seed in range(25, 50):
            bad = fault(kind="loss", on="leaf1 -> h1-2", percent=10)
            verdict = judge(bad, noise=0.003, sent=50, seed=seed)
            self.assertNotIn("link h1-2 -> leaf1", keys(verdict))

    def test_network_noise(self):
        """A link at 10 % stands out of a network that loses 0.3 % everywhere."""
        verdict = judge(fault(kind="loss", on="leaf1 -> spine2", percent=10), noise=0.003, sent=50)
        self.assertEqual(keys(verdict)[0], "link leaf1 -> spine2")


class UnequalRates(SynchronousTestCase):
    """Faults where one class is probed twenty times as fast as another."""

    def test_a_link(self):
        """A link is named whole, not the faster class on it, beside even loss as well."""
        for percent, noise in ((100, 0.0), (100, 0.0005), (5, 0.0), (5, 0.001)):
            for seed in range(10):
                bad = fault(kind="loss", on="leaf1 -> spine2", percent=percent)
                verdict = judge_unequal("class", bad, noise=noise, seed=seed)
                self.assertEqual(keys(verdict), ["link leaf1 -> spine2"])

    def test_one_class(self):
        """A class that one link drops is named with its link, whether probed fast or slowly."""
        for dscp in ("BE", "AF41"):
            for seed in range(5):
                bad = fault(kind="class", on="spine2 -> leaf1", dscp=dscp)
                verdict = judge_unequal("class", bad, seed=seed)
                self.assertEqual(keys(verdict), [f"link spine2 -> leaf1, class {dscp} only"])

    def test_a_class_everywhere(self):
        """A class that loses more than the other everywhere is named, whichever is the faster."""
        for dscp, lossy, percent in ((0, "BE", 2), (34, "AF41", 10)):
            verdict = judge_unequal("class", noise=lambda f, d=dscp, p=percent: (f == d) * p / 100)
            self.assertEqual(keys(verdict), [f"class class {lossy}"])


class SeveralAtOnce(SynchronousTestCase):
    def test_two_links(self):
        """Two faults of any strength are two suspects and nothing else."""
        for one, two in ((100, 100), (100, 2), (30, 30), (5, 5)):
            verdict = judge(
                fault(kind="loss", on="leaf1 -> spine1", percent=one),
                fault(kind="loss", on="spine3 -> leaf2", percent=two),
                sent=75,
            )
            self.assertEqual(
                sorted(keys(verdict)), ["link leaf1 -> spine1", "link spine3 -> leaf2"]
            )

    def test_two_links_of_one_spine(self):
        """Two bad links of a spine are two links: its third one is healthy."""
        verdict = judge(
            fault(kind="loss", on="leaf1 -> spine3", percent=30),
            fault(kind="loss", on="leaf3 -> spine3", percent=30),
        )
        self.assertEqual(sorted(keys(verdict)), ["link leaf1 -> spine3", "link leaf3 -> spine3"])

    def test_a_dead_host_hides_nothing(self):
        """A dead host does not vote, and a gray link is still found."""
        verdict = judge(
            fault(kind="down", on="h1-1"),
            fault(kind="loss", on="spine1 -> leaf2", percent=5),
        )
        self.assertEqual(keys(verdict), ["host h1-1", "link spine1 -> leaf2"])


class Ends(SynchronousTestCase):
    def test_a_host_down(self):
        """A host that nobody reaches and that says nothing is down; its rack is healthy."""
        (suspect,) = judge(fault(kind="frozen", on="h2-1")).suspects
        self.assertEqual(suspect.key, "host h2-1")
        self.assertIn("all 5 sources lose it entirely", suspect.evidence)
        self.assertIn("1 more of rack leaf2 not", suspect.evidence)

    def test_a_dead_reflector(self):
        """A host that nobody reaches but whose collector reaches others lacks its reflector."""

        def edit(window):
            to_it = window.flows["destination"] == 0
            window.flows["lost_unknown"][to_it] = window.flows["sent"][to_it]

        verdict = judge(edit=edit)
        self.assertEqual(keys(verdict), ["reflector h1-1"])
        (suspect,) = verdict.suspects
        self.assertIn("its collector reaches others", suspect.evidence)
        # What its collector sends is no part of it, and speaks for the network.
        self.assertEqual((suspect.rate, suspect.crossing_healthy), (1.0, 0))
        self.assertEqual(verdict.judged, verdict.flows - len(suspect.flows))

    def test_dead_reflectors_of_a_rack(self):
        """So it is where all of a rack lack theirs: the rack is not down."""

        def edit(window):
            to_it = window.flows["destination"] < 2
            window.flows["lost_unknown"][to_it] = window.flows["sent"][to_it]

        verdict = judge(edit=edit)
        (suspect,) = verdict.suspects
        self.assertEqual(suspect.key, "tag rack leaf1 receiving")
        told = "reflectors of rack leaf1 dead: every source outside loses all of its 2 hosts, but"
        self.assertTrue(suspect.evidence.startswith(told), suspect.evidence)
        self.assertEqual((suspect.rate, suspect.crossing_healthy), (1.0, 0))

    def test_cut_off_with_a_single_target(self):
        """Who reaches nobody is not said to reach others, however few it probes; nor does it vote."""
        # Two hubs and eight spokes, which probe a hub each, and one of which nothing leaves or reaches.
        ends = [(hub, spoke) for hub in (0, 1) for spoke in range(2, 10)]
        ends += [(spoke, 0) for spoke in range(2, 10)] + [(0, 1), (1, 0)]
        flows = np.zeros(16 * len(ends), FLOWS)
        flows["source"], flows["destination"] = np.repeat(ends, 16, axis=0).T
        flows["sent"], flows["size"], flows["family"], flows["remarked_to"] = 25, 44, 4, 255
        flows["lost_unknown"][(flows["source"] == 5) | (flows["destination"] == 5)] = 25
        verdict = locate(flows, Hosts(names="ABcdefghij", tags=[{}] * 10))
        self.assertEqual(keys(verdict), ["host f"])
        self.assertIn("host f down", verdict.suspects[0].evidence)
        self.assertEqual((verdict.lossy, verdict.unexplained), (0, 0))

    def test_cut_off_that_probe_one_another(self):
        """Hosts of a rack that reach nobody, one another least of all, are no rack of dead reflectors."""
        ends = [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (2, 3), (3, 2)]
        source, destination = np.repeat(ends, 4, axis=0).T
        tags = [{"rack": "r7"}, {"rack": "r7"}, {"rack": "r1"}, {"rack": "r2"}]
        cut_off = (source < 2) | (destination < 2)
        (sick,) = examine(Hosts(names="abcd", tags=tags), source, destination, cut_off, 0.99).sick
        self.assertEqual((sick.name, sick.receiving), ("rack r7", False))

    def test_a_blind_collector(self):
        """A collector that loses everything to targets that others reach is its own problem."""

        def edit(window):
            of_it = window.flows["source"] == 3
            window.flows["lost_unknown"][of_it] = window.flows["sent"][of_it]

        verdict = judge(edit=edit)
        self.assertEqual(keys(verdict), ["collector h2-2"])

    def test_a_rack_down(self):
        """All hosts of a rack dead is the rack, not each host."""
        verdict = judge(fault(kind="silent", on="leaf2"), fabric=Fabric(3, 4, 3))
        self.assertEqual(keys(verdict), ["tag rack leaf2"])
        self.assertIn("all of its 3 hosts", verdict.suspects[0].evidence)

    def test_a_host_link(self):
        """Loss on the last link may be the host's own: that is named, and the link beside it."""
        (suspect,) = judge(fault(kind="loss", on="leaf1 -> h1-2", percent=10)).suspects
        self.assertEqual(suspect.key, "host h1-2 receiving")
        self.assertEqual(suspect.also, ("link leaf1 -> h1-2",))

    def test_a_host_that_loses_large_packets(self):
        """So it is where only one size is lost, in one direction or both."""
        bad = [fault(kind="mtu", on=on, octets=1000) for on in ("h1-2 -> leaf1", "leaf1 -> h1-2")]
        for faults, traced, key in (
            (bad[:1], 1.0, "host h1-2 sending, size 1400 only"),
            (bad[1:], 1.0, "host h1-2 receiving, size 1400 only"),
            (bad, 0.0, "host h1-2, size 1400 only"),
        ):
            verdict = judge(*faults, sizes=(44, 1400), per_pair=8, traced=traced)
            self.assertEqual(keys(verdict), [key])

    def test_a_host_that_loses_one_ip_version(self):
        """And where a host has no IPv6, as one whose reflector listens on IPv4 alone."""
        for on, key in (
            ("h1-2 -> leaf1", "host h1-2 sending, IPv6 only"),
            ("leaf1 -> h1-2", "host h1-2 receiving, IPv6 only"),
        ):
            bad = fault(kind="loss", on=on, percent=100)
            verdict = judge(bad, family=6, families=(4, 6), per_pair=8)
            self.assertEqual(keys(verdict), [key])

    def test_an_ip_version_everywhere(self):
        """IPv6 that loses wherever it goes is named as such."""

        def edit(window):
            window.flows["lost_forward"][window.flows["family"] == 6] = 3

        for traced in (0.0, 1.0):
            verdict = judge(edit=edit, families=(4, 6), per_pair=8, traced=traced)
            self.assertEqual(keys(verdict), ["family IPv6"])
            self.assertTrue(verdict.suspects[0].evidence.startswith("IPv6: explains "))

    def test_a_slow_host(self):
        """A host of which all flows are late is named, not its cables, nor its rack's only leaf."""

        def edit(window):
            flows = window.flows
            flows["late"] = (flows["source"] == 0) | (flows["destination"] == 0)

        for fabric, also in ((FABRIC, ()), (Fabric(4, 3, 1), ("node leaf1",))):
            (suspect,) = judge(fabric=fabric, edit=edit).suspects
            self.assertEqual((suspect.key, suspect.symptom), ("host h1-1", "late"))
            self.assertEqual(suspect.also, also)
            self.assertIn("its cable", suspect.evidence)

    def test_everybody_blind(self):
        """If nobody sees anything, nobody is named: it is everywhere."""

        def edit(window):
            window.flows["lost_unknown"] = window.flows["sent"]

        self.assertEqual(keys(judge(edit=edit)), ["everywhere everywhere"])

    def test_hosts_own_losses_do_not_vote(self):
        """Intervals in which hosts lost probes themselves are left out, and it is said."""

        def edit(window):
            to_it = window.flows["destination"] == 0
            window.flows["lost_forward"][to_it] = 5
            window.flows["suspect"][to_it] = suspect_bit("reflector_drops")

        verdict = judge(edit=edit)
        self.assertEqual(keys(verdict), [])
        self.assertIn("16 lossy flows of h2-1: the hosts themselves lost probes", verdict.excluded)

    def test_few_probes(self):
        """Flows with too few probes in the interval are judged by none, and it is said."""

        def edit(window, sent=4):
            to_it = window.flows["destination"] == 0
            window.flows["sent"] = sent
            window.flows["lost_unknown"][to_it] = sent

        verdict = judge(edit=edit)
        self.assertEqual((keys(verdict), verdict.judged), ([], 0))
        self.assertIn("16 lossy flows of h2-1: fewer than 5 probes of each", verdict.excluded)
        (suspect,) = judge(edit=lambda window: edit(window, 5)).suspects
        self.assertEqual(suspect.key, "reflector h1-1")

    def test_what_could_not_be_sent(self):
        """Of flows that their host could not send nothing is known, and it is said which those are."""

        def edit(window, why="send_failed"):
            to_it = (window.flows["source"] == 2) & (window.flows["destination"] == 0)
            window.flows["sent"][to_it] = 0
            window.flows["suspect"][to_it] = suspect_bit(why)

        verdict = judge(edit=edit)
        self.assertEqual(keys(verdict), [])
        self.assertEqual(verdict.judged, verdict.flows - 16)
        self.assertEqual(
            verdict.excluded, ("16 flows of h2-1: could not be sent by the host itself",)
        )
        # Whose turn did not come may be sent the next time.
        self.assertEqual(judge(edit=lambda window: edit(window, "late_ticks")).excluded, ())

    def test_what_a_late_collector_says(self):
        """Where a host ran late, only loss that has a direction, or is total, votes."""
        for reason, column, lost, named in (
            ("late_ticks", "lost_unknown", 1, []),
            ("reflector_late", "lost_unknown", 1, []),
            ("late_ticks", "lost_unknown", 25, ["host h1-1 receiving"]),
            ("late_ticks", "lost_reverse", 1, ["host h1-1 receiving"]),
        ):

            def edit(window, reason=reason, column=column, lost=lost):
                flows = window.flows
                hit = (flows["destination"] == 0) & (flows["source"] != 1)
                flows[column][hit] = lost
                flows["suspect"] = suspect_bit(reason)

            verdict = judge(edit=edit, traced=0.0)
            self.assertEqual(keys(verdict), named, column)
            self.assertEqual(any("ran late" in said for said in verdict.excluded), not named)

    def test_late_and_lost_besides(self):
        """What may have been late votes on nothing, also where the same flows lost others for sure."""

        def edit(window):
            flows = window.flows
            flows["lost_forward"][::2] = 1
            frozen = flows["destination"] == 0
            flows["lost_unknown"][frozen] = 12
            flows["suspect"][frozen] = suspect_bit("reflector_late")

        self.assertEqual(keys(judge(edit=edit)), [])

    def test_loss_of_all(self):
        """Where all flows lose alike that is everywhere, be it much less than half; a little is noise."""
        for lost, named in (
            (0, []),
            (1, []),
            (5, ["everywhere everywhere"]),
            (12, ["everywhere everywhere"]),
        ):

            def edit(window, lost=lost):
                window.flows["lost_forward"] = lost

            self.assertEqual(keys(judge(edit=edit)), named, lost)

    def test_too_few_probes(self):
        """Flows with too few probes are not judged."""
        verdict = judge(fault(kind="loss", on="spine3 -> leaf2"), sent=4)
        self.assertEqual((verdict.judged, verdict.suspects), (0, ()))


class Directions(SynchronousTestCase):
    """Which losses may vote on what."""

    def lossy_when(self, chosen, column, **judge_options):
        """Return the verdict on a healthy window where chosen flows lost 5 probes in a column."""

        def edit(window):
            window.flows[column][chosen(window)] = 5

        return judge(edit=edit, **judge_options)

    @staticmethod
    def crossing(link):
        """Return what chooses the flows that cross a link."""

        def chosen(window):
            owner = np.repeat(np.arange(len(window.flows)), np.diff(window.paths.start))
            number = window.paths.links.index(link)
            return np.unique(owner[window.paths.link == number])

        return chosen

    def test_unknown_never_votes_on_links(self):
        """Loss of unknown direction names no link, however well one fits."""
        verdict = self.lossy_when(self.crossing(("spine1", "leaf2")), "lost_unknown")
        self.assertNotIn("link", {suspect.kind for suspect in verdict.suspects})
        self.assertNotIn("node", {suspect.kind for suspect in verdict.suspects})

    def test_reverse_never_votes_on_links(self):
        """Reverse loss crossed links that nobody traced: it names none."""
        verdict = self.lossy_when(self.crossing(("spine1", "leaf2")), "lost_reverse")
        self.assertNotIn("link", {suspect.kind for suspect in verdict.suspects})
        self.assertEqual({suspect.direction for suspect in verdict.suspects}, {"reverse"})

    def test_reverse_without_the_other_collector(self):
        """Without collectors at the other end the suspect is the reverse direction, by tag."""
        simulation = Simulation(FABRIC, np.random.default_rng(1))
        window = simulation.window([fault(kind="loss", on="leaf2 -> spine1", percent=60)], 50)
        ours = np.flatnonzero(window.flows["source"] < 2)
        paths = window.paths
        counts = np.diff(paths.start)
        keep = np.isin(np.repeat(np.arange(len(window.flows)), counts), ours)
        paths = evolve(
            paths,
            start=np.concatenate(([0], np.cumsum(counts[ours]))),
            link=paths.link[keep],
            answered=paths.answered[ours],
        )
        verdict = locate(window.flows[ours], window.hosts, paths)
        self.assertEqual(verdict.suspects[0].direction, "reverse")
        self.assertIn("rack leaf2", verdict.suspects[0].name)

    def test_replies_over_the_bad_link_are_its_consequence(self):
        """Reverse loss that the other end located as a link is no second suspect."""
        verdict = judge(fault(kind="loss", on="leaf2 -> spine1", percent=60))
        self.assertEqual(keys(verdict), ["link leaf2 -> spine1"])
        self.assertEqual(verdict.unexplained, 0)

    def test_a_trace_that_died_is_forward(self):
        """A dead flow votes on links only where a trace ended, never on those before."""

        def edit(window):
            window.paths.answered[:] = -1

        untraced = judge(fault(kind="loss", on="spine3 -> leaf2"), edit=edit)
        self.assertNotIn("link", {suspect.kind for suspect in untraced.suspects})
        (suspect,) = judge(
            fault(kind="loss", on="leaf1 -> spine2"), fabric=Fabric(2, 2, 2)
        ).suspects
        self.assertEqual(suspect.name, "leaf1 -> spine2")

    def test_answering_hops_tell_equal_links_apart(self):
        """Where two links carry the same flows, hops that still answer clear the first."""
        (suspect,) = judge(
            fault(kind="loss", on="spine2 -> leaf1"), fabric=Fabric(2, 2, 2)
        ).suspects
        self.assertEqual((suspect.name, suspect.kind), ("spine2 -> leaf1", "link"))
        self.assertNotIn("link leaf2 -> spine2", suspect.also)


class Tags(SynchronousTestCase):
    """What is found without any trace."""

    def test_a_pair_of_racks(self):
        """Trouble between two racks only is named so."""

        def edit(window):
            rack = np.array([tags["rack"] for tags in window.hosts.tags])
            flows = window.flows
            chosen = (rack[flows["source"]] == "leaf1") & (rack[flows["destination"]] == "leaf3")
            flows["lost_unknown"][chosen] = 5

        self.assertEqual(keys(judge(edit=edit, traced=0.0)), ["pair rack leaf1 -> rack leaf3"])

    def test_a_pair_of_racks_there_and_back(self):
        """Trouble between two racks in both directions is one suspect, not two."""

        def edit(window):
            rack = np.array([tags["rack"] for tags in window.hosts.tags])
            flows = window.flows
            there, back = rack[flows["source"]], rack[flows["destination"]]
            flows["lost_forward"][(there == "leaf1") & (back == "leaf3")] = 5
            flows["lost_reverse"][(there == "leaf3") & (back == "leaf1")] = 5

        (suspect,) = judge(edit=edit, traced=0.0).suspects
        self.assertEqual(suspect.key, "pair rack leaf1 <-> rack leaf3")
        self.assertEqual(suspect.direction, "both")

    def test_a_lossy_cable_of_a_host(self):
        """Without any trace, what a host loses in both roles is one suspect: the host."""
        verdict = judge(fault(kind="loss", on="leaf1 -> h1-2", percent=10), traced=0.0)
        self.assertEqual(keys(verdict), ["host h1-2"])

    def test_a_lossy_uplink_of_a_rack(self):
        """Nor is a bad link of a rack two suspects when no path is known."""
        verdict = judge(fault(kind="loss", on="spine2 -> leaf3", percent=30), traced=0.0)
        self.assertEqual(keys(verdict), ["tag rack leaf3"])

    def test_one_ip_version_of_a_rack(self):
        """A rack that no IPv6 comes to or leaves is said to be so, also beside hosts without a rack."""

        def edit(window, untagged=()):
            rack = np.array([tags["rack"] for tags in window.hosts.tags])
            for host in untagged:
                window.hosts.tags[host].clear()
            flows = window.flows
            there, back = rack[flows["source"]] == "leaf1", rack[flows["destination"]] == "leaf1"
            chosen = (flows["family"] == 6) & (there ^ back)
            flows["lost_unknown"][chosen] = 25

        for untagged in ((), (5,)):
            (suspect,) = judge(
                edit=lambda window, untagged=untagged: edit(window, untagged),
                families=(4, 6), per_pair=8, fabric=Fabric(4, 4, 4),
            ).suspects  # fmt: skip
            self.assertEqual(suspect.key, "tag rack leaf1, IPv6 only")
            self.assertEqual(suspect.explains, suspect.troubled)

    def test_a_class_everywhere(self):
        """A class that is lost on every path is the class."""

        def edit(window):
            window.flows["lost_unknown"][window.flows["dscp"] == 46] = 5

        verdict = judge(edit=edit, classes=("BE", "EF", "CS1"), per_pair=4)
        self.assertEqual(keys(verdict), ["class class EF"])

    def test_a_class_bleached_everywhere(self):
        """A class that arrives re-marked over every path is the class, and what it becomes."""

        def edit(window):
            chosen = window.flows["dscp"] == 46
            window.flows["remarked_forward"][chosen] = 25
            window.flows["remarked_to"][chosen] = 0

        (suspect,) = judge(edit=edit, classes=("BE", "EF"), per_pair=4).suspects
        self.assertEqual(suspect.key, "class class EF")
        self.assertIn("EF becomes BE", suspect.evidence)

    def test_a_rack_that_loses_a_little(self):
        """Loss of all flows of one rack in both directions is the rack."""

        def edit(window):
            rack = np.array([tags["rack"] for tags in window.hosts.tags])
            flows = window.flows
            flows["lost_reverse"][rack[flows["destination"]] == "leaf2"] = 2

        verdict = judge(edit=edit, traced=0.0)
        self.assertEqual(keys(verdict), ["tag rack leaf2 receiving"])
        self.assertEqual(verdict.suspects[0].direction, "reverse")


class Quiet(SynchronousTestCase):
    def test_nothing_to_say(self):
        """A healthy network has no suspects, nor has an empty one."""
        self.assertEqual(judge().suspects, ())
        empty = locate(np.zeros(0, FLOWS), Hosts(names=(), tags=()))
        self.assertEqual((empty.suspects, empty.flows), ((), 0))

    def test_even_noise(self):
        """A network that loses evenly at random has no suspects, whatever the rate."""
        for noise in (0.0005, 0.003, 0.02):
            for seed in range(20):
                self.assertEqual(keys(judge(noise=noise, seed=seed)), [])

    def test_stated_false_positive_rate(self):
        """With the rate set a hundred times higher, false suspects stay below the rate set."""
        lax = Thresholds(false_positive_rate=0.1)
        blamed = sum(
            bool(judge(noise=0.002, seed=seed, thresholds=lax).suspects) for seed in range(100)
        )
        self.assertLessEqual(blamed, 18)  # 10 expected at most; 18 is 99.5 % of Binomial(100, 0.1)

    def test_stated_false_positive_rate_of_several_kinds(self):
        """Nor do classes and IP versions, of which everything may be confined to one, make it more."""
        lax = Thresholds(false_positive_rate=0.1)
        kinds = {"families": (4, 6), "classes": ("BE", "EF"), "per_pair": 4}
        blamed = sum(
            bool(judge(noise=0.002, seed=seed, thresholds=lax, **kinds).suspects)
            for seed in range(100)
        )
        self.assertLessEqual(blamed, 18)

    def test_even_noise_at_unequal_rates(self):
        """What is probed faster is lossy more often, and no suspect for it."""
        for noise in (0.0003, 0.001, 0.005):
            for seed in range(8):
                for what in ("class", "destination"):
                    self.assertEqual(keys(judge_unequal(what, noise=noise, seed=seed)), [], what)

    def test_stated_false_positive_rate_at_unequal_rates(self):
        """With the rate set a hundred times higher, false suspects stay below it here, too."""
        lax = Thresholds(false_positive_rate=0.1)
        for what in ("class", "destination"):
            blamed = sum(
                bool(judge_unequal(what, noise=0.001, seed=seed, thresholds=lax).suspects)
                for seed in range(100)
            )
            self.assertLessEqual(blamed, 18)

    def test_single_lossy_flows(self):
        """One or two lossy flows name nobody, even if they lost everything."""

        def edit(window):
            window.flows["lost_forward"][[3, 70]] = 25

        verdict = judge(edit=edit)
        self.assertEqual((keys(verdict), verdict.unexplained), ([], 2))

    def test_silent_icmp_is_no_loss(self):
        """Routers that send no ICMP are no suspects."""
        self.assertEqual(judge(fault(kind="icmp-silent", on="spine1")).suspects, ())

    def test_shapes_are_checked(self):
        """Paths of another number of flows are refused."""
        with self.assertRaisesRegex(ValueError, "paths of 2 flows given for 3 flows"):
            locate(np.zeros(3, FLOWS), Hosts(names=("a",), tags=({},)), Paths.unknown(2))

    @given(st.integers(0, 2**32), st.integers(1, 40))
    def test_any_figures(self, seed, count):
        """Figures that make no sense together are judged without failing."""
        random = np.random.default_rng(seed)
        flows = np.zeros(count, FLOWS)
        for name in FLOWS.names:
            top = 4 if name in ("source", "destination") else 2 if name == "late" else 50
            flows[name] = random.integers(0, top, count)
        links = [("a", "b"), ("b", "c"), ("c", "b")]
        lengths = random.integers(0, 4, count)
        paths = Paths(
            links=links,
            start=np.concatenate(([0], np.cumsum(lengths))),
            link=random.integers(0, 3, lengths.sum()).astype(np.int32),
            answered=random.integers(-1, 4, count).astype(np.int16),
        )
        hosts = Hosts(names="abcd", tags=[{"r": "1"}, {}, {"r": "2", "s": "x"}, {"s": "y"}])
        verdict = locate(flows, hosts, paths)
        for suspect in verdict.suspects:
            self.assertLessEqual(suspect.explains, suspect.troubled)
            self.assertTrue(suspect.evidence)


class Scale(SynchronousTestCase):
    def test_many_flows(self):
        """A hundred and fifty thousand flows and three faults at once are judged in one go."""
        verdict = judge(
            fault(kind="loss", on="spine3 -> leaf2", percent=5),
            fault(kind="silent", on="spine9", percent=1),
            fault(kind="down", on="h1-1"),
            fabric=Fabric(10, 16, 10),
        )
        self.assertEqual(keys(verdict), ["host h1-1", "node spine9", "link spine3 -> leaf2"])
