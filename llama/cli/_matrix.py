"""The matrix of loss and latency in a terminal: rows send, columns answer.

Healthy cells are quiet. Trouble has a shape besides its colour (■ loss, ▨ no data, ~ suspect), so
that it reads without colour and as plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llama.lab.readings import Reading, milliseconds, percent

#: Above this loss, in percent, this style. Blue to red would need no red and green told apart.
_LOSS_STYLES = (
    (10.0, "bold white on red"),
    (1.0, "bold red"),
    (0.1, "bold yellow"),
    (0.0, "yellow"),
)
_QUIET = "dim"
_NO_DATA = "bold magenta"
_SUSPECT = "cyan"

LEGEND = "rows send, columns answer · ■ loss  ▨ no data  ~ suspect"


def matrix(hosts: Sequence[tuple[str, str]], readings: Iterable[Reading]) -> RenderableType:
    """Return the matrix of ``hosts``, (site, host) in the order they are to be shown.

    A pair without a reading is shown as having no data.
    """
    cells = {(reading.source, reading.destination): reading for reading in readings}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
    table.add_column(Text("loss\nRTT p50", style=_QUIET), no_wrap=True)
    last = None
    for site, host in hosts:
        heading = Text(site if site != last else "", style="bold")
        heading.append(f"\n{host}", style="not bold")
        table.add_column(heading, justify="right", no_wrap=True)
        last = site
    for number, (site, host) in enumerate(hosts):
        if number and site != hosts[number - 1][0]:
            table.add_row()
        row = [Text(host)]
        for _, other in hosts:
            row.append(Text("") if other == host else cell(cells.get((host, other))))
        table.add_row(*row)
    return table


def cell(reading: Reading | None) -> Text:
    """Return one pair's cell: loss, the lossy flows of all if any loses, and RTT p50."""
    if reading is None or (reading.loss is None and reading.rtt_p50_ms is None):
        return Text("▨\n—", style=_NO_DATA)
    mark = "~ " if reading.suspect else ""
    text = Text()
    if reading.loss:
        style = next(style for above, style in _LOSS_STYLES if reading.loss > above)
        text.append(f"■ {mark}{percent(reading.loss)}", style=style)
        if reading.flows is not None and reading.flows_lossy is not None:
            text.append(f"\n{reading.flows_lossy}/{reading.flows} flows", style=style)
    else:
        text.append(mark + percent(reading.loss), style=_SUSPECT if mark else _QUIET)
    text.append("\n" + milliseconds(reading.rtt_p50_ms), style=_QUIET)
    return text
