"""An exit status for programs under twistd, which has none of its own: it ends with 0."""

from __future__ import annotations

import atexit
import os
import sys


def end_with_1() -> None:
    """Let the process have status 1 when it ends, which it does as it would have without."""
    atexit.register(_exit_1)


def _exit_1() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
