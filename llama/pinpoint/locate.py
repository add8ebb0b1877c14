"""From flows, tags and paths to suspects by name. Pure: no clock, no network, no state.

The order of thinking. First the ends are judged, and what is sick there is left out
(`llama.pinpoint.ends`). Then every set of flows that has a name competes to explain the trouble:
links and nodes where paths are known, hosts, tags, pairs of tags, classes, sizes and IP versions anywhere
(`llama.pinpoint.scan`). The best is accepted if chance does not explain it, its flows are put
aside, and the rest is judged again (`llama.pinpoint.rounds`); so several faults at once are several
suspects.

Three rules keep directions honest. Loss that is known to be *forward* votes on the links of the
flow's own path. Loss that is known to be *reverse* crossed links that the sender cannot trace: it
is put down to a suspect that the other end's collector found in the opposite direction, as far as
it can have caused so much, and else votes by tags only. Loss of *unknown* direction never votes on
links, except of a flow that a trace met dead: it then votes on the links from where the trace
ended. That is forward, unless replies and routers' answers died on the way back; where no collector
measures that way, only a place that is dead to nearly all of its flows is named for it. Of a flow that a
router refused to forward it is forward without doubt, and behind that router.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
from attrs import evolve

from llama.config.dscp import class_name
from llama.pinpoint import ends, scan, symptoms
from llama.pinpoint.candidates import host_families, path_families, tag_families
from llama.pinpoint.ends import Sick
from llama.pinpoint.evidence import (
    HOSTS_DELAYED,
    HOSTS_LATE,
    HOSTS_LOST,
    NOT_SENT,
    Hosts,
    Indices,
    Mask,
    Paths,
    Refusal,
    Suspect,
    Thresholds,
    Verdict,
)
from llama.pinpoint.exposure import Exposure
from llama.pinpoint.replies import Replies
from llama.pinpoint.rounds import Rounds
from llama.pinpoint.symptoms import Symptom
from llama.pinpoint.words import VERB, called, sentence

#: Different refusals that are told of a suspect.
MOST_REFUSALS = 4


def locate(
    flows: npt.NDArray[np.void],
    hosts: Hosts,
    paths: Paths | None = None,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Return the suspects for one window. `flows` are `FLOWS` rows, in step with `paths`.

    Never raises for figures that make no sense together; raises `ValueError` when the shapes of
    the columns do not fit.
    """
    paths = paths or Paths.unknown(len(flows))
    if len(paths.start) != len(flows) + 1 or len(paths.answered) != len(flows):
        raise ValueError(f"paths of {len(paths.start) - 1} flows given for {len(flows)} flows")
    return _Case(flows, hosts, paths, thresholds or Thresholds()).judge()


