"""How answers look as JSON: plain dictionaries, NaN as null, figures rounded. Pure.

`docs/api.rst` describes each; what stands there does not change without a new version in the path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.collector.intervals.summary import reasons
from llama.web.fold import NO_DATA, VALUE, Axis, Cells, Pairs
from llama.web.groups import find_places, natural
from llama.web.heat import Heat
from llama.web.mesh import Health, Index, Mesh, interval_of
from llama.web.metrics import METRICS, Metric, percent
from llama.web.store import AGGREGATE, Activity, Column, History, Timeline, Window, series_key


def numbers(
    column: npt.ArrayLike, digits: int = 4, metric: Metric | None = None
) -> list[float | None]:
    """Return a column as JSON numbers; NaN and infinities become null.

    Values of a ``metric`` are not rounded to another level: who lost one probe of ten million did lose.
    """
    exact = np.asarray(column, dtype=np.float64)
    values = np.round(exact, digits)
    if metric is not None:
        values = np.where(metric.level(values) == metric.level(exact), values, exact)
    fine = np.isfinite(values)
    if fine.all():
        return list(values.tolist())
    return [value if ok else None for value, ok in zip(values.tolist(), fine.tolist(), strict=True)]


def _number(value: float, digits: int = 4, metric: Metric | None = None) -> float | None:
    if metric is not None:
        return numbers([value], digits, metric)[0]
    return round(float(value), digits) if np.isfinite(value) else None


def moment(
    at_s: float, span_s: float, window: Window, mesh: Mesh, activity: Activity
) -> dict[str, Any]:
    """Return which moment an answer is about."""
    heard = mesh.last_s[mesh.heard] if mesh.heard.any() else mesh.last_s
    return {
        "at": round(at_s, 3),
        "span_s": span_s,
        "from": round(window.start_s, 3),
        # A clock that is ahead makes nothing newer than now.
        "newest": _number(min(float(heard.max()), at_s), 3) if heard.size else None,
        "interval_s": interval_of(activity),
        "silent_known": activity.complete,
    }


def dimensions(activity: Activity) -> dict[str, Any]:
    """Return what can be chosen from."""
    places = find_places(activity.series)

    def values(name: str) -> list[str]:
        return sorted({tags[name] for tags in activity.series if name in tags}, key=natural)

    return {
        "groups": places.keys(),
        "hierarchy": places.hierarchy(),
        "classes": values("class"),
        "probes": values("probe"),
        "metrics": [metric.describe() for metric in METRICS.values()],
        "sources": len(places.sources),
        "destinations": len(places.destinations),
    }


def entries(axis: Axis, hosts: Sequence[str], health: Health, side: str) -> list[dict[str, Any]]:
    """Return the visible rows (``side`` "src") or columns ("dst")."""
    sick: dict[str, npt.NDArray[np.bool_]] = (
        {"silent": health.silent, "blind": health.blind} if side == "src" else {"down": health.down}
    )
    count = {
        name: np.bincount(axis.of_host, flags, len(axis.entries)) for name, flags in sick.items()
    }
    since = np.full(len(axis.entries), -np.inf)
    if side == "src" and len(hosts):
        np.maximum.at(since, axis.of_host, np.where(health.silent, health.silent_since_s, -np.inf))
    answer = []
    for n, entry in enumerate(axis.entries):
        row: dict[str, Any] = {"path": list(entry.path), "host": entry.host, "hosts": entry.hosts}
        for name in sick:
            if count[name][n]:
                row[name] = int(count[name][n])
        if "silent" in row:
            row["silent_since"] = _number(since[n], 3)
        answer.append(row)
    return answer


def cells(metric: Metric, cells: Cells, pairs: Pairs, mesh: Mesh) -> dict[str, Any]:
    """Return the cells, dense and row by row."""
    worst = cells.worst
    if pairs.src.size:
        src = np.where(worst >= 0, pairs.src[worst], -1)
        dst = np.where(worst >= 0, pairs.dst[worst], -1)
    else:
        src = dst = worst
    lossy = np.zeros(worst.shape, dtype=bool)
    if pairs.src.size:
        lossy = (worst >= 0) & (pairs.flows_lossy[worst] > 0)
    return {
        "state": cells.state.tolist(),
        "value": numbers(cells.value, metric=metric),
        "members": cells.members.tolist(),
        "bad": cells.bad.tolist(),
        "missing": cells.missing.tolist(),
        "silent": cells.silent.tolist(),
        "suspect": cells.suspect.tolist(),
        "worst_src": src.tolist(),
        "worst_dst": dst.tolist(),
        "flows": [
            [n, _number(pairs.flows_lossy[worst[n]]), _number(pairs.flows[worst[n]])]
            for n in np.flatnonzero(lossy).tolist()
        ],
        "sources": list(mesh.sources),
        "destinations": list(mesh.destinations),
    }


def sick(mesh: Mesh, health: Health) -> list[dict[str, Any]]:
    """Return the hosts that are sick as a whole."""
    found: list[dict[str, Any]] = [
        {"kind": "down", "host": mesh.destinations[n]}
        | ({"reaches_others": True} if health.reaching[n] else {})
        for n in np.flatnonzero(health.down).tolist()
    ]
    found += [
        {"kind": "blind", "host": mesh.sources[n]} for n in np.flatnonzero(health.blind).tolist()
    ]
    found += [
        {"kind": "silent", "host": mesh.sources[n], "since": _number(health.silent_since_s[n], 3)}
        for n in np.flatnonzero(health.silent).tolist()
    ]
    return found


def _explained(pairs: Pairs, health: Health) -> npt.NDArray[np.bool_]:
    """Return which pairs are bad because one of their hosts is sick as a whole."""
    return health.down[pairs.dst] | health.blind[pairs.src] | health.silent[pairs.src]


def summary(
    pairs: Pairs, losses: Pairs, mesh: Mesh, health: Health, dropped: int = 0
) -> dict[str, Any]:
    """Return the counts of the headline; ``losses`` are the same pairs by their loss."""
    other = _explained(pairs, health)
    missing = (pairs.silent > 0) & ~other
    # A pair may be bad and missing: one class of it loses, another is silent.
    fine = ~pairs.bad & ~missing & ~other
    troubled = (pairs.bad | losses.bad | missing) & ~other
    return {
        "pairs": int(pairs.src.size),
        "healthy": int(np.count_nonzero(fine & (pairs.state == VALUE))),
        "unjudged": int(np.count_nonzero(fine & (pairs.state != VALUE))),
        "troubled": int(np.count_nonzero(troubled)),
        "bad": int(np.count_nonzero(pairs.bad & ~other)),
        "losing": int(np.count_nonzero(losses.bad & ~_explained(losses, health))),
        "missing": int(np.count_nonzero(missing)),
        "partial": int(np.count_nonzero(missing & (pairs.state != NO_DATA))),
        "sick": int(np.count_nonzero(other)),
        "suspect": int(np.count_nonzero(pairs.suspect)),
        "hosts_down": int(np.count_nonzero(health.down)),
        "hosts_blind": int(np.count_nonzero(health.blind)),
        "hosts_silent": int(np.count_nonzero(health.silent)),
        "dropped": dropped,
        "sources": len(mesh.sources),
        "destinations": len(mesh.destinations),
    }


def rank(pairs: Pairs, health: Health | None) -> Index:
    """Return the pairs' numbers, the worst value first.

    With ``health``: only bad ones that no host's sickness explains.
    """
    value = np.where(np.isnan(pairs.value), -np.inf, pairs.value)
    order = np.lexsort((pairs.dst, pairs.src, -value))
    if health is None:
        return order
    wanted = pairs.bad & ~_explained(pairs, health)
    return order[wanted[order]]


def pairs(metric: Metric, mesh: Mesh, pairs: Pairs, chosen: Index) -> list[dict[str, Any]]:
    """Return some pairs, with the tags of the worst series of each."""
    return [
        {
            "src": mesh.sources[pairs.src[n]],
            "dst": mesh.destinations[pairs.dst[n]],
            "value": _number(pairs.value[n], metric=metric),
            "bad": bool(pairs.bad[n]),
            "data": bool(pairs.state[n] != NO_DATA),
            "flows": _number(pairs.flows[n]),
            "flows_lossy": _number(pairs.flows_lossy[n]),
            "suspect": list(reasons(int(pairs.suspect[n]))),
            "series": int(pairs.series[n]),
            "silent": int(pairs.silent[n]),
            "tags": dict(mesh.series[pairs.worst[n]]),
        }
        for n in chosen.tolist()
    ]


_SUMMED = tuple(name for name, how in AGGREGATE.items() if how == "sum")
_WORST = ("rtt_p50", "rtt_p90", "rtt_p99", "rtt_max", "jitter", "flows", "flows_lossy", "rtt")


def history(
    src: str,
    dst: str,
    found: History,
    heat: Heat | None,
    intervals: Mapping[tuple[tuple[str, str], ...], float],
) -> dict[str, Any]:
    """Return one direction of a pair over time: all its series together, and each one's newest.

    ``intervals``: how often series speak, as far as that is known, by `series_key`.
    """
    columns = found.columns
    together: dict[str, Column] = {name: _sum(columns[name]) for name in _SUMMED}
    together["lost_unknown"] = _sum(_unknown(columns))
    together |= {name: _extreme(columns[name], np.fmax) for name in _WORST}
    together["rtt_min"] = _extreme(columns["rtt_min"], np.fmin)
    together["suspect"] = _union(columns["suspect"])
    middle = np.where(np.isnan(together["rtt_p50"]), together["rtt"], together["rtt_p50"])
    together["rtt_p50"] = middle
    del together["rtt"]
    together["loss"] = percent(together["lost"], together["sent"])
    return {
        "src": src,
        "dst": dst,
        "step_s": found.step_s,
        "interval_s": max(intervals.values(), default=None),
        "time": numbers(found.time_s, 3),
        "columns": {
            name: numbers(column, metric=METRICS["loss"] if name == "loss" else None)
            for name, column in together.items()
        },
        "series": [
            {**_newest(found, n), "interval_s": intervals.get(series_key(tags))}
            for n, tags in enumerate(found.series)
        ],
        "heat": None
        if heat is None
        else {
            "source": heat.source,
            "edges_ms": numbers(heat.edges_ms, 6),
            "counts": [numbers(row, 2) for row in heat.counts],
        },
    }


def _unknown(columns: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return the loss in no known direction, which is all loss of series that know of none.

    Beside series that do know, it must not look as if nothing had been lost. Where no series knows
    of directions, nothing is made up.
    """
    directions = ("lost_forward", "lost_reverse", "lost_unknown")
    blank = np.logical_and.reduce([np.isnan(columns[name]) for name in directions])
    known = (~blank).any(axis=0)
    return np.where(blank & known, columns["lost"], columns["lost_unknown"])


