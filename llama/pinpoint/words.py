"""The sentences by which a person can check a suspect; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama.paths.trace import LOOP
from llama.pinpoint.evidence import Refusal, Suspect, confined_to

#: What a flow with a symptom is.
VERB = {"loss": "lossy", "remark": "re-marked", "late": "late"}
#: Names in a headline of what cannot be told apart.
MOST_NAMES = 4


def called(kind: str, name: str) -> str:
    """Return what a suspect is called in words; the names of some kinds say which kind it is."""
    return name if kind in ("tag", "pair", "class", "size", "family") else f"{kind} {name}"


def alike(kind: str, also: Sequence[str]) -> list[str]:
    """Return what a suspect cannot be told apart from: a host never from the cable to it."""
    linked = any(other.startswith("link ") for other in also)
    cable = ["its cable"] if kind == "host" and not linked else []
    return [*cable, *also]


def together(kind: str, name: str, also: Sequence[str]) -> str:
    """Return what a suspect is called with all that it cannot be told apart from."""
    if kind == "everywhere":
        return "the whole network"
    names = [called(kind, name), *alike(kind, also)]
    if len(names) > MOST_NAMES:
        names[MOST_NAMES - 1 :] = [f"{len(names) - MOST_NAMES + 1} others"]
    return " or ".join(names)


def headline(what: str, symptom: str, direction: str, rate: float) -> str:
    """Return what somebody who is called so does, at this rate, in one line."""
    # What is less than all is not written as all: whether anything passes is what matters most.
    percent = f"{100 * rate:.2g}" if rate < 0.985 else f"{min(100 * rate, 99.9):.3g}"
    does = {
        "loss": f"loses {percent} %" if rate < 1.0 else "loses everything",
        "remark": "re-marks",
        "late": "is late",
    }[symptom]
    way = f" ({direction})" if direction in ("reverse", "both") else ""
    return f"{what} {does}{way}"


def sentence(suspect: Suspect) -> str:
    """Return the sentence by which a person can check a suspect, from its other attributes."""
    what, verb = called(suspect.kind, suspect.name), VERB[suspect.symptom]
    confined = confined_to(suspect.only)
    way = {"forward": "", "unknown": ", direction unknown", "both": ", both directions"}
    how = way.get(suspect.direction, f", {suspect.direction} direction")
    crosses = "cross it" if suspect.kind in ("link", "node") else "are part of it"
    words = (
        f"{what}{confined}{how}: explains {suspect.explains} of {suspect.troubled} {verb} flows,"
        f" {suspect.crossing_healthy} of {suspect.healthy} healthy ones {crosses}"
    )
    also = alike(suspect.kind, suspect.also)
    return words + (f"; the same flows: {', '.join(also)}" if also else "")


def refused(refusals: Iterable[Refusal], flows: int) -> str:
    """Return what routers said of these flows, so many in all, as further words of a sentence."""
    words = ""
    for one in refusals:
        them = "them" if one.refused == flows else f"{one.refused} of them"
        if one.refusal == LOOP:
            words += f"; a {LOOP} has {them}: {one.by}"
        else:
            words += f"; {one.by} refuses {them}: {one.refusal}"
    return words
