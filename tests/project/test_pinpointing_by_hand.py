"""The queries of docs/pinpointing.rst, as they stand there, put to real databases: they find the fault.

Six hosts in racks r7, r8 and r9. Host db14 is dead; besides, a quarter of the flows from r7 to r9 lose
everything on the way there.
"""

import itertools
import json
import re
import time
from pathlib import Path

from servers import Influx
from twisted.trial.unittest import SynchronousTestCase
from web_counters import Prometheus, exposed
from web_data import standard_fleet

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "pinpointing.rst"
RACKS = {"db13": "r9", "db14": "r9", "web1": "r7", "web2": "r7", "app1": "r8", "app2": "r8"}
FLOWS, SENT = 16, 1600


def pairs():
    """Yield (source, destination, lossy flows, probes lost there, probes lost anywhere)."""
    for source, destination in itertools.permutations(RACKS, 2):
        if source == "db14":
            continue  # it is dead: its collector says nothing
        if destination == "db14":
            yield source, destination, FLOWS, 0, SENT
        elif (RACKS[source], RACKS[destination]) == ("r7", "r9"):
            yield source, destination, FLOWS // 4, SENT // 4, 0
        else:
            yield source, destination, 0, 0, 0


def blocks(begin, end):
    """Return the statements or expressions of an indented block of the document, by its words."""
    text = DOCUMENT.read_text().partition(begin)[2].partition(end)[0]
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    found = {}
    title = ""
    for line in lines:
        if line.startswith(("--", "#")):
            title = line.lstrip("-# ")
            found[title] = []
        elif line.startswith("WHERE"):
            found[title][-1] += " " + line
        elif line:
            found[title].append(line)
    return found


