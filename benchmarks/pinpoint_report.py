"""What became of the scenarios of `benchmarks.pinpoint`, in figures with their confidence bounds.

Pure: outcomes go in, words come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, exp, floor, inf, sqrt

from attrs import define, field, frozen
from rich.console import Console

#: Two-sided, as all bounds here: 95 %.
Z, MISS = 1.96, 0.05


@define
class Outcome:
    """What was said about a scenario."""

    scenario: str
    fabric: str
    harmful: int  # faults that do harm at all
    faint: bool
    within: int  # judgements that it had
    top_at: int | None = None  # judgement at which the true suspects were the top ones
    ranks: list[int | None] = field(factory=list)  # of each fault at the last judgement
    incident_s: float | None = None  # from injection until an incident of every fault was open
    true_named: int = 0  # suspects that were right, over all judgements from the second on
    named: int = 0
    false_incidents: list[str] = field(factory=list)
    said: list[str] = field(factory=list)  # the suspects at each judgement
    clean: bool = True  # whether it was over in time for the next one

    @property
    def good(self) -> bool:
        """Whether it went as wanted."""
        if not self.harmful:
            return not self.false_incidents
        return self.top_at is not None and self.top_at <= self.within


def bound(hits: int, trials: int) -> str:
    """Return a share in percent with its 95 % confidence bounds (Wilson 1927)."""
    if not trials:
        return "none"
    z, share = Z, hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = (
        z
        * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
        / (1 + z * z / trials)
    )
    low, high = max(0.0, middle - spread), min(1.0, middle + spread)
    return f"{hits} of {trials}, {100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def median_bound(values: Iterable[float]) -> str:
    """Return a median with bounds that no assumption about the values is behind: order statistics."""
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        return "none"
    reach = Z * sqrt(count) / 2
    low = ordered[max(0, floor(count / 2 - reach) - 1)]
    high = ordered[min(count - 1, ceil(count / 2 + reach))]
    words = [
        "never" if value == inf else f"{value:.1f}"
        for value in (ordered[count // 2], low, high, ordered[-1])
    ]
    return "{} ({} to {}), longest {}".format(*words)


def most_an_hour(seen: int, hours: float) -> float:
    """Return the rate that would show more than was `seen` with 95 % probability (Poisson)."""
    low, high = 0.0, 10.0 + 3.0 * seen
    while high - low > 1e-6:
        mean = (low + high) / 2
        term = total = exp(-mean)
        for k in range(1, seen + 1):
            term *= mean / k
            total += term
        low, high = (mean, high) if total > MISS else (low, mean)
    return high / hours


@frozen
class Quiet:
    """What was said while nothing was wrong."""

    fabric: str
    judgements: int
    hours: float
    named: int  # judgements that named somebody
    incidents: tuple[str, ...]


def report(outcomes: Sequence[Outcome], quiet: Sequence[Quiet], within: int) -> dict[str, str]:
    """Return what the outcomes come to, in words."""
    harmful = [o for o in outcomes if o.harmful]
    single = [o for o in harmful if o.harmful == 1 and not o.faint]
    faint = [o for o in harmful if o.faint]
    double = [o for o in harmful if o.harmful > 1]
    harmless = [o for o in outcomes if not o.harmful]
    ranks = [rank for o in harmful for rank in o.ranks]
    lines = {
        "single faults of 1 % and more on top within 3 intervals": bound(
            sum(o.good for o in single), len(single)
        ),
        f"fainter ones on top within {within} intervals": bound(
            sum(o.good for o in faint), len(faint)
        ),
        "two at once, both before all others": bound(sum(o.good for o in double), len(double)),
        "harmless ones without an incident": bound(sum(o.good for o in harmless), len(harmless)),
        "precision: suspects named that were right": bound(
            sum(o.true_named for o in harmful), sum(o.named for o in harmful)
        ),
        "recall: faults named at the last judgement": bound(
            sum(rank is not None for rank in ranks), len(ranks)
        ),
        "rank of the true suspect at the last judgement": "; ".join(
            f"{rank or 'not named'}: {bound(ranks.count(rank), len(ranks))}"
            for rank in sorted(set(ranks), key=lambda r: r or 99)
        ),
        "time from fault to incident, s, median": median_bound(
            inf if o.incident_s is None else o.incident_s for o in harmful
        ),
        "faults that became incidents": bound(
            sum(o.incident_s is not None for o in harmful if not o.faint),
            sum(not o.faint for o in harmful),
        ),
        "false incidents in scenarios": bound(
            sum(bool(o.false_incidents) for o in outcomes), len(outcomes)
        ),
    }
    for one in quiet:
        lines[f"quiet {60 * one.hours:.0f} minutes ({one.fabric})"] = (
            f"{len(one.incidents)} incidents; {bound(one.named, one.judgements)} judgements named"
            " somebody" + "".join(f"; {title}" for title in one.incidents)
        )
    if quiet:
        hours, seen = sum(one.hours for one in quiet), sum(len(one.incidents) for one in quiet)
        lines["false incidents an hour of quiet"] = (
            f"{seen} in {60 * hours:.0f} minutes, at most {most_an_hour(seen, hours):.1f} an hour"
        )
    return lines


def show(console: Console, outcome: Outcome) -> None:
    """Print one line about a scenario as soon as it is over."""
    sign = "[green]✓[/green]" if outcome.good else "[red]✗[/red]"
    when = "" if outcome.top_at is None else f"named at judgement {outcome.top_at}"
    incident = "" if outcome.incident_s is None else f", incident after {outcome.incident_s:.1f} s"
    console.print(f"{sign} {outcome.fabric} {outcome.scenario}: {when}{incident}")


def failures(console: Console, outcomes: Iterable[Outcome], clean_s: float) -> None:
    """List what did not go as wanted, one by one."""
    for outcome in outcomes:
        if outcome.good and not outcome.false_incidents and outcome.clean:
            continue
        console.print(f"\n[bold]{outcome.fabric} {outcome.scenario}[/bold]")
        for number, said in enumerate(outcome.said, 1):
            console.print(f"  judgement {number}: {said}")
        for title in outcome.false_incidents:
            console.print(f"  false incident: {title}")
        if not outcome.clean:
            console.print(f"  not clean {clean_s:.0f} s after it was healed")
