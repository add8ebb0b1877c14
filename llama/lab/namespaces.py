"""A fabric made of network namespaces, and the processes on its hosts; built and removed by root.

All that is made bears one prefix, ``llama-NAME-``, and every process started is in one of its
namespaces, so that what a killed run left behind is found without any record: `clear` removes
it. What the record adds (`RUN`/``state.json``, replaced atomically) is what cannot be asked from
the kernel: sizes, faults, and which process was which. Whoever changes it holds the lab's directory
locked and reads it again first: other commands may be at it. The root namespace is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from llama.lab.fabric import Fabric

RUN = Path("/run/llama-lab")
NAMESPACES = Path("/run/netns")  # where iproute2 keeps them
_NO_LAB = "no lab {!r} is up; start one with: llama lab up"


class LabError(Exception):
    """What went wrong and what to do, in one line for people."""


def command(*words: str, feed: str = "", check: bool = True) -> str:
    """Run a program to its end and return what it printed; `LabError` has its own complaint."""
    try:
        # In a group of its own: Ctrl-C is for us, who take back what was begun.
        done = subprocess.run(  # noqa: S603
            words, input=feed, text=True, capture_output=True, process_group=0
        )
    except FileNotFoundError:
        raise LabError(f"{words[0]}: not installed; the lab needs iproute2 and nftables") from None
    if check and done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise LabError(f"{shlex.join(words)}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def started_at(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None when there is none.

    With the process id this names a process for ever, since ids are used again. A zombie is none.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] == "Z" else int(after_name[19])


def _entered(pid: int, namespace: str, patience_s: float = 10.0) -> int | None:
    """Wait until a process is in a network namespace; return its start time, None if it ended.

    Until then `clear` does not find it there. `LabError` if it takes longer than ``patience_s``.
    """
    until = time.monotonic() + patience_s
    while (start := started_at(pid)) is not None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if os.path.samefile(f"/proc/{pid}/ns/net", NAMESPACES / namespace):
                return start
        if time.monotonic() > until:
            raise LabError(f"process {pid} does not get into namespace {namespace}; is ip stuck?")
        time.sleep(0.001)
    return None


@frozen
class Process:
    """A process of the lab: who it is for certain, what it does, and how to start it again."""

    node: str
    name: str
    arguments: tuple[str, ...]
    pid: int
    start: int  # clock ticks since boot

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Process:
        """Return the process that a record tells of."""
        return cls(**{**record, "arguments": tuple(record["arguments"])})

    @classmethod
    def ourselves(cls) -> Process:
        """Return the process that this code runs in."""
        pid = os.getpid()
        return cls("", "owner", tuple(sys.argv), pid, started_at(pid) or 0)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return started_at(self.pid) == self.start

    def send(self, number: signal.Signals) -> None:
        """Signal this very process, and nobody who was given its id since."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, number)


def end(pids: Iterable[int], patience_s: float = 5.0) -> None:
    """End processes, children of ours or not: politely, and after `patience_s` for certain."""
    left = {pid: start for pid in pids if (start := started_at(pid)) is not None}
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)  # a frozen one would not hear SIGTERM
        until = time.monotonic() + wait_s
        while left and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            left = {pid: start for pid, start in left.items() if started_at(pid) == start}
            time.sleep(0.02 if left else 0)
        if not left:
            return
    raise LabError(f"processes {sorted(left)} do not end; look at them with ps")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP end the program as Ctrl-C does: what cleans up is run."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@define
