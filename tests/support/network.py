"""A network of its own for a test that changes interfaces, addresses and routes."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from twisted.trial.unittest import SkipTest

_CLONE_NEWNET = 0x40000000


def ip(command: str) -> None:
    """Run ``ip`` in the network of the test."""
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def _enter() -> None:
    """Give this thread, and what it starts, a network that has nothing but loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    ip("link set lo up")


def alone(test: Callable[[Any], None]) -> Callable[[Any], None]:
    """Run a test in a network that ends with it: all its sockets must be its own."""

    @functools.wraps(test)
    def run(case: Any) -> None:
        if os.geteuid() or not shutil.which("ip"):
            raise SkipTest("needs root and iproute2")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_enter).result()
            thread.submit(test, case).result()

    return run
