"""The page in a real Chromium: what an engineer sees and chooses."""

from __future__ import annotations

import json
import time
from itertools import combinations
from typing import Any
from urllib.parse import quote, urlsplit

from browser_case import END_S, BrowserCase
from web_data import NASTY_HOST


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#rrggbb`` (WCAG 2)."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    """Return the contrast of two luminances, 1 to 21 (WCAG 2)."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


class LookTest(BrowserCase):
    """What the standard fleet looks like at one moment."""

    def test_headline(self) -> None:
        """One line says what is wrong, in the order of what to care about."""
        page = self.show()
        said = page.locator("#headline").inner_text()
        for part in ("2 pairs lose", "1 host down", "1 source blind", "1 collector silent",
                     "1 pair without data", "of 71 pairs healthy"):  # fmt: skip
            self.assertIn(part, said)
        self.assertIn("(6) LLAMA", page.title())
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
        page.locator("#incidents").get_by_text("no pinpointing configured").wait_for()
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
        """Who sees no colours tells all signs apart, by how light they are and by their shapes."""
        for scheme in ("light", "dark"):
            page = self.show(color_scheme=scheme)
            signs = page.evaluate(
                "[...document.querySelectorAll('#legend canvas')].map((sign) =>"
                " [...sign.getContext('2d').getImageData(0, 0, sign.width, sign.height).data])"
            )
            names = page.locator("#legend span").all_inner_texts()
            light = [
                [
                    luminance(f"#{red:02x}{green:02x}{blue:02x}")
                    for red, green, blue in zip(sign[::4], sign[1::4], sign[2::4], strict=True)
                ]
                for sign in signs
            ]
            for one, other in combinations(range(len(signs)), 2):
                seen = sum(
                    contrast(mine, its) > 1.25
                    for mine, its in zip(light[one], light[other], strict=True)
                )
                self.assertGreaterEqual(seen, 7, (scheme, names[one], names[other]))  # of 196
        session = page.context.new_cdp_session(page)
        session.send("Emulation.setEmulatedVisionDeficiency", {"type": "achromatopsia"})
        self.picture(page, "matrix-achromatopsia")

    def test_contrast(self) -> None:
        """Figures can be read on every level, and no level is lost in the ground of the cells."""
        for scheme in ("light", "dark"):
            page = self.show(color_scheme=scheme)
            names = ["cell", *(f"{kind}{n}" for kind in ("bad", "onbad") for n in range(1, 6)),
                     *(f"{kind}{n}" for kind in ("size", "onsize") for n in range(6))]  # fmt: skip
            colours = page.evaluate(
                "(names) => { const pen = document.createElement('canvas').getContext('2d');"
                " const style = getComputedStyle(document.documentElement);"
                " return names.map((name) => { pen.fillStyle = style.getPropertyValue('--' + name);"
                " return pen.fillStyle; }); }",
                names,
            )
            light = {name: luminance(colour) for name, colour in zip(names, colours, strict=True)}
            for kind, levels in (("bad", range(1, 6)), ("size", range(6))):
                for n in levels:
                    text = contrast(light[f"on{kind}{n}"], light[f"{kind}{n}"])
                    self.assertGreaterEqual(text, 4.5, (scheme, kind, n))
            seen = [contrast(light[f"bad{n}"], light["cell"]) for n in range(1, 6)]
            self.assertGreater(seen[0], 1.25, scheme)
            self.assertGreater(seen[2], 2.75, scheme)

    def test_low(self) -> None:
        """On a telephone's side, or much enlarged, the matrix has room, and a finger scrolls past it."""
        for width, height in ((844, 390), (640, 400), (320, 568)):
            page = self.show(viewport={"width": width, "height": height})
            at = json.loads(page.locator("#stage").get_attribute("data-geometry"))
            self.assertGreaterEqual(at["cellH"], 7, (width, height))
            self.assertGreater(
                page.evaluate("document.documentElement.scrollHeight"),
                1.2 * height,
                (width, height),
            )
            touch = "document.querySelector('#stage').style.touchAction"
            self.assertEqual(page.evaluate(touch), "pan-y")
            self.picture(page, f"matrix-low-{width}")
        page.keyboard.press("n")
        for _ in range(4):
            page.keyboard.press("+")
        self.until(page, f"{touch} === 'none'")

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
        self.assertEqual(cells["lax", "iad"], "4.69 % (3 of 64 flows, worst of 6, 1 without data)")
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
        for part in ("lax1 → iad2", "iad2 → lax1", "4.69 %", "0 of 128 flows lose",
                     "6 of 128 flows lose probes: BE 3 of 64, EF 3 of 64", "loss, by direction",
                     "RTT p50", "RTT of all replies"):  # fmt: skip
            self.assertIn(part, said)
        drawer.locator("summary").first.click()
        self.assertIn("src_datacenter", drawer.inner_text())
        self.assertIn("10.0.0.4", drawer.inner_text())
        charts = drawer.locator("canvas")
        self.assertEqual(charts.count(), 6)
        charts.first.hover(position={"x": 120, "y": 40})
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
        self.until(page, "document.querySelector('#scrubber').ariaValueText === 'live'")
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
        self.until(page, "document.querySelector('#metric').options.length")  # asked for beside it
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

    def test_keyboard_at_once(self) -> None:
        """The keys work as soon as the page is there, whatever has not been clicked."""
        page = self.show()
        page.keyboard.press("n")
        self.assertNotEqual(page.locator("#spoken").inner_text(), "")
        page.keyboard.press("Enter")
        self.until(page, "new URLSearchParams(location.search).has('src')")

    def focused(self, page: Any) -> str:
        """Return what has the focus: an id, or nothing where the page itself has it."""
        return str(page.evaluate("document.activeElement.id"))

    def test_keys_without_a_cursor(self) -> None:
        """Before a cell has a cursor nothing is opened or folded around it."""
        page = self.show()
        before = page.url
        for key in ("Backspace", "Enter"):
            page.keyboard.press(key)
            self.assertEqual((page.url, self.focused(page)), (before, ""), key)
        page.keyboard.press("n")
        self.assertEqual(self.focused(page), "stage")
        page.keyboard.press("Backspace")
        self.until(page, "new URLSearchParams(location.search).has('rows')")

    def test_keys_of_the_browser(self) -> None:
        """The browser's own keys stay its own: they zoom the page, and go back in it."""
        page = self.show()
        for key in ("Control+0", "Control+-", "Control++", "Alt+n", "Meta+p"):
            page.keyboard.press(key)
            self.assertEqual(self.focused(page), "", key)

    def test_arrows_scroll_what_is_read(self) -> None:
        """After a click into the open pair arrows scroll it, elsewhere they are the matrix's."""
        page = self.show(
            f"at={END_S:.0f}&range=1h&src=lax1&dst=iad2", viewport={"width": 1280, "height": 600}
        )
        page.locator("#drawer .way h3").first.click()
        page.keyboard.press("ArrowDown")
        self.until(page, "document.querySelector('#drawer').scrollTop > 0")
        self.assertEqual(self.focused(page), "")
        before = page.url
        for key in ("Backspace", "Enter"):  # whatever cell was chosen last
            page.keyboard.press(key)
        self.assertEqual((page.url, self.focused(page)), (before, ""))
        page.evaluate("document.querySelector('#side').style.overflow = 'visible'")
        page.evaluate("document.querySelector('#side').style.height = 'max-content'")
        page.locator("#worst-title").click()  # nothing to scroll there
        page.keyboard.press("ArrowDown")
        self.assertEqual(self.focused(page), "stage")

    def test_arrows_after_what_was_read(self) -> None:
        """A pair that was read and is closed holds no keys back."""
        page = self.show()
        opened = page.url
        page.evaluate("document.querySelector('#worst a').click()")
        page.locator("#drawer .way h3").first.click()
        page.go_back()
        self.until(page, "document.querySelector('#drawer').hidden")
        self.assertEqual((page.url, self.focused(page)), (opened, ""))
        page.keyboard.press("ArrowDown")
        self.assertEqual(self.focused(page), "stage")

    def test_keys_do_not_scroll_the_page(self) -> None:
        """Where the pair stands below the matrix, a key of the matrix leaves it in sight."""
        page = self.show(
            f"at={END_S:.0f}&range=1h&src=lax1&dst=iad2", viewport={"width": 420, "height": 600}
        )
        page.locator("#drawer .way .strip").first.wait_for()
        page.evaluate("document.querySelector('main').scrollTo(0, 1e6)")
        before = page.evaluate("document.querySelector('main').scrollTop")
        page.keyboard.press("n")
        self.assertEqual(self.focused(page), "stage")
        self.assertGreater(before, 0)
        self.assertEqual(page.evaluate("document.querySelector('main').scrollTop"), before)

    def test_nearly_all(self) -> None:
        """What is not quite everything is not written as 100 %; of other units nothing is taken."""
        page = self.show()
        written = page.evaluate(
            "async () => { const { figure } = await import('/static/text.js');"
            " const { brief } = await import('/static/palette.js');"
            " return ['%', 'ms'].map((unit) => [99.4, 99.6, 99.97, 100, 100.4].map((n) =>"
            " [figure(n, unit), brief(n, unit)])); }"
        )
        self.assertEqual(
            written,
            [
                [["99.4 %", "99"], ["99.6 %", "99.6"], ["99.9 %", "99.9"], ["100 %", "100"],
                 ["100.4 %", "100"]],
                [["99.4 ms", "99"], ["99.6 ms", "100"], ["100 ms", "100"], ["100 ms", "100"],
                 ["100.4 ms", "100"]],
            ],
        )  # fmt: skip

    def test_two_ways_beside_each_other(self) -> None:
        """However many flows there are, in a narrow window neither direction covers the other."""
        page = self.show(
            f"at={END_S:.0f}&range=1h&src=lax1&dst=iad2", viewport={"width": 1100, "height": 700}
        )
        page.locator("#drawer .way .strip").nth(1).wait_for()
        ways = "[...document.querySelectorAll('#drawer .way')]"
        self.until(page, f"{ways}.every((way) => way.scrollWidth <= way.clientWidth)")
        shares = page.evaluate(
            "[...document.querySelectorAll('#drawer .strip')].map((strip) =>"
            " strip.lastElementChild.getBoundingClientRect().right"
            " - strip.getBoundingClientRect().right)"
        )
        self.assertTrue(all(beyond < 0.5 for beyond in shares), shares)
        self.picture(page, "narrow-pair")

    def test_chosen_on_a_telephone(self) -> None:
        """Where the pair stands below the matrix, choosing one brings it into sight."""
        page = self.show(viewport={"width": 420, "height": 800})
        page.locator("#stage").click(position=self.point(page, *self.place(page, "lax1", "iad2")))
        page.locator("#drawer .way .strip").first.wait_for()
        self.until(page, "document.querySelector('#drawer').getBoundingClientRect().top < 400")
        self.assertGreater(
            page.evaluate("document.querySelector('.way').getBoundingClientRect().top"), 0
        )

    def test_linked_on_a_telephone(self) -> None:
        """A link to a pair shows the pair: also where it stands below, and is there only by and by."""
        top = "document.querySelector('#drawer').getBoundingClientRect().top"
        for width, height in ((390, 844), (844, 390)):
            page = self.show(
                f"at={END_S:.0f}&range=1h&src=lax1&dst=iad2",
                viewport={"width": width, "height": height},
            )
            page.locator("#drawer .way .strip").nth(1).wait_for()
            self.until(page, f"{top} > -10 && {top} < 300")
            self.picture(page, f"telephone-pair-{width}")

    def test_printed(self) -> None:
        """On paper nothing is cut off, and the colours that mean something are there."""
        page = self.show(f"at={END_S:.0f}&range=1h&src=lax1&dst=iad2")
        page.locator("#drawer .way .strip").nth(1).wait_for()
        page.emulate_media(media="print")
        cut = page.evaluate(
            "['body', 'main', '#side', '#drawer'].filter((name) => {"
            " const { clientHeight, scrollHeight } = document.querySelector(name);"
            " return scrollHeight > clientHeight; })"
        )
        self.assertEqual(cut, [])
        self.assertGreater(page.evaluate("document.body.clientHeight"), 1200)
        adjust = "getComputedStyle(document.querySelector('#drawer i')).printColorAdjust"
        self.assertEqual(page.evaluate(adjust), "exact")

    def test_zoom_by_key(self) -> None:
        """The keys zoom around the cell that has the cursor, which stays in sight."""
        page = self.show()
        page.keyboard.press("n")
        for key in ("ArrowRight",) * 8 + ("ArrowDown",) * 8 + ("+",) * 6:
            page.keyboard.press(key)
        page.wait_for_timeout(100)
        at, size = (
            self.point(page, 8, 8),
            page.evaluate(
                "[document.querySelector('#stage').clientWidth,"
                " document.querySelector('#stage').clientHeight]"
            ),
        )
        self.assertTrue(0 < at["x"] < size[0] and 0 < at["y"] < size[1], (at, size))

    def test_drag_taken_away(self) -> None:
        """A drag that the system ends (another window, a gesture) is over: the pointer pans no more."""
        page = self.show()
        page.locator("#stage").hover(position=self.point(page, 4, 4))
        page.mouse.down()
        page.mouse.move(700, 300)
        dragging = "document.querySelector('#stage').classList.contains('dragging')"
        self.assertTrue(page.evaluate(dragging))
        page.evaluate(
            "document.querySelector('#stage').dispatchEvent(new PointerEvent('pointercancel'))"
        )
        page.mouse.move(600, 400)
        self.assertFalse(page.evaluate(dragging))

    def test_what_failed_of_the_past(self) -> None:
        """What a service that was away for a moment did not answer is asked for again."""
        page = self.show(f"at={END_S:.0f}&range=1h")
        failing = ("timeline", "dimensions", "incidents")
        for name in failing:
            page.route(
                f"**/api/v1/{name}*",
                lambda route: route.fulfill(status=504, json={"error": "not yet"}),
            )
        page.reload()
        self.until(page, "document.querySelector('#trouble').textContent === 'not yet'")
        self.until(page, "document.querySelector('#incidents').textContent.includes('not yet')")
        for name in failing:
            page.unroute(f"**/api/v1/{name}*")
        self.until(
            page,
            "document.querySelector('#trouble').hidden"
            " && !document.querySelector('#incidents').textContent.includes('not yet')"
            " && document.querySelectorAll('#choices option').length > 9",
        )

    def test_times_as_people_write_them(self) -> None:
        """An address may name a time by ISO 8601: in UTC, with an offset, or of this place."""
        for at, zone in (
            ("2026-07-01T03:14:05Z", "UTC"),
            ("2026-07-01T08:44:05+05:30", "UTC"),  # where a plus is a space
            ("2026-07-01T08:44:05%2B05:30", "UTC"),
            ("2026-07-01 08:44:05", "Asia/Kolkata"),
        ):
            page = self.show(f"at={at}", timezone_id=zone)
            link = page.evaluate(
                "import('/static/state.js').then(({ State }) => new State(() => {}).link({}))"
            )
            self.assertEqual(link, "/?at=1782875645", at)
            self.assertNotIn("live", page.locator("#moment").inner_text())

    def test_addresses_of_no_time(self) -> None:
        """What is no time, or no range of history, in an address is passed over."""
        for query in (
            "at=-5",
            "at=1e300",
            "at=2026-13-01",
            "at=%20",
            "range=constructor",
            "span=-3",
            "from=-9&to=9",
        ):
            page = self.show(query)
            self.until(page, "document.querySelectorAll('#choices option').length > 9")
            self.assertNotIn("expected", page.locator("#trouble").text_content(), query)
            self.assertNotIn("NaN", page.locator("footer").inner_text(), query)

    def test_told_within_the_matrix(self) -> None:
        """What is said of the cell under the pointer is whole, also when a pair opens beside it."""
        page = self.show(viewport={"width": 1280, "height": 700})
        # The edge will be at 452, and the rows, narrower then, end above where the last are now.
        points = [self.point(page, 2, col) for col in range(9)]
        where = min(points, key=lambda point: abs(point["x"] - 410))
        page.locator("#stage").click(position=where)
        page.locator("#drawer .way").first.wait_for()
        tip = page.locator("#tip")
        edges = "document.querySelector('{}').getBoundingClientRect()"
        self.until(
            page,
            f"(({{ left, right }}, stage) => right > left"
            f" && left >= stage.left && right <= stage.right)"
            f"({edges.format('#tip')}, {edges.format('#stage')})",
        )
        self.assertTrue(tip.is_visible())
        self.assertIn("loss", tip.inner_text())
        self.picture(page, "narrow-told")

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
