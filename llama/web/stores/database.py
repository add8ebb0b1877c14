"""Asking a database over HTTP: one place for credentials, deadlines, size limits and complaints."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlencode

import orjson
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    DeferredSemaphore,
    gatherResults,
    maybeDeferred,
)
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.web.client import ResponseFailed

from llama.http.bounded_json import see_size
from llama.http.client import (
    Reply,
    TooLargeError,
    agent_of,
    authorization,
    connection_pool,
    explain,
    request,
)
from llama.printable import printable
from llama.web.store import StoreError, StoreTimeoutError, TooMuchError

T = TypeVar("T")
P = ParamSpec("P")

MEGABYTE = 1024 * 1024
#: What one answer may weigh: that of a mesh of 40,000 series is some 20 MB.
MAX_ANSWER = 512 * MEGABYTE
#: And of how many values it may be: as many as an honest one of that weight. The shortest take thirty
#: times their size in memory.
MOST_VALUES = 32_000_000
#: Questions that are asked of one database at once.
AT_ONCE = 8
_log = Logger()
#: What reading an answer that no such database gives may raise.
UNEXPECTED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def deferred(ask: Callable[P, Coroutine[Deferred[Any], Any, T]]) -> Callable[P, Deferred[T]]:
    """Make a store's coroutine function one that begins at once, and returns a Deferred of what it gives.

    An answer that it can make nothing of is the database's fault: a `StoreError`. Should the mistake
    be ours after all, the log has where it happened, once until there is another.
    """
    told = ""

    async def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal told
        try:
            return await ask(*args, **kwargs)
        except UNEXPECTED as error:
            store: Any = args[0]
            surprise: StoreError = store._database.surprise(error)
            if str(surprise) != told:
                told = str(surprise)
                _log.failure("an answer could not be read")
            raise surprise from error

    @wraps(ask)
    def begin(*args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return Deferred.fromCoroutine(asked(*args, **kwargs))

    return begin


class Database:
    """A database at ``url``. Raises `StoreError` if its options make no sense."""

    def __init__(
        self,
        reactor: Any,
        *,
        url: str,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca_file: str | None = None,
        timeout_s: float = 20.0,
        max_octets: int = MAX_ANSWER,
    ) -> None:
        self.url = url.rstrip("/")
        self._reactor = reactor
        self._timeout_s = timeout_s
        self._max_octets = max_octets
        self._headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            **authorization(token, username, password),
        }
        self._pool = connection_pool(reactor)
        self._pool.maxPersistentPerHost = AT_ONCE
        self._turns = DeferredSemaphore(AT_ONCE)
        # One answer after the other, lest several large ones are values at once: the interpreter's lock
        # lets no two be read together anyway.
        self._reading = DeferredLock()
        try:
            self._agent = agent_of(reactor, self._pool, min(5.0, timeout_s), ca_file)
        except ValueError as error:
            raise StoreError(str(error)) from None

    def ask(
        self,
        path: str,
        parameters: Mapping[str, str],
        read: Callable[[Any], T],
        *,
        load: Callable[[bytes], Any] = orjson.loads,
        get: bool = False,
    ) -> Deferred[T]:
        """Post ``parameters`` as a form and give what ``read`` makes of the JSON, in a thread.

        ``load`` decodes it: `json_lines`, where a database answers with several values.
        ``get``: ask by GET, where a database takes no other.
        Fails with `StoreError`. ``read`` may raise it, too.
        """
        asked: Deferred[T] = self._turns.run(
            lambda: Deferred.fromCoroutine(self._ask(path, parameters, read, load, get))
        )
        return asked

    def ask_all(self, questions: Sequence[Callable[[], Deferred[T]]]) -> Deferred[list[T]]:
        """Ask several at once, as many as have their turn; the first failure is the answer."""
        together: Deferred[list[T]] = gatherResults(
            [question() for question in questions], consumeErrors=True
        )
        return together.addErrback(_unwrap)

    async def _ask(
        self,
        path: str,
        parameters: Mapping[str, str],
        read: Callable[[Any], T],
        load: Callable[[bytes], Any],
        get: bool,
    ) -> T:
        form = urlencode(parameters)
        try:
            reply = await request(
                self._agent,
                self._reactor,
                "GET" if get else "POST",
                f"{self.url}{path}?{form}" if get else self.url + path,
                timeout_s=self._timeout_s,
                max_octets=self._max_octets,
                headers=self._headers,
                body=None if get else form.encode(),
            )
        except TooLargeError as error:
            # This comes out of the middle of reading; the connection is let go of only after it.
            await deferLater(self._reactor, 0.0)
            raise self._too_much(error) from None
        except Exception as error:
            kind = StoreTimeoutError if _timed_out(error) else StoreError
            raise kind(f"{self.url}: {explain(error, self._timeout_s)}") from None
        await self._reading.acquire()
        answer: Deferred[T] = Deferred()

        def done(result: Any) -> None:
            self._reading.release()
            answer.callback(result)

        # Who gives up is told at once, but the thread goes on: nothing else is read until it is done.
        maybeDeferred(self.in_thread, self._read, reply, read, load).addBoth(done)
        return await answer

    def _read(self, reply: Reply, read: Callable[[Any], T], load: Callable[[bytes], Any]) -> T:
        try:
            see_size(reply.body, MOST_VALUES)
            said = (load if reply.status == 200 else orjson.loads)(reply.body)
        except TooLargeError as error:
            raise self._too_much(error) from None
        except orjson.JSONDecodeError:
            said = None
        if reply.status != 200:
            reason = said.get("error") if isinstance(said, dict) else None
            kind = StoreTimeoutError if reply.status in (408, 504) else StoreError
            raise kind(f"{self.url}: HTTP {reply.status}: {_line(reason or reply.excerpt())}")
        if said is None:
            raise StoreError(f"{self.url}: answered what is not JSON: {reply.excerpt()}")
        try:
            return read(said)
        except UNEXPECTED as error:
            raise self.surprise(error) from None

    def _too_much(self, problem: TooLargeError) -> StoreError:
        return TooMuchError(
            f"{self.url}: its answer has {problem}; ask for less time or fewer pairs"
        )

    def surprise(self, problem: Exception) -> StoreError:
        """Return an error for an answer of which nothing can be made."""
        return StoreError(
            f"{self.url}: answered what was not expected ({type(problem).__name__}: {_line(problem)}); "
            "is it a database of the type that is configured?"
        )

    def complain(self, reason: str) -> StoreError:
        """Return an error that the database reported."""
        return StoreError(f"{self.url}: {_line(reason)}")

    def in_thread(self, work: Callable[..., T], *args: Any) -> Deferred[T]:
        """Give what ``work`` returns in a thread: reading a big answer takes its time."""
        done: Deferred[T] = deferToThreadPool(
            self._reactor, self._reactor.getThreadPool(), work, *args
        )
        return done

    def stop(self) -> Deferred[None]:
        """Close the connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


def json_lines(body: bytes) -> list[Any]:
    """Return the values of a body with one a line; raises `orjson.JSONDecodeError`."""
    return [orjson.loads(line) for line in body.splitlines() if line]


def _timed_out(error: BaseException) -> bool:
    if isinstance(error, ResponseFailed):
        return any(_timed_out(reason.value) for reason in error.reasons)
    return isinstance(error, DeferredTimeoutError | CancelledError)


def _line(text: object) -> str:
    return printable(" ".join(str(text).split())[:300])


def _unwrap(failure: Any) -> Any:
    sub = getattr(failure.value, "subFailure", None)
    return sub if sub is not None else failure
