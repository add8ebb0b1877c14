"""The page in a real Chromium: what changes while somebody watches, and very large meshes."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from attrs import evolve
from browser_case import END_S, BrowserCase, LiveCase
from web_data import Fault, Fleet, big_fleet
from web_site import OUTPUT, Site, fill


class WatchTest(LiveCase):
    """What changes while somebody watches."""

    def headline(self, page: Any, text: str) -> None:
        """Wait until the headline says so."""
        self.until(
            page, "text => document.querySelector('#headline').textContent.includes(text)", arg=text
        )

    def change(self, *faults: Fault) -> None:
        """Let other faults be in force from now on."""
        hosts = self.fleet.hosts
        self.feed.fleet = Fleet(
            hosts=hosts, classes=("BE",), interval_s=1, probes=64, faults=faults
        )

    def test_faults_come_and_go(self) -> None:
        """A fault, a collector's death and their end are seen without touching anything."""
        page = self.show("range=15m")
        self.headline(page, "all is well")
        self.picture(page, "watch-1-well")
        self.change(Fault(kind="loss", src="iad1", dst="lax2", start_s=0, flows=16))
        self.headline(page, "1 pair loses")
        self.picture(page, "watch-2-loss")
        self.change(Fault(kind="silent", src="lax1", start_s=0))
        self.headline(page, "1 collector silent")
        self.assertEqual(self.table(page)["lax1", "iad1"], "no data")
        self.assertIn("lax1 is silent", page.locator("#sick").inner_text())
        self.picture(page, "watch-3-collector-died")
        self.change()
        self.headline(page, "all is well")

    def test_service_dies(self) -> None:
        """If the service itself dies the page says so, and shows its figures as old."""
        page = self.show("range=15m")
        self.headline(page, "all is well")
        assert self.site is not None
        self.site.kill()
        try:
            page.locator("#trouble").wait_for()
            self.assertIn("does not answer", page.locator("#trouble").inner_text())
            self.assertIn("stale", page.locator("body").get_attribute("class"))
            self.picture(page, "watch-4-service-died")
        finally:
            url = self.site.url
            self.site.config["listen"] = f"tcp:{urlsplit(url).port}:interface=127.0.0.1"
            self.site.start()
        self.until(page, "document.querySelector('#trouble').hidden")
        self.headline(page, "all is well")
        page.evaluate("performance.clearResourceTimings()")

    def test_service_hangs(self) -> None:
        """A service that never answers is known by its silence; nothing is said of now any more."""
        page = self.show("range=15m")
        self.headline(page, "all is well")
        assert self.site is not None
        self.site.signal(signal.SIGSTOP)
        try:
            self.headline(page, "not known since")
            self.until(page, "!document.querySelector('#trouble').hidden")
            self.assertIn("does not answer", page.locator("#trouble").inner_text())
            said = page.locator("#headline").inner_text()
            self.assertNotIn("all is well", said)
            self.assertNotIn("live", said)
            self.assertEqual(page.title(), "(?) LLAMA matrix")
            self.assertIn("stale", page.locator("body").get_attribute("class"))
            self.picture(page, "watch-5-service-hangs")
        finally:
            self.site.signal(signal.SIGCONT)
        self.headline(page, "all is well")
        self.assertEqual(page.title(), "LLAMA matrix")
        self.assertTrue(page.locator("#trouble").is_hidden())

    def test_failing_matrix(self) -> None:
        """A matrix that fails is asked for ever more seldom, and shown again once it is there."""
        page = self.show("range=15m")
        self.headline(page, "all is well")
        asked = {"status": 0, "matrix": 0}

        def failing(route: Any) -> None:
            name = urlsplit(route.request.url).path.rpartition("/")[2]
            asked[name] += 1
            if name == "status":
                route.continue_()
            else:
                route.fulfill(status=504, json={"error": "no answer within 20 s"})

        page.route("**/api/v1/status*", failing)
        page.route("**/api/v1/matrix*", failing)
        self.headline(page, "not known since")
        while asked["status"] < 12:
            page.wait_for_timeout(100)
        self.assertLess(asked["matrix"], 5)
        self.assertIn("no answer within 20 s", page.locator("#trouble").inner_text())
        page.unroute("**/api/v1/matrix*")
        self.headline(page, "all is well")
        pauses = page.evaluate(
            """async () => {
              const { Pause } = await import('/static/api.js');
              const pause = new Pause(5000, 60000), over = [pause.over];
              const long = [1, 2, 3, 4, 5, 6].map(() => pause.begin());
              over.push(pause.over, pause.end(), pause.over, pause.end());
              return { over, long };
            }"""
        )
        self.assertEqual(pauses["long"], [5000, 10000, 20000, 40000, 60000, 60000])
        self.assertEqual(pauses["over"], [True, False, True, True, False])

    def test_no_news(self) -> None:
        """The page's own clock tells when data are too old, though every answer is as before."""
        page = self.show("range=15m&src=iad1&dst=lax1")
        self.headline(page, "all is well")
        figures = page.locator("#drawer .now").first
        self.assertIn("ms", figures.inner_text())
        page.evaluate(
            """() => {
              const real = window.fetch, kept = new Map();
              window.fetch = async (url, how) => {
                const { pathname: path, searchParams } = new URL(url, location);
                const key = `${path} ${searchParams.get('src')} ${searchParams.get('step')}`;
                if (!kept.has(key)) kept.set(key, await (await real(url, how)).json());
                const said = { ...kept.get(key) };
                if (path.endsWith('/status')) said.now = Date.now() / 1000;
                return new Response(JSON.stringify(said));
              };
            }"""
        )
        self.headline(page, "not known since")
        self.assertIn("no new data since", page.locator("#trouble").inner_text())
        self.until(
            page, "document.querySelector('#drawer .now').textContent.includes('no data since')"
        )
        self.assertNotIn("ms", figures.inner_text())
        self.picture(page, "watch-6-no-news")
        self.assertEqual(page.title(), "(?) LLAMA matrix")


