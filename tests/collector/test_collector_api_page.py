"""The page for people: readable without script, worst first, true to the figures."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import attrs
import numpy as np
from collector_served import Served
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.intervals.summary import suspect_bit
from llama.testing import pair


class _Reader(HTMLParser):
    """Reads rows and links off a page, and notes whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        """Begin an element."""
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.links += [value for name, value in attributes if name in ("href", "src", "action")]

    def handle_endtag(self, tag):
        """End the element begun last."""
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        """Take text."""
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        elif "style" not in self.open:
            self.text += data


class Page(SynchronousTestCase):
    def read(self, served, path="/"):
        """Return the page as read."""
        answer = served.get(path)
        self.assertEqual(answer.header("Content-Type"), "text/html; charset=utf-8")
        return _Reader(answer.body.decode())

    def table(self, served, path="/"):
        """Return the rows of the page as dictionaries by heading."""
        head, *rows = self.read(served, path).rows
        return [dict(zip(head, row, strict=True)) for row in rows]

    def test_worst_first(self):
        """All lost comes before some lost, some lost before slow, slow before fast, idle last."""
        served = Served()
        loss = np.zeros((5, 4))
        loss[1] = 1.0
        loss[3, 0] = 1.0
        closed = served.close(5, loss=loss.ravel(), work=False)
        closed.pair_stats["sent"][4] = closed.pair_stats["received"][4] = 0
        served.work()
        rows = self.table(served)
        self.assertEqual(
            [row["State"] for row in rows], ["no reply", "loss", "ok", "ok", "not sent"]
        )
        self.assertEqual(
            [re.search(r"reflector(\d+)", row["Target"])[1] for row in rows],
            ["00001", "00003", "00002", "00000", "00004"],
        )
        worst, lossy, _, _, idle = rows
        self.assertEqual((worst["Loss"], worst["RTT p50"], worst["p99"]), ("100 %", "", ""))
        self.assertEqual((lossy["Loss"], lossy["Lost of sent"]), ("25 %", "10 of 40"))
        self.assertEqual(lossy["Flows that lose"], "1 of 4")
        ways = [int(n) for n in lossy["There / back / unknown"].split("/")]
        self.assertEqual(sum(ways), 10)
        self.assertEqual(idle["Loss"], "")

    def test_figures(self):
        """Times are milliseconds, as they are in the interval."""
        served = Served()
        closed = served.close(1)
        (row,) = self.table(served)
        for heading, name in (("RTT p50", "rtt_p50_ns"), ("p99", "rtt_p99_ns")):
            self.assertAlmostEqual(float(row[heading]), closed.pair_stats[name][0] / 1e6, 3)

    def test_little_loss_is_not_none(self):
        """A loss too small for the digits shown is not shown as 0, nor nearly all as 100."""
        served = Served()
        closed = served.close(2, work=False)
        closed.pair_stats["sent"] = 1_000_000
        closed.pair_stats["lost"] = closed.pair_stats["lost_unknown"] = [1, 999_999]
        closed.pair_stats["received"] = [999_999, 1]
        served.work()
        self.assertEqual([row["Loss"] for row in self.table(served)], [">99.99 %", "<0.01 %"])

    def test_remarks(self):
        """Suspect reasons and changed classes are named."""
        served = Served()
        closed = served.close(
            [pair(0, dscp=46)],
            suspect=suspect_bit("late_ticks") | suspect_bit("receive_drops"),
            notes=("7 ticks were late, by 12 ms at most <b>",),
            work=False,
        )
        closed.pair_stats["remarked_forward"] = 3
        closed.pair_stats["dscp_at_reflector"] = 0
        served.work()
        page = self.read(served)
        self.assertIn("7 ticks were late, by 12 ms at most <b>", page.text)
        remarks = page.rows[1][-1]
        self.assertIn("suspect: receive drops, late ticks", remarks)
        self.assertIn("DSCP changed on the way there, arrives as BE", remarks)

    def test_nothing_closed(self):
        """Before anything has closed it says so."""
        page = self.read(Served())
        self.assertIn("No interval has closed yet", page.text)
        self.assertEqual(len(page.rows), 1)

    def test_summary(self):
        """The first line says from where, how old, and how many pairs lose."""
        served = Served()
        served.close(3, loss=[1.0] * 4 + [0.0] * 8)
        text = self.read(served).text
        self.assertIn("collector01.example.net", text)
        self.assertIn("Interval to 2023-11-14T22:14:00Z, 70 s ago.", text)
        self.assertIn("1 of 3 lose probes", text)

    def test_links(self):
        """It links to everything that the collector answers, and to nobody else."""
        served = Served()
        served.close(1)
        links = self.read(served).links
        for path in ("/latency", "/flows", "/flows?lossy=1", "/influxdata", "/metrics", "/status"):
            self.assertIn(path, links)
            self.assertEqual(served.get(path).code, 200)
        target = next(link for link in links if link.startswith("/flows?target="))
        self.assertEqual(served.get(target).json()["count"], 4)
        self.assertTrue(all(link.startswith("/") or link == "data:," for link in links), links)

    def test_no_script_no_origin(self):
        """It needs no script, and its policy allows its own style and nothing else."""
        served = Served()
        served.close(1)
        answer = served.get("/")
        text = answer.body.decode()
        self.assertNotIn("<script", text)
        self.assertNotRegex(text, r"https?://")
        self.assertNotRegex(text, r' style="')
        style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = answer.header("Content-Security-Policy")
        self.assertIn(f"style-src 'sha256-{digest}'", policy)
        self.assertIn("default-src 'none'", policy)

    def test_hostile_names(self):
        """Names from the configuration cannot become markup."""
        served = Served()
        served.close([attrs.evolve(pair(0), target='<script>"&', class_name="<i>")])
        text = served.get("/").body.decode()
        self.assertNotIn("<script", text)
        self.assertNotIn("<i>", text)
        rows = self.table(served)
        self.assertIn('<script>"&', rows[0]["Target"])
        self.assertNotIn("<u>", served.get("/?target=%22%3E%3Cu%3E").body.decode())

    def test_filter(self):
        """Pairs can be narrowed to a part of a name, an address or a class, in any case."""
        served = Served()
        served.close([pair(0), pair(0, dscp=46), pair(10)])
        for part, expected in (("R00010", 1), ("10.0.0.1", 1), ("ef", 3), (" EF", 1), ("zz", 0)):
            rows = self.table(served, "/?target=" + part.replace(" ", "%20"))
            self.assertEqual(len(rows), expected, part)

    def test_pages(self):
        """Pages show every pair once, and lead to each other."""
        served = Served()
        served.close(450)
        seen = []
        path: str | None = "/"
        while path is not None:
            page = self.read(served, path)
            seen += [row[1] for row in page.rows[1:]]
            path = next((x for x in page.links if f"offset={len(seen)}" in x), None)
        self.assertEqual(len(seen), 450)
        self.assertEqual(len(set(seen)), 450)
        back = [x for x in self.read(served, "/?offset=400").links if "offset=200" in x]
        self.assertEqual(len(back), 1)
        self.assertEqual(served.get("/?limit=1001").code, 400)
