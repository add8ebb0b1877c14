"""The page in a real Chromium: a name that one collector gives keeps nobody from the rest."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

from browser_case import BrowserCase
from web_data import Fault, Fleet
from web_site import Site, fill

END_S = time.time() // 300 * 300
#: More digits than Python reads as a number, and more letters than a canvas measures soon.
LONG = "9" * 30_000
#: A name that turns the direction of writing of what comes after it.
TURNED = "b\u202e\u2066evil\x1b"


def with_flows(route: Any) -> None:
    """Answer as a service that can ask collectors for flows."""
    answer = route.fetch()
    route.fulfill(response=answer, json={**answer.json(), "flows": True})


def of_strange_class(route: Any) -> None:
    """Answer with a flow as a collector may tell it."""
    flow = {"class": TURNED, "source_port": 1, "sent": 2, "received": 1, "lost": 1, "loss": 50.0}
    route.fulfill(json={"time": END_S, "all_flows": True, "flows": [flow]})


class NamesTest(BrowserCase):
    """Hosts with names that nobody would give, beside others."""

    @classmethod
    def make_site(cls) -> Site:
        """Return a running site."""
        site = Site()
        hosts = {"a": ("x", "r1"), "b": ("x", "r2"), LONG: (LONG, "r1"), "e" + LONG: ("y", LONG)}
        hosts |= {TURNED: ("x", TURNED)}
        loss = Fault(kind="loss", src=TURNED, dst="a", start_s=0)
        fleet = Fleet(hosts=hosts, classes=("BE",), faults=(loss,))
        fill(site.store, fleet.points(END_S - 600, END_S))
        site.start()
        return site

    def test_long_names(self) -> None:
        """Names and tags as long as one likes are drawn as far as there is room, and at once."""
        page = self.show(f"at={END_S:.0f}&range=15m")
        self.assertIn("1 pair loses", page.locator("#headline").inner_text())
        self.assertLess(float(page.locator("#stage").get_attribute("data-draw-ms")), 1000)
        self.picture(page, "hostile-names")

    def test_turned_names(self) -> None:
        """What turns the direction of writing does not make sender of answerer, nor does it hide."""
        query = urlencode({"at": int(END_S), "range": "15m", "src": TURNED, "dst": "a"})
        page = self.show(query)
        page.route("**/api/v1/status", with_flows)
        page.route("**/api/v1/flows?*", of_strange_class)
        page.reload()
        page.locator("#drawer .strip i[title]").first.wait_for()
        shown = "b\ufffd\ufffdevil\ufffd"
        self.assertIn(f"{shown} → a", page.locator("#worst").inner_text())
        self.assertIn(f"{shown} ⇄ a", page.locator("#drawer").inner_text())
        page.locator("#stage").focus()
        page.keyboard.press("n")
        self.assertIn(f"{shown} → a", page.locator("#spoken").inner_text())
        page.locator("#stage").hover(position=self.point(page, *self.place(page, shown, "a")))
        self.assertIn(f"{shown} → a", page.locator("#tip").inner_text())
        page.locator("#drawer details").first.evaluate("(each) => { each.open = true; }")
        everything = page.evaluate(
            "document.body.textContent + [...document.querySelectorAll('*')].flatMap((each) => "
            "[...each.attributes].filter(({ name }) => /^(title|aria-.*)$/.test(name))"
            ".map(({ value }) => value)).join()"
        )
        self.assertIn(f"{shown} to a", everything)
        self.assertIn(f"source port 1 {shown}: 50 % of 2 lost", everything)
        self.assertFalse(set("\u202e\u2066\x1b") & set(everything))
        self.picture(page, "hostile-turned")
