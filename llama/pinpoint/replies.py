"""What a located suspect means for the replies between the same places; pure.

A reply travels a path that its receiver cannot trace. But the collector at the other end sees the
same links as forward paths: what it locates accounts for replies lost here, and for traces that
ended early because the answers of routers were lost on their way back.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from llama.pinpoint.evidence import Hosts, Indices, Mask, Paths, Suspect
from llama.pinpoint.scan import Floats
from llama.pinpoint.symptoms import Symptom

#: Standard deviations up to which a share that a few flows show may be greater.
DEVIATIONS = 3.0


def _bound(hits: npt.ArrayLike, trials: npt.ArrayLike, deviations: float) -> Floats:
    """Return the greatest share that may well have shown so many `hits` (Wilson's bound)."""
    n = np.maximum(np.asarray(trials, np.float64), 1.0)
    share, square = np.asarray(hits, np.float64) / n, deviations**2 / n
    spread = deviations * np.sqrt(share * (1 - share) / n + square / (4 * n))
    bound: Floats = (share + square / 2 + spread) / (1 + square)
    return bound


class Replies:
    """The flows of one window, seen from the other end.

    `known_path` and `dead` say by flow whether its path is known and whether it lost everything.
    """

    def __init__(
        self,
        flows: npt.NDArray[np.void],
        hosts: Hosts,
        paths: Paths,
        known_path: Mask,
        dead: Mask,
    ) -> None:
        self._flows, self._hosts, self._paths = flows, hosts, paths
        self._known_path, self._dead = known_path, dead

    def consequences(self, suspect: Suspect, symptom: Symptom) -> tuple[Floats, Floats]:
        """Return, by flow, the chance that a located suspect has troubled it without its own vote.

        Seen from the other end, its links carry the replies of the flows between the same places,
        and they do so as often as they carry flows there: ECMP spreads both. Flows of unknown
        path may cross it as often as their like do. Places are hosts where the suspect is a
        host's own link, else the routers that hosts are attached to, since replies hash their own
        way between these. As both shares are those of a few flows, there are two chances: what is
        likely, and the most that may well be.
        """
        own = self._own(suspect.kind, suspect.name)
        there, back = self._pairs if own else self._attached
        crossing = suspect.flows
        like = np.isin(self._kind, self._kind[crossing])
        codes, place = np.unique(np.concatenate([there, back]), return_inverse=True)
        there, back = place[: len(there)], place[len(there) :]
        over = np.bincount(there[crossing], minlength=len(codes))
        traced = like & self._known_path & symptom.judged
        of = np.maximum(np.bincount(there[traced], minlength=len(codes)), over)
        hits = np.count_nonzero(symptom.troubled[crossing])
        struck = np.ones(len(there))
        if symptom.exposure is not None:
            struck = symptom.exposure.chance(suspect.rate)[symptom.exposure.kind]
            struck = struck / max(float(struck[crossing].mean()), 1e-12)

        def chance(at: float) -> Floats:
            """Return the chance with shares so many standard deviations above those shown."""
            share = np.where(over > 0, _bound(over, of, at), 0.0)
            hit = np.minimum(struck * _bound(hits, len(crossing), at), 1.0)
            untraced = np.where(self._known_path, 0.0, share[there])
            result = np.where(like, 1 - (1 - share[back] * hit) * (1 - untraced * hit), 0.0)
            result[crossing] = 0.0
            return result

        return chance(0.0), chance(DEVIATIONS)

    def accounted(self, chance: Floats, symptom: Symptom) -> Indices:
        """Return so many troubled flows between each two places as `consequences` can produce.

        Of flows that are known to lose on the way there, only those of which a trace alone says so
        may have lost replies instead.
        """
        maybe = symptom.troubled & (chance > 0)
        if symptom.name != "late":
            maybe &= ~symptom.forward | self.traced_only | ~self._known_path
        there, _ = self._attached
        _, place = np.unique(there, return_inverse=True)
        most = np.ceil(np.bincount(place, np.where(symptom.judged, chance, 0.0)))
        flows = np.flatnonzero(maybe)
        flows = flows[np.lexsort((-chance[flows], place[flows]))]
        among = place[flows]
        rank = np.arange(len(flows)) - np.searchsorted(among, among)
        return np.sort(flows[rank < most[among]])

    def without_echoes(
        self, suspects: list[Suspect], symptom: Symptom, dead_share: float
    ) -> list[Suspect]:
        """Leave out what a bad way back makes look bad on the way there.

        That is a place that most of its flows vote for as `echoes` of those before it. But a link
        that is dead itself kills all of its flows, and these no more than the others.
        """
        kept: list[Suspect] = []
        echo = np.zeros(len(self._flows), bool)
        for suspect in suspects:
            if echo[suspect.hit].mean() > 0.5 and self._dead[suspect.flows].mean() < dead_share:
                continue
            kept.append(suspect)
            if symptom.name == "loss" and suspect.kind in ("link", "node"):
                echo |= self.echoes(suspect.kind, suspect.name, suspect.flows)
        return kept

    def echoes(self, kind: str, name: str, crossing: Indices) -> Mask:
        """Return the flows whose replies, and routers' answers, a bad link or node may have killed.

        Where replies are lost, so may be the ICMP that traces wait for: a trace then ends too early
        on flows between the same places, in the other direction. `crossing` are the flows that
        cross the place; those among them that died show what dies there: which classes and
        sizes, and what to whom, from which routers on. An answer that takes none of these ways is
        not missing on account of the place, and its flow is no echo.
        """
        echo = np.zeros(len(self._flows), bool)
        dead = crossing[self._dead[crossing] & self._known_path[crossing]]
        there, back = self._pairs if self._own(kind, name) else self._attached
        maybe = self.traced_only & np.isin(back, there[dead])
        maybe &= np.isin(self._kind, self._kind[dead])
        maybe[crossing] = False
        flows = np.flatnonzero(maybe)
        if not len(flows):
            return echo
        sender, receiver, number = self._nodes
        router, many = self._router, len(self._hosts.names) + len(number)
        # From which routers on, and to where, packets come to the place.
        position, owner = self._positions(dead)
        node = number[name] if kind == "node" else -1
        label = np.array([f"{a} -> {b}" == name for a, b in self._paths.links], bool)
        at_place = receiver == node if kind == "node" else label
        link = self._paths.link[position]
        last = np.full(len(self._flows), -1, np.int64)
        last[owner[at_place[link]]] = position[at_place[link]]
        before = position <= last[owner]
        ways = np.unique(
            sender[link[before]] * many + router[self._flows["destination"][owner[before]]]
        )
        # Which routers did not answer; the last link leads to no router.
        position, owner = self._positions(flows)
        depth = position - self._paths.start[owner]
        silent = (depth >= self._paths.answered[owner]) & (
            position < self._paths.start[owner + 1] - 1
        )
        asked = receiver[self._paths.link[position]] * many + router[self._flows["source"][owner]]
        echo[flows] = True
        echo[owner[silent & ~np.isin(asked, ways)]] = False
        return echo

    def one_sided(self, suspect: Suspect, dead_share: float) -> bool:
        """Return whether a place may as well be healthy, and the way back from it dead.

        That is so if most of its votes are `unproven`, unless it is dead itself: replies choose
        their own way, so those that die leave other flows of the place alive.
        """
        mostly = bool(self.unproven[suspect.hit].mean() > 0.5)
        return mostly and bool(self._dead[suspect.flows].mean() < dead_share)

    def _own(self, kind: str, name: str) -> bool:
        """Return whether a suspect is a host or a host's own link."""
        return kind == "host" or bool(set(self._hosts.names) & set(name.split(" -> ")))

    def _positions(self, flows: Indices) -> tuple[Indices, Indices]:
        """Return the positions in `Paths.link` of these flows, and the flow of each."""
        first, last = self._paths.start[flows], self._paths.start[flows + 1]
        count = last - first
        owner = np.repeat(flows, count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(first, count) + within, owner

    @cached_property
    def _kind(self) -> Indices:
        """The class, size and IP version of each flow as one number."""
        kind: Indices = self._flows["dscp"].astype(np.int64) << 24 | (
            self._flows["size"].astype(np.int64) << 8 | self._flows["family"]
        )
        return kind

    @cached_property
    def _pairs(self) -> tuple[Indices, Indices]:
        """The host pair of each flow as one number, there and back."""
        a, b = self._flows["source"].astype(np.int64), self._flows["destination"].astype(np.int64)
        many = len(self._hosts.names)
        return a * many + b, b * many + a

    @cached_property
    def traced_only(self) -> Mask:
        """Flows of which nothing but a trace says that they lose on the way there."""
        only: Mask = self._dead & (self._paths.answered >= 0) & (self._flows["lost_forward"] == 0)
        only[list(self._paths.refusals)] = False  # its router says so, too
        return only

    @cached_property
    def _nodes(self) -> tuple[Indices, Indices, dict[str, int]]:
        """The nodes that each link leaves and enters, by number, and the numbers of nodes.

        The numbers begin after those of the hosts.
        """
        hosts = len(self._hosts.names)
        names = sorted({node for link in self._paths.links for node in link})
        number = {name: hosts + n for n, name in enumerate(names)}
        sender = np.array([number[a] for a, _ in self._paths.links], np.int64)
        receiver = np.array([number[b] for _, b in self._paths.links], np.int64)
        return sender, receiver, number

    @cached_property
    def _router(self) -> Indices:
        """The router, by its number as a node, that each host is attached to.

        It is the one that the host's traced flows enter first or leave last; a host of which no
        flow was traced stands for itself.
        """
        sender, receiver, _ = self._nodes
        router = np.arange(len(self._hosts.names))
        traced = np.flatnonzero(self._known_path)
        if len(traced):
            first = self._paths.link[self._paths.start[traced]]
            last = self._paths.link[self._paths.start[traced + 1] - 1]
            router[self._flows["destination"][traced]] = sender[last]
            router[self._flows["source"][traced]] = receiver[first]
        return router

    @cached_property
    def unproven(self) -> Mask:
        """Flows of which only a trace says that they lose on the way there, and nobody could tell.

        Where no collector at the other end measures and traces the way back, replies and routers'
        answers that died on it look just like it.
        """
        there, back = self._attached
        unproven: Mask = self.traced_only & ~np.isin(back, there[self._known_path])
        return unproven

    @cached_property
    def _attached(self) -> tuple[Indices, Indices]:
        """The router pair of each flow as one number, there and back."""
        many = len(self._hosts.names) + len(self._nodes[2])
        a, b = self._router[self._flows["source"]], self._router[self._flows["destination"]]
        return a * many + b, b * many + a
