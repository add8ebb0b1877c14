"""Which set of flows stands out: likelihoods and their significance, pure.

A candidate is a set of flows: those that cross a link, go to a host, bear a class. Trouble of a
flow is a yes or no. For a candidate with m of its n flows in trouble, among M of N in all, the
likelihood ratio of "another rate inside than outside" to "one rate everywhere" (Bernoulli, as in
Kulldorff's spatial scan statistic, 1997) is largest for the set that fits most tightly: one that
leaves trouble outside loses by it, and so does one that has healthy flows inside. Votes of lossy
flows against healthy ones (007, NSDI '18) are thereby weighed, not only counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, exp, inf, lgamma, log1p

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.pinpoint.evidence import Indices

Floats = npt.NDArray[np.float64]

#: The least p-value: only what is certain without statistics has 0.
TINY = 1e-300
#: By how much sums of chances may be off what is a whole number.
ROUNDING = 1e-6


@frozen(kw_only=True, eq=False)
class Family:
    """Candidates of one kind, and which flows each contains.

    Flow f is in candidates ``member[start[f]:start[f + 1]]``; without `start`, in ``member[f]``
    alone, or in none where that is negative.
    """

    kind: str
    label: Callable[[int], str]  # candidate -> its name
    size: int  # candidates are 0 to size - 1
    member: npt.NDArray[np.int64]
    start: Indices | None = None
    #: In step with `member`: a flow that died counts as troubled in a candidate only if this is
    #: at least its number of answered hops; before, the flow is proof that the candidate lives. -1: the
    #: flow was there lately, and may be there still.
    depth: npt.NDArray[np.int16] | None = None
    #: Nats that its candidates must be better by, because there are so many ways to be special.
    handicap: float = 0.0
    rank: int = 0  # of two that contain the same flows, the lower is named
    #: Whether its candidates have both directions in them: one with flows of a single direction is
    #: that direction's.
    both: bool = False
    #: What each candidate is confined to, for families of one class, size or IP version alone.
    confined: Callable[[int], dict[str, str]] | None = None

    def entries(self, flows: Indices) -> tuple[Indices, Indices]:
        """Return, for these flows, positions in `member` and the flow of each."""
        if self.start is None:
            flows = flows[self.member[flows] >= 0]
            return flows, flows
        first, last = self.start[flows], self.start[flows + 1]
        count = last - first
        owner = np.repeat(flows, count)
        ends = np.cumsum(count)
        within = np.arange(len(owner)) - np.repeat(ends - count, count)
        return np.repeat(first, count) + within, owner

    def count(self, flows: Indices) -> npt.NDArray[np.int64]:
        """Return how many of these flows each candidate contains."""
        positions, _ = self.entries(flows)
        return np.bincount(self.member[positions], minlength=self.size)

    def count_troubled(
        self, flows: Indices, answered: npt.NDArray[np.int16]
    ) -> npt.NDArray[np.int64]:
        """Return how many of these troubled flows each candidate may have troubled."""
        positions, owner = self.entries(flows)
        if self.depth is not None:
            positions = positions[self.depth[positions] >= answered[owner]]
        return np.bincount(self.member[positions], minlength=self.size)

    def contains(self, candidate: int, flows: Indices, *, last: bool = False) -> Indices:
        """Return those of these flows that the candidate contains.

        With ``last`` by what was seen of them last: they may be back on a way that they left.
        """
        positions, owner = self.entries(flows)
        chosen = self.member[positions] == candidate
        if last and self.depth is not None:
            chosen &= self.depth[positions] >= 0
        return np.unique(owner[chosen])

    def may_trouble(
        self,
        candidate: int,
        flows: Indices,
        answered: npt.NDArray[np.int16],
        *,
        last: bool = False,
    ) -> Indices:
        """Return those of these troubled flows that the candidate may have troubled; see `contains`."""
        positions, owner = self.entries(flows)
        chosen = self.member[positions] == candidate
        if self.depth is not None:
            chosen &= self.depth[positions] >= answered[owner]
            if last:
                chosen &= self.depth[positions] >= 0
        return np.unique(owner[chosen])


def _entropy(hits: Floats, trials: Floats) -> Floats:
    """Return the log-likelihood of `hits` among `trials` at their own rate."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = hits * np.log(hits / trials) + (trials - hits) * np.log1p(-hits / trials)
    # At a rate of 0 or 1, or without trials, nothing is uncertain.
    return np.where((hits <= 0) | (hits >= trials), 0.0, parts)


