"""The parameters of the matrix: which there are, and within which bounds."""

from __future__ import annotations

from llama.http.server import BadRequestError, Query, unexpected
from llama.web.fold import Open
from llama.web.groups import read_paths
from llama.web.metrics import METRICS, Metric
from llama.web.store import Window

#: What a client may ask at most.
MAX_TEXT = 512
MAX_OPENED = 12_000  # characters, of the paths of open groups
MAX_GROUP_KEYS = 6
MAX_STEPS = 2000
MAX_LIMIT = 1000
DAY_S = 86400.0
MAX_SPAN_S = 7 * DAY_S
MAX_RANGE_S = 400 * DAY_S


class Arguments(Query):
    """The query of a request to the web API, in which an empty parameter is as good as none."""

    def text(self, name: str, limit: int = MAX_TEXT) -> str | None:
        """Return the text of a parameter; None if it is absent or empty."""
        text = super().text(name) or ""
        if len(text) > limit:
            raise BadRequestError(f"{name}: {len(text)} characters, at most {limit} are allowed")
        return text or None

    def required(self, name: str) -> str:
        """Return the text of a parameter that must be there."""
        text = self.text(name)
        if text is None:
            raise BadRequestError(f"{name}: missing")
        return text

    def metric(self) -> Metric:
        """Return the metric asked for; loss if none is."""
        name = self.text("metric") or "loss"
        if name not in METRICS:
            raise unexpected("metric", name, f"one of {', '.join(METRICS)}")
        return METRICS[name]

    def filters(self) -> dict[str, str]:
        """Return which class and kind of probe are wanted, as tags."""
        chosen = {name: self.text(name) for name in ("class", "probe")}
        return {name: value for name, value in chosen.items() if value is not None}

    def group(self) -> list[str] | None:
        """Return the group keys, outermost first; None: not said, []: no groups."""
        text = super().text("group")
        if text is None or text == "auto":
            return None
        keys = [key for key in text.split(",") if key and key != "none"]
        if len(keys) > MAX_GROUP_KEYS or len(text) > MAX_TEXT:
            raise BadRequestError(f"group: at most {MAX_GROUP_KEYS} tag names are allowed")
        return keys

    def opened(self, name: str) -> Open:
        """Return which groups are open."""
        text = super().text(name)
        if text in (None, "auto"):
            return "auto"
        if text == "none":
            return "none"
        if text == "*":
            return "all"
        try:
            return read_paths(self.text(name, MAX_OPENED) or "")
        except ValueError as error:
            raise BadRequestError(f"{name}: {error}") from error


def read_range(arguments: Arguments, now_s: float) -> tuple[Window, float | None]:
    """Return what ``from``, ``to`` (Unix seconds) and ``step`` name; a step of None is to be chosen."""
    end = arguments.number("to", 0, 1e11)
    end = now_s if end is None else end
    start = arguments.number("from", 0, 1e11)
    start = end - 6 * 3600.0 if start is None else start
    if not 0 < end - start <= MAX_RANGE_S:
        raise BadRequestError(f"from: must lie before to, by at most {MAX_RANGE_S / DAY_S:g} days")
    step = arguments.number("step", 1, DAY_S)
    if step is not None and (end - start) / step > MAX_STEPS:
        raise BadRequestError(f"step: more than {MAX_STEPS} steps between from and to")
    return Window(start, end), step
