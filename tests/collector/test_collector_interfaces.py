"""Interfaces that are missing, come later or are made anew while a collector probes through them."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve
from collector_case import ServiceCase
from network import alone, ip
from timekeeper_case import TimekeeperCase, pair
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import Pair
from llama.collector.probing import sockets, track
from llama.collector.probing.attempts import attempt_socket
from llama.collector.probing.complaints import MOST_KNOWN, MOST_LINES, Complaints
from llama.collector.probing.icmp import EchoSocket
from llama.collector.probing.plan import Group, Source


def link_local(zone: str, host: str = "fe80::1") -> Pair:
    """A pair whose address means something on one interface alone."""
    return pair(f"{host}%{zone}", 8100)


class MissingTests(TimekeeperCase):
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
        refused = self.timekeeper.use([self.group(), six])
        self.assertEqual(
            [([p.dst_ip for p in group.pairs], reason.strerror) for group, reason in refused],
            [
                (["fe80::1%wan9"], "there is no interface wan9"),
                (["fe80::1%wan8"], "there is no interface wan8"),
            ],
        )
        probed = {p.dst_ip for track in self.prober.tracks for p in track.pairs}
        self.assertEqual(probed, {"127.0.0.1", "::1"})
        self.assertEqual((self.timekeeper.refused, self.timekeeper.trouble()), (refused, ""))

    def test_gone_before_it_is_taken_up(self) -> None:
        """An interface that goes between a plan and the next interval hinders nothing else."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        group = self.group6(pair("::1", self.number), link_local("lo"))
        self.assertEqual(self.timekeeper.use([self.group(), group]), [])
        self.patch(self.timekeeper, "_wanted", (
            self.group(), group.with_pairs((group.pairs[0], link_local("gone"))),
        ))  # fmt: skip
        self.newest(2)
        self.assertEqual(len(self.prober.tracks), 2)
        self.assertEqual(self.timekeeper.trouble(), "")

    def test_a_plan_that_cannot_be_taken_up_is_tried_again(self) -> None:
        """Whatever hinders it: what was probed goes on, and it is told until it works."""
        self.timekeeper.use([self.group()])
        self.newest(1)
        arrange = self.prober.arrange
        self.patch(self.prober, "arrange", lambda _: 1 // 0)
        self.timekeeper.use([self.group(pair("127.0.0.2", self.number))])
        self.newest(2)
        self.assertIn("could not be taken up", self.timekeeper.trouble())
        self.assertGreater(int(self.closed[-1].pair_stats["sent"].sum()), 0)
        self.prober.arrange = arrange  # type: ignore[method-assign]
        self.newest(2)
        self.assertEqual(self.timekeeper.trouble(), "")
        self.assertEqual([p.dst_ip for p in self.closed[-1].pairs], ["127.0.0.2"])
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))


class ServiceTests(ServiceCase):
    """What becomes of it in a whole collector."""

    def test_start_and_retry(self) -> None:
        """A collector starts without it, and probes it once it is there."""
        service = self.service("127.0.0.9", "fe80::1%wan9")
        self.assertEqual(self.probed(service), {"127.0.0.9"})
        self.assertFalse(self.reactor.hasStopped)
        for module in (sockets, track):
            self.patch(module, "interface_number", lambda name: {"wan9": 1}.get(name, 0))
        service.timekeeper._end_ns = 1  # the next interval begins with the next tick
        self.reactor.advance(10)
        service.timekeeper.tick()
        self.assertEqual(self.probed(service), {"127.0.0.9", "fe80::1%wan9"})


