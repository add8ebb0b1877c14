"""A made-up fleet with known faults, as points that any store can be filled with.

The same `fleet` goes into every database under test; what the matrix must say about it is worked
out by the slow and obvious `MemoryStore` in web_memory.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from attrs import field, frozen

from llama.collector.intervals.summary import suspect_bit
from llama.interfaces import Point

#: A host name and a tag value that would break out of a carelessly written query.
NASTY_HOST = 'we\'ird "h\\ost", x=1 é'
NASTY_RACK = "r'1\"; DROP TABLE samples; -- \\$x {} / ~ ,"


@frozen(kw_only=True)
class Fault:
    """From ``start_s`` on (Unix time), until ``end_s``."""

    #: "loss", "reverse", "down", "blind", "silent", "slow", "remark", "suspect", "mute", "unsent"
    kind: str
    start_s: float
    end_s: float = float("inf")
    src: str | None = None
    dst: str | None = None
    class_name: str | None = None
    flows: int = 3

    def hits(self, src: str, dst: str, class_name: str, time_s: float) -> bool:
        """Return whether it strikes a series at a time."""
        return (
            self.start_s < time_s <= self.end_s
            and self.src in (None, src)
            and self.dst in (None, dst)
            and self.class_name in (None, class_name)
        )


@frozen(kw_only=True)
class Fleet:
    """Hosts, each with its datacenter and rack, that all probe each other."""

    hosts: dict[str, tuple[str, str]]
    classes: tuple[str, ...] = ("BE", "EF")
    flows: int = 64
    probes: int = 640  # per pair, class and interval
    interval_s: int = 30
    faults: tuple[Fault, ...] = ()
    seed: int = 1
    source_tags: bool = True
    skip: frozenset[tuple[str, str]] = field(default=frozenset())  # pairs that nobody probes

    def points(self, start_s: float, end_s: float) -> Iterator[Point]:
        """Yield all points with ``start_s < time <= end_s``, in order of time."""
        step = self.interval_s
        time_s = (start_s // step + 1) * step
        while time_s <= end_s:
            for src in self.hosts:
                for dst in self.hosts:
                    if src == dst or (src, dst) in self.skip:
                        continue
                    for class_name in self.classes:
                        point = self.point(src, dst, class_name, time_s)
                        if point is not None:
                            yield point
            time_s += step

    def tags(self, src: str, dst: str, class_name: str) -> dict[str, str]:
        """Return the tags of a series."""
        datacenter, rack = self.hosts[dst]
        tags = {
            "src_hostname": src,
            "dst_hostname": dst,
            "datacenter": datacenter,
            "rack": rack,
            "src_ip": f"10.0.0.{list(self.hosts).index(src) % 250 + 1}",
            "dst_ip": f"10.0.1.{list(self.hosts).index(dst) % 250 + 1}",
            "dst_port": "8100",
            "class": class_name,
            "probe": "stamp",
            "size": "44",
            "port_group": "default",
        }
        if self.source_tags:
            tags["src_datacenter"], tags["src_rack"] = self.hosts[src]
        return tags

    def usual_rtt_ms(self, src: str, dst: str) -> float:
        """Return a pair's RTT when nothing is wrong: by distance, the same both ways."""
        here, there = self.hosts[src], self.hosts[dst]
        if here == there:
            return 0.2
        if here[0] == there[0]:
            return 0.4
        return 20.0 + 10.0 * (len(here[0] + there[0]) + sum(map(ord, here[0] + there[0])) % 7)

    def suspect(self, time_s: float) -> float:
        """Return the bits of an interval that is suspect; another reason in every other one."""
        second = time_s // self.interval_s % 2
        return float(suspect_bit("receive_drops" if second else "late_ticks"))

    def point(self, src: str, dst: str, class_name: str, time_s: float) -> Point | None:
        """Return one point, or None where there is none."""
        active = [fault for fault in self.faults if fault.hits(src, dst, class_name, time_s)]
        kinds = {fault.kind for fault in active}
        if kinds & {"silent", "mute"}:
            return None
        noise = random.Random(f"{self.seed} {src} {dst} {class_name} {time_s}")
        sent = 0 if "unsent" in kinds else self.probes
        lost_forward = lost_reverse = lossy = 0
        for fault in active:
            if fault.kind == "loss":
                lossy = fault.flows
                lost_forward = sent * lossy // self.flows
            elif fault.kind == "reverse":
                lossy = fault.flows
                lost_reverse = sent * lossy // self.flows
        lost_unknown = 0
        if kinds & {"down", "blind"}:
            lost_forward = lost_reverse = 0
            lost_unknown, lossy = sent, self.flows
        lost = lost_forward + lost_reverse + lost_unknown
        received = sent - lost
        fields = {
            "sent": float(sent),
            "received": float(received),
            "lost": float(lost),
            "lost_forward": float(lost_forward),
            "lost_reverse": float(lost_reverse),
            "lost_unknown": float(lost_unknown),
            "late": 0.0,
            "duplicate": 0.0,
            "reordered": 0.0,
            "remarked_forward": float(received) if "remark" in kinds else 0.0,
            "remarked_reverse": 0.0,
            "flows": float(self.flows),
            "flows_lossy": float(lossy),
            "suspect": self.suspect(time_s) if "suspect" in kinds else 0.0,
        }
        if sent:
            fields["loss"] = 100.0 * lost / sent
        else:
            fields["suspect"] = float(suspect_bit("send_failed"))
        if received:
            base = self.usual_rtt_ms(src, dst) * (2.5 if "slow" in kinds else 1.0)
            spread = base * (0.05 + 0.02 * noise.random())
            fields |= {
                "rtt": base + 0.2 * spread,
                "rtt_min": base - 0.1 * spread,
                "rtt_p50": base + 0.1 * spread,
                "rtt_p90": base + 0.5 * spread,
                "rtt_p99": base + 1.0 * spread,
                "rtt_max": base + 2.0 * spread,
                "jitter": 0.1 * spread,
                "ipdv": 0.1 * spread,
                "dscp_at_reflector": 0.0 if "remark" in kinds or class_name == "BE" else 46.0,
                "dscp_at_collector": 0.0 if class_name == "BE" else 46.0,
            }
        return Point("raw_stats", self.tags(src, dst, class_name), fields, int(time_s) * 10**9)


