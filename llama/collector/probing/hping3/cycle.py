"""How hping3 is run: what one run of the program sends, and in which order the runs have turns. Pure.

In every cycle, which takes ``1 / rate_pps`` seconds, each flow sends one probe. hping3 counts its
source port up by one with every probe, so one run of it serves a *stretch*: flows of one pair whose
source ports follow on one another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from attrs import frozen

from llama.collector.probing.schedule import Schedule

#: hping3 waits so long, s, for answers after the last probe of a run, unless all have come.
AFTER_LAST_S = 1.0
#: Answers that took longer, s, are late, whatever the timeout: hping3 may be gone when they come.
LONGEST_ANSWER_S = 0.9
#: From the first probe of a run to its last, s, at most.
LONGEST_SENDING_S = 1.0
#: A run that takes so much longer, s, than it should is ended.
GRACE_S = 1.0
#: How long after a probe was sent, s, its fate may become known: no interval is closed before.
KNOWN_AFTER_S = LONGEST_SENDING_S + AFTER_LAST_S + GRACE_S + 0.5
#: hping3 remembers 400 probes.
MOST_PROBES = 200


@frozen(kw_only=True)
class Cycle:
    """How the probes of a group are divided into runs; of "hping3" alone."""

    program: str  # as configured: a path, or a name to be looked for
    spacing_s: float  # between two probes of a run
    processes: int  # runs at once
    timeout_s: float  # how long a reply may take

    @property
    def limit_s(self) -> float:
        """How long an answer may take to be one in time."""
        return min(self.timeout_s, LONGEST_ANSWER_S)

    @property
    def probes_of_a_run(self) -> int:
        """How many probes a run has at most."""
        return max(1, min(MOST_PROBES, 1 + math.floor(LONGEST_SENDING_S / self.spacing_s)))


def spacing_s(
    wanted_s: float, processes: int, cycle_s: float, ports: int, peak_pps: float
) -> float:
    """Return the time between two probes of a run, s.

    As ``wanted_s``, but so that ``processes`` runs at once send no more than ``peak_pps``, and that
    a cycle of ``cycle_s`` is enough for the flows of a pair, from ``ports`` source ports.
    """
    return max(0.0001, min(max(wanted_s, processes / peak_pps), cycle_s / ports))


def stretches(numbers: Sequence[tuple[object, int]], most: int) -> tuple[tuple[int, ...], ...]:
    """Return which source ports, by their place in ``numbers``, one run can serve.

    ``numbers`` are (local address, port number) pairs; a run has at most ``most`` of them.
    """
    made: list[list[int]] = []
    before: tuple[object, int] | None = None
    for place in sorted(range(len(numbers)), key=lambda n: (str(numbers[n][0]), numbers[n][1])):
        address, number = numbers[place]
        if before == (address, number - 1) and len(made[-1]) < most:
            made[-1].append(place)
        else:
            made.append([place])
        before = address, number
    return tuple(map(tuple, made))


class Turns(Schedule):
    """Which run is due when: each of ``runs`` once a cycle, evenly spread, in random order.

    ``runs`` are (pair, stretch) pairs; ``sizes`` says how many probes each has. It is a schedule of the
    numbers of runs; but ``limit``, ``skipped`` and ``probes_per_s`` are of probes, as of any other. What
    is overdue is not skipped but given at once, since runs wait for one another anyhow; but never more
    than one cycle of it.
    """

    def __init__(
        self,
        runs: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        rate_pps: float,
        now_s: float,
        chance: random.Random,
    ) -> None:
        super().__init__(np.arange(len(runs)), 1, rate_pps, now_s, chance)
        self.runs, self._sizes = runs, sizes
        self.probes_per_s = rate_pps * sum(sizes)
        self._given = 0

    def runs_due(self, now_s: float) -> list[tuple[int, int]]:
        """Return the runs, (pair, stretch) each, whose turn has come since this was last asked."""
        count = len(self.runs)
        target = math.floor((now_s - self._start_s) * self._turns_per_s + self._begin)
        if not count or (self.limit is not None and self._given >= self.limit):
            return []
        if (missed := target - self._done - count) > 0:
            whole, rest = divmod(missed, count)
            self.skipped += whole * sum(self._sizes)
            self.skipped += sum(self._sizes[self._next(n)] for n in range(rest))
            self._done += missed
        due = []
        while self._done < target and (self.limit is None or self._given < self.limit):
            number = self._next()
            due.append(self.runs[number])
            self._given += self._sizes[number]
            self._done += 1
        return due

    def _next(self, later: int = 0) -> int:
        """Return the number of the run that has the next turn, or of one so many turns ``later``."""
        return int(self.flows[(self._first + self._done + later) % len(self.flows)])