class AnewTests(TimekeeperCase):
    """An interface that is deleted and made again under its name: to the kernel it is another."""

    def make_interface(self) -> None:
        """Make v0, beyond which nobody answers."""
        ip("link add v0 type veth peer name v1")
        ip("addr add 10.99.1.1/24 dev v0")
        ip("addr add fe80::1/64 dev v0 nodad")
        ip("link set v0 up")
        ip("link set v1 up")
        for address in ("10.99.1.2", "fe80::77"):
            ip(f"neigh add {address} lladdr 02:00:00:00:00:01 dev v0")

    def probe_through(self, *groups: Group) -> None:
        """Probe, delete the interface and make it again; probes leave through it as before."""
        self.make_interface()
        self.timekeeper.use(groups)
        self.run_until(lambda: self.prober.sent > 10, answering=False)
        numbers = [sock.number for sock in self.prober.sockets.values()]
        ip("link del v0")
        self.run_until(lambda: self.timekeeper.trouble(), answering=False)
        self.assertIn("no probe of test", self.timekeeper.trouble())
        self.make_interface()
        self.run_until(lambda: not self.timekeeper.trouble(), answering=False)
        failed = self.prober.failed_sends.total()
        sent = self.prober.sent
        self.run_until(lambda: self.prober.sent > sent + 20, answering=False)
        self.assertEqual(self.prober.failed_sends.total(), failed)
        self.assertEqual([sock.number for sock in self.prober.sockets.values()], numbers)

    @alone
    def test_bound_to_it(self) -> None:
        """A test that is bound to it goes on, from the same source ports."""
        group = self.group(pair("10.99.1.2", 8100))
        sources = tuple(evolve(s, address=None, interface="v0") for s in group.sources)
        self.probe_through(evolve(group, sources=sources))

    @alone
    def test_echo_requests_of_a_number(self) -> None:
        """A ping socket keeps the identifier that the configuration gives it."""
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        self.make_interface()
        source = Source(
            version=4, address=None, interface="v0", number=4321, owner="", df=False,
            protocol="icmp",
        )  # fmt: skip
        sock = EchoSocket(source, kernel_stamps=True, ids=self.ids)
        self.addCleanup(sock.sock.close)
        self.assertFalse(sock.raw)
        ip("link del v0")
        self.make_interface()
        sock.follow_interface()
        self.assertEqual((sock.number, sock.device), (4321, socket.if_nametoindex("v0")))
        with self.assertRaises(OSError):  # nobody else may have it
            EchoSocket(source, kernel_stamps=True, ids=self.ids)

    @alone
    def test_link_local_targets(self) -> None:
        """Link-local addresses behind it are addressed by its new number."""
        source = Source(version=6, address=None, interface=None, number=0, owner="", df=False)
        group = evolve(
            self.group(link_local("v0", "fe80::77")), version=6, sources=(source,)
        )  # fmt: skip
        self.probe_through(group)
        (track,) = self.prober.tracks
        self.assertEqual(track.scopes, {"v0": socket.if_nametoindex("v0")})


class SourceTests(SynchronousTestCase):
    """A link-local address to probe from, which is one of an interface's."""

    @alone
    def test_bound_to(self) -> None:
        """Sockets of all kinds are bound to it, and not without its interface."""
        ip("link add v0 type veth peer name v1")
        ip("addr add fe80::1/64 dev v0 nodad")
        ip("link set v0 up")
        ip("link set v1 up")
        source = Source(
            version=6, address="fe80::1%v0", interface=None, number=0, owner="", df=False
        )  # fmt: skip
        missing = evolve(source, address="fe80::1%v9")
        bound = "fe80::1", socket.if_nametoindex("v0")

        def stamped(kind: type[sockets.ProbeSocket], source: Source) -> socket.socket:
            return kind(source, kernel_stamps=True, ids=False).sock

        for make in (
            partial(stamped, sockets.ProbeSocket), partial(stamped, EchoSocket),
            partial(attempt_socket, number=0),
        ):  # fmt: skip
            sock = make(source)
            self.addCleanup(sock.close)
            host, _, _, scope = sock.getsockname()
            self.assertEqual((host, scope), bound)
            with self.assertRaises(OSError) as refused:
                make(missing)
            self.assertEqual(refused.exception.strerror, "there is no interface v9")


class ComplaintTests(SynchronousTestCase):
    """What is said of probes that could not be sent."""

    def test_once_until_all_was_well(self) -> None:
        """Each destination and error once, and once more after an interval without."""
        complaints = Complaints()
        said = []
        for failing in (True, True, False, True):
            told = [complaints.worth_telling("192.0.2.1", "ENODEV") for _ in range(3 * failing)]
            told += [complaints.worth_telling("192.0.2.1", "EPERM") for _ in range(failing)]
            said.append(told)
            self.assertEqual(complaints.next_interval(), 0)
        first = [True, False, False, True]
        self.assertEqual(said, [first, [False] * 4, [], first])

    def test_few_lines(self) -> None:
        """However many destinations fail, an interval has few lines, and one that counts the rest."""
        complaints = Complaints()
        told = [complaints.worth_telling(str(n), "EPERM") for n in range(2 * MOST_KNOWN)]
        self.assertEqual(sum(told), MOST_LINES)
        self.assertEqual(complaints.next_interval(), MOST_KNOWN - MOST_LINES)
