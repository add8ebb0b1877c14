"""The page in a real Chromium: what an engineer sees, chooses and follows.

Screenshots go to test-output/, to be looked at.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from twisted.trial.unittest import SynchronousTestCase
from web_data import NASTY_HOST, Fault, Fleet, big_fleet, standard_fleet
from web_site import OUTPUT, Chromium, Feed, Site, fill

#: The newest interval of the standard fleet; the page looks at this moment, not at now.
END_S = time.time() // 300 * 300

#: What Chromium says by itself: that an answer was an error, and how to read back pixels.
BROWSER_SAYS = ("Failed to load resource", "Canvas2D: Multiple readback")


class BrowserCase(SynchronousTestCase):
    """A page over a site that all tests of the class share."""

    site: Site | None = None
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
        """End the site."""
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


class LookTest(BrowserCase):
    """What the standard fleet looks like at one moment."""

    def test_headline(self) -> None:
        """One line says what is wrong, in the order of what to care about."""
        page = self.show()
        said = page.locator("#headline").inner_text()
        for part in ("2 pairs lose", "1 host down", "1 source blind", "1 collector silent",
                     "1 pair without data", "of 71 pairs healthy"):  # fmt: skip
            self.assertIn(part, said)
        self.assertIn("(5) LLAMA", page.title())
        self.picture(page, "matrix-light")

    def test_dark(self) -> None:
        """In the dark the same page; the choice is kept."""
        page = self.show(color_scheme="dark")
        self.assertEqual(page.locator("html").get_attribute("data-theme"), "dark")
        self.picture(page, "matrix-dark")
        page.keyboard.press("d")
        self.assertEqual(page.locator("html").get_attribute("data-theme"), "light")
        page.reload()
        self.assertEqual(page.locator("html").get_attribute("data-theme"), "light")

    def test_lists(self) -> None:
        """Beside the matrix: no incidents are looked for; sick hosts once; the worst pairs first."""
        page = self.show()
        self.assertIn("no pinpointing configured", page.locator("#incidents").inner_text())
        sick = page.locator("#sick").inner_text()
        for part in ("fra2 is down", "lax2 reaches nobody", "fra2 is silent"):
            self.assertIn(part, sick)
        worst = page.locator("#worst li").all_inner_texts()
        self.assertEqual(len(worst), 2)
        self.assertIn("12.5 %", worst[0])
        self.assertIn("lax1 → iad2", worst[1])
        self.assertIn("3 of 64 flows", worst[1])

    def test_table(self) -> None:
        """The table behind the canvas has every cell, with units, and says what has no data."""
        page = self.show()
        cells = self.table(page)
        self.assertEqual(cells["lax1", "iad2"], "4.69 % (3 of 64 flows)")
        self.assertEqual(cells["lax3", "iad1"], "no data")
        self.assertEqual(cells["iad1", "iad10"], "")  # not probed
        self.assertEqual(cells["iad1", "iad2"], "0 %")
        self.assertIn("suspect", cells["iad10", "iad2"])
        self.assertEqual(cells[NASTY_HOST, "iad1"], "12.5 % (8 of 64 flows)")
        page.keyboard.press("t")
        self.assertTrue(page.locator("#table table").is_visible())
        self.assertFalse(page.locator("#stage").is_visible())
        self.picture(page, "matrix-table")

    def test_shapes(self) -> None:
        """No data is hatched; a lost, a healthy, a dead and an empty cell all look different."""
        page = self.show()
        pictures = {}
        for name, src, dst in (("lost", "lax1", "iad2"), ("none", "lax3", "iad1"),
                               ("fine", "iad1", "iad2"), ("dead", "iad1", "fra2"),
                               ("unasked", "iad1", "iad10"), ("doubt", "iad10", "iad2")):  # fmt: skip
            at = self.point(page, *self.place(page, src, dst))
            pictures[name] = page.evaluate(
                "({x, y}) => { const canvas = document.querySelector('#cells');"
                " return [...canvas.getContext('2d').getImageData(x - 16, y - 16, 48, 32).data]"
                ".join() }",
                at,
            )
        self.assertEqual(len(set(pictures.values())), len(pictures))

    def test_colour_blind(self) -> None:
        """Pictures as those see them who do not see colours."""
        page = self.show()
        session = page.context.new_cdp_session(page)
        for kind in ("deuteranopia", "achromatopsia"):
            session.send("Emulation.setEmulatedVisionDeficiency", {"type": kind})
            self.picture(page, f"matrix-{kind}")

    def test_narrow(self) -> None:
        """On a small screen everything is still there."""
        page = self.show(viewport={"width": 760, "height": 1000})
        self.assertTrue(page.locator("#stage").is_visible())
        self.picture(page, "matrix-narrow")


class ChooseTest(BrowserCase):
    """Folding, switching, opening, going through time; each of it a link."""

    def test_metrics(self) -> None:
        """Every metric can be chosen, and says its figures with their unit."""
        page = self.show()
        wanted = {
            "loss_forward": (("lax1", "iad2"), "4.69 %"),
            "loss_reverse": ((NASTY_HOST, "iad1"), "12.5 %"),
            "rtt_p50": (("iad1", "iad2"), "ms"),
            "rtt_p90": (("iad1", "iad2"), "ms"),
            "rtt_p99": (("iad1", "iad2"), "ms"),
            "rtt_baseline": (("iad2", "lax3"), "2."),
            "jitter": (("iad1", "iad2"), "ms"),
            "remarked": (("iad1", "fra1"), "100 %"),
        }
        for name, (pair, text) in wanted.items():
            page.select_option("#metric", name)
            self.wait_query(page, metric=name)
            self.assertIn(text, self.table(page)[pair], name)
            self.picture(page, f"metric-{name}")
        page.select_option("#metric", "rtt_p99")
        self.wait_query(page, metric="rtt_p99")
        self.assertTrue(self.table(page)["iad1", "fra2"].startswith("—"))  # nothing came back

    def test_class(self) -> None:
        """One class alone: the other's trouble is not in it."""
        page = self.show(f"at={END_S:.0f}&metric=remarked")
        page.select_option("#class", "BE")
        self.wait_query(page, **{"class": "BE"})
        self.assertEqual(self.table(page)["iad1", "fra1"], "0 %")
        page.go_back()
        self.wait_query(page, **{"class": None})
        self.assertIn("100 %", self.table(page)["iad1", "fra1"])

    def test_fold(self) -> None:
        """A group closes by its header and opens by its cell; a closed cell has its worst."""
        page = self.show(f"at={END_S:.0f}&group=datacenter")
        self.assertIn(("lax1", "iad2"), self.table(page))
        at = json.loads(page.locator("#stage").get_attribute("data-geometry"))
        # The header of iad, left of its rows; it stands fourth, after three hosts of fra.
        page.mouse.move(0, 0)
        page.locator("#stage").click(position={"x": 12, "y": at["y0"] + 4.5 * at["cellH"]})
        self.until(page, "new URLSearchParams(location.search).has('rows')")
        self.drawn(page)
        self.assertIn(("iad", "lax1"), self.table(page))
        self.picture(page, "fold-one")
        page.goto(page.url.split("?")[0] + f"?at={END_S:.0f}&group=datacenter&rows=none&cols=none")
        self.drawn(page)
        cells = self.table(page)
        self.assertEqual(len(cells), 9)
        self.assertEqual(cells["lax", "iad"], "4.69 % (3 of 64 flows, worst of 6)")
        self.assertEqual(cells["iad", "fra"], "0 % (worst of 6)")  # the dead host does not count
        self.picture(page, "fold-all")
        page.locator("#stage").click(position=self.point(page, 2, 1))
        self.until(page, "new URLSearchParams(location.search).get('cols') !== 'none'")
        self.drawn(page)
        self.assertIn(("lax1", "iad2"), self.table(page))
        self.assertIn(("fra", "fra"), self.table(page))

    def test_open_cell(self) -> None:
        """A click opens a pair: both directions, history, flows, heat map, tags."""
        page = self.show()
        page.locator("#stage").click(position=self.point(page, *self.place(page, "lax1", "iad2")))
        self.wait_query(page, src="lax1", dst="iad2")
        drawer = page.locator("#drawer")
        drawer.locator(".way").nth(1).wait_for()
        said = drawer.inner_text()
        for part in ("lax1 → iad2", "iad2 → lax1", "4.69 %", "3 of 64 flows lose", "0 of 64",
                     "loss, by direction", "RTT p50", "RTT of all replies"):  # fmt: skip
            self.assertIn(part, said)
        drawer.locator("summary").first.click()
        self.assertIn("src_datacenter", drawer.inner_text())
        self.assertIn("10.0.0.4", drawer.inner_text())
        charts = drawer.locator("canvas")
        self.assertEqual(charts.count(), 6)
        charts.first.hover(position={"x": 250, "y": 40})
        self.assertIn("fwd", drawer.locator("output").first.inner_text())
        self.picture(page, "drawer")
        page.keyboard.press("Escape")
        self.wait_query(page, src=None)
        self.assertFalse(drawer.is_visible())

    def test_scrub(self) -> None:
        """A click in the past shows the past: there the episode that is over, not today's fault."""
        page = self.show("range=1h&class=EF", viewport={"width": 1440, "height": 900})
        page.locator("#live").wait_for()
        self.until(page, "document.querySelector('#scrubber').ariaValueText === 'live'")
        box = page.locator("#scrubber").bounding_box()
        ago_s = time.time() - (END_S - 2000)
        x = box["width"] * (1 - ago_s / 3600)
        page.locator("#scrubber").click(position={"x": x, "y": 20})
        self.until(page, "new URLSearchParams(location.search).has('at')")
        self.drawn(page)
        cells = self.table(page)
        self.assertIn("50 %", cells["iad1", "lax1"])
        self.assertEqual(cells["lax1", "iad2"], "0 %")
        self.assertIn("○ live", page.locator("#live").inner_text())
        self.picture(page, "scrubbed")
        before = int(self.query(page)["at"])
        page.locator("#scrubber").focus()
        page.keyboard.press("ArrowLeft")
        self.until(
            page,
            "before => Number(new URLSearchParams(location.search).get('at')) < before",
            arg=before,
        )
        page.keyboard.press("l")
        self.wait_query(page, at=None)

    def test_zoom_time(self) -> None:
        """A stretch of history that is dragged over fills the strip; a double click undoes it."""
        page = self.show("range=1h")
        box = page.locator("#scrubber").bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 500, box["y"] + 20, steps=4)
        page.mouse.up()
        self.until(page, "new URLSearchParams(location.search).has('from')")
        said = self.query(page)
        self.assertTrue(600 < float(said["to"]) - float(said["from"]) < 1500)
        page.locator("#scrubber").dblclick(position={"x": 300, "y": 20})
        self.until(page, "!new URLSearchParams(location.search).has('from')")

    def test_deep_link(self) -> None:
        """An address shows a colleague the same: metric, class, groups, time, the open cell."""
        query = (
            f"metric=loss_reverse&class=BE&group=datacenter&rows=fra&cols=iad&at={END_S - 60:.0f}"
            f"&range=1h&src={quote(NASTY_HOST)}&dst=iad1"
        )
        page = self.show(query)
        cells = self.table(page)
        self.assertEqual(cells[NASTY_HOST, "iad1"], "12.5 % (8 of 64 flows)")
        self.assertIn(("lax", "fra"), cells)
        self.assertEqual(page.locator("#metric").input_value(), "loss_reverse")
        self.assertEqual(page.locator("#class").input_value(), "BE")
        page.locator("#drawer .way").nth(1).wait_for()
        self.assertIn(NASTY_HOST, page.locator("#drawer").inner_text())
        again = self.show(urlsplit(page.url).query)
        self.assertEqual(self.table(again), cells)

    def test_keyboard(self) -> None:
        """Without a mouse: to the next trouble, into it, out again; said to whoever listens."""
        page = self.show()
        page.locator("#stage").focus()
        page.keyboard.press("n")
        self.assertIn(f"{NASTY_HOST} → iad1", page.locator("#spoken").inner_text())
        self.assertIn("8 of 64 flows lose", page.locator("#spoken").inner_text())
        page.keyboard.press("n")
        self.assertIn("lax1 → iad2", page.locator("#spoken").inner_text())
        page.keyboard.press("Enter")
        self.wait_query(page, src="lax1", dst="iad2")
        page.keyboard.press("Escape")
        self.wait_query(page, src=None)
        page.keyboard.press("ArrowRight")
        self.assertIn("lax1 → iad10", page.locator("#spoken").inner_text())
        page.keyboard.press("Backspace")
        self.until(page, "new URLSearchParams(location.search).has('rows')")
        page.keyboard.press("?")
        self.assertTrue(page.locator("#keys").is_visible())
        self.picture(page, "keys")

    def test_hover(self) -> None:
        """Under the pointer a cell says what it is, a header what is wrong with its host."""
        page = self.show()
        page.locator("#stage").hover(position=self.point(page, *self.place(page, "lax1", "iad2")))
        tip = page.locator("#tip").inner_text()
        self.assertIn("loss 4.69 %", tip)
        self.assertIn("3 of 64 flows lose", tip)
        at = json.loads(page.locator("#stage").get_attribute("data-geometry"))
        _, col = self.place(page, "iad1", "fra2")
        page.locator("#stage").hover(
            position={"x": at["x0"] + (col + 0.5) * at["cellW"], "y": at["top"] - 20}
        )
        self.assertIn("host down: no source reaches it", page.locator("#tip").inner_text())


class WatchTest(BrowserCase):
    """What changes while somebody watches."""

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

    @classmethod
    def tearDownClass(cls) -> None:
        """End the feed and the site."""
        if cls.site is not None:
            cls.feed.stop()
        super().tearDownClass()

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

    def test_folded(self) -> None:
        """By itself it opens no more groups than anyone can look at."""
        page = self.show(f"at={END_S:.0f}")
        self.assertEqual(len(self.table(page)), 100)
        self.assertIn("25 %", self.table(page)["ams", "lhr"])
        self.picture(page, "many-folded")
