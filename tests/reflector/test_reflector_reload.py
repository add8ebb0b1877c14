"""Reloads of a reflector's sockets: refused ones, ones at its end, and what outlasts them."""

from __future__ import annotations

import errno
import resource
import socket
import subprocess
import sys
from typing import Any

import attrs
import numpy as np
from reflector_case import StillReactor, probe
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llama.config import ReflectorConfig
from llama.http.server import CannotListen
from llama.net import mmsg
from llama.reflector import service as reflector_service
from llama.reflector.arrival import Arrival, packed_address
from llama.reflector.service import AnswersNowhere, PortService, ReflectorService
from llama.wire import tlv

#: A reflector that finds itself without a place as soon as it runs.
LOST = """
from twisted.internet import reactor
from llama.config import ReflectorConfig
from llama.reflector.tap import _Daemon
reactor.callWhenRunning(_Daemon(reactor, ReflectorConfig(), {}).failed)
reactor.run()
print("ended")
"""
ELSEWHERE = "192.0.2.99"  # no address of this machine: for documentation, RFC 5737


class Robbed(PortService):
    """A reflector whose place is taken by another program as soon as it leaves it."""

    thief: socket.socket | None = None
    place: tuple[str, int] = ("", 0)

    def _open(self, config: ReflectorConfig, address: str, number: int) -> Any:
        if address == ELSEWHERE and self.thief is None:
            self.thief = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.thief.bind(self.place)
        return super()._open(config, address, number)


class Without6(PortService):
    """A reflector that meets an error at its IPv6 address."""

    error = 0

    def _open(self, config: ReflectorConfig, address: str, number: int) -> Any:
        if address == "::":
            raise CannotListenError(address, number, OSError(self.error, "as the test wants it"))
        return super()._open(config, address, number)


class ReloadTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Have a reactor that stands still."""
        if not mmsg.AVAILABLE:
            raise SkipTest("this platform has no recvmmsg")
        self.reactor = StillReactor()

    def started(
        self, *addresses: str, kind: type[PortService] = PortService, **further: Any
    ) -> Any:
        """Start a reflector that lasts as long as the test."""
        service = kind(self.reactor, ReflectorConfig(port=0, addresses=addresses, **further))

        def stop() -> None:
            service.stopService()
            self.reactor.advance(0)

        self.addCleanup(stop)
        service.startService()
        return service

    def begin(self, service: Any, **changes: Any) -> Deferred[None]:
        """Begin a reload with ``changes`` of the configuration it was started with."""
        return Deferred.fromCoroutine(service.use(attrs.evolve(service._config, **changes)))

    def reload(self, service: Any, **changes: Any) -> Deferred[None]:
        """Reload, and go on until that is over."""
        done = self.begin(service, **changes)
        for _ in range(5):
            self.reactor.advance(0)
        return done

    def answered(self, service: PortService, address: str = "127.0.0.1", count: int = 1) -> int:
        """Return how many of ``count`` probes come back."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((address, service.port_number))
            for n in range(count):
                client.send(probe(n, tlvs=tlv.request(0, tlv.SIZE)))
            for port in service.ports:
                port.doRead()
            client.setblocking(False)
            replies = 0
            while True:
                try:
                    self.told = tlv.read_one(memoryview(client.recv(1000))[44:])
                except BlockingIOError:
                    return replies
                replies += 1

    def test_a_refused_reload_leaves_all_as_it_was(self) -> None:
        """Where one of several new addresses cannot be had, the old one is answered on the old port."""
        for before, after in (("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")):
            service = self.started(before)
            number = service.port_number
            done = self.reload(service, addresses=(after, ELSEWHERE))
            self.assertIn(ELSEWHERE, str(self.failureResultOf(done, CannotListen).value))
            hosts = [(port.getHost().host, port.getHost().port) for port in service.ports]
            self.assertEqual([(before, number)], hosts)
            self.assertEqual(1, self.answered(service))
            self.assertEqual(1, service.generation)

    def test_any_port_is_kept(self) -> None:
        """Port 0 is chosen once: a reload that changes every address stays on the same."""
        service = self.started("127.0.0.1")
        number = service.port_number
        self.successResultOf(self.reload(service, addresses=("127.0.0.2",)))
        self.assertEqual(number, service.port_number)
        self.successResultOf(self.reload(service, addresses=("127.0.0.1",), interface="lo"))
        self.assertEqual((number, 1), (service.port_number, self.answered(service)))

    def test_a_reflector_that_lost_its_place_ends(self) -> None:
        """What can answer neither at the new place nor at the old says so and ends."""
        service = self.started("127.0.0.1", kind=Robbed)
        service.place = ("127.0.0.1", service.port_number)
        done = self.reload(service, addresses=("127.0.0.2", ELSEWHERE))
        self.addCleanup(service.thief.close)
        self.assertIn(
            "no longer where it was", str(self.failureResultOf(done, AnswersNowhere).value)
        )
        ended: list[bool] = []
        config = ReflectorConfig(port=0, addresses=("127.0.0.1",), api="127.0.0.1:0")
        whole = ReflectorService(self.reactor, config)
        self.patch(whole, "failed", lambda: ended.append(True))
        self.patch(whole.ports, "use", lambda config: service_lost())
        self.successResultOf(Deferred.fromCoroutine(whole.use(config)))
        self.assertEqual([True], ended)

    def test_a_reload_that_gets_no_file_is_no_fault(self) -> None:
        """Nor does it go on, answering nowhere, when others have taken all files meanwhile."""
        service = self.started("127.0.0.1")
        done = self.begin(service, addresses=("127.0.0.2",))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            for _ in range(5):
                self.reactor.advance(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.assertIn("Too many open files", str(self.failureResultOf(done, AnswersNowhere).value))

    def test_its_end_is_a_failure(self) -> None:
        """Whoever supervises it is told by its status that the program did not end as it should."""
        done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True)
        self.assertEqual((1, "ended\n"), (done.returncode, done.stdout), done.stderr)

    def test_an_old_address_that_stays_is_enough(self) -> None:
        """Of two old places one was kept: the reflector goes on there rather than end."""
        service = self.started("127.0.0.1", "127.0.0.3", kind=Robbed)
        service.place = ("127.0.0.1", service.port_number)
        done = self.reload(service, addresses=("127.0.0.3", ELSEWHERE))
        self.addCleanup(service.thief.close)
        self.failureResultOf(done, CannotListen)
        self.assertEqual(1, self.answered(service, "127.0.0.3"))

    def test_the_end_comes_in_the_midst_of_a_reload(self) -> None:
        """A reflector that is stopped while it waits for its old socket binds none any more."""
        service = self.started("127.0.0.1")
        number = service.port_number
        done = self.begin(service, addresses=("127.0.0.2",))
        self.assertEqual(([], number), (service.ports, service.port_number))  # figures go on
        stopped = service.stopService()
        for _ in range(3):
            self.reactor.advance(0)
        self.successResultOf(done)
        self.successResultOf(stopped)
        self.assertEqual(([], 1), (service.ports, service.generation))

    def test_only_a_machine_without_ipv6_does_without(self) -> None:
        """Where IPv6 is missing IPv4 is answered alone; a port that is in use there is an error."""
        for code in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            self.patch(Without6, "error", code)
            service = self.started("0.0.0.0", "::", kind=Without6)
            self.assertEqual(["0.0.0.0"], [port.getHost().host for port in service.ports])
        self.patch(Without6, "error", errno.EADDRINUSE)
        self.assertRaises(CannotListen, self.started, "0.0.0.0", "::", kind=Without6)

    def test_start_and_drops_outlast_the_sockets(self) -> None:
        """A new socket is no new reflector: it tells when that started, and drops do not become less."""
        service = self.started("127.0.0.1")
        self.answered(service)
        started_ns = self.told.started_ns
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            room = service.ports[0]._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            for _ in range(room // 4096 + 64):
                client.sendto(bytes(9000), ("127.0.0.1", service.port_number))
        for _ in range(50):
            service.ports[0].doRead()
        self.answered(service)  # the kernel tells of drops with what comes after them
        dropped = service.receive_drops()
        self.assertGreater(dropped, 0)
        self.successResultOf(self.reload(service, port=service.port_number, interface="lo"))
        self.assertEqual(dropped, service.receive_drops())
        self.assertEqual(1, self.answered(service))
        self.assertEqual(started_ns, self.told.started_ns)
        self.assertEqual(dropped, self.told.receive_drops)

    def test_sessions_of_a_new_socket_are_the_newest(self) -> None:
        """Those of a socket that is gone make room for them, however long that was there."""
        now_s = 1000.0
        self.patch(reflector_service.time, "monotonic", lambda: now_s)
        service = self.started("127.0.0.1", max_sessions=8)
        for n in range(8):
            service.ports[0].protocol._number(
                Arrival(0, n, 9), 0, service.ports[0].protocol._now()[1]
            )
        now_s += 864_000
        self.successResultOf(self.reload(service, port=service.port_number, interface="lo"))
        (port,) = service.ports
        numbers = []
        for _ in range(3):
            for n in (100, 101):
                _, number = port.protocol._number(Arrival(0, n, 9), 0, port.protocol._now()[1])
                numbers.append(number)
            now_s += 1
        self.assertEqual(numbers, [0, 0, 1, 1, 2, 2])

    def test_no_interface_without_batches(self) -> None:
        """Where it cannot be kept to an interface it says so, and does not answer on all."""
        config = ReflectorConfig(port=0, addresses=("127.0.0.1",), interface="lo")
        service = PortService(self.reactor, config, batched=False)
        with self.assertRaises(CannotListen) as raised:
            service.startService()
        self.assertIn("interface", str(raised.exception))

    def test_refusals_outlast_a_new_limit(self) -> None:
        """Another rate for each source goes on counting what the one before it has refused."""
        service = self.started("127.0.0.1", max_pps_per_source=0.1, burst_per_source=1000)
        self.assertEqual(1000, sum(self.answered(service, count=100) for _ in range(11)))
        high, low = np.array([packed_address("127.0.0.1")], np.uint64).T

        def refused() -> int:
            found = service._rules["guard"].refusals(high, low)
            return int(found[0])

        self.assertEqual(100, refused())
        self.successResultOf(self.reload(service, max_pps_per_source=0.2, burst_per_source=1000))
        self.assertEqual(100, refused())
        self.assertEqual(0, self.answered(service, count=5))  # nor is there a second burst
        self.assertEqual(105, refused())
        self.successResultOf(self.reload(service, max_pps=10.0, max_pps_per_source=1e6))
        self.assertEqual(105, refused())


async def service_lost() -> None:
    """Fail as a reload does that loses its place."""
    raise AnswersNowhere("another has it")
