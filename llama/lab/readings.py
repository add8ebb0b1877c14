"""What one interval says of every pair, and the two sentences that a person would say of it.

Pure: rows go in, text comes out. Where the rows come from is `llama.lab.demo`'s business, how the
matrix looks is `llama.cli._matrix`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from attrs import frozen

#: How many times the median delay of the other pairs makes a site stand out.
FAR = 1.5


@frozen(kw_only=True)
class Reading:
    """One pair in one interval, as it was measured; None is "no sample", never zero."""

    source: str
    destination: str
    source_site: str
    destination_site: str
    loss: float | None = None  # percent
    flows: int | None = None
    flows_lossy: int | None = None
    rtt_p50_ms: float | None = None
    suspect: tuple[str, ...] = ()  # why the measurement's own fault may be in these figures


def worst_pair(readings: Iterable[Reading]) -> Reading | None:
    """Return the pair that loses most, None if none loses; an earlier one wins over its equal."""
    lossy = [reading for reading in readings if reading.loss]
    return max(lossy, key=lambda reading: reading.loss or 0.0, default=None)


def far_site(readings: Iterable[Reading]) -> tuple[str, float, float] | None:
    """Return the site whose delay stands out, or None.

    The median RTT of the pairs between a site and the others is compared with that of the pairs
    between those others: the site with the greatest ratio stands out if it is `FAR` or more. With
    fewer than three sites there is nothing to compare with. Returns the site and both medians, ms.
    """
    between = [
        (reading.source_site, reading.destination_site, reading.rtt_p50_ms)
        for reading in readings
        if reading.rtt_p50_ms is not None and reading.source_site != reading.destination_site
    ]
    found = None
    for site in sorted({site for row in between for site in row[:2]}):
        own = [rtt for here, there, rtt in between if site in (here, there)]
        others = [rtt for here, there, rtt in between if site not in (here, there)]
        if not others:
            continue
        candidate = (site, median(own), median(others))
        if found is None or candidate[1] * found[2] > found[1] * candidate[2]:
            found = candidate
    return found if found and found[1] >= FAR * found[2] else None


def loss_sentence(readings: Sequence[Reading]) -> str:
    """Say which pair loses most, on how many of its flows, and how many others lose anything."""
    if all(reading.loss is None for reading in readings):
        return "Nothing has been measured."
    worst = worst_pair(readings)
    if worst is None:
        return "No pair loses anything."
    text = f"{worst.source} → {worst.destination} loses {percent(worst.loss)}"
    if worst.flows and worst.flows_lossy is not None:
        text += f", on {worst.flows_lossy} of its {worst.flows} flows"
    rest = [reading.loss for reading in readings if reading.loss and reading is not worst]
    if not rest:
        return text + "; no other pair loses."
    others = "1 other pair loses" if len(rest) == 1 else f"{len(rest)} other pairs lose"
    return f"{text}; {others}, {percent(max(rest))} at most."


def delay_sentence(readings: Iterable[Reading]) -> str:
    """Say which site is far, and what that is compared with."""
    found = far_site(readings)
    if found is None:
        return "No site stands out by its delay."
    site, own_ms, others_ms = found
    return (
        f"{site} is far: {milliseconds(own_ms)} median to and from it, "
        f"{milliseconds(others_ms)} between the others."
    )


def suspect_sentence(readings: Sequence[Reading]) -> str | None:
    """Say how many pairs' figures may be the measurement's own fault, and why; None if none."""
    suspect = [reading.suspect for reading in readings if reading.suspect]
    if not suspect:
        return None
    why = sorted({reason.replace("_", " ") for reasons in suspect for reason in reasons})
    return f"{len(suspect)} of {len(readings)} pairs, by {', '.join(why)}."


def percent(loss: float | None) -> str:
    """Write a loss in percent so that 0, a trace, and 100 cannot be taken for each other."""
    if loss is None:
        return "—"
    if 0 < loss < 0.1:
        return "<0.1 %"
    if 99.9 < loss < 100:
        return ">99.9 %"
    return f"{loss:.0f} %" if loss in (0, 100) else f"{loss:.1f} %"


def milliseconds(rtt_ms: float | None) -> str:
    """Write a time in ms with three significant digits, no sample as an em dash."""
    if rtt_ms is None:
        return "—"
    decimals = 3 if rtt_ms < 1 else 2 if rtt_ms < 10 else 1 if rtt_ms < 100 else 0
    return f"{rtt_ms:.{decimals}f} ms"