def likelihood_gain(
    inside_hits: npt.ArrayLike, inside: npt.ArrayLike, all_hits: int, everything: int
) -> Floats:
    """Return the log-likelihood ratio, nats, of "more trouble inside" to "the same everywhere".

    0 where the inside has no higher rate than the outside.
    """
    m, n = np.asarray(inside_hits, float), np.asarray(inside, float)
    out_m, out_n = all_hits - m, everything - n
    total = _entropy(np.asarray(float(all_hits)), np.asarray(float(everything)))
    gain = _entropy(m, n) + _entropy(out_m, out_n) - total
    worse = m * everything > n * all_hits
    return np.where(worse, np.maximum(gain, 0.0), 0.0)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def tail_probability(hits: int, inside: int, all_hits: int, everything: int) -> float:
    """Return the chance of at least `hits` of `all_hits` falling among `inside` of `everything`.

    The hypergeometric tail (Fisher's exact test, one-sided): every placement equally likely.
    """
    top = min(inside, all_hits)
    if hits <= max(0, inside + all_hits - everything):
        return 1.0
    if hits > top:
        return 0.0
    base = _log_choose(everything, inside)
    log_sum = -inf
    for k in range(hits, top + 1):
        term = _log_choose(all_hits, k) + _log_choose(everything - all_hits, inside - k) - base
        high, low = max(log_sum, term), min(log_sum, term)
        log_sum = high + log1p(exp(low - high)) if low > -inf else high
        if term < log_sum - 40:
            break
    return min(1.0, exp(log_sum))


def unequal_tail(hits: int, inside: Floats, outside: Floats, all_hits: int) -> float:
    """Return the chance of at least `hits` of `all_hits` inside, each flow having its own.

    `inside` and `outside` are the chances of the flows there. It is the tail of the hypergeometric
    distribution of the same mean and variance; with equal chances, `tail_probability`.
    """
    share = float(inside.sum()) / all_hits
    if share >= 1 or hits <= share * all_hits + ROUNDING:
        return 1.0
    if share <= 0:
        return 0.0
    spread, rest = float((inside * (1 - inside)).sum()), float((outside * (1 - outside)).sum())
    binomial = all_hits * share * (1 - share)
    narrower = spread * rest / ((spread + rest) * binomial) if spread + rest > 0 else 0.0
    flows = all_hits / max(1 - narrower, 1e-6)
    # Upwards, but for what is a whole number.
    return tail_probability(hits, ceil(share * flows - ROUNDING), all_hits, ceil(flows - ROUNDING))


@frozen(kw_only=True, eq=False)
class Found:
    """The candidate that stands out, with its counts."""

    family: Family
    candidate: int
    last: bool  # it stands out by where flows were seen last, not by where they may be back
    hits: int
    inside: int
    gain: float
    p_value: float  # of chance, times `looked_at`; never 0
    confidence: float
    looked_at: int  # candidates that contain any troubled flow
    equals: tuple[tuple[Family, int], ...]  # candidates of just the same counts and flows


def best(
    families: Sequence[Family],
    active: Indices,
    troubled: Indices,
    answered: npt.NDArray[np.int16],
    least_hits: int,
    chance: Floats | None = None,
) -> Found | None:
    """Return the candidate that stands out most, the first of `ranked`; None if none does."""
    return next(ranked(families, active, troubled, answered, least_hits, chance), None)


def ranked(
    families: Sequence[Family],
    active: Indices,
    troubled: Indices,
    answered: npt.NDArray[np.int16],
    least_hits: int,
    chance: Floats | None = None,
    least_share: float = 0.0,
) -> Iterator[Found]:
    """Yield the candidates that stand out among the `active` flows, the sharpest first.

    `troubled` are those of the active flows in trouble, `answered` as in `Paths`, by flow.
    `least_share` of a candidate's flows must be in trouble. Each is yielded as if those before
    were no candidates. Where flows have an unequal `chance` to be in trouble, by flow, a candidate
    must stand out both among them and among equal ones: trouble that kills flows strikes the slow
    ones as often as the fast.
    """
    if len(troubled) < least_hits or len(troubled) == len(active):
        return
    counted = [
        _counted(family, active, troubled, answered, chance, least_hits, least_share)
        for family in families
    ]
    looked_at = sum(int(np.count_nonzero(each.hits)) for each in counted)
    while True:
        top = max((float(each.gain.max()) for each in counted if len(each.gain)), default=0.0)
        if top <= 0:
            return
        likelihood = sum(float(np.exp(each.gain[each.gain > 0] - top).sum()) for each in counted)
        tied = [
            (n, int(c))
            for n, each in enumerate(counted)
            for c in np.flatnonzero(each.gain >= top - 1e-9)
        ]
        # Of those that fit just as well, the one that most of the flows in trouble were seen on last, and
        # not on a way that they left; of these, the one of the lowest rank.
        last = {
            n: counted[n].family.count_troubled(troubled, np.maximum(answered, 0)) for n, _ in tied
        }
        n, chosen = min(tied, key=lambda t: (-last[t[0]][t[1]], counted[t[0]].family.rank, t))
        family, by_last = counted[n].family, bool(counted[n].last[chosen])
        alike = {(family, chosen): top}
        flows = family.contains(chosen, active)
        for other, candidate, gained in _of_same_counts(counted, n, chosen):
            if np.array_equal(other.contains(candidate, active), flows):
                alike[other, candidate] = gained
        if by_last:
            flows = family.contains(chosen, active, last=True)
        hits, inside = len(family.may_trouble(chosen, troubled, answered, last=by_last)), len(flows)
        equals = tuple(_worth_telling(list(alike), family, chosen))
        theirs = sum(exp(gained - top) for gained in alike.values() if gained > 0)
        p = tail_probability(hits, inside, len(troubled), len(active))
        if chance is not None:
            outside = np.setdiff1d(active, flows, assume_unique=True)
            p = max(p, unequal_tail(hits, chance[flows], chance[outside], len(troubled)))
        yield Found(
            family=family,
            candidate=chosen,
            last=by_last,
            hits=hits,
            inside=inside,
            gain=top,
            p_value=min(1.0, max(p * looked_at, TINY)),
            confidence=min(1.0, theirs / likelihood),
            looked_at=looked_at,
            equals=equals,
        )
        counted[n].gain[chosen] = 0.0


