"""Probes by the program hping3: SYNs to port 0, or another, which the other end's stack answers.

The first LLAMA's way of probing. In every cycle each flow of a pair sends one probe; one run of the
program serves the flows whose source ports follow on one another, see `cycle`.
The program takes any segment from the target's address and port for an answer and ends when it has
as many as it sent probes, so that there is one run at a time to a port of an address. Runs are
bounded by the test's ``processes``; those that are due wait in the order in which they came due,
and a run whose predecessor still waits for its turn is left out, and counted among failed sends.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from llama.collector.intervals.ledger import Ledger
from llama.collector.intervals.summary import Pair, suspect_bit
from llama.collector.probing.hping3.account import Account
from llama.collector.probing.hping3.cycle import GRACE_S, Turns, stretches
from llama.collector.probing.hping3.output import Begun, Event, Stranger, Unreachable, read_summary
from llama.collector.probing.hping3.process import Hping3, Order, complaint, find_program
from llama.collector.probing.hping3.witness import Witness
from llama.collector.probing.plan import Group, Source
from llama.collector.probing.port_holder import PortHolder, places_now
from llama.collector.probing.sockets import HeldPort, leave_spare
from llama.collector.probing.track import Track
from llama.net.route import way_to

#: How long a run may take to begin, s.
BEGIN_S = 5.0
#: Waiting runs looked at in one tick for one whose target is free.
_LOOKED_AT = 64


def held_port(source: Source, number: int) -> HeldPort:
    """Return what holds a TCP source port; raises `OSError` if it is somebody else's."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        leave_spare(sock)
        sock.bind((source.address or "0.0.0.0", number))  # noqa: S104  not listening
    except OSError:
        sock.close()
        raise
    return HeldPort(source, sock, sock.getsockname()[1])


class RunTrack(Track):
    """A track whose flows are probed in runs of hping3."""

    def __init__(
        self,
        group: Group,
        ledger: Ledger,
        live: npt.NDArray[np.bool_],
        sockets: Sequence[HeldPort],
        chance: random.Random,
        now_s: float,
    ) -> None:
        ssids = dict.fromkeys(group.variants, 0)
        super().__init__(group, ledger, live, sockets, ssids, chance, now_s)
        assert group.cycle is not None
        self.cycle = group.cycle
        ledger.stamps_there = False
        ledger.timeout_ns = round(group.cycle.limit_s * 1e9)
        ports = [(sock.source.address, sock.number) for sock in sockets]
        self.stretches = stretches(ports, group.cycle.probes_of_a_run)
        runs = [(p, s) for p in np.flatnonzero(live).tolist() for s in range(len(self.stretches))]
        sizes = [len(self.stretches[stretch]) for _, stretch in runs]
        self.turns = Turns(runs, sizes, group.rate_pps, now_s, chance)
        self.schedule = self.turns
        self.waiting: dict[tuple[int, int], None] = {}  # runs, in the order they came due

    def _follow_schedule(self, before: Track, moved: Mapping[int, int]) -> None:
        assert isinstance(before, RunTrack)
        if self.stretches != before.stretches:
            return
        runs = {run: (moved[run[0]], run[1]) for run in before.turns.runs if run[0] in moved}
        numbers = {run: number for number, run in enumerate(self.turns.runs)}
        now = {n: numbers[runs[run]] for n, run in enumerate(before.turns.runs) if run in runs}
        self.turns.follow(before.turns, now, self._chance)
        self.waiting = {runs[run]: None for run in before.waiting if run in runs}


class _Run:
    """One run under way."""

    def __init__(
        self, prober: Hping3Prober, track: RunTrack, number: int, account: Account, order: Order
    ) -> None:
        self.prober, self.account = prober, account
        self.group = track.group.identity
        self.pair = track.pairs[number]
        self.way = order.address, order.port
        self.number, self.ledger = number, track.ledger  # the pair's number in the ledger
        self.until_s = prober.now_s() + BEGIN_S
        self.killed = ""  # why, if we did
        self.process = Hping3(prober.reactor, order, self)

    def heard(self, event: Event) -> None:
        """Take what the program said."""
        self.prober.heard(self, event)

    def ended(self, status: int | None, errors: bytes) -> None:
        """Take note of its end."""
        self.prober.run_ended(self, status, errors)


