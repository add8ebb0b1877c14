"""One run of the program hping3: its command line, its output as it comes, its end.

It writes to a pseudo-terminal, since to a pipe it would say nothing before its end. No shell is
involved, and no name: only addresses, numbers and a device stand on the command line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import termios
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

from llama.collector.probing.hping3.output import Begun, Event, Reader, read_summary
from llama.config import CollectorConfig

#: What is kept, in octets, of what the program complains.
_MOST_ERRORS = 4096
#: So often what a terminal holds after its program's end is read. It holds some 20 KiB and yields 4 at
#: once; a child of the program may go on to write.
_MOST_READS = 64
#: Where administrators' programs are, which an ordinary user's PATH may lack.
_SYSTEM_PLACES = "/usr/local/sbin:/usr/sbin:/sbin"
_ENVIRONMENT = {"LC_ALL": "C"}


@frozen(kw_only=True)
class Order:
    """What one run is to do: ``count`` SYNs, from as many source ports from ``first_port`` up."""

    program: str  # its path
    address: str  # IPv4
    port: int
    device: str  # where to listen
    source: str  # IPv4
    first_port: int
    count: int
    spacing_us: int  # at most 999,999: the program takes whole seconds above
    dscp: int
    sequence: int  # the TCP sequence number of all of them

    def command(self) -> list[str]:
        """Return the command line."""
        return [
            self.program, "-V", "-n", "-Z", "-S", "-p", str(self.port), "-c", str(self.count),
            "-i", f"u{self.spacing_us}", "-s", str(self.first_port), "-o", f"{self.dscp << 2:x}",
            "-M", str(self.sequence), "-I", self.device, "-a", self.source, self.address,
        ]  # fmt: skip

    def reader(self) -> Reader:
        """Return what reads the output of such a run."""
        return Reader(self.address, self.port, self.sequence)


def find_program(name: str) -> str | None:
    """Return the path of the program ``name``, or None if there is none that may be run."""
    places = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=f"{places}:{_SYSTEM_PLACES}")


def unusable(name: str) -> str | None:
    """Return, in a line for people, why the program ``name`` cannot be used; None if it can.

    Runs it: one SYN to port 0 of this host, over loopback. Takes up to some seconds.
    """
    path = find_program(name)
    if path is None:
        return (
            f"there is no program {name}: install hping3 (apt install hping3), name its path by"
            " `program`, or use probe kind tcp, which needs no program"
        )
    order = Order(
        program=path, address="127.0.0.1", port=0, device="lo", source="127.0.0.1",
        first_port=50000, count=1, spacing_us=1000, dscp=0, sequence=1,
    )  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603  no shell; the program is the operator's choice
            order.command(), env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=10, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{path} does not end: is it hping3?"
    except OSError as reason:
        return f"{path} cannot be run: {reason.strerror}"
    reader = order.reader()
    begun = [event for event in reader.feed(done.stdout) if isinstance(event, Begun)]
    reader.end()
    if begun and not reader.unread and (read_summary(done.stderr) or b"sendto" in done.stderr):
        return None
    said = complaint(done.stderr, reader)
    if b"ermitted" in done.stderr or b"ermission" in done.stderr:
        return (
            f"{path} may not open raw sockets ({said}): run as root or with CAP_NET_RAW, or use"
            " probe kind tcp, which needs neither"
        )
    return f"{path} does not do what hping3 does; it says: {said}"


def programs_of(config: CollectorConfig) -> list[str]:
    """Return the programs that the tests of ``config`` run, each once."""
    return sorted({test.options["program"] for test in config.tests if test.probe == "hping3"})


def unusable_in(config: CollectorConfig) -> str | None:
    """Return, in a line for people, which test of ``config`` cannot run its program, and why."""
    for program in programs_of(config):
        why = unusable(program)
        if why is not None:
            names = [
                test.name
                for test in config.tests
                if test.probe == "hping3" and test.options["program"] == program
            ]
            return f"{config.path}: test {names[0]}: {why}"
    return None


def complaint(errors: bytes, reader: Reader) -> str:
    """Return in a line what a run that failed has said."""
    for line in errors.decode("ascii", "backslashreplace").splitlines():
        if line.strip() and not line.startswith(("Warning:", "---")):
            return line.strip()[:120]
    return reader.puzzle or "nothing"


class Owner(Protocol):
    """Whoever wants to know how a run goes."""

    def heard(self, event: Event) -> None:
        """Take what the program said."""

    def ended(self, status: int | None, errors: bytes) -> None:
        """Take note that it is gone and reaped; ``status`` is None if a signal ended it."""


class _Terminal(FileDescriptor):
    """The other end of the terminal that the program writes to."""

    def __init__(self, reactor: Any, fd: int, reader: Reader, owner: Owner) -> None:
        super().__init__(reactor)
        self._fd, self._output, self._owner = fd, reader, owner
        os.set_blocking(fd, False)
        self.connected = True
        self.startReading()

    def fileno(self) -> int:
        """Return the descriptor, -1 when closed."""
        return self._fd

    def doRead(self) -> None:
        """Pass on some of what is there, so that no program keeps the reactor from its other duties."""
        self._read()

    def _read(self) -> bool:
        """Pass on some of what is there; return whether there may be more."""
        if self._fd < 0:
            return False
        try:
            octets = os.read(self._fd, 65536)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the other end open any more
            octets = b""
        if not octets:
            self.close()
            return False
        for event in self._output.feed(octets):
            self._owner.heard(event)
        return True

    def connectionLost(self, reason: Any) -> None:
        """Read what was written before the other end was closed."""
        self.finish()

    def finish(self) -> None:
        """Pass on all that the terminal holds, and let go of it."""
        for _ in range(_MOST_READS):
            if not self._read():
                break
        self.close()

    def close(self) -> None:
        """Let go of the terminal."""
        if self._fd >= 0:
            self.stopReading()
            os.close(self._fd)
            self._fd = -1


class Hping3(ProcessProtocol):
    """A running hping3; ``owner`` is told what it says and when it is gone.

    `start` raises `OSError` if it, or a terminal, cannot be had.
    """

    def __init__(self, reactor: Any, order: Order, owner: Owner) -> None:
        self._reactor, self._owner = reactor, owner
        self.order = order
        self.reader = order.reader()
        self._process: Any = None
        self._errors = b""
        self._terminal: _Terminal | None = None

    def start(self) -> None:
        """Start the program."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            ours, its = _open_terminal()
            try:
                self._process = self._reactor.spawnProcess(
                    self, self.order.program, self.order.command(), env=_ENVIRONMENT,
                    childFDs={0: nothing, 1: its, 2: "r"},
                )  # fmt: skip
            except BaseException:
                os.close(ours)
                raise
            finally:
                os.close(its)
        finally:
            os.close(nothing)
        self._terminal = _Terminal(self._reactor, ours, self.reader, self._owner)

    @property
    def pid(self) -> int | None:
        """The process id; None once it is gone."""
        pid: int | None = self._process.pid
        return pid

    def kill(self) -> None:
        """End the program at once; it is gone when ``owner`` is told so."""
        # A child of it, if it is a script, may have the pipe open still: that is not waited for.
        self._process.loseConnection()
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess("KILL")

    def errReceived(self, data: bytes) -> None:
        """Keep what the program writes to standard error."""
        self._errors = (self._errors + data)[: _MOST_ERRORS + 1]

    def processEnded(self, reason: Any) -> None:
        """Read the rest and tell."""
        if self._terminal is not None:
            self._terminal.finish()
        self.reader.end()
        value = reason.value
        status = None if getattr(value, "signal", None) else getattr(value, "exitCode", None)
        self._owner.ended(status, self._errors)


def _open_terminal() -> tuple[int, int]:
    """Return our end and the program's end of a terminal that changes nothing; raises `OSError`."""
    ours, its = os.openpty()
    try:
        attributes = termios.tcgetattr(its)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~(termios.ECHO | termios.ISIG | termios.ICANON)
        termios.tcsetattr(its, termios.TCSANOW, attributes)
    except termios.error as reason:  # which is no OSError
        os.close(ours)
        os.close(its)
        raise OSError(*reason.args) from None
    return ours, its
