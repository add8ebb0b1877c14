"""The page in a real Chromium: more hosts than can be drawn, which nothing groups."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlencode

from browser_case import BrowserCase
from web_site import Site, fill

from llama.interfaces import Point

END_S = time.time() // 300 * 300
HOSTS = 900


def points() -> Iterator[Point]:
    """Yield what two sources measured to hosts without tags: one loses on the way to h77."""
    for time_s in (END_S - 60, END_S - 30, END_S):
        for src in ("a", "b"):
            for n in range(HOSTS):
                lost = 5.0 if (src, n) == ("b", 77) else 0.0
                tags = {"src_hostname": src, "dst_hostname": f"h{n}.example.net", "class": "BE"}
                fields = {"sent": 500.0, "received": 500.0 - lost, "lost": lost, "loss": lost / 5}
                yield Point("raw_stats", tags, fields, int(time_s * 1e9))


class CrowdTest(BrowserCase):
    """A collector's nine hundred targets."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a running site."""
        site = Site()
        fill(site.store, points())
        site.start()
        return site

    def test_ranges(self) -> None:
        """All are there, in ranges by name that unfold; the worst pair is one step away."""
        page = self.show(f"at={END_S:.0f}&range=15m")
        self.assertIn("1 pair loses", page.locator("#headline").inner_text())
        cells = self.table(page)
        self.assertEqual(len(cells), 2 * 9)
        self.assertEqual(cells["b", "h0 … h99"], "1 % (worst of 100)")
        self.picture(page, "crowd")
        page.locator("#stage").focus()
        page.keyboard.press("n")
        page.keyboard.press("Enter")
        self.wait_query(page, cols="h0 … h99")
        self.assertEqual(self.table(page)["b", "h77.example.net"], "1 %")
        self.picture(page, "crowd-unfolded")
        page.go_back()
        self.wait_query(page, cols=None)

    def test_more_than_can_be_drawn(self) -> None:
        """Who unfolds one range after the other sees the last, not that there is no room."""
        ranges = [f"h{100 * n} … h{100 * n + 99}" for n in range(3)]
        query = urlencode({"at": int(END_S), "range": "15m", "cols": ",".join(ranges)})
        page = self.show(query)
        self.assertEqual(len(self.table(page)), 2 * (3 * 100 + 6))
        column = 3 * 100 + 2
        page.locator("#stage").click(position=self.point(page, 1, column))
        self.wait_query(page, cols="h500 … h599")
        self.assertTrue(page.locator("#trouble").is_hidden())
