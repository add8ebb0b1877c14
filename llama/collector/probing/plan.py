"""What to probe: a configuration and the addresses of its names become groups of like flows.

A `Group` is what one ledger keeps: the pairs of one test and address family, each probed from the
same source ports, at one rate and with one timeout. Pure.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

from attrs import evolve, field, frozen

from llama.collector.intervals.replies import Ints
from llama.collector.intervals.summary import Pair
from llama.collector.probing.hping3.cycle import KNOWN_AFTER_S, Cycle, spacing_s
from llama.collector.probing.schedule import LATEST_S
from llama.collector.slices import Job, at_once
from llama.config import CollectorConfig, Key, SourcePort, Target, Test, class_name
from llama.config.offered_load import PROBES_SHARE, port_of, sent_for, sizes_of

#: What probes are sent over; UDP for all other kinds.
PROTOCOLS = {"icmp": "icmp", "tcp": "tcp", "hping3": "hping3"}
#: Targets that are planned at once; see `plan_slowly`.
AT_A_TIME = 200
#: Class, size, and how many pairs alike come before.
Variant = tuple[int, int, int]
T = TypeVar("T")


@frozen(kw_only=True)
class Source:
    """One socket to probe from. Equal sources are one socket."""

    version: int  # 4 or 6
    address: str | None
    interface: str | None
    number: int  # 0: the system's choice
    owner: str  # what makes two of number 0 two sockets
    df: bool
    protocol: str = "udp"  # "icmp": the number is an identifier


@frozen(kw_only=True)
class Group:
    """Pairs that share source ports, rate and timeout.

    ``pairs`` and rate change with a reload or an address; all else is the group's `identity`.
    """

    test: str
    probe: str
    version: int
    sources: tuple[Source, ...]
    rate_pps: float
    timeout_s: float  # after which an interval is closed; of "hping3", see ``cycle``
    reply_dscp: int | None = None
    tlvs: bool = True  # False: plain RFC 8762, for peers that do not take more
    key: bytes | None = field(default=None, repr=False)  # of "stamp-auth" alone
    in_flight: int = 256  # connection attempts at once; of "tcp" alone
    cycle: Cycle | None = None  # of "hping3" alone
    pairs: tuple[Pair, ...] = field(eq=False)
    #: Of each pair, which it is of those that are alike on the wire; if empty, in their order.
    numbers: tuple[int, ...] = field(default=(), eq=False)

    @property
    def identity(self) -> tuple[object, ...]:
        """Return what stays the same over a reload that only changes pairs or the rate.

        The rate changes by itself, where a cap is shared by what has an address at the time.
        """
        return (
            self.test, self.probe, self.version, self.sources, self.timeout_s, self.reply_dscp,
            self.tlvs, self.key, self.in_flight,
            None if self.cycle is None else evolve(self.cycle, spacing_s=0.0),
        )  # fmt: skip

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """What probes of each pair are told apart by on the wire, where their ends do not do it.

        Two targets of a test may be one address and port: names that lead to the same host do.
        """
        seen: Counter[tuple[object, ...]] = Counter()
        variants = []
        for n, pair in enumerate(self.pairs):
            alike = pair.dst_ip, pair.dst_port, pair.dscp, pair.size
            number = self.numbers[n] if self.numbers else seen[alike]
            variants.append((pair.dscp, pair.size, number))
            seen[alike] += 1
        return tuple(variants)

    def with_pairs(self, pairs: Sequence[Pair]) -> Group:
        """Return the same group with other pairs."""
        return evolve(self, pairs=tuple(pairs), numbers=())

    def told_apart_as(self, before: Group, new: Ints, old: Ints) -> Group:
        """Return the same group, pair ``new[i]`` of which bears what ``old[i]`` of ``before`` did.

        Else what is under way would be taken for another pair's where several are alike on the wire.
        """
        if not any(number for group in (self, before) for *_, number in group.variants):
            return self
        kept = {n: before.variants[o][2] for n, o in zip(new.tolist(), old.tolist(), strict=True)}
        return evolve(self, numbers=_numbered(self.pairs, kept))

    @property
    def flows(self) -> int:
        """How many flows there are."""
        return len(self.pairs) * len(self.sources)

    def load(self) -> tuple[float, float]:
        """Return what is sent for the group: packets/s and bit/s of IP packets."""
        per_pair = self.rate_pps * len(self.sources)
        pps = bps = 0.0
        for size, pairs in Counter(pair.size for pair in self.pairs).items():
            packets, octets = sent_for(self.probe, size, self.version)
            pps += pairs * per_pair * packets
            bps += pairs * per_pair * 8 * octets
        return pps, bps


def _numbered(pairs: Sequence[Pair], kept: Mapping[int, int]) -> tuple[int, ...]:
    """Return numbers for pairs alike on the wire: for those in ``kept``, by place, as given there."""
    taken = {(number, _on_the_wire(pairs[n])) for n, number in kept.items()}
    free: Counter[tuple[object, ...]] = Counter()  # the first number that may be
    numbers = []
    for n, pair in enumerate(pairs):
        number = kept.get(n, -1)
        if number < 0:
            alike = _on_the_wire(pair)
            number = next(n for n in itertools.count(free[alike]) if (n, alike) not in taken)
            free[alike] = number + 1
        numbers.append(number)
    return tuple(numbers)


def identity_of(pair: Pair) -> tuple[object, ...]:
    """Return what makes two pairs of a group the same series."""
    return tuple(sorted(pair.series_tags().items()))


def places_of(wanted: Sequence[Pair], present: Sequence[Pair]) -> list[int]:
    """Return where each wanted pair is among those present, -1 if it is not; no place twice.

    It is where its series is, or else where a pair is that is the same on the wire: then it is only
    called otherwise, since our own address or a tag is another.
    """
    places, left = _same_places(wanted, present)
    series = {identity_of(present[n]): n for n in left}
    for n, pair in enumerate(wanted if series else ()):
        if places[n] < 0:
            places[n] = series.pop(identity_of(pair), -1)
    if series:
        alike: dict[tuple[object, ...], list[int]] = {}
        for n in sorted(series.values(), reverse=True):
            alike.setdefault(_on_the_wire(present[n]), []).append(n)
        for n, pair in enumerate(wanted):
            if places[n] < 0 and (others := alike.get(_on_the_wire(pair))):
                places[n] = others.pop()
    return places


def _same_places(wanted: Sequence[Pair], present: Sequence[Pair]) -> tuple[list[int], list[int]]:
    """Return where those wanted pairs are that have not changed at all, else -1, and what is left.

    They are most, and cost little, least where they are the very same (see `as_before`): to tell
    series by their tags takes ten times as long.
    """
    at = {id(pair): n for n, pair in enumerate(present)}
    places = [at.pop(id(pair), -1) for pair in wanted]
    known: dict[tuple[object, ...], list[int]] = {}
    for n in sorted(at.values(), reverse=True):
        known.setdefault(_called(present[n]), []).append(n)
    for n, pair in enumerate(wanted if known else ()):
        alike = known.get(_called(pair)) if places[n] < 0 else None
        if alike and _same_pair(pair, present[alike[-1]]):
            places[n] = alike.pop()
    return places, sorted(n for alike in known.values() for n in alike)


def as_before(groups: Sequence[Group], before: Sequence[Group]) -> Job[tuple[Group, ...]]:
    """Return ``groups`` with those pairs of ``before`` that are equal to theirs, bit by bit.

    To take them up, which no probe leaves meanwhile, is a matter of milliseconds then.
    """
    present = {group.identity: group.pairs for group in before}
    found = []
    for group in groups:
        known: dict[tuple[object, ...], Pair] = {}
        for some in _portions(present.get(group.identity, ())):
            known.update((_called(pair), pair) for pair in some)
            yield None
        pairs: list[Pair] = []
        for some in _portions(group.pairs):
            for pair in some:
                one = known.get(_called(pair), pair)
                pairs.append(one if _same_pair(one, pair) else pair)
            yield None
        found.append(group.with_pairs(pairs))
        found[-1].variants  # noqa: B018  they are kept
        yield None
    return tuple(found)


def _called(pair: Pair) -> tuple[object, ...]:
    return pair.target, pair.dst_ip, pair.dst_port, pair.dscp, pair.size


def _on_the_wire(pair: Pair) -> tuple[object, ...]:
    return pair.dst_ip, pair.dst_port, pair.dscp, pair.size


def same_groups(some: Sequence[Group], others: Sequence[Group]) -> bool:
    """Tell whether two plans come to the same: equal groups of equal pairs in the same order."""
    return len(some) == len(others) and all(
        one == other
        and len(one.pairs) == len(other.pairs)
        and all(map(_same_pair, one.pairs, other.pairs))
        for one, other in zip(some, others, strict=True)
    )


def _same_pair(one: Pair, other: Pair) -> bool:
    return one is other or (
        one.dst_ip == other.dst_ip
        and one.dst_port == other.dst_port
        and one.src_ip == other.src_ip
        and one.dscp == other.dscp
        and one.size == other.size
        and one.target == other.target
        and one.port_group == other.port_group
        and one.tags == other.tags
    )


SourceAddress = Callable[[str, Source], str]


def make_plan(
    config: CollectorConfig,
    addresses: Mapping[str, Sequence[str]],
    source_address: SourceAddress,
) -> tuple[Group, ...]:
    """Return the groups that ``config`` asks for.

    ``addresses`` gives each host's addresses, best first; hosts without any are left out.
    ``source_address(destination, source)`` tells whence the kernel would send. Where the
    total is above a cap of the configuration, all rates are lowered by the same factor.
    """
    return at_once(plan_slowly(config, addresses, source_address))


def plan_slowly(
    config: CollectorConfig,
    addresses: Mapping[str, Sequence[str]],
    source_address: SourceAddress,
) -> Job[tuple[Group, ...]]:
    """Return what `make_plan` does, bit by bit."""
    groups = []
    for test in config.tests:
        for version in (4, 6):
            groups += yield from _groups(test, version, addresses, source_address)
    factor = cap_factor(config, groups)
    if factor < 1:
        groups = [evolve(group, rate_pps=group.rate_pps * factor) for group in groups]
    room = _room(config, groups)
    return tuple(_spaced(group, max(1.0, room)) for group in groups)


def cap_factor(config: CollectorConfig, groups: Sequence[Group]) -> float:
    """Return by what to multiply all rates so that the caps of ``config`` hold; at most 1."""
    return min(1.0, _room(config, groups))


def _room(config: CollectorConfig, groups: Sequence[Group]) -> float:
    """Return by what all rates could be multiplied within the probes' share of the caps of ``config``."""
    caps = config.max_pps, config.max_bps
    return min(
        PROBES_SHARE * cap / load if cap is not None and load > 0 else math.inf
        for cap, load in zip(caps, _load(groups), strict=True)
    )


