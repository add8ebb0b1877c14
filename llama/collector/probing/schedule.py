"""What is due when: every flow once a period, evenly spread, never caught up in a burst. Pure.

The flows of a group are sent in a fixed order, one every ``period / flows`` seconds. The order goes
through all pairs from one source port, then through all from the next: so a target sees its probes
evenly spaced, and a burst leaves from one socket to as many targets as it has probes. Where in its
period a collector begins, and the order of the pairs, are random, lest a fleet beat in time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from llama.collector.intervals.replies import Ints

BURST = 32  # probes handed to the kernel at once, at most
#: Probes that could not be sent within this time after they were due are skipped.
LATEST_S = 0.050


class Burst(NamedTuple):
    """Probes to send at once, all from one socket, none of them twice."""

    flows: Ints  # (N,)
    port: int  # the source port they leave from
    place: int  # of the first, in the schedule's `flows`
    left: int  # how many more are due


class Schedule:
    """The order and times of a group's probes: ``rate_pps`` for each of the flows of ``pairs``.

    ``pairs`` are the numbers of those that are probed, flow ``pair * ports + port`` belongs to
    each; ``order`` is the order in which they have their turns. ``now_s`` is the monotonic clock;
    ``chance`` gives the random choices.
    """

    def __init__(
        self, pairs: Ints, ports: int, rate_pps: float, now_s: float, chance: random.Random
    ) -> None:
        self.order: Ints = np.array(chance.sample(pairs.tolist(), len(pairs)), np.int64)
        self.flows: Ints = (self.order * ports + np.arange(ports)[:, None]).reshape(-1)
        self._turns_per_s = self.probes_per_s = rate_pps * len(self.flows)
        self._start_s = now_s
        self._first = chance.randrange(len(self.flows)) if len(self.flows) else 0
        self._begin = chance.random()  # of a probe's time, until the first
        self._done = 0
        self.skipped = 0
        #: How many probes to send in all; None goes on for ever.
        self.limit: int | None = None

    def follow(self, before: Schedule, moved: Mapping[int, int], chance: random.Random) -> None:
        """Go on where ``before`` was: what has a turn in both keeps it, in order and in time.

        ``moved`` maps its pairs that stay to what they are here. Others take the places of those that
        left, or random ones. To be called before anything is due.
        """
        if not moved or not len(before.flows):
            return
        place = (before._first + before._done) % len(before.flows)
        port, turn = divmod(place, len(before.order))
        order, turn = woven(before.order.tolist(), moved, self.order.tolist(), turn, chance)
        ports = len(self.flows) // len(self.order)
        self.order = np.array(order, np.int64)
        self.flows = (self.order * ports + np.arange(ports)[:, None]).reshape(-1)
        self._first = (port * len(order) + turn) % len(self.flows)
        # What was done was due until then.
        self._start_s = before._start_s + (before._done - before._begin) / before._turns_per_s
        self._begin = 0.0

    def begin(self, now_s: float) -> None:
        """Begin now rather than when the schedule was made."""
        self._start_s = now_s

    def bursts(self, now_s: float, size: int, elapsed_s: float) -> Iterator[Burst]:
        """Yield what is due now, in bursts of at most ``size`` probes.

        After a pause that is no more than twice what fell due in ``elapsed_s``: the rest is left to
        the next ticks, as are the few that a full burst leaves over.
        """
        most = max(1, math.ceil(2 * self._turns_per_s * elapsed_s))
        while most > 0 and (burst := self.due(now_s, min(size, most))) is not None:
            yield burst
            most -= len(burst.flows)
            if not burst.left or (len(burst.flows) == size and burst.left < size // 2):
                return

    def due(self, now_s: float, most: int) -> Burst | None:
        """Return what is due now, at most ``most`` probes; None if nothing is.

        What is overdue by more than `LATEST_S` is skipped and counted in ``skipped``.
        """
        if not len(self.flows):
            return None
        elapsed_s = now_s - self._start_s
        target = math.floor(elapsed_s * self._turns_per_s + self._begin)
        oldest = math.floor((elapsed_s - LATEST_S) * self._turns_per_s + self._begin)
        if self._done < oldest and self.limit is None:
            self.skipped += oldest - self._done
            self._done = oldest
        elif self.limit is not None:
            if self._done < min(oldest, self.limit):
                # As many are to be sent as ever: all that is left is due later.
                late = oldest - self._done
                self.skipped += min(late, self.limit - self._done)
                self._start_s += late / self._turns_per_s
                target -= late
            target = min(target, self.limit)
        count = min(target - self._done, most)
        if count <= 0:
            return None
        place = (self._first + self._done) % len(self.flows)
        port, turn = divmod(place, len(self.order))
        # Up to where the next source port begins: this ends the list as well.
        count = min(count, len(self.order) - turn)
        self._done += count
        flows = self.flows[place : place + count]
        return Burst(flows, port, place, target - self._done)


T = TypeVar("T")


def woven(
    before: Sequence[T],
    moved: Mapping[T, T],
    wanted: Sequence[T],
    turn: int,
    chance: random.Random,
) -> tuple[list[T], int]:
    """Return an order of ``wanted`` in which those of ``before`` that stay keep theirs.

    ``moved`` says what each of them is called now. The others take the places of those that left,
    further ones come anywhere. Also returned is where it goes on, that is where turn ``turn`` of
    the order before is now; at the end it may be one beyond the last.
    """
    stay = set(moved.values())
    new = [one for one in wanted if one not in stay]
    chance.shuffle(new)
    left = [n for n, one in enumerate(before) if one not in moved]
    places = set(chance.sample(left, min(len(left), len(new))))
    # Each has its turn before and 1.0; what comes between two turns has the later one, and less.
    turns = [
        (n, 1.0, moved[one] if one in moved else new.pop())
        for n, one in enumerate(before)
        if one in moved or n in places
    ]
    turns += [(chance.randrange(len(before) + 1), chance.random(), one) for one in new]
    turns.sort(key=lambda each: each[:2])
    order = [one for _, _, one in turns]
    return order, sum(n < turn or (n == turn and part < 1.0) for n, part, _ in turns)