class MeanwhileTest(LiveCase):
    """What somebody is in the middle of outlasts new intervals, of which there is one a second."""

    #: What has the focus: where it leads to, or what it says.
    FOCUSED = "document.activeElement.getAttribute('href') ?? document.activeElement.textContent"

    @classmethod
    def make_site(cls) -> Site:
        """Return a site with a host that is down and two pairs that lose."""
        site = super().make_site()
        faults = (
            Fault(kind="loss", src="iad1", dst="lax2", start_s=0, flows=16),
            Fault(kind="loss", src="iad2", dst="lax2", start_s=0, flows=5),
            Fault(kind="down", dst="lax1", start_s=0),
        )
        cls.feed.fleet = cls.fleet = evolve(cls.fleet, faults=faults)
        return site

    def intervals(self, page: Any, number: int = 2) -> None:
        """Wait until so many new intervals were drawn."""
        newest = "document.querySelector('#headline .quiet').textContent"
        for _ in range(number):
            before = page.evaluate(newest)
            self.until(page, f"before => {newest} !== before", arg=before)
        self.drawn(page)

    def test_focus(self) -> None:
        """The focus stays on the link it is on: of a list, the table or the open pair."""
        page = self.show("range=15m&src=iad1&dst=lax2")
        page.locator("#worst a").nth(1).wait_for()
        page.locator("#drawer summary").nth(1).wait_for()
        page.locator("#as-table").click()
        for place in ("#sick a", "#worst li:nth-child(2) a", "#table tr:nth-child(2) td:nth-child(4) a",
                      "#drawer .way:nth-child(2) summary", "#drawer button"):  # fmt: skip
            page.locator(place).focus()
            before = page.evaluate(self.FOCUSED)
            self.intervals(page)
            self.assertEqual(page.evaluate(self.FOCUSED), before, place)

    def test_focus_goes_with_what_moves(self) -> None:
        """In a list whose order changes the focus goes with its pair."""
        page = self.show("range=15m")
        moved = page.locator("#worst a[href*='src=iad2']")
        moved.focus()
        before = page.evaluate(self.FOCUSED)
        self.assertEqual(page.evaluate("document.activeElement.closest('li').nextSibling"), None)
        self.feed.fleet = evolve(
            self.fleet,
            faults=(
                *self.fleet.faults,
                Fault(kind="reverse", src="iad2", dst="lax2", start_s=0, flows=32),
            ),
        )
        self.addCleanup(setattr, self.feed, "fleet", self.fleet)
        self.until(page, "document.querySelector('#worst a').href.includes('src=iad2')")
        self.assertEqual(page.evaluate(self.FOCUSED), before)

    def test_pressed(self) -> None:
        """A click counts even if an interval ends while the button is down."""
        page = self.show("range=15m")
        box = page.locator("#worst a").first.bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 8)
        page.mouse.down()
        self.intervals(page)
        page.mouse.up()
        self.wait_query(page, src="iad1", dst="lax2")

    def test_heard(self) -> None:
        """Who listens is told what is wrong when that changes, not the time with every interval."""
        page = self.show("range=15m")
        page.evaluate(
            "() => { window.told = []; new MutationObserver((changes) => { for (const { target } of"
            " changes) if (!(target.closest ? target : target.parentElement).closest('[aria-live=off]'))"
            " told.push(document.querySelector('#headline').textContent); }).observe("
            "document.querySelector('#headline'),"
            " { childList: true, subtree: true, characterData: true, attributes: true }); }"
        )
        self.intervals(page, 3)
        self.assertEqual(page.evaluate("told"), [])


