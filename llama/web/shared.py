"""Answers that several people can share: the same question asked again soon is not asked twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class SharedAnswers:
    """Remembers answers for a while, and lets those who ask meanwhile wait for the first.

    Failures are never remembered. ``clock`` gives the time (`IReactorTime`).
    """

    def __init__(self, clock: Any, most: int) -> None:
        self._clock = clock
        self._most = most
        self._ready: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._waiting: dict[Hashable, list[Deferred[Any]]] = {}

    def get(
        self,
        key: Hashable,
        keep_s: float | Callable[[T], float],
        ask: Callable[[], Deferred[T]],
    ) -> Deferred[T]:
        """Give the answer to ``key``, from ``ask()`` unless one is at hand.

        ``keep_s`` is for how long it stays good; it may depend on the answer.
        """
        found = self._ready.get(key)
        if found is not None and found[0] > self._clock.seconds():
            self._ready.move_to_end(key)
            ready: Deferred[T] = Deferred()
            ready.callback(found[1])
            return ready
        mine: Deferred[T] = Deferred()
        if key in self._waiting:
            self._waiting[key].append(mine)
            return mine
        self._waiting[key] = [mine]

        def arrived(answer: T) -> None:
            try:
                good_s = keep_s(answer) if callable(keep_s) else keep_s
            except Exception:
                failed(Failure())
                return
            now = self._clock.seconds()
            # Of a mesh by the minute, what is no good any more would soon be most of the memory.
            for old in [old for old, (until, _) in self._ready.items() if until <= now]:
                del self._ready[old]
            self._ready[key] = (now + good_s, answer)
            self._ready.move_to_end(key)
            while len(self._ready) > self._most:
                self._ready.popitem(last=False)
            for each in self._waiting.pop(key):
                each.callback(answer)

        def failed(failure: Failure) -> None:
            for each in self._waiting.pop(key):
                each.errback(failure)

        try:
            asked = ask()
        except Exception:
            failed(Failure())
        else:
            asked.addCallbacks(cast(Any, arrived), cast(Any, failed))
        return mine
