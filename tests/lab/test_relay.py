"""The impairment relay: flows keep their identity, and each harm is done as asked."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from llama.lab.relay import Impairment, Relay

REFLECTOR = ("192.0.2.1", 8100)
CLIENT = ("192.0.2.9", 40000)


class FakePort:
    """A UDP port that keeps what is written to it."""

    def __init__(self, protocol: DatagramProtocol, interface: str) -> None:
        self.protocol = protocol
        self.interface = interface
        self.peer: tuple[str, int] | None = None
        self.written: list[tuple[bytes, tuple[str, int] | None]] = []
        self.listening = True
        self.refusal: OSError | None = None

    def connect(self, host: str, port: int) -> None:
        """Remember the peer, as a connected socket does."""
        self.peer = (host, port)

    def write(self, data: bytes, addr: tuple[str, int] | None = None) -> None:
        """Keep a datagram, or refuse it as the kernel would."""
        if self.refusal is not None:
            raise self.refusal
        self.written.append((data, addr or self.peer))

    def stopListening(self) -> Deferred[None]:
        """Close the port."""
        self.listening = False
        self.protocol.transport = None
        return succeed(None)


class FakeReactor(Clock):
    """A clock that also hands out fake UDP ports, as many as ``available``."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[FakePort] = []
        self.available = 1000

    def listenUDP(self, port: int, protocol: DatagramProtocol, interface: str = "") -> FakePort:
        """Connect a protocol to a new fake port."""
        if len(self.ports) >= self.available:
            raise CannotListenError(interface, port, OSError("too many open files"))
        made = FakePort(protocol, interface)
        self.ports.append(made)
        protocol.makeConnection(made)
        return made


class RelayTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Begin without ports."""
        self.reactor = FakeReactor()

    def relay(self, **options: Any) -> Relay:
        """Return a relay that listens on the first fake port."""
        relay = Relay(self.reactor, REFLECTOR, random=Random(1), **options)
        self.reactor.listenUDP(0, relay, interface="192.0.2.5")
        return relay

    def probe(self, relay: Relay, data: bytes, client: tuple[str, int] = CLIENT) -> None:
        """Let a client's packet arrive."""
        relay.datagramReceived(data, client)

    def sent(self, flow: int = 0) -> list[bytes]:
        """Return what the relay has sent to the reflector for the flow of this number."""
        return [data for data, _ in self.reactor.ports[1 + flow].written]

    def test_probe_reaches_the_reflector(self) -> None:
        """A probe leaves for the reflector unchanged, from the client's own address."""
        self.probe(self.relay(), b"probe")
        upstream = self.reactor.ports[1]
        self.assertEqual(upstream.written, [(b"probe", REFLECTOR)])
        self.assertEqual(upstream.interface, CLIENT[0])

    def test_flows_have_sockets_of_their_own(self) -> None:
        """Two source ports reach the reflector from two sockets, and a third probe reuses one."""
        relay = self.relay()
        self.probe(relay, b"a", ("192.0.2.9", 1))
        self.probe(relay, b"b", ("192.0.2.9", 2))
        self.probe(relay, b"c", ("192.0.2.9", 1))
        self.assertEqual(self.sent(0), [b"a", b"c"])
        self.assertEqual(self.sent(1), [b"b"])

    def test_reply_goes_to_its_flow(self) -> None:
        """A reply on a flow's socket goes to that flow's client and to nobody else."""
        relay = self.relay()
        self.probe(relay, b"a", ("192.0.2.9", 1))
        self.probe(relay, b"b", ("192.0.2.9", 2))
        self.reactor.ports[2].protocol.datagramReceived(b"reply", REFLECTOR)
        self.assertEqual(self.reactor.ports[0].written, [(b"reply", ("192.0.2.9", 2))])

    def test_bad_path_loses_its_flows_only(self) -> None:
        """One bad path of four takes every fourth flow, wholly, and leaves the others whole."""
        relay = self.relay(forward=Impairment(paths=4, bad_paths={1}))
        for number in range(3):
            for flow in range(8):
                self.probe(relay, b"%d" % number, ("192.0.2.9", 100 + flow))
        arrived = [len(self.sent(flow)) for flow in range(8)]
        self.assertEqual(arrived, [3, 0, 3, 3, 3, 0, 3, 3])
        self.assertEqual(relay.forward.passage.lost, 6)
        self.assertEqual(relay.forward.passage.carried, 18)

    def test_bad_path_back(self) -> None:
        """A bad path on the way back loses replies, not probes, and counts them there."""
        relay = self.relay(reverse=Impairment(paths=2, bad_paths={0}))
        for flow in range(2):
            self.probe(relay, b"probe", ("192.0.2.9", 100 + flow))
            self.reactor.ports[1 + flow].protocol.datagramReceived(b"reply", REFLECTOR)
        self.assertEqual(self.reactor.ports[0].written, [(b"reply", ("192.0.2.9", 101))])
        self.assertEqual((relay.forward.passage.lost, relay.reverse.passage.lost), (0, 1))

    def test_path_loss_is_a_share(self) -> None:
        """A bad path may lose a share of its packets only."""
        relay = self.relay(forward=Impairment(bad_paths={0}, path_loss=0.5))
        for _ in range(1000):
            self.probe(relay, b"probe")
        self.assertTrue(450 < len(self.sent()) < 550, len(self.sent()))

    def test_same_seed_same_fate(self) -> None:
        """Two relays with equally seeded randomness lose the same packets."""
        outcomes = []
        for _ in range(2):
            self.reactor = FakeReactor()
            relay = self.relay(forward=Impairment(bad_paths={0}, path_loss=0.5))
            for number in range(64):
                self.probe(relay, b"%d" % number)
            outcomes.append(self.sent())
        self.assertEqual(*outcomes)

    def test_delay(self) -> None:
        """A delayed packet leaves when its time has come and not before."""
        self.probe(self.relay(forward=Impairment(delay_s=0.020)), b"probe")
        self.reactor.advance(0.019)
        self.assertEqual(self.sent(), [])
        self.reactor.advance(0.001)
        self.assertEqual(self.sent(), [b"probe"])

    def test_directions_are_apart(self) -> None:
        """Delay on the way back leaves the way there at once."""
        relay = self.relay(reverse=Impairment(delay_s=0.020))
        self.probe(relay, b"probe")
        self.assertEqual(self.sent(), [b"probe"])
        self.reactor.ports[1].protocol.datagramReceived(b"reply", REFLECTOR)
        self.assertEqual(self.reactor.ports[0].written, [])
        self.reactor.advance(0.020)
        self.assertEqual(self.reactor.ports[0].written, [(b"reply", CLIENT)])

    def test_jitter_keeps_order(self) -> None:
        """Jitter spreads delays within its bounds but no packet overtakes another."""
        relay = self.relay(forward=Impairment(delay_s=0.010, jitter_s=0.005))
        for number in range(50):
            self.probe(relay, b"%02d" % number)
        self.reactor.advance(0.0099)
        self.assertEqual(self.sent(), [])
        self.reactor.advance(0.0051)
        self.assertEqual(self.sent(), [b"%02d" % number for number in range(50)])

    def test_one_timer(self) -> None:
        """However many packets are delayed, one timer is pending."""
        relay = self.relay(forward=Impairment(delay_s=0.010, jitter_s=0.001))
        for _ in range(100):
            self.probe(relay, b"probe")
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)

    def test_full_table_evicts_the_most_silent(self) -> None:
        """A flow too many closes the socket of the flow that has been silent longest."""
        relay = self.relay(max_flows=2)
        for client in (1, 2, 1, 3):
            self.probe(relay, b"probe", ("192.0.2.9", client))
        self.assertEqual([port.listening for port in self.reactor.ports[1:]], [True, False, True])
        self.assertEqual(relay.flows, 2)

    def test_no_socket_left(self) -> None:
        """Without a socket for a new flow its packets are counted as failed, and others live."""
        relay = self.relay()
        self.probe(relay, b"a", ("192.0.2.9", 1))
        self.reactor.available = 2
        self.probe(relay, b"b", ("192.0.2.9", 2))
        self.probe(relay, b"c", ("192.0.2.9", 1))
        self.assertEqual(self.sent(), [b"a", b"c"])
        self.assertEqual(relay.forward.passage.failed, 1)
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    def test_refused_send_is_counted(self) -> None:
        """A send that the kernel refuses is counted, and the next one goes out."""
        relay = self.relay()
        self.probe(relay, b"a")
        self.reactor.ports[1].refusal = OSError("network is unreachable")
        self.probe(relay, b"b")
        self.reactor.ports[1].refusal = None
        self.probe(relay, b"c")
        self.assertEqual(self.sent(), [b"a", b"c"])
        self.assertEqual(relay.forward.passage.failed, 1)

    def test_stop_closes_everything(self) -> None:
        """Stopping closes every socket and forgets what is on its way."""
        relay = self.relay(forward=Impairment(delay_s=0.010))
        self.probe(relay, b"probe")
        self.successResultOf(relay.stop())
        self.assertEqual([port.listening for port in self.reactor.ports], [False, False])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_impossible_impairments(self) -> None:
        """Shares outside 0 to 1, negative delays and no paths at all are refused."""
        for mistake in ({"path_loss": 1.1}, {"delay_s": -1.0}, {"paths": 0}):
            self.assertRaises(ValueError, lambda wrong=mistake: Impairment(**wrong))


