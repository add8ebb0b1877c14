"""Pinpointing where replies, and the answers of routers with them, are lost on their way back."""

import numpy as np
from attrs import evolve
from simulated_fabric import Simulation
from twisted.trial.unittest import SynchronousTestCase

from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.pinpoint.locate import locate

FABRIC = Fabric(3, 4, 2)


def fault(kind, on, **options):
    """Return a fault from its options."""
    return Fault.from_mapping({"kind": kind, "on": on, **options})


def keys(verdict):
    """Return what is suspected, in alphabetical order."""
    return sorted(suspect.key for suspect in verdict.suspects)


def only_of(window, chosen):
    """Return flows and paths of those chosen, as if nobody else measured."""
    paths, counts = window.paths, np.diff(window.paths.start)
    kept = evolve(
        paths,
        start=np.concatenate(([0], np.cumsum(counts[chosen]))),
        link=paths.link[np.repeat(chosen, counts)],
        answered=paths.answered[chosen],
    )
    return window.flows[chosen], kept


def without_answers(simulation, window, dead, hash_alike=True):
    """Return the paths of a window whose traces miss the answers that cross the link `dead`.

    It leads from a spine to a leaf. A spine answers the hosts of that leaf over this very link;
    the leaf beyond answers over the spine that the flow crosses, if it hashes alike, or any.
    """
    flows, paths, links = window.flows, window.paths, simulation.links
    spine, leaf = dead
    racks = [tags["rack"] for tags in window.hosts.tags]
    lost = flows["lost_forward"] + flows["lost_reverse"] + flows["lost_unknown"]
    answered = paths.answered.copy()
    for flow in np.flatnonzero(lost == flows["sent"]):
        way = [links[n] for n in simulation.forward[flow] if n >= 0]
        came_to = len(way) - 1 if answered[flow] < 0 else int(answered[flow])
        if racks[flows["source"][flow]] == leaf and len(way) > 2:
            there = way[1][1]
            back = there if hash_alike else simulation.random.choice(simulation.fabric.spine_names)
            if came_to == 3 and back == spine:
                came_to = 2
            if came_to == 2 and there == spine:
                came_to = 1
        answered[flow] = came_to if came_to < len(way) - 1 else -1
    return evolve(paths, answered=answered)


def judge_dead(link, *others, fabric, per_pair, seed, hash_alike=True):
    """Return the verdict on a link that dies with the answers of routers, and on other faults."""
    simulation = Simulation(fabric, np.random.default_rng(seed), per_pair=per_pair)
    window = simulation.window([fault("loss", link), *others], 20)
    paths = without_answers(simulation, window, tuple(link.split(" -> ")), hash_alike)
    return locate(window.flows, window.hosts, paths)


class Echoes(SynchronousTestCase):
    """Traces that end early since the answers of routers die."""

    def test_the_link_not_its_node(self):
        """Flows whose replies and answers a dead link kills do not make its spine the suspect."""
        for fabric, per_pair in ((Fabric(2, 2, 2), 16), (Fabric(3, 3, 1), 12)):
            link = f"spine2 -> {fabric.leaf_names[-1]}"
            named = [
                keys(judge_dead(link, fabric=fabric, per_pair=per_pair, seed=seed))
                for seed in range(40)
            ]
            # Where chance put hardly any flows on the link, nothing can be named.
            self.assertEqual([one for one in named if one not in ([f"link {link}"], [])], [])
            self.assertGreaterEqual(named.count([f"link {link}"]), 37)

    def test_a_dead_node_is_still_the_node(self):
        """A spine that drops everything is no link of its, though each of them is dead."""
        for seed in range(20):
            simulation = Simulation(Fabric(3, 2, 2), np.random.default_rng(seed))
            window = simulation.window([fault("silent", "spine2")], 20)
            verdict = locate(window.flows, window.hosts, window.paths)
            self.assertEqual(keys(verdict), ["node spine2"])

    def test_dead_both_ways(self):
        """A cable that drops everything in both directions is two links."""
        for seed in range(20):
            verdict = judge_dead(
                "spine2 -> leaf3",
                fault("loss", "leaf3 -> spine2"),
                fabric=FABRIC,
                per_pair=16,
                seed=seed,
                hash_alike=False,
            )
            self.assertEqual(keys(verdict), ["link leaf3 -> spine2", "link spine2 -> leaf3"])


