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
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import click
from attrs import asdict, evolve
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.pinpoint_report import Outcome, Quiet, failures, report, show
from benchmarks.pinpoint_scenarios import TRAFFICS, Drawn, describe, does_harm, draw
from llama.lab import faults, hosts, truth
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.lab.hosts import Traffic
from llama.lab.namespaces import Lab, LabError, clear, ended_by_signals
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


class Bench:
    """One fabric under test."""

    def __init__(self, fabric: Fabric, flows: int, record: IO[str] | None) -> None:
        self.fabric = fabric
        self._record = record
        self._playing = ""
        self.label = f"{fabric.leaves}x{fabric.spines}x{fabric.hosts_per_leaf}"
        self._flows = flows
        self._traffic = ""
        self._made = Traffic()
        self.lab = Lab.build(NAME, fabric, owned=True)
        self._said: Judgements | None = None

    def least_pps(self) -> float:
        """Return how many probes a second cross each link between leaf and spine, on average."""
        fabric = self.fabric
        other_hosts = len(fabric.hosts) - fabric.hosts_per_leaf
        sent_by_leaf = fabric.hosts_per_leaf * other_hosts * self._flows * RATE_PPS
        # Those of the hosts on the leaf, and those to them; the replies are not counted.
        return 2 * sent_by_leaf / fabric.spines

    def use(self, traffic: str) -> None:
        """Have this traffic, and wait until the paths of its flows are known."""
        if traffic == self._traffic:
            return
        self.lab.stop(self.lab.processes)
        self.lab.processes = []
        options = TRAFFICS[traffic]
        kinds = Traffic(**options)
        share = len(kinds.classes) * max(len(kinds.sizes), 1) * len(hosts.VERSIONS[kinds.family])
        made = evolve(kinds, interval_s=INTERVAL_S, flows=self._flows // share, rate_pps=RATE_PPS)
        hosts.judgements(self.lab).unlink(missing_ok=True)
        hosts.start_all(self.lab, made)
        self._said = Judgements(self.lab)
        self._traffic, self._made = traffic, made
        end = time.time() + WARM_UP_S
        for _ in self.judgements(end):
            pass

    def judgements(self, until: float) -> Iterator[dict[str, Any]]:
        """Yield judgements as they come, until then."""
        assert self._said is not None
        while time.time() < until:
            for judgement in self._said():
                if self._record is not None:
                    line = {"fabric": self.label, "scenario": self._playing, **judgement}
                    self._record.write(json.dumps(line) + "\n")
                    self._record.flush()
                yield judgement
            dead = [p for p in self.lab.processes if p.node == "mgmt" and not p.alive]
            if dead:
                raise LabError(f"pinpointing ended; see {self.lab.directory}/mgmt-pinpoint.log")
            time.sleep(0.2)

    def play(self, scenario: Drawn, phase: float) -> Outcome:
        """Break, listen, heal, and wait until all is well again."""
        self.use(scenario.traffic)
        harmful = [fault for fault in scenario.faults if does_harm(self.fabric, fault)]
        faint = any(fault.kind == "loss" and fault.percent < FAINT for fault in harmful)
        within = FAINT_WITHIN if faint else WITHIN
        outcome = Outcome(describe(scenario), self.label, len(harmful), faint, within)
        # At any moment of an interval.
        time.sleep(INTERVAL_S - time.time() % INTERVAL_S + phase * INTERVAL_S)
        begun = time.time()
        self._playing = outcome.scenario
        try:
            for fault in scenario.faults:
                faults.inject(self.lab, fault)
            self._listen(outcome, harmful, begun, within)
        finally:
            faults.heal_all(self.lab)
            self._playing = ""
        outcome.clean = self._wait_until_clean(outcome, harmful)
        return outcome

    def _listen(self, outcome: Outcome, harmful: list[Fault], begun: float, within: int) -> None:
        """Take the judgements of the intervals that ended after the fault began."""
        number = 0
        opened: set[str] = set()
        # One interval more, so that what was named in the last one can become an incident.
        for judgement in self.judgements(begun + (within + 2.5) * INTERVAL_S + 5):
            if judgement["end"] <= begun:
                self._take_events(outcome, [], judgement, opened, begun)
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
                    any(self._right(fault, s) for fault in harmful) for s in suspects
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
            mine = [f.name for f in harmful if self._right(f, incident)]
            opened |= set(mine)
            if not mine and event["event"] == "opened":
                outcome.false_incidents.append(incident["title"])
            if harmful and outcome.incident_s is None and opened >= {f.name for f in harmful}:
                outcome.incident_s = judgement["time"] - begun

    def _right(self, fault: Fault, suspect: dict[str, Any]) -> bool:
        """Return whether a suspect, or an incident, is this fault."""
        return truth.right(self.fabric, self._made, fault, suspect)

    def _rank(self, fault: Fault, suspects: list[dict[str, Any]]) -> int | None:
        """Return the place, from 1, at which a fault is named; None if it is not."""
        for number, suspect in enumerate(suspects, 1):
            if self._right(fault, suspect):
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

    def quiet(self, minutes: float) -> Quiet:
        """Listen without any fault."""
        self.use("plain")
        count = named = 0
        incidents: list[str] = []
        for judgement in self.judgements(time.time() + 60 * minutes):
            count += 1
            named += bool(judgement["suspects"])
            incidents += [
                event["incident"]["title"]
                for event in judgement["events"]
                if event["event"] == "opened"
            ]
        return Quiet(self.label, count, minutes / 60, named, tuple(incidents))

    def close(self) -> None:
        """Remove the fabric."""
        clear(NAME)


def _all_on_top(ranks: list[int | None]) -> bool:
    """Return whether all faults are named before anything else."""
    return sorted(rank or 0 for rank in ranks) == list(range(1, len(ranks) + 1))


@click.command()
@click.option("--seed", type=int, help="Draws the scenarios.  [default: a new one]")
@click.option("--scenarios", default=48, show_default=True, help="Over all fabrics.")
@click.option("--quiet-minutes", default=60.0, show_default=True, help="Over all fabrics.")
@click.option("--only", default="", help="Draw only scenarios whose words contain this.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--record",
    type=click.File("w"),
    help="File for every judgement, one JSON object a line, to look into failures.",
)
def main(
    seed: int | None,
    scenarios: int,
    quiet_minutes: float,
    only: str,
    json_file: Path | None,
    record: IO[str] | None,
) -> None:
    """Play random faults on two fabrics with the shipped thresholds, and a quiet hour."""
    begun = time.monotonic()
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    about = machine.describe()
    console.print(
        f"seed {seed}; {about['cpu']}, {about['cores']} cores, {about['kernel']};"
        f" load average {about['load_average']:.2f}"
    )
    outcomes: list[Outcome] = []
    quiet: list[Quiet] = []
    drawn = [
        draw(seed, fabric, count, only)
        for (fabric, _), count in zip(FABRICS, _shares(scenarios), strict=True)
    ]
    if sum(map(len, drawn)) < scenarios:
        raise click.ClickException(f"--only {only!r}: the words of too few scenarios contain it")
    chance = random.Random(seed)
    try:
        with ended_by_signals():
            for (fabric, flows), some in zip(FABRICS, drawn, strict=True):
                if not some and not quiet_minutes:
                    continue
                with closing(Bench(fabric, flows, record)) as bench:
                    console.print(f"{bench.label}: {bench.least_pps():.0f} probes/s on every link")
                    for scenario in some:
                        outcomes.append(bench.play(scenario, chance.random()))
                        show(console, outcomes[-1])
                    if quiet_minutes:
                        quiet.append(bench.quiet(quiet_minutes / len(FABRICS)))
    except LabError as e:
        raise click.ClickException(str(e)) from None
    finally:
        # Also of what was played until somebody ended it.
        lines = report(outcomes, quiet, FAINT_WITHIN)
        lines["in all"] = f"{(time.monotonic() - begun) / 60:.0f} minutes"
        stolen = machine.stolen_s() - about["stolen_s"]
        lines["of these taken by other machines"] = f"{stolen:.0f} s"
        table = Table("what", "result", show_edge=False)
        for what, result in lines.items():
            table.add_row(what, result)
        console.print(table)
        failures(console, outcomes, CLEAN_S)
        if json_file:
            told = {"seed": seed, "machine": about, "report": lines}
            told["outcomes"] = [asdict(outcome) for outcome in outcomes]
            json_file.write_text(json.dumps(told, indent=1) + "\n")


def _shares(scenarios: int) -> list[int]:
    """Return how many scenarios each fabric gets."""
    whole, rest = divmod(scenarios, len(FABRICS))
    return [whole + (n < rest) for n in range(len(FABRICS))]


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.pinpoint")