def standard_fleet(end_s: float) -> Fleet:
    """Return nine hosts in three sites with one fault of each kind at ``end_s``."""
    hosts = {
        "iad1": ("iad", "r1"),
        "iad2": ("iad", "r1"),
        "iad10": ("iad", "r2"),
        "lax1": ("lax", "r1"),
        "lax2": ("lax", "r1"),
        "lax3": ("lax", NASTY_RACK),
        "fra1": ("fra", "r1"),
        "fra2": ("fra", "r1"),
        NASTY_HOST: ("fra", "r2"),
    }
    ago = end_s.__sub__
    return Fleet(
        hosts=hosts,
        skip=frozenset({("iad1", "iad10")}),
        faults=(
            Fault(kind="loss", src="lax1", dst="iad2", start_s=ago(600)),
            Fault(kind="reverse", src=NASTY_HOST, dst="iad1", start_s=ago(600), flows=8),
            Fault(kind="down", dst="fra2", start_s=ago(900)),
            Fault(kind="silent", src="fra2", start_s=ago(900)),
            Fault(kind="blind", src="lax2", start_s=ago(300)),
            Fault(kind="slow", src="iad2", dst="lax3", start_s=ago(600)),
            Fault(kind="remark", dst="fra1", class_name="EF", start_s=ago(600)),
            Fault(kind="suspect", src="iad10", dst="iad2", start_s=ago(600)),
            Fault(kind="mute", src="lax3", dst="iad1", start_s=ago(600)),
            # An episode that is over: only history knows it.
            Fault(
                kind="loss", src="iad1", dst="lax1", start_s=ago(2400), end_s=ago(1800), flows=32
            ),
        ),
    )


def big_fleet(sites: int, hosts_per_site: int, end_s: float, faults: bool = True) -> Fleet:
    """Return a full mesh of one class, some of it broken."""
    names = ["ams", "atl", "cdg", "den", "dfw", "fra", "hkg", "iad", "lax", "lhr", "mia", "nrt"]
    names += ["ord", "sea", "sin", "sjc", "syd", "yyz", "waw", "zrh"]
    hosts = {
        f"{site}-h{n:02d}": (site, f"r{n // 5 + 1}")
        for site in names[:sites]
        for n in range(1, hosts_per_site + 1)
    }
    some = list(hosts)
    broken = (
        Fault(kind="loss", src=some[3], dst=some[-4], start_s=end_s - 600),
        Fault(kind="loss", src=some[3], dst=some[-5], start_s=end_s - 600, flows=16),
        Fault(kind="down", dst=some[len(some) // 2], start_s=end_s - 600),
        Fault(kind="silent", src=some[len(some) // 2], start_s=end_s - 600),
    )
    return Fleet(hosts=hosts, classes=("BE",), faults=broken if faults else ())
