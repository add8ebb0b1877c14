"""A suspect as incidents know it: named, with flows and places that outlive its window. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from llama.pinpoint.evidence import Hosts, Refusal, Suspect, confined_to
from llama.pinpoint.words import headline, refused, together

#: Flows, and pairs, that an incident lists.
LISTED = 512


@frozen(kw_only=True)
class Sighting:
    """One suspect of one judgement, or a path that changed."""

    key: str
    kind: str
    name: str
    symptom: str
    direction: str
    only: Mapping[str, str]
    evidence: str
    rate: float
    explains: int
    confidence: float
    also: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()  # in the evidence as well
    flows: frozenset[int] = field(repr=False)  # that cross it, by lasting numbers
    hit: frozenset[int] = field(repr=False)  # that suffer from it, likewise
    pairs: tuple[tuple[str, str], ...] = field(repr=False)  # hosts, source and destination
    tags: Mapping[str, str] = field(factory=dict)  # that all of those pairs have at an end
    paths: tuple[tuple[str, ...], ...] = ()  # some that the hit flows take, by node names
    #: Whether most of the hit flows are dead and not traced yet, which may give it another name.
    untraced: bool = False
    #: What else a silence can name it by: kinds and names.
    places: frozenset[tuple[str, str]] = field(factory=frozenset, repr=False)

    @classmethod
    def of(
        cls,
        suspect: Suspect,
        numbers: Sequence[int],
        pairs: Sequence[tuple[str, str]],
        tags: Mapping[str, str],
        paths: Sequence[tuple[str, ...]] = (),
        untraced: bool = False,
    ) -> Sighting:
        """Return a suspect with what its flows are called outside of its window.

        `numbers` are lasting numbers of all flows of the window, `pairs` those of hosts that are
        hit, the worst first, `tags` what these have in common, `paths` some that they take,
        `untraced` whether most of them are dead and not traced yet.
        """
        return cls(
            key=suspect.key,
            kind=suspect.kind,
            name=suspect.name,
            symptom=suspect.symptom,
            direction=suspect.direction,
            only=dict(suspect.only),
            evidence=suspect.evidence + refused(suspect.refusals, len(suspect.hit)),
            rate=suspect.rate,
            explains=suspect.explains,
            confidence=suspect.confidence,
            also=suspect.also,
            refusals=suspect.refusals,
            flows=frozenset(numbers[int(f)] for f in suspect.flows),
            hit=frozenset(numbers[int(f)] for f in suspect.hit),
            pairs=tuple(pairs[:LISTED]),
            tags=tags,
            paths=tuple(paths),
            untraced=untraced,
        )

    @property
    def title(self) -> str:
        """A headline: what, and what it does."""
        if self.symptom == "rerouted":
            return f"path changed: {self.name}"
        what = together(self.kind, self.name, self.also) + confined_to(self.only)
        return headline(what, self.symptom, self.direction, self.rate)


def common_tags(hosts: Hosts, pairs: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Return the tags, ``host`` among them, that every pair of hosts has at one end or the other."""

    def tags(host: int) -> dict[str, str]:
        return {**hosts.tags[host], "host": hosts.names[host]}

    ends = [(tags(a), tags(b)) for a, b in pairs]
    if not ends:
        return {}
    return {
        key: value
        for key, value in (*ends[0][0].items(), *ends[0][1].items())
        if all(a.get(key) == value or b.get(key) == value for a, b in ends)
    }
