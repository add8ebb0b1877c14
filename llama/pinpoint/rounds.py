"""One suspect after the other: the best set of flows, then the best of what is left; pure.

What a set is told as, and what its flows mean for others, is not decided here.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.pinpoint import scan
from llama.pinpoint.evidence import Indices, Mask, Thresholds
from llama.pinpoint.exposure import Exposure
from llama.pinpoint.replies import Replies


@frozen(kw_only=True, eq=False)
class Rounds:
    """The question which sets of flows explain the `trouble` of flows. Masks are by flow."""

    families: list[scan.Family]
    trouble: Mask
    answered: npt.NDArray[np.int16]  # as in `Paths`, of flows that died
    dead: Mask
    replies: Replies
    limits: Thresholds
    least_share: float  # of a set's flows that must be in trouble
    exposure: Exposure | None  # None: trouble is no matter of how much a flow sent

    def play(self, active: Indices) -> list[scan.Found]:
        """Return what explains the trouble of these flows, each without the flows of those before."""
        found: list[scan.Found] = []
        left = active
        while len(found) < self.limits.most_suspects:
            best = self._sharpest(left)
            if best is None:
                break
            found.append(best)
            crossing = best.family.contains(best.candidate, left)
            left = np.setdiff1d(left, crossing, assume_unique=True)
        return self._without_idle(found, active)

    def votes(self, found: scan.Found, active: Indices) -> Indices:
        """Return those of these flows that are in trouble and may be so on account of it."""
        troubled = active[self.trouble[active]]
        return found.family.may_trouble(found.candidate, troubled, self.answered, last=found.last)

    def _without_idle(self, found: list[scan.Found], active: Indices) -> list[scan.Found]:
        """Leave out those of which the others explain everything.

        Two bad links into a spine make a third one out of it look bad, maybe worse than either.
        But what is said by tags is no reason to leave out a place, which is so much narrower.
        """
        hits = [self.votes(f, active) for f in found]
        kept = list(range(len(found)))
        for n in range(len(found)):
            place = found[n].family.depth is not None
            others = [
                hits[k] for k in kept if k != n and (found[k].family.depth is not None or not place)
            ]
            if len(others) >= 2 and np.isin(hits[n], np.concatenate(others)).all():
                kept.remove(n)
        return [found[n] for n in kept]

    def _sharpest(self, active: Indices) -> scan.Found | None:
        """Return the best candidate whose flows are alike; the very best if there is no such.

        A node or rack whose flows cross two bad links may fit better than either link. But
        inside a true cause no part stands out, sicker or healthier than the rest: where one
        does, the candidate is passed over.
        """
        limits = self.limits
        first: scan.Found | None = None
        candidates = scan.ranked(
            self.families,
            active,
            active[self.trouble[active]],
            self.answered,
            limits.least_lossy_flows,
            self._chance(active),
            self.least_share,
        )
        for best in islice(candidates, limits.most_suspects + 1):
            if best.p_value > limits.false_positive_rate:
                break
            found = self._behind_echoes(best, active) or best
            # That a flow is well which is elsewhere by now says nothing of what is still there.
            ill = found.family.contains(found.candidate, active[self.trouble[active]])
            well = active[~self.trouble[active]]
            well = found.family.contains(found.candidate, well, last=True)
            if not self._part_stands_out(np.union1d(ill, well)):
                return found
            first = first or found
        return first

    def _behind_echoes(self, found: scan.Found, active: Indices) -> scan.Found | None:
        """Return the dead link that fits better once its own echoes are set aside; None: no such.

        Where a link kills replies, traces end early in the other direction and vote for its far
        end, there and back together for its node. A place that is dead itself needs no echoes.
        """
        votes = self.votes(found, active)
        dead_share = np.count_nonzero(self.dead[votes]) / max(1, found.inside)
        if not self.replies.traced_only[votes].any() or dead_share >= self.limits.late:
            return None
        troubled, least = active[self.trouble[active]], self.limits.least_lossy_flows
        for family in self.families:
            if family.depth is None:
                continue
            hits = family.count_troubled(troubled[self.dead[troubled]], self.answered)
            dead = hits >= self.limits.late * family.count(active)
            for candidate in np.flatnonzero((hits >= least) & dead).tolist():
                crossing = family.contains(candidate, active)
                echo = self.replies.echoes(family.kind, family.label(candidate), crossing)
                if not echo[votes].any():
                    continue
                rest = active[~echo[active]]
                ill, chance = rest[self.trouble[rest]], self._chance(rest)
                better = scan.best(self.families, rest, ill, self.answered, least, chance=chance)
                if (
                    better is not None
                    and (better.family, better.candidate) == (family, candidate)
                    and better.p_value <= self.limits.false_positive_rate
                    and better.gain > scan.gain(found, rest, ill, self.answered, chance) + 1e-9
                ):
                    return better
        return None

    def _part_stands_out(self, inside: Indices) -> bool:
        """Return whether some part of these flows has much more trouble than the rest, or less."""
        least, limit = self.limits.least_lossy_flows, self.limits.false_positive_rate
        ill = self.trouble[inside]
        alike = self.exposure.alike(inside, int(np.count_nonzero(ill))) if self.exposure else None
        sick, well = alike or (None, None)
        part = scan.best(self.families, inside, inside[ill], self.answered, least, chance=sick)
        if part is None or part.p_value > limit:
            nowhere = np.full_like(self.answered, -1)
            part = scan.best(self.families, inside, inside[~ill], nowhere, least, chance=well)
        return part is not None and part.p_value <= limit

    def _chance(self, active: Indices) -> scan.Floats | None:
        """Return the chance of each flow to be in trouble if chance were all; None if equal."""
        if self.exposure is None:
            return None
        return self.exposure.even(active, int(np.count_nonzero(self.trouble[active])))