class Lab:
    """One fabric that is up, or what is left of one. `open` and `build` make it."""

    name: str
    fabric: Fabric
    directory: Path
    processes: list[Process] = field(factory=list)
    faults: list[dict[str, Any]] = field(factory=list)  # as `llama.lab.faults` wrote them
    #: The process that will remove it when it ends; None: whoever says so.
    owner: Process | None = None
    _locked: bool = field(default=False, init=False)

    @property
    def prefix(self) -> str:
        """What every namespace of this lab begins with."""
        return f"llama-{self.name}-"

    def namespace(self, node: str) -> str:
        """Return the name of a node's namespace; `ValueError` when there is no such node."""
        if node not in self.fabric.nodes:
            raise ValueError(f"{node!r} is no node here; there are {', '.join(self.fabric.nodes)}")
        return self.prefix + node

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within it the record is nobody else's, and as it is now. May be nested.

        `LabError` when the lab is gone.
        """
        if self._locked:
            yield
            return
        try:
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise LabError(_NO_LAB.format(self.name)) from None
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            now = Lab.open(self.name, self.directory.parent)
            self.processes, self.faults = now.processes, now.faults
            self._locked = True
            yield
        finally:
            self._locked = False
            os.close(directory)

    def save(self) -> None:
        """Write the record, whole or not at all; within `locked`."""
        record = {
            "fabric": asdict(self.fabric),
            "processes": [asdict(process) for process in self.processes],
            "faults": self.faults,
            "owner": None if self.owner is None else asdict(self.owner),
        }
        new = self.directory / "state.json.new"
        try:
            new.write_text(json.dumps(record, indent=1))
            new.replace(self.directory / "state.json")
        except FileNotFoundError:  # removed meanwhile
            raise LabError(_NO_LAB.format(self.name)) from None

    @classmethod
    def open(cls, name: str, run: Path = RUN) -> Lab:
        """Return the lab of this name as its record tells; `LabError` when there is none."""
        directory = run / name
        try:
            record = json.loads((directory / "state.json").read_text())
            fabric = Fabric(**record["fabric"])
            processes = [Process.of(process) for process in record["processes"]]
            owner = None if record["owner"] is None else Process.of(record["owner"])
            return cls(name, fabric, directory, processes, record["faults"], owner)
        except FileNotFoundError:
            raise LabError(_NO_LAB.format(name)) from None
        except (ValueError, KeyError, TypeError) as e:
            raise LabError(f"{directory}/state.json: unreadable ({e}); run: llama lab down") from e

    @classmethod
    def build(cls, name: str, fabric: Fabric, run: Path = RUN, owned: bool = False) -> Lab:
        """Make every namespace, cable, address and route; clears what was left of this name.

        `owned` means that this process will remove it: until it ends nobody else builds one of
        this name, and what it leaves behind if it is killed is nobody's.
        """
        if os.geteuid():
            raise LabError("a lab of network namespaces needs root; try: sudo llama lab up")
        busy = ""
        with contextlib.suppress(LabError):
            other = cls.open(name, run).owner
            if other is not None and other.alive and other.pid != os.getpid():
                busy = f"lab {name!r} is in use by process {other.pid}; end that first"
        if busy:
            raise LabError(busy)
        clear(name, run)
        lab = cls(name, fabric, run / name, owner=Process.ourselves() if owned else None)
        lab.directory.mkdir(parents=True, exist_ok=True)
        lab.save()
        try:
            lab._build()
        except BaseException:
            clear(name, run)
            raise
        return lab

    def _build(self) -> None:
        """Make what the fabric says, with few calls of ``ip``: one batch a namespace."""
        fabric = self.fabric
        command(
            "ip", "-batch", "-", feed="".join(f"netns add {self.prefix}{n}\n" for n in fabric.nodes)
        )
        for node in fabric.nodes:
            settings = "".join(f"{key} = {value}\n" for key, value in fabric.sysctls(node).items())
            # -e: kernels that lack one of them have nothing to be set.
            self.run(node, "sysctl", "-e", "-q", "-p", "-", feed=settings)
        cables = [
            f"link add name {link.a.interface} netns {self.prefix}{link.a.node} mtu {fabric.mtu}"
            f" type veth peer name {link.b.interface} netns {self.prefix}{link.b.node}"
            f" mtu {fabric.mtu}\n"
            for link in (*fabric.links, *fabric.management_links)
        ]
        command("ip", "-batch", "-", feed="".join(cables))
        for node in fabric.nodes:
            lines = ["link set lo up"]
            for own, _ in fabric.ends(node):
                lines += [
                    f"address add {own.ipv4}/31 dev {own.interface}",
                    f"address add {own.ipv6}/127 dev {own.interface} nodad",
                    f"link set {own.interface} up",
                ]
            command("ip", "-n", self.namespace(node), "-batch", "-", feed="\n".join(lines) + "\n")
        for node in fabric.nodes:
            self.add_routes(node)

    def add_routes(self, node: str) -> None:
        """Give a node its routes, also anew after its interfaces were down."""
        lines = "".join(f"route replace {route}\n" for route in self.fabric.routes(node))
        if lines:
            command("ip", "-n", self.namespace(node), "-batch", "-", feed=lines)

    def run(self, node: str, *words: str, feed: str = "", check: bool = True) -> str:
        """Run a program inside a node to its end and return its output."""
        return command("ip", "netns", "exec", self.namespace(node), *words, feed=feed, check=check)

    def start(self, node: str, name: str, arguments: Sequence[str]) -> Process:
        """Start a program inside a node; it outlives us. Its output is in ``NODE-NAME.log``."""
        with self.locked():
            process = self._start(node, name, arguments)
            self.processes = [p for p in self.processes if (p.node, p.name) != (node, name)]
            self.processes.append(process)
            self.save()
        return process

    def _start(self, node: str, name: str, arguments: Sequence[str]) -> Process:
        namespace = self.namespace(node)
        log = self.directory / f"{node}-{name}.log"
        with log.open("ab") as output:
            # `ip netns exec` becomes the program, so the id is the program's own.
            child = subprocess.Popen(  # noqa: S603
                ["ip", "netns", "exec", namespace, *arguments],  # noqa: S607
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                start_new_session=True,
            )
        try:
            start = _entered(child.pid, namespace)
        except BaseException:  # outside it nobody would find the process
            child.kill()
            child.wait()
            raise
        child.returncode = 0  # it is not ours to wait for: `end` reaps it if we are still there
        if start is None:
            raise LabError(f"{node}: {name} ended at once; see {log}")
        return Process(node, name, tuple(arguments), child.pid, start)

    def stop(self, processes: Iterable[Process]) -> None:
        """End these processes; they stay in the record, so that they can be started again."""
        end(process.pid for process in processes if process.alive)

    def restart(self, process: Process) -> Process:
        """Start a process of the record again, as it was started before."""
        return self.start(process.node, process.name, process.arguments)


def namespaces_of(name: str) -> list[str]:
    """Return the namespaces that bear the name of a lab, which may be up or left over."""
    if not name.isalnum():
        raise LabError(f"{name!r}: a lab's name is letters and digits only")
    return sorted(path.name for path in NAMESPACES.glob(f"llama-{name}-*"))


def clear(name: str, run: Path = RUN) -> list[str]:
    """Remove all that bears the name of a lab, however it ended; return what was found."""
    found = namespaces_of(name)
    pids: list[int] = []
    for namespace in found:
        pids += map(int, command("ip", "netns", "pids", namespace, check=False).split())
    end(pids)
    # Namespaces that we could enter but not name by now are gone by themselves: nobody is inside.
    for namespace in found:
        command("ip", "netns", "delete", namespace, check=False)
    if left := namespaces_of(name):
        raise LabError(f"namespaces {', '.join(left)} cannot be removed; are you root?")
    directory = run / name
    if directory.is_dir():
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        directory.rmdir()
    return found
