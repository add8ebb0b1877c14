"""Answers that several people can share: the same question asked again soon is not asked twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class _Open:
    """A question that is not answered yet."""

    def __init__(self, give_up: bool) -> None:
        self.give_up = give_up
        self.waiting: list[Deferred[Any]] = []
        self.asked: Deferred[Any] | None = None

    def settle(self, answer: Any) -> None:
        """Answer all who wait, but for those who leave meanwhile; a `Failure` is one for them, too."""
        while self.waiting:
            self.waiting.pop(0).callback(answer)


class SharedAnswers:
    """Remembers answers for a while, and lets those who ask meanwhile wait for the first.

    Failures are never remembered. Who waits no more cancels what it got; once all have, the question is
    given up, or runs to its end for those who ask next. ``clock`` gives the time (`IReactorTime`).
    """

    def __init__(self, clock: Any, most: int) -> None:
        self._clock = clock
        self._most = most
        self._ready: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._open: dict[Hashable, _Open] = {}

    def get(
        self,
        key: Hashable,
        keep_s: float | Callable[[T], float],
        ask: Callable[[], Deferred[T]],
        give_up: bool = True,
    ) -> Deferred[T]:
        """Give the answer to ``key``, from ``ask()`` unless one is at hand.

        ``keep_s`` is for how long it stays good; it may depend on the answer. What everybody needs is
        not to be given up: if all have less patience than it takes, none would ever have an answer.
        """
        found = self._ready.get(key)
        if found is not None and found[0] > self._clock.seconds():
            self._ready.move_to_end(key)
            ready: Deferred[T] = Deferred()
            ready.callback(found[1])
            return ready
        first = key not in self._open
        question = self._open.setdefault(key, _Open(give_up))
        mine: Deferred[T] = Deferred(lambda mine: self._leave(key, question, mine))
        question.waiting.append(mine)
        if not first:
            return mine

        def arrived(answer: T) -> None:
            try:
                good_s = keep_s(answer) if callable(keep_s) else keep_s
            except Exception:
                failed(Failure())
                return
            self._keep(key, good_s, answer)
            self._close(key, question)
            question.settle(answer)

        def failed(failure: Failure) -> None:
            self._close(key, question)
            question.settle(failure)

        try:
            question.asked = asked = ask()
        except Exception:
            failed(Failure())
        else:
            asked.addCallbacks(cast(Any, arrived), cast(Any, failed))
        return mine

    def _keep(self, key: Hashable, good_s: float, answer: Any) -> None:
        now = self._clock.seconds()
        # Of a mesh by the minute, what is no good any more would soon be most of the memory.
        for old in [old for old, (until, _) in self._ready.items() if until <= now]:
            del self._ready[old]
        self._ready[key] = (now + good_s, answer)
        self._ready.move_to_end(key)
        while len(self._ready) > self._most:
            self._ready.popitem(last=False)

    def _leave(self, key: Hashable, question: _Open, mine: Deferred[Any]) -> None:
        """Let one wait no more; with the last one the question ends."""
        question.waiting.remove(mine)
        if question.give_up and not question.waiting and question.asked is not None:
            self._close(key, question)  # who asks from now on asks anew
            question.asked.cancel()

    def _close(self, key: Hashable, question: _Open) -> None:
        if self._open.get(key) is question:
            del self._open[key]