class ManyTest(BrowserCase):
    """200 x 200 hosts, and a thousand folded."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a site over a full mesh of 200 hosts."""
        site = Site()
        cls.fleet = big_fleet(10, 20, END_S)
        fill(site.store, cls.fleet.points(END_S - 60, END_S))
        site.start()
        return site

    def test_all(self) -> None:
        """All 40,000 cells are drawn, zoomed and panned; how long it took is kept with the pictures."""
        page = self.show(f"at={END_S:.0f}&rows=*&cols=*", viewport={"width": 1600, "height": 1000})
        self.assertIn("2 pairs lose", page.locator("#headline").inner_text())
        self.assertIn("1 host down", page.locator("#headline").inner_text())
        first = float(page.locator("#stage").get_attribute("data-draw-ms"))
        self.picture(page, "many-all")
        # The table lists what is not fine rather than 40,000 cells.
        self.assertEqual(page.locator("#table tbody tr").count(), 2)
        frames = page.evaluate(
            """async () => {
              const stage = document.querySelector('#stage'), took = [];
              const frame = () => new Promise(requestAnimationFrame);
              for (let n = 0; n < 20; n += 1) {
                const box = stage.getBoundingClientRect();
                stage.dispatchEvent(new WheelEvent('wheel', { deltaY: n < 10 ? -120 : 0,
                  deltaX: n < 10 ? 0 : 30, clientX: box.x + 700, clientY: box.y + 400 }));
                await frame(); await frame();
                took.push(Number(stage.dataset.drawMs));
              }
              return took;
            }"""
        )
        self.picture(page, "many-zoomed")
        zoomed = json.loads(page.locator("#stage").get_attribute("data-geometry"))
        self.assertGreater(zoomed["cellW"], 12)
        OUTPUT.mkdir(exist_ok=True)
        (OUTPUT / "many-figures.txt").write_text(
            f"200 x 200: drawn in {first} ms; 10 zooms and 10 pans: at most {max(frames)} ms\n"
        )

    def test_names_of_low_groups(self) -> None:
        """Names of groups that are lower than a line of text do not run into each other."""
        page = self.show(f"at={END_S:.0f}&rows=*&cols=*", viewport={"width": 1280, "height": 700})
        page.evaluate(
            "() => { window.written = []; const { fillText } = CanvasRenderingContext2D.prototype;"
            " CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {"
            " if (this.textAlign === 'left' && text.startsWith('r')) written.push(y);"
            " fillText.call(this, text, x, y); }; }"
        )
        page.keyboard.press("0")
        self.until(page, "written.length > 10")
        heights = sorted(set(page.evaluate("written")))
        self.assertGreater(min(b - a for a, b in pairwise(heights)), 11)

    def test_folded(self) -> None:
        """By itself it opens no more groups than anyone can look at."""
        page = self.show(f"at={END_S:.0f}")
        self.assertEqual(len(self.table(page)), 100)
        self.assertIn("25 %", self.table(page)["ams", "lhr"])
        self.picture(page, "many-folded")
