"""The page in a real Chromium: devices that sleep, clocks that differ, pages open for weeks."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from browser_case import LiveCase
from web_data import Fleet

#: Puts the page's time of day on by ``ahead`` seconds; at once by ``sleep`` once an answer about the
#: service's state has come, before the page reads it. Notes what the page complains of.
CLOCK = """() => {
  const real = Date.now, fetch = window.fetch;
  Object.assign(window, { ahead: 0, sleep: 0, slept: 0, told: [] });
  Date.now = () => real() + 1000 * window.ahead;
  window.fetch = async (...asked) => {
    const answer = await fetch(...asked);
    if (!String(asked[0]).includes("/status")) return answer;
    const said = await answer.json();
    said.now += window.slept; // the service slept, too, or there is none
    if (window.sleep) {
      window.ahead = window.slept = window.sleep;
      window.sleep = 0;
    }
    return new Response(JSON.stringify(said));
  };
  const trouble = document.querySelector("#trouble");
  new MutationObserver(() => window.told.push(trouble.textContent)).observe(trouble, { childList: true });
}"""


class ClockTest(LiveCase):
    """Four hosts that speak every second."""

    def watched(self) -> Any:
        """Return a page whose clock can be put on."""
        page = self.show("range=15m")
        page.evaluate(CLOCK)
        return page

    def trouble(self, page: Any, text: str) -> None:
        """Wait until the page says so, or nothing for no text."""
        self.until(
            page,
            "text => { const said = document.querySelector('#trouble');"
            " return text ? said.textContent.includes(text) : said.hidden; }",
            arg=text,
        )

    def test_clocks_differ(self) -> None:
        """By how much they do is told; a page whose data go on is live by the service's clock."""
        page = self.watched()
        for ahead_s, said in ((3600, "60 min behind"), (-86400, "24 h ahead of")):
            page.evaluate(f"window.ahead = {ahead_s}")
            self.trouble(page, f"the clock of llama-web is {said} ")
            self.well(page)
            self.assertFalse(page.title().startswith("(?)"))
            self.picture(page, f"clock-{said.split()[-1]}")
        page.evaluate("window.ahead = 30")
        self.trouble(page, "")
        self.well(page)

    def test_stands_still(self) -> None:
        """What always gives the same answer, as a cache may, is not the service as it is now."""
        page = self.watched()
        kept: dict[str, Any] = {}

        def keep(route: Any) -> None:
            path = urlsplit(route.request.url).path
            if path not in kept:
                kept[path] = route.fetch().json()
            route.fulfill(json=kept[path])

        page.route("**/api/v1/*", keep)
        self.trouble(page, "no new data since")
        self.assertNotIn("all is well", page.locator("#headline").inner_text())
        page.unroute("**/api/v1/*")
        self.trouble(page, "")
        self.well(page)

    def well(self, page: Any) -> None:
        """Wait until the page says that all is."""
        self.until(page, "document.querySelector('#headline').textContent.includes('all is well')")

    def test_sleep(self) -> None:
        """An answer from before this device slept does not tell what time it is."""
        page = self.watched()
        page.evaluate("window.sleep = 3600")
        self.trouble(page, "no new data since")
        self.assertNotIn("all is well", page.locator("#headline").inner_text())
        self.assertNotIn("clock", "".join(page.evaluate("window.told")))

    def test_new_tags(self) -> None:
        """A page that stays open learns of a class that was not there when it was opened."""
        page = self.watched()
        more = ("BE", "EF")
        self.feed.fleet = Fleet(hosts=self.fleet.hosts, classes=more, interval_s=1, probes=64)
        self.until(
            page,
            "fetch('/api/v1/dimensions').then((said) => said.json())"
            ".then((said) => said.classes.includes('EF'))",
        )
        self.assertNotIn("EF", page.locator("#class").inner_text())
        page.evaluate("window.ahead = window.slept = 301")
        self.until(page, "document.querySelector('#class').textContent.includes('EF')")

    def test_nothing_is_kept(self) -> None:
        """A browser that lets no page keep anything shows this one all the same, dark as well."""
        page = self.show("range=15m")
        page.add_init_script(
            "Object.defineProperty(window, 'localStorage',"
            " { get() { throw new DOMException('denied', 'SecurityError'); } })"
        )
        page.reload()
        self.until(page, "document.querySelector('#headline').textContent.includes('all is well')")
        page.locator("#theme").click()
        self.assertEqual(page.evaluate("document.documentElement.dataset.theme"), "dark")

    def test_zone(self) -> None:
        """The page says by which zone its times are, the one that held at the time that is shown."""
        for name, summer, winter in (
            ("UTC", "UTC", "UTC"),
            ("Asia/Kolkata", "UTC+5:30", "UTC+5:30"),
            ("America/New_York", "UTC−4", "UTC−5"),  # noqa: RUF001  a minus
        ):
            for at_s, zone in ((1751328000, summer), (1767225600, winter)):
                page = self.show(f"at={at_s}", timezone_id=name)
                self.assertTrue(page.locator("#moment").inner_text().endswith(f" · {zone}"))