class _Case:
    """One window under judgement: the columns, and what was found so far."""

    def __init__(
        self, flows: npt.NDArray[np.void], hosts: Hosts, paths: Paths, thresholds: Thresholds
    ) -> None:
        self.flows, self.hosts, self.paths, self.limits = flows, hosts, paths, thresholds
        self.sent = flows["sent"].astype(np.float64)
        self.lost = (
            flows["lost_forward"].astype(np.int64) + flows["lost_reverse"] + flows["lost_unknown"]
        )
        self.dead = (self.sent > 0) & (self.lost >= thresholds.dead * self.sent)
        self.known_path = np.diff(paths.start) > 0
        self.met_dead = self.dead & (paths.answered >= 0)
        self.some_links = self.known_path.copy()
        self.some_links[paths.left[:, 0]] = True
        self.excluded: list[str] = []
        self.replies = Replies(flows, hosts, paths, self.known_path, self.dead)

    def judge(self) -> Verdict:
        """Judge ends, then loss, then marks, then lateness."""
        flows, limits = self.flows, self.limits
        enough = self.sent >= limits.least_sent
        trusted = (flows["suspect"] & HOSTS_LOST) == 0
        unsent = (self.sent == 0) & ((flows["suspect"] & NOT_SENT) != 0)
        self._exclude(unsent, "could not be sent by the host itself", "flows")
        self._exclude(~enough & (self.lost > 0), f"fewer than {limits.least_sent} probes of each")
        self._exclude(enough & ~trusted & (self.lost > 0), "the hosts themselves lost probes")
        # Replies that came too late have no direction: no later one tells about them. Loss whose
        # direction is known is no matter of lateness, nor is a flow that lost everything.
        late = ((flows["suspect"] & HOSTS_LATE) != 0) & ~self.dead
        maybe_late = np.where(late, flows["lost_unknown"], 0)
        held_up = (maybe_late > 0) & (self.lost == maybe_late)
        if maybe_late.any():
            self.flows = flows = flows.copy()  # the caller's stay as they are
            flows["lost_unknown"] -= maybe_late
            self.lost -= maybe_late
        self._exclude(enough & trusted & held_up, "the hosts ran late, maybe replies did")
        judged = enough & trusted & ~held_up
        sick_ends = ends.examine(
            self.hosts,
            flows["source"][enough],
            flows["destination"][enough],
            self.dead[enough],
            limits.dead,
        )
        no_source = sick_ends.dead | sick_ends.blind
        for end in sick_ends.sick:
            if end.receiving:
                no_source[list(end.hosts)] = False
        sick = no_source[flows["source"]] | sick_ends.dead[flows["destination"]]
        sick_suspects = [self._end_suspect(end, enough) for end in sick_ends.sick]
        judged &= ~sick
        loss = symptoms.loss(flows, self.lost, judged, self.met_dead)
        suspects, left = self._symptom(loss)
        suspects += self._symptom(symptoms.remarked(flows, self.lost, enough & ~sick))[0]
        on_time = enough & ~sick & ~self.dead & ((flows["suspect"] & HOSTS_DELAYED) == 0)
        suspects += self._symptom(symptoms.late(flows, on_time))[0]
        return Verdict(
            suspects=tuple(map(self._with_refusals, (*sick_suspects, *_once(suspects)))),
            flows=len(flows),
            judged=int(np.count_nonzero(judged)),
            lossy=int(np.count_nonzero(loss.troubled)),
            unexplained=len(left),
            excluded=tuple(self.excluded),
        )

    def _with_refusals(self, suspect: Suspect) -> Suspect:
        """Return a suspect with what routers said of the flows that it hits."""
        if suspect.symptom != "loss" or not self.paths.refusals:
            return suspect
        said = Counter(
            self.paths.refusals[flow]
            for flow in suspect.hit[self.dead[suspect.hit]].tolist()
            if flow in self.paths.refusals
        )
        refusals = [
            Refusal(by=by, refusal=refusal, refused=count)
            for (by, refusal), count in said.most_common(MOST_REFUSALS)
        ]
        return evolve(suspect, refusals=tuple(refusals))

    def _exclude(self, which: Mask, why: str, what: str = "lossy flows") -> None:
        """Note flows that are left out, by source."""
        names, counts = np.unique(self.flows["source"][which], return_counts=True)
        for host, count in zip(names, counts, strict=True):
            self.excluded.append(f"{count} {what} of {self.hosts.names[host]}: {why}")

    def _end_suspect(self, end: Sick, enough: Mask) -> Suspect:
        """Return a sick end as a suspect."""
        sick = np.zeros(len(self.hosts.names), bool)
        sick[list(end.hosts)] = True
        touches = np.zeros(len(self.flows), bool)
        if end.kind != "collector":
            touches |= sick[self.flows["destination"]]
        if not end.receiving:
            touches |= sick[self.flows["source"]]
        crossing = np.flatnonzero(enough & touches)
        hit = crossing[self.lost[crossing] > 0]
        lossy = np.count_nonzero(enough & (self.lost > 0))
        healthy = len(crossing) - len(hit)
        return Suspect(
            kind=end.kind,
            name=end.name,
            symptom="loss",
            direction=end.direction,
            explains=len(hit),
            troubled=int(lossy),
            crossing_healthy=healthy,
            healthy=int(np.count_nonzero(enough)) - int(lossy),
            rate=float(self.lost[crossing].sum() / max(1.0, self.sent[crossing].sum())),
            p_value=0.0,
            confidence=1.0,
            evidence=end.evidence,
            flows=crossing,
            hit=hit,
        )

    def _symptom(self, symptom: Symptom) -> tuple[list[Suspect], Indices]:
        """Return the suspects for one symptom, and the troubled flows that none explains."""
        if np.count_nonzero(symptom.troubled) < self.limits.least_lossy_flows:
            return [], np.flatnonzero(symptom.troubled)
        everywhere = self._everywhere(symptom)
        if everywhere is not None:
            return [everywhere], np.zeros(0, np.int64)
        by_tag = tag_families(self.flows, self.hosts)
        found: list[Suspect] = []
        # What lost only on the way back is healthy on the way there.
        traced = symptom.judged & self.some_links & ~symptom.blank
        aside = np.zeros(len(self.flows), bool)
        likely, most = np.zeros(len(self.flows)), np.zeros(len(self.flows))
        if traced.any() and symptom.forward.any():
            by_path = path_families(self.flows, self.paths, self.met_dead)
            if symptom.name == "late":
                # Of unknown direction: only what makes all of its flows late can be the cause.
                by_host = host_families(self.flows, self.hosts)
                families, least_share = [*by_path, *by_host], self.limits.late
            else:
                families, least_share = [*by_path, *by_tag], 0.0
            located = self._rounds(
                families,
                symptom,
                traced,
                symptom.forward,
                least_share,
                symptom.forward_exposure,
            )
            for suspect in self.replies.without_echoes(located, symptom, self.limits.late):
                if suspect.kind in ("link", "node") and self.replies.one_sided(
                    suspect, self.limits.late
                ):
                    continue
                likely_by_it, most_by_it = self.replies.consequences(suspect, symptom)
                likely = 1 - (1 - likely) * (1 - likely_by_it)
                most = 1 - (1 - most) * (1 - most_by_it)
                aside[suspect.flows] = True
                accounts = self.replies.accounted(most_by_it, symptom)
                found.append(evolve(suspect, accounts=accounts))
        if symptom.name == "late":
            # An RTT has no direction: what may be a consequence is one.
            aside |= most > 0
        rest = symptom.judged & ~aside
        exposure = symptom.exposure and evolve(symptom.exposure, likely=likely, most=most)
        found += self._rounds(by_tag, symptom, rest, symptom.troubled, 0.0, exposure)
        explained = aside
        explained[self.replies.accounted(most, symptom)] = True
        for suspect in found:
            explained[suspect.hit] = True
        left = np.flatnonzero(symptom.troubled & ~explained)
        return found, left

    def _everywhere(self, symptom: Symptom) -> Suspect | None:
        """Return the one suspect for trouble of nearly all flows: nothing can be told apart."""
        judged, hit = np.flatnonzero(symptom.judged), np.flatnonzero(symptom.troubled)
        if len(hit) < 0.95 * len(judged):
            return None
        evidence = (
            f"{len(hit)} of {len(judged)} flows are {VERB[symptom.name]}: no part of the network"
            " is healthy beside another, so no part can be named"
        )
        whole = self._suspect(
            "everywhere", "everywhere", symptom, "unknown", {}, judged, hit, judged, evidence
        )
        if symptom.name != "remark":
            return whole
        # Only classes that are re-marked somewhere are judged: these are so wherever they go.
        classes = ", ".join(class_name(int(c)) for c in np.unique(self.flows["dscp"][hit]))
        return self._remark_words(
            evolve(
                whole, kind="class", name=f"class {classes}", evidence=f"on every path: {evidence}"
            )
        )

    def _rounds(
        self,
        families: list[scan.Family],
        symptom: Symptom,
        universe: Mask,
        trouble: Mask,
        least_share: float,
        exposure: Exposure | None = None,
    ) -> list[Suspect]:
        """Return suspects one after the other, each explained away before the next."""
        rounds = Rounds(
            families=families,
            trouble=trouble,
            answered=np.where(self.dead, self.paths.answered, -1).astype(np.int16),
            dead=self.dead,
            replies=self.replies,
            limits=self.limits,
            least_share=least_share,
            exposure=exposure,
        )
        everyone, active = np.flatnonzero(symptom.judged), np.flatnonzero(universe)
        suspects = []
        for best in rounds.play(active):
            crossing = best.family.contains(best.candidate, active, last=best.last)
            hit = rounds.votes(best, active)
            suspect = self._named(best, symptom, crossing, hit, active, trouble)
            # Also those that could not vote cross it.
            crosses = best.family.contains(best.candidate, everyone)
            suspects.append(evolve(suspect, flows=crosses))
            active = np.setdiff1d(active, crosses, assume_unique=True)
        return suspects

    def _named(
        self,
        best: scan.Found,
        symptom: Symptom,
        crossing: Indices,
        hit: Indices,
        active: Indices,
        trouble: Mask,
    ) -> Suspect:
        """Return the suspect that a candidate is, with its evidence in words."""
        family, name = best.family, best.family.label(best.candidate)
        only = family.confined(best.candidate) if family.confined else {}
        # What votes on links was known to be forward.
        located = family.kind in ("link", "node") and symptom.name != "late"
        direction = "forward" if located else self._direction(symptom, hit)
        troubled = int(np.count_nonzero(trouble[active]))
        also = tuple(called(other.kind, other.label(c)) for other, c in best.equals)
        suspect = evolve(
            self._suspect(family.kind, name, symptom, direction, only, crossing, hit, active),
            troubled=troubled,
            healthy=len(active) - troubled,
            p_value=best.p_value,
            confidence=best.confidence,
            also=also,
        )
        suspect = evolve(suspect, evidence=sentence(suspect))
        return self._remark_words(suspect) if symptom.name == "remark" else suspect

    def _remark_words(self, suspect: Suspect) -> Suspect:
        """Return the suspect with what the marks became."""
        was = ", ".join(class_name(int(c)) for c in np.unique(self.flows["dscp"][suspect.hit]))
        became = np.unique(self.flows["remarked_to"][suspect.hit])
        to = ", ".join(class_name(int(c)) for c in became if c < 64)
        words = f"; class {was} becomes {to}" if to else f"; class {was} is re-marked"
        return evolve(suspect, evidence=suspect.evidence + words)

    def _direction(self, symptom: Symptom, hit: Indices) -> str:
        """Return the direction that nine tenths of the hit flows agree on, else "unknown"."""
        if symptom.name == "late":
            return "unknown"
        forward = symptom.forward[hit] & ~self.replies.unproven[hit]
        reverse = symptom.reverse[hit]
        known = np.count_nonzero(forward | reverse)
        if known < 0.9 * len(hit):
            return "unknown"
        if np.count_nonzero(forward) >= 0.9 * known:
            both = np.count_nonzero(reverse) >= 0.9 * known
            return "both" if both else "forward"
        return "reverse" if np.count_nonzero(reverse) >= 0.9 * known else "both"

    def _suspect(
        self,
        kind: str,
        name: str,
        symptom: Symptom,
        direction: str,
        only: dict[str, str],
        crossing: Indices,
        hit: Indices,
        active: Indices,
        evidence: str = "",
    ) -> Suspect:
        """Return a suspect as if all that is troubled among the `active` flows were its hits."""
        return Suspect(
            kind=kind,
            name=name,
            symptom=symptom.name,
            direction=direction,
            only=only,
            explains=len(hit),
            troubled=len(hit),
            crossing_healthy=len(crossing) - len(hit),
            healthy=len(active) - len(hit),
            rate=float(symptom.hits[crossing].sum() / max(1.0, self.sent[crossing].sum())),
            p_value=0.0,
            confidence=1.0,
            evidence=evidence,
            flows=crossing,
            hit=hit,
        )


def _once(suspects: list[Suspect]) -> tuple[Suspect, ...]:
    """Return every cause once, places before what is said by tags, each by what it explains.

    A cause with several symptoms (a link that loses and delays) is named with the first.
    """
    causes: dict[str, Suspect] = {}
    for suspect in suspects:
        causes.setdefault(suspect.key, suspect)

    def order(suspect: Suspect) -> tuple[bool, int]:
        return suspect.kind not in ("link", "node"), -suspect.explains

    return tuple(sorted(causes.values(), key=order))