def _load(groups: Sequence[Group]) -> tuple[float, float]:
    """Return what is sent for some groups: packets/s and bit/s of IP packets."""
    loads = [group.load() for group in groups]
    return sum(load[0] for load in loads), sum(load[1] for load in loads)


def room_for_traces(
    config: CollectorConfig, *plans: Sequence[Group]
) -> tuple[float | None, float | None]:
    """Return what the caps of ``config`` leave to traces beside any of ``plans``; None: no cap.

    In packets/s and bit/s. In a second probes may be sent that a pause put off from the one before.
    """
    caps = config.max_pps, config.max_bps
    loads = [max(load) for load in zip(*map(_load, plans), strict=True)]
    pps, bps = (
        None if cap is None else max(0.0, cap - (1 + LATEST_S) * load)
        for cap, load in zip(caps, loads, strict=True)
    )
    return pps, bps


def _spaced(group: Group, room: float) -> Group:
    """Return a group whose runs of hping3 send no faster, while they last, than a cap allows.

    The group may send at ``room`` times its rate for a while.
    """
    if group.cycle is None:
        return group
    spacing = spacing_s(
        group.cycle.spacing_s, group.cycle.processes, 1 / group.rate_pps, len(group.sources),
        group.rate_pps * group.flows * room,
    )  # fmt: skip
    return evolve(group, cycle=evolve(group.cycle, spacing_s=spacing))


