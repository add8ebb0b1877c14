"""Incidents in a real Chromium: listed, chosen, drawn with their paths, marked in the matrix."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from browser_case import END_S, BrowserCase
from web_data import standard_fleet
from web_site import Site, fill

INCIDENT = {
    "id": "1-1",
    "title": "link spine3 -> leaf2 loses 30 %",
    "kind": "link",
    "name": "spine3 -> leaf2",
    "symptom": "loss",
    "direction": "forward",
    "evidence": "link spine3 -> leaf2: explains 31 of 31 lossy flows, 0 of 97 healthy ones cross it",
    "worst_rate": 0.31,
    "explains": 31,
    "most_explained": 34,
    "pairs": [["lax1", "iad2"], ["lax1", "iad1"]],
    "paths": [
        ["lax1", "leaf1", "spine3", "leaf2", "iad2"],
        ["lax1", "leaf1", "spine3", "leaf2", "iad1"],
        ["lax1", "leaf1", "spine1", "leaf2", "<b>x</b>"],
    ],
    "changes": [{"time": END_S - 60, "title": "node spine3 loses 30 %", "evidence": ""}],
    "start": END_S - 120,
    "end": None,
    "silenced": None,
}
HOST = {**INCIDENT, "id": "1-2", "kind": "host", "name": "iad2", "title": "host iad2 loses everything",
        "start": END_S - 900, "end": END_S - 600, "changes": []}  # fmt: skip
#: Long over: not among the newest.
OLD = [
    {**HOST, "id": f"0-{n}", "title": f"old finding {n}", "start": END_S - 9000 - n}
    for n in range(40)
]


class Pinpoint(BaseHTTPRequestHandler):
    """Answers as ``llama pinpoint`` does."""

    def do_GET(self) -> None:
        """Answer with so many incidents as are asked for."""
        known = [INCIDENT, HOST, *OLD]
        limit = int(parse_qs(urlsplit(self.path).query)["limit"][0])
        answer = {"configured": True, "incidents": known[:limit], "total": len(known),
                  "next": "more" if limit < len(known) else None}  # fmt: skip
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class IncidentTest(BrowserCase):
    server: ClassVar[ThreadingHTTPServer]

    @classmethod
    def make_site(cls) -> Site:
        """Return a site whose page is told of incidents."""
        cls.server = ThreadingHTTPServer(("127.0.0.1", 0), Pinpoint)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        site = Site(pinpoint=f"http://127.0.0.1:{cls.server.server_address[1]}")
        cls.fleet = standard_fleet(END_S)
        fill(site.store, cls.fleet.points(END_S - 600, END_S))
        site.start()
        return site

    @classmethod
    def tearDownClass(cls) -> None:
        """End both."""
        super().tearDownClass()
        if hasattr(cls, "server"):
            cls.server.shutdown()
            cls.server.server_close()

    def test_listed(self) -> None:
        """Open incidents and past ones are listed beside the matrix, and how many more there are."""
        page = self.show()
        self.until(page, "document.querySelectorAll('#incidents li').length === 20")
        said = page.locator("#incidents").inner_text()
        self.assertIn("link spine3 -> leaf2 loses 30 %", said)
        self.assertIn("since", said)
        self.assertIn("and 22 more", said)

    def test_chosen(self) -> None:
        """Choosing one tells why, draws its paths with the suspect marked, and marks its cells."""
        page = self.show()
        self.until(page, "document.querySelectorAll('#incidents a').length === 20")
        page.locator("#incidents a").first.click()
        self.wait_query(page, incident="1-1")
        shown = page.locator("#incident")
        self.assertIn("0 of 97 healthy ones cross it", shown.inner_text())
        self.assertIn("node spine3 loses 30 %", shown.inner_text())
        self.assertEqual(shown.locator("line.suspect").count(), 1)
        self.assertEqual(shown.locator("line").count(), 8)
        # What comes from elsewhere is text, whatever it says.
        self.assertEqual(shown.locator("svg b").count(), 0)
        self.assertEqual(page.locator("#stage").get_attribute("data-marked"), "2")
        self.picture(page, "incident")
        page.keyboard.press("Escape")
        self.until(page, "document.querySelector('#incident').hidden")
        self.assertEqual(page.locator("#stage").get_attribute("data-marked"), "0")

    def test_by_its_address(self) -> None:
        """A link shows a colleague the same incident; its pairs lead to their drawers."""
        page = self.show(f"at={END_S:.0f}&range=1h&incident=1-2")
        self.until(page, "!document.querySelector('#incident').hidden")
        self.assertEqual(page.locator("#incident circle.suspect").count(), 1)
        page.locator("#incident ul a").first.click()
        self.until(page, "!document.querySelector('#drawer').hidden")
        self.assertTrue(page.locator("#incident").is_hidden())
        self.assertEqual(self.query(page)["src"], "lax1")

    def test_old_one_by_its_address(self) -> None:
        """A link to an incident shows it even if there were many since; of an unknown one it says so."""
        page = self.show(f"at={END_S:.0f}&range=1h&incident=0-30")
        self.until(page, "!document.querySelector('#incident').hidden")
        self.assertIn("old finding 30", page.locator("#incident").inner_text())
        self.assertEqual(page.locator("#incidents [aria-current]").count(), 1)
        self.assertIn("and 21 more", page.locator("#incidents").inner_text())
        page.goto(page.url.replace("0-30", "9-9"))
        page.locator("#incidents").get_by_text("the chosen one is not known here").wait_for()
        self.assertTrue(page.locator("#incident").is_hidden())

    def test_chosen_on_a_telephone(self) -> None:
        """Where it stands below the matrix, choosing an incident brings it into sight."""
        page = self.show(viewport={"width": 420, "height": 800})
        self.until(page, "document.querySelectorAll('#incidents a').length === 20")
        page.locator("#incidents a").nth(12).click()
        self.until(page, "!document.querySelector('#incident').hidden")
        top = page.evaluate("document.querySelector('#incident').getBoundingClientRect().top")
        self.assertTrue(0 < top < 400, top)
