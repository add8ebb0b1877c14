"""How likely loss that strikes all probes alike makes each flow lossy, by how much it sent; pure.

A flow that sent twenty times as much as another is lossy about twenty times as often, and no worse
for it: that is what trouble in a set of flows is measured against (`llama.pinpoint.scan`).
"""

from __future__ import annotations

from math import erfc, sqrt

import numpy as np
from attrs import frozen

from llama.pinpoint.evidence import Indices
from llama.pinpoint.scan import Floats

#: Flows whose numbers of probes differ by less than this share count as one kind.
ALIKE = 0.02
#: Chances of so many lost probes are summed up one by one; of more they are estimated. Where they fall
#: below all numbers that there are, 100 or more are certain.
MOST_SUMMED = 100


@frozen(kw_only=True, eq=False)
class Exposure:
    """Flows by how many probes they sent and how many lost ones make them lossy."""

    each: Floats  # probes sent, by flow
    lost: Floats  # probes lost, by flow
    kind: Indices  # by flow
    sent: Floats  # by kind, probes
    least: Indices  # by kind, probes
    #: Chance to be lossy on account of what was found before, by flow: what is likely, and the most
    #: that may be. None: nothing was found.
    likely: Floats | None = None
    most: Floats | None = None

    @classmethod
    def of(cls, sent: Floats, lost: Floats, least: Indices) -> Exposure:
        """Return the exposure of flows that are lossy if they lost at least so many probes."""
        size = np.round(np.log(np.maximum(sent, 1)) / ALIKE).astype(np.int64)
        many = int(least.max(initial=0)) + 1
        code, kind = np.unique(size * many + least, return_inverse=True)
        flows = np.maximum(np.bincount(kind, minlength=len(code)), 1)
        mean = np.bincount(kind, sent, minlength=len(code)) / flows
        return cls(each=sent, lost=lost, kind=kind, sent=mean, least=code % many)

    def even(self, active: Indices, lossy: int) -> Floats | None:
        """Return, by flow, the chance to be lossy if all probes are lost at one rate; None if alike.

        The rate is the one at which so many of the `active` flows are lossy on average, with those
        that are likely to be on account of what was found before.
        """
        flows, expected = self._kinds(active)
        if self._are_alike(flows, expected):
            return None
        # Bisection of the logarithm of the rate.
        low, high = -25.0, 0.0
        for _ in range(40):
            middle = (low + high) / 2
            if expected + flows @ self.chance(float(np.exp(middle))) < lossy:
                low = middle
            else:
                high = middle
        return self._by_flow(self.chance(float(np.exp(low))))

    def alike(self, active: Indices, lossy: int) -> tuple[Floats, Floats] | None:
        """Return, by flow, the chances to be lossy, and not, of flows that one cause strikes alike.

        It makes so many of the `active` flows lossy, at the rate that they lose probes at. If that is
        high the slow ones must be lossy, too. None if all are alike.
        """
        if self._are_alike(*self._kinds(active)):
            return None
        rate = self.lost[active].sum() / max(1.0, self.each[active].sum())
        ill = self._by_flow(self.chance(float(rate)))
        well = 1 - ill
        ill_all, well_all = ill[active].sum(), well[active].sum()
        if ill_all < 1e-9 or well_all < 1e-9:
            return None
        ill = np.minimum(1.0, ill * (lossy / ill_all))
        return ill, np.minimum(1.0, well * ((len(active) - lossy) / well_all))

    def chance(self, rate: float) -> Floats:
        """Return, by kind, the chance to be lossy where probes are lost at this rate."""
        rate = min(max(rate, 1e-12), 1 - 1e-12)
        many = self.least > MOST_SUMMED
        chance = _summed(self.sent, np.where(many, 0, self.least), rate)
        if many.any():
            chance[many] = _estimated(self.sent[many], self.least[many], rate)
        clipped: Floats = np.clip(chance, 0.0, 1.0)
        return clipped

    def _kinds(self, active: Indices) -> tuple[Floats, float]:
        """Return how many flows of each kind are not lossy for what was found, and how many are."""
        kind = self.kind[active]
        if self.likely is None:
            flows = np.bincount(kind, minlength=len(self.sent))
            return flows.astype(np.float64), 0.0
        likely = self.likely[active]
        others = np.bincount(kind, 1 - likely, minlength=len(self.sent)).astype(np.float64)
        return others, float(likely.sum())

    @staticmethod
    def _are_alike(flows: Floats, expected: float) -> bool:
        return expected == 0 and int(np.count_nonzero(flows)) < 2

    def _by_flow(self, chance: Floats) -> Floats:
        """Return chances by kind as such by flow, with the most on account of what was found."""
        each: Floats = chance[self.kind]
        return each if self.most is None else 1 - (1 - each) * (1 - self.most)


def _summed(sent: Floats, least: Indices, rate: float) -> Floats:
    """Return the chance that at least so many of those probes are lost, by the binomial distribution."""
    # The chance that none is lost, in the loop that one is, two, ...
    so_many = np.exp(sent * np.log1p(-rate))
    chance: Floats = 1 - so_many
    for lost in range(1, int(least.max(initial=0))):
        so_many = so_many * np.maximum(sent - lost + 1, 0) / lost * (rate / (1 - rate))
        chance -= np.where(lost < least, so_many, 0.0)
    return chance


def _estimated(sent: Floats, least: Indices, rate: float) -> Floats:
    """Return the same by Camp and Paulson's approximation (1951), of the cube root of a quotient."""
    few, more = np.maximum(sent - least + 1, 1.0), least.astype(np.float64)
    quotient = np.cbrt(more * (1 - rate) / (few * rate))
    mean = (1 - 1 / (9 * more)) * quotient - (1 - 1 / (9 * few))
    deviations = mean / np.sqrt(quotient**2 / (9 * more) + 1 / (9 * few))
    tails = np.array([0.5 * erfc(each / sqrt(2)) for each in deviations.tolist()])
    return np.where(least > sent, 0.0, tails)
