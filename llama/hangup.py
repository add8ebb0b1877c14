"""SIGHUP, at which a service reads its files again: from before it runs until it stops.

It may come at any time, and ends a process that has not said what it is to do then. So the plugins
wait for it before anything of a service is imported, and what came meanwhile is taken up once it runs.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application import service

from llama import systemd

#: Whether one came that nobody has taken up.
_came = False


class ServiceMaker(service.ServiceMaker):
    """A plugin of ``twistd`` whose process SIGHUP does not end, once it is the one that is to run.

    Until the reactor runs, Ctrl-C ends the process at once: as an exception it would be printed, or
    come to nothing in whatever catches all of these.
    """

    @property
    def options(self) -> Any:
        """The class of its options. Importing that takes most of the start, and reads no file yet."""
        wait()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return super().options

    @property
    def makeService(self) -> Any:
        """What makes the service, from its options. Once the reactor runs, Ctrl-C is its business."""
        make = super().makeService

        def made(options: Any) -> Any:
            from twisted.internet import reactor

            running: Any = reactor
            running.callWhenRunning(_interruptible, running)
            return make(options)

        return made


def _interruptible(reactor: Any) -> None:
    """Have the reactor take Ctrl-C, and the first alone of all signals that end it.

    Another would be a traceback in the log: a reactor that stops cannot be stopped.
    """
    stopping = False

    def once(stop: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        def handle(number: int, frame: Any) -> None:
            nonlocal stopping
            if not stopping:
                stopping = True
                stop(number, frame)

        return handle

    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, reactor.sigInt):
        signal.signal(signal.SIGINT, once(reactor.sigInt))
    if signal.getsignal(signal.SIGTERM) == reactor.sigTerm:
        signal.signal(signal.SIGTERM, once(reactor.sigTerm))


def wait() -> None:
    """Do nothing at SIGHUP but remember that it came."""
    signal.signal(signal.SIGHUP, _note)


def obey(reactor: Any, act: Callable[[], Any]) -> None:
    """Have ``reactor`` call ``act`` at every SIGHUP, and once for all that came while we waited.

    The files may have changed after they were read.
    """
    global _came
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(act))
    if _came:
        _came = False
        reactor.callFromThread(act)


def ignore() -> None:
    """Do nothing at SIGHUP: what would read its files stops."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


class OnHangup(service.Service):
    """Has ``act`` called at SIGHUP while its parent runs, if it is the last of the parent's children.

    So it starts when all else has, without the powers that were shed, and stops first: a signal while
    the others stop is ignored. From its start on the program is ready for all that systemd may do.
    """

    def __init__(self, reactor: Any, act: Callable[[], Any]) -> None:
        self._reactor = reactor
        self._act = act

    def startService(self) -> None:
        """Obey the signal, also one that came before."""
        super().startService()
        obey(self._reactor, self._act)
        systemd.ready()

    def stopService(self) -> None:
        """Ignore the signal."""
        ignore()
        super().stopService()


def _note(_number: int, _frame: Any) -> None:
    global _came
    _came = True