class Echo(DatagramProtocol):
    """Answers with the port it was asked from, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, tuple[str, int]]] = []

    def datagramReceived(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer."""
        self.seen.append((data, addr))
        assert self.transport is not None
        self.transport.write(data, addr)


class Client(DatagramProtocol):
    """Fires ``done`` once ``wanted`` replies have come."""

    def __init__(self, wanted: int) -> None:
        self.replies: list[bytes] = []
        self.done: Deferred[list[bytes]] = Deferred()
        self._wanted = wanted

    def datagramReceived(self, data: bytes, addr: tuple[str, int]) -> None:
        """Keep a reply."""
        self.replies.append(data)
        if len(self.replies) == self._wanted:
            self.done.callback(self.replies)


class LoopbackTests(TestCase):
    """The relay between real sockets."""

    def setUp(self) -> None:
        """Use the reactor that runs."""
        from twisted.internet import reactor

        self.reactor: Any = reactor

    def listen(self, protocol: DatagramProtocol) -> tuple[str, int]:
        """Listen on a loopback port until the test ends, and return where."""
        port = self.reactor.listenUDP(0, protocol, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return "127.0.0.1", port.getHost().port

    def relayed(self, to: tuple[str, int], **options: Any) -> tuple[Relay, tuple[str, int]]:
        """Return a relay to an address, and where it listens."""
        relay = Relay(self.reactor, to, random=Random(1), **options)
        port = self.reactor.listenUDP(0, relay, interface="127.0.0.1")
        self.addCleanup(relay.stop)
        return relay, ("127.0.0.1", port.getHost().port)

    async def test_there_and_back(self) -> None:
        """Probes of four flows come back to their own sockets, seen from four ports beyond."""
        echo = Echo()
        _, where = self.relayed(self.listen(echo))
        clients = [Client(2) for _ in range(4)]
        for number, client in enumerate(clients):
            self.listen(client)
            for probe in range(2):
                client.transport.write(b"%d-%d" % (number, probe), where)
        for number, client in enumerate(clients):
            self.assertEqual(await client.done, [b"%d-0" % number, b"%d-1" % number])
        self.assertEqual(len({addr for _, addr in echo.seen}), 4)

    async def test_delay_is_real(self) -> None:
        """Two delays of 10 ms make a round trip of no less than 20 ms."""
        impairment = Impairment(delay_s=0.010)
        _, where = self.relayed(self.listen(Echo()), forward=impairment, reverse=impairment)
        client = Client(1)
        self.listen(client)
        began = self.reactor.seconds()
        client.transport.write(b"probe", where)
        await client.done
        self.assertGreaterEqual(self.reactor.seconds() - began, 0.0199)
