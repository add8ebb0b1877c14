"""How likely loss that strikes all probes alike makes each flow lossy, by how much it sent; pure.

A flow that sent twenty times as much as another is lossy about twenty times as often, and no worse
for it: that is what trouble in a set of flows is measured against (`llama.pinpoint.scan`).
"""

from __future__ import annotations

import numpy as np
from attrs import frozen

from llama.pinpoint.evidence import Indices
from llama.pinpoint.scan import Floats

#: Flows whose numbers of probes differ by less than this share count as one kind.
ALIKE = 0.02


@frozen(kw_only=True, eq=False)
class Exposure:
    """Flows by how many probes they sent and how many lost ones make them lossy."""

    each: Floats  # probes sent, by flow
    lost: Floats  # probes lost, by flow
    share: float  # of lost probes, that are known to be of the direction which is asked about
    kind: Indices  # by flow
    sent: Floats  # by kind, probes
    least: Indices  # by kind, probes

    @classmethod
    def of(cls, sent: Floats, lost: Floats, least: Indices, share: float = 1.0) -> Exposure:
        """Return the exposure of flows that are lossy if they lost at least so many probes.

        And if one of them was lost in the direction asked about, as this share of lost ones is.
        """
        size = np.round(np.log(np.maximum(sent, 1)) / ALIKE).astype(np.int64)
        many = int(least.max(initial=0)) + 1
        code, kind = np.unique(size * many + least, return_inverse=True)
        flows = np.maximum(np.bincount(kind, minlength=len(code)), 1)
        mean = np.bincount(kind, sent, minlength=len(code)) / flows
        return cls(each=sent, lost=lost, share=share, kind=kind, sent=mean, least=code % many)

    def even(self, active: Indices, lossy: int) -> Floats | None:
        """Return, by flow, the chance to be lossy if all probes are lost at one rate; None if alike.

        The rate is the one at which so many of the `active` flows are lossy on average.
        """
        flows = self._kinds(active)
        if np.count_nonzero(flows) < 2:
            return None
        # Bisection of the logarithm of the rate.
        low, high = -25.0, 0.0
        for _ in range(40):
            middle = (low + high) / 2
            if flows @ self._lossy(float(np.exp(middle))) < lossy:
                low = middle
            else:
                high = middle
        chance: Floats = self._lossy(float(np.exp(high)))[self.kind]
        return chance

    def alike(self, active: Indices, lossy: int) -> tuple[Floats, Floats] | None:
        """Return, by flow, the chances to be lossy, and not, of flows that one cause strikes alike.

        It makes so many of the `active` flows lossy, at the rate that they lose probes at. If that is
        high the slow ones must be lossy, too. None if all are alike.
        """
        flows = self._kinds(active)
        if np.count_nonzero(flows) < 2:
            return None
        rate = self.lost[active].sum() / max(1.0, self.each[active].sum())
        chance = self._lossy(min(1.0, float(rate)))
        well = 1 - chance
        ill_all, well_all = flows @ chance, flows @ well
        if ill_all < 1e-9 or well_all < 1e-9:
            return None
        chance = np.minimum(1.0, chance * (lossy / ill_all))
        well = np.minimum(1.0, well * ((len(active) - lossy) / well_all))
        return chance[self.kind], well[self.kind]

    def _kinds(self, active: Indices) -> Floats:
        return np.bincount(self.kind[active], minlength=len(self.sent)).astype(float)

    def _lossy(self, rate: float) -> Floats:
        """Return, by kind, the chance to be lossy where probes are lost at this rate."""
        rate = min(rate, 1 - 1e-12)
        so_many = np.exp(
            self.sent * np.log1p(-rate)
        )  # chance that none is lost, then one, two, ...
        chance = 1 - np.exp(self.sent * np.log1p(-rate * self.share))
        # Less those that lost some in the direction asked about, but too few in all.
        for lost in range(1, int(self.least.max(initial=0))):
            so_many = so_many * np.maximum(self.sent - lost + 1, 0) / lost * (rate / (1 - rate))
            there = 1 - (1 - self.share) ** lost
            chance -= np.where(lost < self.least, so_many * there, 0.0)
        clipped: Floats = np.clip(chance, 0.0, 1.0)
        return clipped
