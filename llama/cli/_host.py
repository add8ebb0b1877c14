"""What this machine allows, compared with what a collector demands of it, and what to set.

Settings are read below a directory shaped like ``/proc/sys``; a copy of another machine's will do.
Programs are tried: whether hping3 may open raw sockets depends on more than settings.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from attrs import field, frozen

from llama.cli._demand import Demand
from llama.collector.probing.hping3.process import find_program, unusable
from llama.collector.probing.sockets import SOCKET_BUFFER

#: Descriptors that a service needs besides its probing sockets.
_OTHER_FILES = 64


@frozen
class Finding:
    """One setting: what it is, whether it suffices, and what to do if not."""

    setting: str
    value: str
    suffices: bool
    message: str
    command: str | None = None


def _groups() -> frozenset[int]:
    return frozenset((os.getegid(), *os.getgroups()))


@frozen(kw_only=True)
class Host:
    """A machine's settings and what its user may do."""

    root: Path = Path("/proc/sys")
    open_files: int = field(factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    groups: frozenset[int] = field(factory=_groups)
    superuser: bool = field(factory=lambda: os.geteuid() == 0)

    def numbers(self, setting: str) -> tuple[int, ...]:
        """Return a setting's numbers, such as ``net.core.rmem_max``'s; none if it is not there."""
        try:
            text = (self.root / setting.replace(".", "/")).read_text("ascii")
            return tuple(int(word) for word in text.split())
        except (OSError, ValueError):
            return ()

    def reserved_ports(self) -> list[tuple[int, int]]:
        """Return the ranges that the system never chooses from by itself."""
        try:
            text = (self.root / "net/ipv4/ip_local_reserved_ports").read_text("ascii")
        except OSError:
            return []
        ranges = []
        for word in text.strip().split(","):
            first, _, last = word.partition("-")
            if first.isdigit():
                ranges.append((int(first), int(last or first)))
        return ranges

    def findings(self, demand: Demand) -> list[Finding]:
        """Compare every setting that is there with the demand."""
        return [
            *self._buffers(demand),
            *self._conntrack(demand),
            *self._neighbours(demand),
            *self._files(demand),
            *self._ping(demand),
            *self._ports(demand),
            *self._privileged_ports(demand),
            *self._interfaces(demand),
            *self._programs(demand),
        ]

    def _buffers(self, demand: Demand) -> Iterator[Finding]:
        most = self.numbers("net.core.rmem_max")
        if not most or not demand.receive_buffer:
            return
        # Linux doubles what a program asks for, within rmem_max.
        have = 2 * min(most[0], SOCKET_BUFFER)
        what = f"the busiest socket fills {demand.receive_buffer:,} octets in a quarter second"
        if demand.receive_buffer > 2 * SOCKET_BUFFER:
            yield Finding(
                "net.core.rmem_max", str(most[0]), False,
                f"{what}, more than the {2 * SOCKET_BUFFER:,} that LLAMA asks for: spread its"
                " targets over more source ports",
            )  # fmt: skip
        else:
            enough = demand.receive_buffer <= have
            need = 1 << max(0, math.ceil(math.log2(demand.receive_buffer / 2)))
            yield Finding(
                "net.core.rmem_max", str(most[0]), enough, f"{what}, it holds {have:,}",
                None if enough else f"sysctl -w net.core.rmem_max={need}",
            )  # fmt: skip
        usual = self.numbers("net.core.rmem_default")
        if usual:
            yield Finding(
                "net.core.rmem_default", str(usual[0]), usual[0] <= 2 * most[0],
                "what sockets have that ask for nothing"
                + ("" if usual[0] <= 2 * most[0] else "; asking for more would make them smaller"),
                None if usual[0] <= 2 * most[0] else f"sysctl -w net.core.rmem_max={usual[0]}",
            )  # fmt: skip

    def _conntrack(self, demand: Demand) -> Iterator[Finding]:
        most = self.numbers("net.netfilter.nf_conntrack_max")
        if not most:
            return
        used = (self.numbers("net.netfilter.nf_conntrack_count") or (0,))[0]
        need = demand.conntrack + used
        enough = need <= 0.8 * most[0]
        yield Finding(
            "net.netfilter.nf_conntrack_max", str(most[0]), enough,
            f"{demand.conntrack:,} flows and {used:,} entries in use now",
            None if enough else f"sysctl -w net.netfilter.nf_conntrack_max={_round_up(need / 0.8)}",
        )  # fmt: skip

    def _neighbours(self, demand: Demand) -> Iterator[Finding]:
        for version, count in demand.neighbours.items():
            setting = f"net.ipv{version}.neigh.default.gc_thresh3"
            most = self.numbers(setting)
            if not most or not count:
                continue
            enough = count <= 0.8 * most[0]
            yield Finding(
                setting, str(most[0]), enough,
                f"{count:,} IPv{version} targets, if all are on directly attached networks",
                None if enough else f"sysctl -w {setting}={_round_up(count / 0.8)}",
            )  # fmt: skip

    def _files(self, demand: Demand) -> Iterator[Finding]:
        need = demand.sockets + _OTHER_FILES
        unlimited = self.open_files in (resource.RLIM_INFINITY, -1)
        enough = unlimited or need <= self.open_files
        yield Finding(
            "open files", "unlimited" if unlimited else str(self.open_files), enough,
            f"{demand.sockets:,} sockets and {_OTHER_FILES} for everything else",
            None if enough else f"ulimit -n {_round_up(need)}",
        )  # fmt: skip

    def _ping(self, demand: Demand) -> Iterator[Finding]:
        limits = self.numbers("net.ipv4.ping_group_range")
        if not demand.icmp or len(limits) != 2:
            return
        allowed = any(limits[0] <= group <= limits[1] for group in self.groups)
        group = max(self.groups, default=0)
        yield Finding(
            "net.ipv4.ping_group_range", f"{limits[0]} {limits[1]}", allowed or self.superuser,
            "ICMP sockets without root need one of the user's groups in it",
            None if allowed or self.superuser
            else f'sysctl -w net.ipv4.ping_group_range="0 {max(group, 2147483647)}"',
        )  # fmt: skip

    def _ports(self, demand: Demand) -> Iterator[Finding]:
        setting = "net.ipv4.ip_local_port_range"
        chosen = self.numbers(setting)
        if len(chosen) != 2:
            return
        value = f"{chosen[0]} {chosen[1]}"
        if demand.system_ports:
            room = chosen[1] - chosen[0] + 1
            enough = demand.system_ports <= room / 2
            yield Finding(
                setting, value, enough,
                f"{demand.system_ports:,} source ports from the system, of {room:,}",
                None if enough else f'sysctl -w {setting}="1024 65535"',
            )  # fmt: skip
        reserved = self.reserved_ports()

        def is_kept(first: int, last: int) -> bool:
            free = last < chosen[0] or first > chosen[1]
            return free or any(low <= first and last <= high for low, high in reserved)

        # All of them in each command: what is set replaces what was.
        keep = [*reserved, *(ports for ports in demand.fixed_ports if not is_kept(*ports))]
        for ports in demand.fixed_ports:
            kept = is_kept(*ports)
            yield Finding(
                "net.ipv4.ip_local_reserved_ports", _written(reserved) or "empty", kept,
                f"source ports {_written([ports])} are"
                + (" not chosen for other programs" if kept else
                   f" within {value}, where the system takes ports for other programs"),
                None if kept
                else f"sysctl -w net.ipv4.ip_local_reserved_ports={_written(keep)}",
            )  # fmt: skip

    def _privileged_ports(self, demand: Demand) -> Iterator[Finding]:
        setting = "net.ipv4.ip_unprivileged_port_start"
        first = self.numbers(setting)
        lowest = min((low for low, _ in demand.fixed_ports), default=65536)
        if first and lowest < 1024:
            enough = lowest >= first[0] or self.superuser
            yield Finding(
                setting, str(first[0]), enough, f"source port {lowest} below it needs root",
                None if enough else f"sysctl -w {setting}={lowest}",
            )  # fmt: skip

    def _interfaces(self, demand: Demand) -> Iterator[Finding]:
        known = self.root / "net/ipv4/conf"
        for name in demand.interfaces if known.is_dir() else ():
            there = (known / name).is_dir()
            yield Finding(
                f"interface {name}", "there" if there else "missing", there,
                "tests are bound to it, or probe link-local addresses behind it",
            )  # fmt: skip

    def _programs(self, demand: Demand) -> Iterator[Finding]:
        for name in demand.programs:
            path, why = find_program(name), unusable(name)
            yield Finding(
                f"program {name}", path or "missing", why is None,
                why or "tests run it, and it may open raw sockets",
                None if path else "apt install hping3",
            )  # fmt: skip


def _written(ranges: list[tuple[int, int]]) -> str:
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in ranges)


def _round_up(need: float) -> int:
    """Return the next power of two."""
    return 1 << max(0, math.ceil(math.log2(max(1.0, need))))
