"""What the log is told while connections cannot be taken, for want of file descriptors mostly.

Twisted tells of every connection then, in three lines each: whoever may connect could fill the disk.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from llama.reasons import Reasons

#: So long no connection must have been turned away, s, until that is over.
QUIET_S = 60.0


class Shortage:
    """Says once that connections are turned away, and once that it is over. ``what`` is the service."""

    _log = Logger()

    def __init__(self, reactor: Any, what: str) -> None:
        self._reactor = reactor
        self._what = what
        self._over: Any = None
        self._reasons = Reasons()  # since a quiet time

    def watch(self, port: Any) -> None:
        """Hear what a listening port of Twisted's says of connections that it cannot take."""
        if hasattr(port, "_logger"):  # else it is a plugin's, and says what it says
            observer: Any = self._told
            port._logger = Logger("llama.http", observer=observer)

    def stop(self) -> None:
        """Tell no more of an end."""
        over, self._over = self._over, None
        if over is not None:
            over.cancel()

    def _told(self, event: dict[str, Any]) -> None:
        if self._over is not None:
            self._over.reset(QUIET_S)
        else:
            self._over = self._reactor.callLater(QUIET_S, self._end)
        why = event.get("acceptError", "EMFILE")
        if not self._reasons.is_news(why):
            return
        self._log.error(
            "{what}: connections are turned away ({why}){remedy}",
            what=self._what,
            why=why,
            remedy=": this process may have no more files open, see LimitNOFILE= of its unit"
            if why == "EMFILE"
            else "",
        )

    def _end(self) -> None:
        self._over = None
        self._reasons.over()
        self._log.info(
            "{what}: for {seconds:.0f} s no connection was turned away any more",
            what=self._what,
            seconds=QUIET_S,
        )
