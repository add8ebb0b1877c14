"""Interfaces that are missing, come later or are made anew while a collector probes through them."""

from __future__ import annotations

from typing import Any

from engine_case import EngineCase, pair
from test_collector_names import ServiceCase
from twisted.internet.testing import MemoryReactorClock

from llama.collector import sockets, track
from llama.collector.plan import Group, Source
from llama.collector.summary import Pair


def link_local(zone: str, host: str = "fe80::1") -> Pair:
    """A pair whose address means something on one interface alone."""
    return pair(f"{host}%{zone}", 8100)


class MissingTests(EngineCase):
    """A target behind an interface that is not there."""

    def group6(self, *pairs: Pair, **options: Any) -> Group:
        """A group of one test over IPv6."""
        source = Source(
            version=6, address=None, interface=None, number=0, owner="0", df=False
        )  # fmt: skip
        return Group(
            test="six", probe="stamp", version=6, sources=(source,), rate_pps=50, pairs=pairs,
            timeout_s=self.timeout_s, **options,
        )  # fmt: skip

    def test_only_what_is_behind_it_is_refused(self) -> None:
        """Other pairs of the same test are probed; the ones refused are told, with the reason."""
        six = self.group6(pair("::1", self.number), link_local("wan9"), link_local("wan8"))
        refused = self.engine.use([self.group(), six])
        self.assertEqual(
            [([p.dst_ip for p in group.pairs], reason.strerror) for group, reason in refused],
            [
                (["fe80::1%wan9"], "there is no interface wan9"),
                (["fe80::1%wan8"], "there is no interface wan8"),
            ],
        )
        probed = {p.dst_ip for track in self.prober.tracks for p in track.pairs}
        self.assertEqual(probed, {"127.0.0.1", "::1"})

    def test_gone_before_it_is_taken_up(self) -> None:
        """An interface that goes between a plan and the next interval hinders nothing else."""
        self.engine.use([self.group()])
        self.newest(1)
        group = self.group6(pair("::1", self.number), link_local("lo"))
        self.assertEqual(self.engine.use([self.group(), group]), [])
        self.patch(self.engine, "_wanted", (
            self.group(), group.with_pairs((group.pairs[0], link_local("gone"))),
        ))  # fmt: skip
        self.newest(2)
        self.assertEqual(len(self.prober.tracks), 2)
        self.assertEqual(self.engine.trouble(), "")

    def test_a_plan_that_cannot_be_taken_up_is_tried_again(self) -> None:
        """Whatever hinders it: what was probed goes on, and it is told until it works."""
        self.engine.use([self.group()])
        self.newest(1)
        arrange = self.prober.arrange
        self.patch(self.prober, "arrange", lambda _: 1 // 0)
        self.engine.use([self.group(pair("127.0.0.2", self.number))])
        self.newest(2)
        self.assertIn("could not be taken up", self.engine.trouble())
        self.assertGreater(int(self.closed[-1].pair_stats["sent"].sum()), 0)
        self.prober.arrange = arrange  # type: ignore[method-assign]
        self.newest(2)
        self.assertEqual(self.engine.trouble(), "")
        self.assertEqual([p.dst_ip for p in self.closed[-1].pairs], ["127.0.0.2"])
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))


class ServiceTests(ServiceCase):
    """What becomes of it in a whole collector."""

    def test_start_and_retry(self) -> None:
        """A collector starts without it, and probes it once it is there."""
        service = self.service("127.0.0.9", "fe80::1%wan9")
        self.assertEqual(self.probed(service), {"127.0.0.9"})
        self.assertIsInstance(self.reactor, MemoryReactorClock)
        self.assertFalse(self.reactor.hasStopped)
        for module in (sockets, track):
            self.patch(module, "interface_number", lambda name: {"wan9": 1}.get(name, 0))
        service.engine._end_ns = 1  # the next interval begins with the next tick
        self.reactor.advance(10)
        service.engine.tick()
        self.assertEqual(self.probed(service), {"127.0.0.9", "fe80::1%wan9"})
