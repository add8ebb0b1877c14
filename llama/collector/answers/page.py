"""The collector's page for people: loss and latency of its pairs, the worst first.

Made wholly here: it needs no script and asks no other place for anything. Every state is a word
before it is a colour, and the colours keep apart for the colour-blind (Okabe and Ito's palette).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.collector.answers.encode import loss_percent
from llama.collector.answers.history import Newest
from llama.collector.answers.packed import Packed, Packer
from llama.collector.intervals.summary import Pair, reasons
from llama.collector.slices import Job, Pace
from llama.config.dscp import class_name
from llama.rfc3339 import utc_text

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1a1a1a;--dim:#5a5a5a;--line:#d5d5d5;
--dead:#a33f00;--loss:#8a5a00;--ok:#00557f}
@media(prefers-color-scheme:dark){:root{--bg:#15181b;--fg:#e8e8e8;--dim:#a5a9ad;--line:#3a3f44;
--dead:#ff8a4d;--loss:#f0b429;--ok:#6db8e8}}
body{background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif;margin:1.2rem auto;
padding:0 1rem;max-width:90rem}
h1{font-size:1.35rem;margin:0 0 .3rem}p{margin:.3rem 0}
a{color:var(--ok)}nav a{margin-right:1rem}
table{border-collapse:collapse;width:100%;margin-top:.8rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);padding-bottom:.3rem}
th,td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
td.n,th.n{text-align:right}td.n,td:first-child{white-space:nowrap}
thead th{position:sticky;top:0;background:var(--bg)}
.dead b{color:var(--dead)}.loss b{color:var(--loss)}.ok b{color:var(--ok);font-weight:400}
.none b,small{color:var(--dim);font-weight:400}
form{margin:.6rem 0}input,button{font:inherit;padding:.15rem .4rem}
""".strip()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: What the page may do in a browser: nothing but show itself and ask us again.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)

_HEADINGS = (
    ("State", ""),
    ("Target", ""),
    ("Class", ""),
    ("Loss", "n"),
    ("Lost of sent", "n"),
    ("There / back / unknown", "n"),
    ("Flows that lose", "n"),
    ("RTT p50", "n"),
    ("p99", "n"),
    ("Jitter", "n"),
    ("Remarks", ""),
)

_MOST_NOTES = 10

_pace = Pace()
_pace_of_names = Pace()


@frozen(kw_only=True)
class View:
    """What of all pairs somebody wants to see."""

    target: str = ""  # a part of the target's name, address or class; "" is everything
    offset: int = 0
    limit: int = 200


def render(
    src_hostname: str,
    newest: Sequence[Newest],
    view: View,
    now_s: float,
) -> Job[Packed]:
    """Make the page of ``newest`` (see `History.newest_of_pairs`) at ``now_s``, Unix time."""
    which: list[npt.NDArray[np.int64]] = []  # rows of: interval, pair
    keys: list[Any] = []
    for place, one in enumerate(newest):
        shown = one.numbers
        if view.target:
            shown = yield from _matching(one.closed.pairs, shown, view.target.lower())
        stats = one.closed.pair_stats
        which.append(np.stack([np.full(len(shown), place), shown], axis=1))
        keys.append(np.stack([loss_percent(stats)[shown], stats["rtt_p99_ns"][shown]], axis=1))
        yield None
    chosen = np.concatenate([*which, np.zeros((0, 2), np.int64)])
    key = -np.nan_to_num(np.concatenate([*keys, np.zeros((0, 2))]), nan=-1.0)
    losing = int((key[:, 0] < 0).sum())
    yield None
    # In two steps what np.lexsort would do in one: by p99, and then, keeping that order, by loss.
    order = np.argsort(key[:, 1], kind="stable")
    yield None
    order = order[np.argsort(key[order, 0], kind="stable")]
    yield None

    packer = Packer()
    packer.add(_top(src_hostname, newest, view, now_s, len(order), losing).encode())
    rows = chosen[order[view.offset : view.offset + view.limit]].tolist()
    for part in _pace.slices(len(rows)):
        packer.add("".join(_row(newest[place], number) for place, number in rows[part]).encode())
        yield _pace
    packer.add(_bottom(view, len(order)).encode())
    return packer.packed()


def _matching(
    pairs: Sequence[Pair], numbers: npt.NDArray[np.int64], part: str
) -> Job[npt.NDArray[np.int64]]:
    found: list[int] = []
    wanted = numbers.tolist()
    for few in _pace_of_names.slices(len(wanted)):
        for number in wanted[few]:
            pair = pairs[number]
            if part in f"{pair.target} {pair.dst_ip} {pair.class_name}".lower():
                found.append(number)
        yield _pace_of_names
    return np.array(found, np.int64)


