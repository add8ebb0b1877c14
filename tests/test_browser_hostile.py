"""The page in a real Chromium: a name that one collector gives keeps nobody from the rest."""

from __future__ import annotations

import time

from browser_case import BrowserCase
from web_data import Fleet
from web_site import Site, fill

END_S = time.time() // 300 * 300
#: More digits than Python reads as a number, and more letters than a canvas measures soon.
LONG = "9" * 30_000


class NamesTest(BrowserCase):
    """Two hosts with names that nobody would give, beside others."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a running site."""
        site = Site()
        hosts = {"a": ("x", "r1"), "b": ("x", "r2"), LONG: (LONG, "r1"), "e" + LONG: ("y", LONG)}
        fill(site.store, Fleet(hosts=hosts, classes=("BE",)).points(END_S - 600, END_S))
        site.start()
        return site

    def test_long_names(self) -> None:
        """Names and tags as long as one likes are drawn as far as there is room, and at once."""
        page = self.show(f"at={END_S:.0f}&range=15m")
        self.assertIn("all is well", page.locator("#headline").inner_text())
        self.assertLess(float(page.locator("#stage").get_attribute("data-draw-ms")), 1000)
        self.picture(page, "hostile-names")