@frozen(eq=False)
class _Counted:
    """A family's candidates by column: flows in trouble, flows in all, and what each gains."""

    family: Family
    hits: npt.NDArray[np.int64]
    inside: npt.NDArray[np.int64]
    gain: Floats  # nats, 0 or more
    last: npt.NDArray[np.bool_]  # it is gained by fewer than all of these: see `Found`


def _counted(
    family: Family,
    active: Indices,
    troubled: Indices,
    answered: npt.NDArray[np.int16],
    chance: Floats | None,
    least_hits: int,
    least_share: float,
) -> _Counted:
    """Count what `ranked` is told, family by family.

    Flows that left a way may be back on it, or not. Of each candidate that counts by which it gains
    more.
    """
    positions, owner = family.entries(active)
    ill = np.zeros(len(answered), bool)
    ill[troubled] = True
    voting = ill[owner]
    if family.depth is not None:
        voting &= family.depth[positions] >= answered[owner]

    def count(some: slice | npt.NDArray[np.bool_]) -> tuple[Indices, Indices, Floats]:
        """Return hits, flows inside and gain by these of the entries."""
        member = family.member[positions[some]]
        hits = np.bincount(member[voting[some]], minlength=family.size)
        inside = np.bincount(member, minlength=family.size)
        size: npt.ArrayLike = inside
        if chance is not None:
            expected = np.bincount(member, chance[owner[some]], minlength=family.size)
            size = _as_large_as(inside, expected, len(troubled), len(active))
        gained = likelihood_gain(hits, size, len(troubled), len(active)) - family.handicap
        gained[(hits < least_hits) | (hits < least_share * inside)] = 0.0
        return hits, inside, np.maximum(gained, 0.0)

    hits, inside, gained = count(slice(None))
    by_last = np.zeros(family.size, bool)
    if family.depth is not None:
        last = family.depth[positions] >= 0
        if not last.all():
            gained_by_last = count(last)[2]
            by_last = gained_by_last > gained
            gained = np.maximum(gained, gained_by_last)
    return _Counted(family, hits, inside, gained, by_last)


def _of_same_counts(
    counted: Sequence[_Counted], n: int, chosen: int
) -> Iterator[tuple[Family, int, float]]:
    """Yield the candidates of the same counts as the chosen one of family ``n``, and what each gains."""
    hits, inside = counted[n].hits[chosen], counted[n].inside[chosen]
    for each in counted:
        for candidate in np.flatnonzero((each.hits == hits) & (each.inside == inside)).tolist():
            yield each.family, candidate, float(each.gain[candidate])


def _worth_telling(
    alike: Sequence[tuple[Family, int]], family: Family, chosen: int
) -> Iterator[tuple[Family, int]]:
    """Yield those of some candidates of the same flows that are worth telling beside the chosen one.

    What is confined to a class, size or IP version is so beside its own kind alone, and what has both
    directions in it unless its single direction is told.
    """
    only = family.confined(chosen) if family.confined else None
    one_way = {other.kind for other, _ in alike if not other.both}
    for other, candidate in alike:
        if (other, candidate) == (family, chosen):
            continue
        same = other.confined is None or other.confined(candidate) == only
        if same and not (other.both and other.kind in one_way):
            yield other, candidate


def _as_large_as(
    inside: npt.ArrayLike, expected: npt.ArrayLike, all_hits: int, everything: int
) -> Floats:
    """Return how many flows sets count for: so many, or their share of expected trouble if more."""
    size: Floats = np.maximum(inside, np.multiply(expected, everything / all_hits))
    return np.minimum(size, everything)


def gain(
    found: Found,
    active: Indices,
    troubled: Indices,
    answered: npt.NDArray[np.int16],
    chance: Floats | None = None,
) -> float:
    """Return what a candidate gains among other `active` flows than those it was found in, nats."""
    family, last = found.family, found.last
    hits = len(family.may_trouble(found.candidate, troubled, answered, last=last))
    flows = family.contains(found.candidate, active, last=last)
    size: npt.ArrayLike = len(flows)
    if chance is not None:
        size = _as_large_as(len(flows), chance[flows].sum(), len(troubled), len(active))
    gained = likelihood_gain(hits, size, len(troubled), len(active)) - family.handicap
    return float(gained)
