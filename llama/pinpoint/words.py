"""The sentences by which a person can check a suspect; pure."""

from __future__ import annotations

from collections.abc import Mapping

#: What a flow with a symptom is.
VERB = {"loss": "lossy", "remark": "re-marked", "late": "late"}


def sentence(
    kind: str,
    name: str,
    symptom: str,
    direction: str,
    only: Mapping[str, str],
    hit: int,
    troubled: int,
    crossing_healthy: int,
    healthy: int,
    also: tuple[str, ...],
) -> str:
    """Return the sentence by which a person can check a suspect."""
    verb = VERB[symptom]
    what = name if kind in ("tag", "pair", "class", "size") else f"{kind} {name}"
    confined = "".join(f", {key} {value} only" for key, value in only.items())
    way = {"forward": "", "unknown": ", direction unknown", "both": ", both directions"}
    how = way.get(direction, f", {direction} direction")
    crosses = "cross it" if kind in ("link", "node") else "are part of it"
    words = (
        f"{what}{confined}{how}: explains {hit} of {troubled} {verb} flows,"
        f" {crossing_healthy} of {healthy} healthy ones {crosses}"
    )
    return words + (f"; the same flows: {', '.join(also)}" if also else "")