def _top(
    src_hostname: str,
    newest: Sequence[Newest],
    view: View,
    now_s: float,
    count: int,
    losing: int,
) -> str:
    host = escape(src_hostname)
    notes: list[str] = []
    if newest:
        end_ns = max(one.closed.end_ns for one in newest)
        when = f"Interval to {utc_text(end_ns)}, {max(0, round(now_s - end_ns / 1e9))} s ago."
        notes = [note for one in newest for note in one.closed.notes]
        state = f"{losing} of {count} lose probes." if count else "Nothing matches."
    else:
        when, state = "No interval has closed yet.", ""
    said = ""
    if notes:
        told = "; ".join([*notes[:_MOST_NOTES], *(["..."] if len(notes) > _MOST_NOTES else [])])
        said = f"<p>May be our own doing, not the network's: {escape(told)}.</p>"
    last = min(view.offset + view.limit, count)
    shown = f"Pairs {view.offset + 1} to {last} of {count}" if last > view.offset else "No pairs"
    headings = "".join(
        f'<th scope="col"{" class=n" if kind else ""}>{text}</th>' for text, kind in _HEADINGS
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>LLAMA from {host}</title>'
        f"<style>{_STYLE}</style></head><body>"
        f"<h1>Loss and latency from {host}</h1><p>{when} <strong>{state}</strong></p>{said}"
        '<nav aria-label="data"><a href="/latency">/latency</a><a href="/flows">/flows</a>'
        '<a href="/flows?lossy=1">/flows?lossy=1</a><a href="/paths">/paths</a>'
        '<a href="/influxdata">/influxdata</a>'
        '<a href="/metrics">/metrics</a><a href="/status">/status</a></nav>'
        '<form method="get" action="/"><label>Target or class '
        f'<input name="target" value="{escape(view.target)}"></label> <button>Show</button></form>'
        f"<table><caption>{shown}, the worst first. Times in ms.</caption>"
        f"<thead><tr>{headings}</tr></thead><tbody>\n"
    )


def _row(newest: Newest, number: int) -> str:
    pair = newest.closed.pairs[number]
    stats = newest.closed.pair_stats[number]
    sent, lost = int(stats["sent"]), int(stats["lost"])
    if not sent:
        state, word = "none", "not sent"
    elif lost == sent:
        state, word = "dead", "no reply"
    else:
        state, word = ("loss", "loss") if lost else ("ok", "ok")
    ways = [int(stats[f"lost_{way}"]) for way in ("forward", "reverse", "unknown")]
    flows, lossy = int(newest.flows[number]), int(newest.flows_lossy[number])
    link = escape("/flows?" + urlencode({"target": pair.target, "class": pair.class_name}))
    more = "" if pair.dst_ip == pair.target else f" <small>{escape(pair.dst_ip)}</small>"
    kind = f"{pair.probe}, {pair.size} octets, {pair.port_group}"
    cells = (
        f"<td><b>{word}</b></td>"
        f'<td><a href="{link}">{escape(pair.target)}</a>{more} <small>{escape(kind)}</small></td>'
        f"<td>{escape(pair.class_name)}</td>"
    )
    numbers = (
        _percent(100 * lost / sent) if sent else "",
        f"{lost} of {sent}",
        " / ".join(map(str, ways)) if lost else "",
        f"{lossy} of {flows}" if lossy else "",
        _ms(stats["rtt_p50_ns"]),
        _ms(stats["rtt_p99_ns"]),
        _ms(stats["jitter_ns"]),
    )
    cells += "".join(f'<td class="n">{text}</td>' for text in numbers)
    return f'<tr class="{state}">{cells}<td>{escape("; ".join(_remarks(stats)))}</td></tr>\n'


def _percent(value: float) -> str:
    """Never round a loss to nothing, nor anything less than all of it to everything."""
    if 0 < value < 0.01:
        return "&lt;0.01 %"
    if 99.99 < value < 100:
        return "&gt;99.99 %"
    return f"{value:.2f}".rstrip("0").rstrip(".") + " %"


def _ms(time_ns: float) -> str:
    return "" if time_ns != time_ns else f"{time_ns / 1e6:.3f}"


def _remarks(stats: Any) -> Iterable[str]:
    for way, place in (("forward", "reflector"), ("reverse", "collector")):
        if stats[f"remarked_{way}"]:
            seen = int(stats[f"dscp_at_{place}"])
            arrives = f", arrives as {class_name(seen)}" if seen < 64 else ""
            yield f"DSCP changed on the way {'there' if way == 'forward' else 'back'}{arrives}"
    suspects = reasons(int(stats["suspect"]))
    if suspects:
        yield "suspect: " + ", ".join(suspects).replace("_", " ")


def _bottom(view: View, count: int) -> str:
    links = []
    for text, offset in (
        ("Worse", view.offset - view.limit if view.offset else None),
        ("Better", view.offset + view.limit if view.offset + view.limit < count else None),
    ):
        if offset is not None:
            query = {"target": view.target, "offset": max(0, offset), "limit": view.limit}
            links.append(f'<a href="{escape("/?" + urlencode(query))}">{text}</a>')
    return f'</tbody></table><nav aria-label="pages"><p>{"".join(links)}</p></nav></body></html>\n'
