"""``llama demo --fabric``: a Clos fabric with a fault, from the injection to the named suspect."""

from __future__ import annotations

import random
import time
from typing import Any

import click
from rich.console import Console
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from llama.config import StoreConfig, WebConfig
from llama.lab import faults, hosts, truth
from llama.lab.fabric import Fabric
from llama.lab.faults import Fault
from llama.lab.hosts import Traffic
from llama.lab.namespaces import Lab, LabError, clear
from llama.lab.places import Ports
from llama.lab.scenario import Judgements
from llama.web.remote_incidents import RemoteIncidents
from llama.web.service import WebService

NAME = "demo"
WEB_PORT = 5001
LOOK_S = 0.25
#: The fault is injected once so many paths are known, or at the latest after so many seconds.
PATHS_KNOWN, PATIENCE_S = 0.9, 60.0
#: With ``--once`` the incident must be there after so many seconds, and over as long after.
ONCE_S = 90.0


def draw(seed: int, fabric: Fabric) -> Fault:
    """Return the fault that a seed picks."""
    chance = random.Random(seed)
    core = [f"{a} -> {b}" for a, b in fabric.directions if "spine" in a + b]
    kinds: list[dict[str, Any]] = [
        {"kind": "loss", "on": chance.choice(core), "percent": chance.choice((5, 30, 100))},
        {"kind": "flows", "on": chance.choice(core), "share": 0.5},
        {"kind": "silent", "on": chance.choice(fabric.spine_names)},
        {"kind": "frozen", "on": chance.choice(list(fabric.hosts))},
    ]
    return Fault.from_mapping(chance.choice(kinds))


class FabricDemo:
    """Builds, breaks, tells, and removes everything."""

    def __init__(self, reactor: Any, seed: int, interval_s: int, once: bool) -> None:
        self._reactor = reactor
        self._once = once
        self._traffic = Traffic(interval_s=interval_s)
        self._fault = draw(seed, Fabric(seed=seed))
        self._seed = seed
        self._console = Console(highlight=False)
        self._lab: Lab | None = None
        self._web: WebService | None = None

    async def play(self) -> int:
        """Run until it is cancelled or, with ``--once``, the incident is over."""
        try:
            lab = self._lab = Lab.build(NAME, Fabric(seed=self._seed), owned=True)
            url = self._start(lab)
            self._tell(
                f"{len(lab.fabric.hosts)} hosts on {lab.fabric.leaves} leaves and"
                f" {lab.fabric.spines} spines. Seed {self._seed}; --seed plays it again.\n"
                f"Matrix  {url}\nMore    llama lab status --name {NAME}; Ctrl-C ends"
            )
            return await self._show(lab, Judgements(lab))
        except LabError as e:
            click.echo(f"llama demo --fabric: {e}", err=True)
            return 1
        finally:
            try:
                if self._web is not None:
                    await self._web.stopService()
            finally:
                if self._lab is not None:
                    clear(NAME)

    def _start(self, lab: Lab) -> str:
        """Start everything; return where the matrix is."""
        store = lab.directory / "llama.sqlite"
        socket = f"unix:{lab.directory}/pinpoint.sock"
        hosts.start_all(lab, self._traffic, listen=socket)
        hosts.start_scraper(lab, self._traffic, store)
        bind = f"127.0.0.1:{Ports().tcp('127.0.0.1', WEB_PORT)}"
        config = WebConfig(
            path="", listen=bind, store=StoreConfig(type="sqlite", options={"path": str(store)})
        )
        self._web = WebService(
            self._reactor, config, incidents=RemoteIncidents(self._reactor, socket)
        )
        self._web.startService()
        return f"http://{bind}/"

    async def _show(self, lab: Lab, said: Judgements) -> int:
        """Break the fabric when its paths are known; tell what is found."""
        begun = time.monotonic()
        broken: float | None = None
        healed = False
        while True:
            for judgement in said():
                known, flows = judgement["paths"], judgement["flows"]
                if broken is None:
                    self._tell(f"{known} paths known, {judgement['lossy']} of {flows} flows lossy")
                    if flows and known >= PATHS_KNOWN * flows:
                        broken = self._break(lab)
                    continue
                for suspect in judgement["suspects"]:
                    self._tell(f"[bold]suspect[/bold] {suspect['evidence']}")
                for event in judgement["events"]:
                    after = time.monotonic() - broken
                    what = f"incident {event['event']} after {after:.0f} s"
                    self._tell(f"[bold red]{what}[/bold red]: {event['incident']['title']}")
                    mine = truth.right(lab.fabric, self._traffic, self._fault, event["incident"])
                    if self._once and mine and event["event"] == "opened":
                        faults.heal_all(lab)
                        healed = True
                        self._tell(f"healed {self._fault.name}")
                    if healed and mine and event["event"] == "recovered":
                        return 0
            late = time.monotonic() - (broken or begun)
            if broken is None and late > PATIENCE_S:
                broken = self._break(lab)
            elif self._once and broken is not None and late > (2 if healed else 1) * ONCE_S:
                click.echo("llama demo --fabric: the fault was not named in time", err=True)
                return 1
            waiting: Deferred[None] = deferLater(self._reactor, LOOK_S, lambda: None)
            await waiting

    def _break(self, lab: Lab) -> float:
        """Inject the fault; return when."""
        faults.inject(lab, self._fault)
        options = {k: v for k, v in self._fault.record().items() if k not in ("kind", "on", "name")}
        words = " ".join(f"{name}={value}" for name, value in options.items())
        self._tell(
            f"[bold]broken[/bold]: llama lab fault --name {NAME} {self._fault.kind}"
            f" '{self._fault.on}' {words}"
        )
        return time.monotonic()

    def _tell(self, words: str) -> None:
        self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {words}")
