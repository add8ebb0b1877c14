"""What pinpointing reads and what it says: columns of flows and paths in, suspects out.

Pure data. `llama.pinpoint.locate` turns the one into the other; where the columns come from is
not its business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from llama.collector.intervals.summary import suspect_bit

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Stands in `Paths.answered` for flows that were traced while they lived, and not yet since.
NOT_TRACED = -2

#: One row a flow, counts over the window that is judged (one interval, or several summed up).
FLOWS = np.dtype(
    [
        ("source", "<u4"),  # index into the host table
        ("destination", "<u4"),  # likewise
        ("dscp", "u1"),  # 0-63, as sent
        ("size", "<u2"),  # octets of UDP payload
        ("family", "u1"),  # IP version: 4 or 6
        ("sent", "<u4"),
        ("lost_forward", "<u4"),
        ("lost_reverse", "<u4"),
        ("lost_unknown", "<u4"),
        ("remarked_forward", "<u4"),
        ("remarked_reverse", "<u4"),
        ("remarked_to", "u1"),  # the DSCP that arrived there; 255: unknown
        ("late", "?"),  # its RTT is out of the ordinary, as whoever knows the ordinary says
        ("suspect", "<u4"),  # bits of llama.collector.intervals.summary.SUSPECT_REASONS
    ]
)

#: Bits that say that hosts, not the network, may have lost probes.
HOSTS_LOST = sum(
    map(
        suspect_bit,
        (
            "receive_drops",
            "send_failed",
            "reflector_drops",
            "reflector_limit",
            "reflector_restart",
        ),
    )
)
#: Bits that say that a collector ran so late that replies may have waited for it, or for a reflector
#: beside it, longer than their timeout; or that a reflector held them for so long.
HOSTS_LATE = sum(map(suspect_bit, ("late_ticks", "reflector_late")))
#: Bits that say that hosts, not the network, may have made RTTs longer. A collector that had to wait
#: for a processor is none of them: its time stamps are the kernel's.
HOSTS_DELAYED = sum(map(suspect_bit, ("clock_step", "user_timestamps")))
#: The bit that says that its own host could not send a flow's probes.
NOT_SENT = suspect_bit("send_failed")
#: A flow has to send so many probes to be judged at all.
LEAST_SENT = 5
#: Share of loss above which nothing worth the name came back.
DEAD = 0.95


@frozen(kw_only=True, eq=False)
class Hosts:
    """The ends of flows. `tags[n]` are those of host n: ``{"rack": "r7", ...}``, maybe none."""

    names: Sequence[str]
    tags: Sequence[Mapping[str, str]]
    #: Hosts whose collector gave no measurements, though it was asked.
    silent: frozenset[int] = frozenset()


@frozen(kw_only=True, eq=False)
class Paths:
    """The links that each flow crosses, where they are known.

    Flow f crosses ``link[start[f]:start[f + 1]]`` in this order, from its source to its
    destination; an empty range is an unknown path. Links are directed: `links[n]` is
    ``(sender, receiver)``, by names or addresses of nodes.
    """

    links: Sequence[tuple[str, str]]
    start: Indices  # one longer than the flows
    link: npt.NDArray[np.int32]
    #: Of flows that lose everything and were traced meanwhile: how many hops still answered, so
    #: that the links before are alive. -1: the trace came through, or none is made, so that
    #: nothing is known about the direction; `NOT_TRACED`: nor is it, but it will be traced.
    answered: npt.NDArray[np.int16]
    #: Flow and link, (rows, 2): links that a flow may have crossed as well, on a way that it left lately;
    #: or that it crossed in any case, somewhere on a path that is not known.
    left: Indices = field(factory=lambda: np.zeros((0, 2), np.int64))
    #: Of flows that somebody refused to forward when they, or others just like them, were traced: who,
    #: and why.
    refusals: Mapping[int, tuple[str, str]] = field(factory=dict)

    @classmethod
    def unknown(cls, flows: int) -> Paths:
        """Return the paths of so many flows of which none was traced."""
        return cls(
            links=(),
            start=np.zeros(flows + 1, np.int64),
            link=np.zeros(0, np.int32),
            answered=np.full(flows, -1, np.int16),
        )


@frozen(kw_only=True)
class Thresholds:
    """When a suspicion is worth telling. The defaults are what the benchmark is run with."""

    #: Chance that one judgement of a network that loses evenly at random names anybody: the
    #: p-value of a suspect, times the number of candidates that were looked at, stays below.
    false_positive_rate: float = 0.001
    least_lossy_flows: int = 3
    least_sent: int = LEAST_SENT
    #: A flow is dead above this share of loss; a host when that share of its flows is.
    dead: float = DEAD
    #: Late flows say nothing about the direction: a link is late only if this share of its flows is.
    late: float = 0.9
    most_suspects: int = 16


@frozen(kw_only=True)
class Refusal:
    """What a router said of flows that it did not forward. No judgement: a fact beside one."""

    by: str  # its name, or the address that it said so from; of a loop, all that are in it
    refusal: str  # "packet too big", "administratively prohibited", ...
    refused: int  # flows


def confined_to(only: Mapping[str, str]) -> str:
    """Return in words what a suspect is confined to, to follow its name; "" if to nothing."""
    return "".join(
        f", {value} only" if key == "family" else f", {key} {value} only"
        for key, value in sorted(only.items())
    )


@frozen(kw_only=True, eq=False)
class Suspect:
    """One cause by name, with what a person needs to check it."""

    #: "host", "reflector", "collector", "link", "node", "tag", "pair", "class", "size",
    #: "family", "everywhere"
    kind: str
    name: str  # "spine3 -> leaf2", "h1-1", "rack r7", "rack r7 -> rack r9", "class EF"
    symptom: str  # "loss", "remark", "late"
    direction: str  # "forward", "reverse", "both", "unknown"
    #: What it is confined to, if it is: {"class": "EF"}, {"size": "1400"} or
    #: {"family": "IPv6"}.
    only: Mapping[str, str] = field(factory=dict)
    explains: int  # troubled flows that it accounts for
    troubled: int  # troubled flows in all that were judged beside it
    crossing_healthy: int  # healthy flows that cross it nevertheless
    healthy: int  # healthy flows in all
    rate: float  # share of the probes of its flows that were hit
    p_value: float  # already multiplied by the number of candidates looked at
    #: Share of the likelihood among all candidates of the same round, 0 to 1: low if others
    #: explain the same nearly as well.
    confidence: float
    #: Others that the same flows cross, so that measurement cannot tell them apart.
    also: tuple[str, ...] = ()
    evidence: str
    refusals: tuple[Refusal, ...] = ()  # of those that are hit, the most frequent first
    flows: Indices = field(repr=False)  # all flows that cross it, hit or not
    hit: Indices = field(repr=False)  # those that vote for it
    #: Troubled flows that it accounts for without their vote as well: replies, and what was not
    #: traced. Of links and nodes only.
    accounts: Indices = field(factory=lambda: np.zeros(0, np.int64), repr=False)

    @property
    def key(self) -> str:
        """What makes it the same suspect in the next interval."""
        return f"{self.kind} {self.name}{confined_to(self.only)}"


@frozen(kw_only=True, eq=False)
class Verdict:
    """Everything that was found in one window, the most certain suspect first."""

    suspects: tuple[Suspect, ...]
    flows: int
    judged: int  # flows with enough probes and trustworthy figures
    lossy: int  # of the judged ones
    unexplained: int  # lossy flows that no suspect accounts for
    #: Free text: what was left out and why.
    excluded: tuple[str, ...] = ()
