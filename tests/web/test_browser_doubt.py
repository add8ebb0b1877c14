"""The page in a real Chromium: what is not known, too old or broken never looks like what is fine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

from browser_case import BrowserCase
from web_data import Fault, Fleet
from web_site import Feed, Site, fill

from llama.interfaces import Point

INTERVAL_S = 10
START_S = time.time() // INTERVAL_S * INTERVAL_S
#: Since when ``d`` says nothing.
SILENT_S = START_S - 3000
#: Since when there are no data of a pair, and of a class of another.
MUTE_S = START_S - 1200


class Odd:
    """Four hosts; what is odd about their pairs `fields` tells."""

    def points(self, start_s: float, end_s: float) -> Iterator[Point]:
        """Yield all points with ``start_s < time <= end_s``."""
        time_s = (start_s // INTERVAL_S + 1) * INTERVAL_S
        while time_s <= end_s:
            for src in "abcd":
                for dst, name in itertools.product("abcd", ("BE", "EF")):
                    if src != dst and self.speaks(src, dst, name, time_s):
                        tags = {"src_hostname": src, "dst_hostname": dst, "class": name}
                        tags["datacenter"] = "x" if dst in "ab" else "y"
                        fields = self.fields(src, dst, name)
                        yield Point("raw_stats", tags, fields, int(time_s * 1e9))
            time_s += INTERVAL_S

    def speaks(self, src: str, dst: str, name: str, time_s: float) -> bool:
        """Return whether a class is measured.

        EF is from b alone, and to c it was until twenty minutes ago; so was all from a to d.
        """
        if src == "d" and time_s > SILENT_S:
            return False
        if (src, dst) == ("a", "d") and time_s > MUTE_S:
            return False
        return (
            name == "BE"
            or (src, dst) == ("b", "a")
            or ((src, dst) == ("b", "c") and time_s < MUTE_S)
        )

    def fields(self, src: str, dst: str, name: str) -> dict[str, float]:
        """Return the figures of a pair.

        All is lost from a to b, in no known direction; from c to b some is, as a collector tells
        it that knows of no directions. From b to a every flow of EF loses some.
        """
        fields = dict.fromkeys(
            ("loss", "lost", "lost_forward", "lost_reverse", "lost_unknown", "flows_lossy"), 0.0
        ) | {"sent": 500.0, "received": 500.0, "flows": 4.0, "suspect": 0.0}
        if (src, dst) == ("a", "b"):
            lost = {"received": 0.0, "lost": 500.0, "loss": 100.0, "lost_unknown": 500.0}
            return fields | lost | {"flows_lossy": 4.0}
        if (src, dst) == ("c", "b"):
            return {"sent": 500.0, "lost": 150.0, "received": 350.0, "loss": 30.0, "rtt": 5.0}
        if src == "b":
            fields["flows"] = 4.0 if name == "EF" else 64.0
        if (src, dst, name) == ("b", "a", "EF"):
            fields |= {"received": 450.0, "lost": 50.0, "lost_forward": 50.0, "loss": 10.0}
            fields["flows_lossy"] = 4.0
        return fields | {"rtt": 5.0, "rtt_p50": 5.0, "rtt_min": 4.0, "rtt_p99": 7.0, "rtt_max": 8.0}


class DoubtTest(BrowserCase):
    """What is not fine, live."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a site over odd pairs, which go on speaking."""
        site = Site()
        odd = Odd()
        fill(site.store, odd.points(START_S - 3400, START_S))
        cls.feed = Feed(site.store, odd, START_S)
        site.start()
        return site

    def drawer(self, page: Any) -> Any:
        """Return the drawer once it is drawn."""
        page.locator("#drawer .now").first.wait_for()
        return page.locator("#drawer")

    def test_loss_of_unknown_direction(self) -> None:
        """Who looks at one direction is told of loss in no known direction, and of what has no figure."""
        page = self.show("metric=loss_forward&range=15m")
        said = page.locator("#headline").inner_text()
        self.assertNotIn("all is well", said)
        self.assertIn("3 pairs lose", said)
        self.assertIn("2 pairs without a figure", said)
        # With the silent collector, a pair without data and one of which a class is silent.
        self.assertRegex(page.title(), r"^\([56]\) LLAMA matrix$")
        self.picture(page, "doubt-direction")

    def test_old_figures(self) -> None:
        """Of a collector that is silent the drawer shows no figures, and says since when."""
        page = self.show("src=d&dst=c&range=1h")
        drawer = self.drawer(page)
        there = drawer.locator(".way").first.locator(".now").inner_text()
        self.assertIn("no data since", there)
        self.assertIn("—", there)
        self.assertNotIn("%", there)
        self.assertNotIn("ms", there)
        back = drawer.locator(".way").nth(1).locator(".now")
        self.assertIn("5 ms", back.inner_text())
        times = back.locator("p").first.inner_text().split()
        began, ended = int(times[0][-2:]), int(times[2][-2:])
        self.assertEqual((ended - began) % 60, INTERVAL_S)
        self.picture(page, "doubt-silent")

    def test_no_directions(self) -> None:
        """What is lost in no known direction is told and drawn as that, never as 0 % either way."""
        for src, loss in (("c", "30"), ("a", "100")):
            page = self.show(f"src={src}&dst=b&range=15m")
            way = self.drawer(page).locator(".way").first
            said = " ".join(way.locator(".now .figures").inner_text().split())
            self.assertIn(f"loss {loss} % fwd — rev — direction unknown {loss} %", said)
            chart = way.locator(".chart").first.locator("canvas")
            label = chart.get_attribute("aria-label")
            self.assertIn(f"loss {loss} %  fwd —  rev —  direction unknown {loss} %", label)
            # Striped: along a line in the middle of it there is its colour, and the ground.
            ink, ground = chart.evaluate(
                """(canvas) => {
                  const pen = canvas.getContext('2d'), { width, height } = canvas;
                  const row = [...pen.getImageData(width / 2, height / 2, 60, 1).data];
                  const seen = row.filter((_, n) => n % 4 === 3);
                  return [seen.some((alpha) => alpha > 200), seen.some((alpha) => alpha < 50)];
                }"""
            )
            self.assertTrue(ink and ground)
            self.picture(page, f"doubt-undirected-{src}")

    def corner(self, page: Any, row: int, col: int) -> str:
        """Return what is in the lower left corner of a cell."""
        at = json.loads(page.locator("#stage").get_attribute("data-geometry"))
        corner = {"x": at["x0"] + col * at["cellW"], "y": at["y0"] + (row + 1) * at["cellH"] - 14}
        return str(page.evaluate(
            "({x, y}) => [...document.querySelector('#cells').getContext('2d')"
            ".getImageData(Math.round(x) + 1, Math.round(y), 9, 12).data].join()",
            corner,
        ))  # fmt: skip

    def test_partly_silent_cell(self) -> None:
        """A folded cell of which some pairs have no data is hatched in a corner, and is told."""
        page = self.show("group=datacenter&rows=none&cols=none&range=15m")
        cells = self.table(page)
        self.assertRegex(cells["x", "y"], r"^0 % \(worst of 4, [12] without data\)$")
        self.assertNotIn("without data", cells["y", "y"])
        self.assertNotEqual(self.corner(page, 0, 1), self.corner(page, 1, 1))
        page.locator("#stage").focus()
        page.keyboard.press("n")
        self.assertIn("x → y", page.locator("#spoken").inner_text())
        self.assertIn("without data", page.locator("#spoken").inner_text())
        self.picture(page, "doubt-partly-cell")

    def test_partly_silent_pair(self) -> None:
        """So is a pair of which a class is silent, with the page's every sign and word for it."""
        page = self.show("metric=rtt_p50&group=none&range=15m")
        row, col = self.place(page, "b", "c")
        fine = self.corner(page, row, col)
        page.route("**/api/v1/matrix*", self.partly)
        page.select_option("#metric", "loss")
        self.wait_query(page, metric=None)
        self.assertEqual(self.table(page)["b", "c"], "0 % (1 series without data)")
        self.assertIn("1 pair partly without data", page.locator("#headline").inner_text())
        self.assertNotEqual(self.corner(page, row, col), self.corner(page, row, col + 1))
        self.assertNotEqual(self.corner(page, row, col), fine)
        at = self.point(page, row, col)
        page.locator("#stage").hover(position=at)
        self.assertIn("▨ 1 series without data", page.locator("#tip").inner_text())
        page.locator("#stage").focus()
        stops = []
        for _ in range(5):
            page.keyboard.press("n")
            stops.append(page.locator("#spoken").inner_text()[:5])
        self.assertIn("b → c", stops)
        self.picture(page, "doubt-partly-pair")

    def partly(self, route: Any) -> None:
        """Answer with the matrix, in which one series from b to c is silent."""
        response = route.fetch()
        said = response.json()
        rows, cols = ([each["host"] for each in said[axis]] for axis in ("rows", "cols"))
        cell = rows.index("b") * len(cols) + cols.index("c")
        said["cells"].setdefault("silent", [0] * len(said["cells"]["state"]))[cell] = 1
        said["cells"]["missing"][cell] = 1
        said["summary"].update(partial=1, missing=2)
        route.fulfill(response=response, json=said)

    def test_bad_and_missing(self) -> None:
        """Who is bad and partly silent counts once in the title, and hides no pair without a figure."""

        def overlapping(route: Any) -> None:
            response = route.fetch()
            said = response.json()
            said["summary"].update(
                pairs=12, healthy=6, bad=3, losing=3, missing=2, partial=2, sick=2,
                hosts_silent=1, unjudged=1, troubled=3,
            )  # fmt: skip
            route.fulfill(response=response, json=said)

        page = self.show("metric=loss_forward&group=none&range=15m")
        page.route("**/api/v1/matrix*", overlapping)
        page.select_option("#group", "datacenter")
        self.wait_query(page, group="datacenter")
        self.until(page, "document.title === '(4) LLAMA matrix'")
        self.assertIn("1 pair without a figure", page.locator("#headline").inner_text())

    def test_partly_silent_drawer(self) -> None:
        """The open pair names the classes that have no data, though others have."""
        page = self.show("src=b&dst=c&range=15m")
        ways = self.drawer(page).locator(".way")
        self.assertIn("▨ 1 of 2 series without data: EF", ways.first.inner_text())
        self.assertIn("5 ms", ways.first.inner_text())
        self.assertNotIn("without data", ways.nth(1).inner_text())
        self.picture(page, "doubt-partly-drawer")

    def test_flows_of_all_series(self) -> None:
        """The flows of all classes count, and the class whose flows lose is named."""
        page = self.show("src=b&dst=a&range=15m")
        said = self.drawer(page).locator(".way").first.locator(".now").inner_text()
        self.assertIn("4 of 68 flows lose probes: EF 4 of 4", said)
        self.picture(page, "doubt-flows")

    def test_window(self) -> None:
        """The figures are of the window that the matrix covers."""
        page = self.show("src=b&dst=a&span=300&range=15m")
        said = self.drawer(page).locator(".way").first.locator(".now").inner_text()
        began, ended = (
            sum(
                int(part) * unit
                for part, unit in zip(said.split()[n].split(":"), (3600, 60, 1), strict=True)
            )
            for n in (0, 2)
        )
        self.assertEqual((ended - began) % 86400, 300)
        self.assertLess((time.time() - ended) % 86400, 30)  # and not in the future
        self.assertIn("4 of 68 flows lose probes: EF 4 of 4", said)
        self.assertIn("loss 5 %", " ".join(said.split()))