def _sum(column: npt.NDArray[np.float64]) -> Column:
    return np.where(np.isnan(column).all(axis=0), np.nan, np.nansum(column, axis=0))


def _union(column: npt.NDArray[np.float64]) -> Column:
    bits = np.bitwise_or.reduce(np.nan_to_num(column).astype(np.int64), axis=0)
    return np.where(np.isnan(column).all(axis=0), np.nan, bits)


def _extreme(column: npt.NDArray[np.float64], best: np.ufunc) -> Column:
    return np.asarray(best.reduce(column, axis=0))


def _newest(found: History, n: int) -> dict[str, Any]:
    spoke = np.flatnonzero(~np.isnan(found.columns["sent"][n]))
    answer: dict[str, Any] = {"tags": dict(found.series[n])}
    if spoke.size:
        last = int(spoke[-1])
        figures = {
            name: _number(column[n, last])
            for name, column in found.columns.items()
            if np.isfinite(column[n, last])
        }
        sent = figures.get("sent") or 0.0
        loss = 100.0 * (figures.get("lost") or 0.0) / sent if sent else np.nan
        answer["time"] = _number(found.time_s[last], 3)
        answer["loss"] = _number(loss, metric=METRICS["loss"])
        answer["suspect"] = list(reasons(int(figures.pop("suspect", 0) or 0)))
        answer["figures"] = figures
    return answer


def timeline(parts: Sequence[Timeline], step_s: float, window: Window) -> dict[str, Any]:
    """Return the timeline of a window from its blocks."""
    time = np.concatenate([part.time_s for part in parts])
    inside = (time > window.start_s) & (time - step_s < window.end_s)

    def joined(name: str) -> Column:
        return np.concatenate([getattr(part, name) for part in parts])[inside]

    return {
        "from": window.start_s,
        "to": window.end_s,
        "step_s": step_s,
        "time": numbers(time[inside], 3),
        "series": numbers(joined("series")),
        "lossy": numbers(joined("lossy")),
        "worst_percent": numbers(joined("worst_percent"), metric=METRICS["loss"]),
    }