class Hping3Prober(PortHolder):
    """Probes groups of the kind ``hping3``."""

    tracks: Sequence[RunTrack]
    log = Logger()
    untold = "nor did hping3 work to {count} more"

    def __init__(
        self,
        reactor: Any,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        super().__init__(chance)
        self.reactor = reactor
        self._wall_ns, self.now_s = wall_ns, monotonic_s
        self._secret = random.SystemRandom()
        self._newest: dict[tuple[object, ...], int] = {}  # port chosen last, of each test
        self._runs: dict[tuple[str, int], _Run] = {}  # by address and port
        self._of_group: Counter[tuple[object, ...]] = Counter()
        self._all_ended: list[Deferred[None]] = []
        self._closed = False
        self._witness: Witness | None = None
        self.unread = 0  # lines of output that made no sense

    # What to probe

    def open(self, source: Source) -> HeldPort:
        """Return what holds a source's port; raises `OSError` if it is somebody else's.

        Ports that the system may choose follow on one another where that can be.
        """
        if source not in self.sockets:
            self.sockets[source] = self._held(source)
            self._watch()
        return self.sockets[source]

    def _watch(self) -> None:
        """See for ourselves what arrives for our ports, if we may."""
        if self._witness is None:
            try:
                self._witness = Witness()
            except PermissionError:  # hping3 has a privilege that we have not: it is believed
                return
        self._witness.watch(held.number for held in self.sockets.values())

    def _held(self, source: Source) -> HeldPort:
        if source.number:
            return held_port(source, source.number)
        test = source.address, source.owner.rpartition("/")[0]
        held = None
        if 0 < self._newest.get(test, 0) < 65535:
            try:
                held = held_port(source, self._newest[test] + 1)
            except OSError:
                held = None  # it is somebody else's
        held = held or held_port(source, 0)
        self._newest[test] = held.number
        return held

    def track(
        self, group: Group, ledger: Ledger, live: npt.NDArray[np.bool_], now_s: float
    ) -> Track:
        """Return a track for a group, to be handed to `arrange`."""
        sockets = [self.open(source) for source in group.sources]
        return RunTrack(group, ledger, live, sockets, self.chance, now_s)

    def arrange(self, tracks: Sequence[Track]) -> None:
        """Probe these tracks, and only these, from now on."""
        self.tracks = [track for track in tracks if isinstance(track, RunTrack)]
        self._carry_over({track.group.identity: track for track in self.tracks})
        self._let_go_unused()
        self._watch()

    def _carry_over(self, tracks: dict[tuple[object, ...], RunTrack]) -> None:
        """Give the runs under way their places in the ledgers that there are now."""
        for run, track, place in places_now(self._runs.values(), tracks):
            if track is None:
                self._kill(run, "it is not wanted any more")
                continue
            run.ledger = run.account.ledger = track.ledger
            run.account.flows = run.account.flows % track.ports + place * track.ports
            run.number, run.pair = place, track.pairs[place]

    def close(self) -> None:
        """End all runs, let all ports go."""
        self._closed = True
        for run in self._runs.values():
            self._kill(run, "the collector stops")
        self._let_all_go()
        if self._witness is not None:
            self._witness.close()
            self._witness = None

    def ended(self) -> Deferred[None]:
        """Fire when no run is left, after `close`."""
        if not self._runs:
            return succeed(None)
        self._all_ended.append(Deferred())
        return self._all_ended[-1]

    def follow_interfaces(self) -> None:
        """Do nothing: every run asks for its device."""

    # Runs

    def tick(self, now_s: float, elapsed_s: float) -> None:
        """Begin the runs that are due at ``now_s``, on the monotonic clock.

        ``elapsed_s`` is for those who send by themselves: runs are bounded by how many may be under
        way.
        """
        self._enter()
        for track in self.tracks:
            skipped = track.turns.skipped
            due = track.turns.runs_due(now_s)
            self._note_skipped(track, skipped)
            for run in due:
                if run in track.waiting:
                    self._not_sent("EALREADY", len(track.stretches[run[1]]))
                    track.ledger.mark_current(
                        suspect_bit("send_failed"),
                        "a run of hping3 was left out: the one before still waits",
                        pairs=np.array([run[0]]),
                    )
                else:
                    track.waiting[run] = None
            self._begin_waiting(track)

    def _begin_waiting(self, track: RunTrack) -> None:
        group = track.group.identity
        for run in list(itertools.islice(track.waiting, _LOOKED_AT)):
            if self._of_group[group] >= track.cycle.processes:
                return
            pair = track.pairs[run[0]]
            if (pair.dst_ip, pair.dst_port) not in self._runs:
                del track.waiting[run]
                self._begin(track, *run)

    def _begin(self, track: RunTrack, number: int, stretch: int) -> None:
        """Begin one run."""
        pair, ports = track.pairs[number], track.stretches[stretch]
        first = track.sockets[ports[0]]
        program = find_program(track.cycle.program)
        try:
            if program is None:
                raise FileNotFoundError(errno.ENOENT, f"there is no program {track.cycle.program}")
            way = way_to(pair.dst_ip, first.source.address)
            order = Order(
                program=program, address=pair.dst_ip, port=pair.dst_port, device=way.device,
                source=way.source, first_port=first.number, count=len(ports),
                spacing_us=min(max(round(track.cycle.spacing_s * 1e6), 100), 999_999),
                dscp=pair.dscp, sequence=self._secret.randrange(1, 2**31 - 1),
            )  # fmt: skip
            account = Account(
                track.ledger, number * track.ports + np.array(ports, np.int64),
                order.spacing_us / 1e6, track.cycle.limit_s,
            )  # fmt: skip
            run = _Run(self, track, number, account, order)
            run.process.start()
        except OSError as reason:
            name = errno.errorcode.get(reason.errno or 0, "EIO")
            self._failed(track.ledger, number, pair, len(ports), name, reason.strerror or name)
            return
        self._runs[run.way] = run
        self._of_group[run.group] += 1

    def _enter(self) -> None:
        """Enter the probes that were sent since, and end runs that do not end by themselves."""
        self._look()
        now_s = self.now_s()
        for run in self._runs.values():
            before = run.account.entered
            run.account.enter(now_s)
            self.sent += run.account.entered - before
            if now_s > run.until_s:
                self._kill(run, "it did not end in time")

    def _look(self) -> None:
        """Note which answers have arrived."""
        if self._witness is None:
            return
        for seen in self._witness.seen():
            run = self._runs.get((seen.address, seen.port))
            if run is None or seen.acknowledged != run.process.order.sequence + 1:
                continue
            number = seen.own_port - run.process.order.first_port
            if number >= 0:
                run.account.see(number, seen.dscp, seen.ttl, self.now_s())

    def drain(self) -> bool:
        """Do what time asks for; return whether no run is overdue."""
        self._enter()
        return not any(run.killed for run in self._runs.values())

    def heard(self, run: _Run, event: Event) -> None:
        """Take what a run's program said."""
        if run.killed:
            return
        account, now_s = run.account, self.now_s()
        entered, received = account.entered, account.received
        if isinstance(event, Begun):
            if event.device != run.process.order.device:
                # Where it is not told of a device it knows, it takes another, without a word.
                self._kill(run, f"it cannot listen on {run.process.order.device}")
            elif not account.began:
                account.begin(now_s, self._wall_ns())
                account.enter(now_s)
                run.until_s = account.last_due_s() + GRACE_S
        elif isinstance(event, Unreachable):
            account.unreachable += 1
        elif isinstance(event, Stranger) or not account.answer(event, now_s):
            account.strangers += 1
            self.strangers += 1
        self.sent += account.entered - entered
        self.received += account.received - received

    def _kill(self, run: _Run, why: str) -> None:
        if not run.killed:
            run.killed = why
            run.process.kill()

    def run_ended(self, run: _Run, status: int | None, errors: bytes) -> None:
        """Settle the account of a run whose program is gone."""
        self._look()
        del self._runs[run.way]
        self._of_group[run.group] -= 1
        reader, account = run.process.reader, run.account
        self.unread += reader.unread
        if not self._closed and self._tracked(run):
            summary = read_summary(errors)
            well = status is not None and not run.killed and not reader.unread
            entered, received = account.entered, account.received
            settled = account.settle(summary if well else None, self.now_s())
            self.sent += len(account.flows) - settled.unsent - entered
            self.received += account.received - received
            self.receive_drops += settled.missed
            if not well or summary is None or settled.unsent or settled.late:
                self._went_wrong(run, settled.unsent, settled.late, errors)
        if not self._runs:
            waiting, self._all_ended = self._all_ended, []
            for ended in waiting:
                ended.callback(None)

    def _tracked(self, run: _Run) -> bool:
        return any(track.ledger is run.ledger for track in self.tracks)

    def _went_wrong(self, run: _Run, unsent: int, late: bool, errors: bytes) -> None:
        """Say what was wrong with a run, and mark the interval."""
        said = complaint(errors, run.process.reader)
        if run.killed:
            name, why = "ETIME", run.killed
        elif run.process.reader.unread:
            name, why = "EPROTO", f"it said: {run.process.reader.puzzle}"
        elif late:
            name, why = "ETIME", "it was late, and may have missed answers"
        elif read_summary(errors) is None:
            name, why = (
                _error_name(said),
                "it was ended" if said == "nothing" else f"it said: {said}",
            )
        else:
            name, why = "ECANCELED", "it ended early: answers to others were in its way"
        if late or run.killed:
            run.ledger.mark(
                suspect_bit("late_ticks"), f"hping3 {why}", pairs=np.array([run.number])
            )
        self._failed(run.ledger, run.number, run.pair, unsent, name, why)

    def _failed(
        self, ledger: Ledger, number: int, pair: Pair, count: int, name: str, why: str
    ) -> None:
        """Say that probes were not sent, or what became of them is not known."""
        if self._complaints.worth_telling(pair.dst_ip, name):
            self.log.warn(
                "hping3 to {target} ({ip}): {why}; probes whose fate is not known are not counted"
                " as sent",
                target=pair.target, ip=pair.dst_ip, why=why,
            )  # fmt: skip
        self._not_sent(name, count)
        ledger.mark(suspect_bit("send_failed"), f"hping3 failed: {name}", pairs=np.array([number]))

    def _not_sent(self, name: str, count: int) -> None:
        self.failed_sends[name] += count


def _error_name(said: str) -> str:
    """Return the name of the error at the end of a complaint by perror(3)."""
    text = said.rpartition(": ")[2]
    for code, name in errno.errorcode.items():
        if os.strerror(code) == text:
            return name
    return "ECANCELED"
