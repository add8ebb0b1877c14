"""A group of flows while it is probed: what of its probes and pairs is needed by column."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.replies import Ints
from llama.collector.intervals.summary import Pair
from llama.collector.probing import formats
from llama.collector.probing.flow_index import flow_keys
from llama.collector.probing.inbox import HEAD
from llama.collector.probing.plan import Group, Variant
from llama.collector.probing.schedule import Schedule
from llama.collector.probing.sockets import HeldPort, interface_number, sockaddr, zone_of
from llama.net import mmsg
from llama.wire import stamp


class Track:
    """A group being probed: its ledger, its schedule and its columns, one row a pair or a flow.

    ``live`` says which pairs are probed; others are kept until their last interval has closed.
    """

    def __init__(
        self,
        group: Group,
        ledger: Ledger,
        live: npt.NDArray[np.bool_],
        sockets: Sequence[HeldPort],
        ssids: Mapping[Variant, int],
        chance: random.Random,
        now_s: float,
    ) -> None:
        self.group = group
        self._chance = chance
        self.ledger = ledger
        self.live = live
        self.sockets = list(sockets)
        self.pairs: Sequence[Pair] = group.pairs
        self.ports = len(group.sources)
        self.first_flow = 0  # within the prober; set when the tracks are lined up
        self.first_cell = 0
        variants = sorted(set(group.variants))
        place = {variant: n for n, variant in enumerate(variants)}
        #: What flows are told apart by; replies without one are told by their times.
        self.ssids = np.array([ssids[variant] for variant in variants], np.uint16)
        #: What probes bear of it.
        self.ssids_sent = self.ssids * np.uint16(group.probe != "twamp-light")
        self.variant = np.array([place[variant] for variant in group.variants], np.intp)
        self.tos = np.array([pair.dscp << 2 for pair in self.pairs], np.uint64)
        sizes = np.array([variant[1] for variant in variants], np.uint64)
        self.head = np.minimum(sizes, np.uint64(HEAD))
        self.tail = sizes - self.head
        self.mean_size = float(sizes[self.variant].mean()) if len(self.pairs) else 0.0  # octets
        self.format = formats.format_of(group)
        #: The octet at which probes have their Error Estimate, if they have one.
        self.estimate_at = 12 if self.format is None else self.format.estimate_at
        if self.format is not None:
            ledger.stamps_there = self.format.tells_times
        template = formats.stamp_template if self.format is None else self.format.template
        self.templates = np.zeros((len(variants), HEAD), np.uint8)
        for n, (dscp, size, _) in enumerate(variants):
            packet = template(group, dscp, size, int(self.ssids[n]))[:HEAD]
            self.templates[n, : len(packet)] = np.frombuffer(packet, np.uint8)
        interface = group.sources[0].interface
        zones = [zone_of(pair.dst_ip, interface) for pair in self.pairs]
        #: The numbers of the interfaces that link-local addresses are behind; 0: there is none.
        self.scopes = {zone: interface_number(zone) for zone in zones if zone is not None}
        #: Which pairs' peers return no SSID: they count all that comes from a source port together.
        self.bare = np.full(len(self.pairs), group.probe == "twamp-light")
        self._zones = zones
        names = bytearray()
        for pair, zone in zip(self.pairs, zones, strict=True):
            scope = self.scopes.get(zone or "", 0)
            name = sockaddr(group.version, pair.dst_ip, pair.dst_port, scope)
            names += name.ljust(mmsg.NAME_ROOM, b"\0")
        self.names = np.frombuffer(names, np.uint8).reshape(-1, mmsg.NAME_ROOM)
        self.schedule = Schedule(np.flatnonzero(live), self.ports, group.rate_pps, now_s, chance)
        #: Rows of ``names`` in the order in which probes are sent to them.
        self.names_in_order = self.names[self.schedule.order]
        self.ordinal = np.array([sock.ordinal for sock in sockets], np.uint64)
        self.flow_rows: npt.NDArray[np.void] | None = None  # for whoever closes its intervals
        #: The class each pair asks its replies to come in.
        self.asked = np.array(
            [pair.dscp if group.reply_dscp is None else group.reply_dscp for pair in self.pairs],
            np.uint8,
        )
        #: Of each pair, its row of the prober's `Reflectors`; set when the tracks are lined up.
        self.reflector = np.zeros(len(self.pairs), np.intp)

    def follow(self, before: Track, pairs: Ints, others: Ints) -> None:
        """Go on where ``before`` was: its pair ``others[i]`` is ``pairs[i]`` here."""
        self.bare[pairs] = before.bare[others]
        both = before.live[others] & self.live[pairs]
        moved = dict(zip(others[both].tolist(), pairs[both].tolist(), strict=True))
        self._follow_schedule(before, moved)

    def _follow_schedule(self, before: Track, moved: Mapping[int, int]) -> None:
        """Let the pairs that stay keep their turns; ``moved`` says which they are, and are now."""
        self.schedule.follow(before.schedule, moved, self._chance)
        self.names_in_order = self.names[self.schedule.order]

    def follow_interfaces(self) -> bool:
        """Address interfaces that were made anew by their new numbers; tell whether there are any."""
        now = {zone: interface_number(zone) or number for zone, number in self.scopes.items()}
        if now == self.scopes:
            return False
        for n, zone in enumerate(self._zones):
            if zone is not None:
                self.names[n, 24:28] = np.frombuffer(now[zone].to_bytes(4, "little"), np.uint8)
        self.names_in_order = self.names[self.schedule.order]
        self.scopes = now
        return True

    def left_as(self, flow: int, sequence: int, t1_ns: Ints, quote: bytes) -> bool:
        """Tell whether a probe that was sent at ``t1_ns``, (1,), began with ``quote``.

        That must end before the Error Estimate: what it was then is not on record.
        """
        variant = self.variant[flow // self.ports]
        head = self.templates[variant : variant + 1].copy()
        if self.format is None:
            probe = stamp.sender_view(head)
            probe["sequence"] = sequence
            probe["timestamp"] = stamp.ntp_column(t1_ns)
        else:
            numbers = np.full(1, sequence, np.uint32)
            self.format.write(head, self.ssids[variant : variant + 1], numbers, t1_ns)
        return head[0, : len(quote)].tobytes() == quote

    def has_done_with(self) -> bool:
        """Tell whether pairs that are not probed any more have no interval left to close."""
        return bool((~self.live & ~self.ledger.pairs_waiting()).any())

    def note_traced(self, sock: HeldPort, address: str, port: int) -> None:
        """Note that a trace leaves for a place: who returns no SSID counts it with the probes.

        Its answer may never come, so the numbers of such a peer are in doubt from now on.
        """
        if sock not in self.sockets or not self.bare.any():  # where places are is work to find out
            return
        pairs = [n for n in self._places.get((address, port), ()) if self.bare[n]]
        if pairs:
            flows = np.array(pairs, np.int64) * self.ports + self.sockets.index(sock)
            self.ledger.doubt(flows, note="")

    @cached_property
    def _places(self) -> dict[tuple[str, int], list[int]]:
        """What is probed, addresses and ports, and the pairs there."""
        places: dict[tuple[str, int], list[int]] = {}
        for n, pair in enumerate(self.pairs):
            places.setdefault((pair.dst_ip, pair.dst_port), []).append(n)
        return places

    def flow_keys(self) -> npt.NDArray[np.uint64]:
        """Return the `flow_keys` of all flows, in order."""
        ends = self.ordinal[None, :] << np.uint64(16)
        ends = ends | self.ssids[self.variant].astype(np.uint64)[:, None]
        return flow_keys(np.repeat(self.names, self.ports, axis=0), ends.reshape(-1))

    @cached_property
    def ends(self) -> list[tuple[object, ...]]:
        """Of each pair, what it shares with others that hear of the same reflector's state as it does.

        Whoever sees plain probes can answer them: signed ones believe only others of the same key.
        """
        asked_by = self.group.key, self.group.sources[0].interface
        return [(*asked_by, pair.src_ip, pair.dst_ip, pair.dst_port) for pair in self.pairs]

    @cached_property
    def targets(self) -> frozenset[tuple[str, int, int, int]]:
        """What is probed: addresses, ports, classes and sizes."""
        return frozenset((pair.dst_ip, pair.dst_port, pair.dscp, pair.size) for pair in self.pairs)
