"""What `make bench-pinpoint` plays and how it counts, without any fabric."""

import io

from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.pinpoint import FABRICS, RATE_PPS, _shares
from benchmarks.pinpoint_report import (
    Outcome,
    Quiet,
    bound,
    failures,
    median_bound,
    most_an_hour,
    report,
)
from benchmarks.pinpoint_scenarios import TRAFFICS, describe, does_harm, draw
from llama.lab.fabric import Fabric
from llama.lab.faults import KINDS, Fault
from llama.lab.hosts import Traffic
from llama.lab.truth import confined, right


def outcome(harmful=1, top_at=1, ranks=(1,), incident_s=12.0, **rest):
    """Return the outcome of a scenario."""
    return Outcome(
        "loss", "3x4x2", harmful, within=3, top_at=top_at, ranks=list(ranks),
        incident_s=incident_s, **{"faint": False, **rest},
    )  # fmt: skip


class Drawing(SynchronousTestCase):
    def test_every_kind_on_every_fabric(self):
        """The scenarios of a fabric have every kind of fault in them, every rate, and two at once."""
        for fabric, _ in FABRICS:
            drawn = draw(7, fabric, 22)
            kinds = {fault.kind for scenario in drawn for fault in scenario.faults}
            self.assertLessEqual(
                set(KINDS) - {"icmp-limit", "icmp-silent"},
                kinds,
                "one of the two ICMP kinds is drawn",
            )
            rates = {
                fault.percent
                for scenario in drawn
                for fault in scenario.faults
                if fault.kind == "loss"
            }
            self.assertLessEqual({100, 30, 5, 1, 0.5}, rates)
            self.assertGreaterEqual(sum(len(scenario.faults) == 2 for scenario in drawn), 3)
            self.assertTrue(any(not does_harm(fabric, s.faults[0]) for s in drawn))

    def test_one_ip_version(self):
        """What one IP version alone loses is drawn, with traffic in which it shows."""
        for fabric, _ in FABRICS:
            drawn = [s for s in draw(7, fabric, 24) if s.faults[0].family is not None]
            self.assertEqual([s.faults[0].kind for s in drawn], ["loss", "silent"])
            for scenario in drawn:
                self.assertIn("family=6", describe(scenario))
                traffic = Traffic(**TRAFFICS[scenario.traffic])
                self.assertEqual(confined(scenario.faults[0], traffic), {"family": {"IPv6"}})

    def test_the_seed_decides(self):
        """A seed draws the same again, another one something else, more of it the same first."""
        fabric = FABRICS[0][0]
        words = [describe(scenario) for scenario in draw(7, fabric, 22)]
        self.assertEqual(words, [describe(scenario) for scenario in draw(7, fabric, 22)])
        self.assertNotEqual(words, [describe(scenario) for scenario in draw(8, fabric, 22)])
        self.assertLess(set(map(str, draw(7, fabric, 5))), set(map(str, draw(7, fabric, 22))))

    def test_only_some(self):
        """As many are drawn as wanted, all with the wanted words; none where there are none."""
        fabric = FABRICS[0][0]
        drawn = draw(7, fabric, 9, "delay")
        self.assertEqual([s.faults[0].kind for s in drawn], ["delay"] * 9)
        self.assertEqual(draw(7, fabric, 9, "earthquake"), [])

    def test_enough_probes_on_every_link(self):
        """Every cable between leaf and spine bears 300 probes a second at least."""
        for fabric, flows in FABRICS:
            there = fabric.hosts_per_leaf * (len(fabric.hosts) - fabric.hosts_per_leaf)
            self.assertGreaterEqual(2 * there * flows * RATE_PPS / fabric.spines, 300)

    def test_shares(self):
        """All scenarios are shared among the fabrics."""
        self.assertEqual((_shares(44), _shares(3), _shares(0)), ([22, 22], [2, 1], [0, 0]))


