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
from llama.pinpoint.symptoms import Symptom


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

    def consequences(self, suspect: Suspect, symptom: Symptom) -> Mask:
        """Return the flows whose trouble a located suspect accounts for without their own vote.

        Seen from the other end, its links carry the replies of the flows between the same places.
        Flows of unknown path may cross it if their like do. Places are hosts where the suspect is
        a host's own link, else the routers that hosts are attached to: replies hash their own way
        between these, so hosts with few flows may miss a link that their replies cross.
        """
        names = set(self._hosts.names)
        own = suspect.kind == "host" or bool(names & set(suspect.name.split(" -> ")))
        there, back = self._pairs if own else self._attached
        crossing = np.unique(there[suspect.flows])
        replies = np.isin(back, crossing)
        if symptom.name != "late":
            # What only a trace told may be of replies, too: see `without_echoes`.
            replies &= ~symptom.forward | self._traced_only
        consequences: Mask = replies | (np.isin(there, crossing) & ~self._known_path)
        consequences[suspect.flows] = True
        return consequences

    def without_echoes(
        self, suspects: list[Suspect], symptom: Symptom, dead_share: float
    ) -> list[Suspect]:
        """Leave out what a bad way back makes look bad on the way there.

        Where replies are lost, so may be the ICMP that traces wait for: a trace then ends too early
        on flows between the same places as the true cause, in the other direction. But a link
        that is dead itself kills all of its flows, and these no more than the others.
        """
        kept: list[Suspect] = []
        for suspect in suspects:
            before = [other.flows for other in kept]
            if symptom.name == "loss" and before:
                there, back = self._attached
                crossing = np.unique(there[np.concatenate(before)])
                echo = self._traced_only[suspect.hit] & np.isin(back[suspect.hit], crossing)
                judged = suspect.flows
                if echo.mean() > 0.5 and self._dead[judged].mean() < dead_share:
                    continue
            kept.append(suspect)
        return kept

    @cached_property
    def _pairs(self) -> tuple[Indices, Indices]:
        """The host pair of each flow as one number, there and back."""
        a, b = self._flows["source"].astype(np.int64), self._flows["destination"].astype(np.int64)
        many = len(self._hosts.names)
        return a * many + b, b * many + a

    @cached_property
    def _traced_only(self) -> Mask:
        """Flows of which nothing but a trace says that they lose on the way there."""
        only: Mask = self._dead & (self._paths.answered >= 0) & (self._flows["lost_forward"] == 0)
        return only

    @cached_property
    def _attached(self) -> tuple[Indices, Indices]:
        """The router pair of each flow as one number, there and back.

        A host's router is the one that its traced flows enter first or leave last; a host of
        which no flow was traced stands for itself.
        """
        hosts = len(self._hosts.names)
        nodes = {
            name: hosts + n for n, name in enumerate({n for a in self._paths.links for n in a})
        }
        router = np.arange(hosts)
        traced = np.flatnonzero(self._known_path)
        first = self._paths.link[self._paths.start[traced]]
        last = self._paths.link[self._paths.start[traced + 1] - 1]
        for end, links, side in (("destination", last, 0), ("source", first, 1)):
            number = np.array([nodes[link[side]] for link in self._paths.links], np.int64)
            router[self._flows[end][traced]] = number[links] if len(links) else router[:0]
        a, b = router[self._flows["source"]], router[self._flows["destination"]]
        many = hosts + len(nodes)
        return a * many + b, b * many + a
