"""Plans: from configuration to groups of flows."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llama.collector.probing.plan import Group, cap_factor, chosen_addresses, make_plan
from llama.config import CollectorConfig, SourcePort, Target, Test


class PlanTests(SynchronousTestCase):
    """From configuration to groups."""

    def config(self, test: Test, **options: Any) -> CollectorConfig:
        """A configuration of one test."""
        return CollectorConfig(path="x.yaml", tests=(test,), src_hostname="here", **options)

    def two_targets(self, **options: Any) -> Test:
        """A test of two targets."""
        return Test(
            name="t",
            targets=(Target(name="a", host="a"), Target(name="b", host="b", tags={"rack": "01"})),
            source_ports=options.pop("source_ports", (SourcePort(name="p"), SourcePort(name="p"))),
            **options,
        )

    ADDRESSES = {"a": ("192.0.2.1", "2001:db8::1"), "b": ("192.0.2.2",)}

    def plan(self, config: CollectorConfig) -> tuple[Group, ...]:
        """The plan, with made-up source addresses."""
        return make_plan(config, self.ADDRESSES, lambda to, _: "::" if ":" in to else "192.0.2.9")

    def test_families(self) -> None:
        """One address by default, that of the asked family, or one of each."""
        for family, expected in (
            ("any", {"192.0.2.1", "192.0.2.2"}),
            ("6", {"2001:db8::1"}),
            ("both", {"192.0.2.1", "2001:db8::1", "192.0.2.2"}),
        ):
            groups = self.plan(self.config(self.two_targets(family=family)))
            self.assertEqual({p.dst_ip for g in groups for p in g.pairs}, expected)
        self.assertEqual(chosen_addresses("4", ("::1",)), [])

    def test_tags(self) -> None:
        """A target's tags are those of all its pairs, and kept once."""
        test = self.two_targets(sizes=(100, 200))
        (group,) = self.plan(self.config(test))
        first, second = ([p.tags for p in group.pairs if p.target == name] for name in "ab")
        for tags, target in ((first, test.targets[0]), (second, test.targets[1])):
            self.assertEqual(tags, [target.tags] * 2)
            self.assertIs(*tags)

    def test_caps_lower_all_rates(self) -> None:
        """No cap is exceeded, in packets or in bits."""
        test = self.two_targets(rate_pps=100.0)
        for options in ({"max_pps": 50.0}, {"max_bps": 10_000.0}, {"max_pps": 1e9}):
            config = self.config(test, **options)
            load = [group.load() for group in self.plan(config)]
            pps, bps = sum(one[0] for one in load), sum(one[1] for one in load)
            self.assertLessEqual(pps, options.get("max_pps", 1e12) * 0.9001)
            self.assertLessEqual(bps, options.get("max_bps", 1e12) * 0.9001)
        self.assertEqual(cap_factor(self.config(test), self.plan(self.config(test))), 1.0)

    def test_a_cap_that_begins_to_bind_makes_nothing_new(self) -> None:
        """A name that resolves may lower the rate of others; they stay the same groups."""
        config = self.config(self.two_targets(rate_pps=100.0), max_pps=250.0)
        plans = [
            make_plan(config, addresses, lambda *_: "192.0.2.9")
            for addresses in ({"a": ("192.0.2.1",)}, self.ADDRESSES)
        ]
        (one,), (other,) = plans
        self.assertGreater(one.rate_pps, other.rate_pps)
        self.assertEqual(one.identity, other.identity)

    def test_class_sent_from_some_ports_alone(self) -> None:
        """A class is one series whatever other classes share some of its ports."""
        ports = (SourcePort(name="p"), SourcePort(name="q", dscps=(0, 46)))
        groups = self.plan(self.config(self.two_targets(source_ports=ports)))
        series = [(p.dst_ip, p.dscp) for g in groups for p in g.pairs]
        self.assertEqual(len(series), len(set(series)))
        self.assertEqual(
            sorted((g.pairs[0].dscp, len(g.sources)) for g in groups), [(0, 2), (46, 1)]
        )

    def test_plain_probes(self) -> None:
        """Without TLVs a probe is the standard's 44 octets."""
        (group,) = self.plan(self.config(self.two_targets(options={"tlvs": False})))
        self.assertEqual({p.size for p in group.pairs}, {44})

    def test_ports_of_other_classes_or_timeouts_are_groups_of_their_own(self) -> None:
        """Flows of a group share their timeout and classes."""
        ports = (
            SourcePort(name="p"), SourcePort(name="q", dscps=(46,)),
            SourcePort(name="r", dscps=(8,), timeout_s=3.0), SourcePort(name="p"),
        )  # fmt: skip
        groups = self.plan(self.config(self.two_targets(source_ports=ports)))
        self.assertEqual(
            sorted((g.timeout_s, len(g.sources)) for g in groups), [(1.0, 1), (1.0, 2), (3.0, 1)]
        )
