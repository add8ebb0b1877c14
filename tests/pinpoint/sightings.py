"""Suspects as incidents know them."""

from llama.pinpoint.sighting import Sighting


def seen(name="spine3 -> leaf2", kind="link", flows=range(10), hit=None, **rest):
    """Return a sighting."""
    figures = {
        "symptom": "loss",
        "direction": "forward",
        "only": {},
        "evidence": f"{kind} {name}: evidence",
        "rate": 0.3,
        "explains": 10,
        "confidence": 1.0,
        "pairs": (("h1", "h2"),),
        "tags": {"rack": "r1"},
    }
    return Sighting(
        key=f"{kind} {name}",
        kind=kind,
        name=name,
        flows=frozenset(flows),
        hit=frozenset(flows if hit is None else hit),
        **{**figures, **rest},
    )
