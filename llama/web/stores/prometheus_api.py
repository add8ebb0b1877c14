"""The HTTP API under ``/api/v1`` that databases with PromQL have in common: questions out, arrays in.

One that is spread over machines answers with what it has when some of them are away. That is no
answer: pairs that it leaves out would look like pairs that nobody measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from llama.printable import printable
from llama.web.store import MOST_CELLS, Column, Tags, Window, see_room, series_key
from llama.web.stores.database import Database
from llama.web.stores.promql import NO_TAGS

T = TypeVar("T")

#: So many different warnings of a database are logged, and so many characters of each.
MOST_WARNINGS = 100
MOST_CHARACTERS = 300

#: What tells a series from others: `series_key` of its tags.
Key = tuple[tuple[str, str], ...]
Labels = dict[str, str]


@frozen(eq=False)
class Vector:
    """One instant of some series."""

    tags: list[Tags]
    values: Column

    def by_key(self) -> dict[Key, float]:
        """Return the values by series."""
        return dict(zip(map(series_key, self.tags), self.values.tolist(), strict=True))

    def in_order(self, keys: list[Key]) -> Column:
        """Return the values of these series; NaN where there is none."""
        values = self.by_key()
        return np.array([values.get(key, np.nan) for key in keys], dtype=np.float64)


def tags_of(labels: Labels) -> Tags:
    """Return those of a series' labels that are its tags."""
    return {name: value for name, value in labels.items() if name not in NO_TAGS}


class PrometheusDatabase(Database):
    """A database at ``url``, which is without ``/api/v1``. Every question may fail as `ask` does."""

    log = Logger()

    def __init__(self, reactor: Any, **options: Any) -> None:
        super().__init__(reactor, **options)
        self._warned: set[str] = set()

    def instant(self, query: str, at_s: float | None = None) -> Deferred[Vector]:
        """Give the values at that Unix time; None: now."""

        def read(said: Any) -> Vector:
            found = self._data(said, "vector")
            values = np.array([each["value"][1] for each in found], dtype=np.float64)
            return Vector([tags_of(each["metric"]) for each in found], values)

        return self._query(query, at_s, read)

    def labels(self, query: str, at_s: float) -> Deferred[list[Labels]]:
        """Give the labels of the series that have a value at that Unix time."""
        return self._query(
            query, at_s, lambda said: [each["metric"] for each in self._data(said, "vector")]
        )

    def samples(self, query: str, at_s: float) -> Deferred[list[tuple[Tags, Column, Column]]]:
        """Give the samples themselves: tags, times in Unix seconds, values."""

        def read(said: Any) -> list[tuple[Tags, Column, Column]]:
            answer = []
            for each in self._data(said, "matrix"):
                table = _table(each)
                answer.append((tags_of(each["metric"]), table[:, 0], table[:, 1]))
            return answer

        return self._query(query, at_s, read)

    def _query(self, query: str, at_s: float | None, read: Callable[[Any], T]) -> Deferred[T]:
        when = {} if at_s is None else {"time": f"{at_s:.3f}"}
        return self.ask("/api/v1/query", {"query": query, **when, "nocache": "1"}, read)

    def steps(
        self, query: str, ends: Column, step_s: float, most: int = MOST_CELLS
    ) -> Deferred[list[tuple[Labels, Column]]]:
        """Give each series over the steps that end at ``ends``, Unix seconds; NaN: no value.

        Fails with `TooMuchError` for more than ``most`` of them all.
        """

        def read(said: Any) -> list[tuple[Labels, Column]]:
            answer = []
            found = self._data(said, "matrix")
            see_room(len(found), ends.size, most)
            for each in found:
                table = _table(each)
                row = np.full(ends.size, np.nan)
                place = np.rint((table[:, 0] - ends[0]) / step_s).astype(np.int64)
                inside = (place >= 0) & (place < ends.size)
                row[place[inside]] = table[inside, 1]
                answer.append((each["metric"], row))
            return answer

        parameters = {
            "query": query,
            "start": f"{ends[0]:.3f}",
            "end": f"{ends[-1]:.3f}",
            "step": f"{step_s:g}",
            "nocache": "1",
        }
        return self.ask("/api/v1/query_range", parameters, read)

    def values_of(self, label: str, selector: str, window: Window) -> Deferred[frozenset[str]]:
        """Give the values that a label has of the series that were there in a window."""
        return self.ask(
            f"/api/v1/label/{label}/values",
            _match(selector, window),
            lambda said: frozenset(map(str, self._whole(said))),
            get=True,
        )

    def count_by(self, label: str, selector: str, window: Window) -> Deferred[dict[str, int]]:
        """Give how many series there were in a window with each value of a label.

        That is asked for without any sample.
        """

        def read(said: Any) -> dict[str, int]:
            count: dict[str, int] = {}
            for each in self._whole(said):
                value = each.get(label, "")
                count[value] = count.get(value, 0) + 1
            return count

        return self.ask("/api/v1/series", _match(selector, window), read, get=True)

    def _data(self, said: Any, kind: str) -> list[Any]:
        data = self._whole(said)
        if data["resultType"] != kind:
            raise ValueError(f"a {data['resultType']}, expected a {kind}")
        found: list[Any] = data["result"]
        return found

    def _whole(self, said: Any) -> Any:
        """Return the data of an answer, in a thread; raises `StoreError` when they are not all there."""
        if said["status"] != "success":
            raise self.complain(said.get("error", "no reason given"))
        warnings = [str(each)[:1000] for each in (said.get("warnings") or ())[:MOST_WARNINGS]]
        if said.get("isPartial"):  # VictoriaMetrics
            why = f": {'; '.join(warnings[:3])}" if warnings else ""
            raise self.complain(
                f"has only a part of the data (isPartial); are all its nodes up{why}"
            )
        if warnings:  # of the data, as Thanos's of a store that is away, or of the question
            self._reactor.callFromThread(self._warn, warnings)
        return said["data"]

    def _warn(self, warnings: list[str]) -> None:
        """Log each warning once, as many as there is room for."""
        for warning in warnings:
            text = printable(" ".join(warning.split()))[:MOST_CHARACTERS]
            if text in self._warned or len(self._warned) >= MOST_WARNINGS:
                continue
            self._warned.add(text)
            self.log.warn("{url} warns: {warning}", url=self.url, warning=text)
            if len(self._warned) == MOST_WARNINGS:
                self.log.warn("{url}: its further warnings are not logged", url=self.url)


def _table(series: Any) -> Any:
    """Return the samples of a series of a matrix, of shape (samples, 2): Unix seconds, value."""
    return np.array(series["values"], dtype=np.float64).reshape(-1, 2)


def _match(selector: str, window: Window) -> dict[str, str]:
    return {
        "match[]": selector,
        "start": f"{window.start_s:.3f}",
        "end": f"{window.end_s:.3f}",
    }
