"""Announces events to other programs: a POST of JSON each, retried until it is taken.

Every event has an identifier (header ``Llama-Event`` and member ``id``) that stays the same when
it is sent again, so that receivers can tell a repetition; we send an event again if no answer said
that it was taken, or if we were killed before that was saved. An answer says so by its status; its
body is not read. Events for one URL go in order, one at a time.

Who knows a webhook's URL may post to it: it is a secret, of which the log tells no more than where
the receiver is.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import orjson
from attrs import asdict
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent

from llama.http.client import connection_pool, explain, request
from llama.pinpoint.incidents import Event
from llama.reasons import Reasons

#: The pause after the first failure, s; it doubles up to the longest.
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
TIMEOUT_S = 10.0
#: Events that wait for one URL; the oldest goes first when there are more.
MOST_WAITING = 1000


class RefusedError(Exception):
    """The receiver answered, but not that it took the event."""


def place_of(url: str) -> str:
    """Return the scheme, host and port of an address: what of it is no secret."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(a webhook)"
    return f"{parts.scheme}://{host}/…"


def _why(failure: Failure) -> str:
    """Say for a person why an event was not taken."""
    problem: Any = failure.value
    return str(problem) if isinstance(problem, RefusedError) else explain(problem, TIMEOUT_S)


class Webhook:
    """One URL. `waiting` are the events that it has not taken yet, as they are sent."""

    log = Logger()

    def __init__(self, reactor: Any, url: str, agent: Any = None) -> None:
        self.url = url
        self.place = place_of(url)
        #: Stands for the URL where what waits is kept.
        self.digest = hashlib.sha256(url.encode()).hexdigest()[:32]
        self.waiting: deque[dict[str, Any]] = deque(maxlen=MOST_WAITING)
        self.taken = 0
        self.failures = 0
        self._reactor = reactor
        pool = connection_pool(reactor, persistent=False)
        self._agent = agent or Agent(reactor, connectTimeout=TIMEOUT_S, pool=pool)
        self._pause_s = FIRST_PAUSE_S
        self._reasons = Reasons()  # why no event was taken since one was
        self._since_s = 0.0  # reactor's seconds at which that began
        self._sending: Deferred[None] | None = None
        self._later: Any = None
        self._stopped = False

    def announce(self, event: Event) -> None:
        """Send an event as soon as those before it are taken."""
        self.waiting.append(asdict(event))
        self.go_on()

    def go_on(self) -> None:
        """Send what waits, unless that is under way or a pause is kept."""
        if self._sending is None and self._later is None and self.waiting and not self._stopped:
            event = self.waiting[0]
            self._sending = Deferred.fromCoroutine(self._post(event))
            # Only now: it may have failed already.
            self._sending.addCallbacks(self._took, self._did_not, callbackArgs=(event,))

    def stop(self) -> Deferred[None]:
        """Send nothing any more; what waits stays in `waiting`."""
        self._stopped = True
        if self._later is not None:
            self._later.cancel()
            self._later = None
        sending = self._sending
        if sending is None:
            return succeed(None)
        sending.cancel()
        return sending

    async def _post(self, event: dict[str, Any]) -> None:
        """Send an event; a status other than 2xx is a refusal."""
        reply = await request(
            self._agent,
            self._reactor,
            "POST",
            self.url,
            timeout_s=TIMEOUT_S,
            max_octets=0,
            head_only=True,
            headers={"Content-Type": "application/json", "Llama-Event": event["id"]},
            body=orjson.dumps(event),
        )
        if not 200 <= reply.status < 300:
            raise RefusedError(f"it answered {reply.status}")

    def _took(self, _: Any, event: dict[str, Any]) -> None:
        self._sending = None
        self._pause_s = FIRST_PAUSE_S
        self.taken += 1
        if self._reasons.over():
            self.log.info(
                "{url} takes events again, after {seconds:.0f} s",
                url=self.place,
                seconds=self._reactor.seconds() - self._since_s,
            )
        # More events than there is room for may have pushed this one out meanwhile.
        if self.waiting and self.waiting[0] is event:
            self.waiting.popleft()
        self.go_on()

    def _did_not(self, failure: Failure) -> None:
        self._sending = None
        if self._stopped:
            return
        self.failures += 1
        why = _why(failure).replace(self.url, self.place)
        if not self._reasons:
            self._since_s = self._reactor.seconds()
        if self._reasons.is_news(why):
            self.log.warn(
                "{url} did not take an event: {why}; {waiting} wait, and are tried again and again",
                url=self.place,
                why=why,
                waiting=len(self.waiting),
            )
        self._later = self._reactor.callLater(self._pause_s, self._again)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _again(self) -> None:
        self._later = None
        self.go_on()
