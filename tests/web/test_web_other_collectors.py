"""What the page says of collectors that tell less than ours: those of dropbox/llama."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from web_site import fill
from web_store_case import END_S, whole_matrix

from llama.interfaces import Point
from llama.web.answers import Answers
from llama.web.store import Window
from llama.web.stores.sqlite import SQLiteStore

HOSTS = ("a", "b", "c")


def told(src: str, dst: str, time_s: float, **more: str) -> Point:
    """Return what a collector of dropbox/llama tells of a pair; 30 % are lost from a to b."""
    lost = 150.0 if (src, dst) == ("a", "b") else 0.0
    return Point(
        "raw_stats",
        {"src_hostname": src, "dst_hostname": dst, **more},
        {"rtt": 5.0, "loss": lost / 5, "lost": lost, "sent": 500.0},
        int(time_s * 1e9),
    )


def points() -> Iterator[Point]:
    """Yield ten minutes of three hosts."""
    for n in range(20):
        for src in HOSTS:
            for dst in HOSTS:
                if src != dst:
                    yield told(src, dst, END_S - 30 * n)


class OtherCollectorsTest(TestCase):
    """A store with their figures: no replies received, no directions."""

    def setUp(self) -> None:
        """Fill a store."""
        self.path = Path(self.mktemp())
        fill(self.path, points())
        store = SQLiteStore(reactor, path=str(self.path))
        self.addCleanup(store.stop)
        self.answers = Answers(reactor, store)

    async def matrix(self, metric: str, span_s: float = 0.0) -> Any:
        """Return a matrix of three rows and columns."""
        return await self.answers.matrix(whole_matrix(END_S, metric, span_s))

    async def test_health(self) -> None:
        """Nobody is down: replies are what was sent less what was lost."""
        for span_s in (0.0, 300.0):
            said = await self.matrix("loss", span_s)
            self.assertEqual(said["sick"], [])
            self.assertEqual(said["cells"]["value"], [None, 30.0, 0, 0, None, 0, 0, 0, None])
            self.assertEqual((said["summary"]["bad"], said["summary"]["healthy"]), (1, 5))

    async def test_rtt(self) -> None:
        """There is an RTT wherever there were replies."""
        said = await self.matrix("rtt_p50")
        self.assertEqual(said["cells"]["value"], [None, 5, 5, 5, None, 5, 5, 5, None])

    async def test_directions(self) -> None:
        """Directions are not known, which is not the same as nothing lost."""
        for metric in ("loss_forward", "loss_reverse"):
            said = await self.matrix(metric)
            self.assertEqual(set(said["cells"]["value"]), {None}, metric)
            self.assertEqual(said["cells"]["state"], [0, 2, 2, 2, 0, 2, 2, 2, 0], metric)

    async def test_history(self) -> None:
        """The history has replies, and null for directions."""
        said = await self.answers.history(Window(END_S - 300, END_S), 30.0, "a", "b", {})
        self.assertEqual(set(said["columns"]["received"]), {350.0})
        for name in ("lost_forward", "lost_reverse", "lost_unknown"):
            self.assertEqual(set(said["columns"][name]), {None}, name)

    async def test_history_beside_ours(self) -> None:
        """Beside a class whose directions are known, the loss is one in no known direction."""
        knows = {"sent": 500.0, "received": 500.0, "lost": 0.0, "lost_forward": 0.0,
                 "lost_reverse": 0.0, "lost_unknown": 0.0}  # fmt: skip
        tags = {"src_hostname": "a", "dst_hostname": "b", "class": "EF"}
        fill(self.path, [Point("raw_stats", tags, knows, int(END_S * 1e9))])
        said = await self.answers.history(Window(END_S - 60, END_S), 30.0, "a", "b", {})
        self.assertEqual(said["columns"]["lost_unknown"], [None, 150.0])
        self.assertEqual(said["columns"]["lost_forward"], [None, 0.0])
