"""What is due when: every flow once a period, evenly spread, never caught up in a burst. Pure.

The flows of a group are sent in a fixed order, one every ``period / flows`` seconds. The order goes
through all pairs from one source port, then through all from the next: so a target sees its probes
evenly spaced, and a burst leaves from one socket to as many targets as it has probes. Where in its
period a collector begins, and the order of the pairs, are random, lest a fleet beat in time.
"""

from __future__ import annotations

import math
import random

import numpy as np

from llama.collector.ledger import Ints

#: Probes that could not be sent within this time after they were due are skipped.
LATEST_S = 0.050


class Schedule:
    """The order and times of a group's probes: ``rate_pps`` for each of ``pairs`` x ``ports`` flows.

    ``now_s`` is the monotonic clock; ``chance`` gives the random choices.
    """

    def __init__(
        self, pairs: int, ports: int, rate_pps: float, now_s: float, chance: random.Random
    ) -> None:
        order = np.array(chance.sample(range(pairs), pairs), np.int64)
        self.flows: Ints = (order[None, :] * ports + np.arange(ports)[:, None]).reshape(-1)
        self.pairs = pairs
        self.ports = np.repeat(np.arange(ports), pairs)  # the source port of each place
        self.place = 0  # where the flows that `due` last gave begin
        self.probes_per_s = rate_pps * len(self.flows)
        self._start_s = now_s
        self._first = chance.randrange(len(self.flows)) if len(self.flows) else 0
        self._begin = chance.random()  # of a probe's time, until the first
        self._done = 0
        self.skipped = 0
        #: How many probes to send in all; None goes on for ever.
        self.limit: int | None = None

    def begin(self, now_s: float) -> None:
        """Begin now rather than when the schedule was made."""
        self._start_s = now_s

    def due(self, now_s: float, most: int) -> tuple[Ints, bool]:
        """Return the flows to send to now, at most ``most``, and whether more are due at once.

        They leave from one socket, and none comes twice. What is overdue by more than `LATEST_S`
        is skipped and counted in ``skipped``.
        """
        if not len(self.flows):
            return self.flows, False
        elapsed_s = now_s - self._start_s
        target = math.floor(elapsed_s * self.probes_per_s + self._begin)
        oldest = math.floor((elapsed_s - LATEST_S) * self.probes_per_s + self._begin)
        if self.limit is not None:
            # What is skipped is not sent: as many are sent later instead.
            last = self.limit + self.skipped
            target, oldest = min(target, last), min(oldest, last)
        if self._done < oldest:
            self.skipped += oldest - self._done
            self._done = oldest
        count = min(target - self._done, most)
        if count <= 0:
            return self.flows[:0], False
        place = (self._first + self._done) % len(self.flows)
        # Up to where the next source port begins: this ends the list as well.
        end = min(place + count, (place // self.pairs + 1) * self.pairs)
        self._done += end - place
        self.place = place
        return self.flows[place:end], self._done < target
