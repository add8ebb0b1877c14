"""What every program of ours wants of its reactor."""

from __future__ import annotations

from typing import Any

from llama.net.lookup import look_up_apart
from llama.net.steady import count_steadily


def prepare(reactor: Any) -> None:
    """Let ``reactor`` count time steadily, and look names up apart from other work in threads.

    To be called before anything takes a time from the reactor to compare it later. May be called
    again, which changes nothing.
    """
    count_steadily(reactor)
    look_up_apart(reactor)