class Truth(SynchronousTestCase):
    """When a suspect is called right."""

    def right(self, fault, only, on="spine1 -> leaf2", also=(), **traffic):
        """Return whether a suspect of that name, confined so, is the fault."""
        made = Fault.from_mapping({"on": "spine1 -> leaf2", **fault})
        suspect = {"name": on, "also": list(also), "only": only}
        return right(Fabric(), Traffic(**traffic), made, suspect)

    def test_what_it_is_confined_to(self):
        """What hits one class, size or IP version alone must be said so, what hits all must not."""
        kinds = {"classes": ("BE", "EF"), "sizes": (96, 1400), "family": "both"}
        for fault, good in (
            ({"kind": "loss"}, [{}]),
            ({"kind": "loss", "family": 6}, [{"family": "IPv6"}]),
            ({"kind": "class", "dscp": "EF"}, [{"class": "EF"}]),
            ({"kind": "mtu", "octets": 1000}, [{"size": "1400"}]),
            ({"kind": "mtu", "octets": 1000, "family": 6}, [{"size": "1400"}, {"family": "IPv6"}]),
            ({"kind": "bleach", "dscp": "EF"}, [{}, {"class": "EF"}]),
        ):
            for only in (
                {}, {"family": "IPv4"}, {"family": "IPv6"}, {"class": "BE"}, {"class": "EF"},
                {"size": "96"}, {"size": "1400"},
            ):  # fmt: skip
                self.assertEqual(self.right(fault, only, **kinds), only in good, (fault, only))

    def test_what_traffic_can_show(self):
        """Of what is probed in one class, size and IP version nothing is confined to these."""
        for fault, traffic in (
            ({"kind": "class", "dscp": "BE"}, {}),
            ({"kind": "loss", "family": 6}, {"family": "6"}),
            ({"kind": "mtu", "octets": 140}, {"sizes": (96, 1400), "family": "6"}),
        ):
            self.assertTrue(self.right(fault, {}, **traffic), fault)
            self.assertFalse(self.right(fault, {"family": "IPv6"}, **traffic), fault)

    def test_names(self):
        """The name counts, or one that the very same flows have."""
        self.assertFalse(self.right({"kind": "loss"}, {}, on="leaf1 -> spine1"))
        also = ["link spine1 -> leaf2"]
        self.assertTrue(self.right({"kind": "loss"}, {}, on="leaf1 -> spine1", also=also))


class Counting(SynchronousTestCase):
    def test_bounds(self):
        """Bounds are Wilson's; all of few is less than certainty."""
        self.assertEqual(bound(8, 10), "8 of 10, 80.0 % (49.0 to 94.3)")
        self.assertEqual(bound(0, 0), "none")
        self.assertIn("(72.2 to 100.0)", bound(10, 10))

    def test_median(self):
        """The median's bounds are of the values' order; what never came is the longest."""
        self.assertEqual(median_bound(range(1, 12)), "6.0 (2.0 to 10.0), longest 11.0")
        self.assertIn("longest never", median_bound([1.0, 2.0, float("inf")]))
        self.assertEqual(median_bound([]), "none")

    def test_rate_of_rare_events(self):
        """Nothing seen in an hour may still be three an hour, by Poisson."""
        self.assertAlmostEqual(most_an_hour(0, 1.0), 3.0, places=2)
        self.assertAlmostEqual(most_an_hour(2, 0.5), 12.59, places=2)

    def test_report(self):
        """Every figure has its bound, and failures do not hide in an average."""
        outcomes = [
            outcome(),
            outcome(top_at=None, ranks=[None], incident_s=None, said=["nothing"]),
            outcome(harmful=2, ranks=[1, 2]),
            outcome(harmful=0, top_at=None, ranks=[], incident_s=None, false_incidents=["link x"]),
        ]
        told = report(outcomes, [Quiet("3x4x2", 360, 0.5, 1, ())], 8)
        self.assertIn("1 of 2", told["single faults of 1 % and more on top within 3 intervals"])
        self.assertIn("1 of 1", told["two at once, both before all others"])
        self.assertIn("0 of 1", told["harmless ones without an incident"])
        self.assertIn("not named: 1 of 4", told["rank of the true suspect at the last judgement"])
        self.assertIn("longest never", told["time from fault to incident, s, median"])
        self.assertIn("1 of 4", told["false incidents in scenarios"])
        self.assertIn("at most 6.0 an hour", told["false incidents an hour of quiet"])
        output = io.StringIO()
        failures(Console(file=output, width=100), outcomes, 120.0)
        self.assertEqual(output.getvalue().count("3x4x2 loss"), 2)