class OneSided(SynchronousTestCase):
    """What can be said of a link whose other direction nobody measures."""

    def verdict(self, link, measuring, seed=1, back=True):
        """Return the verdict of the hosts of some leaves alone on a dead link, maybe a way back."""
        simulation = Simulation(FABRIC, np.random.default_rng(seed))
        window = simulation.window([fault("loss", link)], 20)
        if back:
            paths = without_answers(simulation, window, tuple(link.split(" -> ")))
            window = evolve(window, paths=paths)
        racks = np.array([tags["rack"] for tags in window.hosts.tags])
        chosen = np.isin(racks[window.flows["source"]], measuring)
        flows, paths = only_of(window, chosen)
        return locate(flows, window.hosts, paths)

    def test_a_dead_way_back(self):
        """A dead link on the way back is not told as the healthy one in the other direction."""
        for seed in range(20):
            verdict = self.verdict("spine2 -> leaf3", ["leaf3"], seed)
            kinds = {suspect.kind for suspect in verdict.suspects}
            self.assertFalse(kinds & {"link", "node"}, keys(verdict))
            self.assertEqual({one.direction for one in verdict.suspects} - {"unknown"}, set())

    def test_by_tags(self):
        """Where tags tell the place, they do, without a direction."""
        simulation = Simulation(FABRIC, np.random.default_rng(1))
        window = simulation.window([fault("loss", "leaf2 -> spine1")], 20)
        died = window.flows["lost_unknown"] == window.flows["sent"]
        spine1 = [n for n, (_, b) in enumerate(window.paths.links) if b == "spine1"]
        # leaf2 hashes its answers as it hashes replies: they die over spine1.
        window.paths.answered[died & np.isin(simulation.forward[:, 1], spine1)] = 2
        racks = np.array([tags["rack"] for tags in window.hosts.tags])
        flows, paths = only_of(window, racks[window.flows["source"]] != "leaf2")
        (suspect,) = locate(flows, window.hosts, paths).suspects
        self.assertEqual(suspect.key, "tag rack leaf2 receiving")
        self.assertEqual(suspect.direction, "unknown")

    def test_a_dead_way_there(self):
        """A link that kills all of its flows is named, whoever measures."""
        for link in ("leaf3 -> spine2", "spine2 -> leaf1"):
            verdict = self.verdict(link, ["leaf3"], back=False)
            self.assertEqual(keys(verdict), [f"link {link}"])


class Consequences(SynchronousTestCase):
    """A suspect accounts for replies, but only for so many as it can have hit."""

    def named_beside(self, *faults, seed=1, measuring=None, edit=None, sent=25, **traffic):
        """Return the verdict on some faults, of all hosts but one if `measuring` leaves it out."""
        simulation = Simulation(FABRIC, np.random.default_rng(seed), **traffic)
        window = simulation.window(faults, sent)
        if edit:
            edit(window)
        chosen = np.ones(len(window.flows), bool)
        if measuring is not None:
            chosen = np.isin(window.flows["source"], measuring)
        flows, paths = only_of(window, chosen)
        return locate(flows, window.hosts, paths)

    def test_a_line_card_opposite_to_a_dead_link(self):
        """Traces that end where the dead link cannot have killed the answers are no echo of it."""
        for share in (0.4, 0.8):
            for seed in range(10):
                verdict = self.named_beside(
                    fault("loss", "spine1 -> leaf2"),
                    fault("flows", "leaf2 -> spine3", share=share),
                    seed=seed,
                )
                self.assertEqual(keys(verdict), ["link leaf2 -> spine3", "link spine1 -> leaf2"])

    def test_a_way_back_worse_than_the_suspect(self):
        """A host without a collector that loses what it sends is told beside a spine that does."""
        for percent in (1, 3, 30):
            verdict = self.named_beside(
                fault("loss", "h3-2 -> leaf3", percent=40),
                fault("silent", "spine1", percent=percent),
                measuring=range(5),
                sent=100,
            )
            self.assertEqual(keys(verdict), ["host h3-2 receiving", "node spine1"])
            self.assertEqual({one.direction for one in verdict.suspects}, {"forward", "reverse"})

    def test_more_replies_than_the_share_of_a_link(self):
        """One link of four carries a quarter of the replies: if all of them are hit, it is another."""

        def edit(window):
            racks = np.array([tags["rack"] for tags in window.hosts.tags])
            flows = window.flows
            chosen = (racks[flows["source"]] == "leaf2") & (racks[flows["destination"]] == "leaf1")
            flows["lost_reverse"][chosen & (flows["lost_unknown"] == 0)] = 3

        verdict = self.named_beside(fault("loss", "spine1 -> leaf2"), edit=edit)
        self.assertEqual(keys(verdict), ["link spine1 -> leaf2", "pair rack leaf2 -> rack leaf1"])

    def test_what_is_left_is_said(self):
        """Replies beyond the share of a suspect are unexplained, as long as nothing has a name."""

        def edit(window):
            racks = np.array([tags["rack"] for tags in window.hosts.tags])
            flows = window.flows
            chosen = (racks[flows["source"]] == "leaf2") & (racks[flows["destination"]] == "leaf1")
            healthy = np.flatnonzero(chosen & (flows["lost_unknown"] == 0))
            flows["lost_reverse"][healthy[::3]] = 3

        bad = fault("loss", "spine1 -> leaf2")
        alone, both = self.named_beside(bad), self.named_beside(bad, edit=edit)
        self.assertEqual((keys(alone), alone.unexplained), (["link spine1 -> leaf2"], 0))
        self.assertEqual(keys(both), keys(alone))
        self.assertGreater(both.unexplained, 0)

    def test_even_noise_beside_a_dead_link(self):
        """In a large fabric even loss beside a dead link makes no pair of racks a suspect."""
        simulation = Simulation(Fabric(10, 16, 5), np.random.default_rng(1))
        window = simulation.window([fault("loss", "spine3 -> leaf2")], 25, 0.0005)
        verdict = locate(window.flows, window.hosts, window.paths)
        self.assertEqual(keys(verdict), ["link spine3 -> leaf2"])
