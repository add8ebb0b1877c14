"""The benchmarks' programs in C, compiled once."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.programs import build


def compiled() -> dict[str, Path]:
    """Return the C programs, compiled once for all tests of this file."""
    if not hasattr(compiled, "programs"):
        if shutil.which("cc") is None:
            raise SkipTest("needs a C compiler: apt install gcc libc6-dev")
        compiled.work = tempfile.TemporaryDirectory()  # removed when the interpreter ends
        compiled.programs = build(Path(compiled.work.name))
    return compiled.programs


def directory_for(test: SynchronousTestCase) -> Path:
    """Return a new directory that lasts as long as ``test``."""
    work = tempfile.TemporaryDirectory()
    test.addCleanup(work.cleanup)
    return Path(work.name)