class SlowTest(BrowserCase):
    """Two hosts that speak every fifteen minutes, beside others."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a site over data up to now, live."""
        site = Site()
        now_s = time.time() // 900 * 900
        fast = Fleet(hosts=dict.fromkeys("cdefg", ("x", "1")), classes=("BE",))
        slow = Fleet(hosts=dict.fromkeys("ab", ("x", "1")), classes=("BE",), interval_s=900)
        points = list(slow.points(now_s - 8000, now_s))
        points += fast.points(now_s - 8000, time.time())
        fill(site.store, points)
        cls.feed = Feed(site.store, fast, time.time())
        site.start()
        return site

    def test_open_pair(self) -> None:
        """The drawer has figures of a slow collector as the matrix has, whatever the charts show."""
        for span in ("15m", "6h"):
            page = self.show(f"src=a&dst=b&group=none&range={span}")
            self.assertEqual(self.table(page)["a", "b"], "0 %")
            page.locator("#drawer .now").first.wait_for()
            for n in (0, 1):
                said = page.locator("#drawer .way").nth(n).inner_text()
                self.assertNotIn("no data since", said)
                self.assertNotIn("without data", said)
                self.assertIn("0.2", said)
        self.picture(page, "doubt-slow")

    def test_own_interval(self) -> None:
        """How old figures may be is a matter of the pair's own interval."""
        page = self.show("group=none")
        told = page.evaluate(
            """async () => {
              const { oldestLive, oldestPast, stretch } = await import('/static/age.js');
              return [oldestLive(10000, 10020, 30, null), oldestLive(10000, 10020, 30, 900),
                oldestLive(9000, 10020, 30, 900), oldestPast(10000, 0, 30, 900),
                oldestPast(10000, 60, 30, 900), stretch(10000, 0, 30, 900)];
            }"""
        )
        self.assertEqual(
            told,
            [9930, 7750, 7680, 7750, 9940, {"from": 7660, "to": 10000, "step": 900}],
        )


