"""A timed list of faults, played on a fabric, with the truth recorded beside what LLAMA said.

A scenario is YAML::

    fabric: {leaves: 3, spines: 4, hosts_per_leaf: 2}   # used when no lab is up
    traffic: {interval_s: 5, flows: 16, rate_pps: 5}
    steps:
      - {at: 20, for: 30, kind: loss, on: spine3 -> leaf2, percent: 30}
      - {at: 70, kind: frozen, on: h1-2, name: sleepy}
      - {at: 100, heal: sleepy}
    end: 120

``at``, ``for`` and ``end`` are seconds from the start; a fault that nobody heals is healed at the
end. The record is one JSON object a line: the injections and healings as they happened, and
LLAMA's words as they came, each with its Unix time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import yaml
from attrs import AttrsInstance, field, fields, frozen

from llama.lab import faults
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.lab.hosts import Traffic, judgements
from llama.lab.namespaces import Lab


@frozen
class Step:
    """One thing that happens: a fault, or the healing of a fault that was injected before."""

    at_s: float
    fault: Fault | None
    heal: str | None = None


@frozen
class Scenario:
    """What is played: steps in the order of time."""

    fabric: Fabric = field(factory=Fabric)
    traffic: Traffic = field(factory=Traffic)
    steps: tuple[Step, ...] = ()
    end_s: float = 0.0

    def steps_in(self, begin_s: float, end_s: float) -> list[Step]:
        """Return the steps with ``begin_s <= at < end_s``."""
        return [step for step in self.steps if begin_s <= step.at_s < end_s]


def read(path: Path) -> Scenario:
    """Read a scenario; `ValueError` says file, step and what was expected."""
    try:
        # Text as written: YAML 1.1 would read the key ``on`` as true.
        document = yaml.load(path.read_text(), yaml.BaseLoader)  # noqa: S506 - makes text only
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no UTF-8 text") from None
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: no YAML: {' '.join(str(e).split())}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected keys fabric, traffic, steps, end")
    unknown = set(document) - {"fabric", "traffic", "steps", "end"}
    if unknown:
        raise ValueError(f"{path}: unknown {sorted(unknown)}; expected fabric, traffic, steps, end")
    try:
        fabric = Fabric(**{k: int(v) for k, v in _section(document, "fabric", Fabric).items()})
        given = _section(document, "traffic", Traffic)
        convert = {
            "interval_s": int,
            "flows": int,
            "rate_pps": float,
            "classes": tuple,
            "family": str,
        }
        sizes = tuple(map(int, given.pop("sizes", ())))
        traffic = Traffic(**{k: convert[k](v) for k, v in given.items()}, sizes=sizes)
    except (TypeError, ValueError) as e:
        raise ValueError(f"{path}: fabric or traffic: {e.args[0]}") from None
    steps: list[Step] = []
    for number, options in enumerate(document.get("steps") or [], 1):
        try:
            steps += _steps(options)
        except (TypeError, ValueError, KeyError) as e:
            raise ValueError(f"{path}: step {number}: {e}") from None
    steps.sort(key=lambda step: step.at_s)
    last = max((step.at_s for step in steps), default=0.0)
    try:
        end_s = _seconds("end", document.get("end", last))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    return Scenario(fabric, traffic, tuple(steps), end_s)


def _section(document: dict[str, Any], name: str, kind: type[AttrsInstance]) -> dict[str, Any]:
    """Return what a section gives to what is made of it; `ValueError` for what that does not take."""
    given = document.get(name) or {}
    known = [attribute.name for attribute in fields(kind)]
    if not isinstance(given, dict) or not given.keys() <= set(known):
        raise ValueError(f"{name} has other keys than {', '.join(known)}")
    return dict(given)


def _seconds(key: str, value: Any) -> float:
    """Return a time as it is written under a key; `ValueError` says that it is none."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{key}: {value!r} is no number of seconds, 0 or more")
    return seconds


def _steps(options: Any) -> Iterator[Step]:
    """Yield what one entry of ``steps`` means."""
    if not isinstance(options, dict) or "at" not in options:
        raise ValueError("expected a mapping with 'at' and either 'heal' or 'kind' and 'on'")
    rest = dict(options)
    at_s = _seconds("at", rest.pop("at"))
    if "heal" in rest:
        yield Step(at_s, None, str(rest.pop("heal")))
        if rest:
            raise ValueError(f"unknown {sorted(rest)} beside 'heal'")
        return
    lasts = rest.pop("for", None)
    fault = Fault.from_mapping(rest)
    yield Step(at_s, fault)
    if lasts is not None:
        yield Step(at_s + _seconds("for", lasts), None, fault.name)


class Judgements:
    """What pinpointing said since it was last asked, as it judged interval by interval."""

    def __init__(self, lab: Lab) -> None:
        self._path = judgements(lab)
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def __call__(self) -> list[dict[str, Any]]:
        """Return the new judgements; a line that is not yet whole waits for the next time."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._offset += len(whole) + 1
        return [json.loads(line) for line in whole.splitlines()]


class Clock:
    """The wall clock and waiting, so that tests need neither."""

    def now(self) -> float:
        """Return Unix time, s."""
        return time.time()

    def wait(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def play(
    lab: Lab,
    scenario: Scenario,
    output: IO[str],
    said: Callable[[], Iterable[dict[str, Any]]],
    clock: Clock | None = None,
    tick_s: float = 0.5,
) -> None:
    """Play a scenario to its end and heal everything, also when interrupted.

    Writes the record to `output`. `said` returns LLAMA's new words since it was last asked. Raises
    `LabError`, before anything is broken, for a fault whose place is not there.
    """
    for step in scenario.steps:
        if step.fault is not None:
            faults.check_place(lab, step.fault)
    clock = clock or Clock()
    begin = clock.now()

    def write(**line: Any) -> None:
        output.write(json.dumps(line) + "\n")
        output.flush()

    def listen() -> None:
        for words in said():
            write(time=clock.now(), at=clock.now() - begin, said=words)

    def healed(name: str) -> None:
        try:
            faults.heal(lab, name)
        except faults.NoFaultError:
            if name not in ours:
                raise
            # Else somebody else healed it.
        write(time=clock.now(), at=clock.now() - begin, truth="healed", name=name)

    ours: list[str] = []
    try:
        done_s = -1.0
        while True:
            now_s = clock.now() - begin
            for step in scenario.steps_in(done_s, now_s):
                if step.fault is not None:
                    faults.inject(lab, step.fault)
                    ours.append(step.fault.name)
                    moment = clock.now()
                    write(
                        time=moment, at=moment - begin, truth="injected", fault=step.fault.record()
                    )
                elif step.heal is not None:
                    healed(step.heal)
                    ours = [name for name in ours if name != step.heal]
            done_s = now_s
            listen()
            if now_s >= scenario.end_s:
                break
            clock.wait(min(tick_s, max(0.0, scenario.end_s - now_s)))
        for step in scenario.steps_in(done_s, float("inf")):
            if step.heal in ours and step.heal is not None:
                healed(step.heal)
                ours.remove(step.heal)
    finally:
        with ExitStack() as healing:  # all of them, whatever goes wrong with one
            for name in reversed(ours):
                healing.callback(healed, name)
    listen()
