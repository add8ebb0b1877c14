"""Names of the addresses that routers answer from: a file like /etc/hosts, then reverse DNS.

Several addresses of one router should get one name: links then end at routers, not at interfaces.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from llama.net.lookup import is_address
from llama.printable import printable
from llama.threads import DaemonThreads

#: Unanswered questions at a time; those beyond are asked when the address is seen again.
AT_ONCE = 8
#: A name is asked for again after so long, s, and where there was none.
AGAIN_S = 3600.0
#: Names that are remembered; beyond, that which was asked for the longest ago is forgotten.
MOST_NAMES = 100_000


def read_names(path: Path) -> dict[str, str]:
    """Return address -> name of a file with both on a line; ``#`` begins a comment.

    Raises `OSError` and `UnicodeDecodeError` for what cannot be read.
    """
    known: dict[str, str] = {}
    for line in path.read_text().splitlines():
        words = line.partition("#")[0].split()
        if len(words) >= 2:
            known[words[0]] = words[1]
    return known


def ask(address: str) -> str:
    """Return the name that the system's resolver has for an address, else the address; blocks.

    Whoever owns the address says what its name is, so it is made printable. What is no address is
    not asked for.
    """
    try:
        ip_address(address)
        return printable(socket.gethostbyaddr(address)[0])
    except (OSError, ValueError):
        return address


class ReverseNames:
    """Names by reverse DNS: an address is its own name until the answer came.

    ``known`` ones are never asked for, nor is what is no address. What others say that hops are called
    may be anything, and without end. Any thread may call it; the questions are the reactor's.
    """

    def __init__(
        self, reactor: Any, known: dict[str, str], ask: Callable[[str], str] = ask
    ) -> None:
        self._reactor = reactor
        self._threads = DaemonThreads(reactor)
        self._known = known
        self._ask = ask
        self._asked: dict[str, tuple[str, float]] = {}  # address -> its name, when that was asked
        self._waiting: set[str] = set()

    def __call__(self, address: str) -> str:
        """Return the name of an address, as far as it is known by now."""
        if address in self._known:
            return self._known[address]
        name, asked_s = self._asked.get(address, (address, float("-inf")))
        due = self._reactor.seconds() - asked_s >= AGAIN_S
        may_ask = address not in self._waiting and len(self._waiting) < AT_ONCE
        if due and may_ask and is_address(address):
            self._waiting.add(address)
            self._reactor.callFromThread(self._look_up, address)
        return name

    def _look_up(self, address: str) -> None:
        self._threads.call(self._ask, address).addBoth(self._answered, address)

    def _answered(self, name: Any, address: str) -> None:
        """Remember a name; whatever else the resolver did means that there is none."""
        self._waiting.discard(address)
        known = name if isinstance(name, str) else address
        self._asked.pop(address, None)  # so that they stay in the order of asking
        self._asked[address] = known, self._reactor.seconds()
        if len(self._asked) > MOST_NAMES:
            del self._asked[next(iter(self._asked))]
