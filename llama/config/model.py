"""What a configuration says once it is read: frozen, hashable, every number with its unit.

One class a section. Two configurations, or any two parts of them, can be compared with ``==``,
which is how a reload finds what changed. Nothing here reads files or checks anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from llama.config.frozen import FrozenMapping
from llama.config.mistakes import Mistake

Family = Literal["any", "4", "6", "both"]
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The kinds of probe that a test can name; the first is the default.
PROBES = (
    "stamp",
    "stamp-auth",
    "twamp-light",
    "llama-go",
    "llama-python",
    "icmp",
    "tcp",
    "hping3",
)


def _frozen(items: Mapping[str, Any]) -> FrozenMapping[str, Any]:
    return items if isinstance(items, FrozenMapping) else FrozenMapping(items)


@frozen(kw_only=True)
class Key:
    """A shared secret for HMAC-SHA-256 (RFC 8762 section 4.4). The secret is never printed."""

    id: str
    secret: bytes = field(repr=False)


@frozen(kw_only=True)
class Target:
    """A place to probe."""

    name: str  #: for results: ``dst_hostname`` unless the tags set it
    host: str  #: what to resolve and probe: hostname or address
    port: int = 8100  #: 1-65535; for ICMP it has no meaning
    #: As they are read, with the collector's own and both hostnames among them.
    tags: Mapping[str, str] = field(factory=FrozenMapping, converter=_frozen)


@frozen(kw_only=True)
class SourcePort:
    """One source port of a test. Two with number 0 are two ports, both chosen by the system."""

    name: str
    address: str | None = None  #: local address to bind; None: the kernel's choice
    number: int = 0  #: 0: chosen by the system
    dscps: tuple[int, ...] = (0,)  #: classes sent from this port, each 0-63, never empty
    timeout_s: float = 1.0


@frozen(kw_only=True)
class Test:
    """Probes of one kind to some targets. A flow is target x source port x class x size."""

    __test__ = False  # its name makes pytest look for tests in it

    name: str
    targets: tuple[Target, ...]
    probe: str = "stamp"  #: one of `PROBES`
    port_group: str = "default"
    source_ports: tuple[SourcePort, ...]
    sizes: tuple[int, ...] = ()  #: octets of UDP payload; (): the probe's natural size
    rate_pps: float = 4.0  #: probes per second of every flow
    timeout_s: float = 1.0  #: the longest timeout of its source ports
    family: Family = "any"  #: "any": the resolver's first; "both": one series for each
    source: str | None = None  #: local address, unless the source port names its own
    interface: str | None = None  #: bind to this device (VRF)
    df: bool = False  #: set "don't fragment" and ignore the path's known MTU
    #: What only this kind of probe takes: see docs/configuration.rst. For "stamp-auth", ``key``
    #: is the `Key`; for "stamp", ``reply_dscp`` is the DSCP asked for the reply, or None.
    options: Mapping[str, Any] = field(factory=FrozenMapping, converter=_frozen)


@frozen(kw_only=True)
class CollectorConfig:
    """What a collector does."""

    path: str
    tests: tuple[Test, ...]
    interval_s: int = 30
    keep_intervals: int = 33  #: closed intervals held for ``?since=``
    api: str = "tcp:5000:interface=127.0.0.1"  #: Twisted server endpoint
    api_token: str | None = field(default=None, repr=False)  #: bearer token that requests must show
    max_pps: float | None = None  #: cap on the sum of all probes, packets/s
    max_bps: float | None = None  #: cap on the sum of all probes, bit/s of IP packets
    src_hostname: str = ""  #: names the collector in its own figures; targets have it in their tags
    #: Legal but suspicious, for the log and for ``llama check``.
    notes: tuple[Mistake, ...] = field(default=(), eq=False)


@frozen(kw_only=True)
class ReflectorKey:
    """A key and the probes it is for: those from its prefixes with its SSIDs, as far as given."""

    key: Key
    prefixes: tuple[Prefix, ...] = ()
    ssids: tuple[int, ...] = ()


@frozen(kw_only=True)
class ReflectorSession:
    """A session that was provisioned. With any given, probes of no session are dropped."""

    source: Prefix
    source_port: int | None = None  #: None: any
    ssid: int | None = None  #: None: any


@frozen(kw_only=True)
class ReflectorConfig:
    """What a reflector answers, and for whom."""

    path: str = ""
    addresses: tuple[str, ...] = ("0.0.0.0", "::")  # noqa: S104  a reflector is there to be asked
    port: int = 8100
    interface: str | None = None  #: bind to this device (VRF)
    api: str = "tcp:5002:interface=127.0.0.1"  #: Twisted server endpoint
    api_token: str | None = field(default=None, repr=False)
    allow: tuple[Prefix, ...] = ()  #: who may ask; (): everyone
    legacy: bool = True  #: also answer LLAMA Go's and the archived Python LLAMA's probes
    max_pps: float | None = None  #: replies/s in total
    max_pps_per_source: float | None = None  #: replies/s to one source address
    burst: int | None = None  #: replies at once in total; None: about a second's worth
    burst_per_source: int | None = None  #: replies at once to one source; None: as above
    max_sessions: int = 65536  #: sessions with a counter of their own; the oldest goes
    refuse_source_ports: tuple[int, ...] = ()  #: besides the built-in ones
    permit_source_ports: tuple[int, ...] = ()  #: of the built-in ones and our own
    reply_dscps: tuple[int, ...] = ()  #: DSCPs that the Class of Service TLV may ask for
    keys: tuple[ReflectorKey, ...] = ()
    allow_unauthenticated: bool = False  #: with keys: answer unauthenticated probes, too
    sessions: tuple[ReflectorSession, ...] = ()
    interval_s: int = 30  #: of the reflector's own figures
    keep_intervals: int = 33  #: closed intervals held for ``?since=``
    src_hostname: str = ""  #: names the reflector in its figures; empty: the host's name
    stats_tags: Mapping[str, str] = field(factory=FrozenMapping, converter=_frozen)
    notes: tuple[Mistake, ...] = field(default=(), eq=False)


@frozen(kw_only=True)
class WriterConfig:
    """One database to write to.

    ``options`` are as written, text mostly: the writer knows what they mean. ``file`` and ``line``
    are for its complaints.
    """

    type: str
    options: Mapping[str, Any] = field(factory=FrozenMapping, converter=_frozen)
    file: str = field(default="", eq=False)
    line: int = field(default=0, eq=False)


@frozen(kw_only=True)
class SpoolConfig:
    """Where pulled intervals wait for the database."""

    path: str
    max_bytes: int = 1_000_000_000
    max_age_s: float = 7 * 86400.0


@frozen(kw_only=True)
class ScraperConfig:
    """What a scraper asks, how often, and where it writes."""

    path: str
    interval_s: float = 30.0
    timeout_s: float = 10.0  #: the longest silence of a collector that is asked
    concurrency: int = 16  #: collectors asked at once
    collectors: tuple[str, ...]  #: base URLs without a slash at the end
    collector_token: str | None = field(default=None, repr=False)  #: bearer token to show them
    ca_file: str | None = None  #: PEM file of the authorities that https is checked against
    writers: tuple[WriterConfig, ...]
    spool: SpoolConfig | None = None
    api: str | None = "tcp:5003:interface=127.0.0.1"  #: Twisted server endpoint
    api_token: str | None = field(default=None, repr=False)
    notes: tuple[Mistake, ...] = field(default=(), eq=False)


@frozen(kw_only=True)
class StoreConfig:
    """The database that the matrix is drawn from."""

    type: str
    options: Mapping[str, Any] = field(factory=FrozenMapping, converter=_frozen)
    file: str = field(default="", eq=False)
    line: int = field(default=0, eq=False)


@frozen(kw_only=True)
class WebConfig:
    """Where the matrix is served and what it is drawn from."""

    path: str
    listen: str = "tcp:5001:interface=127.0.0.1"  #: Twisted server endpoint
    api_token: str | None = field(default=None, repr=False)
    store: StoreConfig
    collectors: tuple[str, ...] = ()  #: base URLs; asked for the flows of a pair, if any are given
    collector_token: str | None = field(default=None, repr=False)  #: bearer token to show them
    ca_file: str | None = None  #: PEM file of the authorities that https is checked against
    pinpoint: str | None = None  #: base URL of ``llama pinpoint``; asked for incidents
    remember_s: float = 7 * 86400.0  #: for so long a source that fell silent is shown
    forget: tuple[str, ...] = ()  #: hosts that are not shown once they are silent
    notes: tuple[Mistake, ...] = field(default=(), eq=False)
