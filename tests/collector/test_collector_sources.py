"""The address that probes leave from, while it changes."""

from __future__ import annotations

from attrs import evolve
from collector_case import ServiceCase
from network import alone, ip
from timekeeper_case import TimekeeperCase, pair

from llama.collector.service import SOURCES_S, ProbingService
from llama.net import route


class ChangingTests(ServiceCase):
    """A collector's own address, as the kernel chooses it."""

    def sources(self, service: ProbingService) -> set[str]:
        """The source addresses that series have, when a minute and an interval have passed."""
        self.reactor.advance(SOURCES_S)
        for _ in range(100):
            self.reactor.advance(0.01)
        service.timekeeper._end_ns = 1
        service.timekeeper.tick()
        return {p.src_ip for track in service.prober.tracks for p in track.pairs}

    @alone
    def test_series_follow_it(self) -> None:
        """Booted without an address, then given one, then another: series are called by it."""
        ip("link add v0 type veth peer name v1")
        ip("link set v0 up")
        ip("link set v1 up")
        service = self.service(*(f"10.99.1.{n}" for n in range(2, 202)))
        self.assertEqual(self.sources(service), {"0.0.0.0"})
        ip("addr add 10.99.1.1/24 dev v0")
        self.assertEqual(self.sources(service), {"10.99.1.1"})
        ip("addr add 10.99.1.250/24 dev v0")
        ip("addr del 10.99.1.1/24 dev v0")
        ip("addr replace 10.99.1.250/24 dev v0")
        self.assertEqual(self.sources(service), {"10.99.1.250"})
        generation = service.timekeeper.generation
        self.assertEqual(self.sources(service), {"10.99.1.250"})
        ip("addr del 10.99.1.250/24 dev v0")  # no route: what was known last is kept
        self.assertEqual(self.sources(service), {"10.99.1.250"})
        self.assertEqual(service.timekeeper.generation, generation)

    @alone
    def test_through_an_interface(self) -> None:
        """What is bound to an interface has the address that it has there, whatever others have."""
        for name, net in (("v0", 1), ("v1", 2)):
            ip(f"link add {name} type veth peer name {name}-peer")
            ip(f"link set {name}-peer up")
            ip(f"addr add 10.99.{net}.1/24 dev {name}")
            ip(f"link set {name} up")
        ip("route add 192.0.2.0/24 dev v0")
        ip("route add 192.0.2.0/24 dev v1 metric 900")
        told = [route.local_address("192.0.2.7", name) for name in (None, "v0", "v1", "v2")]
        self.assertEqual(told, ["10.99.1.1", "10.99.1.1", "10.99.2.1", None])

    @alone
    def test_of_link_local_destinations(self) -> None:
        """It is the one that the interface behind the % has."""
        for name, address in (("v0", "fe80::1"), ("v1", "fe80::2")):
            ip(f"link add {name} type veth peer name {name}-peer")
            ip(f"link set {name}-peer up")
            ip(f"link set {name} addrgenmode none")
            ip(f"addr add {address}/64 dev {name} nodad")
            ip(f"link set {name} up")
        told = [route.local_address(f"fe80::77%{name}") for name in ("v0", "v1", "v2")]
        self.assertEqual(told, ["fe80::1", "fe80::2", None])
        service = self.service("fe80::77%v1")
        self.assertEqual(self.sources(service), {"fe80::2"})


class CalledOtherwiseTests(TimekeeperCase):
    """A pair that goes on under another name."""

    def test_nothing_is_lost(self) -> None:
        """What was sent under one name is told under it, what is sent later under the other."""
        before = pair("127.0.0.1", self.number)
        other = pair("127.0.0.1", self.number, dscp=46)
        after = evolve(before, src_ip="127.0.0.77")
        self.timekeeper.use([self.group(before, other)])
        self.newest(1)
        self.timekeeper.use([self.group(after, other)])
        self.newest(3)
        seen = {
            name: [i.end_ns for i in self.closed if name in {p.src_ip for p in i.pairs if p.dscp == 0}]
            for name in ("127.0.0.1", "127.0.0.77")
        }  # fmt: skip
        self.assertLess(max(seen["127.0.0.1"]), min(seen["127.0.0.77"]))
        self.assertEqual(len(seen["127.0.0.1"]) + len(seen["127.0.0.77"]), len(self.closed))
        self.assertIn(self.closed[-1].end_ns, seen["127.0.0.77"])
        for interval in self.closed:
            self.assertEqual(interval.pair_stats["lost"].tolist(), [0, 0])
        self.assertEqual(self.prober.strangers, 0)