class InfluxQL(SynchronousTestCase):
    def setUp(self):
        """Write one interval's points into a real InfluxDB."""
        self.server = Influx()
        self.addCleanup(self.server.stop)
        self.server.start()
        self.server.run("CREATE DATABASE llama")
        now_ns = (int(time.time()) - 30) * 10**9
        lines = []
        for source, destination, lossy, forward, unknown in pairs():
            tags = (
                f"src_hostname={source},dst_hostname={destination},class=BE"
                f",src_rack={RACKS[source]},dst_rack={RACKS[destination]}"
            )
            fields = {
                "sent": SENT, "lost": forward + unknown, "lost_forward": forward, "lost_reverse": 0,
                "lost_unknown": unknown, "flows": FLOWS, "flows_lossy": lossy,
            }  # fmt: skip
            text = ",".join(f"{name}={value}.0" for name, value in fields.items())
            lines.append(f"raw_stats,{tags} {text} {now_ns}")
        self.server.write("llama", "\n".join(lines))
        self.queries = blocks(".. code-block:: sql", "In PromQL")

    def ask(self, title, number=0):
        """Return the rows that the statement under a comment gives, without the time."""
        (words,) = [name for name in self.queries if name.startswith(title)]
        rows = self.server.run(self.queries[words][number], "llama")
        return [{k: v for k, v in row.items() if k != "time"} for row in rows]

    def worst(self, title, number=0):
        """Return the row with the largest first figure."""
        return max(self.ask(title, number), key=lambda row: next(iter(row.values())) or 0)

    def test_the_ends(self):
        """The dead host stands out among the destinations, nobody among the sources."""
        dead = self.worst("1.")
        self.assertEqual((dead["dst_hostname"], next(iter(dead.values()))), ("db14", 1.0))
        self.assertLess(next(iter(self.worst("1.", 1).values())), 0.5)

    def test_the_racks(self):
        """Without it the pair of racks stands out, on the way there, and no class does."""
        worst = self.worst("2.")
        self.assertEqual((worst["src_rack"], worst["dst_rack"]), ("r7", "r9"))
        self.assertEqual(len(self.ask("2.", 1)), 1)
        (row,) = [
            row for row in self.ask("3.") if (row["src_rack"], row["dst_rack"]) == ("r7", "r9")
        ]
        self.assertEqual((row["sum"], row["sum_1"]), (2 * SENT // 4, 0))

    def test_how_many_flows(self):
        """All flows to the dead host, and a quarter of the others between these racks, are lossy."""
        shares = [next(iter(row.values())) for row in self.ask("4.")]
        self.assertEqual([share for share in shares if share is not None], [(0.25 + 1) / 2])

    def test_no_statement_is_left_out(self):
        """Every statement of the document is one that these tests put, and starts as one."""
        self.assertEqual([len(some) for some in self.queries.values()], [2, 2, 1, 1])
        for statement in itertools.chain(*self.queries.values()):
            self.assertTrue(statement.startswith("SELECT"), statement)


class PromQL(SynchronousTestCase):
    END_S = 1_700_000_000

    def setUp(self):
        """Have a real Prometheus over what collectors exposed after ten intervals."""
        self.server = Prometheus()
        self.addCleanup(self.server.stop)
        self.server.fill([(self.END_S - 30 * (9 - n), self.text(n + 1)) for n in range(10)])
        self.server.start()
        self.queries = blocks("In PromQL, from", "Databases hold pairs")

    def text(self, intervals):
        """Return the metrics of all collectors after so many intervals."""
        lines = []
        for source, destination, lossy, forward, unknown in pairs():
            labels = (
                f'src_hostname="{source}",dst_hostname="{destination}",class="BE"'
                f',src_rack="{RACKS[source]}",dst_rack="{RACKS[destination]}"'
            )
            received = SENT - forward - unknown
            lines += [
                f"llama_probes_sent_total{{{labels}}} {intervals * SENT}",
                f"llama_probes_received_total{{{labels}}} {intervals * received}",
                f'llama_probes_lost_total{{direction="forward",{labels}}} {intervals * forward}',
                f'llama_probes_lost_total{{direction="reverse",{labels}}} 0',
                f'llama_probes_lost_total{{direction="unknown",{labels}}} {intervals * unknown}',
                f"llama_flows{{{labels}}} {FLOWS}",
                f"llama_flows_lossy{{{labels}}} {lossy}",
            ]
            if source == "app1":
                lines.append(f'llama_suspect{{reason="receive_drops",{labels}}} 1')
        return "\n".join(lines)

    def ask(self, title):
        """Return (labels, value) of what the expression under a comment gives."""
        (words,) = [name for name in self.queries if name.startswith(title)]
        (expression,) = self.queries[words]
        query = {"query": expression, "time": str(self.END_S)}
        answer = json.loads(self.server.get("/api/v1/query", query))
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def test_they_find_it(self):
        """The dead host, then the pair of racks and its direction stand out."""
        labels, share = max(self.ask("1."), key=lambda row: row[1])
        self.assertEqual((labels["dst_hostname"], round(share, 3)), ("db14", 1.0))
        lossy = {(row["src_rack"], row["dst_rack"]): share for row, share in self.ask("2.")}
        self.assertEqual(max(lossy, key=lossy.get), ("r7", "r9"))
        forward = [
            (row["src_rack"], row["dst_rack"])
            for row, _ in self.ask("3.")
            if row["direction"] == "forward"
        ]
        self.assertEqual(forward, [("r7", "r9")])
        counted = {row["src_hostname"] for row, _ in self.ask("what the hosts did")}
        self.assertEqual(counted, set(RACKS) - {"db14", "app1"})

    def test_collectors_have_these_metrics(self):
        """Every metric in the expressions is one that collectors expose."""
        fleet = standard_fleet(float(self.END_S))
        *_, (_, text) = exposed(fleet, self.END_S - 120, self.END_S)
        served = set(re.findall(r"^(llama_\w+)", text, re.MULTILINE)) | {"llama_suspect"}
        wanted = set(re.findall(r"llama_\w+", " ".join(itertools.chain(*self.queries.values()))))
        self.assertLessEqual(wanted, served)
        self.assertEqual([len(some) for some in self.queries.values()], [1, 1, 1, 1])
