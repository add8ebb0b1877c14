"""The demo's matrix in a terminal, and the sentences under it, from plain readings."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from llama.cli._matrix import cell, matrix
from llama.lab.readings import (
    Reading,
    delay_sentence,
    far_site,
    loss_sentence,
    milliseconds,
    percent,
    suspect_sentence,
    worst_pair,
)

HOSTS = [("iad", "iad-1"), ("iad", "iad-2"), ("lax", "lax-1"), ("fra", "fra-1")]


def reading(source: str, destination: str, **figures: Any) -> Reading:
    """Return a healthy pair's reading, changed by ``figures``; the site is the name's beginning."""
    healthy: dict[str, Any] = {"loss": 0.0, "flows": 16, "flows_lossy": 0, "rtt_p50_ms": 5.0}
    return Reading(
        source=source,
        destination=destination,
        source_site=source[:3],
        destination_site=destination[:3],
        **{**healthy, **figures},
    )


def mesh(far: str = "", far_ms: float = 60.0, near_ms: float = 5.0) -> list[Reading]:
    """Return readings of all pairs of `HOSTS`, those of one site far."""
    return [
        reading(a, b, rtt_p50_ms=far_ms if far in (site, other) else near_ms)
        for site, a in HOSTS
        for other, b in HOSTS
        if a != b
    ]


def printed(readings: list[Reading], color: bool = False) -> str:
    """Return the matrix of `HOSTS` as it is printed to a file, or to a terminal with colours."""
    out = io.StringIO()
    options = {"force_terminal": True, "color_system": "standard"} if color else {}
    Console(file=out, width=100, **options).print(matrix(HOSTS, readings))
    return out.getvalue()


class MatrixTests(SynchronousTestCase):
    def test_cell_of_a_lossy_pair(self) -> None:
        """A lossy pair shows a shape, its loss, its lossy flows of all and its RTT."""
        lossy = reading("iad-1", "lax-1", loss=8.33, flows_lossy=2, rtt_p50_ms=41.25)
        self.assertEqual(cell(lossy).plain, "■ 8.3 %\n2/16 flows\n41.2 ms")

    def test_cell_of_a_healthy_pair(self) -> None:
        """A healthy pair shows loss and RTT and nothing that catches the eye."""
        self.assertEqual(cell(reading("iad-1", "lax-1")).plain, "0 %\n5.00 ms")

    def test_cell_without_data(self) -> None:
        """A pair without a reading is hatched and has em dashes, never zeros."""
        self.assertEqual(cell(None).plain, "▨\n—")
        self.assertEqual(cell(reading("a", "b", loss=None, rtt_p50_ms=None)).plain, "▨\n—")

    def test_cell_of_total_loss(self) -> None:
        """Everything lost shows 100 % and no RTT."""
        dead = reading("iad-1", "lax-1", loss=100.0, flows_lossy=16, rtt_p50_ms=None)
        self.assertEqual(cell(dead).plain, "■ 100 %\n16/16 flows\n—")

    def test_suspect_cells_are_marked(self) -> None:
        """A suspect interval is marked with a tilde, lossy or not."""
        self.assertEqual(cell(reading("a", "b", suspect=("late_ticks",))).plain, "~ 0 %\n5.00 ms")
        suspect = reading("a", "b", suspect=("late_ticks",), loss=1.5, flows_lossy=1)
        self.assertIn("■ ~ 1.5 %", cell(suspect).plain)

    def test_plain_when_not_a_terminal(self) -> None:
        """Printed to a file there is no escape sequence; on a terminal loss has a colour."""
        readings = [reading("iad-1", "lax-1", loss=8.0, flows_lossy=2)]
        self.assertNotIn("\x1b", printed(readings))
        self.assertIn("\x1b[", printed(readings, color=True))

    def test_rows_send_and_columns_answer(self) -> None:
        """A reading stands in its source's row and its destination's column."""
        lines = printed([reading("iad-1", "fra-1", loss=9.9)]).splitlines()
        row = next(line.split() for line in lines if "%" in line)
        self.assertEqual((row[0], row[-3:]), ("iad-1", ["■", "9.9", "%"]))

    def test_sites_head_their_columns_once(self) -> None:
        """The first header line names each site once."""
        header = next(line for line in printed(mesh()).splitlines() if line.strip())
        self.assertEqual(header.split(), ["loss", "iad", "lax", "fra"])


class SentenceTests(SynchronousTestCase):
    def test_worst_pair(self) -> None:
        """The pair with most loss is found, with its flows."""
        readings = [*mesh(), reading("iad-2", "fra-1", loss=6.25, flows_lossy=1)]
        self.assertEqual(
            loss_sentence(readings),
            "iad-2 → fra-1 loses 6.2 %, on 1 of its 16 flows; no other pair loses.",
        )

    def test_others_that_lose_are_said(self) -> None:
        """Pairs that lose less are counted, so that one accusation hides no other."""
        readings = [reading("a", "b", loss=50.0, flows_lossy=16), reading("b", "a", loss=0.02)]
        self.assertEqual(
            loss_sentence(readings),
            "a → b loses 50.0 %, on 16 of its 16 flows; 1 other pair loses, <0.1 % at most.",
        )

    def test_no_loss(self) -> None:
        """Without loss nobody is accused."""
        self.assertIsNone(worst_pair(mesh()))
        self.assertEqual(loss_sentence(mesh()), "No pair loses anything.")

    def test_nothing_measured(self) -> None:
        """Without readings nothing is claimed, neither loss nor its absence."""
        self.assertEqual(loss_sentence([]), "Nothing has been measured.")
        self.assertEqual(delay_sentence([]), "No site stands out by its delay.")

    def test_suspect_pairs(self) -> None:
        """Pairs whose figures may be our own fault are counted, with every reason once."""
        readings = [
            reading("a", "b", suspect=("late_ticks", "cpu_starved")),
            reading("b", "a", suspect=("late_ticks",)),
            reading("a", "c"),
        ]
        said = suspect_sentence(readings)
        self.assertEqual(said, "2 of 3 pairs, by cpu starved, late ticks.")
        self.assertIsNone(suspect_sentence(readings[2:]))

    def test_far_site(self) -> None:
        """Each site is found when it is the far one, and no other."""
        for site in ("iad", "lax", "fra"):
            self.assertEqual(far_site(mesh(far=site)), (site, 60.0, 5.0))

    def test_no_far_site(self) -> None:
        """Equal delays, or delays less than `FAR` times the others', make no site far."""
        self.assertIsNone(far_site(mesh()))
        self.assertIsNone(far_site(mesh(far="lax", far_ms=7.0)))

    def test_two_sites_are_too_few(self) -> None:
        """Between two sites neither is the far one."""
        readings = [reading("iad-1", "fra-1", rtt_p50_ms=90.0), reading("iad-1", "iad-2")]
        self.assertIsNone(far_site(readings))

    def test_delay_within_a_site_does_not_count(self) -> None:
        """A site is not near because its own hosts are near each other."""
        readings = [*mesh(far="fra"), *[reading("fra-1", "fra-2", rtt_p50_ms=0.05)] * 20]
        self.assertEqual(far_site(readings), ("fra", 60.0, 5.0))

    def test_delay_sentence(self) -> None:
        """The far site is named with both medians."""
        self.assertEqual(
            delay_sentence(mesh(far="fra")),
            "fra is far: 60.0 ms median to and from it, 5.00 ms between the others.",
        )


class NumberTests(SynchronousTestCase):
    @given(st.floats(min_value=0, max_value=100))
    def test_extremes_are_never_rounded_into(self, loss: float) -> None:
        """Only no loss is written 0 % and only total loss 100 %."""
        self.assertEqual(percent(loss) == "0 %", loss == 0)
        self.assertEqual(percent(loss) == "100 %", loss == 100)

    def test_times(self) -> None:
        """Times have three significant digits, and no sample is an em dash."""
        written = [milliseconds(rtt) for rtt in (0.0834, 4.125, 41.25, 412.5, None)]
        self.assertEqual(written, ["0.083 ms", "4.12 ms", "41.2 ms", "412 ms", "—"])
