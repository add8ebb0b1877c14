"""Standard output as it may be: closed, full, gone, or of a locale that lacks what is to be written."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextlib import suppress

#: What writing fails with where there is no room, or nothing to write to any more.
_UNWRITABLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))

#: What stands for our own signs where a charset lacks them: as ``?`` all of them would be one.
_PLAIN = {"■": "#", "▨": "/", "→": ">", "\xd7": "x", "·": ".", "—": "-", "…": "."}
_LINES = {"─": "-", "━": "-", "│": "|", "┃": "|"}
_ERRORS = "llama-plain"


def _plain(problem: UnicodeError) -> tuple[str, int]:
    """Return what to write instead of characters that cannot be encoded, each as wide as it was."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    text = problem.object[problem.start : problem.end]
    shown = (
        _LINES.get(sign, "+") if "\u2500" <= sign <= "\u257f" else _PLAIN.get(sign, "?")
        for sign in text
    )
    return "".join(shown), problem.end


codecs.register_error(_ERRORS, _plain)


def prepare() -> None:
    """Let what is written to be there, and take every text: what its charset lacks becomes plainer."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed: or a socket would get its number
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def unwritten(problem: OSError) -> str | None:
    """Return, for people, why output could not be written; None if that is not what went wrong."""
    if problem.errno not in _UNWRITABLE or problem.filename is not None:
        return None
    return f"cannot write its output: {os.strerror(problem.errno or 0)}"


def give_up() -> None:
    """Write nothing any more, or Python would try again when it ends, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