class MuteTest(BrowserCase):
    """A host that answers nobody, and measures others."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a site over data that end now."""
        site = Site()
        now_s = time.time()
        down = Fault(kind="down", dst="c", start_s=0)
        fleet = Fleet(hosts=dict.fromkeys("abc", ("x", "1")), classes=("BE",), faults=(down,))
        fill(site.store, fleet.points(now_s - 600, now_s))
        site.start()
        return site

    def test_sick(self) -> None:
        """It is not said to be down, but what may be dead there."""
        sick = self.show("range=15m").locator("#sick").inner_text()
        self.assertIn("c answers nobody", sick)
        self.assertIn("its collector reaches others: is its reflector dead?", sick)
        self.assertNotIn("is down", sick)


class GoneTest(BrowserCase):
    """A store that goes away."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a site over data that end now."""
        site = Site()
        now_s = time.time()
        fill(site.store, Odd().points(now_s - 60, now_s))
        site.start()
        return site

    def test_store_gone(self) -> None:
        """Without its store the page knows nothing: top line and title say so."""
        page = self.show("range=15m")
        assert self.site is not None
        gone = self.site.store.with_suffix(".gone")
        self.site.store.rename(gone)
        try:
            self.until(
                page, "document.querySelector('#headline').textContent.includes('not known since')"
            )
            self.assertIn("No such file", page.locator("#trouble").inner_text())
            self.assertNotIn("live", page.locator("#headline").inner_text())
            self.assertEqual(page.title(), "(?) LLAMA matrix")
            self.picture(page, "doubt-store-gone")
        finally:
            gone.rename(self.site.store)
        self.until(page, "!document.querySelector('#trouble').textContent.includes('No such')")
