"""Figures of a benchmark: rows, ratios with what was wanted of them, and both as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, field, frozen
from rich.console import Console
from rich.table import Table as RichTable


@frozen
class Claim:
    """One figure that something was wanted of."""

    name: str
    value: float
    wanted: str  #: "<=", ">=" or "==", and the limit
    rounds: tuple[float, ...] = ()  #: the same figure of each round

    @property
    def met(self) -> bool:
        """Whether the figure is what was wanted."""
        how, limit = self.wanted.split()
        if how == "==":
            return self.value == float(limit)
        return self.value <= float(limit) if how == "<=" else self.value >= float(limit)


def ratio(name: str, above: Sequence[float], below: Sequence[float], wanted: str) -> Claim:
    """Return the median of the ratios of two programs' figures, taken round by round.

    Two figures of one round were measured within seconds of each other, so a machine that is
    slower for a while slows both.
    """
    rounds = tuple(round(a / b, 3) for a, b in zip(above, below, strict=True))
    return Claim(name, statistics.median(rounds), wanted, rounds)


@frozen
class Report:
    """One benchmark's outcome. The values of a row are text as shown, or numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        answer = asdict(self)
        answer["claims"] = [{**asdict(claim), "met": claim.met} for claim in self.claims]
        return answer

    def show(self, console: Console) -> None:
        """Print it."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for column in self.columns:
            table.add_column(column, justify="left" if column == self.columns[0] else "right")
        for row in self.rows:
            table.add_row(*(_text(row.get(column)) for column in self.columns))
        console.print(table)
        for claim in self.claims:
            verdict = "[green]met[/]" if claim.met else "[red]missed[/]"
            between = (
                f" (rounds {min(claim.rounds):.2f} to {max(claim.rounds):.2f})"
                if len(claim.rounds) > 1
                else ""
            )
            console.print(
                f"  {claim.name}: [bold]{_text(claim.value)}[/]{between}, wanted {claim.wanted}:"
                f" {verdict}",
                highlight=False,
            )
        for note in self.notes:
            console.print(f"  {note}", highlight=False, style="dim")
        console.print()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
