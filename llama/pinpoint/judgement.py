"""One judgement: the newest interval alone, and the last few together for what is faint. Pure.

A fault that loses much shows in one interval. Gray loss needs more probes than one interval has, so
the last few are also judged as one; what only they show must still be going on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from attrs import evolve, frozen

from llama.pinpoint.evidence import DEAD, NOT_TRACED, Suspect, Thresholds, Verdict
from llama.pinpoint.incidents import SAME
from llama.pinpoint.locate import locate
from llama.pinpoint.reroutes import reroutes
from llama.pinpoint.sighting import LISTED, Sighting, common_tags
from llama.pinpoint.windows import Measured, Window, lost_probes

#: Intervals that are judged together.
LONG = 6
#: Of those, so many must show some of it, and the newest `STILL` at this share of its rate: one
#: burst is no gray loss, and what is over is over.
SPREAD = 3
STILL, STILL_RATE = 2, 0.25
#: Paths that are shown of a suspect.
PATHS = 8


@frozen(kw_only=True, eq=False)
class Judgement:
    """What was found as of an interval's end."""

    end_s: float
    verdict: Verdict  # of the newest interval alone
    sightings: tuple[Sighting, ...]  # the most certain first
    reroutes: tuple[Sighting, ...] = ()  # paths that changed with the RTT: no suspects
    data: bool  # whether anything was measured
    measured: npt.NDArray[np.int64]  # lasting numbers of the flows that were


def judge(measured: Measured, end_s: float, thresholds: Thresholds | None = None) -> Judgement:
    """Judge what was measured in the interval that ended at `end_s`, Unix seconds."""
    measured.paths.name_anew()
    window = measured.window(end_s)
    if not len(window.flows) or window.end_s != end_s:
        why = tuple(_missing(measured, end_s))
        nothing = Verdict(suspects=(), flows=0, judged=0, lossy=0, unexplained=0, excluded=why)
        none = np.zeros(0, np.int64)
        return Judgement(end_s=end_s, verdict=nothing, sightings=(), data=False, measured=none)
    verdict = locate(window.flows, window.hosts, window.paths, thresholds)
    verdict = evolve(verdict, excluded=(*verdict.excluded, *_missing(measured, end_s)))
    plain = [(suspect, _sighting(window, suspect)) for suspect in verdict.suspects]
    faint: list[tuple[Sighting, frozenset[int]]] = []
    if len(measured.last(end_s, LONG)) > 1:
        faint = list(_faint(measured, end_s, thresholds, plain))
    kept = [
        sighting
        for suspect, sighting in plain
        if not any(_blurs(suspect, sighting, accounts) for _, accounts in faint)
    ]
    return Judgement(
        end_s=end_s,
        verdict=verdict,
        sightings=(*kept, *(sighting for sighting, _ in faint)),
        reroutes=tuple(reroutes(measured.moved(end_s), window.hosts)),
        data=verdict.judged > 0,
        measured=window.numbers,
    )


def _missing(measured: Measured, end_s: float) -> Iterator[str]:
    """Yield in words what was measured lately, but not in the interval that ended then."""
    for collector, seconds in measured.behind.items():
        yield f"{measured.pairs.host_of(collector)}: {seconds:.0f} s behind, not waited for"
    for collector, seconds in measured.ahead.items():
        yield f"{measured.pairs.host_of(collector)}: {seconds:.0f} s ahead, not judged"
    late = measured.take_late()
    for host, numbers in late.items():
        yield f"{len(numbers)} flows of {host}: came after their interval was judged"
    besides = frozenset[int]().union(*late.values())
    for host, count in measured.missing(end_s, LONG, besides).items():
        yield f"{count} known flows of {host}: not measured in this interval"


def _blurs(suspect: Suspect, sighting: Sighting, accounts: frozenset[int]) -> bool:
    """Return whether a place, seen over several intervals, is the sharper name of a set by tags.

    Chance may have put nearly all of one interval's loss on the replies, which vote by tags only.
    """
    by_tags = suspect.kind in ("tag", "pair", "host") and suspect.p_value > 0
    return by_tags and len(sighting.hit & accounts) >= SAME * len(sighting.hit)


def _faint(
    measured: Measured,
    end_s: float,
    thresholds: Thresholds | None,
    plain: Sequence[tuple[Suspect, Sighting]],
) -> Iterator[tuple[Sighting, frozenset[int]]]:
    """Yield what only several intervals together show, and what is still going on of it.

    With each, the lasting numbers of the flows whose trouble it accounts for.
    """
    window = measured.window(end_s, LONG, alive_only=True)
    ends = measured.last(end_s, LONG)
    numbers = window.numbers
    for suspect in locate(window.flows, window.hosts, window.paths, thresholds).suspects:
        if suspect.symptom != "loss" or suspect.direction == "unknown":
            continue
        hit = set(numbers[suspect.hit].tolist())
        accounts = frozenset(numbers[suspect.accounts].tolist())
        if any(
            suspect.key == sighting.key
            or (len(hit & sighting.flows) >= 0.5 * len(hit) and not _blurs(one, sighting, accounts))
            for one, sighting in plain
        ):
            continue
        crossing = window.numbers[suspect.flows]
        sent, lost = np.array([measured.counts(end, crossing, undoubted=True) for end in ends]).T
        recent = lost[-STILL:].sum() / max(1, sent[-STILL:].sum())
        if np.count_nonzero(lost) < SPREAD or recent < STILL_RATE * suspect.rate:
            continue
        seconds = len(ends) * measured.length_s
        told = evolve(suspect, evidence=f"{suspect.evidence}, over {seconds:.0f} s")
        yield _sighting(window, told), accounts


def _sighting(window: Window, suspect: Suspect) -> Sighting:
    """Return a suspect with the pairs that it hits, what they have in common, and their paths."""
    names, flows = window.hosts.names, window.flows
    ends = zip(
        flows["source"][suspect.hit].tolist(),
        flows["destination"][suspect.hit].tolist(),
        strict=True,
    )
    worst = [pair for pair, _ in Counter(ends).most_common(LISTED)]
    paths: dict[tuple[str, ...], None] = {}
    for flow in suspect.hit[: 8 * PATHS].tolist():
        nodes = tuple(window.nodes_of(flow))
        if nodes and len(paths) < PATHS:
            paths[nodes] = None
    return Sighting.of(
        suspect,
        window.numbers.tolist(),
        [(names[a], names[b]) for a, b in worst],
        common_tags(window.hosts, worst),
        list(paths),
        _is_untraced(window, suspect),
    )


def _is_untraced(window: Window, suspect: Suspect) -> bool:
    """Return whether most of what a suspect hits is dead and was not traced yet.

    Of hosts that are down it does not matter: these are found without traces.
    """
    hit = window.flows[suspect.hit]
    dead = lost_probes(hit) >= DEAD * hit["sent"]
    untraced = dead & (window.paths.answered[suspect.hit] == NOT_TRACED)
    return suspect.p_value > 0 and 2 * int(np.count_nonzero(untraced)) > len(hit)
