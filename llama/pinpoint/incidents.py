"""Suspects that persist become incidents: one cause, with a beginning, changes and an end. Pure.

An incident opens when its suspect was named in `open_after` of the last `of` judgements, and ends
after `close_after` clean ones in a row, so that nothing flaps. A judgement without data is neither,
nor is one in which none of its flows were measured: that nothing was measured does not mean that
all is well. If most of what its suspect hits is dead and was not traced yet, the name is a guess: the
incident opens one judgement later, under the name that it has then.

The name may sharpen with time (a link, then the whole spine): as long as it is the same flows that suffer
it stays one incident, under the name that was given most often of late. What is explained by a wider name
meanwhile has not recovered.
Silenced incidents are kept but announced to nobody.

What happens once and is no fault, a path that changed, is kept apart, so that it can push no incident
out of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import orjson
from attrs import asdict, define, field, frozen

from llama.pinpoint.evidence import confined_to
from llama.pinpoint.sighting import Sighting
from llama.pinpoint.words import headline, together

#: Ended incidents that are remembered.
REMEMBERED = 1000
#: Things that happened once that are remembered, each with its repetitions, the newest.
REMEMBERED_ONCE = 128
#: They are announced again after so long at the earliest, s.
AGAIN_S = 3600.0
#: Judgements after which an incident ends though nothing was measured: its flows are probed no more.
UNMEASURED = 120
#: Of two names, the same cause if this share of the new one's troubled flows cross the old one, or
#: this share of the old one's flows the new one.
SAME = 0.8
#: Changes of one incident that are remembered, the newest.
CHANGES = 32


@define(kw_only=True)
class Incident:
    """One cause from its first sighting on. Times are Unix seconds."""

    id: str
    key: str
    title: str
    kind: str
    name: str
    symptom: str
    direction: str
    only: dict[str, str]
    evidence: str
    rate: float  # share of the probes that were hit, at last
    worst_rate: float
    explains: int  # flows that it accounted for, at last
    most_explained: int
    confidence: float
    also: list[str]
    pairs: list[list[str]]
    tags: dict[str, str]
    paths: list[list[str]]
    refusals: list[dict[str, Any]] = field(factory=list)  # {"by", "refusal", "refused"}
    start: float  # the end of the interval in which it was first seen
    opened: float | None = None  # when it was found to persist; None: not yet
    last_seen: float = 0.0
    end: float | None = None  # when it was seen last, once it is over
    silenced: str | None = None  # the comment of the silence that holds
    changes: list[dict[str, Any]] = field(factory=list)  # {"time", "title", "evidence"}
    events: int = 0  # announced so far; numbers them
    times: int = 1  # that it happened; more than one only of what is over at once


@frozen(kw_only=True)
class Event:
    """What is announced: an incident opened, changed or recovered, or something that happened once."""

    #: Unique and the same when sent again: receivers can tell a repetition.
    id: str
    event: str  # "opened", "changed", "recovered"; "rerouted", which happens once
    time: float
    incident: dict[str, Any]


@frozen(kw_only=True)
class Silence:
    """No announcements about incidents of which every pair has this tag at an end, for a time.

    The tags ``link``, ``node`` and ``host`` mean the suspect itself, by its name, and paths that
    changed because of it.
    """

    tag: str
    value: str
    begin: float  # Unix seconds
    end: float
    comment: str = ""
    id: str = ""  # to take it back by

    def holds(self, sighting: Sighting, at: float) -> bool:
        """Return whether it is in force for this."""
        if not self.begin <= at < self.end:
            return False
        names = {(sighting.kind, sighting.name), *sighting.places}
        return (self.tag, self.value) in names or sighting.tags.get(self.tag) == self.value


@frozen(kw_only=True)
class Hysteresis:
    """When an incident opens and closes, in judgements."""

    open_after: int = 2
    of: int = 3
    close_after: int = 3

    def __attrs_post_init__(self) -> None:
        """Check that it can open and close."""
        if not 1 <= self.open_after <= self.of or self.close_after < 1:
            raise ValueError("open_after: 1 to `of`; close_after: 1 or more")


@define
class _Case:
    """An incident on its way: what was seen of it lately."""

    incident: Incident
    seen: list[bool]  # one a judgement, the newest last
    names: list[str]  # keys by which it was known, likewise
    flows: frozenset[int]
    #: Its worst rate by key: of a wider name, that of a narrower one would be too high.
    worst: dict[str, float] = field(factory=dict)
    clean: int = 0
    unmeasured: int = 0  # judgements in a row
    guessed: bool = False  # its name was given before its flows were traced
    postponed: bool = False  # it would have opened, if it had not been for that


@define
class _Once:
    """Something that happened once, or that several times; and when it was announced."""

    incident: Incident
    announced: float | None = None  # Unix seconds; None: never


class Incidents:
    """All incidents, open and ended. `judged` changes them, and `told` what happened once."""

    def __init__(self, hysteresis: Hysteresis | None = None) -> None:
        self.hysteresis = hysteresis or Hysteresis()
        self.silences: list[Silence] = []
        self.ended: list[Incident] = []  # the oldest first
        self._cases: list[_Case] = []
        self._written: dict[str, orjson.Fragment] = {}  # those that ended, by id
        self._once: dict[str, _Once] = {}  # by key; what happened last comes last
        self._number = 0

    @property
    def once(self) -> list[Incident]:
        """What happened once and is no fault, the newest first."""
        return [one.incident for one in reversed(self._once.values())]

    @property
    def open(self) -> list[Incident]:
        """The open incidents, the newest first."""
        found = [c.incident for c in self._cases if c.incident.opened is not None]
        return sorted(found, key=lambda incident: -incident.start)

    def judged(
        self,
        sightings: Iterable[Sighting],
        at: float,
        data: bool = True,
        measured: Collection[int] | None = None,
    ) -> list[Event]:
        """Take one judgement, of the interval that ended `at` Unix seconds; return what is news.

        Without `data` nothing was measured, and nothing changes. `measured` are the lasting
        numbers of the flows that were measured; None: all were.
        """
        if not data:
            return []
        events: list[Event] = []
        sightings = list(sightings)
        known = {(case.incident.symptom, case.incident.key): case for case in self._cases}
        now: dict[int, Sighting] = {}  # id of a case -> what was seen of it
        strangers = []
        for sighting in sightings:
            case = known.get((sighting.symptom, sighting.key))
            if case is not None and id(case) not in now:
                now[id(case)] = sighting
            else:
                strangers.append(sighting)
        for sighting in strangers:
            case = self._same_cause(sighting, now)
            if case is None:
                case = self._begin(sighting, at)
            now[id(case)] = sighting
        there = None if measured is None or len(now) == len(self._cases) else frozenset(measured)
        for case in list(self._cases):
            seen = now.get(id(case))
            if seen is None and any(_inside(case, sighting) for sighting in sightings):
                continue  # part of something wider, which is still there
            gone = seen is None and there is not None and case.flows.isdisjoint(there)
            case.unmeasured = case.unmeasured + 1 if gone else 0
            if not gone or case.unmeasured >= UNMEASURED:
                events += self._step(case, seen, at)
        return events

    def told(self, sighting: Sighting, at: float) -> list[Event]:
        """Take what happened once, in the interval that ended `at` Unix seconds, as one of `once`.

        It is announced under the name of its symptom. What happens again is counted, under the
        same key, and announced again after `AGAIN_S` at the earliest.
        """
        one = self._once.pop(sighting.key, None)
        if one is None:
            one = _Once(self._incident(sighting, at))
        else:
            one.incident.times += 1
        self._once[sighting.key] = one
        while len(self._once) > REMEMBERED_ONCE:
            del self._once[next(iter(self._once))]
        incident = one.incident
        _describe(incident, sighting)
        incident.opened = incident.start
        incident.last_seen = incident.end = at
        incident.silenced = self._silenced(sighting, at)
        if one.announced is not None and at < one.announced + AGAIN_S:
            return []
        events = self._tell(sighting.symptom, incident, at)
        if events:
            one.announced = at
        return events

    def _silenced(self, sighting: Sighting, at: float) -> str | None:
        """Return the comment of the silence that holds, or other words; None: none does."""
        for silence in self.silences:
            if silence.holds(sighting, at):
                return silence.comment or "silenced"
        return None

    def _same_cause(self, sighting: Sighting, taken: Collection[int]) -> _Case | None:
        """Return a case that this may be a new name of: not seen now, and the same flows."""
        for case in self._cases:
            if id(case) in taken or not sighting.hit or not case.flows:
                continue
            if sighting.symptom != case.incident.symptom:
                continue
            sharper = len(sighting.hit & case.flows) >= SAME * len(sighting.hit)
            if sharper or _inside(case, sighting):
                return case
        return None

    def _begin(self, sighting: Sighting, at: float) -> _Case:
        case = _Case(self._incident(sighting, at), [], [], sighting.flows)
        self._cases.append(case)
        return case

    def _incident(self, sighting: Sighting, at: float) -> Incident:
        self._number += 1
        return Incident(
            id=f"{int(at)}-{self._number}",
            key=sighting.key,
            title=sighting.title,
            kind=sighting.kind,
            name=sighting.name,
            symptom=sighting.symptom,
            direction=sighting.direction,
            only=dict(sighting.only),
            evidence=sighting.evidence,
            rate=sighting.rate,
            worst_rate=sighting.rate,
            explains=sighting.explains,
            most_explained=sighting.explains,
            confidence=sighting.confidence,
            also=list(sighting.also),
            pairs=[list(pair) for pair in sighting.pairs],
            tags=dict(sighting.tags),
            paths=[list(path) for path in sighting.paths],
            refusals=[asdict(one) for one in sighting.refusals],
            start=at,
            last_seen=at,
        )

    def _step(self, case: _Case, sighting: Sighting | None, at: float) -> list[Event]:
        """Move one case on by one judgement."""
        limits, incident = self.hysteresis, case.incident
        case.seen = [*case.seen, sighting is not None][-limits.of :]
        if sighting is None:
            case.clean += 1
            if incident.opened is None and not any(case.seen[-limits.of + 1 :]):
                self._cases.remove(case)  # a passing suspicion
            elif incident.opened is not None and case.clean >= limits.close_after:
                return self._end(case, at)
            return []
        case.clean = 0
        if incident.opened is None:
            if case.guessed and not sighting.untraced:
                case.names = []
            case.guessed = sighting.untraced
        case.names = [*case.names, sighting.key][-limits.of :]
        changed = self._update(case, sighting, at)
        was_silent = incident.silenced is not None
        was_announced = incident.events > 0
        incident.silenced = self._silenced(sighting, at)
        if incident.opened is None:
            if sum(case.seen) < limits.open_after:
                return []
            if sighting.untraced and not case.postponed:
                case.postponed = True
                return []
            incident.opened = at
            return self._tell("opened", incident, at)
        if was_silent and incident.silenced is None:
            # The silence ran out and it is still there: that is news.
            return self._tell("changed" if was_announced else "opened", incident, at)
        return self._tell("changed", incident, at) if changed else []

    def _update(self, case: _Case, sighting: Sighting, at: float) -> bool:
        """Take the newest figures, and the name most often given; return whether that changed."""
        incident = case.incident
        incident.last_seen = at
        counts = Counter(case.names)
        usual = max(reversed(case.names), key=lambda name: counts[name])
        mine = sighting.key == usual
        changed = mine and usual != incident.key
        if mine:
            case.worst[usual] = max(case.worst.get(usual, 0.0), sighting.rate)
            _describe(incident, sighting)
            case.flows = sighting.flows
        if changed:
            change = {"time": at, "title": incident.title, "evidence": incident.evidence}
            incident.changes = [*incident.changes, change][-CHANGES:]
        return changed

    def _end(self, case: _Case, at: float) -> list[Event]:
        incident = case.incident
        incident.end = incident.last_seen
        # It was mostly over amid an interval, whose rate says little of what it was.
        rate = case.worst.get(incident.key, incident.rate)
        what = together(incident.kind, incident.name, incident.also) + confined_to(incident.only)
        incident.title = headline(what, incident.symptom, incident.direction, rate)
        self._cases.remove(case)
        self.ended = [*self.ended, incident][-REMEMBERED:]
        return self._tell("recovered", incident, at)

    @staticmethod
    def _tell(event: str, incident: Incident, at: float) -> list[Event]:
        """Return what is announced, which is nothing about what is silenced.

        But who was told that something opened is told that it recovered, and nobody else is.
        """
        if event == "recovered":
            if not incident.events:
                return []
        elif incident.silenced is not None:
            return []
        incident.events += 1
        return [
            Event(
                id=f"{incident.id}/{incident.events}",
                event=event,
                time=at,
                incident=asdict(incident),
            )
        ]

    def prune_silences(self, now: float) -> None:
        """Forget silences that are over."""
        self.silences = [silence for silence in self.silences if silence.end > now]

    def octets(self) -> bytes:
        """Return everything as JSON, for `from_json` after a restart.

        What has ended changes no more, and may be much: it is written out once.
        """
        self._written = {
            one.id: self._written.get(one.id) or orjson.Fragment(orjson.dumps(asdict(one)))
            for one in self.ended
        }
        return orjson.dumps(
            {
                "number": self._number,
                "silences": [asdict(silence) for silence in self.silences],
                "ended": list(self._written.values()),
                "once": [asdict(one) for one in self._once.values()],
                "cases": [asdict(case, value_serializer=_sorted) for case in self._cases],
            }
        )

    @classmethod
    def from_json(
        cls, record: Mapping[str, Any], hysteresis: Hysteresis | None = None
    ) -> Incidents:
        """Return the incidents that `octets` recorded; `ValueError` when it is no such record."""
        made = cls(hysteresis)
        try:
            made._number = int(record["number"])
            made.silences = [Silence(**silence) for silence in record["silences"]]
            made.ended = [Incident(**incident) for incident in record["ended"]]
            for one in record.get("once", []):
                incident = Incident(**one["incident"])
                made._once[incident.key] = _Once(**one | {"incident": incident})
            for case in record["cases"]:
                incident, flows = Incident(**case["incident"]), frozenset(case["flows"])
                made._cases.append(_Case(**case | {"incident": incident, "flows": flows}))
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"no record of incidents: {type(e).__name__} {e}") from None
        return made


def _sorted(_case: Any, _field: Any, value: Any) -> Any:
    """Return what is recorded of a value: sets, which have no order, always in the same one."""
    return sorted(value) if isinstance(value, frozenset) else value


def _describe(incident: Incident, sighting: Sighting) -> None:
    """Take name and figures of the newest sighting."""
    incident.key, incident.title = sighting.key, sighting.title
    incident.kind, incident.name = sighting.kind, sighting.name
    incident.only, incident.also = dict(sighting.only), list(sighting.also)
    incident.direction, incident.evidence = sighting.direction, sighting.evidence
    incident.rate, incident.confidence = sighting.rate, sighting.confidence
    incident.explains, incident.tags = sighting.explains, dict(sighting.tags)
    incident.worst_rate = max(incident.worst_rate, sighting.rate)
    incident.most_explained = max(incident.most_explained, sighting.explains)
    incident.pairs = [list(pair) for pair in sighting.pairs]
    incident.paths = [list(path) for path in sighting.paths]
    incident.refusals = [asdict(one) for one in sighting.refusals]
    if incident.times > 1:
        incident.title += f", {incident.times} times"


def _inside(case: _Case, sighting: Sighting) -> bool:
    """Return whether a suspect is wider than a case that it may be the cause of: it hits its flows."""
    return (
        sighting.symptom == case.incident.symptom
        and not case.flows.isdisjoint(sighting.hit)
        and len(case.flows & sighting.flows) >= SAME * len(case.flows)
    )