def cycle_of(test: Test) -> Cycle | None:
    """Return how the probes of a test are divided into runs of hping3, if they are."""
    if test.probe != "hping3":
        return None
    return Cycle(
        program=test.options["program"], spacing_s=test.options["spacing"],
        processes=test.options["processes"], timeout_s=test.timeout_s,
    )  # fmt: skip


def chosen_addresses(family: str, known: Sequence[str]) -> list[str]:
    """Return which of a host's addresses a test of ``family`` probes: at most one a version."""
    if family == "any":
        return list(known[:1])
    chosen = []
    for version in (4, 6):
        if family in (str(version), "both"):
            chosen += [a for a in known if ipaddress.ip_address(a).version == version][:1]
    return chosen


def _groups(
    test: Test,
    version: int,
    addresses: Mapping[str, Sequence[str]],
    source_address: SourceAddress,
) -> Job[list[Group]]:
    """Return the groups of one test in one address family: classes sent from the same ports."""
    ports_of: dict[int, list[tuple[int, SourcePort]]] = {}
    for ordinal, port in enumerate(test.source_ports):
        for dscp in port.dscps:
            ports_of.setdefault(dscp, []).append((ordinal, port))
    kinds: dict[tuple[tuple[int, SourcePort], ...], list[int]] = {}
    for dscp, members in ports_of.items():
        kinds.setdefault(tuple(members), []).append(dscp)
    reached = []
    for targets in _portions(test.targets):
        reached += [
            (target, address)
            for target in targets
            for address in chosen_addresses(test.family, addresses.get(target.host, ()))
            if ipaddress.ip_address(address).version == version
        ]
        yield None
    groups = []
    for ports, dscps in kinds.items():
        sources = tuple(_source(test, version, ordinal, port) for ordinal, port in ports)
        if not reached or not all(_fits(source, version) for source in sources):
            continue
        pairs: list[Pair] = []
        for some in _portions(reached):
            pairs += (
                _pair(test, target, tags, address, source_address(address, sources[0]), dscp, size)
                for target, address in some
                for tags in (dict(target.tags),)  # what encodes them wants a dict
                for dscp in dscps
                for size in sizes_of(test)
            )  # fmt: skip
            yield None
        timeout_s = max(port.timeout_s for _, port in ports)
        cycle = cycle_of(test)
        if cycle is not None:
            cycle, timeout_s = evolve(cycle, timeout_s=timeout_s), KNOWN_AFTER_S
        groups.append(
            Group(
                test=test.name, probe=test.probe, version=version, sources=sources,
                rate_pps=test.rate_pps, timeout_s=timeout_s, cycle=cycle,
                pairs=tuple(pairs), reply_dscp=test.options.get("reply_dscp"),
                tlvs=test.options.get("tlvs", True), key=secret_of(test),
                in_flight=test.options.get("in_flight", 256),
            )
        )  # fmt: skip
    return groups


