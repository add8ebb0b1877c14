"""Does pinpointing name the fault? Random faults in real fabrics, and a quiet hour.

``python -m benchmarks.pinpoint [--seed N]``: fabrics of network namespaces with real forwarding, real
reflectors and collectors, the shipped thresholds. Scenarios are drawn from the seed, which is
printed. Every failure is listed with what was said instead. Needs root.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable, Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import click
from attrs import asdict, define, field, frozen
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from llama.lab import faults, hosts, truth
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.lab.hosts import Traffic
from llama.lab.namespaces import Lab, LabError, clear
from llama.lab.scenario import Judgements

NAME = "bench"
INTERVAL_S = 5
#: Judgements within which a fault must be named, its own, cut short, included.
WITHIN = 3
#: Faults fainter than this, in percent, are waited for longer: they need more probes.
FAINT, FAINT_WITHIN = 1.0, 8
#: Time until the paths of all flows are known, and to be clean between scenarios, s.
WARM_UP_S, CLEAN_S = 40.0, 120.0
#: (fabric, flows to every other host with one class and size): at least 300 probes/s on every
#: link between leaf and spine.
FABRICS = ((Fabric(3, 4, 2), 16), (Fabric(4, 3, 2), 12))
RATE_PPS = 5.0
#: Classes and sizes that kinds of fault need to show; they share the flows of a pair.
TRAFFICS = {
    "plain": {},
    "classes": {"classes": ("BE", "EF")},
    "sizes": {"sizes": (96, 1400)},
}


@frozen
class Drawn:
    """A scenario: one or two faults at once, and the traffic under which they show."""

    faults: tuple[Fault, ...]
    traffic: str = "plain"


@define
class Outcome:
    """What was said about a scenario."""

    scenario: str
    fabric: str
    expected: bool  # whether the faults do harm at all
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
        if not self.expected:
            return not self.false_incidents
        return self.top_at is not None and self.top_at <= self.within


def draw(seed: int, fabric: Fabric, count: int) -> list[Drawn]:
    """Return `count` scenarios for a fabric, every kind of fault among them, by the seed."""
    chance = random.Random(f"{seed} {fabric}")
    core = [f"{a} -> {b}" for a, b in fabric.directions if "spine" in a + b]
    edge = [f"{a} -> {b}" for a, b in fabric.directions if "spine" not in a + b]
    every = list(fabric.hosts)

    def fault(kind: str, on: str, **options: Any) -> Fault:
        return Fault.from_mapping({"kind": kind, "on": on, **options})

    def loss(percent: float, where: list[str] = core) -> Drawn:
        return Drawn((fault("loss", chance.choice(where), percent=percent),))

    def two(one: float, other: float) -> Drawn:
        a, b = chance.sample(core, 2)
        return Drawn((fault("loss", a, percent=one), fault("loss", b, percent=other)))

    kinds = [
        lambda: loss(100),
        lambda: loss(30),
        lambda: loss(5),
        lambda: loss(1),
        lambda: loss(0.5),
        lambda: Drawn((fault("flows", chance.choice(core), share=chance.choice((0.25, 0.5))),)),
        lambda: Drawn((fault("silent", chance.choice(fabric.spine_names)),)),
        lambda: Drawn(
            (fault("silent", chance.choice(fabric.spine_names), percent=chance.choice((30, 5, 1))),)
        ),
        lambda: Drawn((fault("down", chance.choice(fabric.leaf_names)),)),
        lambda: Drawn((fault("down", chance.choice(every)),)),
        lambda: Drawn((fault("frozen", chance.choice(every)),)),
        lambda: Drawn((fault("delay", chance.choice(core), ms=chance.choice((5, 20))),)),
        lambda: two(100, 30),
        lambda: Drawn((fault("class", chance.choice(core), dscp="EF"),), "classes"),
        lambda: Drawn((fault("bleach", chance.choice(core), dscp="EF"),), "classes"),
        lambda: Drawn((fault("mtu", chance.choice(core), octets=1000),), "sizes"),
        lambda: loss(chance.choice((30, 5)), edge),
        lambda: two(30, 5),
        lambda: Drawn(
            (
                fault(
                    chance.choice(("icmp-limit", "icmp-silent")), chance.choice(fabric.spine_names)
                ),
            )
        ),
        lambda: Drawn((fault("down", chance.choice(fabric.spine_names)),)),
        lambda: loss(1),
        lambda: Drawn(
            (fault("down", chance.choice(every)), fault("loss", chance.choice(core), percent=30))
        ),
    ]
    drawn = [kinds[n % len(kinds)]() for n in range(count)]
    # Traffic of one sort at a time, so that collectors are restarted but twice.
    return sorted(drawn, key=lambda scenario: list(TRAFFICS).index(scenario.traffic))


def describe(scenario: Drawn) -> str:
    """Return a scenario in a few words."""
    words = []
    for fault in scenario.faults:
        options = {k: v for k, v in fault.record().items() if k not in ("kind", "on", "name")}
        shown = " ".join(
            f"{k}={v}"
            for k, v in options.items()
            if k in ("percent", "share", "ms", "dscp", "octets")
        )
        words.append(f"{fault.kind} {fault.on} {shown}".strip())
    return " + ".join(words)


class Bench:
    """One fabric under test."""

    def __init__(self, fabric: Fabric, flows: int, console: Console) -> None:
        self.fabric = fabric
        self.console = console
        self.label = f"{fabric.leaves}x{fabric.spines}x{fabric.hosts_per_leaf}"
        self._flows = flows
        self._traffic = ""
        self.lab = Lab.build(NAME, fabric)
        self._said: Judgements | None = None

    def use(self, traffic: str) -> None:
        """Have this traffic, and wait until the paths of its flows are known."""
        if traffic == self._traffic:
            return
        self.lab.stop(self.lab.processes)
        self.lab.processes = []
        options: dict[str, Any] = dict(TRAFFICS[traffic])
        share = max(len(options.get("classes", ())), len(options.get("sizes", ())), 1)
        made = Traffic(INTERVAL_S, self._flows // share, RATE_PPS, **options)
        hosts.judgements(self.lab).unlink(missing_ok=True)
        hosts.start_all(self.lab, made)
        self._said = Judgements(self.lab)
        self._traffic = traffic
        end = time.time() + WARM_UP_S
        for _ in self.judgements(end):
            pass

    def judgements(self, until: float) -> Iterator[dict[str, Any]]:
        """Yield judgements as they come, until then."""
        assert self._said is not None
        while time.time() < until:
            yield from self._said()
            dead = [p for p in self.lab.processes if p.node == "mgmt" and not p.alive]
            if dead:
                raise LabError(f"pinpointing ended; see {self.lab.directory}/mgmt-pinpoint.log")
            time.sleep(0.2)

    def play(self, scenario: Drawn, phase: float) -> Outcome:
        """Break, listen, heal, and wait until all is well again."""
        self.use(scenario.traffic)
        harmful = [fault for fault in scenario.faults if truth.expected(self.fabric, fault)]
        faint = any(fault.kind == "loss" and fault.percent < FAINT for fault in harmful)
        within = FAINT_WITHIN if faint else WITHIN
        outcome = Outcome(describe(scenario), self.label, bool(harmful), faint, within)
        # At any moment of an interval.
        time.sleep(INTERVAL_S - time.time() % INTERVAL_S + phase * INTERVAL_S)
        begun = time.time()
        try:
            for fault in scenario.faults:
                faults.inject(self.lab, fault)
            self._listen(outcome, harmful, begun, within)
        finally:
            faults.heal_all(self.lab)
        outcome.clean = self._wait_until_clean(outcome, harmful)
        return outcome

    def _listen(self, outcome: Outcome, harmful: list[Fault], begun: float, within: int) -> None:
        """Take the judgements of the intervals that ended after the fault began."""
        number = 0
        opened: set[str] = set()
        # One interval more, so that what was named in the last one can become an incident.
        for judgement in self.judgements(begun + (within + 2.5) * INTERVAL_S + 5):
            if judgement["end"] <= begun:
                continue
            number += 1
            suspects = judgement["suspects"]
            outcome.said.append("; ".join(s["key"] for s in suspects) or "nothing")
            ranks = [self._rank(fault, suspects) for fault in harmful]
            if harmful and outcome.top_at is None and _all_on_top(ranks):
                outcome.top_at = number
            if number == within:
                outcome.ranks = ranks
            if number > 1 and number <= within:
                outcome.named += len(suspects)
                outcome.true_named += sum(
                    any(truth.right(self.fabric, fault, s) for fault in harmful) for s in suspects
                )
            self._take_events(outcome, harmful, judgement, opened, begun)
            if number > within and (outcome.incident_s is not None or not harmful):
                return

    def _take_events(
        self,
        outcome: Outcome,
        harmful: list[Fault],
        judgement: dict[str, Any],
        opened: set[str],
        begun: float,
    ) -> None:
        for event in judgement["events"]:
            if event["event"] == "recovered":
                continue
            incident = event["incident"]
            mine = [f.name for f in harmful if truth.right(self.fabric, f, incident)]
            opened |= set(mine)
            if not mine and event["event"] == "opened":
                outcome.false_incidents.append(incident["title"])
            if harmful and outcome.incident_s is None and opened >= {f.name for f in harmful}:
                outcome.incident_s = judgement["time"] - begun

    def _rank(self, fault: Fault, suspects: list[dict[str, Any]]) -> int | None:
        """Return the place, from 1, at which a fault is named; None if it is not."""
        for number, suspect in enumerate(suspects, 1):
            if truth.right(self.fabric, fault, suspect):
                return number
        return None

    def _wait_until_clean(self, outcome: Outcome, harmful: list[Fault]) -> bool:
        """Wait until two judgements name nobody and no incident is open."""
        clean, open_ids = 0, set[str]()
        for judgement in self.judgements(time.time() + CLEAN_S):
            self._take_events(outcome, harmful, judgement, set(), time.time())
            for event in judgement["events"]:
                if event["event"] == "recovered":
                    open_ids.discard(event["incident"]["id"])
            state = json.loads((self.lab.directory / "incidents.json").read_text())
            busy = bool(state["incidents"]["cases"])
            clean = 0 if judgement["suspects"] or busy else clean + 1
            if clean >= 2:
                return True
        return False

    def quiet(self, minutes: float) -> tuple[int, int, list[str]]:
        """Listen without any fault; return judgements, those that named somebody, incidents."""
        self.use("plain")
        count = named = 0
        incidents = []
        for judgement in self.judgements(time.time() + 60 * minutes):
            count += 1
            named += bool(judgement["suspects"])
            incidents += [
                event["incident"]["title"]
                for event in judgement["events"]
                if event["event"] == "opened"
            ]
        return count, named, incidents

    def close(self) -> None:
        """Remove the fabric."""
        clear(NAME)


def _all_on_top(ranks: list[int | None]) -> bool:
    """Return whether all faults are named before anything else."""
    return sorted(rank or 0 for rank in ranks) == list(range(1, len(ranks) + 1))


def bound(hits: int, trials: int) -> str:
    """Return a share in percent with its 95 % confidence bounds (Wilson 1927)."""
    if not trials:
        return "none"
    z, share = 1.96, hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = (
        z
        * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
        / (1 + z * z / trials)
    )
    low, high = max(0.0, middle - spread), min(1.0, middle + spread)
    return f"{hits} of {trials}, {100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def report(outcomes: list[Outcome], quiet: list[tuple[str, int, int, list[str]]]) -> dict[str, str]:
    """Return what the outcomes come to, in words."""
    harmful = [o for o in outcomes if o.expected]
    single = [o for o in harmful if "+" not in o.scenario and not o.faint]
    faint = [o for o in harmful if o.faint]
    double = [o for o in harmful if "+" in o.scenario]
    harmless = [o for o in outcomes if not o.expected]
    times = sorted(o.incident_s for o in harmful if o.incident_s is not None)
    ranks = [rank for o in harmful for rank in o.ranks]
    lines = {
        "single faults of 1 % and more on top within 3 intervals": bound(
            sum(o.good for o in single), len(single)
        ),
        f"fainter ones on top within {FAINT_WITHIN} intervals": bound(
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
        "rank of the true suspect": ", ".join(
            f"{rank or 'not named'}: {ranks.count(rank)}"
            for rank in sorted(set(ranks), key=lambda r: r or 99)
        ),
        "time from fault to incident, s": (
            f"median {times[len(times) // 2]:.1f}, longest {times[-1]:.1f}, of {len(times)}"
            if times
            else "none"
        ),
        "false incidents in scenarios": bound(
            sum(bool(o.false_incidents) for o in outcomes), len(outcomes)
        ),
    }
    for label, judgements, named, incidents in quiet:
        minutes = judgements * INTERVAL_S / 60
        lines[f"quiet {minutes:.0f} minutes ({label})"] = (
            f"{len(incidents)} incidents, {bound(named, judgements)} judgements named somebody"
            + "".join(f"; {title}" for title in incidents)
        )
    return lines


@click.command()
@click.option("--seed", type=int, help="Draws the scenarios.  [default: a new one]")
@click.option("--scenarios", default=44, show_default=True, help="Over all fabrics.")
@click.option("--quiet-minutes", default=60.0, show_default=True, help="Over all fabrics.")
@click.option("--only", help="Play only scenarios whose words contain this.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    seed: int | None, scenarios: int, quiet_minutes: float, only: str | None, json_file: Path | None
) -> None:
    """Play random faults on two fabrics with the shipped thresholds, and a quiet hour."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    about = machine.describe()
    console.print(
        f"seed {seed}; {about['cpu']}, {about['cores']} cores, {about['kernel']};"
        f" load average {about['load_average']:.2f}"
    )
    outcomes: list[Outcome] = []
    quiet: list[tuple[str, int, int, list[str]]] = []
    chance = random.Random(seed)
    try:
        for fabric, flows in FABRICS:
            bench = Bench(fabric, flows, console)
            try:
                drawn = draw(seed, fabric, scenarios // len(FABRICS))
                for scenario in drawn:
                    if only and only not in describe(scenario):
                        continue
                    outcomes.append(bench.play(scenario, chance.random()))
                    _show(console, outcomes[-1])
                if quiet_minutes:
                    quiet.append((bench.label, *bench.quiet(quiet_minutes / len(FABRICS))))
            finally:
                bench.close()
    except LabError as e:
        raise click.ClickException(str(e)) from None
    lines = report(outcomes, quiet)
    table = Table("what", "result", show_edge=False)
    for what, result in lines.items():
        table.add_row(what, result)
    console.print(table)
    _failures(console, outcomes)
    if json_file:
        record = {"seed": seed, "machine": about, "report": lines}
        json_file.write_text(
            json.dumps(record | {"outcomes": [asdict(o) for o in outcomes]}, indent=1) + "\n"
        )


def _show(console: Console, outcome: Outcome) -> None:
    sign = "[green]✓[/green]" if outcome.good else "[red]✗[/red]"
    when = "" if outcome.top_at is None else f"named at judgement {outcome.top_at}"
    incident = "" if outcome.incident_s is None else f", incident after {outcome.incident_s:.1f} s"
    console.print(f"{sign} {outcome.fabric} {outcome.scenario}: {when}{incident}")


def _failures(console: Console, outcomes: Iterable[Outcome]) -> None:
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
            console.print(f"  not clean {CLEAN_S:.0f} s after it was healed")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.pinpoint")
