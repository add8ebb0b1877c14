"""What the tests in a real Chromium have in common: a site, a page on it, and ways to look at it.

Screenshots go to test-output/, to be looked at.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

from twisted.trial.unittest import SynchronousTestCase
from web_data import NASTY_HOST, Fleet, standard_fleet
from web_site import OUTPUT, Chromium, Feed, Site, fill

#: The newest interval of the standard fleet; the page looks at this moment, not at now.
END_S = time.time() // 300 * 300

#: What Chromium says by itself: that an answer was an error, and how to read back pixels.
BROWSER_SAYS = ("Failed to load resource", "Canvas2D: Multiple readback")


class BrowserCase(SynchronousTestCase):
    """A page over a site that all tests of the class share, and that may be fed meanwhile."""

    site: Site | None = None
    feed: Any = None
    fleet: Fleet

    @classmethod
    def make_site(cls) -> Site:
        """Return a running site."""
        site = Site()
        cls.fleet = standard_fleet(END_S)
        fill(site.store, cls.fleet.points(END_S - 4200, END_S))
        site.start()
        return site

    @classmethod
    def tearDownClass(cls) -> None:
        """End the feed and the site."""
        if cls.feed is not None:
            cls.feed.stop()
            cls.feed = None
        if cls.site is not None:
            cls.site.stop()
            cls.site = None
        super().tearDownClass()

    def setUp(self) -> None:
        """Start the site, the first time."""
        if type(self).site is None:
            type(self).site = self.make_site()

    def show(self, query: str = f"at={END_S:.0f}&range=1h", **context: Any) -> Any:
        """Return the page at an address, once its matrix is drawn. Mistakes fail the test."""
        assert self.site is not None
        page = Chromium.page(**context)
        mistakes: list[str] = []
        origins: set[str] = set()
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.on(
            "console",
            lambda said: mistakes.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on("request", lambda request: origins.add(request.url.split("/")[2]))
        page.goto(f"{self.site.url}/?{query}")
        self.drawn(page)
        host = urlsplit(self.site.url).netloc

        def finish() -> None:
            page.context.close()
            ours = [each for each in mistakes if not each.startswith(BROWSER_SAYS)]
            self.assertEqual(ours, [])
            self.assertEqual(origins, {host})

        self.addCleanup(finish)
        return page

    def until(self, page: Any, condition: str, arg: object = None) -> None:
        """Wait until a JavaScript expression, or function of ``arg``, is true.

        Playwright's own way evaluates within the page, which the page's policy forbids.
        """
        give_up = time.monotonic() + 60
        while not page.evaluate(condition, arg):
            if time.monotonic() > give_up:
                self.fail(f"not within 60 s: {condition} {arg}")
            page.wait_for_timeout(50)

    def drawn(self, page: Any) -> None:
        """Wait until the page has drawn a matrix and asks for nothing."""
        self.until(
            page,
            "document.querySelector('#stage').dataset.geometry"
            " && !document.body.classList.contains('busy')",
        )

    def picture(self, page: Any, name: str) -> None:
        """Keep a screenshot."""
        OUTPUT.mkdir(exist_ok=True)
        page.screenshot(path=OUTPUT / f"{name}.png")

    def query(self, page: Any) -> dict[str, str]:
        """Return the parameters of the page's address."""
        return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}

    def wait_query(self, page: Any, **wanted: str | None) -> None:
        """Wait until the address says so."""
        self.until(
            page,
            "wanted => Object.entries(wanted).every(([name, value]) =>"
            " new URLSearchParams(location.search).get(name) === value)",
            arg=wanted,
        )
        self.drawn(page)

    def table(self, page: Any) -> dict[tuple[str, str], str]:
        """Return the matrix as the table behind the canvas tells it, by names of row and column."""
        rows = page.evaluate(
            "[...document.querySelectorAll('#table tr')].map((row) =>"
            " [...row.cells].map((cell) => cell.textContent))"
        )
        heads = [head.split(",")[0] for head in rows[0][1:]]
        if NASTY_HOST.split(",")[0] in heads:
            heads[heads.index(NASTY_HOST.split(",")[0])] = NASTY_HOST
        answer = {}
        for name, *cells in rows[1:]:
            plain = NASTY_HOST if name.startswith(NASTY_HOST) else name.split(",")[0]
            answer |= {(plain, head): text for head, text in zip(heads, cells, strict=True)}
        return answer

    def point(self, page: Any, row: int, col: int) -> dict[str, float]:
        """Return where on the stage the middle of a cell is."""
        at = json.loads(page.locator("#stage").get_attribute("data-geometry"))
        return {
            "x": at["x0"] + (col + 0.5) * at["cellW"],
            "y": at["y0"] + (row + 0.5) * at["cellH"],
        }

    def place(self, page: Any, src: str, dst: str) -> tuple[int, int]:
        """Return the row and column of two hosts."""
        names = page.evaluate(
            "[...document.querySelectorAll('#table tr')].map((row) => row.cells[0].textContent)"
        )
        heads = page.evaluate(
            "[...document.querySelectorAll('#table tr:first-child th')].map((h) => h.textContent)"
        )
        row = next(n for n, name in enumerate(names[1:]) if name.split(",")[0] == src)
        col = next(n for n, name in enumerate(heads[1:]) if name.split(",")[0] == dst)
        return row, col


class LiveCase(BrowserCase):
    """A page over four hosts that speak every second, and may go on to."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a site over a small fleet that speaks every second."""
        site = Site()
        hosts = {f"{dc}{n}": (dc, "r1") for dc in ("iad", "lax") for n in (1, 2)}
        cls.fleet = Fleet(hosts=hosts, classes=("BE",), interval_s=1, probes=64)
        now_s = time.time()
        fill(site.store, cls.fleet.points(now_s - 120, now_s))
        cls.feed = Feed(site.store, cls.fleet, now_s)
        site.start()
        return site