def _portions(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield so many of a test's targets at a time that they take a few milliseconds."""
    for first in range(0, len(items), AT_A_TIME):
        yield items[first : first + AT_A_TIME]


def secret_of(test: Test) -> bytes | None:
    """Return the key that a test's probes are signed with, if they are."""
    key: Key | None = test.options.get("key")
    return None if key is None else key.secret


def _fits(source: Source, version: int) -> bool:
    """Tell whether a configured local address is of the family probed."""
    return source.address is None or ipaddress.ip_address(source.address).version == version


def _source(test: Test, version: int, ordinal: int, port: SourcePort) -> Source:
    # A fixed port can be bound only once, so tests share it; others have sockets of their own.
    owner = "" if port.number else f"{test.name}/{ordinal}"
    address = port.address or test.source
    if address is not None and ipaddress.ip_address(address).is_unspecified:
        address = None
    return Source(
        version=version, address=address, interface=test.interface, number=port.number,
        owner=owner, df=test.df, protocol=PROTOCOLS.get(test.probe, "udp"),
    )  # fmt: skip


def _pair(
    test: Test,
    target: Target,
    tags: Mapping[str, str],
    dst_ip: str,
    src_ip: str,
    dscp: int,
    size: int,
) -> Pair:
    return Pair(
        target=target.name, src_ip=src_ip, dst_ip=dst_ip,
        dst_port=port_of(test, target), dscp=dscp,
        class_name=class_name(dscp), probe=test.probe, size=size, port_group=test.port_group,
        tags=tags,
    )  # fmt: skip
