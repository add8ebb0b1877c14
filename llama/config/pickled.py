"""Reads a collector's file for another process: ``python -m llama.config.pickled PATH``.

What it says on its standard output is a pickle of a `CollectorConfig`, or else of the mistakes in the
file: a tuple of `Mistake`. The file is to take the place of one that is in use.
"""

from __future__ import annotations

import gc
import pickle
import signal
import sys

from llama.config.collector import load_collector
from llama.config.mistakes import ConfigErrors, Mistake
from llama.config.model import CollectorConfig


def main() -> None:
    """Read the file that the command line names."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it may be meant for all of a service's processes
    gc.disable()  # it looks through ten thousand targets again and again, and finds nothing
    said: CollectorConfig | tuple[Mistake, ...]
    try:
        said = load_collector(sys.argv[1], again=True)
    except ConfigErrors as errors:
        said = errors.mistakes
    pickle.dump(said, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    main()
